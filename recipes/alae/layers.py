"""Layers of StyleALAE: equalised learning rates, instance statistics, styles, noise.

An equalised layer keeps weights of unit variance and scales them when it is run. Under an optimizer whose steps do not
depend on the gradient's scale that is the same as scaled weights with a rate of their own (Karras et al. 2018, section
4.1), so `torch.optim.Adam` is all that is needed.
"""

from __future__ import annotations

import math

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SLOPE = 0.2
"""Of the leaky rectifier below 0."""
EPSILON = 1e-8
"""Added to variances: a channel that is constant has a finite gradient."""


class EqualisedLinear(nn.Module):
    """y = (gain / sqrt(inputs) * rate) W x + rate * b, W of unit variance at first over rate squared.

    Args:
        gain: sqrt(2) in front of a rectifier. rate: multiplies what the optimizer's rate does to this layer.
    """

    def __init__(
        self, inputs: int, outputs: int, *, gain: float = math.sqrt(2.0), rate: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.rate = gain / math.sqrt(inputs) * rate, rate

    def forward(self, values: Tensor) -> Tensor:
        bias = self.bias if self.bias is None or self.rate == 1.0 else self.bias * self.rate
        return functional.linear(values, self.weight * self.scale, bias)


class EqualisedConv(nn.Module):
    """A convolution of odd edge that keeps height and width, equalised as `EqualisedLinear`; biases are elsewhere."""

    def __init__(self, inputs: int, outputs: int, edge: int, *, gain: float = math.sqrt(2.0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, edge, edge))
        self.scale, self.padding = gain / math.sqrt(inputs * edge * edge), edge // 2

    def forward(self, maps: Tensor) -> Tensor:
        return functional.conv2d(maps, self.weight * self.scale, padding=self.padding)


class Bias(nn.Module):
    """One number added to each channel, with the optimizer's own rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.bias.to(maps.dtype).view(-1, 1, 1)


class Noise(nn.Module):
    """Gaussian noise, one field for all channels, each with a strength of its own, 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        field = torch.randn_like(maps[:, :1])
        return maps + field * self.strength.to(maps.dtype).view(-1, 1, 1)


class Style(nn.Module):
    """Adaptive instance normalisation's second half: (B, C, H, W) x to (1 + s0) x + s1, with (s0, s1) = A w."""

    def __init__(self, code_size: int, channels: int) -> None:
        super().__init__()
        self.affine = EqualisedLinear(code_size, 2 * channels, gain=1.0)

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        factor, offset = self.affine(code).to(maps.dtype)[..., None, None].chunk(2, dim=1)
        return torch.addcmul(offset, maps, 1.0 + factor)


def check_learning(learns: bool, weight: Tensor) -> None:
    """Holds a network to what it was told, and so makes a compiler look at it.

    Raises:
        InvalidValueError: it was told wrong.
    """
    if learns != weight.requires_grad:
        raise InvalidValueError(f"learns={learns}, and the network's weights have requires_grad={weight.requires_grad}")


def rectified(values: Tensor) -> Tensor:
    return functional.leaky_relu(values, SLOPE)


def pixel_norm(values: Tensor) -> Tensor:
    """(B, d) of any length to length sqrt(d)."""
    wide = values.float()
    return wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + EPSILON)


def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) means and deviations of each channel of each picture, in float32."""
    wide = maps.float()
    mean = wide.mean((2, 3))
    variance = (wide - mean[..., None, None]).square().mean((2, 3))
    return mean, torch.sqrt(variance + EPSILON)


def normalised(maps: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    """Maps whose every channel has mean 0 and deviation 1, by its `statistics`."""
    mean, deviation = (each[..., None, None] for each in moments)
    return ((maps.float() - mean) / deviation).to(maps.dtype)


def blurred(maps: Tensor) -> Tensor:
    """Maps under the binomial filter 1 2 1 in both directions; beyond the edge is 0."""
    rows = functional.pad(maps, (0, 0, 1, 1))
    maps = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
    columns = functional.pad(maps, (1, 1))
    return 0.25 * columns[..., :-2] + 0.5 * columns[..., 1:-1] + 0.25 * columns[..., 2:]


def doubled(maps: Tensor) -> Tensor:
    """Twice as many rows and columns, each one twice."""
    return functional.interpolate(maps, scale_factor=2.0, mode="nearest")


def halved(maps: Tensor) -> Tensor:
    """Means of 2 by 2."""
    return functional.avg_pool2d(maps, 2)
