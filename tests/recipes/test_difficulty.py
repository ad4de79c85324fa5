"""The census against NumPy and in closed form; baselines that learn, resume and are graded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

for package in ("accelerate", "timm", "torch"):
    pytest.importorskip(package)

import torch
from fractal_streams.recipes import baselines, checkpoint, difficulty
from fractal_streams.recipes.baselines import BaselineResult, BaselineSettings
from fractal_streams.recipes.census import Census, measured
from fractal_streams.recipes.difficulty import DifficultySettings, Grading

from fractal_streams import Batch, Stream, open_stream
from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.presets import PRESETS
from fractal_streams.priors import Uniform
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices

TINY: dict[str, Any] = {
    "num_steps": 40, "batch_size": 32, "warmup_steps": 5, "eval_samples": 400, "device": "cpu", "quiet": True,
}  # fmt: skip


SMALL = {"height": 16, "width": 16}


class Given(Stream):
    """Pictures that are given, again and again."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self.images, self.pixels, self.device = images, PixelFormat(), "cpu"
        self.seed, self.split, self.num_classes = 0, "train", 1

    def digest(self) -> str:
        return "given"

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        return Batch(index, self.images[index % len(self.images)], np.zeros(len(index), np.int64), {})


def pictures() -> npt.NDArray[np.uint8]:
    """16: one black, two of one colour, one faint, one with 97 % black pixels, others of noise."""
    images = np.random.default_rng(5).integers(0, 256, (16, 3, 10, 10)).astype(np.uint8)
    images[3] = 0
    images[7], images[8] = 200, np.array([10, 0, 90])[:, None, None]
    images[9] = 100 + 4 * (np.arange(100).reshape(10, 10) % 2)
    images[12].reshape(3, 100)[:, 3:] = 0
    images[13].reshape(3, 100)[:, 5:] = 0  # 95 %, and not more
    return images


@pytest.mark.parametrize("clips", [False, True])
def test_a_census_counts_what_is_there(clips: bool) -> None:
    images = pictures()
    census = measured(Given(np.stack([images[:8], images[8:]], 1)[:, :, :] if clips else images), 64, batch_size=16)
    assert census.samples == 64 and census.pictures == 64 * (2 if clips else 1)
    times = census.pictures // 16
    counts = [census.constant, census.black, census.faint, census.mostly_black]
    assert counts == [3 * times, times, 4 * times, 2 * times]
    assert census.share("constant") == 3 / 16 < census.at_most("constant") < 0.4
    levels = images / 255.0
    np.testing.assert_allclose(census.mean, levels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(census.std, levels.std((0, 2, 3)), rtol=1e-12)


def test_the_errors_are_those_of_groups_of_16() -> None:
    """Neighbours that are alike count as one observation: of 4,096 pictures, 256 levels, the error is that of 256."""
    level = np.random.default_rng(0).integers(0, 256, 256)
    images = np.repeat(level, 16).astype(np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 4), np.uint8)
    census = measured(Given(images), 4096)
    np.testing.assert_allclose(census.mean_error, (level / 255).std() / np.sqrt(255), rtol=1e-9)
    spread = np.array([np.random.default_rng(k).choice(level / 255, 256).std() for k in range(2000)]).std()
    np.testing.assert_allclose(census.std_error, spread, rtol=0.1)  # the bootstrap's


DEFAULT = [name for name in difficulty.countable() if name.startswith("fractal")]
FAMILIES = pytest.param("fractal-families", marks=pytest.mark.slow)  # sixteen kernels to compile


@pytest.mark.parametrize("name", [FAMILIES if name == "fractal-families" else name for name in DEFAULT])
def test_default_presets_have_few_degenerate_pictures(name: str) -> None:
    """Below 0.5 %, all black ones and constant ones, by the upper end of the 95 % interval."""
    census = measured(open_stream(name, device="cpu", **SMALL), 128 if name == "fractal-video" else 2048)
    assert census.at_most("constant") < 0.005 and census.at_most("black") < 0.005
    assert census.at_most("faint") < 0.01


