"""Pictures of a measure: colours by rank on each side of the boundary, plain or with axes in their own units."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.nested import Place, place_of
from fractal_streams.trainability.ranks import RankTable as RankTable, restretch as restretch
from fractal_streams.trainability.store import put
from fractal_streams.trainability.window import Window

UInt8 = npt.NDArray[np.uint8]

UNKNOWN = (128, 128, 128)
"""The colour of a point without a value (NaN)."""
ANCHORS = "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2"
"""ColorBrewer's eleven colours "Spectral" (C. Brewer), red to purple."""
INK, FAINT = "#202024", "#787880"
SIDE, LEFT, RIGHT, BELOW, TITLE, ABOVE = 5.0, 0.85, 0.3, 1.25, 0.42, 0.12
"""Inches: the picture's width, and what lies around it."""
TALLEST = 4.0
"""Height over width from which a picture is drawn narrower, lest it grow without end."""
INSET = 1.6
"""Width of the overview, inches."""
TITLE_LETTERS = 60
"""Letters of a title that fit over a picture; longer ones are set smaller."""
LEAST_PIXELS = 750
"""Across a picture: less is enlarged by a whole factor."""
DECADES_OF_POWERS = 2.0
"""Axes at least as long have ticks at powers of ten; shorter ones at their ends."""
TINY = 0.02
"""Share of a picture under which a marked window gets a ring."""


def _spectral() -> UInt8:
    """(256, 3): the anchors at equal distances and straight lines between them, rounded down, in whole numbers."""
    anchors = np.array([list(bytes.fromhex(one)) for one in ANCHORS.split()])
    place, part = np.divmod(np.arange(256) * (len(anchors) - 1), 255)
    after = np.minimum(place + 1, len(anchors) - 1)
    mixed = (anchors[place] * (255 - part)[:, None] + anchors[after] * part[:, None]) // 255
    mixed[[68, 85], 2] -= 1  # whole numbers that matplotlib's floats fall just short of
    return mixed.astype(np.uint8)


SPECTRAL = _spectral()
"""(256, 3) uint8, matplotlib's "Spectral": red is -1, diverged; purple is 1, converged."""
SPECTRAL.setflags(write=False)


def colours(values: npt.ArrayLike) -> UInt8:
    """(..., 3) uint8: values in [-1, 1] in the colours of `SPECTRAL`, NaN in grey.

    Example:
        >>> colours([-1.0, 0.0, 1.0]).tolist()
        [[158, 1, 66], [254, 254, 190], [94, 79, 162]]
    """
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    place = (np.clip(np.where(known, array, 0.0), -1.0, 1.0) + 1.0) * 128.0
    made = SPECTRAL[np.minimum(place.astype(np.int64), 255)]
    if not known.all():
        made[~known] = UNKNOWN
    return made


def plain(measure: npt.ArrayLike, reference: npt.ArrayLike | None = None) -> UInt8:
    """(H, W, 3) uint8: the picture of an (H, W) measure, its row 0 at the bottom, a pixel to each point.

    Raises:
        InvalidValueError: not (H, W), or without points.
    """
    array = np.asarray(measure, np.float64)
    if array.ndim != 2 or not array.size:
        raise InvalidValueError(f"measure must be (H, W), at least one point, got the shape {array.shape}")
    return np.ascontiguousarray(colours(restretch(array, reference))[::-1])


def save_plain(measure: npt.ArrayLike, path: str | Path, reference: npt.ArrayLike | None = None) -> None:
    """Write the picture of an (H, W) measure as PNG, a pixel to each point, row 0 at the bottom.

    The file appears whole or not at all; equal measures give equal bytes.

    Args:
        measure: (H, W) float64, V.
        path: a .png.
        reference: whose ranks give the colours; see `restretch`.

    Raises:
        InvalidValueError: not (H, W), or another ending.
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "cli") from None
    check_png(path)
    picture = Image.fromarray(plain(measure, reference))
    put(Path(path), lambda file: picture.save(file, format="PNG"))


def read_pixels(path: str | Path) -> UInt8:
    """(H, W, 3) uint8: the pixels of a picture file, its top row first.

    Raises:
        InvalidValueError: damaged, or no picture. MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "cli") from None
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise InvalidValueError(f"{str(path)!r} is no picture that can be read ({error}): make it again") from None


def check_png(path: Any) -> None:
    """An `InvalidValueError` for a file that isn't named as a PNG."""
    if Path(path).suffix.lower() != ".png":
        raise InvalidValueError(f"a picture is written as .png, got {str(path)!r}")


