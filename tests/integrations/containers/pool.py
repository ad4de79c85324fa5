"""Streams that stand in for rendered ones: pictures of any size, whose pixels and labels tell the index."""

from __future__ import annotations

from typing import Any

import numpy as np

from fractal_streams import Batch, Stream
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices


class PoolStream(Stream):
    """Sample i has label i % 10 and noise of generator i as its pixels; every third lacks its latent."""

    def __init__(self, shape: tuple[int, ...] = (3, 8, 8), num_classes: int = 10, dtype: Any = "uint8") -> None:
        self.shape, self.num_classes = shape, num_classes
        self.seed, self.split, self.device, self.pixels = 0, "train", "cpu", PixelFormat(dtype=dtype)
        self.asked: list[int] = []

    def digest(self) -> str:
        return f"pool-{'x'.join(map(str, self.shape))}"

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        self.asked += index.tolist()
        images = np.array([picture(i, self.shape) for i in index.tolist()], np.uint8).reshape(-1, *self.shape)
        angle = np.where(index % 3 == 0, np.nan, index / 7).astype(np.float32)
        return Batch(index, images, index % 10, {"angle": angle, "depth": (index % 5).astype(np.float32)})


def picture(index: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)
