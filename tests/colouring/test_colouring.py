"""Each colouring against closed forms and against a second evaluation in complex arithmetic."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import colouring as colourings
from fractal_streams.colouring import CATALOGUE, find_colouring
from fractal_streams.colouring.crossing import crossing, escape_share, share
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import palette
from fractal_streams.colouring.smooth import smooth, tint
from fractal_streams.errors import FormulaError
from fractal_streams.formulas import CATALOGUE as FORMULAS, Formula, find_formula
from fractal_streams.formulas.definition import formula
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer, call

LINE = 4000
few = settings(max_examples=50, deadline=None)


def start_on_the_line(x, y):  # type: ignore[no-untyped-def]
    return x, y, x - x, y - y


@formula(source="z**2, for tests (2000)", start=start_on_the_line, name="squares_out", stop="escape", radius=1e4)
def squares_out(zr, zi):  # type: ignore[no-untyped-def]
    return zr * zr - zi * zi, 2.0 * zr * zi


@formula(
    source="z**2, for tests (2000)", start=start_on_the_line, name="squares_in",
    stop="converge", limit=(0.0, 0.0), tolerance=1e-4,
)  # fmt: skip
def squares_in(zr, zi):  # type: ignore[no-untyped-def]
    return zr * zr - zi * zi, 2.0 * zr * zi


@formula(source="z/2, for tests (2000)", start=start_on_the_line, name="halves", stop="converge", tolerance=1e-3)
def halves(zr, zi):  # type: ignore[no-untyped-def]
    return 0.5 * zr, 0.5 * zi


@formula(source="z**2 + 1/10, for tests (2000)", start=start_on_the_line, name="low_bound", radius=2.0)
def low_bound(zr, zi):  # type: ignore[no-untyped-def]
    return zr * zr - zi * zi + 0.1, 2.0 * zr * zi


@colouring(
    source="the continuous count, for tests (2000)", name="steps_of_smooth",
    observe=smooth.observe, accumulators=smooth.accumulators,
)  # fmt: skip
def steps_of_smooth(count, inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges):  # type: ignore[no-untyped-def]
    part = crossing(inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    return (count + part) / 64.0, count / 64.0, inside


def paint_line(of: Formula, with_: Any, x: tuple[float, float], y: float = 0.0, **values: float) -> Any:
    """(3, LINE) colours along a horizontal line of start points, and (LINE,) the points' x."""
    raster = Raster(
        formula=of, colouring=with_, height=1, width=LINE, iterations=of.iterations, radius=of.radius
    )  # fmt: skip
    q = {name: parameter.low for name, parameter in {**of.parameters, **with_.parameters}.items()}
    q |= {"centre_x": sum(x) / 2, "centre_y": y, "half_width": (x[1] - x[0]) / 2, **values}
    colours = ReferenceRenderer().sample(raster, np.array([q[name] for name in raster.names]), 0.0, 0.0)
    step = (x[1] - x[0]) / LINE
    return colours[:, 0], x[0] + step * (np.arange(LINE) + 0.5)


