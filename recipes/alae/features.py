"""What pictures are compared by: a network with random weights, and a classifier that was trained on the same stream.

Both take (N, 3, H, W) pictures in [-1, 1] to (N, D), and let gradients through to the pictures. Random features of
pictures that are not photographs are as good a measure as trained ones where modes are lost (Naeem et al. 2020,
"Reliable Fidelity and Diversity Metrics for Generative Models", section 4.3); they hardly see blur, which
`recipes.alae.spectra` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fractal_streams.recipes.baselines import patch_of
from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.settings import option

from fractal_streams import Stream
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.normalisation import Channels, channel_statistics

try:
    import torch
    from accelerate import Accelerator
    from fractal_streams.recipes.classification import classification_loss
    from fractal_streams.recipes.journal import Journal, read_records
    from fractal_streams.recipes.loop import Loop, LoopSettings, open_accelerator, seed_named, seeded
    from fractal_streams.recipes.models.classifiers import (
        features,
        load_classifier,
        save_classifier,
        vision_transformer,
    )
    from fractal_streams.recipes.optimizers import build_optimizer, initialise
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Features = Callable[[Tensor], Tensor]
"""(N, 3, H, W) pictures in [-1, 1] to (N, D)."""
WIDTHS = (32, 64, 128)
"""Channels of the random network's maps: of full size, of half, of a quarter."""
BIAS = 0.1
"""Deviation of its biases, so that grey is not all zeros."""
HALF: Channels = (0.5, 0.5, 0.5)
"""Mean and deviation that bring levels in [0, 1] to [-1, 1]."""


