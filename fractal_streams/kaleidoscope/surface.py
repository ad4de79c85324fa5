"""Networks of two values: the loss as a surface over the plane, and the plane by where its points end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Engine, Schedule
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32, Float64
from fractal_streams.kaleidoscope.plots import GREEN, INK, RED, UInt8, bare, page, save_page
from fractal_streams.kaleidoscope.profiles import Trajectories, checked, rows_of
from fractal_streams.spec import whole

MAX_POINTS = 4096
ELEVATION, AZIMUTH = 20.0, -60.0
"""From where the surface is seen, degrees."""
BASIN_SCHEDULE = Schedule(most=1000, tolerance=1e-6)
NEAR = 0.02
"""RMSE over the range within which a chain at rest is at an attractor."""
QUICK, SLOW, LIGHT = 0.02, 0.995, 0.25
"""The shares of points of the lightest shade, and not of the darkest; the part of the shades that is lighter still."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface:
    """The loss of M networks on a square grid of their range.

    range: (low, high). places: (P,) float64 along both axes. losses: (M, P, P) float64, half the squared distance of
    f(x, y) from (x, y) (its mean over the two values), the second value by rows.
    sources: (M, N, 2) float32.
    """

    range: tuple[float, float]
    places: Float64
    losses: Float64
    sources: Float32


@dataclass(frozen=True, eq=False, kw_only=True)
class Basins:
    """Where the points of the plane end under one network.

    range: (low, high). attractor: (P, P) int32, row of `states`, -1 where a chain never rested or rests elsewhere;
    steps: (P, P) int32 until it rested, or -1. The second value by rows, the lowest first.
    states: (A, 2) float32. sources: (N, 2) float32.
    """

    range: tuple[float, float]
    attractor: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int32]
    states: Float32
    sources: Float32

    def picture(self) -> UInt8:
        """(P, P, 3) uint8, the highest row first: a colour for each attractor, darker where it takes more steps."""
        return np.ascontiguousarray(basin_colours(self.attractor, self.steps)[::-1])


def loss_surface(
    fitted: Kaleidoscope, *, points: int = 20, models: Sequence[int] | None = None, engine: Engine | None = None,
    device: str = "auto",
) -> Surface:  # fmt: skip
    """The loss of networks of two values over their range.

    Args:
        fitted: of shape (2,).
        points: 2 to 4,096 places along each axis: from the low end of the range in steps of span / points, so that 20
            are 0, 0.05, ..., 0.95 of [0, 1].
        models: networks of the bank; None is all.
        engine: applies them; None opens one on the device.

    Raises:
        InvalidValueError: networks of another number of values, or a value out of its range.
    """
    checked(fitted, 2)
    whole(points, "points", 2, MAX_POINTS, "places along each axis")
    rows, engine = rows_of(fitted, models), engine_of(fitted, engine, device)
    low, high = fitted.network.range
    places = low + (high - low) * np.arange(points) / points
    states = plane(places)
    losses = []
    for model in rows:
        outputs = as_array(engine.apply(states, np.full(len(states), model))).astype(np.float64)
        losses.append(((outputs - states) ** 2).mean(axis=1).reshape(points, points))
    sources = np.stack([fitted.source_values(model) for model in rows])
    return Surface(range=(low, high), places=places, losses=np.stack(losses), sources=sources)


def plane(places: Float64) -> Float32:
    """(P * P, 2) float32: all pairs, the first value running fastest."""
    second, first = np.meshgrid(places, places, indexing="ij")
    return np.stack([first.ravel(), second.ravel()], axis=1).astype(np.float32)


def basins(
    fitted: Kaleidoscope, *, model: int = 0, points: int = 300, schedule: Schedule = BASIN_SCHEDULE,
    engine: Engine | None = None, device: str = "auto",
) -> Basins:  # fmt: skip
    """Where each point of the plane ends under one network of two values.

    Args:
        fitted: of shape (2,); its table of attractors is used, or one is found.
        model: of the bank.
        points: 2 to 4,096 along each axis, in the middles of as many cells of the range.
        schedule: how long chains run; its tolerance must be above 0.
        engine: applies the networks; None opens one on the device.

    Raises:
        InvalidValueError: networks of another number of values, or a value out of its range.
    """
    checked(fitted, 2)
    whole(points, "points", 2, MAX_POINTS, "places along each axis")
    rows_of(fitted, [model])
    if schedule.tolerance <= 0.0:
        raise InvalidValueError(f"points end where they rest: the schedule's tolerance must be above 0, got {schedule}")
    engine = engine_of(fitted, engine, device)
    low, high = fitted.network.range
    states = plane(low + (high - low) * (np.arange(points) + 0.5) / points)
    owners = np.full(len(states), model)
    outcome = engine.run(states, owners, schedule).numpy()
    table = attractors_of(fitted, engine, model)
    attractor = np.full(len(states), -1, np.int32)
    if len(table):
        row, distance = (as_array(found) for found in engine.nearest(outcome.states, table))
        ends = (outcome.steps >= 0) & (distance <= NEAR)
        attractor = np.where(ends, row, -1).astype(np.int32)
    return Basins(
        range=(low, high), attractor=attractor.reshape(points, points), states=table,
        steps=outcome.steps.reshape(points, points), sources=fitted.source_values(model),
    )  # fmt: skip


