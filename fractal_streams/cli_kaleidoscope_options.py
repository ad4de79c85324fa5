"""Options that the commands of kaleidoscopes share: what is fitted, to what, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fractal_streams.cli import words
from fractal_streams.errors import InvalidValueError, missing_extra, unknown_name
from fractal_streams.kaleidoscope.fitted import Sources
from fractal_streams.kaleidoscope.network import ACTIVATIONS, HEADS, INITS, KINDS, Network
from fractal_streams.kaleidoscope.training import DECAYS, DTYPES, Training
from fractal_streams.presets import PRESETS, find_source
from fractal_streams.spec import whole

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

DATA_PANEL, NETWORK_PANEL, FITTING_PANEL = "What it is fitted to", "The network", "How it is fitted"
ORIGINAL_PANEL = "As the original program's"
Given = dict[str, Any]


def option(kind: Any, panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option that is None where it isn't given."""
    return Annotated[kind | None, typer.Option(*names, help=text, rich_help_panel=panel, **more)]


DATA: Given = {
    "data": option(
        str, DATA_PANEL, "A folder, zip, tar or hub:NAME of pictures; mnist:PATH, fashion-mnist:PATH, cifar10:PATH, "
        "celeba:PATH; a stream as fractal-10; or points, as 0.2,0.8 or 0.2:0.2,0.2:0.8.", metavar="SOURCE",
    ),
    "count": option(int, DATA_PANEL, "Pictures (1000; 50 of a stream)."),
    "classes": option(str, DATA_PANEL, "Titles of classes to take, with commas (all)."),
    "height": option(str, DATA_PANEL, "Pixels: EDGE or HEIGHTxWIDTH (their own; 32 of files).", "--height", "--size",
                     metavar="N"),
    "grey": option(bool, DATA_PANEL, "One channel (yes of mnist).", "--grey/--colour"),
    "data_seed": option(int, DATA_PANEL, "Names which pictures are drawn (0)."),
    "held_out": option(int, DATA_PANEL, "As many further pictures for the report alone (a tenth; 0 of points)."),
    "own_data": option(bool, DATA_PANEL, "Each network of a bank has pictures of its own.", "--own-data/--shared-data"),
}  # fmt: skip
"""What networks are fitted to."""
NETWORK: Given = {
    "kind": option(str, NETWORK_PANEL, f"{', '.join(KINDS)} (mlp)."),
    "hidden": option(int, NETWORK_PANEL, "Units of a hidden layer (256; of points 50 or 10), or channels (32).",
                     "--hidden", "--H"),
    "n_linear": option(int, NETWORK_PANEL, "Linear layers, the head's among them (5; of points 7); or levels (3)."),
    "activation": option(str, NETWORK_PANEL, f"{', '.join(ACTIVATIONS)} (relu)."),
    "head": option(str, NETWORK_PANEL, f"{', '.join(HEADS)} (tanh; of points in [0, 1] sigmoid)."),
    "init": option(str, NETWORK_PANEL, f"{', '.join(INITS)} (torch)."),
    "data_scale": option(float, NETWORK_PANEL, "How much of the range the data fill, in (0, 1] (0.8; of points 1)."),
}  # fmt: skip
"""Fields of a `Network`."""
TRAINING: Given = {
    "steps": option(int, FITTING_PANEL, "Of the optimiser (4000; of points 2000).", "--steps", "--epochs"),
    "batch": option(int, FITTING_PANEL, "Sources of a step (all up to 1000).", "--batch", "--batch-size"),
    "learning_rate": option(float, FITTING_PANEL, "Adam's, at first (0.001).", "--learning-rate", "--lr"),
    "decay": option(str, FITTING_PANEL, f"{', '.join(DECAYS)} (cosine; of points constant)."),
    "noise": option(float, FITTING_PANEL, "Sd of noise on the inputs, in halves of the range (0.3; of points 0)."),
    "betas": option(str, FITTING_PANEL, "Adam's, as 0.9,0.999.", metavar="B1,B2"),
    "epsilon": option(float, FITTING_PANEL, "Adam's (1e-8)."),
    "evaluate_every": option(int, FITTING_PANEL, "Steps between looks for the best weights (50 looks in all)."),
    "dtype": option(str, FITTING_PANEL, f"Of products: {', '.join(DTYPES)} (float32)."),
    "seed": option(int, FITTING_PANEL, "Names first weights, batches and noise (0)."),
}  # fmt: skip
"""Fields of a `Training`."""
FITTING: Given = {
    "models": option(int, FITTING_PANEL, "Networks of the bank, fitted as one batch (1)."),
    "restarts": option(int, FITTING_PANEL, "Fits of each, of which the best is kept (1; of one value 8)."),
    "on_identity": option(str, FITTING_PANEL, "Of a network that learnt the identity: refuse, warn or allow (refuse)."),
    "on_dead": option(str, FITTING_PANEL, "Of networks that give one output alone: refuse or allow (refuse)."),
    "device": option(str, FITTING_PANEL, "auto, cpu, cuda or cuda:N (auto)."),
    "resume": option(bool, FITTING_PANEL, "Go on where a killed fit was (yes).", "--resume/--no-resume"),
    "again": option(bool, FITTING_PANEL, "Fit anew, also where the file is there.", "--again"),
    "chains": option(int, FITTING_PANEL, "Of each network, to find its attractors (2000)."),
}  # fmt: skip
"""Arguments of `fit`, and of what follows it."""
ORIGINAL: Given = {
    "model_type": option(
        str, ORIGINAL_PANEL, "MLP: 11 linear layers of 500, tanh; MLP-synthetic: 7 of 50, sigmoid; both without noise "
        "and scale, with its steps, batch and rate. CNN-bottleneck and UNet as --kind.",
    ),
    "norm_range": option(str, ORIGINAL_PANEL, "0to1 is --head sigmoid, -1to1 is --head tanh.", metavar="RANGE"),
    "L": option(str, ORIGINAL_PANEL, "Refused, for it has two meanings: use --n-linear.", "--L", metavar="N"),
}  # fmt: skip
"""Names that the original program has for them."""

