"""Chains of pictures: a grid that moves, step by step, and a strip with iterates side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.animation import FASTEST, save_frames
from fractal_streams.kaleidoscope.chain import Engine, Schedule
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32
from fractal_streams.kaleidoscope.plots import UInt8, pillow, save_pixels, with_ending
from fractal_streams.kaleidoscope.starts import Jitter, Start
from fractal_streams.rng import Int64
from fractal_streams.spec import whole

CHAINS, STEPS, RATE, HELD = 48, 30, 15.0, 10
"""Of a grid that moves; the noise is held for so many frames."""
STRIP = (0, 1, 2, 3, 5, 10, 20, 30)
MARGIN, GAP, HEAD = 12, 3, 24
LEAST_TILE = 56
"""Small pictures are enlarged until their shorter edge has at least this many pixels."""
BACKGROUND, INK = (252, 252, 252), (32, 32, 32)
MAX_PIXELS = 2**26
"""Of a sheet."""


def run_chains(
    fitted: Kaleidoscope, iterates: Sequence[int], *, chains: int = CHAINS, start: Start | None = None, seed: int = 0,
    model: int | None = None, jitter: Jitter | None = None, engine: Engine | None = None, device: str = "auto",
) -> tuple[Float32, Int64]:  # fmt: skip
    """(B, K, D) float32 iterates of chains, and (B,) int64, the network of each.

    Args:
        iterates: increasing; iterate k is behind k applications, 0 is the start.
        chains: how many, 1 to 4,096; chain i is the same for any number of them.
        start: their distribution; None is uniform noise over the range.
        seed: of the starts and the jitter.
        model: the network of all; None gives chain i to network i modulo their number.
        jitter: noise behind each step; what is given here is the clean iterate.
        engine: applies the networks; None opens one on the device.
    """
    whole(chains, "chains", 1, 4096, "chains")
    steps = tuple(iterates)
    numbers = np.arange(chains, dtype=np.int64)
    if model is None:
        owners = numbers % fitted.models
    else:
        owners = np.full(chains, whole(model, "model", 0, fitted.models - 1, "of the bank"), np.int64)
    if not steps:
        raise InvalidValueError("iterates must name at least one, got none")
    schedule = Schedule(most=max(1, *steps), tolerance=0.0, keep=steps, jitter=jitter)
    engine = engine_of(fitted, engine, device)

    def key_of(*names: Any) -> tuple[int, int]:
        return rng.key("chains-picture", seed, *names)

    first = engine.starts(start or Start(), numbers, owners, key_of)
    outcome = engine.run(first, owners, schedule, chains=numbers, key_of=key_of)
    return as_array(outcome.kept).astype(np.float32), owners


def chain_frames(
    fitted: Kaleidoscope, *, steps: int = STEPS, columns: int | None = None, scale: int | None = None, **asked: Any
) -> list[UInt8]:
    """(H, W, 3) uint8 frames: the same chains in the same places in each, frame k behind k applications.

    Args:
        fitted: of pictures.
        steps: the last step, 0 to 10,000.
        columns: tiles in a row; None makes rows a little longer than columns.
        scale: whole factor by which tiles are enlarged; None takes the least that makes the shorter edge 56 pixels.
        asked: see `run_chains`.

    Raises:
        InvalidValueError: networks of points, a value out of its range, too large a sheet.
    """
    checked_pictures(fitted)
    whole(steps, "steps", 0, 10_000, "steps")
    kept, _ = run_chains(fitted, range(steps + 1), **asked)
    levels = coloured(fitted.network.levels_of(kept))
    across = math.ceil(math.sqrt(4 / 3 * len(levels))) if columns is None else whole(columns, "columns", 1, 4096, "")
    tiles = levels.reshape(-1, across, *levels.shape[1:]) if len(levels) % across == 0 else padded(levels, across)
    return [
        titled(sheet(tiles[:, :, step], tile_scale(fitted, scale)), f"step {step}") for step in range(steps + 1)
    ]  # fmt: skip


def padded(levels: UInt8, across: int) -> UInt8:
    """(rows, across, ...) tiles of (B, ...), the last row filled with background."""
    rows = -(-len(levels) // across)
    full = np.full((rows * across, *levels.shape[1:]), BACKGROUND[0], np.uint8)
    full[: len(levels)] = levels
    return full.reshape(rows, across, *levels.shape[1:])


def save_chains(
    path: str | Path, fitted: Kaleidoscope, *, rate: float = RATE, held: int = HELD, **asked: Any
) -> Path:  # fmt: skip
    """Write a grid of chains as .gif or .mp4: first the noise, held for some frames, then every iterate.

    Args:
        path: it appears whole or not at all, and the same input gives the same bytes.
        rate: frames a second.
        held: frames that step 0 lasts.
        asked: see `chain_frames`; by default 48 chains of 30 steps.

    Raises:
        InvalidValueError: another ending, or a value out of its range.
        MissingExtraError: pillow, or imageio and its ffmpeg (.mp4), is not installed.
    """
    with_ending(path, *FASTEST)
    frames = chain_frames(fitted, **asked)
    return save_frames(path, frames, rate=rate, hold=[held] + [1] * (len(frames) - 1))


def chain_strip(
    fitted: Kaleidoscope, *, iterates: Sequence[int] = STRIP, chains: int = 8, scale: int | None = None, **asked: Any
) -> UInt8:
    """(H, W, 3) uint8: a row for each chain, a column for each iterate, and its nearest source at the end.

    Args:
        iterates, chains, asked: see `run_chains`.
        scale: as in `chain_frames`.
    """
    checked_pictures(fitted)
    engine = engine_of(fitted, asked.pop("engine", None), asked.pop("device", "auto"))
    kept, owners = run_chains(fitted, iterates, chains=chains, engine=engine, **asked)
    source, distance = np.zeros(len(kept), np.int64), np.zeros(len(kept), np.float32)
    for model in np.unique(owners):
        here = owners == model
        found = engine.nearest(kept[here, -1], fitted.source_values(int(model)))
        source[here], distance[here] = (as_array(part) for part in found)
    near = np.stack([fitted.sources.of_model(int(owners[row]))[0][source[row]] for row in range(len(kept))])
    if near.dtype != np.uint8:
        near = fitted.network.levels_of(fitted.network.values_of(near))
    tiles = np.concatenate([coloured(fitted.network.levels_of(kept)), coloured(near)[:, None]], axis=1)
    factor = tile_scale(fitted, scale)
    heads = [f"{step}" if number else f"step {step}" for number, step in enumerate(iterates)] + ["nearest"]
    return headed(sheet(tiles, factor), heads, [f"{gap:.3f}" for gap in distance], factor * fitted.network.shape[1])


def save_strip(path: str | Path, fitted: Kaleidoscope, **asked: Any) -> Path:
    """Write `chain_strip` as PNG; it appears whole or not at all."""
    with_ending(path, ".png")
    return save_pixels(path, chain_strip(fitted, **asked))


def checked_pictures(fitted: Kaleidoscope) -> None:
    """Refuse networks of points."""
    if not fitted.network.is_picture:
        raise InvalidValueError(f"chains are drawn of networks of pictures (C, H, W), got shape {fitted.network.shape}")


def tile_scale(fitted: Kaleidoscope, scale: int | None) -> int:
    """The whole factor by which pictures are enlarged."""
    if scale is not None:
        return whole(scale, "scale", 1, 64, "times")
    return -(-LEAST_TILE // min(fitted.network.shape[1:]))


def coloured(levels: UInt8) -> UInt8:
    """(..., H, W, 3) of (..., C, H, W)."""
    return np.moveaxis(np.broadcast_to(levels, (*levels.shape[:-3], 3, *levels.shape[-2:])), -3, -1)


def sheet(tiles: UInt8, factor: int) -> UInt8:
    """(H, W, 3): tiles (rows, columns, h, w, 3), enlarged pixel by pixel, with gaps between them."""
    rows, columns, tall, wide, _ = tiles.shape
    down, across = tall * factor + GAP, wide * factor + GAP
    if rows * down * columns * across > MAX_PIXELS:
        raise InvalidValueError(
            f"a sheet of {rows} x {columns} pictures would have {rows * down * columns * across / 1e6:.0f} million "
            f"pixels, at most {MAX_PIXELS / 1e6:.0f} are drawn: ask for fewer chains or a smaller scale"
        )
    found = np.empty((rows * down - GAP, columns * across - GAP, 3), np.uint8)
    found[:] = BACKGROUND
    for row in range(rows):
        for column in range(columns):
            enlarged = tiles[row, column].repeat(factor, 0).repeat(factor, 1)
            top, left = row * down, column * across
            found[top : top + len(enlarged), left : left + enlarged.shape[1]] = enlarged
    return found


def titled(grid: UInt8, title: str) -> UInt8:
    """The grid with a margin, and a title above."""
    return lettered(grid, (0, 0), [((0, -HEAD + 2), title, 14)])


def headed(grid: UInt8, heads: Sequence[str], sides: Sequence[str], tall: int) -> UInt8:
    """The grid with a head over each column, and a line at the right of each row."""
    across = (grid.shape[1] + GAP) // len(heads)
    over = [((column * across, -HEAD + 5), head, 12) for column, head in enumerate(heads)]
    right = grid.shape[1] + 6
    beside = [((right, row * (tall + GAP) + tall // 2 - 8), text, 12) for row, text in enumerate(sides)]
    return lettered(grid, (52, 0), [*over, ((right, -HEAD + 5), "RMSE", 12), *beside])


def lettered(grid: UInt8, room: tuple[int, int], lines: Sequence[tuple[tuple[int, int], str, int]]) -> UInt8:
    """A grid in its margins, and lines of text at places counted from its corner; room: more at the right and below."""
    image = pillow()
    from PIL import ImageDraw, ImageFont

    height, width = grid.shape[:2]
    drawn = image.new("RGB", (width + 2 * MARGIN + room[0], height + HEAD + MARGIN + 4 + room[1]), BACKGROUND)
    corner = (MARGIN, HEAD + 4)
    drawn.paste(image.fromarray(grid), corner)
    pen = ImageDraw.Draw(drawn)
    for (x, y), text, size in lines:
        pen.text((corner[0] + x, corner[1] + y), text, INK, ImageFont.load_default(size))
    return np.array(drawn)
