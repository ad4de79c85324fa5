"""Networks of kind "mlp" on a GPU: chains in CUDA graphs, those at rest dropped on the way. See `chain.Engine`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from fractal_streams.batch import as_array
from fractal_streams.kaleidoscope.chain import Outcome, Schedule, check_rows, models_of, noisy_chains
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.starts import COARSE, Jitter, KeyOf, Start, source_rows
from fractal_streams.kaleidoscope.triton_kernel import argmin_kernel, distance_kernel, noise_kernel
from fractal_streams.kaleidoscope.triton_layers import ROWS, Launch, Layer, Stack, halves, joined, ladder, padded
from fractal_streams.rng import Int64, checked_indices

CAPACITY = 32768
"""Rows that run together."""
CHECK = 8
"""Steps between two looks at who rests."""
TABLES = 4
"""Tables of `nearest` that stay in memory."""


class TritonEngine:
    """Networks of kind "mlp" on one GPU, "float32" (in pairs of float16, see `triton_kernel`) or "bfloat16".

    device: "cuda:N"; "cpu" in Triton's interpreter, for tests.
    """

    def __init__(self, fitted: Kaleidoscope, device: str, precision: str = "float32") -> None:
        self.fitted, self.device, self.precision = fitted, device, precision
        self._lock, self._tables = threading.RLock(), dict[int, tuple[Any, Layer, Any]]()
        self._stack: Stack | None = None
        self._done = torch.cuda.Event() if device != "cpu" else None
        with torch.cuda.device(device) if self._done else nullcontext():
            self._layers = [
                Layer(fitted.tensors[f"layers.{k}.weight"], fitted.tensors[f"layers.{k}.bias"], device, precision)
                for k in range(fitted.network.n_linear)
            ]

    def __reduce__(self) -> tuple[Any, ...]:
        return TritonEngine, (self.fitted, self.device, self.precision)

    def starts(self, start: Start, chains: Int64, models: Int64 | None, key_of: KeyOf) -> Any:
        network = self.fitted.network
        low, high = network.range
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        channels, height, width = network.shape if network.is_picture else (1, 1, network.size)
        chains = checked_indices(chains)
        with self._here():
            placed = self._placed(chains)
            table = torch.empty((len(chains), network.size), dtype=torch.float32, device=self.device)

            def drawn(name: tuple[Any, ...], scale: float, *, normal: bool, add: bool = False, shift: int = 0) -> None:
                cells = (height, width, shift, -(-height >> shift), -(-width >> shift))
                self._noise(table, placed, 0, cells, scale, key_of(*name), normal=normal, add=add)

            if start.kind in ("uniform", "binary"):
                drawn(("start",), 1.0, normal=False)
                table = low + (high - low) * (table if start.kind == "uniform" else (table >= 0.5).float())
            elif start.kind == "normal":
                drawn(("start",), half, normal=True)
                table = table + middle
            elif start.kind == "pink":
                octaves = max(height, width).bit_length()
                for octave in range(octaves):
                    drawn(("start octave", octave), half / octaves**0.5, normal=True, add=octave > 0, shift=octave)
                table = table + middle
            elif start.kind == "coarse":
                table = middle + half * self._coarse(placed, (channels, height, width), key_of("start"))
            else:
                table = self._of_sources(start, chains, models, key_of)
            if start.noise:
                table = table.contiguous()
                drawn(("start noise",), start.noise * half, normal=True, add=True)
            return table.clamp(low, high)

    def apply(self, states: Any, models: Any = None) -> Any:
        return self.run(states, models, Schedule(most=1, tolerance=0.0)).states

    def run(
        self, states: Any, models: Any = None, schedule: Schedule | None = None, *, chains: Int64 | None = None,
        key_of: KeyOf | None = None,
    ) -> Outcome:  # fmt: skip
        asked, size = schedule or Schedule(), self.fitted.network.size
        check_rows(states, size, "states")
        count, rows = len(states), models_of(models, len(states), self.fitted)
        numbers = noisy_chains(asked, count, chains, key_of)
        with self._here():
            first = self._placed(states).float()
            on: dict[str, Any] = {"device": self.device}
            out = Outcome(
                torch.empty((count, size), **on), torch.full((count,), -1, dtype=torch.int32, **on),
                torch.zeros(count, **on), torch.empty((count, len(asked.keep), size), **on),
            )  # fmt: skip
            placed = None if asked.jitter is None else self._placed(numbers)
            for slots in chunks(rows, CAPACITY):
                Run(self._stack_for(len(slots)), rows, asked, out, self._jitter(asked.jitter, placed, key_of)).chains(
                    first, slots
                )
            return out

    def nearest(self, states: Any, table: Any, models: Any = None, table_models: Any = None) -> tuple[Any, Any]:
        network = self.fitted.network
        check_rows(states, network.size, "states")
        check_rows(table, network.size, "table", 1)
        rows = models_of(models, len(states), self.fitted)
        with self._here():
            values, (layer, known) = self._placed(states).float().contiguous(), self._table(table)
            count, entries = len(values), len(known)
            place = torch.empty(count, dtype=torch.int64, device=self.device)
            distance = torch.empty(count, dtype=torch.float32, device=self.device)
            masked = table_models is not None
            own = self._placed(as_array(table_models).astype(np.int32)) if masked else place
            of = self._placed(rows.astype(np.int32)) if masked else place
            models_here = torch.zeros(CAPACITY // ROWS, dtype=torch.int32, device=self.device)
            for begin in range(0, count, CAPACITY):
                part = values[begin : begin + CAPACITY]
                full = -(-len(part) // ROWS) * ROWS
                x = torch.zeros((full, padded(network.size)), dtype=torch.float32, device=self.device)
                x[: len(part), : network.size] = part
                scores = torch.empty((full, layer.out), dtype=torch.float32, device=self.device)
                Launch(layer, halves(x, "float32"), (scores,), models_here, "identity", network.size)()
                here = slice(begin, begin + len(part))
                argmin_kernel[(len(part),)](
                    scores, own, of[here], place[here], entries, layer.out, masked=masked, block=256
                )
            if count:
                distance_kernel[(count,)](values, known, place, distance, network.size, network.span, block=256)
            if masked and (alone := ~np.isin(rows, as_array(table_models))).any():
                distance.masked_fill_(self._placed(alone), float("inf"))
            return place, distance

    def levels(self, values: Any) -> Any:
        network = self.fitted.network
        low, high = network.range
        middle = 0.5 * (low + high)
        share = middle + (self._placed(values).double() - middle) / network.data_scale
        share = (share.float() - low) * (255.0 / (high - low))
        return share.nan_to_num(0.0).round().clamp(0.0, 255.0).to(torch.uint8).reshape(len(values), *network.shape)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """On the device, alone: the buffers of the engine are one, whatever CUDA stream asks."""
        if self._done is None:
            with self._lock:
                yield
            return
        with self._lock, torch.cuda.device(self.device):
            self._done.wait()
            try:
                yield
            finally:
                self._done.record()

    def _placed(self, values: Any) -> Any:
        """A tensor on the device."""
        if isinstance(values, torch.Tensor):
            return values.to(self.device)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _stack_for(self, rows: int) -> Stack:
        """Buffers for so many rows, made larger if they are too small."""
        needed = ladder(rows, CAPACITY)
        if self._stack is None or self._stack.capacity < needed:
            self._stack = None
            self._stack = Stack(self.fitted.network, self._layers, self.device, self.precision, needed)
        return self._stack

    def _table(self, table: Any) -> tuple[Layer, Any]:
        """The layer whose outputs are |a|**2 - 2 a x of the rows a of a table, and the table; kept for later."""
        found = self._tables.get(id(table))
        if found is None or found[0] is not table:
            known = as_array(table).astype(np.float32)
            squares = np.square(known.astype(np.float64)).sum(axis=1).astype(np.float32)
            made = Layer(-2.0 * known[None], squares[None], self.device, "float32"), self._placed(known)
            self._tables = dict([*self._tables.items()][-TABLES + 1 :])
            self._tables[id(table)] = found = (table, *made)
        return found[1], found[2]

    def _noise(
        self, table: Any, chains: Any, iterate: int | Any, cells: tuple[int, ...], scale: float, key: tuple[int, int],
        *, normal: bool, add: bool,
    ) -> None:  # fmt: skip
        count, size = table.shape
        clock = iterate if isinstance(iterate, torch.Tensor) else torch.full((1,), iterate, device=self.device)
        keys = [word - 2**32 if word >= 2**31 else word for word in key]
        if count:
            noise_kernel[(count, -(-size // 1024))](
                table, chains, clock, size, *cells, scale, *keys, normal=normal, add=add, block=1024
            )

    def _coarse(self, chains: Any, shape: tuple[int, ...], key: tuple[int, int]) -> Any:
        """(B, D) of few normal values, bilinear between them."""
        channels, height, width = shape
        tall, wide = min(COARSE, height), min(COARSE, width)
        cells = torch.empty((len(chains), channels * tall * wide), dtype=torch.float32, device=self.device)
        self._noise(cells, chains, 0, (tall, wide, 0, tall, wide), 1.0, key, normal=True, add=False)
        cells = cells.reshape(-1, channels, tall, wide)
        top, bottom, down = corners(height, tall, self.device)
        left, right, across = corners(width, wide, self.device)
        rows = cells[:, :, top] * (1.0 - down)[:, None] + cells[:, :, bottom] * down[:, None]
        return (rows[..., left] * (1.0 - across) + rows[..., right] * across).reshape(len(chains), -1)

    def _of_sources(self, start: Start, chains: Int64, models: Int64 | None, key_of: KeyOf) -> Any:
        rows, first_second = models_of(models, len(chains), self.fitted), source_rows(self.fitted, chains, key_of)
        shared = len(self.fitted.sources.data) == 1
        if not hasattr(self, "_sources"):
            values = self.fitted.network.values_of(self.fitted.sources.data)
            self._sources = self._placed(values.reshape(-1, values.shape[-1]))
        offset = np.zeros_like(rows) if shared else rows * len(self.fitted.sources)
        first, second = (self._sources[self._placed(offset + each)] for each in first_second)
        return first if start.kind == "source" else 0.5 * (first + second)

    def _jitter(
        self, jitter: Jitter | None, chains: Any, key_of: KeyOf | None
    ) -> Callable[[Stack, Any, int], None] | None:
        """What puts the noisy states of the first rows of a stack where the next step takes them from."""
        if jitter is None or key_of is None:
            return None
        network, key = self.fitted.network, key_of("jitter")
        (low, high), size = network.range, network.size
        half, normal = 0.5 * (high - low), jitter.kind.endswith("normal")
        shift = {"seed_normal": 0.5 * (low + high), "seed_uniform": high, "uniform": -half}.get(jitter.kind, 0.0)

        def put(stack: Stack, slots: Any, rows: int) -> None:
            drawn = torch.empty((rows, size), dtype=torch.float32, device=self.device)
            scale = half if normal else high - low
            self._noise(drawn, chains[slots], stack.clock, (1, size, 0, 1, size), scale, key, normal=normal, add=False)
            shown = joined(tuple(part[:rows, :size] for part in stack.state))
            noisy = (shown + jitter.size * (drawn + shift)).clamp(low, high)
            for part, values in zip(stack.fed, halves(noisy, self.precision), strict=True):
                part[:rows, :size] = values

        return put


class Run:
    """One buffer full of chains, from their first states to rest."""

    def __init__(
        self, stack: Stack, models: Int64, asked: Schedule, out: Outcome,
        jitter: Callable[[Stack, Any, int], None] | None,
    ) -> None:  # fmt: skip
        self.stack, self.models, self.asked, self.out, self.jitter = stack, models, asked, out, jitter
        self.rest = asked.tolerance * stack.network.span if asked.tolerance else -1.0

    def chains(self, first: Any, slots: Int64) -> None:
        """Run the rows of `first` that `slots` names, -1 for none, each tile of 128 of one network."""
        stack, asked = self.stack, self.asked
        self._load(halves(first[torch.from_numpy(np.maximum(slots, 0)).to(first.device)], stack.precision), slots)
        stack.clock.zero_()
        if 0 in asked.keep:
            self._keep(0)
        for step in range(1, asked.most + 1):
            stack.step(self.rows, self.rest, asked.least, fed=self.jitter is not None and step > 1)
            if step in asked.keep:
                self._keep(asked.keep.index(step))
            if asked.tolerance and step % CHECK == 0 and step < asked.most and not self._compacted(step):
                return
            if self.jitter is not None and step < asked.most:  # where the rows are now
                self.jitter(stack, self.place, self.rows)
        self._finish(np.flatnonzero(self.slots >= 0), asked.most)

    def _load(self, parts: tuple[Any, ...], slots: Int64) -> None:
        """States of slots into the first rows of the buffer; rows without a chain rest."""
        stack, size = self.stack, self.stack.network.size
        self.slots = np.full(ladder(len(slots), stack.capacity), -1)
        self.slots[: len(slots)] = slots
        self.rows = len(self.slots)
        self.place = torch.from_numpy(np.maximum(self.slots, 0)).to(stack.clock.device)
        for held, values in zip(stack.state, parts, strict=True):
            held[: self.rows] = 0.0
            held[: len(slots), :size] = values
        stack.change.zero_()
        stack.steps[: self.rows] = torch.from_numpy(np.where(self.slots < 0, 0, -1).astype(np.int32)).to(
            stack.clock.device
        )
        of = self.models[np.maximum(self.slots, 0)].reshape(-1, ROWS)
        known = np.where(self.slots.reshape(-1, ROWS) >= 0, of, -1).max(axis=1)
        stack.tile_models[: len(known)] = torch.from_numpy(np.maximum(known, 0).astype(np.int32)).to(stack.clock.device)

    def _rows_of(self, slots: Int64) -> tuple[Any, Any]:
        """(places in the buffer, rows of the result) of some slots."""
        here = torch.from_numpy(slots).to(self.stack.clock.device)
        return here, self.place[here]

    def _values(self, here: Any) -> Any:
        return joined(tuple(part[here, : self.stack.network.size] for part in self.stack.state))

    def _keep(self, column: int) -> None:
        here, there = self._rows_of(np.flatnonzero(self.slots >= 0))
        self.out.kept[there, column] = self._values(here)

    def _finish(self, slots: Int64, step: int) -> None:
        """Hand out chains; of iterates that come later, the state they rest in."""
        here, there = self._rows_of(slots)
        values = self._values(here)
        self.out.states[there] = values
        self.out.steps[there] = self.stack.steps[here]
        self.out.change[there] = self.stack.found[here] / self.stack.network.span
        for column, later in enumerate(self.asked.keep):
            if later > step:
                self.out.kept[there, column] = values

    def _compacted(self, step: int) -> bool:
        """Drop chains at rest if that makes the buffer smaller; whether any is left."""
        moving = as_array(self.stack.steps[: self.rows] < 0)
        if not moving.any():
            self._finish(np.flatnonzero(self.slots >= 0), step)
            return False
        left = self.slots[moving]
        packed = next(chunks(self.models, self.stack.capacity, left))
        if ladder(len(packed), self.stack.capacity) < self.rows:
            self._finish(np.flatnonzero((self.slots >= 0) & ~moving), step)
            where = np.full(int(self.models.shape[0]), 0)
            where[left] = np.flatnonzero(moving)
            source = torch.from_numpy(np.where(packed < 0, 0, where[packed])).to(self.stack.clock.device)
            size = self.stack.network.size
            parts, found = tuple(p[source, :size] for p in self.stack.state), self.stack.found[source]
            self._load(parts, packed)
            self.stack.found[: len(packed)] = found
        return True


def chunks(models: Int64, capacity: int, rows: Int64 | None = None) -> Iterator[Int64]:
    """Rows in buffers full: each network's together, filled up by -1 to whole tiles of 128."""
    rows = np.arange(len(models)) if rows is None else rows
    padded_rows = []
    for model in np.unique(models[rows]):
        own = rows[models[rows] == model]
        padded_rows.append(np.concatenate([own, np.full(-len(own) % ROWS, -1)]))
    flat = np.concatenate(padded_rows) if padded_rows else rows
    for begin in range(0, len(flat), capacity):
        yield flat[begin : begin + capacity]


def corners(length: int, cells: int, device: str) -> tuple[Any, Any, Any]:
    """(length,) lower and upper cell of linear interpolation, and the share of the upper."""
    place = torch.linspace(0.0, cells - 1.0, length, dtype=torch.float64, device=device)
    lower = place.floor().clamp(max=max(cells - 2, 0)).long()
    return lower, (lower + 1).clamp(max=cells - 1), (place - lower).float()
