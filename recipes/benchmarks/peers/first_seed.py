"""The first seed's algorithm on the GPU, re-measured from its description: see `seed_method.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, Normaliser
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures

from fractal_streams.errors import DeviceError


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """A launch for each sample, and one for the whole batch.

    Raises:
        DeviceError: there is no GPU, on which alone the seed runs.
    """
    if not delivery.on_gpu:
        raise DeviceError("its kernel needs a GPU")
    return [
        Contestant(name=f"first seed, {name}", batch=delivery.batch, read=partial(read, name, delivery))
        for name in ("get_batch", "one launch a batch")
    ]


def read(name: str, delivery: Delivery) -> Iterator[Item]:
    """Batches of consecutive samples; classes in turn, as the seed gives them."""
    from fractal_streams.recipes.benchmarks import seed_method

    def whole(first: int, count: int) -> Any:
        return seed_method.full_batch(list(range(first, first + count)), delivery.size, device=delivery.device)

    def single(first: int, count: int) -> Any:
        with torch.cuda.device(delivery.device):
            return seed_method.get_batch(first, count, delivery.size)

    draw: Callable[[int, int], Any] = single if name == "get_batch" else whole
    sample = whole(0, 1024)
    normalise = Normaliser(delivery, sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).tolist(), full=1.0)
    for first in itertools.count(0, delivery.batch):
        images = draw(first, delivery.batch)
        yield normalise(images, torch.arange(first, first + delivery.batch, device=images.device) % 10)
