"""A page that shows how a fitted network behaves: what it learnt, where its chains go and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.kaleidoscope.chain import Engine
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.kaleidoscope.plots import BLUE, FAINT, GREEN, INKS, ORANGE, RED, band, bare, page, save_page
from fractal_streams.kaleidoscope.profiles import rows_of
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.spec import whole

MAX_RADII = 256
"""Sources of a network whose spectral radii are drawn, evenly spaced."""
MAX_BARS, MAX_CLASSES, LEAST_SHARE = 60, 10, 0.005
CONTROLS = (("mean", "mean of sources", ORANGE), ("blends", "blends", RED), ("held_out", "held-out", GREEN))
FLOOR = 1e-7
"""Of a logarithmic axis: about what float32 resolves."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Curves:
    """How chains of M networks move: B of each, K steps.

    step_norms: (M, K) float64 RMSE over the range of the change by steps 1 to K, over all chains; a chain that moved to
    values that aren't finite counts in none.
    distances: (M, K + 1) float64 mean RMSE over the range to the nearest source, from the start on.
    class_shares: (M, K + 1, classes) float64, of chains whose nearest source is of each class.
    """

    step_norms: Float64
    distances: Float64
    class_shares: Float64


def curves(
    fitted: Kaleidoscope, *, chains: int = 500, steps: int = 60, start: Start | None = None, seed: int = 0,
    engine: Engine | None = None, device: str = "auto",
) -> Curves:  # fmt: skip
    """Follow chains of every network of a bank.

    Args:
        chains: of each network, 1 to 8,192.
        steps: 1 to 10,000.
        start: their distribution; None is uniform over the range.
        seed: of the starts.
        engine: applies the networks; None opens one on the device.

    Raises:
        InvalidValueError: a value out of its range.
    """
    whole(chains, "chains", 1, 8192, "chains of each network")
    whole(steps, "steps", 1, 10_000, "steps")
    engine = engine_of(fitted, engine, device)
    numbers, classes = np.arange(chains, dtype=np.int64), len(fitted.sources.titles)
    norms, distances, shares = [], [], []
    for model in range(fitted.models):
        owners = np.full(chains, model, np.int64)
        table, labels = fitted.source_values(model), fitted.sources.of_model(model)[1]
        state = engine.starts(start or Start(), numbers, owners, lambda *names: rng.key("quality-page", seed, *names))
        moved: list[float] = []
        near: list[float] = []
        held: list[Float64] = []
        for step in range(steps + 1):
            place, distance = (as_array(part) for part in engine.nearest(state, table))
            near.append(float(distance.astype(np.float64).mean()))
            held.append(np.bincount(labels[place], minlength=classes) / chains)
            if step < steps:
                after = engine.apply(state, owners)
                change = as_array(after).astype(np.float64) - as_array(state)
                moved.append(float(np.sqrt((change**2).mean()) / fitted.network.span))
                state = after
        norms.append(moved)
        distances.append(near)
        shares.append(np.stack(held))
    return Curves(step_norms=np.array(norms), distances=np.array(distances), class_shares=np.stack(shares))


def save_quality(
    path: str | Path, fitted: Kaleidoscope, *, chains: int = 500, steps: int = 60, seed: int = 0,
    engine: Engine | None = None, device: str = "auto", title: str = "",
) -> Path:  # fmt: skip
    """Write a PNG of six panels; of several networks, their mean and span.

    The score while fitting; spectral radii at the sources; the distance to the nearest source by step, with the
    controls of the quality report if there is one; the share of the classes by step; the change by each step; the share
    of chains that end at each attractor, if there is a table of them.

    Args:
        path: a .png; it appears whole or not at all.
        chains, steps, seed, engine, device: see `curves`.
        title: above all.

    Raises:
        InvalidValueError: another ending, or a value out of its range.
        MissingExtraError: matplotlib or torch is not installed.
    """
    engine = engine_of(fitted, engine, device)
    found = curves(fitted, chains=chains, steps=steps, seed=seed, engine=engine)
    figure = page(11.0, 6.4)
    panels = figure.subplots(2, 3).ravel()
    draw_training(panels[0], fitted)
    draw_radii(panels[1], radii_of(fitted, engine.device))
    draw_distances(panels[2], found, fitted)
    draw_classes(panels[3], found, fitted)
    draw_steps(panels[4], found)
    draw_basins(panels[5], fitted)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_page(path, figure)


def radii_of(fitted: Kaleidoscope, device: str) -> Float64:
    """(K,) float64 spectral radii at sources of all networks."""
    from fractal_streams.kaleidoscope.spectrum import spectral_radii

    some = np.unique(np.linspace(0, len(fitted.sources) - 1, min(len(fitted.sources), MAX_RADII)).astype(np.int64))
    values = [fitted.source_values(model)[some] for model in rows_of(fitted, None)]
    owners = np.repeat(np.arange(fitted.models), len(some))
    return spectral_radii(fitted, np.concatenate(values), owners, device=device)


