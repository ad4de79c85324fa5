"""A stream as an examples iterable of `datasets`: sharded by slicing a range, resumed from one number.

`datasets` reads every iterable dataset through an examples iterable, a private interface: what is used of
it is named in `NEEDED`, and tests hold it against the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from typing import Any

from fractal_streams.integrations.containers.pictures import bmp_bytes
from fractal_streams.integrations.containers.samples import block_rows, class_names, is_clips
from fractal_streams.integrations.containers.tables import (
    COLUMNS,
    arrow_schema,
    latent_columns,
    latent_features,
    record_batch,
)

from fractal_streams.batch import Batch, as_tensor
from fractal_streams.errors import InvalidValueError, MissingExtraError, missing_extra
from fractal_streams.shard import Course, Shard
from fractal_streams.spec import whole
from fractal_streams.stream import MAX_INDEX, Stream
from fractal_streams.torch_data import StreamDataset, checked_stream

try:
    import datasets
    import pyarrow as pa
    from datasets import ClassLabel, Features, Image, Value
    from PIL import Image as Picture
except ImportError as error:
    raise missing_extra(error.name or "datasets", "huggingface") from error

NEEDED = ("_init_state_dict", "iter_arrow", "is_typed", "features", "shard_data_sources", "reshard_data_sources",
          "shuffle_data_sources", "split_shard_indices_by_worker", "num_shards")  # fmt: skip
try:
    from datasets.iterable_dataset import _BaseExamplesIterable

    _missing = [name for name in NEEDED if not hasattr(_BaseExamplesIterable, name)]
except ImportError:
    _missing = ["_BaseExamplesIterable"]
if _missing:
    raise MissingExtraError(
        f"datasets {datasets.__version__} is not supported (it has no {', '.join(_missing)}): "
        f"pip install 'datasets>=5.1,<6', or read the stream with fractal_streams.StreamDataset"
    )

WHOLE = Shard()
"""All ranks: ours are slices of a range, made by `datasets`."""
NUM_SHARDS = 80_640
"""2**8 * 3**2 * 5 * 7: what worlds divide, 1 to 10, 12, 14, 15, 16, ..., 256, each rank renders only its own."""
BLOCK, FIRST_BLOCK, BLOCK_BYTES = 256, 16, 2**23
"""Of single samples, the most that are rendered together, how many at first, and the most bytes."""


class Source(_BaseExamplesIterable):  # type: ignore[misc]
    """Units of a stream, each one or `unit` samples: a range, of which `datasets` takes slices.

    Unit u holds samples start + u * unit and on, none behind `stop`. The state is how many of its units a
    source has given; the rest of it says what it belongs to. One that is `apart` is a connected share: how far
    the others have come does not follow from its state.
    """

    _sleep_on_threads_shutdown = False

    def __init__(
        self, stream: Stream, *, unit: int, start: int, length: int | None, num_shards: int, drop_last: bool = False
    ) -> None:
        super().__init__()
        self.stream = checked_stream(stream)
        self.unit = whole(unit, "batch_size", 1, 2**31 - 1, "samples")
        self.start = whole(start, "start", 0, MAX_INDEX - 1, "samples consumed")
        self.endless = length is None
        self.stop = MAX_INDEX if length is None else whole(length, "length", 1, MAX_INDEX, "samples")
        if self.start > self.stop:
            raise InvalidValueError(f"start must lie in 0 to length = {length}, got {start}: nothing is left behind it")
        course = Course(shard=WHOLE, batch_size=unit, base=self.start, end=self.stop, drop_last=drop_last)
        self.units = range(course.count)
        self._shards = whole(num_shards, "num_shards", 1, 2**31 - 1, "")
        self.apart = False
        self._digest = stream.digest()

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return copy(self)  # streams never change: they are shared

    def __copy__(self) -> Source:
        twin: Source = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _state_dict=None)
        return twin

    def part(self, units: range, shards: int | None = None) -> Source:
        """Some of the units."""
        twin = copy(self)
        twin.units, twin._shards = units, self._shards if shards is None else shards
        twin.endless = self.endless and units.stop >= self.units.stop
        return twin

    @property
    def num_shards(self) -> int:
        """Parts that ranks and workers divide; of a source with an end, none is empty."""
        return self._shards if self.endless else divisor(self._shards, len(self.units))

    def shuffle_data_sources(self, generator: Any) -> Source:
        """The same: samples are independent, and their order is exact."""
        return copy(self)

    def reshard_data_sources(self) -> Source:
        return copy(self)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> Source:
        """Every num_shards-th unit; a connected run of them if that is asked of a source with an end."""
        # Readers behind as many as there are shards are given nothing: the others share all of it.
        shards = len(range(index, self.num_shards, num_shards))
        num_shards = min(num_shards, self.num_shards)
        if index >= num_shards:
            return self.part(self.units[:0], 1)
        if contiguous and not self.endless:
            bounds = [len(self.units) * cut // num_shards for cut in (index, index + 1)]
            part = self.part(self.units[slice(*bounds)], shards)
            part.apart = self.apart or num_shards > 1
            return part
        return self.part(self.units[index::num_shards], shards)

    def split_shard_indices_by_worker(self, num_shards: int, index: int, contiguous: bool = True) -> Any:
        return range(index, self.num_shards, num_shards)

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = {"done": 0, **self._identity()}
        return self._state_dict

    def _identity(self) -> dict[str, Any]:
        units = [self.units.start, self.units.stop, self.units.step]
        own = {"stream": self._digest, "start": self.start, "stop": self.stop, "unit": self.unit, "units": units}
        return {"type": type(self).__name__, **own, "apart": self.apart}

    def _done(self) -> int:
        """Units done, from a state that belongs here."""
        if self._state_dict is None:
            return 0
        for name, here in self._identity().items():
            saved = self._state_dict[name]
            # A worker that gave nothing yet says what it knew before it got its share.
            if saved != here and (name != "units" or self._state_dict["done"]):
                raise InvalidValueError(
                    f"this state was saved with {name}={saved}, here {name}={here}: open the same dataset with as "
                    f"many ranks and workers, or a new one with start=position"
                )
        self._state_dict.update(self._identity())
        return whole(self._state_dict["done"], "done of the state", 0, len(self.units), "units")

    def _note(self, done: int) -> None:
        if self._state_dict is not None:
            self._state_dict["done"] = done

    def _batch(self, units: range) -> Batch:
        return self.stream.generate(WHOLE.indices(units, self.unit, self.start, self.stop))


class BatchSource(Source):
    """Batches {"images", "labels", "index"}, and latents by name, of torch tensors, handed on by reference."""

    def __init__(self, stream: Stream, *, latents: bool = False, **settings: Any) -> None:
        super().__init__(stream, **settings)
        self._latents = tuple(latent_features(stream)) if latents else ()
        self._features = batch_features(stream, self.unit, latents)

    @property
    def features(self) -> Any:
        return self._features

    @property
    def is_typed(self) -> bool:
        return self._features is not None

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        done = self._done()
        batches = self._ahead(done) if self.stream.device.startswith("cuda") else self._here(done)
        for done, batch in enumerate(batches, done + 1):  # noqa: B020
            self._note(done)
            drawn = {name: batch.latents[name] for name in self._latents}
            yield done, {"images": batch.images, "labels": batch.labels, "index": batch.index, **drawn}

    def _here(self, done: int) -> Iterator[Batch]:
        for unit in self.units[done:]:
            batch = self.stream.generate(WHOLE.interval(unit, self.unit, self.start, self.stop))
            drawn = {name: as_tensor(batch.latents[name]) for name in self._latents}
            yield Batch(as_tensor(batch.index), as_tensor(batch.images), as_tensor(batch.labels), drawn)

    def _ahead(self, done: int) -> Iterator[Batch]:
        """The same batches from a GPU, which renders many of them ahead on a CUDA stream of its own."""
        rest = self.units[done:]
        if not rest:
            return iter(())
        first = WHOLE.interval(rest.start, self.unit, self.start).start
        last = WHOLE.interval(rest[-1], self.unit, self.start, self.stop).stop
        length = None if self.endless else last
        ranks = Shard(0, rest.step)
        return iter(StreamDataset(self.stream, self.unit, start=first, length=length, shard=ranks, fields="batch"))


class RowSource(Source):
    """Samples with the columns "image", "label" and "index", and latents by name."""

    def __init__(self, stream: Stream, *, latents: bool = False, **settings: Any) -> None:
        super().__init__(stream, unit=1, **settings)
        self._schema = arrow_schema(stream, image="bmp", latents=latents)
        self._features = row_features(stream, latents)
        self._block = block_rows(stream, BLOCK_BYTES, BLOCK)

    @property
    def features(self) -> Any:
        return self._features

    @property
    def iter_arrow(self) -> Any:
        return self._iter_arrow

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Samples with their PIL images, made from the pixels; equal to what `_iter_arrow` gives, decoded."""
        done, number = self._done(), min(FIRST_BLOCK, self._block)
        while units := self.units[done : done + number]:
            number = min(self._block, 2 * number)
            batch = self._batch(units).numpy()
            drawn = (batch.latents[name].tolist() for name in self._schema.names[len(COLUMNS) :])
            rows = zip(pictures_of(batch.images), batch.labels.tolist(), batch.index.tolist(), *drawn, strict=True)
            for done, row in enumerate(rows, done + 1):  # noqa: B020
                self._note(done)
                yield row[2], dict(zip(self._schema.names, row, strict=True))

    def row_bytes(self) -> int:
        """Bytes of a row as Arrow."""
        return int(rows_table(self.stream, self.stream.generate(range(1)), self._schema).nbytes)

    def _iter_arrow(self) -> Iterator[tuple[int, pa.Table]]:
        done = self._done()
        while units := self.units[done : done + self._block]:
            table = rows_table(self.stream, self._batch(units), self._schema)
            done += len(units)
            self._note(done)
            yield done, table


