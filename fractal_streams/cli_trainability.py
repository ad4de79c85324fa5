"""The commands `dimension` and `video`, of what `zoom` made; with them all commands are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fractal_streams.cli import examples
from fractal_streams.cli_experiment import Command, of_file, parsed_extent
from fractal_streams.cli_scan import PANEL, beside, check_ending, need
from fractal_streams.cli_zoom import app as app, check_film, show_film
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.trainability.presets import PUBLISHED

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

NAMES = {
    "published": "published estimator ", "least squares": "least squares       ", "uncertainty": "uncertainty exponent",
}  # fmt: skip
Folder = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="Of a zoom, as the command zoom makes it.", show_default=False)
]


@app.command(cls=Command, rich_help_panel=PANEL, epilog=examples(
    "dimension single-zoom --plot dimension.png",
    "dimension --images_dir outputs/zooms/tanh_n16 --output_csv outputs/fractal_metrics/tanh_n16_fractal_dims.csv",
))  # fmt: skip
def dimension(
    folder: Folder = None,
    images_dir: Annotated[Path | None, typer.Option(help="The same, as fractalML's script has it.")] = None,
    output_csv: Annotated[Path | None, typer.Option(help="File for level,estimated_dimension.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a chart, .png.")] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also by the share of labels that flip at a distance.")
    ] = False,
) -> None:
    """The fractal dimension of a zoom's boundary, from its arrays, or from its plain pictures if they are alone."""
    from fractal_streams.trainability.dimension import dimensions, save_csv, save_plot
    from fractal_streams.trainability.uncertainty import uncertainty_exponent

    place = one_folder(folder, images_dir)
    if plot is not None:
        check_ending(plot, ".png")
        need("matplotlib", missing_extra("matplotlib", "recipes"))
    found = list(dimensions(frames_in_folder(place)))
    if uncertainty:
        found.append(uncertainty_exponent(frames_in_folder(place)))
    count = len(found[0].frames)
    typer.echo(f"{place}: {count} level{'s' * (count > 1)}, {found[0].used} with a boundary")
    paper = paper_value(place)
    for each in found:
        beside = f"; the paper's zoom {paper:.2f}" if paper and each.method == "published" else ""
        typer.echo(f"{NAMES[each.method]}  {each.value:.3f} (95 %: {each.low:.3f} to {each.high:.3f}){beside}")
    if output_csv is not None:
        save_csv(output_csv, found[0])
        typer.echo(f"levels     {output_csv}")
    if plot is not None:
        save_plot(plot, found[:2], published=paper, title=str(place))
        typer.echo(f"chart      {plot}")


@app.command(cls=Command, rich_help_panel=PANEL, epilog=examples(
    "video single-zoom", "video --images_dir outputs/zooms/tanh_n16 --out outputs/zooms/tanh_n16_zoom.mp4 --fps 10",
))  # fmt: skip
def video(
    folder: Folder = None,
    images_dir: Annotated[
        Path | None, typer.Option(help="Its pictures zoom_*.png instead, a frame each, as fractalML does.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--output-video", help="The video, .mp4 or .gif (FOLDER_zoom.mp4).")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second (30; 10 of pictures).")] = None,
    frames_between: Annotated[int | None, typer.Option(help="From one keyframe to the next (45).")] = None,
    size: Annotated[str, typer.Option(metavar="N", help="Pixels: height, or HEIGHTxWIDTH (the keyframes').")] = "",
) -> None:
    """The video of a zoom, with values that blend from keyframe to keyframe, or of its pictures as they are."""
    place = one_folder(folder, images_dir)
    path = out or beside(place, "_zoom.mp4")
    if images_dir is None and (place / "zoom.json").exists():
        check_film(path, 30.0 if fps is None else fps)
        between = 45 if frames_between is None else frames_between
        show_film(
            place, path, 30.0 if fps is None else fps, between, parsed_extent(size, 0, "--size") if size else None
        )
        return
    if frames_between is not None or size:
        raise InvalidValueError(f"--frames-between and --size need a zoom's arrays, {place} is read as pictures")
    check_film(path, 10.0 if fps is None else fps)
    show_film(place, path, 10.0 if fps is None else fps, 1)


def one_folder(folder: Path | None, images_dir: Path | None) -> Path:
    """The folder of an argument or of its option."""
    if (folder is None) == (images_dir is None):
        raise InvalidValueError("give the folder of a zoom, once: as FOLDER or as --images-dir")
    place = folder or images_dir or Path()
    if not place.is_dir():
        raise InvalidValueError(f"{place} is no folder: give that of a zoom, as fractal-streams zoom makes it")
    return place


def frames_in_folder(place: Path) -> Iterator[Any]:
    """The measures of a zoom's folder, or of a scan's, behind a progress bar."""
    from fractal_streams.trainability.dimension import frames_of
    from fractal_streams.trainability.scan import open_scan

    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("tqdm", "cli") from None
    if (place / "scan.json").exists():
        yield open_scan(place).measure
        return
    total = len(list(place.glob("level-*"))) or len(list(place.glob("zoom_*.png")))
    yield from tqdm(frames_of(place), "levels", total=total, unit=" levels", dynamic_ncols=True)


def paper_value(place: Path) -> float | None:
    """The dimension that the paper gives for the experiment of a zoom; one window alone has none to compare with."""
    if not (place / "zoom.json").exists():
        return None
    experiment = of_file(place / "zoom.json")[0]
    return next((each.dimension for each in PUBLISHED.values() if each.experiment == experiment), None)
