"""How the losses of an ALAE went: raw, against samples seen, on axes that say where they are clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fractal_streams.recipes.journal import COLUMNS

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Float64 = npt.NDArray[np.float64]
EVEN = 2.0 * math.log(2.0)
"""The discriminator's loss where it can't tell real from fake."""
ROUGH = 240
"""Records beyond which a running median is drawn over them."""
UNITS = ((2e6, 1e6, ", millions"), (2e3, 1e3, ", thousands"), (0.0, 1.0, ""))
"""Of an axis of samples: from how many on, what of, how said."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot: its title, its values' unit, and which figures are its own: by name, or by how a name begins or ends.

    scale: "linear", or "log", which is "symlog" where a value is 0 or below.
    level: a line to compare with, and what it is.
    """

    title: str
    unit: str
    names: tuple[str, ...] = ()
    begins: str | None = None
    ends: str | None = None
    scale: str = "linear"
    level: tuple[float, str] | None = None

    def takes(self, name: str) -> bool:
        by_end = self.ends is not None and name.endswith(self.ends)
        return name in self.names or by_end or (self.begins is not None and name.startswith(self.begins))


PANELS = (
    Panel(title="adversarial losses", unit="raw value, nats", names=("discriminator", "generator", "r1"),
          level=(EVEN, "2 ln 2")),
    Panel(title="reciprocity", unit="raw value", names=("reciprocity", "relative_reciprocity"), scale="log"),
    Panel(title="scores of D", unit="logit", ends="_score"),
    Panel(title="deviations", unit="standard deviation", ends="_deviation"),
    Panel(title="norms of gradients", unit="Euclidean norm", begins="gradient_", scale="log"),
    Panel(title="slots", unit="raw value", scale="log"),
)  # fmt: skip
"""The last takes what no other does."""
CROWD = 5
"""Lines beyond which the legend stands beside a plot."""


def panels_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Panel, list[str]]]:
    """Which figures stand in which plot; what a record has of every run, and what was tested, in none.

    A slot is told in every row; a figure that only some have was measured now and then, and is left out.

    Example:
        >>> row = {"samples": 8, "generator": 0.7, "real_score": 0.1, "infonce": 4.0}
        >>> [(panel.title, names) for panel, names in panels_of([row, {**row, "psnr": 17.0}])]
        [('adversarial losses', ['generator']), ('scores of D', ['real_score']), ('slots', ['infonce'])]
    """
    found: dict[str, list[str]] = {panel.title: [] for panel in PANELS}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in COLUMNS or name.startswith("test_"):
            continue
        panel = next((panel for panel in PANELS if panel.takes(name)), PANELS[-1])
        if panel is not PANELS[-1] or all(name in row for row in rows):
            found[panel.title].append(name)
    return [(panel, found[panel.title]) for panel in PANELS if found[panel.title]]


def line_of(rows: Sequence[Mapping[str, Any]], name: str, unit: float) -> Float64:
    """(n, 2): samples seen and a figure, from the first record on that has a finite one."""
    points = [(float(row["samples"]) / unit, float(row[name])) for row in rows if name in row]
    first = next((place for place, (_, value) in enumerate(points) if math.isfinite(value)), len(points))
    return np.array(points[first:], dtype=np.float64).reshape(-1, 2)


def robust_limits(lines: Sequence[Float64], scale: str, level: float | None = None) -> tuple[float, float]:
    """Where an axis begins and ends: with some room, from the least 1st to the largest 99th percentile of its lines.

    Args:
        lines: (n,) finite each, one value at least. scale: "linear", "log" or "symlog". level: shown, too.

    Example:
        >>> robust_limits([np.array([*[1.0] * 50, *[2.0] * 50, 900.0])], "linear")
        (0.92, 2.08)
    """
    ends = [np.quantile(line, (0.01, 0.99), method="nearest") for line in lines] + [np.array(level)] * (
        level is not None
    )
    low, high = float(min(each.min() for each in ends)), float(max(each.max() for each in ends))
    if scale == "log":
        room = max((high / low) ** 0.08, 1.05)
        return low / room, high * room
    room = 0.08 * (high - low) or 0.05 * max(abs(high), 1e-12)
    return low - room, high + room


def running_median(values: Float64, width: int) -> Float64:
    """(N,): of the `width` values around each, fewer at the ends."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), constant_values=np.nan)
    found: Float64 = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    return found


