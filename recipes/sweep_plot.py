"""What a sweep found: the best learning rate of each width, whether it transfers, and the plot of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run of a sweep.

    outcome: "trained", "diverged" (the loss was no number), "failed", or "not trained". The figures are None unless it
    was trained: test_loss and train_loss in nats, test_accuracy a share, seconds of training, bytes of memory.
    """

    width: int
    rate: float
    seed: int
    outcome: str
    test_loss: float | None = None
    test_accuracy: float | None = None
    train_loss: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    memory: int | None = None
    error: str = ""


def mean_losses(rows: Sequence[Row]) -> dict[int, dict[float, float]]:
    """Width to rate to test loss, mean over seeds, in nats; infinite where a run diverged or failed.

    Runs that were not trained yet are left out.
    """
    found: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        if row.outcome != "not trained":
            loss = math.inf if row.test_loss is None else row.test_loss
            found.setdefault(row.width, {}).setdefault(row.rate, []).append(loss)
    return {width: {rate: fmean(found[width][rate]) for rate in sorted(found[width])} for width in sorted(found)}


def best_rates(rows: Sequence[Row]) -> dict[int, float]:
    """Width to the rate with the least mean loss; a width without a finite one is left out.

    Example:
        >>> best_rates([Row(width=8, rate=rate, seed=0, outcome="trained", test_loss=2 - rate) for rate in (0.1, 0.2)])
        {8: 0.2}
    """
    best = {width: min(losses, key=lambda rate: losses[rate]) for width, losses in mean_losses(rows).items()}
    return {width: rate for width, rate in best.items() if math.isfinite(mean_losses(rows)[width][rate])}


def transfers(rows: Sequence[Row]) -> bool | None:
    """Whether the best rates of all widths are the same or neighbours on the grid; None of fewer than two widths."""
    grid, best = sorted({row.rate for row in rows}), best_rates(rows)
    if len(best) < 2:
        return None
    found = [grid.index(rate) for rate in best.values()]
    return max(found) - min(found) <= 1


def sentence(rows: Sequence[Row]) -> str:
    """What the sweep says of transfer, in words."""
    grid, best, moved = sorted({row.rate for row in rows}), best_rates(rows), transfers(rows)
    if moved is None:
        return "Fewer than two widths were trained: nothing to say about transfer."
    told = ", ".join(f"{rate:g} at width {width}" for width, rate in best.items())
    if len(set(best.values())) == 1:
        verdict = f"The best rate is {next(iter(best.values())):g} at every width: it transfers."
    elif moved:
        verdict = f"The best rates are neighbours on the grid ({told}): the rate transfers."
    else:
        verdict = f"The best rate moves with the width ({told}): it does not transfer."
    edge = [str(width) for width, rate in best.items() if rate in (grid[0], grid[-1])]
    return f"{verdict} It lies at the edge of the grid at width {', '.join(edge)}: widen it." if edge else verdict


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write a row for each run."""

    def write(written: Path) -> None:
        with written.open("w", newline="") as file:
            writer = csv.DictWriter(file, [item.name for item in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)

    whole_file(path, write)


def draw_sweep(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write the plot: test loss against rate, a line for each width, a dot for each seed, a star at the best."""
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    axes = figure.subplots()
    means, best = mean_losses(rows), best_rates(rows)
    shades = matplotlib.colormaps["viridis"]
    for place, (width, losses) in enumerate(means.items()):
        colour = shades(0.85 * place / max(1, len(means) - 1))
        draw_width(axes, [row for row in rows if row.width == width], losses, colour)
        if width in best:
            rate = best[width]
            axes.plot(rate, losses[rate], "*", color=colour, markersize=16, markeredgecolor="white", zorder=4)
            axes.axvline(rate, color=colour, linestyle=":", linewidth=1, alpha=0.7)
    axes.set(xscale="log", xlabel="learning rate (lr_base)", ylabel="test loss, nats", title=title)
    lost = {row.rate for row in rows if row.outcome in ("diverged", "failed")}
    for rate in lost:
        axes.plot(rate, 0.98, "x", color="black", transform=axes.get_xaxis_transform(), zorder=5)
    if lost:
        axes.plot([], [], "x", color="black", linestyle="none", label="diverged or failed")
    axes.plot([], [], "*", color="grey", markersize=12, linestyle="none", label="best of a width")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="mean over seeds")
    figure.supxlabel(sentence(rows), fontsize=9, wrap=True)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def draw_width(axes: object, rows: Sequence[Row], losses: Mapping[float, float], colour: object) -> None:
    trained = [(row.rate, row.test_loss) for row in rows if row.test_loss is not None]
    finite = [(rate, loss) for rate, loss in losses.items() if math.isfinite(loss)]
    axes.plot(*zip(*trained, strict=True), "o", color=colour, alpha=0.45, markersize=4) if trained else None  # type: ignore[attr-defined]
    axes.plot(*zip(*finite, strict=True), color=colour, label=f"width {rows[0].width}") if finite else None  # type: ignore[attr-defined]
