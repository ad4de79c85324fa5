"""Networks on a CPU through torch, and convolutional ones on any device: in tiles of a fixed number of rows.

A product's sums may be taken in another order for another number of rows. So every product here has as many rows as a
tile, the last ones zeros if there are none, and a row's result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fractal_streams.batch import as_array
from fractal_streams.errors import missing_extra
from fractal_streams.kaleidoscope.chain import Outcome, Schedule, check_rows, models_of, noisy_chains
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import LEAK
from fractal_streams.kaleidoscope.starts import KeyOf, Start, jittered, start_values
from fractal_streams.rng import Int64, checked_indices

try:
    import torch
    from torch.nn import functional
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

TILE = 64
"""Rows of every product."""
ROW_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": functional.relu, "leaky_relu": lambda x: functional.leaky_relu(x, LEAK), "gelu": functional.gelu,
    "silu": functional.silu, "tanh": torch.tanh, "sin": torch.sin, "identity": lambda x: x, "linear": lambda x: x,
    "sigmoid": torch.sigmoid,
}  # fmt: skip


class TorchEngine:
    """See `chain.Engine`; of kind "mlp" on a CPU, of convolutional kinds on any device."""

    def __init__(self, fitted: Kaleidoscope, device: str = "cpu", precision: str = "float32") -> None:
        self.fitted, self.device, self.precision = fitted, device, precision
        self._dtype = getattr(torch, precision)
        self._forward = self._linear_layers() if fitted.network.kind == "mlp" else self._convolutions()

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchEngine, (self.fitted, self.device, self.precision)

    def starts(self, start: Start, chains: Int64, models: Int64 | None, key_of: KeyOf) -> Any:
        numbers = checked_indices(chains)
        rows = models_of(models, len(numbers), self.fitted)
        return self._out(torch.from_numpy(start_values(start, self.fitted, numbers, rows, key_of)))

    def apply(self, states: Any, models: Any = None) -> Any:
        values = self._taken(states)
        return self._out(self._apply(values, models_of(models, len(values), self.fitted)))

    def run(
        self, states: Any, models: Any = None, schedule: Schedule | None = None, *, chains: Int64 | None = None,
        key_of: KeyOf | None = None,
    ) -> Outcome:  # fmt: skip
        asked, network = schedule or Schedule(), self.fitted.network
        shown = self._rounded(self._taken(states)).clone()
        rows, fed, count = models_of(models, len(shown), self.fitted), shown, len(shown)
        steps, change = np.full(count, -1, np.int32), np.zeros(count, np.float32)
        kept = [shown.clone()] if 0 in asked.keep else []
        moving, numbers = np.arange(count), noisy_chains(asked, count, chains, key_of)
        for step in range(1, asked.most + 1):
            if len(moving):
                here = torch.from_numpy(moving).to(shown.device)
                new = self._apply(fed[here], rows[moving])
                moved = as_array((new - shown[here]).abs().amax(dim=1)) / np.float32(network.span)
                shown[here], change[moving] = new, moved
                fed = shown
                if asked.jitter is not None and key_of is not None:
                    noisy = jittered(as_array(shown), asked.jitter, network, numbers, step, key_of)
                    fed = self._rounded(torch.from_numpy(noisy).to(shown.device))
                rests = (moved <= asked.tolerance) & (asked.tolerance > 0.0) & (step >= asked.least)
                steps[moving[rests]] = step
                moving = moving[~rests]
            if step in asked.keep:
                kept.append(shown.clone())
            if not len(moving) and len(kept) < len(asked.keep):
                kept += [shown.clone()] * (len(asked.keep) - len(kept))
            if not len(moving):
                break
        table = torch.stack(kept, dim=1) if kept else shown.new_zeros((count, 0, network.size))
        return Outcome(self._out(shown), self._out(torch.from_numpy(steps)), self._out(torch.from_numpy(change)),
                       self._out(table))  # fmt: skip

    def nearest(self, states: Any, table: Any, models: Any = None, table_models: Any = None) -> tuple[Any, Any]:
        values, rows = self._taken(states), models_of(models, len(states), self.fitted)
        check_rows(table, self.fitted.network.size, "table", 1)
        known = np.ascontiguousarray(as_array(table), np.float32)
        squares = np.square(known.astype(np.float64)).sum(axis=1).astype(np.float32)
        weight, bias = (torch.from_numpy(each).to(values.device) for each in (-2.0 * known, squares))
        place = np.zeros(len(values), np.int64)
        for first in range(0, len(values), TILE):  # |a|**2 - 2 a x, of tiles as all products
            part = values[first : first + TILE]
            tile = functional.pad(part, (0, 0, 0, TILE - len(part)))
            scores = as_array(functional.linear(tile, weight, bias))[: len(part)]
            if table_models is not None:
                own = as_array(table_models)[None] == rows[first : first + TILE, None]
                scores = np.where(own, scores, np.float32(np.inf))
            place[first : first + TILE] = scores.argmin(axis=1)
        apart = np.square(as_array(values) - known[place]).mean(axis=1, dtype=np.float64)
        if table_models is not None:
            apart[~np.isin(rows, as_array(table_models))] = np.inf
        distance = np.asarray(np.sqrt(apart) / self.fitted.network.span, np.float32)
        return self._out(torch.from_numpy(place)), self._out(torch.from_numpy(distance))

    def levels(self, values: Any) -> Any:
        return self._out(torch.from_numpy(self.fitted.network.levels_of(as_array(values))))

    def _taken(self, states: Any) -> Any:
        """(B, D) float32 tensor on the device."""
        check_rows(states, self.fitted.network.size, "states")
        found = states if isinstance(states, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(states))
        return found.to(self.device, torch.float32)

    def _rounded(self, states: Any) -> Any:
        return states if self.precision == "float32" else states.to(self._dtype).float()

    def _out(self, tensor: Any) -> Any:
        return tensor.numpy() if self.device == "cpu" else tensor.to(self.device)

    def _apply(self, states: Any, rows: Int64) -> Any:
        """(B, D) float32: tile by tile, each of one network."""
        found = torch.empty_like(states)
        with torch.inference_mode():
            for model in np.unique(rows):
                places = torch.from_numpy(np.flatnonzero(rows == model)).to(states.device)
                for part in places.split(TILE):
                    tile = states.new_zeros((TILE, states.shape[1]), dtype=self._dtype)
                    tile[: len(part)] = states[part].to(self._dtype)
                    found[part] = self._forward(tile, int(model))[: len(part)].float()
        return found

    def _linear_layers(self) -> Callable[[Any, int], Any]:
        network = self.fitted.network
        layers = [
            tuple(torch.from_numpy(np.ascontiguousarray(self.fitted.tensors[f"layers.{layer}.{part}"])).to(self._dtype)
                  for part in ("weight", "bias"))
            for layer in range(network.n_linear)
        ]  # fmt: skip
        hidden, head = ROW_FUNCTIONS[network.activation], ROW_FUNCTIONS[network.head]

        def forward(tile: Any, model: int) -> Any:
            for weight, bias in layers[:-1]:
                tile = hidden(functional.linear(tile, weight[model], bias[model]))
            weight, bias = layers[-1]
            return head(functional.linear(tile, weight[model], bias[model]))

        return forward

    def _convolutions(self) -> Callable[[Any, int], Any]:
        from fractal_streams.kaleidoscope.convolutional import module_of

        module = module_of(self.fitted.network, self.fitted.tensors).to(self.device, self._dtype).eval()
        return lambda tile, model: module(tile)
