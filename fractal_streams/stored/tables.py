"""A dataset of the `datasets` library: an image column and a label column."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.stored.entries import Entry, Skipped

HUB = "hub:"
"""What the address of a hub dataset, or of a local path that `load_dataset` takes, begins with."""


class Table:
    """The rows of a `datasets.Dataset`; see `Source`. Images are not decoded here."""

    kind = "dataset"
    ignored = 0

    def __init__(self, dataset: Any, title: str, image_column: str, label_column: str | None) -> None:
        import datasets

        names = list(dataset.column_names)
        for column in filter(None, (image_column, label_column)):
            if column not in names:
                raise InvalidValueError(f"the dataset has no column {column!r}: its columns are {', '.join(names)}")
        self.title, self.image, self.label = title, image_column, label_column
        wanted = dataset.select_columns(list(filter(None, (image_column, label_column)))).with_format(None)
        if isinstance(wanted.features[image_column], datasets.Image):
            wanted = wanted.cast_column(image_column, datasets.Image(decode=False))
        self.dataset = wanted
        label = wanted.features[label_column] if label_column else None
        self.class_names: tuple[str, ...] | None = (
            tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
        )
        self.fingerprint = dataset._fingerprint

    @property
    def count(self) -> int:
        """The rows."""
        return len(self.dataset)

    def facts(self) -> list[list[Any]]:
        """The table's own fingerprint, which names its rows and what was done to them."""
        return [[self.fingerprint, len(self.dataset), hashlib.blake2s(str(self.dataset.features).encode()).hexdigest()]]

    def entries(self) -> Iterator[Entry | Skipped]:
        """Each row, by its number."""
        for number, row in enumerate(self.dataset):
            name = f"{number:08d}"
            found, label = row[self.image], row[self.label] if self.label else None
            if self.label and (isinstance(label, bool) or not isinstance(label, int | str)):
                yield Skipped(name, f"its {self.label!r} is {label!r}, not a class")
            elif isinstance(found, dict) and found.get("bytes") is not None:
                yield Entry(name, name, label, found["bytes"])
            elif isinstance(found, dict) and found.get("path"):
                yield Entry(name, name, label, Path(found["path"]))
            elif isinstance(found, list):
                yield Entry(name, name, label, picture_of(found))
            else:
                yield Skipped(name, f"its {self.image!r} holds no picture")


def picture_of(levels: list[Any]) -> Any:
    """(H, W, 3) levels of a column of nested lists; whatever else it holds is refused where it is decoded."""
    array = np.asarray(levels)
    whole = array.dtype.kind in "iu" and array.size and 0 <= array.min() <= array.max() <= 255
    array = array.astype(np.uint8) if whole else array
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 != array.shape[2] else array


def open_table(source: Any, *, image_column: str, label_column: str | None, hub_split: str) -> Table:
    """The table of a `datasets.Dataset`, of "hub:PATH", or of a folder that `save_to_disk` wrote.

    Raises:
        InvalidValueError: an endless or a split dataset, one without these columns, or none under the path.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "huggingface") from None
    title = str(source) if isinstance(source, str | Path) else "dataset"
    try:
        if isinstance(source, Path):
            source = datasets.load_from_disk(str(source))
        elif isinstance(source, str):
            source = datasets.load_dataset(source.removeprefix(HUB), split=hub_split)
    except (OSError, ValueError, ConnectionError) as error:
        raise InvalidValueError(f"{title}: datasets can't load it with split={hub_split!r}: {error}") from error
    if isinstance(source, datasets.DatasetDict):
        if hub_split not in source:
            raise InvalidValueError(f"hub_split must be one of {', '.join(map(repr, source))}, got {hub_split!r}")
        source = source[hub_split]
    if not isinstance(source, datasets.Dataset):
        raise InvalidValueError(
            f"{title}: a stored stream is made of a finite datasets.Dataset, got {type(source).__name__}; "
            f"load it with streaming=False"
        )
    if label_column == "label" and "label" not in source.column_names:
        label_column = None
    return Table(source, title, image_column, label_column)


def is_table(source: object) -> bool:
    """Whether a source is an object of the `datasets` library."""
    return type(source).__module__.partition(".")[0] == "datasets"
