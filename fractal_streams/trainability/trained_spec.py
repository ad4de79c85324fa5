"""What specs of points and of tiles share: a window, a precision, and JSON in and out."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import SPEC_VERSION, one_of, spec_fields, whole
from fractal_streams.trainability.experiment import LINEAR_AXES, Experiment
from fractal_streams.trainability.trainer import Mode, check_reducible
from fractal_streams.trainability.window import Window

MAX_EDGE = 4096
"""Most pixels along an edge of a picture."""


@dataclass(frozen=True, kw_only=True)
class TrainedSpec(ABC):
    """What a stream draws whose samples are training runs; see `PointSpec` and `TileSpec`."""

    window: Window | None = None
    precision: Literal["float64", "float32"] = "float64"
    mode: Mode = "exact"
    version: int = 1

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        one_of(self.precision, "precision", ("float64", "float32"))
        one_of(self.mode, "mode", ("exact", "reduced"))
        object.__setattr__(self, "version", whole(self.version, "version", 1, 2**31 - 1, ""))
        if self.window is not None and not isinstance(self.window, Window):
            raise InvalidValueError(f"window must be a Window or None, got {self.window!r}")
        for experiment in self.trained():
            if not isinstance(experiment, Experiment):
                raise InvalidValueError(f"an experiment must be an Experiment, got {type(experiment).__name__}")
            linear = tuple(name in LINEAR_AXES for name in experiment.axes)
            if self.window is not None and self.window.linear != linear:
                raise InvalidValueError(
                    f"window has linear={self.window.linear}, and the axes {', '.join(experiment.axes)} need {linear}"
                )
            if self.mode == "reduced":
                check_reducible(experiment)

    @abstractmethod
    def trained(self) -> tuple[Experiment, ...]:
        """The experiments whose networks are trained."""

    def window_of(self, experiment: Experiment) -> Window:
        """The window of an experiment: the spec's, or else the experiment's overview."""
        return Window.of_experiment(experiment) if self.window is None else self.window

    def to_json(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in values.items():
            if isinstance(value, Window):
                values[name] = value.to_dict()
            elif isinstance(value, Experiment):
                values[name] = json.loads(value.to_json())
            elif name == "experiments":
                values[name] = [json.loads(each.to_json()) for each in value]
        return json.dumps({"spec_version": SPEC_VERSION, "kind": self.kind, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not a spec, or one with unknown fields or values.
        """
        values = spec_fields(text, cls.kind, cls)
        if values.get("window") is not None:
            values["window"] = Window.from_dict(values["window"])
        if "experiment" in values:
            values["experiment"] = Experiment.from_json(json.dumps(values["experiment"]))
        if "experiments" in values:
            told = values["experiments"] if isinstance(values["experiments"], list) else [values["experiments"]]
            values["experiments"] = tuple(Experiment.from_json(json.dumps(each)) for each in told)
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        return hashlib.blake2s(self.to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return replace(self, **changes)
