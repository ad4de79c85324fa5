"""The study of ALAE's slots: what is trained, what of it stays, and which differences are larger than the spread."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("timm")

from fractal_streams.recipes import sweep_worker
from fractal_streams.recipes.alae import study, train
from fractal_streams.recipes.alae.features import opened_features
from fractal_streams.recipes.alae.sources import opened_source
from fractal_streams.recipes.alae.study import QUESTIONS, StudySettings
from fractal_streams.recipes.alae.study_plot import COLOURS, draw_figure, draw_study, standing_by
from fractal_streams.recipes.alae.study_verdicts import (
    Row,
    Spread,
    compared,
    comparison,
    figures_of,
    is_yardstick,
    over_floors,
    paired,
    said_of,
    student,
    table,
    welch,
)
from fractal_streams.recipes.journal import read_records
from fractal_streams.recipes.models.classifiers import save_classifier, vision_transformer
from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.sweep import Slot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from fractal_streams.errors import DivergedError, InvalidValueError, UnknownNameError

TINY: dict[str, Any] = {
    "arms": ("plain", "contrastive"), "seeds": (0, 1, 2), "parallel": 1, "size": "tiny", "image_size": 8,
    "num_steps": 20, "batch_size": 16, "final_samples": 32, "feature_steps": 0, "device": "cpu", "quiet": True,
}  # fmt: skip
FIGURES = {"psnr": 15.0, "psnr_box": 17.6, "ratio": 0.5, "frechet_own": 12.0, "frechet_own_floor": 2.0, "path_own": 9.0}


def tiny(folder: Path, **asked: Any) -> StudySettings:
    return StudySettings(**{**TINY, "folder": folder, **asked})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[train.ALAESettings]:
    """Runs that are planted in place of trained ones, here: slots lift PSNR by 2 dB, and seeds differ by 0.1."""
    calls: list[train.ALAESettings] = []

    def run(settings: train.ALAESettings) -> None:
        calls.append(settings)
        if "l1" in settings.slots and settings.seed == 1:
            raise DivergedError("step 7: fakes are all alike")
        if "seed_cycle" in settings.slots and len([each for each in calls if each.folder == settings.folder]) == 1:
            raise RuntimeError("out of memory")
        figures = {**FIGURES, "psnr": 15.0 + 0.1 * settings.seed + 2.0 * bool(settings.slots)}
        figures["path_own"] += settings.seed
        figures["ssim"] = math.nan if settings.seed == 1 else 0.5
        result = train.Result(
            steps=settings.num_steps, weights=9, images_per_second=5.0, waiting=0.0, memory=1, seconds=2.0,
            figures=figures,
        )  # fmt: skip
        told = {**asdict(result), "settings": settings.whole.decisive()}
        write_json(settings.folder / "result.json", told)

    def answer(slot: Slot, asked: Any) -> dict[str, str]:
        told = {item.name: getattr(asked, item.name) for item in fields(asked)}
        return sweep_worker.outcome(json.loads(json.dumps(told, default=str)), slot.recipe)

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(Slot, "answer", answer)
    monkeypatch.setattr(study, "draw_study", lambda *_: None)
    return calls


def rows_of(figures: dict[str, dict[str, list[float]]]) -> list[Row]:
    """Rows of arm to figure to the values of seeds."""
    return [
        Row(arm=arm, seed=seed, outcome="trained", figures={name: values[seed] for name, values in own.items()})
        for arm, own in figures.items()
        for seed in range(len(next(iter(own.values()))))
    ]


@pytest.mark.parametrize(
    "quotient, freedom, chance",
    [
        (0.0, 3.3, 1.0), (12.7062047, 1.0, 0.05), (4.3026527, 2.0, 0.05), (2.7764451, 4.0, 0.05),
        (4.6040949, 4.0, 0.01), (2.2281389, 10.0, 0.05), (1.9839715, 100.0, 0.05), (3.0, 2.0, 1 - 3 / math.sqrt(11)),
        (5.0, 1.0, 1 - 2 / math.pi * math.atan(5.0)),
    ],
)  # fmt: skip
def test_student_s_t_is_that_of_tables_and_closed_forms(quotient: float, freedom: float, chance: float) -> None:
    assert student(quotient, freedom) == pytest.approx(chance, rel=1e-5)


def test_welch_s_test_of_a_known_example() -> None:
    """Two groups of 15 with t = -2.46, 25 degrees of freedom, p = 0.021: a textbook's."""
    first = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    other = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    chance = welch(Spread.of(first), Spread.of(other))
    assert chance is not None and round(chance, 3) == 0.021
    assert welch(Spread.of(first), Spread.of(first)) == pytest.approx(1.0)
    assert welch(Spread.of([1.0]), Spread.of(other)) is None


