"""How many steps the orbits of seed-readme really run: what the cost of a picture must follow.

An orbit ends when it leaves the disc, or when it is, to the bit, where it was 12 steps before: then it never leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from fractal_streams.recipes.benchmarks.cpu_peers import PARAMETERS

from fractal_streams.stream import StillStream

COUNTED = 2**16
"""Pixels of a picture that are followed at most."""
PERIOD = 12
"""Steps between two looks at whether an orbit is periodic: finds the periods 1, 2, 3, 4, 6 and 12."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Mean steps: of a pixel, and of the slowest pixel of a tile, for which the others of its tile wait."""

    pixel: float
    tile: float


@numba.njit(nogil=True)
def first_end(alpha, beta, power, poly, rows, most, radius, out):  # type: ignore[no-untyped-def]
    """Fill out (B, R, N) int32 with the step at which an orbit ends, `most` at most. poly: (4, B); rows: (R,)."""
    one, half = np.float32(1), np.float32(0.5)
    size, limit = out.shape[2], np.float32(radius * radius)
    for b in range(out.shape[0]):
        cos_a, sin_a, cos_b, sin_b = math.cos(alpha[b]), math.sin(alpha[b]), math.cos(beta[b]), math.sin(beta[b])
        for row in range(len(rows)):
            y = one - np.float32(2 * rows[row] + 1) / np.float32(size)
            for column in range(size):
                x = np.float32(2 * column + 1) / np.float32(size) - one
                cr, ci = np.float32(x * cos_b - y * sin_b), np.float32(x * sin_b + y * cos_b)
                zr, zi, held_r, held_i = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                n = 0
                while n < most:
                    n += 1
                    square = zr * zr
                    value = poly[0, b] + square * (poly[1, b] + zr * (poly[2, b] + zr * poly[3, b]))
                    re, im = np.float32(value * cos_a - zi * sin_a), np.float32(value * sin_a + zi * cos_a)
                    modulus = math.pow(re * re + im * im, half * power[b])
                    angle = power[b] * math.atan2(im, re)
                    zr, zi = np.float32(modulus * math.cos(angle) + cr), np.float32(modulus * math.sin(angle) + ci)
                    if not zr * zr + zi * zi < limit:
                        break
                    if n % PERIOD == 0:
                        if zr == held_r and zi == held_i:
                            break
                        held_r, held_i = zr, zi
                out[b, row, column] = n


def ends(stream: StillStream, count: int, most: int, tall: int) -> npt.NDArray[np.int32]:
    """(count, R, N) steps of the first pictures of a seed-readme stream, `most` at most.

    Of large pictures not all rows: bands of `tall` rows at equal distances, as many as have `COUNTED` pixels.
    """
    height, width = stream.spec.height, stream.spec.width
    bands = height // tall
    kept = np.linspace(0, bands - 1, max(1, min(bands, COUNTED // (tall * width)))).round().astype(np.int64)
    rows = (kept[:, None] * tall + np.arange(tall)).ravel()
    latents = stream.generate(range(count)).numpy().latents
    alpha, beta, power, *poly = (np.asarray(latents[name]) for name in PARAMETERS[:7])
    coefficients, out = np.stack(poly), np.empty((count, len(rows), width), np.int32)

    def fill(part: slice) -> None:
        own = alpha[part], beta[part], power[part], np.ascontiguousarray(coefficients[:, part])
        first_end(*own, rows, most, stream.rasters[0].radius, out[part])

    fill(slice(0, 0))  # compiles, before there are threads
    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, (slice(first, first + 4) for first in range(0, count, 4))))
    return out


def mean_steps(found: npt.NDArray[np.int32], iterations: Sequence[int], tile: tuple[int, int]) -> list[Steps]:
    """Mean steps under each number of iterations, of what `ends` found under the largest of them."""
    count, height, width = found.shape
    tall, wide = tile[0], min(tile[1], width)
    tiles = found.reshape(count, height // tall, tall, width // wide, wide).max(axis=(2, 4))
    return [
        Steps(pixel=float(np.minimum(found, most).mean()), tile=float(np.minimum(tiles, most).mean()))
        for most in iterations
    ]
