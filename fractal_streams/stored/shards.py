"""webdataset shards: tar archives whose members of one key are one sample.

KEY.png (or another picture, or .npy: an (H, W, 3) or (3, H, W) picture, or a clip of (T, 3, H, W)) is the
picture; KEY.cls its class's number; KEY.json may hold "label" and "class". Without either, the folder
that the key lies in is the class.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fractal_streams.stored.entries import PICTURE_ENDINGS, Entry, Skipped, folder_labels, is_hidden, natural
from fractal_streams.stored.files import file_facts

ARRAY = "npy"
WANTED = (*PICTURE_ENDINGS, ARRAY, "cls", "json")
Member = tuple[str | None, str, bytes | None]


class Shards:
    """The samples of tar archives, the archives by name and the samples as they lie in them; see `Source`."""

    kind = "tar"
    count = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[Path], *, labelled: bool = True) -> None:
        self.paths = sorted(paths, key=lambda path: natural(path.as_posix()))
        self.title = self.paths[0].name if len(self.paths) == 1 else f"{len(self.paths)} shards"
        self.ignored, self.labelled = 0, labelled

    def facts(self) -> list[list[Any]]:
        """Name, bytes and time of last change of each archive."""
        return [file_facts(path, path.name) for path in self.paths]

    def entries(self) -> Iterator[Entry | Skipped]:
        """Each sample's picture; of a clip each frame."""
        self.ignored = 0
        for path in self.paths:
            for key, members in groupby(self._members(path), key=lambda member: member[0]):
                if key is None:
                    yield Skipped(path.name, next(members)[1])
                else:
                    yield from self._sample(path.name, key, [(kind, data) for _, kind, data in members])

    def _members(self, path: Path) -> Iterator[Member]:
        """Key, ending and, where it is needed, content of each file; at last the reason why no more can be read."""
        name = "its first member"
        try:
            with tarfile.open(path, mode="r:*") as archive:
                for member in archive:
                    name = member.name
                    if not (member.isfile() or member.islnk() or member.issym()) or is_hidden(name):
                        continue
                    folder, _, file = name.rpartition("/")
                    stem, _, kind = file.lower().partition(".")
                    stem = file[: len(stem)]
                    data = content(archive, member) if kind in WANTED else None
                    yield f"{folder}/{stem}" if folder else stem, kind, data
                if archive.fileobj is not None:
                    archive.fileobj.seek(archive.offset)
                    if not archive.fileobj.read(1):  # tarfile takes this for a whole archive
                        yield None, f"cut short behind {name}: the mark that ends a tar archive is missing", None
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            yield None, f"no tar archive, or one cut short, at {name}: {error}", None

    def _sample(self, shard: str, key: str, given: list[tuple[str, Any]]) -> Iterator[Entry | Skipped]:
        members = dict(given)
        for kind in filter(WANTED.__contains__, members):
            if sum(each == kind for each, _ in given) > 1:
                yield Skipped(f"{shard}/{key}", f"the archive holds its {kind} twice in a row")
                return
            if members[kind] is None:
                yield Skipped(f"{shard}/{key}", f"its {kind} is a link to nothing in the archive")
                return
        kinds = [kind for kind in (*PICTURE_ENDINGS, ARRAY) if members.get(kind) is not None]
        self.ignored += sum(data is None for data in members.values()) + max(0, len(kinds) - 1)
        if not kinds:
            yield Skipped(f"{shard}/{key}", f"has no picture among its members ({', '.join(members)})")
            return
        name = f"{shard}/{key}.{kinds[0]}"
        try:
            label = sample_label(key, members) if self.labelled else None
            frames = [members[kinds[0]]] if kinds[0] != ARRAY else frames_of(members[ARRAY])
        except (ValueError, EOFError, UnicodeDecodeError) as error:
            yield Skipped(name, str(error))
            return
        for number, frame in enumerate(frames):
            yield Entry(name if len(frames) == 1 else f"{name}#{number:06d}", name, label, frame)


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """The bytes of a file, of a link those of the file in the archive that it names; None if it names none."""
    try:
        opened = archive.extractfile(member)
    except (KeyError, RecursionError):  # nothing of that name, or a link to itself
        return None
    return opened.read() if opened else None


def sample_label(key: str, members: dict[str, Any]) -> int | str | None:
    """The class that a sample's .cls, .json or folder gives; a ValueError if it is no class."""
    facts = json.loads(members["json"]) if members.get("json") else {}
    facts = facts if isinstance(facts, dict) else {}
    if members.get("cls") is not None:
        text = members["cls"].decode().strip()
        if not text.isdecimal():
            raise ValueError(f"its .cls holds {text[:40]!r}, not the number of a class")
        return int(text)
    for word in ("label", "class"):
        if isinstance(facts.get(word), int | str) and not isinstance(facts[word], bool):
            return facts[word]  # type: ignore[no-any-return]
    folders = PurePosixPath(key).parts
    return folder_labels([key])[0] if len(folders) > 1 else None


def frames_of(data: bytes) -> list[Any]:
    """The (H, W, 3) uint8 pictures of a .npy member; a ValueError if it holds none."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 3 not in (array.shape[-1], array.shape[-3]):
        raise ValueError(
            f"its array is {array.shape} {array.dtype}, not uint8 of (3, H, W), (H, W, 3) or clips of them"
        )
    frames = array if array.ndim == 4 else array[None]
    last = frames.shape[-1] == 3 and frames.shape[-3] != 3
    return [np.ascontiguousarray(frame if last else frame.transpose(1, 2, 0)) for frame in frames]
