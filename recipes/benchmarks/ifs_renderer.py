"""Two published on-the-fly renderers of iterated function systems, written anew in Numba to be measured beside ours.

Sources: C. Anderson and R. Farrell, "Improving Fractal Pre-training", WACV 2022; H. Kataoka et al., "Pre-training
without Natural Images", ACCV 2020 (FractalDB). Both draw a picture by the chaos game: a point jumps 100,000 times, each
time by one of 2 to 7 affine maps, and the pixels that it visits make the picture. Written from the papers; this is
what is done here of each:

- WACV 2022: a map is a rotation, two singular values and a rotation, with random mirrors; the values lie in [0, 1), and
  the sum of (first + 2 second) over the N maps is uniform in [(5 + N) / 2, (6 + N) / 2]. A map is chosen with a chance
  that goes with its determinant. Every visit counts at the pixels of a 3x3 patch, of which each cell is on with
  chance 1/2, one patch to a picture (a picture in 512 is empty); the count over the largest count, plus a random
  shift, is the hue. Saturation and value are random. The cheap form: no diamond-square background, jitter, random
  window, flip or blur.
- FractalDB: the six numbers of a map are uniform in [-1, 1], whether they contract or not; a code is kept if 100,000
  points fill at least 0.2 of the pixels. Pixels that a patch touches are grey, all others black.

Codes are drawn beforehand, for nothing; a picture is its orbit, its raster and its colours, on one thread. `published`
is what one writes first: float64, NumPy's random numbers, a search through the chances, the points kept and their
bounds found afterwards. `tuned` is as far as a scalar chaos game was brought: float32, xorshift64*, no branches,
patches as a convolution. Both must give the Sierpinski triangle's cells exactly before any speed is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from fractal_streams.errors import FractalStreamsError

SIZE, POINTS = 256, 100_000
MAPS = (2, 7)
"""Fewest and most affine maps of a code."""
FILL = 0.2
"""Share of pixels that a code of FractalDB fills at least."""
GREY = 127
DEPTH = 8
"""Halvings of the Sierpinski triangle at which the gate compares: 3**8 of 4**8 cells."""

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


class WrongOrbitError(FractalStreamsError, AssertionError):
    """An orbit, code or picture that breaks a law of its method, so its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """One iterated function system.

    maps: (N, 2, 3) float64, each x, y -> A (x, y) + b as rows of (A | b).
    seed: of the random numbers by which it was seen to fill enough, where that was asked.
    """

    maps: Float64
    seed: int = 0

    @property
    def chances(self) -> Float64:
        """(N,) chance of each map, by the size of its determinant."""
        size = np.abs(np.linalg.det(self.maps[:, :, :2]))
        return np.asarray(size / size.sum())

    @property
    def contraction(self) -> float:
        """The largest singular value: below 1, every map brings any two points closer."""
        return float(np.linalg.svd(self.maps[:, :, :2], compute_uv=False).max())

    @property
    def reach(self) -> float:
        """No point of an orbit that begins in the disc of this radius leaves it; only of a code that contracts."""
        return float(np.linalg.norm(self.maps[:, :, 2], axis=1).max() / (1.0 - self.contraction))


SIERPINSKI = Code(maps=np.array([[[0.5, 0, x], [0, 0.5, y]] for x, y in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5))]))


def singular_values(count: int, total: float, random: np.random.Generator) -> Float64:
    """(count, 2) singular values, each second no larger than its first, sum of (first + 2 second) = total."""
    values = np.empty((count, 2))
    left = total
    for k in range(count):
        behind = 3.0 * (count - 1 - k)  # the most that the maps to come can take
        first = random.uniform(max(0.0, (left - behind) / 3.0), min(1.0, left))
        least, most = max(0.0, (left - behind - first) / 2.0), min(first, (left - first) / 2.0)
        second = random.uniform(least, most) if k < count - 1 else (left - first) / 2.0
        values[k] = first, second
        left -= first + 2.0 * second
    return values


