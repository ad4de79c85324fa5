"""The form that every contestant has, and what each of them delivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fractal_streams.errors import missing_extra

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

Item = tuple[torch.Tensor, torch.Tensor]
"""(B, 3, size, size) normalised images and (B,) int64 labels, on the device of the delivery."""

TIMEOUT = 120.0
"""Seconds that a worker process may take for a batch before its contestant is given up."""


def nothing() -> None:
    """A contestant that needs no files."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a training loop asks of every contestant.

    device: "cpu" or "cuda:N", where batches are handed over. size: edge of the pictures, pixels.
    batch: pictures in a batch. workers: numbers of worker processes to try, 0 among them.
    """

    device: str
    size: int = 32
    batch: int = 512
    workers: tuple[int, ...] = (0,)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU, as training uses it; float32 on a CPU."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def most_workers(self) -> int:
        return max(self.workers)

    @property
    def padding(self) -> int:
        """Pixels by which augmentation shifts at most: 4 of 32, as CIFAR's recipes do."""
        return max(1, self.size // 8)

    def loader(self, workers: int) -> dict[str, Any]:
        """Arguments of a DataLoader as a careful user gives them."""
        kept = {"persistent_workers": True, "timeout": TIMEOUT} if workers else {}
        return {"num_workers": workers, "pin_memory": self.on_gpu, **kept}


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to a normalised batch on the device.

    name: as the table shows it. read: batches without end; its set-up happens at the first.
    workers: processes that work beside the loop's. ours: whether it is this project's.
    batch: pictures in a batch; classes: labels lie in [0, classes).
    prepare: writes files that it reads, outside the measurement.
    stream: what it renders, where that has a roofline.
    single: whether all its work is CPU work of this one process, so that CPU seconds say what a core does.
    """

    name: str
    read: Callable[[], Iterator[Item]]
    workers: int = 0
    ours: bool = False
    batch: int
    classes: int = 10
    prepare: Callable[[], Any] = nothing
    stream: Any = None
    single: bool = True


class Normaliser:
    """Levels or unit values to normalised pixels on the device of a delivery.

    Args:
        mean, std: of each channel, in [0, 1]. full: what a white pixel is: 255 of uint8 levels, 1 of floats.
    """

    def __init__(self, delivery: Delivery, mean: Sequence[float], std: Sequence[float], full: float = 255.0) -> None:
        self.device, self.dtype = torch.device(delivery.device), delivery.dtype
        self.shift = torch.tensor(mean, device=self.device).view(3, 1, 1) * full
        self.factor = 1.0 / (torch.tensor(std, device=self.device).view(3, 1, 1) * full)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Item:
        """An `Item` of (B, 3, H, W) pixels and (B,) labels, wherever they are."""
        images = images.to(self.device, non_blocking=True).float()
        labels = labels.to(self.device, non_blocking=True)
        return images.sub_(self.shift).mul_(self.factor).to(self.dtype), labels


def placed(images: torch.Tensor, labels: torch.Tensor, delivery: Delivery) -> Item:
    """An `Item` of pixels that are normalised already."""
    device = torch.device(delivery.device)
    images = images.to(device, non_blocking=True).to(delivery.dtype)
    return images, labels.to(device, non_blocking=True)
