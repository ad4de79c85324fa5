"""Denoisers for diffusion: diffusers' U-Net and diffusion transformer behind one interface, told the class."""

from __future__ import annotations

import warnings
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from diffusers import DiTTransformer2DModel, UNet2DModel
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

UNETS = {"tiny": ((16, 32), 1, 16), "small": ((64, 128, 256), 1, 64), "base": ((128, 256, 256), 2, 64)}
"""Size to (channels of each resolution, residual blocks of each, channels of a head of attention)."""
DITS = {"tiny": (32, 2, 2, 2), "small": (384, 12, 6, 4), "base": (384, 12, 6, 2)}
"""Size to (width, depth, heads, pixels of a side of a patch)."""
SIZES = tuple(UNETS)
ATTENTION = 8
"""Pixels of a side up to which the U-Net attends."""


class Denoiser(nn.Module):
    """Noisy pictures, times and classes to what the noise is to be told by.

    noisy: (B, 3, H, W) float. timesteps: (B,) int64, 0 is nearly clean. labels: (B,) int64; `none` is no class.
    Returns (B, 3, H, W), of whatever the schedule takes predictions to be.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    @property
    def none(self) -> int:
        """The label of a picture whose class is not told."""
        return self.num_classes

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        prediction: Tensor = self.network(noisy, timesteps, labels, return_dict=False)[0]
        return prediction


class Norm(nn.GroupNorm):
    """GroupNorm that gives the type it takes: autocast would make float32 of all that lies between convolutions.

    Sums are float32 inside all the same. Of a step of the `base` U-Net in bfloat16, copies between the types were more
    than a quarter of all bytes that were moved.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)


def unet(*, size: str, num_classes: int, image_size: int) -> Denoiser:
    """The U-Net of DDPM (Ho et al. 2020, appendix B) with classes: attention where a side has at most 8 pixels.

    The last convolution begins at 0, so that the first prediction is 0.

    Raises:
        InvalidValueError: a picture that can't be halved once for each resolution but the first.
    """
    channels, blocks, head = UNETS[size]
    least = 2 ** (len(channels) - 1)
    if image_size % least:
        raise InvalidValueError(f"image_size={image_size} must be a multiple of {least} for a {size} U-Net")
    attends = [image_size >> level <= ATTENTION for level in range(len(channels))]
    network: Any = UNet2DModel(
        sample_size=image_size, block_out_channels=channels, layers_per_block=blocks, attention_head_dim=head,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        norm_num_groups=min(32, channels[0] // 2), resnet_time_scale_shift="scale_shift",
        num_class_embeds=num_classes + 1,
    )  # fmt: skip
    for each in network.modules():
        if type(each) is nn.GroupNorm:
            each.__class__ = Norm
    zero(network.conv_out)
    # diffusers asks for torch's version in each call, which the compiler finds worth a warning
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    return Denoiser(network, num_classes)


def dit(*, size: str, num_classes: int, image_size: int) -> Denoiser:
    """The diffusion transformer of Peebles & Xie (2023) on pixels, whose blocks begin as the identity.

    Raises:
        InvalidValueError: a picture that patches don't tile.
    """
    width, depth, heads, patch = DITS[size]
    if image_size % patch:
        raise InvalidValueError(
            f"image_size={image_size} must be a multiple of {patch}, the pixels of a patch of a {size} transformer"
        )
    network: Any = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, num_layers=depth, in_channels=3,
        sample_size=image_size, patch_size=patch, num_embeds_ada_norm=num_classes,
    )  # fmt: skip
    for block in network.transformer_blocks:
        zero(block.norm1.linear)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # else each block drops labels of its own
    zero(network.proj_out_1)
    zero(network.proj_out_2)
    return Denoiser(network, num_classes)


DENOISERS = {"unet": unet, "dit": dit}


def zero(layer: nn.Module) -> None:
    """Make a layer give 0 until it is trained."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
