"""The models of `training_step.py`, written plainly, with the settings that people train them with.

ResNet-9: David Page's network of the DAWNBench competition (myrtle.ai, "How to train your ResNet", 2018), 6.6 M
weights. ResNet-18: torchvision's, with a 3x3 stem and no pooling behind it, as is usual at 32x32. ViT-S/16:
torchvision's transformer, 384 wide, 12 layers, 6 heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18


def unit(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution, normalised."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class ResNet9(nn.Module):
    """(B, 3, 32, 32) to (B, classes)."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Sequential(unit(3, width), unit(width, 2 * width), nn.MaxPool2d(2))
        self.beside_first = nn.Sequential(unit(2 * width, 2 * width), unit(2 * width, 2 * width))
        self.second = nn.Sequential(unit(2 * width, 4 * width), nn.MaxPool2d(2))
        self.third = nn.Sequential(unit(4 * width, 8 * width), nn.MaxPool2d(2))
        self.beside_third = nn.Sequential(unit(8 * width, 8 * width), unit(8 * width, 8 * width))
        self.head = nn.Linear(8 * width, classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        x = self.third(self.second(x + self.beside_first(x)))
        x = x + self.beside_third(x)
        scores: torch.Tensor = 0.125 * self.head(x.amax((2, 3)))
        return scores


def small_resnet18(classes: int) -> nn.Module:
    """(B, 3, 32, 32) to (B, classes)."""
    network: nn.Module = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vit_s16(classes: int) -> nn.Module:
    """(B, 3, 224, 224) to (B, classes)."""
    network: nn.Module = VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=classes
    )
    nn.init.trunc_normal_(network.heads[-1].weight, std=0.02)  # type: ignore[index, union-attr]
    return network


def momentum(weights: Iterable[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused)


def adamw(weights: Iterable[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=3e-4, weight_decay=0.05, fused=fused)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, and what it is trained on.

    network: number of classes to the model. optimizer: weights, and whether one kernel updates all of them.
    preset, size, batch: the stream's name, the edge of its pictures and the samples of a step.
    channels_last: the memory layout of model and pictures.
    steps, warm: of a turn, unless asked otherwise, and before it; the first a multiple of the second.
    """

    network: Callable[[int], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter], bool], torch.optim.Optimizer]
    preset: str
    size: int
    batch: int
    channels_last: bool
    steps: int
    warm: int


TASKS = {
    "resnet9": Task(
        network=ResNet9, optimizer=momentum, preset="fractal-10", size=32, batch=512, channels_last=True, steps=320,
        warm=64,
    ),
    "resnet18": Task(
        network=small_resnet18, optimizer=momentum, preset="fractal-10", size=32, batch=512, channels_last=True,
        steps=256, warm=64,
    ),
    "vit_s16": Task(
        network=vit_s16, optimizer=adamw, preset="fractal-1k", size=224, batch=256, channels_last=False, steps=64,
        warm=16,
    ),
}  # fmt: skip
