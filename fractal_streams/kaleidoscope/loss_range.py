"""How far networks still are from the identity on the whole cube, against how many points they were fitted to.

After H. Shrivastava, arXiv:2402.11793: n uniform points of [0, 1]^d, a new network for each n, and the largest loss at
the corners of the cube. Few points leave it large: the network takes the cube to them. Many make it the identity, and
then iterating it leads nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Float32, Float64, Network, units
from fractal_streams.kaleidoscope.plots import INKS, band, bare, page, save_page
from fractal_streams.kaleidoscope.tables import Row, Table, progress_bar
from fractal_streams.spec import whole

POINTS = tuple(2**power for power in range(12))
"""1, 2, 4, ..., 2,048."""
DIMENSIONS = (1, 2, 4, 8)
MAX_DIMENSION, MAX_POINTS = 12, 2**17
PROBES = 1024
"""Uniform points of the cube at which the loss is looked at, beside its corners and the sources."""
BATCH = 1000


@dataclass(frozen=True, eq=False, kw_only=True)
class LossRange(Table):
    """A row for each network.

    "dimension", "points", "model" (of the bank of seeds); "source_loss", the mean over its sources of the loss, that
    is, of the mean over values of (f(x) - x)**2; "corner_loss", the largest at the corners of the cube; "loss_range",
    largest less least at corners, sources and 1,024 uniform points.
    """

    rows: tuple[Row, ...]

    def save_plot(self, path: str | Path, *, quantity: str = "corner_loss", title: str = "") -> Path:
        """Write a PNG: the quantity against the number of points, a line for each dimension with one deviation.

        Args:
            path: a .png; it appears whole or not at all.
            quantity: "corner_loss", "loss_range" or "source_loss".

        Raises:
            InvalidValueError: another ending or quantity.
            MissingExtraError: matplotlib is not installed.
        """
        if quantity not in ("corner_loss", "loss_range", "source_loss"):
            raise InvalidValueError(f"quantity must be corner_loss, loss_range or source_loss, got {quantity!r}")
        figure = page(6.6, 4.2)
        axes = bare(figure.subplots())
        counts = sorted({int(row["points"]) for row in self.rows})
        for ink, dimension in zip(itertools.cycle(INKS), sorted({row["dimension"] for row in self.rows}), strict=False):
            found = [self.values(quantity, dimension=dimension, points=count) for count in counts]
            band(axes, np.log2(counts), np.stack(found, axis=1), ink, f"d = {dimension}", deviation=True)
        words = {"corner_loss": "largest loss at the corners", "loss_range": "loss, largest less least"}
        axes.set_xticks(np.log2(counts), [f"{count:,}" for count in counts], rotation=30 if len(counts) > 8 else 0)
        axes.set(xlabel="points fitted to", ylabel=words.get(quantity, "loss at the sources"), ylim=(0.0, 1.0))
        seeds = len({row["model"] for row in self.rows})
        axes.legend(frameon=False, fontsize=9, title=f"mean and deviation of {seeds} seeds" if seeds > 1 else None)
        if title:
            axes.set_title(title, fontsize=11)
        return save_page(path, figure)


def loss_range_study(
    *, points: Sequence[int] = POINTS, dimensions: Sequence[int] = DIMENSIONS, seeds: int = 4, hidden: int = 50,
    n_linear: int = 7, steps: int = 10_000, learning_rate: float = 1e-3, seed: int = 0, device: str = "auto",
    progress: bool = False,
) -> LossRange:  # fmt: skip
    """Fit networks to n uniform points of [0, 1]^d and look at their loss over the cube.

    A network's points are the first n of a sequence that its seed, its number and d name, so those of a smaller n are
    among those of a larger one. They train with Adam at a constant rate on at most 1,000 points a step.

    Args:
        points: numbers of points, each 1 to 131,072.
        dimensions: of the cube, each 1 to 12.
        seeds: networks of each kind, 1 to 256, as one bank.
        hidden, n_linear: of the networks; the head is a sigmoid.
        steps, learning_rate: of the training.
        seed: of points and first weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: a bar.

    Raises:
        InvalidValueError: a value out of its range.
        MissingExtraError: torch is not installed.

    Example:
        >>> found = loss_range_study(points=(1, 8), dimensions=(1,), seeds=2, hidden=8, steps=20, device="cpu")
        >>> [(row["dimension"], row["points"], row["model"]) for row in found.rows]
        [(1, 1, 0), (1, 1, 1), (1, 8, 0), (1, 8, 1)]
    """
    counts = [whole(count, "points", 1, MAX_POINTS, "points") for count in points]
    sizes = [whole(size, "dimensions", 1, MAX_DIMENSION, "values") for size in dimensions]
    whole(seeds, "seeds", 1, 256, "networks")
    if not counts or not sizes:
        raise InvalidValueError("points and dimensions must name at least one number each")
    rows: list[Row] = []
    with progress_bar(len(counts) * len(sizes), "loss range", "banks", progress) as bar:
        for size, count in itertools.product(sizes, counts):
            network = Network(shape=(size,), hidden=hidden, n_linear=n_linear, head="sigmoid", data_scale=1.0)
            sources = uniform_sources(count, size, seeds, seed)
            fitted = bank_of(network, sources, steps, learning_rate, seed, device)
            rows += rows_of(fitted, seed, device)
            bar.update(1)
    return LossRange(rows=tuple(rows))


def uniform_sources(count: int, size: int, seeds: int, seed: int) -> Sources:
    """(S, n, d) uniform points in [0, 1], each network's own."""
    drawn = [
        units(count * size, rng.key("loss-range-points", seed, size, model)).reshape(count, size)
        for model in range(seeds)
    ]
    return Sources(
        data=np.stack(drawn).astype(np.float32), labels=np.zeros((seeds, count), np.int64), titles=("point",),
        origin={"kind": "uniform points", "seed": seed},
    )  # fmt: skip


