"""Does a training loop notice that its pictures are made while it runs?

Question: how long is a step fed by the live stream, over the same step fed one fixed batch that lies on the device?
Measured: a small ResNet at 32x32 and a ViT-S/16 at 224x224, bf16, compiled, as a user writes the loop. Contestants
take turns of several hundred steps, in another order in each repeat; CUDA events and wall time of each turn, its
ratio to the fixed batch of the same repeat, and the fixed batch against itself, which is the noise.
Gate: the live loop trains on the stream's samples, in their order, each once, and its loss falls.

    python -m fractal_streams.recipes.benchmarks.training_step --model resnet9 --json resnet9.json
    python -m fractal_streams.recipes.benchmarks.training_step --model vit_s16 --steps 96 --json vit.json

A turn begins from the same weights with a tiny learning rate: else a fixed batch would be learnt by heart, and its
vanishing gradients would draw less power and change the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fractal_streams import open_stream
from fractal_streams.errors import FractalStreamsError, missing_extra, unknown_name
from fractal_streams.stream import Stream

try:
    import torch
    from fractal_streams.recipes.benchmarks.training_feeds import (
        FEEDS,
        Feed,
        Pair,
        alone,
        synchronized,
        touched,
    )  # fmt: skip
    from fractal_streams.recipes.benchmarks.training_models import TASKS, Task
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "torchvision") from None

REPEATS, CHECKED = 5, 96
"""Turns of each contestant, and steps of the gate."""
TIMED_RATE = 1e-6
"""Learning rate of the timed turns."""
BASE, RAISED = "fixed", ", raised"
CONTESTANTS = (
    BASE, "fixed again", "pool", "live", "inline", "chunk 1", "chunk 8", "chunk 1, first", "graph beside",
    "fixed, raised", "live, raised", "chunk 1, raised", "chunk 8, raised", "graph beside, raised",
)  # fmt: skip


class WrongTrainingError(FractalStreamsError, AssertionError):
    """A loop that does not train on the stream's samples, so its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a contestant.

    gpu: milliseconds a step between CUDA events (wall time on a CPU). wall: with the device idle at both ends.
    host: until the last step was asked for. median, slowest: of the single steps.
    """

    gpu: float
    wall: float
    host: float
    median: float
    slowest: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """A contestant's turns, one for each repeat, and their ratios to the fixed batch of the same repeat."""

    name: str
    turns: tuple[Turn, ...]
    ratios: tuple[float, ...]
    wall_ratios: tuple[float, ...]
    error: str = ""


class Training:
    """A model, its optimizer and the loop around them.

    mode: of `torch.compile`, or "none".
    """

    def __init__(self, task: Task, classes: int, device: str, mode: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        layout = torch.channels_last if task.channels_last else torch.contiguous_format
        self.network = task.network(classes).to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = task.optimizer(self.network.parameters(), self.device.type == "cuda")
        self.model: Any = self.network if mode == "none" else torch.compile(self.network, mode=mode)
        self.state: dict[str, torch.Tensor] | None = None

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step of training; the loss stays on the device."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def hold(self) -> None:
        """From now on every turn begins from the weights of this moment, with a tiny learning rate."""
        self.state = {name: value.clone() for name, value in self.network.state_dict().items()}
        for group in self.optimizer.param_groups:
            group["lr"] = TIMED_RATE

    def turn(self, batches: Iterator[Pair], steps: int, warm: int) -> Turn:
        """So many steps, after some that are not timed."""
        if self.state is not None:
            self.network.load_state_dict(self.state)
        for images, labels in islice(batches, warm):
            self.step(images, labels)
        synchronized(self.device)
        marks = [self.mark()]
        begin = time.perf_counter()
        for images, labels in islice(batches, steps):
            self.step(images, labels)
            marks.append(self.mark())
        host = time.perf_counter() - begin
        synchronized(self.device)
        wall = time.perf_counter() - begin
        each = [self.between(*pair) for pair in zip(marks[:-1], marks[1:], strict=True)]
        return Turn(
            gpu=self.between(marks[0], marks[-1]) / steps, wall=1e3 * wall / steps, host=1e3 * host / steps,
            median=statistics.median(each), slowest=max(each),
        )  # fmt: skip

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Milliseconds."""
        return float(first.elapsed_time(last)) if self.device.type == "cuda" else 1e3 * (last - first)


def place_of(name: str, device: str) -> AbstractContextManager[Any]:
    """Where a contestant's loop runs: ", raised" on a CUDA stream of higher priority than the default one."""
    if name.endswith(RAISED) and device != "cpu":
        return torch.cuda.stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-any-return]
    return nullcontext()


