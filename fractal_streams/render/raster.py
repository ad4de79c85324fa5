"""What a renderer is asked for: the picture's geometry, and the form of its pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fractal_streams.colouring import Colouring
from fractal_streams.errors import InvalidValueError
from fractal_streams.formulas import Formula
from fractal_streams.spec import Part, StreamSpec, one_of

DType = Literal["uint8", "float16", "bfloat16", "float32"]
LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}
"""What a pixel of a float dtype can reach."""


@dataclass(frozen=True, kw_only=True)
class Raster:
    """One formula and colouring on one grid of pixels; everything but the parameters."""

    formula: Formula
    colouring: Colouring
    height: int
    width: int
    iterations: int
    radius: float
    supersample: int = 1
    visits: bool = False
    matrix: bool = False

    @classmethod
    def of(cls, spec: StreamSpec, part: Part) -> Raster:
        """The raster of one part of a spec."""
        return cls(
            formula=part.formula, colouring=part.colouring, height=spec.height, width=spec.width,
            iterations=spec.iterations or part.formula.iterations, radius=spec.radius or part.formula.radius,
            supersample=spec.supersample, visits=spec.counting == "visits", matrix=spec.orientation == "matrix",
        )  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """Rows of the parameter table."""
        return (*self.formula.parameters, *self.colouring.parameters)

    @property
    def runs_through(self) -> bool:
        """Whether orbits go on after a step outside, so that `count` is of all the steps inside."""
        return self.visits or self.formula.stop == "never"

    @property
    def converges(self) -> bool:
        """Whether an orbit may end anywhere but outside the radius before its last step."""
        return self.runs_through or self.formula.stop != "escape"

    @property
    def accumulators(self) -> dict[str, float]:
        """Name to first value of the accumulators that matter to the colouring here."""
        colouring = self.colouring
        spared = () if self.converges else colouring.convergence
        return {name: float(first) for name, first in colouring.accumulators.items() if name not in spared}

    def grid(self) -> tuple[float, float, float, float, float, float]:
        """(u0, u_column, u_row, v0, v_column, v_row): where a pixel lies in the view.

        u = u0 + u_column * column + u_row * row, likewise v; the view spans [-1, 1] in u.
        """
        if self.matrix:
            return -1.0, 0.0, 2.0 / (self.height - 1), -1.0, 2.0 / (self.width - 1), 0.0
        pixel = 2.0 / self.width
        return -1.0 + pixel / 2, pixel, 0.0, self.height / self.width - pixel / 2, 0.0, -pixel

    def offsets(self) -> tuple[tuple[float, float], ...]:
        """(column, row) offset of each subsample from its pixel's centre, in pixels."""
        steps = [(k + 0.5) / self.supersample - 0.5 for k in range(self.supersample)]
        return tuple((across, down) for down in steps for across in steps)


@dataclass(frozen=True)
class PixelFormat:
    """The form of the pixels that leave a renderer.

    dtype: "uint8" levels, or floats of (level / 255 - mean) / std, per channel, rounded once.
    channels_last: (B, H, W, 3) in memory instead of (B, 3, H, W).
    mean, std: a number, or one for each of red, green, blue; kept as three floats.

    Raises:
        InvalidValueError: an unknown dtype; a mean or std that isn't finite, not above 0, or that
            takes a level out of the dtype's range.

    Example:
        >>> from fractal_streams.render.raster import PixelFormat
        >>> PixelFormat("float32", mean=0.5, std=0.5).values()[0, [0, 255]]
        array([-1.,  1.])
    """

    dtype: DType = "uint8"
    channels_last: bool = False
    mean: Sequence[float] | float = 0.0
    std: Sequence[float] | float = 1.0

    def __post_init__(self) -> None:
        one_of(self.dtype, "dtype", ("uint8", "float16", "bfloat16", "float32"))
        mean, std = _three(self.mean, "mean"), _three(self.std, "std")
        object.__setattr__(self, "channels_last", bool(self.channels_last))
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if min(std) <= 0:
            raise InvalidValueError(f"std must be above 0 in each channel, got {std}")
        if self.dtype == "uint8" and (mean, std) != ((0.0,) * 3, (1.0,) * 3):
            raise InvalidValueError(
                f"mean {mean} and std {std} need a float dtype: pass dtype='float32', 'float16' or 'bfloat16'"
            )
        if self.dtype != "uint8" and not np.abs(self.values()).max() <= LARGEST[self.dtype]:
            raise InvalidValueError(
                f"mean {mean} and std {std} take levels out of the range of {self.dtype}, "
                f"+-{LARGEST[self.dtype]:g}: give a larger std, or dtype='float32'"
            )

    def values(self) -> npt.NDArray[np.float64]:
        """(3, 256) float64: each channel's value of each level, before it is rounded to the dtype."""
        with np.errstate(over="ignore"):
            return (np.arange(256) / 255.0 - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]

    def table(self) -> npt.NDArray[Any]:
        """(3, 256) lookup of each channel's level: the pixel's bits as uint8, uint16 or uint32."""
        if self.dtype == "uint8":
            return np.tile(np.arange(256, dtype=np.uint8), (3, 1))
        values = self.values()
        if self.dtype == "float32":
            return values.astype(np.float32).view(np.uint32)
        if self.dtype == "float16":
            return values.astype(np.float16).view(np.uint16)
        fraction, exponent = np.frexp(values)
        eight_bits = np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8).astype(np.float32)
        return (eight_bits.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


class Renderer(Protocol):
    """Parameters to pixels on one kind of device. Draws no random number."""

    def render(self, raster: Raster, table: Any, pixels: PixelFormat) -> Any:
        """Pictures of each column of the table.

        Args:
            table: (P, B) float32, rows as `raster.names`.

        Returns:
            (B, 3, H, W), or (B, H, W, 3) if channels last, in the pixel format's dtype.
        """


def check_table(raster: Raster, table: npt.NDArray[Any]) -> None:
    """Refuse a table of the wrong shape, or with a NaN or infinity.

    Raises:
        InvalidValueError: names the parameter, the picture and the value.
    """
    if table.ndim != 2 or table.shape[0] != len(raster.names):
        raise InvalidValueError(
            f"a table of {raster.formula.name} with {raster.colouring.name} has a row for each of "
            f"{', '.join(raster.names)} ({len(raster.names)}), got shape {table.shape}"
        )
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise InvalidValueError(
            f"parameter {raster.names[row]!r} of picture {column} is {table[row, column]}: give a finite number"
        )


def _three(values: Any, name: str) -> tuple[float, float, float]:
    got = tuple(values) if isinstance(values, Iterable) else (values,) * 3
    if len(got) != 3 or not all(isinstance(value, Real) and math.isfinite(value) for value in got):
        raise InvalidValueError(f"{name} must be a finite number or one for each of 3 channels, got {values!r}")
    return float(got[0]), float(got[1]), float(got[2])
