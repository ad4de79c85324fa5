"""Streams for code that reads Hugging Face `datasets`.

    from fractal_streams.integrations.huggingface import load_dataset
    dataset = load_dataset("fractal-10", split="train", streaming=True)

What comes back is a `datasets.IterableDataset` or a `datasets.Dataset`; nothing is downloaded. An endless
one resumes in constant time from its `state_dict()` and gives each sample once over all ranks and workers;
one reader has index k at place k. Samples are independent: `shuffle` mixes a buffer and leaves the order of
the source as it is, and `set_epoch` changes nothing without it. `skip` and `take` cost nothing. Don't give
`with_format` to batches, they are tensors; each iteration of an endless dataset begins at `start`, so keep
one iterator for all of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from fractal_streams.integrations.huggingface_builder import (
    FORMATS,
    FractalBuilder,
    FractalConfig,
    describe,
    register,
    unregister,
)
from fractal_streams.integrations.huggingface_source import NUM_SHARDS, BatchSource, RowSource
from fractal_streams.integrations.huggingface_stream import StreamedDataset, position, streamed

from fractal_streams import __version__
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import Stream

try:
    from datasets import IterableDatasetDict, NamedSplit
except ImportError as error:
    raise missing_extra(error.name or "datasets", "huggingface") from error

__all__ = [
    "FractalBuilder",
    "FractalConfig",
    "StreamedDataset",
    "generator",
    "load_dataset",
    "position",
    "register",
    "unregister",
]

BLOCK = 1024
"""Samples of one shard of a generator, at least."""


def load_dataset(
    source: Any,
    *,
    split: str | None = "train",
    streaming: bool = True,
    format: Literal["image", "tensor"] = "image",
    batch_size: int | None = None,
    latents: bool = False,
    seed: int | None = None,
    start: int = 0,
    length: int | Mapping[str, int] | None = None,
    device: str | None = None,
    drop_last_batch: bool = False,
    shard: Shard | None = None,
    num_shards: int = NUM_SHARDS,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    **settings: Any,
) -> Any:
    """A stream as a dataset of Hugging Face `datasets`.

    Args:
        source: a preset or formula, a spec, or an opened stream.
        split: "train", "validation" or "test"; None is a dict of all; of a finite one also "train[:10%]", ...
        streaming: a `datasets.IterableDataset`, rendered while it is read; else a `datasets.Dataset` of
            `length` samples, rendered now into the cache of `datasets`, or found there.
        format: "image" gives samples with the columns "image" (`Image()`; a list of them for a clip),
            "label" (`ClassLabel`) and "index", as a stored dataset does. "tensor" gives batches {"images":
            (B, 3, H, W), "labels": (B,), "index": (B,)} of torch tensors, for `DataLoader(batch_size=None)`.
        batch_size: samples of a batch of format="tensor"; None is 256. drop_last_batch: leave out one not full.
        latents: also a column for each of a batch's latents, numbers or nested lists; NaN where a sample has none.
        start: samples that all ranks together consumed so far: where to go on in any layout; see `position`.
        length: samples of the dataset, or a number for each split by name; None is endless.
        device: "auto", "cpu", "cuda" or "cuda:N"; None is "auto". A stream on a GPU is read with 0 workers.
        shard: rank and world size of this reader, in place of `datasets.distributed.split_dataset_by_node`.
        num_shards: parts that ranks and workers divide; a world that does not divide it renders all on each.
        cache_dir, num_proc: of a finite dataset, where it is written and by how many processes.
        seed, settings: further settings of `open_stream` (height, width, num_classes, dtype, ...).

    Raises:
        UnknownNameError, InvalidValueError: no such name, a value out of its range, nothing that can be stored, ...
        MissingExtraError: `datasets` is missing, or a version that this does not support.

    Example:
        >>> dataset = load_dataset("fractal-10", split="train", seed=3, device="cpu")
        >>> example = next(iter(dataset.skip(10_000_000)))
        >>> example["image"].size, example["index"]
        ((32, 32), 10000000)
    """
    asked = {
        "source": source, "seed": seed, "start": start, "length": length, "format": format, "batch_size": batch_size,
        "drop_last_batch": drop_last_batch, "latents": latents, "device": device, "shard": shard,
        "num_shards": num_shards, "settings": settings,
    }  # fmt: skip
    split = str(split) if isinstance(split, NamedSplit) else split
    for name, value in (("cache_dir", cache_dir), ("num_proc", num_proc)):
        if streaming and value is not None:
            raise InvalidValueError(f"{name}={value!r} belongs to streaming=False: nothing is stored here")
    return streamed_dataset(asked, split) if streaming else stored_dataset(asked, split, cache_dir, num_proc)


def stored_dataset(asked: dict[str, Any], split: str | None, cache_dir: str | None, num_proc: int | None) -> Any:
    """The `datasets.Dataset` of a split, or a dict of all, rendered into the cache or found there."""
    splits = (split,) if isinstance(split, str) and split.isidentifier() and split != "all" else None
    builder = FractalBuilder(**asked, splits=splits, cache_dir=cache_dir)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def streamed_dataset(asked: dict[str, Any], split: str | None) -> Any:
    """The `datasets.IterableDataset` of a split, or a dict of all."""
    config = FractalConfig(**asked, splits=None if split is None else (split,))
    parts = {name: config.data_source(name) for name in config.known_splits}
    found = {name: streamed(part, name, describe(part.stream)) for name, part in parts.items()}
    return IterableDatasetDict(found) if split is None else found[split]


def generator(
    stream: Stream,
    *,
    start: int = 0,
    length: int | None = None,
    format: Literal["image", "tensor"] = "image",
    batch_size: int = 256,
) -> dict[str, Any]:
    """Arguments for `IterableDataset.from_generator` and `Dataset.from_generator`, for code that takes those.

    Their cache is found by what is drawn and by the version that drew it, so that it never holds other
    samples than asked for. They resume by rendering anew: `load_dataset` resumes at once.

    Args:
        stream: any `Stream`.
        start, length: samples `start` to `length` - 1. None is endless, for `IterableDataset` only, and
            then it is one shard, for one reader.
        format, batch_size: as in `load_dataset`.

    Returns:
        {"generator", "gen_kwargs"}, and "features" of format="image".

    Raises:
        InvalidValueError: a value out of its range.

    Example:
        >>> import datasets
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu", height=8, width=8)
        >>> dataset = datasets.IterableDataset.from_generator(**generator(stream, length=100))
        >>> next(iter(dataset))["image"].size
        (8, 8)
    """
    one_of(format, "format", FORMATS)
    size = whole(batch_size, "batch_size", 1, 2**31 - 1, "samples") if format == "tensor" else None
    source = RowSource(stream, start=start, length=length, num_shards=1)
    step = -(-BLOCK // (size or 1)) * (size or 1)
    firsts = [source.start] if source.endless else range(source.start, source.stop, step)
    shards = [(first, source.stop if source.endless else min(first + step, source.stop)) for first in firsts]
    made_of = {"version": __version__, "digest": stream.digest(), "stream": stream, "shards": shards, "size": size}
    found = {"generator": generated, "gen_kwargs": made_of}
    return {**found, "features": source.features} if size is None else found


def generated(
    stream: Stream, shards: list[tuple[int, int]], size: int | None, version: str, digest: str
) -> Iterator[dict[str, Any]]:
    """Samples of the shards as BMP files, or batches of `size` samples; version and digest name the cache."""
    for first, last in shards:
        settings: dict[str, Any] = {"start": first, "length": last, "num_shards": 1}
        source = RowSource(stream, **settings) if size is None else BatchSource(stream, unit=size, **settings)
        for _, example in source:
            yield example
