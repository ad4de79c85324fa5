"""Loss surfaces and basins of maps of the plane that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_made_networks import linear

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.attractors import find_attractors
from fractal_streams.kaleidoscope.basin_colours import NOWHERE, palette
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope
from fractal_streams.kaleidoscope.plots import page
from fractal_streams.kaleidoscope.profiles import trajectories
from fractal_streams.kaleidoscope.surface import (
    Basins,
    basin_colours,
    basins,
    draw_surface,
    loss_surface,
    save_basins,
    save_surface,
)


def two_wells() -> Kaleidoscope:
    """(x, y) -> (tanh 2x, tanh y / 10): what is right of the axis goes to (.9575, 0), what is left to (-.9575, 0)."""
    bare = linear([[2.0, 0.0], [0.0, 0.1]])
    return bare.replace(network=bare.network.replace(head="tanh"))


def test_the_surface_is_the_loss_of_the_map() -> None:
    found = loss_surface(linear([[[0.5, 0.0], [0.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]]]), device="cpu")
    assert found.places == pytest.approx(-1.0 + 0.1 * np.arange(20))
    first, second = found.places[None, :], found.places[:, None]
    assert found.losses[0] == pytest.approx(0.5 * ((0.5 * first) ** 2 + (0.75 * second) ** 2), abs=1e-6)
    assert found.losses[1] == pytest.approx(0.5 * (first**2 + second**2) * np.ones((20, 20)), abs=1e-6)
    bounded = linear([[0.5, 0.0], [0.0, 0.5]])
    unit = bounded.replace(network=bounded.network.replace(head="sigmoid"))
    assert loss_surface(unit, device="cpu").places == pytest.approx(np.arange(0.0, 1.0, 0.05))


def test_basins_are_the_halves_of_the_plane() -> None:
    found = basins(two_wells(), points=16, device="cpu")
    at = found.states[found.attractor]
    assert np.abs(np.abs(at[..., 0]) - 0.95750402).max() < 1e-4 and np.abs(at[..., 1]).max() < 1e-4
    assert (np.sign(at[..., 0]) == np.repeat([-1.0, 1.0], 8)).all()
    assert (found.steps > 0).all()
    assert (found.steps == found.steps[:, ::-1]).all()  # the map is odd
    assert (found.steps[:, 8] >= found.steps[:, 12]).all()  # slow beside the line that parts them
    assert found.steps[7, 8] > found.steps[7, 12]


def test_a_table_of_attractors_is_used() -> None:
    fitted = find_attractors(two_wells(), device="cpu", chains=64)
    table = fitted.attractors
    assert table is not None
    found = basins(fitted, points=8, device="cpu")
    assert (found.states == table.states).all()
    assert [(found.attractor == row).sum() for row in range(2)] == [32, 32]


def test_chains_that_end_elsewhere_or_do_not_rest_are_at_none() -> None:
    fitted = find_attractors(two_wells(), device="cpu", chains=64)
    known = fitted.attractors
    assert known is not None
    one = Attractors(**{name: getattr(known, name)[:1] for name in ("states", "model", "source", "distance", "share")})
    found = basins(fitted.replace(attractors=one), points=8, device="cpu")
    right = bool(known.states[0, 0] > 0)
    assert (found.attractor == np.where(np.repeat([False, True], 4) == right, 0, -1)).all()
    short = basins(fitted, points=8, schedule=Schedule(most=4, tolerance=1e-6), device="cpu")
    assert (short.attractor == -1).all()


def test_what_never_rests_has_no_attractor() -> None:
    schedule = Schedule(most=5, tolerance=1e-6)
    turning = basins(linear([[0.0, 1.0], [-1.0, 0.0]]), points=4, schedule=schedule, device="cpu")
    assert (turning.attractor == -1).all() and (turning.steps == -1).all()
    assert (turning.picture() == NOWHERE).all()


def test_the_picture_has_a_colour_for_each_attractor_and_the_highest_row_first() -> None:
    attractor, steps = np.int32([[0, 0], [1, -1]]), np.int32([[1, 9], [1, -1]])
    inks = palette(2).astype(int)
    drawn = basin_colours(attractor, steps)
    for row, column in ((0, 0), (1, 0)):
        assert np.abs(inks[attractor[row, column] + 1] - drawn[row, column]).max(axis=1).min() == 0
    assert np.abs(inks[1, -1] - drawn[0, 1]).max() <= 8  # the slowest is the darkest
    assert drawn[0, 0].sum() > 2 * drawn[0, 1].sum() and (drawn[1, 1] == NOWHERE).all()
    none = np.zeros((0, 2), np.float32)
    found = Basins(range=(0.0, 1.0), attractor=attractor, steps=steps, states=none, sources=none)
    assert (found.picture() == drawn[::-1]).all()


def test_the_view_is_that_of_the_original() -> None:
    unit = linear([[0.5, 0.0], [0.0, 0.5]])
    fitted = unit.replace(network=unit.network.replace(head="sigmoid"))
    found, travelled = loss_surface(fitted, device="cpu"), trajectories(fitted, starts=5, steps=4, device="cpu")
    axes = page(4.0, 4.0).add_subplot(projection="3d")
    draw_surface(axes, found, travelled, step=3, height=1.0)
    assert (axes.elev, axes.azim) == (20.0, -60.0)
    limits = (*axes.get_xlim(), *axes.get_ylim())
    assert limits == pytest.approx((-0.2, 1.1, 0.0, 1.1)) and axes.get_zlim()[1] == 1.0
    points = {
        item.get_label(): np.stack(item._offsets3d, axis=1) for item in axes.collections if item.get_label()[0] != "_"
    }
    for name, step in (("starts", 0), ("iterates", 3)):
        assert np.asarray(points[name][:, :2]) == pytest.approx(travelled.iterates[0, :, step].astype(float))
        assert np.asarray(points[name][:, 2]) == pytest.approx(travelled.losses[0, :, step])


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    fitted = two_wells()
    found = basins(fitted, points=20, device="cpu")
    place = save_basins(tmp_path / "basins.png", found)
    assert place.read_bytes() == save_basins(tmp_path / "again.png", found).read_bytes()
    with Image.open(place) as picture:
        levels = {tuple(level) for level in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert {tuple(level) for level in found.picture().reshape(-1, 3).tolist()} <= levels
    surface = save_surface(tmp_path / "surface.png", loss_surface(fitted, device="cpu"))
    with Image.open(surface) as picture:
        assert picture.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "basins.png", "surface.png"]


def test_what_has_no_surface_is_refused() -> None:
    for ask in (loss_surface, basins):
        with pytest.raises(InvalidValueError, match="networks of 2 values"):
            ask(linear([[0.5]]), device="cpu")
        with pytest.raises(InvalidValueError, match="points"):
            ask(two_wells(), points=1, device="cpu")
    with pytest.raises(InvalidValueError, match="tolerance must be above 0"):
        basins(two_wells(), schedule=Schedule(tolerance=0.0), device="cpu")
