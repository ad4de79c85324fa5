"""What a source of stored pictures hands over: one undecoded picture at a time, in an order that never changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

PICTURE_ENDINGS = (
    "bmp", "gif", "jfif", "jpeg", "jpg", "jp2", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "tga", "webp",
)  # fmt: skip
VIDEO_ENDINGS = ("avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "webm", "wmv")
TAR_ENDINGS = ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


@dataclass(frozen=True)
class Entry:
    """One picture of a source.

    name: its path within the source, with "/" between folders. group: what is never torn apart by a
    split: the video of a frame, else the name.
    label: a class's number or name, or None where the source has no classes.
    payload: an encoded file as bytes or by its path, or the picture as a (H, W, 3) uint8 array.
    """

    name: str
    group: str
    label: int | str | None
    payload: bytes | Path | Any


@dataclass(frozen=True)
class Skipped:
    """What could not be read, and why."""

    name: str
    reason: str


class Source(Protocol):
    """A folder, an archive, a table or videos.

    kind: "folder", "zip", "tar", "dataset" or "video". title: what it is called in messages.
    ignored: files beside the pictures, known once `entries` is through.
    class_names: of the classes by number, where the source names them.
    """

    kind: str
    title: str
    ignored: int
    class_names: tuple[str, ...] | None

    @property
    def count(self) -> int | None:
        """Number of entries, where it is known without reading them."""

    def facts(self) -> list[list[Any]]:
        """What tells without decoding that a source is as it was: name, size and time of each file."""

    def entries(self) -> Iterator[Entry | Skipped]:
        """Every picture, and in its place what can't be read."""


def ending(name: str) -> str:
    """The ending in lower case, "tar.gz" of a packed tar.

    Example:
        >>> ending("a/b.JPG"), ending("shard-0.tar.gz"), ending("README")
        ('jpg', 'tar.gz', '')
    """
    found = PurePosixPath(name.lower()).suffixes
    if len(found) > 1 and "".join(found[-2:]).lstrip(".") in TAR_ENDINGS:
        return "".join(found[-2:]).lstrip(".")
    return found[-1].lstrip(".") if found else ""


def natural(name: str) -> tuple[Any, ...]:
    """A key that sorts numbers inside names by value, folder by folder.

    Example:
        >>> sorted(["b/1.png", "a10.png", "a9.png", "a/2.png"], key=natural)
        ['a/2.png', 'a9.png', 'a10.png', 'b/1.png']
    """
    parts = [re.split(r"([0-9]+)", part) for part in name.split("/")]
    numbered = tuple(tuple((int(word) if k % 2 else word) for k, word in enumerate(part)) for part in parts)
    return (numbered, name)


def is_hidden(name: str) -> bool:
    """Whether a file belongs to an operating system or an editor: any part of its path begins with a dot."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def folder_labels(names: Sequence[str]) -> list[str | None]:
    """The class that the first folder of each path names, behind the folders that all paths share.

    Paths without a folder of their own share one class, ".", if others have one; None of all if no path
    has one.

    Example:
        >>> folder_labels(["set/cat/1.png", "set/dog/a/2.png", "set/dog/3.png"])
        ['cat', 'dog', 'dog']
        >>> folder_labels(["1.png", "2.png"])
        [None, None]
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    shared = 0
    if len(set(folders)) > 1:
        while all(len(parts) > shared for parts in folders) and len({parts[: shared + 1] for parts in folders}) == 1:
            shared += 1
        return [parts[shared] if len(parts) > shared else "." for parts in folders]
    return [parts[-1] if parts else None for parts in folders]
