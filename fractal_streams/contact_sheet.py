"""Contact sheets: pictures in a grid, a caption under each, as PNG; clips as GIF or MP4.

Tiles are enlarged by a whole factor, pixel by pixel, so that a sheet shows what a network sees.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.mp4 import write_mp4
from fractal_streams.spec import whole

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError:
    raise missing_extra("pillow", "cli") from None

UInt8 = npt.NDArray[np.uint8]

BACKGROUND, INK, FAINT = (252, 252, 250), (32, 32, 36), (120, 120, 128)
MARGIN, GAP = 16, 10
"""Around the sheet and between tiles, pixels."""
DOT = " · "
"""Between the parts of a caption."""
FONT_SIZE, TITLE_SIZE = 12, 15
CAPTION_HEIGHT, TITLE_HEIGHT = 20, 30
MIN_TILE = 96
"""Small pictures are enlarged until their shorter edge has at least this many pixels."""
MAX_PIXELS = 2**27
"""Of a sheet, and of all frames of an animation together."""
EXACT = ("-bitexact", "-threads", "1")
"""Of x264: the same bytes on any number of cores."""


def contact_sheet(
    images: npt.ArrayLike,
    captions: Sequence[str] | None = None,
    *,
    title: str = "",
    columns: int | None = None,
    scale: int | None = None,
) -> UInt8:
    """(height, width, 3) uint8: the pictures in reading order, captions under them.

    Args:
        images: (N, 3, H, W) uint8, N at least 1.
        captions: N lines, cut with an ellipsis where longer than their picture; None leaves no room for them.
        title: a line over the sheet.
        columns: tiles in a row; None makes the sheet about square.
        scale: whole factor by which tiles are enlarged; None takes the least that makes the shorter edge
            96 pixels.

    Raises:
        InvalidValueError: names the argument, the value and what is allowed.

    Example:
        >>> contact_sheet(np.zeros((6, 3, 32, 32), np.uint8), columns=3).shape
        (234, 340, 3)
    """
    tiles = np.asarray(images)
    if tiles.ndim != 4 or tiles.shape[1] != 3 or tiles.dtype != np.uint8 or not tiles.size:
        raise InvalidValueError(f"images must be (N, 3, H, W) uint8, got {tiles.dtype} of shape {tiles.shape}")
    count, _, height, width = tiles.shape
    if captions is not None and len(captions) != count:
        raise InvalidValueError(f"captions must be one for each of {count} images, got {len(captions)}")
    factor = tile_scale(height, width) if scale is None else whole(scale, "scale", 1, 64, "times")
    across = min(count, math.ceil(math.sqrt(count)) if columns is None else whole(columns, "columns", 1, 4096, "tiles"))
    down = -(-count // across)
    tall, wide = height * factor, width * factor
    step_x, step_y = wide + GAP, tall + (CAPTION_HEIGHT if captions is not None else GAP)
    top = MARGIN + (TITLE_HEIGHT if title else 0)
    size = (2 * MARGIN + across * step_x - GAP, top + down * step_y - (0 if captions is not None else GAP) + MARGIN)
    check_size(size[0] * size[1], count)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    if title:
        line = fitted(title, ImageFont.load_default(TITLE_SIZE), size[0] - 2 * MARGIN)
        draw.text((MARGIN, MARGIN - 4), line, INK, ImageFont.load_default(TITLE_SIZE))
    for place, tile in enumerate(tiles):
        x, y = MARGIN + place % across * step_x, top + place // across * step_y
        enlarged = tile.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
        sheet.paste(Image.fromarray(enlarged), (x, y))
        if captions is not None:
            draw.text((x, y + tall + 2), fitted(captions[place], font, wide), FAINT, font)
    return np.asarray(sheet)


def animated_sheet(clips: npt.ArrayLike, captions: Sequence[str] | None = None, **layout: Any) -> list[UInt8]:
    """A contact sheet for each moment of the clips.

    Args:
        clips: (N, T, 3, H, W) uint8.
        captions, layout: as in `contact_sheet`.
    """
    moments = checked_clips(clips).swapaxes(0, 1)
    first = contact_sheet(moments[0], captions, **layout)
    check_size(first.shape[0] * first.shape[1] * len(moments), moments.shape[1])
    return [first, *(contact_sheet(moment, captions, **layout) for moment in moments[1:])]


def film_strips(
    clips: npt.ArrayLike, captions: Sequence[str] | None = None, *, frames: int = 8, **layout: Any
) -> UInt8:
    """A contact sheet with a row for each clip: up to `frames` moments, evenly spaced from first to last.

    Args:
        clips: (N, T, 3, H, W) uint8.
        captions: a line for each clip, put under its first moment; the others say which frame they are.
    """
    strips = checked_clips(clips)
    length = strips.shape[1]
    chosen = np.unique(np.linspace(0, length - 1, min(frames, length)).round().astype(int))
    lines = None
    if captions is not None:
        lines = [name if place == 0 else f"frame {time}" for name in captions for place, time in enumerate(chosen)]
    layout["columns"] = len(chosen)
    return contact_sheet(strips[:, chosen].reshape(-1, *strips.shape[2:]), lines, **layout)


def save_png(path: str | Path, sheet: UInt8) -> None:
    """Write a sheet as PNG; the file appears whole or not at all, and equal sheets give equal bytes."""
    whole_file(path, lambda name: Image.fromarray(sheet).save(name, format="PNG", optimize=True))


def save_animation(path: str | Path, frames: Sequence[UInt8], rate: float = 12.0) -> None:
    """Write frames as a looping GIF or as MP4, by the path's ending.

    Args:
        frames: (height, width, 3) uint8 each, of one shape.
        rate: frames in a second.

    Raises:
        InvalidValueError: another ending.
        MissingExtraError: MP4 without imageio and its ffmpeg.
    """
    ending = Path(path).suffix.lower()
    if ending == ".gif":
        whole_file(path, lambda name: _write_gif(name, frames, rate))
    elif ending == ".mp4":
        whole_file(path, lambda name: write_mp4(name, frames, rate, quality=9, options=EXACT))
    else:
        raise InvalidValueError(f"an animation is written as .gif or .mp4, got {str(path)!r}")


def whole_file(path: str | Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside the path, then put it in its place."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidValueError(f"there is no folder {str(target.parent)!r} to write {target.name!r} in: make it first")
    written = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        write(written)
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)


def tile_scale(height: int, width: int) -> int:
    """The whole factor that makes the shorter edge of a tile at least 96 pixels."""
    return -(-MIN_TILE // min(height, width))


def fitted(line: str, font: Any, width: int) -> str:
    """The line, or as much of it as the width holds and an ellipsis; what follows the last dot stays, if it can."""
    if font.getlength(line) <= width:
        return line
    head, dot, tail = line.rpartition(DOT)
    if not dot or font.getlength(f"…{DOT}{tail}") > width:
        head, dot, tail = line, "", ""
    while head and font.getlength(f"{head}…{dot}{tail}") > width:
        head = head[:-1]
    return f"{head.rstrip()}…{dot}{tail}"


def check_sheet(shape: tuple[int, ...], count: int, scale: int | None = None) -> None:
    """Refuse a sheet before anything is rendered for it: `count` samples of a shape, (3, H, W), of clips (T, 3, H, W).

    Raises:
        InvalidValueError: more pixels than `MAX_PIXELS`.
    """
    *frames, _, height, width = shape
    factor = tile_scale(height, width) if scale is None else scale
    check_size(count * height * width * factor**2 * math.prod(frames), count)


def check_size(pixels: int, count: int) -> None:
    """Refuse what no viewer opens."""
    if pixels > MAX_PIXELS:
        raise InvalidValueError(
            f"a sheet of {count} tiles would have {pixels / 1e6:.0f} million pixels, at most {MAX_PIXELS / 1e6:.0f} "
            f"are drawn: ask for fewer indices, a smaller size or a smaller scale"
        )


def checked_clips(clips: npt.ArrayLike) -> UInt8:
    """The clips as an array; an `InvalidValueError` if they are none."""
    array = np.asarray(clips)
    if array.ndim != 5 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise InvalidValueError(f"clips must be (N, T, 3, H, W) uint8, got {array.dtype} of shape {array.shape}")
    return array


def _write_gif(path: Path, frames: Sequence[UInt8], rate: float) -> None:
    shades = [Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT) for frame in frames]
    shades[0].save(
        path, format="GIF", save_all=True, append_images=shades[1:], duration=round(1000 / rate), loop=0, disposal=1
    )  # fmt: skip
