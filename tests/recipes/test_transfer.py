"""Transfer: pictures of one's own are read as they are, and both trainings learn them, resume and are told."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

for package in ("accelerate", "datasets", "timm", "torchvision"):
    pytest.importorskip(package)

import torch
from fractal_streams.recipes import checkpoint, transfer
from fractal_streams.recipes.models.classifiers import load_classifier
from fractal_streams.recipes.real_images import real_images
from fractal_streams.recipes.transfer import TransferResult, TransferSettings
from PIL import Image
from torchvision import datasets

from fractal_streams.errors import InvalidValueError, UnknownNameError

KINDS = ("bars", "dots", "rings")


def picture(kind: str, number: int, height: int = 12, width: int = 14) -> npt.NDArray[np.uint8]:
    """(height, width, 3) of a pattern with a scale, a phase and colours of its own, in noise."""
    draw = np.random.default_rng([KINDS.index(kind), number])
    scale, phase = draw.uniform(0.8, 1.4), draw.uniform(0, 6)
    y, x = np.mgrid[:height, :width]
    across, along = np.sin(scale * x + phase), np.sin(scale * y + phase)
    values = {"bars": across, "dots": across * along, "rings": np.sin(scale * np.hypot(x - 7, y - 6) + phase)}[kind]
    levels = 127 + 100 * values[..., None] * draw.uniform(0.4, 1.0, 3) + draw.normal(0, 5, (height, width, 3))
    return levels.clip(0, 255).astype(np.uint8)


def folder_of(place: Path, count: int, first: int = 0) -> Path:
    for kind in KINDS:
        (place / kind).mkdir(parents=True)
        for number in range(first, first + count):
            Image.fromarray(picture(kind, number)).save(place / kind / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    folder_of(place / "train", 40)
    folder_of(place / "test", 20, first=1000)
    return place


def tiny(photos: Path, folder: Path, **changes: Any) -> TransferSettings:
    asked: dict[str, Any] = {
        "data": str(photos), "cache": folder.parent / "cache", "folder": folder, "image_size": 8, "embed_dim": 16,
        "depth": 1, "num_heads": 2, "pretrain": "fractal-10", "pretrain_steps": 10, "pretrain_batch_size": 16,
        "pretrain_samples": 50,
        "num_steps": 40, "batch_size": 24, "warmup_steps": 5, "lr": 1e-2, "eval_once_every": 20, "device": "cpu",
        "record_every": 10, "checkpoint_every": 20, "quiet": True,
    }  # fmt: skip
    return TransferSettings(**{**asked, **changes})


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TransferSettings, TransferResult]:
    asked = tiny(photos, tmp_path_factory.mktemp("transfer") / "run")
    return asked, transfer.run(asked)


def test_both_starts_learn_the_pictures(done: tuple[TransferSettings, TransferResult]) -> None:
    asked, result = done
    assert result.pretrained is not None and result.classes == KINDS
    assert (result.train, result.test, result.origin) == (120, 60, "fractal-10")
    for one in (result.pretrained, result.scratch):
        assert one.low > 1 / 3 and one.low < one.accuracy < one.high  # better than chance
        assert [seen for seen, _ in one.curve] == [20 * 24, 40 * 24] and one.curve[-1][1] == one.accuracy
    told = json.loads((asked.folder / "result.json").read_text())
    assert told["scratch"]["accuracy"] == result.scratch.accuracy and told["classes"] == list(KINDS)
    assert (asked.folder / "transfer.png").stat().st_size > 10_000


def weights(folder: Path) -> dict[str, torch.Tensor]:
    place = checkpoint.latest(folder / "checkpoint")
    assert place is not None
    return checkpoint.load(place)["network"]  # type: ignore[no-any-return]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("start, step", [("scratch", 30), ("pretrained", 10)])
def test_a_run_that_is_stopped_goes_on(
    start: str, step: int, done: tuple[TransferSettings, TransferResult], tmp_path: Path, monkeypatch: Any
) -> None:
    """Bit for bit, from the last checkpoint, or from the beginning if it has none; nothing is told before the end."""
    first, result = done
    asked = replace(first, folder=tmp_path / "run", weights=first.folder / "pretraining")
    written = transfer.Journal.write

    def write(journal: Any, record: Any, figures: Any) -> None:
        if journal.folder.name == start and record.step == step:
            raise Stopped
        written(journal, record, figures)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(transfer.Journal, "write", write)
        transfer.run(asked)
    place = checkpoint.latest(asked.folder / start / "checkpoint")
    assert (int(place.name.split("-")[1]) if place else 0) == step // 20 * 20
    assert not (asked.folder / "result.json").exists()
    found = transfer.run(asked)
    assert (found.pretrained, found.scratch) == (result.pretrained, result.scratch)
    for each in ("pretrained", "scratch"):
        mine, other = weights(asked.folder / each), weights(first.folder / each)
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_pretrained_network_keeps_all_but_its_head(done: tuple[TransferSettings, TransferResult]) -> None:
    asked, _ = done
    trained = load_classifier(asked.folder / "pretraining").state_dict()
    network, fresh = (transfer.network_of(asked, start, 3).state_dict() for start in ("pretrained", "scratch"))
    kept = {name for name in trained if trained[name].shape == network[name].shape and name in network}
    assert {name for name in trained if name not in kept} == {"head.weight", "head.bias"}
    assert all(torch.equal(trained[name], network[name]) for name in kept)
    assert network["head.weight"].shape == fresh["head.weight"].shape == (3, 16)
    assert not torch.equal(fresh["patch_embed.proj.weight"], network["patch_embed.proj.weight"])
    again = transfer.network_of(asked, "scratch", 3).state_dict()
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)


def test_weights_of_another_size_or_of_none_are_refused(
    done: tuple[TransferSettings, TransferResult], tmp_path: Path
) -> None:
    asked = replace(done[0], weights=done[0].folder / "pretraining")
    with pytest.raises(InvalidValueError, match="image_size=8"):
        transfer.run(replace(asked, image_size=4, folder=tmp_path / "one"))
    with pytest.raises(InvalidValueError, match="no trained network"):
        transfer.run(replace(asked, weights=tmp_path, folder=tmp_path / "two"))


def test_from_scratch_alone_and_a_residual_network(photos: Path, tmp_path: Path) -> None:
    asked = tiny(photos, tmp_path / "run", pretrain="none", num_steps=1, warmup_steps=0, model="resnet18", batch_size=4)
    result = transfer.run(asked)
    assert result.pretrained is None and result.origin == "none"
    assert {"conv1.weight", "fc.weight"} <= weights(tmp_path / "run" / "scratch").keys()


def test_a_residual_network_gets_a_new_head() -> None:
    network = transfer.with_new_head(transfer.residual_network("resnet18", num_classes=10, image_size=8), 3)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_part_is_the_pictures_of_its_folder(photos: Path, tmp_path: Path) -> None:
    images = real_images(photos, 12, cache=tmp_path)
    test = images.stream("test", device="cpu")
    batch = test.generate(range(60))
    assert test.count == 60 and batch.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    expected = [picture(kind, number) for kind in KINDS for number in range(1000, 1020)]
    assert np.array_equal(batch.images, np.stack(expected)[:, :, 1:13].transpose(0, 3, 1, 2))  # about the middle
    train = images.stream("train", device="cpu")
    seen = [train.generate(range(start, start + 120)).latents["item"].astype(int).tolist() for start in (0, 120)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(120)) and seen[0] != seen[1]
    levels = np.concatenate([picture(kind, number).reshape(-1, 3) for kind in KINDS for number in range(40)]) / 255
    np.testing.assert_allclose(images.statistics(), (levels.mean(0), levels.std(0)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_pictures_in_one_part_are_shared_out(kind: str, photos: Path, tmp_path: Path) -> None:
    source = photos / "train"
    files = sorted(source.rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(source))
        source = tmp_path / "all.zip"
    if kind == "parquet":
        from datasets import ClassLabel, Dataset, Features, Image as Picture

        rows = {"image": [{"path": None, "bytes": file.read_bytes()} for file in files],
                "label": [KINDS.index(file.parent.name) for file in files]}  # fmt: skip
        form = Features({"image": Picture(), "label": ClassLabel(names=list(KINDS))})
        source = tmp_path / "all.parquet"
        Dataset.from_dict(rows, features=form).to_parquet(str(source))
    images = real_images(source, 12, cache=tmp_path / "cache", test_share=0.3)
    train, test = (images.stream(part, device="cpu") for part in ("train", "test"))
    assert images.classes == KINDS and train.count + test.count == 120 and 20 <= test.count <= 55
    items = [set(stream.generate(range(stream.count)).latents["item"].tolist()) for stream in (train, test)]
    assert not items[0] & items[1]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: Any) -> tuple[Path, npt.NDArray[np.uint8], list[int]]:
    """CIFAR-10 with 6 and 4 pictures, as its authors write it; torchvision is not asked for the real one's digests."""
    images = np.stack([picture(KINDS[number % 3], number, 32, 32) for number in range(10)])
    labels = [3, 0, 9, 1, 1, 2, 5, 8, 0, 3]
    place = tmp_path / "data" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name, part in (("data_batch_1", slice(6)), ("test_batch", slice(6, 10))):
        rows = images[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": labels[part]}))
    titles = [f"thing {number}" for number in range(10)]
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": titles}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return place, images, labels


@pytest.mark.parametrize("kind", ["folder above", "folder", "archive", "folder of the archive"])
def test_cifar_is_read_from_where_it_lies(kind: str, cifar: Any, tmp_path: Path) -> None:
    place, levels, labels = cifar
    source = {"folder above": place.parent, "folder": place}.get(kind, tmp_path / "cifar-10-python.tar.gz")
    if "archive" in kind:
        with tarfile.open(source, "w:gz") as archive:
            archive.add(place, place.name)
        source = tmp_path if "folder" in kind else source
    images = real_images(source, 32)
    test = images.stream("test", device="cpu").generate(range(4))
    assert np.array_equal(test.images, levels[6:].transpose(0, 3, 1, 2)) and test.labels.tolist() == labels[6:]
    train = images.stream("train", device="cpu", flip=False).generate(range(6))
    items = train.latents["item"].astype(int)
    assert np.array_equal(train.images, levels[items].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [labels[item] for item in items] and images.classes[9] == "thing 9"
    half = real_images(source, 16).stream("test", device="cpu").generate(range(4)).images
    means = levels[6:].reshape(4, 16, 2, 16, 2, 3).astype(int).sum((2, 4))
    assert np.array_equal(half, ((means + 2) // 4).transpose(0, 3, 1, 2))
    with pytest.raises(InvalidValueError, match="at most 32"):
        real_images(source, 33)


def test_odd_pictures_are_refused(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(InvalidValueError, match="nothing at"):
        real_images(tmp_path / "none", 8, cache=tmp_path)
    with pytest.raises(InvalidValueError, match="one class"):
        real_images(photos / "train" / "bars", 8, cache=tmp_path)
    with pytest.raises(InvalidValueError, match="test_share"):
        real_images(photos, 8, cache=tmp_path, test_share=0.0)
    folder_of(tmp_path / "odd" / "train", 2)
    with pytest.raises(InvalidValueError, match="none of test, val"):
        real_images(tmp_path / "odd", 8, cache=tmp_path)
    (tmp_path / "odd" / "val" / "cubes").mkdir(parents=True)
    Image.fromarray(picture("bars", 0)).save(tmp_path / "odd" / "val" / "cubes" / "0.png")
    with pytest.raises(InvalidValueError, match="differ in the classes bars, cubes"):
        real_images(tmp_path / "odd", 8, cache=tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(InvalidValueError, match="no whole CIFAR100"):
        real_images(tmp_path, 8)


def test_odd_settings_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="data is missing"):
        TransferSettings()
    with pytest.raises(UnknownNameError, match="did you mean 'fractal-1k'"):
        TransferSettings(data="photos", pretrain="fractal-1")


@pytest.mark.gpu
def test_a_gpu_trains_from_both_starts(photos: Path, tmp_path: Path) -> None:
    result = transfer.run(tiny(photos, tmp_path / "run", device="cuda", num_steps=100))
    assert result.pretrained is not None and min(result.pretrained.low, result.scratch.low) > 1 / 3


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(photos: Path, tmp_path: Path) -> None:
    """By SIGKILL, whatever it was doing; the command is then given again."""
    asked = {
        "data": photos, "cache": tmp_path / "cache", "image-size": 8, "embed-dim": 16, "depth": 1, "num-heads": 2,
        "pretrain": "fractal-10", "pretrain-steps": 60, "pretrain-batch-size": 16, "pretrain-samples": 50,
        "num-steps": 60, "batch-size": 24, "warmup-steps": 5, "eval-once-every": 20, "checkpoint-every": 5,
        "device": "cpu",
    }  # fmt: skip
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "fractal_streams.recipes.transfer", *options, "--folder"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for place in ("pretraining", "pretrained", "scratch"):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while checkpoint.latest(tmp_path / "killed" / place / "checkpoint") is None:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    told = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert told[0] == told[1]
    for place in ("pretraining", "pretrained", "scratch"):
        first, second = (weights(tmp_path / name / place) for name in ("whole", "killed"))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
