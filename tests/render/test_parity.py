"""Every formula with every colouring: a renderer is held to the reference within its derived budget.

The everyday run takes each formula once, with its own colouring or with one that no formula has for its own;
`pytest -m slow` takes all pairs. `budget` derives how far a renderer may be.
"""

from __future__ import annotations

from typing import Any

import budget
import numpy as np
import pytest

from fractal_streams.colouring import CATALOGUE as COLOURINGS
from fractal_streams.formulas import CATALOGUE as FORMULAS, find_formula
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.render.rounding import Errors, Rounding
from fractal_streams.spec import StreamSpec

PAIRS = [(formula, colouring) for formula in FORMULAS for colouring in COLOURINGS]


OTHERS = {
    "tricorn": "exponential_smoothing", "nova": "orbit_trap", "magnet_1": "stripe_average", "celtic": "interior",
}  # fmt: skip
"""The colourings that no formula has for its own, on formulas whose like keep theirs: each way to stop has both."""


def covering() -> list[tuple[str, str]]:
    """Each formula once, each colouring at least once; and a colouring of the inside where the inside is known."""
    return [(name, OTHERS.get(name, find_formula(name).colouring)) for name in FORMULAS] + [("mandelbrot", "interior")]


def test_the_everyday_run_takes_every_formula_and_every_colouring() -> None:
    formulas, colourings = map(set, zip(*covering(), strict=True))
    assert formulas == {*FORMULAS} and colourings == {*COLOURINGS}


@pytest.fixture(scope="session")
def numba_errors() -> Errors:
    return budget.numba_errors()


def spec_of(formula: str, colouring: str, **fields: Any) -> StreamSpec:
    return StreamSpec(**{"formulas": formula, "colouring": colouring, "height": 24, "width": 24, **fields})


def hold(errors: Errors, spec: StreamSpec, count: int) -> None:
    """Assert that Numba's pictures of a spec's first samples keep their budget."""
    verdict = budget.judge(NumbaRenderer(1), errors, *budget.pictures(spec, count))
    assert verdict.passes, verdict


@pytest.mark.parametrize("formula, colouring", covering())
def test_numba_keeps_the_budget(formula: str, colouring: str, numba_errors: Errors) -> None:
    hold(numba_errors, spec_of(formula, colouring, height=32, width=32), 4)  # few and large: a call serves a picture


@pytest.mark.slow
@pytest.mark.parametrize("formula, colouring", PAIRS)
def test_numba_keeps_the_budget_for_every_pair(formula: str, colouring: str, numba_errors: Errors) -> None:
    hold(numba_errors, spec_of(formula, colouring), 24)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"supersample": 3}, marks=pytest.mark.slow), {"supersample": 2},
        {"counting": "visits", "radius": 2.0}, {"orientation": "matrix"}, {"height": 15, "width": 39},
        {"iterations": 80}, pytest.param({"iterations": 200}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_numba_keeps_the_budget_however_it_is_asked(fields: dict[str, Any], numba_errors: Errors) -> None:
    hold(numba_errors, spec_of("polynomial_power", "three_phase_sine", **{"height": 24, "width": 24, **fields}), 3)


class Wrong:
    """Numba's pictures of parameters that are off by a relative error."""

    def __init__(self, error: float) -> None:
        self.error = error

    def render(self, raster: Any, table: Any) -> Any:
        return NumbaRenderer(1).render(raster, (table * (1.0 + self.error)).astype(np.float32))


def test_the_budget_can_fail(numba_errors: Errors) -> None:
    """A part in a thousand on the parameters, which no eye would see, is far outside it."""
    raster, table = budget.pictures(spec_of("polynomial_power", "three_phase_sine", height=40, width=40), 4)
    assert budget.judge(NumbaRenderer(1), numba_errors, raster, table).passes
    assert not budget.judge(Wrong(1e-3), numba_errors, raster, table).passes


def test_one_picture_that_is_wrong_fails_the_budget(numba_errors: Errors) -> None:
    class OneWrong:
        def render(self, raster: Any, table: Any) -> Any:
            images = NumbaRenderer(1).render(raster, table)
            images[2] = images[2, :, ::-1]
            return images

    raster, table = budget.pictures(spec_of("mandelbrot", "smooth", height=40, width=40), 4)
    assert not budget.judge(OneWrong(), numba_errors, raster, table).passes


def test_the_budget_follows_the_rounding(numba_errors: Errors) -> None:
    """Larger errors make more pixels differ, and errors of a percent or so very many."""
    raster, table = budget.pictures(spec_of("polynomial_power", "three_phase_sine", height=40, width=40), 2)
    truth = ReferenceRenderer().render(raster, table)

    def found(factor: float) -> int:
        errors = Errors({name: factor * table for name, table in numba_errors.tables.items()})
        return int(budget.differing(ReferenceRenderer(rounding=Rounding(errors, 1)).render(raster, table), truth).sum())

    assert found(1.0) < found(1e3) < 100 < found(1e5)


def test_rounding_is_a_function_of_the_operation_and_its_operands(numba_errors: Errors) -> None:
    values = np.linspace(-3.0, 3.0, 1001)
    first, other = (Rounding(numba_errors, seed) for seed in (0, 1))
    once, again, other_once = (np.asarray(way.number(values) * 1.1) for way in (first, first, other))
    assert np.array_equal(once, again) and not np.array_equal(once, other_once)
    bound = 4.01 * 2.0**-24 * np.abs(values * 1.1)  # of the literal, the number, the product, and their product
    assert (np.abs(once - values * 1.1) <= bound).all()
    assert np.array_equal(np.asarray(first.number(np.float32(0.1))), np.float64(np.float32(0.1)))


def test_an_operation_that_is_not_of_the_dialect_is_refused(numba_errors: Errors) -> None:
    with pytest.raises(TypeError, match="tanh is no operation of the dialect"):
        np.tanh(Rounding(numba_errors).number(1.0))


@pytest.mark.parametrize("size, probability", [(0.5, 0.8), (3.5, 0.8), (200.5, 0.8), (17.25, 0.5)])
def test_the_quantile_is_that_of_a_negative_binomial(size: float, probability: float) -> None:
    draw = np.random.default_rng(5)
    drawn = draw.poisson(draw.gamma(size, (1 - probability) / probability, 400_000))
    for level in (0.5, 0.9, 0.99):
        k = budget.negative_binomial_quantile(size, probability, level)
        assert (drawn <= k).mean() >= level - 0.004
        assert k == 0 or (drawn <= k - 1).mean() < level + 0.004


def test_an_honest_renderer_fails_as_rarely_as_is_said() -> None:
    """Counts that are Poisson, and counts that come in clumps of 5, of which the first S set the bound."""
    draw = np.random.default_rng(3)
    fails = 0
    for clump, rate in ((1, 0.002), (1, 0.5), (1, 8.0), (5, 0.2), (5, 4.0)):
        counts = clump * draw.poisson(rate, (1000, 5, 12))
        fails += sum(int(run[4].sum()) > budget.bound(run[:4]) for run in counts)
    assert fails <= 5
