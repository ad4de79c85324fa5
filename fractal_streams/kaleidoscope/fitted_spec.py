"""What specs of streams of fitted networks share: a file and its fingerprint, starts, an end, and JSON in and out."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import MAX_STEPS, Schedule
from fractal_streams.kaleidoscope.engines import PRECISIONS
from fractal_streams.kaleidoscope.fitted import ENDING
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.spec import SPEC_VERSION, one_of, spec_fields, whole

FINGERPRINT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class FittedSpec(ABC):
    """What a stream draws whose samples are chains of fitted networks; see `KaleidoscopeSpec` and `BasinSpec`.

    model: the path of a .safetensors file, or a name of `kaleidoscope.presets.RECIPES`, whose file lies in the
        user's cache folder; None where the stream is given a `Kaleidoscope`.
    fingerprint: of the kaleidoscope, 32 hexadecimal digits; None takes the one that is there. A stream's own spec
        always has one.
    precision: "float32" or "bfloat16", of weights, states and products.
    start, start_noise: kind and noise of the first states, see `Start`.
    most, tolerance: steps at most, and the change at which a chain rests, see `Schedule`. None is what `rest` says.
    version: of the samples.
    """

    model: str | None = None
    fingerprint: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    start: str = "uniform"
    start_noise: float = 0.0
    most: int = 100
    tolerance: float | None = None
    version: int = 1

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise InvalidValueError(f"model must be a {ENDING} file or a recipe's name, got {self.model!r}")
        if self.fingerprint is not None and not FINGERPRINT.fullmatch(str(self.fingerprint)):
            raise InvalidValueError(f"fingerprint must be 32 hexadecimal digits or None, got {self.fingerprint!r}")
        one_of(self.precision, "precision", PRECISIONS)
        checked = Start(kind=self.start, noise=self.start_noise)
        most = whole(self.most, "most", 1, MAX_STEPS, "steps")
        made = {
            "start_noise": checked.noise, "most": most,
            "tolerance": None if self.tolerance is None else Schedule(tolerance=self.tolerance).tolerance,
            "version": whole(self.version, "version", 1, 2**31 - 1, ""),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    @abstractmethod
    def line(self) -> str:
        """What is drawn, in a line."""

    @property
    def rest(self) -> float:
        """The tolerance: 0.001 of the range in float32, and 0.004 in bfloat16, whose last digit near 1 is 1 / 256."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-3 if self.precision == "float32" else 4e-3

    @property
    def first(self) -> Start:
        """Where chains start."""
        return Start(kind=self.start, noise=self.start_noise)

    @property
    def needs(self) -> str:
        """The command that makes the file of a recipe, where it is not on this machine yet; else ""."""
        if self.model is None or self.model.endswith(ENDING):
            return ""
        from fractal_streams.kaleidoscope.presets import model_path

        return "" if model_path(self.model).is_file() else f"fractal-streams kaleidoscope fit {self.model}"

    def to_json(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps({"spec_version": SPEC_VERSION, "kind": self.kind, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not a spec, or one with unknown fields or values.
        """
        values: dict[str, Any] = spec_fields(text, cls.kind, cls)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this spec; by the kaleidoscope's fingerprint, not by where its file lies.

        Raises:
            InvalidValueError: the fingerprint isn't known yet.
        """
        if self.fingerprint is None:
            raise InvalidValueError(
                f"the digest of {type(self).__name__}(model={self.model!r}) needs the fingerprint of its kaleidoscope: "
                f"open a stream and ask stream.digest() or stream.spec.digest()"
            )
        return hashlib.blake2s(self.replace(model=None).to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return replace(self, **changes)
