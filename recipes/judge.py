"""The network on whose features pictures are compared: a vision transformer that was trained on the same stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.normalisation import Channels, channel_statistics

try:
    from fractal_streams.recipes import vit
    from fractal_streams.recipes.distance import Features, features_of
    from fractal_streams.recipes.loop import open_accelerator
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

if TYPE_CHECKING:
    from fractal_streams.recipes.diffusion import DiffusionSettings

VITS = {"tiny": (32, 2, 2), "small": (256, 6, 8), "base": (256, 6, 8)}
"""Size of the denoiser to (width, depth, heads) of the ViT that is trained for it."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """(N, 3, H, W) uint8 pictures to (N, D) float64 features.

    network: of pictures in the form that it was trained on: mean and std of the channels, levels in [0, 1].
    """

    network: Features
    mean: Channels
    std: Channels

    def __call__(self, pictures: Tensor) -> Tensor:
        return features_of(pictures, self.network, self.mean, self.std)


def judge(settings: DiffusionSettings, size: int) -> Judge:
    """The ViT of `settings.vit`; without one, it is trained on the same classes first, in the folder vit.

    Args:
        size: pixels of a side of the pictures.

    Raises:
        InvalidValueError: a folder without a trained ViT, or one of pictures of another size.
    """
    device = open_accelerator(settings).device
    if settings.vit is not None:
        return opened_judge(settings.vit, size, str(device))
    width, depth, heads = VITS[settings.size]
    same = ("preset", "num_classes", "max_iter", "data_seed", "batch_size", "seed", "device", "precision", "quiet")
    vit.run(vit.ViTSettings(
        **{name: getattr(settings, name) for name in same}, num_steps=settings.vit_steps, image_size=size,
        final_samples=settings.test_samples, patch_size=2 if size % 8 else size // 8, embed_dim=width, depth=depth,
        num_heads=heads, folder=settings.folder / "vit",
    ))  # fmt: skip
    open_accelerator(settings).wait_for_everyone()  # the main process may still be writing it
    return opened_judge(settings.folder / "vit", size, str(device))


def opened_judge(folder: Path, size: int, device: str) -> Judge:
    """The ViT of a run's folder, with the channel statistics of what it was trained on."""
    network = vit.load_features(folder, device)
    edge = json.loads((folder / "model.json").read_text())["shape"]["image_size"]
    if edge != size:
        raise InvalidValueError(
            f"the ViT in {folder} is of pictures of {edge} pixels, these have {size}: give one that was trained with "
            f"--image-size {size}"
        )
    told = json.loads((folder / "result.json").read_text())["settings"]
    mean, std = channel_statistics(told["preset"])
    return Judge(network=network, mean=mean, std=std)