class RandomFeatures(nn.Module):
    """(N, 3, H, W) to (N, 448) float32: mean and deviation of each channel of three random convolutions' maps.

    Each is of 3 x 3 pixels with He's normal weights, over edges that go on, with a ReLU behind it; between them, means
    of 2 x 2 pixels. Weights don't depend on the device.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed_named("random features", seed))
        for place, (ins, outs) in enumerate(zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)):
            weight = torch.randn(outs, ins, 3, 3, generator=generator) * (2.0 / (9 * ins)) ** 0.5
            self.register_buffer(f"weight_{place}", weight)
            self.register_buffer(f"bias_{place}", BIAS * torch.randn(outs, generator=generator))

    def forward(self, pictures: Tensor) -> Tensor:
        found, maps = [], pictures.float()
        with torch.autocast(pictures.device.type, enabled=False):
            for place in range(len(WIDTHS)):
                if place and min(maps.shape[-2:]) > 1:
                    maps = functional.avg_pool2d(maps, 2)
                maps = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
                maps = functional.conv2d(maps, getattr(self, f"weight_{place}"), getattr(self, f"bias_{place}")).relu()
                spread = (maps.var((2, 3), correction=0) + 1e-8).sqrt()
                found += [maps.mean((2, 3)), spread]
        return torch.cat(found, dim=1)


def random_features(seed: int = 0, device: str | torch.device = "cpu") -> RandomFeatures:
    """The random network of a seed.

    Example:
        >>> random_features(0)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 448])
    """
    return RandomFeatures(seed).to(device).eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFeatures:
    """(N, 3, H, W) pictures in [-1, 1] to (N, D) float32, what a classifier makes of them before its last map.

    network: of pictures with these means and deviations of the channels, levels in [0, 1]; its weights stay.
    """

    network: nn.Module
    mean: Channels = HALF
    std: Channels = HALF

    def __call__(self, pictures: Tensor) -> Tensor:
        centre, spread = (
            torch.tensor(each, device=pictures.device).reshape(3, 1, 1) * 2.0 - shift
            for each, shift in ((self.mean, 1.0), (self.std, 0.0))
        )
        with torch.autocast(pictures.device.type, enabled=False):
            return features(self.network, (pictures.float() - centre) / spread).float()


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(LoopSettings):
    """How the classifier is trained whose features pictures are compared by."""

    panel: ClassVar[str] = "Features"
    embed_dim: int = option(256, "Width, and so many features.", low=1)
    depth: int = option(6, "Blocks.", low=1)
    num_heads: int = option(8, "Of attention.", low=1)
    learning_rate: float = option(1e-3, "Highest, at a width of 256.", low=0.0)
    num_steps: int = option(2000, "Updates of the weights.", low=1)
    batch_size: int = option(512, "Samples of an update, of all ranks together.", low=1)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    quiet: bool = option(False, "No progress bar.", changes_nothing=True)


def own_features(
    stream: Stream, folder: Path, settings: FeatureSettings | None = None, accelerator: Accelerator | None = None
) -> ClassifierFeatures:
    """Those of a small vision transformer that tells the stream's classes apart; it is trained if it is not there.

    Args:
        stream: of the training split, on the accelerator's device, with pictures in [-1, 1] and classes that differ; of
            clips the first frames are taken.
        folder: gets records.csv, the model, and result.json. A run that was stopped goes on from its checkpoint.
        settings: its defaults without any.

    Raises:
        InvalidValueError: a stream of one class; a folder of another stream or size.
        DivergedError: the loss is no longer a number.
    """
    settings = FeatureSettings() if settings is None else settings
    if stream.num_classes < 2:
        raise InvalidValueError(
            "the stream has one class, so no classifier can be trained on it: compare by random_features, or open the "
            "folder of a classifier of other pictures by opened_features"
        )
    shape = tuple(stream.generate(range(0)).images.shape[1:])
    accelerator = open_accelerator(settings) if accelerator is None else accelerator
    if not (folder / "result.json").is_file():
        train(stream, shape, folder, settings, accelerator)
    accelerator.wait_for_everyone()  # the main process may still be writing it
    told = json.loads((folder / "result.json").read_text()).get("stream")
    if told != stream.digest():
        raise InvalidValueError(
            f"{folder} holds the classifier of stream {told}, not of {stream.digest()}: choose another folder, or "
            f"open it by opened_features if it is meant"
        )
    return opened_features(folder, shape[-1], accelerator.device)


def train(
    stream: Stream, shape: tuple[int, ...], folder: Path, settings: FeatureSettings, accelerator: Accelerator
) -> None:
    """Train the classifier and write it.

    Args:
        shape: of one of the stream's samples.
    """
    if shape[-3:] != (3, shape[-1], shape[-1]):
        raise InvalidValueError(f"pictures must be (3, N, N) or clips of them, this stream gives {shape}")
    seeded("feature weights", settings.seed)
    form: dict[str, Any] = {
        **{name: getattr(settings, name) for name in ("embed_dim", "depth", "num_heads")},
        "num_classes": stream.num_classes, "image_size": shape[-1], "patch_size": patch_of(shape[-1]),
    }  # fmt: skip
    network = vision_transformer(**form)
    initialise(network)
    network = network.to(accelerator.device)
    rate = settings.learning_rate
    optimizer = build_optimizer(network, lr_base=rate, lr_embedding=rate, weight_decay=0.05)
    loop = Loop(
        network, classification_loss, optimizer, stream, settings, accelerator,
        transform=first_frames if len(shape) == 4 else None,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    loop.resume(folder / "checkpoint")
    with Journal(folder, loop, title="classifier whose features compare pictures", quiet=settings.quiet) as journal:
        for record in loop:
            journal.write(record, {})
            if settings.saves(record.step):
                loop.save(folder / "checkpoint")
    if accelerator.is_main_process:
        with loop.evaluating() as model:
            save_classifier(folder, model, "vision_transformer", form)
        last = read_records(folder)[-1]
        told = {"stream": stream.digest(), "accuracy": last["accuracy"], "loss": last["loss"], "steps": loop.step}
        write_json(folder / "result.json", {**told, "own_settings": settings.decisive()})


def first_frames(clips: Tensor) -> Tensor:
    """(B, 3, H, W) of (B, T, 3, H, W)."""
    return clips[:, 0]


def opened_features(folder: Path, image_size: int, device: str | torch.device = "cpu") -> ClassifierFeatures:
    """Those of a classifier's folder: of `own_features`, of `recipes.vit` or of `recipes.resnet`.

    Raises:
        InvalidValueError: a folder without one, or one of pictures of another size.
    """
    network = load_classifier(folder, device).requires_grad_(False)
    edge = json.loads((folder / "model.json").read_text())["shape"]["image_size"]
    if edge != image_size:
        raise InvalidValueError(
            f"the classifier in {folder} is of pictures of {edge} pixels, these have {image_size}: give one that was "
            f"trained on such"
        )
    path = folder / "result.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    if "settings" not in told:  # those of the recipes are of a preset, in whose own form they know pictures
        return ClassifierFeatures(network=network)
    mean, std = channel_statistics(told["settings"]["preset"])
    return ClassifierFeatures(network=network, mean=mean, std=std)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 are of float32: neither autocast nor TensorFloat-32, which keeps 10 bits."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@torch.no_grad()
def features_of(pictures: Tensor, network: Features, batch_size: int = 500) -> Tensor:
    """(N, D) float64 features of (N, 3, H, W) pictures in [-1, 1], clipped to it, batch by batch."""
    with exact_products(pictures.device):
        found = [network(part.float().clamp(-1.0, 1.0)).double() for part in pictures.split(batch_size)]
    return torch.cat(found)
