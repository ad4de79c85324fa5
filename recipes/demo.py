"""The demo: the same small network trained twice, on an endless stream and on a finite set cut from it.

Question: what does it buy to train on pictures that never repeat?
Claim: after 61,440 pictures 80.7, 71.2 and 78.9 % of held-out pictures are right with the stream, 54.3, 47.2 and
44.2 % with the first 2,000 of it again and again (seeds 0, 1, 2, each with its own ten classes; chance 10 %). Both
trainings together take 86 s of CPU time, about a minute on 2 cores.

    fractal-streams demo
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.recipes.results import write_json

from fractal_streams import Stream, StreamDataset, open_stream
from fractal_streams.contact_sheet import contact_sheet, save_png, whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.utils.data import DataLoader
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PRESET = "fractal-10"
FINITE = 2_000
"""Pictures of the finite set: the first of the same stream."""
HELD_OUT = 2_000
"""Pictures of the test split that both networks are tested on."""
EVALUATIONS = 8
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 5e-3, 0.05, 50


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one kind of device trains: steps are counted, not timed, so that a run can be repeated."""

    batch_size: int
    width: int
    steps_per_second: float


BUDGETS = {
    "cpu": Budget(batch_size=64, width=32, steps_per_second=16.0),
    "cuda": Budget(batch_size=512, width=64, steps_per_second=100.0),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a training stood: pictures seen, accuracy on those seen since the last point, and on the held-out."""

    pictures: int
    train_accuracy: float
    test_accuracy: float
    test_loss: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training. distinct: different pictures seen; seconds: of training, evaluation left out;
    waiting: share of them spent waiting for the next batch."""

    name: str
    distinct: int
    seconds: float
    waiting: float
    curve: tuple[Point, ...]

    @property
    def last(self) -> Point:
        return self.curve[-1]

    @property
    def per_second(self) -> float:
        """Pictures trained on per second."""
        return self.last.pictures / self.seconds


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The demo's figures; accuracies are shares from 0 to 1.

    generated_per_second: pictures per second when nothing but generating goes on.
    seconds: of everything, from the first line of `run` to the last.
    """

    folder: Path
    stream: str
    device: str
    seed: int
    weights: int
    chance: float
    endless: Training
    finite: Training
    generated_per_second: float
    seconds: float

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The pictures written."""
        return self.folder / "classes.png", self.folder / "curves.png"


def run(
    folder: Path = Path("fractal-streams-demo"), seconds: float = 60.0, device: str = "auto", seed: int = 0
) -> DemoResult:
    """Train, test, draw and report.

    Args:
        folder: where classes.png, curves.png and result.json go; made if it is not there.
        seconds: sets the number of steps, by what 2 CPU cores or one GPU do in about that time.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of the stream and of the networks' weights; on a CPU the figures follow from it exactly.

    Raises:
        InvalidValueError: seconds not in (0, 86400].
        DeviceError: a GPU was asked for that is not there.
    """
    started = time.perf_counter()
    if not 0 < seconds <= 86400:
        raise InvalidValueError(f"seconds must lie in (0, 86400], got {seconds}")
    stream = open_stream(PRESET, seed=seed, split="train", device=device, dtype="float32", mean=0.5, std=0.25)
    test = open_stream(PRESET, seed=seed, split="test", device=device, dtype="float32", mean=0.5, std=0.25)
    budget = BUDGETS[stream.device.partition(":")[0]]
    steps = EVALUATIONS * max(1, round(seconds * budget.steps_per_second / EVALUATIONS))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw_classes(folder / "classes.png", seed)

    held_out = test[:HELD_OUT].torch()
    some = stream[:FINITE].torch()
    loader = DataLoader(StreamDataset(stream, batch_size=budget.batch_size), batch_size=None)
    console = Console()
    trainings = []
    with progress(console) as bars:
        for name, distinct, batches in (
            ("endless stream", steps * budget.batch_size, iter(loader)),
            (f"{FINITE:,} pictures", FINITE, epochs(some.images, some.labels, budget.batch_size)),
        ):
            torch.manual_seed(seed)
            network = build_network(budget.width, stream.num_classes).to(stream.device)
            trainings.append(fit(network, batches, (held_out.images, held_out.labels), steps, name, distinct, bars))

    endless, finite = trainings
    result = DemoResult(
        folder=folder, stream=stream.digest(), device=device_name(stream.device), seed=seed,
        weights=sum(weight.numel() for weight in network.parameters()), chance=1.0 / stream.num_classes,
        endless=endless, finite=finite, generated_per_second=generation_rate(stream, budget.batch_size),
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    draw_curves(folder / "curves.png", result)
    write_json(folder / "result.json", {**asdict(result), "folder": str(result.folder)})
    report(console, result)
    return result


def build_network(width: int, num_classes: int) -> nn.Module:
    """Five convolutions, two of them residual: (B, 3, 32, 32) to (B, num_classes)."""

    def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.GELU())

    return nn.Sequential(
        layer(3, width, stride=2),
        layer(width, 2 * width, stride=2),
        Residual(layer(2 * width, 2 * width)),
        layer(2 * width, 4 * width, stride=2),
        Residual(layer(4 * width, 4 * width)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def epochs(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a finite set, shuffled anew each time it has been gone through."""
    while True:
        order = torch.randperm(len(labels)).to(labels.device)
        for chosen in order[: len(order) - len(order) % batch_size].split(batch_size):
            yield images[chosen], labels[chosen]


def fit(
    network: nn.Module,
    batches: Iterator[Any],
    held_out: tuple[Tensor, Tensor],
    steps: int,
    name: str,
    distinct: int,
    bars: Progress,
) -> Training:
    """An ordinary training loop: AdamW, a warm-up, a cosine, and a look at the held-out pictures now and then."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    half = torch.autocast("cuda", torch.bfloat16, enabled=held_out[0].is_cuda)
    bar: Any = None
    curve: list[Point] = []
    seen, spent, waited = 0, 0.0, 0.0
    for _ in range(EVALUATIONS):
        right, before = torch.zeros((), device=held_out[0].device), seen
        began = time.perf_counter()
        network.train()
        for _ in range(steps // EVALUATIONS):
            asked = time.perf_counter()
            images, labels = next(batches)
            waited += time.perf_counter() - asked
            with half:
                scores = network(images)
                loss = functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += (scores.argmax(1) == labels).sum()
            seen += len(labels)
            if bar is None:
                bar = bars.add_task(name, total=steps * len(labels), note="")
            bars.advance(bar, len(labels))
        train_accuracy = right.item() / (seen - before)  # waits for the GPU, so the clock is right
        spent += time.perf_counter() - began
        with half:
            accuracy, loss_value = evaluate(network, *held_out)
        curve.append(Point(pictures=seen, train_accuracy=train_accuracy, test_accuracy=accuracy, test_loss=loss_value))
        bars.update(bar, note=f"test {accuracy:.0%}")
    return Training(name=name, distinct=distinct, seconds=spent, waiting=waited / spent, curve=tuple(curve))


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats."""
    network.eval()
    scores = torch.cat([network(part) for part in images.split(500)]).float()
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    return accuracy, functional.cross_entropy(scores, labels).item()


def generation_rate(stream: Stream, batch_size: int, seconds: float = 1.0) -> float:
    """Pictures per second, generating only, in the training's batches."""
    count, began = 0, time.perf_counter()
    for batch in stream.batches(batch_size):
        count += len(batch)
        if time.perf_counter() - began > seconds:
            break
    if stream.device != "cpu":
        torch.cuda.synchronize(stream.device)
    return count / (time.perf_counter() - began)


def device_name(device: str) -> str:
    """What the run ran on, in words."""
    if device == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return str(torch.cuda.get_device_name(device))


class Rate(ProgressColumn):
    """Pictures per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "", style="progress.data.speed")


def progress(console: Console) -> Progress:
    """A bar for each training: share, rate, held-out accuracy, time left."""
    return Progress(
        TextColumn("{task.description:<15}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate(),
        TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


def report(console: Console, result: DemoResult) -> None:
    """Print the figures and where the pictures are."""
    title = f"{result.weights:,} weights, {result.device}, {result.seconds:.0f} s"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for training in (result.endless, result.finite):
        table.add_column(training.name, justify="right")
    both = (result.endless, result.finite)
    for title, values in (
        ("pictures seen, different ones", [f"{one.last.pictures:,}, {one.distinct:,}" for one in both]),
        ("accuracy in training", [f"{one.last.train_accuracy:.1%}" for one in both]),
        (f"accuracy on {HELD_OUT:,} held out", [f"[bold]{one.last.test_accuracy:.1%}[/]" for one in both]),
        ("chance", [f"{result.chance:.1%}"] * 2),
        ("images/s trained", [f"{one.per_second:,.0f}" for one in both]),
        ("images/s generated alone", [f"{result.generated_per_second:,.0f}", ""]),
        ("time spent waiting for data", [f"{one.waiting:.1%}" for one in both]),
    ):
        table.add_row(title, *values)
    console.print(table)
    for path in (*result.pictures, result.folder / "result.json"):
        console.print(f"{path.stem}: {path}", soft_wrap=True, highlight=False)


def draw_curves(path: Path, result: DemoResult) -> None:
    """Accuracy and loss on the held-out pictures against pictures seen."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for training, colour in ((result.endless, "tab:blue"), (result.finite, "tab:orange")):
        seen = [point.pictures / 1000 for point in training.curve]
        held_out = [100 * point.test_accuracy for point in training.curve]
        accuracy.plot(seen, held_out, "o-", color=colour, label=f"{training.name}, held out")
        trained = [100 * point.train_accuracy for point in training.curve]
        accuracy.plot(seen, trained, "--", color=colour, alpha=0.6, label=f"{training.name}, in training")
        loss.plot(seen, [point.test_loss for point in training.curve], "o-", color=colour, label=training.name)
    accuracy.axhline(100 * result.chance, color="grey", linestyle=":", label="chance")
    loss.axhline(-math.log(result.chance), color="grey", linestyle=":", label="chance")
    accuracy.set(xlabel="pictures seen, thousands", ylabel="accuracy, %", xlim=(0, None), ylim=(0, 101))
    loss.set(xlabel="pictures seen, thousands", ylabel="held-out cross-entropy, nats", xlim=(0, None), ylim=(0, None))
    accuracy.legend(fontsize="small", loc="center right", bbox_to_anchor=(1.0, 0.26))
    loss.legend(fontsize="small")
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def draw_classes(path: Path, seed: int, columns: int = 8, pixels: int = 96) -> None:
    """A sheet with a row for each class: the first training samples of it, drawn larger than the network sees them."""
    stream = open_stream(PRESET, seed=seed, split="train", device="cpu", height=pixels, width=pixels)
    labels = stream.labels(range(100 * stream.num_classes))
    rows = [np.flatnonzero(labels == label)[:columns] for label in range(stream.num_classes)]
    captions = [
        f"class {label}, #{index}" if place == 0 else f"#{index}"
        for label, row in enumerate(rows)
        for place, index in enumerate(row)
    ]
    images = stream.generate(np.concatenate(rows)).images
    title = f"{PRESET}, seed {seed}: each row a class, # its index in the stream"
    save_png(path, contact_sheet(images, captions, title=title, columns=columns))
