"""Streams as torch datasets: an iterable one that shards and resumes, and a map-style one.

Both are sources of integers in front of `Stream.generate`. On a GPU stream the iterable one renders
two chunks of batches ahead on a CUDA stream of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker
from fractal_streams.errors import IndexRangeError, InvalidValueError, missing_extra
from fractal_streams.fields import FIELDS, Fields, Transform, packed_batch, packed_sample, samples_of
from fractal_streams.reader_state import STATE_VERSION, check_state
from fractal_streams.shard import INDEX_END, Course, Shard
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import Stream

try:
    import torch
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ImportError:
    raise missing_extra("torch", "torch") from None

from fractal_streams.prefetch import CudaLane, Lane, ahead
from fractal_streams.trainers import refuse_resharding

LAUNCH_PIXELS, MAX_CHUNK = 2**25, 4096
"""Pixels that fill a GPU, and the most steps that are rendered together to have as many."""
BLOCK_BYTES, MAX_BLOCK = 2**23, 256
"""Of single samples on a CPU, the most that are rendered together."""
SHUFFLE_LIMIT = 10**7
START, EPOCH, TURN, IN_WORKERS, ENDED, SLOTS = 0, 1, 2, 3, 4, 1024


class StreamDataset(IterableDataset[Any]):
    """A stream for a DataLoader: sharded over ranks and workers, resumed from one integer.

    Args:
        stream: any `Stream`.
        batch_size: samples of one rank in one step, for ready batches: use `DataLoader(..., batch_size=None)`.
            None gives single samples, for a DataLoader that batches. With worker processes only ready
            batches keep the order of the stream; single samples keep the set.
        start: samples that all ranks together consumed so far: where to go on, with any batch size, world
            size and number of workers.
        length: samples of an epoch; each epoch holds indices 0 to length - 1. If `start` lies inside an
            epoch, an iteration is the rest of it, until `set_epoch` names another. None is endless: every
            iteration begins at `start`, so keep one iterator for all of training.
        shard: rank and world size; None asks `Shard.detect` when iteration begins. Shard(0, 1) leaves the
            sharing to `accelerator.prepare`; else the DataLoader must not be given to it.
        fields: "pair" gives (images, labels); "dict" also "index" and "latents", a dict by name (its keys
            are "image" and "label" for a single sample); "batch" a `Batch` of tensors, or a `Sample`.
        transform: applied to the images: (B, 3, H, W) of a batch, (3, H, W) of a single sample.
        drop_last: an epoch leaves out a last step that is not full. Without it that step is clipped, and
            one rank may have a step more than another.

    A stream on a GPU renders in the main process (`num_workers=0`, no `pin_memory`), on a CUDA stream of
    its own, two chunks of batches ahead; batches are slices of theirs.

    Raises:
        InvalidValueError: a value out of its range, named.
        DeviceError: when iteration begins, a stream on a GPU in a worker process.
        ShardingError: when iteration begins, accelerate would take shares of this rank's share.

    Example:
        >>> from fractal_streams import StreamDataset, open_stream
        >>> from torch.utils.data import DataLoader
        >>> stream = open_stream("fractal-10", device="cpu", height=8, width=8)
        >>> images, labels = next(iter(DataLoader(StreamDataset(stream, batch_size=4), batch_size=None)))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([4, 3, 8, 8]), torch.uint8, torch.Size([4]))
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int | None = None,
        *,
        start: int = 0,
        length: int | None = None,
        shard: Shard | None = None,
        fields: Fields = "pair",
        transform: Transform | None = None,
        drop_last: bool = False,
    ) -> None:
        self.stream = checked_stream(stream)
        self.batch_size = None if batch_size is None else whole(batch_size, "batch_size", 1, 2**31 - 1, "samples")
        self.length = None if length is None else whole(length, "length", 1, INDEX_END - 1, "samples")
        if shard is not None and not isinstance(shard, Shard):
            raise InvalidValueError(f"shard must be a Shard(rank, world_size) or None, got {shard!r}")
        one_of(fields, "fields", FIELDS)
        self.shard = shard
        self.fields = fields
        self.transform = transform
        self.drop_last = bool(drop_last)
        self._digest = stream.digest()
        self._loaded: dict[str, int] | None = None
        self._course: Course | None = None
        self._step = 0
        self._parent: tuple[int, Shard] | None = None
        # Shared memory: persistent workers see `set_start` and `set_epoch`, new ones what the last ones ended.
        self._shared = torch.zeros(ENDED + SLOTS, dtype=torch.int64).share_memory_()
        self.set_start(start)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group to ask and no stack to see: its parent answers for it.
        refuse_resharding(self._here())
        parent = (os.getpid(), Shard.detect()) if self.shard is None else None
        return {**self.__dict__, "_parent": parent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared.share_memory_()

    def __len__(self) -> int:
        """Items that an iteration begun now gives on this rank, over all its workers.

        Raises:
            TypeError: the dataset is endless.
        """
        if self.length is None:
            raise TypeError("an endless StreamDataset has no len(): give it length=, or count steps instead of epochs")
        return self.course().count

    def __iter__(self) -> Iterator[Any]:
        refuse_worker(self.stream.device)
        refuse_resharding(self._here())
        worker, workers = self._reader()
        course, turn = replace(self.course(), stride=workers), int(self._shared[TURN])
        if self._loaded is None and self.length and course.base and self._shared[ENDED + worker % SLOTS] == turn:
            epoch = self._epoch(course)
            raise InvalidValueError(
                f"start={self.start} lies inside epoch {epoch} of {self.length} samples, whose rest was given out: "
                f"call dataset.set_epoch({epoch + 1}) before the next epoch, or set_epoch({epoch}) to repeat that rest"
            )
        self._step = (self._loaded or {}).get("step", worker)
        self._course, self._loaded = course, None
        self._shared[IN_WORKERS] = int(get_worker_info() is not None)
        return self._walk(course, worker, turn)

    @property
    def start(self) -> int:
        """Samples that all ranks together consumed before an iteration that begins now, unless `set_epoch` moved it."""
        return int(self._shared[START])

    @property
    def position(self) -> int:
        """Samples that all ranks together consumed, epoch * length of them before this epoch: the next `start`.

        Raises:
            InvalidValueError: worker processes iterate, and run ahead of the loop: see `position_after`.
        """
        if get_worker_info() is None and self._shared[IN_WORKERS]:
            raise InvalidValueError(
                "worker processes read this dataset and run ahead of the loop, so its position is not known here: "
                "count the batches received and ask dataset.position_after(count)"
            )
        return self._course.position(self._step) if self._course else self.course().position(0)

    def position_after(self, items: int) -> int:
        """Samples that all ranks together consumed after so many items of an iteration, whatever the workers.

        Args:
            items: batches (single samples if batch_size is None) that each rank received since an iteration
                of this dataset, as it was built and of the epoch it is in, began.

        Raises:
            InvalidValueError: more items than what is left of that epoch has.

        Example:
            >>> from fractal_streams import Shard, StreamDataset, open_stream
            >>> stream = open_stream("fractal-10", device="cpu")
            >>> StreamDataset(stream, 512, start=1024, shard=Shard(0, 8)).position_after(3)
            13312
        """
        course = self.course()
        unit = "received in one epoch, each counted by itself," if self.length else "received"
        return course.position(whole(items, "items", 0, course.total, unit))

    def set_start(self, start: int) -> None:
        """Makes the iterations to come begin at another `start`, and in its epoch, in persistent workers too."""
        self._shared[START] = whole(start, "start", 0, INDEX_END - 1, "samples consumed")
        self._turn_to(start // self.length if self.length else 0)

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch of the iterations to come, in persistent workers too.

        All epochs hold the same samples; the one that `start` lies in begins at `start`, others at index 0.
        An endless stream has one epoch, and nothing changes.
        """
        refuse_resharding(self._here())  # of accelerate's loaders the first call, before they start workers
        whole(epoch, "epoch", 0, INDEX_END - 1, "")
        if self.length is not None:
            loaded = self._loaded
            self._turn_to(epoch)
            self._loaded = loaded if loaded and loaded["epoch"] == epoch else None

    def _turn_to(self, epoch: int) -> None:
        self._shared[EPOCH] = epoch
        self._shared[TURN] += 1  # what a worker that still walks an older turn ends, ends nothing of this one
        self._course = self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        """Where iteration stands in this process, for torchdata's StatefulDataLoader.

        In the main process "position" is an integer that any batch size and world size can go on from.
        A worker process adds its own step, which needs the same workers, batch size and world size.
        """
        course, info = self._course or self.course(), get_worker_info()
        state = {"version": STATE_VERSION, "stream": self._digest, "length": self.length, "epoch": self._epoch(course)}
        if info is None:
            return {**state, "position": self.position}
        return {**state, "position": course.position(0), "step": self._step, **self._layout(course.shard)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on where `state_dict` stood.

        Raises:
            VersionError: made by a newer version of this package.
            InvalidValueError: of another stream or length; or a worker's, and the loader differs.
        """
        check_state(state, self._digest, self.length, needs=("epoch",))
        if "step" in state:
            for name, here in self._layout(self._here()).items():
                if state.get(name) != here:
                    raise InvalidValueError(
                        f"this state was saved with {name}={state.get(name)}, here {name}={here}: make the same "
                        f"loader, or StreamDataset(..., start=N) with N = dataset.position_after(batches received)"
                    )
        self._course = None
        self._loaded = {name: state[name] for name in ("position", "epoch", "step") if name in state}

    def _reader(self) -> tuple[int, int]:
        """Which of how many processes reads this rank's share."""
        info = get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)

    def _layout(self, shard: Shard) -> dict[str, int]:
        """What the steps of a worker process depend on."""
        info = get_worker_info()
        own = {"worker": info.id, "workers": info.num_workers} if info else {"worker": 0, "workers": 0}
        return {**own, "batch_size": self.batch_size or 0, "world_size": shard.world_size}

    def _here(self) -> Shard:
        """The shard given, else what the parent of this worker process found, else what is found here."""
        parent = multiprocessing.parent_process()
        if self.shard is None and self._parent and parent and parent.pid == self._parent[0]:
            return self._parent[1]
        return self.shard or Shard.detect()

    def course(self) -> Course:
        """The steps of an iteration that begins now, of all worker processes together."""
        course = Course(shard=self._here(), batch_size=self.batch_size or 1)
        position = self._loaded["position"] if self._loaded else self.start
        if self.length is None:
            return replace(course, base=position)
        origin = (self._loaded["epoch"] if self._loaded else int(self._shared[EPOCH])) * self.length
        # A state may stand at the very end of its epoch; a start there begins the next one.
        inside = 0 <= position - origin < self.length + bool(self._loaded)
        base = position - origin if inside else 0
        return replace(course, origin=origin, base=base, end=self.length, drop_last=self.drop_last)

    def _epoch(self, course: Course) -> int:
        return course.origin // self.length if self.length else 0

    def _walk(self, course: Course, worker: int, turn: int) -> Iterator[Any]:
        """The items of a course; what an item leaves behind is noted before it is handed out."""
        lane, size = self._lane(), self.batch_size
        jobs = self._jobs(course, lane is not None)
        chunks = ((job(), None) for job in jobs) if lane is None else ahead(jobs, lane)
        for (batch, steps), event in chunks:
            admitted = samples = None
            for place, step in enumerate(steps):
                # `is None` first: a torch stream says that it is not unequal to None
                if lane is not None and (admitted is None or lane.consumer() != admitted):
                    admitted = lane.consumer()
                    lane.admit(batch, event, admitted)
                self._step = step + course.stride
                if size is not None:
                    cut = slice(place * size, (place + 1) * size) if len(steps) > 1 else None
                    yield packed_batch(batch, cut, self.fields, self.transform)
                    continue
                samples = samples or self._samples(batch)
                yield self._packed(samples[place])
        # Ranks with a step less than others end at the same position.
        self._step = max(1, course.total)
        self._shared[ENDED + worker % SLOTS] = turn

    def _samples(self, batch: Batch) -> Sequence[Any]:
        """The samples of a block that was rendered together, before each is packed to be handed out."""
        return samples_of(batch)

    def _packed(self, sample: Any) -> Any:
        return packed_sample(sample, self.fields, self.transform)

    def _lane(self) -> Lane | None:
        return CudaLane(self.stream.device) if self.stream.device.startswith("cuda") else None

    def _jobs(self, course: Course, chunked: bool) -> Iterator[Callable[[], tuple[Batch, range]]]:
        """Renderings of runs of steps: one step to see how large a picture is, then as many as are worth it."""
        pixels = size = 0

        def render(steps: range) -> tuple[Batch, range]:
            nonlocal pixels, size
            batch = self.stream.generate(course.indices(steps))
            latents = {} if self.fields == "pair" else batch.latents
            batch = Batch(batch.index, batch.images, batch.labels, latents).torch()
            if not size:
                image, cost = batch.images[0], self.stream.cost
                pixels, size = cost * max(1, image.numel() // 3), cost * max(1, image.nbytes)
            return batch, steps

        step, number = self._step, 1
        while steps := course.steps(step, number):
            yield partial(render, steps)
            step = steps[-1] + course.stride
            if chunked:
                number = min(MAX_CHUNK, -(-LAUNCH_PIXELS // (pixels * course.batch_size)))
            elif self.batch_size is None:
                number = min(MAX_BLOCK, max(1, BLOCK_BYTES // size), 2 * number)


class IndexedStream(Dataset[Any]):
    """The first samples of a stream as a map-style dataset; `__getitems__` renders a batch in one call.

    Args:
        stream: any `Stream`.
        length: `len()` of the dataset. Above 10**7 it warns that `shuffle=True` lists all indices in memory.
        fields, transform: as in `StreamDataset`, of single samples.

    Raises:
        InvalidValueError: a value out of its range, named.
        IndexRangeError: on access, an index outside [0, length).

    Example:
        >>> from fractal_streams import IndexedStream, open_stream
        >>> dataset = IndexedStream(open_stream("fractal-10", device="cpu", height=8, width=8), length=1000)
        >>> image, label = dataset[7]
        >>> image.shape, type(label), len(dataset)
        (torch.Size([3, 8, 8]), <class 'int'>, 1000)
    """

    def __init__(
        self,
        stream: Stream,
        length: int = 50_000,
        *,
        fields: Fields = "pair",
        transform: Transform | None = None,
    ) -> None:
        self.stream = checked_stream(stream)
        self.length = whole(length, "length", 1, INDEX_END - 1, "samples")
        one_of(fields, "fields", FIELDS)
        self.fields = fields
        self.transform = transform
        if length > SHUFFLE_LIMIT:
            warnings.warn(
                f"shuffle=True or a DistributedSampler would list all {length} indices of this dataset in memory; "
                f"samples are independent, so pass shuffle=False, RandomSampler(dataset, replacement=True, "
                f"num_samples=n), or use StreamDataset",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of the indices, in their order; DataLoader asks for each batch so."""
        refuse_worker(self.stream.device)
        wanted = [whole(index, "index", -INDEX_END, INDEX_END, "") for index in indices]
        for index in wanted:
            if not 0 <= index < self.length:
                raise IndexRangeError(f"index must lie in [0, {self.length}), got {index}")
        samples = samples_of(self.stream.generate(wanted).torch())
        return [packed_sample(sample, self.fields, self.transform) for sample in samples]


def checked_stream(stream: object) -> Stream:
    """The stream; an `InvalidValueError` if it is none."""
    if not isinstance(stream, Stream):
        raise InvalidValueError(
            f"stream must be a Stream, got {type(stream).__name__}; open_stream(name) gives one of a preset"
        )
    return stream