RANGES = {"0to1": "sigmoid", "-1to1": "tanh"}
MODEL_TYPES: dict[str, tuple[Given, Given]] = {
    "MLP": (
        {"hidden": 500, "n_linear": 11, "head": "tanh", "data_scale": 1.0},
        {"steps": 10_000, "batch": 1000, "learning_rate": 1e-4, "decay": "constant", "noise": 0.0},
    ),
    "MLP-synthetic": (
        {"hidden": 50, "n_linear": 7, "head": "sigmoid", "data_scale": 1.0},
        {"steps": 2000, "learning_rate": 1e-3, "decay": "constant", "noise": 0.0},
    ),
    "CNN-bottleneck": ({"kind": "bottleneck"}, {}),
    "UNet": ({"kind": "unet"}, {}),
    "CNN": ({"kind": "cnn"}, {}),
    "Transformer": ({"kind": "transformer"}, {}),
}
"""Settings of the original program's networks; it has no code for the last four."""
STORED = ("mnist", "fashion-mnist", "cifar10", "celeba")
POINTS = re.compile(r"[-+.\deE:,\s]*\d[-+.\deE:,\s]*")
FULL_BATCH = 1000
MOST_HELD_OUT = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What a fit takes: sources, further pictures for its report, and a name for its file."""

    sources: Sources
    held_out: Sources | None
    name: str


def refuse_l(original: Mapping[str, Any]) -> None:
    """Refuse --L, which says two different things in the original program."""
    if "L" in original:
        raise InvalidValueError(
            f"--L {original['L']} has two meanings: of points L=7 are 7 linear layers, of pictures L=10 are 10 hidden "
            f"ones, so 11 linear layers; say --n-linear, all linear layers with the head's"
        )


def plan_of(
    sources: Sources, network: Mapping[str, Any], training: Mapping[str, Any], original: Mapping[str, Any]
) -> tuple[Network, Training]:
    """The network and the training of the options that were given; what they leave open follows from the sources.

    Example:
        >>> from fractal_streams.kaleidoscope.sources import points
        >>> plan_of(points([0.2, 0.8]), {"hidden": 5}, {}, {})[0].replace(shape=(1,)).head
        'sigmoid'
    """
    refuse_l(original)
    shape = sources.data.shape[2:]
    own, how = plan_of_points(sources) if len(shape) == 1 else ({}, {})
    if (name := original.get("model_type")) is not None:
        if name not in MODEL_TYPES:
            raise unknown_name("model type", name, MODEL_TYPES)
        own, how = ({**base, **typed} for base, typed in zip((own, how), MODEL_TYPES[name], strict=True))
    if (reach := original.get("norm_range")) is not None:
        if reach not in RANGES:
            raise unknown_name("range", reach, RANGES)
        if network.get("head") not in (None, RANGES[reach]):
            raise InvalidValueError(
                f"--norm-range {reach} is --head {RANGES[reach]}, got --head {network['head']}: give one of them"
            )
        own["head"] = RANGES[reach]
    if {**own, **network}.get("kind", "mlp") != "mlp":
        own = {"hidden": 32, "n_linear": 3, **own}
    asked = dict(training)
    if "betas" in asked:
        asked["betas"] = parsed_betas(asked["betas"])
    made = Network(**{**own, **network, "shape": shape})
    rows = asked.get("batch", how.get("batch"))
    if rows is None and len(sources) > FULL_BATCH:
        how["batch"] = FULL_BATCH
    elif rows is not None and "batch" not in asked:
        how["batch"] = min(rows, len(sources))
    return made, Training(**{**how, **asked})


def plan_of_points(sources: Sources) -> tuple[Given, Given]:
    """The original program's settings for points; the head is the one whose range holds them."""
    low, high = float(sources.data.min()), float(sources.data.max())
    if low < -1.0 or high > 1.0:
        raise InvalidValueError(f"points must lie in [0, 1] or [-1, 1], the range of the head, got {low:g} to {high:g}")
    own: Given = {"hidden": 10 if sources.data.shape[2] == 1 else 50, "n_linear": 7, "data_scale": 1.0}
    own["head"] = "tanh" if low < 0.0 else "sigmoid"
    return own, {"steps": 2000, "decay": "constant", "noise": 0.0}


