"""Finite against endless: the crossover is where it was put, lines differ in samples alone, a stopped run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from fractal_streams.recipes import checkpoint, finite_vs_endless, journal
from fractal_streams.recipes.crossover import Curve, chance, leaving, show_table, table
from fractal_streams.recipes.finite_vs_endless import FiniteVsEndless, FiniteVsEndlessSettings, flipped_loss, run
from PIL import Image
from torch.nn import functional

from fractal_streams import StreamSpec, open_stream
from fractal_streams.errors import InvalidValueError
from fractal_streams.priors import Constant

TINY: dict[str, Any] = {
    "device": "cpu", "preset": "fractal-10", "image_size": 8, "model": "vit", "width": 32, "depth": 1, "lr": 1e-2,
    "num_steps": 100, "batch_size": 16, "warmup_steps": 5, "test_samples": 100, "points": 12, "ema": 0.9,
    "record_every": 20, "eval_once_every": 20, "checkpoint_every": 20, "sizes": (24,), "quiet": True,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[FiniteVsEndless, Path]:
    folder = tmp_path_factory.mktemp("finite") / "out"
    return run(FiniteVsEndlessSettings(**TINY, folder=folder)), folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that a test doesn't look at take longer than its training."""
    monkeypatch.setattr(journal, "draw_curves", lambda *given: None)
    monkeypatch.setattr(finite_vs_endless, "draw_crossover", lambda *given: None)


def curve(size: int | None, samples: Any, loss: Any, spread: float = 0.0) -> Curve:
    losses = np.asarray(loss, np.float64)
    return Curve(
        size=size, samples=np.asarray(samples, np.float64), test_loss=losses, test_accuracy=np.exp(-losses),
        seen_loss=losses / 2, spread=np.full(losses.shape, spread), each=losses[None],
    )  # fmt: skip


SAMPLES = np.geomspace(100, 1e6, 41)
ENDLESS = curve(None, SAMPLES, SAMPLES**-0.25)


@pytest.mark.parametrize("place, margin", [(1e3, 0.01), (2.5e4, 0.01), (2.5e4, 0.1), (9e5, 0.01)])
def test_a_line_leaves_where_its_gap_passes_the_margin(place: float, margin: float) -> None:
    finite = curve(50, SAMPLES, SAMPLES**-0.25 * (1 + margin * (SAMPLES / place) ** 2))
    assert leaving(finite, ENDLESS, margin) == SAMPLES[place < SAMPLES][0]


def test_a_line_that_comes_back_has_not_left_and_one_above_from_the_first_left_there() -> None:
    above = np.where((SAMPLES > 1e3) & (SAMPLES < 1e4), 1.5, 1.0)
    assert leaving(curve(50, SAMPLES, SAMPLES**-0.25 * above), ENDLESS, 0.01) is None
    assert leaving(curve(50, SAMPLES, SAMPLES**-0.25 * 1.02), ENDLESS, 0.01) == SAMPLES[0]
    assert leaving(curve(50, SAMPLES, SAMPLES**-0.25 * 0.5), ENDLESS, 0.01) is None
    late = curve(50, SAMPLES[1::2], SAMPLES[1::2] ** -0.25 * 1.02)
    assert leaving(late, ENDLESS, 0.01) == SAMPLES[1]


def test_what_seeds_make_of_the_difference_counts_as_noise() -> None:
    finite = curve(50, SAMPLES, SAMPLES**-0.25 + 1.1e-2 * SAMPLES / 1e6, spread=3e-4)
    noisy = curve(None, SAMPLES, SAMPLES**-0.25, spread=4e-4)
    expected = SAMPLES[1.1e-2 * SAMPLES / 1e6 > 2 * 5e-4][0]  # the hypotenuse of 3 and 4 is 5
    assert leaving(finite, noisy, 0.0) == expected
    assert leaving(replace(finite, spread=np.zeros(len(SAMPLES))), ENDLESS, 0.0) == SAMPLES[0]


def test_a_line_that_has_repeated_nothing_has_not_left_and_tells_what_chance_does() -> None:
    wave = 1 + 0.03 * np.sin(np.arange(len(SAMPLES)) * 1.7)
    begun = curve(10**6, SAMPLES, SAMPLES**-0.25 * wave)
    begun.test_loss[-1] = 1.029 * ENDLESS.test_loss[-1]
    assert leaving(begun, ENDLESS, 0.01) is None
    assert leaving(replace(begun, size=10**5), ENDLESS, 0.01) > 10**5  # type: ignore[operator]
    far = curve(1000, SAMPLES, SAMPLES**-0.25 * 2)
    far.test_loss[SAMPLES <= 1000] *= 0.5
    assert chance([begun, far, ENDLESS]) == pytest.approx(np.abs(wave - 1)[:-1].max())
    assert chance([far, ENDLESS]) == pytest.approx(0.0)
    assert chance([curve(50, SAMPLES, SAMPLES**-0.25), ENDLESS]) is None


