"""Streams in webdataset's pipelines: as their first stage, and behind `fractal://` addresses of shards."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fractal_streams.integrations.containers.pictures import FORMS, picture_bytes
from fractal_streams.integrations.containers.samples import checked_uint8, sample_key, sample_rows

from fractal_streams.batch import Batch
from fractal_streams.errors import InvalidValueError, ReadOnlyError, ShardingError, missing_extra
from fractal_streams.fields import Fields, Transform
from fractal_streams.reader_state import check_state
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of
from fractal_streams.stream import Stream
from fractal_streams.torch_data import TURN, StreamDataset

try:
    import fsspec
    import torch
    import webdataset
    from webdataset.compat import FluidInterface
    from webdataset.utils import pytorch_worker_info
except ImportError:
    raise missing_extra("webdataset", "webdataset") from None

Form = Literal["tensor", "png", "bmp", "npy"]
SPLITTERS = {"split_by_node", "split_by_worker"}
READERS = 1024
AT_TURN, WORKERS, STRIDE, WIDTH, POSITION, AT_EPOCH, STEP, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 7
"""Of a reader's row: which `set_start` it follows, who else read, samples of a step, and how far it came."""


class StreamSource(StreamDataset):
    """A stream as the first stage of a `webdataset.DataPipeline`.

    Nodes and workers share it by themselves, each sample to one of them: leave `split_by_node` and
    `split_by_worker` out. If they follow all the same, the source sees them, hands every reader everything
    to choose from, and warns that this renders as many times as much. An iteration goes on where the one
    before it stopped, so that with `.with_epoch(n)` no two epochs are alike; with `length`, the epoch of that
    many samples is ended first. Of worker processes that is what they made: put `.with_epoch` on the pipeline
    that they run, since behind the `WebLoader` it would throw away what they made ahead. What a stage such as
    `shuffle` holds back when `.with_epoch` ends an epoch is thrown away too, as everywhere in webdataset.

    Args:
        stream: any `Stream`; with `image` other than "tensor", of uint8 pixels.
        batch_size: None gives samples; else ready batches, for `WebLoader(..., batch_size=None)`.
        image: what a sample holds. "tensor": "image" (3, H, W), "cls" int and "json" dict, as behind
            `.decode()`. "png" (not compressed), "bmp" or "npy": that key, "cls" and "json" as bytes, as out of
            a tar, for pipelines that decode. Clips are npy always.
        start, length, shard, drop_last: as of `StreamDataset`.
        fields: of ready batches: "pair" (images, labels), "dict" or "batch".
        transform: applied to the tensor "image" of a sample, or to the images of a batch.

    A sample's "__key__" is its index in 8 digits or more, its "__url__" names the stream.

    Raises:
        InvalidValueError: a value out of its range, named; batches or a transform of bytes.
        ShardingError: when iteration begins, another number of workers than before, or as of `StreamDataset`; of
            an iteration that goes on when a later one has begun.

    Example:
        >>> import webdataset as wds
        >>> from fractal_streams import open_stream
        >>> source = StreamSource(open_stream("fractal-10", device="cpu", height=8, width=8), start=42)
        >>> image, label = next(iter(wds.DataPipeline(source, wds.to_tuple("image", "cls"))))
        >>> image.shape, type(label), source.position
        (torch.Size([3, 8, 8]), <class 'int'>, 43)
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int | None = None,
        *,
        image: Form = "tensor",
        start: int = 0,
        length: int | None = None,
        shard: Shard | None = None,
        fields: Fields = "pair",
        transform: Transform | None = None,
        drop_last: bool = False,
    ) -> None:
        one_of(image, "image", ("tensor", *FORMS))
        if image != "tensor":
            checked_uint8(stream)
            if batch_size is not None or transform is not None:
                raise InvalidValueError(
                    f"image={image!r} gives single samples of bytes, got batch_size={batch_size} and "
                    f"transform={transform}: decode and batch in stages behind the source, or use image='tensor'"
                )
        super().__init__(
            stream, batch_size, start=start, length=length, shard=shard, transform=transform, drop_last=drop_last,
            fields="batch" if batch_size is None else fields,
        )  # fmt: skip
        self.image = image
        self.url = f"fractal-stream:{stream.digest()}"
        self._follow: set[str] = set()
        self._walks = 0
        # In shared memory, since the worker processes of the next epoch are new ones. Row 0 is a single reader's.
        self._rows = torch.zeros(1 + READERS, COLUMNS, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rows.share_memory_()

    def __iter__(self) -> Iterator[Any]:
        # A generator: the stages that follow are on the stack when it runs, not when it is made.
        self._follow = splitters_that_follow()
        worker, workers = pytorch_worker_info()[2:]
        place = 0 if workers == 1 else 1 + worker % READERS
        first, stride = self._reader()
        way = (int(self._shared[TURN]), workers, stride, (self.batch_size or 1) * self._here().world_size)
        row = self._rows.numpy()[place]
        self._loaded = self._reached(place, way)
        items = super().__iter__()
        course = self._course or self.course()
        epoch = self._epoch(course)
        row[:] = (*way, course.position(0), epoch, self._step)
        self._walks += 1
        walk = self._walks
        for item in items:
            row[STEP] = self._step
            if self.length is not None and self._step >= course.count:
                row[POSITION:] = ((epoch + 1) * self.length, epoch + 1, first)
            yield item
            if walk != self._walks:
                raise ShardingError(
                    "a later iteration of this StreamSource went on from here, so that this one would give the same "
                    "samples again: read the latest one, or make a StreamSource for each"
                )
        if self.length is not None:
            row[POSITION:] = ((epoch + 1) * self.length, epoch + 1, first)

    def _reached(self, place: int, way: tuple[int, int, int, int]) -> dict[str, int] | None:
        """Where this reader stopped before, or a single reader after whom several now come; None at `start`."""
        rows = self._rows.numpy()
        live = [tuple(row) for row in rows[rows[:, AT_TURN] == way[0]].tolist()]
        for row in live:
            if (row[WORKERS] > 1 or place == 0) and row[:POSITION] != way:
                raise ShardingError(
                    f"{row[WORKERS]} workers read this source before and {way[1]} do now, or stages that split it have "
                    f"come or gone, so that nobody knows what is left: make a new StreamSource(..., start=N) with "
                    f"N = source.position_after(items that each rank received)"
                )
        own, single = (tuple(rows[at].tolist()) for at in (place, 0))
        if own in live:
            return dict(zip(("position", "epoch", "step"), own[POSITION:], strict=True))
        if single in live:
            position = single[POSITION] + single[STEP] * single[WIDTH]
            return {"position": position, "epoch": single[AT_EPOCH]}
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the iterations to come, in worker processes too, go on where `state_dict` stood.

        Raises:
            VersionError: made by a newer version of this package.
            InvalidValueError: of another stream or length, or the state of one worker process.
        """
        check_state(state, self.stream.digest(), self.length)
        if "step" in state:
            raise InvalidValueError(
                "this is the state of one worker process, and tells no position of all: give StreamSource(..., "
                "start=N) the number of samples that all ranks together consumed"
            )
        self.set_start(state["position"])

    def _here(self) -> Shard:
        return Shard() if "split_by_node" in self._follow else super()._here()

    def _reader(self) -> tuple[int, int]:
        return (0, 1) if "split_by_worker" in self._follow else pytorch_worker_info()[2:]

    def _samples(self, batch: Batch) -> Sequence[Any]:
        rows = sample_rows(batch, self.stream, keep_nan=True)  # as `tar_bytes` has it
        form = "npy" if self.image != "tensor" and batch.images.ndim == 5 else self.image
        if form == "tensor":
            parts: Any = ((image, row["label"], row) for image, row in zip(batch.images.unbind(), rows, strict=True))
        else:
            files = picture_bytes(batch.numpy().images, form)
            parts = (
                (file, str(row["label"]).encode(), json.dumps(row).encode())
                for file, row in zip(files, rows, strict=True)
            )
        name = "image" if form == "tensor" else form
        return [
            {"__key__": sample_key(row["index"]), "__url__": self.url, name: picture, "cls": label, "json": facts}
            for row, (picture, label, facts) in zip(rows, parts, strict=True)
        ]

    def _packed(self, sample: Any) -> Any:
        if self.transform is not None:
            sample["image"] = self.transform(sample["image"])
        return sample


