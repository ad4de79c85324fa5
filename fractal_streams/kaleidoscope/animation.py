"""Moving pictures of chains, as GIF (one palette for all frames, so that nothing flickers) or MP4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.plots import UInt8, page, pillow, pixels_of, put, with_ending
from fractal_streams.kaleidoscope.profiles import draw_loss, profile, trajectories
from fractal_streams.kaleidoscope.surface import draw_surface, loss_surface
from fractal_streams.mp4 import write_mp4
from fractal_streams.spec import whole

FASTEST = {".gif": 50.0, ".mp4": 240.0}
"""Endings, and the most frames a second that each can show."""
PROFILE_FRAMES, SURFACE_FRAMES, CURVE_RATE = 20, 15, 3.0
COLOURS, COMMONEST, WORST = 256, 16, 64
"""Of a palette; those of them that are the commonest colours; and those that the others would show worst."""
SAMPLE = 2_000_000
"""Pixels that a palette is chosen for, at most."""
EXACT = ("-bitexact", "-threads", "1")
"""Of x264: the same bytes on any number of cores."""
Codes = npt.NDArray[np.uint32]


def save_frames(path: str | Path, frames: Sequence[UInt8], *, rate: float, hold: Sequence[int] | None = None) -> Path:
    """Write frames as a GIF that repeats without end, or as MP4, by the ending; the same frames give the same bytes.

    A GIF's frame that is held is stored once and shown longer. Its times are in hundredths of a second: frame k begins
    at the nearest one. Up to 256 colours in all frames together are kept as they are.

    Args:
        path: a .gif or .mp4; it appears whole or not at all.
        frames: (H, W, 3) uint8, all of one size.
        rate: frames a second, above 0, at most 50 of a GIF and 240 of MP4.
        hold: frames that each lasts, 1 and up; None is 1.

    Raises:
        InvalidValueError: another ending, a value out of its range, frames of several sizes.
        MissingExtraError: pillow (.gif), or imageio and its ffmpeg (.mp4), is not installed.
    """
    place = with_ending(path, *FASTEST)
    ending = place.suffix.lower()
    check_rate(rate, ending)
    if not len(frames) or len({frame.shape for frame in frames}) > 1:
        raise InvalidValueError(f"frames must be of one size, at least one, got {sorted({f.shape for f in frames})}")
    lasts = [1] * len(frames) if hold is None else [whole(count, "hold", 1, 10_000, "frames") for count in hold]
    if len(lasts) != len(frames):
        raise InvalidValueError(f"hold must be one number for each of {len(frames)} frames, got {len(lasts)}")
    if ending == ".gif":
        put(place, lambda file: write_gif(file, frames, durations(lasts, rate)))
    else:
        shown = [frame for frame, count in zip(frames, lasts, strict=True) for _ in range(count)]
        put(place, lambda file: write_mp4(file, shown, rate, quality=9, options=EXACT))
    return place


def check_rate(rate: float, ending: str) -> None:
    """Refuse frames a second that a film of an ending can't have."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate <= FASTEST[ending]:
        raise InvalidValueError(f"rate must lie in (0, {FASTEST[ending]:g}] frames a second of {ending}, got {rate!r}")


def durations(lasts: Sequence[int], rate: float) -> list[int]:
    """Milliseconds that each frame is shown, whole hundredths of a second.

    Example:
        >>> durations([10, 1, 1, 1], 15.0)
        [670, 60, 70, 70]
    """
    begins = np.rint(100.0 * np.concatenate([[0], np.cumsum(lasts)]) / rate).astype(int)
    return [int(10 * length) for length in np.diff(begins)]


def write_gif(path: Path, frames: Sequence[UInt8], lasts: Sequence[int]) -> None:
    """Write frames with one palette."""
    image, known, palette, place = pillow(), *palette_of(frames)
    pages = []
    for frame in frames:
        drawn = image.fromarray(place[np.searchsorted(known, codes_of(frame))])
        drawn.putpalette(palette.tobytes())
        pages.append(drawn)
    pages[0].save(
        path, format="GIF", save_all=True, append_images=pages[1:], duration=list(lasts), loop=0, optimize=False
    )  # fmt: skip


def codes_of(frame: UInt8) -> Codes:
    """(H, W) uint32: red, green and blue of 24 bits."""
    wide = frame.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def colours_of(codes: Codes) -> UInt8:
    """(..., 3) uint8 of codes."""
    return np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)


