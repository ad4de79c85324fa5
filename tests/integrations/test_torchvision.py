"""torchvision's conventions: what a script for CIFAR, MNIST or ImageNet finds."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from fractal_streams.integrations.torchvision import (
    FractalCIFAR10,
    FractalCIFAR100,
    FractalImageNet,
    FractalMNIST,
)
from PIL import Image
from torch.utils.data import DataLoader, Subset, random_split
from torchvision import datasets, transforms
from torchvision.transforms import v2

from fractal_streams import open_stream
from fractal_streams.errors import (
    DeviceError,
    IndexRangeError,
    InvalidValueError,
    UnknownNameError,
)
from fractal_streams.luma import luma

CLASSES = {
    FractalCIFAR10: (datasets.CIFAR10, "fractal-10", 10, (50_000, 10_000)),
    FractalCIFAR100: (datasets.CIFAR100, "fractal-100", 100, (50_000, 10_000)),
    FractalMNIST: (datasets.MNIST, "fractal-mnist", 10, (60_000, 10_000)),
    FractalImageNet: (datasets.ImageNet, "fractal-1k", 1000, (1_281_167, 50_000)),
}
EVERY = pytest.mark.parametrize("kind", CLASSES)
IN_MEMORY = pytest.mark.parametrize("kind", [FractalCIFAR10, FractalCIFAR100, FractalMNIST])


def small(kind, **settings):
    return kind("./nowhere", **{"length": 24, "device": "cpu", **settings})


def pixels(dataset, index):
    return np.asarray(dataset[index][0])


def collate(samples):
    return [np.asarray(image) for image, _ in samples], [target for _, target in samples]


@EVERY
def test_type_length_classes(kind):
    original, _, count, lengths = CLASSES[kind]
    train, test = kind("./nowhere", train=True, download=True), kind("./nowhere", train=False)
    assert isinstance(train, original)
    assert (len(train), len(test)) == lengths
    assert len(train.classes) == count
    assert sorted(train.class_to_idx.values()) == list(range(count))


@EVERY
@pytest.mark.parametrize("train", [True, False])
def test_samples_are_the_streams(kind, train):
    held_out = "validation" if kind is FractalImageNet else "test"
    stream = open_stream(CLASSES[kind][1], seed=3, split="train" if train else held_out, device="cpu")
    batch = stream.generate(range(4))
    dataset = small(kind, train=train, seed=3)
    for index in range(4):
        image, target = dataset[index]
        assert isinstance(image, Image.Image) and type(target) is int
        assert target == batch.labels[index]
        expected = Image.fromarray(batch.images[index].transpose(1, 2, 0))
        if kind is FractalMNIST:
            expected = expected.convert("L")
        assert image.mode == expected.mode and np.array_equal(np.asarray(image), np.asarray(expected))


def test_luma_is_pils():
    levels = np.random.default_rng(0).integers(0, 256, (64, 1024, 3), dtype=np.uint8)
    assert np.array_equal(luma(levels), np.asarray(Image.fromarray(levels).convert("L")))


@EVERY
def test_index_ends(kind):
    dataset = small(kind)
    assert np.array_equal(pixels(dataset, -1), pixels(dataset, 23))
    assert np.array_equal(pixels(dataset, np.int64(5)), pixels(dataset, torch.tensor(5)))
    for outside in (24, -25):
        with pytest.raises(IndexRangeError, match="-24 to 23"):
            dataset[outside]
    assert sum(1 for _ in dataset) == 24


@IN_MEMORY
def test_data_and_targets_equal_the_items(kind, monkeypatch):
    monkeypatch.setattr("fractal_streams.integrations.torchvision.BLOCK", 7)
    dataset = small(kind)
    items = [dataset[index] for index in range(24)]
    data, targets = dataset.data, dataset.targets
    if kind is FractalMNIST:
        assert data.dtype == torch.uint8 and data.shape == (24, 28, 28)
        assert targets.dtype == torch.int64
        data, targets = data.numpy(), targets.tolist()
    else:
        assert data.dtype == np.uint8 and data.shape == (24, 32, 32, 3)
        assert isinstance(targets, list) and {type(target) for target in targets} == {int}
    assert targets == [target for _, target in items]
    assert all(np.array_equal(data[index], np.asarray(image)) for index, (image, _) in enumerate(items))
    assert all(np.array_equal(data[index], pixels(dataset, index)) for index in range(24))


@IN_MEMORY
def test_a_script_filters(kind):
    dataset = small(kind)
    targets = np.asarray(dataset.targets)
    wanted = int(targets[0])
    kept = np.flatnonzero(targets == wanted)
    expected = [pixels(dataset, index) for index in kept]
    dataset.data = dataset.data[kept]
    dataset.targets = dataset.targets[kept] if kind is FractalMNIST else [wanted] * len(kept)
    assert len(dataset) == len(kept) < 24
    assert all(np.array_equal(pixels(dataset, place), image) for place, image in enumerate(expected))
    assert {target for _, target in dataset} == {wanted}
    with pytest.raises(IndexError):
        dataset[len(kept)]


@IN_MEMORY
def test_a_script_changes_levels_and_labels_in_place(kind):
    dataset = small(kind)
    before = pixels(dataset, 1)
    dataset.targets[3] = 77
    dataset.data[2] = 9
    assert dataset[3][1] == 77 and (pixels(dataset, 2) == 9).all()
    assert np.array_equal(pixels(dataset, 1), before)
    assert [target for _, target in dataset.__getitems__([3, 2])] == [77, dataset.targets[2]]


@IN_MEMORY
def test_only_labels_replaced(kind):
    dataset, untouched = small(kind), small(kind)
    dataset.targets = torch.arange(24) if kind is FractalMNIST else list(range(24))
    assert [target for _, target in dataset] == list(range(24))
    assert np.array_equal(pixels(dataset, 7), pixels(untouched, 7))
    assert "data" not in vars(dataset)


@IN_MEMORY
def test_only_data_replaced(kind):
    dataset, untouched = small(kind), small(kind)
    dataset.data = dataset.data[4:]
    dataset.__dict__.pop("targets", None)
    assert len(dataset) == 20
    assert np.array_equal(pixels(dataset, 0), pixels(untouched, 4))


def test_a_copy_has_data_of_its_own():
    dataset = small(FractalCIFAR10)
    dataset.data
    part = copy.copy(dataset)
    part.data, part.targets = part.data[:5], dataset.targets[:5]
    assert (len(part), len(dataset)) == (5, 24)


def test_targets_render_nothing(monkeypatch):
    monkeypatch.setattr("fractal_streams.render.numba_backend.NumbaRenderer.render", None)
    dataset = FractalImageNet("./nowhere", split="val", device="cpu")
    assert len(dataset.targets) == 50_000
    with pytest.raises(TypeError):
        dataset[0]


def test_batch_and_items_transform_alike():
    augment = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    dataset = small(FractalCIFAR10, transform=augment, target_transform=lambda target: -target)
    order = [5, 0, -1, 5]
    torch.manual_seed(0)
    together = dataset.__getitems__(order)
    torch.manual_seed(0)
    alone = [dataset[index] for index in order]
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] <= 0 for a, b in zip(together, alone, strict=True))


def test_a_loader_renders_a_batch_in_one_call(monkeypatch):
    dataset = small(FractalCIFAR10, transform=transforms.ToTensor())
    asked = []
    generate = type(dataset.stream).generate
    monkeypatch.setattr(
        type(dataset.stream), "generate", lambda self, indices: asked.append(list(indices)) or generate(self, indices)
    )
    first, *_ = DataLoader(dataset, batch_size=8)
    assert asked == [list(range(start, start + 8)) for start in (0, 8, 16)]
    assert first[0].shape == (8, 3, 32, 32) and first[0].dtype == torch.float32
    asked.clear()
    list(DataLoader(Subset(dataset, [3, 1, 20]), batch_size=3))
    assert asked == [[3, 1, 20]]


def test_a_subclass_keeps_its_own_items():
    class Poisoned(FractalCIFAR10):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            return image, 99

    dataset = Poisoned(None, length=6, device="cpu")
    assert [target for _, target in dataset.__getitems__([0, 1])] == [99, 99]


def test_random_split_covers_all():
    parts = random_split(small(FractalCIFAR10), [20, 4], generator=torch.Generator().manual_seed(0))
    indices = [index for part in parts for index in part.indices]
    assert sorted(indices) == list(range(24))
    assert parts[1][0][1] == small(FractalCIFAR10)[parts[1].indices[0]][1]


@EVERY
def test_v2_wrapper(kind):
    plain = small(kind)
    wrapped = datasets.wrap_dataset_for_transforms_v2(small(kind, transform=v2.ToImage()))
    image, target = wrapped[2]
    assert isinstance(image, torchvision.tv_tensors.Image)
    assert target == plain[2][1]
    (batched, _), *_ = wrapped.__getitems__([2])
    assert torch.equal(batched, image)
    if kind is not FractalImageNet:
        wrapped.targets[2] = 55
        assert wrapped[2][1] == 55


@EVERY
def test_pickle_is_small(kind):
    dataset = small(kind, seed=5)
    expected = pixels(dataset, 3)
    packed = pickle.dumps(dataset)
    assert len(packed) < 600
    assert np.array_equal(pixels(pickle.loads(packed), 3), expected)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_samples(context):
    dataset = small(FractalCIFAR10)
    here = list(DataLoader(dataset, batch_size=5, collate_fn=collate))
    there = list(DataLoader(dataset, batch_size=5, collate_fn=collate, num_workers=2, multiprocessing_context=context))
    for (images, targets), (other_images, other_targets) in zip(here, there, strict=True):
        assert targets == other_targets
        assert all(np.array_equal(a, b) for a, b in zip(images, other_images, strict=True))


def test_devices(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="device='cpu'"):
            small(FractalCIFAR10, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    settings = {"batch_size": 4, "collate_fn": collate, "num_workers": 1, "multiprocessing_context": "fork"}
    expected = next(iter(DataLoader(small(FractalCIFAR10), batch_size=4, collate_fn=collate)))
    automatic = next(iter(DataLoader(small(FractalCIFAR10, device="auto"), **settings)))
    assert automatic[1] == expected[1]
    with pytest.raises(DeviceError, match="num_workers=0"):
        next(iter(DataLoader(small(FractalCIFAR10, device="cuda"), **settings)))


@EVERY
def test_nothing_is_written(kind, tmp_path: Path):
    dataset = kind(tmp_path / "data", download=True, length=4, device="cpu")
    dataset.download()
    dataset[0]
    assert list(tmp_path.iterdir()) == []
    assert dataset._check_integrity()


def test_repr_says_what_is_drawn():
    text = repr(small(FractalCIFAR10, train=False, seed=4, iterations=12, transform=transforms.ToTensor()))
    assert text.splitlines()[:6] == [
        "Dataset FractalCIFAR10",
        "    Number of datapoints: 24",
        "    Root location: ./nowhere",
        "    Split: Test",
        "    Stream: fractal-10, seed 4, iterations=12",
        "    StandardTransform",
    ]


def test_overrides_reach_the_stream():
    dataset = small(FractalCIFAR10, num_classes=3, height=48, width=64)
    assert dataset[0][0].size == (64, 48)
    assert dataset.classes == ["class 0", "class 1", "class 2"]
    families = small(FractalCIFAR10, formulas=("mandelbrot", "sine"), num_classes=2, priors={})
    assert families.classes == ["mandelbrot", "sine"]
    assert np.array_equal(families.data[3], pixels(families, 3))


def test_bad_values():
    with pytest.raises(InvalidValueError, match="length"):
        small(FractalCIFAR10, length=0)
    with pytest.raises(InvalidValueError, match="length"):
        small(FractalCIFAR10, length=float("inf"))
    with pytest.raises(UnknownNameError, match="did you mean 'iterations'"):
        small(FractalCIFAR10, iteration=5)
    with pytest.raises(InvalidValueError, match="num_classes"):
        small(FractalCIFAR10, num_classes=0)
    with pytest.raises(InvalidValueError, match="'train', 'val'"):
        small(FractalImageNet, split="test")
    with pytest.raises(AttributeError, match="by index"):
        small(FractalImageNet).data


def test_imagenet_addresses():
    dataset = small(FractalImageNet, split="val", height=32, width=32)
    expected = [pixels(dataset, index) for index in range(6)]
    label = dataset[4][1]
    assert dataset.samples[4] == dataset.imgs[4] == (f"fractal-1k/val/{dataset.wnids[label]}/4", label)
    assert np.array_equal(np.asarray(dataset.loader(dataset.samples[4][0])), expected[4])
    dataset.samples = [dataset.samples[5], (dataset.samples[2][0], 7)]
    assert len(dataset) == 2
    assert np.array_equal(pixels(dataset, 0), expected[5]) and dataset[1][1] == 7
    assert dataset.classes[label] == (f"class {label}",) and dataset.wnid_to_idx[dataset.wnids[label]] == label
    with pytest.raises(InvalidValueError, match="CLASS/INDEX"):
        dataset.loader("fractal-1k/train/f00000000/4")
    assert small(FractalImageNet, train=False).split == "val"


def indexed(**settings):
    """An endless dataset whose samples tell their index: a million classes in turn."""
    shape = {"labels": "balanced", "num_classes": 10**6, "height": 8, "width": 8}
    return FractalCIFAR10.endless(None, device="cpu", **shape, **settings)


def targets_of(samples):
    return [target for _, target in samples]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_endless_keeps_its_order(workers):
    loader = DataLoader(indexed(batch_size=4, start=6), batch_size=4, num_workers=workers, collate_fn=targets_of)
    assert [*itertools.chain(*itertools.islice(loader, 6))] == list(range(6, 30))


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_shares_between_ranks(workers, monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        loader = DataLoader(indexed(batch_size=2), batch_size=2, num_workers=workers, collate_fn=targets_of)
        seen += itertools.chain(*itertools.islice(loader, 4))
    assert sorted(seen) == list(range(24))


def test_endless_tells_a_spawned_worker_its_rank(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    packed = pickle.dumps(indexed(batch_size=2))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert len(packed) < 600
    parent = os.getpid()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=parent))
    assert [target for _, target in itertools.islice(pickle.loads(packed), 4)] == [4, 5, 10, 11]
    parent += 1
    assert [target for _, target in itertools.islice(pickle.loads(packed), 4)] == [0, 1, 2, 3]


@EVERY
def test_endless_has_the_same_samples(kind):
    finite, endless = small(kind, train=False), kind.endless(None, train=False, device="cpu", batch_size=3)
    for index, (image, target) in enumerate(itertools.islice(endless, 7)):
        assert target == finite[index][1] and np.array_equal(np.asarray(image), pixels(finite, index))
    assert endless.classes == finite.classes
    with pytest.raises(TypeError):
        len(endless)
    with pytest.raises(InvalidValueError, match="leave out"):
        kind.endless(None, length=5)
    with pytest.raises(InvalidValueError, match=f"{kind.__name__}.endless"):
        kind(None, length=float("inf"))


SCRIPT = """
import torch, torchvision, torchvision.transforms as transforms
from {module} import {name} as CIFAR10

augment = transforms.Compose([
    transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
])
train = CIFAR10(root="./data", train=True, download=True, transform=augment)
train = torch.utils.data.Subset(train, range(384))
loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True, num_workers=workers)
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, stride=2), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(128, 10),
)
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
losses = []
for epoch in range(8):
    total = 0.0
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(targets)
    losses.append(total / len(train))
"""


def test_a_script_for_cifar_learns(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {"workers": 1}
    exec(SCRIPT.format(module="fractal_streams.integrations.torchvision", name="FractalCIFAR10"), scope)
    assert scope["losses"][-1] < 0.9 * np.log(10) < scope["losses"][0] * 1.05
    assert list(tmp_path.iterdir()) == []
