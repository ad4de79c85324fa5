"""Measures of banks on points of one, two and more values: figures of each network,
so that spread over seeds falls out.

Iterates are float64 and start from the same points in every network. Distances are over the range: the absolute
difference of one value, Euclid's length of points, and, where `rmse` is asked for (of pictures), the root of the mean
square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.batched_points import bank_function, clusters, grid, iterates, nearest_rows
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.kaleidoscope.spectrum import jacobians, spectral_radii
from fractal_streams.rng import Int64

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

BINS = 200
FIT_LOSS = 1e-5
"""Mean squared error on the sources below which a network of points counts as fitted."""
NEWTON_STEPS = 50
CHUNK_VALUES = 2**22
"""Of iterates that are held at a time."""


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """Where f(x) = x in one network.

    places: (K, D) float64, increasing by the first value. radius: (K,) float64, the spectral radius there; of one
    value the absolute slope. stable: (K,) whether it is below 1.
    """

    places: Float64
    radius: Float64

    @property
    def stable(self) -> Any:
        return self.radius < 1.0

    def __len__(self) -> int:
        return len(self.places)


def scale_of(fitted: Kaleidoscope, rmse: bool) -> float:
    """What an RMSE over the range is multiplied by to give the distance meant."""
    return 1.0 if rmse else float(np.sqrt(fitted.network.size))


def losses(fitted: Kaleidoscope) -> Float64:
    """(M,) float64 mean squared error on the sources, in values squared."""
    sources = np.stack([fitted.source_values(model) for model in range(fitted.models)]).astype(np.float64)
    return np.asarray(np.square(iterates(fitted, sources, 1)[:, 1] - sources).mean(axis=(1, 2)))


def is_fitted(fitted: Kaleidoscope, loss: float = FIT_LOSS) -> Any:
    """(M,) bool: which networks reproduce their sources."""
    return losses(fitted) < loss


def distances_by_step(
    fitted: Kaleidoscope, starts: Any, steps: Sequence[int], *, rmse: bool = False, device: str = "cpu"
) -> tuple[Int64, Float64]:
    """(M, K, B) int64 nearest source of each start's iterate behind K steps, and (M, K, B) float64 distance to it.

    Args:
        starts: (B, D), the same for all networks.
        steps: 0 (the start) and up.

    Raises:
        InvalidValueError: no steps, or some below 0.
    """
    if not len(steps) or min(steps) < 0:
        raise InvalidValueError(f"steps must be 0 and up, got {steps!r}")
    first, span = np.asarray(starts, np.float64), fitted.network.span
    place = np.empty((fitted.models, len(steps), len(first)), np.int64)
    distance = np.empty(place.shape)
    block = max(1, CHUNK_VALUES // (fitted.models * fitted.network.size * (max(steps) + 1)))
    for start in range(0, len(first), block):
        part = slice(start, start + block)
        states = iterates(fitted, first[part], max(steps), device)
        for model in range(fitted.models):
            values = fitted.source_values(model)
            for number, step in enumerate(steps):
                found = nearest_rows(states[model, step], values, span, device)
                place[model, number, part], distance[model, number, part] = found
    return place, distance * scale_of(fitted, rmse)


def frac(
    fitted: Kaleidoscope, starts: Any, steps: Sequence[int], tolerance: float, *, rmse: bool = False,
    device: str = "cpu",
) -> Float64:  # fmt: skip
    """(M, K) share of starts within a tolerance of a source behind each of K steps. At step 1 it is the flat share.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> network = Network(shape=(1,), hidden=1, n_linear=2, activation="identity", head="linear", data_scale=1.0)
        >>> halve = {"layers.0.weight": np.full((1, 1, 1), 0.5, np.float32), "layers.1.weight": np.ones((1, 1, 1), "f")}
        >>> halve |= {f"layers.{layer}.bias": np.zeros((1, 1), np.float32) for layer in (0, 1)}
        >>> middle = Sources(data=np.zeros((1, 1, 1), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
        >>> fitted = Kaleidoscope(network=network, tensors=halve, sources=middle)
        >>> frac(fitted, [[-1.0], [0.5], [0.25], [0.125]], steps=(0, 1, 2), tolerance=0.1)
        array([[0.25, 0.5 , 0.75]])
    """
    return np.asarray((distances_by_step(fitted, starts, steps, rmse=rmse, device=device)[1] <= tolerance).mean(axis=2))


def basin_shares(
    fitted: Kaleidoscope, starts: Any, steps: int, tolerance: float, *, rmse: bool = False, device: str = "cpu"
) -> Float64:
    """(M, N + 1) share of starts that end within a tolerance of each source; the last is of those that end elsewhere.

    Of a source that is given twice, the first counts.
    """
    place, distance = distances_by_step(fitted, starts, (steps,), rmse=rmse, device=device)
    count = len(fitted.sources)
    ended = np.where(distance[:, 0] <= tolerance, place[:, 0], count)
    return np.stack([np.bincount(row, minlength=count + 1) / len(row) for row in ended])


def class_shares(fitted: Kaleidoscope, starts: Any, steps: Sequence[int], device: str = "cpu") -> Float64:
    """(M, K, classes) share of starts whose iterate behind each of K steps is nearest to a source of each class."""
    place, _ = distances_by_step(fitted, starts, steps, device=device)
    classes = len(fitted.sources.titles)
    tables = [fitted.sources.of_model(model)[1][rows] for model, rows in enumerate(place)]
    return np.stack([[np.bincount(row, minlength=classes) / len(row) for row in table] for table in tables])


def output_share(fitted: Kaleidoscope, points: int = 2001, bins: int = BINS) -> Float64:
    """(M,) share of equal bins of the range that one application of a network of one value reaches, from a grid.

    Below 1 the network takes many points to one.
    """
    one_value(fitted, "the share of outputs")
    low, high = fitted.network.range
    outputs = iterates(fitted, grid(fitted.network, points), 1)[:, 1, :, 0]
    hit = np.clip(((outputs - low) / (high - low) * bins).astype(np.int64), 0, bins - 1)
    return np.array([len(np.unique(row)) / bins for row in hit])


def idempotence_defects(fitted: Kaleidoscope, starts: Any, device: str = "cpu") -> Float64:
    """(M,) RMSE over the range of f(f(x)) - f(x): 0 of a projection."""
    return step_norms(fitted, starts, 2, device)[:, 1]


def step_norms(fitted: Kaleidoscope, starts: Any, steps: int, device: str = "cpu") -> Float64:
    """(M, steps) RMSE over the range of the change by each step."""
    states = iterates(fitted, starts, steps, device)
    squares = np.square(np.diff(states, axis=1)).mean(axis=(2, 3))
    return np.asarray(np.sqrt(squares) / fitted.network.span)


def source_radii(fitted: Kaleidoscope, device: str = "cpu") -> Float64:
    """(M, N) spectral radii at the sources; of one value the absolute slopes."""
    rows = [
        spectral_radii(fitted, values, np.full(len(values), model), device=device)
        for model in range(fitted.models)
        for values in (fitted.source_values(model),)
    ]
    return np.stack(rows)


def fixed_points(fitted: Kaleidoscope, points: int | None = None) -> list[FixedPoints]:
    """The fixed points of each network, with their stability.

    Of one value: between neighbours of a grid (2001 points by default) where f(x) - x changes its sign, by halving. Of
    more: by Newton's method from a grid (21 points along each axis), so not surely all of them.

    Raises:
        InvalidValueError: a grid that is too large, see `batched_points.grid`.
    """
    network = fitted.network
    starts = grid(network, points or (2001 if network.size == 1 else 21))
    found = sign_changes(fitted, starts[:, 0]) if network.size == 1 else newton(fitted, starts)
    return [
        FixedPoints(places, spectral_radii(fitted, places, np.full(len(places), model)))
        for model, places in enumerate(found)
    ]


def sign_changes(fitted: Kaleidoscope, axis: Float64) -> list[Float64]:
    """(K, 1) zeros of f(x) - x in each network, one between any two points of a grid where its sign differs."""
    above = iterates(fitted, axis[:, None], 1)[:, 1, :, 0] - axis > 0.0
    places = [np.flatnonzero(row[1:] != row[:-1]) for row in above]
    low, high = ([axis[found + side] for found in places] for side in (0, 1))
    most = max((len(found) for found in places), default=0)
    padded = np.zeros((2, fitted.models, most, 1))
    for model, found in enumerate(places):
        padded[:, model, : len(found), 0] = low[model], high[model]
    lower, upper = padded
    rises = iterates(fitted, lower, 1)[:, 1] > lower
    for _ in range(60):
        middle = 0.5 * (lower + upper)
        same = (iterates(fitted, middle, 1)[:, 1] > middle) == rises
        lower, upper = np.where(same, middle, lower), np.where(same, upper, middle)
    return [0.5 * (lower + upper)[model, : len(found)] for model, found in enumerate(places)]


def newton(fitted: Kaleidoscope, starts: Float64) -> list[Float64]:
    """(K, D) zeros of f(x) - x in each network within the range, to which Newton's method comes from a grid."""
    network, found = fitted.network, []
    low, high = network.range
    for model in range(fitted.models):
        bank = bank_function(fitted.one(model))
        states = starts.copy()
        for _ in range(NEWTON_STEPS):
            step = jacobians(bank, states, "cpu") - np.eye(network.size)
            states = states - (np.linalg.pinv(step) @ defect(bank, states)[..., None])[..., 0]
            states = np.clip(states, low - network.span, high + network.span)
        near = np.sqrt(np.square(defect(bank, states)).mean(axis=1)) <= 1e-9 * network.span
        inside = ((states >= low) & (states <= high)).all(axis=1)
        kept = states[near & inside]
        chosen = kept[clusters(kept, 1e-5, network.span)[0]]
        found.append(chosen[np.lexsort(chosen.T[::-1])])
    return found


def defect(bank: Any, states: Float64) -> Float64:
    """(B, D) f(x) - x of a bank of one network."""
    with torch.inference_mode():
        return np.asarray(bank(torch.tensor(states)[None])[0].numpy() - states)


def one_value(fitted: Kaleidoscope, what: str) -> None:
    """Refuse networks of more values than one."""
    if fitted.network.size != 1:
        raise InvalidValueError(f"{what} is of networks of one value, got shape {fitted.network.shape}")
