"""Finite against endless: the same model, weights and steps on N samples for many epochs, and on the endless stream.

Question: how many samples can be seen before it shows that a set is finite?
Claim: see recipes/README.md for the crossover of each N, with the hardware and the time.

    python -m fractal_streams.recipes.finite_vs_endless
    python -m fractal_streams.recipes.finite_vs_endless --sizes 1000,10000 --seeds 0,1,2 --num-steps 2000

The experiment of P. Nakkiran, B. Neyshabur, H. Sedghi, "The Deep Bootstrap Framework", arXiv:2010.08127: there a real
world that repeats 50,000 samples, and an ideal one that never does. Every line has the same rates, fixed beforehand;
none is stopped early. The rate is constant behind its warm-up, and what is tested is a running average of the weights:
so a curve at n samples is about what a run of n samples gives, and lines can be compared anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import FiniteStream, Stream
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.finite import MAX_SAMPLES

try:
    import torch
    from fractal_streams.recipes.benchmarks.training_models import ResNet9
    from fractal_streams.recipes.classification import classification_loss, tested
    from fractal_streams.recipes.crossover import Curve, Row, chance, draw_crossover, show_table, table
    from fractal_streams.recipes.data import opened
    from fractal_streams.recipes.journal import Journal
    from fractal_streams.recipes.loop import Loop, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.classifiers import vision_transformer
    from fractal_streams.recipes.results import save_text
    from fractal_streams.recipes.runs import CurveSettings, Run, Tell, all_finished
    from fractal_streams.recipes.settings import command, option
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

TEST_BATCH = 2000


@dataclass(frozen=True, kw_only=True)
class FiniteVsEndlessSettings(CurveSettings):
    """One model on sets of several sizes and on the endless stream."""

    sizes: tuple[int, ...] = option(
        (1_000, 10_000, 50_000, 1_000_000), "Samples of each finite set.", low=1, high=MAX_SAMPLES, changes_nothing=True
    )
    seed: int = option(0, "Names the weights, the orders of finite sets, and all that a step draws.")
    seeds: tuple[int, ...] | None = option(None, "Of several runs of each line, in place of one.", changes_nothing=True)
    test_samples: int = option(10_000, "Held-out samples to test on.", low=1)
    margin: float = option(0.01, "Share of the endless test loss by which a line has left it.", changes_nothing=True)
    model: str = option("resnet9", "What is trained.", choices=("resnet9", "vit"))
    width: int = option(64, "Channels of the ResNet's first layer, or the ViT's width; a multiple of 32.", low=32)
    depth: int = option(6, "Blocks of the ViT.", low=1)
    patch_size: int = option(4, "Of the ViT, pixels.", low=1)
    lr: float = option(1e-3, "Highest rate of AdamW.", low=0.0)
    weight_decay: float = option(0.05, "Of AdamW.", low=0.0)
    augment: bool = option(False, "Flip pictures at random in training, upside down: their classes stay.")
    num_steps: int = option(12_000, "Updates of the weights.", low=1)
    folder: Path = option(Path("outputs/finite_vs_endless"), "Where everything goes.", changes_nothing=True)  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples_per_class is not None:
            raise InvalidValueError("num_samples_per_class is not for this experiment: name the sets' sizes instead")


@dataclass(frozen=True, kw_only=True)
class FiniteVsEndless:
    """What came out.

    curves: of all lines, means over seeds. rows: the table, a row for each line. by_chance: see `chance`.
    weights: of the model. device: what trained it. seconds: in all loops.
    """

    curves: Sequence[Curve]
    rows: Sequence[Row]
    by_chance: float | None
    weights: int
    device: str
    seconds: float


def run(settings: FiniteVsEndlessSettings) -> FiniteVsEndless:
    """Train every line that is not done, and compare them.

    Returns:
        The curves and the table; also in folder/result.json and folder/crossover.png.
    """
    accelerator = open_accelerator(settings)
    lines = [*sorted(set(settings.sizes)), None]
    seeds = settings.seeds or (settings.seed,)
    runs = [
        Run(
            name=f"{'endless' if size is None else f'{size}-samples'}-seed-{seed}", steps=settings.num_steps,
            decisive={**replace(settings, seed=seed).decisive(), "size": size},
            train=partial(train, replace(settings, seed=seed), size),
        )
        for size in lines for seed in seeds
    ]  # fmt: skip
    settings.folder.mkdir(parents=True, exist_ok=True)
    finished = all_finished(settings.folder, runs, accelerator, quiet=settings.quiet)
    curves = []
    for place, size in enumerate(lines):
        of_line = finished[place * len(seeds) : (place + 1) * len(seeds)]
        curves.append(Curve.of(size, [each.rows for each in of_line]))
    result = FiniteVsEndless(
        curves=curves, rows=table(curves, settings.margin), by_chance=chance(curves),
        weights=finished[0].facts["weights"],
        device=finished[0].facts["device"], seconds=sum(each.facts["seconds"] for each in finished),
    )  # fmt: skip
    if accelerator.is_main_process:
        report(settings, result)
    return result


def train(settings: FiniteVsEndlessSettings, size: int | None, folder: Path, tell: Tell) -> dict[str, Any]:
    """One line for one seed; what it trained on and how long."""
    if settings.compile:
        torch.compiler.reset()  # what was compiled is another model's
    accelerator = open_accelerator(settings)
    device, dtype = accelerator.device, image_type(accelerator)
    endless = opened(settings, "train", device, dtype)
    test = opened(settings, "test", device, dtype)
    stream: Stream = endless if size is None else FiniteStream(endless, size, seed=settings.seed)
    seeded("weights", settings.seed)
    model = network(settings, endless.num_classes, endless.generate(range(0)).images.shape[-1]).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=device.type == "cuda"
    )
    loss = flipped_loss if settings.augment else classification_loss
    loop = Loop(model, loss, optimizer, stream, settings, accelerator)
    loop.resume(folder / "checkpoint")

    with Journal(folder, loop, title=folder.name, quiet=True) as journal:
        for record in loop:
            figures = {}
            if settings.evaluates(record.step):
                figures = tested(loop, test, settings.test_samples, settings.val_seed, TEST_BATCH)
                seen = min(size or record.samples, record.samples, settings.test_samples)
                again = tested(loop, endless, seen, 0, TEST_BATCH)  # the first samples of the set
                figures |= {"seen_loss": again["test_loss"], "seen_accuracy": again["test_accuracy"]}
                tell(record.step, f"test {figures['test_loss']:.3f}, {record.images_per_second:,.0f} images/s")
            journal.write(record, figures)
            if settings.saves(record.step):
                loop.save(folder / "checkpoint")

    weights = sum(each.numel() for each in model.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"weights": weights, "device": name, "seconds": loop.seconds, "stream": stream.digest()}


def network(settings: FiniteVsEndlessSettings, num_classes: int, image_size: int) -> nn.Module:
    if settings.model == "vit":
        return vision_transformer(
            num_classes=num_classes, image_size=image_size, patch_size=settings.patch_size, embed_dim=settings.width,
            depth=settings.depth, num_heads=settings.width // 32,
        )  # fmt: skip
    made: nn.Module = ResNet9(num_classes, settings.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def flipped_loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The loss of pictures of which every second one, by chance, is upside down."""
    images, labels = batch
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return classification_loss(model, (torch.where(chosen, images.flip(2), images), labels))


def report(settings: FiniteVsEndlessSettings, result: FiniteVsEndless) -> None:
    """result.json, crossover.png, and the table on the terminal."""
    told = {"settings": settings.decisive(), **asdict(result)}
    text = json.dumps(told, indent=1, default=lambda value: np.asarray(value).tolist())
    save_text(settings.folder / "result.json", text)
    title = (
        f"{settings.model}, {result.weights / 1e6:.2g} M weights, {settings.preset}, batches of {settings.batch_size}"
        f"{', with flips' if settings.augment else ', no augmentation'}"
    )
    draw_crossover(settings.folder / "crossover.png", result.curves, result.rows, title)
    if not settings.quiet:
        show_table(result.rows, settings.margin, result.by_chance)


app = command(FiniteVsEndlessSettings, run, "The same model on N samples for many epochs, and on the endless stream.")

if __name__ == "__main__":
    app()
