"""What an export can be written as: the files of each format, and the bytes of each file.

A format cuts every split into pieces, makes blocks of samples into bytes (in threads, in any order), writes the
blocks of a piece, and closes the folder with the files that say what the pieces are.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fractal_streams.integrations.containers.pictures import npy_bytes, picture_bytes
from fractal_streams.integrations.containers.samples import MAX_CLASS_NAMES, block_rows, is_clips, sample_key
from fractal_streams.integrations.containers.tar import TAR_END, tar_bytes
from fractal_streams.integrations.manifest import Piece, Record

from fractal_streams.batch import Batch
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import one_of
from fractal_streams.stream import Stream

BLOCK_BYTES, MAX_BLOCK = 2**24, 1000
"""Of a block of samples, the most bytes of pixels and the most samples; also a row group of Parquet."""


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """What is written, and how.

    streams: by split. num: samples of each split. shards: pieces of each split. image: "png" (compressed),
        "bmp" or "npy".
    """

    streams: Mapping[str, Stream]
    num: Mapping[str, int]
    shards: Mapping[str, int]
    image: str

    images: ClassVar[tuple[str, ...]] = ("png", "bmp")
    pattern: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.images:
            one_of(self.image, "image", self.images)

    @property
    def stream(self) -> Stream:
        """One of the streams; all have the same pictures and classes."""
        return next(iter(self.streams.values()))

    @property
    def form(self) -> str | None:
        """The form of the pictures in the files, where there is a choice."""
        return ("npy" if self.clips and "npy" in self.images else self.image) if self.images else None

    @cached_property
    def clips(self) -> bool:
        """Whether the samples are clips."""
        return is_clips(self.stream)

    @cached_property
    def rows(self) -> int:
        """Samples of a block: depends on their size alone, because row groups show in the bytes."""
        return block_samples(self.stream)

    def pieces(self) -> list[Piece]:
        """All pieces, in order: intervals of each split whose lengths differ by one at most."""
        return [
            Piece(name=name, split=split, first=interval.start, count=len(interval))
            for split, num in self.num.items()
            for place, interval in enumerate(intervals(num, self.shards[split]))
            for name in [self.pattern.format(split=split, place=place, shards=self.shards[split])]
        ]

    def files(self, piece: Piece) -> list[str]:
        """The files of a piece, relative to the folder."""
        return [piece.name]

    @abstractmethod
    def encode(self, piece: Piece, batch: Batch) -> Any:
        """A block of a piece, as `write` takes it; called from several threads."""

    @abstractmethod
    def write(self, path: Path, piece: Piece, blocks: Iterator[Any]) -> None:
        """Write the blocks of a piece to a file, or to a folder of files, that is not there yet."""

    def closing(self, records: Mapping[str, Record]) -> dict[str, bytes]:
        """Files that say what the pieces are, by name."""
        return {}

    def folders(self) -> Iterable[str]:
        """Folders that are there even if no sample is in them."""
        return ()


class ImageFolder(Format):
    """split/class/KEY.png as torchvision's `ImageFolder` reads it; the frames of a clip are split/class/KEY/FRAME.png.

    The number of the class, with zeros in front, begins the folder's name, so that sorted names count as labels do.
    """

    pattern = "{split}/shard-{place:06d}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream.num_classes > MAX_CLASS_NAMES:
            raise InvalidValueError(
                f"format='imagefolder' has a folder for each class, at most {MAX_CLASS_NAMES}, and this stream has "
                f"{self.stream.num_classes}: write webdataset or parquet"
            )

    @cached_property
    def class_folders(self) -> list[str]:
        """The name of each class's folder."""
        digits = len(str(self.stream.num_classes - 1))
        return [class_folder(self.stream, label, digits) for label in range(self.stream.num_classes)]

    def folders(self) -> list[str]:
        return [f"{split}/{name}" for split in self.num for name in self.class_folders]

    def files(self, piece: Piece) -> list[str]:
        return self._names(piece, piece.indices, self.streams[piece.split].labels(piece.indices).tolist())

    def encode(self, piece: Piece, batch: Batch) -> list[tuple[str, bytes]]:
        images = batch.images.reshape(-1, *batch.images.shape[2:]) if self.clips else batch.images
        names = self._names(piece, batch.index.tolist(), batch.labels.tolist())
        return list(zip(names, picture_bytes(images, self.image, compress=True), strict=True))

    def write(self, path: Path, piece: Piece, blocks: Iterator[list[tuple[str, bytes]]]) -> None:
        made: set[str] = set()
        for block in blocks:
            for name, content in block:
                folder = name.rpartition("/")[0]
                if folder not in made:
                    (path / folder).mkdir(parents=True, exist_ok=True)
                    made.add(folder)
                with (path / name).open("wb") as file:
                    file.write(content)

    def _names(self, piece: Piece, indices: Iterable[int], labels: Iterable[int]) -> list[str]:
        stems = [
            f"{piece.split}/{self.class_folders[label]}/{sample_key(index)}"
            for index, label in zip(indices, labels, strict=True)
        ]
        if not self.clips:
            return [f"{stem}.{self.image}" for stem in stems]
        frames = range(self.stream.generate(range(0)).images.shape[1])
        return [f"{stem}/{frame:04d}.{self.image}" for stem in stems for frame in frames]


