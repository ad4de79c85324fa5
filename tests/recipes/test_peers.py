"""What each contestant delivers: the stored pictures, shifted and mirrored at most, each with its own label."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Normaliser
from fractal_streams.recipes.benchmarks.peers.pictures import SOURCE, Pictures

from fractal_streams import open_stream
from fractal_streams.errors import DeviceError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
COUNT, BATCH = 64, 16
DELIVERY = Delivery(device="cpu", size=32, batch=BATCH, workers=(0,))
NEEDS = {
    "resident": "torch", "torchvision_cifar": "torchvision", "huggingface": "datasets", "web": "webdataset",
    "dali": "nvidia.dali", "ffcv_files": "ffcv",
}  # fmt: skip
"""Module of stored pictures to the package that it reads them with."""
WHOLE = {"huggingface", "web"}
"""Those that augment nothing."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(tmp_path_factory.mktemp("pictures"), count=COUNT, size=32, shards=2)


def drawn(module: str, pictures: Pictures) -> list[Contestant]:
    pytest.importorskip(NEEDS[module])
    peers: Any = importlib.import_module(f"fractal_streams.recipes.benchmarks.peers.{module}")
    return list(peers.contestants(DELIVERY, pictures))


def levels(images: Any, pictures: Pictures) -> np.ndarray:
    """(B, H, W, 3) levels of normalised (B, 3, H, W)."""
    values = images.numpy().transpose(0, 2, 3, 1) * np.array(pictures.std) + np.array(pictures.mean)
    exact = 255.0 * values
    assert np.abs(exact - exact.round()).max() < 0.01
    return exact.round().astype(np.uint8)


def origin(image: np.ndarray, label: int, pictures: Pictures, most: int) -> int | None:
    """The stored picture of this label that the image is a shift, and maybe the mirror, of."""
    for number in np.flatnonzero(pictures.labels == label):
        stored = pictures.images[number]
        for seen in (image, image[:, ::-1]):
            for down in range(-most, most + 1):
                for across in range(-most, most + 1):
                    rows, columns = slice(max(0, -down), 32 - max(0, down)), slice(max(0, -across), 32 - max(0, across))
                    part = stored[rows.start + down : rows.stop + down, columns.start + across : columns.stop + across]
                    if np.array_equal(seen[rows, columns], part):
                        return int(number)
    return None


@pytest.mark.parametrize("module", NEEDS)
def test_a_batch_is_of_stored_pictures_with_their_labels(module: str, pictures: Pictures) -> None:
    most = 0 if module in WHOLE else DELIVERY.padding
    for contestant in drawn(module, pictures):
        contestant.prepare()
        batches = contestant.read()
        images, labels = next(batches)
        assert images.shape == (BATCH, 3, 32, 32) and images.dtype == torch.float32
        shown = levels(images, pictures)
        found = [origin(image, int(label), pictures, most) for image, label in zip(shown, labels, strict=True)]
        assert None not in found, contestant.name
        assert len(set(found)) == BATCH  # of an epoch, where each is once
        if most:
            stored = pictures.images[found]
            assert (shown != stored).any((1, 2, 3)).sum() > 0
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["resident", "torchvision_cifar"])
def test_an_epoch_has_every_picture_once_and_the_next_another_order(module: str, pictures: Pictures) -> None:
    """By the middle of a picture, which no shift of 4 takes away: its own, or its mirror's."""
    for contestant in drawn(module, pictures):
        contestant.prepare()
        batches = list(islice(contestant.read(), 2 * COUNT // BATCH))
        orders = []
        for epoch in (batches[: COUNT // BATCH], batches[COUNT // BATCH :]):
            images, labels = (torch.cat(column) for column in zip(*epoch, strict=True))
            shown = levels(images, pictures)
            orders.append([origin(*each, pictures, 4) for each in zip(shown, labels.tolist(), strict=True)])
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT))  # type: ignore[type-var]
        assert orders[0] != orders[1]


def test_the_pictures_are_the_streams_first(pictures: Pictures) -> None:
    truth = open_stream(SOURCE, device="cpu").generate(range(COUNT))
    assert np.array_equal(pictures.images, truth.images.transpose(0, 2, 3, 1))
    assert np.array_equal(pictures.labels, truth.labels)
    units = truth.images / 255.0
    assert np.allclose(pictures.mean, units.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(pictures.std, units.std((0, 2, 3)), atol=1e-6)


def test_another_size_needs_no_files(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from fractal_streams.recipes.benchmarks.peers.torchvision_cifar import StoredCifar

    own = Pictures(tmp_path, count=8, size=16, shards=1)
    dataset = StoredCifar.of(own, np.asarray)
    assert len(dataset) == 8 and list(tmp_path.iterdir()) == []
    for number in range(8):
        image, label = dataset[number]
        assert np.array_equal(image, own.images[number]) and label == own.labels[number]


def test_ours_come_from_every_path(pictures: Pictures) -> None:
    from fractal_streams.recipes.benchmarks.peers import ours

    delivery = Delivery(device="cpu", size=32, batch=BATCH, workers=(0, 1))
    found = ours.contestants(delivery, pictures)
    assert [(each.workers, each.ours) for each in found] == [(0, True), (1, True)]
    for contestant in found:
        batches = contestant.read()
        images = torch.cat([next(batches)[0] for _ in range(2)])
        assert np.array_equal(levels(images, pictures), pictures.images[: 2 * BATCH])
        batches.close()  # type: ignore[attr-defined]


def test_the_seed_is_refused_without_a_gpu(pictures: Pictures) -> None:
    pytest.importorskip("triton")
    from fractal_streams.recipes.benchmarks.peers import first_seed

    with pytest.raises(DeviceError, match="needs a GPU"):
        first_seed.contestants(DELIVERY, pictures)


@pytest.mark.slow
def test_iterated_function_systems_are_their_class_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from fractal_streams.recipes.benchmarks.peers import ifs

    monkeypatch.setattr(ifs.ifs_renderer, "POINTS", 2000)
    systems, again = ifs.Systems(32), ifs.Systems(32)
    for index in (3, 13, 14):
        image, label = systems[index]
        assert label == index % ifs.CLASSES and torch.equal(image, again[index][0])
        drawn = (image.amax(0) > 0).float().mean()
        assert 0.02 < drawn < 0.98
    assert not torch.equal(systems[3][0], systems[13][0])
    images, labels = next(ifs.read(DELIVERY, 0))
    assert images.shape == (ifs.BATCH, 3, 32, 32) and int(labels.max()) < ifs.CLASSES


def test_normalisation_is_of_units() -> None:
    normalise = Normaliser(DELIVERY, (0.25, 0.5, 0.75), (0.5, 0.25, 0.125))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    made, labels = normalise(images, torch.arange(3))
    expected = [[-0.5, -2.0, -6.0], [-0.1, -1.2, -4.4], [1.5, 2.0, 2.0]]
    assert torch.allclose(made[:, :, 0, 0], torch.tensor(expected), atol=1e-6)
    assert images.max() == 255 and labels.tolist() == [0, 1, 2]