def bank_of(
    network: Network, sources: Sources, steps: int, learning_rate: float, seed: int, device: str
) -> Kaleidoscope:  # fmt: skip
    """A network for each set of sources."""
    from fractal_streams.kaleidoscope.fitting import fit
    from fractal_streams.kaleidoscope.training import Training

    training = Training(
        steps=steps, batch=BATCH if len(sources) > BATCH else None, learning_rate=learning_rate, decay="constant",
        noise=0.0, seed=seed,
    )  # fmt: skip
    return fit(
        network, sources, training, models=len(sources.data), device=device, on_identity="allow", on_dead="allow"
    )  # fmt: skip


def rows_of(fitted: Kaleidoscope, seed: int, device: str = "auto") -> list[Row]:
    """What a bank's loss is over the cube [0, 1]^d, a row for each network."""
    from fractal_streams.kaleidoscope.engines import open_engine

    size, engine = fitted.network.size, open_engine(fitted, device)
    corners = cube_corners(size)
    probes = units(PROBES * size, rng.key("loss-range-probes", seed, size)).reshape(PROBES, size).astype(np.float32)
    found: list[Row] = []
    for model in range(fitted.models):
        sources = fitted.source_values(model)
        own, far, near = (losses_at(engine, states, model) for states in (sources, corners, probes))
        every = np.concatenate([own, far, near])
        found.append({
            "dimension": size, "points": len(sources), "model": model, "source_loss": float(own.mean()),
            "corner_loss": float(far.max()), "loss_range": float(every.max() - every.min()),
        })  # fmt: skip
    return found


def cube_corners(size: int) -> Float32:
    """(2**d, d) float32, the last value changing fastest."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=size)), np.float32)


def losses_at(engine: Any, states: Float32, model: int) -> Float64:
    """(B,) float64: the mean over values of (f(x) - x)**2."""
    outputs = as_array(engine.apply(states, np.full(len(states), model))).astype(np.float64)
    return np.asarray(((outputs - states) ** 2).mean(axis=1))