class StreamPipeline(webdataset.DataPipeline, FluidInterface):  # type: ignore[misc]
    """A `StreamSource` with webdataset's fluent methods: `.shuffle(n)`, `.map(f)`, `.to_tuple(...)`, `.batched(n)`.

    Args:
        stream, batch_size, settings: of the `StreamSource`, which is in `pipeline.source`.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu", height=8, width=8)
        >>> pipeline = StreamPipeline(stream, image="png").decode("torchrgb8").to_tuple("png", "cls").batched(4)
        >>> images, labels = next(iter(pipeline))
        >>> images.shape, images.dtype, len(labels)
        (torch.Size([4, 3, 8, 8]), torch.uint8, 4)
    """

    def __init__(self, stream: Stream, batch_size: int | None = None, **settings: Any) -> None:
        self.source = StreamSource(stream, batch_size, **settings)
        super().__init__(self.source)


def splitters_that_follow() -> set[str]:
    """Which of webdataset's splitting stages are about to read what the caller yields.

    Raises:
        ShardingError: samples are shuffled before they are split, by each reader in its own way.
    """
    found: set[str] = set()
    shuffled, frame = False, sys._getframe(2)
    while frame is not None:
        stage = (frame.f_globals.get("__name__"), frame.f_code.co_name)
        shuffled |= stage == ("webdataset.filters", "_shuffle") and frame.f_locals.get("seed") is None
        if stage[0] == "webdataset.shardlists" and stage[1] in SPLITTERS:
            found.add(stage[1])
            if shuffled:
                raise ShardingError(
                    f"{stage[1]} behind a shuffle without seed behind a StreamSource: each reader would choose from an "
                    f"order of its own, and lose and repeat samples: leave {stage[1]} out"
                )
        frame = frame.f_back  # type: ignore[assignment]
    if found:
        warnings.warn(
            f"{' and '.join(sorted(found))} behind a StreamSource makes every reader render what all of them need: "
            f"leave it out, since the source shares the stream over nodes and workers by itself",
            stacklevel=3,
        )
    return found


def register(worker: int = 0) -> None:
    """Lets webdataset open addresses: `wds.WebDataset("fractal://fractal-10/train/seed=0/shard-{000000..000009}.tar")`.

    Spawned workers open shards in processes of their own: give them `worker_init_fn=register`, for which the
    worker's number is taken and not used.
    """
    webdataset.gopen_schemes["fractal"] = open_address


def open_address(address: str, mode: str = "rb", bufsize: int = 8192, **settings: Any) -> Any:
    """A binary file of what stands at a `fractal://` address, for `webdataset.gopen`.

    Raises:
        ReadOnlyError: a mode other than "rb".
        AddressError: no such address.
    """
    if mode != "rb":
        raise ReadOnlyError(f"{address}: streams are read only; write tar files with `fractal-streams export`")
    return fsspec.open(address, "rb").open()
