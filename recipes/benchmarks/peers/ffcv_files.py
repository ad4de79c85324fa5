"""FFCV: its own file of the pictures, compiled pipelines in threads.

Source: the documentation of FFCV: `DatasetWriter`, `Loader`, and the pipelines of its CIFAR-10 example.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import (
    Convert,
    RandomHorizontalFlip,
    RandomTranslate,
    Squeeze,
    ToDevice,
    ToTensor,
    ToTorchImage,
)
from ffcv.writer import DatasetWriter
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures
from torchvision.transforms import Normalize


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """One loader, with as many threads as others have workers."""
    threads = max(1, delivery.most_workers)
    return [
        Contestant(
            name=f"FFCV, {threads} threads", batch=delivery.batch, prepare=partial(written, pictures),
            read=partial(read, delivery, pictures, threads),
        )
    ]  # fmt: skip


class Indexed:
    """(picture, label) by index, as FFCV's writer asks."""

    def __init__(self, pictures: Pictures) -> None:
        self.images, self.labels = pictures.images, pictures.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], int(self.labels[index])


def written(pictures: Pictures) -> str:
    """The .beton file, of raw pictures."""
    path = pictures.folder / "pictures.beton"
    if not path.exists():
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Indexed(pictures))
    return str(path)


def read(delivery: Delivery, pictures: Pictures, threads: int) -> Iterator[Item]:
    """Shuffled epochs: mirrored and shifted in compiled code, normalised on the device."""
    mean, std = ([255.0 * each for each in part] for part in pictures.moments)
    device = [ToDevice(torch.device(delivery.device), non_blocking=True)] if delivery.on_gpu else []
    pipelines = {
        "image": [
            SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=delivery.padding), ToTensor(),
            *device, ToTorchImage(channels_last=False), Convert(delivery.dtype), Normalize(mean, std),
        ],
        "label": [IntDecoder(), ToTensor(), *device, Squeeze()],
    }  # fmt: skip
    loader = Loader(
        written(pictures), batch_size=delivery.batch, num_workers=threads, order=OrderOption.RANDOM, drop_last=True,
        os_cache=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        yield from loader
