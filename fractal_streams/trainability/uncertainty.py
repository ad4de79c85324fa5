"""The uncertainty exponent: how often a label flips at a distance, and the dimension that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole
from fractal_streams.trainability.boxes import line_fit, power_sizes
from fractal_streams.trainability.dimension import RESAMPLES, Dimension, framed, frames_in, of_bootstrap, resampled
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.window import Window, value_at

if TYPE_CHECKING:
    from fractal_streams.trainability.trainer import Trainer

DISTANCES = tuple(2.0**-power for power in range(4, 13))
"""Distances of points that are trained anew, in widths of the window."""
PATCHES = 8
"""Patches along each side of a picture that its bootstrap draws from."""
PARTS = 512
"""Most parts that a bootstrap draws from; more points are added up in as many groups."""
BEND = 0.05
"""Relative deviation from a power law that no number of points takes away."""


def uncertainty_exponent(
    measures: Any, *, distances: Sequence[int] | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Dimension:
    """2 minus the exponent a of f(d) ~ d**a, f the share of points whose label differs from the one d pixels on.

    Args:
        measures: frames of one size, see `dimension.edge_maps_of`: signed measures, labels, scans, a zoom.
        distances: pixels, along rows and along columns; None is powers of two from 1 to a 16th of the frame.
        seed: of the bootstrap, which draws patches of 8 by 8 to a frame.
        resamples: bootstrap samples.

    Returns: its `frames` hold one frame, of all pictures together: the distances and f.

    Raises:
        InvalidValueError: labels flip at fewer than two distances.

    Example:
        >>> from fractal_streams.trainability.calibration import find_shape
        >>> round(uncertainty_exponent(find_shape("line").labels(256)).value, 1)
        1.0
    """
    flips, pairs, steps = [], [], distances
    for each in frames_in(measures):
        values = np.asarray(getattr(each, "measure", each))
        labels = values != 0 if values.dtype.kind in "bu" else ~(values < 0)
        if labels.ndim != 2:
            raise InvalidValueError(f"a frame must be (H, W), got the shape {labels.shape}")
        if steps is None:
            steps = (1, *power_sizes(min(labels.shape)))
        for step in steps:
            whole(step, "a distance", 1, min(labels.shape) // 2, "pixels")
        patches = [patched(labels, step) for step in steps]
        flips.append(np.stack([flipped for flipped, _ in patches], axis=1))
        pairs.append(np.stack([count for _, count in patches], axis=1))
    if not flips or steps is None:
        raise InvalidValueError("no frames to measure: give at least one")
    return fitted(np.asarray(steps, np.float64), np.concatenate(flips), np.concatenate(pairs), seed, resamples)


def patched(labels: Any, step: int) -> tuple[Float64, Float64]:
    """(64,) pairs of pixels at a distance with different labels, and (64,) pairs, by the patch of their first pixel."""
    flips, pairs = np.zeros(PATCHES**2), np.zeros(PATCHES**2)
    for first, second in ((labels[step:], labels[:-step]), (labels[:, step:], labels[:, :-step])):
        differ = first != second
        rows, columns = (np.arange(PATCHES) * side // PATCHES for side in differ.shape)
        summed = np.add.reduceat(np.add.reduceat(differ, rows, axis=0, dtype=np.int64), columns, axis=1)
        heights, widths = (np.diff([*starts, side]) for starts, side in zip((rows, columns), differ.shape, strict=True))
        flips += summed.ravel()
        pairs += np.outer(heights, widths).ravel()
    return flips, pairs


def trained_uncertainty(
    experiment: Experiment,
    window: Window,
    *,
    trainer: Trainer,
    points: int = 2048,
    distances: Sequence[float] = DISTANCES,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Dimension:
    """The dimension by the uncertainty exponent, from networks trained at random points and beside them.

    A point is uncertain at a distance if the label differs at either of the two points so far from it, in a direction
    of its own, the same at every distance.

    Args:
        experiment, window: the plane, and where in it the points lie, uniformly in the window's own coordinates.
        trainer: trains points * (1 + 2 * len(distances)) networks.
        points: 16 to 10**7.
        distances: in widths of the window, (0, 0.5].
        seed: of points, directions and the bootstrap, which draws points.
        resamples: bootstrap samples.

    Raises:
        InvalidValueError: labels flip at fewer than two distances: the window has no boundary, or too few points.
    """
    whole(points, "points", 16, 10**7, "points")
    steps = np.asarray(distances, np.float64)
    if steps.ndim != 1 or len(steps) < 2 or not ((steps > 0.0) & (steps <= 0.5)).all():
        raise InvalidValueError(f"distances must be two or more numbers in (0, 0.5], got {distances!r}")
    key = rng.key("trainability@1", "uncertainty", whole(seed, "seed", 0, 2**64 - 1, ""))
    across, up, turn, _ = (word * 2.0**-32 for word in rng.words(np.arange(points, dtype=np.int64), key))
    direction = np.stack([np.cos(2.0 * np.pi * turn), np.sin(2.0 * np.pi * turn)], axis=1)
    place = np.stack([across, up], axis=1) - 0.5
    labels = trainer.train(experiment, values_in(window, place)).converged
    flips = [
        (trainer.train(experiment, values_in(window, place + step * direction)).converged != labels)
        | (trainer.train(experiment, values_in(window, place - step * direction)).converged != labels)
        for step in steps
    ]
    found = np.stack(flips, axis=1).astype(np.float64)
    return fitted(steps, found, np.ones_like(found), seed, resamples)


def values_in(window: Window, place: Float64) -> Float64:
    """(N, 2) values of the axes at places from the window's middle, in its widths."""
    return np.stack(
        [
            value_at(window.centre[axis], window.offset[axis] + window.size[axis] * place[:, axis], window.linear[axis])
            for axis in (0, 1)
        ],
        axis=1,
    )


def fitted(steps: Float64, flips: Float64, pairs: Float64, seed: int, resamples: int) -> Dimension:
    """The dimension of (U, K) flips out of (U, K) pairs at K distances, U the parts that the bootstrap draws from.

    Each distance weighs as much as its logarithm is known: by the number of its flips, up to `BEND`.
    """
    whole(resamples, "resamples", 100, 10**6, "samples")
    if len(flips) > PARTS:
        starts = np.arange(PARTS) * len(flips) // PARTS
        flips, pairs = (np.add.reduceat(each, starts, axis=0) for each in (flips, pairs))
    total = flips.sum(axis=0)
    if np.count_nonzero(total) < 2:
        raise InvalidValueError(
            f"labels flip at {np.count_nonzero(total)} of {len(steps)} distances, and a power law needs two: give a "
            f"window on the boundary, more points or larger distances"
        )
    kept = total > 0
    steps, flips, pairs = steps[kept], flips[:, kept], pairs[:, kept]
    share = flips.sum(axis=0) / pairs.sum(axis=0)
    weights = 1.0 / (1.0 / total[kept] + BEND**2)
    fit = line_fit(np.log(steps), np.log(share), weights)
    frame = framed(steps, share, 2.0 - np.gradient(np.log(share), np.log(steps)), 2.0 - fit.slope, fit)
    drawn = []
    for picked in resampled(len(flips), resamples, seed):
        often = np.bincount(picked, minlength=len(flips))
        some, of = often @ flips, often @ pairs
        there = some > 0
        if np.count_nonzero(there) > 1:
            again = line_fit(np.log(steps[there]), np.log(some[there] / of[there]), weights[there])
            drawn.append(2.0 - again.slope)
    return of_bootstrap("uncertainty", 2.0 - fit.slope, np.array(drawn), [frame])
