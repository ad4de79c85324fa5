"""Several runs of one experiment, one behind the other: each in a folder of its own, resumed where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fractal_streams.recipes.results import write_json

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from accelerate import Accelerator
    from fractal_streams.recipes.data import DataSettings
    from fractal_streams.recipes.journal import read_records
    from fractal_streams.recipes.loop import LoopSettings
    from fractal_streams.recipes.settings import option, refuse_others
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Tell = Callable[[int, str], None]
"""(step, note): where a run stands."""


@dataclass(frozen=True, kw_only=True)
class CurveSettings(LoopSettings, DataSettings):
    """Settings of runs whose curves are drawn against the logarithm of samples seen.

    A point of a curve is about what a run of that length gives: the rate is constant, an average of weights is tested.
    """

    points: int = option(
        50, "Evaluations, evenly spaced in the logarithm of the step.", low=2, high=10_000, changes_nothing=True
    )
    preset: str = option("fractal-100", "A preset, a formula, or a spec's JSON file.")
    batch_size: int = option(512, "Samples of an update, of all ranks together.", low=1)
    schedule: str = option("constant", "Of the rate behind the warm-up.", choices=("cosine", "constant"))
    ema: float = option(0.995, "Share of the average of weights that stays in a step.", low=0.0, high=1.0)
    checkpoint_every: int = option(2000, "Steps from one checkpoint to the next.", low=1, changes_nothing=True)
    record_every: int = option(100, "Steps from one record to the next.", low=1, changes_nothing=True)
    quiet: bool = option(False, "No progress bars and no table.", changes_nothing=True)

    def evaluates(self, step: int) -> bool:
        return step in logarithmic_steps(self.num_steps, self.points) or super().evaluates(step)


@lru_cache(maxsize=16)
def logarithmic_steps(num_steps: int, points: int) -> frozenset[int]:
    """At most so many steps from 1 to the last, in equal ratios but for rounding.

    Example:
        >>> sorted(logarithmic_steps(1000, 7))
        [1, 3, 10, 32, 100, 316, 1000]
    """
    return frozenset(round(num_steps ** (place / (points - 1))) for place in range(points))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of them.

    name: in words, and of its folder. steps: of its weights.
    decisive: all that decides what comes out, as JSON holds it.
    train: called with its folder and a `Tell`; leaves records.csv there and returns facts, as JSON holds them.
    """

    name: str
    steps: int
    decisive: Mapping[str, Any]
    train: Callable[[Path, Tell], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run left. rows: of its records.csv."""

    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]


def all_finished(folder: Path, runs: Sequence[Run], accelerator: Accelerator, *, quiet: bool = False) -> list[Finished]:
    """Train the runs that are not done, and read all.

    Args:
        folder: a folder for each is made in it, with run.json once it is done.
        accelerator: whose main process writes; all processes must see the folder.
        quiet: no progress bars.

    Raises:
        InvalidValueError: a folder holds a run of other settings; names what differs.
    """
    for run in runs:
        read_facts(folder / run.name, run)
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        disable=quiet or not accelerator.is_main_process,
    )  # fmt: skip
    with bars:
        tasks = {run.name: bars.add_task(run.name, total=run.steps, note="", start=False) for run in runs}
        for run in runs:
            place, task = folder / run.name, tasks[run.name]
            bars.start_task(task)
            if read_facts(place, run) is None:
                place.mkdir(parents=True, exist_ok=True)
                facts = run.train(place, lambda step, note: bars.update(task, completed=step, note=note))
                if accelerator.is_main_process:
                    write_json(place / "run.json", {"settings": run.decisive, "facts": facts})
                accelerator.wait_for_everyone()
            else:
                bars.update(task, completed=run.steps, note="was done")
            bars.stop_task(task)
    return [
        Finished(rows=read_records(folder / run.name), facts=read_facts(folder / run.name, run) or {}) for run in runs
    ]


def read_facts(place: Path, run: Run) -> dict[str, Any] | None:
    """What a run that is done told; None of one that is not.

    Raises:
        InvalidValueError: another run's, or damaged.
    """
    path = place / "run.json"
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        settings, facts = told["settings"], told["facts"]
    except (ValueError, KeyError, TypeError):
        raise InvalidValueError(f"{path} can't be read: remove {place} to train that run anew") from None
    refuse_others(settings, json.loads(json.dumps(run.decisive)), place)
    return dict(facts)
