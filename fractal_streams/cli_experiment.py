"""Options that the commands of trainability share: what is trained, where in its plane, and how."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fractal_streams.cli import parsed_settings, words
from fractal_streams.errors import InvalidValueError, missing_extra, unknown_name
from fractal_streams.trainability.experiment import AXES, NONLINEARITIES, OPTIMISERS, Experiment
from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.refine import Refinement
from fractal_streams.trainability.window import Window

try:
    import typer
    from typer.core import TyperCommand
except ImportError:
    raise missing_extra("typer", "cli") from None

TRAINED, PLANE, TRAINER = "What is trained", "Where in its plane", "How"

EXPERIMENT: dict[str, Any] = {
    "nonlinearity": Annotated[
        str | None, typer.Option(help=f"{', '.join(NONLINEARITIES)} (tanh).", rich_help_panel=TRAINED)
    ],
    "width": Annotated[
        int | None, typer.Option(help="Units of a layer: 8, 16, 32 or 64 (16).", rich_help_panel=TRAINED)
    ],
    "depth": Annotated[int | None, typer.Option(help="Layers of weights, 2 or 3 (2).", rich_help_panel=TRAINED)],
    "dataset_mode": Annotated[
        str | None,
        typer.Option(
            help="Rows of data: matching (as many as parameters), width, or single_example (matching).",
            rich_help_panel=TRAINED,
        ),
    ],
    "dataset_ratio": Annotated[float | None, typer.Option(help="Times so many rows (1).", rich_help_panel=TRAINED)],
    "batch_size": Annotated[
        int | None, typer.Option(help="Rows of each step's minibatch; 0 is all (0).", rich_help_panel=TRAINED)
    ],
    "replacement": Annotated[
        bool | None,
        typer.Option("--replacement/--no-replacement", help="How they are drawn (with).", rich_help_panel=TRAINED),
    ],
    "optimiser": Annotated[
        str | None, typer.Option(help=f"{', '.join(OPTIMISERS)} ({OPTIMISERS[0]}).", rich_help_panel=TRAINED)
    ],
    "steps": Annotated[
        int | None, typer.Option("--steps", "--num-steps", help="Of each run (500).", rich_help_panel=TRAINED)
    ],
    "axes": Annotated[
        str | None, typer.Option(help=f"Horizontal,vertical: of {', '.join(AXES)} (lr0,lr1).", rich_help_panel=TRAINED)
    ],
    "settings": Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A hyperparameter that no axis sets; often.", rich_help_panel=TRAINED
        ),
    ],
    "offset_mode": Annotated[
        str | None, typer.Option(help="An offset is added at init or every_step (init).", rich_help_panel=TRAINED)
    ],
    "alpha0": Annotated[
        float | None, typer.Option(help="Factor of hidden layers (the paper's).", rich_help_panel=TRAINED)
    ],
    "alpha1": Annotated[float | None, typer.Option(help="Factor of the output (1/width).", rich_help_panel=TRAINED)],
    "weight_seed": Annotated[int | None, typer.Option(help="Names the initial weights (0).", rich_help_panel=TRAINED)],
    "data_seed": Annotated[int | None, typer.Option(help="Names the data (0).", rich_help_panel=TRAINED)],
    "order_seed": Annotated[int | None, typer.Option(help="Names the minibatches (0).", rich_help_panel=TRAINED)],
    "inputs": Annotated[
        str | None,
        typer.Option(help="native, or published: the arrays of the paper (native).", rich_help_panel=TRAINED),
    ],
}
"""Fields of an experiment."""
WINDOW: dict[str, Any] = {
    "x": Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="Values of the horizontal axis.", rich_help_panel=PLANE)
    ],
    "y": Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="Values of the vertical axis.", rich_help_panel=PLANE)
    ],
    "x_exponents": Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="The same as powers of ten.", rich_help_panel=PLANE)
    ],
    "y_exponents": Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="The same as powers of ten.", rich_help_panel=PLANE)
    ],
    "overview": Annotated[
        bool | None,
        typer.Option(
            "--overview", help="Nine decades of each axis, in place of a preset's own window.", rich_help_panel=PLANE
        ),
    ],
}
"""Where a window ends."""
TRAINING: dict[str, Any] = {
    "device": Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N (auto).", rich_help_panel=TRAINER)],
    "precision": Annotated[
        str | None,
        typer.Option(
            help="float64, float32; on a GPU also the previews tf32x3, tf32 (float64).", rich_help_panel=TRAINER
        ),
    ],
    "mode": Annotated[
        str | None,
        typer.Option(help="exact; or reduced, fast, of single examples (exact).", rich_help_panel=TRAINER),
    ],
    "tile": Annotated[
        int | None, typer.Option(help="Edge of the pieces that are kept; 64, on a GPU 256.", rich_help_panel=TRAINER)
    ],
    "refine": Annotated[
        bool | None,
        typer.Option(
            "--refine", help="Leave out what lies far from the boundary; says how often wrong.", rich_help_panel=TRAINER
        ),
    ],
    "on_limit": Annotated[
        str | None,
        typer.Option(
            help="Of a window too narrow for the precision: refuse, warn, allow; of a zoom also stop (warn).",
            rich_help_panel=TRAINER,
        ),
    ],
}
"""How it is trained."""

Source = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help=f"{', '.join(PUBLISHED)}: those of the paper; or the .json of one, of a scan or a zoom.",
        show_default=False,
    ),
]
Resolution = Annotated[
    str, typer.Option("--resolution", "--image-size", metavar="N", help="Points of each axis, or HEIGHTxWIDTH (512).")
]


class Command(TyperCommand):
    """A command whose options may be written with underscores, and whose --activations takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, rewritten(args))


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Options with hyphens, and each of several values after --activations behind an option of its own.

    Example:
        >>> rewritten(["--activations", "tanh", "relu", "--num_steps", "500"])
        ['--activations', 'tanh', '--activations', 'relu', '--num-steps', '500']
    """
    made: list[str] = []
    values = None  # of --activations, while they follow
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            made.append(f"{name.replace('_', '-')}{equals}{value}")
            values = 0 if made[-1] == "--activations" else None
        else:
            made += ["--activations"] * (values not in (None, 0)) + [argument]
            values = None if values is None or argument.startswith("-") else values + 1
    return made


def takes(**groups: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of groups; those that stand on the command line reach it as one dict for each."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def called(**given: Any) -> None:
            told = {
                group: {name: given[name] for name in options if given[name] not in (None, [])}
                for group, options in groups.items()
            }
            grouped = {name for options in groups.values() for name in options}
            command(**{name: value for name, value in given.items() if name not in grouped}, **told)

        own = inspect.signature(command, eval_str=True)
        parameters = [each for each in own.parameters.values() if each.name not in groups]
        for options in groups.values():
            parameters += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
                for name, kind in options.items()
            ]
        called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line names.

    experiment: with the options' changes. window: its own, None if it has none. name: of files. title: of pictures.
    """

    experiment: Experiment
    window: Window | None
    name: str
    title: str


