"""How hard is each preset, from easy to unsolved, and how many of its pictures tell nothing?

    python -m fractal_streams.recipes.difficulty                          # three baselines on eight presets
    python -m fractal_streams.recipes.difficulty --presets fractal-10,fractal-1k@64 --baselines cnn
    python -m fractal_streams.recipes.difficulty --count-only             # degenerate pictures and channel statistics

Claims (measured, with hardware, steps and time): see recipes/README.md.

Every baseline sees the same number of samples, none of them twice, and is tested on others; chance stands beside it.
A preset's grade is that of the baseline that is right most often. Each training is a folder of its own, which resumes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fractal_streams import Stream, open_stream
from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.presets import PRESETS, find_preset

try:
    from fractal_streams.recipes import baselines
    from fractal_streams.recipes.baselines import BASELINES, TITLES, BaselineResult, BaselineSettings
    from fractal_streams.recipes.census import DEGENERATE, GROUP, Census, measured
    from fractal_streams.recipes.loop import LoopSettings, open_accelerator
    from fractal_streams.recipes.results import write_json
    from fractal_streams.recipes.settings import command, option
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

GRADED = (
    "seed-readme", "seed-code", "fractal-mnist", "fractal-10", "fractal-families", "fractal-100", "fractal-1k@32",
    "fractal-10k",
)  # fmt: skip
GRADES = ((0.9, "easy"), (0.6, "moderate"), (0.2, "hard"), (0.0, "unsolved"))
"""Least accuracy of the best baseline, and what the preset is called then."""
FEWER = {
    "fractal-families": 2, "fractal-video": 8, "fractal-1k": 8, "trainability-points": 16, "trainability-tiles": 512,
}  # fmt: skip
"""Presets whose samples take longer to the part of the others' number that is counted."""
SINGLE = ("trainability-points",)
"""Presets whose pictures are one pixel, of which none can vary."""
WIDTH = 128
COLOURS = {"linear": "tab:grey", "cnn": "tab:orange", "vit": "tab:blue"}