def batch_features(stream: Stream, batch_size: int, latents: bool = False) -> Features | None:
    """The features of batches; None of a dtype that Arrow has not."""
    if stream.pixels.dtype == "bfloat16":
        return None
    shape = stream.generate(range(0)).images.shape[1:]
    array = getattr(datasets, f"Array{1 + len(shape)}D")(shape=(batch_size, *shape), dtype=stream.pixels.dtype)
    labels = datasets.List(label_feature(stream))
    drawn = {name: datasets.List(each) for name, each in drawn_features(stream, latents).items()}
    return Features({"images": array, "labels": labels, "index": datasets.List(Value("int64")), **drawn})


def row_features(stream: Stream, latents: bool = False) -> Features:
    """The features of rows: a clip is a list of images, so that its pixels stay bytes in every format."""
    image = datasets.List(Image()) if is_clips(stream) else Image()
    drawn = drawn_features(stream, latents)
    return Features({"image": image, "label": label_feature(stream), "index": Value("int64"), **drawn})


def drawn_features(stream: Stream, latents: bool) -> Features:
    """The features of a row's latents, if they are asked for."""
    return Features.from_dict(latent_features(stream) if latents else {})


def label_feature(stream: Stream) -> Any:
    names = class_names(stream)
    return Value("int64") if names is None else ClassLabel(names=names)


