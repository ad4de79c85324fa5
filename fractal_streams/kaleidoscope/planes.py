"""Planes through the space of a network's inputs: where they lie, their pixels, and how far into them one may go."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32, Float64
from fractal_streams.kaleidoscope.starts import KeyOf, normal_table
from fractal_streams.spec import one_of, whole

PLANE_KINDS = ("sources", "attractors", "middle")
MOST_EXTENT = 100.0
GRAINS = 8
"""Steps of rounding in the smallest pixel."""
FLAT = 1e-9
"""Of a direction's length: what is left of it beside another one, below which both are taken for parallel."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plane:
    """A rectangle of a plane: values origin + x * across + y * up, x to the right and y upwards.

    origin, across, up: (D,) float64; the last two have length 1 and stand upright on each other.
    half_width: half the width of the picture, in lengths of values, above 0.
    centre: (x, y) of the picture's middle.

    Raises:
        InvalidValueError: directions that are not orthonormal, numbers that are not finite, or a width that is not
            positive.

    Example:
        >>> plane = Plane(origin=np.zeros(2), across=np.array([1.0, 0.0]), up=np.array([0.0, 1.0]), half_width=2.0)
        >>> plane.grid(2, 2).tolist()
        [[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
        >>> plane.zoomed((0.5, 0.0), 4.0).half_width
        0.5
    """

    origin: Float64
    across: Float64
    up: Float64
    half_width: float
    centre: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        made = {name: np.array(getattr(self, name), np.float64) for name in ("origin", "across", "up")}
        shapes = {array.shape for array in made.values()}
        if len(shapes) > 1 or made["origin"].ndim != 1 or made["origin"].size < 2:
            raise InvalidValueError(f"origin, across and up of a plane must be (D,) with D of 2 and more, got {shapes}")
        products = [made["across"] @ made["across"], made["up"] @ made["up"], 1.0 + made["across"] @ made["up"]]
        if not np.allclose(products, 1.0, rtol=0.0, atol=1e-9) or not np.isfinite(made["origin"]).all():
            raise InvalidValueError(
                f"across and up of a plane must have length 1 and stand upright on each other, and the origin must be "
                f"finite: their squares are {products[0]:.9g} and {products[1]:.9g}, their product is "
                f"{products[2] - 1.0:.3g}"
            )
        width, centre = float(self.half_width), tuple(float(part) for part in self.centre)
        if not (math.isfinite(width) and width > 0.0) or len(centre) != 2 or not all(map(math.isfinite, centre)):
            raise InvalidValueError(
                f"half_width must be above 0 and centre two finite numbers, got {self.half_width!r}, {self.centre!r}"
            )
        for name, value in {**made, "half_width": width, "centre": centre}.items():
            object.__setattr__(self, name, value)

    def at(self, x: Any, y: Any) -> Float32:
        """(N, D) float32 values at (N,) coordinates; sums are float64."""
        right, high = np.asarray(x, np.float64)[:, None], np.asarray(y, np.float64)[:, None]
        return (self.origin + right * self.across + high * self.up).astype(np.float32)

    def coordinates_of(self, values: npt.NDArray[Any]) -> Float64:
        """(N, 2): x and y of the foot of each of (N, D) values on the plane."""
        return np.asarray((values - self.origin) @ np.stack([self.across, self.up], axis=1), np.float64)

    def axes(self, height: int, width: int) -> tuple[Float64, Float64]:
        """(W,) x of the columns and (H,) y of the rows, at the centres of square pixels, row 0 on top."""
        pixel = 2.0 * self.half_width / width
        across = (np.arange(width) - 0.5 * (width - 1)) * pixel
        upwards = (0.5 * (height - 1) - np.arange(height)) * pixel
        return np.asarray(self.centre[0] + across, np.float64), np.asarray(self.centre[1] + upwards, np.float64)

    def grid(self, height: int, width: int) -> Float32:
        """(H * W, D) float32 values of the pixels' centres, row by row from the top."""
        x, y = self.axes(height, width)
        return self.at(np.tile(x, height), np.repeat(y, width))

    def zoomed(self, centre: tuple[float, float], factor: float) -> Plane:
        """The plane about another middle, `factor` times as close: above 1 goes in, below 1 goes out."""
        if not (math.isfinite(factor) and factor > 0.0):
            raise InvalidValueError(f"a zoom's factor must be above 0, got {factor!r}")
        return replace(self, centre=centre, half_width=self.half_width / factor)

    def narrowest(self, height: int, width: int) -> float:
        """The smallest half width about any point of this rectangle at which rounding does not show.

        A step of a pixel moves value d by pixel * |across_d| to the right, and up likewise. Where |values| reach v_d,
        float32 are at most spacing(v_d) apart, and two real numbers farther from each other than that never round to
        the same one. So neighbours surely differ from pixels of max over both directions of
        min_d(spacing(v_d) / |direction_d|) on. There a pixel's own rounding, and the network's, still blur boundaries
        by about as much: pixels here are 8 times as large.
        """
        reach = self.half_width * np.array([1.0, height / width])
        most = np.abs(self.origin + self.centre[0] * self.across + self.centre[1] * self.up)
        most += np.abs(self.across) * reach[0] + np.abs(self.up) * reach[1]
        spacing = np.spacing(most.astype(np.float32)).astype(np.float64)
        with np.errstate(divide="ignore"):
            pixel = max(float((spacing / np.abs(direction)).min()) for direction in (self.across, self.up))
        return 0.5 * GRAINS * pixel * width

    def deepest(self, height: int, width: int) -> int:
        """How often the half width may be halved, wherever in this rectangle, before rounding shows."""
        return max(0, math.floor(math.log2(self.half_width / self.narrowest(height, width))))


