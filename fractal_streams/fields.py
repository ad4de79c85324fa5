"""The form in which a loader hands out a batch or a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from fractal_streams.batch import Batch, Sample

Fields = Literal["pair", "dict", "batch"]
FIELDS = ("pair", "dict", "batch")
Transform = Callable[[Any], Any]


def samples_of(batch: Batch) -> list[Sample]:
    """The single samples of a batch of tensors; images and latents are views."""
    names, rows = list(batch.latents), [values.unbind() for values in batch.latents.values()]
    latents = [dict(zip(names, row, strict=True)) for row in zip(*rows, strict=True)] if rows else [{}] * len(batch)
    parts = zip(batch.index.tolist(), batch.images.unbind(), batch.labels.tolist(), latents, strict=True)
    return [Sample(*part) for part in parts]


def packed_batch(batch: Batch, cut: slice | None, fields: Fields, transform: Transform | None) -> Any:
    """A slice of a batch, or all of it, in the form that `fields` names."""
    images, labels = (batch.images, batch.labels) if cut is None else (batch.images[cut], batch.labels[cut])
    if transform is not None:
        images = transform(images)
    if fields == "pair":
        return images, labels
    index, latents = batch.index, dict(batch.latents)
    if cut is not None:
        index, latents = index[cut], {name: values[cut] for name, values in latents.items()}
    if fields == "dict":
        return {"index": index, "images": images, "labels": labels, "latents": latents}
    return Batch(index, images, labels, latents)


def packed_sample(sample: Sample, fields: Fields, transform: Transform | None) -> Any:
    """A sample in the form that `fields` names."""
    image = sample.image if transform is None else transform(sample.image)
    if fields == "pair":
        return image, sample.label
    if fields == "dict":
        return {"index": sample.index, "image": image, "label": sample.label, "latents": sample.latents}
    return replace(sample, image=image)