def test_other_priors_make_more() -> None:
    """Powers near 0 leave a spot in the middle: such pictures are found where they are known to be."""
    lively = PRESETS["fractal-10"]
    low = lively.replace(priors={**lively.priors, "power": Uniform(0.0, 0.25)})
    shares = [measured(open_stream(spec, device="cpu", **SMALL), 512).share("mostly_black") for spec in (lively, low)]
    assert shares[0] < 0.03 < 0.1 < shares[1]


@pytest.mark.parametrize("asked", [{"samples": 24}, {"samples": 16}])
def test_an_odd_census_is_refused(asked: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match="samples must be"):
        measured(Given(pictures()), **asked)
    with pytest.raises(InvalidValueError, match="uint8 levels"):
        measured(open_stream("fractal-10", device="cpu", dtype="float32"), 32)


def settings(folder: Path, **changes: Any) -> BaselineSettings:
    return BaselineSettings(**{**TINY, "preset": "fractal-10", "image_size": 8, "folder": folder, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    place = checkpoint.latest(folder / "checkpoint")
    assert place is not None
    return checkpoint.load(place)["network"]  # type: ignore[no-any-return]


def test_a_linear_baseline_learns_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    whole = baselines.run(settings(tmp_path / "whole", baseline="linear"))
    assert whole.samples == 40 * 32 and whole.weights == 10 * (3 * 8 * 8 + 1)
    assert whole.low > 0.14 and whole.low < whole.accuracy < whole.high and whole.chance == 0.1

    class Stopped(Exception):
        pass

    def write(journal: Any, record: Any, figures: Any) -> None:
        if record.step == 30:
            raise Stopped

    stopped = settings(tmp_path / "stopped", baseline="linear", checkpoint_every=20, record_every=10)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(baselines.Journal, "write", write)
        baselines.run(stopped)
    place = checkpoint.latest(tmp_path / "stopped" / "checkpoint")
    assert place is not None and place.name.endswith("20")
    assert not (tmp_path / "stopped" / "result.json").exists()
    again = baselines.run(stopped)
    assert replace(again, images_per_second=0.0) == replace(whole, images_per_second=0.0)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_baseline_that_is_done_is_read_and_another_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    few = settings(tmp_path, baseline="linear", num_steps=2)
    done = baselines.run(few)
    other = baselines.run(replace(few, val_seed=1))
    assert other.test_loss != done.test_loss and other.val_seed == 1  # other pictures are held out
    assert baselines.run(few) == done
    monkeypatch.setattr(baselines, "open_accelerator", None)  # nothing is trained
    assert baselines.run(few) == done
    with pytest.raises(InvalidValueError, match="num_steps=2, not 3"):
        baselines.run(replace(few, num_steps=3))


@pytest.mark.parametrize("baseline, least", [("linear", 1_930), ("cnn", 1_100_000), ("vit", 5_300_000)])
def test_the_baselines_are_the_ones_that_are_named(baseline: str, least: int) -> None:
    """ViT-Ti has 5.7 million weights with 196 patches of 16 and 1000 classes: 5.4 million here."""
    edge = 8 if baseline == "linear" else 32
    network = baselines.build(baseline, 10, edge)
    assert least <= sum(weight.numel() for weight in network.parameters()) < 1.1 * least
    assert network(torch.zeros(2, 3, edge, edge)).shape == (2, 10)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, difficulty.DifficultyResult]]:
    folder = tmp_path_factory.mktemp("difficulty")
    patched = pytest.MonkeyPatch()
    patched.setattr(baselines, "CNN_WIDTH", 8)
    asked = DifficultySettings(
        **TINY, folder=folder, presets=("fractal-1k@8", "fractal-10@8"), baselines=("linear", "cnn")
    )
    yield folder, difficulty.run(asked)
    patched.undo()