def test_each_colouring_has_one_file() -> None:
    files = {path.stem for path in Path(colourings.__file__).parent.glob("*.py")}
    assert files - {"__init__", "definition", "palette", "crossing"} == set(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_colouring_is_a_page_with_its_source(name: str) -> None:
    found = find_colouring(name)
    page = importlib.import_module(found.module).__doc__ or ""
    assert re.search(r"\b(19|20)\d\d\b", found.source) and re.search(r"\b(19|20)\d\d\b", page)
    for title, parameter in found.parameters.items():
        assert parameter.low < parameter.high and parameter.meaning, title


@few
@given(t=st.floats(-50, 50), f=st.floats(0.7, 1.8), phase=st.floats(0, 1))
def test_the_palette_is_three_cosines(t: float, f: float, phase: float) -> None:
    red, green, blue = palette(t, 0.5, 0.3, f, phase, phase + 0.25, phase + 1.0)
    assert red == pytest.approx(0.5 + 0.3 * np.cos(2 * np.pi * (f * t + phase)), abs=1e-9)
    assert green == pytest.approx(0.5 - 0.3 * np.sin(2 * np.pi * (f * t + phase)), abs=1e-9)
    assert blue == pytest.approx(red, abs=1e-9)


@pytest.mark.parametrize("count, inside", [(0.0, 0.0), (7.0, 0.0), (30.0, 1.0)])
def test_three_phase_sine_is_three_sines_of_the_share_survived(count: float, inside: float) -> None:
    paint = find_colouring("three_phase_sine").paint
    phase = 4.0 * (count / 30.0 + 1.0) + np.arange(3) * 2 * np.pi / 3
    expected = (1.0 - inside) * (0.5 + 0.5 * np.sin(phase))
    np.testing.assert_allclose(paint(count, inside, 30.0, 4.0), expected, atol=1e-12)


def test_the_smooth_count_of_a_squaring_is_the_logarithm_of_its_potential() -> None:
    colours, x = paint_line(squares_out, steps_of_smooth, (1.05, 50.0))
    expected = np.log2(np.log(1e4) / np.log(x))
    np.testing.assert_allclose(64.0 * colours[0], expected, atol=2e-3)
    assert np.unique(colours[1]).size > 3


def test_the_smooth_count_of_quadratic_convergence_is_closed_too() -> None:
    colours, x = paint_line(squares_in, steps_of_smooth, (0.02, 0.97))
    expected = np.log2(np.log(1e-4) / np.log(x))
    whole = np.floor(expected) >= 1  # before the first step there is no distance before
    np.testing.assert_allclose(64.0 * colours[0][whole], expected[whole], atol=2e-2)
    assert np.unique(colours[1]).size > 3


@pytest.mark.parametrize(
    "of, x, y", [(low_bound, (0.95, 1.9), 0.01), (squares_out, (1.05, 9.0), 0.0), (halves, (0.05, 0.9), 0.1)]
)
def test_smooth_is_continuous_across_the_count_boundary(of: Formula, x: tuple[float, float], y: float) -> None:
    colours, _ = paint_line(of, steps_of_smooth, x, y)
    jumps = np.abs(np.diff(64.0 * colours[1])) == 1.0
    assert jumps.sum() >= 3, "the counts change along the line"
    assert np.abs(np.diff(64.0 * colours[0]))[jumps].max() < 0.05


@few
@given(a=st.floats(0, 1e6), b=st.floats(0, 1e6), bounds=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)))
def test_a_share_lies_between_0_and_1_and_grows_with_the_bound(a: float, b: float, bounds: tuple[float, float]) -> None:
    low, high = sorted(bounds)
    before, after = sorted((a, b))
    assert 0.0 <= share(before, after, low) <= share(before, after, high) <= 1.0
    if after > before * (1 + 1e-5) + 1e-5:
        assert share(before, after, before) == 0.0 and share(before, after, after) == pytest.approx(1.0)


def test_an_orbit_still_inside_has_all_of_its_last_step() -> None:
    assert escape_share(0.3, 0.1, 0.9, 0.0, 2.0) == escape_share(0.9, 0.1, 0.3, 0.0, 2.0) == 1.0
    for converges in (0.0, 1.0):
        assert crossing(1.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 2.0, 1e-3, converges) == 1.0


@pytest.mark.parametrize("name", ["smooth", "three_phase_sine"])
def test_the_inside_is_black(name: str) -> None:
    colours, x = paint_line(squares_out, find_colouring(name), (0.1, 2.0), frequency=3.0)
    assert (colours[:, x < 0.999] == 0.0).all()
    assert (colours[:, x > 1.1] > 0.0).any()


def test_interior_paints_the_inside_and_mutes_the_rest() -> None:
    values = {"contrast": 0.5, "brightness": 0.5, "palette_frequency": 1.5, "green_phase": 0.3, "blue_phase": 0.6}
    colours, x = paint_line(low_bound, find_colouring("interior"), (-2.0, 2.0), 0.01, **values)
    vivid = np.ptp(colours, axis=0)
    inside = np.abs(x) < 0.85
    assert vivid[inside].mean() > 2 * vivid[~inside & (np.abs(x) > 1.2)].mean()
    assert colours[:, ~inside].mean() < 0.6 * colours[:, inside].mean() + 0.2


def follow(of: Formula, z0: complex, step: Callable[[complex], complex]) -> tuple[list[complex], float]:
    """An orbit from z0 to the step that stops it, and the share of that step within the bound."""
    z, bound = [z0], of.radius
    while len(z) <= of.iterations and (len(z) == 1 or abs(z[-1]) < bound):
        z.append(step(z[-1]))

    def g(w: complex) -> float:
        return float(np.log2(np.log2(2 + min(abs(w) ** 2, 1e30))))

    inside = abs(z[-1]) < bound
    return z, 1.0 if inside else (g(bound) - g(z[-2])) / (g(z[-1]) - g(z[-2]))


