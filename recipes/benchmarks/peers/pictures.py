"""The stored pictures that peers read: the first samples of one stream, in each peer's own files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fractal_streams.integrations.export import export

from fractal_streams.presets import open_stream

SOURCE = "seed-readme"
TEST = 5
"""Samples of the test split, which CIFAR's files must have."""


class Pictures:
    """The first samples of `SOURCE` as arrays and as files, each made when it is first asked for.

    Args:
        folder: where the files go; whoever made it removes it.
        count: pictures. size: their edge, pixels. shards: files of each format, one for each reader at least.
        device: where they are rendered.
    """

    def __init__(self, folder: Path, *, count: int, size: int, shards: int, device: str = "cpu") -> None:
        self.folder, self.count, self.size, self.shards = folder, count, size, shards
        self.settings: dict[str, Any] = {"height": size, "width": size, "device": device}

    @cached_property
    def _drawn(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        stream = open_stream(SOURCE, channels_last=True, **self.settings)
        parts = [
            stream.generate(range(first, min(first + 4096, self.count))).numpy() for first in range(0, self.count, 4096)
        ]
        return np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """(count, size, size, 3), as torchvision's CIFAR holds them."""
        return self._drawn[0]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(count,), 0 to 9."""
        return self._drawn[1]

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, levels / 255."""
        unit = np.arange(256) / 255.0
        shares = [np.bincount(self.images[:4096, ..., channel].ravel(), minlength=256) for channel in range(3)]
        mean = [np.average(unit, weights=share) for share in shares]
        std = [np.sqrt(np.average((unit - m) ** 2, weights=share)) for m, share in zip(mean, shares, strict=True)]
        return tuple(map(float, mean)), tuple(map(float, std))

    @property
    def mean(self) -> tuple[float, ...]:
        return self.moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self.moments[1]

    @cached_property
    def cifar(self) -> Path:
        """A folder with CIFAR-10's files, of 32x32 pictures."""
        return self._export("cifar10", {"train": self.count, "test": TEST})

    @cached_property
    def parquet(self) -> list[str]:
        """Parquet files with an `Image()` column of PNG and a label."""
        return self._files("parquet", "data/*.parquet")

    @cached_property
    def tars(self) -> list[str]:
        """webdataset shards of PNG and .cls."""
        return self._files("webdataset", "*.tar")

    def _files(self, form: str, pattern: str) -> list[str]:
        folder = self._export(form, self.count, shards=self.shards)
        return sorted(str(path) for path in folder.rglob(pattern.rpartition("/")[2]))

    def _export(self, form: str, num: Any, **more: Any) -> Path:
        folder = self.folder / form
        export(SOURCE, folder, format=form, num=num, progress=False, **more, **self.settings)
        return folder
