"""Each guard ends a run that has the problem, with its reason, and none that has not."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.guards import (
    CollapseError,
    DiscriminatorWonError,
    Guards,
    GuardSettings,
    batch_deviation,
)

from fractal_streams.errors import DivergedError, FractalStreamsError, InvalidValueError


def watched(guards: Guards, steps: range, **figures: float) -> int | None:
    """The step at which a run ends, whose every record has these figures."""
    for step in steps:
        try:
            guards.watch(step, {"generator": 1.0}, **figures)
        except DivergedError:
            return step
    return None


def test_a_healthy_run_goes_on() -> None:
    assert watched(Guards(), range(0, 20_000, 50), discriminator=1.2, fakes=0.3, reals=0.4) is None
    assert watched(Guards(), range(0, 20_000, 50)) is None  # nothing told


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_ends_a_run_at_once_and_is_named(value: float) -> None:
    with pytest.raises(DivergedError, match=rf"step 7: reciprocity is {value}: lower the learning rate"):
        Guards().watch(7, {"generator": 1.0, "reciprocity": value})
    for name, said in (("discriminator", "discriminator"), ("fakes", "deviation of fakes"), ("reals", "of reals")):
        with pytest.raises(DivergedError, match=said):
            Guards().watch(7, {}, **{name: value})


def test_fakes_that_are_all_alike_end_a_run_after_so_many_records_in_a_row() -> None:
    settings = GuardSettings(collapsed_records=3, grace_steps=100)
    alike = {"fakes": 0.19 * 0.4, "reals": 0.4}
    assert watched(Guards(settings=settings), range(50, 1000, 50), **alike) == 250  # behind 100: 150, 200, 250
    assert watched(Guards(settings=settings), range(50, 1000, 50), fakes=0.21 * 0.4, reals=0.4) is None
    guards = Guards(settings=settings)
    for step in range(150, 3000, 50):  # every third record is better
        guards.watch(step, {}, fakes=0.01 if step % 150 else 0.2, reals=0.4)
    with pytest.raises(
        CollapseError, match=r"step 250: .* less than 20% of the 0\.4 .*3 records in a row.*raise the weight"
    ):
        guards = Guards(settings=settings)
        for step in (150, 200, 250):
            guards.watch(step, {}, **alike)
    assert watched(Guards(settings=GuardSettings(collapsed_records=0)), range(0, 9000, 50), **alike) is None


def test_a_discriminator_that_has_won_ends_a_run_after_so_many_steps() -> None:
    assert watched(Guards(), range(0, 9000, 50), discriminator=0.049) == 2000
    assert watched(Guards(), range(0, 9000, 50), discriminator=0.05) is None
    guards = Guards()
    for step in range(0, 9000, 50):  # above it once in 1,950 steps
        guards.watch(step, {}, discriminator=0.2 if step % 1950 == 0 else 0.01)
    with pytest.raises(DiscriminatorWonError, match=r"step 2500: .* below 0\.05 since step 500, it is 0\.01"):
        guards = Guards()
        for step in range(0, 9000, 50):
            guards.watch(step, {}, discriminator=0.7 if step <= 500 else 0.01)
    assert watched(Guards(settings=GuardSettings(won_steps=0)), range(0, 9000, 50), discriminator=0.0) is None


def test_a_resumed_run_is_not_ended_by_its_number_of_steps() -> None:
    assert watched(Guards(), range(50_000, 60_000, 50), discriminator=0.01) == 52_000


def test_reasons_are_errors_of_this_package() -> None:
    for kind in (CollapseError, DiscriminatorWonError):
        assert issubclass(kind, DivergedError) and issubclass(kind, FractalStreamsError)
    with pytest.raises(InvalidValueError, match="least_deviation"):
        GuardSettings(least_deviation=1.5)


def test_a_deviation_is_over_the_batch_not_over_the_picture() -> None:
    picture = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(batch_deviation(picture.expand(5, 3, 8, 8))) == pytest.approx(0.0, abs=1e-6)
    plain = torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 3, 8, 8)
    assert float(batch_deviation(plain)) == pytest.approx(0.5)
    assert float(batch_deviation(picture + 3 * plain)) == pytest.approx(1.5)