def feed_of(name: str) -> Feed:
    """The feed of a contestant.

    Raises:
        UnknownNameError: no such contestant; names the nearest known one.
    """
    kind = name.removesuffix(RAISED).removesuffix(" again")
    if kind not in FEEDS:
        raise unknown_name("contestant", kind, FEEDS)
    return FEEDS[kind]


def gate(training: Training, stream: Stream, batch: int, steps: int) -> list[float]:
    """Losses of a live loop that is held to the stream: its pictures, its labels, their order, and that it learns.

    Raises:
        WrongTrainingError: another sample, or a loss that is not finite or does not fall.
    """
    losses, kept = [], []
    for step, (images, labels) in enumerate(islice(feed_of("live").open(stream, batch), steps)):
        losses.append(training.step(images, labels))
        # copied behind the step that used them: what is overwritten too early shows
        kept.append((images.clone() if step % 8 < 2 else None, labels.clone()))
    for step, (seen, classes) in enumerate(kept):
        check(step, stream, batch, seen, classes)
    found = torch.stack(losses).tolist()
    tenth = max(1, steps // 10)
    first, last = statistics.fmean(found[:tenth]), statistics.fmean(found[-tenth:])
    if not last < first:  # NaN too
        raise WrongTrainingError(f"the loss does not fall: {first:.3f} in the first {tenth} steps, {last:.3f} at last")
    return [float(loss) for loss in found]


def check(step: int, stream: Stream, batch: int, images: torch.Tensor | None, labels: torch.Tensor) -> None:
    """Hold one batch to the stream.

    Raises:
        WrongTrainingError: other pictures or labels.
    """
    truth = stream.generate(range(step * batch, (step + 1) * batch)).torch()
    right = torch.equal(labels, truth.labels)
    if images is not None:
        right = right and torch.equal(images, touched(stream, truth.images))
    if not right:
        raise WrongTrainingError(f"step {step} did not get the stream's samples from {step * batch} on")


class Race:
    """Turns of all contestants; one that fails is left out from there on, and its row says why.

    steps, warm: of a turn and before it, multiples of every chunk: so a turn holds as many launches as it uses.
    """

    def __init__(self, training: Training, stream: Stream, task: Task, names: Sequence[str], steps: int) -> None:
        self.training, self.stream, self.batch = training, stream, task.batch
        self.names, self.steps, self.warm = tuple(names), steps, task.warm
        self.places = {name: place_of(name, stream.device) for name in names}
        self.batches: dict[str, Iterator[Pair]] = {}
        self.turns: dict[str, list[Turn]] = {name: [] for name in names}
        self.errors: dict[str, str] = {}

    def run(self, repeats: int, deadline: float) -> list[Result]:
        """A round that warms all up, then rounds in other orders until the deadline of `time.monotonic`."""
        for repeat in range(-1, repeats):
            shift = max(repeat, 0) % len(self.names)
            for name in (*self.names[shift:], *self.names[:shift]):
                if name not in self.errors:
                    self.attempt(name, repeat)
            if time.monotonic() > deadline and repeat >= 0:
                break
        return [self.result(name) for name in self.names]

    def attempt(self, name: str, repeat: int) -> None:
        try:
            with self.places[name]:
                if repeat < 0:
                    self.begin(name)
                taken = self.training.turn(self.batches[name], self.warm if repeat < 0 else self.steps, self.warm)
        except Exception as error:
            if name == BASE:
                raise
            self.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        if repeat >= 0:
            self.turns[name].append(taken)

    def begin(self, name: str) -> None:
        """Open a contestant's batches, after its first ones were held to the stream."""
        feed = feed_of(name)
        if feed.live:
            for step, (images, labels) in enumerate(islice(feed.open(self.stream, self.batch), 3)):
                check(step, self.stream, self.batch, images, labels)
        self.batches[name] = feed.open(self.stream, self.batch)

    def result(self, name: str) -> Result:
        base, own = self.turns[BASE], self.turns[name]
        return Result(
            name=name, turns=tuple(own), error=self.errors.get(name, ""),
            ratios=tuple(turn.gpu / one.gpu for turn, one in zip(own, base[: len(own)], strict=True)),
            wall_ratios=tuple(turn.wall / one.wall for turn, one in zip(own, base[: len(own)], strict=True)),
        )  # fmt: skip


def measure(
    name: str, *, device: str = "cuda", preset: str | None = None, names: Sequence[str] = CONTESTANTS,
    steps: int | None = None, repeats: int = REPEATS, mode: str = "default", seconds: float = 200.0,
) -> dict[str, Any]:  # fmt: skip
    """All figures of one model.

    Args:
        name: of `TASKS`. preset: another stream than the model's own.
        names: contestants, "fixed" among them; with ", raised" behind the name the model runs on a CUDA stream of
            higher priority.
        steps: of a turn, rounded up to a multiple of the model's `warm`.
        mode: of `torch.compile`, or "none".
        seconds: after which no further repeat begins.

    Raises:
        WrongTrainingError: the live loop does not train on the stream's samples.
        UnknownNameError: no such model or contestant.
    """
    began = time.monotonic()
    if name not in TASKS:
        raise unknown_name("model", name, TASKS)
    task = TASKS[name]
    names = tuple(dict.fromkeys((BASE, *names)))
    for each in names:
        feed_of(each)
    stream = open_stream(
        preset or task.preset, device=device, height=task.size, width=task.size, dtype="bfloat16",
        channels_last=task.channels_last, mean=0.5, std=0.25,
    )  # fmt: skip
    training = Training(task, stream.num_classes, stream.device, mode)
    losses = gate(training, stream, task.batch, CHECKED)
    training.hold()
    compiled = graphs()
    steps = -(-(steps or task.steps) // task.warm) * task.warm
    ready = time.monotonic() - began
    results = Race(training, stream, task, names, steps).run(repeats, began + seconds)
    return {
        "model": name, "preset": preset or task.preset, "size": task.size, "batch": task.batch, "steps": steps,
        "mode": mode, "weights": sum(weight.numel() for weight in training.network.parameters()),
        "losses": losses, "recompiled": graphs() - compiled, "ready_s": ready,
        "alone_ms": {chunk: alone(stream, task.batch, chunk) for chunk in (1, 2, 8)},
        "results": [asdict(result) for result in results],
    }  # fmt: skip


def graphs() -> int:
    """Graphs that `torch.compile` has made so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def table_text(figures: dict[str, Any]) -> str:
    """A line for each contestant: step, host, and its ratio to the fixed batch."""
    turns = {row["name"]: [turn["gpu"] for turn in row["turns"]] for row in figures["results"]}
    step, alone_ms = middle(turns[BASE]), figures["alone_ms"]
    losses = figures["losses"]
    lines = [
        f"{figures['model']} ({figures['weights'] / 1e6:.1f} M weights), {figures['preset']} at {figures['size']}x"
        f"{figures['size']}, batch {figures['batch']}, compile {figures['mode']}, {figures['steps']} steps a turn",
        f"gate: the stream's samples in order, loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; "
        f"{figures['recompiled']} recompiled; ready after {figures['ready_s']:.0f} s",
        "generator alone, ms a batch (share of the step): "
        + ", ".join(f"{value:.4f} ({value / step:.2%}) in launches of {k}" for k, value in alone_ms.items()),
        f"{'':<24} {'step ms':>9} {'median':>8} {'host':>8} {'images/s':>10}  ratio, least to most{'':14} wall ratio",
    ]
    for row in figures["results"]:
        if not row["turns"]:
            lines.append(f"{row['name']:<24} {row['error']}")
            continue
        took, ratios, walls = middle(turns[row["name"]]), row["ratios"], row["wall_ratios"]
        lines.append(
            f"{row['name']:<24} {took:9.4f} {middle([turn['median'] for turn in row['turns']]):8.4f} "
            f"{middle([turn['host'] for turn in row['turns']]):8.4f} {1e3 * figures['batch'] / took:10,.0f}  "
            f"{middle(ratios):.4f}  {min(ratios):.4f} to {max(ratios):.4f}     {middle(walls):.4f}  {row['error']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(TASKS), default="resnet9")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", help="another stream than the model's own")
    parser.add_argument("--only", help="contestants, separated by semicolons")
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--compile", default="default", dest="mode", help="mode of torch.compile, or none")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which no further repeat begins")
    parser.add_argument("--json", type=Path, help="write every turn here too")
    given = parser.parse_args(arguments)
    place = torch.cuda.get_device_name() if given.device != "cpu" else "cpu"
    names = [name.strip() for name in given.only.split(";")] if given.only else CONTESTANTS
    figures = measure(
        given.model, device=given.device, preset=given.preset, names=names, steps=given.steps, repeats=given.repeats,
        mode=given.mode, seconds=given.seconds,
    )  # fmt: skip
    print(f"{place}, torch {torch.__version__}\n{table_text(figures)}")
    if given.json:
        written = given.json.with_suffix(".tmp")
        written.write_text(json.dumps({"device": place, "torch": torch.__version__, **figures}, indent=1) + "\n")
        written.replace(given.json)


if __name__ == "__main__":
    main()
