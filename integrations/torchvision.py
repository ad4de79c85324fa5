"""torchvision's datasets without the download: change one line of a script and it trains on fractals.

    from fractal_streams.integrations.torchvision import FractalCIFAR10 as CIFAR10

A dataset is the first `length` samples of one split of a stream. Nothing is read from `root` and
nothing written to it. Pictures are rendered when asked for, a whole DataLoader batch in one call.
`data` and `targets` are made when first read; from then on, or once a script has replaced them,
samples come from them, so that a script may filter, poison or relabel as it would the original.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fractal_streams.device import resolve_device
from fractal_streams.errors import IndexRangeError, InvalidValueError, missing_extra, unknown_name
from fractal_streams.labels import class_title
from fractal_streams.luma import luma
from fractal_streams.presets import find_preset, open_stream
from fractal_streams.shard import Shard
from fractal_streams.spec import StreamSpec, one_of, whole
from fractal_streams.stream import Stream

try:
    import torch
    from PIL import Image
    from torch.utils.data import IterableDataset, get_worker_info
    from torchvision.datasets import CIFAR10, CIFAR100, MNIST, ImageNet, VisionDataset
    from tqdm.auto import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise missing_extra(error.name or "torchvision", "torchvision") from error

__all__ = ["FractalCIFAR10", "FractalCIFAR100", "FractalImageNet", "FractalMNIST"]

UInt8 = npt.NDArray[np.uint8]
Transform = Callable[[Any], Any]

BLOCK = 4096
"""Pictures rendered at a time while `data` is made."""


class _lazy(cached_property):  # type: ignore[type-arg]
    """A `cached_property` that torchvision's v2 wrapper, a subclass of what it wraps, shares with the wrapped."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return super().__get__(None if instance is None else vars(instance).get("_dataset", instance), owner)


