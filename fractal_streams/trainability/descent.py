"""Walks inwards: from a window to a deep one at the boundary, by halves, each place drawn by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fractal_streams.rng import Int64
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.experiment import Float64
from fractal_streams.trainability.trained_stream import cell_uniforms, uniforms
from fractal_streams.trainability.window import Window

SCAN = 24
"""Points along each side of the coarse scan of each window on the way."""
HALF = SCAN // 2
KEPT_LEVELS = 2
"""Scans of windows so many halvings deep or less are kept: the first, and one for each cell of it at most."""

Map = npt.NDArray[np.bool_]
Labels = Callable[[Float64], Map]


class Descent:
    """Walks from one window. Scans that many walks share are made once; what a walk finds does not depend on it.

    Args:
        start: the window that every walk begins at.
        labels_at: whether runs at (N, 2) values of the axes diverge.
    """

    def __init__(self, start: Window, labels_at: Labels) -> None:
        self.start, self.labels_at = start, labels_at
        self._kept: dict[Window, Map] = {}

    def windows(self, indices: Int64, depths: Int64, key_of: Callable[[str, int], tuple[int, int]]) -> list[Window]:
        """The window at the end of each walk, `start` halved as often as its depth says.

        In each window 24 x 24 points are trained. A cell of four neighbours with both labels is drawn, in proportion
        to how mixed the half window around it is: the points of its rarer label times its cells with both labels. The
        half window around it, moved as far as needed to stay inside, is the next; the last is then shifted by a draw,
        half a cell at most. A window without such a cell is followed by its own middle.

        Args:
            indices: (B,) that the draws belong to. depths: (B,) halvings, 0 and up.
            key_of: the key of a named draw at a depth.
        """
        windows = [self.start] * len(indices)
        for depth in range(int(depths.max(initial=0))):
            walking = np.flatnonzero(depths > depth)
            maps = self._maps([windows[walk] for walk in walking], depth)
            draws = cell_uniforms(indices[walking], (SCAN - 1) ** 2, key_of("cell", depth))
            within = uniforms(indices[walking], key_of("within", depth))
            for place, walk in enumerate(walking):
                last = depths[walk] == depth + 1
                shift = (float(within[0][place]), float(within[1][place])) if last else (0.5, 0.5)
                about = chosen_centre(maps[place], draws[place], shift)
                windows[walk] = windows[walk].scaled(0.5, about).recentred()
        return windows

    def _maps(self, windows: Sequence[Window], depth: int) -> list[Map]:
        """The coarse map of each window, those not kept in one call of the trainer."""
        kept = self._kept
        fresh = list(dict.fromkeys(window for window in windows if window not in kept))
        made: dict[Window, Map] = {}
        if fresh:
            labels = self.labels_at(np.concatenate([window.grid(SCAN).points() for window in fresh]))
            made = dict(zip(fresh, labels.reshape(-1, SCAN, SCAN), strict=True))
        found = [made[window] if window in made else kept[window] for window in windows]
        if depth < KEPT_LEVELS:
            kept.update(made)
        return found


def chosen_centre(labels: Map, draws: Float64, within: tuple[float, float]) -> tuple[float, float]:
    """(x, y) in [0.25, 0.75], the middle of the next window in parts of this one; see `Descent.windows`.

    The cell is that whose exponential waiting time, of a rate as large as it is mixed, ends first: so a label that
    another machine rounds otherwise rarely leads elsewhere.

    Args:
        labels: (24, 24) bool. draws: (529,) in (0, 1), of each cell. within: (x, y) in (0, 1), where in the cell.

    Example:
        >>> chosen_centre(np.arange(24)[None, :] > np.full((24, 1), 11), np.linspace(0.9, 0.1, 529), (0.5, 0.5))
        (0.5, 0.25)
    """
    chances = mixing(labels).ravel()
    if not chances.any():
        return 0.5, 0.5
    with np.errstate(divide="ignore"):
        row, column = divmod(int(np.argmin(-np.log(draws) / chances)), SCAN - 1)
    at = (column + 0.5) / (SCAN - 1), (row + 0.5) / (SCAN - 1)
    x, y = (shifted(middle, (part - 0.5) / (SCAN - 1)) for middle, part in zip(at, within, strict=True))
    return x, y


def shifted(place: float, shift: float) -> float:
    """The place moved into [0.25, 0.75], so that a half window around it fits, and shifted there, inwards at the ends.

    Example:
        >>> shifted(0.5, 0.125), shifted(0.1, -0.125), shifted(0.8, 0.125)
        (0.625, 0.375, 0.625)
    """
    moved = min(max(place, 0.25), 0.75) + shift
    return 0.5 - moved if moved < 0.25 else 1.5 - moved if moved > 0.75 else moved


def mixing(labels: Map) -> npt.NDArray[np.int64]:
    """(23, 23) int64: how mixed the half window around each cell with both labels is, see `Descent.windows`; else 0."""
    mixed = edges(labels)
    first = np.clip(np.arange(SCAN - 1) + 1 - HALF // 2, 0, SCAN - HALF)
    diverged = box_sums(labels, first, first + HALF)
    return np.where(mixed, np.minimum(diverged, HALF * HALF - diverged) * box_sums(mixed, first, first + HALF - 1), 0)


def box_sums(labels: Map, low: Int64, high: Int64) -> npt.NDArray[np.int64]:
    """(n, n) int64: how many are true in rows low[i] to high[i] - 1 and columns low[j] to high[j] - 1."""
    sums = np.zeros((labels.shape[0] + 1, labels.shape[1] + 1), np.int64)
    sums[1:, 1:] = labels.astype(np.int64).cumsum(axis=0).cumsum(axis=1)
    return sums[high][:, high] - sums[low][:, high] - sums[high][:, low] + sums[low][:, low]
