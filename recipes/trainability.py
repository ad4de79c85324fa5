"""The six pictures of "The boundary of neural network trainability is fractal", trained anew, with their dimensions.

    python -m fractal_streams.recipes.trainability                        # all six at 512 x 512
    python -m fractal_streams.recipes.trainability tanh --resolution 4096 --video

For each: the published window, a walk along the boundary to where float64 ends, a zoom of keyframes about the place it
reaches, every one trained, and the boundary's dimension over them. `results.md` puts it beside the paper. A run goes on
where it was killed. J. Sohl-Dickstein, arXiv:2402.06184, figures 1 and 2.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from fractal_streams.trainability.dimension import Dimension, dimensions, save_csv, save_plot
from fractal_streams.trainability.picture import plain, save_picture
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED, Published, find_published
from fractal_streams.trainability.scan import Scan, scan
from fractal_streams.trainability.video import save_video
from fractal_streams.trainability.window import Window
from fractal_streams.trainability.zoom import Zoom, zoom, zoom_in, zoom_windows

WALK_RESOLUTION = 256


def train_window(name: str, folder: Path, asked: argparse.Namespace) -> tuple[Scan, float]:
    """The published window, its picture, and the seconds that its training took, compilation left out."""
    published = find_published(name)
    training = training_of(asked)
    scan(published.experiment, published.window, resolution=2, **training)
    start = time.perf_counter()
    picture = scan(
        published.experiment, published.window, resolution=asked.resolution, folder=folder / "window",
        progress=not asked.quiet, **training,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    around = scan(published.experiment, OVERVIEW, resolution=min(asked.resolution, 512), **training)
    save_picture(picture, folder / "picture.png", title=published.title, overview=around)
    return picture, seconds


def reproduce(name: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One picture and its zoom; what the page says of it."""
    published = find_published(name)
    picture, seconds = train_window(name, folder, asked)
    final = last_window(published, folder / "walk", asked.deepest, training_of(asked))
    start = time.perf_counter()
    frames = zoom(
        published.experiment, zoom_windows(final), folder=folder / "zoom", resolution=asked.resolution,
        progress=not asked.quiet, **training_of(asked),
    )  # fmt: skip
    zoomed = time.perf_counter() - start
    measured = dimensions(frames.measure(level) for level in range(len(frames)))
    save_csv(folder / "dimension.csv", *measured)
    save_plot(folder / "dimension.png", measured, published=published.dimension, title=published.title)
    if asked.video:
        save_video(frames, folder / "zoom.mp4", progress=not asked.quiet)
    return facts(published, picture, frames, measured, seconds, zoomed)


def training_of(asked: argparse.Namespace) -> dict[str, Any]:
    """Settings of every scan."""
    return {"device": asked.device, "precision": asked.precision, "on_limit": "allow"}


def last_window(published: Published, folder: Path, deepest: float, training: dict[str, Any]) -> Window:
    """Where a walk from the published window along the boundary ends: the last one of at least `deepest` decades."""
    levels = 1
    while min(published.window.size) / 2.0**levels >= deepest:
        levels += 1
    if levels == 1:
        return published.window
    walk = zoom_in(
        published.experiment, published.window, levels=levels, choice="nearest", folder=folder,
        resolution=WALK_RESOLUTION, **training,
    )  # fmt: skip
    return walk.windows[-1]


