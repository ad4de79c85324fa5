"""Boards of pictures: rows and columns with headings, names of rows at the left, gaps between groups, as an array.

A level is the same everywhere: [-1, 1] is [0, 255], and what lies outside is clipped, never stretched tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fractal_streams.contact_sheet import (
    BACKGROUND,
    FAINT,
    FONT_SIZE,
    GAP,
    INK,
    MARGIN,
    TITLE_SIZE,
    check_size,
    fitted,
    tile_scale,
    whole_file,
)
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from PIL import Image, ImageDraw, ImageFont
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

UInt8 = npt.NDArray[np.uint8]
Row = Sequence[UInt8 | str | None]
"""Of tiles; words stand in the middle of their place, and None leaves it empty."""
NARROW, WIDE = 4, 20
"""Between tiles of a group, and between groups, pixels."""
COMPRESSION = 4
"""Of zlib."""
LINE, TITLE_LINE = 15, 20
"""Heights of a line of a heading and of the title, pixels."""


class Model(Protocol):
    """What pictures ask of an autoencoder with styles; see `ALAE`."""

    num_styles: int
    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def project(self, z: Tensor, /) -> Tensor: ...
    def decode(self, w: Tensor, /, noise: bool = True) -> Tensor: ...
    def encode(self, images: Tensor, /) -> Tensor: ...
    def truncated(self, w: Tensor, psi: float, cutoff: int, /) -> Tensor: ...


@contextmanager
def looking(model: Model) -> Iterator[None]:
    """The model in evaluation mode, without gradients; behind it, in the mode that it was in.

    What a compiler made of it rests, too: each picture is a batch of another size, and would be compiled anew.
    """
    training = model.training
    model.train(False)
    compiled = isinstance(model, nn.Module) and any(part._compiled_call_impl is not None for part in model.modules())
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        model.train(training)


def encoded(model: Model, images: Tensor, size: int = 256) -> Tensor:
    """(N, d) codes of (N, *shape) pictures, `size` at a time."""
    return torch.cat([model.encode(part) for part in images.split(size)])


def decoded(model: Model, codes: Tensor, size: int = 256) -> Tensor:
    """(N, *shape) pictures of (N, d) codes or (N, num_styles, d) styles, without noise, `size` at a time."""
    return torch.cat([model.decode(part, noise=False) for part in codes.split(size)])


def levels(images: Tensor) -> UInt8:
    """(..., 3, H, W) uint8 of pictures in [-1, 1], a grey one on three channels; what lies outside is clipped.

    Raises:
        InvalidValueError: no pictures of one or three channels.

    Example:
        >>> levels(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(3, 1, 5))[0].tolist()
        [[0, 0, 128, 255, 255]]
    """
    if images.ndim < 3 or images.shape[-3] not in (1, 3):
        raise InvalidValueError(f"pictures must be (..., 3, H, W) or (..., 1, H, W), got {tuple(images.shape)}")
    scaled = ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    found: UInt8 = scaled.expand(*images.shape[:-3], 3, *images.shape[-2:]).numpy()
    return found


def columns(*sides: Tensor) -> list[list[UInt8]]:
    """Rows of a board, of its columns, each (R, 3, H, W)."""
    return [list(row) for row in zip(*(levels(side) for side in sides), strict=True)]


def board(
    rows: Sequence[Row],
    heads: Sequence[str],
    *,
    names: Sequence[str] = (),
    title: str = "",
    groups: Sequence[int] = (),
    row_groups: Sequence[int] = (),
    scale: int | None = None,
) -> UInt8:
    """(height, width, 3) uint8: pictures in rows and columns.

    Args:
        rows: of as many tiles each, (3, H, W) uint8 and all of one size, words or None.
        heads: a heading for each column, in several lines where it is longer than a tile is wide; "" of all is none.
        names: a line at the left of each row, or none.
        title: over all.
        groups, row_groups: columns and rows before which there is a wide gap.
        scale: whole factor by which tiles are enlarged; None takes the least that makes their shorter edge 96 pixels.

    Raises:
        InvalidValueError: no picture, rows of different lengths, headings or names that are too many or too few.

    Example:
        >>> tile = np.zeros((3, 32, 32), np.uint8)
        >>> board([[tile, tile], [tile, None]], ["real", "fake"]).shape
        (247, 228, 3)
    """
    first = next((tile for row in rows for tile in row if isinstance(tile, np.ndarray)), None)
    across = len(heads)
    if first is None or any(len(row) != across for row in rows):
        raise InvalidValueError(f"a board needs rows of {across} tiles, as it has {across} headings, got {rows!r:.99}")
    if names and len(names) != len(rows):
        raise InvalidValueError(f"names must be one for each of {len(rows)} rows, got {len(names)}")
    factor = tile_scale(*first.shape[1:]) if scale is None else scale
    tall, wide = first.shape[1] * factor, first.shape[2] * factor
    font, large = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(TITLE_SIZE)
    left = MARGIN + (max(round(font.getlength(name)) for name in names) + GAP if names else 0)
    xs = [left + place for place in places(across, wide, groups)]
    width = xs[-1] + wide + MARGIN
    told = wrapped(title, large, width - 2 * MARGIN) if title else []
    captions = [wrapped(head, font, wide) if head else [] for head in heads]
    most = max(len(lines) for lines in captions)
    top = MARGIN + len(told) * TITLE_LINE + (GAP if told else 0)
    ys = [top + most * LINE + (NARROW if most else 0) + place for place in places(len(rows), tall, row_groups)]
    height = ys[-1] + tall + MARGIN
    check_size(width * height, across * len(rows))
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(told):
        draw.text((MARGIN, MARGIN - 3 + number * TITLE_LINE), line, INK, large)
    for x, lines in zip(xs, captions, strict=True):
        for number, line in enumerate(lines, most - len(lines)):  # the last line stands just above the tiles
            draw.text((x, top + number * LINE), line, FAINT, font)
    for y, name in zip(ys, names, strict=False):
        draw.text((left - GAP, y + tall // 2), name, FAINT, font, anchor="rm")
    for y, row in zip(ys, rows, strict=True):
        for x, tile in zip(xs, row, strict=True):
            fill(sheet, tile, (x, y, wide, tall), factor)
    return np.asarray(sheet)


def fill(sheet: Image.Image, tile: UInt8 | str | None, place: tuple[int, int, int, int], factor: int) -> None:
    """A tile, or words, into a place: x, y, width, height, pixels."""
    x, y, wide, tall = place
    if isinstance(tile, str):
        font = ImageFont.load_default(FONT_SIZE)
        words = "\n".join(wrapped(tile, font, wide))
        middle = (x + wide // 2, y + tall // 2)
        ImageDraw.Draw(sheet).text(middle, words, FAINT, font, anchor="mm", align="center")
    elif tile is not None:
        sheet.paste(Image.fromarray(tile.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)), (x, y))


def save(path: Path, sheet: UInt8) -> None:
    """Write a board as PNG, whole or not at all, in a tenth of the time of `save_png`: training waits for it."""
    whole_file(path, lambda name: Image.fromarray(sheet).save(name, format="PNG", compress_level=COMPRESSION))


def places(count: int, size: int, groups: Sequence[int]) -> list[int]:
    """Where each of a row of tiles begins.

    Example:
        >>> places(3, 10, (2,))
        [0, 14, 44]
    """
    steps = [size + (WIDE if place in groups else NARROW) for place in range(1, count)]
    return list(accumulate(steps, initial=0))


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines, broken between words, that the width holds; a word longer than it ends in an ellipsis."""
    lines: list[str] = []
    for given in text.split("\n"):
        line = ""
        for word in given.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [fitted(line, font, width) for line in lines]


def check_pictures(images: Tensor, name: str) -> None:
    """Refuse what is no batch of pictures."""
    if images.ndim != 4 or not len(images):
        raise InvalidValueError(f"{name} must be (N, 3, H, W) with N at least 1, got {tuple(images.shape)}")
