"""NVIDIA DALI: pictures in memory handed to its pipeline, which shifts, mirrors and normalises them on the device.

Source: the manual of NVIDIA DALI: `external_source`, `slice`, `crop_mirror_normalize`, `DALIGenericIterator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, placed
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """One pipeline, with as many threads as others have workers."""
    threads = max(1, delivery.most_workers)
    return [
        Contestant(
            name=f"NVIDIA DALI, {threads} threads", batch=delivery.batch, prepare=lambda: pictures.images,
            read=partial(read, delivery, pictures, threads),
        )
    ]  # fmt: skip


def shuffled(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], batch: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Batches of (batch, H, W, 3) pictures and (batch,) labels, a new order in each epoch, without end."""
    generator = np.random.default_rng()
    while True:
        order = generator.permutation(len(images))
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            yield images[chosen], labels[chosen]


@pipeline_def
def augmented(source: Iterator[Any], delivery: Delivery, mean: list[float], std: list[float]) -> Any:
    """The graph: random shifts with black beyond the edge, random mirrors, normalised (3, H, W) float32."""
    images, labels = fn.external_source(source, num_outputs=2, batch=True)
    if delivery.on_gpu:
        images, labels = images.gpu(), labels.gpu()
    shifts = [float(shift) for shift in range(-delivery.padding, delivery.padding + 1)]
    start = fn.cast(fn.random.uniform(values=shifts, shape=2), dtype=types.INT32)
    images = fn.slice(
        images, start=start, shape=[delivery.size, delivery.size], axes=[0, 1], out_of_bounds_policy="pad",
        fill_values=0,
    )  # fmt: skip
    images = fn.crop_mirror_normalize(
        images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std, mirror=fn.random.coin_flip()
    )
    return images, labels


def read(delivery: Delivery, pictures: Pictures, threads: int) -> Iterator[Item]:
    """What DALI's torch iterator gives."""
    levels = [[255.0 * each for each in part] for part in pictures.moments]
    pipeline = augmented(
        shuffled(pictures.images, pictures.labels, delivery.batch), delivery, *levels, batch_size=delivery.batch,
        num_threads=threads, device_id=int(delivery.device.partition(":")[2]) if delivery.on_gpu else None,
    )  # fmt: skip
    pipeline.build()
    for (batch,) in DALIGenericIterator(pipeline, ["images", "labels"]):
        yield placed(batch["images"], batch["labels"].reshape(-1), delivery)
