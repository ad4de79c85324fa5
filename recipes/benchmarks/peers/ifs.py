"""Iterated function systems rendered on the fly in Numba, as FractalDB's successors do: see `ifs_renderer.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from fractal_streams.recipes.benchmarks import ifs_renderer
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, Normaliser
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures
from torch.utils.data import DataLoader, Dataset

CLASSES = 10
BATCH = 16
"""Pictures in a batch: each takes milliseconds, so that larger ones would only take longer to wait for."""


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """With no worker and with the most."""
    return [
        Contestant(
            name="IFS in Numba, WACV 2022", batch=BATCH, classes=CLASSES, workers=workers,
            prepare=lambda: Systems(delivery.size)[0], read=partial(read, delivery, workers),
        )
        for workers in sorted({0, delivery.most_workers})
    ]  # fmt: skip


class Systems(Dataset[tuple[Any, int]]):
    """An endless-looking set: a code for each class, a picture of its class for each index."""

    def __init__(self, size: int) -> None:
        self.size = size
        random = np.random.default_rng(0)
        self.codes = [ifs_renderer.contractive_code(random) for _ in range(CLASSES)]

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        code = self.codes[index % CLASSES]
        points, image = np.empty((ifs_renderer.POINTS, 2)), np.empty((3, self.size, self.size), np.uint8)
        ifs_renderer.published_picture(
            code.maps, np.cumsum(code.chances), True, np.random.default_rng(index), points, image
        )
        return torch.from_numpy(image), index % CLASSES


def read(delivery: Delivery, workers: int) -> Iterator[Item]:
    """Rendered a picture at a time in the workers, collated, normalised on the device."""
    systems = Systems(delivery.size)
    sample = torch.stack([systems[index][0] for index in range(50)]).float() / 255.0
    normalise = Normaliser(delivery, sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).tolist())
    loader = DataLoader(systems, BATCH, shuffle=True, drop_last=True, **delivery.loader(workers))
    while True:
        for images, labels in loader:
            yield normalise(images, labels)
