"""The scaling table: FLOP as a formula has them, the envelope, the table; wider models on the same samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from fractal_streams.recipes import scaling_table
from fractal_streams.recipes.models.classifiers import vision_transformer
from fractal_streams.recipes.scaling_pictures import coefficients, formula
from fractal_streams.recipes.scaling_table import (
    ScalingTable,
    ScalingTableSettings,
    Width,
    at_budgets,
    envelope,
    laws,
    plain,
    run,
    training_flop,
)
from PIL import Image

from fractal_streams.errors import InvalidValueError

TINY: dict[str, Any] = {
    "device": "cpu", "preset": "fractal-10", "image_size": 8, "widths": (32, 16), "head_width": 16, "depth": 1,
    "num_steps": 120, "batch_size": 16, "warmup_steps": 10, "lr_base": 5e-3, "lr_embedding": 5e-3, "ema": 0.9,
    "test_samples": 100, "points": 16, "eval_once_every": 60, "checkpoint_every": 60, "fit_from": 0.05, "resamples": 5,
    "quiet": True,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[ScalingTable, Path]:
    folder = tmp_path_factory.mktemp("scaling") / "out"
    return run(ScalingTableSettings(**TINY, folder=folder)), folder


@pytest.mark.parametrize("width, depth, heads, patch", [(32, 2, 2, 4), (48, 1, 3, 8), (64, 3, 1, 2)])
def test_flop_are_those_of_the_formula(width: int, depth: int, heads: int, patch: int) -> None:
    model = vision_transformer(
        num_classes=7, image_size=16, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads
    )
    patches = (16 // patch) ** 2
    tokens = patches + 1
    maps = depth * 2 * 12 * width**2 * tokens + 2 * 7 * width  # qkv 3, projection 1, two of the MLP 4 each
    attention = depth * 2 * 2 * tokens**2 * width
    reading = 2 * 3 * patch**2 * width * patches
    assert training_flop(model, 16) == 3 * (maps + attention) + 2 * reading  # pictures get no gradient
    assert next(model.parameters()).device.type == "cpu"


def curve(width: int, floor: float, pace: float) -> Width:
    samples = np.geomspace(1e4, 1e7, 25)
    weights = 100 * width**2
    loss = floor + 0.8 * (weights / 1e6) ** -0.34 + 0.5 * (samples / 1e6) ** -0.28
    return Width(
        width=width, weights=weights, sample_flop=6 * weights, samples=samples, test_loss=loss,
        test_accuracy=np.exp(-loss), images_per_second=pace,
    )  # fmt: skip


CURVES = [curve(width, 0.2, 1e3) for width in (32, 64, 128, 256)]


def test_the_envelope_is_all_that_nothing_cheaper_beats() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        compute, loss = draws.integers(1, 15, 30).astype(float), draws.integers(1, 15, 30).astype(float)
        found = envelope(compute, loss)
        beaten = [
            ((compute <= c) & (loss <= x) & ((compute < c) | (loss < x))).any()
            for c, x in zip(compute, loss, strict=True)
        ]
        expected = {(c, x) for c, x, lost in zip(compute, loss, beaten, strict=True) if not lost}
        assert [(compute[place], loss[place]) for place in found] == sorted(expected)


def test_budgets_end_with_the_largest_run_and_losses_are_read_between_points() -> None:
    budgets, table = at_budgets(CURVES, 9)
    assert budgets[-1] == CURVES[-1].compute[-1] and budgets[-3] == pytest.approx(budgets[-1] / 10)
    for row, budget in zip(table, budgets, strict=True):
        for loss, each in zip(row, CURVES, strict=True):
            samples = budget / each.sample_flop
            assert np.isnan(loss) != (each.samples[0] <= samples <= each.samples[-1])
            if not np.isnan(loss):
                exact = 0.2 + 0.8 * (each.weights / 1e6) ** -0.34 + 0.5 * (samples / 1e6) ** -0.28
                assert loss == pytest.approx(exact, rel=2e-3)
    assert (~np.isnan(table)).sum() > 20
    assert len(at_budgets(CURVES, 40)[0]) == 10  # 1e4 * 32^2 to 1e7 * 256^2 are 4.8 decades


def test_laws_of_losses_made_by_a_law() -> None:
    by_compute, by_size = laws(CURVES, 0.01, resamples=0)
    assert by_size.exponents == pytest.approx((0.34, 0.28), rel=1e-3) and by_size.floor == pytest.approx(0.2, abs=2e-3)
    assert by_size.points == sum((each.samples >= 1e5).sum() for each in CURVES)
    assert 0.1 < by_compute.exponents[0] < 0.28 and by_compute.error < 0.03


def test_both_widths_learn_from_the_same_samples(trained: tuple[ScalingTable, Path]) -> None:
    result, folder = trained
    narrow, wide = result.curves
    assert (narrow.width, wide.width) == (16, 32)
    assert np.array_equal(narrow.samples, wide.samples) and narrow.samples[-1] == 120 * 16
    for each in result.curves:
        assert each.test_loss[0] == pytest.approx(np.log(10), abs=0.05)  # the output begins at 0
        assert each.test_loss[-1] < 0.92 * each.test_loss[0]
        assert each.images_per_second > 0
    assert wide.weights / narrow.weights > 3 and wide.sample_flop / narrow.sample_flop > 3
    told = json.loads((folder / "result.json").read_text())
    assert told["by_compute"]["exponents"] == list(result.by_compute.exponents)
    assert told["curves"][1]["test_loss"] == wide.test_loss.tolist()
    assert [[value is None for value in row] for row in told["table"]] == np.isnan(result.table).tolist()
    assert "weights has 2 different values: an exponent needs 3" in told["by_size"]["remarks"]
    assert np.asarray(Image.open(folder / "scaling.png")).std() > 10


def test_another_width_trains_nothing_again(
    trained: tuple[ScalingTable, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, folder = trained

    def never(*given: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(scaling_table, "train", never)
    again = run(ScalingTableSettings(**{**TINY, "quiet": False}, folder=folder))
    assert [each.test_loss.tolist() for each in again.curves] == [each.test_loss.tolist() for each in result.curves]
    assert again.by_compute == result.by_compute
    said = capsys.readouterr().out
    assert f"{result.curves[1].weights:,}" in said and "not identified" in said
    with pytest.raises(AssertionError, match="trained again"):
        run(ScalingTableSettings(**{**TINY, "widths": (16, 32, 64)}, folder=folder))


def test_laws_in_words(trained: tuple[ScalingTable, Path]) -> None:
    law = trained[0].by_compute
    assert formula(law) == f"{law.floor:.3g} + {law.factors[0]:.3g} C^-{law.exponents[0]:.3g}"
    assert [each.split()[:2] for each in coefficients(law)][1:] == [["compute", "factor"], ["compute", "exponent"]]


def test_what_is_no_number_is_null_in_json() -> None:
    value = {"a": np.array([1.0, np.nan]), "b": (float("inf"), "c", None, True, 3)}
    assert json.dumps(plain(value)) == '{"a": [1.0, null], "b": [null, "c", null, true, 3]}'


def test_a_finite_set_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="it is of endless data"):
        ScalingTableSettings(num_samples_per_class=10)


def test_widths_that_change_the_heads_are_refused() -> None:
    """Rates follow the width only as long as heads keep theirs."""
    with pytest.raises(InvalidValueError, match=r"head_width=32, got \[48, 16\]"):
        ScalingTableSettings(widths=(48, 64, 16))
