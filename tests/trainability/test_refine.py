"""Refinement: never a change of sign beside a point that was not evaluated, and an error that is the true one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.refine import Refined, Refinement, checked, mixed, refine, widened, wilson
from fractal_streams.trainability.store import COLUMNS


class Known:
    """A measure that is known everywhere, and who was asked for."""

    def __init__(self, measure: np.ndarray) -> None:
        self.measure = measure
        self.asked = np.zeros(measure.shape, np.int64)

    def __call__(self, rows: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
        np.add.at(self.asked, (rows, columns), 1)
        values = self.measure[rows, columns]
        made = {"measure": values, "diverged_at": np.minimum(np.abs(values), 500), "final_loss": values * 0.5}
        return {name: made[name].astype(dtype) for name, dtype in COLUMNS.items()}


def disc(height: int, width: int, radius: float, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """Below 0 inside a disc; |V| is 1 and more, largest at the edge, as the measure's is."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(rows / (height - 1) - y, columns / (width - 1) - x) - radius
    return np.where(distance < 0, -1.0, 1.0) * (1.0 + 1.0 / (0.01 + np.abs(distance)))


@pytest.mark.parametrize("step", [2, 4, 16])
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_a_smooth_boundary_is_found_whole_by_few_points(step: int, margin: int) -> None:
    truth = Known(disc(200, 257, 0.37, x=0.45))
    canvas, known = refine(truth.measure.shape, Refinement(step=step, margin=margin), truth)
    assert ((canvas["measure"] < 0) == (truth.measure < 0)).all()
    assert (canvas["measure"][known] == truth.measure[known]).all()
    assert (truth.asked == known).all()  # each once
    assert np.abs(canvas["measure"]).min() >= 1.0
    edge = mixed(truth.measure < 0).sum()
    least = 1 / step**2
    assert least <= known.mean() <= least + 8 * (margin + 1.5) * (1 + math.log2(step)) * edge / truth.measure.size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.sampled_from((2, 4, 8, 16)), st.integers(0, 3),
    st.integers(0, 2**32 - 1), st.floats(0.0, 1.0),
)  # fmt: skip
def test_changes_of_sign_lie_between_evaluated_points(
    height: int, width: int, step: int, margin: int, number: int, share: float
) -> None:
    draw = np.random.default_rng(number)
    truth = Known(np.where(draw.random((height, width)) < share, -1.0, 1.0) * draw.uniform(1, 50, (height, width)))
    canvas, known = refine((height, width), Refinement(step=step, margin=margin), truth)
    cells = mixed(canvas["measure"] < 0)
    for corner in (known[:-1, :-1], known[:-1, 1:], known[1:, :-1], known[1:, 1:]):
        assert corner[cells].all()
    assert known[::step, ::step].all() and known[-1, ::step].all() and known[::step, -1].all() and known[-1, -1]
    assert (truth.asked == known).all()
    for name in COLUMNS:
        exact = truth(*np.nonzero(known))[name]
        assert (canvas[name][known] == exact).all()


def test_what_is_left_out_takes_the_mean_of_its_corners() -> None:
    rows, columns = np.mgrid[0:9, 0:17]
    truth = Known(1.0 + rows + 100.0 * columns)  # one sign, and what means reproduce exactly
    canvas, known = refine((9, 17), Refinement(step=8), truth)
    assert known.sum() == 2 * 3
    assert (canvas["measure"] == truth.measure).all()
    assert (canvas["final_loss"] == 0.5 * truth.measure).all()


def test_infinite_measures_are_filled_with_their_sign() -> None:
    truth = Known(np.full((9, 9), np.inf))
    truth.measure[:, :4] = -3.0
    canvas, _ = refine((9, 9), Refinement(step=4), truth)
    assert (canvas["measure"] == truth.measure).all()


def test_a_border_that_the_coarse_grid_missed_is_followed() -> None:
    """A snake one point wide that touches a single coarse point is found whole."""
    truth = Known(np.full((65, 65), 5.0))
    truth.measure[16, 16:60] = -5.0
    truth.measure[16:50, 59] = -5.0
    canvas, known = refine((65, 65), Refinement(step=16, margin=0), truth)
    assert ((canvas["measure"] < 0) == (truth.measure < 0)).all() and known.mean() < 0.25