def asked_for(source: str, given: Mapping[str, Any]) -> Asked:
    """The experiment of a preset's name or a file, of neither the defaults, with the options that were given."""
    base, window, name, title = Experiment(), None, "", ""
    if source in PUBLISHED:
        published = PUBLISHED[source]
        base, window, name, title = published.experiment, published.window, source, published.title
    elif source.endswith(".json"):
        base, window = of_file(Path(source))
        name = Path(source).stem
    elif source:
        raise unknown_name("experiment", source, PUBLISHED, "; or give the .json file of an experiment, or options")
    experiment = changed(base, given)
    return Asked(
        experiment=experiment, window=window if experiment.axes == base.axes else None,
        name=name or experiment.nonlinearity, title=title if title and not given else described(experiment),
    )  # fmt: skip


def of_file(path: Path) -> tuple[Experiment, Window | None]:
    """The experiment of a file, and the window if the file tells of one."""
    try:
        text = path.read_text()
        facts = json.loads(text)
    except UnicodeDecodeError:
        raise InvalidValueError(f"{path} is no text: give the .json file of an experiment") from None
    except ValueError as error:
        raise InvalidValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(facts, dict) or "experiment" not in facts:
        return Experiment.from_json(text), None
    listed = facts.get("windows")
    window = facts.get("window") or (listed[-1] if isinstance(listed, list) and listed else None)
    experiment = Experiment.from_json(json.dumps(facts["experiment"]))
    return experiment, None if window is None else Window.from_dict(window)