def contractive_code(random: np.random.Generator) -> Code:
    """A code of WACV 2022."""
    count = int(random.integers(MAPS[0], MAPS[1] + 1))
    values = singular_values(count, random.uniform((5 + count) / 2, (6 + count) / 2), random)
    angles = random.uniform(-math.pi, math.pi, (2, count))
    mirrors = random.choice([-1.0, 1.0], (2, count, 2))
    cos, sin = np.cos(angles), np.sin(angles)
    turns = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2) * mirrors[..., None, :]
    maps = np.concatenate(
        [turns[0] * values[:, None, :] @ turns[1], random.uniform(-1.0, 1.0, (count, 2, 1))], axis=2
    )  # fmt: skip
    return Code(maps=maps)


def filling_code(random: np.random.Generator) -> Code:
    """A code of FractalDB: the first of uniform ones that fills enough."""
    points = np.empty((POINTS, 2))
    while True:
        count = int(random.integers(MAPS[0], MAPS[1] + 1))
        code = Code(maps=random.uniform(-1.0, 1.0, (count, 2, 3)), seed=int(random.integers(2**32)))
        published_orbit(code.maps, np.cumsum(code.chances), np.random.default_rng(code.seed), points)
        if np.isfinite(points).all() and fill(points) >= FILL:
            return code


def fill(points: Float64) -> float:
    """Share of the pixels of a raster, stretched over the points, that the points lie in."""
    low, high = points.min(axis=0), points.max(axis=0)
    cells = ((points - low) * ((SIZE - 1) / (high - low))).astype(np.int64)
    return len(np.unique(cells[:, 0] * SIZE + cells[:, 1])) / SIZE**2


@numba.njit(nogil=True)
def published_orbit(maps, rising, random, points):  # type: ignore[no-untyped-def]
    """Fill points (P, 2) from the fixed point of the first map. maps: (N, 2, 3); rising: (N,) chances, summed up."""
    (a, b, e), (c, d, f) = maps[0]
    size = (1.0 - a) * (1.0 - d) - b * c
    x, y = ((1.0 - d) * e + b * f) / size, ((1.0 - a) * f + c * e) / size
    last = len(maps) - 1
    for i in range(len(points)):
        lot = random.random()
        k = 0
        while k < last and lot >= rising[k]:
            k += 1
        x, y = (
            maps[k, 0, 0] * x + maps[k, 0, 1] * y + maps[k, 0, 2],
            maps[k, 1, 0] * x + maps[k, 1, 1] * y + maps[k, 1, 2],
        )
        points[i, 0], points[i, 1] = x, y


@numba.njit(nogil=True)
def extent(points):  # type: ignore[no-untyped-def]
    """(2,) lowest and (2,) highest of each coordinate."""
    low, high = points[0].copy(), points[0].copy()
    for i in range(len(points)):
        for axis in range(2):
            low[axis] = min(low[axis], points[i, axis])
            high[axis] = max(high[axis], points[i, axis])
    return low, high


@numba.njit(nogil=True)
def published_counts(points, low, high, patch, counts):  # type: ignore[no-untyped-def]
    """Add 1 to the cells of a patch around each point. patch: (K, 2) offsets of rows and columns; counts: (N, N)."""
    size = len(counts)
    down, across = (size - 1) / (high[0] - low[0]), (size - 1) / (high[1] - low[1])
    for i in range(len(points)):
        row, column = int((points[i, 0] - low[0]) * down), int((points[i, 1] - low[1]) * across)
        for k in range(len(patch)):
            r, c = row + patch[k, 0], column + patch[k, 1]
            if 0 <= r < size and 0 <= c < size:
                counts[r, c] += 1


@numba.njit(nogil=True)
def rgb(hue, saturation, value):  # type: ignore[no-untyped-def]
    """Three levels in [0, 255] of a colour; all arguments in [0, 1]."""
    sector = int(hue * 6.0) % 6
    part = hue * 6.0 - int(hue * 6.0)
    dark, fall, rise = 1.0 - saturation, 1.0 - saturation * part, 1.0 - saturation * (1.0 - part)
    red = (1.0, fall, dark, dark, rise, 1.0)[sector]
    green = (rise, 1.0, 1.0, fall, dark, dark)[sector]
    blue = (dark, dark, rise, 1.0, 1.0, fall)[sector]
    scale = 255.0 * value
    return np.uint8(scale * red + 0.5), np.uint8(scale * green + 0.5), np.uint8(scale * blue + 0.5)


