"""Labelled pictures that a user has, in a part to train on and a part to test on, as streams.

CIFAR-10 and CIFAR-100 as torchvision or their authors keep them, a folder of classes, an archive of one, tar shards,
parquet files, or a dataset of the hub. Pictures are decoded and reduced once; `StoredStream` reads them from then on.
"""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import StoredStream, open_stored
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.normalisation import Channels
from fractal_streams.stored import Pack
from fractal_streams.stored.picture import Size
from fractal_streams.stored.tables import HUB

try:
    from torchvision import datasets
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

CIFAR = {"cifar-10-batches-py": datasets.CIFAR10, "cifar-100-python": datasets.CIFAR100}
"""Folder as torchvision keeps it, and what reads it."""
ARCHIVES = {"cifar-10-python.tar.gz": "cifar-10-batches-py", "cifar-100-python.tar.gz": "cifar-100-python"}
TESTS = ("test", "val", "valid", "validation")
"""Names of the folder beside `train` that pictures to test on lie in."""


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Pictures in two parts.

    train: to train on. test: to test on, or None: then a share of `train`, chosen by the pictures' names.
    edge: height and width of what streams show, pixels. share: in (0, 1), where test is None.
    """

    train: Pack
    test: Pack | None
    edge: int
    share: float = 0.0

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.train.classes)

    def statistics(self) -> tuple[Channels, Channels]:
        """(mean, deviation) of the channels of the pictures in `train`, levels in [0, 1]."""
        levels = np.arange(256) / 255.0
        counts = [np.bincount(np.asarray(self.train.pixels[:, channel]), minlength=256) for channel in range(3)]
        means = [float(count @ levels / count.sum()) for count in counts]
        squares = [float(count @ levels**2 / count.sum()) for count in counts]
        deviations = [max(square - mean**2, 1e-12) ** 0.5 for square, mean in zip(squares, means, strict=True)]
        return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])

    def stream(self, part: str, *, seed: int = 0, flip: bool = True, **form: Any) -> StoredStream:
        """The stream of a part: to train on shuffled and flipped anew each time, to test on in order as they are.

        Args:
            part: "train" or "test". seed: of orders, crops and flips. flip: left to right, with even chances.
            form: device, dtype, mean, std.
        """
        shares: dict[str, Any] = {} if self.test is not None else {"test": self.share}
        if part == "train":
            return StoredStream(
                self.train, height=self.edge, crop="random", flip="horizontal" if flip else "none", order="shuffled",
                seed=seed, split="train", **shares, **form,
            )  # fmt: skip
        pack, split = (self.train, "test") if self.test is None else (self.test, "train")
        return StoredStream(pack, height=self.edge, crop="centre", order="sequential", split=split, **shares, **form)


def real_images(
    address: str | Path, edge: int, *, test_share: float = 0.2, cache: str | Path | None = None, **columns: str
) -> RealImages:
    """The pictures at an address.

    Args:
        address: torchvision's folder of CIFAR-10 or CIFAR-100, or their archive; a folder with the folders `train` and
            `test` (or `val`), each with a folder for each class; a folder of classes, a zip or tar of one, tar
            shards; parquet files; or "hub:NAME" with the splits train and test.
        edge: height and width, pixels; pictures are reduced until their shorter edge is that.
        test_share: of the pictures, where they come in one part.
        cache: where packs are kept; None is the user's cache folder.
        columns: image_column, label_column of tables.

    Raises:
        InvalidValueError: nothing there, pictures of one class, parts of different classes, too small pictures.
        PictureError: one that can't be read.
    """
    if not 0.0 < test_share < 1.0:
        raise InvalidValueError(f"test_share must lie in (0, 1), got {test_share}")
    form: dict[str, Any] = {"edge": edge, "cache": cache, **columns}
    place = Path(address)
    if not str(address).startswith(HUB) and (found := cifar(place, edge)) is not None:
        parts: tuple[Pack, Pack | None] = found
    elif str(address).startswith(HUB):
        train, test = (packed(address, hub_split=name, **form) for name in ("train", "test"))
        parts = (train, test)
    elif place.suffix == ".parquet":
        parts = (packed(parquet(place), **form), None)
    elif (place / "train").is_dir():
        names = [name for name in TESTS if (place / name).is_dir()]
        if not names:
            raise InvalidValueError(
                f"{place} has a folder train and none of {', '.join(TESTS)}: add one, or give train"
            )
        parts = (packed(place / "train", **form), packed(place / names[0], **form))
    else:
        parts = (packed(address, **form), None)
    return checked(RealImages(train=parts[0], test=parts[1], edge=edge, share=test_share))


def checked(images: RealImages) -> RealImages:
    """Refuse pictures that nothing can be learned from."""
    if len(images.classes) < 2:
        raise InvalidValueError(f"there is one class, {images.classes}: give a folder with a folder for each class")
    if images.test is not None and tuple(images.test.classes) != images.classes:
        odd = sorted({*images.classes} ^ {*images.test.classes})
        raise InvalidValueError(f"the two parts differ in the classes {', '.join(odd)}: each must have all of them")
    return images


def packed(address: Any, *, edge: int, cache: str | Path | None, **settings: Any) -> Pack:
    return open_stored(address, height=edge, cache=cache, device="cpu", **settings).pack


def parquet(path: Path) -> Any:
    """A table of the `datasets` library."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("datasets", "huggingface") from None
    return load_dataset("parquet", data_files=str(path), split="train")


def cifar(place: Path, edge: int) -> tuple[Pack, Pack] | None:
    """CIFAR's two parts, of torchvision's folder or the archive; None of another place."""
    for folder, kind in CIFAR.items():
        root = place.parent if place.name == folder else place
        if (root / folder).is_dir():
            return cifar_parts(kind, root, edge)
    archive = next((place / name for name in ARCHIVES if (place / name).is_file()), place)
    if archive.name not in ARCHIVES or not archive.is_file():
        return None
    with tempfile.TemporaryDirectory() as unpacked, tarfile.open(archive) as opened:
        opened.extractall(unpacked, filter="data")
        return cifar_parts(CIFAR[ARCHIVES[archive.name]], Path(unpacked), edge)


def cifar_parts(kind: Any, root: Path, edge: int) -> tuple[Pack, Pack]:
    try:
        first, second = (kind(str(root), train=train, download=False) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise InvalidValueError(f"{root} holds no whole {kind.__name__} ({error}): download it anew") from None
    return in_memory(first, edge), in_memory(second, edge)


def in_memory(part: Any, edge: int) -> Pack:
    """A pack of CIFAR's (N, 32, 32, 3) levels."""
    size = Size(height=edge, width=edge)
    try:
        images = np.stack([size.fit(picture) for picture in part.data])
    except ValueError as error:
        raise InvalidValueError(f"image_size={edge} is too large for CIFAR: {error}; ask for at most 32") from None
    return Pack.of(images, np.asarray(part.targets, np.int64), classes=part.classes)
