"""The recipe from its settings to its folder: a tiny run's losses, guards, resume, and each choice once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from fractal_streams.recipes.alae import train as recipe
from fractal_streams.recipes.alae.guards import CollapseError, DiscriminatorWonError, Guards, GuardSettings
from fractal_streams.recipes.alae.keeping import load_model
from fractal_streams.recipes.alae.model import SIZES, Size
from fractal_streams.recipes.alae.priors import Gaussian
from fractal_streams.recipes.alae.sources import opened_source
from fractal_streams.recipes.alae.terms import TERMS
from fractal_streams.recipes.alae.train import ALAESettings, Result, run
from fractal_streams.recipes.journal import read_records
from fractal_streams.recipes.loop import open_accelerator
from torch import nn

from fractal_streams.errors import DivergedError, InvalidValueError

TIMED = ("time_contrast", "slow_features", "straightness")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size "tiny" with as few channels as show what a run does; other sizes are as they are."""
    own = Size(image_size=16, narrow=8, wide=16, code_size=16, projector=3, discriminator=3)
    monkeypatch.setitem(SIZES, "tiny", own)
    flat = Size(image_size=8, narrow=16, wide=16, code_size=8, projector=2, discriminator=2)
    monkeypatch.setitem(SIZES, "mlp", flat)


