"""The page of quality: its curves of maps that are known, and what its panels hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_made_networks import linear, staircase

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.attractors import find_attractors
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.plots import page
from fractal_streams.kaleidoscope.quality_page import (
    curves,
    draw_basins,
    draw_classes,
    draw_radii,
    draw_training,
    radii_of,
    save_quality,
)


def test_curves_of_a_contraction_fall_by_its_factor() -> None:
    found = curves(linear([[[0.5]], [[-0.25]]]), chains=50, steps=4, device="cpu")
    assert found.step_norms[:, 1:] / found.step_norms[:, :-1] == pytest.approx(
        np.repeat([[0.5], [0.25]], 3, axis=1), rel=1e-5
    )
    assert found.distances[:, 1:] / found.distances[:, :-1] == pytest.approx(
        np.repeat([[0.5], [0.25]], 4, axis=1), rel=1e-5
    )
    assert found.step_norms[0, 0] == pytest.approx(0.5 / 3**0.5 / 2, abs=0.03)  # half of U(-1, 1) over the range
    assert found.distances[0, 0] == pytest.approx(0.25, abs=0.06)  # mean of |U(-1, 1)| over the range of 2
    assert (found.class_shares == 1.0).all() and found.class_shares.shape == (2, 5, 1)


def test_class_shares_are_those_of_the_basins() -> None:
    fitted = staircase(0.5, [-0.5, 0.5], labels=[0, 1])
    found = curves(fitted, chains=400, steps=60, device="cpu")
    assert found.class_shares.sum(axis=2) == pytest.approx(1.0)
    assert found.class_shares[0, 0, 0] == pytest.approx(0.5, abs=0.08)
    assert found.class_shares[0, -1, 0] == pytest.approx(0.75, abs=0.07)


def test_radii_are_those_at_the_sources() -> None:
    radii = radii_of(linear([[[0.5]], [[-1.5]]], [[0.0], [0.5]]), "cpu")
    assert radii == pytest.approx([0.5, 0.5, 1.5, 1.5])
    axes = page(3.0, 3.0).subplots()
    draw_radii(axes, radii)
    assert "50% below 1" in axes.get_title()
    assert sum(patch.get_height() for patch in axes.patches) == 4


def test_panels_hold_what_is_known() -> None:
    fitted = staircase(0.5, [-0.5, 0.5], labels=[0, 1])
    table = find_attractors(fitted, device="cpu", chains=400)
    one, two, three = page(9.0, 3.0).subplots(1, 3)
    draw_basins(one, table)
    heights = sorted((patch.get_height() for patch in one.patches), reverse=True)
    assert heights[:2] == pytest.approx([0.75, 0.25], abs=0.07) and sum(heights) == pytest.approx(1.0)
    draw_training(two, fitted.replace(training={"curve": {"steps": [0, 10, 20], "score": [[1.0], [0.1], [0.01]]}}))
    assert two.lines[0].get_ydata() == pytest.approx([1.0, 0.1, 0.01]) and two.get_yscale() == "log"
    draw_classes(three, curves(fitted, chains=40, steps=5, device="cpu"), fitted)
    names = [text.get_text() for text in three.get_legend().get_texts()]
    assert sorted(names) == ["class 0", "class 1"]


def test_what_is_not_known_is_said() -> None:
    axes, other = page(6.0, 3.0).subplots(1, 2)
    draw_training(axes, linear([[0.5]]))
    draw_basins(other, linear([[0.5]]))
    assert [panel.texts[0].get_text() for panel in (axes, other)] == ["not recorded", "no attractors known"]


def test_the_page_is_written(tmp_path: Path, bare_points: Kaleidoscope) -> None:
    path = save_quality(tmp_path / "quality.png", bare_points, chains=30, steps=8, device="cpu")
    with Image.open(path) as picture:
        assert picture.size == (1320, 768)
    with pytest.raises(InvalidValueError, match="written as .png"):
        save_quality(tmp_path / "quality.pdf", bare_points, chains=3, steps=2, device="cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["quality.png"]
