"""What classification recipes share: the settings, the loss, the test, and what a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fractal_streams.recipes.data import DataSettings, held_out, opened
from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.settings import option

from fractal_streams import Shard, Stream
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from accelerate.utils import broadcast_object_list
    from fractal_streams.recipes.classification_pictures import draw_confusion, save_answers
    from fractal_streams.recipes.journal import Journal
    from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, refuse_others
    from fractal_streams.recipes.optimizers import BASE_WIDTH, OPTIMIZERS, PARAMETRIZATIONS, build_optimizer
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

MOST_DRAWN = 1000
"""Classes up to which the table of classes against answers is drawn."""


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(LoopSettings, DataSettings):
    """How a classifier is trained and tested."""

    optimizer_type: str = option("adamw", "Of the weights.", choices=OPTIMIZERS)
    lr_base: float = option(1e-3, "Highest rate of hidden and output matrices, at the base width.", low=0.0)
    lr_embedding: float = option(1e-3, "Of what reads the picture, of biases, norms and positions.", low=0.0)
    weight_decay: float = option(
        0.05, "Of matrices; a step takes the rate times this share of them, SGD ten times it.", low=0.0
    )
    parametrization: str = option("mup", "How rates follow the width.", choices=PARAMETRIZATIONS)
    base_width: int = option(BASE_WIDTH, "The width at which a rate is what it is called.", low=1)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    eval_steps: int = option(20, "Batches of an evaluation.", low=1, changes_nothing=True)
    final_samples: int = option(10_000, "Held-out samples of the last evaluation.", low=1, changes_nothing=True)
    trackers: tuple[str, ...] | None = option(
        None, "Beside records.csv: tensorboard, wandb, trackio.", changes_nothing=True
    )
    folder: Path = option(Path("outputs/classifier"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bar.", changes_nothing=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to; folder/result.json holds it with the settings.

    steps, samples: trained on. weights: of the network, how many.
    test_accuracy, test_loss, class_accuracies: a share, nats, shares, on held-out samples; a class without one: None.
    train_loss: mean of the last record. images_per_second: median of the records but the first.
    waiting: mean share of the time in which the model had no batch, the first record left out.
    memory: bytes, the most. seconds: of training, resumed runs together.
    """

    steps: int
    samples: int
    weights: int
    test_accuracy: float
    test_loss: float
    class_accuracies: Sequence[float | None]
    train_loss: float
    images_per_second: float
    waiting: float
    memory: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Examination:
    """loss: nats, mean. labels, answers: (N,) int64, of each sample; answers are classes too. classes: how many."""

    loss: float
    labels: Tensor
    answers: Tensor
    classes: int

    @property
    def accuracy(self) -> float:
        return float((self.labels == self.answers).double().mean())

    @property
    def class_accuracies(self) -> list[float | None]:
        """Of each class, None where no sample was of it."""
        right = torch.bincount(self.labels[self.labels == self.answers], minlength=self.classes).tolist()
        count = torch.bincount(self.labels, minlength=self.classes).tolist()
        return [each / of if of else None for each, of in zip(right, count, strict=True)]

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) float64: how often class i was taken for class j."""
        pairs = torch.bincount(self.labels * self.classes + self.answers, minlength=self.classes**2)
        return pairs.view(self.classes, self.classes).double()


def optimizer_of(network: nn.Module, settings: ClassifierSettings) -> torch.optim.Optimizer:
    """`build_optimizer` as the settings say; the network has to be on its device."""
    names = ("lr_base", "lr_embedding", "weight_decay", "base_width", "parametrization")
    return build_optimizer(network, settings.optimizer_type, **{name: getattr(settings, name) for name in names})


def classification_loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Cross-entropy in nats, and the share of a batch (images, labels) that is right."""
    images, labels = batch
    scores = model(images)
    right = (scores.argmax(1) == labels).float().mean()
    return {"loss": functional.cross_entropy(scores.float(), labels), "accuracy": right}


def examined(loop: Loop, stream: Stream, samples: int, val_seed: int = 0, batch_size: int = 512) -> Examination:
    """The loop's model on held-out samples, shared out over the ranks; the same on all of them.

    Args:
        stream: of the validation or test split, in the loop's form.
    """
    accelerator = loop.accelerator
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    pairs = torch.zeros(2, samples, dtype=torch.int64, device=accelerator.device)
    with loop.evaluating() as model:
        for place, batch in enumerate(held_out(stream, samples, batch_size, val_seed)):
            if place % accelerator.num_processes == accelerator.process_index:
                scores, labels = model(batch.images).float(), batch.labels.long()
                total += functional.cross_entropy(scores, labels, reduction="sum").double()
                here = slice(place * batch_size, place * batch_size + len(labels))
                pairs[0, here], pairs[1, here] = labels, scores.argmax(1)
    loss = float(accelerator.reduce(total, reduction="sum")) / samples
    labels, answers = accelerator.reduce(pairs, reduction="sum").cpu()
    return Examination(loss=loss, labels=labels, answers=answers, classes=stream.num_classes)