class Generated(VisionDataset):
    """What the four datasets share: a stream in the place of files.

    Args:
        root: shown in the repr, never opened.
        train: True is the stream's split "train", False its split "test".
        transform, target_transform: as in torchvision, applied to the PIL image and to the int.
        download: accepted, does nothing.
        length: samples; None is as many as the original has; for a stream without end see `endless`.
        seed: names the stream's randomness; the classes of a seed are the same in both splits.
        device: "auto" renders on a GPU in the main process and on the CPU in worker processes.
        overrides: fields of the preset's spec, such as num_classes, priors, iterations or colouring.

    Raises:
        InvalidValueError, UnknownNameError: names the argument, the value and what is allowed.
        DeviceError: a GPU asked for by name that is not there, or from within a worker process.
    """

    preset: ClassVar[str]
    lengths: ClassVar[tuple[int, int]]
    held_out: ClassVar[str] = "test"
    _levels: Callable[[UInt8], UInt8] = staticmethod(np.asarray)
    _target: Callable[[Any], Any] = staticmethod(lambda target: target)

    def __init__(
        self,
        root: str | Path | None = None,
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
        *,
        length: int | None = None,
        seed: int = 0,
        device: str = "auto",
        **overrides: Any,
    ) -> None:
        VisionDataset.__init__(self, root, transform=transform, target_transform=target_transform)
        self.train = bool(train)
        if length in (math.inf, "endless"):
            raise InvalidValueError(f"length={length!r}: for no end use {type(self).__name__}.endless(...)")
        self.length = whole(self.lengths[not train] if length is None else length, "length", 1, sys.maxsize, "samples")
        self.seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.device = device
        self.overrides = overrides
        self._opened: tuple[int, Stream] | None = None
        for name in overrides.keys() - StreamSpec.__dataclass_fields__.keys():
            raise unknown_name("keyword", name, (*StreamSpec.__dataclass_fields__, "length", "seed", "device"))
        self.num_classes = self.spec.num_classes
        if device != "auto":
            resolve_device(device)

    @classmethod
    def endless(cls, *arguments: Any, batch_size: int = 64, start: int = 0, **settings: Any) -> EndlessDataset:
        """The same samples in their order and without end, for a DataLoader that does not shuffle.

        Args:
            arguments, settings: of the constructor, without `length`.
            batch_size: samples rendered at once; the loader's own, and their order is the same with any
                number of workers.
            start: index to begin at, 0 or more.

        Example:
            >>> image, target = next(iter(FractalCIFAR10.endless("./data", train=True)))
            >>> image.size
            (32, 32)
        """
        if "length" in settings:
            raise InvalidValueError(f"{cls.__name__}.endless has no end: leave out length={settings['length']!r}")
        return EndlessDataset(cls(*arguments, length=sys.maxsize, **settings), batch_size, start)

    @property
    def spec(self) -> StreamSpec:
        """What is drawn: the preset's spec with the overrides."""
        spec: StreamSpec = find_preset(self.preset)
        return spec.replace(**self.overrides)

    @property
    def stream(self) -> Stream:
        """Where the pictures come from; opened anew in each process, so that none uses its parent's threads or GPU."""
        if self._opened is None or self._opened[0] != os.getpid():
            asked = {"seed": self.seed, "split": "train" if self.train else self.held_out, "device": self.device}
            self._opened = (os.getpid(), open_stream(self.spec, channels_last=True, **asked))
        return self._opened[1]

    @_lazy
    def classes(self) -> list[Any]:
        """Names of the classes."""
        return [class_title(self.spec, label) for label in range(self.num_classes)]

    @_lazy
    def class_to_idx(self) -> dict[str, int]:
        """Number of each class by its name."""
        return {name: label for label, name in enumerate(self.classes)}

    @_lazy
    def data(self) -> Any:
        """(N, H, W, 3) uint8 array."""
        return self._all_pictures()

    @_lazy
    def targets(self) -> Any:
        """The N classes as a list of int; nothing is rendered for it."""
        return self.stream.labels(range(self.length)).tolist()

    def __len__(self) -> int:
        return len(self.data) if self._holds("data") else self.length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """The transformed (PIL image, int) of an index from -len to len - 1."""
        return next(self._items([index]))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """What `__getitem__` gives for each index, rendered in one call; a DataLoader asks for this."""
        if type(self).__getitem__ is not Generated.__getitem__:
            return [self[index] for index in indices]
        return list(self._items(indices))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def download(self) -> None:
        """Nothing: there is nothing to download."""

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.overrides.items())
        return f"Split: {'Train' if self.train else 'Test'}\nStream: {self.preset}, seed {self.seed}{settings}"

    def _check_integrity(self) -> bool:
        return True

    def _holds(self, name: str) -> bool:
        """Whether an attribute made on demand has been made, or assigned."""
        return name in vars(self)

    def _items(self, indices: Sequence[int]) -> Iterator[tuple[Any, Any]]:
        """Transformed samples, one after the other."""
        count = len(self)
        places = [index.__index__() for index in indices]
        for place in places:
            if not -count <= place < count:
                raise IndexRangeError(f"index {place} is outside a dataset of {count}: give -{count} to {count - 1}")
        for image, target in self._samples([place % count for place in places]):
            shown = image if self.transform is None else self.transform(image)
            yield shown, target if self.target_transform is None else self.target_transform(target)

    def _samples(self, places: Sequence[int]) -> Iterable[tuple[Any, int]]:
        """(PIL image, target) of each place; what is held is not made again."""
        pictures: Iterable[Any]
        labels: Iterable[int]
        if self._holds("data"):
            pictures = (np.asarray(self.data[place]) for place in places)
            labels = () if self._holds("targets") else self.stream.labels(places).tolist()
        else:
            batch = self.stream.generate(places).numpy()
            pictures, labels = self._levels(batch.images), batch.labels.tolist()
        if self._holds("targets"):
            labels = (self._target(self.targets[place]) for place in places)
        return zip(map(Image.fromarray, pictures), labels, strict=True)

    def _all_pictures(self) -> UInt8:
        empty = self._levels(np.empty((0, self.spec.height, self.spec.width, 3), np.uint8))
        pictures = np.empty((self.length, *empty.shape[1:]), np.uint8)
        blocks = range(0, self.length, BLOCK)
        for first in tqdm(blocks, f"{type(self).__name__} data", unit="block", delay=2.0, disable=None, leave=False):
            last = min(first + BLOCK, self.length)
            pictures[first:last] = self._levels(self.stream.generate(range(first, last)).numpy().images)
        return pictures


class FractalCIFAR10(Generated, CIFAR10):
    """Ten classes of 32 x 32 fractals in the place of `torchvision.datasets.CIFAR10`; see `Generated`.

    Example:
        >>> train = FractalCIFAR10("./data", train=True, download=True)
        >>> image, target = train[0]
        >>> len(train), image.size, image.mode, train.classes[target]
        (50000, (32, 32), 'RGB', 'class 5')
    """

    preset = "fractal-10"
    lengths = (50_000, 10_000)


class FractalCIFAR100(Generated, CIFAR100):
    """A hundred classes of 32 x 32 fractals in the place of `torchvision.datasets.CIFAR100`; see `Generated`.

    Example:
        >>> len(FractalCIFAR100("./data", train=False).classes)
        100
    """

    preset = "fractal-100"
    lengths = (50_000, 10_000)


class FractalMNIST(Generated, MNIST):
    """Ten classes of 28 x 28 grey fractals in the place of `torchvision.datasets.MNIST`; see `Generated`.

    `data` is an (N, 28, 28) uint8 tensor and `targets` an (N,) int64 tensor, as in torchvision.

    Example:
        >>> image, target = FractalMNIST("./data", train=True)[0]
        >>> image.size, image.mode
        ((28, 28), 'L')
    """

    preset = "fractal-mnist"
    lengths = (60_000, 10_000)
    _levels, _target = staticmethod(luma), staticmethod(int)

    @_lazy
    def data(self) -> torch.Tensor:
        """(N, H, W) uint8 tensor."""
        return torch.from_numpy(self._all_pictures())

    @_lazy
    def targets(self) -> torch.Tensor:
        """(N,) int64 tensor of the classes; nothing is rendered for it."""
        return torch.from_numpy(self.stream.labels(range(self.length)))

    def _check_exists(self) -> bool:
        return True


