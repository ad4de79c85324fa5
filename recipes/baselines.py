"""Three fixed classifiers, each trained on a fixed number of samples of one preset: the measure of its difficulty.

Question: how often is a linear classifier, a small convolutional network, or a ViT-Ti right on held-out pictures?
Claims: see recipes/README.md; `recipes/difficulty.py` runs all of them on all presets.

    python -m fractal_streams.recipes.baselines --preset fractal-10 --baseline cnn
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fractal_streams.recipes.results import write_json

from fractal_streams import Stream
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.trainability.refine import wilson

try:
    import torch
    from fractal_streams.recipes.classification import classification_loss, tested
    from fractal_streams.recipes.data import DataSettings, opened, training_stream
    from fractal_streams.recipes.demo import build_network, device_name
    from fractal_streams.recipes.journal import Journal, read_records
    from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.classifiers import vision_transformer
    from fractal_streams.recipes.settings import command, option, refuse_others
    from torch import nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

BASELINES = {"linear": 1e-3, "cnn": 3e-3, "vit": 1e-3}
"""Name to the highest rate of its weights."""
TITLES = {"linear": "linear on pixels", "cnn": "CNN, 5 convolutions", "vit": "ViT-Ti"}
WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.98)
CNN_WIDTH = 64
VIT_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
"""Of H. Touvron et al., "Training data-efficient image transformers", ICML 2021, table 1."""
MOST_PATCHES = 8
"""Of an edge of a picture."""


@dataclass(frozen=True, kw_only=True)
class BaselineSettings(LoopSettings, DataSettings):
    """One baseline on one preset."""

    baseline: str = option("cnn", "What is trained.", choices=tuple(BASELINES))
    num_steps: int = option(1000, "Updates of the weights.", low=1)
    batch_size: int = option(1024, "Samples of an update, of all ranks together.", low=1)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    eval_once_every: int = option(1000, "Steps from one evaluation to the next.", low=1, changes_nothing=True)
    eval_samples: int = option(10_000, "Held-out samples.", low=1, changes_nothing=True)
    folder: Path = option(Path("outputs/baseline"), "Where everything goes.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bar.", changes_nothing=True)


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """How often a baseline was right.

    accuracy: on the held-out samples, a share. low, high: its 95 % interval (Wilson's). chance: one of the classes.
    test_loss: nats. samples: seen in training. weights: of the network. images_per_second: in training, the median.
    settings: what decided the training. val_seed: which samples were held out.
    """

    preset: str
    image_size: int
    classes: int
    baseline: str
    accuracy: float
    low: float
    high: float
    chance: float
    test_loss: float
    eval_samples: int
    samples: int
    weights: int
    images_per_second: float
    device: str
    settings: dict[str, Any]
    val_seed: int = 0


def run(settings: BaselineSettings) -> BaselineResult:
    """Train, or go on with a training, and test; a folder with the result of the same settings is read.

    Example:
        >>> import tempfile
        >>> tiny = BaselineSettings(
        ...     baseline="linear", image_size=8, num_steps=2, batch_size=8, eval_samples=8, device="cpu", quiet=True,
        ...     folder=Path(tempfile.mkdtemp()),
        ... )
        >>> run(tiny).samples, run(tiny) == run(tiny)
        (16, True)
    """
    path = settings.folder / "result.json"
    if (done := kept(path, settings)) is not None:
        return done
    accelerator = open_accelerator(settings)
    kind = image_type(accelerator)
    stream = training_stream(settings, accelerator.device, kind)
    test = opened(settings, "test", accelerator.device, kind)
    edge = edge_of(stream)
    seeded("weights", settings.seed)
    network = build(settings.baseline, stream.num_classes, edge).to(accelerator.device)
    optimizer = adamw(network, BASELINES[settings.baseline], fused=accelerator.device.type == "cuda")
    torch.compiler.reset()  # what was compiled before is another baseline's
    loop = Loop(network, classification_loss, optimizer, stream, settings, accelerator)
    loop.resume(settings.folder / "checkpoint")
    title = f"{settings.preset} at {edge} px, {TITLES[settings.baseline]}"
    with Journal(settings.folder, loop, title=title, quiet=settings.quiet) as journal:
        for record in loop:
            journal.write(record, scores(loop, test, settings) if settings.evaluates(record.step) else {})
            if settings.saves(record.step):
                loop.save(settings.folder / "checkpoint")
    figures = scores(loop, test, settings)
    low, high = wilson(round(figures["test_accuracy"] * settings.eval_samples), settings.eval_samples)
    result = BaselineResult(
        preset=settings.preset, image_size=edge, classes=stream.num_classes, baseline=settings.baseline,
        accuracy=figures["test_accuracy"], low=low, high=high, chance=1.0 / stream.num_classes,
        test_loss=figures["test_loss"], eval_samples=settings.eval_samples, samples=loop.step * settings.batch_size,
        weights=sum(weight.numel() for weight in network.parameters()),
        images_per_second=median(row["images_per_second"] for row in read_records(settings.folder)),
        device=device_name(str(accelerator.device)), settings=settings.decisive(), val_seed=settings.val_seed,
    )  # fmt: skip
    if accelerator.is_main_process:
        write_json(path, asdict(result))
    return result


def scores(loop: Loop, test: Stream, settings: BaselineSettings) -> dict[str, float]:
    return tested(loop, test, settings.eval_samples, settings.val_seed)


def kept(path: Path, settings: BaselineSettings) -> BaselineResult | None:
    """The result in a file, if it is of these settings and these held-out samples.

    Raises:
        InvalidValueError: it is of others.
    """
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    refuse_others(found["settings"], settings.decisive(), path)
    result = BaselineResult(**found)
    held = (result.eval_samples, result.val_seed)
    return result if held == (settings.eval_samples, settings.val_seed) else None


def edge_of(stream: Stream) -> int:
    """Pixels of the edges of a stream's pictures, told from no picture.

    Raises:
        InvalidValueError: clips, or pictures that are not square.
    """
    shape = tuple(stream.generate(range(0)).images.shape[1:])
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InvalidValueError(f"baselines are of square stills, (3, edge, edge); this stream gives {shape}")
    return int(shape[1])


def build(baseline: str, num_classes: int, edge: int) -> nn.Module:
    """(B, 3, edge, edge) to (B, num_classes)."""
    if baseline == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * edge * edge, num_classes))
    if baseline == "cnn":
        return build_network(CNN_WIDTH, num_classes)
    return vision_transformer(num_classes=num_classes, image_size=edge, patch_size=patch_of(edge), **VIT_TINY)


def adamw(network: nn.Module, rate: float, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels, and neither biases nor scales."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=fused)


def patch_of(edge: int) -> int:
    """Pixels of the smallest patch that tiles an edge in at most 8.

    Example:
        >>> [patch_of(edge) for edge in (16, 28, 32, 64, 224)]
        [2, 4, 4, 8, 28]
    """
    return next(patch for patch in range(1, edge + 1) if edge % patch == 0 and edge // patch <= MOST_PATCHES)


app = command(BaselineSettings, run, "Train one baseline on one preset.")

if __name__ == "__main__":
    app()
