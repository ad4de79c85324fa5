"""The measure of a run, against sums written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.outcome import CAP, Outcome, Readout, capped, measure_of, outcome_of
from fractal_streams.trainability.reference import ReferenceTrainer


def column(*losses: float) -> Any:
    return np.array(losses, np.float64)[:, None]


def by_hand(losses: list[float]) -> tuple[float, int, float]:
    """(measure, first blown step, last quotient) of one run, as the paper has it, number by number."""
    finite = [loss if math.isfinite(loss) else 1e6 for loss in losses]
    quotients = [min(loss / finite[0], 1e6) for loss in finite]
    tail = quotients[-20:]
    blown = [t for t, loss in enumerate(losses) if not math.isfinite(loss) or quotients[t] >= 1e6]
    if sum(tail) / len(tail) < 1.0:
        measure = -sum(quotients)
    else:
        measure = sum(1.0 / q if q else math.inf for q in quotients)
    return measure, blown[0] if blown else len(losses), quotients[-1]


EXTREMES = [0.0, 5e-324, 1e5, 1e6, 1e8, 1e300, math.inf, math.nan]


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.01, 100.0),
    st.lists(st.one_of(st.floats(0.0, 10.0), st.sampled_from(EXTREMES)), max_size=50),
)
def test_an_outcome_is_what_the_paper_sums(first: float, rest: list[float]) -> None:
    losses = [first, *rest]
    found = outcome_of(column(*losses), Readout())
    measure, blown, last = by_hand(losses)
    assert found.measure[0] == pytest.approx(measure, rel=1e-12)
    assert (found.diverged_at[0], found.final_loss[0]) == (blown, last)
    assert abs(found.measure[0]) >= 1.0
    assert found.converged[0] == (measure < 0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_a_million_before_the_division(broken: float) -> None:
    assert capped(column(2.0, broken)).ravel().tolist() == [1.0, 5e5]
    assert capped(column(0.5, broken)).ravel().tolist() == [1.0, 1e6]
    assert capped(column(2.0, 4e6)).ravel().tolist() == [1.0, 1e6]
    found = outcome_of(column(2.0, 1.0, broken, 1.0), Readout())
    assert found.diverged_at.tolist() == [2] and found.diverged_at.dtype == np.int32
    assert found.measure == pytest.approx([1 + 2 + 1 / 5e5 + 2])


def test_a_first_loss_that_is_not_finite_or_zero_does_not_give_nan() -> None:
    assert capped(column(math.nan, 1.0, math.inf)).ravel().tolist() == [1.0, 1e-6, 1.0]
    assert capped(column(0.0, 0.0, 1.0)).ravel().tolist() == [CAP, CAP, CAP]
    assert outcome_of(column(0.0, 0.0), Readout()).diverged_at.tolist() == [0]


def test_a_run_that_passed_through_zero_and_diverged_has_an_infinite_measure() -> None:
    assert measure_of(capped(column(1.0, 0.0, 1e9))).tolist() == [math.inf]


def test_a_plateau_at_the_first_loss_has_not_converged() -> None:
    """The mean must lie below 1, strictly."""
    flat = np.ones((30, 1))
    assert measure_of(flat).tolist() == [30.0]
    below = flat.copy()
    below[-1] = np.nextafter(1.0, 0.0)
    assert measure_of(below)[0] in (30.0, -30.0)  # a sum of 20 numbers cannot tell the last bit
    below[-1] = 1.0 - 1e-12
    assert measure_of(below)[0] == pytest.approx(-30.0)


def test_the_last_twenty_losses_decide() -> None:
    early, late = np.ones((60, 1)), np.ones((60, 1))
    early[:40], late[40:] = 100.0, 0.5
    early[0] = 1.0
    assert measure_of(early)[0] == pytest.approx(1 + 39 / 100 + 20)
    assert measure_of(late)[0] == -50.0
    for size, converged in ((20, True), (21, False)):
        losses = np.full((60, 1), 5.0)
        losses[0], losses[60 - size :] = 1.0, 0.9
        losses[60 - size] = 0.9 if size == 20 else 0.0
        losses[41] = 0.9 if size == 20 else 20.0
        assert (measure_of(losses)[0] < 0) == converged


@pytest.mark.parametrize("steps", [1, 2, 7, 19])
def test_a_run_of_fewer_than_twenty_steps_is_judged_by_all_of_them(steps: int) -> None:
    losses = column(*[1.0] * (steps - 1), 0.5)
    expected = -(steps - 0.5) if steps > 1 else 1.0
    assert outcome_of(losses, Readout()).measure.tolist() == [expected]


def test_runs_do_not_touch_each_other() -> None:
    losses = np.exp(np.random.default_rng(0).normal(size=(37, 1)).cumsum(0) * np.linspace(0.1, 6, 11))
    together = outcome_of(losses, Readout(losses=5, checkpoints=(3, 30)))
    for place in range(11):
        alone = outcome_of(losses[:, place : place + 1], Readout(losses=5, checkpoints=(3, 30)))
        for name in ("measure", "diverged_at", "final_loss", "losses", "measures"):
            assert (getattr(together, name)[place] == getattr(alone, name)[0]).all(), name


@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_checkpoint_is_the_measure_of_a_run_of_that_length(batch_size: int | None) -> None:
    experiment = Experiment(width=8, dataset_mode="width", batch_size=batch_size, steps=60)
    points = np.array([[1.0, 1.0], [100.0, 30.0], [1e4, 1e4], [30.0, 300.0]])
    found = ReferenceTrainer().train(experiment, points, Readout(checkpoints=(1, 10, 25, 60), losses=60))
    assert found.measures is not None and found.losses is not None
    for place, steps in enumerate((1, 10, 25, 60)):
        shorter = ReferenceTrainer().train(experiment.replace(steps=steps), points)
        assert (found.measures[:, place] == shorter.measure).all()
        assert (found.losses[:, steps - 1] == shorter.final_loss).all()
    assert found.converged.any() and not found.converged.all()


def test_losses_are_the_first_over_the_first_and_nothing_that_was_not_asked() -> None:
    losses = np.array([[2.0, 4.0], [1.0, 8.0], [5.0, math.nan]])
    found = outcome_of(losses, Readout(losses=2), probe=np.array([1.0, 2.0]))
    assert found.losses is not None and found.losses.tolist() == [[1.0, 0.5], [1.0, 2.0]]
    assert found.measures is None and found.probe is None
    kept = outcome_of(losses, Readout(probe=True), probe=np.array([1.0, 2.0]))
    assert kept.losses is None and kept.probe is not None and kept.probe.tolist() == [1.0, 2.0]
    assert np.shares_memory(found.final_loss, losses) is False and found.final_loss.tolist() == [2.5, 250000.0]


def test_outcomes_are_cut_and_joined() -> None:
    whole = outcome_of(np.random.default_rng(1).random((9, 6)) + 0.5, Readout(losses=3, checkpoints=(4,)))
    again = Outcome.concatenate([whole[:2], whole[2:3], whole[np.array([3, 4, 5])]])
    for name in ("measure", "diverged_at", "final_loss", "losses", "measures"):
        assert (getattr(again, name) == getattr(whole, name)).all()
    assert len(again) == 6 and again.probe is None and len(whole[:0]) == 0


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"losses": -1}, "losses must"),
        ({"losses": 51}, "losses must .*50"),
        ({"checkpoints": 5}, "checkpoints must be a tuple of steps, got 5"),
        ({"probe": "no"}, "probe must be True or False, got 'no'"),
        ({"checkpoints": (0,)}, "a checkpoint must .*1.*50.*got 0"),
        ({"checkpoints": (51,)}, "a checkpoint must"),
        ({"checkpoints": (5, 5)}, r"checkpoints must increase, got \(5, 5\)"),
        ({"checkpoints": (9, 4)}, "checkpoints must increase"),
        ({"checkpoints": tuple(range(1, 18))}, "at most 16 checkpoints, got 17"),
    ],
)
def test_readouts_that_are_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        Readout(**asked).checked(Experiment(steps=50))
