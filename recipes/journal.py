"""What a run tells while it trains and leaves behind: a progress bar, records.csv, curves.png, and other trackers."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from fractal_streams.recipes.loop import Loop, Record
    from fractal_streams.recipes.trackers import Trackers, check_trackers
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PAUSE = 10.0
"""Seconds from one line to the next where standard error is no terminal, and no bar can move."""
COLUMNS = ("step", "samples", "loss", "rate", "images_per_second", "waiting", "memory", "seconds")
WHOLE = ("step", "samples", "memory")
ACROSS = 4
"""Plots in a row of the curves."""


class Journal:
    """A run's folder: records.csv, a row for each record; curves.png at the end.

    Args:
        folder: made if it is not there; of a resumed run, rows behind its step are dropped.
        loop: whose records are written, resumed before if it is. title: of the bar and the curves.
        trackers: beside the file: "tensorboard", "wandb", "trackio"; None takes those of the loop's settings.
        quiet: no progress bar.

    Only the main process writes and shows anything.

    Raises:
        MissingExtraError: a tracker that is not installed; names the pip line.
        InvalidValueError: a folder that is a file; a records.csv that is there and can't be read.

    Example:
        with Journal(folder, loop, title="ViT") as journal:
            for record in loop:
                journal.write(record, {"accuracy": test(loop)} if settings.evaluates(record.step) else {})
                if settings.saves(record.step):
                    loop.save(folder / "checkpoint")
    """

    def __init__(
        self, folder: Path, loop: Loop, *, title: str, trackers: tuple[str, ...] | None = None, quiet: bool = False
    ) -> None:
        self.folder, self.loop, self.title = Path(folder), loop, title
        self.main = loop.accelerator.is_main_process
        self.names = loop.settings.trackers if trackers is None else tuple(trackers)
        check_trackers(self.names)
        self.trackers: Trackers | None = None
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self.shown, self.told = self.main and not quiet, -math.inf
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=8),
            TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"), TimeRemainingColumn(), console=self.console,
            disable=not (self.shown and self.console.is_terminal), speed_estimate_period=600.0,
        )  # fmt: skip
        if self.main:
            if self.folder.is_file():
                raise InvalidValueError(f"folder={str(self.folder)!r} is a file: give the name of a folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.rows = [row for row in read_records(self.folder) if row["step"] <= loop.step]

    def __enter__(self) -> Journal:
        if self.main:
            settings = self.loop.settings.decisive()
            self.trackers = Trackers(self.names, self.folder, title=self.title, settings=settings, step=self.loop.step)
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.loop.settings.num_steps, completed=self.loop.step, note="")
        return self

    def write(self, record: Record, figures: Mapping[str, float] | None = None) -> None:
        """A record, with what the caller measured behind it; all is told by name.

        Raises:
            InvalidValueError: a figure, or what the loss told, has the name of another column.
        """
        measured = {name: float(value) for name, value in (figures or {}).items()}
        twice = sorted((set(COLUMNS) & record.terms.keys()) | (measured.keys() & {*COLUMNS, *record.terms}))
        if twice:
            raise InvalidValueError(f"a record has {twice[0]!r} already: tell it by another name")
        if not self.main:
            return
        row = {**{name: getattr(record, name) for name in COLUMNS}, **record.terms, **measured}
        self.rows.append(row)
        columns, self.columns = self.columns, []  # all is written again behind an append that failed
        self.columns = write_records(self.folder, self.rows, columns)
        if self.trackers is not None:
            self.trackers.figures({name: value for name, value in row.items() if name != "step"}, record.step)
        self._show(record, measured)

    def picture(self, name: str, path: Path) -> None:
        """Tells the trackers a picture that lies in a file."""
        if self.trackers is not None:
            self.trackers.picture(name, Path(path), self.loop.step)

    def _show(self, record: Record, measured: Mapping[str, float]) -> None:
        """Moves the bar; where there is none, prints a line now and then."""
        loss, pace, waiting = f"loss {record.loss:.4g}", f"{record.images_per_second:,.0f}", record.waiting
        self.bar.update(self.task, completed=record.step, note=f"{loss}, {pace}/s, waiting {waiting:.0%}")
        steps = self.loop.settings.num_steps
        due = record.step == steps or time.monotonic() - self.told >= PAUSE
        if due and self.shown and not self.console.is_terminal:
            self.told = time.monotonic()
            figures = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in measured.items())
            self._say(f"step {record.step:,} of {steps:,}, {loss}, {pace} images/s, waiting {waiting:.1%}{figures}")

    def _say(self, words: str) -> None:
        self.console.print(f"{self.title}: {words}", highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.shown and isinstance(error, KeyboardInterrupt):
            self._say(f"stopped behind step {self.loop.step:,}; the same again goes on from step {self.loop.saved:,}")
        try:
            if self.main and self.rows:
                draw_curves(self.folder / "curves.png", self.rows, self.title)
                self.picture("curves", self.folder / "curves.png")
        finally:
            if self.trackers is not None:
                self.trackers.close()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's records.csv, numbers by name; what a row does not tell is left out.

    Raises:
        InvalidValueError: a file that was not written here.
    """
    path = folder / "records.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            lines = [line for line in file if line.endswith("\n")]  # a run that was killed may leave half a line
        rows = [{name: number(name, text) for name, text in row.items() if text} for row in csv.DictReader(lines)]
        return sorted(rows, key=lambda row: row["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValueError(f"{path} holds no records ({error}): move it away, or use another folder") from None


def number(name: str, text: str) -> float:
    return int(text) if name in WHOLE else float(text)


def write_records(folder: Path, rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """Appends the last row to a file that has these columns; writes all if it has others. Returns the columns."""
    path = folder / "records.csv"
    if columns and not rows[-1].keys() - columns and path.is_file():
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(rows[-1])
        return columns
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(place: Path) -> None:
        with place.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    whole_file(path, write)
    return names


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Everything but the pace against samples seen, each in a plot of its own; what was tested beside its like."""
    names = [
        name for name in dict.fromkeys(name for row in rows for name in row) if name == "loss" or name not in COLUMNS
    ]
    plots: dict[str, list[str]] = {}
    for name in names:
        plots.setdefault(name.removeprefix("test_"), []).append(name)
    down = max(1, math.isqrt(len(plots)))
    across = math.ceil(len(plots) / down)
    figure = Figure(figsize=(4.4 * across, 0.4 + 3.1 * down), layout="constrained")
    every = figure.subplots(down, across, squeeze=False).ravel()
    units = ((2e6, 1e6, ", millions"), (2e3, 1e3, ", thousands"), (0.0, 1.0, ""))
    unit, word = next((unit, word) for least, unit, word in units if rows[-1]["samples"] >= least)
    for axes, (label, lines) in zip(every, plots.items(), strict=False):
        for name in lines:
            points = [(row["samples"] / unit, row[name]) for row in rows if name in row]
            marker = "." if len(points) < 60 else None
            axes.plot(*zip(*points, strict=True), marker=marker, linewidth=1.2, label=name.replace("_", " "))
        axes.set(xlabel=f"samples seen{word}", ylabel=label.replace("_", " "))
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(frameon=False)
    for axes in every[len(plots) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=110))
