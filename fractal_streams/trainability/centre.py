"""Where to zoom: the place of a measure's boundary that is rough and has both sides around it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.experiment import number

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

SPECK = 6
"""Edge pixels that belong together, fewer than these, are dust."""
MIXED = 0.25
"""Share of the rarer label from which a window is mixed enough."""
ROUGH = 0.25
"""Share of edge cells in groups from which a window is rough enough; noise has more, and is no better."""
PREFERENCE = 0.1
"""Share of its score that a place half a picture from the middle loses."""


def choose_centre(measure: npt.ArrayLike, factor: float = 2.0) -> tuple[float, float]:
    """(x, y) in [0, 1]: the middle of the next window of a zoom, on the boundary, (0, 0) the lower left corner.

    Among cells of 2 x 2 points with both labels (edge cells), one around which a window smaller by `factor` fits
    into the picture, if there is one: that whose window has the highest product of
    - mixture: min(f, 1 - f, 1/4), f its share of converged points;
    - coherence: the share of its edge cells that belong to connected groups of 6 or more;
    - detail: the share of its points that are such cells, at most 1/4 (without it, zooms end on smooth boundaries,
      because a straight line through a window is as mixed as any);
    less a little for the distance from the middle. Of equals the first, row by row.

    Args:
        measure: (H, W) float64, V, or anything whose sign is the label; H and W at least 2.
        factor: size of this window over that of the next, above 1, at most 64.

    Raises:
        InvalidValueError: no boundary in the picture, a shape or factor out of its range.

    Example:
        >>> choose_centre(np.where(np.arange(9) < 5, -1.0, 1.0) * np.ones((9, 1)))
        (0.5625, 0.4375)
    """
    number(factor, "factor", 1.0, 64.0, above=True)
    converged, edge = sides(measure)
    rows, columns = np.nonzero(edge)
    height, width = converged.shape
    half = (height - 1) / factor / 2, (width - 1) / factor / 2
    middle = (
        np.clip(rows + 0.5, half[0], height - 1 - half[0]),
        np.clip(columns + 0.5, half[1], width - 1 - half[1]),
    )  # pixels, of a window that fits
    score = scores(converged, edge, (rows, columns), middle, half)
    fits = (middle[0] == rows + 0.5) & (middle[1] == columns + 0.5)
    if fits.any():
        score = np.where(fits, score, -1.0)
    best = int(np.argmax(score))
    return float(middle[1][best] / (width - 1)), float(middle[0][best] / (height - 1))


def nearest_centre(measure: npt.ArrayLike, factor: float = 2.0) -> tuple[float, float]:
    """(x, y) in [0, 1]: the edge cell nearest to the middle, whatever is around it.

    A zoom that stays with what it began at, and so favours neither rough nor smooth boundaries: the one to measure a
    dimension by. Moved inwards where a window smaller by `factor` would not fit around it. Of equals the first, row by
    row. Arguments and errors are those of `choose_centre`.

    Example:
        >>> nearest_centre(np.where(np.arange(9) < 5, -1.0, 1.0) * np.ones((9, 1)))
        (0.5625, 0.4375)
    """
    number(factor, "factor", 1.0, 64.0, above=True)
    _, edge = sides(measure)
    rows, columns = np.nonzero(edge)
    height, width = edge.shape
    half = 0.5 / factor
    x, y = (columns + 0.5) / width, (rows + 0.5) / height
    nearest = int(np.argmin((x - 0.5) ** 2 + (y - 0.5) ** 2))
    return float(np.clip(x[nearest], half, 1.0 - half)), float(np.clip(y[nearest], half, 1.0 - half))


def sides(measure: npt.ArrayLike) -> tuple[Bool, Bool]:
    """Which points converged, and which 2 x 2 cells have both labels.

    Raises:
        InvalidValueError: no cell has, or the shape is not one of a picture.
    """
    array = np.asarray(measure)
    if array.ndim != 2 or min(array.shape) < 2:
        raise InvalidValueError(f"measure must be (H, W), at least 2 x 2 points, got the shape {array.shape}")
    converged = array < 0
    edge = edges(converged)
    if not edge.any():
        raise InvalidValueError(
            f"no boundary among {array.shape[0]} x {array.shape[1]} points, all "
            f"{'converged' if converged.all() else 'diverged'}: start from a wider window, such as the overview, or "
            f"ask for a higher resolution"
        )
    return converged, edge


def scores(
    converged: Bool, edge: Bool, places: tuple[Int64, Int64], middle: tuple[Float64, Float64], half: tuple[float, float]
) -> Float64:
    """(N,) mixture times coherence times detail, less a little towards the rim, of windows around N middles."""
    coherent = np.zeros_like(edge)
    coherent[places] = group_sizes(places, edge.shape) >= SPECK
    found = []
    for mask in (converged, edge, coherent):
        found.append(box_sums(mask, middle, half) if mask.any() else (np.zeros(len(middle[0])), 1.0))
    (light, points), (edge_cells, _), (kept, _) = found
    share = light / points
    mixture = np.minimum(np.minimum(share, 1.0 - share), MIXED)
    apart = [2.0 * (m / (n - 1) - 0.5) for m, n in zip(middle, converged.shape, strict=True)]
    closeness = 1.0 - PREFERENCE * (apart[0] ** 2 + apart[1] ** 2)
    # half a cell of a group is everyone's, so that of places amid dust the most mixed one is taken
    coherence = (kept + 0.5) / (np.maximum(edge_cells, kept) + 1.0)
    detail = np.minimum((kept + 0.5) / points, ROUGH)
    return np.asarray(mixture * coherence * detail * closeness)


def box_sums(mask: Bool, middle: tuple[Float64, Float64], half: tuple[float, float]) -> tuple[Float64, Float64]:
    """How many of a mask's pixels, and how many pixels at all, lie in each of N boxes, from a summed-area table."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)  # at most 8192**2 in a sum
    np.cumsum(mask, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    lows, highs = [], []
    for centre, reach, length in zip(middle, half, mask.shape, strict=True):
        lows.append(np.clip(np.ceil(centre - reach), 0, length - 1).astype(np.int64))
        highs.append(np.clip(np.floor(centre + reach), 0, length - 1).astype(np.int64) + 1)
    (bottom, left), (top, right) = lows, highs
    held = table[top, right] - table[bottom, right] - table[top, left] + table[bottom, left]
    return held.astype(np.float64), ((top - bottom) * (right - left)).astype(np.float64)


def group_sizes(places: tuple[Int64, Int64], shape: tuple[int, int]) -> Int64:
    """(N,) pixels in the group of each of N pixels (rows, columns), whose neighbours are eight."""
    rows, columns = places
    numbers = np.full((shape[0] + 2, shape[1] + 2), -1, np.int64)
    own = np.arange(len(rows))
    numbers[rows + 1, columns + 1] = own
    pairs = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = numbers[rows + 1 + down, columns + 1 + right]
        pairs.append(np.stack([own[other >= 0], other[other >= 0]]))
    one, two = np.concatenate(pairs, axis=1)
    root = own.copy()
    while len(one):  # every root takes the least root beside it, then each pixel its root's root
        least = np.minimum(root[one], root[two])
        np.minimum.at(root, root[one], least)
        np.minimum.at(root, root[two], least)
        while (root[root] != root).any():
            root = root[root]
        apart = root[one] != root[two]
        one, two = one[apart], two[apart]
    return np.asarray(np.bincount(root, minlength=len(own))[root])
