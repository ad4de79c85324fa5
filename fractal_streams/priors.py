"""Priors: how a uniform random word becomes the value of one named parameter.

Every prior is a line of numbers (`encode`), so that one kernel draws any mixture of them, and every
operation is either on integers, exact in float64, or rounded once by IEEE rules, so that NumPy,
Numba and a GPU give the same float32 to the bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from fractal_streams.errors import InvalidValueError, unknown_name

CONSTANT, UNIFORM, LOG_UNIFORM, INTEGER, CHOICE = range(5)
MAX_CHOICES = 16


def _finite(prior: object, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 3e38:
            raise InvalidValueError(f"{prior}: {name} must be a finite float32, got {value!r}")


@dataclass(frozen=True)
class Constant:
    """Always `value`."""

    value: float
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _finite("Constant", value=self.value)

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return CONSTANT, self.value, 0.0, self.value, self.value, ()


@dataclass(frozen=True)
class Uniform:
    """Uniform between `low` and `high`."""

    low: float
    high: float
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _finite("Uniform", low=self.low, high=self.high)
        if not self.low < self.high:
            raise InvalidValueError(f"Uniform: low must be below high, got {self.low} and {self.high}")

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        low, high = _f32(self.low), _f32(self.high)
        return UNIFORM, low, _f32(high - low), low, high, ()


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm between `low` and `high`, both above 0."""

    low: float
    high: float
    kind: ClassVar[str] = "log_uniform"

    def __post_init__(self) -> None:
        _finite("LogUniform", low=self.low, high=self.high)
        if not 1e-30 <= self.low < self.high <= 1e30:
            raise InvalidValueError(
                f"LogUniform: needs 1e-30 <= low < high <= 1e30, got {self.low} and {self.high}"
            )

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        low = _f32(math.log2(self.low))
        return LOG_UNIFORM, low, _f32(math.log2(self.high) - low), _f32(self.low), _f32(self.high), ()


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    kind: ClassVar[str] = "integer"

    def __post_init__(self) -> None:
        _finite("Integer", low=self.low, high=self.high)
        if self.low != int(self.low) or self.high != int(self.high) or not -(2**24) <= self.low <= self.high <= 2**24:
            raise InvalidValueError(f"Integer: needs whole -2**24 <= low <= high <= 2**24, got {self.low} and {self.high}")

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return INTEGER, float(self.low), float(self.high - self.low + 1), float(self.low), float(self.high), ()


@dataclass(frozen=True)
class Choice:
    """One of up to 16 values, each as likely as the others."""

    values: tuple[float, ...]
    kind: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not 1 <= len(self.values) <= MAX_CHOICES:
            raise InvalidValueError(f"Choice: needs 1 to {MAX_CHOICES} values, got {len(self.values)}")
        for value in self.values:
            _finite("Choice", value=value)

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return CHOICE, 0.0, float(len(self.values)), min(self.values), max(self.values), self.values


Prior = Constant | Uniform | LogUniform | Integer | Choice
KINDS = {kind.kind: kind for kind in (Constant, Uniform, LogUniform, Integer, Choice)}


def prior_to_json(prior: Prior) -> dict[str, Any]:
    """The prior as a JSON object with its kind."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(prior).items()}
    return {"kind": prior.kind, **values}


def prior_from_json(fields: dict[str, Any]) -> Prior:
    """The prior that `prior_to_json` wrote.

    Raises:
        UnknownNameError: a kind of prior that does not exist.
        InvalidValueError: fields that the kind does not have.
    """
    values = dict(fields)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise unknown_name("kind of prior", kind, KINDS)
    try:
        return KINDS[kind](**values)
    except TypeError as error:
        raise InvalidValueError(f"prior {kind!r}: {error}") from None


def _f32(value: float) -> float:
    return float(np.float32(value))
