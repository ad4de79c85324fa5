"""Streams: one pure batched function from indices to a `Batch`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from fractal_streams.backend import backend_of
from fractal_streams.batch import Batch, Sample
from fractal_streams.device import refuse_worker, resolve_device
from fractal_streams.draw import Plan, make_plan
from fractal_streams.draw.reference import draw_labels
from fractal_streams.errors import IndexRangeError, InvalidValueError
from fractal_streams.labels import class_title
from fractal_streams.render.raster import DType, PixelFormat, Raster
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import StreamSpec, one_of, whole

SPLITS = ("train", "validation", "test")
MAX_INDEX = 2**63 - 1


class Stream(ABC):
    """An endless sequence of samples; sample i depends on (spec, seed, split, i) and nothing else.

    Subclasses give `generate`; indexing and batching follow from it. Every adapter of this package
    takes any of them.
    """

    seed: int
    split: str
    device: str
    num_classes: int
    pixels: PixelFormat
    cost: int = 1
    """What a sample costs, about, in pictures of its size that a formula draws: loaders make fewer of them together."""

    @abstractmethod
    def generate(self, indices: Any) -> Batch:
        """Samples of (B,) indices in [0, 2**63), in their order.

        Args:
            indices: a range (nothing is copied to a GPU for it), list, array or tensor of integers.

        Raises:
            IndexRangeError: an index below 0 or above 2**63 - 1.
        """

    def labels(self, indices: Any) -> Int64:
        """(B,) int64 classes of the indices, without rendering where the stream can."""
        return self.generate(indices).numpy().labels

    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal digits that name what is drawn: equal for equal spec, seed and split."""

    def describe(self) -> dict[str, Any]:
        """What is drawn, as values that JSON holds: what manifests and dataset cards say of a stream."""
        spec = getattr(self, "spec", None)
        drawn = {"spec": json.loads(spec.to_json())} if spec is not None else {}
        return {**drawn, "seed": self.seed, "split": self.split, "digest": self.digest()}

    def class_title(self, label: int) -> str:
        """The name of a class, 0 to num_classes - 1."""
        return class_title(getattr(self, "spec", None), label)

    def __getitem__(self, index: int | slice) -> Any:
        """`stream[i]` is a `Sample`, `stream[a:b:step]` a `Batch`; the end must be given."""
        if isinstance(index, slice):
            for part in (index.start, index.stop, index.step):
                if part is not None and not hasattr(part, "__index__"):
                    raise InvalidValueError(f"a slice of a stream is made of whole numbers, got {index}")
            start, step = index.start or 0, 1 if index.step is None else index.step
            if index.stop is None or min(start, index.stop) < 0 or step < 1:
                raise IndexRangeError(f"a stream is endless: slice it as [a:b] with 0 <= a, got {index}")
            return self.generate(range(start, index.stop, step))
        batch = self.generate([whole_index(index)])
        return Sample(
            int(batch.index[0]), batch.images[0], int(batch.labels[0]),
            {name: values[0] for name, values in batch.latents.items()},
        )  # fmt: skip

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of consecutive samples from index `start` on, without end.

        Example:
            >>> batch = next(open_stream("fractal-10").batches(64, start=6400))
            >>> int(batch.index[0])
            6400
        """
        whole(batch_size, "batch_size", 1, 2**31 - 1, "samples")
        position = whole_index(start)
        while True:
            yield self.generate(range(position, position + batch_size))
            position += batch_size

    def __iter__(self) -> Iterator[Sample]:
        raise TypeError(
            f"{type(self).__name__} is endless: loop over stream.batches(n), "
            f"or give it to fractal_streams.StreamDataset for a DataLoader"
        )


class StillStream(Stream):
    """Labelled still pictures.

    Args:
        spec: what to draw.
        seed: names the stream's randomness, 0 to 2**64 - 1. Classes of the same seed are the same in
            every split.
        split: "train", "validation" or "test"; no sample is in two of them.
        device: "auto", "cpu", "cuda" or "cuda:N"; what "auto" chose is in `stream.device`.
        dtype, channels_last, mean, std: the form of the pixels, see `PixelFormat`.
        renderer: a `Renderer` to use in place of the CPU's own; needs device="cpu" where there is a GPU.

    Example:
        >>> from fractal_streams import StillStream, StreamSpec
        >>> stream = StillStream(StreamSpec(formulas="mandelbrot"), device="cpu")
        >>> stream[5].image.shape, stream[5:9].images.dtype
        ((3, 32, 32), dtype('uint8'))
    """

    def __init__(
        self,
        spec: StreamSpec,
        *,
        seed: int = 0,
        split: str = "train",
        device: str = "auto",
        dtype: DType = "uint8",
        channels_last: bool = False,
        mean: Any = 0.0,
        std: Any = 1.0,
        renderer: Any = None,
    ) -> None:
        if not isinstance(spec, StreamSpec):
            raise InvalidValueError(
                f"spec must be a StreamSpec, got {type(spec).__name__}; presets open by open_stream"
            )
        one_of(split, "split", SPLITS)
        self.spec = spec
        self.seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.split = split
        self.device = resolve_device(device)
        self.pixels = PixelFormat(dtype, channels_last, mean, std)
        self.num_classes = spec.num_classes
        parts = spec.parts()
        self.plans: tuple[Plan, ...] = tuple(make_plan(spec, part, seed=self.seed, split=split) for part in parts)
        self.rasters = tuple(Raster.of(spec, part) for part in parts)
        self.backend = backend_of(self.device, renderer)

    def digest(self) -> str:
        return f"{self.spec.digest()}-{self.seed}-{self.split}"

    def labels(self, indices: Any) -> Int64:
        return draw_labels(self.plans[0], checked_indices(indices))

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        if len(self.rasters) > 1:
            return self._generate_families(checked_indices(indices))
        index, labels, table = self.backend.draw(self.plans[0], indices)
        images = self.backend.render(self.rasters[0], table, self.pixels)
        return Batch(index, images, labels, dict(zip(self.plans[0].names, table, strict=True)))

    def _generate_families(self, indices: Int64) -> Batch:
        """Formulas as classes: each formula renders its own samples, and they are put back in order."""
        family = draw_labels(self.plans[0], indices) % len(self.rasters)
        names = list(dict.fromkeys(name for plan in self.plans for name in plan.names))
        order, parts = [], []
        for kind in np.unique(family):
            places = np.flatnonzero(family == kind)
            index, labels, table = self.backend.draw(self.plans[kind], indices[places])
            images = self.backend.render(self.rasters[kind], table, self.pixels)
            drawn = dict(zip(self.plans[kind].names, table, strict=True))
            missing = self.backend.full(len(places), np.nan)
            order.append(places)
            parts.append((index, labels, images, *(drawn.get(name, missing) for name in names)))
        if not parts:
            return self._empty(indices)
        index, labels, images, *rows = self.backend.gather(np.argsort(np.concatenate(order)), parts)
        return Batch(index, images, labels, dict(zip(names, rows, strict=True)))

    def _empty(self, indices: Int64) -> Batch:
        index, labels, table = self.backend.draw(self.plans[0], indices)
        images = self.backend.render(self.rasters[0], table, self.pixels)
        names = dict.fromkeys(name for plan in self.plans for name in plan.names)
        return Batch(index, images, labels, {name: self.backend.full(0, np.nan) for name in names})


def whole_index(index: object) -> int:
    """The index as an int; an `IndexRangeError` outside [0, 2**63)."""
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise InvalidValueError(f"an index is a whole number, got {index!r}")
    number = index.__index__()
    if not 0 <= number <= MAX_INDEX:
        raise IndexRangeError(f"index must lie in [0, 2**63), got {number}; a stream has no end to count back from")
    return int(number)
