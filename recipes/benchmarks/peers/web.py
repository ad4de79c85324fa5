"""Stored pictures through webdataset: tar shards of PNG."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, Normaliser
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures

from fractal_streams.errors import missing_extra

try:
    import webdataset as wds
except ImportError:
    raise missing_extra("webdataset", "webdataset") from None


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """With no worker and with the most."""
    return [
        Contestant(
            name="webdataset, tar of PNG", batch=delivery.batch, workers=workers, prepare=lambda: pictures.tars,
            read=partial(read, delivery, pictures, workers),
        )
        for workers in sorted({0, delivery.most_workers})
    ]  # fmt: skip


def read(delivery: Delivery, pictures: Pictures, workers: int) -> Iterator[Item]:
    """Shards by worker, decoded to uint8 tensors, batched in the worker, without end."""
    normalise = Normaliser(delivery, pictures.mean, pictures.std)
    dataset = (
        wds.WebDataset(pictures.tars, shardshuffle=False, workersplitter=wds.split_by_worker, empty_check=False)
        .decode("torchrgb8")
        .to_tuple("png", "cls")
        .batched(delivery.batch, partial=False)
        .repeat()
    )
    loader = wds.WebLoader(dataset, batch_size=None, **delivery.loader(workers))
    for images, labels in loader:
        yield normalise(images, labels)
