"""The command `scan`: a network trained at every point of a window, with its picture."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fractal_streams.cli import examples
from fractal_streams.cli_data import app as app
from fractal_streams.cli_experiment import (
    EXPERIMENT,
    TRAINING,
    WINDOW,
    Asked,
    Command,
    Resolution,
    Source,
    asked_for,
    described,
    parsed_extent,
    takes,
    training_of,
    window_of,
)
from fractal_streams.cli_status import ACTIVATIONS, BATCH_SIZE, batches_of, save_status
from fractal_streams.errors import InvalidValueError, MissingExtraError, missing_extra, unknown_name
from fractal_streams.shard import Shard
from fractal_streams.trainability.window import PrecisionWarning, Window

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

PANEL, LIKE_FRACTAL_ML = "Trainability", "As fractalML's scripts"
Given = dict[str, Any]


@app.command(cls=Command, rich_help_panel=PANEL, epilog=examples(
    "scan single",
    "scan tanh --overview --resolution 256 --refine",
    "scan --optimiser adam --axes lr,beta2 --x 1e-3:1e3 --steps 200 --set weight_decay=0.01 --out adam.png",
    "scan --activations tanh relu linear --width 16 --num_steps 500 --batch_size 16 --dataset_mode matching",
))  # fmt: skip
@takes(chosen=EXPERIMENT, area=WINDOW, training=TRAINING)
def scan(
    chosen: Given,
    area: Given,
    training: Given,
    source: Source = "",
    resolution: Resolution = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where the arrays go; the same call goes on (NAME-scan).", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The picture, .png (FOLDER.png).", show_default=False)] = None,
    plain: Annotated[bool, typer.Option("--plain", help="A pixel for each point, without axes.")] = False,
    inset: Annotated[
        Path | None, typer.Option(help="Folder of a scan of a wider window, drawn small beside it.", show_default=False)
    ] = None,
    activations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...", rich_help_panel=LIKE_FRACTAL_ML, show_default=False,
            help=f"A scan of each: {', '.join(ACTIVATIONS)}. If not said otherwise, 1024 points an axis and "
            f"minibatches of {BATCH_SIZE} without replacement. As grid_status_NAME_nWIDTH.npy, .png and .json.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Where those go (outputs/images).", rich_help_panel=LIKE_FRACTAL_ML, show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Train a network at every point of a window of two hyperparameters; draw where training converges.

    In brackets: what holds if EXPERIMENT says nothing else. Options may be written with underscores.
    """
    if output_dir is not None and not activations:
        raise InvalidValueError("--output-dir goes with --activations: use --folder and --out")
    if activations:
        own = {"EXPERIMENT": source, "--nonlinearity": chosen.get("nonlinearity"), "--folder": folder, "--out": out}
        if both := [name for name, value in own.items() if value]:
            raise InvalidValueError(f"--activations and {both[0]} exclude each other: give one")
    need_pictures(plain)
    if activations:
        extent = parsed_extent(resolution, 1024, "--resolution")
        scan_each(activations, chosen, area, training_of(training), extent, output_dir or Path("outputs/images"), plain)
        return
    asked = asked_for(source, chosen)
    folder = folder or (
        out.with_suffix("") if out else Path(f"{asked.name}-{'overview' if area.keys() == {'overview'} else 'scan'}")
    )
    files = folder, check_ending(out or beside(folder, ".png"), ".png")
    extent = parsed_extent(resolution, 512, "--resolution")
    scanned(asked, window_of(asked, area), extent, training_of(training), files, plain, inset)


def scanned(
    asked: Asked,
    window: Window,
    extent: int | tuple[int, int],
    training: Given,
    files: tuple[Path, Path],
    plain: bool,
    inset: Path | None = None,
) -> Any:
    """A scan into a folder, with its picture and a few lines on both; the scan."""
    from fractal_streams.trainability.picture import checked_place, save_picture, save_plain
    from fractal_streams.trainability.scan import open_scan, scan as train

    folder, picture = files
    wider = open_scan(inset) if inset else None
    if wider is not None:
        checked_place(window, wider.window)
    before, start = set(parts_of(folder)), time.perf_counter()
    with warned():
        made = train(asked.experiment, window, resolution=extent, folder=folder, progress=True, **training)
    seconds = time.perf_counter() - start
    if Shard.detect().rank:
        return made
    if plain:
        save_plain(made.measure, picture)
    else:
        save_picture(made, picture, title=asked.title, overview=wider, mark=mark_of(asked.window, window))
    networks = networks_in(set(parts_of(folder)) - before)
    done = f"{networks:,} networks in {seconds:.1f} s, {networks / seconds:,.0f} a second" if networks else "all there"
    height, width = made.shape
    typer.echo(f"{asked.title}: {height} x {width} points, {made.precision}; {done}")
    typer.echo(f"converged  {made.converged.mean():.2%}")
    if made.refined is not None:
        low, high = made.refined.interval
        typer.echo(
            f"trained    {made.refined.share:.2%} of the points; of the labels of the others {made.refined.error:.2%} "
            f"are wrong (95 %: {low:.2%} to {high:.2%})"
        )
    typer.echo(f"picture    {picture}\narrays     {folder}")
    return made


