"""The one-parameter loss: the counts of its paper, and where its boundary is smooth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.trainability.toy import SMOOTH, Toy, change_slope

COUNTS = (1, 1, 1, 1, 3, 5, 7, 13, 21, 27, 57, 115, 247, 423, 683)
"""Label changes of the multiplicative loss on grids of 2**k + 1 rates, in the data of Y. Liu 2024."""


def test_label_changes_are_those_of_the_paper() -> None:
    assert Toy().label_changes(14) == COUNTS


def test_a_coarse_grid_is_a_part_of_a_fine_one() -> None:
    toy = Toy(steps=200)
    assert toy.label_changes(8)[:6] == toy.label_changes(5)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_without_a_cosine_the_loss_after_t_steps_is_a_power(steps: int) -> None:
    """x_t = (1 - 2 lr)**t, so the loss passes 1e8 at step t where |1 - 2 lr| > 1e4 ** (1 / t)."""
    edge = (1.0 + 1e4 ** (1.0 / (steps - 1))) / 2.0 if steps > 1 else math.inf
    rates = np.array([0.0, 0.5, 1.0, edge * (1 - 1e-9), edge * (1 + 1e-9)]) if steps > 1 else np.array([0.0, 1e9])
    expected = [False] * (len(rates) - 1) + [steps > 1]
    for form in ("multiplicative", "additive"):
        assert Toy(form=form, eps=0.0, steps=steps).diverged(rates).tolist() == expected


@pytest.mark.parametrize("wavelength", [0.1, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_convex_loss_has_one_change_of_label(wavelength: float, share: float) -> None:
    toy = Toy(form="additive", eps=share * SMOOTH * wavelength**2, wavelength=wavelength)
    assert toy.roughness <= SMOOTH
    assert set(toy.label_changes(9)) == {1}


def test_a_rough_loss_has_many() -> None:
    assert Toy(form="additive", eps=0.1, wavelength=1.0).label_changes(10)[-1] > 10


@pytest.mark.slow
def test_the_slopes_are_those_of_the_paper() -> None:
    """Its fits reach 2**31 rates: 0.837 of the multiplicative loss, 0.996 of the additive."""
    product = Toy().label_changes(20)
    assert product[:15] == COUNTS
    assert change_slope(product[4:]).slope == pytest.approx(0.837, abs=0.03)
    total = Toy(form="additive").label_changes(20)
    assert change_slope(total[14:]).slope == pytest.approx(0.996, abs=0.05)


def test_slopes_of_powers_are_exact() -> None:
    fit = change_slope([0, 3, 6, 12, 24])
    assert (fit.slope, fit.standard_error) == pytest.approx((1.0, 0.0), abs=1e-7)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"eps": -0.1}, r"eps must lie in \[0, 1\], got -0.1"),
        ({"wavelength": 0.0}, r"wavelength must lie in \(0, 10\], got 0.0"),
        ({"steps": 0}, "steps must"),
        ({"form": "additve"}, "form"),
    ],
)
def test_what_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises((InvalidValueError, UnknownNameError), match=told):
        Toy(**settings)  # type: ignore[arg-type]


def test_rates_and_slopes_that_are_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"rates must be \(N,\) finite numbers"):
        Toy().diverged([math.nan])
    with pytest.raises(InvalidValueError, match="a slope needs two grids"):
        change_slope([0, 0, 4])