def rows_table(stream: Stream, batch: Batch, schema: pa.Schema) -> pa.Table:
    """A batch as a table of `row_features`."""
    if len(batch.images.shape) == 4:
        return pa.Table.from_batches([record_batch(stream, batch, schema)])
    host = batch.numpy()
    count, frames = host.images.shape[:2]
    files = pa.array(bmp_bytes(host.images.reshape(count * frames, *host.images.shape[2:])), pa.binary())
    paths = pa.nulls(count * frames, pa.string())
    pictures = pa.StructArray.from_arrays([files, paths], names=["bytes", "path"])
    clips = pa.ListArray.from_arrays(pa.array(range(0, (count + 1) * frames, frames), pa.int32()), pictures)
    columns = [clips, pa.array(host.labels), pa.array(host.index), *latent_columns(host, schema)]
    return pa.table(dict(zip(schema.names, columns, strict=True)))


def pictures_of(images: Any) -> Iterator[Any]:
    """A PIL image of each of (B, 3, H, W) or (B, H, W, 3) levels; a list of them for a clip.

    All are cut out of one large image, in a third of the time that it takes to make them one by one.
    """
    if images.ndim == 5:
        frames = pictures_of(images.reshape(-1, *images.shape[2:]))
        yield from ([next(frames) for _ in range(images.shape[1])] for _ in images)
        return
    first = images.shape[1] == 3
    height, width = images.shape[2:] if first else images.shape[1:3]
    if first:
        planes = [Picture.fromarray(images[:, channel].reshape(-1, width)) for channel in range(3)]
        block = Picture.merge("RGB", planes)
    else:
        block = Picture.fromarray(images.reshape(-1, width, 3))
    for top in range(0, block.height, height):
        yield block.crop((0, top, width, top + height))


@lru_cache(maxsize=64)
def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is no more than `most`, at least 1.

    Example:
        >>> divisor(80_640, 100)
        96
    """
    return next((each for each in range(min(number, most), 1, -1) if number % each == 0), 1)
