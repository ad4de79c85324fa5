"""What is known of the formulas: symmetries, kinships, fixed points, and points inside and outside."""

from __future__ import annotations

import cmath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.colouring.definition import colouring
from fractal_streams.formulas import find_formula
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer, call

POINT = st.complex_numbers(max_magnitude=3.0, min_magnitude=1e-3, allow_nan=False, allow_infinity=False)
UNIT = 2 * cmath.pi * 1j
MIDDLE = {"roots": 3.0, "relaxation": 1.1, "relaxation_im": 0.2, "memory": -0.4, "power": 3.3}
few = settings(max_examples=30, deadline=None)


def step(name: str, z: complex, c: complex = 0j, p: complex = 0j, n: float = 1.0, **q: float) -> complex:
    re, im = call(
        find_formula(name).step, {**MIDDLE, **q},
        zr=z.real, zi=z.imag, cr=c.real, ci=c.imag, pr=p.real, pi=p.imag, n=n,
    )  # fmt: skip
    return complex(re, im)


def close(a: complex, b: complex) -> bool:
    return cmath.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


@colouring(source="the orbit's end, for tests", name="orbit_end")
def orbit_end(count, inside, zr, zi):  # type: ignore[no-untyped-def]
    return (count + 0.5) / 255.0, inside, zr * 0.0


def ends(name: str, points: complex | list[complex], q: dict[str, float] | None = None, **fields: Any) -> Any:
    """(count, inside) of each point of the plane, through the reference renderer."""
    formula = find_formula(name)
    raster = Raster(**{
        "formula": formula, "colouring": orbit_end, "height": 1, "width": 1,
        "iterations": formula.iterations, "radius": formula.radius, **fields,
    })  # fmt: skip
    values = {title: parameter.low for title, parameter in formula.parameters.items()} | {"rotation": 0.0} | (q or {})
    found = []
    for point in np.atleast_1d(np.asarray(points, complex)):
        values |= {"centre_x": point.real, "centre_y": point.imag, "half_width": 0.0}
        colours = ReferenceRenderer().sample(raster, np.array([values[title] for title in raster.names]), 0.0, 0.0)
        found.append((int(colours[0, 0, 0] * 255.0), bool(colours[1, 0, 0])))
    return found if len(found) > 1 else found[0]


def test_the_mandelbrot_set_holds_its_known_points() -> None:
    for inside in (0, -1, -2, -1.75, 0.25, 1j, -0.1225612 + 0.7448618j):
        assert ends("mandelbrot", inside) == (60, True)


@pytest.mark.parametrize("c, count", [(1, 4), (2, 3), (-3, 3), (0.26, 31), (3j, 3), (99, 1), (101, 0)])
def test_points_outside_leave_at_the_step_counted_by_hand(c: complex, count: int) -> None:
    z, steps = 0j, -1
    while abs(z) < 100:
        z, steps = z * z + c, steps + 1
    assert ends("mandelbrot", c) == (steps, False) == (count, False)


def test_the_count_reaches_every_iteration_that_is_asked_for() -> None:
    assert ends("mandelbrot", -1, iterations=200) == (200, True)


@few
@given(z=POINT, c=POINT)
@pytest.mark.parametrize(
    "name", ["mandelbrot", "multibrot", "tricorn", "celtic", "phoenix", "nova", "lambda", "magnet_1", "magnet_2"]
)
def test_conjugate_points_have_conjugate_orbits(name: str, z: complex, c: complex) -> None:
    mirrored = step(name, z.conjugate(), c.conjugate(), (c * z).conjugate())
    assert close(mirrored, step(name, z, c, c * z).conjugate())


@few
@given(z=POINT)
def test_newton_is_conjugate_when_its_relaxation_is(z: complex) -> None:
    assert close(step("newton", z.conjugate(), relaxation_im=-0.2), step("newton", z).conjugate())


