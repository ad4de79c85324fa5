"""Priors: how a uniform random word becomes the value of one named parameter.

Every prior is a line of numbers (`encode`), so that one kernel draws any mixture of them, and every
operation is either on integers, exact in float64, or rounded once by IEEE rules, so that NumPy,
Numba and a GPU give the same float32 to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar, cast

import numpy as np

from fractal_streams.errors import InvalidValueError, unknown_name

CONSTANT, UNIFORM, LOG_UNIFORM, INTEGER, CHOICE = range(5)
MAX_CHOICES = 16
LARGEST = 1e38
"""Of any value; the span of two such values is still a finite float32."""


def _finite(prior: str, name: str, value: object) -> float:
    """The value as a float; -0.0 as 0.0, so that equal priors are equal as text."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not -LARGEST <= cast(float, value) <= LARGEST:
        raise InvalidValueError(f"{prior}: {name} must be a number from {-LARGEST} to {LARGEST}, got {value!r}")
    return float(cast(float, value)) + 0.0


def _bounds(prior: Uniform | LogUniform | Integer) -> None:
    """Make a frozen prior's low and high floats."""
    for name in ("low", "high"):
        object.__setattr__(prior, name, _finite(type(prior).__name__, name, getattr(prior, name)))


@dataclass(frozen=True)
class Constant:
    """Always `value`."""

    value: float
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite("Constant", "value", self.value))

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return CONSTANT, self.value, 0.0, self.value, self.value, ()


@dataclass(frozen=True)
class Uniform:
    """Uniform between `low` and `high`."""

    low: float
    high: float
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _bounds(self)
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
        _bounds(self)
        if not 1e-30 <= self.low < self.high <= 1e30:
            raise InvalidValueError(f"LogUniform: needs 1e-30 <= low < high <= 1e30, got {self.low} and {self.high}")

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
        _bounds(self)
        if self.low % 1 or self.high % 1 or not -(2**24) <= self.low <= self.high <= 2**24:
            raise InvalidValueError(
                f"Integer: needs whole -2**24 <= low <= high <= 2**24, got {self.low} and {self.high}"
            )
        object.__setattr__(self, "low", int(self.low))
        object.__setattr__(self, "high", int(self.high))

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return INTEGER, float(self.low), float(self.high - self.low + 1), float(self.low), float(self.high), ()


@dataclass(frozen=True)
class Choice:
    """One of up to 16 values, each as likely as the others."""

    values: tuple[float, ...]
    kind: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        values = tuple(self.values) if isinstance(self.values, Iterable) else ()
        if not 1 <= len(values) <= MAX_CHOICES:
            raise InvalidValueError(f"Choice: needs 1 to {MAX_CHOICES} values, got {self.values!r}")
        object.__setattr__(self, "values", tuple(_finite("Choice", "value", value) for value in values))

    def encode(self) -> tuple[int, float, float, float, float, tuple[float, ...]]:
        return CHOICE, 0.0, float(len(self.values)), min(self.values), max(self.values), self.values


Prior = Constant | Uniform | LogUniform | Integer | Choice
KINDS = {kind.kind: kind for kind in (Constant, Uniform, LogUniform, Integer, Choice)}


class Priors(Mapping[str, Prior]):
    """Priors by the name of their parameter: a mapping that can't change, and so can be hashed.

    Raises:
        InvalidValueError: a value that is no prior, or a name that is no string.

    Example:
        >>> from fractal_streams.priors import Priors, Uniform
        >>> Priors({"power": Uniform(1, 5)})["power"].high
        5.0
    """

    def __init__(self, priors: Mapping[str, Prior] | None = None) -> None:
        if not isinstance(priors, Mapping | None):
            raise InvalidValueError(f"priors must map names to priors, got {priors!r}")
        self._priors = dict(priors or {})
        for name, prior in self._priors.items():
            if not isinstance(name, str) or not isinstance(prior, Prior):
                raise InvalidValueError(
                    f"priors must map names to {', '.join(kind.__name__ for kind in KINDS.values())}, "
                    f"got {name!r}: {prior!r}"
                )

    def __getitem__(self, name: str) -> Prior:
        return self._priors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._priors)

    def __len__(self) -> int:
        return len(self._priors)

    def __hash__(self) -> int:
        return hash(frozenset(self._priors.items()))

    def __repr__(self) -> str:
        return repr(self._priors)


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
    if not isinstance(fields, dict):
        raise InvalidValueError(f"a prior is a JSON object with a kind, got {fields!r}")
    values = dict(fields)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown_name("kind of prior", kind, KINDS)
    try:
        return KINDS[kind](**values)
    except TypeError as error:
        raise InvalidValueError(f"prior {kind!r}: {error}") from None


def _f32(value: float) -> float:
    """Rounded to float32; a zero is +0, because backends differ on which of two zeros is the larger."""
    return float(np.float32(value)) + 0.0
