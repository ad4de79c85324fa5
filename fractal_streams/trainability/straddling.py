"""Pairs of points on either side of the boundary, a chosen distance apart, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_streams.rng import Int64
from fractal_streams.trainability.experiment import Float64
from fractal_streams.trainability.trained_stream import cell_uniforms, uniforms
from fractal_streams.trainability.window import Window, value_at

ROW = 16
"""Points of the coarse row in which a change of the label is looked for."""
ATTEMPTS = 16
"""Rows that are tried, one after the other."""

Key = tuple[int, int]
Labels = Callable[[Float64], npt.NDArray[np.bool_]]


@dataclass(eq=False)
class Segments:
    """Lines in a window, cut into steps of the distance that the pairs shall have.

    start: (B, 2) where step 0 lies, in the coordinates of the window: decades from its centre, or units.
    direction: (B, 2) of length 1. distance: (B,). halvings: (B,) int64, the coarse row has every 2**halvings-th step.
    """

    start: Float64
    direction: Float64
    distance: Float64
    halvings: Int64

    def at(self, steps: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Float64:
        """(..., 2) places of steps, (len(rows), ...), of the segments `rows`."""
        wide = (slice(None), *(None,) * (steps.ndim - 1))
        along = steps * self.distance[rows][wide]
        return self.start[rows][(*wide, slice(None))] + along[..., None] * self.direction[rows][(*wide, slice(None))]


def uniform_places(window: Window, indices: Int64, key: Key) -> Float64:
    """(B, 2) places drawn evenly from a window, in its coordinates."""
    drawn = zip(window.offset, window.size, uniforms(indices, key), strict=True)
    return np.stack([offset + size * (unit - 0.5) for offset, size, unit in drawn], axis=1)


def values_of(window: Window, places: Float64) -> Float64:
    """(N, 2) values of the axes at (N, 2) places in the coordinates of a window."""
    return np.stack([value_at(window.centre[k], places[:, k], window.linear[k]) for k in (0, 1)], axis=1)


def segments(window: Window, pairs: Int64, distance: Float64, key_of: Callable[[str], Key]) -> Segments:
    """A segment for each pair: the middle part of a line between two places drawn evenly from the window.

    It has ROW - 1 steps, each 2**halvings times the distance, as many as fit the line; none fit where halvings
    are below 0.
    """
    ends = [uniform_places(window, pairs, key_of(name)) for name in ("from", "to")]
    across = ends[1] - ends[0]
    length = np.sqrt(across[:, 0] * across[:, 0] + across[:, 1] * across[:, 1])
    halvings = np.frexp(length / ((ROW - 1) * distance))[1].astype(np.int64) - 1
    direction = across / length[:, None]
    whole = np.ldexp((ROW - 1) * distance, halvings.astype(np.int32))
    start = 0.5 * (ends[0] + ends[1]) - 0.5 * whole[:, None] * direction
    return Segments(start, direction, distance, halvings)


def straddling(
    window: Window, pairs: Int64, distance: Float64, key_of: Callable[[str, int], Key], labels_at: Labels
) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """For each pair, two places with different labels, a step of `distance` apart.

    A row of 16 points of a drawn segment is trained; one of the changes of the label in it is drawn, and halved
    until its ends are a step apart. A row without a change is followed by the next attempt's, up to 16.

    Args:
        pairs: (B,) int64 that the draws belong to. distance: (B,).
        key_of: the key of a named draw of an attempt.
        labels_at: whether runs at (N, 2) places in the window's coordinates diverge.

    Returns:
        (B, 2, 2) float64: pair, end, coordinate; and (B,) bool, whether a change was found.
    """
    count = len(pairs)
    found, low = np.zeros(count, bool), np.zeros(count, np.int64)
    side = np.zeros(count, bool)
    kept = Segments(np.zeros((count, 2)), np.zeros((count, 2)), distance, np.zeros(count, np.int64))
    for attempt in range(ATTEMPTS):
        left = np.flatnonzero(~found)
        if not len(left):
            break
        drawn = segments(window, pairs[left], distance[left], lambda name, attempt=attempt: key_of(name, attempt))  # type: ignore[misc]
        usable = np.flatnonzero(drawn.halvings >= 0)
        steps = np.arange(ROW) << drawn.halvings[usable][:, None]
        row = labels_at(drawn.at(steps, usable).reshape(-1, 2)).reshape(-1, ROW)
        changes = row[:, 1:] != row[:, :-1]
        draw = cell_uniforms(pairs[left[usable]], ROW - 1, key_of("crossing", attempt))
        chosen = np.where(changes, draw, 2.0).argmin(axis=1)
        crossed = np.flatnonzero(changes.any(axis=1))
        mine, of = left[usable[crossed]], usable[crossed]
        found[mine], low[mine] = True, steps[crossed, chosen[crossed]]
        side[mine] = row[crossed, chosen[crossed]]
        kept.start[mine], kept.direction[mine] = drawn.start[of], drawn.direction[of]
        kept.halvings[mine] = drawn.halvings[of]
    low = bisected(kept, low, side, labels_at)
    return kept.at(np.stack([low, low + 1], axis=1), np.arange(count)), found


def bisected(lines: Segments, low: Int64, side: npt.NDArray[np.bool_], labels_at: Labels) -> Int64:
    """The step before a change of the label, between steps `low`, whose label is `side`, and low + 2**halvings."""
    low, halvings = low.copy(), lines.halvings.copy()
    while (halvings > 0).any():
        open_ = np.flatnonzero(halvings > 0)
        halvings[open_] -= 1
        middle = low[open_] + (np.int64(1) << halvings[open_])
        same = labels_at(lines.at(middle, open_)) == side[open_]
        low[open_] = np.where(same, middle, low[open_])
    return low
