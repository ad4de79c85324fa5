"""The recipe at a small size: what it writes says what was trained, and a second run trains nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fractal_streams.recipes import trainability as recipe

from fractal_streams.trainability import scan as trained
from fractal_streams.trainability.dimension import published_dimension
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.picture import plain
from fractal_streams.trainability.presets import PUBLISHED, Published
from fractal_streams.trainability.window import Window
from fractal_streams.trainability.zoom import open_zoom

SMALL = Published(
    Experiment(width=8, dataset_mode="single_example", steps=30),
    Window.of_values(x=(1.0, 100.0), y=(10.0, 1000.0)), 1.0, "small, one example", "one edge",
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(PUBLISHED):
        monkeypatch.delitem(PUBLISHED, name)
    monkeypatch.setitem(PUBLISHED, "small", SMALL)


def run(folder: Path, *more: str) -> None:
    recipe.main(["small", "--resolution", "24", "--device", "cpu", "--output-dir", str(folder), "--quiet", *more])


def test_a_page_with_the_dimension_of_trained_keyframes(small: None, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, "--deepest", "0.5")
    assert capsys.readouterr().out.strip() == str(tmp_path / "results.md")
    frames = open_zoom(tmp_path / "small" / "zoom")
    assert min(frames.windows[-1].size) == 0.5 and min(frames.windows[0].size) == 8.0 and len(frames) == 5
    told = json.loads((tmp_path / "small" / "result.json").read_text())
    assert told["dimension"][0] == published_dimension(frames.measure(level) for level in range(5)).value
    direct = trained(SMALL.experiment, SMALL.window, resolution=24, device="cpu")
    assert told["converged"] == direct.converged.mean() and told["frames"] == 5
    page = (tmp_path / "results.md").read_text()
    assert f"| small, one example | {told['dimension'][0]:.2f} |" in page and "One edge. 24 x 24 networks" in page
    with (tmp_path / "small" / "dimension.csv").open() as file:
        assert [row["level"] for row in csv.DictReader(file)] == list("01234")


def test_a_second_run_trains_no_keyframe(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "--deepest", "1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert len(before) >= 5
    monkeypatch.setattr("fractal_streams.trainability.store.Folder.save", lambda *_: pytest.fail("trained again"))
    run(tmp_path, "--deepest", "1")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} == before


def test_a_sheet_of_pictures(small: None, tmp_path: Path) -> None:
    from PIL import Image

    run(tmp_path, "--pictures")
    assert not (tmp_path / "results.md").exists()
    with Image.open(tmp_path / "sheet.png") as image:
        shown = {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    direct = plain(trained(SMALL.experiment, SMALL.window, resolution=24, device="cpu").measure)
    assert {tuple(colour) for colour in direct.reshape(-1, 3).tolist()} <= shown


def test_an_unknown_name_is_refused_before_anything_is_trained(small: None, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="known are small"):
        recipe.main(["tanhh", "--output-dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
