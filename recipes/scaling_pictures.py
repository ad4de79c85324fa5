"""The scaling table on the terminal, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.recipes.scaling_fit import Fit

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    import matplotlib
    from fractal_streams.recipes.crossover import ticked
    from matplotlib.figure import Figure
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


def show_scaling(result: Any) -> None:
    """The models, the losses at each budget of compute, and both laws."""
    console = Console()
    models = Table(title=f"models, {result.device}; MFLOP of training on a sample", box=SIMPLE, padding=(0, 1, 0, 0))
    for title in ("width", "weights", "MFLOP", "samples", "PFLOP", "loss", "right", "images/s"):
        models.add_column(title, justify="right")
    for curve in result.curves:
        models.add_row(
            str(curve.width), f"{curve.weights:,}", f"{curve.sample_flop / 1e6:,.1f}", f"{curve.samples[-1]:,.0f}",
            f"{curve.compute[-1] / 1e15:.3g}", f"{curve.test_loss[-1]:.4f}", f"{curve.test_accuracy[-1]:.1%}",
            f"{curve.images_per_second:,.0f}",
        )  # fmt: skip
    console.print(models)
    losses = Table(title="test loss, nats, at budgets of compute; the lowest in bold", box=SIMPLE)
    for title in ("PFLOP", *(f"width {curve.width}" for curve in result.curves), "law"):
        losses.add_column(title, justify="right")
    for budget, row in zip(result.budgets, result.table, strict=True):
        lowest = np.nanmin(row)
        cells = ["" if np.isnan(loss) else f"[bold]{loss:.4f}[/]" if loss == lowest else f"{loss:.4f}" for loss in row]
        losses.add_row(f"{budget / 1e15:.3g}", *cells, f"{float(result.by_compute(budget)):.4f}")
    console.print(losses)
    for title, law in (
        ("lowest loss at each compute C, PFLOP", result.by_compute),
        ("N, D in millions", result.by_size),
    ):
        console.print(f"{title}: L = {formula(law)}; {law.points} points, error {law.error:.1%}")
        console.print("  " + "; ".join(coefficients(law)))
        for remark in law.remarks:
            console.print(f"  not identified: {remark}")


def formula(law: Fit) -> str:
    """A law in one line.

    Example:
        >>> formula(Fit(names=("compute",), units=(1e15,), floor=0.5, factors=(2.0,), exponents=(0.3,), intervals={},
        ...     error=0.0, points=9, remarks=()))
        '0.5 + 2 C^-0.3'
    """
    letters = {"compute": "C", "weights": "N", "samples": "D"}
    powers = [
        f"{factor:.3g} {letters.get(name, name)}^-{exponent:.3g}"
        for name, factor, exponent in zip(law.names, law.factors, law.exponents, strict=True)
    ]
    return " + ".join([f"{law.floor:.3g}", *powers])


def said(law: Fit) -> str:
    return f"L = {formula(law)}{'' if law.identified else ', not identified'}"


def coefficients(law: Fit) -> list[str]:
    """Each coefficient with its interval."""
    return [
        f"{name} {value:.3g} ({law.intervals[name][0]:.3g} to {law.intervals[name][1]:.3g})"
        for name, value in law.values().items()
        if name in law.intervals
    ]


def draw_scaling(path: Path, result: Any, fit_from: float, title: str) -> None:
    """Test loss against compute, a line for each width, the law dashed; accuracy beside it."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(result.curves)))
    first = min(
        float(curve.compute[np.searchsorted(curve.samples, fit_from * curve.samples[-1])]) for curve in result.curves
    )
    for curve, colour in zip(result.curves, shades, strict=True):
        label = f"width {curve.width}, {curve.weights:,} weights"
        left.plot(curve.compute, curve.test_loss, ".-", color=colour, linewidth=1.4, markersize=4, label=label)
        right.plot(curve.compute, curve.test_accuracy, ".-", color=colour, linewidth=1.4, markersize=4)
        fitted = curve.samples >= fit_from * curve.samples[-1]
        told = result.by_size(float(curve.weights), curve.samples[fitted])
        left.plot(curve.compute[fitted], told, ":", color=colour, linewidth=1.2)
    compute = np.geomspace(first, result.budgets[-1], 100)
    left.plot(
        compute,
        result.by_compute(compute),
        "--",
        color="#c1121f",
        linewidth=2,
        label=f"L = {formula(result.by_compute)}",
    )
    left.plot([], [], ":", color="0.4", label=said(result.by_size))
    left.set(xscale="log", yscale="log", xlabel="compute of training, FLOP", ylabel="test loss, nats")
    right.set(xscale="log", xlabel="compute of training, FLOP", ylabel="test accuracy", ylim=(0.0, None))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ticked(left)
    right.legend(
        *left.get_legend_handles_labels(), fontsize=8, loc="upper left", framealpha=0.9,
        title="C in PFLOP; N weights, D samples, in millions", title_fontsize=8,
    )  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=150))
