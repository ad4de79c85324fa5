"""Maps of basins against networks whose basins are known; walks to boundaries; dimension; colours."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hand_made_basins import dust, quadrants, stairs

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.basin_boundary import PROBES, boundary_points, segments, shifted_views, uncertainty
from fractal_streams.kaleidoscope.basin_colours import (
    NOWHERE,
    SHADES,
    BasinColours,
    basin_pictures,
    beside_edges,
    palette,
    shades_of_steps,
)
from fractal_streams.kaleidoscope.basins import BasinMap, Chart, EndRule, basin_map, end_table, shares
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.planes import Plane, drawn_plane
from fractal_streams.kaleidoscope.reference import ReferenceEngine

KEY = partial(rng.key, "basins")
RULE = EndRule()


def level(half_width: float, centre: tuple[float, float] = (0.0, 0.0)) -> Plane:
    return Plane(
        origin=np.zeros(2), across=np.array([1.0, 0]), up=np.array([0, 1.0]), half_width=half_width, centre=centre
    )


def chart_of(fitted: Kaleidoscope, planes: list[Plane], models: Any = None, rule: EndRule = RULE) -> Chart:
    of = np.zeros(len(planes), np.int64) if models is None else np.asarray(models)
    return Chart(open_engine(fitted, "cpu"), end_table(fitted, rule.ends), rule, planes, of)


def quadrant_of(points: Any) -> Any:
    """The end of `quadrants` that each point goes to."""
    return (points[..., 0] < 0) + 2 * (points[..., 1] < 0)


def test_four_basins_meet_at_the_axes() -> None:
    plane = level(0.7, (0.1, -0.05))
    found = basin_map(quadrants(), plane, 20, 30, device="cpu")
    points = plane.grid(20, 30).reshape(20, 30, 2)
    assert found.attractor.dtype == found.steps.dtype == np.int32 and found.attractor.shape == (1, 20, 30)
    assert np.array_equal(found.attractor[0], quadrant_of(points))
    nearest = np.abs(points).min(axis=2)
    # 3**k v reaches 1/2 at step k; one step more shows that it rests
    steps = np.maximum(1, np.ceil(np.log(0.5 / nearest) / math.log(3.0) - 1e-5)) + 1
    assert np.array_equal(found.steps[0], steps)
    far, near = np.abs(points).min(axis=2) > 0.3, np.abs(points).min(axis=2) < 0.05
    assert found.steps[0][far].max() < found.steps[0][near].min()


def test_the_map_is_that_of_the_reference() -> None:
    for fitted in (quadrants(), dust()):
        plane = drawn_plane("sources", fitted, 3, 0, KEY)
        fast = basin_map(fitted, plane, 24, 24, device="cpu")
        slow = basin_map(fitted, plane, 24, 24, engine=ReferenceEngine(fitted))
        same = fast.attractor == slow.attractor
        assert same.mean() > 0.99 and len(np.unique(slow.attractor)) > 1
        assert (fast.steps == slow.steps)[same].mean() > 0.97


def test_basins_are_where_the_steps_lead() -> None:
    """The dust's two basins, by applying the map in Python."""

    def end(x: float) -> int:
        for _ in range(60):  # in float64, whose rounding takes any start out by then
            if not 0.0 <= x <= 1.0:
                break
            x = 5 * x if x < 0.3 else 1.5 - 5 * (x - 0.3) if x < 0.7 else -0.5 + 5 * (x - 0.7)
        return 0 if x > 1.0 else 1

    plane = level(0.6, (0.503, 0.0))
    found = basin_map(dust(), plane, 3, 211, device="cpu")
    x = plane.axes(3, 211)[0]
    expected = np.array([end(float(np.float32(value))) for value in x])
    assert (found.attractor[0] == expected).mean() > 0.99 and 0.3 < expected.mean() < 0.7
    assert (found.attractor[0] == found.attractor[0][0]).all()  # y has no part in it