@pytest.mark.parametrize(
    "figure, here, first, verdict",
    [
        ("psnr", [17.0, 17.1, 17.2], [15.0, 15.1, 15.2], "helps"),
        ("psnr", [15.0, 15.1, 15.2], [17.0, 17.1, 17.2], "hurts"),
        ("frechet_own_over_floor", [17.0, 17.1, 17.2], [15.0, 15.1, 15.2], "hurts"),
        ("reciprocity", [0.1, 0.11, 0.12], [0.3, 0.31, 0.32], "helps"),
        ("path_own", [0.1, 0.11, 0.12], [0.3, 0.31, 0.32], "lowers"),
        ("code_deviation", [0.5, 0.51, 0.52], [0.3, 0.31, 0.32], "raises"),
        ("psnr", [17.0, 15.1, 17.2], [15.0, 15.1, 15.2], "within the spread"),
        ("psnr", [15.3, 17.0, 20.0], [15.0, 15.1, 15.2], "within the spread"),
        ("psnr", [1.0] * 9 + [0.0], [0.0] * 9 + [1.0], "within the spread"),
        ("psnr", [15.0, 15.0, 15.0], [15.0, 15.0, 15.0], "within the spread"),
        ("psnr", [15.1, 15.1, 15.1], [15.0, 15.0, 15.0], "helps"),
        ("psnr", [17.0], [15.0, 15.1, 15.2], "too few seeds"),
    ],
)
def test_the_rule_on_planted_numbers(figure: str, here: list[float], first: list[float], verdict: str) -> None:
    found = comparison(figure, "arm", dict(enumerate(here)), dict(enumerate(first)))
    assert found.verdict == verdict
    assert found.difference == pytest.approx(sum(here) / len(here) - sum(first) / len(first))


def test_seeds_are_compared_one_by_one_too() -> None:
    """A difference that is the same for each seed is seen beside any spread of seeds; of seeds of both arms alone."""
    found = comparison("psnr", "arm", {0: 15.1, 1: 17.12, 2: 19.11, 7: 99.0}, {2: 19.0, 1: 17.0, 0: 15.0, 8: 3.0})
    assert found.verdict == "within the spread"
    quotient = 0.11 / 0.01 * math.sqrt(3)
    assert found.paired == pytest.approx(1 - quotient / math.sqrt(2 + quotient**2), rel=1e-6)
    assert paired([0.0, 0.0]) == 1.0 and paired([1.0, 1.0]) == 0.0 and paired([1.0]) is None


def test_what_the_rule_sees() -> None:
    """By chance alone at most 5 % fall outside the spread; of 2 and 4 deviations the stated shares do."""
    draws = torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = {}
    for apart in (0.0, 2.0, 4.0):
        moved = draws + torch.tensor([[apart], [0.0]])
        found = [comparison("psnr", "arm", *(dict(enumerate(arm)) for arm in pair)).verdict for pair in moved.tolist()]
        seen[apart] = 1 - found.count("within the spread") / 400
        assert not apart or found.count("hurts") <= 1
    assert 0.0 < seen[0.0] <= 0.05
    assert seen[2.0] == pytest.approx(1 / 3, abs=0.07) and seen[4.0] == pytest.approx(0.9, abs=0.05)


