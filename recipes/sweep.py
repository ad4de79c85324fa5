"""Does the best learning rate of a narrow transformer serve a wide one?

    python -m fractal_streams.recipes.sweep                                    # 3 widths, 6 rates, 2 seeds
    python -m fractal_streams.recipes.sweep --parametrization standard --folder outputs/sweep-standard
    python -m fractal_streams.recipes.sweep --widths 64,128,256,512 --rates 0.001,0.003,0.01 --seeds 0 --parallel 8

Claims (best rates, hardware, seconds): see recipes/README.md.

Every run is recipes/vit.py in a folder of its own. `parallel` processes share a GPU, or take turns on several; each
trains one run after the other. A sweep that is stopped, by Ctrl-C or otherwise, goes on where it was: runs that are
done or diverged stay, begun ones resume from their checkpoints, failed ones are tried again. The folder gets sweep.csv,
sweep.json and sweep.png.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from fractal_streams.recipes.data import DataSettings
from fractal_streams.recipes.settings import command, option

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.classification import read_result
    from fractal_streams.recipes.journal import read_records
    from fractal_streams.recipes.loop import PRECISIONS, refuse_others
    from fractal_streams.recipes.optimizers import BASE_WIDTH, OPTIMIZERS, PARAMETRIZATIONS
    from fractal_streams.recipes.results import write_json
    from fractal_streams.recipes.sweep_plot import Row, best_rates, draw_sweep, sentence, transfers, write_table
    from fractal_streams.recipes.vit import ViTSettings
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

FIGURES = ("test_loss", "test_accuracy", "train_loss", "images_per_second", "seconds", "memory")
WORKER = ("-m", "fractal_streams.recipes.sweep_worker")
"""What a process of a sweep runs."""
PATIENCE = 10.0
"""Seconds that a worker has to end once it was asked to."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings(DataSettings):
    """What is trained: every width at every rate with every seed."""

    widths: tuple[int, ...] = option((64, 128, 256), "Of the transformer.", low=1)
    rates: tuple[float, ...] = option(
        (0.0002, 0.0005, 0.00125, 0.003, 0.008, 0.02), "Of all weights, at the base width.", low=0.0
    )
    seeds: tuple[int, ...] = option((0, 1), "Of weights.")
    parallel: int = option(6, "Processes that train at the same time.", low=1, high=256, changes_nothing=True)
    head_dim: int = option(32, "Width of a head of attention: wider transformers have more of them.", low=1)
    depth: int = option(6, "Blocks.", low=1)
    image_size: int | None = option(32, "Height and width, pixels.", low=1)
    patch_size: int = option(4, "Height and width of a patch, pixels.", low=1)
    num_steps: int = option(1000, "Updates of the weights of a run.", low=1)
    batch_size: int = option(256, "Samples of an update.", low=1)
    warmup_steps: int = option(100, "Steps in which the rate rises.", low=0)
    optimizer_type: str = option("adamw", "Of the weights.", choices=OPTIMIZERS)
    parametrization: str = option("mup", "How rates follow the width.", choices=PARAMETRIZATIONS)
    base_width: int = option(BASE_WIDTH, "The width at which a rate is what it is called.", low=1)
    weight_decay: float = option(0.05, "Of matrices.", low=0.0)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    precision: str = option("auto", "Of products; auto is bf16 on a GPU.", choices=PRECISIONS)
    final_samples: int = option(10_000, "Held-out samples that a run is tested on.", low=1, changes_nothing=True)
    device: str = option("auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"), changes_nothing=True)
    folder: Path = option(Path("outputs/sweep"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bar.", changes_nothing=True)

    def runs(self) -> list[ViTSettings]:
        """All of them: narrow ones last, so that the long ones are not what is waited for.

        Raises:
            InvalidValueError: a width that heads don't share.
        """
        wrong = [width for width in self.widths if width % self.head_dim]
        if wrong:
            raise InvalidValueError(f"widths must be multiples of head_dim={self.head_dim}, got {wrong}")
        widths = sorted(self.widths, reverse=True)
        own = {item.name for item in fields(self)} - {"folder", "quiet"}
        both = {item.name: getattr(self, item.name) for item in fields(ViTSettings) if item.name in own}
        every = max(1, self.num_steps // 20)
        return [
            ViTSettings(
                **both, embed_dim=width, num_heads=width // self.head_dim, lr_base=rate, lr_embedding=rate, seed=seed,
                record_every=every, eval_once_every=self.num_steps, checkpoint_every=5 * every, eval_steps=1,
                quiet=True, folder=self.folder / "runs" / f"width-{width}-rate-{rate:g}-seed-{seed}",
            )
            for width, seed, rate in product(*(dict.fromkeys(each) for each in (widths, self.seeds, self.rates)))
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """rows: of all runs. best: width to its best rate. transfers: whether they are the same or neighbours."""

    rows: tuple[Row, ...]
    best: dict[int, float]
    transfers: bool | None
    sentence: str


def run(settings: SweepSettings) -> Result:
    """Train what is not trained yet, and tell of all.

    Raises:
        InvalidValueError: a width that heads don't share, or a folder with runs of other settings; names what differs.
    """
    runs = settings.runs()
    settings.folder.mkdir(parents=True, exist_ok=True)
    waiting = [each for each in runs if row_of(each).outcome in ("not trained", "failed")]
    if waiting:
        train(settings, runs, waiting)
    return summary(settings, runs)


def summary(settings: SweepSettings, runs: Sequence[ViTSettings]) -> Result:
    """Write sweep.csv, sweep.json and sweep.png of what is there; print what it says."""
    rows = sorted((row_of(each) for each in runs), key=lambda row: (row.width, row.rate, row.seed))
    found = Result(rows=tuple(rows), best=best_rates(rows), transfers=transfers(rows), sentence=sentence(rows))
    write_table(settings.folder / "sweep.csv", rows)
    write_json(settings.folder / "sweep.json", {**asdict(found), "settings": settings.decisive()})
    title = f"ViT, depth {settings.depth}, {settings.num_steps:,} steps, {settings.optimizer_type}, "
    draw_sweep(settings.folder / "sweep.png", rows, f"{title}{settings.parametrization}, {settings.preset}")
    if not settings.quiet:
        print(found.sentence)
    return found


def row_of(asked: ViTSettings) -> Row:
    """What came of a run.

    Raises:
        InvalidValueError: its folder holds one of other settings.
    """
    about: dict[str, Any] = {"width": asked.embed_dim, "rate": asked.lr_base, "seed": asked.seed}
    result = read_result(asked.folder, asked)
    if result is not None:
        return Row(**about, outcome="trained", **{name: getattr(result, name) for name in FIGURES})
    outcome, error = failure_of(asked)
    return Row(**about, outcome=outcome, error=error)


def failure_of(asked: Asked) -> tuple[str, str]:
    """The outcome of a run without a result, "diverged", "failed" or "not trained", and what was wrong.

    Raises:
        InvalidValueError: its folder holds one of other settings.
    """
    path = asked.folder / "failure.json"
    if not path.is_file():
        return "not trained", ""
    told = json.loads(path.read_text())
    refuse_others(told["settings"], json.loads(json.dumps(asked.decisive())), asked.folder)
    return told["outcome"], told["error"]


def train(settings: SweepSettings, runs: Sequence[ViTSettings], waiting: Sequence[ViTSettings]) -> None:
    """Train runs in as many processes as asked for; Ctrl-C ends those."""

    def done(asked: Asked) -> bool:
        return row_of(asked).outcome != "not trained"  # type: ignore[arg-type]

    packed(runs, waiting, done, Packing(**{item.name: getattr(settings, item.name) for item in fields(Packing)}))


class Asked(Protocol):
    """What has to be known of a run's settings, a dataclass, to train it in another process."""

    @property
    def folder(self) -> Path: ...
    @property
    def num_steps(self) -> int: ...
    def decisive(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How runs share machines: parallel processes on GPUs in turn, logs in a folder, a progress bar unless quiet."""

    parallel: int
    device: str
    folder: Path
    quiet: bool


def packed(
    runs: Sequence[Asked], waiting: Sequence[Asked], done: Callable[[Asked], bool], packing: Packing,
    recipe: str = "vit",
) -> None:  # fmt: skip
    """Train runs of a recipe in processes that take one after the other; Ctrl-C ends those.

    Args:
        runs: all of them; waiting: those to train. done: whether a run has ended, in whatever way.
        recipe: of `sweep_worker.RECIPES`.
    """
    line: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    for each in waiting:
        line.put(each)
    places = environments(packing.device, min(packing.parallel, len(waiting)))
    logs = (packing.folder / f"worker-{number}.log" for number in range(len(places)))
    slots = [Slot(place, line, log, recipe) for place, log in zip(places, logs, strict=True)]
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=packing.quiet,
    )  # fmt: skip
    with bar:
        task = bar.add_task("sweep", total=sum(each.num_steps for each in runs), note="")
        for slot in slots:
            slot.start()
        try:
            while any(slot.is_alive() for slot in slots):
                time.sleep(0.2 if len(runs) < 10 else 1.0)
                ended = [done(each) for each in runs]
                steps = [each.num_steps if of else reached(each) for of, each in zip(ended, runs, strict=True)]
                bar.update(task, completed=sum(steps), note=f"{sum(ended)} of {len(runs)} runs")
        finally:
            for slot in slots:
                slot.end()
            for slot in slots:
                slot.join()


def reached(asked: Asked) -> int:
    """The step up to which a run has told something."""
    rows = read_records(asked.folder)
    return int(rows[-1]["step"]) if rows else 0


def environments(device: str, count: int) -> list[dict[str, str]]:
    """What each of so many processes finds in its environment: GPUs in turn, and a share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    mine = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    if device == "cpu" or not torch.cuda.is_available():
        return [mine] * count
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
    return [{**mine, "CUDA_VISIBLE_DEVICES": names[number % len(names)]} for number in range(count)]


class Slot(threading.Thread):
    """Hands runs to a process of its own, one after the other, and notes what came of each.

    Args:
        environment: of the process. line: of runs that wait. log: what the process says. recipe: of the runs.
    """

    def __init__(
        self, environment: dict[str, str], line: queue.SimpleQueue[Any], log: Path, recipe: str = "vit"
    ) -> None:
        super().__init__(daemon=True)
        self.environment, self.line, self.log, self.recipe = environment, line, log, recipe
        self.worker: subprocess.Popen[str] | None = None
        self.ended, self.guard = False, threading.Lock()

    def run(self) -> None:
        try:
            while not self.ended:
                asked = self.line.get_nowait()
                asked.folder.mkdir(parents=True, exist_ok=True)
                (asked.folder / "failure.json").unlink(missing_ok=True)
                said = self.answer(asked)
                if said is not None and said["outcome"] != "trained":
                    write_json(asked.folder / "failure.json", {**said, "settings": asked.decisive()})
        except queue.Empty:
            pass
        finally:
            self.end()
            self.forget()

    def answer(self, asked: Any) -> dict[str, str] | None:
        """What the process says of a run; None if it was ended meanwhile."""
        with self.guard:
            if self.ended:
                return None
            worker = self.worker = self.worker or self.started()
        told = {item.name: getattr(asked, item.name) for item in fields(asked)}
        said = {"outcome": "failed"}
        with suppress(OSError):  # of a process that is no longer there
            worker.stdin.write(json.dumps(told, default=str) + "\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
            line = worker.stdout.readline()  # type: ignore[union-attr]
            said = json.loads(line) if line else said
        if self.ended:
            return None
        if said["outcome"] == "failed":
            code = worker.wait()
            self.forget()
            return {"error": f"its process ended with {code}: see {self.log.name}", **said}
        return said

    def started(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, *WORKER, self.recipe], env=self.environment, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """End the process; what it trained up to its last checkpoint stays."""
        with self.guard:
            self.ended = True
            worker = self.worker
        if worker is None or worker.poll() is not None:
            return
        worker.terminate()
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()

    def forget(self) -> None:
        """Close the pipes of a process that has ended."""
        with self.guard:
            worker, self.worker = self.worker, None
        for pipe in (worker.stdin, worker.stdout) if worker is not None else ():
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


app = command(SweepSettings, run)

if __name__ == "__main__":
    app()
