"""The fit of scaling laws finds what made the losses, and says what they don't tell."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from fractal_streams.recipes.scaling_fit import EXPONENTS, fit_powers, searched, solved

from fractal_streams.errors import InvalidValueError

COMPUTE = np.geomspace(1e12, 1e16, 40)
WEIGHTS, SAMPLES = np.repeat([8e4, 3e5, 1.2e6, 5e6], 12), np.tile(np.geomspace(3e4, 5e6, 12), 4)
MILLIONS = {"weights": 1e6, "samples": 1e6}


@pytest.mark.parametrize(
    "floor, factor, exponent", [(0.5, 2.0, 0.3), (0.0, 1.0, 0.05), (3.0, 0.01, 0.7), (1.0, 9.0, 2)]
)
def test_a_law_of_compute_is_found_from_exact_losses(floor: float, factor: float, exponent: float) -> None:
    loss = floor + factor * (COMPUTE / 1e14) ** -exponent
    law = fit_powers({"compute": COMPUTE}, loss, units={"compute": 1e14}, resamples=0)
    assert law.exponents[0] == pytest.approx(exponent, rel=1e-4)
    assert law.factors[0] == pytest.approx(factor, rel=1e-3)
    assert law.floor == pytest.approx(floor, abs=2e-4)
    assert law(COMPUTE) == pytest.approx(loss, rel=1e-4)
    assert not law.identified and "no resampled fits" in law.remarks[0]


def test_a_law_of_weights_and_samples_is_found_from_exact_losses() -> None:
    loss = 0.2 + 0.8 * (WEIGHTS / 1e6) ** -0.34 + 0.5 * (SAMPLES / 1e6) ** -0.28
    law = fit_powers({"weights": WEIGHTS, "samples": SAMPLES}, loss, units=MILLIONS, resamples=0)
    assert law.exponents == pytest.approx((0.34, 0.28), rel=1e-3)
    assert law.factors == pytest.approx((0.8, 0.5), rel=1e-3)
    assert law.floor == pytest.approx(0.2, abs=2e-3)
    assert law(3e5, 1e6) == pytest.approx(0.2 + 0.8 * 0.3**-0.34 + 0.5, rel=1e-4)


def test_intervals_mostly_hold_the_truth() -> None:
    inside = []
    for trial in range(8):
        noise = np.random.default_rng(trial).normal(scale=0.02, size=COMPUTE.size)
        loss = (0.5 + 2.0 * (COMPUTE / 1e14) ** -0.3) * (1 + noise)
        law = fit_powers({"compute": COMPUTE}, loss, units={"compute": 1e14}, resamples=25, seed=trial)
        low, high = law.intervals["compute exponent"]
        assert low < law.exponents[0] < high
        assert law.error == pytest.approx(0.02, rel=0.4)
        assert law.identified
        inside.append(low <= 0.3 <= high)
    assert sum(inside) >= 5


def test_noise_of_neighbours_that_err_alike_makes_the_interval_wider() -> None:
    steps = np.random.default_rng(1).normal(size=(8, 1))
    alike = np.repeat(steps, 5, axis=1).ravel() * 0.02
    loss = (0.5 + 2.0 * (COMPUTE / 1e14) ** -0.3) * (1 + alike)
    widths = []
    for block in (1, 5):
        law = fit_powers({"compute": COMPUTE}, loss, units={"compute": 1e14}, resamples=50, block=block)
        low, high = law.intervals["compute exponent"]
        widths.append(high - low)
    assert widths[1] > 1.3 * widths[0]


def test_what_the_points_do_not_tell_is_said() -> None:
    noise = 1 + 0.02 * np.random.default_rng(0).normal(size=SAMPLES.size)
    flat = (0.2 + 0.5 * (SAMPLES / 1e6) ** -0.28) * noise
    law = fit_powers({"weights": WEIGHTS, "samples": SAMPLES}, flat, units=MILLIONS, resamples=12)
    assert not law.identified
    assert any("weights" in remark for remark in law.remarks) and not any("samples" in each for each in law.remarks)
    two = WEIGHTS > 1e6
    half = fit_powers({"weights": WEIGHTS[two], "samples": SAMPLES[two]}, flat[two], units=MILLIONS, resamples=5)
    assert "weights has 2 different values: an exponent needs 3" in half.remarks


def test_no_coefficient_is_below_0_and_none_that_is_allowed_fits_better() -> None:
    draws = np.random.default_rng(3)
    for _ in range(20):
        logs, loss = np.sort(draws.normal(size=(1, 9))), draws.uniform(0.5, 2.0, 9)
        linear, squares = solved(logs, loss, np.array([[0.5]]))
        assert (linear >= 0).all()
        powers = np.exp(-0.5 * logs[0])
        others = np.abs(linear[0] + draws.normal(scale=0.3, size=(500, 2)))
        told = (others[:, :1] + others[:, 1:] * powers) / loss - 1.0
        assert squares[0] <= (told**2).sum(1).min()


def test_exponents_stay_in_their_range() -> None:
    logs = np.linspace(-2, 2, 12)[None]
    exponents, linear, squares = searched(logs, np.exp(logs[0]))  # rises: no law of this kind
    assert EXPONENTS[0] <= exponents[0] <= EXPONENTS[1] and (linear >= 0).all() and squares > 0.1


@pytest.mark.parametrize(
    "loss, compute, said",
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "3 points can't show 3 coefficients"),
        ([1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 3.0, 4.0], "loss must hold positive numbers"),
        ([1.0, 2.0, 3.0, 1.0], [1.0, float("nan"), 3.0, 4.0], "compute must hold positive numbers"),
        ([1.0, 2.0, 3.0, 1.0], [1.0, 2.0, 3.0], "4 points"),
    ],
)
def test_values_that_no_law_fits_are_refused(loss: list[float], compute: list[float], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        fit_powers({"compute": compute}, loss)
