"""Planes: pixels, zooms, drawing by name, and how deep one may go."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hand_made_basins import quadrants

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.planes import GRAINS, PLANE_KINDS, Plane, drawn_plane

KEY = partial(rng.key, "planes")


def turned(size: int = 12, half_width: float = 1.5) -> Plane:
    """Some plane of no particular direction."""
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(size, 2)))[0]
    origin = np.linspace(-0.6, 0.7, size)
    return Plane(origin=origin, across=basis[:, 0], up=basis[:, 1], half_width=half_width, centre=(0.25, -0.5))


def level(half_width: float, origin: tuple[float, float] = (0.0, 0.0)) -> Plane:
    """x and y are the two values."""
    return Plane(origin=np.array(origin), across=np.array([1.0, 0]), up=np.array([0, 1.0]), half_width=half_width)


def fitted(size: int, sources: Any) -> Kaleidoscope:
    data = np.float32(sources)[None]
    network = Network(shape=(size,), hidden=4, n_linear=2, data_scale=1.0)
    labels = np.zeros(data.shape[:2], np.int64)
    return Kaleidoscope(
        network=network, tensors=network.first_weights(),
        sources=Sources(data=data, labels=labels, titles=("all",)),
    )  # fmt: skip


def test_pixels_are_centres_of_squares_from_the_top_left() -> None:
    grid = level(2.0, (1.0, 0.0)).grid(2, 4).reshape(2, 4, 2)
    assert grid.dtype == np.float32
    assert grid[:, :, 0].tolist() == [[-0.5, 0.5, 1.5, 2.5]] * 2
    assert grid[:, :, 1].tolist() == [[0.5] * 4, [-0.5] * 4]


def test_the_grid_lies_in_the_plane() -> None:
    plane = turned()
    x, y = plane.axes(5, 8)
    values = plane.grid(5, 8)
    np.testing.assert_allclose(plane.coordinates_of(values)[:, 0].reshape(5, 8), np.tile(x, (5, 1)), atol=1e-6)
    np.testing.assert_allclose(plane.coordinates_of(values)[:, 1].reshape(5, 8), np.tile(y[:, None], 8), atol=1e-6)
    off = values - plane.origin - plane.coordinates_of(values) @ np.stack([plane.across, plane.up])
    assert np.abs(off).max() < 1e-6
    assert x.mean() == pytest.approx(0.25) and y.mean() == pytest.approx(-0.5) and y[0] > y[-1]
    assert x[-1] - x[0] == pytest.approx(2 * 1.5 * 7 / 8)


def test_a_zoom_of_a_zoom_is_a_zoom() -> None:
    plane = turned()
    twice, once = plane.zoomed((0.1, 0.2), 4.0).zoomed((0.3, -0.1), 8.0), plane.zoomed((0.3, -0.1), 32.0)
    assert np.array_equal(twice.grid(6, 6), once.grid(6, 6))


def test_a_crop_of_a_grid_is_the_grid_of_a_crop() -> None:
    plane, width = turned(), 16
    x, y = plane.axes(width, width)
    crop = plane.zoomed((float(x[4:12].mean()), float(y[2:10].mean())), 2.0)
    whole = plane.grid(width, width).reshape(width, width, -1)[2:10, 4:12]
    np.testing.assert_allclose(crop.grid(8, 8).reshape(8, 8, -1), whole, rtol=0, atol=2e-7)


def test_neighbours_differ_at_the_narrowest_and_not_far_below() -> None:
    """A level plane at values in [1/2, 1), where float32 are 2**-24 apart: the smallest pixel is known."""
    plane = level(0.1, (0.75, 0.75))
    narrowest = plane.narrowest(32, 32)
    assert narrowest == 0.5 * GRAINS * 2.0**-24 * 32
    for share, differ in ((1.0, True), (1.0 / GRAINS, True), (0.25 / GRAINS, False)):
        grid = plane.zoomed((0.013, -0.02), plane.half_width / (share * narrowest)).grid(32, 32).reshape(32, 32, 2)
        right = (np.diff(grid[..., 0], axis=1) != 0).all()
        down = (np.diff(grid[..., 1], axis=0) != 0).all()
        assert bool(right and down) is differ
    assert plane.deepest(32, 32) == math.floor(math.log2(0.1 / narrowest))


@pytest.mark.parametrize("size", [2, 12, 300])
def test_pixels_never_run_into_each_other_at_the_guard(size: int) -> None:
    plane = turned(size, 1.0)
    deep = plane.zoomed((0.61, -0.37), 2.0 ** plane.deepest(24, 48))
    grid = deep.grid(24, 48).reshape(24, 48, size)
    assert (np.diff(grid, axis=0) != 0).any(axis=2).all() and (np.diff(grid, axis=1) != 0).any(axis=2).all()
    assert plane.half_width * 2.0 ** -plane.deepest(24, 48) < 2 * plane.narrowest(24, 48)


def test_a_wider_range_of_values_allows_less_depth() -> None:
    plane = level(0.5, (0.0, 0.0))
    assert level(0.5, (1000.0, 0.0)).deepest(32, 32) < plane.deepest(32, 32) - 8
    assert plane.deepest(64, 64) == plane.deepest(32, 32) - 1


def test_three_sources_lie_in_their_plane_and_inside() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (5, 40)).astype(np.float32)
    model, seen = fitted(40, points), set()
    for index in range(40):
        plane = drawn_plane("sources", model, index, 0, KEY, extent=1.25)
        found = plane.coordinates_of(points)
        away = np.linalg.norm(points - plane.origin - found @ np.stack([plane.across, plane.up]), axis=1)
        on = np.flatnonzero(away < 1e-5)
        assert len(on) == 3
        distances = np.linalg.norm(found[on], axis=1)
        assert distances.max() == pytest.approx(plane.half_width / 1.25)
        np.testing.assert_allclose(found[on].mean(axis=0), 0, atol=1e-6)
        seen.add(tuple(on))
    assert len(seen) == 10  # all sets of three out of five


def test_two_attractors_lie_in_their_plane() -> None:
    model = quadrants()
    for index in range(8):
        plane = drawn_plane("attractors", model, index, 0, KEY, extent=2.0)
        at = np.linalg.norm(model.attractors.states - plane.origin, axis=1)  # type: ignore[union-attr]
        assert (np.abs(at - plane.half_width / 2.0) < 1e-6).sum() >= 2  # two of them, about their mean


def test_the_middle_has_random_directions() -> None:
    model = fitted(400, np.zeros((1, 400)))
    planes = [drawn_plane("middle", model, index, 0, KEY, extent=1.0) for index in range(20)]
    assert all(np.abs(plane.origin).max() == 0.0 and plane.half_width == pytest.approx(20.0) for plane in planes)
    across = np.array([plane.across for plane in planes])
    products = across @ across.T - np.eye(20)
    assert np.abs(products).max() < 0.25 and 0.035 < products[np.triu_indices(20, 1)].std() < 0.065  # 1 / 20


@pytest.mark.parametrize("sources", [[[0.5, 0.5]], [[0.5, 0.5], [-0.5, 0.25]], [[0, 0], [0.25, 0.25], [0.5, 0.5]]])
@pytest.mark.parametrize("kind", PLANE_KINDS)
def test_few_sources_and_those_in_a_line_still_give_planes(kind: str, sources: Any) -> None:
    plane = drawn_plane(kind, fitted(2, sources), 7, 0, KEY)
    assert abs(plane.across @ plane.up) < 1e-12 and plane.half_width > 0.0


def test_planes_are_named_by_index_and_key() -> None:
    model = fitted(6, np.random.default_rng(0).uniform(-1, 1, (9, 6)))
    for kind in PLANE_KINDS:
        first = drawn_plane(kind, model, 5, 0, KEY)
        again = drawn_plane(kind, model, 5, 0, KEY)
        other = drawn_plane(kind, model, 5, 0, partial(rng.key, "other"))
        assert np.array_equal(first.grid(3, 3), again.grid(3, 3))
        assert not np.array_equal(first.grid(3, 3), other.grid(3, 3))
        assert not np.array_equal(first.grid(3, 3), drawn_plane(kind, model, 6, 0, KEY).grid(3, 3))


def test_what_is_no_plane_is_refused() -> None:
    good = {"origin": np.zeros(3), "across": np.eye(3)[0], "up": np.eye(3)[1], "half_width": 1.0}
    for name, value, said in (
        ("up", np.eye(3)[0], "upright"),
        ("across", 2 * np.eye(3)[0], "length 1"),
        ("up", np.zeros(2), r"\(D,\)"),
        ("half_width", 0.0, "above 0"),
        ("half_width", np.nan, "above 0"),
        ("centre", (0.0, np.inf), "finite"),
        ("origin", np.full(3, np.nan), "finite"),
    ):
        with pytest.raises(InvalidValueError, match=said):
            Plane(**{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="above 0"):
        Plane(**good).zoomed((0, 0), 0.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="two values"):
        drawn_plane("middle", fitted(1, [[0.5]]), 0, 0, KEY)
    with pytest.raises(InvalidValueError, match="extent"):
        drawn_plane("middle", quadrants(), 0, 0, KEY, extent=0.0)
    with pytest.raises(InvalidValueError, match="plane must be one of"):
        drawn_plane("corner", quadrants(), 0, 0, KEY)