class WebDataset(Format):
    """Tar archives of KEY.png, KEY.cls and KEY.json, and the `_info.json` that timm reads."""

    images = ("png", "bmp", "npy")
    pattern = "{split}/shard-{place:06d}.tar"

    def encode(self, piece: Piece, batch: Batch) -> bytes:
        return tar_bytes(self.streams[piece.split], batch, image=self.image, compress=True)

    def write(self, path: Path, piece: Piece, blocks: Iterator[bytes]) -> None:
        with path.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.write(TAR_END)

    def closing(self, records: Mapping[str, Record]) -> dict[str, bytes]:
        splits = {}
        for split, num in self.num.items():
            own = [record for record in records.values() if record.split == split]
            splits[split] = {
                "name": split,
                "num_samples": num,
                "filenames": [record.name for record in own],
                "shard_lengths": [record.count for record in own],
            }
        return {"_info.json": json_file({"splits": splits})}


class Npz(Format):
    """NumPy archives of images, labels and index, the images as the stream gives them; members are not compressed."""

    images = ()
    pattern = "{split}/shard-{place:06d}.npz"

    def encode(self, piece: Piece, batch: Batch) -> tuple[Any, Any, Any]:
        return np.ascontiguousarray(batch.images), batch.labels, batch.index

    def write(self, path: Path, piece: Piece, blocks: Iterator[tuple[Any, Any, Any]]) -> None:
        columns: tuple[list[Any], list[Any]] = ([], [])
        shape = (piece.count, *self.stream.generate(range(0)).images.shape[1:])
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for images, *rest in blocks:
                    member.write(images.data)
                    for column, values in zip(columns, rest, strict=True):
                        column.append(values)
            for name, column in zip(("labels", "index"), columns, strict=True):
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(np.concatenate(column)))


def block_samples(stream: Stream) -> int:
    """How many samples of a stream are made at once, at least one."""
    return block_rows(stream, BLOCK_BYTES, MAX_BLOCK)


def intervals(num: int, shards: int) -> list[range]:
    """[0, num) in so many intervals whose lengths differ by one at most.

    Example:
        >>> intervals(10, 3)
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    return [range(place * num // shards, (place + 1) * num // shards) for place in range(shards)]


def class_folder(stream: Stream, label: int, digits: int) -> str:
    """A folder's name for a class: its number, and its title where that says more, in letters every system takes."""
    title, number = stream.class_title(label), f"{label:0{digits}d}"
    words = "" if title == f"class {label}" else re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80]
    return f"{number}-{words}" if words else number


def json_file(value: Any) -> bytes:
    """A small file of JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()
