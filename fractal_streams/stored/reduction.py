"""Area reduction: each pixel of the smaller picture is the mean of the area that it covers, rounded once.

Weights are whole numbers, so the mean is exact before it is rounded (halves up) and the same on every
machine. Where the factor is a whole number, a crop of the reduced picture is the reduced crop of the
original, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.draw.numba_backend import compiled
from fractal_streams.errors import InvalidValueError

UInt8 = npt.NDArray[np.uint8]


def covering_size(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect that covers the least ones; the aspect is rounded to a pixel.

    Example:
        >>> covering_size(3000, 4000, 64, 64), covering_size(720, 405, 64, 64)
        ((64, 85), (114, 64))
    """
    if least_height * width >= least_width * height:
        return least_height, (2 * width * least_height + height) // (2 * height)
    return (2 * height * least_width + width) // (2 * width), least_width


def reduced(picture: UInt8, height: int, width: int) -> UInt8:
    """The picture at a smaller size, (height, width, 3) uint8.

    Args:
        picture: (H, W, 3) uint8.
        height, width: 1 to H and 1 to W.

    Raises:
        InvalidValueError: an enlargement, or no picture.

    Example:
        >>> columns = np.repeat(np.array([[[0], [10], [20], [31]]], np.uint8), 3, axis=2)
        >>> reduced(columns, 1, 2)[0, :, 0].tolist()
        [5, 26]
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise InvalidValueError(f"a picture is (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    if not (1 <= height <= picture.shape[0] and 1 <= width <= picture.shape[1]):
        raise InvalidValueError(
            f"a picture of {picture.shape[0]} x {picture.shape[1]} is reduced to 1 pixel up to its own size, "
            f"got {height} x {width}"
        )
    small = np.empty((height, width, 3), np.uint8)
    if small.shape == picture.shape:
        small[:] = picture
    else:
        _reduce(np.ascontiguousarray(picture), small)
    return small


@compiled
def _reduce(picture: Any, small: Any) -> None:
    """Area means; an edge of a picture of n pixels at a size of m lies on multiples of 1 / (n m)."""
    tall, wide = picture.shape[0], picture.shape[1]
    height, width = small.shape[0], small.shape[1]
    area = np.int64(tall) * np.int64(wide)
    row = np.zeros((width + 1, 3), np.int64)
    above = np.zeros((width + 1, 3), np.int64)
    below = np.zeros((width + 1, 3), np.int64)
    for y in range(tall):
        row[:] = 0
        for x in range(wide):
            place = x * width // wide
            inside = min(width, (place + 1) * wide - x * width)
            for c in range(3):
                level = np.int64(picture[y, x, c])
                row[place, c] += level * inside
                row[place + 1, c] += level * (width - inside)
        line = y * height // tall
        inside = min(height, (line + 1) * tall - y * height)
        for x in range(width):
            for c in range(3):
                above[x, c] += row[x, c] * inside
                below[x, c] += row[x, c] * (height - inside)
        if (line + 1) * tall <= (y + 1) * height:
            for x in range(width):
                for c in range(3):
                    small[line, x, c] = np.uint8((2 * above[x, c] + area) // (2 * area))
                    above[x, c] = below[x, c]
                    below[x, c] = 0
