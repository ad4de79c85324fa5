"""Named specs: the streams of the README, the tests and the recipes."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError, unknown_name
from fractal_streams.formulas import CATALOGUE
from fractal_streams.formulas.definition import REGISTRY
from fractal_streams.kaleidoscope.fitted_stream import FittedStream
from fractal_streams.kaleidoscope.streams import BasinSpec, BasinStream, KaleidoscopeSpec, KaleidoscopeStream
from fractal_streams.priors import Constant, LogUniform, Prior, Uniform
from fractal_streams.seed_code import SeedCodeSpec, SeedCodeStream
from fractal_streams.spec import StreamSpec
from fractal_streams.stream import StillStream, Stream
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.streams import PointSpec, PointStream, TileSpec, TileStream
from fractal_streams.trainability.trained_stream import TrainedStream
from fractal_streams.video import VideoSpec, VideoStream

LIVELY = {"power": Uniform(1.0, 5.0), "frequency": Uniform(2.0, 10.0)}
"""Priors under which nearly no picture is constant: powers below 1 give black ones."""

RIM: dict[str, Prior] = {
    "anchor": Uniform(0.99, 1.03), "anchor_angle": Uniform(0.0, 6.283185307179586),
    "centre_x": Constant(0.0), "centre_y": Constant(0.0), "half_width": LogUniform(0.1, 0.9),
}  # fmt: skip
"""Views at the rim of a period-1 component, at every scale: the boundary is always near the middle."""

FAMILIES: dict[str, Prior] = {
    **{f"{formula}.{name}": prior for formula in ("mandelbrot", "multibrot", "lambda") for name, prior in RIM.items()},
    "polynomial_power.power": Uniform(1.0, 5.0),
    "rotation": Uniform(0.0, 6.283185307179586),
}
"""Priors of formulas as classes: zooms, any rotation, and no class with large empty pictures."""

PRESETS: dict[str, Any] = {
    "fractal-10": StreamSpec(formulas="polynomial_power", num_classes=10, priors=LIVELY),
    "fractal-100": StreamSpec(formulas="polynomial_power", num_classes=100, priors=LIVELY),
    "fractal-1k": StreamSpec(formulas="polynomial_power", num_classes=1000, height=224, width=224, priors=LIVELY),
    "fractal-10k": StreamSpec(formulas="polynomial_power", num_classes=10_000, priors=LIVELY),
    "fractal-mnist": StreamSpec(formulas="polynomial_power", num_classes=10, height=28, width=28, priors=LIVELY),
    "fractal-families": StreamSpec(
        formulas=CATALOGUE,
        num_classes=len(CATALOGUE),
        height=64,
        width=64,
        colouring="exponential_smoothing",
        priors=FAMILIES,
    ),
    "seed-readme": StreamSpec(formulas="polynomial_power", num_classes=10, labels="balanced"),
    "seed-code": SeedCodeSpec(num_classes=10),
    "fractal-video": VideoSpec(
        still=StreamSpec(formulas=("polynomial_power",), num_classes=10, height=64, width=64, priors=LIVELY), frames=16
    ),
    "trainability-points": PointSpec(
        experiment=Experiment(dataset_mode="single_example"), distance=0.1, halvings=10, losses=16
    ),
    "trainability-tiles": TileSpec(
        experiments=tuple(
            Experiment(nonlinearity=name, width=8, dataset_mode="width", steps=200)
            for name in ("tanh", "relu", "identity")
        ),
        min_depth=2,
        max_depth=12,
    ),
    "kaleidoscope-10": KaleidoscopeSpec(model="kaleidoscope-10", start="pink", stratified=True),
    "kaleidoscope-10-early": KaleidoscopeSpec(model="kaleidoscope-10", mode="early", start="pink"),
    "kaleidoscope-10-clips": KaleidoscopeSpec(model="kaleidoscope-10", mode="clips", start="pink"),
    "kaleidoscope-bank": KaleidoscopeSpec(model="kaleidoscope-bank", start="pink"),
    "kaleidoscope-basins": BasinSpec(model="kaleidoscope-bank", plane="middle", label="model", max_depth=4),
}
"""Those of kaleidoscopes need a file of weights, which `fractal-streams kaleidoscope fit` makes."""

STREAMS: dict[type, Any] = {
    StreamSpec: StillStream,
    VideoSpec: VideoStream,
    SeedCodeSpec: SeedCodeStream,
    PointSpec: PointStream,
    TileSpec: TileStream,
    KaleidoscopeSpec: KaleidoscopeStream,
    BasinSpec: BasinStream,
}
"""The stream that each kind of spec opens as."""


def find_preset(name: str) -> Any:
    """The spec of a preset.

    Raises:
        UnknownNameError: no such preset; names the nearest known one.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def find_source(name: str) -> Any:
    """The spec of a preset, of a formula as it stands, or in a JSON file.

    Args:
        name: of `PRESETS`; of a formula, or "module:formula"; or a path that ends in .json.

    Raises:
        UnknownNameError: none of them; names the nearest known one.
        InvalidValueError: a file without a spec.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(".json"):
        return spec_from_json(Path(name).read_text())
    if ":" not in name and name not in {*CATALOGUE, *REGISTRY}:
        raise unknown_name("preset or formula", name, (*PRESETS, *CATALOGUE))
    return StreamSpec(formulas=(name,))


def spec_from_json(text: str) -> Any:
    """The spec that `to_json` wrote, of whichever kind it says."""
    try:
        kind = json.loads(text).get("kind")
    except (ValueError, AttributeError):
        kind = None
    readers = {json.loads(spec.to_json())["kind"]: type(spec) for spec in PRESETS.values()}
    return readers.get(kind, StreamSpec).from_json(text)


def open_stream(source: Any, **settings: Any) -> Stream:
    """A stream from a name or a spec: of stills, clips, training runs, or kaleidoscopes.

    Args:
        source: a name of `PRESETS`, a formula, "module:formula", a spec's JSON file, or a spec.
        settings: seed, split, device, dtype, ... of the stream's class, and fields of the spec to
            replace (height, width, num_classes, iterations, frames, ...).

    Raises:
        UnknownNameError: no such preset, formula or setting; names the nearest known one.
        InvalidValueError: neither a name nor a spec, or a value out of its range.
        WeightFileError: a kaleidoscope that is not fitted on this machine, with the command that fits it.

    Example:
        >>> open_stream("fractal-10", seed=1, split="test", device="cpu", height=64, width=64)[0].image.shape
        (3, 64, 64)
    """
    spec = find_source(source) if isinstance(source, str) else source
    if type(spec) not in STREAMS:
        raise InvalidValueError(
            f"a stream opens from a preset's name or a spec ({', '.join(kind.__name__ for kind in STREAMS)}), "
            f"got {source!r}"
        )
    known = {item.name for item in fields(spec)}
    if "still" in known:
        known |= {item.name for item in fields(spec.still)}
    kind = STREAMS[type(spec)]
    opened = next((each for each in (TrainedStream, FittedStream) if issubclass(kind, each)), StillStream)
    asked = [name for name in inspect.signature(opened).parameters if name != "spec"]
    for name in settings:
        if name not in known and name not in asked:
            raise unknown_name("setting", name, (*known, *asked))
    changed = {name: settings.pop(name) for name in list(settings) if name in known}
    return kind(spec.replace(**changed) if changed else spec, **settings)
