"""Pictures of a measure: colours by rank on each side of the boundary, plain or with axes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Float64

UInt8 = npt.NDArray[np.uint8]

PALEST = 0.25
"""Least absolute value that a rank is given: the palest quarter of the colours stays unused."""
UNKNOWN = (128, 128, 128)
"""The colour of a point without a value (NaN)."""
ANCHORS = "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2"
"""ColorBrewer's eleven colours "Spectral" (C. Brewer), red to purple."""


def _spectral() -> UInt8:
    """(256, 3): the anchors at equal distances and straight lines between them, rounded down, in whole numbers."""
    anchors = np.array([list(bytes.fromhex(one)) for one in ANCHORS.split()])
    place, part = np.divmod(np.arange(256) * (len(anchors) - 1), 255)
    after = np.minimum(place + 1, len(anchors) - 1)
    mixed = (anchors[place] * (255 - part)[:, None] + anchors[after] * part[:, None]) // 255
    mixed[[68, 85], 2] -= 1  # whole numbers that matplotlib's floats fall just short of
    return mixed.astype(np.uint8)


SPECTRAL = _spectral()
"""(256, 3) uint8, matplotlib's "Spectral": red is -1, diverged; purple is 1, converged."""
SPECTRAL.setflags(write=False)


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


def colours(values: npt.ArrayLike) -> UInt8:
    """(..., 3) uint8: values in [-1, 1] in the colours of `SPECTRAL`, NaN in grey.

    Example:
        >>> colours([-1.0, 0.0, 1.0]).tolist()
        [[158, 1, 66], [254, 254, 190], [94, 79, 162]]
    """
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    place = (np.clip(np.where(known, array, 0.0), -1.0, 1.0) + 1.0) * 128.0
    made = SPECTRAL[np.minimum(place.astype(np.int64), 255)]
    if not known.all():
        made[~known] = UNKNOWN
    return made


def plain(measure: npt.ArrayLike, reference: npt.ArrayLike | None = None) -> UInt8:
    """(H, W, 3) uint8: the picture of an (H, W) measure, its row 0 at the bottom, a pixel to each point.

    Raises:
        InvalidValueError: not (H, W), or without points.
    """
    array = np.asarray(measure, np.float64)
    if array.ndim != 2 or not array.size:
        raise InvalidValueError(f"measure must be (H, W), at least one point, got the shape {array.shape}")
    return np.ascontiguousarray(colours(restretch(array, reference))[::-1])


def save_plain(measure: npt.ArrayLike, path: str | Path, reference: npt.ArrayLike | None = None) -> None:
    """Write the picture of an (H, W) measure as PNG, a pixel to each point, row 0 at the bottom.

    The file appears whole or not at all; equal measures give equal bytes.

    Args:
        measure: (H, W) float64, V.
        path: a .png in a folder that exists.
        reference: whose ranks give the colours; see `restretch`.

    Raises:
        InvalidValueError: not (H, W), another ending, no such folder.
        MissingExtraError: pillow is not installed.
    """
    from fractal_streams.contact_sheet import whole_file  # needs pillow

    check_png(path)
    pixels = plain(measure, reference)
    whole_file(path, lambda written: write_pixels(pixels, written))


def write_pixels(pixels: UInt8, path: Path) -> None:
    """Write (H, W, 3) uint8 as PNG."""
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")


def check_png(path: Any) -> None:
    """An `InvalidValueError` for a file that isn't named as a PNG."""
    if Path(path).suffix.lower() != ".png":
        raise InvalidValueError(f"a picture is written as .png, got {str(path)!r}")
