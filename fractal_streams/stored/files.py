"""A folder of pictures, and a zip archive of them."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError
from fractal_streams.stored.entries import PICTURE_ENDINGS, Entry, Skipped, ending, folder_labels, is_hidden, natural


class Folder:
    """Every picture below a folder; see `Source`. Files whose name begins with a dot are left alone."""

    kind = "folder"
    class_names: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.title = path, path.name or str(path)
        files = files_below(path)
        self.names = sorted((name for name in files if ending(name) in PICTURE_ENDINGS), key=natural)
        self.ignored = len(files) - len(self.names)

    @property
    def count(self) -> int:
        """The pictures."""
        return len(self.names)

    def facts(self) -> list[list[Any]]:
        """Name, bytes and time of last change of each picture."""
        return [file_facts(self.path / name, name) for name in self.names]

    def entries(self) -> Iterator[Entry | Skipped]:
        """Each picture by its path."""
        for name, label in zip(self.names, folder_labels(self.names), strict=True):
            yield Entry(name, name, label, self.path / name)


class Zip:
    """Every picture in a zip archive; see `Source`."""

    kind = "zip"
    class_names: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.title = path, path.name
        try:
            with zipfile.ZipFile(path) as archive:
                listed = [item for item in archive.infolist() if not item.is_dir() and not is_hidden(item.filename)]
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InvalidValueError(
                f"{path} is no zip archive that can be read ({error}); give one, or a folder"
            ) from error
        pictures = [item for item in listed if ending(item.filename) in PICTURE_ENDINGS]
        self.members = sorted(pictures, key=lambda item: natural(item.filename))
        self.ignored = len(listed) - len(pictures)

    @property
    def count(self) -> int:
        """The pictures."""
        return len(self.members)

    def facts(self) -> list[list[Any]]:
        """Name, bytes and checksum of each picture, as the archive lists them."""
        return [[item.filename, item.file_size, item.CRC] for item in self.members]

    def entries(self) -> Iterator[Entry | Skipped]:
        """The bytes of each picture."""
        labels = folder_labels([item.filename for item in self.members])
        with zipfile.ZipFile(self.path) as archive:
            for item, label in zip(self.members, labels, strict=True):
                try:
                    yield Entry(item.filename, item.filename, label, archive.read(item))
                except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
                    # RuntimeError: the picture is encrypted
                    yield Skipped(item.filename, f"can't be unpacked: {error}")


def files_below(path: Path) -> list[str]:
    """The path within the folder of every file below it that is not hidden, with "/" between folders.

    Links are followed, but not to a folder that the link itself lies in.
    """
    found = []
    for place, folders, files in os.walk(path, followlinks=True):
        here = Path(place)
        inner = here.relative_to(path)
        above = {each.resolve() for each in (here, *list(here.parents)[: len(inner.parts)])}
        folders[:] = [name for name in folders if not is_hidden(name) and (here / name).resolve() not in above]
        found += [(inner / name).as_posix() for name in files if not is_hidden(name)]
    return found


def file_facts(path: Path, name: str) -> list[Any]:
    """Name, bytes and time of last change, ns; the name alone where there is no file: who reads it says so."""
    try:
        found = path.stat()
    except OSError:
        return [name]
    return [name, found.st_size, found.st_mtime_ns]
