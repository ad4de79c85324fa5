"""Making packs: every picture of a source is decoded once and reduced once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from fractal_streams.errors import FractalStreamsError, InvalidValueError, MissingExtraError, PictureError, VersionError
from fractal_streams.spec import one_of
from fractal_streams.stored import packed
from fractal_streams.stored.entries import Entry, Skipped, Source, natural
from fractal_streams.stored.packed import Pack, PixelDigest, UInt8, contents_digest, read_facts
from fractal_streams.stored.picture import decoded
from fractal_streams.stored.settings import PackSettings, source_of

OnError = Literal["raise", "skip"]
MAX_THREADS = 32
LISTED = 5
"""Pictures that an error names before it only counts them."""


def pack(
    source: Any,
    folder: str | Path,
    *,
    on_error: OnError = "raise",
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Pack:
    """The pictures of a source, decoded and reduced once, in a folder; found there the next time.

    Args:
        source: a folder, zip, tar shards or videos by their paths, a `datasets.Dataset`, or "hub:PATH"; see
            `source_of`.
        folder: where `pixels.npy` and `pack.json` go: a new or empty one. It appears when it is complete.
        on_error: what a picture that can't be read or is too small does: "raise", or "skip", which leaves
            it out and lists it in `Pack.skipped` and `pack.json`.
        overwrite: replace a pack of another source or other settings.
        progress: a bar, if this is a terminal and tqdm is installed.
        settings: height and all else of `PackSettings`.

    A second call with the same settings and a source of the same names, sizes and times decodes nothing.

    Raises:
        PictureError: with on_error="raise", names the first picture that can't be used, and says why.
        InvalidValueError: a source without pictures, a setting out of its range, a folder of another pack.
        MissingExtraError: what reads this source is not installed.
        OSError: of the disk, such as a full one; nothing half-written is left.

    Example:
        >>> import io, tarfile, tempfile
        >>> folder, data = Path(tempfile.mkdtemp()), io.BytesIO()
        >>> np.save(data, np.zeros((40, 60, 3), np.uint8))
        >>> member = tarfile.TarInfo("cat/1.npy")
        >>> member.size = data.tell()
        >>> with tarfile.open(folder / "shard.tar", "w") as archive:
        ...     archive.addfile(member, io.BytesIO(data.getvalue()))
        >>> made = pack(folder / "shard.tar", folder / "pack", height=20)
        >>> made.picture(0).shape, made.classes, pack(folder / "shard.tar", folder / "pack", height=20).decoded
        ((20, 30, 3), ('cat',), 0)
    """
    one_of(on_error, "on_error", ("raise", "skip"))
    chosen = PackSettings.of(**settings)
    opened, folder = source_of(source, chosen), Path(folder).resolve()  # what a link names is replaced, not the link
    if (there := existing(folder, key := key_of(opened, chosen), chosen, overwrite)) is not None:
        return refuse_skipped(there, on_error)
    if opened.count == 0:
        raise InvalidValueError(f"no pictures in {opened.title}: it holds {opened.ignored} other files")
    try:
        done = placed_pack(folder, opened, chosen, key, on_error, overwrite, progress)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}, while this pack was written: nothing half-written is left; make room, or give "
            f"another folder",
            str(folder),
        ) from error
    made = Pack.open(folder)
    object.__setattr__(made, "decoded", done)
    return made


def placed_pack(
    folder: Path, source: Source, settings: PackSettings, key: str, on_error: OnError, overwrite: bool, progress: bool
) -> int:
    """Write a pack under a temporary name beside its folder and rename it; the number of pictures decoded."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        done = write_pack(temporary, source, settings, key, on_error, progress)
        temporary.chmod(0o755)
        put(temporary, folder, key, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def key_of(source: Source, settings: PackSettings) -> str:
    """Hexadecimal digits that name what a pack is made of, found without decoding."""
    told = json.dumps([packed.PACK_VERSION, source.kind, source.facts(), asdict(settings)])
    return hashlib.blake2s(told.encode(), digest_size=16).hexdigest()


def existing(folder: Path, key: str, settings: PackSettings, overwrite: bool) -> Pack | None:
    """The pack of this key in the folder; None if a new one may be written there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not (folder / packed.FACTS).exists():
        raise InvalidValueError(f"{folder} is not empty and holds no pack: give a new folder")
    try:
        facts = read_facts(folder)
        if facts["key"] == key:
            return Pack.open(folder)
    except (VersionError, InvalidValueError, KeyError):
        if overwrite:
            return None
        raise
    if overwrite:
        return None
    was, now, made = facts["settings"], asdict(settings), facts["source"]["title"]
    changed = [f"{name}={was.get(name)!r} there, {now[name]!r} asked" for name in now if was.get(name) != now[name]]
    how = f"other settings ({', '.join(changed)})" if changed else "another source (names, sizes or times)"
    raise InvalidValueError(f"{folder} holds a pack of {made} with {how}: give another folder, or overwrite=True")


def refuse_skipped(found: Pack, on_error: OnError) -> Pack:
    """The pack; with "raise" a `PictureError` if pictures were left out when it was made."""
    if found.skipped and on_error == "raise":
        named = "; ".join(f"{each.name}: {each.reason}" for each in found.skipped[:LISTED])
        more = f"; and {len(found.skipped) - LISTED} more" if len(found.skipped) > LISTED else ""
        raise PictureError(
            f"the pack in {found.folder} was made without {len(found.skipped)} of {len(found.skipped) + len(found)} "
            f"pictures ({named}{more}): mend them, or pass on_error='skip' to do without"
        )
    return found


def write_pack(
    folder: Path, source: Source, settings: PackSettings, key: str, on_error: OnError, progress: bool
) -> int:
    """Write both files of a pack; how many pictures were decoded."""
    names: list[str] = []
    groups: list[str] = []
    sizes: list[tuple[int, int]] = []
    labels: list[Any] = []
    skipped: list[Skipped] = []
    titles: set[Any] = set()
    digest, total, read, last = PixelDigest(), 0, 0, None
    with (folder / packed.PIXELS).open("wb") as file:
        file.write(header(0))
        for entry, picture in bar(fitted(source, settings), source, progress):
            read += isinstance(picture, np.ndarray)
            if isinstance(entry, Entry):
                titles.add(entry.label if settings.label == "auto" else None)
            if isinstance(picture, Skipped):
                skipped.append(refused(picture, source, len(names) + len(skipped), on_error))
                continue
            if names and groups[-1] == entry.group and small_change(last, picture, settings.minimum_change):
                continue
            file.write(picture.data)
            digest.add(picture)
            names.append(entry.name)
            groups.append(entry.group)
            sizes.append(picture.shape[:2])
            labels.append(entry.label if settings.label == "auto" else None)
            total += sizes[-1][0] * sizes[-1][1]
            last = picture
        finish(file, total)
    check_count(source, names, skipped)
    classes, numbers = numbered(labels, titles, source)
    facts = {
        "pack_version": packed.PACK_VERSION, "key": key, "settings": asdict(settings),
        "source": {"kind": source.kind, "title": source.title, "ignored": source.ignored},
        "digest": contents_digest(digest.digest(), names, groups, numbers, classes),
        "classes": classes, "skipped": [asdict(each) for each in skipped],
        "pictures": {
            "names": names, "groups": None if groups == names else groups, "labels": numbers,
            "heights": [height for height, _ in sizes], "widths": [width for _, width in sizes],
        },
    }  # fmt: skip
    (folder / packed.FACTS).write_text(json.dumps(facts, indent=None, separators=(",", ":")))
    return read


def fitted(source: Source, settings: PackSettings) -> Iterator[tuple[Any, Any]]:
    """(entry, picture at its size) in the source's order; (what, why) of what can't be used. Decodes on all cores."""

    def work(entry: Entry) -> UInt8 | Skipped:
        try:
            return settings.size.fit(decoded(entry.payload))
        except (MemoryError, MissingExtraError):
            raise
        except Exception as error:  # decoders raise nearly anything over a damaged file
            kind, words = type(error).__name__, str(error)
            return Skipped(
                entry.name, words if words and isinstance(error, ValueError | OSError) else f"{kind}: {words}"
            )

    threads = 1 if multiprocessing.parent_process() else min(MAX_THREADS, available_cores())
    waiting: deque[tuple[Entry | Skipped, Future[Any] | None]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="fractal-streams-pack") as workers:
        for entry in source.entries():
            waiting.append((entry, workers.submit(work, entry) if isinstance(entry, Entry) else None))
            if len(waiting) > 2 * threads:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())


def finished(entry: Entry | Skipped, future: Future[Any] | None) -> tuple[Any, Any]:
    """An entry and what became of it."""
    return entry, future.result() if future is not None else entry


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refused(what: Skipped, source: Source, before: int, on_error: OnError) -> Skipped:
    """What is left out; with "raise" a `PictureError` that names it."""
    if on_error == "skip":
        return what
    of = f" of {source.count}" if source.count else ""
    raise PictureError(
        f"picture {before + 1}{of} in {source.title}, {what.name}, can't be used ({what.reason}): mend or remove it, "
        f"or pass on_error='skip', which leaves such pictures out and lists them"
    )


def small_change(last: Any, picture: UInt8, least: float) -> bool:
    """Whether a frame, as it would be kept, differs from the last kept one by less than `least` levels on average."""
    if not least or last is None or last.shape != picture.shape:
        return False
    return float(np.abs(picture.astype(np.int16) - last).mean()) < least


def check_count(source: Source, names: list[str], skipped: list[Skipped]) -> None:
    """Refuse a pack of no pictures, and one of more than can be numbered."""
    if not names:
        why = f"; the first of them, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise InvalidValueError(
            f"no pictures in {source.title}: {len(skipped)} can't be used, {source.ignored} are other files{why}"
        )
    if len(names) > packed.MAX_PICTURES:
        raise InvalidValueError(f"a pack holds at most {packed.MAX_PICTURES} pictures, {source.title} has {len(names)}")


def numbered(labels: list[Any], titles: set[Any], source: Source) -> tuple[list[str], list[int]]:
    """The title of each class and the class of each picture."""
    found = titles - {None}
    if not found:
        return [Path(source.title).stem], [0] * len(labels)
    if None in titles or len({type(label) for label in found}) > 1:
        raise InvalidValueError(
            f"{source.title}: some pictures have a class ({next(iter(found))!r}) and others none, or one of another "
            f"kind: give all one, or pack with label='none'"
        )
    if isinstance(next(iter(found)), str):
        classes = sorted(found, key=natural)
        places = {title: number for number, title in enumerate(classes)}
        return classes, [places[label] for label in labels]
    low, high, known = min(found), max(found), source.class_names
    last = (len(known) if known else packed.MAX_PICTURES) - 1
    if low < 0 or high > last:
        raise InvalidValueError(
            f"{source.title}: classes are numbered from 0 to {last}, found {low if low < 0 else high}; pack with "
            f"label='none' to do without"
        )
    return list(known or (f"class {label}" for label in range(high + 1))), [int(label) for label in labels]


def put(temporary: Path, folder: Path, key: str, overwrite: bool) -> None:
    """Rename a complete pack to its place, where another process may have been faster with the same one."""
    if overwrite and folder.exists():
        aside = Path(f"{temporary}.old")
        os.replace(folder, aside)
        os.replace(temporary, folder)
        shutil.rmtree(aside)
        return
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty one
    try:
        os.replace(temporary, folder)
    except OSError as error:
        same = False
        with contextlib.suppress(FractalStreamsError, KeyError):
            same = read_facts(folder)["key"] == key
        if not same and folder.exists():
            raise InvalidValueError(f"{folder} was filled by another process meanwhile: give another folder") from error
        if not same:
            raise


def header(pixels: int) -> bytes:
    """The header of `pixels.npy`: as long for any number of pixels, so that it is mended when all are written."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "|u1", "fortran_order": False, "shape": (pixels, 3)})
    return text.getvalue()


def finish(file: IO[bytes], pixels: int) -> None:
    """Write the number of pixels into the header, and everything to the disk."""
    whole_header = header(pixels)
    assert len(whole_header) == len(header(0))
    file.seek(0)
    file.write(whole_header)
    file.flush()
    os.fsync(file.fileno())


def bar(items: Iterator[Any], source: Source, progress: bool) -> Iterator[Any]:
    """The items behind a progress bar, where there is a terminal and tqdm."""
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return items
    shown: Callable[..., Any] = tqdm
    return iter(shown(items, f"packing {source.title}", total=source.count, unit="picture", leave=False,
                      disable=None if progress else True))  # fmt: skip
