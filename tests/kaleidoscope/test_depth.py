"""The study of depth: what it says of networks that are known, and that its means leave constant maps out."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from hand_made_networks import linear, staircase

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.depth import FIGURES, Study, depth_study, network_of, rows_of
from fractal_streams.kaleidoscope.quality import report
from fractal_streams.kaleidoscope.sources import of_arrays, points
from fractal_streams.kaleidoscope.training import Training

np = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def study() -> Study:
    return depth_study(
        points([0.2, 0.8]), depths=(2, 3), seeds=2, noises=(0.0, 0.1), hidden=8, chains=40, device="cpu",
        training=Training(steps=250, learning_rate=1e-2, decay="constant"),
    )  # fmt: skip


def test_figures_of_a_known_network() -> None:
    """Stairs with an edge at 0: half of the chains end at either source, both attract, and slopes there are 0."""
    fitted = staircase(0.0, [-0.5, 0.5]).replace(training={"noise": 0.0, "dead": []})
    (row,) = rows_of(fitted, report(fitted, device="cpu", chains=200))
    assert (row["depth"], row["noise"], row["model"], row["constant"]) == (2, 0.0, 0, False)
    assert (row["returned"], row["distinct_ends"], row["reached_sources"], row["copies"]) == (1.0, 2, 2, 1.0)
    assert row["frac_100"] == 1.0 and row["frac_1"] == pytest.approx(0.75, abs=0.08)  # |x| > .25 goes there at once
    assert row["radius_most"] == pytest.approx(0.0, abs=1e-6) and row["error"] == pytest.approx(0.0, abs=1e-6)
    assert 0.5 <= row["largest_basin"] < 0.65 and row["at_rest"] == 1.0


def test_a_constant_map_is_told() -> None:
    fitted = linear([[0.0]], [[-0.5], [0.5]]).replace(training={"noise": 0.3, "dead": [0]})
    (row,) = rows_of(fitted, report(fitted, device="cpu", chains=20))
    assert row["constant"] is True and row["noise"] == 0.3 and "constant" in row["flags"]
    assert (row["distinct_ends"], row["reached_sources"], row["returned"]) == (1, 0, 0.0)
    assert row["error"] == pytest.approx(0.25)


def test_a_source_that_stays_need_not_attract() -> None:
    fitted = linear([[1.2]]).replace(training={"noise": 0.0, "dead": []})
    (row,) = rows_of(fitted, report(fitted, device="cpu", chains=20))
    assert row["returned"] == 0.0 and row["radius_most"] == pytest.approx(1.2)


def test_there_is_a_row_for_each_network(study: Study) -> None:
    kinds = [(row["noise"], row["depth"], row["model"]) for row in study.rows]
    assert kinds == [(noise, depth, model) for noise in (0.0, 0.1) for depth in (2, 3) for model in (0, 1)]
    assert study.sources == 2
    fitted = [row for row in study.rows if row["error"] < 0.01]
    assert len(fitted) >= 6 and all(row["returned"] > 0.0 for row in fitted)


def test_constant_maps_are_in_no_mean() -> None:
    def row(depth: int, model: int, error: float, constant: bool) -> dict[str, Any]:
        return {"depth": depth, "noise": 0.0, "model": model, "constant": constant, **dict.fromkeys(FIGURES, error)}

    rows = (row(3, 0, 0.1, False), row(3, 1, 0.3, False), row(3, 2, 9.0, True), row(5, 0, 9.0, True))
    first, second = Study(rows=rows, sources=2).summary()
    assert (first["depth"], first["networks"], first["constant"]) == (3, 3, pytest.approx(1 / 3, abs=1e-5))
    assert (first["error"], first["error_sd"]) == (0.2, 0.1)
    assert second["constant"] == 1.0 and math.isnan(second["error"]) and math.isnan(second["copies_sd"])
    assert list(first) == list(second)


def test_the_study_is_written(study: Study, tmp_path: Path) -> None:
    with study.save_csv(tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["frac_10"]) for row in rows] == [row["frac_10"] for row in study.rows]
    with study.save_summary(tmp_path / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    assert [(row["noise"], row["depth"]) for row in summary] == [("0.0", "2"), ("0.0", "3"), ("0.1", "2"), ("0.1", "3")]
    assert study.save_plot(tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_plot_draws_each_network_and_the_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("fractal_streams.kaleidoscope.depth.save_page", lambda path, figure: drawn.append(figure))
    rows = [
        {"depth": depth, "noise": 0.0, "model": model, "constant": constant, **dict.fromkeys(FIGURES, value)}
        for depth, values in ((3, (0.2, 0.4)), (7, (0.6, 0.0))) for model, value in enumerate(values)
        for constant in (value == 0.0,)
    ]  # fmt: skip
    Study(rows=tuple(rows), sources=4).save_plot(tmp_path / "depth.png")
    axes = drawn[0].axes[1]
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    assert lines[-1].get_ydata() == pytest.approx([0.3, 0.6])
    crosses = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert crosses == [[0.0]]


def test_the_network_fits_the_sources() -> None:
    assert (network_of(points([0.2, 0.8])).head, network_of(points([-0.2, 0.8])).head) == ("sigmoid", "tanh")
    pictures = network_of(of_arrays(np.zeros((2, 8, 8), np.uint8)))
    assert (pictures.shape, pictures.head, pictures.data_scale) == ((1, 8, 8), "tanh", 0.8)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="seeds"):
        depth_study(points([0.2]), seeds=0, device="cpu")
    with pytest.raises(InvalidValueError, match="at least one"):
        depth_study(points([0.2]), depths=(), device="cpu")
    with pytest.raises(InvalidValueError, match="n_linear"):
        depth_study(points([0.2]), depths=(1,), device="cpu")