def weighed_mean(terms: list[float], part: float) -> float:
    return (sum(terms[:-1]) + part * terms[-1]) / (len(terms) - 1 + part)


def expected_place(name: str, z: list[complex], part: float, q: dict[str, float]) -> float:
    """The place in the palette of an orbit z[0], z[1], ..., computed with complex numbers."""
    if name == "exponential_smoothing":
        terms = [np.exp(-abs(b) - 1 / max(abs(b - a), 1e-6)) for a, b in pairwise(z)]
        return 0.4 * np.log2(0.1 + sum(terms[:-1]) + part * terms[-1])
    if name == "average_magnitude":
        return weighed_mean([np.log2(1 + abs(w)) for w in z[1:]], part)
    if name == "stripe_average":
        terms = [0.5 + 0.5 * np.sin(q["stripes"] * np.angle(w)) for w in z[2:]]
        count = len(z) - 1 if abs(z[-1]) < low_bound.radius else len(z) - 2
        return weighed_mean(terms, part) + 0.1 * np.log2(1 + count + part)
    centre = q["trap_x"] + 1j * q["trap_y"]
    local = [(w - centre) * np.exp(-1j * q["trap_angle"]) for w in z[1:]]
    shapes = [lambda w: abs(w), lambda w: min(abs(w.real), abs(w.imag)), lambda w: abs(abs(w) - 0.5)]
    near = [shapes[int(q["trap_shape"])](w) for w in local]
    before = min([4.0, *near[:-1]])
    return 0.25 * np.log2(0.03 + before + part * (min(before, near[-1]) - before))


ORBITAL = ["exponential_smoothing", "average_magnitude", "stripe_average", "orbit_trap"]


@pytest.mark.parametrize("name", ORBITAL)
@pytest.mark.parametrize("trap_shape", [0.0, 1.0, 2.0])
def test_orbits_are_painted_as_complex_arithmetic_says(name: str, trap_shape: float) -> None:
    found = find_colouring(name)
    q = {
        "brightness": 0.5, "contrast": 0.4, "palette_frequency": 1.3, "red_phase": 0.1, "green_phase": 0.4,
        "blue_phase": 0.8, "stripes": 3.0, "trap_x": 0.3, "trap_y": -0.2, "trap_angle": 0.7, "trap_shape": trap_shape,
    }  # fmt: skip
    colours, x = paint_line(low_bound, found, (-1.9, 1.9), 0.13, **q)
    for k in range(0, LINE, 61):
        z, part = follow(low_bound, complex(x[k], 0.13), lambda w: w * w + 0.1)
        if len(z) < 4:
            continue
        turns = 1.3 * expected_place(name, z, part, q) + np.array([0.1, 0.4, 0.8])
        np.testing.assert_allclose(colours[:, k], 0.5 + 0.4 * np.cos(2 * np.pi * turns), atol=1e-6)


@pytest.mark.parametrize("name", [*ORBITAL, "smooth"])
def test_colours_have_no_edge_where_the_count_changes(name: str) -> None:
    """Below a bound of 2, where |z| alone is far from smooth."""
    found = find_colouring(name)
    counts, _ = paint_line(low_bound, steps_of_smooth, (0.92, 1.6), 0.05)
    colours, _ = paint_line(low_bound, found, (0.92, 1.6), 0.05)
    change = np.abs(np.diff(colours, axis=1)).max(axis=0)
    steps = np.flatnonzero(np.diff(counts[1]))
    assert steps.size >= 3
    assert change[steps].max() < 0.03


def test_a_tint_tells_the_roots_apart_and_has_no_cut() -> None:
    for roots in (3, 4, 5, 6):
        angles = 2 * np.pi * np.arange(roots) / roots
        tints = tint(np.cos(angles), np.sin(angles), 100.0, 1.0)
        assert np.abs(np.subtract.outer(tints, tints))[~np.eye(roots, dtype=bool)].min() > 0.01
    assert tint(-1.0, 1e-9, 100.0, 1.0) == pytest.approx(tint(-1.0, -1e-9, 100.0, 1.0), abs=1e-8)
    assert tint(300.0, 0.0, 100.0, 1.0) == tint(1.0, 0.0, 100.0, 0.0) == 0.0


