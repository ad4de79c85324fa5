"""Networks whose attractors, basins and eigenvalues are known, because their weights were written down."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network


def linear(matrix: npt.ArrayLike, sources: npt.ArrayLike | None = None) -> Kaleidoscope:
    """x -> matrix x, of (D, D), or of a bank (M, D, D)."""
    maps = np.float32(matrix)
    maps = maps[None] if maps.ndim == 2 else maps
    models, size, _ = maps.shape
    network = Network(
        shape=(size,), hidden=size, n_linear=2, activation="identity", head="linear", data_scale=1.0
    )  # fmt: skip
    eye = np.broadcast_to(np.eye(size, dtype=np.float32), maps.shape).copy()
    none = np.zeros((models, size), np.float32)
    tensors = {"layers.0.weight": maps, "layers.0.bias": none, "layers.1.weight": eye, "layers.1.bias": none.copy()}
    given = np.zeros((1, size)) if sources is None else sources
    return Kaleidoscope(network=network, tensors=tensors, sources=sources_of(given))


def staircase(
    edges: npt.ArrayLike, sources: npt.ArrayLike, labels: npt.ArrayLike | None = None, slope: float = 2.0
) -> Kaleidoscope:
    """One value: stairs from -.5 up to .5 whose middles, unstable, are at the edges; (E,), or (M, E) of a bank.

    With one edge e, what is below e goes to -.5, what is above to .5.
    """
    places = np.atleast_2d(np.float64(edges))
    models, count = places.shape
    rise = 1.0 / count
    levels = -0.5 + rise * np.arange(count)
    begin = places - (places - levels) / slope
    knees = np.concatenate([begin, begin + rise / slope], axis=1)
    network = Network(shape=(1,), hidden=2 * count, n_linear=2, head="linear", data_scale=1.0)
    signs = np.repeat([slope, -slope], count)
    tensors = {
        "layers.0.weight": np.ones((models, 2 * count, 1), np.float32), "layers.0.bias": np.float32(-knees),
        "layers.1.weight": np.float32(np.broadcast_to(signs, (models, 1, 2 * count))).copy(),
        "layers.1.bias": np.full((models, 1), -0.5, np.float32),
    }  # fmt: skip
    return Kaleidoscope(network=network, tensors=tensors, sources=sources_of(np.float32(sources)[:, None], labels))


def sources_of(points: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> Sources:
    """Points that all networks share, each of class 0 unless labels say otherwise."""
    data = np.float32(points)[None]
    marks = np.zeros(data.shape[:2], np.int64) if labels is None else np.int64(labels)[None]
    return Sources(data=data, labels=marks, titles=tuple(f"class {label}" for label in range(marks.max() + 1)))
