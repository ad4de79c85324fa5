"""A loss of one parameter whose trainable learning rates have a fractal boundary, without a network.

A quadratic with a cosine on it, trained by gradient descent (Y. Liu 2024, arXiv:2406.13971): label changes along the
axis of learning rates, counted on finer and finer grids, grow as a power of the grid, whose exponent is the dimension
of the boundary. Where the cosine is so shallow that the loss stays convex, there is one change and no fractal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import one_of, whole
from fractal_streams.trainability.boxes import Fit, line_fit
from fractal_streams.trainability.experiment import number

CEILING = 1e8
"""A run diverges when its loss passes this."""
SMOOTH = 1.0 / (2.0 * math.pi**2)
"""Roughness up to which the additive loss is convex, 2 = eps (2 pi / lambda)**2, and its boundary smooth."""
RATES = (0.0, 1.5)
"""Lowest and highest learning rate."""
MAX_DEPTH = 24


@dataclass(frozen=True, kw_only=True)
class Toy:
    """f(x) = x**2 (1 + eps cos(2 pi x / lambda)), or x**2 + eps cos(2 pi x / lambda), from x = 1.

    form: "multiplicative" or "additive". eps: height of the cosine, [0, 1]. wavelength: lambda, (0, 10].
    steps: of gradient descent, 1 to 100,000.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> Toy().label_changes(6)
        (1, 1, 1, 1, 3, 5, 7)
    """

    form: Literal["multiplicative", "additive"] = "multiplicative"
    eps: float = 0.2
    wavelength: float = 0.1
    steps: int = 1000

    def __post_init__(self) -> None:
        one_of(self.form, "form", ("multiplicative", "additive"))
        object.__setattr__(self, "eps", number(self.eps, "eps", 0.0, 1.0))
        object.__setattr__(self, "wavelength", number(self.wavelength, "wavelength", 0.0, 10.0, above=True))
        object.__setattr__(self, "steps", whole(self.steps, "steps", 1, 100_000, "steps"))

    @property
    def roughness(self) -> float:
        """eps / lambda**2."""
        return self.eps / self.wavelength**2

    def diverged(self, rates: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(N,) bool: whether the loss passes 1e8 at each of (N,) learning rates.

        The order of operations is that of the paper's own data, whose counts it gives; labels near the boundary
        depend on it.
        """
        wanted = np.ascontiguousarray(rates, np.float64)
        if wanted.ndim != 1 or not np.isfinite(wanted).all():
            raise InvalidValueError(f"rates must be (N,) finite numbers, got the shape {wanted.shape}")
        labels = np.empty(len(wanted), np.bool_)
        _descent()(wanted, self.eps, self.wavelength, self.steps, self.form == "multiplicative", CEILING, labels)
        return labels

    def label_changes(self, depth: int) -> tuple[int, ...]:
        """How many neighbours on the grid of 2**k + 1 rates from 0 to 1.5 differ in label, k = 0 to `depth`."""
        whole(depth, "depth", 0, MAX_DEPTH, "halvings")
        labels = self.diverged(np.linspace(*RATES, 2**depth + 1))
        coarser = [labels[:: 2 ** (depth - k)] for k in range(depth + 1)]
        return tuple(int((some[1:] != some[:-1]).sum()) for some in coarser)


def change_slope(changes: npt.ArrayLike) -> Fit:
    """The line through (k, log2 of the changes), whose slope is the dimension of the boundary.

    Grids without a change are left out.

    Example:
        >>> change_slope((1, 2, 4, 8)).slope
        1.0
    """
    counts = np.asarray(changes, np.float64)
    kept = counts > 0
    if np.count_nonzero(kept) < 2:
        raise InvalidValueError(f"a slope needs two grids with a change of label, got {counts.tolist()}")
    return line_fit(np.flatnonzero(kept), np.log2(counts[kept]))


@lru_cache(maxsize=1)
def _descent() -> Callable[..., None]:
    """The compiled loop over rates: the loss before each step decides."""
    import numba

    @numba.njit(nogil=True)
    def descent(
        rates: Any, eps: float, wavelength: float, steps: int, product: bool, ceiling: float, labels: Any
    ) -> None:
        for place in range(len(rates)):
            x, left = 1.0, False
            for _ in range(steps):
                angle = 2.0 * math.pi * x / wavelength
                cosine, sine = math.cos(angle), math.sin(angle)
                if product:
                    loss = x * x * (1.0 + eps * cosine)
                    slope = 2.0 * x * (1.0 + eps * cosine) - x * x * 2.0 * math.pi * eps * sine / wavelength
                else:
                    loss = x * x + eps * cosine
                    slope = 2.0 * x - 2.0 * math.pi * eps * sine / wavelength
                if not loss <= ceiling:
                    left = True
                    break
                x -= rates[place] * slope
            labels[place] = left

    return descent  # type: ignore[no-any-return]
