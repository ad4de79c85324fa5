"""The layers of a bank of networks in the memory of a GPU, and their launches over states that lie there too.

Widths are padded to multiples of 64 by weights of 0, rows to multiples of 128: a tile of rows is of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from fractal_streams.kaleidoscope.network import Float32, Network
from fractal_streams.kaleidoscope.triton_kernel import layer_kernel, settle_kernel

PAD, ROWS = 64, 128
LOW = 2048.0
GROUP = 8
SETTLED = 1024


@dataclass(frozen=True)
class Tile:
    """How a product is cut, none of which changes a bit of the result; `shares` programs to a multiprocessor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int
    shares: int = 1


WIDE, NARROW = Tile(ROWS, 256, 64, 8, 3, 2), Tile(ROWS, 128, 64, 4, 3, 2, shares=2)
PAIRS = Tile(ROWS, 128, 64, 8, 3, 2)
SMALL, SMALL_PAIRS = Tile(ROWS, 128, 64, 8, 2, 2), Tile(ROWS, 64, 64, 4, 1, 2)
LARGE_MEMORY = 200 * 1024
"""Bytes of shared memory that a program must have for the tiles of large GPUs (H100 and on)."""
NARROW_COLUMNS = 1024
"""Most columns of a hidden layer whose products are so short that two programs share a multiprocessor."""


def tile_of(precision: str, columns: int, last: bool, memory: int) -> Tile:
    """The fastest on an H200 of those tried; smaller ones where a program has little shared memory."""
    if memory < LARGE_MEMORY:
        return SMALL_PAIRS if precision == "float32" else SMALL
    if precision == "float32":
        return PAIRS
    return NARROW if columns <= NARROW_COLUMNS and not last else WIDE


