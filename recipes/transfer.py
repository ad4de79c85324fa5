"""Does what a network learned on fractals help it with pictures of the world?

    python -m fractal_streams.recipes.transfer --data cifar/                   # torchvision's folder, or the archive
    python -m fractal_streams.recipes.transfer --data hub:uoft-cs/cifar10 --image-column img
    python -m fractal_streams.recipes.transfer --data photos/ --weights outputs/vit   # of recipes/vit.py
    python -m fractal_streams.recipes.transfer --data photos/ --pretrain none  # from scratch alone

Claims (measured, with hardware, steps and time): see recipes/README.md.

The network is trained on the stream, gets a new head, and is then trained on the pictures with flips; a network of the
same shape is trained on them from scratch, with the same steps, rate and order of pictures. Both are tested on the same
held-out pictures. Each training is a folder of its own, which resumes: a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fractal_streams import StoredStream
from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.presets import find_preset
from fractal_streams.trainability.refine import wilson

try:
    import torch
    from accelerate import Accelerator
    from fractal_streams.recipes import resnet, vit
    from fractal_streams.recipes.baselines import VIT_TINY, adamw, patch_of
    from fractal_streams.recipes.classification import classification_loss, tested
    from fractal_streams.recipes.journal import Journal, read_records
    from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.classifiers import (
        RESNETS,
        load_classifier,
        resnet as residual_network,
        vision_transformer,
    )
    from fractal_streams.recipes.real_images import RealImages, real_images
    from fractal_streams.recipes.results import write_json
    from fractal_streams.recipes.settings import command, option
    from matplotlib.figure import Figure
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

TITLES = {"pretrained": "pretrained on fractals", "scratch": "from scratch"}
COLOURS = {"pretrained": "tab:blue", "scratch": "tab:orange"}


@dataclass(frozen=True, kw_only=True)
class TransferSettings(LoopSettings):
    """What is trained on what, and for how long. num_steps and batch_size are of the pictures."""

    data: str = option("", "CIFAR, a folder of classes, an archive, parquet files, or hub:NAME.")
    image_column: str = option("image", "Of a table.")
    label_column: str = option("label", "Of a table.")
    test_share: float = option(0.2, "To test on, of pictures that come in one part.", low=0.0, high=1.0)
    cache: Path | None = option(None, "Of decoded pictures; the user's cache.", changes_nothing=True)  # noqa: RUF009
    flip: bool = option(True, "Mirror pictures left to right, with even chances.")
    pretrain: str = option("fractal-1k", "The preset to pretrain on, or none.")
    weights: Path | None = option(None, "A folder of vit or resnet whose network is taken instead.")  # noqa: RUF009
    model: str = option("vit", "Of the network.", choices=("vit", *RESNETS))
    image_size: int = option(32, "Height and width, pixels.", low=1)
    embed_dim: int = option(VIT_TINY["embed_dim"], "Width of a ViT.", low=1)
    depth: int = option(VIT_TINY["depth"], "Blocks of a ViT.", low=1)
    num_heads: int = option(VIT_TINY["num_heads"], "Of a ViT.", low=1)
    pretrain_steps: int = option(3000, "Updates of the weights on fractals.", low=1)
    pretrain_batch_size: int = option(1024, "Fractals of an update.", low=1)
    pretrain_samples: int = option(10_000, "Held-out fractals.", low=1, changes_nothing=True)
    num_steps: int = option(2000, "Updates of the weights on pictures.", low=1)
    lr: float = option(5e-4, "Highest rate on pictures.", low=0.0)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    eval_once_every: int = option(200, "Steps from one evaluation to the next.", low=1, changes_nothing=True)
    folder: Path = option(Path("outputs/transfer"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bars.", changes_nothing=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise InvalidValueError("data is missing: give pictures, such as --data cifar-10-python.tar.gz")
        if self.pretrain != "none":
            find_preset(self.pretrain)


@dataclass(frozen=True, kw_only=True)
class TuningSettings(LoopSettings):
    """One training on pictures."""

    start: str = option("scratch", "Of the weights.", choices=tuple(TITLES))
    origin: str = option("", "Digest of the pretrained weights.")
    images: str = option("", "Digest of the stream of pictures.")
    lr: float = option(5e-4, "Highest rate.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How often a network was right on the held-out pictures: a share, with its 95 % interval (Wilson's).

    curve: (pictures seen, share) at each evaluation.
    """

    start: str
    accuracy: float
    low: float
    high: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TransferResult:
    """Both trainings; pretrained is None where there was none.

    train, test: pictures. classes: their titles. origin: what was pretrained on.
    """

    scratch: Tuned
    pretrained: Tuned | None
    train: int
    test: int
    classes: tuple[str, ...]
    origin: str
    device: str


