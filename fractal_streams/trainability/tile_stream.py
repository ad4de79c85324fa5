"""Tiles: windows at random places and depths of the boundary, each trained point by point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker
from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import MIN_SIZE, whole
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.descent import SCAN, Descent
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.picture import plain
from fractal_streams.trainability.trained_spec import MAX_EDGE, TrainedSpec
from fractal_streams.trainability.trained_stream import TrainedStream, choices, finite, relative_cost
from fractal_streams.trainability.window import NARROWEST, Window

MAX_EXPERIMENTS = 1000


@dataclass(frozen=True, kw_only=True)
class TileSpec(TrainedSpec):
    """What a stream of tiles draws: the boundary of an experiment, at a random place and depth.

    experiments: one, or several different ones, which are the classes; drawn for each sample with equal chances.
    window: that walks inwards start from; None is each experiment's overview.
    height, width: points of a tile, and pixels of its picture, 8 to 4096. A tile has the proportions of the window
        in decades, whatever they are.
    min_depth, max_depth: a tile is the window halved so many times, a whole number drawn for each sample with
        equal chances. At the most the window is 1e-12 decades wide (float32: 9 / 2**10).
    precision: "float64" or "float32". mode: "exact" or "reduced", see `open_trainer`.
    version: of the samples.

    The place is found by a walk inwards that picks, at each halving, a cell of the boundary by a named draw, in
    proportion to how mixed its surroundings are: `Descent.windows` says how. A walk of more steps goes on where a walk
    of fewer ended, but for a shift of half a cell of its last scan at most.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> tanh = Experiment(width=8, dataset_mode="single_example", steps=50)
        >>> spec = TileSpec(experiments=(tanh, tanh.replace(nonlinearity="sin")), height=16, width=16)
        >>> TileSpec.from_json(spec.to_json()) == spec, spec.class_titles
        (True, ('tanh', 'sin'))
    """

    experiments: Experiment | Sequence[Experiment] = field(default_factory=lambda: (Experiment(),))
    height: int = 64
    width: int = 64
    min_depth: int = 3
    max_depth: int = 12

    kind: ClassVar[str] = "tiles"

    def __post_init__(self) -> None:
        if not isinstance(self.experiments, Experiment | Sequence):
            raise InvalidValueError(f"experiments must be an Experiment or a list of them, got {self.experiments!r}")
        given = self.trained()
        if not all(isinstance(each, Experiment) for each in given):
            raise InvalidValueError(f"experiments must be an Experiment or a list of them, got {self.experiments!r}")
        if not 1 <= len(given) <= MAX_EXPERIMENTS or len(set(given)) < len(given):
            raise InvalidValueError(f"experiments must be 1 to {MAX_EXPERIMENTS} different ones, got {len(given)}")
        object.__setattr__(self, "experiments", given)
        super().__post_init__()
        narrow = min(min(self.window_of(experiment).size) for experiment in given)
        deepest = max(0, math.floor(math.log2(narrow / NARROWEST[self.precision])))
        low = whole(self.min_depth, "min_depth", 0, deepest, f"halvings in {self.precision}")
        made = {
            "min_depth": low,
            "max_depth": whole(self.max_depth, "max_depth", low, deepest, f"halvings in {self.precision}"),
            "height": whole(self.height, "height", MIN_SIZE, MAX_EDGE, "points"),
            "width": whole(self.width, "width", MIN_SIZE, MAX_EDGE, "points"),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def trained(self) -> tuple[Experiment, ...]:
        """The experiments."""
        return (self.experiments,) if isinstance(self.experiments, Experiment) else tuple(self.experiments)

    @property
    def num_classes(self) -> int:
        """The number of experiments."""
        return len(self.trained())

    @property
    def class_titles(self) -> tuple[str, ...]:
        """The nonlinearity of each experiment, and whatever else some of them differ in."""
        differing = [
            item.name for item in fields(Experiment)
            if len({repr(getattr(each, item.name)) for each in self.trained()}) > 1
        ]  # fmt: skip
        shown = differing if differing else ["nonlinearity"]
        return tuple(", ".join(titled(name, getattr(each, name)) for name in shown) for each in self.trained())

    @property
    def line(self) -> str:
        """What is drawn, in a line."""
        classes = f"{self.num_classes} classes" if self.num_classes > 1 else "one class"
        what = ", ".join(self.class_titles) if self.num_classes < 8 else f"{self.num_classes} experiments"
        return f"{classes} of trainability boundaries ({what}), {self.height} x {self.width}"


class TileStream(TrainedStream):
    """Windows at the boundary of trainability, every point of them trained. The label is the experiment.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N": where networks are trained and samples are handed out. Kinds of
            device differ in rounding, which shows in very deep tiles.
        trainer: a `Trainer` in place of the device's own, of the spec's precision.

    Pictures are coloured by the rank of each point among those of its tile, as `picture.restretch` does, the
    highest value of the vertical axis in the top row: colours can't be compared between tiles. The maps in the
    latents have row 0 at the lowest value: `measure[:, ::-1]` lies as the picture does.

    Latents, H x W points: "measure" (B, H, W) float64, V (infinity stands as the largest float64); "labels_map"
    (B, H, W) uint8, 1 where diverged; "edges" (B, H - 1, W - 1) uint8, 1 where four neighbours have both labels;
    "centre_x", "centre_y", "size_x", "size_y" (B,) float64, all numbers of the tile's `Window`; "depth" (B,) int32,
    halvings; "converged_share" and "edge_share" (B,) float32, of the points and of the cells.

    Example:
        >>> tanh = Experiment(width=8, dataset_mode="single_example", steps=50)
        >>> stream = TileStream(TileSpec(experiments=tanh, height=16, width=16, min_depth=2, max_depth=4), device="cpu")
        >>> batch = stream.generate(range(4))
        >>> batch.images.shape, batch.latents["measure"].shape, bool((batch.latents["edge_share"] > 0).all())
        ((4, 3, 16, 16), (4, 16, 16), True)
    """

    spec: TileSpec

    def __init__(self, spec: TileSpec, **settings: Any) -> None:
        if not isinstance(spec, TileSpec):
            raise InvalidValueError(f"spec must be a TileSpec, got {type(spec).__name__}; presets open by open_stream")
        super().__init__(spec, **settings)
        self.num_classes = spec.num_classes
        self.cost = max(
            relative_cost(each, spec.height * spec.width + spec.max_depth * SCAN**2, spec.height * spec.width)
            for each in spec.trained()
        )
        self._descents = tuple(Descent(spec.window_of(each), Diverged(self, each)) for each in spec.trained())

    def labels(self, indices: Any) -> Int64:
        return choices(checked_indices(indices), self.key("experiment"), self.num_classes)

    def depths(self, indices: Any) -> Int64:
        """(B,) int64 halvings of each tile, without training."""
        spec = self.spec
        return spec.min_depth + choices(
            checked_indices(indices), self.key("depth"), spec.max_depth - spec.min_depth + 1
        )

    def windows(self, indices: Any) -> list[Window]:
        """The window of each tile: `TileStream` trains the points of its `grid(height, width)`."""
        index = checked_indices(indices)
        labels, depths = self.labels(index), self.depths(index)
        found: dict[int, Window] = {}
        key_of = partial(self.key, "walk")
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            walked = self._descents[label].windows(index[rows], depths[rows], key_of)
            found.update(zip(rows.tolist(), walked, strict=True))
        return [found[row] for row in range(len(index))]

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        index = checked_indices(indices)
        spec, labels, windows = self.spec, self.labels(index), self.windows(index)
        measure: Float64 = np.zeros((len(index), spec.height, spec.width))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            points = np.concatenate([windows[row].grid(spec.height, spec.width).points() for row in rows])
            measure[rows] = self.train(spec.trained()[label], points).measure.reshape(-1, spec.height, spec.width)
        levels = np.zeros((len(index), spec.height, spec.width, 3), np.uint8)
        for row in range(len(index)):
            levels[row] = plain(measure[row])
        upload = self.backend.upload
        latents = self.uploaded(tile_latents(measure, windows, self.depths(index)))
        return Batch(upload(index), self.formatted(levels), upload(labels), latents)


class Diverged:
    """Whether runs of a stream's experiment diverge at (N, 2) values of the axes."""

    def __init__(self, stream: TrainedStream, experiment: Experiment) -> None:
        self.stream, self.experiment = stream, experiment

    def __call__(self, points: Float64) -> npt.NDArray[np.bool_]:
        return ~self.stream.train(self.experiment, points).converged