@numba.njit(nogil=True)
def colours(counts, most, table, out):  # type: ignore[no-untyped-def]
    """Fill out (3, N, N) with the colour of each count's share of the largest, black where it is 0. table: (256, 3)."""
    scale = 255.0 / most
    for row in range(counts.shape[0]):
        for column in range(counts.shape[1]):
            count = counts[row, column]
            level = int(count * scale)
            for channel in range(3):
                out[channel, row, column] = table[level, channel] if count > 0 else 0


@numba.njit(nogil=True)
def palette(random, table):  # type: ignore[no-untyped-def]
    """Fill table (256, 3): the hues from a random one on, of one random saturation and value."""
    shift, saturation, value = random.random(), 0.3 + 0.7 * random.random(), 0.5 + 0.5 * random.random()
    for level in range(256):
        table[level] = rgb((level / 256.0 + shift) % 1.0, saturation, value)


@numba.njit(nogil=True)
def random_patch(random):  # type: ignore[no-untyped-def]
    """(K, 2) offsets of the cells of a 3x3 patch that are on."""
    cells = np.empty((9, 2), np.int64)
    on = 0
    for cell in range(9):
        if random.random() < 0.5:
            cells[on] = cell // 3 - 1, cell % 3 - 1
            on += 1
    return cells[:on]


@numba.njit(nogil=True)
def published_picture(maps, rising, coloured, random, points, out):  # type: ignore[no-untyped-def]
    """Fill out (3, N, N): `coloured` as WACV 2022, else grey as FractalDB. points: (P, 2), overwritten."""
    published_orbit(maps, rising, random, points)
    low, high = extent(points)
    counts = np.zeros(out.shape[1:])
    published_counts(points, low, high, random_patch(random), counts)
    table = np.full((256, 3), GREY, np.uint8)
    if coloured:
        palette(random, table)
    colours(counts, max(1.0, counts.max()), table, out)


@numba.njit(nogil=True)
def tuned_orbit(maps, rising, state, points):  # type: ignore[no-untyped-def]
    """Fill points (P, 2) float32 from the origin, after 64 jumps to come close to the attractor.

    maps: (N, 6) float32; rising: (N - 1,) uint32 thresholds of the chances; state: uint64 above 0.
    """
    x, y = np.float32(0.0), np.float32(0.0)
    for i in range(-64, len(points)):
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        lot = np.uint32((state * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32))
        k = 0
        for j in range(len(rising)):
            k += lot >= rising[j]
        x, y = maps[k, 0] * x + maps[k, 1] * y + maps[k, 2], maps[k, 3] * x + maps[k, 4] * y + maps[k, 5]
        place = max(i, 0)
        points[place, 0], points[place, 1] = x, y
    return state


@numba.njit(nogil=True, fastmath=True)
def tuned_picture(maps, rising, state, random, points, visits, counts, out):  # type: ignore[no-untyped-def]
    """As `published_picture`, coloured. visits: (N + 2, N + 2) and counts: (N, N) int32, overwritten."""
    state = tuned_orbit(maps, rising, state, points)
    left, right, top, bottom = points[0, 0], points[0, 0], points[0, 1], points[0, 1]
    for i in range(len(points)):
        left, right = min(left, points[i, 0]), max(right, points[i, 0])
        top, bottom = min(top, points[i, 1]), max(bottom, points[i, 1])
    size = counts.shape[0]
    down, across = np.float32(size - 1) / (right - left), np.float32(size - 1) / (bottom - top)
    visits[:] = 0
    for i in range(len(points)):
        visits[1 + np.int32((points[i, 0] - left) * down), 1 + np.int32((points[i, 1] - top) * across)] += 1
    counts[:] = 0
    patch = random_patch(random)
    for k in range(len(patch)):
        r, c = 1 - patch[k, 0], 1 - patch[k, 1]
        for row in range(size):
            for column in range(size):
                counts[row, column] += visits[row + r, column + c]
    table = np.empty((256, 3), np.uint8)
    palette(random, table)
    colours(counts, max(1, counts.max()), table, out)
    return state


