"""Classifiers: timm's vision transformer and torchvision's ResNets, by name and shape; written and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from safetensors.torch import load_file, save_file
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn
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


def save_classifier(folder: Path, network: nn.Module, kind: str, shape: dict[str, Any]) -> None:
    """Write model.safetensors and model.json.

    Args:
        folder: is there. kind: "vision_transformer" or "resnet". shape: the arguments that made the network.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    whole_file(folder / "model.safetensors", lambda path: save_file(weights, path))
    text = json.dumps({"kind": kind, "shape": shape}, indent=1)

    def write(path: Path) -> None:
        path.write_text(text)

    whole_file(folder / "model.json", write)


def load_classifier(folder: Path, device: str | torch.device = "cpu") -> nn.Module:
    """The trained network of a run's folder, in evaluation mode.

    Raises:
        InvalidValueError: a folder without one.
    """
    try:
        told = json.loads((folder / "model.json").read_text())
        makers: dict[str, Callable[..., nn.Module]] = {"vision_transformer": vision_transformer, "resnet": resnet}
        network = makers[told["kind"]](**told["shape"])
        network.load_state_dict(load_file(folder / "model.safetensors", device="cpu"))
    except FileNotFoundError as error:
        raise InvalidValueError(
            f"{folder} holds no trained classifier ({error.filename} is missing): train one there first, "
            f"python -m fractal_streams.recipes.vit --folder {folder}"
        ) from None
    return network.to(device).eval()


def features(network: nn.Module, images: Tensor) -> Tensor:
    """(B, D): what a classifier makes of pictures (B, 3, H, W), in the form it was trained on, before its last map."""
    if isinstance(network, VisionTransformer):
        found: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
        return found
    trunk = nn.Sequential(*(part for name, part in network.named_children() if name != "fc"))
    return torch.flatten(trunk(images), 1)


def load_features(folder: Path, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """`features` of a trained classifier, without gradients: (B, 3, H, W) normalised pictures to (B, D) float32.

    Args:
        folder: of a run of `recipes.vit` or `recipes.resnet`.

    Raises:
        InvalidValueError: a folder without one.
    """
    network = load_classifier(folder, device)

    @torch.no_grad()
    def measured(images: Tensor) -> Tensor:
        return features(network, images.to(device, torch.float32))

    return measured