def test_a_line_turns_at_its_first_lasting_minimum_however_low_it_falls_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = 100.0 * 2.0 ** np.arange(9)
    late = curve(200, samples, [4.0, 3.0, 2.3, 2.35, 2.4, 2.8, 2.2, 2.3, 2.5])  # a spike, and low behind it
    row, endless = table([late, curve(None, samples, 4.0 * 0.8 ** np.arange(9))], 0.01)
    assert (row.turns_at, row.best_at, row.best_loss) == (400.0, 6400.0, 2.2) and endless.turns_at is None
    show_table([row, endless], 0.015, 0.029)
    words = " ".join(capsys.readouterr().out.split())
    assert "2.2000 400 2.5000" in words and "1.5% above" in words and "by up to 2.9%" in words
    warming = curve(10**6, samples, [2.0, 3.0, 3.0, 1.9, 1.5, 1.2, 1.1, 1.0, 0.9])  # rises before it has repeated
    brief = curve(50, 100.0 + np.arange(6), [2.0, 1.0, 1.5, 0.9, 0.8, 0.7])
    for never in (warming, brief, curve(50, samples, np.full(9, 2.0))):
        assert table([never, curve(None, never.samples, never.test_loss)], 0.01)[0].turns_at is None


def test_means_and_errors_over_seeds_at_the_samples_that_all_have() -> None:
    def rows(losses: list[float]) -> list[dict[str, float]]:
        figures = [{"test_loss": x, "test_accuracy": x / 10, "seen_loss": x / 2} for x in losses]
        return [{"samples": 8 * (place + 1), **each} for place, each in enumerate(figures)] + [{"samples": 999}]

    both = Curve.of(7, [rows([4.0, 2.0, 1.0]), rows([2.0, 1.0])])
    assert both.samples.tolist() == [8, 16] and both.test_loss.tolist() == [3.0, 1.5]
    assert both.spread == pytest.approx([1.0, 0.5])  # |a - b| / 2 of two
    assert both.test_accuracy == pytest.approx([0.3, 0.15]) and both.seen_loss == pytest.approx([1.5, 0.75])
    assert Curve.of(7, [rows([4.0])]).spread.tolist() == [0.0]


def test_the_table_tells_the_lowest_and_the_last() -> None:
    turning = curve(200, [100, 200, 400, 800], [2.0, 1.0, 1.005, 1.5])
    endless = curve(None, [100, 200, 400, 800], [2.0, 1.0, 0.5, 0.25])
    finite, last = table([turning, endless], 0.01)
    assert (finite.epochs, finite.best_loss, finite.best_at, finite.last_loss) == (4.0, 1.0, 200, 1.5)
    assert finite.turns_at == 200 and finite.leaves_at == 400 and finite.leaves_after_epochs == 2.0
    assert last.turns_at is None and last.leaves_at is None and last.epochs is None
    assert table([turning, endless], 0.6)[0].turns_at is None


def test_the_finite_set_is_learned_by_heart_and_the_endless_stream_is_learned(
    trained: tuple[FiniteVsEndless, Path],
) -> None:
    result, folder = trained
    finite, endless = result.rows
    assert finite.size == 24 and finite.epochs == 100 * 16 / 24
    assert finite.seen_loss < 0.2 * finite.last_loss
    assert finite.turns_at is not None and finite.leaves_at is not None and finite.best_at < finite.leaves_at
    assert endless.last_loss < 0.92 * result.curves[1].test_loss[0] and endless.last_loss < 0.7 * finite.last_loss
    assert endless.seen_loss == pytest.approx(endless.last_loss, rel=0.15)
    assert {path.name for path in folder.iterdir()} == {
        "24-samples-seed-0", "endless-seed-0", "crossover.png", "result.json"
    }  # fmt: skip
    assert np.asarray(Image.open(folder / "crossover.png")).std() > 10
    told = json.loads((folder / "result.json").read_text())
    assert told["rows"][0]["leaves_at"] == finite.leaves_at and told["weights"] == result.weights
    assert told["curves"][1]["test_loss"] == result.curves[1].test_loss.tolist()


