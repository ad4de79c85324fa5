"""The first samples of streams written to a folder, in the format that another program reads.

    from fractal_streams.integrations.export import export
    export("fractal-10", "fractals", format="webdataset", num={"train": 50_000, "test": 10_000}, seed=1)

An export may be killed at any moment and run again; it goes on where it stood. Any number of ranks may write one
folder, each its own shards, on one machine or on many that share it. The folder comes out byte for byte the same
however it was cut, interrupted or ordered, by one version of this package and of the libraries that compress. The
last rank to end completes it; if a rank died, any later run does, for example one with world=1.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from fractal_streams.integrations.containers.samples import checked_uint8
from fractal_streams.integrations.export_formats import Format
from fractal_streams.integrations.manifest import ATTEMPTS, MANIFEST_VERSION, ExportFolder, Piece, Record

import fractal_streams
from fractal_streams.errors import InvalidValueError, missing_extra, unknown_name
from fractal_streams.presets import open_stream
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import SPLITS, Stream

FORMATS = {
    "imagefolder": "export_formats.ImageFolder",
    "webdataset": "export_formats.WebDataset",
    "parquet": "export_tables.Parquet",
    "arrow": "export_tables.Arrow",
    "cifar10": "cifar_files.Cifar10",
    "npz": "export_formats.Npz",
    "hub": "export_tables.Hub",
}
"""Where each format is."""

CIFAR_NUM = {"train": 50_000, "test": 10_000}
SMALL_SHARD, LARGE_SHARD, MANY_SHARDS = 2**25, 2**28, 64
"""Bytes of pixels in a shard where there are few shards and where there are many, and how many are many."""
MOST_WORKERS = 8
"""Threads that a process starts by itself: making the bytes of small pictures keeps four or five cores busy."""

Num = int | Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What a run of an export did on its rank.

    written, kept: its shards that it wrote, and that it found whole. repaired: of those written, how many had been
        there and were damaged. missing: shards that no rank has written yet; 0 if the folder is complete.
    images, bytes: of what it wrote. seconds: that it took. url: of the repository it was uploaded to.
    """

    folder: str
    format: str
    written: int
    kept: int
    repaired: int
    missing: int
    images: int
    bytes: int
    seconds: float
    url: str = ""

    @property
    def complete(self) -> bool:
        """Whether every shard of every rank is there, and the manifest."""
        return self.missing == 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """An export that has been checked: its format with its streams, its folder, and all its pieces in order."""

    made: Format
    place: ExportFolder
    pieces: Sequence[Piece]


def export(
    source: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "imagefolder",
    num: Num | None = None,
    shards: Num | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    image: str = "png",
    verify: bool = True,
    progress: bool = True,
    repo: str | None = None,
    **settings: Any,
) -> ExportReport:
    """Write the first samples of one or several splits to a folder.

    Args:
        source: what `open_stream` opens, one stream, or streams by split.
        folder: new, empty, or holding this same export.
        format: "imagefolder", "webdataset", "parquet", "arrow", "cifar10", "npz", or "hub", which is Parquet with a
            dataset card.
        num: samples of the stream's split, or of each split: {"train": 50_000, "test": 10_000}.
        shards: files of each split, or of each split by name; None makes them of 32 MiB of pixels, and of up to
            256 MiB where that would be more than 64. A shard is what is lost when a run is killed.
        rank, world: this process writes every world-th shard, from shard number `rank` on.
        workers: threads; None is a thread for each core, at most 8. More processes are more ranks.
        image: "png" (compressed), "bmp" (large and fast), or "npy" where a format has it; clips are npy.
        verify: compare the SHA-256 of every shard that is there; else its length only.
        progress: show a bar where there is a terminal and tqdm.
        repo: of format "hub": upload the complete folder to this dataset repository.
        settings: of `open_stream`, where it opens the source: seed, split, device, height, ...

    Raises:
        InvalidValueError, UnknownNameError: names the argument, the value and what is allowed; or the folder holds
            other things, or an export that differs, and where.
        VersionError: the folder was begun by another version, or what is damaged can't be made again as it was.
        OSError: of the disk, such as a full one; nothing half-written is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export("fractal-10", folder, format="npz", num=100, device="cpu")
        >>> report.written, report.images, report.complete
        (1, 100, True)
    """
    Shard(rank, world)  # refuses what is no rank of a world
    check_upload(repo, format, world)
    threads = min(cores(), MOST_WORKERS) if workers is None else whole(workers, "workers", 1, 1024, "threads")
    job = planned(source, folder, format=format, num=num, shards=shards, image=image, **settings)

    def write(left: Sequence[Piece], tell: Callable[[int], Any]) -> Iterator[Record]:
        return (write_piece(job, piece, threads, tell) for piece in left)

    report = carried_out(job, job.pieces[rank::world], write, verify=verify, progress=progress)
    return report if repo is None else replace(report, url=upload(job.place.root, repo))