def test_figures_and_yardsticks_are_told_apart() -> None:
    figures = (
        "frechet_random kernel_random frechet_own_reconstructions swd swd_16 swd_16_reconstructions spectrum psnr ssim "
        "psnr_median spectrum_error ratio reciprocity code_deviation path_own class_linear_codes class_nearest_codes "
        "psnr_picture r_squared_codes speed_codes swd_over_floor frechet_random_over_floor"
    )
    yardsticks = (
        "kernel_random_error kernel_own_reconstructions_error class_linear_untrained speed_pixels speed_untrained "
        "frechet_own_floor kernel_own_floor kernel_own_floor_error swd_16_floor spectrum_floor psnr_mean_colour "
        "psnr_box psnr_picture_box psnr_median_pca spectrum_error_box spectrum_error_mean_colour class_chance "
        "class_linear_pixels r_squared_spectrum class_linear_colours class_nearest_random_convolutions"
    )
    assert [name for name in figures.split() if is_yardstick(name)] == []
    assert [name for name in yardsticks.split() if not is_yardstick(name)] == []


def test_distances_over_their_floors() -> None:
    found = over_floors({
        "swd_16": 6.0, "swd_16_floor": 2.0, "frechet_own": 9.0, "frechet_own_reconstructions": 12.0,
        "frechet_own_floor": 3.0, "spectrum": 1.0, "spectrum_floor": 0.0, "kernel_own": 1.0, "kernel_own_floor": 0.5,
    })  # fmt: skip
    over = {name: value for name, value in found.items() if name.endswith("_over_floor")}
    assert over == {"swd_16_over_floor": 3.0, "frechet_own_over_floor": 3.0,
                    "frechet_own_reconstructions_over_floor": 4.0}  # fmt: skip


def test_every_figure_of_every_arm_is_held_to_the_first() -> None:
    rows = rows_of({
        "plain": {"psnr": [15.0, 15.1, 15.2], "ratio": [0.5, 0.6, 0.7], "psnr_box": [17.0] * 3},
        "a": {"psnr": [16.0, 16.1, 16.2], "ratio": [0.5, 0.6, 0.7], "psnr_box": [17.0] * 3},
        "b": {"psnr": [15.0, 15.1, 15.2], "ratio": [0.5, 0.6, 0.7], "psnr_box": [17.0] * 3},
    })  # fmt: skip
    found = compared(rows, ["plain", "a", "b"])
    told = {(each.arm, each.figure): each.verdict for each in found}
    assert len(found) == 4 and told["a", "psnr"] == "helps"
    assert {told["a", "ratio"], told["b", "psnr"], told["b", "ratio"]} == {"within the spread"}
    assert figures_of(rows, yardsticks=True) == ["psnr_box"]
    assert said_of("a", found, ["psnr", "ratio"]) == "a: helps psnr (15.1 to 16.1); within the spread: 1 of 2."
    assert said_of("b", found, ["psnr"]) == "b: does not help any of 1 figures; within the spread: 1 of 1."
    assert "nothing to say" in said_of("c", found, ["psnr", "ratio"])
    lines = table(rows, ["plain", "a", "b"], found).splitlines()
    assert lines[0] == "| figure | plain | a | b |"
    assert "15.1 ± 0.1 (15 to 15.2) | 16.1 ± 0.1 (16 to 16.2) **helps**, p 0.00026, paired 0.0001" in lines[2]
    assert lines[-1] == "| psnr_box | 17 ± 0 (17 to 17) |"


def test_a_study_trains_every_run_once_and_tells_of_all(
    tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "draw_study", draw_study)
    first = study.run(tiny(tmp_path))
    assert sorted(each.folder.name for each in trained) == sorted(
        f"{arm}-seed-{seed}" for arm in ("plain", "contrastive") for seed in (0, 1, 2)
    )
    told = {each.figure: each for each in first.comparisons}
    assert told["psnr"].verdict == "helps" and told["psnr"].difference == pytest.approx(2.0)
    assert told["ssim"].here.count == 2 and told["ssim"].here.mean == 0.5
    assert told["path_own"].verdict == told["ratio"].verdict == "within the spread"
    assert told["frechet_own_over_floor"].here.mean == 6.0
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["outcome"]) for row in rows] == [
        (arm, str(seed), "trained") for arm in ("plain", "contrastive") for seed in (0, 1, 2)
    ]
    assert [float(row["psnr"]) for row in rows] == pytest.approx([15.0, 15.1, 15.2, 17.0, 17.1, 17.2])
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["sentences"] == list(first.sentences) and len(kept["rows"]) == 6
    assert "**helps**" in (tmp_path / "study.md").read_text()
    assert Image.open(tmp_path / "study.png").size[0] > 400