class FractalImageNet(Generated, ImageNet):
    """A thousand classes of 224 x 224 fractals in the place of `torchvision.datasets.ImageNet`; see `Generated`.

    split: "train", or "val", which is the stream's split "validation"; or say it by `train=`.
    `samples` (also `imgs`) is a list of (address, class), made when first read, which may be replaced;
    `loader(address)` renders one picture. As in torchvision, samples come from it and not from `targets`.

    Example:
        >>> val = FractalImageNet("./data", split="val")
        >>> len(val), val[0][0].size
        (50000, (224, 224))
    """

    preset = "fractal-1k"
    lengths = (1_281_167, 50_000)
    held_out = "validation"

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
        *,
        train: bool | None = None,
        **settings: Any,
    ) -> None:
        if train is not None:
            split = "train" if train else "val"
        one_of(split, "split", ("train", "val"))
        Generated.__init__(self, root, split == "train", transform, target_transform, download, **settings)
        self.split = split

    @_lazy
    def classes(self) -> list[Any]:
        """A tuple of names for each class."""
        return [(class_title(self.spec, label),) for label in range(self.num_classes)]

    @_lazy
    def class_to_idx(self) -> dict[str, int]:
        """Number of each class by each of its names."""
        return {name: label for label, names in enumerate(self.classes) for name in names}

    @_lazy
    def wnid_to_idx(self) -> dict[str, int]:
        """Number of each class by an identifier in WordNet's form; `wnids` lists these."""
        return {f"f{label:08d}": label for label in range(self.num_classes)}

    wnids = property(lambda self: list(self.wnid_to_idx))

    @_lazy
    def samples(self) -> list[tuple[str, int]]:
        """(address, class) of each sample."""
        labels = self.stream.labels(range(self.length)).tolist()
        return [(f"{self.preset}/{self.split}/f{label:08d}/{index}", label) for index, label in enumerate(labels)]

    @property
    def data(self) -> Any:
        """Not there, as in torchvision: the pictures of this many samples fit no memory."""
        raise AttributeError(f"{type(self).__name__} has no `data`: read samples by index")

    imgs = property(lambda self: self.samples)

    def loader(self, path: str) -> Any:
        """The PIL image of an address."""
        return next(iter(self._pictures([path])))

    def __len__(self) -> int:
        return len(self.samples) if self._holds("samples") else self.length

    def extra_repr(self) -> str:
        return Generated.extra_repr(self).replace("Split: Test", "Split: Val")

    def _samples(self, places: Sequence[int]) -> Iterable[tuple[Any, int]]:
        if not self._holds("samples"):
            batch = self.stream.generate(places).numpy()
            return zip(map(Image.fromarray, batch.images), batch.labels.tolist(), strict=True)
        chosen = [self.samples[place] for place in places]
        return zip(self._pictures([path for path, _ in chosen]), (label for _, label in chosen), strict=True)

    def _pictures(self, paths: Sequence[str]) -> Iterable[Any]:
        home = f"{self.preset}/{self.split}/"
        numbers = [path.rpartition("/")[2] for path in paths]
        for path, number in zip(paths, numbers, strict=True):
            if not path.startswith(home) or not number.isdecimal():
                raise InvalidValueError(f"an address of this dataset is {home}CLASS/INDEX, got {path!r}")
        return map(Image.fromarray, self.stream.generate([int(number) for number in numbers]).numpy().images)


class EndlessDataset(IterableDataset[tuple[Any, Any]]):
    """Samples of `Generated` for ever, each once over all workers and ranks; made by `endless`."""

    def __init__(self, samples: Generated, batch_size: int, start: int) -> None:
        self.samples = samples
        self.batch_size = whole(batch_size, "batch_size", 1, 2**31 - 1, "samples")
        self.start = whole(start, "start", 0, sys.maxsize, "")
        self._parent: tuple[int, Shard] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        process, worker = multiprocessing.parent_process(), get_worker_info()
        sent = self._parent if process and self._parent and self._parent[0] == process.pid else None
        shard = sent[1] if sent else Shard.detect()
        if worker is not None:
            shard = Shard(worker.id * shard.world_size + shard.rank, worker.num_workers * shard.world_size)
        for step in itertools.count():
            yield from self.samples.__getitems__(shard.interval(step, self.batch_size, self.start, end=sys.maxsize))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parent": (os.getpid(), Shard.detect())}  # a spawned worker has no group to ask

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "samples":
            raise AttributeError(name)
        return getattr(self.samples, name)
