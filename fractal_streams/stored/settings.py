"""What a pack is made with, and which kind of source an address means."""

from __future__ import annotations

import glob
import re
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from fractal_streams.errors import InvalidValueError, unknown_name
from fractal_streams.spec import one_of, whole
from fractal_streams.stored.entries import PICTURE_ENDINGS, TAR_ENDINGS, VIDEO_ENDINGS, Source, ending
from fractal_streams.stored.files import Folder, Zip, files_below
from fractal_streams.stored.footage import Footage
from fractal_streams.stored.picture import Size
from fractal_streams.stored.shards import Shards
from fractal_streams.stored.tables import HUB, is_table, open_table

Label = Literal["auto", "none"]
SAVED = ("dataset_info.json", "dataset_dict.json")
"""What marks a folder that `datasets` saved."""


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What decides, beside the source, what a pack holds.

    height, width, reduction: the size that pictures are kept at, see `Size`; width None is height.
    label: "auto" takes classes from folders, from .cls and .json members, or from the label column;
        "none" makes all pictures one class.
    image_column, label_column: of a dataset's table; without a column "label" all rows are one class.
    hub_split: which split of a hub dataset.
    skip: of videos, frames left out after each one that is taken, 0 and up.
    minimum_change: of videos, the mean absolute difference in levels, 0 to 255, that a frame as it is kept
        must have from the frame kept before it.

    Raises:
        InvalidValueError: a value out of its range, named.
    """

    height: int
    width: int | None = None
    reduction: int | None = None
    label: Label = "auto"
    image_column: str = "image"
    label_column: str = "label"
    hub_split: str = "train"
    skip: int = 0
    minimum_change: float = 0.0

    def __post_init__(self) -> None:
        size = Size(
            height=self.height, width=self.height if self.width is None else self.width, reduction=self.reduction
        )
        for name in ("height", "width", "reduction"):
            object.__setattr__(self, name, getattr(size, name))
        one_of(self.label, "label", ("auto", "none"))
        object.__setattr__(self, "skip", whole(self.skip, "skip", 0, 2**31 - 1, "frames"))
        least = self.minimum_change
        if isinstance(least, bool) or not isinstance(least, Real) or not 0.0 <= float(least) <= 255.0:
            raise InvalidValueError(f"minimum_change must lie in [0, 255] levels, got {least!r}")
        object.__setattr__(self, "minimum_change", float(least))
        for name in ("image_column", "label_column", "hub_split"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InvalidValueError(f"{name} must be a name, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, **settings: Any) -> PackSettings:
        """The settings by their names.

        Raises:
            UnknownNameError: no such setting; names the nearest known one.
            InvalidValueError: a value out of its range, or no height.
        """
        for name in settings:
            if name not in cls.__dataclass_fields__:
                raise unknown_name("setting of a pack", name, cls.__dataclass_fields__)
        if "height" not in settings:
            raise InvalidValueError(
                "height is missing: give the pixels that every picture must cover, such as height=64"
            )
        return cls(**settings)

    @property
    def size(self) -> Size:
        """The size that pictures are kept at."""
        return Size(height=self.height, width=self.width or self.height, reduction=self.reduction)


def source_of(source: Any, settings: PackSettings) -> Source:
    """The source that an address, or a list of them, means.

    Args:
        source: a folder of pictures (of videos or of tar shards, if it holds no pictures); a zip archive; a
            tar archive or video, a list of them, or a pattern such as "shard-{000..003}.tar" or "*.mp4"; a
            `datasets.Dataset`, a folder that its `save_to_disk` wrote, or "hub:PATH" for `load_dataset`.

    Raises:
        InvalidValueError: nothing there, an unknown ending, no such archive, or nothing of use in it.
        MissingExtraError: the library that reads it is not installed.
    """
    columns = {"image_column": settings.image_column, "hub_split": settings.hub_split}
    column = None if settings.label == "none" else settings.label_column
    if is_table(source) or (isinstance(source, str) and source.startswith(HUB)):
        return open_table(source, label_column=column, **columns)
    paths = addresses(source)
    if len(paths) == 1 and paths[0].is_dir():
        if any((paths[0] / name).is_file() for name in SAVED):
            return open_table(paths[0], label_column=column, **columns)
        return of_folder(paths[0], settings)
    return of_files(paths, settings)


def addresses(source: Any) -> list[Path]:
    """The paths that a path, a pattern or a list of paths means."""
    if not isinstance(source, str | Path):
        if not isinstance(source, Sequence) or not source or not all(isinstance(each, str | Path) for each in source):
            raise InvalidValueError(
                f"a source is a path, a list of paths, 'hub:PATH' or a datasets.Dataset, got {type(source).__name__}"
            )
        return [path for each in source for path in addresses(each)]
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    parts = re.fullmatch(r"(.*)\{([0-9]+)\.\.([0-9]+)\}(.*)", str(path))
    if parts:
        before, first, last, after = parts.groups()
        numbered = (f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1))
        return [path for each in numbered for path in addresses(each)]
    matched = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  a pattern may be absolute
    if not matched:
        raise InvalidValueError(f"nothing at {source}: give a folder, a zip, tar shards, a video, or 'hub:PATH'")
    return [Path(each) for each in matched]


def of_folder(path: Path, settings: PackSettings) -> Source:
    """A folder's pictures; if it has none, its videos or its shards."""
    pictures = Folder(path)
    if pictures.names:
        return pictures
    names = files_below(path)
    videos = [name for name in names if ending(name) in VIDEO_ENDINGS]
    if videos:
        return Footage(path, videos, settings.skip, ignored=len(names) - len(videos))
    shards = [path / name for name in names if ending(name) in TAR_ENDINGS]
    if shards:
        return Shards(shards, labelled=settings.label != "none")
    raise InvalidValueError(
        f"no pictures in {path}: it holds {len(names)} files, none with an ending of pictures "
        f"({', '.join(PICTURE_ENDINGS)}), videos ({', '.join(VIDEO_ENDINGS)}) or shards ({', '.join(TAR_ENDINGS)})"
    )


def of_files(paths: list[Path], settings: PackSettings) -> Source:
    """One zip, or files of one other kind."""
    kinds = {kind_of(path) for path in paths}
    if len(kinds) > 1 or (kinds == {"zip"} and len(paths) > 1):
        raise InvalidValueError(
            f"a list of files is of tar shards or of videos alone, got {', '.join(map(str, paths))}"
        )
    if kinds == {"zip"}:
        return Zip(paths[0])
    if kinds == {"tar"}:
        return Shards(paths, labelled=settings.label != "none")
    root = paths[0].parent
    if any(path.parent != root for path in paths):
        return Footage(Path(), [path.as_posix() for path in paths], settings.skip)
    return Footage(root, [path.name for path in paths], settings.skip)


def kind_of(path: Path) -> str:
    """ "zip", "tar" or "video", by the ending."""
    kind = ending(path.name)
    if path.is_dir():
        raise InvalidValueError(f"{path} is a folder: give one folder alone, or files")
    if kind == "zip":
        return "zip"
    if kind in TAR_ENDINGS:
        return "tar"
    if kind in VIDEO_ENDINGS:
        return "video"
    hint = "a single picture goes in a folder"
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        hint = f"it is a {'zip' if zipfile.is_zipfile(path) else 'tar'} archive: name it so"
    known = ", ".join(("zip", *TAR_ENDINGS, *VIDEO_ENDINGS))
    raise InvalidValueError(f"{path}: unknown ending {kind!r}; known are {known}, or a folder; {hint}")
