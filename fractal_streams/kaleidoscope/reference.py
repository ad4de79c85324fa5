"""The reference: one chain after another in float64, as the definitions read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Outcome, Schedule, check_rows, models_of, noisy_chains
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import LEAK, Float32, Float64
from fractal_streams.kaleidoscope.starts import KeyOf, Start, jittered, start_values
from fractal_streams.rng import Int64, checked_indices

ERROR_FUNCTION = np.vectorize(math.erf, otypes=[np.float64])


def activated(name: str, values: Float64) -> Float64:
    """An activation or head, elementwise."""
    if name == "relu":
        return np.maximum(values, 0.0)
    if name == "leaky_relu":
        return np.where(values > 0.0, values, LEAK * values)
    if name == "gelu":
        return 0.5 * values * (1.0 + ERROR_FUNCTION(values / np.sqrt(2.0)))
    if name == "silu":
        return values / (1.0 + np.exp(-values))
    if name == "sigmoid":
        return 1.0 / (1.0 + np.exp(-values))
    return {"tanh": np.tanh, "sin": np.sin}[name](values) if name in ("tanh", "sin") else values


class ReferenceEngine:
    """Networks of kind "mlp" in float64; see `chain.Engine`.

    Example:
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
        >>> network = Network(shape=(1,), hidden=10, n_linear=7, head="sigmoid", data_scale=1.0)
        >>> points = Sources(data=np.float32([[[0.2], [0.8]]]), labels=np.int64([[0, 1]]), titles=("low", "high"))
        >>> fitted = Kaleidoscope(network=network, tensors=network.first_weights(), sources=points)
        >>> ReferenceEngine(fitted).apply(np.zeros((1, 1))).shape
        (1, 1)
    """

    device, precision = "cpu", "float64"

    def __init__(self, fitted: Kaleidoscope) -> None:
        if fitted.network.kind != "mlp":
            raise InvalidValueError(f"the reference is of kind 'mlp', got {fitted.network.kind!r}")
        self.fitted = fitted

    def starts(self, start: Start, chains: Int64, models: Int64 | None, key_of: KeyOf) -> Float32:
        numbers = checked_indices(chains)
        return start_values(start, self.fitted, numbers, models_of(models, len(numbers), self.fitted), key_of)

    def apply(self, states: Any, models: Any = None) -> Float64:
        network = self.fitted.network
        check_rows(states, network.size, "states")
        rows = models_of(models, len(states), self.fitted)
        found = np.empty((len(states), network.size))
        for model in np.unique(rows):
            values = np.asarray(states[rows == model], np.float64)
            for layer in range(network.n_linear):
                weight = self.fitted.tensors[f"layers.{layer}.weight"][model].astype(np.float64)
                bias = self.fitted.tensors[f"layers.{layer}.bias"][model].astype(np.float64)
                last = layer == network.n_linear - 1
                values = activated(network.head if last else network.activation, values @ weight.T + bias)
            found[rows == model] = values
        return found

    def run(
        self, states: Any, models: Any = None, schedule: Schedule | None = None, *, chains: Int64 | None = None,
        key_of: KeyOf | None = None,
    ) -> Outcome:  # fmt: skip
        asked, network = schedule or Schedule(), self.fitted.network
        shown = np.array(states, np.float64)
        numbers = noisy_chains(asked, len(shown), chains, key_of)
        fed, steps, change = shown.copy(), np.full(len(shown), -1, np.int32), np.zeros(len(shown))
        kept = [shown.copy()] if 0 in asked.keep else []
        for step in range(1, asked.most + 1):
            moving = steps < 0
            new = np.where(moving[:, None], self.apply(fed, models), shown)
            moved = np.abs(new - shown).max(axis=1) / network.span
            change = np.where(moving, moved, change)
            steps[moving & (moved <= asked.tolerance) & (asked.tolerance > 0.0) & (step >= asked.least)] = step
            shown = fed = new
            if asked.jitter is not None and key_of is not None:
                fed = jittered(shown, asked.jitter, network, numbers, step, key_of).astype(np.float64)
            if step in asked.keep:
                kept.append(shown.copy())
        rows = np.stack(kept, axis=1) if kept else np.zeros((len(shown), 0, network.size))
        return Outcome(
            shown.astype(np.float32), steps, np.asarray(change, np.float32), np.asarray(rows, np.float32)
        )  # fmt: skip

    def nearest(self, states: Any, table: Any, models: Any = None, table_models: Any = None) -> tuple[Any, Any]:
        check_rows(states, self.fitted.network.size, "states")
        check_rows(table, self.fitted.network.size, "table", 1)
        rows = models_of(models, len(states), self.fitted)
        own = np.zeros(len(table), np.int64) if table_models is None else np.asarray(table_models)
        squares = ((np.asarray(states, np.float64)[:, None] - np.asarray(table, np.float64)[None]) ** 2).mean(axis=2)
        if table_models is not None:
            squares = np.where(own[None] == rows[:, None], squares, np.inf)
        place = squares.argmin(axis=1)
        distance = np.sqrt(squares[np.arange(len(place)), place]) / self.fitted.network.span
        return place.astype(np.int64), distance.astype(np.float32)

    def levels(self, values: Any) -> Any:
        return self.fitted.network.levels_of(values)