Write = Callable[[Sequence[Piece], Callable[[int], Any]], Iterator[Record]]


def carried_out(job: Job, own: Sequence[Piece], write: Write, *, verify: bool, progress: bool) -> ExportReport:
    """Write those of some pieces that are not there, and complete the folder if nothing is missing then.

    Args:
        write: gives the record of each piece that it has written, and tells how many samples are done.
    """
    began = time.perf_counter()
    job.place.begin()
    found, damaged = found_whole(job, own, verify, progress)
    left = [piece for piece in own if piece.name not in found]
    kept = sum(piece.count for piece in own if piece.name in found)
    with bar(sum(piece.count for piece in own), kept, f"export {job.place.plan['format']}", progress) as tell:
        written = list(write(left, tell))
    return ExportReport(
        folder=str(job.place.root), format=job.place.plan["format"], written=len(written), kept=len(found),
        repaired=damaged, missing=complete(job), images=sum(record.count for record in written),
        bytes=sum(record.bytes for record in written), seconds=time.perf_counter() - began,
    )  # fmt: skip


def planned(
    source: Any, folder: str | os.PathLike[str], *, format: str, num: Num | None, shards: Num | None, image: str,
    **settings: Any,
) -> Job:  # fmt: skip
    """The export that these arguments of `export` ask for, checked; nothing is written yet."""
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format == "cifar10":
        num = CIFAR_NUM if num is None or num == {} else num
        if shards is not None:
            raise InvalidValueError(f"format='cifar10' has its own files: leave out shards={shards!r}")
    if num is None or num == {}:
        raise InvalidValueError("num: say how many samples, or how many of each split: num={'train': 50000}")
    streams, counts = opened(source, num, settings)
    size = check_alike(streams)
    pieces_of = {}
    for split, count in counts.items():
        asked = shards.get(split) if isinstance(shards, Mapping) else shards
        small, large = -(-count * size // SMALL_SHARD), -(-count * size // LARGE_SHARD)
        default = min(count, max(min(MANY_SHARDS, small), large))
        pieces_of[split] = default if asked is None else whole(asked, f"shards of {split}", 1, count, "files")
    for split in shards if isinstance(shards, Mapping) else ():
        if split not in counts:
            raise unknown_name("split in shards", split, counts)
    module, _, name = FORMATS[format].rpartition(".")
    kind = find_format(module, name)
    made: Format = kind(streams=streams, num=counts, shards=pieces_of, image=image)
    plan = {
        "manifest_version": MANIFEST_VERSION,
        "package": f"fractal-streams {fractal_streams.__version__}",
        "format": format,
        "image": made.form,
        "num": dict(counts),
        "num_shards": {} if format == "cifar10" else pieces_of,
        "shape": list(made.stream.generate(range(0)).images.shape[1:]),
        "streams": {split: stream.describe() for split, stream in streams.items()},
    }
    return Job(made=made, place=ExportFolder(folder, plan), pieces=tuple(made.pieces()))


def find_format(module: str, name: str) -> Any:
    """The class of a format."""
    try:
        return getattr(importlib.import_module(f"fractal_streams.integrations.{module}"), name)
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "filesystem") from None


def opened(source: Any, num: Num, settings: dict[str, Any]) -> tuple[dict[str, Stream], dict[str, int]]:
    """The stream of each split, and how many of its samples are written."""
    given = source if isinstance(source, Mapping) else {source.split: source} if isinstance(source, Stream) else None
    if given is not None and settings:
        raise InvalidValueError(
            f"{', '.join(settings)}: of a stream that is open already: open it so, or give its name"
        )
    if isinstance(num, Mapping):
        if "split" in settings:
            raise InvalidValueError(f"num={dict(num)} says the splits: leave out split={settings['split']!r}")
        counts = dict(num)
    else:
        counts = dict.fromkeys(given or [settings.pop("split", "train")], num)
    for split, count in counts.items():
        one_of(split, "a split of num", SPLITS)
        counts[split] = whole(count, f"num of {split}", 1, 2**62, "samples")
    if given is None:
        return {split: checked_uint8(open_stream(source, split=split, **settings)) for split in counts}, counts
    if set(given) != set(counts):
        raise InvalidValueError(
            f"num names the splits {', '.join(counts)}, and there are streams of {', '.join(map(str, given))}: give a "
            f"stream for each split, {{'train': stream, 'test': stream}}, or the name of a source"
        )
    for split, stream in given.items():
        if checked_uint8(stream).split != split:
            raise InvalidValueError(f"the stream given for {split!r} is of split {stream.split!r}")
    return {split: given[split] for split in counts}, counts


