"""Where one window of a plane lies in another, and windows between two."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.window import LN_10, Window


@dataclass(frozen=True)
class Place:
    """A rectangle in another: middle (x, y) with (0, 0) the other's lower left corner and (1, 1) its upper right
    one, and size (width, height) over the other's."""

    x: float
    y: float
    width: float
    height: float

    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((left, right), (bottom, top))."""
        return (
            (self.x - self.width / 2, self.x + self.width / 2), (self.y - self.height / 2, self.y + self.height / 2)
        )  # fmt: skip


def place_of(inner: Window, outer: Window) -> Place:
    """The rectangle that one window is in another.

    Raises:
        InvalidValueError: an axis is linear in one and logarithmic in the other.

    Example:
        >>> window = Window.of_exponents(x=(-3, 6), y=(-3, 6))
        >>> place_of(window.scaled(0.5, about=(0.25, 0.75)), window)
        Place(x=0.25, y=0.75, width=0.5, height=0.5)
    """
    shift = moved(outer, inner)
    return Place(
        0.5 + shift[0] / outer.size[0], 0.5 + shift[1] / outer.size[1],
        inner.size[0] / outer.size[0], inner.size[1] / outer.size[1],
    )  # fmt: skip


def moved(start: Window, end: Window) -> tuple[float, float]:
    """(x, y) from the middle of one window to that of another, in decades or the axis's own units."""
    if start.linear != end.linear:
        raise InvalidValueError(
            f"windows of different axes: linear is {start.linear} in one, {end.linear} in the other"
        )
    found = []
    for c0, c1, o0, o1, plain in zip(start.centre, end.centre, start.offset, end.offset, start.linear, strict=True):
        between = c1 - c0 if plain else math.log1p((c1 - c0) / c0) / LN_10
        found.append(between + (o1 - o0))
    return found[0], found[1]


def between(start: Window, end: Window, share: float) -> Window:
    """A window on the way from one to another: sizes change by equal factors in equal shares, about the fixed point.

    The fixed point of the similarity that takes the first to the second stays at its place of the window, so that
    a path through nested windows whose centres move is as smooth as one whose centres don't.

    Args:
        share: 0 gives the first window, 1 one as large and in the same place as the second.

    Example:
        >>> window = Window.of_exponents(x=(-3, 6), y=(-3, 6))
        >>> between(window, window.scaled(0.25), 0.5).size
        (4.5, 4.5)
    """
    size, offset = [], []
    for s0, s1, o0, shift in zip(start.size, end.size, start.offset, moved(start, end), strict=True):
        ratio = s1 / s0
        part = ratio**share
        way = share if ratio == 1.0 else (1.0 - part) / (1.0 - ratio)
        size.append(s0 * part)
        offset.append(o0 + shift * way)
    return replace(start, size=(size[0], size[1]), offset=(offset[0], offset[1]))
