"""Edges of a map and the boxes that hold some of them: what every box-counting dimension is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import one_of, whole
from fractal_streams.trainability.experiment import Float64

EdgeMap = npt.NDArray[np.bool_]
Counting = Literal["some", "any"]
SMALLEST = 16
"""Pixels along each side that a map needs for its boxes to be counted."""


@dataclass(frozen=True)
class Fit:
    """A straight line: slope, its standard error (0.0 for two points), r squared, and the height at 0."""

    slope: float
    standard_error: float
    r_squared: float
    intercept: float


def edges(measure: npt.ArrayLike) -> EdgeMap:
    """(H - 1, W - 1) bool: 2x2 blocks of pixels over which the sign changes (max * min < 0, but safe from overflow).

    Args:
        measure: (H, W) signed measure; or labels, bool or unsigned integers, of which 0 is one side and all else
            the other.

    Raises:
        InvalidValueError: not two-dimensional, or fewer than 2 pixels along a side.

    Example:
        >>> edges([[-1.0, -2.0, 3.0], [-1.0, -2.0, 0.5]])
        array([[False,  True]])
    """
    values = np.asarray(measure)
    if values.ndim != 2 or min(values.shape) < 2:
        raise InvalidValueError(f"edges are of an (H, W) map of at least 2 by 2 pixels, got the shape {values.shape}")
    labels = values.dtype.kind in "bu"
    below, above = (values == 0, values != 0) if labels else (values < 0, values > 0)
    return block_any(below) & block_any(above)


def block_any(mask: EdgeMap) -> EdgeMap:
    """Whether any pixel of each 2x2 block is set."""
    rows = mask[:-1] | mask[1:]
    return rows[:, :-1] | rows[:, 1:]


def box_counts(edge_map: npt.ArrayLike, sizes: Iterable[int], *, counting: Counting = "some") -> npt.NDArray[np.int64]:
    """(K,) int64: boxes of each size that hold edges.

    Boxes tile the map from its first corner; those cut by the far sides count too.

    Args:
        edge_map: (H, W) bool.
        sizes: K sides of a box, pixels.
        counting: "some" counts boxes that hold some edges but not edges only, as porespy does and with it the
            published dimensions; "any" counts boxes that hold any.

    Raises:
        InvalidValueError: a map that isn't (H, W) bool, a size below 1.

    Example:
        >>> box_counts(np.eye(8, dtype=bool), (1, 2, 4), counting="any")
        array([8, 4, 2])
    """
    held = np.asarray(edge_map)
    one_of(counting, "counting", ("some", "any"))
    if held.ndim != 2 or held.dtype != np.bool_ or not held.size:
        raise InvalidValueError(
            f"edge_map must be (H, W) bool, got {held.dtype} of shape {held.shape}: take edges(...)"
        )
    summed = np.zeros((held.shape[0] + 1, held.shape[1] + 1), np.int32)
    np.cumsum(held, axis=0, dtype=np.int32, out=summed[1:, 1:])
    np.cumsum(summed[1:, 1:], axis=1, out=summed[1:, 1:])
    counts = []
    for size in sizes:
        step = whole(size, "a size", 1, 2**31 - 1, "pixels")
        rows, columns = (np.append(np.arange(0, side, step), side) for side in held.shape)
        inside = np.diff(np.diff(summed[np.ix_(rows, columns)], axis=0), axis=1)
        full = inside == np.outer(np.diff(rows), np.diff(columns)) if counting == "some" else False
        counts.append(np.count_nonzero((inside > 0) & ~np.asarray(full)))
    return np.array(counts, np.int64)


def published_sizes(side: int) -> tuple[int, ...]:
    """The paper's box sizes: ten powers of 10 between 10 pixels and the side, evenly spaced, rounded down.

    The last is one pixel short of the side where the power is a hair below it, as it was for the paper's numbers; at
    255 pixels that moves the median of the slopes by 0.03.

    Example:
        >>> published_sizes(4095)
        (10, 19, 38, 74, 144, 282, 551, 1075, 2098, 4095)
    """
    exponents = np.linspace(1.0, math.log10(checked_side(side)), 10)
    return tuple(sorted({int(10.0**exponent) for exponent in exponents.tolist()}))


def power_sizes(side: int) -> tuple[int, ...]:
    """Powers of two from 2 to a sixteenth of the side, and at least 2, 4 and 8.

    Example:
        >>> power_sizes(1024)
        (2, 4, 8, 16, 32, 64)
    """
    return tuple(2**power for power in range(1, max(3, (checked_side(side) // 16).bit_length() - 1) + 1))


def checked_side(side: int) -> int:
    """The side, or an `InvalidValueError` if it is too short for boxes of several sizes."""
    if side < SMALLEST:
        raise InvalidValueError(f"a dimension needs maps of at least {SMALLEST} pixels along each side, got {side}")
    return int(side)


def local_slopes(sizes: npt.ArrayLike, counts: npt.ArrayLike) -> Float64:
    """(K,) minus the slope of ln(count) over ln(size), of second order between the ends.

    Sizes without a box are left out.

    Example:
        >>> local_slopes((1, 2, 4), (16, 4, 1))
        array([2., 2., 2.])
    """
    size, count = np.asarray(sizes, np.float64), np.asarray(counts, np.float64)
    kept = count > 0
    if np.count_nonzero(kept) < 2:
        return np.empty(0)
    return -np.gradient(np.log(count[kept]), np.log(size[kept]))


def line_fit(x: Any, y: Any, weights: Any = None) -> Fit:
    """The least-squares line through (x, y), with the standard error of its slope.

    Example:
        >>> line_fit([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
        Fit(slope=2.0, standard_error=0.0, r_squared=1.0, intercept=1.0)
    """
    across, up = np.asarray(x, np.float64), np.asarray(y, np.float64)
    share = np.full(len(across), 1.0) if weights is None else np.asarray(weights, np.float64)
    share = share / share.sum()
    middle, height = float(share @ across), float(share @ up)
    spread = float(share @ (across - middle) ** 2)
    slope = float(share @ ((across - middle) * (up - height))) / spread
    missed = float(share @ (up - height - slope * (across - middle)) ** 2)
    total = float(share @ (up - height) ** 2)
    degrees = len(across) - 2
    error = (missed / spread / degrees) ** 0.5 if degrees > 0 else 0.0
    return Fit(slope, error, 1.0 - missed / total if total > 0.0 else 1.0, height - slope * middle)
