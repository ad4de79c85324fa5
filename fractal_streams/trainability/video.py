"""Videos of zooms: between two keyframes, values are blended, not colours; MP4 and GIF."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.mp4 import write_mp4
from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Float64, number
from fractal_streams.trainability.nested import between, place_of
from fractal_streams.trainability.picture import SPECTRAL, UInt8, colours, read_pixels
from fractal_streams.trainability.ranks import RankTable
from fractal_streams.trainability.window import Window
from fractal_streams.trainability.zoom import Zoom, open_zoom

FASTEST = {".mp4": 240.0, ".gif": 50.0}
"""Endings, and the most frames a second that each can show."""
H264 = ["-crf", "16", "-preset", "medium", "-bitexact", "-threads", "4"]
"""Of x264: hardly visible loss; the bytes do not depend on how many cores there are."""


def save_video(
    zoom: Zoom | str | Path,
    path: str | Path,
    *,
    fps: float = 30.0,
    frames_between: int = 45,
    size: int | tuple[int, int] | None = None,
    progress: bool = False,
) -> Path:
    """Write the video of a zoom, .mp4 (H.264) or .gif by the ending; it appears whole or not at all.

    H.264 takes even sizes only: of odd ones the last row or column of pixels is doubled. A GIF keeps every pixel's
    colour, shows a frame for whole hundredths of a second, and repeats without end.

    Args:
        zoom: of at least 2 keyframes, or its folder.
        path: folders above it are made.
        fps: frames a second, above 0, at most 240, of a GIF at most 50.
        frames_between: frames from one keyframe to the next, 1 to 10,000; the video has that many for each
            keyframe but the last, and one more.
        size: (height, width), or the height, in pixels; None is the keyframes' own.
        progress: a bar over the frames.

    Returns:
        The path.

    Raises:
        InvalidValueError: a value out of its range, another ending, fewer than 2 keyframes.
        MissingExtraError: imageio and its ffmpeg (.mp4), pillow (.gif) or tqdm is not installed.
    """
    made = zoom if isinstance(zoom, Zoom) else open_zoom(zoom)
    checked(path, fps)
    total = frame_count(made, frames_between)
    pictures = (colours(values)[::-1] for values in zoom_frames(made, frames_between=frames_between, size=size))
    return write_video(pictures, Path(path), fps, total, progress)


def stitch_zoom_to_video(
    image_dir: str | Path, output_video: str | Path, fps: float = 10, *, progress: bool = False
) -> Path:
    """Write the pictures zoom_*.png of a folder, in the order of their names, as .mp4 or .gif, a frame each.

    Raises:
        InvalidValueError: no such pictures, pictures of different sizes, another ending.
        MissingExtraError: pillow, or imageio and its ffmpeg (.mp4), is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "cli") from None
    checked(output_video, fps)
    files = sorted(Path(image_dir).glob("zoom_*.png"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise InvalidValueError(f"no pictures zoom_*.png in {str(image_dir)!r}: give the folder of a zoom")
    sizes: dict[tuple[int, int], str] = {}
    for file in files:
        with Image.open(file) as picture:
            sizes.setdefault(picture.size, file.name)
    if len(sizes) > 1:
        told = ", ".join(f"{name} has {width} x {height}" for (width, height), name in sizes.items())
        raise InvalidValueError(f"the pictures in {str(image_dir)!r} differ in size: {told} pixels; make them again")
    return write_video(map(read_pixels, files), Path(output_video), fps, len(files), progress)


def frame_count(zoom: Zoom, frames_between: int) -> int:
    """Frames of a zoom's video."""
    whole(frames_between, "frames_between", 1, 10_000, "frames")
    if len(zoom) < 2:
        raise InvalidValueError(
            f"a video needs at least 2 keyframes, {zoom.folder} has {len(zoom)}: zoom in by more levels"
        )
    return (len(zoom) - 1) * frames_between + 1


def zoom_frames(
    zoom: Zoom, *, frames_between: int = 45, size: int | tuple[int, int] | None = None
) -> Iterator[Float64]:
    """(height, width) values in [-1, 1] of each frame, row 0 the lowest; `colours` makes pictures of them.

    Between keyframes k and k + 1 the window shrinks by equal factors about the fixed point of both. Keyframes are
    drawn on top of each other, nearest points, each ranked by the tables of k and of k + 1, mixed by
    sin(pi alpha / 2)**2. A keyframe fades in while a frame's pixel shrinks from the pitch of the one before to its
    own: at the keyframes' size, k + 1 over k, so that the frame at alpha = 0 is keyframe k, point by point; at twice
    that size (as the paper has it) k + 1 is there from the start and k + 2 fades in.

    Args:
        frames_between, size: see `save_video`.
    """
    frame_count(zoom, frames_between)
    shape = shape_of(zoom, size)
    values = RankedKeyframes(zoom)
    for level in range(len(zoom) - 1):
        for step in range(frames_between):
            yield frame(zoom, values, level, step / frames_between, shape)
        values.forget(level)
    yield frame(zoom, values, len(zoom) - 2, 1.0, shape)


def shape_of(zoom: Zoom, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of a zoom's frames."""
    tall, wide = zoom.resolution
    if size is None:
        return tall, wide
    given = tuple(size) if isinstance(size, tuple | list) else (size, None)
    if len(given) != 2:
        raise InvalidValueError(f"size must be a height or (height, width) in pixels, got {size!r}")
    height = whole(given[0], "height", 2, 16384, "pixels")
    return height, whole(
        max(2, round(height * wide / tall)) if given[1] is None else given[1], "width", 2, 16384, "pixels"
    )


class RankedKeyframes:
    """Keyframes of a zoom, each ranked by its own table or a neighbour's; kept until they are passed."""

    def __init__(self, zoom: Zoom) -> None:
        self.zoom = zoom
        self.measures: dict[int, Float64] = {}
        self.tables: dict[int, RankTable] = {}
        self.ranked: dict[tuple[int, int], Float64] = {}

    def measure(self, level: int) -> Float64:
        """(H, W) V of a level."""
        if level not in self.measures:
            self.measures[level] = self.zoom.measure(level)
        return self.measures[level]

    def table(self, level: int) -> RankTable:
        """The ranks of a level, a missing side from the level before or after."""
        if level not in self.tables:
            table = RankTable.of(self.measure(level))
            for beside in (level - 1, level + 1):
                if not (len(table.converged[0]) and len(table.diverged[0])) and 0 <= beside < len(self.zoom):
                    table = table.filled(RankTable.of(self.measure(beside)))
            self.tables[level] = table
        return self.tables[level]

    def values(self, level: int, by: int) -> Float64:
        """(H, W) values in [-1, 1] of a level, ranked by the table of a level."""
        if (level, by) not in self.ranked:
            self.ranked[level, by] = self.table(by).values(self.measure(level))
        return self.ranked[level, by]

    def forget(self, level: int) -> None:
        """Let go of a level that no later frame shows, and of its table."""
        self.ranked = {key: kept for key, kept in self.ranked.items() if min(key) > level}
        for kept in (self.measures, self.tables):
            kept.pop(level, None)  # type: ignore[attr-defined]


def frame(zoom: Zoom, keyframes: RankedKeyframes, level: int, alpha: float, shape: tuple[int, int]) -> Float64:
    """(height, width) values at a share of the way from a keyframe to the next."""
    seen = between(zoom.windows[level], zoom.windows[level + 1], alpha)
    mixed = math.sin(math.pi * alpha / 2) ** 2
    found = np.full(shape, np.nan)
    for deep in range(level, len(zoom)):
        opacity = opacity_of(zoom, level, deep - level, alpha, shape)
        if opacity <= 0.0:
            break
        rows, columns, where = sampled(zoom.windows[deep], seen, zoom.resolution, shape)
        if not (len(rows) and len(columns)):
            continue
        drawn = np.zeros((len(rows), len(columns)))
        for by, share in ((level, 1.0 - mixed), (level + 1, mixed)):
            if share > 0.0:
                drawn += share * keyframes.values(deep, by)[rows][:, columns]
        found[where] = blended(found[where], drawn, opacity) if opacity < 1.0 else drawn
    return found


def blended(below: Float64, above: Float64, opacity: float) -> Float64:
    """Values on the way from one picture's to another's, through the boundary (1, -1) where their labels differ.

    So a change of label passes through the dark colours on both sides of the boundary, and never through the pale
    ones in the middle of the range, which no run has. What has no value (NaN) is as if it weren't there.

    Example:
        >>> blended(np.array([0.5, 0.75]), np.array([1.0, -0.75]), 0.75)
        array([ 0.875, -0.875])
    """
    change = above - below
    passed = below + opacity * (change - 2.0 * np.sign(change) * ((below < 0) != (above < 0)))
    passed = np.where(np.abs(passed) > 1.0, passed - 2.0 * np.sign(passed), passed)
    return np.where(np.isnan(below), above, np.where(np.isnan(above), below, passed))


def opacity_of(zoom: Zoom, level: int, deeper: int, alpha: float, shape: tuple[int, int]) -> float:
    """How much a keyframe so many levels deeper than the frame's own covers what lies under it, 0 to 1."""
    if deeper == 0:
        return 1.0
    factor = max(1.0, zoom.windows[level].size[0] / zoom.windows[level + 1].size[0])
    finer = max(0.0, math.log(min((s - 1) / (r - 1) for s, r in zip(shape, zoom.resolution, strict=True))))
    spare = finer / math.log(factor) if factor > 1.0 else 0.0
    return min(1.0, max(0.0, alpha + spare - (deeper - 1)))


def sampled(
    window: Window, seen: Window, resolution: tuple[int, int], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[slice, slice]]:
    """Rows and columns of a keyframe that are nearest to a frame's pixels, and which pixels those are."""
    across, upward = place_of(window, seen).spans()
    picked, pixels = [], []
    for (low, high), points, count in zip((upward, across), resolution, shape, strict=True):
        at = (np.arange(count) / (count - 1) - low) / (high - low) * (points - 1)
        inside = np.flatnonzero((at > -0.5 - 1e-6) & (at < points - 0.5 + 1e-6))
        picked.append(np.clip(np.floor(at[inside] + 0.5 + 1e-6), 0, points - 1).astype(np.int64))
        pixels.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return picked[0], picked[1], (pixels[0], pixels[1])


def checked(path: str | Path, fps: float) -> str:
    """The ending of a video's name, .mp4 or .gif, which can show so many frames a second."""
    ending = Path(path).suffix.lower()
    if ending not in FASTEST:
        raise InvalidValueError(f"a video is written as {' or '.join(FASTEST)}, got {str(path)!r}")
    number(fps, f"fps of a {ending}", 0.0, FASTEST[ending], above=True)
    return ending


def write_video(frames: Iterable[UInt8], path: Path, fps: float, total: int, progress: bool) -> Path:
    """Write (height, width, 3) uint8 frames under a temporary name, then rename it."""
    write = _write_mp4 if checked(path, fps) == ".mp4" else _write_gif
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        write(temporary, barred(frames, total, progress), fps, total)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def barred(frames: Iterable[UInt8], total: int, progress: bool) -> Iterable[UInt8]:
    """The frames behind a progress bar."""
    if not progress:
        return frames
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("tqdm", "cli") from None
    shown: Iterable[UInt8] = tqdm(frames, "video", total=total, unit=" frames", dynamic_ncols=True)
    return shown


def _write_mp4(path: Path, frames: Iterable[UInt8], fps: float, total: int) -> None:
    write_mp4(path, frames, fps, quality=None, options=H264)


def _write_gif(path: Path, frames: Iterable[UInt8], fps: float, total: int) -> None:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "cli") from None
    numbers = np.full(2**24, -1, np.int16)
    numbers[SPECTRAL.astype(np.int64) @ (65536, 256, 1)] = np.arange(256)

    def indexed(picture: UInt8) -> Any:
        """The picture with the colours of `SPECTRAL` as its palette, or, if it has others, of its own."""
        found = numbers[picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)]
        if (found < 0).any():
            return Image.fromarray(picture).quantize(256, Image.Quantize.MEDIANCUT)
        made = Image.frombytes("P", (found.shape[1], found.shape[0]), found.astype(np.uint8).tobytes())
        made.putpalette(SPECTRAL.tobytes())
        return made

    moments = [round(100.0 * moment / fps) for moment in range(total + 1)]  # of the format, hundredths of a second
    lasting = [10 * (end - begin) for begin, end in pairwise(moments)]
    made = map(indexed, frames)
    first = next(made)
    first.save(path, format="GIF", save_all=True, append_images=made, duration=lasting, loop=0, disposal=1)
