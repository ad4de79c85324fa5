"""What a sweep found: the best learning rate of each width, whether it transfers, and the plot of it."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

DEVIATIONS = 2.0
"""Of the difference between two rates' means over seeds, within which neither is the better one."""
COLUMNS = 110
"""Letters of a line below the plot."""
LABELLED = 12
"""Rates up to which each has its label."""
MISSING = ("failed", "not trained")
"""Outcomes that say nothing of a rate."""


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
    """Width to rate to test loss, mean over seeds, in nats; infinite where a run diverged.

    Runs that failed or were not trained yet say nothing of their rate: they are left out.
    """
    found = losses_of(rows)
    return {width: {rate: fmean(found[width][rate]) for rate in sorted(found[width])} for width in sorted(found)}


def losses_of(rows: Sequence[Row]) -> dict[int, dict[float, list[float]]]:
    """Width to rate to the test loss of each seed."""
    found: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        if row.outcome not in MISSING:
            loss = math.inf if row.test_loss is None else row.test_loss
            found.setdefault(row.width, {}).setdefault(row.rate, []).append(loss)
    return found


def best_rates(rows: Sequence[Row]) -> dict[int, float]:
    """Width to the rate with the least mean loss; a width without a finite one is left out.

    Example:
        >>> best_rates([Row(width=8, rate=rate, seed=0, outcome="trained", test_loss=2 - rate) for rate in (0.1, 0.2)])
        {8: 0.2}
    """
    best = {width: min(losses, key=lambda rate: losses[rate]) for width, losses in mean_losses(rows).items()}
    return {width: rate for width, rate in best.items() if math.isfinite(mean_losses(rows)[width][rate])}


def as_good(rows: Sequence[Row]) -> dict[int, list[float]]:
    """Width to the rates that seeds don't tell from its best.

    The means differ by at most `DEVIATIONS` standard errors of the difference. Of a single seed: the best alone.

    Example:
        >>> losses = {0.1: (1.0, 1.2), 0.2: (0.9, 1.1), 0.4: (1.8, 2.0)}
        >>> as_good([
        ...     Row(width=8, rate=rate, seed=seed, outcome="trained", test_loss=loss)
        ...     for rate, each in losses.items() for seed, loss in enumerate(each)
        ... ])
        {8: [0.1, 0.2]}
    """
    found = {}
    for width, best in best_rates(rows).items():
        losses = losses_of(rows)[width]
        found[width] = [rate for rate in sorted(losses) if rate == best or not worse(losses[rate], losses[best])]
    return found


def shared_rates(rows: Sequence[Row]) -> list[float]:
    """Rates that are as good as the best at every width."""
    first, *others = as_good(rows).values()
    return [rate for rate in first if all(rate in each for each in others)]


def worse(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the mean of some losses is higher than that of others by more than seeds make of it."""
    if min(len(losses), len(others)) < 2 or not all(map(math.isfinite, losses)):
        return True
    noise = math.hypot(*(stdev(each) / math.sqrt(len(each)) for each in (losses, others)))
    return fmean(losses) - fmean(others) > DEVIATIONS * noise


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
        apart = not shared_rates(rows)
        verdict = f"The best rate moves with the width ({told}){': it does not transfer' if apart else ''}."
    said = [verdict, *within_noise(rows)]
    edge = [str(width) for width, rate in best.items() if rate in (grid[0], grid[-1])]
    if edge:
        said.append(f"It lies at the edge of the grid at width {', '.join(edge)}: widen it.")
    missing = sum(row.outcome in MISSING for row in rows)
    if missing:
        said.append(f"{missing} of {len(rows)} runs are missing: sweep again.")
    return " ".join(said)


def within_noise(rows: Sequence[Row]) -> list[str]:
    """What the rate that is best at the least width costs at the largest, and whether seeds tell the rates apart."""
    best, common, means = best_rates(rows), shared_rates(rows), mean_losses(rows)
    first, last = min(best), max(best)
    seeds = len({row.seed for row in rows})
    if len(set(best.values())) == 1:
        return []
    said = []
    if best[first] != best[last] and math.isfinite(means[last].get(best[first], math.inf)):
        cost = means[last][best[first]] - means[last][best[last]]
        said.append(f"That of width {first} costs width {last} {cost:.2g} nats.")
    if seeds < 2:
        said.append("One seed does not tell how sure that is.")
    elif common:
        rates = " and ".join(f"{rate:g}" for rate in common)
        said.append(f"All this is within the spread of {seeds} seeds: {rates} may be best at every width.")
    return said


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
    rates = sorted({row.rate for row in rows})
    if len(rates) <= LABELLED:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.set_minor_locator(NullLocator())
    lost = {row.rate for row in rows if row.outcome in ("diverged", "failed")}
    for rate in lost:
        axes.plot(rate, 0.98, "x", color="black", transform=axes.get_xaxis_transform(), zorder=5)
    if lost:
        axes.plot([], [], "x", color="black", linestyle="none", label="diverged or failed")
    axes.plot([], [], "*", color="grey", markersize=12, linestyle="none", label="best of a width")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="mean over seeds")
    figure.supxlabel(textwrap.fill(sentence(rows), COLUMNS), fontsize=9)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def draw_width(axes: object, rows: Sequence[Row], losses: Mapping[float, float], colour: object) -> None:
    trained = [(row.rate, row.test_loss) for row in rows if row.test_loss is not None]
    finite = [(rate, loss) for rate, loss in losses.items() if math.isfinite(loss)]
    axes.plot(*zip(*trained, strict=True), "o", color=colour, alpha=0.45, markersize=4) if trained else None  # type: ignore[attr-defined]
    axes.plot(*zip(*finite, strict=True), color=colour, label=f"width {rows[0].width}") if finite else None  # type: ignore[attr-defined]