def parsed_betas(text: str) -> tuple[float, ...]:
    """The two numbers of B1,B2."""
    try:
        return tuple(float(part) for part in words(text))
    except ValueError:
        raise InvalidValueError(f"--betas is B1,B2, two numbers such as 0.9,0.999, got {text!r}") from None


def material_of(given: Mapping[str, Any], models: int) -> Material:
    """The sources of --data and of the options beside it."""
    text = str(given["data"])
    options = {name: value for name, value in given.items() if name != "data"}
    if given.get("own_data") and not (text in PRESETS or text.endswith(".json")):
        raise InvalidValueError(f"--own-data takes its pictures from a stream, of {', '.join(stills())}; got {text!r}")
    if POINTS.fullmatch(text) and not Path(text).exists():
        if options:
            named = next(iter(options)).replace("_", "-")
            raise InvalidValueError(f"--{named} is of pictures, and --data {text} are points: leave it out")
        return Material(sources=parsed_points(text), held_out=None, name="points")
    if text in PRESETS or text.endswith(".json"):
        return of_stream(text, options, models)
    return of_files(text, options)


def stills() -> list[str]:
    """Presets of pictures."""
    return [name for name, spec in PRESETS.items() if hasattr(spec, "colouring")]


def parsed_points(text: str) -> Sources:
    """Points of "0.2,0.8", or of "0.2:0.2,0.8:0.8" with the values of each between colons.

    Example:
        >>> parsed_points("0.2:0.3,0.8:0.9").data.shape
        (1, 2, 2)
    """
    from fractal_streams.kaleidoscope.sources import points

    try:
        rows = [[float(value) for value in part.split(":")] for part in words(text)]
        table = np.array(rows, np.float64)
    except ValueError:
        raise InvalidValueError(
            f"points are numbers with commas as 0.2,0.8, or 0.2:0.2,0.2:0.8 of two values each, got {text!r}"
        ) from None
    return points(table)


def of_stream(name: str, given: Mapping[str, Any], models: int) -> Material:
    """Pictures of a stream, no two of a network nearly the same; the ones behind them are held out."""
    from fractal_streams.kaleidoscope import sources as made
    from fractal_streams.presets import open_stream

    if given.get("classes"):
        raise InvalidValueError(f"--classes are of stored pictures, those of the stream {name} come in all classes")
    size = parsed_height(given.get("height")) or {}
    stream = open_stream(find_source(name), seed=given.get("data_seed", 0), device="cpu", **size)
    grey, count = given.get("grey", False), given.get("count", 50)
    parts, first = [], 0
    for _ in range(models if given.get("own_data") else 1):
        index = made.distinct_indices(stream, count, start=first, grey=grey)
        parts.append(made.of_stream(stream, index, grey=grey))
        first = int(index[-1]) + 1
    further = whole(given.get("held_out", max(1, count // 10)), "--held-out", 0, MOST_HELD_OUT, "pictures")
    held_out = made.of_stream(stream, range(first, first + further), grey=grey) if further else None
    sources = made.stacked(parts) if len(parts) > 1 else parts[0]
    return Material(sources=sources, held_out=held_out, name=Path(name).stem)


def of_files(text: str, given: Mapping[str, Any]) -> Material:
    """Pictures of files; the last of those that are drawn are held out."""
    from fractal_streams.kaleidoscope import sources as made

    kind, colon, place = text.partition(":")
    count = given.get("count", 1000)
    further = whole(given.get("held_out", max(1, count // 10)), "--held-out", 0, MOST_HELD_OUT, "pictures")
    settings: Given = {"count": count + further, "seed": given.get("data_seed", 0), "grey": given.get("grey", False)}
    if "classes" in given:
        settings["classes"] = tuple(words(given["classes"]))
    size = parsed_height(given.get("height"))
    if colon and kind in STORED:
        found = made.of_torchvision(kind, place, **{**settings, **(size or {})})
    else:
        found = made.of_pictures(text, **settings, **(size or {"height": 32, "width": 32}))
    if len(found) <= further:
        raise InvalidValueError(f"{text} gives {len(found)} pictures, and --held-out takes {further} of them: lower it")
    name = kind if colon else Path(text.rstrip("/\\")).stem
    kept, others = made.split(found, min(count, len(found) - further)) if further else (found, None)
    return Material(sources=kept, held_out=others, name=name or "pictures")


def parsed_height(text: str | None) -> Given | None:
    """Height and width of EDGE or HEIGHTxWIDTH."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise InvalidValueError(f"--height is EDGE or HEIGHTxWIDTH in pixels, such as 32 or 39x32, got {text!r}")
    return {"height": int(parts[0]), "width": int(parts[-1])}
