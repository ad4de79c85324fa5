"""The experiments of "Generative Kaleidoscopic Networks", run anew on data at hand, with what came of their claims.

    python -m fractal_streams.recipes.kaleidoscope                       # all, sized for a CPU
    python -m fractal_streams.recipes.kaleidoscope 1d 2d depth
    python -m fractal_streams.recipes.kaleidoscope --scale full --device cuda --mnist data --cifar data --celeba data

Networks are fitted to f(x) = x and applied again and again to noise: on two points of a line and four of a square, on
digits, on 1,000 pictures of 32 x 32 and of 39 x 32, at several depths, and their basins as maps. Data that has no path
is taken from this package's own streams. Each has a folder with pictures, GIFs, networks and result.json, and
`results.md` tells of all, with spread over seeds. What is finished is not run again, a fit that was killed goes on.
H. Shrivastava, arXiv:2402.11793.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_streams.recipes.kaleidoscope_pictures import basin_maps, depth, digits, faces, thousand_pictures
from fractal_streams.recipes.kaleidoscope_points import loss_range, one_value, two_values
from fractal_streams.recipes.kaleidoscope_study import SCALES, Asked, Place, Result, finished, write

from fractal_streams.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One of the original's experiments, or of those that show where its claims end."""

    title: str
    claim: str
    run: Callable[[Place], Result]


EXPERIMENTS: dict[str, Experiment] = {
    "1d": Experiment(
        title="Two points of a line",
        claim="A ReLU network of 7 layers with a bounded head, fitted to X = {.2, .8} with H = 5 (its notebook has "
        "H = 10), has flat parts around both, and iterating it takes noise to them.",
        run=one_value,
    ),
    "2d": Experiment(
        title="Four points of a square",
        claim="With 7 layers of 50 units, samples from noise gather at the four points, though the loss is flat.",
        run=two_values,
    ),
    "loss-range": Experiment(
        title="The loss over the cube against the number of points",
        claim="The range of the loss shrinks as there are more points, at more points the more values they have.",
        run=loss_range,
    ),
    "digits": Experiment(
        title="Digits",
        claim="With 10 hidden layers of 500, iterates come to digits after a burn-in and stay at them.",
        run=digits,
    ),
    "cifar": Experiment(
        title="1,000 pictures of 32 x 32",
        claim="Fitted to 1,000 dogs of CIFAR-10 with L = 10, H = 2000, iterates of noise become dogs.",
        run=thousand_pictures,
    ),
    "celeba": Experiment(
        title="1,000 pictures of 39 x 32",
        claim="Fitted to 1,000 faces of CelebA with L = 10, H = 1000, iterates become faces, with jumps between them.",
        run=faces,
    ),
    "depth": Experiment(
        title="Depth",
        claim="The deeper the network, the stronger the many-to-one map and the better the samples.",
        run=depth,
    ),
    "basins": Experiment(
        title="Basin maps",
        claim="(Not in the original.) Planes through a network's inputs, coloured by where their points end, have "
        "rougher boundaries where the network is plain than where it is a denoiser.",
        run=basin_maps,
    ),
}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of results, in Markdown."""
    lines = [
        "# Kaleidoscopes, run anew", "",
        "What the original says, and what came out here. Spread (±) is the standard deviation over seeds: networks of "
        "a bank with other first weights. Distances are RMSE over the range of the values.",
    ]  # fmt: skip
    for name, told in found.items():
        settings = told["settings"]
        lines += [
            "", f"## {told['title']}", "", f"Claim: {told['claim']}", "", *(f"- {line}" for line in told["said"]),
        ]  # fmt: skip
        for table in told["tables"]:
            heads = table["heads"]
            lines += ["", f"{table['title']}:", "", f"| {' | '.join(heads)} |",
                      f"| {' | '.join('---:' for _ in heads)} |"]  # fmt: skip
            lines += [f"| {' | '.join(row)} |" for row in table["rows"]]
        for file, caption in told["pictures"]:
            lines += ["", f"![{caption}]({name}/{file})", "", caption]
        lines += ["", f"Scale {settings['scale']}, {told['seconds']:.0f} s on {told['device']}."]
    return "\n".join(lines) + "\n"


def parsed(arguments: Sequence[str] | None) -> tuple[list[str], Asked]:
    """The names of experiments, and how they are run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["all"], help=f"of {', '.join(EXPERIMENTS)}; or all")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/kaleidoscope"))
    parser.add_argument("--scale", default="small", choices=SCALES, help="small is for a CPU, full for a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mnist", metavar="PATH", help="torchvision's folder of MNIST")
    parser.add_argument("--cifar", metavar="PATH", help="torchvision's folder of CIFAR-10")
    parser.add_argument("--celeba", metavar="PATH", help="torchvision's folder of CelebA")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    told = parser.parse_args(arguments)
    names = list(EXPERIMENTS) if "all" in told.names else list(dict.fromkeys(told.names))
    for name in names:
        if name not in EXPERIMENTS:
            raise unknown_name("experiment", name, EXPERIMENTS, "; or all")
    asked = Asked(
        output_dir=told.output_dir, scale=told.scale, device=told.device, mnist=told.mnist, cifar=told.cifar,
        celeba=told.celeba, quiet=told.quiet,
    )  # fmt: skip
    return names, asked


def main(arguments: list[str] | None = None) -> None:
    names, asked = parsed(arguments)
    for name in names:
        experiment = EXPERIMENTS[name]
        place = Place(folder=asked.output_dir / name, asked=asked)
        told = finished(place, name, experiment.title, experiment.claim, experiment.run)
        for line in told["said"]:
            print(f"{name}: {line}")
    files = {name: asked.output_dir / name / "result.json" for name in EXPERIMENTS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    write(asked.output_dir / "results.md", page(found))
    print(asked.output_dir / "results.md")


if __name__ == "__main__":
    main()