def test_presets_are_ranked_by_their_best_baseline(graded: tuple[Path, difficulty.DifficultyResult]) -> None:
    folder, found = graded
    assert [each.name for each in found.gradings] == ["fractal-10@8", "fractal-1k@8"]
    easier, harder = found.gradings
    assert easier.best.low > 0.14 > harder.best.high and harder.grade == "unsolved"
    for each in found.gradings:
        assert each.best.accuracy == max(result.accuracy for result in each.results)
    told = json.loads((folder / "grades.json").read_text())
    assert [each["preset"] for each in told] == ["fractal-10@8", "fractal-1k@8"]
    assert BaselineResult(**told[0]["results"][0]) == easier.best
    table = (folder / "table.md").read_text().splitlines()
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| fractal-10 | 8 | 10 | 10 |") and f"{100 * easier.best.accuracy:.1f} (" in table[2]
    assert table[3].startswith("| fractal-1k | 8 | 1,000 | 0.1 |") and table[3].endswith("| unsolved |")
    assert (folder / "difficulty.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "accuracy, word", [(0.97, "easy"), (0.9, "easy"), (0.7, "moderate"), (0.2, "hard"), (0.1, "unsolved")]
)
def test_grades(accuracy: float, word: str, graded: tuple[Path, difficulty.DifficultyResult]) -> None:
    best = replace(graded[1].gradings[0].best, accuracy=accuracy)
    assert Grading(name="", results=(best,)).grade == word


def test_counting_writes_a_table_and_the_lines_of_normalisation(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    chosen = {name: PRESETS[name].replace(height=8, width=8) for name in ("fractal-10", "fractal-video")}
    monkeypatch.setattr(difficulty, "countable", lambda: list(chosen))
    monkeypatch.setattr(difficulty, "open_stream", lambda name, device: open_stream(chosen[name], device=device))
    difficulty.run(DifficultySettings(count_only=True, count=256, folder=tmp_path, device="cpu"))
    told = {name: Census(**one) for name, one in json.loads((tmp_path / "census.json").read_text()).items()}
    assert told["fractal-10"].samples == 256 and told["fractal-video"].pictures == 32 * 16
    assert len((tmp_path / "census.md").read_text().splitlines()) == 4
    mean = ", ".join(f"{value:.4f}" for value in told["fractal-10"].mean)
    assert f'"fractal-10": (({mean}), (' in capsys.readouterr().out


def test_odd_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fractal-10'"):
        DifficultySettings(presets=("fractl-10",))
    with pytest.raises(InvalidValueError, match="NAME@EDGE"):
        DifficultySettings(presets=("fractal-10@big",))
    with pytest.raises(InvalidValueError, match="square stills"):
        baselines.edge_of(open_stream("fractal-video", device="cpu"))


@pytest.mark.gpu
def test_a_gpu_counts_what_a_cpu_counts() -> None:
    """But for pixels near a boundary, on which the two renderers differ."""
    found = [measured(open_stream("fractal-10", device=device), 4096) for device in ("cpu", "cuda")]
    for name in ("mean", "std", "mean_error", "std_error"):
        np.testing.assert_allclose(getattr(found[0], name), getattr(found[1], name), rtol=1e-3)
    for kind in difficulty.DEGENERATE:
        assert abs(getattr(found[0], kind) - getattr(found[1], kind)) <= 4


@pytest.mark.gpu
@pytest.mark.parametrize("baseline, least", [("linear", 0.2), ("cnn", 0.5), ("vit", 0.2)])
def test_a_gpu_trains_the_baselines(baseline: str, least: float, tmp_path: Path) -> None:
    asked = BaselineSettings(
        baseline=baseline, num_steps=200, batch_size=256, folder=tmp_path, device="cuda", quiet=True
    )
    assert baselines.run(asked).low > least
