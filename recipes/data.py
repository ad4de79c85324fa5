"""The streams of a run: what it trains on, and what it is tested on; and batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fractal_streams.recipes.settings import Settings, option

from fractal_streams import Batch, FiniteStream, Stream, open_stream
from fractal_streams.errors import InvalidValueError, UnknownNameError, missing_extra
from fractal_streams.finite import MAX_SAMPLES
from fractal_streams.normalisation import channel_statistics

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

BLOCK = 2**32
"""Held-out samples of one `val_seed`."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """What a model is trained on."""

    panel: ClassVar[str] = "Data"
    preset: str = option("fractal-10", "A preset, a formula, or a spec's JSON file.")
    num_classes: int | None = option(None, "Of the stream; the preset's own.", low=1)
    image_size: int | None = option(None, "Height and width, pixels; the preset's own.", low=1)
    max_iter: int | None = option(None, "Iterations of the formula; the preset's own.", low=1)
    supersample: int | None = option(None, "Samples along each edge of a pixel; the preset's own.", low=1, high=3)
    num_samples_per_class: int | None = option(
        None,
        "Train on so many samples per class (a mean), again and again; without it the stream is endless.",
        low=1,
    )
    data_seed: int = option(0, "Names the stream: its classes and its samples.")
    val_seed: int = option(0, "Which of the held-out samples to test on.", high=2**31 - 2, changes_nothing=True)


def opened(
    data: DataSettings, split: str, device: Any, dtype: str = "float32", mean: Any = None, std: Any = None
) -> Stream:
    """The stream of a split, in the form that a model takes: each channel with mean 0 and deviation 1.

    Args:
        device: of the run's accelerator. dtype: of the pictures.
        mean, std: to subtract and to divide by, of levels in [0, 1], instead of the preset's own.

    Raises:
        InvalidValueError: a stream of clips; a size, number of classes, iterations or samples that the preset has not.
    """
    stream = opened_of_any_shape(data.preset, data, split, device, dtype, mean, std)
    if len(stream.generate(range(0)).images.shape) != 4:
        raise InvalidValueError(f"preset={data.preset!r} makes clips, and this trains on stills: choose another preset")
    return stream


def opened_of_any_shape(
    source: Any, data: DataSettings, split: str, device: Any, dtype: str, mean: Any, std: Any, **changes: Any
) -> Stream:
    """As `opened`, of stills or clips; of a preset's name or its spec, and with other changes of it."""
    names = {"height": data.image_size, "width": data.image_size, "num_classes": data.num_classes}
    asked = {**names, "iterations": data.max_iter, "supersample": data.supersample, **changes}
    own_mean, own_std = channel_statistics(data.preset)
    place = str(device)  # that of a rank is cpu:0
    try:
        return open_stream(
            source, seed=data.data_seed, split=split, device="cpu" if place.startswith("cpu") else place,
            dtype=dtype, mean=own_mean if mean is None else mean, std=own_std if std is None else std,
            **{name: value for name, value in asked.items() if value is not None},
        )  # fmt: skip
    except UnknownNameError as error:
        ours = {"height": "image_size", "iterations": "max_iter"} | {
            name: name for name in ("num_classes", "supersample")
        }
        for option_name in (own for name, own in ours.items() if f"unknown setting {name!r}" in str(error)):
            raise InvalidValueError(f"preset={data.preset!r} has no {option_name} to choose: let it be none") from None
        raise


def training_stream(data: DataSettings, device: Any, dtype: str = "float32", **form: Any) -> Stream:
    """The endless training stream, or a finite set of it if so many samples of a class are asked for.

    Raises:
        InvalidValueError: a stream of clips, or a set larger than `MAX_SAMPLES`.
    """
    return finite(opened(data, "train", device, dtype, **form), data)


def finite(stream: Stream, data: DataSettings) -> Stream:
    """The stream, or a finite set of it if so many samples of a class are asked for."""
    if data.num_samples_per_class is None:
        return stream
    if (most := MAX_SAMPLES // stream.num_classes) < data.num_samples_per_class:
        raise InvalidValueError(
            f"num_samples_per_class must be at most {most} with {stream.num_classes} classes, got "
            f"{data.num_samples_per_class}: leave it out for an endless stream"
        )
    return FiniteStream(stream, data.num_samples_per_class * stream.num_classes)


def held_out(stream: Stream, samples: int, batch_size: int, val_seed: int = 0) -> Iterator[Batch]:
    """Batches of tensors of the held-out samples that a seed names, the same each time.

    Args:
        stream: of the validation or test split.
    """
    first = BLOCK * int(val_seed)
    for start in range(first, first + samples, batch_size):
        yield stream.generate(range(start, min(start + batch_size, first + samples))).torch()


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch on the device; one that is there stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Batch):
        parts = (batch.index, batch.images, batch.labels, batch.latents)
        return Batch(*(on_device(part, device) for part in parts))
    if isinstance(batch, Mapping):
        return {name: on_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(on_device(value, device) for value in batch)
    return batch