def facts(
    published: Published, picture: Scan, frames: Zoom, measured: tuple[Dimension, Dimension], seconds: float,
    zoomed: float,
) -> dict[str, Any]:  # fmt: skip
    """Numbers of the page."""
    median, line = measured
    count = picture.shape[0] * picture.shape[1]
    return {
        "title": published.title, "description": published.description, "paper": published.dimension,
        "resolution": list(picture.shape), "converged": float(picture.converged.mean()), "seconds": seconds,
        "network_steps_per_second": count * picture.experiment.steps / seconds,
        "frames": len(frames), "frames_with_edge": median.used, "zoom_seconds": zoomed,
        "widest": max(frames.windows[0].size), "narrowest": min(frames.windows[-1].size),
        "dimension": [median.value, median.low, median.high, median.standard_error],
        "least_squares": [line.value, line.low, line.high, line.standard_error],
    }  # fmt: skip


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page of results, in Markdown."""
    lines = [
        "# The boundary of neural network trainability, trained anew", "",
        "Dimension: the paper's estimator (median of local slopes of box counts over all keyframes), its bootstrap "
        "95 % interval over keyframes, and the mean least-squares slope. Each keyframe was trained, none cropped.", "",
        "| experiment | dimension | 95 % | least squares | paper | keyframes | decades | converged | points | time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for told in found.values():
        value, low, high, _ = told["dimension"]
        lines.append(
            f"| {told['title']} | {value:.2f} | {low:.2f} to {high:.2f} | {told['least_squares'][0]:.2f} ± "
            f"{told['least_squares'][3]:.2f} | {told['paper']:.2f} | {told['frames_with_edge']} of {told['frames']} | "
            f"{told['widest']:.2g} to {told['narrowest']:.1g} | {100 * told['converged']:.1f} % | "
            f"{told['resolution'][0]} x {told['resolution'][1]} | {told['seconds']:.2f} s |"
        )
    for name, told in found.items():
        height, width = told["resolution"]
        lines += [
            "", f"## {told['title']}", "", f"{told['description'].capitalize()}. {height} x {width} networks in "
            f"{told['seconds']:.2f} s, {told['network_steps_per_second'] / 1e6:.1f} M network-steps/s with their "
            f"files.", "", f"![{told['title']}]({name}/picture.png)", "", f"![its dimension]({name}/dimension.png)",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def save_sheet(scans: dict[str, Scan], path: Path) -> None:
    """Three pictures to a row, each under its title; the nearest point of each pixel."""
    from matplotlib.figure import Figure

    rows = -(-len(scans) // 3)
    figure = Figure((12.0, 4.3 * rows), dpi=100)
    for place, (name, found) in enumerate(scans.items()):
        axes = figure.add_axes(((place % 3 + 0.03) / 3, 1 - (place // 3 + 0.97) / rows, 0.94 / 3, 0.88 / rows))
        axes.imshow(plain(found.measure), interpolation="nearest")
        axes.set_title(find_published(name).title, loc="left", fontsize=11, fontweight="bold")
        axes.set_axis_off()
    whole = path.with_name(f".{path.name}.tmp")
    figure.savefig(whole, format="png", metadata={"Software": None})
    os.replace(whole, path)


def write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_text(text)
    os.replace(whole, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PUBLISHED), help=f"of {', '.join(PUBLISHED)}")
    parser.add_argument("--resolution", type=int, default=512, help="points along each side of every picture")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/trainability"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float64", choices=("float64", "float32"))
    parser.add_argument("--deepest", type=float, default=1e-11, help="decades of the innermost keyframe, at least")
    parser.add_argument("--pictures", action="store_true", help="only the published windows, and a sheet of them")
    parser.add_argument("--video", action="store_true", help="write zoom.mp4 too")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    asked = parser.parse_args(arguments)
    for name in asked.names:
        find_published(name)
    if asked.pictures:
        scans = {name: train_window(name, asked.output_dir / name, asked)[0] for name in asked.names}
        save_sheet(scans, asked.output_dir / "sheet.png")
        print(asked.output_dir / "sheet.png")
        return
    for name in asked.names:
        told = reproduce(name, asked.output_dir / name, asked)
        write(asked.output_dir / name / "result.json", json.dumps(told, indent=1))
    known = {name: asked.output_dir / name / "result.json" for name in PUBLISHED}
    found = {name: json.loads(file.read_text()) for name, file in known.items() if file.is_file()}
    write(asked.output_dir / "results.md", page(found))
    print(asked.output_dir / "results.md")


if __name__ == "__main__":
    main()