OVERFLOWS = [(1e30, 1e30), (np.inf, 0.0), (np.inf, -np.inf), (np.nan, 1.0), (0.0, 0.0), (1e-30, -1e-30)]


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("end", OVERFLOWS)
@pytest.mark.parametrize("of_convergence", [False, True])
def test_an_orbit_that_overflowed_is_painted_with_a_finite_colour(
    name: str, end: tuple[float, float], of_convergence: bool
) -> None:
    found = find_colouring(name)
    q = {title: np.float32(parameter.high) for title, parameter in found.parameters.items()}
    kept = {title: np.float32(first) for title, first in found.accumulators.items()}
    state = {"zr": np.float32(end[0]), "zi": np.float32(end[1]), "pr": np.float32(0.5), "pi": np.float32(0.25)}
    with np.errstate(all="ignore"):
        if found.observe and not np.isnan(end[0]):
            seen = call(found.observe, q | kept, goal_r=np.float32(1), goal_i=np.float32(0), n=np.float32(3), **state)
            kept = dict(zip(kept, seen, strict=True))
        shown = call(
            found.paint, q | kept, count=np.float32(3), inside=np.float32(0), iterations=np.float32(30),
            radius=np.float32(2), degree=np.float32(2), tolerance=np.float32(1e-2),
            converges=np.float32(of_convergence), **state,
        )  # fmt: skip
    assert np.isfinite(shown).all() or np.isnan(end[0])


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("of", FORMULAS)
def test_every_pair_gives_a_picture(name: str, of: str) -> None:
    """No pair of formula and colouring is blank: over two pictures levels vary in each channel."""
    from fractal_streams.draw import make_plan
    from fractal_streams.draw.reference import draw
    from fractal_streams.spec import StreamSpec

    spec = StreamSpec(formulas=(of,), colouring=name, height=16, width=16)
    part = spec.parts()[0]
    _, table = draw(make_plan(spec, part, seed=1, split="train"), np.arange(2))
    images = ReferenceRenderer(np.float32).render(Raster.of(spec, part), table)
    assert images.reshape(2, 3, -1).std(axis=2).max() > 8
    assert find_formula(of).name == of


GAPPED = [name for name in CATALOGUE if find_colouring(name).convergence]


def test_what_only_convergence_needs_is_named() -> None:
    assert GAPPED == ["smooth", "stripe_average", "average_magnitude", "interior"]


@few
@given(
    p=st.tuples(st.floats(-99, 99), st.floats(-99, 99)), far=st.floats(100, 1e18), angle=st.floats(0, 7),
    gaps=st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), others=st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)),
)  # fmt: skip
@pytest.mark.parametrize("name", GAPPED)
def test_an_orbit_that_escaped_is_painted_alike_whether_others_converge(
    name: str, p: tuple[float, float], far: float, angle: float, gaps: tuple[float, float], others: tuple[float, float]
) -> None:
    """Without convergence the colour is that of the full crossing, and of any gaps whatever."""
    found = find_colouring(name)
    q = {title: parameter.high for title, parameter in found.parameters.items()}
    q |= {"steps": 4.0, "total": 1.75, "last": 0.5, "nearest": 0.25, "count": 3.0, "inside": 0.0, "iterations": 30.0}
    q |= {"zr": far * 1.001 * np.cos(angle), "zi": far * 1.001 * np.sin(angle), "pr": p[0], "pi": p[1]}
    q |= {"radius": 100.0, "degree": 2.0, "tolerance": 1e-3}
    painted = [
        call(found.paint, q | {"gap": pair[0], "gap_before": pair[1]}, converges=converges)
        for pair, converges in ((gaps, 1.0), (gaps, 0.0), (others, 0.0))
    ]
    assert tuple(map(tuple, painted[1:])) == (tuple(painted[0]),) * 2


def test_an_accumulator_of_convergence_is_declared() -> None:
    with pytest.raises(FormulaError, match="convergence names 'gap', which is no accumulator"):

        @colouring(source="for tests (2000)", convergence=("gap",))
        def ungapped(inside):  # type: ignore[no-untyped-def]
            return inside, inside, inside