def padded(width: int) -> int:
    """The width that rows have in memory."""
    return -(-width // PAD) * PAD


def halves(values: Any, precision: str) -> tuple[Any, ...]:
    """float32 values as the kernel takes them: bfloat16, or two float16 whose second is in parts of 1 / 2048."""
    if precision == "bfloat16":
        return (values.to(torch.bfloat16),)
    within = values.clamp(-65504.0, 65504.0)
    high = within.to(torch.float16)
    return high, ((within - high.float()) * LOW).to(torch.float16)


def joined(parts: tuple[Any, ...]) -> Any:
    """`halves` undone: float32."""
    return parts[0].float() if len(parts) == 1 else parts[0].float() + parts[1].float() * (1.0 / LOW)


class Layer:
    """One linear layer of every network of a bank: weights (M, out, in), biases (M, out)."""

    def __init__(self, weight: Float32, bias: Float32, device: str, precision: str) -> None:
        models, out, into = weight.shape
        self.into, self.out, self.precision = padded(into), padded(out), precision
        full = torch.zeros((models, self.out, self.into), dtype=torch.float32, device=device)
        full[:, :out, :into] = torch.from_numpy(np.ascontiguousarray(weight)).to(device)
        self.weights = halves(full.reshape(-1, self.into), precision)
        self.bias = torch.zeros((models, self.out), dtype=torch.float32, device=device)
        self.bias[:, :out] = torch.from_numpy(np.ascontiguousarray(bias)).to(device)


def descriptor(tensor: Any, rows: int, columns: int) -> Any:
    """A block of rows and columns of a matrix, as kernels take it."""
    return TensorDescriptor.from_tensor(tensor, [rows, columns])


def resources(device: Any) -> tuple[int, int]:
    """Multiprocessors of a GPU, and bytes of shared memory of a program; 2 and 0 in Triton's interpreter."""
    if device.type != "cuda":
        return 2, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


class Launch:
    """One layer over `rows` rows of a buffer: what to call, again and again.

    Args:
        x, y: `halves` of (rows, width) matrices; y may be one float32 matrix.
        chain: None, or (state, steps, change) of a last layer, see `layer_kernel`; y is the state itself.
    """

    def __init__(
        self, layer: Layer, x: tuple[Any, ...], y: tuple[Any, ...], tile_models: Any, activation: str, size: int,
        chain: tuple[tuple[Any, ...], Any, Any] | None = None,
    ) -> None:  # fmt: skip
        multiprocessors, memory = resources(x[0].device)
        tile = tile_of(layer.precision, layer.out, chain is not None, memory)
        rows, self.warps, self.stages = len(x[0]), tile.warps, tile.stages
        across = tile.columns // tile.parts
        full = y[0].dtype == torch.float32
        ends = [descriptor(part, tile.rows, across) for part in y]
        state, steps, change = chain if chain else (y, tile_models, tile_models)
        held = [descriptor(part, tile.rows, across) for part in state]
        inputs = [descriptor(part, tile.rows, tile.depth) for part in x]
        weights = [descriptor(part, tile.columns, tile.depth) for part in layer.weights]
        tiles = (rows // tile.rows) * -(-layer.out // tile.columns)
        programs = min(multiprocessors * tile.shares, tiles)
        self.grid = (programs,)
        self.arguments = (
            inputs[0], inputs[-1], weights[0], weights[-1], layer.bias, held[0], held[-1], ends[0], ends[-1],
            tile_models, steps, change, rows, layer.out, layer.into // tile.depth, size, 1.0,
        )  # fmt: skip
        self.settings = {
            "name": activation, "last": chain is not None, "pair": layer.precision == "float32", "full": full,
            "bm": tile.rows, "bn": tile.columns, "bk": tile.depth, "group": GROUP, "parts": tile.parts,
        }  # fmt: skip

    def __call__(self) -> None:
        layer_kernel[self.grid](
            *self.arguments, **self.settings, num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True
        )


class Stack:
    """All layers of a bank, and buffers for up to `capacity` rows."""

    def __init__(self, network: Network, layers: Sequence[Layer], device: str, precision: str, capacity: int) -> None:
        self.network, self.layers, self.precision, self.capacity = network, layers, precision, capacity
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float16
        count = 1 if precision == "bfloat16" else 2

        def room(width: int) -> tuple[Any, ...]:
            return tuple(torch.zeros((capacity, padded(width)), dtype=kind, device=device) for _ in range(count))

        self.state, self.fed = room(network.size), room(network.size)
        self.hidden = (room(network.hidden), room(network.hidden))
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        self.tile_models = torch.zeros(capacity // ROWS, **whole)
        self.steps, self.change = torch.zeros(capacity, **whole), torch.zeros(capacity, **whole)
        self.found = torch.zeros(capacity, dtype=torch.float32, device=device)
        self.clock = torch.zeros(1, **whole)
        self._graphs: dict[Any, Callable[[], None]] = {}

    def step(self, rows: int, tolerance: float, least: int, fed: bool) -> None:
        """Every network applied once to `rows` rows of the state (of `fed`, if noise lies there), in place."""
        asked = (rows, tolerance, least, fed)
        if asked not in self._graphs:
            run = self._launches(*asked)
            self._graphs[asked] = self._captured(run) if self.clock.is_cuda else run
        self._graphs[asked]()

    def _launches(self, rows: int, tolerance: float, least: int, fed: bool) -> Callable[[], None]:
        def part(parts: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(each[:rows] for each in parts)

        state, last = part(self.state), self.network.n_linear - 1
        x, launches = part(self.fed) if fed else state, []
        for k, layer in enumerate(self.layers):
            y = state if k == last else part(self.hidden[k % 2])
            chain = (state, self.steps[:rows], self.change[:rows]) if k == last else None
            name = self.network.head if k == last else self.network.activation
            launches.append(Launch(layer, x, y, self.tile_models, name, self.network.size, chain))
            x = y

        def run() -> None:
            self.clock.add_(1)
            for launch in launches:
                launch()
            settle_kernel[(-(-rows // SETTLED),)](
                self.steps, self.change, self.found, self.clock, rows, tolerance, least, block=SETTLED
            )

        return run

    def _captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of launches. They are called once before, so that nothing compiles while it is captured."""
        moved = (*self.state, self.steps, self.change, self.found, self.clock)
        before = [tensor.clone() for tensor in moved]
        run()
        for tensor, old in zip(moved, before, strict=True):
            tensor.copy_(old)
        graph, aside, here = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # torch.cuda.graph would empty torch's memory each time
            graph.capture_begin(capture_error_mode="thread_local")
            run()
            graph.capture_end()
        here.wait_stream(aside)
        return graph.replay  # type: ignore[no-any-return]


def ladder(rows: int, capacity: int) -> int:
    """The number of rows to run for so many: 128 times a power of two or 1.5 of one, at most the capacity.

    Example:
        >>> [ladder(rows, 32768) for rows in (1, 128, 129, 300, 20_000, 30_000)]
        [128, 128, 256, 384, 24576, 32768]
    """
    tiles = max(1, -(-rows // ROWS))
    power = 1 << (tiles - 1).bit_length()
    fewer = 3 * power // 4
    return min((fewer if power >= 4 and fewer >= tiles else power) * ROWS, capacity)
