"""A stream that spells its indices, so that a test can read what a loader gave."""

from __future__ import annotations

from typing import Any

import numpy as np

from fractal_streams.batch import Batch
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices
from fractal_streams.stream import Stream


class Digits(Stream):
    """A stream whose pixels are the bytes of the index: (3, 1, 8) uint8; the label is index mod 10."""

    def __init__(self, seed: int = 0, device: str = "cpu", height: int = 1) -> None:
        self.seed, self.split, self.device, self.num_classes = seed, "train", device, 10
        self.pixels, self.height = PixelFormat(), height
        self.calls: list[Any] = []

    def generate(self, indices: Any) -> Batch:
        self.calls.append(indices)
        index = checked_indices(indices)
        images = np.repeat(index.view(np.uint8).reshape(-1, 1, 1, 8), 3, axis=1).repeat(self.height, axis=2)
        return Batch(index, images, index % 10, {"half": index.astype(np.float32) / 2})

    def digest(self) -> str:
        return f"digits-{self.seed}-train"


def indices_of(images: Any) -> list[int]:
    """The indices that the pixels of `Digits` spell, equal in all three channels."""
    array = np.ascontiguousarray(np.asarray(images)[:, :, 0])
    assert (array == array[:, :1]).all()
    return array[:, 0].copy().view(np.int64)[:, 0].tolist()
