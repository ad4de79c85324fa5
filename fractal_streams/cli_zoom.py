"""The command `zoom`: keyframes one inside the other, each of them trained, and their video."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fractal_streams.cli import examples
from fractal_streams.cli_experiment import (
    EXPERIMENT,
    TRAINING,
    WINDOW,
    Asked,
    Command,
    Source,
    asked_for,
    described,
    parsed_extent,
    takes,
    training_of,
    window_of,
)
from fractal_streams.cli_scan import LIKE_FRACTAL_ML, PANEL, Given, app as app, need, warned
from fractal_streams.cli_status import Status, far_from_boundary, read_status
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.shard import Shard
from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.window import Window

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

FILM, FILMED = "zoom_sequence.mp4", "The video"
VIDEO: Given = {
    "video": Annotated[
        bool | None,
        typer.Option(
            "--video/--no-video", help=f"Write {FILM} too (no; yes of a --status-npy).", rich_help_panel=FILMED
        ),
    ],
    "fps": Annotated[
        float | None, typer.Option(help="Frames a second (30; 10 of a --status-npy).", rich_help_panel=FILMED)
    ],
    "frames_between": Annotated[
        int | None,
        typer.Option(help="From one keyframe to the next (45; 1 of a --status-npy).", rich_help_panel=FILMED),
    ],
}
POINT: Given = {
    "status_npy": Annotated[
        Path | None,
        typer.Option(
            help="Of scan --activations; its .json says what is trained, anew at each level.",
            rich_help_panel=LIKE_FRACTAL_ML,
        ),
    ],
    "center_lr0": Annotated[
        float | None,
        typer.Option(help="Exponent of ten of the horizontal axis to zoom about.", rich_help_panel=LIKE_FRACTAL_ML),
    ],
    "center_lr1": Annotated[
        float | None, typer.Option(help="And of the vertical one.", rich_help_panel=LIKE_FRACTAL_ML)
    ],
}


@app.command(cls=Command, rich_help_panel=PANEL, epilog=examples(
    "zoom single --resolution 256 --video",
    "zoom tanh --inwards --levels 20 --resolution 256",
    "zoom --status_npy outputs/images/grid_status_tanh_n16.npy --center_lr0 1.1 --center_lr1 1.9 --num_levels 8 "
    "--zoom_factor 2.0 --image_size 1024 --output_dir outputs/zooms/tanh_n16",
))  # fmt: skip
@takes(chosen=EXPERIMENT, area=WINDOW, training=TRAINING, film=VIDEO, point=POINT)
def zoom(
    chosen: Given,
    area: Given,
    training: Given,
    film: Given,
    point: Given,
    source: Source = "",
    resolution: Annotated[
        str,
        typer.Option("--resolution", "--image-size", metavar="N", help="As of scan (512; 4096 of a --status-npy)."),
    ] = "",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "--output-dir", help="Where all goes; the same call goes on (NAME-zoom)."),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option("--levels", "--num-levels", help="Keyframes (up to 6 decades; 20 inwards; 50 about a point)."),
    ] = None,
    factor: Annotated[
        float, typer.Option("--factor", "--zoom-factor", help="Size of a window over that of the next.")
    ] = 2.0,
    inwards: Annotated[
        bool, typer.Option("--inwards", help="From the overview in, each time to a rough place of the boundary.")
    ] = False,
) -> None:  # fmt: skip
    """Train keyframes one inside the other: out from a final window, inwards, or about a point.

    In brackets: what holds if EXPERIMENT says nothing else. Options may be written with underscores.
    """
    status = read_status(point["status_npy"]) if "status_npy" in point else None
    asked = asked_of(status, point, source, chosen)
    centre = centre_of(point, inwards, area)
    extent = parsed_extent(resolution, 4096 if status else 512, "--resolution")
    told = {"fps": 10.0 if status else 30.0, "frames_between": 1 if status else 45, "video": bool(status), **film}
    if told["video"]:
        check_film(Path(FILM), told["fps"])
        if levels == 1 and told["frames_between"] > 1:
            raise InvalidValueError("--video needs at least 2 --levels")
    elif film.keys() & {"fps", "frames_between"}:
        raise InvalidValueError("--fps and --frames-between are of the video: add --video")
    place = folder or Path(f"{asked.name}-zoom")
    settings = {**training_of(training), "resolution": extent, "folder": place}
    if inwards:
        start = window_of(replace(asked, window=status.window if status else None), area)
        settings |= {"start": start, "levels": 20 if levels is None else levels, "factor": factor}
    else:
        settings["windows"] = windows_of(asked, area, centre, levels, factor)
    if status and centre and (warning := far_from_boundary(status, centre, settings["windows"])):
        typer.echo(f"warning: {warning}", err=True)
    zoomed(asked, settings)
    if told["video"] and not Shard.detect().rank:
        show_film(place, place / FILM, told["fps"], told["frames_between"])


def asked_of(status: Status | None, point: Given, source: str, chosen: Given) -> Asked:
    """What is trained: of a status array, which says all, or as options and EXPERIMENT have it."""
    if status is None:
        return asked_for(source, chosen)
    if source or chosen:
        named = "EXPERIMENT" if source else f"--{next(iter(chosen)).replace('_', '-')}"
        raise InvalidValueError(f"--status_npy says what is trained: leave {named} out")
    name = point["status_npy"].stem.removeprefix("grid_status_")
    return Asked(experiment=status.experiment, window=None, name=name, title=described(status.experiment))


def centre_of(point: Given, inwards: bool, area: Given) -> tuple[float, float] | None:
    """The point to zoom about, decimal logarithms; None of another course."""
    given = [name for name in ("center_lr0", "center_lr1") if name in point]
    if len(given) == 1 or ("status_npy" in point and not given and not inwards):
        raise InvalidValueError(
            "--center_lr0 and --center_lr1 are given together, exponents of ten such as 1.1 and 2.3"
        )
    if given and (inwards or area):
        other = "--inwards" if inwards else f"--{next(iter(area)).replace('_', '-')}"
        raise InvalidValueError(f"--center_lr0 and {other} exclude each other: the windows lie about the point")
    return (point["center_lr0"], point["center_lr1"]) if given else None


def windows_of(
    asked: Asked, area: Given, centre: tuple[float, float] | None, levels: int | None, factor: float
) -> tuple[Window, ...]:
    """The windows of a zoom about a point, or out from a final window."""
    from fractal_streams.trainability.zoom import zoom_windows, zoom_windows_about

    if centre is None:
        if asked.window is None and not area.keys() & {"x", "y", "x_exponents", "y_exponents"}:
            raise InvalidValueError(
                f"a zoom needs a final window: give --x and --y, or an EXPERIMENT of {', '.join(PUBLISHED)}; or "
                f"--inwards, or --center_lr0 and --center_lr1"
            )
        return zoom_windows(window_of(asked, area), factor=factor, levels=levels)
    if any(Window.of_experiment(asked.experiment).linear):
        raise InvalidValueError(
            f"--center_lr0 and --center_lr1 are exponents of ten, and an axis of {','.join(asked.experiment.axes)} has "
            f"its own units: give --x and --y, or --inwards"
        )
    return zoom_windows_about(centre, levels=50 if levels is None else levels, factor=factor)


def zoomed(asked: Asked, settings: Given) -> None:
    """Make a zoom, through given windows or inwards, and say a few lines on it."""
    from fractal_streams.trainability.zoom import zoom as through, zoom_in

    begun = time.perf_counter()
    with warned():
        made = (through if "windows" in settings else zoom_in)(asked.experiment, progress=True, **settings)
    if Shard.detect().rank:
        return
    height, width = made.resolution
    first, last = (made.windows[level].size[0] for level in (0, -1))
    typer.echo(
        f"{asked.title}: {len(made)} levels of {height} x {width} points, {first:.3g} to {last:.3g} wide, in "
        f"{time.perf_counter() - begun:.1f} s"
    )
    typer.echo(f"pictures   {made.picture(0)} to {made.picture(len(made) - 1).name}\narrays     {made.folder}")


def show_film(
    folder: Path, path: Path, fps: float, frames_between: int, size: int | tuple[int, int] | None = None
) -> None:
    """Write a video, and say where; with one frame for each keyframe it is made of the pictures."""
    from fractal_streams.trainability.video import save_video, stitch_zoom_to_video

    if frames_between == 1 and size is None:
        stitch_zoom_to_video(folder, path, fps, progress=True)
    else:
        save_video(folder, path, fps=fps, frames_between=frames_between, size=size, progress=True)
    typer.echo(f"video      {path}")


def check_film(path: Path, fps: float) -> None:
    """Refuse a video that can't be written, before anything is trained."""
    from fractal_streams.trainability.video import checked

    if checked(path, fps) == ".mp4":
        need("imageio", missing_extra("imageio", "video"))
        need("imageio_ffmpeg", missing_extra("imageio-ffmpeg", "video"))
    need("PIL", missing_extra("pillow", "cli"))