def thresholds(code: Code) -> npt.NDArray[np.uint32]:
    """(N - 1,) where a 32-bit lot goes on to the next map."""
    return (np.cumsum(code.chances)[:-1] * 2.0**32).astype(np.uint32)


def published(codes: Sequence[Code], count: int, *, coloured: bool = True) -> UInt8:
    """(count, 3, SIZE, SIZE) pictures of the codes, in turns."""
    out, points = np.empty((count, 3, SIZE, SIZE), np.uint8), np.empty((POINTS, 2))
    tables = [(code.maps, np.cumsum(code.chances)) for code in codes]
    random = np.random.default_rng(0)
    for k in range(count):
        published_picture(*tables[k % len(tables)], coloured, random, points, out[k])
    return out


def tuned(codes: Sequence[Code], count: int) -> UInt8:
    """(count, 3, SIZE, SIZE) coloured pictures of the codes, in turns."""
    out, points = np.empty((count, 3, SIZE, SIZE), np.uint8), np.empty((POINTS, 2), np.float32)
    visits, counts = np.empty((SIZE + 2, SIZE + 2), np.int32), np.empty((SIZE, SIZE), np.int32)
    tables = [(code.maps.reshape(-1, 6).astype(np.float32), thresholds(code)) for code in codes]
    random, state = np.random.default_rng(0), np.uint64(1)
    for k in range(count):
        state = np.uint64(tuned_picture(*tables[k % len(tables)], state, random, points, visits, counts, out[k]))
    return out


def sierpinski_cells(points: npt.NDArray[np.floating]) -> set[tuple[int, int]]:
    """Cells of side 2**-DEPTH of the unit square that the points lie in."""
    cells = np.unique((points * 2**DEPTH).astype(np.int64), axis=0)
    return {(int(row), int(column)) for row, column in cells}


def check(contractive: Sequence[Code], filling: Sequence[Code]) -> None:
    """The gate: laws of the method that an orbit, a code and a picture keep.

    Raises:
        WrongOrbitError: names the law.
    """
    random = np.random.default_rng(0)
    triangle = {(r, c) for r in range(2**DEPTH) for c in range(2**DEPTH) if not r & c}
    plain, fast = np.empty((POINTS, 2)), np.empty((POINTS, 2), np.float32)
    published_orbit(SIERPINSKI.maps, np.cumsum(SIERPINSKI.chances), random, plain)
    tuned_orbit(SIERPINSKI.maps.reshape(-1, 6).astype(np.float32), thresholds(SIERPINSKI), np.uint64(1), fast)
    for name, points in (("published", plain), ("tuned", fast)):
        if (cells := sierpinski_cells(points)) != triangle:
            raise WrongOrbitError(f"{name}: {len(cells ^ triangle)} cells are not those of the Sierpinski triangle")
    for code in contractive:
        if not code.contraction < 1.0:
            raise WrongOrbitError(f"a code's largest singular value is {code.contraction}, and must be below 1")
        published_orbit(code.maps, np.cumsum(code.chances), random, plain)
        if not np.linalg.norm(plain, axis=1).max() <= code.reach * (1 + 1e-9):
            raise WrongOrbitError(f"an orbit left the disc of radius {code.reach} that its code maps into itself")
    for code in filling:
        # the orbit by which it was kept: one that is not bounded fills another share each time
        published_orbit(code.maps, np.cumsum(code.chances), np.random.default_rng(code.seed), plain)
        if not fill(plain) >= FILL:
            raise WrongOrbitError(f"a code of FractalDB fills {fill(plain):.3f} of its pixels, {FILL} are asked for")
