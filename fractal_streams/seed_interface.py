"""The datasets of infinite-fractal-stream under their own names, rendered in batches.

S. Ryu, Infinite-Fractal-Stream (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fractal_streams.errors import IndexRangeError, InvalidValueError, missing_extra
from fractal_streams.formulas.polynomial_power import COEFFICIENTS
from fractal_streams.seed_code import SeedCodeSpec, SeedCodeStream
from fractal_streams.spec import StreamSpec, one_of, whole
from fractal_streams.stream import StillStream, Stream
from fractal_streams.video import VideoSpec, VideoStream

try:
    import torch
    from torch.utils.data import Dataset
except ImportError:
    raise missing_extra("torch", "torch") from None

Semantics = Literal["readme", "code"]


class SeedDataset(Dataset[tuple[torch.Tensor, int]]):
    """A finite run of a stream: `ds[i]`, `len(ds)`, and batches one after another.

    stream: where the samples come from; `ds.stream.generate(...)` gives their latents too.
    """

    def __init__(self, stream: Stream, length: int) -> None:
        self.stream = stream
        self.num_classes = stream.num_classes
        self.length = length
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """The image or clip, float32 in [0, 1], and its class.

        Raises:
            IndexRangeError: an index outside [0, len), so that a loop over the dataset ends.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """Several samples from one rendering; a DataLoader asks for its batches so."""
        for index in indices:
            if isinstance(index, bool) or not hasattr(index, "__index__"):
                raise InvalidValueError(f"an index is a whole number, got {index!r}")
            if not 0 <= index < self.length:
                raise IndexRangeError(f"index must lie in [0, {self.length}), got {index}")
        batch = self.stream.generate([int(index) for index in indices])
        return list(zip(batch.torch().images, batch.numpy().labels.tolist(), strict=True))

    def get_batch(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next samples, on the dataset's device; after the last sample comes the first.

        Returns:
            images (B, 3, H, W), or clips (B, T, 3, H, W), float32 in [0, 1], and labels (B,) int64.
        """
        whole(batch_size, "batch_size", 1, 2**31 - 1, "samples")
        last = self.position + batch_size
        indices: Any = range(self.position, last)
        if last > self.length:
            indices = (np.arange(batch_size) + self.position) % self.length
        batch = self.stream.generate(indices).torch()
        self.position = last % self.length
        return batch.images, batch.labels

    def reset(self) -> None:
        """Start the batches over."""
        self.position = 0


class FractalImageDataset(SeedDataset):
    """Labelled pictures of the polynomial-power map; the labels go round, 0, 1, 2, ...

    Args:
        num_classes, num_samples_per_class: their product is the length.
        image_size: pixels along each edge, 8 to 4096.
        max_iter: steps of an orbit.
        R: an orbit has escaped when |z|**2 >= R**2.
        device: "auto", "cpu", "cuda" or "cuda:N"; where the pictures are rendered, and stay.
        train: the training or the evaluation set; no picture is in both.
        seed: of the classes and the pictures.
        semantics: "readme", what the original's README promises: coefficients from U(-1, 1), both
            angles from U(0, 2 pi), powers from U(0, 5), an orbit ends at its first step outside.
            "code", what its code drew, to the bit, see `seed_code`: `seed` without effect there,
            max_iter at most 127, and training and evaluation set apart as long as the latter is not
            larger than the former and neither exceeds 2**31 samples.

    Raises:
        InvalidValueError: a value out of its range.
        DeviceError: a GPU was asked for that is not there.

    Source: S. Ryu, Infinite-Fractal-Stream (2024), README, "How to use".

    Example:
        >>> from fractal_streams import FractalImageDataset
        >>> dataset = FractalImageDataset(num_classes=10, num_samples_per_class=5, image_size=32, device="cpu")
        >>> image, label = dataset[13]
        >>> image.shape, image.dtype, label, len(dataset)
        (torch.Size([3, 32, 32]), torch.float32, 3, 50)
        >>> images, labels = dataset.get_batch(4)
        >>> labels.tolist()
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        num_classes: int,
        num_samples_per_class: int,
        image_size: int,
        max_iter: int = 30,
        R: float = 2.0,
        device: str = "auto",
        train: bool = True,
        seed: int = 0,
        *,
        semantics: Semantics = "readme",
    ) -> None:
        length = _length(num_classes, num_samples_per_class)
        still = _still(num_classes, image_size, max_iter, R)
        settings: dict[str, Any] = _settings(device, train, seed)
        one_of(semantics, "semantics", ("readme", "code"))
        if semantics == "readme":
            super().__init__(StillStream(still, **settings), length)
        else:
            super().__init__(SeedCodeStream(_code(still, num_samples_per_class), **settings), length)


class FractalVideoDataset(SeedDataset):
    """Labelled clips of the polynomial-power map, whose two angles, power and colour frequency move in
    a straight line from a drawn start to a drawn end.

    Args:
        T: frames of a clip.
        semantics: "readme", each clip has a line of its own; "code", all clips have the same one, as
            the original's did, whose generator was never seeded.

    The other arguments are those of `FractalImageDataset`.

    Example:
        >>> from fractal_streams import FractalVideoDataset
        >>> dataset = FractalVideoDataset(10, 5, image_size=16, device="cpu", T=3)
        >>> clip, label = dataset[11]
        >>> clip.shape, label
        (torch.Size([3, 3, 16, 16]), 1)
    """

    def __init__(
        self,
        num_classes: int,
        num_samples_per_class: int,
        image_size: int,
        max_iter: int = 30,
        R: float = 2.0,
        device: str = "auto",
        train: bool = True,
        seed: int = 0,
        T: int = 16,
        *,
        semantics: Semantics = "readme",
    ) -> None:
        length = _length(num_classes, num_samples_per_class)
        still = _still(num_classes, image_size, max_iter, R)
        settings: dict[str, Any] = _settings(device, train, seed)
        one_of(semantics, "semantics", ("readme", "code"))
        if semantics == "readme":
            super().__init__(VideoStream(VideoSpec(still=still, frames=T), **settings), length)
        else:
            super().__init__(SeedCodeStream(_code(still, num_samples_per_class, T), **settings), length)


def _length(num_classes: int, num_samples_per_class: int) -> int:
    classes = whole(num_classes, "num_classes", 1, 2**31 - 1, "classes")
    return classes * whole(num_samples_per_class, "num_samples_per_class", 1, 2**31 - 1, "samples")


def _still(num_classes: int, image_size: int, max_iter: int, radius: float) -> StreamSpec:
    whole(image_size, "image_size", 8, 4096, "pixels")
    whole(max_iter, "max_iter", 1, 1_000_000, "steps")
    return StreamSpec(
        formulas=("polynomial_power",), num_classes=num_classes, height=image_size, width=image_size,
        iterations=max_iter, radius=radius, labels="balanced", class_parameters=COEFFICIENTS,
    )  # fmt: skip


def _code(still: StreamSpec, samples_per_class: int, frames: int | None = None) -> SeedCodeSpec:
    return SeedCodeSpec(
        num_classes=still.num_classes, samples_per_class=samples_per_class, height=still.height, width=still.width,
        iterations=still.iterations or 0, radius=still.radius or 0.0, frames=frames,
    )  # fmt: skip


def _settings(device: str, train: bool, seed: int) -> dict[str, Any]:
    return {"device": device, "split": "train" if train else "test", "seed": seed, "dtype": "float32"}
