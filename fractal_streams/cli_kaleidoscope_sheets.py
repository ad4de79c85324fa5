"""Sheets, films and folders of kaleidoscope samples."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fractal_streams.errors import missing_extra
from fractal_streams.kaleidoscope.plots import put

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

if TYPE_CHECKING:
    from fractal_streams.cli_kaleidoscope_chains import Asked, Drawn

PICTURES, TABLES = (".png", ".gif", ".mp4"), (".npz", ".csv")
HELD = 10
"""Frames that the noise of a film lasts."""
MOST_STRIP = 12
"""Moments of a chain side by side."""


def written(out: Path, drawn: Drawn, asked: Asked, fps: float) -> None:
    """Write samples in the form that the ending says, and say where."""
    ending, images = out.suffix.lower(), drawn.images
    if ending == ".csv":
        put(out, lambda path: path.write_bytes(rows_of(drawn).encode()))
    elif ending == ".npz":
        arrays: dict[str, Any] = {
            **drawn.table,
            "titles": np.array(drawn.titles),
            "iterates": np.array(asked.iterates, np.int64),
        }
        arrays |= {"images": images} if images is not None else {"values": drawn.values}
        put(out, lambda path: np.savez_compressed(path, **arrays))
    elif images is not None:
        (save_pictures if ending else save_folder)(out, drawn, asked, fps)
    typer.echo(f"{'samples' if not ending or ending in TABLES else 'pictures':<10} {out}")


def rows_of(drawn: Drawn) -> str:
    """The table as CSV, a chain a line, with the values of ends that are points."""
    names = {**drawn.table, "title": np.array(drawn.titles)[drawn.table["label"]]}
    if drawn.values is not None:
        last = drawn.values if drawn.values.ndim == 2 else drawn.values[:, -1]
        names |= {f"value_{place}": last[:, place] for place in range(last.shape[1])}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*(column.tolist() for column in names.values()), strict=True))
    return text.getvalue()


def save_pictures(out: Path, drawn: Drawn, asked: Asked, fps: float) -> None:
    """A sheet as .png, of ends or of iterates side by side; or a film of iterates."""
    from fractal_streams.contact_sheet import animated_sheet, contact_sheet, save_png
    from fractal_streams.kaleidoscope.animation import save_frames

    images = drawn.images
    assert images is not None
    out.parent.mkdir(parents=True, exist_ok=True)
    title, captions = f"{Path(asked.address).stem}, {asked.line}", captions_of(drawn)
    if out.suffix.lower() == ".png":
        if images.ndim == 4:
            save_png(out, contact_sheet(images, captions, title=title))
            return
        moments = np.unique(np.linspace(0, images.shape[1] - 1, min(MOST_STRIP, images.shape[1])).round().astype(int))
        shown = [asked.iterates[moment] for moment in moments]
        lines = [name if place == 0 else f"step {step}" for name in captions for place, step in enumerate(shown)]
        tiles = images[:, moments].reshape(-1, *images.shape[2:])
        save_png(out, contact_sheet(tiles, lines, title=title, columns=len(moments)))
        return
    frames = animated_sheet(images, captions, title=title)
    save_frames(out, frames, rate=fps, hold=[HELD] + [1] * (len(frames) - 1))


def save_folder(out: Path, drawn: Drawn, asked: Asked, fps: float) -> None:
    """A picture of each end with their table; or a sheet of each iterate, as the original program has them."""
    from fractal_streams.contact_sheet import animated_sheet, save_png

    images = drawn.images
    assert images is not None
    out.mkdir(parents=True, exist_ok=True)
    put(out / "samples.csv", lambda path: path.write_bytes(rows_of(drawn).encode()))
    if images.ndim == 4:
        for chain, image in zip(drawn.table["chain"], images, strict=True):
            save_png(out / f"{chain:06d}.png", np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        return
    frames = animated_sheet(images, captions_of(drawn))
    for step, frame in zip(asked.iterates, frames, strict=True):
        save_png(out / f"{step:04d}.png", frame)


def captions_of(drawn: Drawn) -> list[str]:
    """The class and number of each chain."""
    table = drawn.table
    if len(drawn.titles) == 1:
        return [f"#{chain}" for chain in table["chain"]]
    return [f"{drawn.titles[label]} · #{chain}" for label, chain in zip(table["label"], table["chain"], strict=True)]
