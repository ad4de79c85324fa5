"""What a run tells while it trains and leaves behind: a progress bar, records.csv, curves.png, and other trackers."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    from fractal_streams.recipes.loop import Loop, Record
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

COLUMNS = ("step", "samples", "loss", "rate", "images_per_second", "waiting", "memory", "seconds")
ACROSS = 4
"""Plots in a row of the curves."""


class Journal:
    """A run's folder: records.csv, a row for each record; curves.png at the end.

    Args:
        folder: made if it is not there; of a resumed run, rows behind its step are dropped.
        loop: whose records are written. title: of the bar and the curves.
        trackers: beside the file: "tensorboard", "wandb", "trackio".
        quiet: no progress bar.

    Only the main process writes and shows anything.

    Example:
        with Journal(folder, loop, title="ViT") as journal:
            for record in loop:
                journal.write(record, {"accuracy": test(loop)} if settings.evaluates(record.step) else {})
                if settings.saves(record.step):
                    loop.save(folder / "checkpoint")
    """

    def __init__(
        self, folder: Path, loop: Loop, *, title: str, trackers: tuple[str, ...] = (), quiet: bool = False
    ) -> None:
        self.folder, self.loop, self.title = Path(folder), loop, title
        self.main = loop.accelerator.is_main_process
        self.rows: list[dict[str, Any]] = []
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=quiet or not self.main,
        )  # fmt: skip
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.rows = [row for row in read_records(self.folder) if row["step"] <= loop.step]

    def __enter__(self) -> Journal:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.loop.settings.num_steps, completed=self.loop.step, note="")
        return self

    def write(self, record: Record, figures: Mapping[str, float] | None = None) -> None:
        """A record, with what the caller measured behind it; all is told by name."""
        own = {name: getattr(record, name) for name in COLUMNS}
        row = {**own, **record.terms, **(figures or {})}
        if not self.main:
            return
        self.rows.append(row)
        write_records(self.folder, self.rows)
        note = f"loss {record.loss:.4g}, {record.images_per_second:,.0f} images/s, waiting {record.waiting:.1%}"
        self.bar.update(self.task, completed=record.step, note=note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.main and self.rows:
            draw_curves(self.folder / "curves.png", self.rows, self.title)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's records.csv, numbers by name; what a row does not tell is left out."""
    path = folder / "records.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {
                name: (int if name in ("step", "samples", "memory") else float)(text)
                for name, text in row.items()
                if text
            }
            for row in csv.DictReader(file)
        ]


def write_records(folder: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(place: Path) -> None:
        with place.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    whole_file(folder / "records.csv", write)


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Everything but the pace against samples seen, each in a plot of its own."""
    names = [
        name for name in dict.fromkeys(name for row in rows for name in row) if name not in COLUMNS or name == "loss"
    ]
    columns = min(ACROSS, len(names))
    rows_of_plots = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows_of_plots), layout="constrained")
    plots = figure.subplots(rows_of_plots, columns, squeeze=False).ravel()
    for axes in plots[len(names) :]:
        axes.remove()
    for axes, name in zip(plots, names, strict=False):
        points = [(row["samples"], row[name]) for row in rows if name in row]
        axes.plot([x / 1e3 for x, _ in points], [y for _, y in points], marker="." if len(points) < 60 else None)
        axes.set(xlabel="samples seen, thousands", ylabel=name)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=110))
