"""The picture of a study: a plot for each key figure, a row of points for each arm, yardsticks below them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fractal_streams.recipes.alae.study_verdicts import Comparison, Row, Spread, better, by_seed

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

ACROSS = 4
"""Plots in a row."""
COLUMNS = 140
"""Letters of a line above the plots."""
COLOURS = {
    "helps": "#1a7f37", "hurts": "#c62828", "raises": "#1f5fa8", "lowers": "#1f5fa8", "first": "black",
}  # fmt: skip
GREY = "#7a7a7a"
MARKS = {"helps": "P", "hurts": "X", "raises": "^", "lowers": "v"}
WORDS: Mapping[str, str] = {
    "psnr": "reconstruction PSNR, dB",
    "ssim": "reconstruction SSIM",
    "ratio": "matched / mismatched error",
    "reciprocity": "relative reciprocity",
    "class_linear_codes": "class by a linear probe, share",
    "r_squared_codes": "true parameters, mean R²",
    "frechet_own_over_floor": "Fréchet, own features / floor",
    "frechet_random_over_floor": "Fréchet, random features / floor",
    "frechet_own_reconstructions_over_floor": "Fréchet of reconstructions, own / floor",
    "swd_over_floor": "sliced Wasserstein / floor",
    "spectrum": "spectrum of fakes, dB off",
    "path_own": "path length, own features",
    "code_deviation": "deviation of codes F(z)",
    "speed_codes": "speed in w against true speed, r",
}
YARDSTICKS: Mapping[str, Mapping[str, str]] = {
    "psnr": {"psnr_mean_colour": "mean colour", "psnr_box": "8 x 8 box", "psnr_pca": "PCA"},
    "ssim": {"ssim_mean_colour": "mean colour", "ssim_box": "8 x 8 box", "ssim_pca": "PCA"},
    "class_linear_codes": {
        "class_chance": "chance", "class_linear_untrained": "untrained", "class_linear_pixels": "raw pixels",
    },
    "r_squared_codes": {"r_squared_untrained": "untrained", "r_squared_pixels": "raw pixels"},
    "spectrum": {"spectrum_floor": "floor"},
    "speed_codes": {
        "speed_untrained": "untrained", "speed_pixels": "raw pixels", "speed_random_convolutions": "random maps",
    },
}  # fmt: skip
"""Of a figure: those that stand below its arms."""


def draw_study(
    path: Path, rows: Sequence[Row], arms: Sequence[str], found: Sequence[Comparison], key: Sequence[str], title: str
) -> None:
    """Write the plots of the key figures that were found.

    Args:
        arms: from top to bottom, the first is the one that the others are held to. found: comparisons with it.
    """
    shown = [figure for figure in key if any(figure in row.figures for row in rows)]
    down = max(1, math.ceil(len(shown) / ACROSS))
    most = len(arms) + max((len(YARDSTICKS.get(figure, {})) for figure in shown), default=0)
    figure = Figure(figsize=(4.2 * ACROSS, 1.1 + down * (0.9 + 0.27 * most)), layout="constrained")
    every = figure.subplots(down, ACROSS, squeeze=False).ravel()
    verdicts = {(each.figure, each.arm): each.verdict for each in found}
    for axes, name in zip(every, shown, strict=False):
        draw_figure(axes, rows, arms, verdicts, name)
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    if not shown:
        every[0].text(0.0, 0.5, "no run has come to its end yet")
    missing = [f"{row.arm} seed {row.seed} {row.outcome}" for row in rows if row.outcome != "trained"]
    said = textwrap.fill(f"without a figure: {', '.join(missing)}", COLUMNS) if missing else ""
    figure.suptitle(f"{title}\n{said}".strip())
    figure.legend(handles=legend(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    figure.get_layout_engine().set(hspace=0.06)  # type: ignore[union-attr,call-arg]
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=110))


def draw_figure(
    axes: Any, rows: Sequence[Row], arms: Sequence[str], verdicts: Mapping[tuple[str, str], str], name: str
) -> None:
    """A figure: points of seeds and the mean of each arm, the range of the first behind them, yardsticks in grey."""
    labels = list(arms)
    for place, arm in enumerate(arms):
        values = [*by_seed(rows, arm, name).values()]
        verdict = "first" if place == 0 else verdicts.get((name, arm), "")
        colour = COLOURS.get(verdict, GREY)
        if values:
            spread = Spread.of(values)
            axes.plot([spread.least, spread.most], [place, place], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=4.5, alpha=0.55, markeredgewidth=0)
            mark = MARKS.get(verdict, "|")
            axes.plot(spread.mean, place, mark, color=colour, markersize=9, markeredgewidth=1.8 if mark == "|" else 0.5)
            if place == 0:
                axes.axvspan(spread.least, spread.most, color="black", alpha=0.08, linewidth=0)
    for word, value in standing_by(rows, name).items():
        axes.plot(value, len(labels), "D", color="#b08900", markersize=4.5)
        labels.append(word)
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
    for tick in axes.get_yticklabels()[len(arms) :]:
        tick.set_color("#8a6d00")
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    arrow = {1: "  higher is better", -1: "  lower is better", 0: ""}[better(name)]
    axes.set_title(WORDS.get(name, name.replace("_", " ")), fontsize=10, pad=14 if arrow else 6)
    if arrow:
        axes.text(0.5, 1.015, arrow.strip(), transform=axes.transAxes, ha="center", fontsize=7.5, color=GREY)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.25, axis="x")


def standing_by(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Yardsticks of a figure, means over all runs, by what they are called."""
    found = {}
    for figure, word in YARDSTICKS.get(name, {}).items():
        if values := [row.figures[figure] for row in rows if figure in row.figures]:
            found[word] = Spread.of(values).mean
    return found


def legend() -> list[Line2D]:
    """What the marks mean."""
    free: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0.5}
    return [
        Line2D([], [], marker="o", color=GREY, alpha=0.55, markersize=4.5, label="a seed", **free),
        Line2D([], [], marker="|", color="black", markersize=9, linestyle="none", markeredgewidth=1.8,
               label="mean of the first arm, its range shaded"),
        Line2D([], [], marker="|", color=GREY, markersize=9, linestyle="none", markeredgewidth=1.8,
               label="within the spread"),
        *(
            Line2D([], [], marker=MARKS[verdict], color=COLOURS[verdict], markersize=8, label=verdict, **free)
            for verdict in ("helps", "hurts")
        ),
        Line2D([], [], marker="^", color=COLOURS["raises"], markersize=8, label="raises or lowers", **free),
        Line2D([], [], marker="D", color="#b08900", markersize=4.5, label="yardstick", **free),
    ]  # fmt: skip
