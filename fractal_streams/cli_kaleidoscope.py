"""The command `kaleidoscope analyse`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fractal_streams.cli import Device, app as app, examples, parsed_numbers, words
from fractal_streams.cli_experiment import Command
from fractal_streams.cli_kaleidoscope_basins import group as group
from fractal_streams.cli_kaleidoscope_fit import FINGERPRINT_DIGITS, Address, show_report
from fractal_streams.cli_kaleidoscope_sample import Seed
from fractal_streams.cli_scan import check_place, need
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.fitted_stream import opened
from fractal_streams.spec import whole

try:
    import rich.box
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise missing_extra(error.name or "typer", "cli") from None

STUDIES = "Studies: more networks are fitted"
STUDY_COLUMNS = {
    "frac_10": "at a source\nbehind 10", "frac_100": "\nbehind 100", "returned": "sources\nthat attract",
    "reached_sources": "sources\nreached",
}  # fmt: skip


@group.command(cls=Command, epilog=examples(
    "kaleidoscope analyse points.safetensors --out points",
    "kaleidoscope analyse kaleidoscope-10 --out kaleidoscope-10",
    "kaleidoscope analyse points.safetensors --loss-range --dimensions 2,4 --seeds 4 --out points",
    "kaleidoscope analyse photos.safetensors --depth --depths 3,5,7,10 --seeds 3 --out depth",
))  # fmt: skip
def analyse(
    address: Address,
    out: Annotated[Path, typer.Option(help="Folder that pictures and figures go to.")],
    starts: Annotated[int, typer.Option(help="Chains that are drawn.")] = 10,
    steps: Annotated[int | None, typer.Option(help="Of them (20 of one value, 15 of two, 30 of pictures).")] = None,
    model: Annotated[int, typer.Option(help="Network of the bank that single pictures are of.")] = 0,
    films: Annotated[bool, typer.Option("--films/--no-films", help="Write a GIF too.")] = True,
    seed: Seed = 0,
    device: Device = "auto",
    loss_range: Annotated[
        bool, typer.Option("--loss-range", rich_help_panel=STUDIES, help="Loss over the cube against number of points.")
    ] = False,
    points: Annotated[
        str, typer.Option(metavar="N,N,...", rich_help_panel=STUDIES, help="Numbers of points of --loss-range.")
    ] = "1,2,4,8,16,32,64,128,256,512,1024,2048",
    dimensions: Annotated[
        str, typer.Option(metavar="D,D,...", rich_help_panel=STUDIES, help="Values of a point of --loss-range.")
    ] = "1,2,4,8",
    depth: Annotated[
        bool, typer.Option("--depth", rich_help_panel=STUDIES, help="The same sources at several depths and noises.")
    ] = False,
    depths: Annotated[
        str, typer.Option(metavar="N,N,...", rich_help_panel=STUDIES, help="Linear layers of --depth.")
    ] = "3,5,7,10",
    noises: Annotated[
        str, typer.Option(metavar="SD,SD,...", rich_help_panel=STUDIES, help="Training noise of --depth.")
    ] = "0,0.3",
    seeds: Annotated[int, typer.Option(rich_help_panel=STUDIES, help="Networks of each kind.")] = 3,
    training_steps: Annotated[
        int | None, typer.Option(rich_help_panel=STUDIES, help="Of each fit (10000 of --loss-range; else the file's).")
    ] = None,
) -> None:  # fmt: skip
    """Draw what a fitted kaleidoscope does, and write its figures; with studies of points and depth."""
    need("matplotlib", missing_extra("matplotlib", "recipes"))
    need("PIL", missing_extra("pillow", "cli"))
    counts, sizes = parsed_numbers(points, "--points"), parsed_numbers(dimensions, "--dimensions")
    layers, sigmas = parsed_numbers(depths, "--depths"), parsed_sizes(noises)
    check_place(out / "figures.csv")
    fitted = opened(address)
    whole(model, "model", 0, fitted.models - 1, "of the bank")
    out.mkdir(parents=True, exist_ok=True)
    common = {"device": device, "seed": seed}
    title = f"{Path(address).stem}, {fitted.fingerprint[:FINGERPRINT_DIGITS]}"
    files = draw(fitted, out, title, starts, steps, model, films, common)
    if fitted.quality is not None:
        from fractal_streams.kaleidoscope.plots import save_text

        files.append(save_text(out / "quality.json", json.dumps(fitted.quality, indent=1) + "\n"))
        show_report(fitted)
    if loss_range:
        files += study_range(fitted, out, counts, sizes, seeds, training_steps or 10_000, common)
    if depth:
        files += study_depth(fitted, out, layers, sigmas, seeds, training_steps, device)
    for path in files:
        typer.echo(f"{'figures' if path.suffix in ('.json', '.csv') else 'picture':<10} {path}")


def draw(
    fitted: Kaleidoscope, out: Path, title: str, starts: int, steps: int | None, model: int, films: bool,
    common: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """The pictures of a network of one value, of two, or of pictures; their files."""
    if fitted.network.is_picture:
        return draw_pictures(fitted, out, title, starts, 30 if steps is None else steps, films, common)
    if fitted.network.size == 1:
        return draw_profile(fitted, out, title, starts, 20 if steps is None else steps, model, films, common)
    if fitted.network.size == 2:
        return draw_plane(fitted, out, title, starts, 15 if steps is None else steps, model, films, common)
    typer.echo(f"points of {fitted.network.size} values are not drawn, only of one or two")
    return []


def draw_profile(
    fitted: Kaleidoscope, out: Path, title: str, starts: int, steps: int, model: int, films: bool,
    common: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """Loss and output over the range, chains upon it, and the fixed points in a line."""
    from fractal_streams.kaleidoscope.animation import save_profile_animation
    from fractal_streams.kaleidoscope.profiles import profile, save_profiles, trajectories

    found = profile(fitted, device=common["device"])
    travelled = trajectories(fitted, starts=starts, steps=steps, models=[model], **common)
    alone = profile(fitted, models=[model], device=common["device"])
    files = [save_profiles(out / "profile.png", alone, travelled, title=title)]
    if fitted.models > 1:
        files.append(save_profiles(out / "profiles.png", found, title=f"{title}, {fitted.models} networks"))
    if films:
        files.append(save_profile_animation(out / "profile.gif", fitted, frames=steps + 1, starts=starts, model=model,
                                            **common))  # fmt: skip
    own = alone.fixed_points[0]
    told = [
        f"{place:.3f} ({'stable' if slope < 1 else 'unstable'}, slope {slope:.2f})"
        for place, slope in zip(own.places[:, 0], own.radius, strict=True)
    ]
    typer.echo(f"f(x) = x   at {', '.join(told) or 'no place'}")
    if fitted.models > 1:
        stable = [int(each.stable.sum()) for each in found.fixed_points]
        counts = ", ".join(f"{count} in {stable.count(count)}" for count in sorted(set(stable)))
        typer.echo(f"stable     {counts} of {fitted.models} networks")
    return files


def draw_plane(
    fitted: Kaleidoscope, out: Path, title: str, starts: int, steps: int, model: int, films: bool,
    common: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """The loss as a surface, and the plane by where its points end."""
    from fractal_streams.kaleidoscope.animation import save_surface_animation
    from fractal_streams.kaleidoscope.profiles import trajectories
    from fractal_streams.kaleidoscope.surface import basins as basins_of, loss_surface, save_basins, save_surface

    device = common["device"]
    travelled = trajectories(fitted, starts=starts, steps=steps, models=[model], **common)
    surface = loss_surface(fitted, models=[model], device=device)
    map_of = basins_of(fitted, model=model, device=device)
    files = [
        save_surface(out / "surface.png", surface, travelled, title=title),
        save_basins(out / "basins.png", map_of, title=title),
    ]
    if films:
        files.append(save_surface_animation(out / "surface.gif", fitted, frames=steps + 1, starts=starts, model=model,
                                            **common))  # fmt: skip
    held = [(map_of.attractor == row).mean() for row in range(len(map_of.states))]
    for share, state in sorted(zip(held, map_of.states.tolist(), strict=True), reverse=True):
        typer.echo(f"attractor  ({state[0]:.3f}, {state[1]:.3f}) of {share:.1%} of the plane")
    return files


def draw_pictures(
    fitted: Kaleidoscope, out: Path, title: str, starts: int, steps: int, films: bool, common: dict[str, Any]
) -> list[Path]:
    """Chains side by side and as a film, and the page of the quality report."""
    from fractal_streams.kaleidoscope.chains_picture import save_chains, save_strip
    from fractal_streams.kaleidoscope.quality_page import save_quality

    shown = sorted({step for step in (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if step < steps} | {steps})
    files = [
        save_strip(out / "chains.png", fitted, iterates=shown, chains=starts, **common),
        save_quality(out / "quality.png", fitted, steps=max(steps, 1), title=title, **common),
    ]
    if films:
        files.append(save_chains(out / "chains.gif", fitted, steps=steps, **common))
    return files


def study_range(
    fitted: Kaleidoscope, out: Path, counts: Sequence[int], sizes: Sequence[int], seeds: int, steps: int,
    common: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """The largest loss at the corners of the cube, for numbers of points and of values."""
    from fractal_streams.kaleidoscope.loss_range import loss_range_study

    network = fitted.network
    found = loss_range_study(
        points=counts, dimensions=sizes, seeds=seeds, hidden=network.hidden, n_linear=network.n_linear, steps=steps,
        progress=True, **common,
    )  # fmt: skip
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title="largest loss at a corner", title_justify="left")
    for head in ("points", *(f"d = {size}" for size in sizes)):
        table.add_column(head, justify="right")
    for count in counts:
        cells = [found.values("corner_loss", points=count, dimension=size) for size in sizes]
        table.add_row(f"{count:,}", *(f"{cell.mean():.3f} ± {cell.std():.3f}" for cell in cells))
    Console(highlight=False).print(table)
    return [found.save_plot(out / "loss-range.png"), found.save_csv(out / "loss-range.csv")]


def study_depth(
    fitted: Kaleidoscope, out: Path, depths: Sequence[int], noises: Sequence[float], seeds: int, steps: int | None,
    device: str,
) -> list[Path]:  # fmt: skip
    """Networks of several depths, plain and denoising, on the sources of a file."""
    from fractal_streams.kaleidoscope.depth import depth_study
    from fractal_streams.kaleidoscope.training import Training

    if fitted.network.kind != "mlp":
        raise InvalidValueError(f"--depth is of kind='mlp', this is a {fitted.network.kind}: fit it at several depths")
    known = {name: value for name, value in fitted.training.items() if name in Training.__dataclass_fields__}
    training = Training.from_dict(known)
    found = depth_study(
        fitted.sources, depths=depths, seeds=seeds, noises=noises, hidden=fitted.network.hidden, network=fitted.network,
        training=training if steps is None else training.replace(steps=steps), device=device, progress=True,
    )  # fmt: skip
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for head in ("noise", "linear\nlayers", *STUDY_COLUMNS.values()):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.summary():
        cells = [f"{row[name]:.3g} ± {row[f'{name}_sd']:.2g}" for name in STUDY_COLUMNS]
        table.add_row(f"{row['noise']:g}", str(row["depth"]), *cells)
    Console(highlight=False).print(table)
    return [found.save_plot(out / "depth.png"), found.save_csv(out / "depth.csv")]


def parsed_sizes(text: str) -> list[float]:
    """The numbers of a list with commas."""
    try:
        return [float(part) for part in words(text)]
    except ValueError:
        raise InvalidValueError(f"--noises is a list of numbers such as 0,0.3, got {text!r}") from None
