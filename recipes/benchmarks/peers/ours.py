"""This project's paths: rendered on the GPU, or on the CPU by worker processes, normalised in the renderer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, placed
from fractal_streams.recipes.benchmarks.peers.pictures import SOURCE, Pictures
from torch.utils.data import DataLoader

from fractal_streams import Loader, Stream, StreamDataset, open_stream


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """On a GPU through both loaders, on the CPU with no worker and with the most."""
    form: dict[str, Any] = {
        "height": delivery.size, "width": delivery.size, "dtype": str(delivery.dtype).removeprefix("torch."),
        "mean": pictures.mean, "std": pictures.std,
    }  # fmt: skip
    found = []
    if delivery.on_gpu:
        stream = open_stream(SOURCE, device=delivery.device, **form)
        ways = {"Loader": through_loader, "DataLoader": through_torch}
        found = [
            Contestant(
                name=f"fractal-streams, GPU, {name}", ours=True, batch=delivery.batch, stream=stream,
                read=partial(way, stream, delivery, 0),
            )
            for name, way in ways.items()
        ]  # fmt: skip
    stream = open_stream(SOURCE, device="cpu", **form)
    return found + [
        Contestant(
            name="fractal-streams, CPU", ours=True, batch=delivery.batch, workers=workers, stream=stream,
            read=partial(through_torch, stream, delivery, workers),
        )
        for workers in sorted({0, delivery.most_workers})
    ]  # fmt: skip


def through_loader(stream: Stream, delivery: Delivery, workers: int) -> Iterator[Item]:
    """`Loader`, with its state of one integer."""
    for images, labels in Loader(stream, delivery.batch, workers=workers):
        yield placed(images, labels, delivery)


def through_torch(stream: Stream, delivery: Delivery, workers: int) -> Iterator[Item]:
    """A torch `DataLoader` around a `StreamDataset`."""
    settings = delivery.loader(workers)
    if not stream.device.startswith("cpu"):
        settings["pin_memory"] = False
    for images, labels in DataLoader(StreamDataset(stream, delivery.batch), batch_size=None, **settings):
        yield placed(images, labels, delivery)
