"""A page of a measured dimension: level by level, and the box counts that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.trainability.picture import check_png
from fractal_streams.trainability.store import put

if TYPE_CHECKING:
    from fractal_streams.trainability.dimension import Dimension

INKS = ("#3288bd", "#d53e4f", "#5e4fa2", "#66a61e")
"""A colour for each estimator."""
NAMES = {"published": "published estimator", "least squares": "least squares", "uncertainty": "uncertainty exponent"}
PUBLISHED_INK = "#333333"


def save(path: str | Path, measured: Sequence[Dimension], *, published: float | None, title: str | None) -> None:
    """Write a PNG with two panels: the dimension of each level, and log-log box counts or shares of flipped labels.

    Lines across the first panel are the values of all frames together, with a band of their 95 % intervals; its error
    bars are the fits' standard errors.

    Args:
        path: a .png; its folder is made, and the file appears whole or not at all.
        measured: one or more dimensions, of the same frames.
        published: a value from the literature to draw beside them.
        title: above both.

    Raises:
        InvalidValueError: no dimension, or another ending.
        MissingExtraError: matplotlib is not installed.
    """
    check_png(path)
    if not measured:
        raise InvalidValueError("a plot needs at least one dimension")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise missing_extra("matplotlib", "recipes") from None
    figure = Figure(figsize=(10.5, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for dimension, ink in zip(measured, INKS, strict=False):
        draw_levels(left, dimension, ink)
    draw_counts(right, measured[0])
    if published is not None:
        left.axhline(published, color=PUBLISHED_INK, lw=1.2, ls="--", label=f"paper: {published:.2f}")
    left.set(xlabel="level of the zoom", ylabel="dimension")
    left.set_xlim(-0.7, max(len(each.frames) for each in measured) - 0.3)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.legend(frameon=False, fontsize=8, loc="best")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    put(Path(path), lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def draw_levels(axes: Any, dimension: Dimension, ink: str) -> None:
    """A point for each level that has a dimension, and the value of all together."""
    there = [(level, frame) for level, frame in enumerate(dimension.frames) if frame.value is not None]
    errors = [frame.standard_error or 0.0 for _, frame in there]
    axes.errorbar(
        [level for level, _ in there], [frame.value for _, frame in there], yerr=errors if any(errors) else None,
        fmt="o", ms=3, lw=0.8, color=ink, alpha=0.75,
    )  # fmt: skip
    interval = f"{dimension.low:.2f} to {dimension.high:.2f}"
    name = NAMES.get(dimension.method, dimension.method)
    axes.axhline(dimension.value, color=ink, lw=1.4, label=f"{name}: {dimension.value:.3f} ({interval})")
    axes.axhspan(dimension.low, dimension.high, color=ink, alpha=0.15, lw=0)


def draw_counts(axes: Any, dimension: Dimension) -> None:
    """The counts of every frame over size, light to dark with the level, and the dimension as a slope."""
    from matplotlib import colormaps

    shades = colormaps["viridis"]
    last = max(1, len(dimension.frames) - 1)
    steepest: tuple[float, float] | None = None
    for level, frame in enumerate(dimension.frames):
        kept = [(size, count) for size, count in zip(frame.sizes, frame.counts, strict=True) if count > 0]
        if len(kept) < 2:
            continue
        axes.plot(*zip(*kept, strict=True), "-", marker=".", ms=4, lw=0.7, color=shades(0.9 * level / last), alpha=0.8)
        if steepest is None or kept[0][1] > steepest[1]:
            steepest = kept[0]
            sizes = [size for size, _ in kept]
    flips = dimension.method == "uncertainty"
    power = 2.0 - dimension.value if flips else -dimension.value
    if steepest is not None:
        guide = [1.6 * steepest[1] * (size / steepest[0]) ** power for size in sizes]
        axes.plot(sizes, guide, color=PUBLISHED_INK, lw=1.2, ls="--", label=f"slope {power:.3f}")
        axes.legend(frameon=False, fontsize=8)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("distance" if flips else "side of a box, pixels")
    axes.set_ylabel("share of labels that flip" if flips else "boxes that hold edges")
    if len(dimension.frames) > 1:
        axes.set_title(f"levels 0 (dark) to {last} (light)", fontsize=9)
