"""The ViT recipe at a tiny size: it learns, is resumed bit for bit, and leaves a model that can be read again."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from fractal_streams.recipes import vit
from fractal_streams.recipes.classification import Examination, Result, read_result, tell
from fractal_streams.recipes.data import held_out, opened
from fractal_streams.recipes.journal import read_records
from fractal_streams.recipes.models.classifiers import load_classifier
from fractal_streams.recipes.vit import ViTSettings, load_features
from PIL import Image
from safetensors.torch import load_file

from fractal_streams.errors import DivergedError, InvalidValueError

TINY: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "num_steps": 60, "batch_size": 32,
    "record_every": 10, "eval_once_every": 30, "checkpoint_every": 20, "warmup_steps": 5, "eval_steps": 2,
    "final_samples": 200, "lr_base": 0.01, "lr_embedding": 0.01, "base_width": 16, "device": "cpu",
    "quiet": True,
}  # fmt: skip


def tiny(folder: Path, **asked: Any) -> ViTSettings:
    return ViTSettings(**{**TINY, "folder": folder, **asked})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViTSettings, Result]:
    settings = tiny(tmp_path_factory.mktemp("vit"))
    return settings, vit.run(settings)


def test_it_learns(trained: tuple[ViTSettings, Result]) -> None:
    settings, result = trained
    rows = read_records(settings.folder)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    assert result.test_accuracy > 0.2 and result.test_loss < 2.0
    assert result.samples == 60 * 32
    assert ["test_loss" in row for row in rows] == [False, False, True, False, False, True]


def test_the_result_says_what_the_files_say(trained: tuple[ViTSettings, Result]) -> None:
    settings, result = trained
    told = json.loads((settings.folder / "result.json").read_text())
    assert told["test_loss"] == result.test_loss and told["settings"]["embed_dim"] == 16
    assert read_result(settings.folder, settings) == dataclasses.replace(
        result, class_accuracies=list(result.class_accuracies)
    )
    weights = load_file(settings.folder / "model.safetensors")
    assert sum(value.numel() for value in weights.values()) == result.weights
    assert result.train_loss == read_records(settings.folder)[-1]["loss"]


def test_a_result_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep takes a run with a result for done: its model has to be there."""

    def full(*given: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(vit, "save_classifier", full)
    with pytest.raises(OSError, match="no space"):
        vit.run(tiny(tmp_path, num_steps=1, final_samples=8))
    assert not (tmp_path / "result.json").exists()


def test_a_clip_of_sgd_follows_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(*given: Any) -> Any:
        raise InterruptedError(given[4].clip)

    monkeypatch.setattr(vit, "Loop", caught)
    for name, clip in (("sgd", "2.0"), ("adamw", "1.0")):
        with pytest.raises(InterruptedError, match=clip):
            vit.run(tiny(tmp_path, embed_dim=64, optimizer_type=name, clip=1.0))


def test_the_model_that_is_left_gives_the_same_accuracy(trained: tuple[ViTSettings, Result]) -> None:
    settings, result = trained
    network = load_classifier(settings.folder)
    right, count = [0] * 10, [0] * 10
    with torch.no_grad():
        for batch in held_out(opened(settings, "test", "cpu"), 200, 64):
            for label, answer in zip(batch.labels.tolist(), network(batch.images).argmax(1).tolist(), strict=True):
                count[label] += 1
                right[label] += answer == label
    assert result.test_accuracy == sum(right) / 200
    assert list(result.class_accuracies) == [each / of for each, of in zip(right, count, strict=True)]


def test_features_lie_before_the_head(trained: tuple[ViTSettings, Result]) -> None:
    settings, _ = trained
    network, measure = load_classifier(settings.folder), load_features(settings.folder, "cpu")
    images = opened(settings, "test", "cpu").generate(range(5)).torch().images
    found = measure(images)
    assert found.shape == (5, 16) and found.dtype == torch.float32 and not found.requires_grad
    with torch.no_grad():
        assert torch.equal(network.head(found), network(images))  # type: ignore[operator]


def test_the_sheet_frames_what_is_right_in_green(trained: tuple[ViTSettings, Result]) -> None:
    settings, _ = trained
    network = load_classifier(settings.folder)
    (batch,) = held_out(opened(settings, "test", "cpu"), 40, 40)
    with torch.no_grad():
        right = int((network(batch.images).argmax(1) == batch.labels).sum())
    sheet = torch.tensor(np.asarray(Image.open(settings.folder / "answers.png").convert("RGB")))
    side = 8 * 12 + 2 * 4
    frame = side**2 - (8 * 12) ** 2
    assert int((sheet == torch.tensor([46, 160, 67])).all(-1).sum()) == right * frame
    assert int((sheet == torch.tensor([207, 34, 46])).all(-1).sum()) == (40 - right) * frame


def test_a_run_that_is_stopped_and_resumed_gives_the_same_weights(
    trained: tuple[ViTSettings, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, result = trained
    saved: list[int] = []
    save = vit.Loop.save

    def save_and_stop(loop: Any, folder: Path) -> None:
        save(loop, folder)
        saved.append(loop.step)
        if loop.step == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(vit.Loop, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        vit.run(tiny(tmp_path))
    assert not (tmp_path / "result.json").exists()
    again = vit.run(tiny(tmp_path, eval_once_every=15))
    assert saved == [20, 40, 60]
    one, other = load_file(settings.folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.test_loss == result.test_loss and again.class_accuracies == result.class_accuracies


def test_a_folder_of_another_run_is_refused(trained: tuple[ViTSettings, Result]) -> None:
    settings, _ = trained
    with pytest.raises(InvalidValueError, match="lr_base=0.01, not 0.02"):
        vit.run(dataclasses.replace(settings, lr_base=0.02))
    with pytest.raises(InvalidValueError, match="embed_dim=16, not 32"):
        read_result(settings.folder, dataclasses.replace(settings, embed_dim=32))


def test_a_rate_that_is_too_high_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="learning rate"):
        vit.run(tiny(tmp_path, lr_base=1e30, lr_embedding=1e30, num_steps=20))
    assert not (tmp_path / "result.json").exists()


def test_a_folder_without_a_model_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"recipes\.vit --folder"):
        load_features(tmp_path)


def test_accuracy_by_class_is_that_of_the_table() -> None:
    labels, answers = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1], *2 * [[2, 0]], *2 * [[2, 1]], *4 * [[2, 2]]]).T
    found = Examination(loss=0.0, labels=labels, answers=answers, classes=3)
    assert found.confusion.tolist() == [[3.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 2.0, 4.0]]
    assert found.accuracy == pytest.approx(7 / 12)
    assert found.class_accuracies == [0.75, None, 0.5]


