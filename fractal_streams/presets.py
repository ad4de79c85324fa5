"""Named specs: the streams of the README, the tests and the recipes."""

from __future__ import annotations

from typing import Any

from fractal_streams.errors import unknown_name
from fractal_streams.priors import Uniform
from fractal_streams.spec import StreamSpec
from fractal_streams.stream import StillStream, Stream

LIVELY = {"power": Uniform(1.0, 5.0), "frequency": Uniform(2.0, 10.0)}
"""Priors under which nearly no picture is constant: powers below 1 give black ones."""

PRESETS: dict[str, Any] = {
    "fractal-10": StreamSpec(formulas="polynomial_power", num_classes=10, priors=LIVELY),
    "fractal-100": StreamSpec(formulas="polynomial_power", num_classes=100, priors=LIVELY),
    "fractal-1k": StreamSpec(formulas="polynomial_power", num_classes=1000, height=224, width=224, priors=LIVELY),
    "fractal-mnist": StreamSpec(formulas="polynomial_power", num_classes=10, height=28, width=28, priors=LIVELY),
    "seed-readme": StreamSpec(formulas="polynomial_power", num_classes=10, labels="balanced"),
}


def find_preset(name: str) -> Any:
    """The spec of a preset.

    Raises:
        UnknownNameError: no such preset; names the nearest known one.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def open_stream(source: Any, **settings: Any) -> Stream:
    """A stream from a preset's name or a spec.

    Args:
        source: a name of `PRESETS`, or a spec.
        settings: seed, split, device, dtype, ... of the stream's class, and fields of the spec to
            replace (height, width, num_classes, iterations, ...).

    Example:
        >>> open_stream("fractal-10", seed=1, split="test", device="cpu", height=64, width=64)[0].image.shape
        (3, 64, 64)
    """
    spec = find_preset(source) if isinstance(source, str) else source
    changed = {name: settings.pop(name) for name in list(settings) if name in type(spec).__dataclass_fields__}
    return StillStream(spec.replace(**changed) if changed else spec, **settings)
