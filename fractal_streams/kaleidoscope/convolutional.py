"""Convolutional networks of pictures from diffusers, as maps of values: "unet" and "bottleneck".

A U-Net's skips carry the picture past its levels, so without noise it learns the identity pixel by pixel, also beside
the data. A bottleneck is an autoencoder without skips, whose code has about an eighth of the picture's values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.network import Network, Tensors, units

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

PREFIX = "module."
"""Of the names of these networks' tensors."""
WIDEST = 4
"""Channels of the lowest level at most, in those of the first."""
CODE = 8
"""Values of a picture to one of a bottleneck's code, about."""
GROUPS = 8
"""Groups of a group norm, if the channels can be divided so."""
HEAD = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda values: values}


class Levels(nn.Module):
    """(B, D) float values to (B, D): a network of diffusers on pictures, and the head behind it.

    Pictures are padded with zeros to whole multiples of 2 ** (levels - 1) pixels, and the result is cut.
    """

    def __init__(self, network: Network, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shape, self.kind, self.head = inner, network.shape, network.kind, HEAD[network.head]
        step = 2 ** (network.n_linear - 1)
        self.padding = tuple(-edge % step for edge in network.shape[1:])

    def forward(self, values: Any) -> Any:
        height, width = self.shape[1:]
        pictures = values.reshape(-1, *self.shape)
        if any(self.padding):
            pictures = functional.pad(pictures, (0, self.padding[1], 0, self.padding[0]))
        if self.kind == "unet":
            found = self.inner(pictures, 0).sample
        else:
            found = self.inner.decode(self.inner.encode(pictures).latent_dist.mode()).sample  # type: ignore[operator]
        return self.head(found[..., :height, :width].reshape(values.shape))


def module_of(network: Network, tensors: Tensors | None = None) -> Levels:
    """The module of a convolutional network, on the CPU, in float32.

    Args:
        network: of kind "unet" or "bottleneck"; `n_linear` levels, the first of `hidden` channels, each next one of
            twice as many up to four times.
        tensors: "module.NAME" to float32 weights with a first axis of 1; None are the first weights of seed 0.

    Raises:
        InvalidValueError: another kind, more levels than the pictures can be halved, or weights that don't fit.
        MissingExtraError: diffusers is not installed.

    Example:
        >>> network = Network(shape=(1, 8, 8), kind="unet", hidden=8, n_linear=2)
        >>> module_of(network)(torch.zeros(3, 64)).shape
        torch.Size([3, 64])
    """
    module = Levels(network, blank(network))
    values = first_module_weights(network) if tensors is None else tensors
    expected = {f"{PREFIX}{name}": tuple(each.shape) for name, each in module.inner.named_parameters()}
    given = {name: array.shape[1:] for name, array in values.items()}
    if given != expected:
        wrong = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
        raise InvalidValueError(
            f"weights are not of this network: {len(wrong)} differ, such as {wrong[0]}, which has "
            f"{given.get(wrong[0])} and should have {expected.get(wrong[0])}"
        )
    with torch.no_grad():
        for name, parameter in module.inner.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values[f"{PREFIX}{name}"][0])))
    return module


def first_module_weights(network: Network, seed: int = 0) -> Tensors:
    """The weights that a convolutional network begins with, by name: uniform up to 1 / sqrt(inputs); norms do nothing.

    Raises:
        InvalidValueError, MissingExtraError: as `module_of`.
    """
    shapes = {name: tuple(each.shape) for name, each in blank(network).named_parameters()}
    tensors: Tensors = {}
    for name, shape in shapes.items():
        weights = shapes.get(f"{name.removesuffix('.bias')}.weight", shape) if name.endswith(".bias") else shape
        if len(weights) > 1:
            limit = 1.0 / math.sqrt(math.prod(weights[1:]))
            drawn = units(math.prod(shape), rng.key("kaleidoscope-init", seed, 0, name))
            array = ((2.0 * drawn - 1.0) * limit).reshape(shape)
        else:
            array = np.full(shape, 0.0 if name.endswith(".bias") else 1.0)
        tensors[f"{PREFIX}{name}"] = np.asarray(array[None], np.float32)
    return tensors


def blank(network: Network) -> nn.Module:
    """The module of diffusers, with weights of no account; no generator of the caller is touched."""
    if network.kind not in ("unet", "bottleneck"):
        raise InvalidValueError(f"modules are of kind 'unet' and 'bottleneck', got {network.kind!r}")
    channels, height, width = network.shape
    levels, short = network.n_linear, min(height, width)
    if 2 ** (levels - 1) > short:
        raise InvalidValueError(
            f"n_linear={levels} levels halve a picture {levels - 1} times, and {height} x {width} pixels can be halved "
            f"{short.bit_length() - 1} times: use n_linear={max(2, short.bit_length())} or fewer"
        )
    try:
        from diffusers import AutoencoderKL, UNet2DModel
    except ImportError:
        raise missing_extra("diffusers", "kaleidoscope") from None
    settings: dict[str, Any] = {
        "in_channels": channels, "out_channels": channels, "layers_per_block": 1, "act_fn": network.activation,
        "block_out_channels": tuple(network.hidden * min(2**level, WIDEST) for level in range(levels)),
        "norm_num_groups": math.gcd(network.hidden, GROUPS),
    }  # fmt: skip
    step = 2 ** (levels - 1)
    cells = -(-height // step) * -(-width // step)
    with torch.random.fork_rng(devices=[]):
        if network.kind == "unet":
            made: Any = UNet2DModel(
                sample_size=(height, width), down_block_types=("DownBlock2D",) * levels,
                up_block_types=("UpBlock2D",) * levels, add_attention=False, **settings,
            )  # fmt: skip
        else:
            made = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
                latent_channels=max(1, round(network.size / CODE / cells)), mid_block_add_attention=False, **settings,
            )  # fmt: skip
    inner: nn.Module = made
    return inner