@dataclass(frozen=True, kw_only=True)
class DifficultySettings(LoopSettings):
    """What is graded, and by how much training."""

    presets: tuple[str, ...] = option(GRADED, "Names, with commas between; NAME@EDGE for another size, pixels.")
    baselines: tuple[str, ...] = option(tuple(BASELINES), "Of each preset.", choices=tuple(BASELINES))
    num_steps: int = option(1000, "Updates of the weights.", low=1)
    batch_size: int = option(1024, "Samples of an update, of all ranks together.", low=1)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    eval_once_every: int = option(1000, "Steps from one evaluation to the next.", low=1, changes_nothing=True)
    eval_samples: int = option(10_000, "Held-out samples.", low=1, changes_nothing=True)
    count_only: bool = option(False, "Count pictures of all presets, and train nothing.", changes_nothing=True)
    count: int = option(20_000, "Samples that are counted, fewer if they take long.", low=32, changes_nothing=True)
    folder: Path = option(Path("outputs/difficulty"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "Print nothing.", changes_nothing=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.presets:
            sized(name)


@dataclass(frozen=True, kw_only=True)
class Grading:
    """A preset's baselines, best first."""

    name: str
    results: tuple[BaselineResult, ...]

    @property
    def best(self) -> BaselineResult:
        return self.results[0]

    @property
    def grade(self) -> str:
        """ "easy", "moderate", "hard" or "unsolved"."""
        return next(word for least, word in GRADES if self.best.accuracy >= least)


@dataclass(frozen=True, kw_only=True)
class DifficultyResult:
    """What was found: gradings from easy to unsolved, or the census of each preset; the other is empty."""

    gradings: tuple[Grading, ...] = ()
    censuses: dict[str, Census] = dataclasses.field(default_factory=dict)


def run(settings: DifficultySettings) -> DifficultyResult:
    """Train what is not trained yet, and write grades.json, table.md and difficulty.png; or count."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    if settings.count_only:
        return counted(settings)
    gradings: list[Grading] = []
    for name in settings.presets:
        results = [baselines.run(of_baseline(settings, name, baseline)) for baseline in settings.baselines]
        ranked = sorted(results, key=lambda result: -result.accuracy)
        gradings.append(Grading(name=name, results=tuple(ranked)))
        gradings.sort(key=lambda grading: -grading.best.accuracy)
        if open_accelerator(settings).is_main_process:
            write_gradings(settings.folder, gradings)
    if open_accelerator(settings).is_main_process and not settings.quiet:
        print_gradings(gradings)
    return DifficultyResult(gradings=tuple(gradings))


def sized(name: str) -> tuple[str, int | None]:
    """A preset and the edge of its pictures, of NAME or NAME@EDGE.

    Raises:
        UnknownNameError: no such preset. InvalidValueError: no whole number behind the @.

    Example:
        >>> sized("fractal-1k@64"), sized("fractal-10")
        (('fractal-1k', 64), ('fractal-10', None))
    """
    preset, at, edge = name.partition("@")
    find_preset(preset)
    if at and not (edge.isdecimal() and int(edge) > 0):
        raise InvalidValueError(f"presets are NAME or NAME@EDGE in pixels, such as fractal-1k@64, got {name!r}")
    return preset, int(edge) if at else None


def of_baseline(settings: DifficultySettings, name: str, baseline: str) -> BaselineSettings:
    """The settings of one training."""
    preset, edge = sized(name)
    shared = {item.name for item in dataclasses.fields(LoopSettings)} | {"eval_samples", "quiet"}
    return BaselineSettings(
        preset=preset, image_size=edge, baseline=baseline, folder=settings.folder / name / baseline,
        **{each: getattr(settings, each) for each in shared},
    )  # fmt: skip


def write_gradings(folder: Path, gradings: list[Grading]) -> None:
    told = [
        {"preset": each.name, "grade": each.grade, "results": [asdict(result) for result in each.results]}
        for each in gradings
    ]
    write_json(folder / "grades.json", told)
    write_text(folder / "table.md", markdown(rows_of(gradings)))
    draw(folder / "difficulty.png", gradings)


def rows_of(gradings: list[Grading]) -> list[list[str]]:
    """The table's rows, its titles first."""
    names = [name for name in BASELINES if any(result.baseline == name for each in gradings for result in each.results)]
    titles = ["preset", "pixels", "classes", "chance, %", *(f"{TITLES[name]}, %" for name in names), "grade"]
    rows = [titles]
    for each in gradings:
        found = {result.baseline: result for result in each.results}
        scores = [in_percent(found[name]) if name in found else "" for name in names]
        rows.append([
            each.best.preset, str(each.best.image_size), f"{each.best.classes:,}", f"{100 * each.best.chance:.3g}",
            *scores, each.grade,
        ])  # fmt: skip
    return rows


def in_percent(result: BaselineResult) -> str:
    """Accuracy and its interval."""
    return f"{100 * result.accuracy:.1f} ({100 * result.low:.1f} to {100 * result.high:.1f})"


def print_gradings(gradings: list[Grading]) -> None:
    first = gradings[0].best
    print_table(
        f"{first.samples:,} samples seen, {first.eval_samples:,} held out, 95 % intervals, {first.device}",
        rows_of(gradings),
    )


def print_table(title: str, rows: list[list[str]]) -> None:
    """Wide enough for its figures, also where the terminal is narrower or none."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(WIDTH, Console().width)).print(table)


def markdown(rows: list[list[str]]) -> str:
    """A table, the first of whose rows has the titles."""
    lines = [rows[0], ["---", *("---:" for _ in rows[0][1:])], *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    def write(place: Path) -> None:
        place.write_text(text)

    whole_file(path, write)


def draw(path: Path, gradings: list[Grading]) -> None:
    """Bars of each preset's baselines with their intervals, chance as a line across, easy ones at the top."""
    figure = Figure(figsize=(9, 1.2 + 0.72 * len(gradings)), layout="constrained")
    axes = figure.subplots()
    names = [name for name in BASELINES if any(result.baseline == name for each in gradings for result in each.results)]
    thickness = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = [(y, result) for y, each in enumerate(gradings) for result in each.results if result.baseline == name]
        axes.barh(
            [y + (place - (len(names) - 1) / 2) * thickness for y, _ in rows], [100 * one.accuracy for _, one in rows],
            0.9 * thickness, color=COLOURS[name], label=TITLES[name],
            xerr=[
                [100 * (one.accuracy - one.low) for _, one in rows],
                [100 * (one.high - one.accuracy) for _, one in rows],
            ],
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )  # fmt: skip
    for y, each in enumerate(gradings):
        axes.vlines(
            100 * each.best.chance, y - 0.45, y + 0.45, color="black", linestyle=":", label="" if y else "chance"
        )
        axes.text(101.5, y, each.grade, va="center", fontsize="small")
    titles = [f"{each.best.preset}\n{each.best.classes:,} classes, {each.best.image_size} px" for each in gradings]
    axes.set_yticks(range(len(gradings)), titles)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="held-out accuracy, %, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"Difficulty of the presets: baselines trained on {gradings[0].best.samples:,} samples", fontsize=11
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(names) + 1, fontsize="small")
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def countable() -> list[str]:
    """Presets whose pictures need no file of weights."""
    return [name for name, spec in PRESETS.items() if not isinstance(spec, FittedSpec)]


def counted(settings: DifficultySettings) -> DifficultyResult:
    """Count pictures of all presets on the first process; written to census.json and census.md."""
    accelerator = open_accelerator(settings)
    censuses: dict[str, Census] = {}
    if not accelerator.is_main_process:
        return DifficultyResult()
    for name in track(countable(), "counting", disable=settings.quiet, console=Console(stderr=True)):
        samples = max(2 * GROUP, settings.count // FEWER.get(name, 1) // GROUP * GROUP)
        stream = open_stream(name, device=str(accelerator.device))
        censuses[name] = measured(stream, samples, batch_size=batch_of(stream))
    write_json(settings.folder / "census.json", {name: asdict(census) for name, census in censuses.items()})
    write_text(settings.folder / "census.md", markdown(census_rows(censuses)))
    if not settings.quiet:
        print_table("degenerate pictures, % (upper end of the 95 % interval)", census_rows(censuses))
        print(published(censuses))
    return DifficultyResult(censuses=censuses)


def batch_of(stream: Stream) -> int:
    """How many samples are counted together: what a device holds, and has worth its while."""
    levels = math.prod(stream.generate(range(0)).images.shape[1:])
    return max(GROUP, (2**22 if stream.device == "cpu" else 2**27) // (levels * stream.cost))


def census_rows(censuses: dict[str, Census]) -> list[list[str]]:
    titles = ["preset", "pictures", "constant", "all black", "deviation below 5 levels", "above 95 % black"]
    rows = [titles]
    for name, census in censuses.items():
        if name in SINGLE:
            continue
        shares = [f"{100 * census.share(kind):.3f} ({100 * census.at_most(kind):.3f})" for kind in DEGENERATE]
        rows.append([name, f"{census.pictures:,}", *shares])
    return rows


def published(censuses: dict[str, Census]) -> str:
    """The lines of `fractal_streams.normalisation`."""

    def three(values: Any) -> str:
        return f"({', '.join(f'{value:.4f}' for value in values)})"

    return "\n".join(f'    "{name}": ({three(one.mean)}, {three(one.std)}),' for name, one in censuses.items())


app = command(DifficultySettings, run, "Grade the presets by fixed baselines, or count what their pictures are like.")

if __name__ == "__main__":
    app()
