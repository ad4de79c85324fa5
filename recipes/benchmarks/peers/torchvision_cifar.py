"""torchvision's CIFAR-10 with PIL transforms in worker processes: what most scripts do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item, placed
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures
from torch.utils.data import DataLoader

from fractal_streams.errors import missing_extra

try:
    from torchvision import transforms
    from torchvision.datasets import CIFAR10
except ImportError:
    raise missing_extra("torchvision", "torchvision") from None


class StoredCifar(CIFAR10):
    """CIFAR-10's class without the checksums of CIFAR-10's files."""

    train_list: ClassVar[list[Any]] = [[name, None] for name, _ in CIFAR10.train_list]
    test_list: ClassVar[list[Any]] = [[name, None] for name, _ in CIFAR10.test_list]
    meta: ClassVar[dict[str, Any]] = {**CIFAR10.meta, "md5": None}

    @classmethod
    def of(cls, pictures: Pictures, augment: Callable[[Any], Any]) -> StoredCifar:
        """From CIFAR-10's files; of another size than theirs from arrays, as the class holds them."""
        if pictures.size == 32:
            return cls(pictures.cifar, train=True, transform=augment)
        dataset = cls.__new__(cls)
        dataset.data, dataset.targets = pictures.images, pictures.labels.tolist()
        dataset.transform, dataset.target_transform = augment, None
        return dataset


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """At every number of workers."""
    return [
        Contestant(
            name="torchvision CIFAR-10, PIL", batch=delivery.batch, workers=workers,
            prepare=lambda: pictures.cifar if delivery.size == 32 else pictures.images,
            read=partial(read, delivery, pictures, workers),
        )
        for workers in delivery.workers
    ]  # fmt: skip


def read(delivery: Delivery, pictures: Pictures, workers: int) -> Iterator[Item]:
    """RandomCrop with padding, RandomHorizontalFlip, ToTensor, Normalize; shuffled."""
    augment = transforms.Compose([
        transforms.RandomCrop(delivery.size, padding=delivery.padding), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(pictures.mean, pictures.std),
    ])  # fmt: skip
    dataset = StoredCifar.of(pictures, augment)
    settings = delivery.loader(workers)
    loader: DataLoader[Any] = DataLoader(dataset, delivery.batch, shuffle=True, drop_last=True, **settings)
    while True:
        for images, labels in loader:
            yield placed(images, labels, delivery)
