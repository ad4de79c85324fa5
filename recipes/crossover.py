"""Curves of finite sets beside that of the endless stream: where each leaves it, the table, the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Floats = NDArray[np.float64]
ENDLESS = "#c1121f"
DEVIATIONS = 2.0
"""Of the difference between two lines' means over seeds, that a gap has to exceed."""
LASTING = 2.0
"""Times as many samples, for which a line has to stay above a minimum to have turned there."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line: means over seeds at each evaluation.

    size: samples of the set; None is endless. samples: (P,) seen. test_loss, test_accuracy: (P,), on held-out samples.
    seen_loss: (P,), on the first samples of the set, by the same weights. spread: (P,) standard error of the mean
    test loss, 0 of one seed. each: (S, P) test losses of each seed.
    """

    size: int | None
    samples: Floats
    test_loss: Floats
    test_accuracy: Floats
    seen_loss: Floats
    spread: Floats
    each: Floats

    @classmethod
    def of(cls, size: int | None, runs: Sequence[Sequence[Mapping[str, Any]]]) -> Curve:
        """From the rows of a run's records, for each seed, at the samples that all were tested at."""
        told = [{row["samples"]: row for row in rows if "test_loss" in row} for rows in runs]
        samples = sorted(set.intersection(*(set(rows) for rows in told)))
        figures = {
            name: np.array([[rows[at][name] for at in samples] for rows in told])
            for name in ("test_loss", "test_accuracy", "seen_loss")
        }
        each = figures["test_loss"]
        spread = each.std(0, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else np.zeros(len(samples))
        means = {name: value.mean(0) for name, value in figures.items()}
        return cls(size=size, samples=np.array(samples, np.float64), spread=spread, each=each, **means)

    @property
    def name(self) -> str:
        return "endless" if self.size is None else f"N = {self.size:,}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line in figures.

    epochs: of the set, at the end. best_loss, best_at: the least test loss, nats, and the samples seen there.
    last_loss, last_accuracy: at the end, on held-out samples; seen_loss: on the first samples of the set.
    turns_at: samples seen at the first minimum behind which the test loss rises; None if it does not.
    leaves_at: samples seen where the line has left the endless one for good; None if it has not.
    """

    name: str
    size: int | None
    epochs: float | None
    best_loss: float
    best_at: float
    last_loss: float
    last_accuracy: float
    seen_loss: float
    turns_at: float | None
    leaves_at: float | None

    @property
    def leaves_after_epochs(self) -> float | None:
        return None if self.leaves_at is None or self.size is None else self.leaves_at / self.size


def leaving(finite: Curve, endless: Curve, margin: float) -> float | None:
    """Samples seen from which on, at every evaluation, the finite line's test loss is higher than the endless one's
    by more than the margin, as a share of it, and by more than `DEVIATIONS` of what seeds make of the difference.
    None where the set has not repeated: up to there the lines differ by chance alone.
    """
    shared, ours, others = np.intersect1d(finite.samples, endless.samples, return_indices=True)
    gap = finite.test_loss[ours] - endless.test_loss[others]
    noise = DEVIATIONS * np.hypot(finite.spread[ours], endless.spread[others])
    inside = np.flatnonzero((gap <= np.maximum(margin * endless.test_loss[others], noise)) | fresh(finite, shared))
    first = 0 if inside.size == 0 else int(inside[-1]) + 1
    return None if first == len(shared) else float(shared[first])


def fresh(curve: Curve, samples: Floats) -> NDArray[np.bool_]:
    """Where none of so many samples seen was seen twice."""
    return samples <= (math.inf if curve.size is None else curve.size)


def chance(curves: Sequence[Curve]) -> float | None:
    """The largest gap, as a share of the endless loss, between lines that have repeated nothing yet: what order alone
    makes of the test loss. None if no line was tested before it repeated.
    """
    (endless,) = (curve for curve in curves if curve.size is None)
    gaps: list[float] = []
    for curve in curves:
        shared, ours, others = np.intersect1d(curve.samples, endless.samples, return_indices=True)
        gap = np.abs(curve.test_loss[ours] / endless.test_loss[others] - 1.0)[fresh(curve, shared)]
        gaps += [] if curve is endless else gap.tolist()
    return max(gaps, default=None)


def turning(curve: Curve, margin: float) -> int | None:
    """Place of the first minimum behind which the test loss rises by more than the margin.

    It has to stay above to the end; or, once the set has repeated, until `LASTING` times as many samples were seen.
    """
    samples, loss = curve.samples, curve.test_loss
    for place in range(len(loss)):
        above = (1.0 + margin) * loss[place]
        lower = np.flatnonzero(loss[place + 1 :] < loss[place])
        if lower.size == 0:
            return place if loss[-1] > above else None
        end = place + 1 + int(lower[0])
        lasts = not fresh(curve, samples)[place] and samples[end] >= LASTING * samples[place]
        if lasts and loss[place:end].max() > above:
            return place
    return None


def table(curves: Sequence[Curve], margin: float) -> list[Row]:
    """A row for each line; the endless one is among them."""
    (endless,) = (curve for curve in curves if curve.size is None)
    rows = []
    for curve in curves:
        best, turn = int(curve.test_loss.argmin()), turning(curve, margin)
        rows.append(
            Row(
                name=curve.name, size=curve.size,
                epochs=None if curve.size is None else float(curve.samples[-1]) / curve.size,
                best_loss=float(curve.test_loss[best]), best_at=float(curve.samples[best]),
                last_loss=float(curve.test_loss[-1]), last_accuracy=float(curve.test_accuracy[-1]),
                seen_loss=float(curve.seen_loss[-1]),
                turns_at=None if turn is None else float(curve.samples[turn]),
                leaves_at=None if curve is endless else leaving(curve, endless, margin),
            )
        )  # fmt: skip
    return rows


def show_table(rows: Sequence[Row], margin: float, by_chance: float | None = None) -> None:
    noise = "" if by_chance is None else f". Lines that have repeated nothing differ by up to {by_chance:.1%}"
    shown = Table(
        title="test loss, nats: the best, where it first turns up, the last, that on seen samples, and where a line "
        f"leaves: stays more than {100 * margin:.3g}% above the endless one{noise}",
        box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    titles = ("samples", "epochs", "best", "turns", "last", "seen", "right", "leaves", "epochs")
    for title in titles:
        shown.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        leaves = ("never", "") if row.leaves_at is None else (f"{row.leaves_at:,.0f}", f"{row.leaves_after_epochs:.3g}")
        shown.add_row(
            "endless" if row.size is None else f"{row.size:,}", "" if row.epochs is None else epochs(row.epochs),
            f"{row.best_loss:.4f}", "never" if row.turns_at is None else f"{row.turns_at:,.0f}",
            f"{row.last_loss:.4f}", f"{row.seen_loss:.4f}",
            f"{row.last_accuracy:.1%}", *(("", "") if row.size is None else leaves),
        )  # fmt: skip
    Console().print(shown)


def epochs(count: float) -> str:
    """A number of epochs in three digits, or all that stand before its point.

    Example:
        >>> [epochs(count) for count in (6.144, 0.0512, 122.88, 6144.0)]
        ['6.14', '0.0512', '123', '6,144']
    """
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def ticked(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade of a logarithmic y."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_crossover(path: Path, curves: Sequence[Curve], rows: Sequence[Row], title: str) -> None:
    """Test loss and accuracy against samples seen: circles where a line turns up, bars where it leaves the endless."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(1, len(curves) - 1)))
    colours = {row.name: ENDLESS if row.size is None else shades[place] for place, row in enumerate(rows)}
    for curve, row in zip(curves, rows, strict=True):
        style = {"color": colours[curve.name], "linewidth": 2.4 if curve.size is None else 1.6}
        label = curve.name if row.epochs is None else f"{curve.name}, {epochs(row.epochs)} epochs"
        for one in curve.each if len(curve.each) > 1 else ():
            left.plot(curve.samples, one, color=style["color"], alpha=0.25, linewidth=0.8)
        left.plot(curve.samples, curve.test_loss, label=label, **style)
        right.plot(curve.samples, curve.test_accuracy, label=label, **style)
        if row.turns_at is not None:
            lowest = curve.test_loss[int(np.searchsorted(curve.samples, row.turns_at))]
            left.plot(row.turns_at, lowest, "o", color=style["color"], markersize=8, markeredgecolor="white")
        if row.leaves_at is not None:
            at = int(np.searchsorted(curve.samples, row.leaves_at))
            marked = {"marker": "|", "markersize": 16, "markeredgewidth": 2.0, "color": style["color"]}
            left.plot(row.leaves_at, curve.test_loss[at], **marked)
            right.plot(row.leaves_at, curve.test_accuracy[at], **marked)
    left.plot([], [], "o", color="0.4", label="turns up")
    left.plot([], [], "|", color="0.4", markersize=12, markeredgewidth=2.0, label="leaves the endless line")
    left.set(xscale="log", yscale="log", xlabel="samples seen", ylabel="test loss, nats")
    ticked(left)
    right.set(xscale="log", xlabel="samples seen", ylabel="test accuracy", ylim=(0.0, None))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.legend(fontsize=8.5, framealpha=0.9, loc="lower left")
    for axes in (left, right):
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=150))
