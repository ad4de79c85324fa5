"""CIFAR-10's files: the pickles of Python 2 that its authors made, and the `.pt` files of fast trainers.

The pickles are written here opcode by opcode, because Python 3 can't write the 8-bit strings of Python 2: with them
`pickle.load(file, encoding="bytes")`, which the authors' page gives, finds keys of bytes, and torchvision's
`encoding="latin1"` finds keys of text.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the page of CIFAR-10.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from fractal_streams.integrations.export_formats import Format, intervals
from fractal_streams.integrations.manifest import Piece, Record

from fractal_streams.batch import Batch
from fractal_streams.errors import InvalidValueError, missing_extra

BATCHES = 5
"""Of the training set."""
MOST_BYTES = 2**31 - 1
"""Of a string in a pickle of Python 2."""


class Cifar10(Format):
    """CIFAR-10's pickles, and `train.pt` and `test.pt`, each {images (N, 32, 32, 3) uint8, labels (N,), classes}."""

    images = ()
    titles: ClassVar[dict[str, str]] = {"train": "training batch {} of 5", "test": "testing batch 1 of 1"}

    def __post_init__(self) -> None:
        shape, classes = sorted(self.stream.generate(range(0)).images.shape[1:]), self.stream.num_classes
        if shape != [3, 32, 32] or classes != 10:
            size = "x".join(map(str, shape[1:])) if len(shape) == 3 else f"clips of {shape}"
            raise InvalidValueError(
                f"format='cifar10' is 32x32 pictures of 10 classes, as its readers expect, and this stream has {size} "
                f"and {classes} classes: open it with height=32, width=32, num_classes=10, or write npz"
            )
        if set(self.num) != {"train", "test"} or self.num["train"] < BATCHES:
            raise InvalidValueError(
                f"format='cifar10' needs train and test, train in {BATCHES} batches: give "
                f"num={{'train': 50000, 'test': 10000}}, got {dict(self.num)}"
            )
        if max(self.num["train"] // BATCHES + 1, self.num["test"]) * 3072 > MOST_BYTES:
            raise InvalidValueError(f"a pickle of CIFAR-10 holds 2 GiB, too few for {dict(self.num)}: write npz")
        try:
            import torch  # noqa: F401
        except ImportError:
            raise missing_extra("torch", "torch") from None

    def pieces(self) -> list[Piece]:
        folder, train, test = "cifar-10-batches-py", self.num["train"], self.num["test"]
        batches = [
            Piece(name=f"{folder}/data_batch_{place}", split="train", first=interval.start, count=len(interval))
            for place, interval in enumerate(intervals(train, BATCHES), 1)
        ]
        return [
            *batches,
            Piece(name=f"{folder}/test_batch", split="test", first=0, count=test),
            Piece(name="train.pt", split="train", first=0, count=train),
            Piece(name="test.pt", split="test", first=0, count=test),
        ]

    def encode(self, piece: Piece, batch: Batch) -> tuple[Any, Any, Any]:
        last = self.stream.pixels.channels_last
        if piece.name.endswith(".pt"):
            images = batch.images if last else batch.images.transpose(0, 2, 3, 1)
        else:
            images = (batch.images.transpose(0, 3, 1, 2) if last else batch.images).reshape(len(batch), -1)
        return np.ascontiguousarray(images), batch.labels, batch.index

    def write(self, path: Path, piece: Piece, blocks: Iterator[tuple[Any, Any, Any]]) -> None:
        images, labels, index = (np.concatenate(column) for column in zip(*blocks, strict=True))
        classes = [self.stream.class_title(label) for label in range(10)]
        if piece.name.endswith(".pt"):
            import torch

            held = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels), "classes": classes}
            made = io.BytesIO()  # a file's own name would go into it
            torch.save(held, made)
            path.write_bytes(made.getbuffer())
            return
        words = [title.replace(" ", "_") for title in classes]
        names = [f"{words[label]}_s_{number:06d}.png" for label, number in zip(labels, index, strict=True)]
        title = self.titles[piece.split].format(piece.name[-1])
        path.write_bytes(batch_pickle(title, images, labels.tolist(), names))

    def closing(self, records: Mapping[str, Record]) -> dict[str, bytes]:
        count = next(record.count for record in records.values() if record.name.endswith("data_batch_1"))
        names = [self.stream.class_title(label) for label in range(10)]
        return {"cifar-10-batches-py/batches.meta": meta_pickle(count, names)}


def batch_pickle(title: str, data: npt.NDArray[np.uint8], labels: Iterable[int], names: Sequence[str]) -> bytes:
    """A `data_batch_k` or `test_batch`.

    Args:
        title: such as "training batch 1 of 5".
        data: (N, 3072) uint8: 1024 red, 1024 green and 1024 blue values of each picture.
        labels: N classes.
        names: N names of files.

    Example:
        >>> import pickle, numpy as np
        >>> file = batch_pickle("one", np.zeros((2, 3072), np.uint8), [3, 7], ["a", "b"])
        >>> made = pickle.loads(file, encoding="bytes")
        >>> made[b"labels"], made[b"data"].shape, made[b"batch_label"]
        ([3, 7], (2, 3072), b'one')
    """
    entries = {
        "batch_label": text(title),
        "labels": sequence(whole_number(int(label)) for label in labels),
        "data": array(data),
        "filenames": sequence(text(name) for name in names),
    }
    return pickled(entries)


def meta_pickle(count: int, names: Sequence[str], size: int = 3072) -> bytes:
    """`batches.meta`.

    Args:
        count: samples in a batch.
        names: of the classes.
        size: numbers in a picture.

    Example:
        >>> import pickle
        >>> pickle.loads(meta_pickle(10000, ["cat", "dog"]), encoding="latin1")
        {'num_cases_per_batch': 10000, 'label_names': ['cat', 'dog'], 'num_vis': 3072}
    """
    entries = {
        "num_cases_per_batch": whole_number(count),
        "label_names": sequence(text(name) for name in names),
        "num_vis": whole_number(size),
    }
    return pickled(entries)


def pickled(entries: dict[str, bytes]) -> bytes:
    """A pickle, of protocol 2, of a dict whose values are opcodes."""
    body = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02}(" + body + b"u."


def text(value: str) -> bytes:
    """An 8-bit string of Python 2; letters beyond latin-1 are question marks."""
    content = value.encode("latin1", "replace")
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def whole_number(value: int) -> bytes:
    """An int of 0 to 2**31 - 1."""
    return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)


def sequence(items: Iterable[bytes]) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


def array(data: Any) -> bytes:
    """A uint8 array of NumPy, under the names that every NumPy knows."""
    content = np.ascontiguousarray(data, np.uint8).tobytes()
    shape = b"(" + b"".join(whole_number(edge) for edge in data.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1\x89\x88tR" + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(content)) + content + b"tb"