def tested(loop: Loop, stream: Stream, samples: int, val_seed: int = 0, batch_size: int = 512) -> dict[str, float]:
    """Accuracy and cross-entropy on held-out samples, shared out over the ranks.

    Args:
        stream: of the validation or test split, in the loop's form.

    Returns:
        "test_loss", nats; "test_accuracy", a share; the same on all ranks.
    """
    accelerator = loop.accelerator
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # no table of pairs: classes may be many
    with loop.evaluating() as model:
        for place, batch in enumerate(held_out(stream, samples, batch_size, val_seed)):
            if place % accelerator.num_processes == accelerator.process_index:
                scores, labels = model(batch.images).float(), batch.labels.long()
                loss = functional.cross_entropy(scores, labels, reduction="sum").double()
                sums += torch.stack([loss, (scores.argmax(1) == labels).sum().double()])
    loss_sum, right = accelerator.reduce(sums, reduction="sum").tolist()
    return {"test_loss": loss_sum / samples, "test_accuracy": right / samples}


def finished(settings: ClassifierSettings, loop: Loop, journal: Journal, title: str) -> Result:
    """The last test, its pictures, and result.json; the same on all ranks.

    Writes confusion.png of up to `MOST_DRAWN` classes, and answers.png with the model's answers to held-out pictures.
    """
    accelerator, rows, result = loop.accelerator, journal.rows, None
    stream = opened(settings, "test", accelerator.device, image_type(accelerator))
    found = examined(loop, stream, settings.final_samples, settings.val_seed)
    if accelerator.is_main_process:
        if not rows:
            raise InvalidValueError(f"{settings.folder / 'records.csv'} is missing: remove the folder to train anew")
        warm = rows[1:] or rows
        result = Result(
            steps=loop.step, samples=loop.step * settings.batch_size,
            weights=sum(weight.numel() for weight in loop.network.parameters()),
            test_accuracy=found.accuracy, test_loss=found.loss, class_accuracies=tuple(found.class_accuracies),
            train_loss=rows[-1]["loss"], images_per_second=median(row["images_per_second"] for row in warm),
            waiting=fmean(row["waiting"] for row in warm), memory=max(row["memory"] for row in rows),
            seconds=seconds_of(rows),
        )  # fmt: skip
        if found.classes <= MOST_DRAWN:
            draw_confusion(settings.folder / "confusion.png", found.confusion, title)
        with loop.evaluating() as model:
            save_answers(settings.folder / "answers.png", model, stream, settings, title)
        write_json(settings.folder / "result.json", {**asdict(result), "settings": settings.decisive()})
    return broadcast_object_list([result])[0]  # type: ignore[no-any-return]


def tell(result: Result, settings: ClassifierSettings) -> None:
    """Print what a run reached, and where its files are."""
    if Shard.detect().rank:
        return
    print(
        f"{result.test_accuracy:.1%} of {settings.final_samples:,} held-out pictures right, loss {result.test_loss:.4g}"
    )
    print(
        f"{result.samples:,} pictures in {result.seconds:,.0f} s: {result.images_per_second:,.0f} images/s, "
        f"{result.waiting:.2%} of the time waited for data, {result.memory / 1e9:.2g} GB"
    )
    print(f"{settings.folder}: {', '.join(sorted(each.name for each in settings.folder.iterdir() if each.is_file()))}")


def read_result(folder: Path, settings: ClassifierSettings) -> Result | None:
    """The result of a run that is done; None of one that is not.

    Raises:
        InvalidValueError: of other settings, or damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        result = Result(**{item.name: told[item.name] for item in fields(Result)})
        trained = told["settings"]
    except (ValueError, KeyError, TypeError):
        raise InvalidValueError(f"{path} can't be read: remove {folder} to train that run anew") from None
    refuse_others(trained, json.loads(json.dumps(settings.decisive())), folder)
    return result


def seconds_of(rows: Sequence[dict[str, Any]]) -> float:
    """Of training, from records whose clock begins anew when a run is resumed.

    Example:
        >>> seconds_of([{"seconds": 2.0}, {"seconds": 5.0}, {"seconds": 1.0}])
        6.0
    """
    before = [0.0, *(row["seconds"] for row in rows)]
    return sum(now - last if now >= last else now for last, now in zip(before, before[1:], strict=False))
