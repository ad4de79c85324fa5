"""Shapes of known dimension, drawn as edge maps: what an estimator of dimension is held to.

The published estimator is biased in ways of its own; `Shape.published` is what it gives for each shape, so that a
dimension of a boundary can be read beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import unknown_name
from fractal_streams.trainability.boxes import EdgeMap, edges

Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A set of known dimension.

    dimension: of the ideal set. published: what the published estimator gives at `pixels`, or None where nobody told.
    pixels: side of the edge map at which it does. draw: (pixels) to a (pixels, pixels) bool edge map.
    labels: (pixels) to the (pixels, pixels) bool labels whose boundary the shape is; None of a set that bounds nothing.
    """

    name: str
    dimension: float
    published: float | None
    pixels: int
    draw: Callable[[int], EdgeMap]
    labels: Callable[[int], Labels] | None = None

    def edge_map(self, pixels: int | None = None) -> EdgeMap:
        """(pixels, pixels) bool."""
        return self.draw(pixels or self.pixels)


def below_line(pixels: int) -> Labels:
    """Labels on either side of y = 0.2 + 0.37 x."""
    x, y = places(pixels)
    return y[:, None] < 0.2 + 0.37 * x


def disc(pixels: int) -> Labels:
    """Labels inside and outside the inscribed circle."""
    x, y = places(pixels)
    return (x - 0.5) ** 2 + (y[:, None] - 0.5) ** 2 < 0.25


def noise(pixels: int) -> Labels:
    """Every pixel one of two labels, like the toss of a coin."""
    count = -(-pixels * pixels // 128)
    words = np.stack(rng.words(np.arange(count, dtype=np.int64), rng.key("trainability@1", "calibration noise")), 1)
    bits = np.unpackbits(np.ascontiguousarray(words.astype(np.uint32)).view(np.uint8))
    return bits[: pixels * pixels].reshape(pixels, pixels).astype(bool)


def below_weierstrass(pixels: int, dimension: float = 1.5) -> Labels:
    """Labels below and above the graph of Weierstrass's function, sum of b**((D - 2) k) cos(2 pi b**k x) for b = 2."""
    x, y = places(pixels)
    graph = np.zeros(pixels)
    for order in range(math.ceil(math.log2(pixels)) + 2):
        graph += 2.0 ** ((dimension - 2.0) * order) * np.cos(2.0 * np.pi * (2.0**order * x % 1.0) + order)
    return y[:, None] < (graph - graph.min()) / np.ptp(graph)


def sierpinski_triangle(pixels: int) -> EdgeMap:
    """Pascal's triangle modulo 2: pixels whose row and column share no binary digit."""
    place = np.arange(pixels)
    return (place[:, None] & place) == 0


def vicsek(pixels: int) -> EdgeMap:
    """Vicsek's cross: 5 of every 9 squares, down to a pixel."""
    return of_thirds(pixels, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool))


def carpet(pixels: int) -> EdgeMap:
    """Sierpinski's carpet: 8 of every 9 squares, down to a pixel."""
    return of_thirds(pixels, np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool))


def of_thirds(pixels: int, kept: Labels) -> EdgeMap:
    """The set whose points have only kept pairs of digits to base 3, on its smallest power of 3 at least as large."""
    depth = next(power for power in range(1, 40) if 3**power >= pixels)
    place = np.arange(pixels, dtype=np.int64) * 3**depth // pixels
    held = np.ones((pixels, pixels), bool)
    for power in range(depth):
        digit = place // 3**power % 3
        held &= kept[digit[:, None], digit]
    return held


def places(pixels: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Middles of the pixels of each axis, of a side of 1."""
    middles = (np.arange(pixels) + 0.5) / pixels
    return middles, middles


def bounded(labels: Callable[[int], Labels]) -> Callable[[int], EdgeMap]:
    """The boundary of labels of one more pixel along each side."""
    return lambda pixels: edges(labels(pixels + 1))


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(name="line", dimension=1.0, published=0.99, pixels=4095, draw=bounded(below_line), labels=below_line),
        Shape(name="circle", dimension=1.0, published=1.03, pixels=4095, draw=bounded(disc), labels=disc),
        Shape(
            name="sierpinski_triangle", dimension=math.log2(3.0), published=1.64, pixels=4095, draw=sierpinski_triangle
        ),
        Shape(name="vicsek", dimension=math.log(5.0, 3.0), published=1.45, pixels=4095, draw=vicsek),
        Shape(name="carpet", dimension=math.log(8.0, 3.0), published=1.91, pixels=2187, draw=carpet),
        Shape(name="noise", dimension=2.0, published=1.99, pixels=4095, draw=bounded(noise), labels=noise),
        Shape(
            name="weierstrass", dimension=1.5, published=None, pixels=4095, draw=bounded(below_weierstrass),
            labels=below_weierstrass,
        ),
    )
}  # fmt: skip
"""Name to shape. Line, circle, noise and Weierstrass's graph are edges of labels; the others are edge maps."""


def find_shape(name: str) -> Shape:
    """The shape of a name.

    Raises:
        UnknownNameError: no such shape; names the nearest known one.

    Example:
        >>> int(find_shape("sierpinski_triangle").edge_map(64).sum())
        729
    """
    if name not in SHAPES:
        raise unknown_name("shape", name, SHAPES)
    return SHAPES[name]