def test_many_planes_and_networks_in_one_call_are_those_alone() -> None:
    fitted = stairs()
    planes = [level(0.8), level(0.3, (0.2, -0.2)), level(0.8)]
    together = basin_map(fitted, planes, 9, 12, models=[0, 1, 1], device="cpu")
    for row, model in enumerate((0, 1, 1)):
        alone = basin_map(fitted, planes[row], 9, 12, models=model, device="cpu")
        for name in ("attractor", "nearest", "steps"):
            assert np.array_equal(getattr(together, name)[row], getattr(alone, name)[0])
    points = planes[2].grid(9, 12).reshape(9, 12, 2) - np.float32([0.25, -0.25])
    assert np.array_equal(together.attractor[2], 4 + quadrant_of(points))  # network 1 has rows 4 to 7
    assert together.table.ranks.tolist() == [0, 1, 2, 3] * 2


def test_parts_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fractal_streams.kaleidoscope import basins

    fitted, planes = quadrants(), [level(0.8), level(0.1, (0.05, 0.02))]
    whole = basin_map(fitted, planes, 10, 10, device="cpu")
    monkeypatch.setitem(basins.PART_VALUES, "cpu", 74)
    parts = basin_map(fitted, planes, 10, 10, device="cpu")
    assert np.array_equal(whole.attractor, parts.attractor) and np.array_equal(whole.steps, parts.steps)


def test_no_planes_give_an_empty_map() -> None:
    found = basin_map(quadrants(), [], 4, 5, device="cpu")
    assert found.attractor.shape == (0, 4, 5) and found.shares().shape == (0, 4) and found.edges().shape == (0, 3, 4)


def test_what_ends_nowhere_known_is_unresolved() -> None:
    fitted = quadrants()
    table = fitted.attractors
    assert table is not None
    three = fitted.replace(attractors=type(table)(**{name: array[:3] for name, array in vars(table).items()}))
    found = basin_map(three, level(0.8), 16, 16, device="cpu")
    lost = quadrant_of(level(0.8).grid(16, 16).reshape(16, 16, 2)) == 3
    assert np.array_equal(found.attractor[0] == -1, lost) and lost.mean() == 0.25
    assert (found.nearest[0][lost] > 0).all() and (found.steps[0][lost] > 0).all()
    wide = basin_map(three, level(0.8), 16, 16, rule=EndRule(within=1.0), device="cpu")
    assert (wide.attractor >= 0).all()
    by_source = basin_map(three, level(0.8), 16, 16, rule=EndRule(ends="sources"), device="cpu")
    assert np.array_equal(by_source.attractor[0], quadrant_of(level(0.8).grid(16, 16).reshape(16, 16, 2)))


def test_chains_that_slow_down_beside_a_boundary_are_followed() -> None:
    """1e-6 beside the axis a step changes less than the tolerance: it would rest there at once."""
    found = basin_map(quadrants(), level(1e-6, (0.0, 0.3)), 4, 8, device="cpu")
    assert np.array_equal(found.attractor[0], np.tile([1, 1, 1, 1, 0, 0, 0, 0], (4, 1)))
    assert found.steps.min() > 10


def test_chains_without_rest_say_so() -> None:
    short = basin_map(quadrants(), level(0.01), 4, 4, rule=EndRule(most=2), device="cpu")
    assert (short.steps == -1).all() and (short.attractor == -1).all()


def test_shares_and_edges_count_pixels() -> None:
    rows = np.int32([[[0, 0, 1], [0, -1, 1], [2, 2, 2]]])
    assert shares(rows, 4).tolist() == [[3 / 9, 2 / 9, 3 / 9, 0.0]]
    maps = BasinMap(rows, rows, rows, (level(1.0),), np.zeros(1, np.int64), end_table(quadrants()))
    assert maps.edges().tolist() == [[[True, True], [True, True]]]
    assert beside_edges(np.int32([[[0, 0, 0], [0, 0, 1]]])).tolist() == [[[False, False, True], [False, True, True]]]


