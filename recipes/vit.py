"""How well does a vision transformer classify pictures that never repeat?

    python -m fractal_streams.recipes.vit                                      # 256 px, patch 16, width 256, depth 12
    torchrun --nproc-per-node 2 -m fractal_streams.recipes.vit --folder outputs/vit-2
    python -m fractal_streams.recipes.vit --image-size 32 --patch-size 4 --embed-dim 64 --num-heads 2 --depth 4

Claims (accuracy, images/s, share of time waited for data, hardware, seconds): see recipes/README.md.

timm's model, no augmentation, and the first N samples of the test split to be tested on. Rates follow the width by muP
(recipes/optimizers.py). The folder gets records.csv, curves.png, confusion.png, answers.png, result.json, and the
trained model, which `load_features` reads. A run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fractal_streams.recipes.data import opened, training_stream
from fractal_streams.recipes.settings import command, option

from fractal_streams.errors import missing_extra

try:
    from fractal_streams.recipes.classification import (
        ClassifierSettings,
        Result,
        classification_loss,
        finished,
        optimizer_of,
        tell,
        tested,
    )
    from fractal_streams.recipes.journal import Journal
    from fractal_streams.recipes.loop import Loop, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.classifiers import (
        features as features,
        load_features as load_features,
        save_classifier,
        vision_transformer,
    )
    from fractal_streams.recipes.optimizers import clip_at, initialise
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@dataclass(frozen=True, kw_only=True)
class ViTSettings(ClassifierSettings):
    """How a vision transformer is trained and tested."""

    image_size: int | None = option(256, "Height and width, pixels.", low=1)
    patch_size: int = option(16, "Height and width of a patch, pixels.", low=1)
    embed_dim: int = option(256, "Width.", low=1)
    depth: int = option(12, "Blocks.", low=1)
    num_heads: int = option(8, "Of attention; muP wants embed_dim / num_heads to stay the same.", low=1)
    folder: Path = option(Path("outputs/vit"), "Where all is written.", changes_nothing=True)  # noqa: RUF009


def run(settings: ViTSettings) -> Result:
    """Train, test, and write all into the settings' folder.

    Raises:
        InvalidValueError: a shape that patches or heads don't divide, or a folder with a run of other settings.
        DivergedError: the loss is no longer a number.
        DeviceError: a GPU was asked for that is not there.
    """
    accelerator = open_accelerator(settings)
    form = (accelerator.device, image_type(accelerator))
    training, test = training_stream(settings, *form), opened(settings, "test", *form)
    seeded("weights", settings.seed)
    shape = shape_of(settings, training.num_classes, training[0].image.shape[-1])
    network = vision_transformer(**shape)
    initialise(network, settings.parametrization, settings.base_width)
    network = network.to(accelerator.device)
    optimizer = optimizer_of(network, settings)
    loop = Loop(network, classification_loss, optimizer, training, clipped(settings), accelerator)
    loop.resume(settings.folder / "checkpoint")

    title = f"ViT, width {settings.embed_dim}, {settings.preset}"
    with Journal(settings.folder, loop, title=title, trackers=settings.trackers or (), quiet=settings.quiet) as journal:
        for record in loop:
            figures = {}
            if settings.evaluates(record.step):
                figures = tested(loop, test, settings.eval_steps * settings.batch_size, settings.val_seed)
            journal.write(record, figures)
            if settings.saves(record.step):
                loop.save(settings.folder / "checkpoint")
    if accelerator.is_main_process:
        with loop.evaluating() as model:
            save_classifier(settings.folder, model, "vision_transformer", shape)
    return finished(settings, loop, journal, title)


def clipped(settings: ViTSettings) -> ViTSettings:
    """The settings with the clip of their width."""
    names = ("clip", "optimizer_type", "parametrization", "base_width")
    asked = {name: getattr(settings, name) for name in names}
    asked["clip"] = clip_at(settings.embed_dim, *asked.values())
    return replace(settings, **asked)


def shape_of(settings: ViTSettings, num_classes: int, image_size: int) -> dict[str, Any]:
    """The arguments of `vision_transformer`."""
    names = ("patch_size", "embed_dim", "depth", "num_heads")
    return {**{name: getattr(settings, name) for name in names}, "num_classes": num_classes, "image_size": image_size}


app = command(ViTSettings, lambda settings: tell(run(settings), settings))

if __name__ == "__main__":
    app()
