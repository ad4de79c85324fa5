"""Adaptive refinement: a coarse grid, then only what lies near a change of sign, with the measured share of errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole
from fractal_streams.trainability.store import COLUMNS, Columns

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

Z_95 = 1.959963984540054
"""Normal deviate that 95 % lie within."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How a scan leaves out what lies far from the boundary.

    step: points between those of the coarsest grid, a power of two, 2 to 256.
    margin: cells around one with a change of sign that are refined too, 0 to 64.
    sample: points left out that are trained after all, to measure the share of wrong labels, 0 to 1,000,000.

    Raises:
        InvalidValueError: a number outside its range, a step that is no power of two.

    Example:
        >>> Refinement(step=4).margin
        1
    """

    step: int = 8
    margin: int = 1
    sample: int = 1000

    def __post_init__(self) -> None:
        for name, low, high in (("step", 2, 256), ("margin", 0, 64), ("sample", 0, 1_000_000)):
            object.__setattr__(self, name, whole(getattr(self, name), name, low, high, "points"))
        if self.step & (self.step - 1):
            raise InvalidValueError(f"step must be a power of two, 2 to 256 points, got {self.step}")

    def to_dict(self) -> dict[str, int]:
        """The fields, as JSON holds them."""
        return asdict(self)


@dataclass(frozen=True)
class Refined:
    """What a refinement did, and how wrong it is.

    points: of the grid. evaluated: of them, those that were trained. sampled: draws with replacement among the
    others, which were trained to check them, or all others if they are no more than the sample. wrong: of
    those, how many have another label than the scan gives them.
    """

    points: int
    evaluated: int
    sampled: int
    wrong: int

    @property
    def share(self) -> float:
        """Evaluated points over all."""
        return self.evaluated / self.points

    @property
    def error(self) -> float:
        """Share of wrong labels among the points that were not evaluated, as the sample has it; NaN without one."""
        left = self.points - self.evaluated
        return self.wrong / self.sampled if self.sampled else (math.nan if left else 0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `error` by E. Wilson (1927); if all were checked, the error itself.

        Example:
            >>> low, high = Refined(10_000, 2_000, 1_000, 0).interval
            >>> low, round(high, 5)
            (0.0, 0.00383)
        """
        left = self.points - self.evaluated
        if not left or self.sampled == left:
            return self.error, self.error
        if not self.sampled:
            return 0.0, 1.0
        return wilson(self.wrong, self.sampled)


def wilson(hits: int, draws: int, deviate: float = Z_95) -> tuple[float, float]:
    """The interval of a share that gave so many hits."""
    share, square = hits / draws, deviate * deviate
    middle = (share + square / (2 * draws)) / (1 + square / draws)
    half = deviate / (1 + square / draws) * math.sqrt(share * (1 - share) / draws + square / (4 * draws * draws))
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == draws else middle + half)


Evaluate = Callable[[Int64, Int64], Columns]
"""Columns of (n,) rows and columns of a grid."""


def refine(shape: tuple[int, int], refinement: Refinement, evaluate: Evaluate) -> tuple[Columns, Bool]:
    """The columns of a grid of which only a part is evaluated, and (H, W) which.

    From a lattice of every `step`-th point (and the last row and column), the distance is halved until it is 1:
    new points of each cell whose corners differ in sign, or that lies within `margin` cells of one, are
    evaluated; others take the mean over the corners of their cell, of their edge of it if they lie on one. Then
    corners of cells that differ in sign are evaluated, until a change of sign lies between evaluated points alone.
    """
    canvas: Columns = {name: np.zeros(shape, dtype) for name, dtype in COLUMNS.items()}
    known = np.zeros(shape, np.bool_)

    def take(rows: Int64, columns: Int64, wanted: Bool) -> bool:
        """Evaluate what is wanted of a lattice and not known; whether there was any."""
        at = np.nonzero(wanted & ~known[np.ix_(rows, columns)])
        places = rows[at[0]], columns[at[1]]
        if not len(places[0]):
            return False
        for name, values in evaluate(*places).items():
            canvas[name][places] = values
        known[places] = True
        return True

    step = refinement.step
    rows, columns = lines(shape[0], step), lines(shape[1], step)
    take(rows, columns, np.ones((len(rows), len(columns)), np.bool_))
    while step > 1:
        step //= 2
        finer = lines(shape[0], step), lines(shape[1], step)
        cells = widened(mixed(canvas["measure"][np.ix_(rows, columns)] < 0), refinement.margin)
        fill(canvas, known, (rows, columns), finer)
        wanted = touched(cells, (rows, columns), finer)
        rows, columns = finer
        while take(rows, columns, wanted):
            wanted = touched(mixed(canvas["measure"][np.ix_(rows, columns)] < 0), finer, finer)
    return canvas, known