def test_walks_end_at_the_boundary() -> None:
    """At the axes, which are the only boundary, to an eighth of the last half width."""
    count = 40
    index, planes = np.arange(count) + 10**12, [level(0.9, (0.2, 0.1)) for _ in range(count)]
    chart = chart_of(quadrants(), planes)
    pair = segments(chart, index, planes, 1.0, KEY)
    assert not np.isnan(pair).any()
    assert (quadrant_of(pair[:, 0]) != quadrant_of(pair[:, 1])).all()
    halvings = np.arange(count) % 20
    points = boundary_points(chart, index, pair, halvings, KEY)
    assert (np.abs(points).min(axis=1) <= 0.9 * 2.0**-halvings / 8).all()
    assert len(np.unique(points[:, 0])) == count
    alone = boundary_points(chart_of(quadrants(), planes[:1]), index[7:8], pair[7:8], halvings[7:8], KEY)
    assert np.array_equal(alone[0], points[7])
    views = shifted_views(planes, index, points, halvings, 1.0, KEY)
    for view, point, depth in zip(views, points, halvings, strict=True):
        if depth:
            assert view.half_width == 0.9 * 2.0**-depth
            assert np.abs(np.array(view.centre) - point).max() <= 0.5 * view.half_width
        else:
            assert view.centre == (0.2, 0.1) and view.half_width == 0.9
    maps = basin_map(quadrants(), views, 16, 16, device="cpu")
    assert all(len(np.unique(rows)) > 1 for rows in maps.attractor)


def test_longer_walks_go_on_where_shorter_ones_ended() -> None:
    planes, index = [level(0.9)] * 6, np.arange(6)
    chart = chart_of(dust(), planes)
    pair = segments(chart, index, planes, 1.0, KEY)
    found = [boundary_points(chart, index, pair, np.full(6, depth), KEY) for depth in (0, 7, 15)]
    longest = np.linalg.norm(pair[:, 0] - pair[:, 1], axis=1)
    assert (np.linalg.norm(found[1] - found[0], axis=1) <= longest / 16**2).all()
    assert (np.linalg.norm(found[2] - found[1], axis=1) <= longest / 16**3).all()
    assert (found[2] != found[1]).any()


def test_a_plane_of_one_basin_has_no_segment() -> None:
    planes = [level(0.1, (0.4, 0.4)), level(0.1, (0.0, 0.4))]
    pair = segments(chart_of(quadrants(), planes), np.arange(2), planes, 1.0, KEY)
    assert np.isnan(pair[0]).all() and not np.isnan(pair[1]).any() and PROBES == 24
    points = boundary_points(chart_of(quadrants(), planes), np.arange(2), pair, np.array([3, 3]), KEY)
    assert np.isnan(points[0]).all() and abs(points[1, 0]) < 0.1 / 64


def test_the_uncertainty_exponent_of_lines_is_one() -> None:
    found = uncertainty(quadrants(), level(0.7), points=4000, device="cpu")
    # a strip of both axes, as wide as the shift on either side of y; x alone is moved
    assert found.shares[0] == pytest.approx(found.shifts[0], rel=0.15)
    assert found.exponent == pytest.approx(1.0, abs=0.08) and found.dimension == 2.0 - found.exponent


def test_the_uncertainty_exponent_of_dust() -> None:
    """1 - log 3 / log 5 = .317; shifts down to 5**-7 of the invariant set."""
    shifts = tuple(5.0**-k for k in np.arange(1.5, 7.0, 0.5))
    found = uncertainty(dust(), level(0.5, (0.5, 0.0)), points=6000, shifts=shifts, device="cpu")
    assert found.dimension == pytest.approx(1.0 + math.log(3.0) / math.log(5.0), abs=0.03)


