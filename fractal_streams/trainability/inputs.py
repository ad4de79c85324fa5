"""What every point of a plane shares: initial weights, data, the order of minibatches, a probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.experiment import EXPERIMENT_VERSION, Experiment, Float64

PUBLISHED_SHAPES = {
    (16, 272): "tanh_relu",
    (16, 16): "identity",
    (16, 1): "single",
    (8, 72): "tanh_width8",
}
"""(width, rows) of the published arrays, and their name."""
COUNTERS = 2**20
"""Random words drawn at once for the order of minibatches, so that long runs need no more memory than their order."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arrays of an experiment, float64, read-only.

    weights: a layer each: (n, n), rows are inputs, and (n, 1) of the last; before `scale` and `offset`.
    x: (D, n). y: (D,). order: (T, batch_size) int64 rows of each step's minibatch, None for full batch.
    probe: (n,), an input that is not in the data.
    """

    weights: tuple[Float64, ...]
    x: Float64
    y: Float64
    order: npt.NDArray[np.int64] | None
    probe: Float64


@lru_cache(maxsize=64)
def inputs_of(experiment: Experiment) -> Inputs:
    """The arrays that an experiment trains with.

    Native draws are normal deviates of named Philox keys, rounded to float32, so that they are the same on every
    machine and in every precision; a longer run takes the minibatches of a shorter one and goes on.

    Raises:
        InvalidValueError: published arrays of a shape that was not published.

    Example:
        >>> arrays = inputs_of(Experiment(width=8))
        >>> [layer.shape for layer in arrays.weights], arrays.x.shape
        ([(8, 8), (8, 1)], (72, 8))
    """
    made = published(experiment) if experiment.inputs == "published" else native(experiment)
    for array in (*made.weights, made.x, made.y, made.probe, *(() if made.order is None else (made.order,))):
        array.flags.writeable = False
    return made


def native(experiment: Experiment) -> Inputs:
    """The draws that an experiment's seeds name."""
    width, rows, name = experiment.width, experiment.rows, f"trainability@{EXPERIMENT_VERSION}"
    shapes = [(width, width)] * (experiment.depth - 1) + [(width, 1)]
    weights = tuple(
        normal(shape, rng.key(name, "weights", experiment.weight_seed, layer)) for layer, shape in enumerate(shapes)
    )
    x = normal((rows, width), rng.key(name, "x", experiment.data_seed))
    y = normal((rows,), rng.key(name, "y", experiment.data_seed))
    probe = normal((width,), rng.key(name, "probe", experiment.data_seed))
    return Inputs(weights, x, y, order_of(experiment, rng.key(name, "order", experiment.order_seed)), probe)


def normal(shape: tuple[int, ...], key: tuple[int, int]) -> Float64:
    """Normal deviates by Box and Muller (1958), rounded to float32, as float64."""
    count = int(np.prod(shape))
    first, second, third, fourth = rng.words(np.arange(count, dtype=np.int64), key)
    radius = np.sqrt(-2.0 * np.log((first * 2.0**32 + second + 1.0) * 2.0**-64))
    drawn = radius * np.cos((third * 2.0**32 + fourth) * (2.0 * np.pi * 2.0**-64))
    return drawn.astype(np.float32).astype(np.float64).reshape(shape)


def order_of(experiment: Experiment, key: tuple[int, int]) -> npt.NDArray[np.int64] | None:
    """(T, batch_size) rows; step t depends on (key, t) alone."""
    if experiment.batch_size is None:
        return None
    rows, size = experiment.rows, experiment.batch_size
    across = size if experiment.replacement else rows
    together = max(1, COUNTERS // across)
    parts = []
    for start in range(0, experiment.steps, together):
        steps = np.arange(start, min(start + together, experiment.steps))
        counters = steps[:, None] * 2**32 + np.arange(across)
        word = rng.words(counters.reshape(-1), key)[0].reshape(counters.shape).astype(np.uint64)
        drawn = word * np.uint64(rows) >> np.uint64(32) if experiment.replacement else np.argsort(word, 1, "stable")
        parts.append(drawn[:, :size].astype(np.int64))
    return np.concatenate(parts)


def published(experiment: Experiment) -> Inputs:
    """The arrays of the paper, drawn by its author's key recipe."""
    shape = (experiment.width, experiment.rows)
    if experiment.depth != 2 or shape not in PUBLISHED_SHAPES:
        shapes = ", ".join(f"width {width} with {rows} rows" for width, rows in PUBLISHED_SHAPES)
        raise InvalidValueError(
            f"inputs='published' exist for depth 2 and {shapes}; this experiment has depth {experiment.depth}, "
            f"width {shape[0]} and {shape[1]} rows: use inputs='native'"
        )
    seeds = (experiment.weight_seed, experiment.data_seed, experiment.order_seed)
    if any(seeds):
        raise InvalidValueError(f"inputs='published' have no seeds, got {seeds}: leave them at 0, or use 'native'")
    name, arrays = PUBLISHED_SHAPES[shape], published_arrays()
    x, y = arrays[f"{name}/X"], arrays[f"{name}/Y"][:, 0]
    order = None
    if experiment.batch_size is not None:
        found = arrays.get(f"minibatch/index_{experiment.steps}")
        if found is None or experiment.batch_size != 16 or not experiment.replacement or experiment.rows != 272:
            raise InvalidValueError(
                f"inputs='published' have minibatches of 16 rows with replacement, for 500 or 1000 steps and 272 rows; "
                f"this experiment has batch_size={experiment.batch_size}, steps={experiment.steps}: use inputs='native'"
            )
        order = found.astype(np.int64)
    probe = normal((experiment.width,), rng.key(f"trainability@{EXPERIMENT_VERSION}", "probe", 0))
    return Inputs((arrays[f"{name}/W0"].copy(), arrays[f"{name}/W1"].copy()), x.copy(), y.copy(), order, probe)


@lru_cache(maxsize=1)
def published_arrays() -> dict[str, npt.NDArray[Any]]:
    """Name to array of the package's own file."""
    with (
        resources.as_file(resources.files("fractal_streams.trainability") / "published.npz") as path,
        np.load(path) as z,
    ):
        return {name: z[name] for name in z.files}
