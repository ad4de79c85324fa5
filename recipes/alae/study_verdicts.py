"""What arms of a study change, beside what seeds change: means, spreads, and a verdict by a rule that is stated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean, stdev
from typing import Any

import numpy as np

LEVEL = 0.05
"""Of Welch's t test, both sides."""
RULE = (
    f"An arm helps or hurts a figure where its seeds and the first arm's don't overlap, and Welch's t test tells the "
    f"means apart at {LEVEL:.0%}, both sides; else the difference is within the spread. Figures that are neither "
    f"better high nor better low are raised or lowered. Of three seeds each, it sees nine in ten differences of four "
    f"standard deviations, and one in three of two: within the spread is not the same as none. Seeds of two arms begin "
    f"with the same weights and see the same pictures, so the table has a second chance, of the t test seed by seed."
)
LEAST = 1e-4
"""Chances below it are told as this."""
DECIDED = ("helps", "hurts", "raises", "lowers")
"""Verdicts on differences that are larger than the spread."""
WITHIN, UNKNOWN = "within the spread", "too few seeds"
BETTER: Mapping[str, int] = {
    "psnr": 1, "ssim": 1, "class": 1, "r_squared": 1, "speed": 1,
    "frechet": -1, "kernel": -1, "swd": -1, "spectrum": -1, "ratio": -1, "reciprocity": -1,
}  # fmt: skip
"""1 of figures that are better high, -1 of those that are better low, by the beginning of their names; others 0."""
YARDSTICKS = (
    "_floor", "_mean_colour", "_box", "_pca", "_pixels", "_untrained", "_chance",
    "_nearest_spectrum", "_linear_spectrum", "r_squared_spectrum", "_colours", "_random_convolutions",
)  # fmt: skip
"""Ends of the names of figures that no arm changes."""
FLOORED = ("frechet", "swd", "spectrum")
"""Beginnings of the names of figures that are told as multiples of their floor too."""
OVER = "_over_floor"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run of a study.

    outcome: "trained"; "diverged" (a loss that is no number, or a guard that ended it); "failed"; "not trained".
    figures: of `examine` and over their floors, by name; empty unless it was trained. pace: how fast, beside others.
    error: the reason of another outcome.
    """

    arm: str
    seed: int
    outcome: str
    figures: Mapping[str, float] = field(default_factory=dict)
    pace: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure of an arm's seeds: how many, mean, least, most, standard deviation (None of one seed)."""

    count: int
    mean: float
    least: float
    most: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of values, at least one.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(count=3, mean=2.0, least=1.0, most=3.0, deviation=1.0)
        """
        deviation = stdev(values) if len(values) > 1 else None
        return cls(
            count=len(values), mean=fmean(values), least=min(values), most=max(values), deviation=deviation
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure of an arm beside that of the first arm.

    difference: of the means. chance: of Welch's t test, both sides; None of fewer than two seeds. paired: of the t test
    of the differences seed by seed, whose runs begin with the same weights; None of fewer than two seeds of both.
    verdict: of `DECIDED`, `WITHIN` or `UNKNOWN`.
    """

    figure: str
    arm: str
    here: Spread
    first: Spread
    difference: float
    chance: float | None
    paired: float | None
    verdict: str


def better(figure: str) -> int:
    """1, -1 or 0: whether a figure is better high, better low, or neither."""
    return next((way for name, way in BETTER.items() if figure.startswith(name)), 0)


def is_yardstick(figure: str) -> bool:
    """Whether a figure is of the stream or of untrained networks, or the error of another: no arm changes it."""
    name = figure.removesuffix("_error") if figure.startswith("kernel") else figure
    told_elsewhere = name != figure or (figure.startswith("spectrum_error_"))
    return told_elsewhere or name.endswith(YARDSTICKS) and not name.endswith(OVER)