def test_colours_belong_to_the_end_and_darken_with_steps() -> None:
    table = palette(60)
    assert (table[0] == NOWHERE).all() and np.array_equal(table[:8], palette(7))
    light = table[1:].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light, axis=1) <= 1.0).all() and (light[:, 0] - light[:, -1]).min() > 90.0
    middle = table[1:13, SHADES // 3].astype(float)
    apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)[np.triu_indices(12, 1)]
    assert apart.min() > 30.0
    shade = shades_of_steps(300)
    assert shade[0] == SHADES - 1 and shade[1] == 0 and shade[-1] == SHADES - 1 and (np.diff(shade[1:]) >= 0).all()


def test_pictures_have_their_maps_colours() -> None:
    fitted, plane = stairs(), level(0.8)
    maps = basin_map(fitted, [plane, plane], 12, 12, models=[0, 1], device="cpu")
    colours = BasinColours(maps.table.ranks, 300)
    pictures = basin_pictures(maps, colours)
    table, shade = palette(4), shades_of_steps(300)
    for model in range(2):  # each network's own row, not the table's
        expected = table[maps.attractor[model] - 4 * model + 1, shade[maps.steps[model] + 1]]
        assert np.array_equal(pictures[model].transpose(1, 2, 0), expected)
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 3, 12, 12)


def test_supersampling_is_the_mean_of_a_finer_picture_at_edges() -> None:
    fitted, plane, times = quadrants(), level(0.8, (0.03, 0.02)), 3
    maps, fine = (basin_map(fitted, plane, edge, edge, device="cpu") for edge in (20, 20 * times))
    colours = BasinColours(maps.table.ranks, 300)
    plain, found = (
        basin_pictures(maps, colours, chart=chart_of(fitted, [plane]), supersample=each)[0] for each in (1, times)
    )
    mean = basin_pictures(fine, colours)[0].reshape(3, 20, times, 20, times).astype(float).mean(axis=(2, 4))
    edge = beside_edges(maps.attractor)[0]
    assert np.array_equal(found[:, ~edge], plain[:, ~edge]) and 0.05 < edge.mean() < 0.25
    assert np.abs(found[:, edge] - mean[:, edge]).max() <= 0.5 + 1e-9
    assert (found[:, edge] != plain[:, edge]).any()
    with pytest.raises(InvalidValueError, match="chart"):
        basin_pictures(maps, colours, supersample=2)


def test_grey_is_nowhere_unless_the_nearest_is_asked_for() -> None:
    fitted = quadrants()
    maps = basin_map(fitted, level(0.8), 8, 8, rule=EndRule(within=0.0, most=1), device="cpu")
    colours = BasinColours(maps.table.ranks, 300)
    unresolved = maps.attractor[0] < 0
    assert unresolved.any()
    assert (basin_pictures(maps, colours)[0][:, unresolved] == NOWHERE).all()
    assert (basin_pictures(maps, colours, nearest=True)[0][:, unresolved] != NOWHERE).any(axis=0).all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: EndRule(most=0), "most"),
        (lambda: EndRule(tolerance=1.0), "tolerance"),
        (lambda: EndRule(within=-1.0), "within"),
        (lambda: EndRule(ends="both"), "ends must be one of"),  # type: ignore[arg-type]
        (lambda: basin_map(quadrants(), level(1.0), 0, 4, device="cpu"), "height"),
        (lambda: basin_map(quadrants(), level(1.0), 4, 4, models=1, device="cpu"), "models"),
        (lambda: basin_map(quadrants().replace(attractors=None), level(1.0), 4, 4, device="cpu"), "find_attractors"),
        (lambda: uncertainty(quadrants(), level(1.0), shifts=(0.1, 0.2)), "shifts must fall"),
        (lambda: uncertainty(quadrants(), level(1.0), points=3), "points"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        make()


def test_a_plane_of_another_space_is_refused() -> None:
    other = Plane(origin=np.zeros(3), across=np.eye(3)[0], up=np.eye(3)[1], half_width=1.0)
    with pytest.raises(InvalidValueError, match="network has 2"):
        basin_map(quadrants(), other, 4, 4, device="cpu")
