"""The commands `kaleidoscope fit`, `report` and `list`: networks, what they are worth, and which are there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fractal_streams.cli import Commands, Device, examples
from fractal_streams.cli_experiment import Command, takes
from fractal_streams.cli_kaleidoscope_options import (
    DATA,
    FITTING,
    NETWORK,
    ORIGINAL,
    TRAINING,
    Given,
    Material,
    material_of,
    plan_of,
    refuse_l,
)
from fractal_streams.cli_scan import check_ending, check_place, need
from fractal_streams.cli_trainability import app as app
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.fitted import ENDING, Kaleidoscope, open_kaleidoscope
from fractal_streams.kaleidoscope.fitted_stream import opened
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.spec import whole

try:
    import rich.box
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise missing_extra(error.name or "typer", "cli") from None

PANEL = "Kaleidoscopes"
group = typer.Typer(cls=Commands, add_completion=False, epilog=examples(
    "kaleidoscope fit kaleidoscope-10",
    "kaleidoscope fit --data 0.2,0.8",
    "kaleidoscope sample kaleidoscope-10 --out samples.png",
))  # fmt: skip
app.add_typer(group, name="kaleidoscope", rich_help_panel=PANEL)

Address = Annotated[
    str, typer.Argument(metavar="FILE|NAME", help=f"A {ENDING} file that fit made, or the name of a recipe.")
]
FINGERPRINT_DIGITS = 8
"""Of a fingerprint, as it is shown."""
KEPT_ROWS = (
    "networks", "error on", "nearest source", "kicked", "spectral radius, quantile 0.5", "spectral radius, quantile 1",
    "distinct", "sources reached", "largest", "ends that are", "chains unresolved", "steps to rest",
)  # fmt: skip
"""How rows of a report begin that its table shows."""


@group.callback(invoke_without_command=True)
def kaleidoscope(context: typer.Context) -> None:
    """Networks fitted to the identity on a set of pictures, applied again and again to noise."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@group.command(cls=Command, epilog=examples(
    "kaleidoscope fit kaleidoscope-10",
    "kaleidoscope fit --data fractal-mnist --count 50 --grey --hidden 200",
    "kaleidoscope fit --data photos --height 32 --count 200 --steps 8000 --out photos.safetensors",
    "kaleidoscope fit --data mnist:data --count 60000 --model-type MLP --out mnist.safetensors",
    "kaleidoscope fit --data 0.2:0.2,0.2:0.8,0.8:0.2,0.8:0.8 --models 12 --lr 1e-4 --out square.safetensors",
))  # fmt: skip
@takes(data=DATA, chosen=NETWORK, training=TRAINING, fitting=FITTING, original=ORIGINAL)
def fit(
    data: Given,
    chosen: Given,
    training: Given,
    fitting: Given,
    original: Given,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A recipe, see kaleidoscope list; or --data.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help=f"The file, {ENDING} (of the data's name; a recipe's in the cache folder).")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Of a recipe of MNIST, CIFAR-10 or CelebA: torchvision's folder of it.")
    ] = None,
) -> None:
    """Fit networks to f(x) = x on pictures or points, find where their iterates end, and say what they are worth.

    In brackets: what holds if nothing else is said. A call that was killed goes on when it is given again.
    """
    refuse_l(original)
    if bool(name) == ("data" in data):
        raise InvalidValueError("give the NAME of a recipe (fractal-streams kaleidoscope list) or --data SOURCE, one")
    if out is not None:
        check_ending(out, ENDING)
    need("torch", missing_extra("torch", "kaleidoscope"))
    need("safetensors", missing_extra("safetensors", "kaleidoscope"))
    if name:
        if own := [option for group in (data, chosen, training, original) for option in group]:
            raise InvalidValueError(
                f"--{own[0].replace('_', '-')} would make another kaleidoscope than the recipe {name}: give --data"
            )
        path, seconds = made_recipe(name, out, root, fitting)
    elif root is not None:
        raise InvalidValueError("--root is of a recipe: give --data mnist:PATH, cifar10:PATH or celeba:PATH")
    else:
        path, seconds = made_of_data(data, chosen, training, fitting, original, out)
    fitted = open_kaleidoscope(path)
    show_fitted(fitted, f"in {seconds:.1f} s" if seconds else "all there")
    show_report(fitted)
    typer.echo(f"file       {path} ({size_of(path)}), fingerprint {fitted.fingerprint}")


