"""Banks on batches of states at once, in float64; nearest rows and clusters of states, exactly.

A product of matrices finds which distances matter; those are then summed one by one, so that what comes out depends on
the two states alone: not on the batch, and ties go to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32, Float64, Network
from fractal_streams.rng import Int64

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

from fractal_streams.kaleidoscope.torch_engine import ROW_FUNCTIONS

Bool = npt.NDArray[np.bool_]
BLOCK_VALUES = 2**23
"""Of a table of distances or of a batch of states that are held at a time."""
ROUNDING = 1e-9
"""How far squared distances from a product may lie from those summed one by one, over the squared lengths."""
GRID_VALUES = 2**22


def bank_function(fitted: Kaleidoscope, device: str = "cpu", precision: str = "float64") -> Callable[[Any], Any]:
    """All networks of a bank as one function of (M, B, D) tensors on the device; torch differentiates it.

    Args:
        precision: "float64" or "float32", of weights, states and products.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Sources
        >>> network = Network(shape=(1,), hidden=10, n_linear=7)
        >>> points = Sources(data=np.zeros((1, 1, 1), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
        >>> fitted = Kaleidoscope(network=network, tensors=network.first_weights(models=3), sources=points)
        >>> tuple(bank_function(fitted)(torch.zeros(3, 100, 1, dtype=torch.float64)).shape)
        (3, 100, 1)
    """
    network, dtype = fitted.network, getattr(torch, precision)
    if network.kind != "mlp":
        from fractal_streams.kaleidoscope.convolutional import module_of

        module = module_of(network, fitted.tensors).to(device, dtype).eval().requires_grad_(False)
        return lambda states: module(states[0])[None]
    layers = [
        tuple(
            torch.tensor(np.ascontiguousarray(fitted.tensors[f"layers.{layer}.{part}"])).to(device, dtype)
            for part in ("weight", "bias")
        )
        for layer in range(network.n_linear)
    ]
    hidden, head = ROW_FUNCTIONS[network.activation], ROW_FUNCTIONS[network.head]

    def forward(states: Any) -> Any:
        for layer, (weight, bias) in enumerate(layers):
            states = torch.baddbmm(bias[:, None], states, weight.mT)
            states = head(states) if layer == len(layers) - 1 else hidden(states)
        return states

    return forward


def iterates(fitted: Kaleidoscope, starts: Any, steps: int, device: str = "cpu") -> Float64:
    """(M, steps + 1, B, D) float64: the starts, and each network's iterates of them.

    Args:
        starts: (B, D), the same for all networks, or (M, B, D).
    """
    forward = bank_function(fitted, device)
    first = np.asarray(starts, np.float64)
    states = torch.tensor(np.broadcast_to(first, (fitted.models, *first.shape[-2:])), device=device)
    found = np.empty((fitted.models, steps + 1, *first.shape[-2:]))
    found[:, 0] = as_array(states)
    with torch.inference_mode():
        for step in range(1, steps + 1):
            states = forward(states)
            found[:, step] = as_array(states)
    return found


def grid(network: Network, points: int) -> Float64:
    """(points**D, D) float64: a uniform grid over the range, its ends among it, the last axis fastest.

    Raises:
        InvalidValueError: fewer than 2 points along an axis, or more than 2**22 values in all.
    """
    if points < 2 or points**network.size * network.size > GRID_VALUES:
        raise InvalidValueError(
            f"a grid has 2 points and up along each axis and at most {GRID_VALUES} values, got {points} points along "
            f"each of {network.size} axes"
        )
    axis = np.linspace(*network.range, points)
    return np.stack(np.meshgrid(*[axis] * network.size, indexing="ij"), axis=-1).reshape(-1, network.size)


def nearest_rows(
    states: Any, table: Any, span: float, device: str = "cpu", *, others: bool = False
) -> tuple[Int64, Float64]:
    """(B,) row of the nearest of a table for each state, the first of equal ones; and (B,) RMSE to it over the range.

    Of a state that isn't finite they are 0 and infinite.

    Args:
        states: (B, D). table: (T, D). Both are held as float64.
        span: of the range.
        device: of the products.
        others: whether the states are the table, and each asks for the nearest of the others.
    """
    rows, known = np.asarray(as_array(states), np.float64), np.asarray(as_array(table), np.float64)
    place, distance = np.empty(len(rows), np.int64), np.empty(len(rows))
    other = torch.tensor(np.ascontiguousarray(known), device=device)
    lengths = other.square().sum(dim=1)
    for start in range(0, len(rows), block := max(1, BLOCK_VALUES // max(len(known), known.shape[1]))):
        part = rows[start : start + block]
        here = torch.tensor(np.ascontiguousarray(part), device=device)
        own = here.square().sum(dim=1, keepdim=True)
        squares = torch.addmm(own + lengths, here, other.mT, alpha=-2.0)
        if others:
            squares.diagonal(start).fill_(math.inf)
        near = squares <= squares.amin(dim=1, keepdim=True) + 2.0 * ROUNDING * (own + lengths.amax() + 1e-300)
        row, column = (as_array(found) for found in torch.nonzero(near, as_tuple=True))
        exact = rmse(part, known, row, column, span)
        best = np.full(len(part), np.inf)
        np.minimum.at(best, row, exact)
        first = np.full(len(part), len(known), np.int64)
        ties = exact == best[row]
        np.minimum.at(first, row[ties], column[ties])
        place[start : start + block] = np.where(np.isfinite(best), first, 0)
        distance[start : start + block] = best
    return place, distance


def rmse(one: Float64, other: Float64, row: Int64, column: Int64, span: float) -> Float64:
    """(P,) RMSE over the range of pairs of rows, each summed by itself, in parts that fit in memory."""
    found = np.empty(len(row))
    for start in range(0, len(row), block := max(1, BLOCK_VALUES // one.shape[1])):
        here = slice(start, start + block)
        found[here] = np.sqrt(np.square(one[row[here]] - other[column[here]]).mean(axis=1))
    return found / span


def within(states: Float64, tolerance: float, span: float, device: str = "cpu") -> Bool:
    """(B, B): which states lie within a tolerance of each other, as an RMSE over the range."""
    here = torch.tensor(states, device=device)
    lengths = here.square().sum(dim=1)
    limit = (tolerance * span) ** 2 * states.shape[1]
    found = np.empty((len(states), len(states)), np.bool_)
    for start in range(0, len(states), block := max(1, BLOCK_VALUES // len(states))):
        part = slice(start, start + block)
        own = lengths[part, None] + lengths
        squares = torch.addmm(own, here[part], here.mT, alpha=-2.0)
        found[part] = as_array(squares <= limit)
        doubtful = (squares - limit).abs() <= 2.0 * ROUNDING * (own + limit)
        row, column = (as_array(places) for places in torch.nonzero(doubtful, as_tuple=True))
        found[part][row, column] = rmse(states[part], states, row, column, span) <= tolerance
    return found


def clusters(
    states: Any, tolerance: float, span: float, *, weights: Int64 | None = None, device: str = "cpu"
) -> tuple[Int64, Int64]:
    """Greedy clusters: the state with most unassigned ones within the tolerance of it takes them, until none is left.

    Of states with as many it is the first, so the clusters come by falling count and depend on nothing else.

    Args:
        states: (B, D), at most some thousands.
        tolerance: RMSE over the range.
        weights: (B,) int64, how often each state counts; once by default.

    Returns:
        (K,) the row in the middle of each cluster, (B,) each state's cluster.
    """
    rows = np.asarray(as_array(states), np.float64)
    member = np.full(len(rows), -1, np.int64)
    if not len(rows):
        return np.zeros(0, np.int64), member
    close = within(rows, tolerance, span, device)
    weight = np.ones(len(rows), np.int64) if weights is None else weights
    count = np.array([weight[row].sum() for row in close], np.int64)
    middles: list[int] = []
    while (member < 0).any():
        middle = int(np.where(member < 0, count, -1).argmax())
        taken = np.flatnonzero(close[middle] & (member < 0))
        member[taken] = len(middles)
        middles.append(middle)
        gone = close[:, taken].astype(np.float32) @ weight[taken].astype(np.float32)  # whole numbers, exact to 2**24
        count -= gone.astype(np.int64)
    return np.array(middles, np.int64), member


def as_rows(values: Any) -> Float32:
    """(B, D) float32 of NumPy's, from any device."""
    return np.asarray(as_array(values), np.float32)
