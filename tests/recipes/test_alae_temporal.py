"""Terms over time: sums written out, what is a pair and what is not, straight lines, corners, and the floor."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.temporal import slow_features, straightness, time_contrast
from torch import Tensor

from fractal_streams.errors import InvalidValueError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(codes: Tensor, temperature: float, near: int, far: int | None) -> float:
    clips, frames, _ = codes.shape
    places = list(itertools.product(range(clips), range(frames)))
    unit = codes / codes.norm(dim=-1, keepdim=True)
    terms = []
    for c, t in places:
        weight = {(d, s): math.exp(float(unit[c, t] @ unit[d, s]) / temperature) for d, s in places}
        crowd = sum(weight[d, s] for d, s in places if d != c or (far is not None and abs(s - t) >= far))
        for s in range(frames):
            if 1 <= abs(s - t) <= near:
                terms.append(-math.log(weight[c, s] / (weight[c, s] + crowd)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("shape, near, far", [((3, 5, 4), 1, None), ((3, 5, 4), 2, 4), ((2, 4, 3), 9, None),
                                              ((1, 7, 4), 1, 3), ((2, 2, 3), 1, 3)])  # fmt: skip
def test_time_contrast_is_the_sum_written_out(shape, near: int, far: int | None) -> None:  # type: ignore[no-untyped-def]
    codes = drawn(*shape)
    found = time_contrast(codes, 0.5, near, far).item()
    assert found == pytest.approx(written_out(codes, 0.5, near, far), rel=1e-10)


def test_clips_of_one_code_each_cost_what_the_others_say() -> None:
    codes = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 4, 3)
    assert time_contrast(codes, 0.25).item() == pytest.approx(math.log(1.0 + 8.0 * math.exp(-4.0)), rel=1e-12)
    same = torch.ones(3, 4, 2, dtype=torch.float64)
    assert time_contrast(same).item() == pytest.approx(math.log(9.0))


def test_frames_in_another_order_or_clip_cost_more() -> None:
    turn = torch.linspace(0.0, math.pi, 8, dtype=torch.float64)
    codes = torch.stack([torch.stack([turn.cos(), turn.sin()], -1), torch.stack([turn.cos(), -turn.sin()], -1)])
    right = time_contrast(codes, near=1, far=3)
    assert time_contrast(codes[:, [0, 4, 1, 5, 2, 6, 3, 7]], near=1, far=3) > right + 1.0
    mixed = torch.stack([torch.stack([codes[0, :4], codes[1, 4:]]), torch.stack([codes[1, :4], codes[0, 4:]])])
    assert time_contrast(mixed.flatten(1, 2), near=1, far=3) > right


def test_what_lies_between_near_and_far_counts_neither_way() -> None:
    codes = drawn(2, 5, 4).requires_grad_()
    (slope,) = torch.autograd.grad(time_contrast(codes[:, :, :], near=1, far=4), codes)
    assert bool((slope != 0).any())
    with_far, without = time_contrast(codes, near=1, far=4), time_contrast(codes, near=1, far=None)
    assert with_far > without  # the ends of a clip are told apart too
    assert time_contrast(codes, near=1, far=5).item() == without.item()


@pytest.mark.parametrize("shape, near, far", [((1, 4, 3), 1, None), ((1, 4, 3), 1, 3), ((2, 4, 3), 0, None),
                                              ((2, 4, 3), 2, 2), ((2, 1, 3), 1, None), ((4, 3), 1, None)])  # fmt: skip
def test_time_contrast_without_pairs_or_negatives_is_refused(shape, near: int, far: int | None) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="frames|near"):
        time_contrast(torch.ones(shape), 0.1, near, far)


def test_slowness_is_the_mean_square_of_steps() -> None:
    codes = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], [[8.0, 8.0], [8.0, 8.0], [8.0, 8.0]]])
    assert slow_features(codes, floor=0.0).item() == pytest.approx((9.0 + 16.0) / 8.0)
    assert slow_features(codes.flip(1), floor=0.0).item() == pytest.approx(25.0 / 8.0)


def test_the_floor_begins_where_the_spread_is_too_small() -> None:
    still = torch.zeros(4, 3, 2)
    assert slow_features(still, floor=0.5).item() == pytest.approx(0.5 - 0.01, rel=1e-4)  # sqrt(0 + 1e-4) is left
    spread = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 3, 5)  # standard deviation 1, and no motion
    assert slow_features(spread, floor=0.5).item() == 0.0
    assert slow_features(spread, floor=1.5).item() == pytest.approx(0.5, rel=1e-3)
    assert slow_features(spread, floor=1.5, floor_weight=3.0).item() == pytest.approx(1.5, rel=1e-3)
    one_dead = torch.cat([spread, still[:2, :, :1]], dim=-1)
    assert slow_features(one_dead, floor=0.5).item() == pytest.approx(0.49 / 6.0, rel=1e-3)


def test_shrinking_pays_without_the_floor_and_not_with_it() -> None:
    codes = 0.3 * drawn(8, 1, 3) + 0.03 * drawn(8, 4, 3, seed=1)
    assert slow_features(0.5 * codes, floor=0.0) < slow_features(codes, floor=0.0)
    assert slow_features(0.5 * codes, floor=0.5) > slow_features(codes, floor=0.5)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, 180.0])
def test_straightness_is_the_squared_sine_of_half_the_angle(angle: float) -> None:
    turn = math.radians(angle)
    corner = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0 + 2.0 * math.cos(turn), 2.0 * math.sin(turn)]]).double()
    assert straightness(corner[None]).item() == pytest.approx(math.sin(turn / 2.0) ** 2, abs=1e-6)


def test_a_line_is_straight_and_neither_place_nor_scale_nor_rotation_matters() -> None:
    line = drawn(3, 1, 4) + torch.arange(6.0, dtype=torch.float64)[None, :, None] * drawn(3, 1, 4, seed=1)
    assert straightness(line).item() < 1e-12
    path, turn = drawn(3, 6, 4), torch.linalg.qr(drawn(4, 4, seed=1)).Q
    value = straightness(path).item()
    assert 0.2 < value < 1.0
    assert straightness(1.0 + 5.0 * path @ turn).item() == pytest.approx(value, rel=1e-6)
    assert straightness(path.flip(1)).item() == pytest.approx(value, rel=1e-12)
    faster = torch.tensor([[[0.0], [1.0], [4.0]]])  # along one line, at another speed: (3 - 1)^2 / (2^2 + 4^2)
    assert straightness(faster).item() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("term", [time_contrast, slow_features, straightness])
def test_gradients_are_finite_at_standstill_and_half_precision_is_widened(term) -> None:  # type: ignore[no-untyped-def]
    for codes in (torch.zeros(3, 4, 5), torch.ones(3, 4, 5), torch.ones(3, 4, 5) * torch.tensor([0, 0, 1.0, 1.0, 2.0])):
        held = codes.requires_grad_()
        (slope,) = torch.autograd.grad(term(held), held)
        assert bool(slope.isfinite().all()) and slope.abs().max() < 1e6
    codes = drawn(3, 4, 5).float()
    exact = term(codes).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert term(codes).item() == exact
    rounded = term(codes.bfloat16())
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact, rel=0.05)


def test_too_short_clips_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least 3 frames"):
        straightness(torch.zeros(2, 2, 4))
    with pytest.raises(InvalidValueError, match="at least 2 frames"):
        slow_features(torch.zeros(8, 4))
