"""What `fractal-streams kaleidoscope fit` makes of its options: networks, trainings and sources."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.cli_kaleidoscope_options import material_of, parsed_points, plan_of
from fractal_streams.errors import FractalStreamsError, InvalidValueError
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.sources import of_arrays, points
from fractal_streams.kaleidoscope.training import Training
from fractal_streams.presets import open_stream


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def pictures_of(count: int, edge: int = 4) -> Any:
    levels = np.random.default_rng(0).integers(0, 256, (count, edge, edge), dtype=np.uint8)
    return of_arrays(levels)


def test_the_originals_names_give_its_settings() -> None:
    mnist = of_arrays(np.zeros((2000, 28, 28), np.uint8))
    network, training = plan_of(mnist, {}, {}, {"model_type": "MLP"})
    assert network.parameters == 3_039_784 and (network.head, network.data_scale) == ("tanh", 1.0)
    assert training == Training(steps=10_000, batch=1000, learning_rate=1e-4, decay="constant", noise=0.0)
    network, training = plan_of(points([0.2, 0.8]), {}, {"steps": 9}, {"model_type": "MLP-synthetic"})
    assert network == Network(shape=(1,), hidden=50, n_linear=7, head="sigmoid", data_scale=1.0)
    assert training == Training(steps=9, decay="constant", noise=0.0)
    network, _ = plan_of(pictures_of(8), {}, {}, {"norm_range": "0to1"})
    assert network == Network(shape=(1, 4, 4), head="sigmoid")
    assert plan_of(pictures_of(8), {}, {}, {"model_type": "UNet"})[0].kind == "unet"
    assert plan_of(pictures_of(8), {}, {}, {"model_type": "CNN-bottleneck"})[0].n_linear == 3
    assert plan_of(pictures_of(8), {}, {}, {"model_type": "MLP"})[1].batch == 8


def test_what_is_left_open_follows_from_the_sources() -> None:
    assert plan_of(pictures_of(8), {}, {}, {}) == (Network(shape=(1, 4, 4)), Training())
    assert plan_of(pictures_of(1001), {}, {}, {})[1].batch == 1000
    assert plan_of(pictures_of(1001), {}, {"batch": 7}, {})[1].batch == 7
    assert plan_of(points([-0.5, 0.5]), {}, {}, {})[0].head == "tanh"
    network, training = plan_of(
        points([[0.1, 0.2], [0.3, 0.4]]), {"init": "he"}, {"betas": "0.5,0.75", "noise": 0.1}, {}
    )
    assert network == Network(shape=(2,), hidden=50, n_linear=7, head="sigmoid", init="he", data_scale=1.0)
    assert training == Training(steps=2000, decay="constant", noise=0.1, betas=(0.5, 0.75))


@pytest.mark.parametrize(
    "original, message",
    [
        ({"L": "7"}, "two meanings: of points L=7 are 7 linear layers, of pictures L=10 are 10 hidden ones"),
        ({"model_type": "CNN"}, "kind='cnn' is not offered: without a bottleneck it learns the identity"),
        ({"model_type": "Transformer"}, "kind='transformer' is not offered"),
        ({"model_type": "RNN"}, "unknown model type 'RNN'"),
        ({"norm_range": "0to255"}, "known are -1to1, 0to1"),
    ],
)
def test_the_originals_names_are_refused_where_they_mislead(original: dict[str, str], message: str) -> None:
    with pytest.raises(FractalStreamsError, match=re.escape(message)):
        plan_of(pictures_of(8), {}, {}, original)
    with pytest.raises(InvalidValueError, match="give one of them"):
        plan_of(pictures_of(8), {"head": "tanh"}, {}, {"norm_range": "0to1"})


def test_points_of_a_text() -> None:
    assert parsed_points("0.2,0.8").data.tolist() == [[[pytest.approx(0.2)], [pytest.approx(0.8)]]]
    assert parsed_points("-1:0.5, 1:0").data.tolist() == [[[-1.0, 0.5], [1.0, 0.0]]]
    with pytest.raises(InvalidValueError, match="0.2:0.2,0.2:0.8 of two values each, got '0.2:0.3,0.8'"):
        parsed_points("0.2:0.3,0.8")


def test_sources_of_a_stream_and_of_a_folder(folder: Path) -> None:
    bank = material_of({"data": "fractal-10", "height": "8x9", "count": 3, "own_data": True, "data_seed": 4}, 2)
    assert bank.sources.data.shape == (2, 3, 3, 8, 9) and bank.name == "fractal-10"
    first, second = (set(part["indices"]) for part in bank.sources.origin["parts"])
    assert not first & second and bank.held_out is not None and len(bank.held_out) == 1
    drawn = open_stream("fractal-10", seed=4, height=8, width=9, device="cpu").generate(sorted(first)).images
    assert np.array_equal(bank.sources.data[0], drawn)
    levels = {}
    for number in range(6):
        (folder / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        levels[number] = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(levels[number]).save(folder / "photos" / "ab"[number % 2] / f"{number}.png")
    found = material_of({"data": "photos", "height": "8", "count": 4, "held_out": 2}, 1)
    assert found.name == "photos" and found.sources.titles == ("a", "b")
    assert (len(found.sources), len(found.held_out or ())) == (4, 2)
    one = material_of({"data": "photos", "height": "8", "classes": "b", "held_out": 0}, 1)
    assert one.held_out is None and one.sources.titles == ("b",)
    expected = {levels[number].tobytes() for number in (1, 3, 5)}
    assert {np.moveaxis(image, 0, -1).tobytes() for image in one.sources.data[0]} == expected
