"""Penalties and the critic: closed forms of slopes and curvatures, second derivatives, and what scores depend on."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.critics import PatchCritic, critic_loss, realism_loss
from fractal_streams.recipes.alae.penalties import (
    directional_curvatures,
    gradient_penalty,
    hessian_penalty,
    squared_slopes,
)
from torch import Tensor

from fractal_streams.errors import InvalidValueError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coupled(codes: Tensor) -> Tensor:
    return torch.stack([codes[:, 0] * codes[:, 1], codes[:, 0].square() * codes[:, 1]], dim=1)


def test_r1_of_a_linear_score_is_half_gamma_times_the_squared_slope() -> None:
    slope, images = drawn(3, 4, 4), drawn(5, 3, 4, 4, seed=1)
    found = gradient_penalty(lambda pictures: (pictures * slope).sum((1, 2, 3)) + 2.0, images, gamma=10.0)
    assert found.item() == pytest.approx(5.0 * slope.square().sum().item(), rel=1e-12)


def test_r1_is_a_mean_over_pictures_of_a_sum_over_pixels() -> None:
    images = drawn(6, 3, 4, 4)
    slopes = squared_slopes(images.requires_grad_().square().sum((1, 2, 3)), images)
    torch.testing.assert_close(slopes, 4.0 * images.square().sum((1, 2, 3)).float(), check_dtype=False)
    found = gradient_penalty(lambda pictures: pictures.square().sum((1, 2, 3)), images, gamma=1.0)
    assert found.item() == pytest.approx(2.0 * images.square().sum((1, 2, 3)).mean().item(), rel=1e-6)


def test_r1_has_a_gradient_for_the_scores_weights_and_none_for_the_pictures() -> None:
    weight = drawn(3, 4, 4).requires_grad_()
    images = drawn(5, 3, 4, 4, seed=1).requires_grad_()
    penalty = gradient_penalty(lambda pictures: (pictures * weight).sum((1, 2, 3)), images, gamma=10.0)
    found = torch.autograd.grad(penalty, [weight, images], allow_unused=True)
    torch.testing.assert_close(found[0], 10.0 * weight.detach())
    assert found[1] is None


def test_r1_runs_in_full_precision_under_autocast() -> None:
    weight, images = drawn(64, 1).float(), drawn(5, 64, seed=1).float()
    score = lambda pictures: (pictures @ weight)[:, 0]  # noqa: E731
    exact = gradient_penalty(score, images).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert gradient_penalty(score, images=images).item() == exact
        assert gradient_penalty(score, images.bfloat16()).dtype == torch.float32
    assert exact == pytest.approx(5.0 * weight.square().sum().item(), rel=1e-6)


def test_curvatures_over_all_signs_have_the_off_diagonal_as_variance() -> None:
    codes = drawn(4, 2)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    found = directional_curvatures(coupled, codes, signs[:, None].expand(-1, 4, -1), 0.1).var(dim=0, correction=0)
    expected = torch.stack([torch.full((4,), 4.0, dtype=torch.float64), 16.0 * codes[:, 0].square()], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_a_few_signs_have_it_in_expectation(reduction: str) -> None:
    torch.manual_seed(0)
    codes = torch.tensor([[0.9, -0.4]], dtype=torch.float64).expand(4000, 2)
    found = hessian_penalty(lambda z: coupled(z)[:, :1], codes, directions=2, reduction=reduction)
    assert found.item() == pytest.approx(4.0, rel=0.1)
    both = hessian_penalty(coupled, codes, directions=2, reduction=reduction)
    expected = 16.0 * 0.81 if reduction == "max" else (4.0 + 16.0 * 0.81) / 2.0  # the signs are those of both
    assert both.item() == pytest.approx(expected, rel=0.1)


def test_what_acts_apart_has_no_penalty_and_what_acts_together_loses_it() -> None:
    codes = drawn(6, 3)
    assert hessian_penalty(lambda z: z.square() + z.sin(), codes).item() == pytest.approx(0.0, abs=1e-18)
    torch.manual_seed(0)
    mix = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    penalties = []

    def mixture(z: Tensor) -> Tensor:
        return z[:, :1] * z[:, 1:2] * mix + z[:, 2:]

    for _ in range(40):
        penalty = hessian_penalty(mixture, codes, directions=4)
        penalties.append(penalty.item())
        (slope,) = torch.autograd.grad(penalty, mix)
        with torch.no_grad():
            mix -= 0.02 * slope
    assert mix.abs() < 0.1 and penalties[-1] < 0.02 * penalties[0]


def test_the_hessian_penalty_is_finite_at_flat_functions_and_full_precision_under_autocast() -> None:
    codes = torch.ones(4, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(hessian_penalty(lambda z: 0.0 * z, codes), codes)
    assert bool((slope == 0).all())
    weight = drawn(8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounding = hessian_penalty(lambda z: z @ weight, codes)
    assert rounding < 1e-6  # a linear map has none; in bfloat16, its rounding over 0.1^2 would be about 1


@pytest.mark.parametrize("wrong", [{"directions": 1}, {"step": 0.0}, {"reduction": "sum"}])
def test_a_penalty_that_has_no_variance_is_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="2 or more directions"):
        hessian_penalty(coupled, torch.ones(2, 2), **wrong)


def test_the_critics_losses_at_chance_and_at_certainty() -> None:
    chance = torch.zeros(4, 9)
    assert critic_loss(chance, chance).item() == pytest.approx(2.0 * math.log(2.0))
    assert realism_loss(chance).item() == pytest.approx(math.log(2.0))
    sure = torch.full((4, 9), 40.0)
    assert critic_loss(sure, -sure).item() < 1e-12 and critic_loss(-sure, sure).item() == pytest.approx(80.0)
    assert realism_loss(-sure).item() == pytest.approx(40.0) and realism_loss(sure).item() < 1e-12
    fake = torch.tensor([0.3], requires_grad=True)
    (slope,) = torch.autograd.grad(realism_loss(fake), fake)
    assert slope.item() == pytest.approx(-1.0 / (1.0 + math.exp(0.3)), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert critic_loss(chance.bfloat16(), chance.bfloat16()).dtype == torch.float32


def test_a_patch_is_judged_by_itself() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(3, width=4, layers=2).double()
    images = drawn(3, 3, 32, 32)
    scores = critic(images)
    assert scores.shape == (3, 64)
    torch.testing.assert_close(critic(images[1:2])[0], scores[1])  # no picture sees its neighbours
    other = images.clone()
    other[:, :, :, 16:] = 5.0
    changed = (critic(other) != scores).unflatten(1, (8, 8))
    assert bool(changed[:, :, -3:].all()) and not bool(changed[:, :, 0].any())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in critic.modules())
    assert 0.1 < scores.std() < 10.0  # weights are drawn so that logits begin neither dead nor wild


def test_a_critic_learns_to_tell_textures_of_equal_means_apart() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(3, width=8, layers=1)
    weights = list(critic.parameters())
    smooth, rough = (
        (2.0 * torch.rand(16, 3, size, size) - 1.0).repeat_interleave(8 // size, 2).repeat_interleave(8 // size, 3)
        for size in (2, 8)
    )
    losses = []
    for _ in range(60):
        loss = critic_loss(critic(smooth), critic(rough))
        losses.append(loss.item())
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 0.3 * slope
    assert losses[0] > 1.0 and losses[-1] < 0.2 * losses[0]
    penalty = gradient_penalty(lambda images: critic(images).mean(1), smooth, 5.0)
    found = torch.autograd.grad(penalty, [critic.body[0].weight, critic.logits.weight])
    assert penalty > 0 and all(bool(slope.isfinite().all()) and slope.abs().max() > 0 for slope in found)


def test_pictures_too_small_for_the_critic_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least 8 pixels"):
        PatchCritic(3, 4, 3)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InvalidValueError, match="1 or more"):
        PatchCritic(3, 4, 0)
