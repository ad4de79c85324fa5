"""The budget of a renderer: how far from the reference it may be, derived and never tuned.

A renderer is held to the float64 reference by the share of pixels whose level differs by more than
2 in a channel. How large that share may be is counted on evaluations that are right by definition:
the same formula in float64, every operation put wrong by a random amount no larger than the
renderer's own error there (`fractal_streams.render.rounding`; its primitives are measured against
float64, + - * and literals round by 2**-24). An honest renderer is one more such evaluation.

From the counts of S evaluations follows the bound on the next one. Pixels flip one by one and
rarely, so a count is Poisson; pixels of a picture that share an error flip together, so its counts
vary more than Poisson ones, by the factor phi = variance / mean, taken within each picture over the
evaluations and never below 1. With K the total of the S counts and Jeffreys' prior for the rate,
the next count over phi is negative binomial with size K / phi + 1/2 and probability S / (S + 1). The
bound is its quantile at 1 - CHANCE, so it has room of its own where no evaluation flips a pixel, and
narrows to the mean where many do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from fractal_streams.draw import make_plan
from fractal_streams.draw.reference import draw
from fractal_streams.render import numba_primitives
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.render.rounding import MEASURED, Errors, Rounding, measure_errors
from fractal_streams.spec import StreamSpec

CHANCE = 1 / 30_000
"""That a faultless renderer fails one test: 300 pairs of formula and colouring fail one time in a hundred."""
FAR = 2
"""Levels; a pixel that differs by more is counted."""


@dataclass(frozen=True)
class Verdict:
    """found: pixels of the renderer that differ; noisy: those of each evaluation; limit: the bound on found."""

    found: int
    noisy: tuple[int, ...]
    limit: int
    pixels: int

    @property
    def passes(self) -> bool:
        return self.found <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.found} of {self.pixels} pixels differ from the reference by more than {FAR} levels; evaluations "
            f"with this renderer's own rounding differ at {', '.join(map(str, self.noisy))}, which allows {self.limit}"
        )


def pictures(spec: StreamSpec, count: int, seed: int = 0) -> tuple[Raster, Any]:
    """The raster and the (P, count) table of a spec's first samples."""
    (part,) = spec.parts()
    plan = make_plan(spec, part, seed=seed, split="test")
    return Raster.of(spec, part), draw(plan, np.arange(count))[1]


def differing(images: Any, others: Any) -> Any:
    """(B,) pixels of each picture that differ by more than FAR levels in a channel."""
    return (np.abs(images.astype(np.int16) - others.astype(np.int16)) > FAR).any(axis=1).sum(axis=(1, 2))


def judge(renderer: Any, errors: Errors, raster: Raster, table: Any, evaluations: int = 4) -> Verdict:
    """Whether a renderer's pictures of a table keep the budget.

    renderer: its `render(raster, table)` gives (B, 3, H, W) uint8 as an array.
    errors: of its primitives.
    """
    truth = ReferenceRenderer().render(raster, table)
    counts = np.array([
        differing(ReferenceRenderer(rounding=Rounding(errors, seed)).render(raster, table), truth)
        for seed in range(evaluations)
    ])  # fmt: skip
    found = int(differing(np.asarray(renderer.render(raster, table)), truth).sum())
    return Verdict(found, tuple(map(int, counts.sum(axis=1))), bound(counts), truth[:, 0].size)


def bound(counts: Any) -> int:
    """The largest count that one more evaluation may have; counts: (S, B)."""
    evaluations, total = len(counts), float(counts.sum())
    variance = float(counts.var(axis=0, ddof=1).sum())
    phi = max(1.0, variance / (total / evaluations)) if total else 1.0
    return math.ceil(phi * negative_binomial_quantile(total / phi + 0.5, evaluations / (evaluations + 1.0), 1 - CHANCE))


def negative_binomial_quantile(size: float, probability: float, level: float) -> int:
    """The least k for which k failures or fewer before `size` successes are as likely as `level`."""
    term = size * math.log(probability)
    reached, k = math.exp(term), 0
    while reached < level:
        term += math.log((size + k) / (k + 1) * (1.0 - probability))
        k += 1
        reached += math.exp(term)
    return k


def numba_errors() -> Errors:
    """Measured errors of the Numba renderer's primitives, compiled as its kernels compile them."""
    return measure_errors({name: _over_arrays(name) for name in MEASURED})


def _over_arrays(name: str) -> Any:
    if name == "divide":
        return numba.njit(fastmath=numba_primitives.FLAGS)(lambda a, b: a / b)
    function = getattr(numba_primitives, name)

    if name == "atan2":

        @numba.njit(fastmath=numba_primitives.FLAGS)
        def binary(y: Any, x: Any) -> Any:
            out = np.empty(y.size, np.float32)
            for k in range(y.size):
                out[k] = function(y[k], x[k])
            return out

        return binary

    @numba.njit(fastmath=numba_primitives.FLAGS)
    def unary(x: Any) -> Any:
        out = np.empty(x.size, np.float32)
        for k in range(x.size):
            out[k] = function(x[k])
        return out

    return unary