def made_recipe(name: str, out: Path | None, root: Path | None, fitting: Given) -> tuple[Path, float]:
    """The file of a recipe and the seconds it took, 0 if it is there."""
    from fractal_streams.kaleidoscope.presets import find_recipe, make, model_path

    path, needs = out or model_path(name), find_recipe(name).needs
    if path.is_file() and not fitting.get("again"):
        return path, 0.0
    others = [option for option in fitting if option not in ("device", "again")]
    if others:
        raise InvalidValueError(
            f"--{others[0].replace('_', '-')} is none of the recipe's: it has its own; leave it out, or give --data"
        )
    if needs and root is None:
        raise InvalidValueError(f"the recipe {name} is of {needs}: give --root, torchvision's folder of it")
    check_place(path)
    start = time.perf_counter()
    with warned():
        made = make(name, out, root=root, device=fitting.get("device", "auto"), progress=True)
    return made, time.perf_counter() - start


def made_of_data(
    data: Given, chosen: Given, training: Given, fitting: Given, original: Given, out: Path | None
) -> tuple[Path, float]:
    """The file of own data and the seconds it took, 0 if it is there."""
    from fractal_streams.kaleidoscope.attractors import MOST_CHAINS
    from fractal_streams.kaleidoscope.fitting import fit as fit_networks
    from fractal_streams.kaleidoscope.quality import completed

    models = fitting.get("models", 1)
    material = material_of(data, models)
    network, how = plan_of(material.sources, chosen, training, original)
    restarts = fitting.get("restarts", 8 if network.size == 1 else 1)
    path = out or Path(f"{material.name}{ENDING}")
    if path.is_file() and not fitting.get("again"):
        check_same(path, {**network.to_dict(), **how.to_dict(), "models": models, "restarts": restarts}, material)
        return path, 0.0
    check_place(path)
    chains = whole(fitting.get("chains", 2000), "chains", 1, MOST_CHAINS, "chains of each network")
    device, start = fitting.get("device", "auto"), time.perf_counter()
    if not fitting.get("resume", True):
        checkpoint_of(path).unlink(missing_ok=True)
    with warned():
        fitted = fit_networks(
            network, material.sources, how, models=models, restarts=restarts, device=device, progress=True,
            held_out=None if material.held_out is None else material.held_out.data[0],
            on_identity=fitting.get("on_identity", "refuse"), on_dead=fitting.get("on_dead", "refuse"),
            checkpoint=checkpoint_of(path),
        )  # fmt: skip
        done = completed(fitted, device=device, chains=chains, held_out=material.held_out, progress=True)
    done.save(path)
    checkpoint_of(path).unlink(missing_ok=True)
    return path, time.perf_counter() - start


def checkpoint_of(path: Path) -> Path:
    """Where a fit is kept until its file is whole."""
    return path.with_name(f"{path.stem}.part{ENDING}")


def check_same(path: Path, asked: Mapping[str, Any], material: Material) -> None:
    """Refuse a file that was made of something else."""
    there = open_kaleidoscope(path)
    found = {**there.network.to_dict(), **dict(there.training), "models": there.models}
    differ = [name for name, value in asked.items() if found.get(name, value) != value]
    if not np.array_equal(there.sources.data, material.sources.data):
        differ.insert(0, "data")
    if differ:
        name = differ[0]
        values = "" if name == "data" else f" ({found[name]} there, {asked[name]} here)"
        raise InvalidValueError(
            f"{path} is there, of other settings: {name}{values}; give another --out, or --again to replace it"
        )