def run(settings: TransferSettings) -> TransferResult:
    """Pretrain, train on pictures from both starts, and write result.json and transfer.png."""
    accelerator = open_accelerator(settings)
    columns = {"image_column": settings.image_column, "label_column": settings.label_column}
    with accelerator.main_process_first():
        images = real_images(
            settings.data, settings.image_size, test_share=settings.test_share, cache=settings.cache, **columns
        )
    starts, origin = ["scratch"], "none"
    if settings.weights is not None or settings.pretrain != "none":
        starts, origin = ["pretrained", "scratch"], str(settings.weights or settings.pretrain)
        if settings.weights is None:
            pretrained(settings)
    found = {start: tuned(settings, start, images) for start in starts}
    result = TransferResult(
        scratch=found["scratch"], pretrained=found.get("pretrained"), classes=images.classes, origin=origin,
        train=images.stream("train", device="cpu").count, test=images.stream("test", device="cpu").count,
        device=str(accelerator.device),
    )  # fmt: skip
    if accelerator.is_main_process:
        write_json(settings.folder / "result.json", asdict(result))
        draw(settings.folder / "transfer.png", result)
        if not settings.quiet:
            print_result(result)
    return result


def pretrained(settings: TransferSettings) -> None:
    """Train on fractals, in the folder `pretraining`; one that is there is gone on with."""
    own = {item.name for item in dataclasses.fields(LoopSettings)} - {"num_steps", "batch_size", "trackers"}
    asked: dict[str, Any] = {
        **{name: getattr(settings, name) for name in own}, "preset": settings.pretrain,
        "image_size": settings.image_size, "num_steps": settings.pretrain_steps, "quiet": settings.quiet,
        "batch_size": settings.pretrain_batch_size, "folder": pretrained_folder(settings),
        "final_samples": settings.pretrain_samples,
    }  # fmt: skip
    if settings.model == "vit":
        shape = {name: getattr(settings, name) for name in VIT_TINY}
        vit.run(vit.ViTSettings(**asked, **shape, patch_size=patch_of(settings.image_size)))
    else:
        resnet.run(resnet.ResNetSettings(**asked, architecture=settings.model))


def tuned(settings: TransferSettings, start: str, images: RealImages) -> Tuned:
    """Train on pictures from one start, or go on with it, and test."""
    accelerator = open_accelerator(settings)
    training, test = (stream_of(images, part, settings, accelerator) for part in ("train", "test"))
    shared = {item.name: getattr(settings, item.name) for item in dataclasses.fields(LoopSettings)}
    origin = weights_digest(pretrained_folder(settings)) if start == "pretrained" else ""
    own = TuningSettings(**shared, start=start, origin=origin, images=training.digest(), lr=settings.lr)
    network = network_of(settings, start, len(images.classes)).to(accelerator.device)
    optimizer = adamw(network, own.lr, fused=accelerator.device.type == "cuda")
    torch.compiler.reset()  # what was compiled before is the other start's
    loop = Loop(network, classification_loss, optimizer, training, own, accelerator)
    folder = settings.folder / start
    loop.resume(folder / "checkpoint")
    with Journal(folder, loop, title=TITLES[start], quiet=settings.quiet) as journal:
        for record in loop:
            journal.write(record, tested(loop, test, test.count) if own.evaluates(record.step) else {})
            if own.saves(record.step):
                loop.save(folder / "checkpoint")
    figures = tested(loop, test, test.count)
    low, high = wilson(round(figures["test_accuracy"] * test.count), test.count)
    curve = tuple((row["samples"], row["test_accuracy"]) for row in read_records(folder) if "test_accuracy" in row)
    return Tuned(start=start, accuracy=figures["test_accuracy"], low=low, high=high, curve=curve)


