"""The benchmarks' figures as pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    raise missing_extra("matplotlib", "recipes") from None

OURS, PEER, LINE = "#d1495b", "#8d99ae", "#2b2d42"
DPI = 150
ENDINGS = (".png", ".svg", ".pdf")


def check_ending(path: Path) -> None:
    """An `InvalidValueError` for a file that is none of `ENDINGS`, or in no folder."""
    if path.suffix.lower() not in ENDINGS:
        raise InvalidValueError(f"a plot is drawn as one of {', '.join(ENDINGS)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise InvalidValueError(f"there is no folder {str(path.parent)!r} for the plot {path.name!r}")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the file's ending says; nothing half-written remains.

    Raises:
        InvalidValueError: another ending, or no such folder.
    """
    check_ending(path)
    written = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(written, dpi=DPI, format=path.suffix.lower().removeprefix("."), bbox_inches="tight")
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def bare(axes: Any) -> None:
    """No frame but the two axes, and lines behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches; drawn without a screen."""
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"})
    return Figure((width, height), layout="constrained")


def bars(
    names: Sequence[str], rates: Sequence[float], notes: Sequence[str], ours: Sequence[bool], *, title: str, label: str
) -> Figure:
    """Horizontal bars on a logarithmic axis, in the order given; each has a note behind it."""
    made = figure(8.0, 0.9 + 0.27 * len(names))
    axes = made.subplots()
    places = range(len(names))
    axes.barh(places, rates, height=0.72, color=[OURS if own else PEER for own in ours])
    axes.set_xscale("log")
    least, most = min(rates), max(rates)
    axes.set_xlim(10 ** math.floor(math.log10(least)) / 2, most * max(8.0, (most / least) ** 0.4))
    for place, rate, note in zip(places, rates, notes, strict=True):
        axes.annotate(note, (rate, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_title(title, loc="left")
    bare(axes)
    return made


def comparison_chart(found: Any) -> Figure:
    """The rates of a `Comparison`, fastest first, with how many times as fast ours is."""
    rows = sorted((row for row in found.rows if row.rate), key=lambda row: -row.rate)
    notes = [
        f"{row.rate:,.0f}{' a core' if row.clock == 'core' else ''}{'' if row.ours else f'   ours is {row.times}'}"
        for row in rows
    ]
    return bars(
        [row.titled for row in rows], [row.rate for row in rows], notes, [row.ours for row in rows],
        title=f"{found.size}x{found.size}, normalised {found.dtype} batches of {found.batch}, "
        f"{found.machine.get('gpu', found.machine['cpu'])}",
        label="images per second",
    )  # fmt: skip
