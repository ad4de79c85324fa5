"""Windows: exact to the last digits that float64 has, nested about one centre, the same after JSON."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.window import PrecisionWarning, Window, check_precision, growth, value_at

LN_10 = Fraction("2.3025850929940456840179914546843642076011014886287729760333279009675726096773524802359972")
ULP = 2.0**-52

decades = st.floats(-100, 100, allow_nan=False)
sizes = st.floats(1e-14, 9.0)
centres = st.floats(1e-6, 1e6)


def power_of_ten(exponent: float) -> Fraction:
    """10**d, to 60 digits and more, by the series of the exponential in whole fractions."""
    x = Fraction(exponent) * LN_10
    halved = x / 2**12
    term, total = Fraction(1), Fraction(1)
    for order in range(1, 24):
        term = Fraction(round(term * halved / order * 2**400), 2**400)
        total += term
    for _ in range(12):
        total = Fraction(round(total * total * 2**400), 2**400)
    return total


def relative_error(value: float, truth: Fraction) -> float:
    return abs(float(Fraction(value) / truth - 1))


def window(x: tuple[float, float, float], y: tuple[float, float, float]) -> Window:
    return Window(centre=(x[0], y[0]), offset=(x[1], y[1]), size=(x[2], y[2]))


def test_the_oracle_of_powers_is_right() -> None:
    for exponent in (-3, 0, 1, 7):
        assert abs(power_of_ten(exponent) / Fraction(10) ** exponent - 1) < Fraction(1, 10**60)
    assert abs(power_of_ten(0.5) ** 2 / 10 - 1) < Fraction(1, 10**60)


@given(decades)
def test_powers_of_ten_are_right_to_the_rounding_of_the_exponent(exponent: float) -> None:
    twos, rest = growth(np.array([exponent]))
    truth = power_of_ten(exponent) / Fraction(2) ** int(twos[0])
    assert 0.7 < float(truth) < 1.4143  # no cancellation in 1 + rest
    error_of_exponent = float(LN_10) * abs(exponent) * ULP  # half of it from the constant, half from the product
    assert abs(float(1 + Fraction(float(rest[0])) - truth)) <= float(truth) * error_of_exponent + 2 * ULP


@given(st.floats(1e-18, 1e-3), st.sampled_from((-1.0, 1.0)))
def test_small_growth_has_all_its_digits(size: float, sign: float) -> None:
    twos, rest = growth(np.array([sign * size]))
    assert twos[0] == 0
    assert relative_error(float(rest[0]), power_of_ten(sign * size) - 1) < 3 * ULP


def test_the_overview_ends_where_it_says() -> None:
    for low, high in OVERVIEW.ends():
        assert relative_error(low, Fraction(1, 1000)) < 12 * ULP
        assert relative_error(high, Fraction(10) ** 6) < 12 * ULP


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ends_are_met_to_the_printed_digits(name: str) -> None:
    printed = {
        "tanh": ("13.29976231", "13.29978604", "200.3582269", "200.3585844"),
        "relu": ("0.577622737", "0.577625590", "81.4432439", "81.4436463"),
        "linear": ("190.010080", "190.011840", "4.77745244", "4.77749670"),
        "single": ("48.298735", "48.299146", "18.2066141", "18.2067690"),
        "minibatch": ("0.267398835471957", "0.267398835475071", "174.269509700711", "174.269509702741"),
        "drift": ("0.1960618282403", "0.1960618285243", "39.0254607863", "39.0254608429"),
    }[name]
    found = [end for ends in PUBLISHED[name].window.ends() for end in ends]
    assert [f"{end:.{len(text.partition('.')[2])}f}" for end, text in zip(found, printed, strict=True)] == list(printed)


@given(st.tuples(centres, st.floats(-3, 3), sizes), st.tuples(centres, st.floats(-3, 3), sizes))
def test_a_window_is_the_same_to_the_bit_after_json(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    asked = window(x, y)  # type: ignore[arg-type]
    back = Window.from_dict(json.loads(json.dumps(asked.to_dict())))
    assert back == asked and back.to_dict() == asked.to_dict()
    assert back.grid(3, 4).points().tobytes() == asked.grid(3, 4).points().tobytes()


@given(st.tuples(centres, st.floats(-3, 3), sizes), st.integers(1, 40))
def test_nested_windows_share_centre_and_middle(x: tuple[float, ...], halvings: int) -> None:
    outer = window(x, (2.0, 0.0, 1.0))  # type: ignore[arg-type]
    inner = outer
    for _ in range(halvings):
        inner = inner.scaled(0.5)
    assert (inner.centre, inner.offset) == (outer.centre, outer.offset)
    assert inner.size == (outer.size[0] * 0.5**halvings, outer.size[1] * 0.5**halvings)
    assert inner.grid(5).x[2] == outer.grid(5).x[2] and inner.grid(5).y[2] == outer.grid(5).y[2]


@given(st.tuples(centres, st.just(0.0), sizes))
def test_half_a_window_has_every_second_point_in_common(x: tuple[float, ...]) -> None:
    outer = window(x, (2.0, 0.0, 1.0))  # type: ignore[arg-type]
    assert outer.scaled(0.5).grid(17).x[::2].tobytes() == outer.grid(17).x[4:13].tobytes()


@given(
    st.tuples(centres, st.floats(-3, 3), sizes),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(0.01, 4),
)
def test_scaled_puts_its_middle_at_the_place(x: tuple[float, ...], about: tuple[float, float], factor: float) -> None:
    outer = window(x, (2.0, 0.5, 1.0))  # type: ignore[arg-type]
    inner = outer.scaled(factor, about)
    for axis in (0, 1):
        place = outer.offset[axis] - outer.size[axis] / 2 + outer.size[axis] * about[axis]
        assert inner.offset[axis] == pytest.approx(place, rel=0, abs=8 * ULP * (4 + outer.size[axis]))
        assert inner.size[axis] == outer.size[axis] * factor
    back = inner.scaled(1 / factor, (0.5 + (0.5 - about[0]) / factor, 0.5 + (0.5 - about[1]) / factor))
    assert back.offset == pytest.approx(outer.offset, rel=0, abs=1e-13 * (1 + outer.size[0] + factor))


@given(st.tuples(centres, st.floats(-3, 3), st.floats(1e-12, 9.0)))
def test_recentred_is_the_same_window(x: tuple[float, ...]) -> None:
    outer = window(x, (2.0, 0.5, 1.0))  # type: ignore[arg-type]
    moved = outer.recentred()
    assert moved.offset == (0.0, 0.0) and moved.size == outer.size and moved.recentred() == moved
    assert moved.grid(9).x == pytest.approx(outer.grid(9).x, rel=64 * ULP)
    assert moved.centre[0] == outer.grid(9).x[4]


def test_a_deep_window_off_its_centre_keeps_distinct_points() -> None:
    deep = OVERVIEW.scaled(2.0**-38, (0.31, 0.62))
    assert deep.size[0] < 4e-11
    assert (np.diff(deep.recentred().grid(512).x) > 0).all()
    steps = np.diff(deep.recentred().grid(65).x) / deep.recentred().centre[0]
    assert steps == pytest.approx(deep.size[0] / 64 * float(LN_10), rel=1e-3)


def test_axes_in_their_own_units_are_linear() -> None:
    experiment = Experiment(optimiser="momentum", axes=("momentum", "lr"))
    area = Window.of_experiment(experiment)
    assert area.linear == (True, False) and area.ends()[0] == (0.0, 0.999)
    assert Window.of_values(x=(-1.0, 3.0), y=(1.0, 2.0), linear=(True, True)).grid(5).x.tolist() == [-1, 0, 1, 2, 3]
    assert value_at(0.25, np.array([-0.25, 0.5]), True).tolist() == [0.0, 0.75]


def test_points_go_row_by_row_from_the_lowest_and_a_crop_keeps_values() -> None:
    grid = OVERVIEW.grid(4, 6)
    points = grid.points().reshape(4, 6, 2)
    assert (points[:, :, 0] == grid.x).all() and (points[:, :, 1] == grid.y[:, None]).all()
    assert (np.diff(grid.x) > 0).all() and (np.diff(grid.y) > 0).all()
    part = grid.crop(slice(1, 3), slice(2, 5))
    assert part.points().reshape(2, 3, 2).tobytes() == np.ascontiguousarray(points[1:3, 2:5]).tobytes()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"centre": (0.0, 1.0), "size": (1, 1)}, "centre must be above 0"),
        ({"centre": (1.0, 1.0), "size": (0, 1)}, "size must be above 0"),
        ({"centre": (1.0, float("nan")), "size": (1, 1)}, "two finite numbers"),
        ({"centre": (1.0,), "size": (1, 1)}, "two finite numbers"),
        ({"centre": (1.0, 1e299), "size": (1, 4)}, "1e300 at most"),
        ({"centre": (1.0, 1.0), "size": (1, 1), "linear": (True,)}, "linear must be"),
        ({"centre": (1.0, 1.0), "size": (1, 1), "linear": True}, "linear must be"),
    ],
)
def test_what_is_no_window_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Window(**settings)  # type: ignore[arg-type]


def test_ends_that_are_no_window_are_refused() -> None:
    for ends, words in (
        ({"x": (400, 500), "y": (0, 1)}, "x reaches from 1e-300 to 1e300 at most, got the exponents 400.0, 500.0"),
        ({"x": (0, 1), "y": (-301, 0)}, "y reaches from"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            Window.of_exponents(**ends)
    with pytest.raises(InvalidValueError, match="x must be two finite numbers"):
        Window.of_values(x=(1, 10**400), y=(1, 2))
    for linear in (True, (True,)):
        with pytest.raises(InvalidValueError, match="linear must be True or False for each"):
            Window.of_values(x=(1, 2), y=(1, 2), linear=linear)  # type: ignore[arg-type]


def test_ends_whose_quotient_is_no_float_are_a_window() -> None:
    found = Window.of_values(x=(1e-200, 1e200), y=(1.0, 10.0))
    assert found.centre[0] == pytest.approx(1.0, rel=1e-14) and found.size == pytest.approx((400.0, 1.0), rel=1e-14)


def test_the_widest_windows_have_finite_points() -> None:
    for value in (1e-290, 1.0, 1e290):
        grid = Window(centre=(value, 1.0), size=(19.9, 600.0)).grid(7)
        assert np.isfinite(grid.x).all() and (grid.x > 0).all()
        assert np.isfinite(grid.y).all() and (grid.y > 0).all()


AT_LIMIT = [  # precision, decades that are just wide enough, decades that are not
    ("float64", 1.0001e-12, 0.9999e-12),
    ("float32", 8.79e-3, 8.78e-3),
    ("tf32x3", 8.79e-3, 8.78e-3),
    ("tf32", 0.5626, 0.5624),
]


@pytest.mark.parametrize("precision, wide, narrow", AT_LIMIT)
def test_the_guard_of_narrow_windows(precision: str, wide: float, narrow: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = Window(centre=(2.0, 3.0), size=(wide, 1.0))
        assert check_precision(good, good.grid(3), precision, "refuse") is None
        bad = Window(centre=(2.0, 3.0), size=(1.0, narrow))
        told = check_precision(bad, bad.grid(3), precision, "allow")
    assert told is not None and "decades wide" in told and precision in told
    with pytest.warns(PrecisionWarning, match="one realisation of rounding"):
        assert check_precision(bad, bad.grid(3), precision, "warn") == told
    with pytest.raises(InvalidValueError, match="or on_limit='warn'"):
        check_precision(bad, bad.grid(3), precision, "refuse")


@pytest.mark.parametrize("precision, digits", [("float64", 53), ("float32", 24)])
def test_the_guard_of_equal_neighbours(precision: str, digits: int) -> None:
    """Near 1.5 numbers lie 2**(1 - digits) apart: a pitch of four is fine, of a half makes equal neighbours."""
    for pitch, equal in ((4.0, 0), (0.5, 4)):
        area = Window(centre=(1.5, 1.0), size=(8 * pitch * 2.0 ** (1 - digits), 1.0), linear=(True, False))
        told = check_precision(area, area.grid(3, 9), precision, "allow") or ""
        assert (f"{equal} of 8 horizontal steps lie between equal numbers" in told) == bool(equal)
        assert bool(told) == bool(equal)


def test_the_guard_names_what_it_does_not_know() -> None:
    with pytest.raises(InvalidValueError, match="precision must be one of"):
        check_precision(OVERVIEW, OVERVIEW.grid(3), "float16")
    with pytest.raises(InvalidValueError, match="on_limit must be one of"):
        check_precision(OVERVIEW, OVERVIEW.grid(3), "float64", "shout")  # type: ignore[arg-type]
