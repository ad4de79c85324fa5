"""Boundaries of basins: walks to a point of one, so that zooms are never of one colour; and how fractal they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.basins import Chart, EndRule, end_table
from fractal_streams.kaleidoscope.chain import Engine, models_of
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.kaleidoscope.planes import Plane
from fractal_streams.kaleidoscope.starts import KeyOf, unit_table
from fractal_streams.rng import Int64
from fractal_streams.spec import whole

PROBES = 24
"""Points of a plane that are looked at for two that end differently."""
HALVINGS = 4
PARTS = 2**HALVINGS
"""Parts that a segment is cut into at a time."""
SLACK = 5
"""Halvings beyond a picture's own: 1.5 because two points of a square lie up to 2.83 half widths apart, and 3 to know
the boundary to an eighth of the last half width."""
SHIFTS = tuple(2.0**-k for k in range(3, 14))


def segments(chart: Chart, indices: Int64, planes: Sequence[Plane], aspect: float, key_of: KeyOf) -> Float64:
    """(B, 2, 2) float64: two points (x, y) of each plane that end differently, drawn by name; NaN where none is found.

    24 points are drawn evenly in each rectangle, and two of them; ends that are known go before -1, at none.

    Args:
        chart: of these planes. indices: (B,) that the draws belong to.
        aspect: height over width of the rectangles. key_of: names the draws.
    """
    drawn = 2.0 * unit_table(indices, 2 * PROBES, key_of("probe")).reshape(len(indices), PROBES, 2) - 1.0
    reach = np.array([plane.half_width for plane in planes]).reshape(-1, 1, 1) * np.array([1.0, aspect])
    points = np.array([plane.centre for plane in planes]).reshape(-1, 1, 2) + reach * drawn
    rows = np.repeat(np.arange(len(indices)), PROBES)
    ends = chart.rows(rows, points[..., 0].reshape(-1), points[..., 1].reshape(-1)).reshape(-1, PROBES)
    first, second = np.triu_indices(PROBES, 1)
    pair, there = preferred(ends[:, first], ends[:, second], unit_table(indices, len(first), key_of("pair")))
    of = np.arange(len(indices))
    found = np.stack([points[of, first[pair]], points[of, second[pair]]], axis=1)
    found[~there] = np.nan
    return found


def preferred(
    first: Int64, second: Int64, draws: Float64
) -> tuple[Int64, npt.NDArray[np.bool_]]:  # fmt: skip
    """(B,) which of (B, P) pairs of ends is taken, and whether it is of two: the least draw of those of known ends."""
    score = np.where((first < 0) | (second < 0), 1.0, 0.0) + draws
    score = np.where(first == second, np.inf, score)
    return score.argmin(axis=1), np.isfinite(score.min(axis=1, initial=np.inf))


def boundary_points(chart: Chart, indices: Int64, segment: Float64, halvings: Int64, key_of: KeyOf) -> Float64:
    """(B, 2) float64 points (x, y) of each plane at a boundary, by cutting segments whose ends differ.

    A segment is cut into 16 parts, and one of those whose ends differ is drawn by name; and so on, until it is the
    first half width halved `halvings` times over 8, or shorter. The walk of more halvings goes on where that of fewer
    ended.

    Args:
        segment: (B, 2, 2), from `segments`; NaN is given back as it is.
        halvings: (B,) of the picture's half width, 0 and up.
    """
    ends, middle = np.array(segment), np.full((len(indices), 2), np.nan)
    rounds = -(-(np.asarray(halvings) + SLACK) // HALVINGS)
    walking = np.flatnonzero(~np.isnan(ends[:, 0, 0]))
    share = np.arange(PARTS + 1) / PARTS
    for number in range(int(rounds[walking].max(initial=0))):
        walking = walking[rounds[walking] > number]
        low, high = ends[walking, 0], ends[walking, 1]
        points = low[:, None] + share[:, None] * (high - low)[:, None]
        points[:, -1] = high
        rows = np.repeat(walking, PARTS + 1)
        found = chart.rows(rows, points[..., 0].reshape(-1), points[..., 1].reshape(-1)).reshape(-1, PARTS + 1)
        draws = unit_table(indices[walking], PARTS, key_of("part", number))
        part, there = preferred(found[:, :-1], found[:, 1:], draws)
        of = np.arange(len(walking))
        cut = np.stack([points[of, part], points[of, part + 1]], axis=1)
        ends[walking[there]] = cut[there]
    there = ~np.isnan(ends[:, 0, 0])
    middle[there] = 0.5 * (ends[there, 0] + ends[there, 1])
    return middle


def shifted_views(
    planes: Sequence[Plane], indices: Int64, points: Float64, halvings: Int64, aspect: float, key_of: KeyOf
) -> list[Plane]:
    """Planes about boundary points, their half widths halved so often, moved by up to half of the picture by name.

    Planes of 0 halvings, and those whose point is NaN, stay as they are.
    """
    drawn = unit_table(indices, 2, key_of("within")) - 0.5 if len(indices) else np.zeros((0, 2))
    found = []
    for plane, point, depth, shift in zip(planes, points, halvings, drawn, strict=True):
        if depth and not np.isnan(point[0]):
            plane = plane.zoomed((0.0, 0.0), 2.0 ** int(depth))
            centre = point + plane.half_width * np.array([1.0, aspect]) * shift
            plane = plane.zoomed((float(centre[0]), float(centre[1])), 1.0)
        found.append(plane)
    return found


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """How often the end of a chain changes under a small shift of its start.

    shifts: parts of the half width, falling. shares: of the points whose end changes, one for each shift.
    points: that were tried. exponent: of shares ~ shifts ** exponent, by least squares of logarithms over the shifts
        that changed at least 10 points; NaN with fewer than three of them.

    C. Grebogi, S. McDonald, E. Ott, J. Yorke, "Final state sensitivity", Physics Letters A 99 (1983).
    """

    shifts: tuple[float, ...]
    shares: tuple[float, ...]
    points: int
    exponent: float

    @property
    def dimension(self) -> float:
        """Of the boundary in the plane: 2 minus the exponent."""
        return 2.0 - self.exponent


def uncertainty(
    fitted: Kaleidoscope, plane: Plane, *, model: int = 0, shifts: Sequence[float] = SHIFTS, points: int = 2000,
    seed: int = 0, rule: EndRule | None = None, engine: Engine | None = None, device: str = "auto",
) -> Uncertainty:  # fmt: skip
    """The uncertainty exponent of the basins in a square of a plane.

    Args:
        shifts: parts of the half width, falling, in (0, 1): points move so far to both sides along x.
        points: drawn evenly by name, 10 to 1,000,000.

    Raises:
        InvalidValueError: shifts or points out of their range.
    """
    parts = tuple(float(shift) for shift in shifts)
    if not parts or not all(0.0 < part < 1.0 for part in parts) or list(parts) != sorted(set(parts), reverse=True):
        raise InvalidValueError(f"shifts must fall, each in (0, 1), got {shifts!r}")
    count = whole(points, "points", 10, 1_000_000, "points")
    asked, key_of = rule or EndRule(), partial(rng.key, "basin-uncertainty", seed)
    used = open_engine(fitted, device) if engine is None else engine
    chart = Chart(used, end_table(fitted, asked.ends), asked, [plane], models_of(np.array([model]), 1, fitted))
    drawn = 2.0 * unit_table(np.arange(count), 2, key_of("point")) - 1.0
    x, y = plane.centre[0] + plane.half_width * drawn[:, 0], plane.centre[1] + plane.half_width * drawn[:, 1]
    steps = np.array([0.0, *(sign * part for part in parts for sign in (-1.0, 1.0))]) * plane.half_width
    right, high = (x + steps[:, None]).reshape(-1), np.tile(y, len(steps))
    ends = chart.rows(np.zeros(len(right), np.int64), right, high).reshape(len(steps), count)
    changed = ((ends[1::2] != ends[0]) | (ends[2::2] != ends[0])).mean(axis=1)
    enough = changed * count >= 10
    exponent = math.nan
    if enough.sum() >= 3:
        exponent = float(np.polyfit(np.log(np.array(parts)[enough]), np.log(changed[enough]), 1)[0])
    return Uncertainty(shifts=parts, shares=tuple(map(float, changed)), points=count, exponent=exponent)