def draw_panel(
    axes: Any, panel: Panel, names: Sequence[str], rows: Sequence[Mapping[str, Any]], unit: float, word: str
) -> None:
    """One plot; a figure that no record has is left out."""
    lines = {name: line_of(rows, name, unit) for name in names}
    values = np.concatenate([line[:, 1] for line in lines.values()])
    finite = values[np.isfinite(values)]
    scale = "symlog" if panel.scale == "log" and (finite <= 0.0).any() else panel.scale
    for place, (name, line) in enumerate(lines.items()):
        colour, dashes, many = f"C{place % 10}", ("-", "--", ":")[place // 10 % 3], len(line) > ROUGH
        axes.plot(*line.T, dashes, color=colour, alpha=0.25 if many else 1.0, linewidth=0.7 if many else 1.2,
                  marker="." if len(line) < 60 else None, label=None if many else name.replace("_", " "))  # fmt: skip
        if many:
            axes.plot(line[:, 0], running_median(line[:, 1], len(line) // 60), dashes, color=colour, linewidth=1.5,
                      label=name.replace("_", " "))  # fmt: skip
    if panel.level is not None:
        axes.axhline(panel.level[0], color="0.35", linestyle=(0, (6, 3)), linewidth=0.9, label=panel.level[1])
    notes = [{"log": "log scale", "symlog": "log scale, linear near 0"}.get(scale, "")]
    if len(finite):
        inner = [line[np.isfinite(line[:, 1]), 1] for line in lines.values() if len(line)]
        low, high = robust_limits(inner, scale, panel.level and panel.level[0])
        if scale == "symlog":
            axes.set_yscale("symlog", linthresh=max(float(np.quantile(np.abs(finite), 0.1)), 1e-6))
        elif scale == "log":
            axes.set_yscale("log")
            few = high < 300.0 * low
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low, high)
        outside = int(((values < low) | (values > high)).sum())
        notes.append(f"clipped: {outside} of {len(values):,} values outside" if outside else "")
    if len(finite) < len(values):
        notes.append(f"{len(values) - len(finite)} not finite")
    told = ", ".join(note for note in notes if note)
    axes.set(xlabel=f"samples seen{word}", ylabel=panel.unit)
    axes.set_title(panel.title + (f" ({told})" if told else ""), fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(lines) > CROWD else {}
    axes.legend(edgecolor="none", framealpha=0.7, fontsize=8, **beside)


def loss_history(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Every loss before its weight, against samples seen: adversarial, reciprocity, scores, deviations, slots.

    Axes end at robust limits, and say how many values lie outside; a run of many records is drawn faintly, with its
    running median over it.

    Args:
        rows: of records.csv, see `Journal`: "samples", and figures by name.

    Raises:
        InvalidValueError: no row, or no loss in any.
    """
    found = panels_of(rows)
    if not found:
        raise InvalidValueError(f"{len(rows)} records hold no loss to draw: give rows of 'samples' and figures by name")
    across, slots = min(2, len(found)), found[-1][0] is PANELS[-1]
    small = found[: len(found) - slots]
    down = -(-len(small) // across)
    figure = Figure(figsize=(5.7 * across + 1.9 * (across == 1), 3.3 * (down + slots) + 0.4), layout="constrained")
    grid = figure.add_gridspec(down + slots, across)
    most = max(float(row["samples"]) for row in rows)
    unit, word = next((unit, word) for least, unit, word in UNITS if most >= least)
    for place, (panel, names) in enumerate(small):
        last = across > 1 and place == len(small) - 1 and place % across == 0
        at = grid[place // across, :] if last else grid[place // across, place % across]
        draw_panel(figure.add_subplot(at), panel, names, rows, unit, word)
    if slots:
        draw_panel(figure.add_subplot(grid[down, :]), *found[-1], rows, unit, word)
    if title:
        figure.suptitle(title)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=110))
