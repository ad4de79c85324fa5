"""Ranks of a measure on each side of the boundary, from -1 to 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Float64

PALEST = 0.25
"""Least absolute value that a rank is given: the palest quarter of the colours stays unused."""


@dataclass(frozen=True, eq=False)
class RankTable:
    """The ranks of a measure on each side of the boundary, as points of two rising lines.

    converged, diverged: (values, levels), each (n,) float64: measures of one sign in rising order, and what
    each becomes. Levels rise from -1 to -0.25 over the converged and from 0.25 to 1 over the diverged.
    """

    converged: tuple[Float64, Float64]
    diverged: tuple[Float64, Float64]

    @classmethod
    def of(cls, measure: npt.ArrayLike, points: int | None = None) -> RankTable:
        """The table of all values of a measure but NaN, or of `points` of each sign, evenly spaced by rank."""
        flat = np.asarray(measure, np.float64).ravel()
        if points is not None:
            whole(points, "points", 2, 2**24, "points")
        return cls(
            _line(np.sort(flat[flat < 0]), -1.0, -PALEST, points), _line(np.sort(flat[flat >= 0]), PALEST, 1.0, points)
        )

    def filled(self, other: RankTable) -> RankTable:
        """This table, with the other's side where this has none."""
        return RankTable(
            self.converged if len(self.converged[0]) else other.converged,
            self.diverged if len(self.diverged[0]) else other.diverged,
        )

    def values(self, measure: npt.ArrayLike) -> Float64:
        """Values in [-1, -0.25] and [0.25, 1] of a measure: straight lines between the table's points.

        Equal points take the last one's rank; beyond the outermost points of a side its values stay those of
        the ends, so that the sign is always the label. A side that the table lacks is 1 or -1, NaN stays NaN.
        """
        array = np.asarray(measure, np.float64)
        found = np.full(array.shape, np.nan)
        for side, (points, levels), empty in (
            (array < 0, self.converged, -1.0), (array >= 0, self.diverged, 1.0),
        ):  # fmt: skip
            found[side] = -_interpolated(array[side], points, levels) if len(points) else -empty
        return found


def _interpolated(values: Float64, points: Float64, levels: Float64) -> Float64:
    """(N,) levels at values; in rising order, because each then finds its neighbours where the last one did."""
    order = np.argsort(values)
    found = np.empty(len(values))
    found[order] = np.interp(values[order], points, levels)
    return found


def _line(values: Float64, low: float, high: float, points: int | None) -> tuple[Float64, Float64]:
    """Sorted values and their levels, evenly from `low` to `high` by rank; thinned to so many points."""
    levels = np.linspace(low, high, len(values))
    if points is None or len(values) <= points:
        return values, levels
    kept = np.linspace(0, len(values) - 1, points).round().astype(np.int64)
    return values[kept], levels[kept]


def restretch(measure: npt.ArrayLike, reference: npt.ArrayLike | None = None) -> Float64:
    """Values in [-1, 1] of a measure by its rank among a reference's values of the same sign.

    Converged runs (V < 0) get 0.25 (fast) to 1 (slow), diverged ones -0.25 (fast) to -1 (slow); between the
    reference's values the map is linear in V. Infinities take part, as the slowest; NaN stays NaN. Not comparable
    between pictures with references of their own (J. Sohl-Dickstein 2024, his notebook).

    Args:
        measure: float64 of any shape, V.
        reference: any shape; the measure itself if None. A sign that it lacks is ranked in the measure.

    Example:
        >>> restretch([-500.0, -3.0, -20.0, 2.0, 90.0])
        array([ 1.   ,  0.25 ,  0.625, -0.25 , -1.   ])
    """
    own = measure if reference is None else reference
    table = RankTable.of(own)
    if reference is not None and not (len(table.converged[0]) and len(table.diverged[0])):
        table = table.filled(RankTable.of(measure))
    return table.values(measure)
