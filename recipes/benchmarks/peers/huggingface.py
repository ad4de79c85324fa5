"""Stored pictures through Hugging Face `datasets`: Parquet with an `Image()` column, map-style and streaming."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, Normaliser
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures
from torch.utils.data import DataLoader

from fractal_streams.errors import missing_extra

try:
    import datasets
except ImportError:
    raise missing_extra("datasets", "huggingface") from None


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """Both kinds of dataset, with no worker and with the most."""
    return [
        Contestant(
            name=f"HF datasets, {'streaming' if streaming else 'map-style'}", batch=delivery.batch, workers=workers,
            prepare=partial(opened, pictures, streaming), read=partial(read, delivery, pictures, streaming, workers),
        )
        for streaming in (False, True)
        for workers in sorted({0, delivery.most_workers})
    ]  # fmt: skip


def opened(pictures: Pictures, streaming: bool) -> Any:
    """The dataset; of the map-style one the first call writes the cache that the later ones read."""
    datasets.disable_progress_bars()
    cache = str(pictures.folder / "cache")
    dataset = datasets.load_dataset(
        "parquet", data_files=pictures.parquet, split="train", streaming=streaming, cache_dir=cache
    )
    dataset = dataset.select_columns(["image", "label"]).with_format("torch")
    return dataset.repeat(None) if streaming else dataset


def read(delivery: Delivery, pictures: Pictures, streaming: bool, workers: int) -> Iterator[Item]:
    """uint8 tensors as `with_format("torch")` decodes them, collated by a DataLoader; the map-style one shuffled."""
    dataset, normalise = opened(pictures, streaming), Normaliser(delivery, pictures.mean, pictures.std)
    settings = delivery.loader(workers) | ({} if streaming else {"shuffle": True})
    loader = DataLoader(dataset, delivery.batch, drop_last=True, **settings)
    while True:
        for batch in loader:
            yield normalise(batch["image"], batch["label"])
