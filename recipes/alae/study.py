"""What do ALAE's slots change, beside what its seeds change? Contrastive and pixel terms; terms over time on clips.

    python -m fractal_streams.recipes.alae.study                                        # 4 arms, 3 seeds
    python -m fractal_streams.recipes.alae.study --question time --folder outputs/alae-study-time
    python -m fractal_streams.recipes.alae.study --arms plain,patches,l1+patches=0.3 --seeds 0,1,2,3,4

Every run is recipes/alae/train.py in a folder of its own, all with the same features to compare by; `parallel`
processes share a GPU, or take turns on several. A study that is stopped goes on where it was: runs that are done or
diverged stay, begun ones resume from their checkpoints, failed ones are tried again. The folder gets study.csv, a line
for each run; study.md, every figure of every arm with its spread and a verdict; study.png; result.json.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fractal_streams.recipes.alae.sources import SourceSettings, opened_source
from fractal_streams.recipes.alae.study_verdicts import (
    LEVEL,
    OVER,
    RULE,
    Comparison,
    Row,
    compared,
    figures_of,
    lost,
    over_floors,
    said_of,
    table,
)
from fractal_streams.recipes.settings import command, option

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from fractal_streams.recipes.alae.features import FeatureSettings, own_features
    from fractal_streams.recipes.alae.model import SIZES
    from fractal_streams.recipes.alae.study_plot import draw_study
    from fractal_streams.recipes.alae.terms import slots_named
    from fractal_streams.recipes.alae.train import ALAESettings
    from fractal_streams.recipes.loop import PRECISIONS, open_accelerator
    from fractal_streams.recipes.results import save_text, write_json
    from fractal_streams.recipes.settings import refuse_others
    from fractal_streams.recipes.sweep import Packing, failure_of, packed
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

CONTRASTIVE = ("latent_infonce", "real_cycle", "instance", "patches")
PIXELS = ("l1", "laplacian", "focal_frequency")
OVER_TIME = ("time_contrast", "slow_features", "straightness")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One of the two.

    arms: name to slots, the first is what the others are held to. key: figures that are drawn and told in words.
    The others are what a run is by default; batch_size counts clips where clip_length is given.
    """

    arms: Mapping[str, tuple[str, ...]]
    key: tuple[str, ...]
    preset: str
    clip_length: int | None
    batch_size: int
    num_steps: int