def test_lines_begin_with_the_same_weights_and_seeds_with_others(tmp_path: Path, undrawn: None) -> None:
    untrained = {"lr": 0.0, "num_steps": 1, "sizes": (24,), "seeds": (0, 1), "ema": 0.0}
    run(FiniteVsEndlessSettings(**{**TINY, **untrained}, folder=tmp_path))
    names = [f"{line}-seed-{seed}" for seed in (0, 1) for line in ("24-samples", "endless")]
    weights = [checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoint"))["network"] for name in names]
    same = [all(torch.equal(weights[0][key], each[key]) for key in each) for each in weights]
    assert same == [True] * 2 + [False] * 2


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    trained: tuple[FiniteVsEndless, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    result, folder = trained
    settings = FiniteVsEndlessSettings(**TINY, folder=tmp_path)
    real = finite_vs_endless.tested

    def stops(loop: Any, *arguments: Any) -> dict[str, float]:
        if loop.step == 60:
            raise KeyboardInterrupt
        return real(loop, *arguments)

    monkeypatch.setattr(finite_vs_endless, "tested", stops)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(finite_vs_endless, "tested", real)
    assert checkpoint.latest(tmp_path / "24-samples-seed-0" / "checkpoint").name == "step-000000040"  # type: ignore[union-attr]
    again = run(settings)
    for mine, theirs in zip(again.curves, result.curves, strict=True):
        assert np.array_equal(mine.samples, theirs.samples) and np.array_equal(mine.test_loss, theirs.test_loss)
    for name in ("24-samples-seed-0", "endless-seed-0"):
        ours, its = (checkpoint.load(checkpoint.latest(place / name / "checkpoint")) for place in (tmp_path, folder))  # type: ignore[arg-type]
        assert all(torch.equal(value, its["network"][key]) for key, value in ours["network"].items())
    with pytest.raises(InvalidValueError, match="lr=0.01, not 0.02"):
        run(replace(settings, lr=0.02))


def test_a_picture_upside_down_is_one_of_its_class() -> None:
    turn = 2 * np.pi
    pictures = []
    for alpha, beta in ((0.7, 1.1), (turn - 0.7, turn - 1.1)):
        priors = {"alpha": Constant(alpha), "beta": Constant(beta), "power": Constant(2.3), "frequency": Constant(4.0)}
        spec = StreamSpec(formulas="polynomial_power", num_classes=5, height=32, width=32, priors=priors)
        pictures.append(open_stream(spec, device="cpu")[0:8])
    assert np.array_equal(pictures[0].labels, pictures[1].labels)
    images, mirrored = (np.asarray(each.images) for each in pictures)
    assert np.mean(images[:, :, ::-1] == mirrored) > 0.99 > 0.9 > np.mean(images[:, :, :, ::-1] == mirrored)


def test_about_half_of_the_pictures_are_flipped_upside_down() -> None:
    images, labels = torch.arange(12.0).view(1, 1, 4, 3).repeat(400, 3, 1, 1), torch.zeros(400, dtype=torch.long)
    seen = []

    class Watcher(torch.nn.Module):
        def forward(self, given: Any) -> Any:
            seen.append(given)
            return functional.one_hot(torch.zeros(len(given), dtype=torch.long), 2).float()

    torch.manual_seed(0)
    flipped_loss(Watcher(), (images, labels))
    turned = (seen[0] == images.flip(2)).flatten(1).all(1)
    assert torch.equal((seen[0] == images).flatten(1).all(1), ~turned) and 150 < int(turned.sum()) < 250


def test_samples_of_a_class_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="sizes instead"):
        FiniteVsEndlessSettings(num_samples_per_class=10)


def test_a_set_that_can_not_be_shuffled_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(InvalidValueError, match="sizes must be .* 16777216"):
        FiniteVsEndlessSettings(sizes=(1000, 2**24 + 1))


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(trained: tuple[FiniteVsEndless, Path], tmp_path: Path) -> None:
    options = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in TINY.items()}
    told = [f"--{name}={value}" for name, value in options.items() if name != "quiet"]
    command = [
        sys.executable,
        "-m",
        "fractal_streams.recipes.finite_vs_endless",
        *told,
        "--quiet",
        "--folder",
        tmp_path,
    ]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(command, env=alone)
    while begun.poll() is None and not (tmp_path / "endless-seed-0" / "checkpoint" / "step-000000040").exists():
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL
    subprocess.run(command, env=alone, check=True)
    rows = json.loads((tmp_path / "result.json").read_text())["curves"]
    for mine, theirs in zip(rows, trained[0].curves, strict=True):
        assert mine["test_loss"] == theirs.test_loss.tolist()