@group.command(epilog=examples("kaleidoscope report kaleidoscope-10", "kaleidoscope report photos.safetensors --again"))
def report(
    address: Address,
    again: Annotated[bool, typer.Option("--again", help="Measure anew, not what the file says.")] = False,
    chains: Annotated[int, typer.Option(help="Of each network, where it is measured.")] = 500,
    start: Annotated[str, typer.Option(help="Where they start, as of sample.")] = "uniform",
    seed: Annotated[int, typer.Option(help="Names starts and kicks.")] = 0,
    whole: Annotated[bool, typer.Option("--whole", help="Every figure, as JSON.")] = False,
    device: Device = "auto",
) -> None:
    """What a fitted kaleidoscope is worth: figures beside their controls, and a verdict."""
    import json

    fitted = opened(address)
    if again or fitted.quality is None:
        from fractal_streams.kaleidoscope import quality
        from fractal_streams.kaleidoscope.starts import Start

        found = quality.report(
            fitted, device=device, chains=chains, start=Start(kind=start), seed=seed, progress=True
        )  # fmt: skip
        fitted = fitted.replace(quality=found)
    if whole:
        typer.echo(json.dumps(fitted.quality, indent=1))
        return
    show_fitted(fitted)
    show_report(fitted)


@group.command("list", epilog=examples("kaleidoscope list"))
def list_recipes() -> None:
    """The recipes, and which of them are fitted on this machine."""
    from fractal_streams.kaleidoscope.presets import RECIPES, model_path

    console = Console(highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for head in ("Recipe", "", "Layers", "File"):
        table.add_column(head, style="bold" if head == "Recipe" else "", no_wrap=bool(head))
    for name, recipe in RECIPES.items():
        path = model_path(name)
        title = f"{recipe.title} (--root)" if recipe.needs else recipe.title
        state = size_of(path) if path.is_file() else "-"
        layers = f"{recipe.network.n_linear} of {recipe.network.hidden}"
        table.add_row(name, title, layers, state)
    console.print(table)
    typer.echo(f"files      {model_path(next(iter(RECIPES))).parent}\n"
               f"missing    fractal-streams kaleidoscope fit NAME makes one")  # fmt: skip


def described(network: Network, models: int) -> str:
    """A bank in a few words.

    Example:
        >>> described(Network(shape=(1, 28, 28), hidden=500, n_linear=11), 1)
        'mlp 1 x 28 x 28, 11 linear layers of 500'
    """
    depth = f"{network.n_linear} linear layers" if network.kind == "mlp" else f"{network.n_linear} levels"
    one = f"{network.kind} {' x '.join(map(str, network.shape))}, {depth} of {network.hidden}"
    return one if models == 1 else f"{models} of {one}"


def show_fitted(fitted: Kaleidoscope, more: str = "") -> None:
    """A few lines on what a file holds."""
    training = fitted.training
    how = [f"{training['steps']:,} steps"] if "steps" in training else []
    how += [f"noise {training['noise']:g}"] if "noise" in training else []
    how += [more] if more else []
    typer.echo(": ".join([described(fitted.network, fitted.models), *([", ".join(how)] if how else [])]))
    titles = len(fitted.sources.titles)
    own = " each" if len(fitted.sources.data) > 1 else ""
    typer.echo(f"sources    {len(fitted.sources):,}{own}, {titles} class{'es' * (titles > 1)}")
    if losses := training.get("loss"):
        errors = np.sqrt(np.asarray(losses, np.float64))
        worst = f", at most {errors.max():.3g}" if len(errors) > 1 else ""
        typer.echo(f"error      {errors.mean():.3g} of the range{worst}, RMSE on the sources")
    if fitted.attractors is not None:
        typer.echo(f"attractors {len(fitted.attractors):,}")


def show_report(fitted: Kaleidoscope) -> None:
    """The quality report as a table, with its verdict below."""
    from fractal_streams.kaleidoscope.quality import quality_rows

    if fitted.quality is None:
        typer.echo("no report  fractal-streams kaleidoscope report FILE --again makes one")
        return
    rows = quality_rows(fitted.quality)
    console = Console(highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("")
    for name, value in rows:
        if name.startswith(KEPT_ROWS) and value != "none":
            table.add_row(name, value)
    console.print(table)
    said = dict(rows)
    console.print(f"[bold]flags[/bold]      {said.get('flags', 'none')}")
    console.print(said.get("verdict", ""))


def size_of(path: Path) -> str:
    """A file's size in words.

    Example:
        >>> size_of(Path(__file__)).endswith("kB")
        True
    """
    count = path.stat().st_size
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


@contextmanager
def warned() -> Iterator[None]:
    """Show a warning of this package as one line."""
    usual = warnings.showwarning

    def tell(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        yield