def lines(count: int, step: int) -> Int64:
    """Every `step`-th of so many lines, and the last."""
    return np.unique(np.append(np.arange(0, count, step), count - 1)).astype(np.int64)


def mixed(converged: Bool) -> Bool:
    """(h - 1, w - 1): cells of a lattice whose corners differ."""
    corners = (converged[:-1, :-1], converged[:-1, 1:], converged[1:, :-1], converged[1:, 1:])
    return np.logical_or.reduce(corners) & ~np.logical_and.reduce(corners)


def widened(cells: Bool, margin: int) -> Bool:
    """Cells within `margin` of a marked one, diagonally too."""
    for axis in (0, 1):
        source, made = np.moveaxis(cells, axis, 0), np.moveaxis(cells.copy(), axis, 0)
        for distance in range(1, min(margin, len(source) - 1) + 1):
            made[distance:] |= source[:-distance]
            made[:-distance] |= source[distance:]
        cells = np.moveaxis(made, 0, axis)
    return cells


def touched(cells: Bool, old: tuple[Int64, Int64], new: tuple[Int64, Int64]) -> Bool:
    """Points of a lattice that lie in marked cells of a coarser one, or on their edges."""
    around = []
    for coarse, fine in zip(old, new, strict=True):
        last = len(coarse) - 2
        around.append([np.clip(np.searchsorted(coarse, fine, side) - 1, 0, last) for side in ("left", "right")])
    return np.logical_or.reduce([cells[np.ix_(r, c)] for r in around[0] for c in around[1]])


def fill(canvas: Columns, known: Bool, old: tuple[Int64, Int64], new: tuple[Int64, Int64]) -> None:
    """Give points of a lattice that are not known the mean over the corners of a coarser one's cell around them."""
    around = []
    for coarse, fine in zip(old, new, strict=True):
        low = np.searchsorted(coarse, fine, "right") - 1
        around.append([coarse[low], coarse[np.searchsorted(coarse, fine, "left")]])
    place = np.ix_(*new)
    for name, dtype in COLUMNS.items():
        values = canvas[name]
        with np.errstate(over="ignore", invalid="ignore"):  # a sum of inverses may be infinite
            mean = sum(values[np.ix_(r, c)].astype(np.float64) for r in around[0] for c in around[1]) / 4.0
        values[place] = np.where(known[place], values[place], mean.astype(dtype))  # type: ignore[union-attr]


def checked(canvas: Columns, known: Bool, refinement: Refinement, evaluate: Evaluate, name: str) -> Refined:
    """Train a sample of the points that were not evaluated, and count the wrong labels.

    Args:
        name: of the experiment; names the draw.
    """
    left = np.flatnonzero(~known)
    if len(left) > refinement.sample:
        first, second, _, _ = rng.words(
            np.arange(refinement.sample, dtype=np.int64), rng.key("refinement@1", "sample", name)
        )
        count, half = np.uint64(len(left)), np.uint64(32)
        left = left[(first * count + (second * count >> half) >> half).astype(np.int64)]
    wrong = 0
    if len(left):
        rows, columns = np.unravel_index(left, known.shape)
        truth = evaluate(rows, columns)["measure"] < 0
        wrong = int((truth != (canvas["measure"][rows, columns] < 0)).sum())
    return Refined(known.size, int(known.sum()), len(left), wrong)


def of_dict(values: Any) -> Refinement | None:
    """The refinement that `Refinement.to_dict` gave, or None."""
    return None if values is None else Refinement(**values)
