"""What a trained ALAE made, as files: pictures with their sheet, films between codes, boards of projections.

Every file is there whole or not at all, and so is a folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from fractal_streams.recipes.alae.board import UInt8, board, levels, save
from fractal_streams.recipes.alae.code_file import Coded, save_codes
from fractal_streams.recipes.alae.using import bar

from fractal_streams.contact_sheet import (
    BACKGROUND,
    animated_sheet,
    contact_sheet,
    film_strips,
    save_animation,
    save_png,
)
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from PIL import Image
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SHOWN = 64
"""Pictures of a sheet; of clips, a clip counts as eight."""
ROWS = 8
"""Of a board of projections, before a second block stands beside the first."""
BLOCKS = 3
"""Of such a board, at most."""
FILM_EDGE = 256
"""Pixels that the shorter side of a film has at least; each pixel is enlarged by a whole factor."""
RATE = 8.0
"""Frames a second of clips."""


def refuse_filled(path: Path) -> None:
    """An `InvalidValueError` if something is there that is no empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidValueError(f"{path} is there already and not empty: remove it, or name another folder")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which comes to stand at the path when all is written.

    Raises:
        InvalidValueError: something is there already.
    """
    refuse_filled(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_pictures(folder: Path, images: Tensor, coded: Coded, *, title: str = "", quiet: bool = True) -> list[str]:
    """A PNG of each picture, sheet.png of the first 64, and pictures.npz: the codes, and images (N, 3, H, W) uint8.

    Of clips, the sheet has a row for each, and clips.mp4 shows them beside each other (clips.gif without ffmpeg).

    Args:
        folder: a new one, or an empty one. images: (N, 3, H, W), in [-1, 1]. coded: what they were made of.

    Returns:
        The names of the files beside the pictures.

    Raises:
        InvalidValueError: the folder is not empty, or other than a picture for each code.
    """
    if len(images) != len(coded):
        raise InvalidValueError(f"images must be one for each of {len(coded)} codes, got {len(images)}")
    tiles, length = levels(images), coded.frames
    with new_folder(folder) as place:
        with bar("writing", len(tiles), quiet) as ahead:
            for number, tile in enumerate(tiles):
                row = f"{number:06d}" if length is None else f"{number // length:06d}-{number % length:03d}"
                Image.fromarray(tile.transpose(1, 2, 0)).save(place / f"{row}.png")
                ahead(1)
        if length is None:
            save_png(place / "sheet.png", contact_sheet(tiles[:SHOWN], list(coded.names[:SHOWN]), title=title))
        else:
            clips = tiles.reshape(-1, length, *tiles.shape[1:])[: SHOWN // 8]
            names = [name.rpartition(",")[0] or name for name in coded.names[: len(clips) * length : length]]
            save_png(place / "sheet.png", film_strips(clips, names, title=title))
            save_animation(place / f"clips{moving()}", animated_sheet(clips, names, title=title), RATE)
        save_codes(place / "pictures.npz", coded, images=tiles)
    return sorted(path.name for path in folder.iterdir() if not path.name[0].isdigit())


def moving() -> str:
    """The ending of animations: .mp4 where imageio and its ffmpeg are installed, else .gif."""
    return ".mp4" if find_spec("imageio") and find_spec("imageio_ffmpeg") else ".gif"


def save_between(path: Path, line: Tensor, names: Sequence[str] = (), title: str = "") -> None:
    """A board: a row for each line of codes, from one end to the other.

    Args:
        line: (R, steps, 3, H, W), as `interpolate` gives it.
    """
    steps = line.shape[1]
    heads = ["first code", *(f"{place}/{steps - 1}" for place in range(1, steps - 1)), "second code"]
    save(path, board([list(row) for row in levels(line)], heads, names=names, title=title))


def save_film(path: Path, line: Tensor, rate: float = 24.0, loop: bool = False) -> int:
    """A film along lines of codes, one after the other, .mp4 or .gif; the number of its frames.

    Args:
        line: (R, steps, 3, H, W), where each begins as the one before it ends. rate: frames a second.
        loop: the last line ends where the first begins, and that picture is shown once.

    Raises:
        InvalidValueError: another ending. MissingExtraError: .mp4 without imageio and its ffmpeg.
    """
    tiles = levels(line)
    frames = [tile for row in tiles for tile in row[:-1]] + ([] if loop else [tiles[-1, -1]])
    factor = -(-FILM_EDGE // min(tiles.shape[-2:]))
    enlarged = [frame.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1) for frame in frames]
    save_animation(path, enlarged, rate)
    return len(enlarged)


def save_projections(folder: Path, images: Tensor, first: Tensor, best: Tensor, coded: Coded, title: str = "") -> None:
    """codes.npz and board.png: picture, what is made of E's code, what is made of the code that was found.

    Args:
        folder: a new one, or an empty one. images, first, best: (N, 3, H, W) in [-1, 1]; the board shows up to 24.
        coded: the codes found, with the figures psnr and first_psnr.
    """
    shown = min(len(images), ROWS * BLOCKS)
    down = min(shown, ROWS)
    across = -(-shown // down)
    sides: list[UInt8] = [levels(side[:shown]) for side in (images, first, best)]
    empty = np.empty_like(sides[0][0])
    empty[:] = np.array(BACKGROUND, np.uint8)[:, None, None]
    tiles: list[UInt8] = []
    lines: list[str] = []
    for place in range(down * across):
        number = place // across + down * (place % across)
        if number < shown:
            told = (coded.figures[name][number] for name in ("first_psnr", "psnr"))
            tiles += [side[number] for side in sides]
            lines += [
                coded.names[number],
                *(f"{name} {value:.1f} dB" for name, value in zip(("E", "found"), told, strict=True)),
            ]
        else:
            tiles, lines = [*tiles, *[empty] * 3], [*lines, *[""] * 3]
    sheet = contact_sheet(np.stack(tiles), lines, title=title, columns=3 * across)
    with new_folder(folder) as place_of_all:
        save_codes(place_of_all / "codes.npz", coded)
        save_png(place_of_all / "board.png", sheet)