def save_picture(
    scan: Any, path: str | Path, *, mark: Window | None = None, title: str | None = None, overview: Any = None
) -> None:
    """Write a scan's picture with axes as PNG; the file appears whole or not at all.

    Each point is drawn as one square of pixels (nearest), the lowest row at the bottom. Axes longer than two decades
    have ticks at powers of ten; shorter ones print the values of their ends with as many digits as show 4 that differ.

    Args:
        scan: a `Scan`: anything with `experiment`, `window` and `measure`, (H, W) float64.
        mark: a window to draw in the picture: a rectangle, or a ring around one that is tiny.
        title: over the picture.
        overview: a `Scan` of a wider window, drawn small beside the picture with the place of this one in it.

    Raises:
        InvalidValueError: another ending, or a marked window that lies outside.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "recipes") from None
    check_png(path)
    pixels = plain(scan.measure)
    height, width = pixels.shape[:2]
    side = SIDE * min(1.0, TALLEST * width / height)
    factor, tall = math.ceil(LEAST_PIXELS * side / SIDE / width), side * height / width
    above = TITLE if title else ABOVE
    size = (LEFT + SIDE + RIGHT + (INSET + 0.75 if overview is not None else 0.0), BELOW + tall + above)
    figure = Figure(size, dpi=width * factor / side, facecolor="white")
    axes = figure.add_axes((LEFT / size[0], BELOW / size[1], side / size[0], tall / size[1]))
    draw(axes, pixels, scan.window, scan.experiment)
    if title:
        axes.set_title(
            title,
            loc="left",
            fontsize=min(10.0, 10.0 * TITLE_LETTERS / len(title)),
            fontweight="bold",
            color=INK,
            pad=6,
        )
    if mark is not None:
        draw_mark(axes, checked_place(mark, scan.window), (height, width))
    _legend(figure.add_axes((LEFT / size[0], 0.34 / size[1], SIDE / size[0], 0.13 / size[1])))
    if overview is not None:
        small = plain(overview.measure)
        high = INSET * small.shape[0] / small.shape[1]
        left, bottom = LEFT + SIDE + RIGHT + 0.55, max(BELOW + tall - high, 0.4)
        inset = figure.add_axes((left / size[0], bottom / size[1], INSET / size[0], high / size[1]))
        draw(inset, small, overview.window, overview.experiment, small_print=True)
        inset.set_title("overview", loc="left", fontsize=8, color=FAINT, pad=3)
        draw_mark(inset, checked_place(scan.window, overview.window), small.shape[:2])
    facts = {"Software": None}  # the version of matplotlib is no part of a picture
    put(Path(path), lambda file: figure.savefig(file, format="png", metadata=facts))


def draw(axes: Any, pixels: UInt8, window: Window, experiment: Experiment, small_print: bool = False) -> None:
    """Draw a picture, its row 0 on top, in axes with the ticks of a window."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels[::-1], origin="lower", interpolation="nearest", aspect="auto")
    letters = 7 if small_print else 8.5
    (xs, xnames), (ys, ynames) = (ticks(window, axis, 4 if small_print else 10) for axis in (0, 1))
    axes.set_xticks([x * (width - 1) for x in xs], xnames)
    axes.set_yticks([y * (height - 1) for y in ys], ynames)
    axes.tick_params(labelsize=letters, colors=INK, length=3, width=0.6)
    axes.spines[:].set(linewidth=0.6, color=INK)
    for axis, labels in ((0, axes.get_xticklabels()), (1, axes.get_yticklabels())):
        if not by_powers(window, axis):
            for label, side in zip(labels, ("left", "right") if axis == 0 else ("bottom", "top"), strict=True):
                label.set(**({"ha": side} if axis == 0 else {"va": side, "rotation": 90}))
    if not small_print:
        axes.set_xlabel(axis_name(experiment, 0), fontsize=9, color=INK)
        axes.set_ylabel(axis_name(experiment, 1), fontsize=9, color=INK)


