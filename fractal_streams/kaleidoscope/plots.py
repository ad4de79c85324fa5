"""Pages that analyses are drawn on, and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, missing_extra

UInt8 = npt.NDArray[np.uint8]

BLUE, RED, GREEN, ORANGE, INK, FAINT = "#2b6cb0", "#d7263d", "#2f9e44", "#f08c00", "#202024", "#8a8a94"
INKS = (BLUE, ORANGE, GREEN, "#7b4fb5", RED, "#12808c")
"""Of lines that are told apart."""


def page(width: float, height: float, dpi: int = 120) -> Any:
    """An empty matplotlib figure of a size in inches, on a canvas of its own.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "recipes") from None
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Any) -> Any:
    """The axes without the lines that bound nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def pixels_of(figure: Any) -> UInt8:
    """(H, W, 3) uint8 of a figure."""
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def save_page(path: str | Path, figure: Any) -> Path:
    """Write a figure as PNG; the same figure gives the same bytes.

    Raises:
        InvalidValueError: another ending.
    """
    place = with_ending(path, ".png")
    facts = {"Software": None}  # the version of matplotlib is no part of a picture
    put(place, lambda file: figure.savefig(file, format="png", metadata=facts))
    return place


def save_pixels(path: str | Path, pixels: UInt8) -> Path:
    """Write an (H, W, 3) uint8 picture as PNG.

    Raises:
        InvalidValueError: another ending.
        MissingExtraError: pillow is not installed.
    """
    place, image = with_ending(path, ".png"), pillow()
    put(place, lambda file: image.fromarray(pixels).save(file, format="PNG", optimize=True))
    return place


def save_text(path: str | Path, text: str) -> Path:
    """Write a text, in UTF-8 with the line ends it has."""
    put(Path(path), lambda file: file.write_bytes(text.encode()))
    return Path(path)


def pillow() -> Any:
    """The module PIL.Image, or an error that says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "cli") from None
    return Image


def with_ending(path: str | Path, *endings: str) -> Path:
    """The path, if its name says what it holds."""
    if Path(path).suffix.lower() not in endings:
        raise InvalidValueError(f"this is written as {' or '.join(endings)}, got {str(path)!r}")
    return Path(path)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside the path, then put it in its place; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        write(written)
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def band(
    axes: Any, places: Sequence[float] | npt.NDArray[Any], rows: npt.NDArray[Any], ink: str, name: str, *,
    deviation: bool = False,
) -> None:  # fmt: skip
    """The mean of (M, P) rows as a line, and what they span: from least to most, or one standard deviation."""
    mean = rows.mean(axis=0)
    low, high = rows.min(axis=0), rows.max(axis=0)
    if deviation:
        spread = rows.std(axis=0)
        low, high = mean - spread, mean + spread
    axes.plot(places, mean, color=ink, lw=1.6, label=name)
    if len(rows) > 1:
        axes.fill_between(places, low, high, color=ink, alpha=0.18, lw=0)