def over_floors(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures, with Fréchet, sliced Wasserstein and spectral distances as multiples of their floors.

    Example:
        >>> over_floors({"swd": 6.0, "swd_floor": 2.0})
        {'swd': 6.0, 'swd_floor': 2.0, 'swd_over_floor': 3.0}
    """
    found = dict(figures)
    for name, value in figures.items():
        floor = figures.get(f"{name.removesuffix('_reconstructions')}_floor", 0.0)
        if name.startswith(FLOORED) and not is_yardstick(name) and floor > 0.0:
            found[f"{name}{OVER}"] = value / floor
    return found


def by_seed(rows: Sequence[Row], arm: str, figure: str) -> dict[int, float]:
    """A figure of an arm's seeds, where it was found."""
    return {row.seed: row.figures[figure] for row in rows if row.arm == arm and figure in row.figures}


def figures_of(rows: Sequence[Row], yardsticks: bool = False) -> list[str]:
    """Names of the figures that arms may change, or else of yardsticks, in the order in which they are found."""
    names = dict.fromkeys(name for row in rows for name in row.figures)
    return [name for name in names if is_yardstick(name) == yardsticks]


def compared(rows: Sequence[Row], arms: Sequence[str]) -> list[Comparison]:
    """Every figure of every arm beside the first."""
    return [
        comparison(figure, arm, here, first)
        for figure in figures_of(rows)
        if (first := by_seed(rows, arms[0], figure))
        for arm in arms[1:]
        if (here := by_seed(rows, arm, figure))
    ]


def comparison(figure: str, arm: str, here: Mapping[int, float], first: Mapping[int, float]) -> Comparison:
    """The verdict on a figure, by `RULE`; each arm as seed to value.

    Example:
        >>> comparison("psnr", "l1", {0: 17.0, 1: 17.1, 2: 17.2}, {0: 15.0, 1: 15.1, 2: 15.2}).verdict
        'helps'
        >>> comparison("psnr", "l1", {0: 17.0, 1: 15.0, 2: 16.0}, {0: 15.0, 1: 15.1, 2: 15.2}).verdict
        'within the spread'
    """
    one, other = Spread.of([*here.values()]), Spread.of([*first.values()])
    difference, chance = one.mean - other.mean, welch(one, other)
    if chance is None:
        verdict = UNKNOWN
    elif chance >= LEVEL or (one.least <= other.most and other.least <= one.most):
        verdict = WITHIN
    elif way := better(figure):
        verdict = "helps" if way * difference > 0.0 else "hurts"
    else:
        verdict = "raises" if difference > 0.0 else "lowers"
    apart = [here[seed] - first[seed] for seed in here if seed in first]
    return Comparison(
        figure=figure, arm=arm, here=one, first=other, difference=difference, chance=chance, paired=paired(apart),
        verdict=verdict,
    )  # fmt: skip


def paired(differences: Sequence[float]) -> float | None:
    """How often the mean of differences around 0 is so far from it or farther: Student's t test, both sides.

    None of fewer than two.

    Example:
        >>> round(paired([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    if len(differences) < 2:
        return None
    spread = Spread.of(differences)
    if not spread.deviation:
        return 0.0 if spread.mean else 1.0
    return student(abs(spread.mean) / spread.deviation * math.sqrt(spread.count), spread.count - 1.0)


def welch(one: Spread, other: Spread) -> float | None:
    """How often means of two groups of one mean are so far apart or farther: Welch's t test, both sides.

    B. L. Welch, "The generalization of Student's problem when several different population variances are involved",
    Biometrika 34 (1947). None where a group has one value.
    """
    if one.deviation is None or other.deviation is None:
        return None
    errors = [each.deviation**2 / each.count for each in (one, other) if each.deviation is not None]
    if not (total := sum(errors)):
        return 0.0 if one.mean != other.mean else 1.0
    freedom = total**2 / sum(
        part**2 / (each.count - 1) for part, each in zip(errors, (one, other), strict=True)
    )  # fmt: skip
    return student(abs(one.mean - other.mean) / math.sqrt(total), freedom)


def student(quotient: float, freedom: float) -> float:
    """How often Student's t is farther from 0 than a quotient of at least 0.

    With t = sqrt(freedom) tan u its density is that of cos(u)^(freedom - 1), integrated here by 200 Gauss points.

    Example:
        >>> round(student(2.776445, 4.0), 6), round(student(12.706205, 1.0), 6)
        (0.05, 0.05)
    """
    end = math.atan(quotient / math.sqrt(freedom))
    places, weights = gauss_points()
    angles = 0.5 * (math.pi / 2 - end) * (places + 1.0) + end
    beyond = 0.5 * (math.pi / 2 - end) * float((weights * np.cos(angles) ** (freedom - 1.0)).sum())
    half = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) * math.sqrt(math.pi) / 2
    return min(1.0, beyond / half)


@lru_cache(maxsize=1)
def gauss_points() -> tuple[Any, Any]:
    return np.polynomial.legendre.leggauss(200)


def said_of(arm: str, found: Sequence[Comparison], key: Sequence[str]) -> str:
    """What an arm changes of the key figures, in words."""
    own = {each.figure: each for each in found if each.arm == arm}
    told: dict[str, list[str]] = {}
    for each in (own[figure] for figure in key if figure in own):
        change = f"{each.figure.replace('_', ' ')} ({each.first.mean:.3g} to {each.here.mean:.3g})"
        told.setdefault(each.verdict, []).append(change)
    if not told:
        return f"{arm}: nothing to say, no seed of it or of the first arm was trained."
    count = sum(map(len, told.values()))
    words = [f"{verdict} {', '.join(told[verdict])}" for verdict in DECIDED if verdict in told]
    if not {"helps", UNKNOWN} & told.keys():
        words.insert(0, f"does not help any of {count} figures")
    words += [f"{verdict}: {len(told[verdict])} of {count}" for verdict in (WITHIN, UNKNOWN) if verdict in told]
    return f"{arm}: {'; '.join(words)}."


def lost(rows: Sequence[Row]) -> list[str]:
    """Runs that tell nothing, and why."""
    return [
        f"{row.arm}, seed {row.seed}: {row.outcome}{f', {row.error}' if row.error else ''}"
        for row in rows
        if row.outcome != "trained"
    ]


def table(rows: Sequence[Row], arms: Sequence[str], found: Sequence[Comparison]) -> str:
    """Markdown: a line for each figure, mean ± deviation (least to most) of each arm, and its verdict.

    Behind a verdict stand the chances of Welch's test and of the test seed by seed.
    """
    verdicts = {(each.figure, each.arm): each for each in found}
    lines = [f"| figure | {' | '.join(arms)} |", f"| --- |{' --- |' * len(arms)}"]
    for figure in figures_of(rows):
        cells = []
        for arm in arms:
            values = [*by_seed(rows, arm, figure).values()]
            cells.append(cell_of(Spread.of(values)) if values else "")
            if each := verdicts.get((figure, arm)):
                told = [f"**{each.verdict}**" if each.verdict in DECIDED else each.verdict]
                chances = {"p": each.chance, "paired": each.paired}
                told += [f"{name} {max(chance, LEAST):.2g}" for name, chance in chances.items() if chance is not None]
                cells[-1] += f" {', '.join(told)}"
        way = {1: " ↑", -1: " ↓", 0: ""}[better(figure)]
        lines.append(f"| {figure}{way} | {' | '.join(cells)} |")
    lines += ["", "| yardstick | all runs |", "| --- | --- |"]
    for figure in figures_of(rows, yardsticks=True):
        every = [row.figures[figure] for row in rows if figure in row.figures]
        lines.append(f"| {figure} | {cell_of(Spread.of(every))} |")
    return "\n".join(lines)


def cell_of(spread: Spread) -> str:
    """Mean ± deviation (least to most), in four digits.

    Example:
        >>> cell_of(Spread.of([1.0, 2.0, 3.0]))
        '2 ± 1 (1 to 3)'
    """
    if spread.deviation is None:
        return f"{spread.mean:.4g}"
    return f"{spread.mean:.4g} ± {spread.deviation:.2g} ({spread.least:.4g} to {spread.most:.4g})"