def check_alike(streams: Mapping[str, Stream]) -> int:
    """The bytes of pixels in a sample; an `InvalidValueError` if splits differ in shape or classes."""
    told = {
        split: (stream.generate(range(0)).images.shape[1:], stream.num_classes) for split, stream in streams.items()
    }
    if len(set(told.values())) != 1:
        raise InvalidValueError(
            "the splits of an export have pictures of one shape and the same classes, got "
            + ", ".join(f"{split}: {shape}, {classes} classes" for split, (shape, classes) in told.items())
        )
    size = 1
    for edge in next(iter(told.values()))[0]:
        size *= edge
    return size


def found_whole(job: Job, pieces: Sequence[Piece], verify: bool, progress: bool) -> tuple[set[str], int]:
    """The pieces that are there as recorded, and the number of those that are recorded and damaged."""
    records = job.place.records()
    held = [piece for piece in pieces if piece.name in records]
    found: set[str] = set()
    with bar(sum(piece.count for piece in held), 0, "verify", progress and bool(held)) as tell:
        for piece in held:
            if job.place.intact(records[piece.name], job.made.files(piece), verify):
                found.add(piece.name)
            tell(piece.count)
    return found, len(held) - len(found)


def write_piece(job: Job, piece: Piece, workers: int, tell: Callable[[int], Any]) -> Record:
    """Make a piece and put it in its place; the one way in which samples get into a folder.

    Args:
        workers: threads that make its blocks.
        tell: called with the number of samples of each block that is made.
    """
    for attempt in range(ATTEMPTS):
        try:
            with job.place.writing(piece) as path, contextlib.closing(blocks(job.made, piece, workers, tell)) as made:
                job.made.write(path, piece, made)
                return job.place.commit(piece, path, job.made.files(piece))
        except FileNotFoundError:  # another run made this piece too, and cleared up behind itself
            record = job.place.records().get(piece.name)
            if record is not None and job.place.intact(record, job.made.files(piece), True):
                return record
            if attempt + 1 == ATTEMPTS:
                raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error}, while {piece.name} was written: nothing half-written is left, and the "
                f"same export goes on from here",
                str(job.place.root),
            ) from error
    raise AssertionError("unreachable")


def blocks(made: Format, piece: Piece, workers: int, tell: Callable[[int], Any]) -> Generator[Any, None, None]:
    """The encoded blocks of a piece, in order; the threads work ahead by a few."""
    stream, lock = made.streams[piece.split], Lock()

    def block(indices: range) -> tuple[Any, int]:
        # A GPU renders one block at a time; a CPU as many as there are threads.
        with lock if stream.device != "cpu" else contextlib.nullcontext():
            batch = stream.generate(indices).numpy()
        return made.encode(piece, batch), len(indices)

    pending: deque[Future[tuple[Any, int]]] = deque()
    starts = iter(range(0, piece.count, made.rows))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fractal-streams-export")
    try:
        while True:
            for start in starts:
                pending.append(pool.submit(block, piece.indices[start : start + made.rows]))
                if len(pending) > workers + 1:
                    break
            if not pending:
                return
            encoded, count = pending.popleft().result()
            yield encoded
            tell(count)
    finally:
        pool.shutdown(cancel_futures=True)


def complete(job: Job) -> int:
    """Complete the folder if every shard of every rank is recorded; the number of those that are not."""
    records = job.place.records()
    missing = sum(piece.name not in records for piece in job.pieces)
    if missing:
        return missing
    ordered = {piece.name: records[piece.name] for piece in job.pieces}
    return job.place.finish(job.pieces, job.made.closing(ordered), job.made.folders())


def check_upload(repo: str | None, format: str, world: int) -> None:
    """Refuse to upload what is not a complete folder of format "hub"."""
    if repo is not None and (format != "hub" or world != 1):
        raise InvalidValueError(
            f"repo={repo!r} uploads a folder of format 'hub' that is complete, got format={format!r}, world={world}: "
            f"export with all ranks first, then run once more with world=1 and repo="
        )


def upload(folder: Path, repo: str) -> str:
    """Upload a complete folder of format "hub" to a dataset repository, made if there is none; its address."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise missing_extra("huggingface-hub", "huggingface") from None
    api = HfApi()
    made = api.create_repo(repo, repo_type="dataset", exist_ok=True)
    api.upload_folder(
        repo_id=repo, repo_type="dataset", folder_path=str(folder), commit_message="Pictures by fractal-streams"
    )
    return str(made)


@contextlib.contextmanager
def bar(total: int, done: int, what: str, show: bool) -> Iterator[Callable[[int], Any]]:
    """A progress bar of samples, to be told of each number done; none without a terminal or without tqdm."""
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        show = False
    if not show:
        yield lambda count: None
        return
    with tqdm(total=total, initial=done, desc=what, unit=" images", unit_scale=True, disable=None) as shown:
        yield shown.update


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
