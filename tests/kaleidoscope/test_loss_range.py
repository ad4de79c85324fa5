"""The loss over the cube, of maps where it is known, and of networks on few and many points."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_networks import linear

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.loss_range import (
    LossRange,
    cube_corners,
    loss_range_study,
    rows_of,
    uniform_sources,
)
from fractal_streams.kaleidoscope.tables import Table, progress_bar


@pytest.fixture(scope="module")
def study() -> LossRange:
    return loss_range_study(points=(1, 32), dimensions=(1, 2), seeds=3, hidden=16, n_linear=4, steps=300, device="cpu")


def test_corners_are_all_corners() -> None:
    assert cube_corners(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert len(np.unique(cube_corners(8), axis=0)) == 256


def test_the_largest_loss_at_the_corners_is_that_of_the_map() -> None:
    halves = linear([np.diag([0.5, 0.25]), np.eye(2)], [[0.5, 0.5]])
    half, same = rows_of(halves, seed=0, device="cpu")
    assert half["corner_loss"] == pytest.approx((0.25 + 0.5625) / 2)
    assert half["source_loss"] == pytest.approx((0.25 + 0.5625) / 8)
    assert half["loss_range"] == pytest.approx(half["corner_loss"])  # it is 0 at (0, 0)
    assert (half["dimension"], half["points"], half["model"]) == (2, 1, 0)
    assert (same["corner_loss"], same["loss_range"], same["model"]) == (0.0, 0.0, 1)


def test_the_range_is_the_largest_less_the_least() -> None:
    """Of x -> 1 - x the least, 0, is that of the middle, its source; of x -> x + 1/2 the loss is the same all over."""
    turned = linear([[-1.0]], [[0.5]])
    turned.tensors["layers.1.bias"][:] = 1.0
    (row,) = rows_of(turned, seed=0, device="cpu")
    assert row["corner_loss"] == pytest.approx(1.0) and row["loss_range"] == pytest.approx(1.0)
    assert row["source_loss"] == 0.0
    moved = linear([[1.0]], [[0.5]])
    moved.tensors["layers.1.bias"][:] = 0.5
    (row,) = rows_of(moved, seed=0, device="cpu")
    assert row["corner_loss"] == pytest.approx(0.25) and row["loss_range"] == pytest.approx(0.0, abs=1e-6)


def test_points_of_a_smaller_number_are_among_those_of_a_larger_one() -> None:
    few, many = (uniform_sources(count, 3, 2, seed=5).data for count in (4, 32))
    assert (few == many[:, :4]).all() and (many[0] != many[1]).all()
    assert many.min() > 0.0 and many.max() < 1.0 and abs(many.mean() - 0.5) < 0.1
    assert (uniform_sources(4, 3, 2, seed=6).data != few).all()


def test_there_is_a_row_for_each_network(study: LossRange) -> None:
    kinds = [(row["dimension"], row["points"], row["model"]) for row in study.rows]
    assert kinds == [(size, count, model) for size in (1, 2) for count in (1, 32) for model in range(3)]


def test_more_points_leave_less_loss(study: LossRange) -> None:
    for size in (1, 2):
        few, many = (study.values("corner_loss", dimension=size, points=count) for count in (1, 32))
        assert few.min() > 0.1 and few.mean() > 3.0 * many.mean()


def test_a_network_is_the_same_in_a_smaller_study(study: LossRange) -> None:
    alone = loss_range_study(points=(32,), dimensions=(2,), seeds=1, hidden=16, n_linear=4, steps=300, device="cpu")
    assert alone.values("corner_loss")[0] == pytest.approx(
        study.values("corner_loss", dimension=2, points=32)[0], rel=0.02
    )


def test_tables_are_written(study: LossRange, tmp_path: Path) -> None:
    with study.save_csv(tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["corner_loss"]) for row in read] == [row["corner_loss"] for row in study.rows]
    assert json.loads(study.save_json(tmp_path / "rows.json").read_text())["rows"] == list(study.rows)
    with pytest.raises(InvalidValueError, match="written as .csv"):
        study.save_csv(tmp_path / "rows.txt")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_plot_shows_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("fractal_streams.kaleidoscope.loss_range.save_page", lambda path, figure: drawn.append(figure))
    rows = [
        {"dimension": 2, "points": points, "model": model, "corner_loss": loss}
        for points, losses in ((1, (0.4, 0.6)), (8, (0.1, 0.3))) for model, loss in enumerate(losses)
    ]  # fmt: skip
    LossRange(rows=tuple(rows)).save_plot(tmp_path / "plot.png")
    axes = drawn[0].axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.0, 3.0]
    assert axes.lines[0].get_ydata() == pytest.approx([0.5, 0.2])
    heights = np.unique(axes.collections[0].get_paths()[0].vertices[:, 1].round(6))
    assert heights.tolist() == pytest.approx([0.1, 0.3, 0.4, 0.6])
    assert axes.get_ylim() == (0.0, 1.0)


def test_means_and_deviations() -> None:
    table = Table(rows=tuple({"kind": kind, "value": value} for kind, value in (("a", 1.0), ("b", 5.0), ("a", 5.0))))
    assert table.means(("kind",), ("value",)) == [
        {"kind": "a", "networks": 2, "value": 3.0, "value_sd": 2.0},
        {"kind": "b", "networks": 1, "value": 5.0, "value_sd": 0.0},
    ]


def test_a_bar_counts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with progress_bar(3, "banks fitted", "banks", True) as bar:
        bar.update(3)
    assert "banks fitted: 100%" in capsys.readouterr().err
    with progress_bar(3, "banks fitted", "banks", False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "asked, told",
    [({"points": (0,)}, "points"), ({"dimensions": (13,)}, "dimensions"), ({"seeds": 0}, "seeds"),
     ({"points": ()}, "at least one")],
)  # fmt: skip
def test_values_out_of_range_are_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        loss_range_study(**asked, device="cpu")
