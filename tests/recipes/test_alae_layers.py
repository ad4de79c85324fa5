"""Layers of StyleALAE against closed forms, and equalised rates against rates that are written out."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.layers import (
    EPSILON,
    Bias,
    EqualisedConv,
    EqualisedLinear,
    Noise,
    Style,
    blurred,
    doubled,
    halved,
    normalised,
    pixel_norm,
    rectified,
    statistics,
)
from torch import Tensor, nn
from torch.nn import functional


@pytest.fixture(autouse=True)
def drawn() -> None:
    torch.manual_seed(0)


class Runtime(nn.Module):
    """Every equalised layer, one behind the other: (B, 6) to (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.conv = EqualisedLinear(6, 8, rate=0.1), EqualisedConv(2, 3, 3)
        self.bias, self.last = Bias(3), EqualisedLinear(12, 2, gain=1.0)

    def forward(self, values: Tensor) -> Tensor:
        maps = rectified(self.slow(values)).view(-1, 2, 2, 2)
        return self.last(rectified(self.bias(self.conv(maps))).flatten(1))


class Explicit:
    """The same with weights as they are multiplied, each with the rate that its layer is known to have."""

    def __init__(self, like: Runtime) -> None:
        slow, conv, last = 0.1 * math.sqrt(2.0 / 6.0), math.sqrt(2.0 / 18.0), math.sqrt(1.0 / 12.0)
        given = [
            (like.slow.weight, slow), (like.slow.bias, 0.1), (like.conv.weight, conv), (like.bias.bias, 1.0),
            (like.last.weight, last), (like.last.bias, 1.0),
        ]  # fmt: skip
        self.scales = [scale for _, scale in given]
        self.weights = [(weight.detach() * scale).requires_grad_() for weight, scale in given]

    def __call__(self, values: Tensor) -> Tensor:
        first, begin, filters, offset, last, end = self.weights
        maps = functional.leaky_relu(functional.linear(values, first, begin), 0.2).view(-1, 2, 2, 2)
        maps = functional.leaky_relu(functional.conv2d(maps, filters, padding=1) + offset.view(3, 1, 1), 0.2)
        return functional.linear(maps.flatten(1), last, end)


def test_scales_at_run_time_are_scaled_weights_with_rates_of_their_own() -> None:
    """50 steps of Adam without a first moment; with one rate for all weights the trajectory is another."""
    runtime = Runtime().double()
    explicit, wrong = Explicit(runtime), Explicit(runtime)
    rate, form = 5e-3, {"betas": (0.0, 0.99), "eps": 1e-12}
    scaled = [
        {"params": [each], "lr": rate * scale} for each, scale in zip(explicit.weights, explicit.scales, strict=True)
    ]
    optimisers = [
        torch.optim.Adam(runtime.parameters(), rate, **form),
        torch.optim.Adam(scaled, **form),
        torch.optim.Adam(wrong.weights, rate, **form),
    ]  # fmt: skip
    first = [weight.detach().clone() for weight in explicit.weights]
    for _ in range(50):
        values, aims = torch.randn(16, 6).double(), torch.randn(16, 2).double()
        networks: tuple[Any, ...] = (runtime, explicit, wrong)
        for network, optimizer in zip(networks, optimisers, strict=True):
            optimizer.zero_grad()
            (network(values) - aims).square().mean().backward()
            optimizer.step()
    ends = Explicit(runtime).weights
    for own, other, begun, apart in zip(ends, explicit.weights, first, wrong.weights, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        assert float((own - begun).detach().abs().max()) > 1e-3  # it went somewhere
        assert own.numel() == 3 or not torch.allclose(own, apart, atol=1e-4)  # rates of 1 are the same
    probe = torch.randn(5, 6).double()
    torch.testing.assert_close(runtime(probe), explicit(probe), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("gain", [math.sqrt(2.0), 1.0])
def test_variances_of_weights_and_outputs_at_the_beginning(gain: float, rate: float) -> None:
    """Var(v) = 1 / rate^2, and so that of outputs is gain^2 times that of inputs at any rate; of 2^18 weights."""
    layer = EqualisedLinear(512, 512, gain=gain, rate=rate)
    weight = layer.weight.detach()
    assert float(weight.var()) == pytest.approx(1.0 / rate**2, rel=0.02)
    assert float((weight * layer.scale).var()) == pytest.approx(gain**2 / 512, rel=0.02)
    assert bool((layer.bias == 0).all())
    made = layer(torch.randn(256, 512)).detach()
    assert float(made.var()) == pytest.approx(gain**2, rel=0.05)
    if gain > 1.0:  # E max(y, 0)^2 + 0.04 E min(y, 0)^2
        assert float(rectified(made).square().mean()) == pytest.approx(gain**2 * 1.04 / 2.0, rel=0.05)


def test_variance_behind_a_convolution() -> None:
    conv = EqualisedConv(32, 64, 3)
    inside = conv(torch.randn(16, 32, 10, 10)).detach()[:, :, 1:-1, 1:-1]
    assert float(inside.var()) == pytest.approx(2.0, rel=0.05)
    assert conv.weight.var().item() == pytest.approx(1.0, rel=0.05)
    assert conv(torch.zeros(1, 32, 5, 7)).shape == (1, 64, 5, 7)


def test_blur_is_binomial_and_darkens_edges() -> None:
    spot = torch.zeros(1, 2, 5, 5)
    spot[0, 1, 2, 2] = 16.0
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    assert torch.equal(blurred(spot)[0, 1, 1:4, 1:4], kernel) and float(blurred(spot).sum()) == 16.0
    flat = blurred(torch.ones(1, 1, 4, 4))[0, 0]
    assert flat[1, 1] == 1.0 and flat[0, 1] == 0.75 and flat[0, 0] == 0.75**2
    maps = torch.randn(2, 3, 6, 4)
    each = functional.conv2d(maps, (kernel / 16).expand(3, 1, 3, 3), padding=1, groups=3)
    torch.testing.assert_close(blurred(maps), each)
    torch.testing.assert_close(blurred(maps.flip(3)), blurred(maps).flip(3))  # no side is favoured
    torch.testing.assert_close(blurred(maps.transpose(2, 3)), blurred(maps).transpose(2, 3))


def test_doubled_and_halved() -> None:
    maps = torch.randn(2, 3, 4, 6)
    assert torch.equal(doubled(maps), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(halved(maps), maps.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5)))
    assert torch.equal(halved(doubled(maps)), maps)


def test_statistics_are_of_each_channel_of_each_picture() -> None:
    maps = 3.0 * torch.randn(4, 5, 6, 6) + 7.0
    mean, deviation = statistics(maps)
    torch.testing.assert_close(mean, maps.flatten(2).mean(2))
    torch.testing.assert_close(deviation, maps.flatten(2).std(2, correction=0))
    again = normalised(maps, (mean, deviation))
    torch.testing.assert_close(statistics(again)[0], torch.zeros(4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics(again)[1], torch.ones(4, 5))
    half = statistics(maps.bfloat16())
    assert half[0].dtype == half[1].dtype == torch.float32  # a sum of bfloat16 would be off by more
    torch.testing.assert_close(half[1], statistics(maps.bfloat16().float())[1])
    assert normalised(maps.bfloat16(), half).dtype == torch.bfloat16


def test_a_dead_channel_has_a_finite_gradient() -> None:
    """The authors' deviation has none: its square root ends in 0."""
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    mean, deviation = statistics(maps)
    torch.testing.assert_close(deviation.detach(), torch.full((2, 3), math.sqrt(EPSILON)))
    (mean.sum() + deviation.sum() + normalised(maps, (mean, deviation)).square().sum()).backward()
    assert bool(maps.grad.isfinite().all())
    (slope,) = torch.autograd.grad(statistics(maps)[1].sum(), maps, create_graph=True)
    (twice,) = torch.autograd.grad(slope.square().sum() + slope.sum(), maps)  # as R1 does
    assert bool(twice.isfinite().all())


def test_pixel_norm_forgets_length() -> None:
    draws = torch.randn(6, 10)
    torch.testing.assert_close(pixel_norm(draws).norm(dim=1), torch.full((6,), math.sqrt(10.0)))
    torch.testing.assert_close(pixel_norm(draws), pixel_norm(7.0 * draws), atol=1e-5, rtol=0)
    assert bool(pixel_norm(torch.zeros(2, 3)).isfinite().all())


def test_noise_is_one_field_with_a_strength_for_each_channel() -> None:
    noise, maps = Noise(3), torch.randn(2, 3, 5, 5)
    assert torch.equal(noise(maps), maps) and bool((noise.strength == 0).all())
    with torch.no_grad():
        noise.strength.copy_(torch.tensor([0.0, 1.0, -2.0]))
    added = noise(maps) - maps
    assert bool((added[:, 0] == 0).all())
    torch.testing.assert_close(added[:, 2], -2.0 * added[:, 1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(added[0, 1], added[1, 1], atol=0.1)


def test_a_style_sets_factor_and_offset_of_each_channel() -> None:
    style, maps = Style(4, 3), torch.randn(2, 3, 5, 5)
    codes = torch.randn(2, 4)
    factor, offset = style.affine(codes).split(3, dim=1)
    expected: Any = maps * (1.0 + factor[..., None, None]) + offset[..., None, None]
    torch.testing.assert_close(style(maps, codes), expected)
    torch.testing.assert_close(style(maps, torch.zeros(2, 4)), maps)
    normal = normalised(maps, statistics(maps))
    mean, deviation = statistics(style(normal, codes))
    torch.testing.assert_close(mean, offset)  # what E is to read off again
    torch.testing.assert_close(deviation, (1.0 + factor).abs(), atol=1e-5, rtol=1e-5)
