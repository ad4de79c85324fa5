"""How well does a residual network classify pictures that never repeat?

    python -m fractal_streams.recipes.resnet                                   # ResNet-18 at the preset's own size
    python -m fractal_streams.recipes.resnet --architecture resnet50 --image-size 128 --compile
    python -m fractal_streams.recipes.resnet --num-samples-per-class 1000      # a finite set, again and again

Claims (accuracy, images/s, hardware, seconds): see recipes/README.md.

torchvision's model, with a stem of 3 x 3 pixels up to 64, and SGD as is usual for it. All else as in recipes/vit.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    from fractal_streams.recipes.models.classifiers import RESNETS, resnet, save_classifier
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@dataclass(frozen=True, kw_only=True)
class ResNetSettings(ClassifierSettings):
    """How a residual network is trained and tested."""

    architecture: str = option("resnet18", "Of torchvision.", choices=RESNETS)
    optimizer_type: str = option("sgd", "Of the weights.", choices=("sgd", "adamw", "muon"))
    lr_base: float = option(0.1, "Highest rate of hidden and output matrices.", low=0.0)
    lr_embedding: float = option(0.1, "Of the first convolution, of biases and norms.", low=0.0)
    weight_decay: float = option(5e-4, "Of matrices.", low=0.0)
    parametrization: str = option("standard", "A ResNet has one width: its rates are what they are called.",
                                  choices=("standard",))  # fmt: skip
    folder: Path = option(Path("outputs/resnet"), "Where all is written.", changes_nothing=True)  # noqa: RUF009


def run(settings: ResNetSettings) -> Result:
    """Train, test, and write all into the settings' folder.

    Raises:
        InvalidValueError: a folder with a run of other settings.
        DivergedError: the loss is no longer a number.
        DeviceError: a GPU was asked for that is not there.
    """
    accelerator = open_accelerator(settings)
    form = (accelerator.device, image_type(accelerator))
    training, test = training_stream(settings, *form), opened(settings, "test", *form)
    size = training[0].image.shape[-1]
    shape = {"name": settings.architecture, "num_classes": training.num_classes, "image_size": size}
    seeded("weights", settings.seed)
    network = resnet(**shape).to(accelerator.device)
    loop = Loop(network, classification_loss, optimizer_of(network, settings), training, settings, accelerator)
    loop.resume(settings.folder / "checkpoint")

    title = f"{settings.architecture}, {settings.preset}"
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
            save_classifier(settings.folder, model, "resnet", shape)
    return finished(settings, loop, journal, title)


app = command(ResNetSettings, lambda settings: tell(run(settings), settings))

if __name__ == "__main__":
    app()
