"""The demo: its figures hang together, its files are written, and on a CPU it can be repeated exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from fractal_streams.recipes import demo
from PIL import Image

from fractal_streams import open_stream
from fractal_streams.errors import DeviceError, InvalidValueError

SECONDS = 16 / demo.BUDGETS["cpu"].steps_per_second
"""16 steps."""


@pytest.fixture(autouse=True, scope="module")
def small_sets() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two test processes with two spinning threads each would wait for each other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "HELD_OUT", 100)
        patch.setattr(demo, "FINITE", 200)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, small_sets: None) -> demo.DemoResult:
    return demo.run(tmp_path_factory.mktemp("demo") / "out", SECONDS, "cpu", seed=3)


def test_figures_hang_together(result: demo.DemoResult) -> None:
    seen = 16 * demo.BUDGETS["cpu"].batch_size
    assert result.chance == 0.1
    for training, distinct in ((result.endless, seen), (result.finite, 200)):
        assert training.distinct == distinct
        assert [point.pictures for point in training.curve] == [seen * k // 8 for k in range(1, 9)]
        assert training.per_second == pytest.approx(seen / training.seconds)
        assert 0 < training.waiting < 1
        for point in training.curve:
            assert 100 * point.test_accuracy == pytest.approx(round(100 * point.test_accuracy), abs=1e-4)
    assert result.generated_per_second > result.endless.per_second
    assert result.seconds > result.endless.seconds + result.finite.seconds


def test_files_are_written(result: demo.DemoResult) -> None:
    assert {path.name for path in result.folder.iterdir()} == {"classes.png", "curves.png", "result.json"}
    for path in result.pictures:
        assert np.asarray(Image.open(path)).std() > 10
    figures = json.loads((result.folder / "result.json").read_text())
    assert figures["endless"]["curve"][-1]["test_accuracy"] == result.endless.last.test_accuracy
    assert figures["stream"] == open_stream(demo.PRESET, seed=3, device="cpu").digest()


@pytest.mark.slow
def test_same_seed_gives_the_same_figures(result: demo.DemoResult, tmp_path: Path) -> None:
    again = demo.run(tmp_path / "again", SECONDS, "cpu", seed=3)
    other = demo.run(tmp_path / "other", SECONDS, "cpu", seed=4)
    assert again.endless.curve == result.endless.curve
    assert again.finite.curve == result.finite.curve
    assert other.endless.curve != result.endless.curve


def test_summary_names_the_figures_and_the_files(result: demo.DemoResult, capsys: pytest.CaptureFixture[str]) -> None:
    demo.report(demo.Console(width=60), result)
    shown = capsys.readouterr().out
    for expected in (f"{result.endless.last.test_accuracy:.1%}", "10.0%", "classes.png", "curves.png", "result.json"):
        assert expected in shown


def test_rows_of_the_sheet_are_classes(tmp_path: Path) -> None:
    stream = open_stream(demo.PRESET, seed=5, device="cpu", height=16, width=16)
    demo.draw_classes(tmp_path / "classes.png", seed=5, columns=2, pixels=16)
    sheet = np.asarray(Image.open(tmp_path / "classes.png"))
    index = np.flatnonzero(stream.labels(range(1000)) == 7)[1]
    tile = stream[int(index)].image.transpose(1, 2, 0).repeat(6, 0).repeat(6, 1)
    top, left = 16 + 30 + 7 * (96 + 20), 16 + 96 + 10
    assert np.array_equal(sheet[top : top + 96, left : left + 96], tile)


def test_finite_epochs_hold_each_picture_at_most_once() -> None:
    batches = demo.epochs(torch.arange(10), torch.arange(10), 4)
    first = [next(batches) for _ in range(2)]
    assert len({int(x) for images, _ in first for x in images}) == 8
    assert all(torch.equal(images, labels) for images, labels in first)
    orders = [tuple(images.tolist()) for images, _ in (next(batches) for _ in range(20))]
    assert len(set(orders)) > 10


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_bad_seconds_are_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="seconds must lie in"):
        demo.run(tmp_path, seconds, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_absent_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        demo.run(tmp_path, SECONDS, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT", 2000)
    monkeypatch.setattr(demo, "FINITE", 2000)
    result = demo.run(tmp_path, 4.0, "cuda")
    assert result.endless.last.test_accuracy > result.finite.last.test_accuracy + 0.05


@pytest.mark.slow
def test_stream_beats_the_finite_set_which_is_learnt_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT", 2000)
    monkeypatch.setattr(demo, "FINITE", 2000)
    result = demo.run(tmp_path, 60.0, "cpu")
    assert result.finite.last.train_accuracy > 0.95
    assert result.finite.last.test_accuracy > 3 * result.chance
    assert result.endless.last.test_accuracy > result.finite.last.test_accuracy + 0.15
    assert abs(result.endless.last.test_accuracy - result.endless.last.train_accuracy) < 0.05
