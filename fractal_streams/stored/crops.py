"""Placing and taking crops: exact moves of whole pixels, compiled for the CPU and as torch indexing for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.draw.numba_backend import compiled, philox_words
from fractal_streams.rng import Int64
from fractal_streams.stored.order import order_keys, permuted, sides

HORIZONTAL, VERTICAL = 1, 2
FLIPS = {"none": 0, "horizontal": HORIZONTAL, "vertical": VERTICAL, "both": HORIZONTAL | VERTICAL}
"""Which flips a setting draws, as bits; the latent "flip" has the bits of those drawn."""
BLOCK = 2**22
"""Pixels from which on several threads take the crops."""
_ONE, _TWO = np.uint64(1), np.uint64(2)
Pool = Callable[[], Executor | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Placement:
    """What decides, for each index, which picture is shown and which part of it.

    first: (N,) int64, the picture of each item, of clips their first. heights, widths: (N,) of it.
    size: (height, width) of a crop. shuffled: whether each pass has an order of its own.
    random: whether the place of the crop is drawn; else it is the middle. flips: bits that are drawn.
    stream_id, split, seed: name the randomness.
    """

    first: Int64
    heights: Int64
    widths: Int64
    size: tuple[int, int]
    shuffled: bool
    random: bool
    flips: int
    stream_id: str
    split: str
    seed: int

    def keys(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Key words of the order's rounds (rounds, 2), and of "top", "left" and "flip" (3, 2)."""
        drawn = [rng.key("sample", self.stream_id, self.split, self.seed, name) for name in ("top", "left", "flip")]
        return order_keys(self.stream_id, self.split, self.seed, len(self.first)), np.array(drawn, np.uint64)

    def reference(self, indices: Int64) -> Int64:
        """(4, B) int64: picture, top, left and flip of each index, by the functions of `rng`; slow and obvious."""
        order, drawn = self.keys()
        count = len(self.first)
        passes, item = indices // count, indices % count
        if self.shuffled:
            item = permuted(item, passes, count, order)
        top, left, flip = (rng.words(indices, (int(a), int(b)))[0].astype(np.uint64) for a, b in drawn)
        spare = (self.heights[item] - self.size[0], self.widths[item] - self.size[1])
        if self.random:
            drawn_at = ((top, spare[0]), (left, spare[1]))
            corner = [word * (rest + 1).astype(np.uint64) >> np.uint64(32) for word, rest in drawn_at]
        else:
            corner = [(rest // 2).astype(np.uint64) for rest in spare]
        shown = (self.first[item], *corner, flip & np.uint64(self.flips))
        return np.stack([row.astype(np.int64) for row in shown])

    def place(self, indices: Int64) -> Int64:
        """As `reference`, compiled."""
        order, drawn = self.keys()
        rows, columns = sides(len(self.first))
        table = np.empty((4, len(indices)), np.int64)
        _place(
            indices, rows, columns, order, self.shuffled, self.first, self.heights, self.widths,
            *self.size, self.random, np.uint64(self.flips), drawn, table,
        )  # fmt: skip
        return table


@compiled
def _place(indices, rows, columns, order, shuffled, first, heights, widths, height, width, random, flips, keys, table):  # type: ignore[no-untyped-def]
    count = first.size
    shift = np.uint64(32)
    for i in range(indices.size):
        index = indices[i]
        number, item = index // count, index % count
        inside = not shuffled
        while not inside:
            row, column = item // columns, item % columns
            for k in range(order.shape[0]):
                if k % 2 == 0:
                    word, _ = philox_words(number * columns + column, order[k, 0], order[k, 1])
                    row = (row + np.int64((word * np.uint64(rows)) >> shift)) % rows
                else:
                    word, _ = philox_words(number * rows + row, order[k, 0], order[k, 1])
                    column = (column + np.int64((word * np.uint64(columns)) >> shift)) % columns
            item = row * columns + column
            inside = item < count
        down, across = heights[item] - height, widths[item] - width
        top, left = down // 2, across // 2
        if random:
            word, _ = philox_words(index, keys[0, 0], keys[0, 1])
            top = np.int64((word * np.uint64(down + 1)) >> shift)
            word, _ = philox_words(index, keys[1, 0], keys[1, 1])
            left = np.int64((word * np.uint64(across + 1)) >> shift)
        word, _ = philox_words(index, keys[2, 0], keys[2, 1])
        table[0, i], table[1, i], table[2, i], table[3, i] = first[item], top, left, np.int64(word & flips)


def take(
    pixels: Any, starts: Int64, widths: Int64, placed: Int64, size: tuple[int, int], lookup: Any, last: bool, pool: Pool
) -> Any:
    """Crops on the CPU: (B, 3, H, W), or (B, H, W, 3) if `last`, in the lookup's dtype.

    Args:
        pixels: (P, 3) uint8. starts, widths: (B,) of the pictures. placed: (3, B) top, left, flip.
        lookup: (3, 256), a channel's value of each level. pool: gives an executor, or None for this thread alone.
    """
    count, (height, width) = len(starts), size
    out = np.empty((count, height, width, 3) if last else (count, 3, height, width), lookup.dtype)
    rows = out.transpose(0, 3, 1, 2) if last else out
    crop = _levels if lookup.dtype == np.uint8 else _values
    workers = pool() if count * height * width > BLOCK else None
    step = max(1, BLOCK // (4 * height * width)) if workers else max(1, count)

    def run(begin: int) -> None:
        part = slice(begin, begin + step)
        crop(pixels.reshape(-1), starts[part], widths[part], placed[:, part], lookup, rows[part])

    begins = range(0, count, step)
    if workers is None:
        for begin in begins:
            run(begin)
    else:
        for future in [workers.submit(run, begin) for begin in begins]:
            future.result()
    return out


@compiled
def _levels(pixels, starts, widths, placed, lookup, out):  # type: ignore[no-untyped-def]
    height, width = out.shape[2], out.shape[3]
    for i in range(out.shape[0]):
        for y in range(height):
            down = height - 1 - y if placed[2, i] & 2 else y
            line = 3 * (starts[i] + (placed[0, i] + down) * widths[i] + placed[1, i])
            row = pixels[line : line + 3 * width]
            red, green, blue = out[i, 0, y], out[i, 1, y], out[i, 2, y]
            if placed[2, i] & 1:
                for x in range(width):
                    k = np.uint64(3 * (width - 1 - x))  # unsigned: an index that can't count from the end is faster
                    red[x], green[x], blue[x] = row[k], row[k + _ONE], row[k + _TWO]
            else:
                for x in range(width):
                    k = np.uint64(3 * x)
                    red[x], green[x], blue[x] = row[k], row[k + _ONE], row[k + _TWO]


@compiled
def _values(pixels, starts, widths, placed, lookup, out):  # type: ignore[no-untyped-def]
    height, width = out.shape[2], out.shape[3]
    reds, greens, blues = lookup[0], lookup[1], lookup[2]
    for i in range(out.shape[0]):
        for y in range(height):
            down = height - 1 - y if placed[2, i] & 2 else y
            line = 3 * (starts[i] + (placed[0, i] + down) * widths[i] + placed[1, i])
            row = pixels[line : line + 3 * width]
            red, green, blue = out[i, 0, y], out[i, 1, y], out[i, 2, y]
            for x in range(width):
                k = np.uint64(3 * (width - 1 - x) if placed[2, i] & 1 else 3 * x)
                red[x], green[x], blue[x] = reds[row[k]], greens[row[k + _ONE]], blues[row[k + _TWO]]


def take_torch(
    pixels: Any, starts: Any, widths: Any, placed: Any, size: tuple[int, int], lookup: Any, last: bool
) -> Any:
    """As `take`, of torch tensors on any device; the lookup's bits as a signed dtype, None for levels as they are."""
    import torch

    height, width = size
    top, left, flip = placed
    y, x = (torch.arange(n, device=pixels.device) for n in size)
    down = torch.where((flip & VERTICAL).bool()[:, None], height - 1 - y, y)
    across = torch.where((flip & HORIZONTAL).bool()[:, None], width - 1 - x, x)
    lines = starts[:, None] + (top[:, None] + down) * widths[:, None] + left[:, None]
    crops = pixels[(lines[:, :, None] + across[:, None, :]).reshape(-1)].reshape(len(starts), height, width, 3)
    crops = crops if last else crops.permute(0, 3, 1, 2).contiguous()
    if lookup is None:
        return crops
    out = torch.empty(crops.shape, dtype=lookup.dtype, device=crops.device)
    for channel, values in enumerate(lookup):
        place = (..., channel) if last else (slice(None), channel)
        levels = crops[place]
        out[place] = values.index_select(0, levels.reshape(-1).int()).reshape(levels.shape)
    return out