def settings_of(folder: Path, **changes: Any) -> ALAESettings:
    asked: dict[str, Any] = {
        "size": "tiny", "preset": "fractal-10", "num_steps": 2, "batch_size": 8, "record_every": 1,
        "eval_once_every": 1000, "checkpoint_every": 1000, "test_samples": 32, "final_samples": 0, "feature_steps": 0,
        "device": "cpu", "quiet": True, "folder": folder,
    }  # fmt: skip
    return ALAESettings(**{**asked, **changes})


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose pictures nobody looks at."""
    monkeypatch.setattr(recipe.Showing, "save", lambda *_: [])


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.usefixtures("drawn_curves")
def test_a_tiny_run_is_healthy(tmp_path: Path) -> None:
    """60 steps: the discriminator leads and has not won, G follows it, and E finds the codes again."""
    settings = settings_of(tmp_path, num_steps=60, record_every=10, batch_size=16, ema_images=200)
    result = run(settings)
    rows = read_records(tmp_path)
    assert [row["step"] for row in rows] == list(range(10, 61, 10)) and rows[-1]["samples"] == 960
    first, last = rows[0], rows[-3:]
    assert first["discriminator"] < 1.8 and 0.6 < mean(last, "discriminator") < 1.3
    assert 0.7 < mean(last, "generator") < 2.5
    assert 0.1 < mean(last, "real_score") - mean(last, "fake_score") < 3.5
    assert mean(last, "reciprocity") < first["reciprocity"] / 2.0
    assert mean(last, "relative_reciprocity") < first["relative_reciprocity"] / 2.0
    assert 0.3 < mean(last, "code_deviation") < 1.5  # and not because codes have shrunk
    assert 0.01 < mean(last, "r1") < 2.0
    assert {"test_psnr", "test_ratio"} <= rows[-1].keys()
    assert isinstance(result, Result) and result.steps == 60 and result.figures == {}
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["weights"] == result.weights == sum(each.numel() for each in load_model(tmp_path).parameters())
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"records.csv", "curves.png", "pictures", "checkpoint", "model.safetensors", "result.json"}
    assert (tmp_path / "pictures" / "00000060" / "four_columns.png").is_file()
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.usefixtures("unseen")
def test_a_run_goes_on_where_it_was_stopped_and_its_folder_is_its_own(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"num_steps": 6, "checkpoint_every": 3, "r1_every": 2}
    whole = settings_of(tmp_path / "whole", **asked)
    run(whole)
    stopped = settings_of(tmp_path / "stopped", **asked)
    told = recipe.watch

    def stop(guards: Guards, step: int, terms: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt
        told(guards, step, terms)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "watch", stop)
        run(stopped)
    watched: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "watch", lambda _, step, __: watched.append(step))
        run(stopped)
    assert watched == [1, 2, 3, 4, 5, 6]  # the guards are told again what was before
    ours, theirs = (load_model(tmp_path / name).state_dict() for name in ("stopped", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    same = ("step", "samples", "loss", "r1", "generator", "relative_reciprocity")
    rows = [
        [{name: row[name] for name in same} for row in read_records(tmp_path / name)] for name in ("stopped", "whole")
    ]
    assert rows[0] == rows[1]
    with pytest.raises(InvalidValueError, match="gamma"):
        run(settings_of(tmp_path / "stopped", **{**asked, "gamma": 1.0}))


@pytest.mark.usefixtures("unseen")
def test_a_discriminator_that_wins_ends_the_run(tmp_path: Path) -> None:
    """Without R1 and with a G that hardly follows."""
    settings = settings_of(
        tmp_path, num_steps=300, record_every=5, batch_size=8, gamma=0.0, lr=1e-2, least_loss=0.3, won_steps=10,
        reciprocity_weight=0.0,
    )  # fmt: skip
    halved = recipe.looped

    def still(*args: Any) -> Any:
        loop = halved(*args)
        group = loop.updates.optimisers.parts["generator"].param_groups[0]
        group["lr"] = group["initial_lr"] = 1e-9
        return loop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DiscriminatorWonError, match="raise the weight of R1"):
        patch.setattr(recipe, "looped", still)
        run(settings)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.usefixtures("unseen")
def test_fakes_that_are_all_alike_and_what_is_no_number_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match="one picture of all"):
        run(settings_of(tmp_path / "alike", num_steps=20, grace_steps=2, collapsed_records=3))  # they begin grey
    rows = read_records(tmp_path / "alike")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # the fifth has no row: it ended the run
    with pytest.raises(DivergedError):
        run(settings_of(tmp_path / "none", num_steps=20, lr=1e30))
    guards = Guards(settings=GuardSettings())
    fine = {"discriminator": 1.0, "generator": 1.0, "reciprocity": 1.0, "fake_deviation": 0.3, "real_deviation": 0.5}
    recipe.watch(guards, 1, {**fine, "r1": float("nan"), "hessian": float("nan")})  # not yet due
    with pytest.raises(DivergedError, match="reciprocity is nan"):
        recipe.watch(guards, 2, {**fine, "reciprocity": float("nan")})


RARE = ("codes", "parameters", "mlp", "grow", "lazy")
CHOICES: dict[str, dict[str, Any]] = {
    "grow": {"grow": True, "dense": True, "stable_images": 8, "fade_images": 16, "num_steps": 5, "ema_images": 0},
    "codes": {"prior": "codes"},
    "parameters": {"prior": "parameters", "separate": True, "reciprocity": "paper"},
    "mlp": {"size": "mlp", "activation": "none", "slots": ("latent_infonce", "l1")},
    "stills": {"slots": tuple(f"{name}=0.01" for name in TERMS if name not in TIMED), "num_steps": 2},
    "clips": {
        "preset": "fractal-video",
        "image_size": 16,
        "clip_length": 4,
        "batch_size": 2,
        "slots": TIMED,
        "prior": "parameters",
    },
    "lazy": {"r1_every": 2, "mixing": 0.0, "clip": 1.0, "projector_rate": 0.01},
}


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RARE else []) for name in CHOICES]
)
def test_each_choice_trains(name: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **CHOICES[name])
    result = run(settings)
    rows = read_records(tmp_path)
    assert result.steps == len(rows) == settings.num_steps
    for slot in settings.slots:
        value = rows[-1][slot.partition("=")[0]]
        late = slot.startswith(("real_cycle", "hessian"))  # begin with later pictures
        assert (value != value) == late, slot
    model = load_model(tmp_path)
    draws = torch.randn(4, model.prior_size)
    with torch.no_grad():
        again = model.encode(model.decode(model.project(draws), noise=False))
    assert again.shape == (4, model.code_size) and bool(again.isfinite().all())
    assert model.image_size == {"mlp": 8}.get(name, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stills", "clips", "mlp", "grow"])
def test_each_choice_is_shown_and_examined(name: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **{**CHOICES[name], "final_samples": 64, "feature_steps": 2})
    result = run(settings)
    assert {"psnr", "ratio", "reciprocity"} <= result.figures.keys()
    told = json.loads((tmp_path / "examination.json").read_text())
    assert told["figures"]["psnr"] == result.figures["psnr"] and (tmp_path / "examination.txt").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("unseen")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **rest: compile_(self, backend="eager", **rest))
    rows = []
    for compiled in (True, False):
        folder = tmp_path / str(compiled)
        run(settings_of(folder, compile=compiled, slots=("l1",)))
        rows.append(read_records(folder)[-1])
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"slots": ("l1=heavy",)}, "finite number"),
        ({"final_samples": 5}, "final_samples=5"),
        ({"image_size": 12}, "power of two"),
        ({"slots": ("straightness",)}, "need clips"),
        ({"accumulation": 2}, "accumulation=2"),
        ({"mixing": 1.5}, "mixing"),
    ],
)
def test_what_can_not_be_is_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=match):
        run(settings_of(tmp_path, **changes))


@pytest.mark.parametrize("frames", [None, 4])
def test_averages_slots_and_the_pace_count_pictures_and_not_clips(frames: int | None, tmp_path: Path) -> None:
    clips = {"preset": "fractal-video", "clip_length": frames} if frames else {}
    settings = settings_of(tmp_path, ema_images=80, image_size=16, num_steps=3, **clips).whole
    training = opened_source(settings, "train", "cpu")
    loop = recipe.looped(settings, training, Gaussian(SIZES["tiny"].code_size), open_accelerator(settings))
    assert loop.settings.ema ** (10 / (frames or 1)) == pytest.approx(0.5)
    begin, counted = loop.updates.begin, []
    loop.updates.begin = lambda step, seen: counted.append(seen) or begin(step, seen)  # type: ignore[method-assign]
    first = next(iter(loop))
    assert first.images_per_second * first.seconds == pytest.approx(8 * first.step * (frames or 1))
    list(loop)
    assert counted == [8 * (frames or 1) * step for step in range(3)]
    assert settings_of(tmp_path, ema_images=0).averaging(4).ema == 0.0
