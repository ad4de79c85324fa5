"""How networks are fitted: every setting that decides the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fractal_streams.errors import InvalidValueError, unknown_name
from fractal_streams.spec import one_of, whole

MAX_TRAINING_STEPS = 2**31 - 1
DECAYS = ("cosine", "constant")
DTYPES = ("float32", "float64", "bfloat16")
EVALUATIONS = 50
"""Evaluations of a training that doesn't say how many."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Adam on the mean squared difference of f(x + noise) and x.

    steps: of the optimiser, 1 and up.
    batch: sources of a step, drawn anew without repetition; None is all of them. Networks of a bank see the same rows.
    learning_rate: of the first step, above 0 and up to 1.
    decay: "cosine", down to 0 behind the last step, or "constant".
    noise: standard deviation of normal noise on the inputs, in halves of the span, 0 to 10; the networks of a bank see
        the same. It makes sources attractors; 0 is plain reconstruction.
    betas, epsilon: of Adam.
    seed: names first weights, batches and noise, 0 to 2**64 - 1.
    evaluate_every: steps between evaluations on all sources, whose best weights are kept; None makes about 50 of them.
    dtype: of products, "float32", "float64" or "bfloat16" (weights and sums are float32 then).

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> training = Training(steps=100, learning_rate=1e-3)
        >>> training.rate(0), round(training.rate(50), 6), training.every
        (0.001, 0.0005, 10)
    """

    steps: int = 4000
    batch: int | None = None
    learning_rate: float = 1e-3
    decay: Literal["cosine", "constant"] = "cosine"
    noise: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    seed: int = 0
    evaluate_every: int | None = None
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        one_of(self.decay, "decay", DECAYS)
        one_of(self.dtype, "dtype", DTYPES)
        made: dict[str, Any] = {
            "steps": whole(self.steps, "steps", 1, MAX_TRAINING_STEPS, "steps"),
            "seed": whole(self.seed, "seed", 0, 2**64 - 1, ""),
            "learning_rate": number(self.learning_rate, "learning_rate", 0.0, 1.0, open_low=True),
            "noise": number(self.noise, "noise", 0.0, 10.0),
            "epsilon": number(self.epsilon, "epsilon", 0.0, 1.0, open_low=True),
        }
        if self.batch is not None:
            made["batch"] = whole(self.batch, "batch", 1, 2**24, "sources")
        if self.evaluate_every is not None:
            made["evaluate_every"] = whole(self.evaluate_every, "evaluate_every", 1, MAX_TRAINING_STEPS, "steps")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise InvalidValueError(f"betas must be two numbers, got {self.betas!r}")
        made["betas"] = tuple(number(beta, "betas", 0.0, 1.0, open_high=True) for beta in self.betas)
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or max(10, -(-self.steps // EVALUATIONS))

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 to steps - 1."""
        if self.decay == "constant":
            return self.learning_rate
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * step / self.steps))

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON holds; `from_dict` undoes it."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Any) -> Training:
        """The training that `to_dict` told of.

        Raises:
            InvalidValueError, UnknownNameError: not one.
        """
        if not isinstance(values, dict):
            raise InvalidValueError(f"not a training: {str(values)[:200]}")
        for name in values:
            if name not in cls.__dataclass_fields__:
                raise unknown_name("setting of a training", name, cls.__dataclass_fields__)
        return cls(**values)

    def replace(self, **changes: Any) -> Training:
        """A copy with other values."""
        return replace(self, **changes)


def number(value: Any, name: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> float:
    """A float of an interval, else an `InvalidValueError` that names it."""
    real = not isinstance(value, bool) and isinstance(value, int | float)
    inside = real and low <= value <= high and not (open_low and value == low) and not (open_high and value == high)
    if not inside:
        ends = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise InvalidValueError(f"{name} must lie in {ends}, got {value!r}")
    return float(value)
