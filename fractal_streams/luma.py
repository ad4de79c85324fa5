"""Grey levels of coloured ones, in integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def luma(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(..., H, W) uint8 grey levels of (..., H, W, 3) uint8 colours.

    (19595 R + 38470 G + 7471 B + 32768) / 65536, rounded down: the weights 0.299, 0.587 and 0.114 of
    ITU-R BT.601 in units of 1/65536, as PIL's convert("L") has them.

    Example:
        >>> import numpy as np
        >>> luma(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8)).tolist()
        [[76, 255]]
    """
    red, green, blue = (images[..., channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)
