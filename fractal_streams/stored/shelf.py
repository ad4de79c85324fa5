"""Where a pack's pixels lie while crops are taken: mapped for the CPU, or in the memory of a GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fractal_streams.errors import DeviceError
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import Int64
from fractal_streams.stored.crops import take, take_torch
from fractal_streams.stored.packed import Pack

CHUNK = 2**24
"""Pixels that go to a GPU at a time."""
_uploaded: WeakKeyDictionary[Pack, dict[str, Any]] = WeakKeyDictionary()
_pools: dict[int, ThreadPoolExecutor] = {}


class Shelf:
    """A pack on a device. Streams of one pack share its pixels."""

    def __init__(self, pack: Pack, device: str) -> None:
        self.pack, self.device = pack, device

    def take(
        self, index: Int64, labels: Int64, placed: Int64, size: tuple[int, int], pixels: PixelFormat
    ) -> tuple[Any, Any, Any, Any]:
        """index, labels, crops and (4, n) float32 latents on the device.

        Args:
            index, labels: (B,). placed: (4, n) picture, top, left and flip of each crop. size: of the crops.
        """
        item = placed[0]
        starts, widths = self.pack.starts[item], self.pack.widths[item]
        if self.device == "cpu":
            crops = take(
                self.pack.pixels, starts, widths, placed[1:], size, pixels.table(), pixels.channels_last, own_pool
            )
            seen = crops.view(pixels.dtype) if pixels.dtype in ("float16", "float32") else crops
            return index, labels, seen, placed.astype(np.float32)
        return self._on_gpu(index, labels, np.stack([starts, widths, *placed]), size, pixels)

    def _on_gpu(
        self, index: Int64, labels: Int64, table: Int64, size: tuple[int, int], pixels: PixelFormat
    ) -> tuple[Any, Any, Any, Any]:
        import torch

        with torch.cuda.device(self.device):
            levels = uploaded(self.pack, self.device)
            rows = torch.from_numpy(table).to(self.device)
            drawn = torch.from_numpy(np.stack([index, labels])).to(self.device)
            lookup = None if pixels.dtype == "uint8" else torch_lookup(pixels).to(self.device)
            crops = take_torch(levels, rows[0], rows[1], rows[3:], size, lookup, pixels.channels_last)
            seen = crops if lookup is None else crops.view(getattr(torch, pixels.dtype))
            return drawn[0], drawn[1], seen, rows[2:].float()


def torch_lookup(pixels: PixelFormat) -> Any:
    """(3, 256) tensor of `PixelFormat.table`, its bits as signed integers, which torch can move."""
    import torch

    table = pixels.table()
    return torch.from_numpy(table.view(f"int{8 * table.itemsize}"))


def uploaded(pack: Pack, device: str) -> Any:
    """A pack's pixels in the memory of a GPU, brought there once.

    Raises:
        DeviceError: they don't fit.
    """
    import torch

    there = _uploaded.setdefault(pack, {})
    if device not in there:
        count = len(pack.pixels)
        try:
            levels = torch.empty((count, 3), dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError:
            raise DeviceError(
                f"the {count * 3 / 2**30:.1f} GiB of this pack don't fit the free memory of {device}: pass "
                f"device='cpu', or pack it at a smaller height"
            ) from None
        for begin in range(0, count, CHUNK):
            part = np.array(pack.pixels[begin : begin + CHUNK])
            levels[begin : begin + len(part)] = torch.from_numpy(part).to(device)
        torch.cuda.synchronize(device)  # other CUDA streams read it from now on
        there[device] = levels
    return there[device]


def own_pool() -> ThreadPoolExecutor | None:
    """Threads of this process alone, a forked child must not use its parent's; None where there is one core."""
    threads = NumbaRenderer().threads
    if threads > 1 and os.getpid() not in _pools:
        _pools[os.getpid()] = ThreadPoolExecutor(threads, thread_name_prefix="fractal-streams-crops")
    return _pools[os.getpid()] if threads > 1 else None