def stream_of(images: RealImages, part: str, settings: TransferSettings, accelerator: Accelerator) -> StoredStream:
    """A part of the pictures, each channel with mean 0 and deviation 1 over those to train on."""
    mean, std = images.statistics()
    return images.stream(
        part, seed=settings.seed, flip=settings.flip, device=str(accelerator.device), dtype=image_type(accelerator),
        mean=mean, std=std,
    )  # fmt: skip


def network_of(settings: TransferSettings, start: str, num_classes: int) -> nn.Module:
    """The network of a start, with a head for so many classes.

    Raises:
        InvalidValueError: weights of pictures of another size.
    """
    place = pretrained_folder(settings)
    if start == "pretrained":
        network = load_classifier(place)
        refuse_size(place, settings.image_size)
        seeded("head", settings.seed)
        return with_new_head(network, num_classes)
    seeded("weights", settings.seed)
    if settings.weights is not None:
        told = json.loads((place / "model.json").read_text())
        kinds = {"vision_transformer": vision_transformer, "resnet": residual_network}
        return kinds[told["kind"]](**{**told["shape"], "num_classes": num_classes})
    if settings.model == "vit":
        shape = {name: getattr(settings, name) for name in VIT_TINY}
        size = settings.image_size
        return vision_transformer(num_classes=num_classes, image_size=size, patch_size=patch_of(size), **shape)
    return residual_network(settings.model, num_classes=num_classes, image_size=settings.image_size)


def pretrained_folder(settings: TransferSettings) -> Path:
    """Where the pretrained network is."""
    return settings.weights if settings.weights is not None else settings.folder / "pretraining"


def weights_digest(place: Path) -> str:
    """Of a trained network; a training on pictures goes on only from the weights that it began with."""
    path = place / "model.safetensors"
    if not path.is_file():
        raise InvalidValueError(f"{place} holds no trained network: give a folder of recipes/vit.py or resnet.py")
    return hashlib.blake2s(path.read_bytes(), digest_size=8).hexdigest()


def refuse_size(place: Path, edge: int) -> None:
    told = json.loads((place / "model.json").read_text())["shape"]["image_size"]
    if told != edge:
        raise InvalidValueError(f"the network in {place} is of pictures of {told} pixels: ask for image_size={told}")


def with_new_head(network: nn.Module, num_classes: int) -> nn.Module:
    """The network, its last map made anew."""
    if isinstance(network, VisionTransformer):
        network.reset_classifier(num_classes)
    else:
        network.fc = nn.Linear(network.fc.in_features, num_classes)  # type: ignore[union-attr, arg-type]
    return network


def draw(path: Path, result: TransferResult) -> None:
    """Held-out accuracy of both against pictures seen, with the last interval."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate((result.pretrained, result.scratch)):
        if one is None:
            continue
        seen = [samples / 1e3 for samples, _ in one.curve]
        axes.plot(
            seen, [100 * share for _, share in one.curve], "o-", color=COLOURS[one.start], label=named(one, result)
        )
        errors = [[100 * (one.accuracy - one.low)], [100 * (one.high - one.accuracy)]]
        axes.errorbar(
            [seen[-1] * (1.01 + 0.012 * place)], [100 * one.accuracy], errors, color=COLOURS[one.start], capsize=4
        )
    axes.axhline(100 / len(result.classes), color="grey", linestyle=":", label="chance")
    axes.set(xlabel="pictures seen, thousands", ylabel=f"accuracy on {result.test:,} held-out pictures, %")
    axes.set(xlim=(0, None), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(f"{result.train:,} pictures of {len(result.classes)} classes", fontsize=11)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def named(one: Tuned, result: TransferResult) -> str:
    return f"pretrained on {result.origin}" if one.start == "pretrained" else TITLES[one.start]


def print_result(result: TransferResult) -> None:
    for one in (result.pretrained, result.scratch):
        if one is not None:
            interval = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
            print(f"{named(one, result)}: {100 * one.accuracy:.1f} % of {result.test:,} held out ({interval})")


app = command(TransferSettings, run, "Pretrain on fractals, train on pictures of your own; beside it, from scratch.")

if __name__ == "__main__":
    app()