def drawn_plane(
    kind: str, fitted: Kaleidoscope, index: int, model: int, key_of: KeyOf, *, extent: float = 1.5
) -> Plane:  # fmt: skip
    """A plane through the space of a network's inputs, drawn by name for an index.

    Args:
        kind: "sources", through three different sources of the network, about their mean; "attractors", through two of
            its attractors (its sources, if it has fewer than two) in a random direction beside them, about their
            mean; "middle", through the middle of the range in random directions, where half a width of 1 goes from the
            middle to the range's ends on the average over the values. All are turned by a random angle.
        index: that the draws belong to. model: of the bank.
        key_of: names the draws.
        extent: half the width, in distances of the farthest of those points from the middle.

    Where a network has fewer sources, or they lie in a line, a random direction takes the place of the missing one.

    Raises:
        InvalidValueError: no such kind, networks of fewer than two values, or an extent outside (0, 100].
    """
    one_of(kind, "plane", PLANE_KINDS)
    size, chain = fitted.network.size, np.array([index], np.int64)
    if size < 2:
        raise InvalidValueError(f"a plane needs networks of two values and more, got shape {fitted.network.shape}")
    extent = checked_extent(extent)
    spare = normal_table(chain, 2 * size, key_of("plane direction")).reshape(2, size)
    points = plane_points(kind, fitted, chain, model, key_of)
    middle = 0.5 * sum(fitted.network.range)
    origin = points.mean(axis=0) if len(points) else np.full(size, middle)
    across, up = frame([point - points[0] for point in points[1:]], spare)
    turn = 2.0 * math.pi * (float(rng.words(chain, key_of("plane turn"))[0][0]) + 0.5) * 2.0**-32
    across, up = math.cos(turn) * across + math.sin(turn) * up, math.cos(turn) * up - math.sin(turn) * across
    radius = float(np.linalg.norm(points - origin, axis=1).max(initial=0.0))
    if radius <= 0.0:
        radius = 0.5 * fitted.network.span * math.sqrt(size)
    return Plane(origin=origin, across=across, up=up, half_width=extent * radius)


def plane_points(
    kind: str, fitted: Kaleidoscope, chain: npt.NDArray[np.int64], model: int, key_of: KeyOf
) -> Float64:  # fmt: skip
    """(P, D) values that the plane goes through: three sources, two attractors, or none."""
    if kind == "middle":
        return np.zeros((0, fitted.network.size))
    count, table = 3, fitted.source_values(model)
    if kind == "attractors":
        count, found = 2, fitted.attractors
        own = None if found is None else found.states[found.model == model]
        table = table if own is None or len(own) < 2 else own
    words = [int(word[0]) for word in rng.words(chain, key_of("plane points"))]
    chosen: list[int] = []
    for number in range(min(count, len(table))):  # the k-th of those that are left
        place = words[number] * (len(table) - number) >> 32
        for taken in sorted(chosen):
            place += place >= taken
        chosen.append(place)
    return table[chosen].astype(np.float64)


def frame(directions: list[Float64], spare: Float64) -> tuple[Float64, Float64]:
    """Two orthonormal (D,) directions: of the first that are not parallel, spare ones behind those given."""
    found: list[Float64] = []
    for direction in [*directions, *spare, *np.eye(spare.shape[1])]:
        rest = np.asarray(direction, np.float64)
        for _ in range(2):  # once leaves a rounding error of directions that are nearly parallel
            for unit in found:
                rest = rest - (rest @ unit) * unit
        length = float(np.linalg.norm(rest))
        if length > FLAT * max(1.0, float(np.linalg.norm(direction))):
            found.append(rest / length)
        if len(found) == 2:
            break
    return found[0], found[1]


def checked_extent(extent: Any) -> float:
    """An extent of planes as a float."""
    if isinstance(extent, bool) or not isinstance(extent, int | float) or not 0.0 < extent <= MOST_EXTENT:
        raise InvalidValueError(f"extent must lie in (0, {MOST_EXTENT:g}], got {extent!r}")
    return float(extent)


def checked_size(height: Any, width: Any) -> tuple[int, int]:
    """Pixels of a map."""
    return whole(height, "height", 1, 2**16, "pixels"), whole(width, "width", 1, 2**16, "pixels")


def checked_within(within: Any) -> float:
    """A distance, 0 and up."""
    if isinstance(within, bool) or not isinstance(within, int | float) or not 0.0 <= within <= 1000.0:
        raise InvalidValueError(f"within must lie in [0, 1000], got {within!r}")
    return float(within)
