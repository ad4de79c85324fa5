"""Two sets of codes, as sets: closed forms on a line, what the distance does not see, and F following E's codes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.matching import sliced_distance
from fractal_streams.recipes.alae.networks import Projector
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError


@given(st.floats(-5.0, 5.0), st.floats(0.1, 3.0), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_on_a_line_a_shift_and_a_stretch_cost_what_they_are(shift: float, stretch: float, seed: int) -> None:
    """W2 of x and a x + b is the root of mean ((a - 1) x + b)^2, here over the variance of a x + b."""
    torch.manual_seed(seed)
    codes = torch.randn(40, 1)
    moved = stretch * codes + shift
    expected = float((moved - codes).square().mean() / moved.var(correction=0))
    assert float(sliced_distance(codes.flip(0), moved)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_shift_costs_its_square_over_the_variance_whatever_its_direction() -> None:
    torch.manual_seed(0)
    codes = torch.randn(50, 8) * torch.linspace(0.2, 2.0, 8)
    shift = torch.linspace(-1.0, 2.0, 8)
    expected = float(shift.square().sum() / codes.var(0, correction=0).sum())
    found = float(sliced_distance(codes + shift, codes, projections=200_000))  # of d directions' mean squared cosine
    assert found == pytest.approx(expected, rel=0.01)


def test_neither_order_nor_unit_counts_and_one_point_is_as_far_as_the_set_is_wide() -> None:
    torch.manual_seed(0)
    codes, others = torch.randn(64, 8), torch.randn(64, 8) + 0.5

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        torch.manual_seed(1)
        return float(sliced_distance(one, other, projections=4096))

    assert apart(codes[torch.randperm(64)], others) == pytest.approx(apart(codes, others), rel=1e-5)
    assert apart(7.0 * codes, 7.0 * others) == pytest.approx(apart(codes, others), rel=1e-4)
    middle = codes.mean(0).expand_as(codes)
    assert apart(middle, codes) == pytest.approx(1.0, rel=0.05)
    assert apart(codes, others) > 2.0 * apart(torch.randn(64, 8), codes)


def test_f_learns_to_draw_codes_that_lie_as_others_do() -> None:
    """From draws of 16 numbers to codes along three directions of eight."""
    torch.manual_seed(0)
    projector, across = Projector(16, 8, 2, rate=1.0), torch.randn(3, 8)

    def wanted() -> torch.Tensor:
        return torch.randn(256, 3) @ across + 1.0

    def apart() -> float:
        return sum(float(sliced_distance(projector(torch.randn(256, 16)), wanted())) for _ in range(8)) / 8

    with torch.no_grad():
        begin = apart()
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2, betas=(0.0, 0.99))
    for _ in range(400):
        optimizer.zero_grad()
        sliced_distance(projector(torch.randn(256, 16)), wanted()).backward()
        optimizer.step()
    with torch.no_grad():
        assert apart() < 0.1 < 0.2 * begin  # two such sets are 0.02 apart


def test_sets_of_other_sizes_and_single_codes_are_refused() -> None:
    for first, second in ((torch.zeros(4, 2), torch.zeros(4, 3)), (torch.zeros(1, 2),) * 2, (torch.zeros(4),) * 2):
        with pytest.raises(InvalidValueError, match="two \\(N, d\\) of one shape"):
            sliced_distance(first, second)