def palette_of(frames: Sequence[UInt8]) -> tuple[Codes, UInt8, UInt8]:
    """Increasing codes (K,) of all colours in frames, a palette (P, 3) for them, and the entry (K,) of each colour.

    Beyond 256 colours the palette has the 16 commonest, 176 boxes of the others (median cut, a colour weighted by the
    root of its count), and one by one the 64 that these show worst, by count times squared distance: small marks keep
    their colours.
    """
    seen = [np.unique(codes_of(frame), return_counts=True) for frame in frames]
    known, rows = np.unique(np.concatenate([codes for codes, _ in seen]), return_inverse=True)
    if len(known) <= COLOURS:
        return known, colours_of(known), np.arange(len(known), dtype=np.uint8)
    count = np.bincount(rows, weights=np.concatenate([counts for _, counts in seen]))
    common = np.sort(np.argsort(-count, kind="stable")[:COMMONEST])
    weight = np.sqrt(count)
    weight[common] = 0.0
    repeats = np.ceil(weight * min(1.0, SAMPLE / weight.sum())).astype(int)
    sample = pillow().fromarray(colours_of(np.repeat(known, repeats))[None])
    boxes = COLOURS - COMMONEST - WORST
    cut = np.asarray(sample.quantize(boxes, method=0).getpalette(), np.uint8).reshape(-1, 3)[:boxes]
    shades = colours_of(known).astype(np.float32)
    palette = np.concatenate([colours_of(known[common]), cut]).astype(np.float32)
    place, squares = np.zeros(len(known), np.uint8), np.full(len(known), np.inf, np.float32)
    for number in range(COLOURS):
        if number == len(palette):
            palette = np.concatenate([palette, shades[[(count * squares).argmax()]]])
        found = np.square(shades - palette[number]).sum(axis=1)
        place[found < squares] = number
        squares = np.minimum(squares, found)
    return known, palette.astype(np.uint8), place


def profile_frames(
    fitted: Kaleidoscope, *, frames: int = PROFILE_FRAMES, starts: int = 10, model: int = 0, seed: int = 0,
    device: str = "auto",
) -> Iterator[UInt8]:  # fmt: skip
    """(H, W, 3) uint8 frames of a network of one value: its loss, starts, and where they are behind k applications.

    Args:
        frames: 1 to 1,000; frame k shows the starts behind k applications.
        starts: of the chains, 1 to 100,000.
        model: of the bank.
        seed: of the starts.
    """
    whole(frames, "frames", 1, 1000, "frames")
    found = profile(fitted, models=[model], device=device)
    travelled = trajectories(fitted, starts=starts, steps=frames - 1, seed=seed, models=[model], device=device)
    figure = page(6.0, 4.2, dpi=100)
    axes = figure.subplots()
    moving = draw_loss(axes, found, travelled, 0)
    for step in range(frames):
        moving.set_data(travelled.iterates[0, :, step, 0], travelled.losses[0, :, step])
        yield moment(figure, axes, step)


def surface_frames(
    fitted: Kaleidoscope, *, frames: int = SURFACE_FRAMES, starts: int = 10, points: int = 20, model: int = 0,
    seed: int = 0, device: str = "auto",
) -> Iterator[UInt8]:  # fmt: skip
    """(H, W, 3) uint8 frames of a network of two values: its loss surface, starts, and where they are behind k steps.

    Args:
        points: of the surface along each axis, see `surface.loss_surface`.
        frames, starts, model, seed: as in `profile_frames`.
    """
    whole(frames, "frames", 1, 1000, "frames")
    found = loss_surface(fitted, points=points, models=[model], device=device)
    travelled = trajectories(fitted, starts=starts, steps=frames - 1, seed=seed, models=[model], device=device)
    figure = page(6.4, 5.4, dpi=100)
    axes = figure.add_subplot(projection="3d")
    moving = draw_surface(axes, found, travelled, step=0)
    for step in range(frames):
        moving._offsets3d = (*travelled.iterates[0, :, step].T, travelled.losses[0, :, step])
        yield moment(figure, axes, step)


def moment(figure: Any, axes: Any, step: int) -> UInt8:
    """The pixels of a figure under the title of a step; from the first on its layout stays."""
    axes.set_title(f"step {step}", fontsize=11)
    drawn = pixels_of(figure)
    figure.set_layout_engine("none")
    return drawn


def save_profile_animation(path: str | Path, fitted: Kaleidoscope, *, rate: float = CURVE_RATE, **asked: Any) -> Path:
    """Write `profile_frames` as .gif or .mp4, 20 frames at 3 a second if not asked otherwise; see `save_frames`."""
    with_ending(path, *FASTEST)
    return save_frames(path, list(profile_frames(fitted, **asked)), rate=rate)


def save_surface_animation(path: str | Path, fitted: Kaleidoscope, *, rate: float = CURVE_RATE, **asked: Any) -> Path:
    """Write `surface_frames` as .gif or .mp4, 15 frames at 3 a second if not asked otherwise; see `save_frames`."""
    with_ending(path, *FASTEST)
    return save_frames(path, list(surface_frames(fitted, **asked)), rate=rate)