def titled(name: str, value: Any) -> str:
    """A field of an experiment in a class's title.

    Example:
        >>> titled("nonlinearity", "tanh"), titled("axes", ("lr0", "lr1")), titled("hyperparameters", {"scale": 2.0})
        ('tanh', 'axes lr0 lr1', 'hyperparameters scale=2')
    """
    if isinstance(value, Mapping):
        value = [f"{each}={one!r}".removesuffix(".0") for each, one in value.items()] or ["none"]
    shown = " ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return shown if name == "nonlinearity" else f"{name.replace('_', ' ')} {shown}"


def tile_latents(measure: Float64, windows: Sequence[Window], depths: Int64) -> dict[str, npt.NDArray[Any]]:
    """The latents of tiles, see `TileStream`, of their (B, H, W) measures."""
    diverged = ~(measure < 0)
    found = np.zeros((len(measure), measure.shape[1] - 1, measure.shape[2] - 1), bool)
    for row, labels in enumerate(diverged):
        found[row] = edges(labels)
    placed = np.array([(*window.centre, *window.size) for window in windows], np.float64).reshape(-1, 4)
    return {
        "measure": finite(measure),
        "labels_map": diverged.astype(np.uint8),
        "edges": found.astype(np.uint8),
        **{name: placed[:, k] for k, name in enumerate(("centre_x", "centre_y", "size_x", "size_y"))},
        "depth": depths.astype(np.int32),
        "converged_share": 1.0 - diverged.mean(axis=(1, 2), dtype=np.float64).astype(np.float32),
        "edge_share": found.mean(axis=(1, 2), dtype=np.float64).astype(np.float32),
    }