def draw_training(axes: Any, fitted: Kaleidoscope) -> None:
    """The score of the evaluations while fitting, or that it isn't known."""
    bare(axes).set_title("score while fitting", fontsize=10)
    curve = fitted.training.get("curve")
    if not curve or not curve["steps"]:
        nothing(axes, "not recorded")
        return
    rows = np.array([[np.nan if value is None else value for value in row] for row in curve["score"]], np.float64).T
    band(axes, curve["steps"], np.maximum(rows, 1e-14), BLUE, "score")
    axes.set(yscale="log", xlabel="step of the optimiser", ylabel="mean squared error / range²")


def draw_radii(axes: Any, radii: Float64) -> None:
    """A histogram; what is left of the line attracts."""
    bare(axes).set_title(f"spectral radius at the sources: {(radii < 1).mean():.0%} below 1", fontsize=10)
    top = max(1.05, float(np.nanmax(radii[np.isfinite(radii)], initial=0.0)))
    axes.hist(radii[np.isfinite(radii)], bins=np.linspace(0.0, top, 41).tolist(), color=BLUE)
    axes.axvline(1.0, color=RED, lw=1.2, ls="--")
    axes.set(xlabel="spectral radius", ylabel="sources", xlim=(0.0, top))
    axes.locator_params(axis="y", integer=True)


def draw_distances(axes: Any, found: Curves, fitted: Kaleidoscope) -> None:
    """The distance to the nearest source by step, beside what a blob would have."""
    bare(axes).set_title("distance to the nearest source", fontsize=10)
    band(axes, np.arange(found.distances.shape[1]), np.maximum(found.distances, FLOOR), BLUE, "chains")
    controls = ((fitted.quality or {}).get("summary") or {}).get("controls") or {}
    for name, words, ink in CONTROLS:
        told = controls.get(name)
        if told and told["mean"]:
            axes.axhline(told["mean"], color=ink, lw=1.0, ls="--", label=words)
    axes.set(yscale="log", xlabel="step", ylabel="RMSE / range")
    axes.legend(frameon=False, fontsize=8)


def draw_classes(axes: Any, found: Curves, fitted: Kaleidoscope) -> None:
    """The share of chains whose nearest source is of each class, stacked; the largest classes have colours."""
    bare(axes).set_title("class of the nearest source", fontsize=10)
    shares = found.class_shares.mean(axis=0)
    order = np.argsort(-shares[-1], kind="stable")
    held = [label for label in order if shares[:, label].max() >= LEAST_SHARE][:MAX_CLASSES]
    shown, rest = np.asarray(held, np.int64), np.setdiff1d(order, held)
    layers = [*shares[:, shown].T, *([shares[:, rest].sum(axis=1)] if len(rest) else [])]
    from matplotlib import colormaps

    inks = [colormaps["tab10"](number % 10) for number in range(len(shown))] + ["#d0d0d4"] * bool(len(rest))
    titles = [fitted.sources.titles[label][:18] for label in shown] + [f"{len(rest)} others"] * bool(len(rest))
    axes.stackplot(np.arange(len(shares)), layers, colors=inks, labels=titles, lw=0)
    axes.set(xlabel="step", ylabel="share of chains", xlim=(0, len(shares) - 1), ylim=(0.0, 1.0))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], names[::-1], frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5),
        handlelength=1.0,
    )  # fmt: skip


def draw_steps(axes: Any, found: Curves) -> None:
    """How far a step moves chains."""
    bare(axes).set_title("change by each step", fontsize=10)
    steps = np.arange(1, found.step_norms.shape[1] + 1)
    band(axes, steps, np.maximum(found.step_norms, FLOOR), BLUE, "chains")
    axes.set(yscale="log", xlabel="step", ylabel="RMSE / range")


def draw_basins(axes: Any, fitted: Kaleidoscope) -> None:
    """The share of probing chains at each attractor of the first network, the largest first."""
    bare(axes).set_title("basins", fontsize=10)
    table = fitted.attractors
    if table is None or not len(table):
        nothing(axes, "no attractors known")
        return
    own = table.model == 0
    share, copies = table.share[own], table.distance[own] <= 0.02
    order = np.argsort(-share, kind="stable")[:MAX_BARS]
    inks = np.where(copies[order], INKS[0], INKS[1])
    axes.bar(np.arange(len(order)), share[order], color=inks.tolist(), width=0.85)
    for ink, words, there in ((INKS[0], "a source", copies), (INKS[1], "not a source", ~copies)):
        if there.any():
            axes.bar([0], [0.0], color=ink, label=words)
    axes.set_ylim(0.0, 1.25 * max(float(share.max()), 1e-3))
    left = 1.0 - float(share.sum())
    axes.set(xlabel=f"attractors of one network, {len(share)}", ylabel="share of chains")
    axes.legend(frameon=False, fontsize=8, title=f"{left:.1%} end at none" if left > 5e-4 else None, title_fontsize=8)


def nothing(axes: Any, why: str) -> None:
    """An empty panel that says why."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=9, color=FAINT, transform=axes.transAxes)