def attractors_of(fitted: Kaleidoscope, engine: Engine, model: int) -> Float32:
    """(A, D) states of the attractors of one network."""
    table: Attractors | None = fitted.attractors
    if table is None:
        from fractal_streams.kaleidoscope.attractors import find_attractors

        alone = find_attractors(fitted.one(model), device=engine.device).attractors
        return alone.states if alone is not None else np.zeros((0, fitted.network.size), np.float32)
    return table.states[table.model == model]


def basin_colours(attractor: npt.NDArray[np.int32], steps: npt.NDArray[np.int32]) -> UInt8:
    """(..., 3) uint8: hue by attractor; shade by the logarithm of the steps, from the quickest to the slowest there
    are; grey where there is no attractor."""
    from fractal_streams.kaleidoscope.basin_colours import SHADES, palette

    resting = np.log1p(steps[attractor >= 0].astype(np.float64)) if (attractor >= 0).any() else np.zeros(1)
    quickest, slowest = np.quantile(resting, [QUICK, SLOW])
    share = (np.log1p(np.maximum(steps, 0)) - quickest) / max(slowest - quickest, 1e-9)
    shade = np.rint(LIGHT * SHADES + (SHADES - 1 - LIGHT * SHADES) * np.clip(share, 0.0, 1.0)).astype(np.int64)
    return palette(int(attractor.max(initial=-1)) + 1)[attractor + 1, shade]


def save_surface(
    path: str | Path, found: Surface, travelled: Trajectories | None = None, *, row: int = 0, step: int | None = None,
    height: float | None = None, title: str = "",
) -> Path:  # fmt: skip
    """Write a PNG of one network's surface, with contours on three sides.

    Args:
        path: a .png; it appears whole or not at all.
        travelled: starts (red) and iterates (green) to draw at their loss, of as many networks.
        row: the network, of those that were asked for.
        step: the iterate to draw; None is every one.
        height: the loss at the top; None is the largest.
        title: above.
    """
    figure = page(7.2, 6.0)
    draw_surface(figure.add_subplot(projection="3d"), found, travelled, row=row, step=step, height=height)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_page(path, figure)


def draw_surface(
    axes: Any, found: Surface, travelled: Trajectories | None = None, *, row: int = 0, step: int | None = None,
    height: float | None = None,
) -> Any:  # fmt: skip
    """The surface seen from an elevation of 20 and an azimuth of -60 degrees; see `save_surface`.

    Returns:
        The iterates' points, None without.
    """
    drawn = None
    low, high = found.range
    span, losses = high - low, found.losses[row]
    heights = [losses.max()] if travelled is None else [losses.max(), travelled.losses[row].max()]
    top = float(max(heights)) if height is None else height
    top = top or 1.0
    floor = -0.35 * top
    axes.computed_zorder = False  # points lie upon the surface, not in it
    first, second = np.meshgrid(found.places, found.places)
    axes.plot_surface(
        first, second, losses, cmap="viridis", vmin=0.0, vmax=top, alpha=0.7, rstride=1, cstride=1, lw=0.15,
        edgecolor="#00000055", antialiased=True, zorder=2,
    )  # fmt: skip
    sides = (("z", floor), ("x", low - 0.2 * span), ("y", high + 0.1 * span))
    if float(losses.max()) > float(losses.min()):
        for side, offset in sides:
            axes.contour(
                first, second, losses, zdir=side, offset=offset, levels=9, cmap="viridis", linewidths=0.8, zorder=1
            )
    if travelled is not None:
        chosen = slice(1, None) if step is None else slice(step, step + 1)
        marks = ((slice(0, 1), RED, "starts", 26), (chosen, GREEN, "iterates", 20))
        for number, (steps, ink, name, size) in enumerate(marks):
            points = travelled.iterates[row, :, steps].reshape(-1, 2)
            raised = travelled.losses[row, :, steps].ravel()
            drawn = axes.scatter(
                points[:, 0], points[:, 1], raised, color=ink, s=size, depthshade=False, label=name, lw=0,
                alpha=0.6 if step is None and number else 1.0, zorder=4 + number,
            )  # fmt: skip
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.set(xlim=(low - 0.2 * span, low + 1.1 * span), ylim=(low, low + 1.1 * span), zlim=(floor, top))
    axes.set(xlabel="first value", ylabel="second value", zlabel="loss")
    axes.set_zticks([tick for tick in axes.get_zticks() if 0.0 <= tick <= top])
    axes.tick_params(labelsize=7)
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    return drawn


def save_basins(path: str | Path, found: Basins, *, title: str = "") -> Path:
    """Write a PNG of the plane: colour by attractor, darker where it takes more steps; sources and attractors marked.

    Raises:
        InvalidValueError: another ending.
        MissingExtraError: matplotlib is not installed.
    """
    figure = page(6.2, 6.0)
    axes = bare(figure.subplots())
    low, high = found.range
    axes.imshow(found.picture(), extent=(low, high, low, high), interpolation="nearest")
    axes.plot(*found.sources.T, "o", ms=9, mfc="none", mec="white", mew=1.8, ls="none", label="sources", clip_on=False)
    reached = found.states[np.unique(found.attractor[found.attractor >= 0])]
    axes.plot(*reached.T, "x", ms=6, mec=INK, mew=1.6, ls="none", label="attractors", clip_on=False)
    axes.set(xlabel="first value", ylabel="second value", xlim=(low, high), ylim=(low, high))
    legend = axes.legend(fontsize=8, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.075), facecolor="#b8b8bc")
    legend.get_frame().set_linewidth(0.0)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_page(path, figure)
