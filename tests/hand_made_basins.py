"""Networks whose basins are known, because their weights were written down."""

from __future__ import annotations

import numpy as np

from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network


def kinked(x_kinks: list[tuple[float, float]], y_kinks: list[tuple[float, float]], start: tuple[float, float],
           ends: list[tuple[float, float]]) -> Kaleidoscope:  # fmt: skip
    """(x, y) to (f(x), g(y)), each piecewise linear: start + sum of slope * relu(value - knee) over (knee, slope)."""
    kinks = [(0, *kink) for kink in x_kinks] + [(1, *kink) for kink in y_kinks]
    first, second = np.zeros((1, len(kinks), 2), np.float32), np.zeros((1, 2, len(kinks)), np.float32)
    for unit, (axis, _, slope) in enumerate(kinks):
        first[0, unit, axis], second[0, axis, unit] = 1.0, slope
    points, count = np.float32(ends), len(ends)
    network = Network(shape=(2,), hidden=len(kinks), n_linear=2, head="linear", data_scale=1.0)
    tensors = {
        "layers.0.weight": first, "layers.0.bias": np.float32([[-knee for _, knee, _ in kinks]]),
        "layers.1.weight": second, "layers.1.bias": np.float32([start]),
    }  # fmt: skip
    sources = Sources(
        data=points[None], labels=np.arange(count)[None].astype(np.int64),
        titles=tuple(f"end {row}" for row in range(count)),
    )  # fmt: skip
    table = Attractors(
        states=points, model=np.zeros(count, np.int32), source=np.arange(count, dtype=np.int32),
        distance=np.zeros(count, np.float32), share=np.full(count, 1 / count, np.float32),
    )  # fmt: skip
    return Kaleidoscope(network=network, tensors=tensors, sources=sources, attractors=table)


def quadrants() -> Kaleidoscope:
    """Each value v to 3 v, held in [-1/2, 1/2]: four ends at (+-1/2, +-1/2), the signs those of the start.

    From 0 < |v| a value is at its end behind the first step k with 3**k |v| >= 1/2.
    """
    held = [(-1 / 6, 3.0), (1 / 6, -3.0)]
    return kinked(held, held, (-0.5, -0.5), [(0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)])


def dust() -> Kaleidoscope:
    """x to a zigzag of slope 5 that leaves [0, 1] upwards to 2 or downwards to -1; y to y / 4.

    Of [0, 1], what stays in it for ever are three copies of itself, a fifth as large: the boundary of the two basins
    has dimension log 3 / log 5 along x, and 1 more in the plane.
    """
    zigzag = [(-0.2, 5.0), (0.3, -10.0), (0.7, 10.0), (1.2, -5.0)]
    return kinked(zigzag, [(-8.0, 0.25)], (-1.0, -2.0), [(2.0, 0.0), (-1.0, 0.0)])


def stairs() -> Kaleidoscope:
    """As `quadrants`, in a bank with a network whose boundaries lie at x = 1/4 and y = -1/4."""
    one = quadrants()
    moved = one.tensors["layers.0.bias"].copy()
    # 3 (v - c) + c, held in [-1/2, 1/2]: knees at c - (c + 1/2) / 3 and c + (1/2 - c) / 3
    for axis, centre in enumerate((0.25, -0.25)):
        moved[0, 2 * axis] = -(centre - (centre + 0.5) / 3)
        moved[0, 2 * axis + 1] = -(centre + (0.5 - centre) / 3)
    tensors = {name: np.concatenate([array, array]) for name, array in one.tensors.items()}
    tensors["layers.0.bias"] = np.concatenate([one.tensors["layers.0.bias"], moved])
    assert one.attractors is not None
    table = {name: np.concatenate([array, array]) for name, array in vars(one.attractors).items()}
    table["model"] = np.repeat(np.arange(2, dtype=np.int32), 4)
    return Kaleidoscope(network=one.network, tensors=tensors, sources=one.sources, attractors=Attractors(**table))
