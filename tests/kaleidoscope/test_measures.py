"""Measures of networks whose basins, fixed points and slopes are written down."""

from __future__ import annotations

import numpy as np
import pytest
from hand_made_networks import linear, staircase

torch = pytest.importorskip("torch")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope import measures
from fractal_streams.kaleidoscope.batched_points import grid, iterates
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.reference import ReferenceEngine

STAIRS = staircase([[0.2], [-0.4]], [-0.5, 0.5], [0, 1])
TURN = 0.9 * np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])


def test_iterates_are_those_of_the_reference(bare_points: Kaleidoscope) -> None:
    starts, reference = grid(bare_points.network, 9), ReferenceEngine(bare_points)
    found = iterates(bare_points, starts, 3)
    assert np.array_equal(found[:, 0], np.broadcast_to(starts, (4, 9, 1)))
    for model in range(4):
        states = starts
        for step in (1, 2, 3):
            states = reference.apply(states, np.full(9, model))
            assert found[model, step] == pytest.approx(states, abs=1e-12)


def test_the_share_near_a_source_by_step() -> None:
    """One step takes x <= -.15 to -.5 and x >= .35 to .5; each step doubles the distance to .2."""
    starts = grid(STAIRS.network, 2001)
    found = measures.frac(STAIRS, starts, (0, 1, 2, 40), 0.01)
    assert found[0, 0] == pytest.approx(0.04, abs=2e-3)
    assert found[0, 1] == pytest.approx(0.75 + 0.01, abs=2e-3)  # .02 at both ends of the ramp come from .01
    assert found[0, 2] == pytest.approx(0.875 + 0.005, abs=2e-3)
    assert found[:, 3] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_distances_are_lengths_or_root_mean_squares() -> None:
    unit = linear(np.eye(2), [[0.0, 0.0]])
    length = measures.distances_by_step(unit, [[0.6, 0.8]], (0, 1))[1]
    assert length == pytest.approx(np.full((1, 2, 1), 0.5)), "1 over a range of 2"
    root = measures.distances_by_step(unit, [[0.6, 0.8]], (0,), rmse=True)[1]
    assert root == pytest.approx(np.full((1, 1, 1), 0.5 / np.sqrt(2)))


def test_basin_shares_count_the_grid() -> None:
    starts = grid(STAIRS.network, 2000)
    assert measures.basin_shares(STAIRS, starts, 60, 0.02) == pytest.approx(
        np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0]]), abs=1e-3
    )
    elsewhere = staircase([0.2], [-0.5, 0.9])
    assert measures.basin_shares(elsewhere, starts, 60, 0.02) == pytest.approx(np.array([[0.6, 0.0, 0.4]]), abs=1e-3)


def test_class_shares_start_with_the_nearest_and_end_with_the_basins() -> None:
    found = measures.class_shares(STAIRS, grid(STAIRS.network, 2000), (0, 60))
    assert found[:, 0] == pytest.approx(np.full((2, 2), 0.5), abs=1e-3)
    assert found[:, 1] == pytest.approx(np.array([[0.6, 0.4], [0.3, 0.7]]), abs=1e-3)
    assert found.sum(axis=2) == pytest.approx(np.ones((2, 2)))


def test_the_share_of_outputs() -> None:
    """Stairs from -.5 to .5 reach half of [-1, 1]; half of x reaches half of it too."""
    for fitted in (staircase([0.2], [-0.5, 0.5]), linear([[0.5]])):
        assert measures.output_share(fitted) == pytest.approx([0.5], abs=0.011)
    assert measures.output_share(linear([[1.0]])).tolist() == [1.0]
    with pytest.raises(InvalidValueError, match=r"one value, got shape \(2,\)"):
        measures.output_share(linear(np.eye(2)))


def test_fixed_points_of_stairs() -> None:
    for found, edge in zip(measures.fixed_points(STAIRS), (0.2, -0.4), strict=True):
        assert found.places[:, 0] == pytest.approx([-0.5, edge, 0.5], abs=1e-7)
        assert found.radius == pytest.approx([0.0, 2.0, 0.0])
        assert found.stable.tolist() == [True, False, True]
    three = measures.fixed_points(staircase([-0.25, 0.25], [0.0]))[0]
    assert three.places[:, 0] == pytest.approx([-0.5, -0.25, 0.0, 0.25, 0.5], abs=1e-7)


def test_networks_with_different_numbers_of_fixed_points() -> None:
    bank = staircase([[0.2], [0.9]], [-0.5])  # at the edge .9 the upper stair lies below the diagonal
    assert [len(found) for found in measures.fixed_points(bank)] == [3, 1]


def test_fixed_points_of_the_plane() -> None:
    turning = linear([TURN, np.diag([0.5, 3.0])])
    for found, radius in zip(measures.fixed_points(turning, 5), (0.9, 3.0), strict=True):
        assert found.places == pytest.approx(np.zeros((1, 2)), abs=1e-9)
        assert found.radius == pytest.approx([radius], rel=1e-6)


def test_step_norms_and_idempotence() -> None:
    """Under x / 2 step k changes x by x 2^-k; a projection is idempotent."""
    starts = grid(linear([[0.5]]).network, 101)
    root = np.sqrt(np.square(starts).mean()) / 2.0
    assert measures.step_norms(linear([[0.5]]), starts, 4) == pytest.approx(root * 0.5 ** np.arange(1, 5)[None])
    assert measures.idempotence_defects(linear([[0.5]]), starts) == pytest.approx([root / 4])
    projections = linear(np.float32([np.diag([1.0, 0.0]), np.diag([1.0, -1.0])]))
    plane = grid(projections.network, 5)
    assert measures.idempotence_defects(projections, plane) == pytest.approx([0.0, np.sqrt(0.5 / 2.0)])


def test_losses_and_slopes_at_sources(bare_points: Kaleidoscope) -> None:
    assert measures.losses(STAIRS) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert measures.losses(staircase([0.2], [-0.5, 0.3])) == pytest.approx([0.005], rel=1e-5)  # .3 goes to .4
    assert measures.is_fitted(staircase([0.2], [-0.5, 0.3])).tolist() == [False]
    assert measures.source_radii(staircase([0.2], [-0.5, 0.2, 0.5])).tolist() == [[0.0, 2.0, 0.0]]
    assert bare_points.models == measures.source_radii(bare_points).shape[0]


def test_measures_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = grid(STAIRS.network, 101)
    whole = measures.distances_by_step(STAIRS, starts, (0, 3))
    monkeypatch.setattr(measures, "CHUNK_VALUES", 50)
    for one, other in zip(whole, measures.distances_by_step(STAIRS, starts, (0, 3)), strict=True):
        assert np.array_equal(one, other)


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidValueError, match="steps must be 0 and up"):
        measures.frac(STAIRS, [[0.0]], (), 0.1)
    with pytest.raises(InvalidValueError, match="2 points and up"):
        measures.fixed_points(STAIRS, 1)