@few
@given(z=POINT, c=POINT)
def test_a_third_of_a_turn_maps_the_tricorn_to_itself(z: complex, c: complex) -> None:
    turn = cmath.exp(UNIT / 3)
    assert close(step("tricorn", turn * z, turn * c), turn * step("tricorn", z, c))


@few
@given(z=POINT, c=POINT, power=st.integers(2, 6))
def test_a_multibrot_set_has_power_less_1_arms(z: complex, c: complex, power: int) -> None:
    turn = cmath.exp(UNIT / (power - 1))
    turned = step("multibrot", turn * z, turn * c, power=power)
    assert cmath.isclose(turned, turn * step("multibrot", z, c, power=power), rel_tol=1e-8, abs_tol=1e-8)


@few
@given(z=POINT, roots=st.integers(3, 6))
def test_newton_turns_with_the_roots(z: complex, roots: int) -> None:
    turn = cmath.exp(UNIT / roots)
    expected = turn * step("newton", z, roots=float(roots))
    assert expected != turn * z
    assert cmath.isclose(step("newton", turn * z, roots=float(roots)), expected, rel_tol=1e-8, abs_tol=1e-8)


@few
@given(z=POINT, c=POINT)
def test_kin_formulas_agree_where_they_meet(z: complex, c: complex) -> None:
    square = step("mandelbrot", z, c)
    shift = {"shift_x": -0.6, "shift_y": -0.9}
    first = complex(abs(z.real), abs(z.imag))
    assert close(step("julia", z, c), square)
    assert close(step("multibrot", z, c, power=2.0), square)
    assert close(step("phoenix", z, c, p=z, memory=0.0), square)
    assert close(step("phoenix", z, c, p=z, n=0.0), square), "the z before the first is 0"
    assert close(step("burning_ship", first, c), step("mandelbrot", first, c))
    assert close(step("nova", z, c), step("newton", z, relaxation_im=0.0) + c)
    assert close(step("kali_julia", z, c, period=1.0, blend=1.0, **shift), step("kali", z, **shift))
    assert close(step("kali_julia", z, c, period=1.0, blend=0.0, **shift), square)
    assert close(step("sine", z, c, alpha=0.0, power=1.0), complex(np.sin(z.real), np.sin(z.imag)) + c)


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_the_hybrid_blends_at_every_period_th_step(period: int) -> None:
    q = {"shift_x": -0.6, "shift_y": -0.9, "period": float(period), "blend": 1.0}
    for n in range(1000):
        kali = close(step("kali_julia", 0.7 + 0.2j, 0.1j, n=float(n), **q), step("kali", 0.7 + 0.2j, **q))
        assert kali == ((n + 1) % period == 0)


@few
@given(z=POINT)
def test_kali_inverts_and_folds(z: complex) -> None:
    shift = -0.6 - 0.9j
    image = step("kali", z, shift_x=-0.6, shift_y=-0.9) - shift
    assert abs(image) * abs(z) == pytest.approx(1.0), "an inversion in the unit circle"
    assert image.real >= 0 and image.imag >= 0
    for mirrored in (-z, z.conjugate(), -z.conjugate()):
        assert close(step("kali", mirrored, shift_x=-0.6, shift_y=-0.9) - shift, image)


@few
@given(c=POINT)
@pytest.mark.parametrize("name", ["magnet_1", "magnet_2"])
def test_1_is_a_superattracting_fixed_point_of_both_magnets(name: str, c: complex) -> None:
    if min(abs(c), abs(c + 1)) < 0.05:
        return  # the denominator's zeros meet the fixed point
    assert close(step(name, 1, c), 1)
    assert abs(step(name, 1 + 1e-6, c) - 1) < 1e-8, "the derivative there is 0"


@pytest.mark.parametrize("roots", [3, 4, 5, 6])
def test_newton_ends_at_the_roots(roots: int) -> None:
    random = np.random.default_rng(roots)
    for _ in range(20):
        z = cmath.rect(random.uniform(0.7, 2.0), random.uniform(0, 7))
        for _ in range(200):
            z = step("newton", z, roots=float(roots), relaxation=1.0, relaxation_im=0.1)
        assert abs(z**roots - 1) < 1e-9


