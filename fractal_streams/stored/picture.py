"""One stored picture: decoded to RGB levels, and reduced to the size that it is kept at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import missing_extra
from fractal_streams.spec import whole
from fractal_streams.stored.reduction import covering_size, reduced

MAX_SIDE = 2**15
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size that pictures are kept at.

    height, width: pixels that every picture covers at least, 1 to 32768.
    reduction: None reduces each picture, aspect kept, until it just covers height x width. A whole number
        reduces every picture by that factor, so that objects of one size keep one size; what is left over
        at the right and bottom edges is cut off.

    Nothing is ever enlarged.

    Raises:
        InvalidValueError: a value out of its range, named.
    """

    height: int
    width: int
    reduction: int | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            object.__setattr__(self, name, whole(getattr(self, name), name, 1, MAX_SIDE, "pixels"))
        if self.reduction is not None:
            object.__setattr__(self, "reduction", whole(self.reduction, "reduction", 1, MAX_SIDE, ""))

    def fit(self, picture: UInt8) -> UInt8:
        """The picture at this size; a ValueError if it is too small for it."""
        tall, wide = picture.shape[:2]
        factor = self.reduction or 1
        if tall // factor < self.height or wide // factor < self.width:
            by = f" reduced by {factor}" if self.reduction else ""
            raise ValueError(f"its {tall} x {wide} pixels{by} don't cover {self.height} x {self.width}")
        if self.reduction is None:
            return reduced(picture, *covering_size(tall, wide, self.height, self.width))
        high, across = tall // factor, wide // factor
        return reduced(picture[: high * factor, : across * factor], high, across)


def decoded(payload: Any) -> UInt8:
    """(H, W, 3) uint8 levels of an encoded picture (bytes or a path), turned upright as its Exif data say.

    Grey is repeated, palettes are looked up, transparency is dropped, and of 16 bits the upper 8 are kept.

    Raises:
        MissingExtraError: Pillow is not installed.
        Exception: of many kinds, of a file that is no picture, or one that is damaged.
    """
    if isinstance(payload, np.ndarray):
        if payload.ndim != 3 or payload.shape[2] != 3 or payload.dtype != np.uint8 or not payload.size:
            raise ValueError(f"it is an array of {payload.shape} {payload.dtype}, not (H, W, 3) uint8")
        return payload
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise missing_extra("pillow", "video") from None
    try:
        opened = Image.open(payload if isinstance(payload, Path) else io.BytesIO(payload))
    except UnidentifiedImageError:  # whose message is a path, or an address in memory
        raise ValueError("it is no picture that Pillow knows") from None
    with opened as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            raise ValueError("it holds real numbers, whose range is not known; store it with levels of 8 or 16 bits")
        if image.mode.startswith("I"):
            levels = np.asarray(image)
            # Low levels in 32 bits are as likely of 8 bits: their upper halves would be black.
            if levels.min() < 0 or levels.max() > 65535 or (image.mode == "I" and 0 < levels.max() < 256):
                raise ValueError(f"its levels, {levels.min()} to {levels.max()}, are not of 16 bits")
            return np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:  # Pillow warns of what it drops otherwise
            return np.asarray(image.convert("RGBA").convert("RGB"))
        return np.asarray(image.convert("RGB"))