def scan_each(
    activations: list[str],
    chosen: Given,
    area: Given,
    training: Given,
    extent: int | tuple[int, int],
    place: Path,
    plain: bool,
) -> None:
    """A scan of each activation, by fractalML's names of files."""
    plans = []
    for name in dict.fromkeys(activations):
        if name not in ACTIVATIONS:
            raise unknown_name("activation", name, ACTIVATIONS)
        others = {key: value for key, value in chosen.items() if key not in ("batch_size", "replacement")}
        asked = asked_for("", {**others, "nonlinearity": ACTIVATIONS[name]})
        experiment = batches_of(asked.experiment, chosen.get("batch_size"), chosen.get("replacement"))
        path = place / f"grid_status_{name}_n{experiment.width}.npy"
        asked = Asked(experiment=experiment, window=None, name=name, title=described(experiment))
        plans.append((asked, window_of(asked, area), path))
    for asked, window, path in plans:
        files = path.with_suffix(""), path.with_suffix(".png")
        made = scanned(asked, window, extent, training, files, plain)
        if not Shard.detect().rank:
            save_status(made, path, files[0])
            typer.echo(f"labels     {path}")


def mark_of(final: Window | None, window: Window) -> Window | None:
    """An experiment's own window, where it lies in a wider one."""
    from fractal_streams.trainability.nested import place_of

    if final is None or final.linear != window.linear or not max(final.size) < max(window.size):
        return None
    place = place_of(final, window)
    return final if 0.0 <= place.x <= 1.0 and 0.0 <= place.y <= 1.0 else None


def parts_of(folder: Path) -> list[Path]:
    """Files of a scan in which finished networks are."""
    return [file for part in ("tiles", "points") for file in (folder / part).glob("*.npz")]


def networks_in(files: set[Path]) -> int:
    """Networks that files hold."""
    count = 0
    for file in files:
        with np.load(file) as arrays:
            count += arrays["diverged_at"].size
    return count


@contextmanager
def warned() -> Iterator[None]:
    """Show a warning of windows that are too narrow as one line."""
    usual = warnings.showwarning

    def tell(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, PrecisionWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PrecisionWarning)
        warnings.showwarning = tell
        yield


def beside(folder: Path, ending: str) -> Path:
    """The file beside a folder that has its name and an ending more."""
    named = folder if folder.name else folder.absolute()
    return named.with_name(f"{named.name}{ending}")


def check_ending(path: Path, *endings: str) -> Path:
    """The path, or an error before anything is trained if its ending is another."""
    if path.suffix.lower() not in endings:
        raise InvalidValueError(f"{str(path)!r}: its ending must be {' or '.join(endings)}")
    return path


def check_place(path: Path) -> Path:
    """The path, or an error before anything is run if no file can be written there; folders above may be missing."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InvalidValueError(f"{str(path)!r} can't be written, for {above} is a file: give a folder")
    try:
        with tempfile.TemporaryFile(dir=above):
            return path
    except OSError as error:
        raise InvalidValueError(
            f"{str(path)!r} can't be written ({error.strerror} in {above}): give another place"
        ) from None


def need_pictures(plain: bool) -> None:
    """Refuse pictures that can't be drawn, before anything is trained."""
    need("PIL", missing_extra("pillow", "cli"))
    if not plain:
        try:
            need("matplotlib", missing_extra("matplotlib", "recipes"))
        except MissingExtraError as error:
            raise MissingExtraError(f"{error}; or give --plain") from None


def need(package: str, missing: MissingExtraError) -> None:
    """The error, if a package is not installed."""
    if find_spec(package) is None:
        raise missing