def test_newton_stops_near_a_root_and_the_reference_counts_its_steps() -> None:
    q = {"roots": 3.0, "relaxation": 1.0, "relaxation_im": 0.0}
    z, before, steps = 2 + 0.1j, 9 + 0j, -1
    while abs(z - before) >= 1e-2:
        before, z, steps = z, z - (z**3 - 1) / (3 * z**2), steps + 1
    assert ends("newton", 2 + 0.1j, q) == (steps, False)
    assert 3 < steps < 8


def test_magnets_converge_at_1_and_escape_far_out() -> None:
    points = [1.9, 2.2, 20.0, 0.5 + 0.5j]
    bounds = []
    for c in points[:3]:
        z, steps = 0j, -1
        while abs(z) < 100 and abs(z - 1) >= 1e-2:
            z, steps = ((z * z + c - 1) / (2 * z + c - 2)) ** 2, steps + 1
        bounds.append((steps, False))
    assert ends("magnet_1", points) == [*bounds, (50, True)]


@few
@given(z=POINT, c=POINT)
def test_lambda_is_the_quadratic_map_seen_otherwise(z: complex, c: complex) -> None:
    """With w = lambda (1/2 - z), z -> lambda z (1 - z) is w -> w**2 + lambda/2 (1 - lambda/2)."""
    seen = c * (0.5 - step("lambda", z, c))
    assert close(step("mandelbrot", c * (0.5 - z), c / 2 * (1 - c / 2)), seen)


@pytest.mark.parametrize("c", [0.5 + 0.3j, 3.1 + 0.2j, -0.7 + 0.4j, 2.5 - 1.5j, -2.0 + 1.0j])
def test_a_half_turn_about_1_keeps_lambda_inside_or_outside(c: complex) -> None:
    """lambda and 2 - lambda give the same point of the Mandelbrot set; none of these lies near its rim."""
    one, other = ends("lambda", [c, 2 - c], iterations=200)
    near = ends("mandelbrot", c / 2 * (1 - c / 2), iterations=200)
    assert one[1] == other[1] == near[1]


def test_the_critical_orbit_of_a_julia_set_is_the_mandelbrot_sets_orbit_of_its_c() -> None:
    for angle in (0.3, 1.1, 2.0, 4.4):
        assert ends("julia", 0j, {"multiplier": 0.9, "angle": angle}) == (100, True)
        c = cmath.rect(0.65, angle) - cmath.rect(0.65, angle) ** 2
        assert ends("julia", 0j, {"multiplier": 1.3, "angle": angle}, iterations=60) == ends("mandelbrot", c)
    assert not ends("julia", 0j, {"multiplier": 1.3, "angle": 1.1})[1]


def test_the_celtic_fold_changes_only_squares_with_a_negative_real_part() -> None:
    assert close(step("celtic", 2 + 1j, 0.1j), step("mandelbrot", 2 + 1j, 0.1j))
    assert close(step("celtic", 1 + 2j), 3 + 4j)


def test_pictures_of_symmetric_sets_are_symmetric() -> None:
    formula = find_formula("tricorn")
    raster = Raster(
        formula=formula, colouring=orbit_end, height=48, width=48, iterations=40, radius=100.0,
    )  # fmt: skip
    view = {"centre_x": 0.0, "centre_y": 0.0, "half_width": 1.6, "rotation": 0.0}
    pictures = []
    for turn in (0.0, 1 / 3, 2 / 3, 0.5):
        column = np.array([(view | {"rotation": 2 * np.pi * turn})[name] for name in raster.names])
        pictures.append(ReferenceRenderer().levels(raster, column)[0])
    whole, third, two_thirds, half = pictures
    assert (whole != third).mean() < 0.003 and (whole != two_thirds).mean() < 0.003
    assert (whole != half).mean() > 0.2, "a half turn is no symmetry, so that the test can fail"
    np.testing.assert_array_equal(whole, whole[::-1])
