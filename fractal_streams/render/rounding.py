"""Monte Carlo arithmetic: evaluations that differ by no more than a renderer's own rounding.

The reference runs a formula's source as it stands; given numbers of this kind, every operation in it
is exact in float64 and then put wrong by a random amount, uniform and at most as large as the
renderer's own error: 2**-24 of the result for + - * and for a literal that float32 can't hold, and
for each primitive the largest error that was measured in the binade of its argument. Two such
evaluations differ as two honest float32 renderers may; how often they disagree about a pixel is the
budget that a renderer is held to.

D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA
CSD-970002 (1997).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

UNIT = 2.0**-24
"""Relative error of one rounding to float32."""
LEAST, MOST = -40, 40
"""Binades of arguments that are measured; arguments beyond count as the outermost."""
MEASURED: dict[str, Any] = {
    "sin": np.sin, "cos": np.cos, "exp2": np.exp2, "log2": np.log2, "sqrt": np.sqrt,
    "reciprocal": np.reciprocal, "atan2": np.arctan2, "divide": np.divide,
}  # fmt: skip
ABSOLUTE = ("sin", "cos")
"""Primitives whose error is measured against 1, not against their value: both cross 0 everywhere."""
EXACT = (
    np.negative, np.positive, np.absolute, np.fabs, np.minimum, np.maximum, np.floor, np.clip,
    np.isnan, np.isfinite, np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal,
)  # fmt: skip
ROUNDED = (np.add, np.subtract, np.multiply, np.square)


@dataclass(frozen=True, eq=False)
class Errors:
    """Largest errors of a renderer's primitives; made by `measure_errors`.

    tables: primitive to (2, 81) float64, by sign and binade of its first argument.
    """

    tables: Mapping[str, Float64]

    def bound(self, primitive: str, argument: Float64, result: Float64) -> Float64:
        """The largest error of a primitive at an argument, in units of its result."""
        _, exponent = np.frexp(argument)
        table = self.tables[primitive][(argument < 0).astype(int), np.clip(exponent - 1, LEAST, MOST) - LEAST]
        return table if primitive in ABSOLUTE else table * np.abs(result)


def measure_errors(primitives: Mapping[str, Callable[..., Any]], points: int = 512) -> Errors:
    """The largest error of each primitive against float64, in each binade of its argument.

    Args:
        primitives: for each name of `MEASURED`, a function of float32 arrays that gives a float32 array.
        points: arguments tried in each binade of each sign.

    Raises:
        ArithmeticError: a primitive gave NaN or infinity where the truth is an ordinary float32.
    """
    draw = np.random.default_rng(0)
    binades = np.arange(LEAST, MOST + 1)
    mantissa = 1.0 + draw.random((2, len(binades), points))
    signs = np.array([1.0, -1.0])[:, None, None]
    argument = (signs * np.ldexp(mantissa, binades[None, :, None])).astype(np.float32)
    other = np.ldexp(1.0 + draw.random(argument.shape), draw.integers(-8, 9, argument.shape)) * np.abs(argument)
    other = (np.where(draw.random(argument.shape) < 0.5, -1.0, 1.0) * other).astype(np.float32)
    tables = {}
    for name, truth in MEASURED.items():
        given = (argument, other) if name in ("atan2", "divide") else (argument,)
        got = np.asarray(primitives[name](*(part.ravel() for part in given)), np.float64).reshape(argument.shape)
        with np.errstate(all="ignore"):
            exact = truth(*(part.astype(np.float64) for part in given))
            ordinary = (np.abs(exact) < 2.0**126) & (np.abs(exact) > 2.0**-126)
            error = np.abs(got - exact) / (1.0 if name in ABSOLUTE else np.abs(exact))
        if not np.isfinite(got[ordinary]).all():
            raise ArithmeticError(f"{name} gives NaN or infinity at {argument[ordinary & ~np.isfinite(got)][:3]}")
        tables[name] = _filled(np.where(ordinary, error, -1.0).max(axis=2))
    return Errors(tables)


def _filled(table: Float64) -> Float64:
    """Binades without an ordinary result take the error of the nearest that has one."""
    for row in table:
        known = np.flatnonzero(row >= 0.0)
        if known.size:
            row[:] = row[known[np.abs(np.arange(row.size)[:, None] - known).argmin(axis=1)]]
    return np.maximum(table, 0.0)


@dataclass(frozen=True, eq=False)
class Rounding:
    """One way to round: the errors of a renderer, and which of them happen.

    Rounding is a function of an operation and its operands, not of time: the same operation on the
    same numbers errs the same way in every pixel and step, and another `seed` is another function.
    """

    errors: Errors
    seed: int = 0

    def number(self, value: Any) -> Rounded:
        """A number or an array that enters a formula, rounded to float32."""
        exact = np.asarray(value, np.float64)
        held = exact.astype(np.float32).astype(np.float64) == exact
        return self.wrap(np.where(held, exact, exact + UNIT * np.abs(exact) * self.uniform("number", exact)))

    def wrap(self, value: Any) -> Rounded:
        """The same numbers, whose operations round."""
        made = np.asarray(value, np.float64).view(Rounded)
        made.rounding = self
        return made

    def uniform(self, operation: str, result: Float64) -> Float64:
        """In [-1, 1), a hash of the seed, the operation and its exact result (splitmix64)."""
        salt = np.frombuffer(hashlib.blake2s(f"{operation}:{self.seed}".encode(), digest_size=8).digest(), np.uint64)
        bits = np.atleast_1d(result).view(np.uint64) ^ salt
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        bits = bits.reshape(result.shape)
        return np.asarray((bits ^ (bits >> np.uint64(31))) >> np.uint64(11), np.float64) * 2.0**-52 - 1.0

    def apply(self, ufunc: np.ufunc, operands: list[Float64]) -> Any:
        """The operation, put wrong by at most the renderer's error."""
        exact = np.asarray(ufunc(*operands))
        if ufunc in EXACT:
            return self.wrap(exact) if exact.dtype.kind == "f" else exact
        if ufunc in ROUNDED:
            bound = UNIT * np.abs(exact)
        else:
            name = next((name for name, known in MEASURED.items() if known is ufunc), None)
            if name is None:
                raise TypeError(f"{ufunc.__name__} is no operation of the dialect")
            bound = self.errors.bound(name, operands[0], exact)
        change = bound * self.uniform(ufunc.__name__, exact)
        return self.wrap(np.where(np.isfinite(change), exact + change, exact))


class Rounded(np.ndarray[Any, Any]):
    """Float64 numbers whose every operation rounds; made by `Rounding.number`."""

    rounding: Rounding

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, Rounded):
            self.rounding = source.rounding

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        if method != "__call__" or settings:
            raise TypeError(f"{ufunc.__name__}.{method} is no operation of the dialect")
        rounding = next(part.rounding for part in (self, *inputs) if isinstance(part, Rounded))
        operands = [
            np.asarray(part if isinstance(part, np.ndarray) else rounding.number(part)).astype(np.float64, copy=False)
            for part in inputs
        ]
        return rounding.apply(ufunc, operands)

    def __array_function__(self, function: Any, types: Any, args: Any, settings: Any) -> Any:
        result = super().__array_function__(function, types, args, settings)
        if isinstance(result, np.ndarray) and result.dtype.kind == "f":
            return self.rounding.wrap(np.asarray(result))
        return result