LIKENESS = (
    "psnr", "ratio", "reciprocity", "class_linear_codes", "r_squared_codes", "frechet_own_over_floor",
    "frechet_random_over_floor", "frechet_own_reconstructions_over_floor", "swd_over_floor", "spectrum",
)  # fmt: skip
QUESTIONS: Mapping[str, Question] = {
    "contrast": Question(
        arms={"plain": (), "contrastive": CONTRASTIVE, "pixels": PIXELS, "both": (*CONTRASTIVE, *PIXELS)},
        key=(*LIKENESS[:1], "ssim", *LIKENESS[1:], "path_own"),
        preset="fractal-families", clip_length=None, batch_size=128, num_steps=2500,
    ),
    "time": Question(
        arms={"plain": (), **{name: (name,) for name in OVER_TIME}, "together": OVER_TIME},
        key=("speed_codes", *LIKENESS, "code_deviation"),
        preset="fractal-video", clip_length=8, batch_size=16, num_steps=1500,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StudySettings(SourceSettings):
    """What is trained: every arm with every seed."""

    question: str = option("contrast", "Contrastive and pixel terms, or terms over time.", choices=tuple(QUESTIONS))
    arms: tuple[str, ...] = option(
        (), "Of the question, or slots with + between; the first is what others are held to. All of the question."
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "Of weights and draws.", changes_nothing=True)
    parallel: int = option(6, "Processes that train at the same time.", low=1, high=256, changes_nothing=True)
    preset: str = option("", "A preset, a formula, or a spec's JSON file; the question's own.")
    size: str = option("32", "Of the networks.", choices=tuple(SIZES))
    num_steps: int | None = option(None, "Updates of the weights of a run; the question's own.", low=1)
    batch_size: int | None = option(None, "Samples of an update; the question's own.", low=2)
    precision: str = option("auto", "Of products; auto is bf16 on a GPU.", choices=PRECISIONS)
    final_samples: int = option(2000, "Pictures of each set of the examination.", low=32)
    feature_steps: int = option(1000, "Updates of the classifier that all compare by; 0 for none.")
    compile: bool = option(False, "Compile each run's networks: pays in long runs.", changes_nothing=True)
    device: str = option("auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"), changes_nothing=True)
    folder: Path = option(Path("outputs/alae-study"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bar and no words.", changes_nothing=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.arms)) < len(self.arms):
            raise InvalidValueError(f"arms={','.join(self.arms)} holds one twice: give each once")
        self.slots()

    @property
    def asked(self) -> Question:
        return QUESTIONS[self.question]

    @property
    def whole(self) -> StudySettings:
        """With the question's own values, and the size's own picture size, where none are given."""
        own: dict[str, Any] = {"image_size": self.image_size or SIZES[self.size].image_size}
        for name in ("num_steps", "batch_size", "preset"):
            own[name] = getattr(self, name) or getattr(self.asked, name)
        own["arms"] = self.arms or tuple(self.asked.arms)
        if not self.data and not self.preset:
            own["clip_length"] = self.clip_length or self.asked.clip_length
        return replace(self, **own)

    def slots(self) -> dict[str, tuple[str, ...]]:
        """The slots of each arm.

        Raises:
            UnknownNameError: neither an arm of the question nor slots.
        """
        table = self.asked.arms
        found = {arm: table.get(arm, tuple(arm.split("+"))) for arm in self.arms or table}
        for names in found.values():
            slots_named(names)
        return found

    def runs(self) -> list[tuple[str, ALAESettings]]:
        """Arm and settings of all runs: seed by seed, those with the most terms first, as they take longest."""
        if (here := self.whole) != self:
            return here.runs()
        own = {item.name for item in fields(SourceSettings)} | {"size", "num_steps", "batch_size", "precision"}
        given = {name: getattr(self, name) for name in sorted(own | {"final_samples", "compile", "device"})}
        every = max(1, min(50, self.num_steps // 20))  # type: ignore[operator]
        arms = sorted(self.slots().items(), key=lambda item: -len(item[1]))
        return [
            (arm, ALAESettings(
                **given, slots=slots, seed=seed, record_every=every, eval_once_every=self.num_steps,
                checkpoint_every=5 * every, test_samples=min(1000, self.final_samples), feature_steps=0,
                features=self.features, folder=self.folder / "runs" / f"{arm}-seed-{seed}", quiet=True,
            ))
            for seed in dict.fromkeys(self.seeds) for arm, slots in arms
        ]  # fmt: skip

    @property
    def features(self) -> Path | None:
        """The folder of the classifier that all runs compare by, once it is there."""
        place = self.folder / "features"
        return place if (place / "result.json").is_file() else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """rows: of all runs. comparisons: of every figure of every arm with the first. sentences: what they say."""

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    sentences: tuple[str, ...]


def run(settings: StudySettings) -> Result:
    """Train what is not trained yet, and tell of all.

    Raises:
        InvalidValueError: a folder with a study or with runs of other settings; names what differs.
        DivergedError: the classifier that all compare by has no finite loss.
    """
    settings = settings.whole
    settings.folder.mkdir(parents=True, exist_ok=True)
    refuse_another(settings)
    if any(row_of(*each).outcome in ("not trained", "failed") for each in settings.runs()):
        train_features(settings)
        runs = settings.runs()
        waiting = [asked for arm, asked in runs if row_of(arm, asked).outcome in ("not trained", "failed")]
        arms = {asked.folder: arm for arm, asked in runs}

        def done(asked: Any) -> bool:
            return row_of(arms[asked.folder], asked).outcome != "not trained"

        own = {item.name: getattr(settings, item.name) for item in fields(Packing)}
        packed([asked for _, asked in runs], waiting, done, Packing(**own), "alae.train")
    return summary(settings)


def refuse_another(settings: StudySettings) -> None:
    """Notes the settings of a study that begins, and refuses to mix runs of others into it; arms may be added."""
    path = settings.folder / "settings.json"
    mine = {name: value for name, value in settings.decisive().items() if name != "arms"}
    if path.is_file():
        refuse_others(json.loads(path.read_text()), json.loads(json.dumps(mine)), settings.folder)
    else:
        write_json(path, mine)


def train_features(settings: StudySettings) -> None:
    """The classifier that all runs compare by, where the source has classes; one that is there stays."""
    _, first = settings.runs()[0]
    asked = FeatureSettings(
        num_steps=max(1, settings.feature_steps), device=settings.device, precision=settings.precision,
        batch_size=min(512, 4 * first.batch_size * (first.clip_length or 1)), quiet=settings.quiet,
    )  # fmt: skip
    accelerator = open_accelerator(asked)
    stream = opened_source(first, "train", accelerator.device)
    if settings.feature_steps and stream.num_classes > 1:
        own_features(stream, settings.folder / "features", asked, accelerator)


def row_of(arm: str, asked: ALAESettings) -> Row:
    """What came of a run.

    Raises:
        InvalidValueError: its folder holds one of other settings, or a result that can't be read.
    """
    path = asked.folder / "result.json"
    if not path.is_file():
        outcome, error = failure_of(asked)
        return Row(arm=arm, seed=asked.seed, outcome=outcome, error=error)
    try:
        told = json.loads(path.read_text())
        figures = {name: float(value) for name, value in told["figures"].items() if math.isfinite(value)}
        settings = told["settings"]
        pace = {name: float(told[name]) for name in PACE}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidValueError(f"{path} can't be read: remove {asked.folder} to train that run anew") from None
    refuse_others(settings, json.loads(json.dumps(asked.whole.decisive())), asked.folder)
    return Row(arm=arm, seed=asked.seed, outcome="trained", figures=over_floors(figures), pace=pace)


PACE = ("images_per_second", "waiting", "memory", "seconds")


def summary(settings: StudySettings) -> Result:
    """Write study.csv, study.md, study.png and result.json of what is there; print what it says."""
    arms, key = settings.arms, settings.asked.key
    order = {arm: place for place, arm in enumerate(arms)}
    rows = sorted((row_of(*each) for each in settings.runs()), key=lambda row: (order[row.arm], row.seed))
    found = compared(rows, arms)
    sentences = [said_of(arm, found, key) for arm in arms[1:]]
    if count := sum(not each.figure.endswith(OVER) for each in found):  # those only divide others by a constant
        sentences.append(f"Of {count} comparisons, up to {LEVEL * count:.0f} fall outside the spread by chance alone.")
    sentences += [*late(settings), *lost(rows)]
    result = Result(rows=tuple(rows), comparisons=tuple(found), sentences=tuple(sentences))
    write_rows(settings.folder / "study.csv", rows)
    about = f"{settings.data or settings.preset}, {settings.num_steps:,} steps of {settings.batch_size}"
    title = f"ALAE {settings.size}, {about}"
    words = "\n".join(f"- {each}" for each in sentences)
    save_text(settings.folder / "study.md", f"# {title}\n\n{RULE}\n\n{words}\n\n{table(rows, arms, found)}\n")
    draw_study(settings.folder / "study.png", rows, arms, found, key, title)
    write_json(settings.folder / "result.json", {**asdict(result), "rule": RULE, "settings": settings.decisive()})
    if not settings.quiet:
        print("\n".join([RULE, *sentences, f"{settings.folder}: study.csv, study.md, study.png, result.json"]))
    return result


def late(settings: StudySettings) -> list[str]:
    """Slots that runs are too short for, as they begin later."""
    seen = (settings.num_steps or 0) * (settings.batch_size or 0) * (settings.clip_length or 1)
    slots = {slot.name: slot for names in settings.slots().values() for slot in slots_named(names)}
    return [
        f"{name} has its full weight from {whole:,} pictures on, the runs see {seen:,}: train longer."
        for name, slot in slots.items()
        if (whole := slot.start + slot.warmup) >= seen and slot.start
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a line for each run."""
    names = [*PACE, *figures_of(rows), *figures_of(rows, yardsticks=True)]

    def write(place: Path) -> None:
        with place.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["arm", "seed", "outcome", *names, "error"], restval="")
            writer.writeheader()
            for row in rows:
                about = {"arm": row.arm, "seed": row.seed, "outcome": row.outcome, "error": row.error}
                writer.writerow({**about, **row.pace, **row.figures})

    whole_file(path, write)


app: Any = command(StudySettings, run)

if __name__ == "__main__":
    app()
