"""A stream that counts what is rendered, and what `datasets` reads of it turned back into indices."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from fractal_streams import Batch, Stream
from fractal_streams.render.raster import PixelFormat


class Counted(Stream):
    """8 x 8 pictures whose first 8 bytes are the index; counts what is rendered."""

    def __init__(self, *, split: str = "train", frames: int = 0) -> None:
        self.seed, self.split, self.device, self.num_classes = 0, split, "cpu", 10
        self.pixels, self.frames, self.made = PixelFormat(), frames, 0

    def generate(self, indices: Any) -> Batch:
        index = np.asarray(indices, np.int64)
        self.made += len(index)
        images = np.zeros((len(index), *([self.frames] if self.frames else []), 3, 8, 8), np.uint8)
        images.reshape(len(index), math.prod(images.shape[1:]))[:, :8] = (
            index.astype("<i8").view(np.uint8).reshape(-1, 8)
        )
        return Batch(index, images, index % 10, {})

    def digest(self) -> str:
        return f"counted-{self.split}-{self.frames}"


def indices(items: Any) -> list[int]:
    """The indices of rows or batches, which their pixels must say too."""
    found: list[int] = []
    for item in items:
        if "images" in item:
            pixels = item["images"].numpy()
            said = np.ascontiguousarray(pixels.reshape(len(pixels), -1)[:, :8]).view("<i8").ravel()
            assert said.tolist() == item["index"].tolist() and item["labels"].tolist() == (said % 10).tolist()
            found += said.tolist()
        else:
            tensor = isinstance(item["image"], torch.Tensor)
            pixels = item["image"].numpy() if tensor else np.asarray(item["image"]).transpose(2, 0, 1)
            said = int(np.ascontiguousarray(pixels).ravel()[:8].view("<i8")[0])
            assert said == int(item["index"]) and int(item["label"]) == said % 10
            found.append(said)
    return found


def first(dataset: Any, count: int) -> list[int]:
    return indices(itertools.islice(dataset, count))


FORMATS: dict[str, dict[str, Any]] = {"image": {}, "tensor": {"format": "tensor", "batch_size": 4}}
per_format = pytest.mark.parametrize("settings", FORMATS.values(), ids=FORMATS)
