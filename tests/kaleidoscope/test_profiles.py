"""Profiles of maps that are known in closed form, and of a fitted bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_made_networks import linear, staircase

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.plots import page, put, save_page, save_pixels
from fractal_streams.kaleidoscope.profiles import draw_loss, draw_outputs, profile, save_profiles, trajectories
from fractal_streams.kaleidoscope.starts import Start

FACTORS = (0.5, -0.25)


def two_contractions() -> Kaleidoscope:
    """x -> x / 2 and x -> -x / 4 on [-1, 1]."""
    return linear([[[factor]] for factor in FACTORS])


def test_outputs_and_losses_are_those_of_the_map() -> None:
    found = profile(two_contractions(), points=5, device="cpu")
    assert found.places.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    for row, factor in enumerate(FACTORS):
        assert found.outputs[row] == pytest.approx(factor * found.places, abs=1e-7)
        assert found.losses[row] == pytest.approx((1.0 - factor) ** 2 * found.places**2, abs=1e-6)
    assert profile(two_contractions(), device="cpu").places.shape == (100,)
    assert profile(two_contractions(), points=5, models=[1], device="cpu").outputs == pytest.approx(found.outputs[1:])


def test_fixed_points_lie_where_the_stairs_have_them() -> None:
    found = profile(staircase(0.2, [-0.5, 0.5]), device="cpu").fixed_points[0]
    assert found.places[:, 0] == pytest.approx([-0.5, 0.2, 0.5], abs=1e-6)
    assert found.stable.tolist() == [True, False, True]
    assert found.radius == pytest.approx([0.0, 2.0, 0.0], abs=1e-6)


def test_a_fitted_bank_has_stable_fixed_points_at_its_sources(bare_points: Kaleidoscope) -> None:
    found = profile(bare_points, device="cpu")
    at_sources = [
        points.places[points.stable, 0]
        for points, losses in zip(found.fixed_points, found.losses, strict=True)
        if losses[[20, 79]].max() < 1e-3
    ]
    assert len(at_sources) >= 3
    for places in at_sources:
        assert places == pytest.approx([0.2, 0.8], abs=0.02)


def test_iterate_k_is_k_applications() -> None:
    found = trajectories(two_contractions(), starts=6, steps=7, device="cpu")
    assert found.iterates.shape == (2, 6, 8, 1) and found.losses.shape == (2, 6, 8)
    first = found.iterates[0, :, 0, 0].astype(np.float64)
    assert np.ptp(first) > 0.5 and (found.iterates[1, :, 0, 0] == first).all()
    for row, factor in enumerate(FACTORS):
        powers = factor ** np.arange(8)
        assert found.iterates[row, :, :, 0] == pytest.approx(first[:, None] * powers, rel=1e-5)
        assert found.losses[row] == pytest.approx((1.0 - factor) ** 2 * (first[:, None] * powers) ** 2, rel=1e-4)


def test_a_start_depends_on_its_number_and_the_seed_alone() -> None:
    many = trajectories(two_contractions(), starts=10, steps=2, device="cpu").iterates
    few = trajectories(two_contractions(), starts=3, steps=1, models=[1], device="cpu").iterates
    assert (few[0] == many[1, :3, :2]).all()
    other = trajectories(two_contractions(), starts=10, steps=2, seed=1, device="cpu").iterates
    assert (other[:, :, 0] != many[:, :, 0]).all()
    source = trajectories(two_contractions(), starts=3, steps=0, start=Start(kind="source"), device="cpu")
    assert (source.iterates == 0.0).all() and (source.losses == 0.0).all()


def test_the_band_is_the_mean_and_what_the_seeds_span() -> None:
    axes = page(4.0, 3.0).subplots()
    draw_loss(axes, profile(two_contractions(), points=5, device="cpu"))
    squares = np.array([1.0, 0.25, 0.0, 0.25, 1.0])
    assert axes.lines[0].get_ydata() == pytest.approx(squares * (0.25 + 1.5625) / 2, abs=1e-6)
    corners = axes.collections[0].get_paths()[0].vertices
    at_the_end = corners[corners[:, 0] == 1.0, 1]
    assert at_the_end.min() == pytest.approx(0.25, abs=1e-6)
    assert at_the_end.max() == pytest.approx(1.5625, abs=1e-6)


def test_starts_are_red_with_drop_lines_and_iterates_green() -> None:
    fitted = linear([[0.5]])
    travelled = trajectories(fitted, starts=4, steps=3, device="cpu")
    axes = page(4.0, 3.0).subplots()
    draw_loss(axes, profile(fitted, device="cpu"), travelled, step=2)
    curve, starts, iterates = axes.lines
    assert [curve.get_color(), starts.get_color(), iterates.get_color()] == ["#2b6cb0", "#d7263d", "#2f9e44"]
    assert starts.get_xdata() == pytest.approx(travelled.iterates[0, :, 0, 0])
    assert starts.get_ydata() == pytest.approx(travelled.losses[0, :, 0])
    assert iterates.get_xdata() == pytest.approx(starts.get_xdata() / 4)
    drops = np.stack(axes.collections[0].get_segments())
    assert (drops[:, :, 0] == starts.get_xdata()[:, None]).all() and (drops[:, 0, 1] == 0.0).all()
    assert drops[:, 1, 1] == pytest.approx(travelled.losses[0, :, 0])
    assert axes.collections[0].get_linestyle()[0][1] is not None
    assert tuple(np.rint(255 * axes.collections[0].get_color()[0, :3])) == (0xF0, 0x8C, 0x00)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss", "starts", "iterates"]


def test_the_output_profile_has_the_diagonal_the_range_and_the_fixed_points() -> None:
    axes = page(4.0, 3.0).subplots()
    draw_outputs(axes, profile(staircase(0.2, [-0.5, 0.5]), device="cpu"))
    assert axes.get_ylim() == (-1.0, 1.0) and axes.get_xlim() == (-1.0, 1.0)
    marks = {line.get_label(): np.stack(line.get_data(), axis=1) for line in axes.lines}
    assert marks["y = x"].tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    assert marks["stable fixed point"] == pytest.approx(np.array([[-0.5, -0.5], [0.5, 0.5]]), abs=1e-6)
    assert marks["unstable fixed point"] == pytest.approx(np.array([[0.2, 0.2]]), abs=1e-6)
    assert marks["sources"][:, 0] == pytest.approx([-0.5, 0.5])


def test_the_same_profile_is_the_same_file(tmp_path: Path) -> None:
    found = profile(two_contractions(), device="cpu")
    travelled = trajectories(two_contractions(), device="cpu")
    first, second = (save_profiles(tmp_path / "new" / name, found, travelled) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (1200, 480)
        levels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert {(0x2B, 0x6C, 0xB0), (0xD7, 0x26, 0x3D)} <= set(map(tuple, levels.tolist()))


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def breaks(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        put(tmp_path / "page.png", breaks)
    with pytest.raises(InvalidValueError, match="written as .png"):
        save_page(tmp_path / "page.jpg", page(1.0, 1.0))
    with pytest.raises(InvalidValueError, match="written as .png"):
        save_pixels(tmp_path / "page.gif", np.zeros((1, 1, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_profile_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="networks of 1 values, got the shape"):
        profile(linear(np.eye(2)), device="cpu")
    with pytest.raises(InvalidValueError, match="points"):
        profile(linear([[0.5]]), points=1, device="cpu")
    with pytest.raises(InvalidValueError, match="model must"):
        trajectories(linear([[0.5]]), models=[1], device="cpu")
    with pytest.raises(InvalidValueError, match="at least one network"):
        trajectories(linear([[0.5]]), models=[], device="cpu")
