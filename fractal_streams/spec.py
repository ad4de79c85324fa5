"""What a stream draws and how large: a frozen value, JSON in and out, with a digest."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal

from fractal_streams.colouring import Colouring, find_colouring
from fractal_streams.errors import InvalidValueError, VersionError, unknown_name
from fractal_streams.formulas import Formula, find_formula
from fractal_streams.priors import Prior, Priors, prior_from_json, prior_to_json

SPEC_VERSION = 1
"""Version of the meaning of a spec's fields; a spec from a newer one is refused."""

MIN_SIZE, MAX_SIZE = 8, 4096
MAX_CLASSES = 2**31 - 1
MAX_ITERATIONS = 1_000_000

LabelRule = Literal["drawn", "balanced"]
Counting = Literal["escape", "visits"]
Orientation = Literal["cartesian", "matrix"]


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """What a stream of still pictures draws.

    formulas: one name, whose classes differ in `class_parameters`; or several, which are the classes
        (class k is formula k modulo their number). Kept as a tuple.
    height, width: pixels, 8 to 4096. The width of the plane is the formula's; pixels are square.
    num_classes: 1 to 2**31 - 1. 10 and a million cost the same.
    labels: "drawn", each sample's class independently; or "balanced", round-robin over the indices.
    class_parameters: names drawn once for each class; None leaves it to the formula.
    colouring, iterations, radius: None leaves it to the formula.
    priors: overrides by parameter name, or "formula.parameter".
    supersample: 1, 2 or 3; each pixel is the mean of its square.
    counting: "escape" stops at the first step outside; "visits" counts every step inside, and never stops.
    orientation: "cartesian", real axis to the right and imaginary axis up, pixel centres; or "matrix",
        real axis down the rows, imaginary axis along the columns, first and last pixel on the edge.
    version: of the samples; a released stream never changes under its version.

    Raises:
        InvalidValueError, UnknownNameError: names the field, the value and the allowed range.

    Example:
        >>> from fractal_streams import StreamSpec
        >>> StreamSpec(formulas="mandelbrot", num_classes=10, class_parameters=("centre_x",)).height
        32
    """

    formulas: Sequence[str]
    height: int = 32
    width: int = 32
    num_classes: int = 1
    labels: LabelRule = "drawn"
    class_parameters: Sequence[str] | None = None
    colouring: str | None = None
    iterations: int | None = None
    radius: float | None = None
    priors: Mapping[str, Prior] = field(default_factory=Priors)
    supersample: int = 1
    counting: Counting = "escape"
    orientation: Orientation = "cartesian"
    version: int = 1

    def __post_init__(self) -> None:
        self._canonical()
        one_of(self.labels, "labels", ("drawn", "balanced"))
        one_of(self.counting, "counting", ("escape", "visits"))
        one_of(self.orientation, "orientation", ("cartesian", "matrix"))
        names = self.formulas
        known: set[str] = set()
        for part in self.parts():
            known |= {*part.parameters, *(f"{part.formula.name}.{name}" for name in part.parameters)}
        for name in (*self.priors, *(self.class_parameters or ())):
            if name not in known:
                raise unknown_name("parameter", name, known)
        short = [name.rpartition(":")[2] for name in names]
        for name in short:
            if short.count(name) > 1:
                raise InvalidValueError(f"formulas names {name!r} twice, whose classes would look alike: name it once")
        if self.num_classes < len(names):
            raise InvalidValueError(
                f"num_classes must be at least the {len(names)} formulas named, got {self.num_classes}"
            )
        if self.num_classes > len(names) and not all(self._classes_differ(part) for part in self.parts()):
            raise InvalidValueError(
                f"{self.num_classes} classes of {', '.join(names)} would look alike: "
                f"name class_parameters= that differ between classes and are not constant, or num_classes={len(names)}"
            )

    def _canonical(self) -> None:
        """Check the numbers, and give every field its one type, so that equal specs are equal as text."""
        made: dict[str, Any] = {
            "formulas": names_of(self.formulas, "formulas"),
            "priors": self.priors if isinstance(self.priors, Priors) else Priors(self.priors),
            "height": whole(self.height, "height", MIN_SIZE, MAX_SIZE, "pixels"),
            "width": whole(self.width, "width", MIN_SIZE, MAX_SIZE, "pixels"),
            "num_classes": whole(self.num_classes, "num_classes", 1, MAX_CLASSES, "classes"),
            "supersample": whole(self.supersample, "supersample", 1, 3, "samples along each edge of a pixel"),
            "version": whole(self.version, "version", 1, 2**31 - 1, ""),
        }
        if not made["formulas"]:
            raise InvalidValueError("formulas: name at least one")
        if self.class_parameters is not None:
            made["class_parameters"] = names_of(self.class_parameters, "class_parameters")
        if self.colouring is not None and not (isinstance(self.colouring, str) and self.colouring):
            raise InvalidValueError(f"colouring must be a name, or None for the formula's own, got {self.colouring!r}")
        if self.iterations is not None:
            made["iterations"] = whole(self.iterations, "iterations", 1, MAX_ITERATIONS, "steps")
        if self.radius is not None:
            number = isinstance(self.radius, Real) and not isinstance(self.radius, bool)
            if not (number and math.isfinite(self.radius) and 0.0 < self.radius <= 1e15):
                raise InvalidValueError(f"radius must lie in (0, 1e15], got {self.radius!r}")
            made["radius"] = float(self.radius)
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def parts(self) -> tuple[Part, ...]:
        """For each formula: the formula, its colouring and all their parameters."""
        return tuple(
            Part(found, find_colouring(self.colouring or found.colouring))
            for found in (find_formula(name) for name in self.formulas)
        )

    def class_names(self, formula: Formula) -> tuple[str, ...]:
        """Names of the parameters of a formula that belong to the class."""
        if self.class_parameters is not None:
            return tuple(name for name in self.class_parameters if name in formula.parameters)
        return formula.class_parameters if self.num_classes > len(self.formulas) else ()

    def _classes_differ(self, part: Part) -> bool:
        """Whether a class parameter of a formula varies at all."""
        formula = part.formula
        for name in self.class_names(formula):
            prior = self.priors.get(f"{formula.name}.{name}", self.priors.get(name))
            low, high = prior.encode()[3:5] if prior else (formula.parameters[name].low, formula.parameters[name].high)
            if low != high:
                return True
        return False

    @property
    def stream_id(self) -> str:
        """What keys are made from: formulas and version, nothing of size, colour or batch."""
        return f"{'+'.join(name.rpartition(':')[2] for name in self.formulas)}@{self.version}"

    def to_json(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["priors"] = {name: prior_to_json(prior) for name, prior in self.priors.items()}
        return json.dumps({"spec_version": SPEC_VERSION, "kind": "stills", **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StreamSpec:
        """The spec that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not a spec, or one with unknown fields or values.
        """
        values = spec_fields(text, "stills", cls)
        if "formulas" not in values:
            raise InvalidValueError("not a spec: the field 'formulas' is missing")
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        return hashlib.blake2s(self.to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> StreamSpec:
        """A copy with other values."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Part:
    """A formula with the colouring that paints it."""

    formula: Formula
    colouring: Colouring

    def __post_init__(self) -> None:
        both = set(self.formula.parameters) & set(self.colouring.parameters)
        if both:
            raise InvalidValueError(
                f"formula {self.formula.name!r} and colouring {self.colouring.name!r} both have a parameter "
                f"{', '.join(sorted(both))}; rename one"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """Name to `Parameter`, in the order of the rows of a parameter table."""
        return {**self.formula.parameters, **self.colouring.parameters}


def spec_fields(text: str, kind: str, cls: type) -> dict[str, Any]:
    """The checked fields of a spec's JSON, priors made."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise InvalidValueError(f"not a spec: {error}") from None
    if not isinstance(values, dict):
        raise InvalidValueError(f"not a spec: expected a JSON object, got {type(values).__name__}")
    version = values.pop("spec_version", None)
    if type(version) is not int or not 1 <= version <= SPEC_VERSION:
        raise VersionError(
            f"spec version {version!r} is not one of 1 to {SPEC_VERSION}: "
            f"upgrade fractal-streams to the version that wrote this spec"
        )
    found = values.pop("kind", None)
    if found != kind:
        raise InvalidValueError(f"a spec of kind {found!r} was given where {kind!r} is expected")
    known = {item.name for item in fields(cls)}
    for name in values:
        if name not in known:
            raise unknown_name("field of a spec", name, known)
    if "priors" in values:
        if not isinstance(values["priors"], dict):
            raise InvalidValueError(f"priors must be a JSON object of names, got {values['priors']!r}")
        values["priors"] = {name: prior_from_json(prior) for name, prior in values["priors"].items()}
    return values


def whole(value: object, name: str, low: int, high: int, unit: str) -> int:
    """The value if it is a whole number in [low, high], else an `InvalidValueError`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        unit = f" {unit}" if unit else ""
        raise InvalidValueError(f"{name} must be a whole number from {low} to {high}{unit}, got {value!r}")
    return number


def names_of(value: object, name: str) -> tuple[str, ...]:
    """The names as a tuple, one name alone too, else an `InvalidValueError`."""
    names: tuple[Any, ...] | None = None
    if isinstance(value, str):
        names = (value,)
    elif isinstance(value, Iterable) and not isinstance(value, Set | Mapping):  # a set has another order elsewhere
        names = tuple(value)
    if names is None or not all(isinstance(item, str) for item in names):
        raise InvalidValueError(f"{name} must be one name or a list of names, got {value!r}")
    return names


def one_of(value: object, name: str, allowed: tuple[str, ...]) -> None:
    """An `InvalidValueError` unless the value is one of the allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