def test_runs_that_are_done_stay(tmp_path: Path, trained: list[Any]) -> None:
    first = study.run(tiny(tmp_path, seeds=(0, 2)))
    again = study.run(tiny(tmp_path, seeds=(0, 2)))
    assert len(trained) == 4 and again == first
    (tmp_path / "runs" / "plain-seed-2" / "result.json").unlink()  # as of one that was stopped
    study.run(tiny(tmp_path, seeds=(0, 2), arms=("plain", "contrastive", "patches=0.3+slow_features")))
    assert sorted(each.folder.name for each in trained[4:]) == [
        "patches=0.3+slow_features-seed-0", "patches=0.3+slow_features-seed-2", "plain-seed-2",
    ]  # fmt: skip
    assert trained[4].slots == ("patches=0.3", "slow_features")
    for other in ({"num_steps": 30}, {"final_samples": 64}):
        with pytest.raises(InvalidValueError, match=next(iter(other))):
            study.run(tiny(tmp_path, **other))
    assert len(trained) == 7


def test_a_run_that_diverges_is_a_row_that_says_so(tmp_path: Path, trained: list[Any]) -> None:
    found = study.run(tiny(tmp_path, arms=("plain", "pixels")))
    assert len(trained) == 6
    outcomes = {(row.arm, row.seed): row.outcome for row in found.rows}
    assert outcomes.pop(("pixels", 1)) == "diverged" and set(outcomes.values()) == {"trained"}
    assert found.comparisons[0].here.count == 2 and found.comparisons[0].first.count == 3
    assert found.sentences[-1] == "pixels, seed 1: diverged, step 7: fakes are all alike"
    assert "seed 1: diverged" in (tmp_path / "study.md").read_text()
    study.run(tiny(tmp_path, arms=("plain", "pixels")))
    assert len(trained) == 6


def test_a_run_that_fails_is_tried_again(tmp_path: Path, trained: list[Any]) -> None:
    first = study.run(tiny(tmp_path, arms=("plain", "seed_cycle"), seeds=(0,)))
    assert [(row.outcome, row.error) for row in first.rows] == [
        ("trained", ""), ("failed", "RuntimeError: out of memory"),
    ]  # fmt: skip
    again = study.run(tiny(tmp_path, arms=("plain", "seed_cycle"), seeds=(0,)))
    assert [row.outcome for row in again.rows] == ["trained", "trained"] and len(trained) == 3
    assert {each.verdict for each in again.comparisons} == {"too few seeds"}


def test_all_runs_compare_by_one_classifier(
    tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []

    def own_features(stream: Any, folder: Path, asked: Any, accelerator: Any) -> None:
        made.append((asked.num_steps, stream.num_classes))
        folder.mkdir()
        (folder / "result.json").write_text("{}")

    monkeypatch.setattr(study, "own_features", own_features)
    study.run(tiny(tmp_path, feature_steps=7, seeds=(0,), preset="fractal-10"))
    assert made == [(7, 10)]
    assert {each.features for each in trained} == {tmp_path / "features"}


def test_a_run_opens_the_classifier_that_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    form = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3, "image_size": 8, "patch_size": 4}
    save_classifier(tmp_path, vision_transformer(**form), "vision_transformer", form)
    settings = train.ALAESettings(size="tiny", image_size=8, features=tmp_path, feature_steps=0, device="cpu")
    test, pictures = opened_source(settings, "test", "cpu"), torch.rand(4, 3, 8, 8)
    found = train.classifier(settings, test)
    assert found is not None and torch.equal(found(pictures), opened_features(tmp_path, 8)(pictures))
    assert train.classifier(replace(settings, features=None), test) is None


