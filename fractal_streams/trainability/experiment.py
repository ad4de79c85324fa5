"""What is trained at every point of a plane: a network, its data, its optimiser, and two axes of hyperparameters."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, VersionError, unknown_name
from fractal_streams.spec import one_of, whole

Float64 = npt.NDArray[np.float64]

EXPERIMENT_VERSION = 1
NONLINEARITIES = ("tanh", "relu", "identity", "sin", "gelu")
OPTIMISERS = ("gradient_descent", "momentum", "adam")
WIDTHS = (8, 16, 32, 64)

DEFAULTS: dict[str, float | None] = {
    "lr0": 1.0,
    "lr1": 1.0,
    "lr2": None,
    "momentum": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "offset": 0.0,
    "scale": 1.0,
}
"""Every hyperparameter with its value where no axis sets it; lr2 takes lr0's."""
HYPERPARAMETERS = tuple(DEFAULTS)
"""Rows of a table of hyperparameters, in this order."""
LINEAR_AXES = ("momentum", "beta2")
"""Axes in their own units; coordinates of all others are log10 of the value."""
AXES = ("lr", *HYPERPARAMETERS)
"""What an axis may be: "lr" sets the rate of every layer."""


class Hyperparameters(Mapping[str, float]):
    """Values of hyperparameters by name: a mapping that can't change, and so can be hashed."""

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self._values = dict(sorted((values or {}).items()))

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run but for two hyperparameters, which the axes of a plane give.

    The network of J. Sohl-Dickstein, "The boundary of neural network trainability is fractal" (2024), section 2:
    hidden units h = f(alpha0 * x W0), output alpha1 * h W1, no biases, mean squared error without a half.
    Weights, data and the order of minibatches are the same at every point.

    nonlinearity: "tanh", "relu", "identity", "sin", "gelu" (x times the normal distribution function).
    width: n, 8, 16, 32 or 64: inputs, and units of each hidden layer.
    depth: layers of weights, 2 or 3.
    dataset_mode: rows of data: "matching", as many as parameters; "width", as many as units (what a
        linear network can fit); "single_example", one. The first two are multiplied by `dataset_ratio`.
    batch_size: rows of each step's minibatch, the same for every point; None is all of them.
    replacement: whether rows of a minibatch are drawn with replacement.
    optimiser: "gradient_descent", "momentum" (b = momentum * b + g, w -= lr * b), "adam" (beta1 is `momentum`;
        epsilon 1e-8). Weight decay adds weight_decay * w to each gradient, not to the loss.
    steps: T, 1 to 100,000; the loss at step t is taken before update t.
    axes: (horizontal, vertical): two of "lr" (every layer), "lr0", "lr1", "lr2", "momentum", "beta2",
        "weight_decay", "offset", "scale".
    hyperparameters: values of those that no axis sets; see `DEFAULTS`.
    offset_mode: `offset` is added to W0 "init", once, or "every_step" before each loss, which is
        a drift; the published "parameter initialisation" picture is of the drift.
    alpha0, alpha1: factors of hidden layers and of the output; None is sqrt(2 / n), of the identity
        sqrt(1 / n), and 1 / n.
    weight_seed, data_seed, order_seed: name the draws, 0 to 2**64 - 1.
    inputs: "native" draws; "published" are the arrays of the paper's experiments, which exist for the
        shapes of the presets in `PUBLISHED` and for width 8.

    Raises:
        InvalidValueError, UnknownNameError: names the field, the value and the allowed range.

    Example:
        >>> experiment = Experiment(nonlinearity="relu", axes=("lr0", "weight_decay"), steps=100)
        >>> experiment.rows, Experiment.from_json(experiment.to_json()) == experiment
        (272, True)
    """

    nonlinearity: str = "tanh"
    width: int = 16
    depth: int = 2
    dataset_mode: Literal["matching", "width", "single_example"] = "matching"
    dataset_ratio: float = 1.0
    batch_size: int | None = None
    replacement: bool = True
    optimiser: str = "gradient_descent"
    steps: int = 500
    axes: tuple[str, str] = ("lr0", "lr1")
    hyperparameters: Mapping[str, float] = field(default_factory=Hyperparameters)
    offset_mode: Literal["init", "every_step"] = "init"
    alpha0: float | None = None
    alpha1: float | None = None
    weight_seed: int = 0
    data_seed: int = 0
    order_seed: int = 0
    inputs: Literal["native", "published"] = "native"

    def __post_init__(self) -> None:
        one_of(self.nonlinearity, "nonlinearity", NONLINEARITIES)
        one_of(self.dataset_mode, "dataset_mode", ("matching", "width", "single_example"))
        one_of(self.optimiser, "optimiser", OPTIMISERS)
        one_of(self.offset_mode, "offset_mode", ("init", "every_step"))
        one_of(self.inputs, "inputs", ("native", "published"))
        if not isinstance(self.width, Real) or self.width not in WIDTHS:
            raise InvalidValueError(f"width must be one of {', '.join(map(str, WIDTHS))} units, got {self.width!r}")
        if not isinstance(self.replacement, bool):
            raise InvalidValueError(f"replacement must be True or False, got {self.replacement!r}")
        made: dict[str, Any] = {
            "width": int(self.width),
            "depth": whole(self.depth, "depth", 2, 3, "layers"),
            "steps": whole(self.steps, "steps", 1, 100_000, "steps"),
            "dataset_ratio": number(self.dataset_ratio, "dataset_ratio", 0.0, 100.0, above=True),
        }
        for name in ("weight_seed", "data_seed", "order_seed"):
            made[name] = whole(getattr(self, name), name, 0, 2**64 - 1, "")
        for name in ("alpha0", "alpha1"):
            if getattr(self, name) is not None:
                made[name] = number(getattr(self, name), name, -1e6, 1e6)
        for name, value in made.items():
            object.__setattr__(self, name, value)
        if self.batch_size is not None:
            most = 4096 if self.replacement else self.rows
            object.__setattr__(self, "batch_size", whole(self.batch_size, "batch_size", 1, most, "rows"))
        self._check_axes()

    def _check_axes(self) -> None:
        given = tuple(self.axes) if isinstance(self.axes, tuple | list) else ()
        if len(given) != 2 or given[0] == given[1]:
            raise InvalidValueError(f"axes must be two different names of {', '.join(AXES)}, got {self.axes!r}")
        if not isinstance(self.hyperparameters, Mapping):
            raise InvalidValueError(f"hyperparameters must be a dict of names, got {self.hyperparameters!r}")
        for name in given:
            if name not in AXES:
                raise unknown_name("axis", name, AXES)
        for name in self.hyperparameters:
            if name not in AXES:
                raise unknown_name("hyperparameter", name, AXES)
            if name in given:
                raise InvalidValueError(f"hyperparameters gives {name!r}, which an axis sets: leave it out")
        if "lr" in (*given, *self.hyperparameters) and any(
            name.startswith("lr") and name != "lr" for name in (*given, *self.hyperparameters)
        ):
            raise InvalidValueError('"lr" sets the rate of every layer: give it, or rates of single layers')
        values = {name: number(value, name, -1e300, 1e300) for name, value in self.hyperparameters.items()}
        for name in (*given, *values):
            self._check_used(name)
            if name in ("momentum", "beta2") and not 0.0 <= values.get(name, 0.0) < 1.0:
                raise InvalidValueError(f"{name} must lie in [0, 1), got {values[name]:g}")
        object.__setattr__(self, "axes", given)
        object.__setattr__(self, "hyperparameters", Hyperparameters(values))

    def _check_used(self, name: str) -> None:
        """Refuse a hyperparameter that changes nothing."""
        needs = {"momentum": ("momentum", "adam"), "beta2": ("adam",)}.get(name)
        if needs and self.optimiser not in needs:
            raise InvalidValueError(
                f"{name!r} has no effect with optimiser={self.optimiser!r}: use {' or '.join(map(repr, needs))}"
            )
        if name == "lr2" and self.depth < 3:
            raise InvalidValueError(f"'lr2' is the rate of a third layer, and depth is {self.depth}: give depth=3")

    @property
    def parameters(self) -> int:
        """Trainable numbers of the network."""
        return (self.depth - 1) * self.width * self.width + self.width

    @property
    def rows(self) -> int:
        """D, the rows of data."""
        if self.dataset_mode == "single_example":
            return 1
        whole_set = self.parameters if self.dataset_mode == "matching" else self.width
        return max(1, int(whole_set * self.dataset_ratio))

    @property
    def factors(self) -> tuple[float, float]:
        """(alpha0, alpha1) as numbers."""
        hidden = math.sqrt((1.0 if self.nonlinearity == "identity" else 2.0) / self.width)
        return hidden if self.alpha0 is None else self.alpha0, 1.0 / self.width if self.alpha1 is None else self.alpha1

    @property
    def full_batch(self) -> bool:
        """Whether each step takes all rows."""
        return self.batch_size is None

    def table(self, points: Any) -> Float64:
        """(8, N) float64: every hyperparameter, in the order of `HYPERPARAMETERS`, at each point.

        Args:
            points: (N, 2) values (not logarithms) of the horizontal and the vertical axis.

        Raises:
            InvalidValueError: not (N, 2), or a value that isn't finite.
        """
        try:
            values = np.asarray(points, np.float64)
        except (TypeError, ValueError):
            raise InvalidValueError(f"points must be numbers in the shape (N, 2), got {points!r:.80}") from None
        if values.ndim != 2 or values.shape[1] != 2:
            raise InvalidValueError(f"points must have the shape (N, 2), got {values.shape}")
        if not np.isfinite(values).all():
            raise InvalidValueError("points must be finite: values of the axes, not logarithms of 0")
        rows = {name: np.full(len(values), np.nan if value is None else value) for name, value in DEFAULTS.items()}
        told: dict[str, Any] = {**self.hyperparameters, self.axes[0]: values[:, 0], self.axes[1]: values[:, 1]}
        for name, value in told.items():
            for row in ("lr0", "lr1", "lr2") if name == "lr" else (name,):
                rows[row] = np.broadcast_to(np.asarray(value, np.float64), len(values))
        if np.isnan(rows["lr2"]).any():
            rows["lr2"] = rows["lr0"]
        return np.ascontiguousarray(np.stack([rows[name] for name in HYPERPARAMETERS]))

    def to_json(self) -> str:
        """The experiment as canonical JSON: equal experiments give equal text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["hyperparameters"] = dict(self.hyperparameters)
        return json.dumps({"experiment_version": EXPERIMENT_VERSION, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """The experiment that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not an experiment, or one with unknown fields or values.
        """
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise InvalidValueError(f"not an experiment: {error}") from None
        if not isinstance(values, dict):
            raise InvalidValueError(f"not an experiment: expected a JSON object, got {type(values).__name__}")
        version = values.pop("experiment_version", None)
        if version != EXPERIMENT_VERSION:
            raise VersionError(
                f"experiment version {version!r} is not {EXPERIMENT_VERSION}: "
                f"use the version of fractal-streams that wrote it"
            )
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("field of an experiment", name, known)
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this experiment."""
        return hashlib.blake2s(self.to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> Experiment:
        """A copy with other values."""
        return replace(self, **changes)


def number(value: object, name: str, low: float, high: float, *, above: bool = False) -> float:
    """The value as a float if it lies in [low, high] ((low, high] if `above`), else an `InvalidValueError`."""
    real = as_float(value)
    if not (low < real if above else low <= real) or not real <= high:
        raise InvalidValueError(f"{name} must lie in {'(' if above else '['}{low:g}, {high:g}], got {value!r}")
    return real + 0.0  # of -0.0 it is 0.0, so that equal values are equal text


def as_float(value: object) -> float:
    """The value as a float: NaN of what is no real number, infinity of a whole number that is too large."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