def test_an_island_inside_a_cell_is_missed_and_said_so() -> None:
    truth = Known(disc(129, 129, 0.3))
    truth.measure[2:7, 2:7] = -2.0
    canvas, known = refine((129, 129), Refinement(step=8, margin=0), truth)
    wrong = (canvas["measure"] < 0) != (truth.measure < 0)
    assert wrong.sum() == 25 and wrong[2:7, 2:7].all()
    everything = checked(canvas, known, Refinement(step=8, sample=10**6), truth, "all")
    assert everything.wrong == 25 and everything.sampled == (~known).sum()
    assert everything.error == 25 / (~known).sum() and everything.interval == (everything.error,) * 2


def test_the_interval_holds_the_true_error_as_often_as_it_says() -> None:
    """Of 400 draws of a sample, 95 % of the intervals should hold the truth: 91 % is 3.7 deviations below."""
    draw = np.random.default_rng(0)
    truth = Known(disc(129, 129, 0.3))
    islands = draw.integers(0, 128, (300, 2))
    islands = islands[(islands % 4 != 0).all(axis=1)]
    truth.measure[islands[:, 0], islands[:, 1]] *= -1
    asked = Refinement(step=4, margin=0, sample=300)
    canvas, known = refine((129, 129), asked, truth)
    error = ((canvas["measure"] < 0) != (truth.measure < 0))[~known].mean()
    assert 0.005 < error < 0.05
    held, rates = 0, []
    for number in range(400):
        found = checked(canvas, known, asked, truth, f"draw {number}")
        low, high = found.interval
        held += low <= error <= high
        rates.append(found.error)
    assert held >= 364
    assert np.mean(rates) == pytest.approx(error, abs=4 * math.sqrt(error * (1 - error) / 300 / 400))


def test_the_same_name_draws_the_same_sample() -> None:
    canvas, known = refine((65, 65), Refinement(), Known(disc(65, 65, 0.3)))
    asked = []
    for name in ("a", "a", "b"):
        truth = Known(disc(65, 65, 0.3))
        found = checked(canvas, known, Refinement(sample=50), truth, name)
        assert found.sampled == truth.asked.sum() == 50 and not truth.asked[known].any()
        asked.append(truth.asked)
    assert (asked[0] == asked[1]).all() and (asked[0] != asked[2]).any()


def test_wilson_in_closed_form() -> None:
    assert wilson(0, 100) == (0.0, pytest.approx(1.959963984540054**2 / (100 + 1.959963984540054**2)))
    low, high = wilson(10, 100)
    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)
    assert wilson(90, 100) == (pytest.approx(1 - high), pytest.approx(1 - low))
    for end in wilson(7, 40):  # the ends are those shares of which 7 of 40 lies 1.96 deviations away
        assert abs(7 / 40 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 40))


def test_shares_without_a_sample() -> None:
    assert Refined(100, 100, 0, 0).error == 0.0 and Refined(100, 100, 0, 0).interval == (0.0, 0.0)
    assert math.isnan(Refined(100, 40, 0, 0).error) and Refined(100, 40, 0, 0).interval == (0.0, 1.0)
    assert Refined(100, 40, 0, 0).share == 0.4


def test_widened_marks_a_square() -> None:
    cells = np.zeros((7, 9), np.bool_)
    cells[3, 4] = True
    for margin in (0, 1, 2, 20):
        rows, columns = np.nonzero(widened(cells, margin))
        assert len(rows) == min(2 * margin + 1, 7) * min(2 * margin + 1, 9)
        assert (np.abs(rows - 3).max(), np.abs(columns - 4).max()) == (min(margin, 3), min(margin, 4))


@pytest.mark.parametrize("wrong", [{"step": 3}, {"step": 1}, {"step": 512}, {"margin": -1}, {"sample": 2.5}])
def test_what_is_no_refinement_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(wrong))):
        Refinement(**wrong)