def changed(base: Experiment, given: Mapping[str, Any]) -> Experiment:
    """An experiment with the options of `EXPERIMENT` that were given.

    Example:
        >>> changed(Experiment(), {"axes": "lr,momentum", "optimiser": "momentum", "batch_size": 0}).axes
        ('lr', 'momentum')
    """
    changes = dict(given)
    settings = parsed_settings(changes.pop("settings", None))
    if "axes" in changes:
        changes["axes"] = tuple(words(changes["axes"]))
    if changes.get("batch_size") == 0:
        changes["batch_size"] = None
    if settings or "axes" in changes:
        axes = changes.get("axes", base.axes)
        kept = {name: value for name, value in base.hyperparameters.items() if name not in axes}
        changes["hyperparameters"] = {**kept, **settings}
    return base.replace(**changes)


def described(experiment: Experiment) -> str:
    """An experiment in a line.

    Example:
        >>> described(Experiment(nonlinearity="relu", batch_size=16))
        'relu, width 16, 272 rows in minibatches of 16, 500 steps'
    """
    batches = "" if experiment.full_batch else f" in minibatches of {experiment.batch_size}"
    parts = [experiment.nonlinearity, f"width {experiment.width}"]
    parts += [f"depth {experiment.depth}"] if experiment.depth > 2 else []
    parts += [f"{experiment.rows} rows{batches}" if experiment.rows > 1 else "one example"]
    parts += [experiment.optimiser] if experiment.optimiser != "gradient_descent" else []
    return ", ".join((*parts, f"{experiment.steps} steps"))


def window_of(asked: Asked, given: Mapping[str, Any]) -> Window:
    """The window of the options of `WINDOW`; sides that are not given are the experiment's own, else the overview's."""
    overview = Window.of_experiment(asked.experiment)
    base = overview if given.get("overview") or asked.window is None else asked.window
    sides = []
    for axis, name in enumerate("xy"):
        values, powers = given.get(name), given.get(f"{name}_exponents")
        if values and powers:
            raise InvalidValueError(f"--{name} and --{name}-exponents are the same side of the window: give one")
        if powers and base.linear[axis]:
            raise InvalidValueError(
                f"--{name}-exponents: the axis {asked.experiment.axes[axis]} has its own units: give --{name} LOW:HIGH"
            )
        if not values and not powers:
            sides.append((base.centre[axis], base.size[axis], base.offset[axis]))
            continue
        ends = {"x": (1.0, 2.0), "y": (1.0, 2.0)} | {name: parsed_ends(values or powers or "", name)}
        made = Window.of_exponents(**ends) if powers else Window.of_values(**ends, linear=base.linear)
        sides.append((made.centre[axis], made.size[axis], 0.0))
    (x, width, right), (y, height, up) = sides
    return Window(centre=(x, y), size=(width, height), offset=(right, up), linear=base.linear)


def parsed_ends(text: str, name: str) -> tuple[float, float]:
    """The two numbers of LOW:HIGH."""
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low), float(high)
    except ValueError:
        pass
    raise InvalidValueError(f"--{name} is LOW:HIGH, two numbers such as 1e-3:1e6, got {text!r}")


def parsed_extent(text: str, otherwise: int, option: str) -> int | tuple[int, int]:
    """N or (height, width) of N or HEIGHTxWIDTH.

    Example:
        >>> parsed_extent("48x64", 512, "--resolution"), parsed_extent("", 512, "--resolution")
        ((48, 64), 512)
    """
    parts = text.lower().split("x") if text else [str(otherwise)]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InvalidValueError(f"{option} is N or HEIGHTxWIDTH, such as 512 or 480x640, got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def training_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `scan` and `zoom` of the options of `TRAINING`."""
    return {**given, "refine": Refinement()} if given.get("refine") else dict(given)
