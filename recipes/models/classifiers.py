"""Classifiers: timm's vision transformer and torchvision's ResNets, by name and shape."""

from __future__ import annotations

from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn
    from torchvision import models
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SMALL = 64
"""Pixels up to which a ResNet has a 3x3 stem and no pooling behind it, as is usual for CIFAR."""
RESNETS = ("resnet18", "resnet34", "resnet50")


def vision_transformer(
    *, num_classes: int, image_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, **others: Any
) -> nn.Module:
    """(B, 3, image_size, image_size) to (B, num_classes): timm's ViT.

    Raises:
        InvalidValueError: a picture that patches don't tile, or a width that heads can't share.
    """
    if image_size % patch_size:
        raise InvalidValueError(f"image_size={image_size} must be a multiple of patch_size={patch_size}")
    if embed_dim % num_heads:
        raise InvalidValueError(f"embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
    network: nn.Module = VisionTransformer(
        img_size=image_size, patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        num_classes=num_classes, **others,
    )  # fmt: skip
    return network


def resnet(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """(B, 3, image_size, image_size) to (B, num_classes): torchvision's, of `RESNETS`."""
    network: nn.Module = getattr(models, name)(num_classes=num_classes)
    if image_size <= SMALL:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network