def test_a_million_classes_need_no_table_of_pairs() -> None:
    labels = torch.tensor([0, 999_999])
    found = Examination(loss=0.0, labels=labels, answers=torch.tensor([0, 0]), classes=1_000_000)
    assert found.accuracy == 0.5 and found.class_accuracies[::999_999] == [1.0, 0.0]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(trained: tuple[ViTSettings, Result], tmp_path: Path) -> None:
    settings, _ = trained
    words = [f"--{name}={value}" for name, value in TINY.items() if name != "quiet"]
    call = [sys.executable, "-m", "fractal_streams.recipes.vit", "--quiet", f"--folder={tmp_path}", *words]
    child = subprocess.Popen(call)
    while child.poll() is None and not list(tmp_path.glob("checkpoint/step-*")):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    subprocess.run(call, check=True)
    one, other = load_file(settings.folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_it_learns_and_goes_on(compiled: bool, tmp_path: Path) -> None:
    whole = vit.run(tiny(tmp_path / "whole", device="cuda", compile=compiled))
    rows = read_records(tmp_path / "whole")
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"] and 0 <= whole.waiting < 1
    assert load_features(tmp_path / "whole", "cuda")(torch.zeros(2, 3, 8, 8)).device.type == "cuda"
    again = vit.run(tiny(tmp_path / "whole", device="cuda", compile=compiled))
    assert again.test_loss == pytest.approx(whole.test_loss, rel=1e-3) and again.steps == 60


def test_the_command_tells_what_was_reached(
    trained: tuple[ViTSettings, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, result = trained
    tell(result, settings)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{result.test_accuracy:.1%} of {settings.final_samples:,} held-out pictures right")
    assert f"{result.samples:,} pictures" in second and str(settings.folder) in third
    files = third.partition(": ")[2].split(", ")
    assert {"answers.png", "confusion.png", "model.safetensors", "records.csv", "result.json"} <= set(files)