def test_what_the_two_questions_train(tmp_path: Path) -> None:
    contrast = StudySettings(folder=tmp_path).runs()
    assert len(contrast) == 4 * 3 and len({asked.folder for _, asked in contrast}) == 12
    assert {asked.slots for arm, asked in contrast if arm == "plain"} == {()}
    assert {asked.image_size for _, asked in contrast} == {32} and {asked.clip_length for _, asked in contrast} == {
        None
    }
    assert [arm for arm, _ in contrast[:4]] == ["both", "contrastive", "pixels", "plain"]
    clips = StudySettings(question="time", folder=tmp_path).runs()
    assert len(clips) == 5 * 3 and {(asked.preset, asked.clip_length) for _, asked in clips} == {("fractal-video", 8)}
    assert {slot for _, asked in clips for slot in asked.slots} == {"time_contrast", "slow_features", "straightness"}
    for question in QUESTIONS.values():
        assert next(iter(question.arms.values())) == () and not any(map(is_yardstick, question.key))
    with pytest.raises(UnknownNameError, match="patchez"):
        StudySettings(arms=("plain", "l1+patchez"))
    with pytest.raises(InvalidValueError, match="twice"):
        StudySettings(arms=("plain", "plain"))


def test_slots_that_begin_too_late_are_named() -> None:
    short = StudySettings(arms=("plain", "real_cycle", "l1"), num_steps=400, batch_size=128).whole
    assert study.late(short) == [
        "real_cycle has its full weight from 100,000 pictures on, the runs see 51,200: train longer."
    ]
    assert study.late(replace(short, num_steps=4000)) == []


def test_a_plot_shows_seeds_means_and_yardsticks() -> None:
    rows = rows_of({
        "plain": {"psnr": [15.0, 15.1, 15.2], "psnr_box": [17.5] * 3},
        "good": {"psnr": [16.0, 16.1, 16.3], "psnr_box": [17.7] * 3},
    })  # fmt: skip
    axes = Figure().subplots()
    verdicts = {(each.figure, each.arm): each.verdict for each in compared(rows, ["plain", "good"])}
    draw_figure(axes, rows, ["plain", "good"], verdicts, "psnr")
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[15.0, 15.1, 15.2], [16.0, 16.1, 16.3]]
    assert [set(line.get_ydata()) for line in dots] == [{0}, {1}]
    assert [to_rgba(line.get_color()) for line in dots] == [to_rgba(COLOURS["first"]), to_rgba(COLOURS["helps"])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "good", "8 x 8 box"]
    assert standing_by(rows, "psnr") == {"8 x 8 box": pytest.approx(17.6)}


@pytest.mark.slow
@pytest.mark.parametrize("question, arms", [("contrast", ("plain", "both")), ("time", ("plain", "together"))])
def test_a_study_that_is_killed_goes_on(question: str, arms: tuple[str, ...], tmp_path: Path) -> None:
    """Real runs in processes of their own, examined, and compared by a classifier that was trained once."""
    asked = tiny(
        tmp_path, question=question, arms=arms, seeds=(0,), parallel=2, feature_steps=3, final_samples=64,
        image_size=16, clip_length=4 if question == "time" else None, num_steps=40, batch_size=8,
    )  # fmt: skip
    names = ("question", "arms", "seeds", "clip_length", *TINY)
    given = {name: getattr(asked, name) for name in dict.fromkeys(names) if getattr(asked, name) is not None}
    words = [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in given.items()
        if name != "quiet"
    ]
    call = [sys.executable, "-m", "fractal_streams.recipes.alae.study", "--quiet", f"--folder={tmp_path}", *words]
    process = subprocess.Popen(call)
    while not list(tmp_path.glob("runs/*/checkpoint/step-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    trained = (tmp_path / "features" / "result.json").stat().st_mtime_ns
    found = study.run(asked)
    assert [row.outcome for row in found.rows] == ["trained", "trained"], found.rows
    assert (tmp_path / "features" / "result.json").stat().st_mtime_ns == trained
    assert not list(tmp_path.glob("runs/*/features"))
    assert {*QUESTIONS[question].key} <= {each.figure for each in found.comparisons}
    steps = [[int(row["step"]) for row in read_records(tmp_path / "runs" / f"{arm}-seed-0")] for arm in arms]
    assert steps == [list(range(2, 41, 2))] * 2
