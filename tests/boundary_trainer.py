"""A trainer without networks: labels by a formula of the point, so that a zoom is instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fractal_streams.trainability.outcome import Outcome, Readout

Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Killed(BaseException):
    """What a signal would be: no handler of errors stops it."""


class BoundaryTrainer:
    """Diverged where a formula of the values (x, y) is above 0; |V| falls with its size.

    kill_after: points after which it raises `Killed`.
    """

    device, precision, mode = "cpu", "float64", "exact"

    def __init__(self, formula: Formula, kill_after: float = float("inf")) -> None:
        self.formula, self.left, self.trained = formula, kill_after, 0

    def train(self, experiment: Any, points: Any, readout: Readout | None = None) -> Outcome:
        self.left -= len(points)
        if self.left < 0:
            raise Killed
        self.trained += len(points)
        high = self.formula(points[:, 0], points[:, 1])
        size = 1.0 + 1.0 / (1e-9 + np.abs(high))
        steps = np.full(len(points), 7, np.int32)
        return Outcome(np.where(high > 0, size, -size), steps, np.ones(len(points)))


def wavy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log10 y above a curve through the whole overview."""
    across = np.log10(x)
    return np.log10(y) - 1.0 - np.sin(1.3 * across) - 0.2 * np.sin(7.0 * across)


def jagged(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A Weierstrass curve: waves of every length down to 1e-8 decades, so that its edge is rough in every window."""
    across = np.log10(x)
    return np.log10(y) - sum(0.55**k * np.sin(3.0**k * (across + 0.37 * k)) for k in range(18))
