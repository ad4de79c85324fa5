"""Ray: a stream as a Ray dataset, and an export that a cluster writes.

    ray.data.read_datasource(FractalDatasource("fractal-10", num=1_000_000), override_num_blocks=200)
    ray_export("fractal-10", "/shared/fractals", format="webdataset", num=1_000_000)

Both start Ray on this machine if it has not been started, quietly; call `ray.init` before to use a cluster.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.integrations.containers.samples import checked_uint8
from fractal_streams.integrations.export import ExportReport, Job, Num, carried_out, planned, write_piece
from fractal_streams.integrations.export_formats import block_samples, intervals
from fractal_streams.integrations.manifest import Piece, Record

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.presets import open_stream
from fractal_streams.spec import whole
from fractal_streams.stream import MAX_INDEX, Stream

try:
    import ray
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool
except ImportError as error:
    raise missing_extra(error.name or "ray", "ray") from error

__all__ = ["FractalDatasource", "ray_export"]

RESTARTS = 3
"""Times that a writer which dies is started again; what it had written is kept."""


class FractalDatasource(Datasource):
    """Samples [start, start + num) of a stream as rows of "image" (uint8 tensor), "label" and "index" (int64).

    Args:
        source: a stream, or what `open_stream` opens; the workers open it, so device="cuda" needs no GPU here.
        num: samples; a Ray dataset has an end.
        start: index of the first.
        settings: of `open_stream`: seed, split, device, height, ...

    Raises:
        InvalidValueError, UnknownNameError: names the argument, the value and what is allowed.

    Example:
        >>> tasks = FractalDatasource("fractal-10", num=1000, device="cpu").get_read_tasks(4)
        >>> [task.metadata.num_rows for task in tasks]
        [250, 250, 250, 250]
    """

    def __init__(self, source: Any, num: int, *, start: int = 0, **settings: Any) -> None:
        super().__init__()
        if isinstance(source, Stream) and settings:
            raise InvalidValueError(f"{', '.join(settings)}: of a stream that is open already: open it so")
        self.source, self.settings = source, settings
        self.start = whole(start, "start", 0, MAX_INDEX, "")
        self.num = whole(num, "num", 1, MAX_INDEX + 1 - self.start, "samples")
        stream = checked_uint8(described(source, settings))
        self.shape = tuple(stream.generate(range(0)).images.shape[1:])

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows."""
        return self.num * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) + 16

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each of `parallelism` intervals of the samples, fewer if there are fewer samples."""
        limit = {} if per_task_row_limit is None else {"per_task_row_limit": per_task_row_limit}
        number = np.zeros(1, np.int64)
        one = {"image": np.zeros((1, *self.shape), np.uint8), "label": number, "index": number}
        schema, tasks = BlockAccessor.for_block(BlockAccessor.batch_to_block(one)).schema(), []
        for interval in intervals(self.num, min(max(1, parallelism), self.num)):
            indices = range(self.start + interval.start, self.start + interval.stop)
            metadata = BlockMetadata(
                num_rows=len(indices), size_bytes=len(indices) * self.row_bytes, input_files=None, exec_stats=None
            )
            tasks.append(ReadTask(partial(read, self.source, self.settings, indices), metadata, schema, **limit))
        return tasks


def read(source: Any, settings: dict[str, Any], indices: range) -> Iterator[Any]:
    """The samples of the indices as Arrow blocks; runs in a worker."""
    stream = opened(source, settings)
    rows = block_samples(stream)
    for first in range(0, len(indices), rows):
        batch = stream.generate(indices[first : first + rows]).numpy()
        yield BlockAccessor.batch_to_block({"image": batch.images, "label": batch.labels, "index": batch.index})


def ray_export(
    source: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "imagefolder",
    num: Num | None = None,
    shards: Num | None = None,
    image: str = "png",
    writers: int | None = None,
    num_cpus: int = 1,
    num_gpus: float = 0,
    verify: bool = True,
    progress: bool = True,
    **settings: Any,
) -> ExportReport:
    """`export`, its shards written by the workers of a Ray cluster; the folder comes out the same byte for byte.

    Args:
        source, format, num, shards, image, verify, progress, settings: as of `export`.
        folder: on a file system that all workers share.
        writers: actors; None takes as many as the cluster's CPUs and GPUs hold, which is the most, and at most one
            for a shard.
        num_cpus, num_gpus: of each actor; it renders with that many threads, and makes files with as many.

    Raises:
        What `export` raises, and the errors of Ray.

    Example:
        >>> report = ray_export("fractal-10", "fractals", format="webdataset", num=10**6)  # doctest: +SKIP
    """
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    cpus = whole(num_cpus, "num_cpus", 1, 1024, "CPUs of a writer")
    asked: dict[str, Any] = {"format": format, "num": num, "shards": shards, "image": image}
    here = {**settings, "device": "cpu"} if "device" in settings else settings  # a driver needs no GPU
    root = Path(folder).resolve()
    job = planned(source, root, **asked, **here)

    def write(left: Sequence[Piece], tell: Callable[[int], Any]) -> Iterator[Record]:
        count = number_of_writers(writers, cpus, num_gpus, len(left))
        actor = ray.remote(num_cpus=cpus, num_gpus=num_gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Writer)
        pool: Any = ActorPool([actor.remote(source, str(root), asked, settings, cpus) for _ in range(count)])
        try:
            for record in pool.map_unordered(lambda writer, piece: writer.write.remote(piece), left):
                tell(record.count)
                yield record
        except RayTaskError as error:  # what went wrong over there, as it would have been here
            raise error.cause from error

    return carried_out(job, job.pieces, write, verify=verify, progress=progress)


class Writer:
    """An actor that holds the streams of an export open, and writes the pieces that it is given."""

    def __init__(self, source: Any, folder: str, asked: dict[str, Any], settings: dict[str, Any], threads: int) -> None:
        os.environ["NUMBA_NUM_THREADS"] = str(threads)  # the other cores belong to other actors
        self.threads = threads
        self.job: Job = planned(source, folder, **asked, **settings)

    def write(self, piece: Piece) -> Record:
        """Write a piece into its place."""
        return write_piece(self.job, piece, self.threads, lambda count: None)


def number_of_writers(asked: int | None, cpus: int, gpus: float, pieces: int) -> int:
    """As many as the cluster holds, and no more than there are pieces; one without room would wait for ever."""
    wanted = None if asked is None else min(whole(asked, "writers", 1, 2**20, "actors"), max(1, pieces))
    there = ray.cluster_resources()
    room = int(there.get("CPU", 1) // cpus)
    if gpus:
        room = min(room, int(there.get("GPU", 0) // gpus))
    if room < (wanted or 1):
        raise InvalidValueError(
            f"writers={wanted or 1} of num_cpus={cpus}, num_gpus={gpus} each, and this cluster of "
            f"{there.get('CPU', 0)} CPUs and {there.get('GPU', 0)} GPUs has room for {room}: ask for less"
        )
    return wanted or min(room, max(1, pieces))


def opened(source: Any, settings: dict[str, Any]) -> Stream:
    """The stream, as it is where it will render."""
    return source if isinstance(source, Stream) else open_stream(source, **settings)


def described(source: Any, settings: dict[str, Any]) -> Stream:
    """The stream, as it can be opened where no GPU is."""
    return opened(source, {**settings, "device": "cpu"} if "device" in settings else settings)
