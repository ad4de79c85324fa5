"""A loader whose state is one integer, for loops and trainers that take any iterable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fractal_streams.errors import DeviceError, InvalidValueError, ShardingError, missing_extra
from fractal_streams.fields import Fields, Transform
from fractal_streams.reader_state import STATE_VERSION, check_state
from fractal_streams.shard import INDEX_END, Course, Shard
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import Stream
from fractal_streams.torch_data import StreamDataset
from fractal_streams.trainers import batches_read_ahead

try:
    from torch.utils.data import DataLoader
except ImportError:
    raise missing_extra("torch", "torch") from None

MAX_WORKERS = 1024
CONTEXTS = ("fork", "spawn", "forkserver")


class Loader:
    """Batches of a stream, sharded over ranks, with a position that outlives workers, batch and world size.

    An iteration begins at `position` and ends with its epoch; the next goes on with the next epoch. Leaving
    one early loses nothing: the next goes on behind the last batch that was handed out. It is no torch
    `DataLoader`, so that `accelerator.prepare` leaves it as it is; Lightning saves and restores its state.

    Args:
        source: any `Stream`; or a `StreamDataset`, which has the other settings of the data and is not to be
            read otherwise meanwhile.
        batch_size: samples of one rank in one step. None hands out single samples.
        workers: processes that render beside this one, 0 to 1024. The order is the stream's for any number.
            A stream on a GPU needs 0.
        start: samples that all ranks together consumed so far, as `position` told it.
        length: samples of an epoch, the same in each; None is endless.
        shard: rank and world size; None asks `Shard.detect` when iteration begins.
        fields, transform, drop_last: as of `StreamDataset`.
        persistent_workers: keep the processes from one iteration to the next.
        prefetch_factor: batches that each worker makes ahead; None means 2.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None is Python's own choice.
        pin_memory: hand out tensors in page-locked memory; not of a stream on a GPU.

    Raises:
        InvalidValueError: a value out of its range, named; or settings of the data beside a StreamDataset.
        DeviceError: workers or pinned memory for a stream on a GPU.

    Example:
        >>> from fractal_streams import open_stream
        >>> loader = Loader(open_stream("fractal-10", device="cpu", height=8, width=8), batch_size=4, length=10)
        >>> [len(labels) for images, labels in loader], len(loader), loader.position
        ([4, 4, 2], 3, 10)
        >>> loader.state_dict()["position"]
        10
    """

    def __init__(
        self,
        source: Stream | StreamDataset,
        batch_size: int | None = None,
        *,
        workers: int = 0,
        start: int = 0,
        length: int | None = None,
        shard: Shard | None = None,
        fields: Fields = "pair",
        transform: Transform | None = None,
        drop_last: bool = False,
        persistent_workers: bool = True,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        given = {
            "batch_size": batch_size, "start": start, "length": length, "shard": shard, "fields": fields,
            "transform": transform, "drop_last": drop_last,
        }  # fmt: skip
        self._dataset = _dataset(source, given)
        self.workers = whole(workers, "workers", 0, MAX_WORKERS, "processes")
        on_gpu = self._dataset.stream.device.startswith("cuda")
        if on_gpu and (workers or pin_memory):
            raise DeviceError(
                f"a stream on {self._dataset.stream.device} renders in the main process, ahead of the loop: use "
                f"workers=0 and pin_memory=False, got workers={workers}, pin_memory={pin_memory}; or open the stream "
                f"with device='cpu'"
            )
        if prefetch_factor is not None:
            whole(prefetch_factor, "prefetch_factor", 1, 2**31 - 1, "batches")
        if multiprocessing_context is not None:
            one_of(multiprocessing_context, "multiprocessing_context", CONTEXTS)
        processes = {
            "prefetch_factor": prefetch_factor, "multiprocessing_context": multiprocessing_context,
            "persistent_workers": persistent_workers,
        }  # fmt: skip
        self._settings: dict[str, Any] = {
            "num_workers": workers,
            "pin_memory": pin_memory,
            **(processes if workers else {}),
        }
        self._position = self._dataset.position
        self._torch_loader: DataLoader[Any] | None = None
        self._course: Course | None = None
        self._done, self._turn = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy goes on from the same place, with processes of its own.
        own = {"_position": self._next_start(), "_torch_loader": None, "_course": None, "_done": 0}
        return {**self.__dict__, **own}

    @property
    def stream(self) -> Stream:
        return self._dataset.stream

    @property
    def batch_size(self) -> int | None:
        return self._dataset.batch_size

    @property
    def length(self) -> int | None:
        return self._dataset.length

    @property
    def position(self) -> int:
        """Samples that all ranks together were handed out, epoch * length of them before this epoch."""
        return self._course.position(self._done) if self._course else self._position

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank; an iteration that begins inside one gives the rest of it.

        Raises:
            TypeError: the loader is endless.
        """
        if self.length is None:
            raise TypeError("an endless Loader has no len(): give it length=, or count steps instead of epochs")
        return replace(self._dataset.course(), base=0).count

    def __iter__(self) -> Iterator[Any]:
        self._position = self._next_start()
        self._dataset.set_start(self._position)
        self._course, self._done = self._dataset.course(), 0
        self._turn += 1
        if self._torch_loader is None:
            self._torch_loader = DataLoader(self._dataset, batch_size=None, **self._settings)
        return self._hand_out(iter(self._torch_loader), self._course, self._turn)

    @property
    def _iterator(self) -> Any:
        """The torch loader's, under the name by which Lightning's Trainer finds worker processes and ends them.

        Left to the cycle collector, each of them is waited for in vain for 5 s: its queue goes before it is told.
        """
        return None if self._torch_loader is None else self._torch_loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        if self._torch_loader is not None:
            self._torch_loader._iterator = iterator

    def _hand_out(self, items: Iterator[Any], course: Course, turn: int) -> Iterator[Any]:
        while True:
            if turn != self._turn:
                raise ShardingError(
                    "a later iteration, set_epoch or load_state_dict of this Loader has taken over from this iterator: "
                    "read the latest one, or make a Loader for each"
                )
            try:
                item = next(items)
            except StopIteration:
                # Ranks with a step less than others end at the same position.
                self._done = max(1, course.total)
                return
            self._done += 1
            yield item

    def _next_start(self) -> int:
        """Where an iteration begins now: behind a rank's last step of an epoch nothing is left for it."""
        if self._course and self._done >= self._course.count:
            return self._course.position(max(1, self._course.total))
        return self.position

    def _move(self, position: int) -> None:
        self._position, self._course, self._done = position, None, 0
        self._turn += 1

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, unless the position lies in it; of an endless loader nothing changes."""
        whole(epoch, "epoch", 0, INDEX_END // (self.length or 1) - 1, "")
        if self.length is not None and self._next_start() // self.length != epoch:
            self._move(epoch * self.length)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands, the same on all ranks.

        Returns:
            "version", "stream" (its digest), "length" and "position", all that another `Loader` needs, whatever
            its workers, batch size and world size. Batches that workers or Lightning's Trainer hold ready are
            not counted.
        """
        position = self.position
        if self._course and (unread := batches_read_ahead()):
            position = self._course.position(max(0, self._done - unread))
        return {
            "version": STATE_VERSION, "stream": self.stream.digest(), "length": self.length, "position": position,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on where `state_dict` stood.

        Raises:
            VersionError: made by a newer version of this package.
            InvalidValueError: of another stream or length, no state of a loader, or that of one worker process.
        """
        check_state(state, self.stream.digest(), self.length)
        if "step" in state:
            raise InvalidValueError(
                "this is the state of one worker process of a torchdata StatefulDataLoader, and tells no position of "
                "all: give Loader(..., start=N) the number of samples that all ranks together consumed"
            )
        self._move(whole(state["position"], "position of the state", 0, INDEX_END - 1, "samples consumed"))


def _dataset(source: Stream | StreamDataset, given: dict[str, Any]) -> StreamDataset:
    """The source itself if it is a dataset, else one of the stream with what is given."""
    if not isinstance(source, StreamDataset):
        return StreamDataset(source, **given)
    defaults = {"batch_size": None, "start": 0, "length": None, "shard": None, "fields": "pair", "transform": None}
    named = [name for name, value in given.items() if value != defaults.get(name, False)]
    if named:
        raise InvalidValueError(
            f"a StreamDataset has its own {', '.join(named)}: set them there, or give Loader its stream instead"
        )
    return source