def draw_mark(axes: Any, place: Place, shape: tuple[int, int]) -> None:
    """Draw a rectangle at a place of a picture, or a ring where it would be too small to see."""
    from matplotlib.patches import Rectangle

    height, width = shape
    (left, right), (low, high) = place.spans()
    if max(place.width, place.height) < TINY:
        at = [place.x * (width - 1)], [place.y * (height - 1)]
        for ink, line in (("white", 3.0), ("black", 1.2)):
            axes.plot(*at, marker="o", markersize=9, fillstyle="none", color=ink, markeredgewidth=line, clip_on=False)
        return
    for ink, line in (("white", 2.6), ("black", 1.1)):
        box = (left * (width - 1), low * (height - 1)), (right - left) * (width - 1), (high - low) * (height - 1)
        axes.add_patch(Rectangle(*box, fill=False, edgecolor=ink, linewidth=line))


def _legend(axes: Any) -> None:
    """A bar of all colours in use, from what converged fast over the boundary to what diverged fast."""
    light, dark = SPECTRAL[160:], SPECTRAL[:96]
    axes.imshow(np.concatenate([light, dark])[None], aspect="auto", interpolation="nearest")
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines[:].set(linewidth=0.6, color=INK)
    for place, text, side in ((0.0, "fast", "left"), (0.5, "slow", "center"), (1.0, "fast", "right"),
                              (0.25, "converged", "center"), (0.75, "diverged", "center")):  # fmt: skip
        axes.text(place, -0.45, text, transform=axes.transAxes, ha=side, va="top", fontsize=8, color=INK)


def checked_place(inner: Window, outer: Window) -> Place:
    """The place of a window in another; an `InvalidValueError` if no part of it lies there."""
    place = place_of(inner, outer)
    (left, right), (low, high) = place.spans()
    if not (right > 0 and left < 1 and high > 0 and low < 1):
        raise InvalidValueError(
            f"the window to mark lies outside the picture: its middle is at ({place.x:.3g}, {place.y:.3g}) of it, "
            f"where both should lie in [0, 1]"
        )
    return place


def axis_name(experiment: Experiment, axis: int) -> str:
    """What an axis is: 0 the horizontal, 1 the vertical one.

    Example:
        >>> axis_name(Experiment(), 0), axis_name(Experiment(axes=("offset", "lr"), offset_mode="every_step"), 0)
        ('input layer learning rate', 'input layer weight offset, added at every step')
    """
    name, deep = experiment.axes[axis], experiment.depth > 2
    ends = "input and output layer" if deep and "lr2" not in (*experiment.axes, *experiment.hyperparameters) else None
    return {
        "lr": "learning rate",
        "lr0": f"{ends or 'input layer'} learning rate",
        "lr1": f"{'hidden' if deep else 'output'} layer learning rate",
        "lr2": "output layer learning rate",
        "momentum": "momentum (Adam's β1)" if experiment.optimiser == "adam" else "momentum",
        "beta2": "Adam's β2",
        "weight_decay": "weight decay",
        "offset": "input layer weight offset"
        + (", added at every step" if experiment.offset_mode == "every_step" else ""),
        "scale": "scale of initial weights",
    }[name]


def by_powers(window: Window, axis: int) -> bool:
    """Whether an axis has ticks at powers of ten."""
    return not window.linear[axis] and window.size[axis] >= DECADES_OF_POWERS


def ticks(window: Window, axis: int, most: int = 10) -> tuple[list[float], list[str]]:
    """Places in [0, 1] of an axis's ticks, powers of ten at most so many, and what they say."""
    low, high = window.ends()[axis]
    if not by_powers(window, axis):
        return [0.0, 1.0], list(end_labels(low, high))
    first, last = math.log10(low), math.log10(high)
    step = max(1, math.ceil((last - first) / most))
    powers = [k for k in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1) if k % step == 0]
    return [(k - first) / (last - first) for k in powers], [f"$10^{{{k}}}$" for k in powers]


def end_labels(low: float, high: float, differing: int = 4) -> tuple[str, str]:
    """Two values with just enough digits to show 4 that differ.

    Example:
        >>> end_labels(13.29976231, 13.29978604), end_labels(190.01008, 190.01184)
        (('13.29976231', '13.29978604'), ('190.010080', '190.011840'))
    """
    a, b = Decimal(low), Decimal(high)
    most = max(abs(a), abs(b))
    top = most.adjusted() if most else 0
    place = next((p for p in range(top, top - 17, -1) if a.scaleb(-p) // 1 != b.scaleb(-p) // 1), top - 13)
    last = max(place - differing + 1, top - 16)
    if -4 <= top < 6:
        return f"{a:.{max(0, -last)}f}", f"{b:.{max(0, -last)}f}"
    return f"{low:.{top - last}e}", f"{high:.{top - last}e}"
