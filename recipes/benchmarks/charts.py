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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
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
    axes.set_xlim(10 ** math.floor(math.log10(least)) / 2, most * max(12.0, (most / least) ** 0.4))
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


def scaling_chart(made: dict[str, Any], labels: dict[str, str]) -> Figure:
    """Panels of rates against what grows, both logarithmic, with the lines that they should lie on.

    Args:
        made: by name, panels of `scaling.py`. labels: by name, what grows, with its unit.
    """
    machines = list(dict.fromkeys(panel.machine for panel in made.values()))
    columns = min(3, len(made))
    rows = -(-len(made) // columns)
    drawn = figure(3.9 * columns, 3.2 * rows + 0.3)
    places = drawn.subplots(rows, columns, squeeze=False).ravel()
    for (name, panel), axes in zip(made.items(), places, strict=False):
        scaling_panel(axes, panel)
        axes.set_xlabel(labels[name])
        if len(machines) > 1:
            axes.set_title(panel.machine, loc="left", fontsize=8, weight="normal", color="0.35")
    for axes in places[len(made) :]:
        axes.set_axis_off()
    title = "images per second" + (f", {machines[0]}" if len(machines) == 1 else "")
    drawn.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    return drawn


def scaling_panel(axes: Any, panel: Any) -> None:
    """One panel: filled points of the device's own time, hollow ones of the wall's where there are any."""
    x, rates = [point.x for point in panel.points], [point.rate for point in panel.points]
    for (name, line), dashes in zip(panel.lines.items(), ("--", ":"), strict=False):
        axes.plot(x, line, dashes, color=LINE, linewidth=1.1, label=name)
    wall = [(point.x, point.wall) for point in panel.points if point.wall]
    if wall:
        axes.plot(*zip(*wall, strict=True), "o", color=OURS, markerfacecolor="white", markersize=6, label="wall time")
    axes.plot(x, rates, "o", color=OURS, markersize=4, label="time of the GPU" if wall else "measured")
    axes.set(xscale="log", yscale="log")
    shown = [*rates, *(rate for _, rate in wall)]
    middle, reach = math.sqrt(min(shown) * max(shown)), max(2.0 * math.sqrt(max(shown) / min(shown)), 4.0)
    axes.set_ylim(middle / reach, middle * reach)
    axes.set_xticks(x, [compact(value) for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if reach > 10 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: compact(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92", linewidth=0.7)
    axes.legend(frameon=False, fontsize=7.5)
    bare(axes)


def compact(value: float) -> str:
    """A number in a few letters.

    Example:
        >>> [compact(value) for value in (0.5, 16, 1024, 1500, 262144, 2e7)]
        ['0.5', '16', '1k', '1.5k', '262k', '20M']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if value >= size:
            part = value / size
            return (f"{part:.0f}" if part >= 10 else f"{part:.2g}") + letter
    return f"{value:.2g}"
