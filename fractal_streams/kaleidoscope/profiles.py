"""Networks of one value: f(x) over the range, its loss, its fixed points, and how starts travel along it.

After H. Shrivastava, arXiv:2402.11793: the loss (f(x) - x)**2 over the range, and starts that slide down it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Engine
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.measures import FixedPoints, fixed_points
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.kaleidoscope.plots import BLUE, FAINT, GREEN, INK, ORANGE, RED, band, bare, page, save_page
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.spec import whole

MAX_POINTS = 100_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """M networks of one value over their range.

    range: (low, high). places: (P,) float64, from low to high. outputs: (M, P) float64, f of each place.
    sources: (M, N) float64 values. fixed_points: of each network.
    """

    range: tuple[float, float]
    places: Float64
    outputs: Float64
    sources: Float64
    fixed_points: tuple[FixedPoints, ...]

    @property
    def losses(self) -> Float64:
        """(M, P) float64: (f(x) - x)**2."""
        return np.asarray((self.outputs - self.places) ** 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectories:
    """S starts of each of M networks and their iterates.

    iterates: (M, S, K + 1, D) float32, iterate k behind k applications. losses: (M, S, K + 1) float64, the mean over
    the values of (f(x) - x)**2 at each.
    """

    iterates: Any
    losses: Float64


def profile(
    fitted: Kaleidoscope, *, points: int = 100, models: Sequence[int] | None = None, engine: Engine | None = None,
    device: str = "auto",
) -> Profile:  # fmt: skip
    """Outputs of networks of one value over their range, and their fixed points, see `measures.fixed_points`.

    Args:
        fitted: of shape (1,).
        points: 2 to 100,000 places from one end of the range to the other.
        models: networks of the bank; None is all.
        engine: applies them; None opens one on the device.

    Raises:
        InvalidValueError: networks of more than one value, or a value out of its range.

    Example:
        >>> import numpy as np
        >>> from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> points = Sources(data=np.float32([[[0.5]]]), labels=np.int64([[0]]), titles=("middle",))
        >>> network = Network(shape=(1,), hidden=1, n_linear=2, head="linear", activation="identity", data_scale=1.0)
        >>> ones, zeros = np.ones((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
        >>> half = {"layers.0.weight": ones, "layers.0.bias": zeros,
        ...         "layers.1.weight": ones / 2, "layers.1.bias": zeros + np.float32(0.25)}
        >>> found = profile(Kaleidoscope(network=network, tensors=half, sources=points), device="cpu")
        >>> found.fixed_points[0].places.round(6), found.fixed_points[0].radius, found.losses[0, -1]
        (array([[0.5]]), array([0.5]), np.float64(0.0625))
    """
    checked(fitted, 1)
    whole(points, "points", 2, MAX_POINTS, "places")
    rows, engine = rows_of(fitted, models), engine_of(fitted, engine, device)
    places = np.linspace(*fitted.network.range, points)
    return Profile(
        range=fitted.network.range, places=places, outputs=outputs_at(engine, places, rows),
        fixed_points=tuple(fixed_points(fitted.one(model))[0] for model in rows),
        sources=np.stack([fitted.source_values(model)[:, 0].astype(np.float64) for model in rows]),
    )  # fmt: skip


def trajectories(
    fitted: Kaleidoscope, *, starts: int = 10, steps: int = 20, start: Start | None = None, seed: int = 0,
    models: Sequence[int] | None = None, engine: Engine | None = None, device: str = "auto",
) -> Trajectories:  # fmt: skip
    """Starts of networks of any shape, every iterate of each, and the loss there.

    Args:
        starts: of each network, 1 to 100,000; start i is the same for any number of them.
        steps: applications, 0 to 10,000.
        start: their distribution; None is uniform over the range.
        seed: of the starts.
        models, engine, device: as in `profile`.

    Raises:
        InvalidValueError: a value out of its range.
    """
    whole(starts, "starts", 1, MAX_POINTS, "chains")
    whole(steps, "steps", 0, 10_000, "applications")
    rows, engine = rows_of(fitted, models), engine_of(fitted, engine, device)
    chains = np.tile(np.arange(starts, dtype=np.int64), len(rows))
    owners = np.repeat(np.asarray(rows, np.int64), starts)
    state = engine.starts(start or Start(), chains, owners, lambda *names: rng.key("trajectory", seed, *names))
    iterates = [as_array(state).astype(np.float32)]
    for _ in range(steps + 1):
        state = engine.apply(state, owners)
        iterates.append(as_array(state).astype(np.float32))
    shaped = np.stack(iterates, axis=1).reshape(len(rows), starts, steps + 2, -1)
    losses = (np.diff(shaped.astype(np.float64), axis=2) ** 2).mean(axis=3)
    return Trajectories(iterates=shaped[:, :, :-1], losses=losses)


def rows_of(fitted: Kaleidoscope, models: Sequence[int] | None) -> list[int]:
    """Networks of the bank that are asked for."""
    asked = list(range(fitted.models)) if models is None else list(models)
    if not asked:
        raise InvalidValueError("models must name at least one network of the bank, got none")
    return [whole(model, "model", 0, fitted.models - 1, "of the bank") for model in asked]


def checked(fitted: Kaleidoscope, size: int) -> None:
    """Refuse networks of another number of values."""
    if fitted.network.shape != (size,):
        raise InvalidValueError(f"this is of networks of {size} values, got the shape {fitted.network.shape}")


def outputs_at(engine: Engine, places: Float64, rows: Sequence[int]) -> Float64:
    """(M, P) float64: f of places, network by network."""
    states = np.tile(places.astype(np.float32), len(rows))[:, None]
    owners = np.repeat(np.asarray(rows, np.int64), len(places))
    return np.asarray(as_array(engine.apply(states, owners)), np.float64).reshape(len(rows), len(places))


def save_profiles(
    path: str | Path, found: Profile, travelled: Trajectories | None = None, *, step: int | None = None, title: str = ""
) -> Path:  # fmt: skip
    """Write a PNG: loss over the range on the left, output on the right; of several networks, their mean and span.

    Args:
        path: a .png; it appears whole or not at all.
        travelled: starts and iterates to draw at their loss, of as many networks.
        step: the iterate to draw; None is every one.
        title: above both.

    Raises:
        InvalidValueError: another ending.
        MissingExtraError: matplotlib is not installed.
    """
    figure = page(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    draw_loss(left, found, travelled, step)
    draw_outputs(right, found)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_page(path, figure)


def draw_loss(axes: Any, found: Profile, travelled: Trajectories | None = None, step: int | None = None) -> Any:
    """The loss over the range; starts in red with drop lines, iterates in green: their line, None without."""
    iterates = None
    several = len(found.outputs) > 1
    band(axes, found.places, found.losses, BLUE, f"loss, mean of {len(found.outputs)}" if several else "loss")
    if travelled is not None:
        starts, heights = travelled.iterates[:, :, 0, 0].ravel(), travelled.losses[:, :, 0].ravel()
        chosen = slice(1, None) if step is None else slice(step, step + 1)
        axes.vlines(starts, 0.0, heights, color=ORANGE, lw=0.9, ls="--")
        axes.plot(starts, heights, "o", color=RED, ms=5, label="starts", zorder=3)
        (iterates,) = axes.plot(
            travelled.iterates[:, :, chosen, 0].ravel(), travelled.losses[:, :, chosen].ravel(), "o", color=GREEN,
            ms=4, alpha=0.55 if step is None else 1.0, mew=0, label="iterates",
            zorder=4,
        )  # fmt: skip
    low, high = found.range
    top = float(found.losses.max()) or 1.0
    axes.set(xlabel="x", ylabel="loss (f(x) - x)²", xlim=(low - 0.02 * (high - low), high + 0.02 * (high - low)))
    axes.set_ylim(-0.05 * top, 1.12 * top)
    bare(axes).legend(frameon=False, fontsize=8, loc="upper center")
    return iterates


def draw_outputs(axes: Any, found: Profile) -> None:
    """f over the range with the diagonal, fixed points and sources; the height is the range."""
    low, high = found.range
    axes.plot([low, high], [low, high], color=FAINT, lw=1.0, ls="--", label="y = x")
    several = len(found.outputs) > 1
    band(axes, found.places, found.outputs, BLUE, f"f(x), mean of {len(found.outputs)}" if several else "f(x)")
    kinds = ((True, "stable", {"color": GREEN}), (False, "unstable", {"mfc": "white", "mec": RED}))
    for stable, name, ink in kinds:
        places = np.concatenate([points.places[points.stable == stable, 0] for points in found.fixed_points])
        if len(places):
            axes.plot(places, places, "o", ms=6, ls="none", zorder=3, label=f"{name} fixed point", **ink)
    shown = np.unique(found.sources)
    axes.plot(shown, np.full(len(shown), low), "|", color=INK, ms=9, mew=1.4, label="sources", clip_on=False, zorder=4)
    axes.set(xlabel="x", ylabel="f(x)", xlim=(low, high), ylim=(low, high))
    bare(axes).legend(frameon=False, fontsize=8, loc="upper left")
