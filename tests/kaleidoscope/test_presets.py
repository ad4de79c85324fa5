"""Recipes: what they name, what they make, and what they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.kaleidoscope import presets
from fractal_streams.kaleidoscope.fitted import open_kaleidoscope
from fractal_streams.kaleidoscope.fitting import fit
from fractal_streams.kaleidoscope.presets import RECIPES, find_recipe, make, model_path
from fractal_streams.kaleidoscope.sources import again, least_distance, of_arrays

ROBUST = {"kaleidoscope-10": 0.05, "kaleidoscope-bank": 0.05, "kaleidoscope-mnist": 0.1}


@pytest.mark.parametrize(
    "name, parameters",
    [("seed_1d", 581), ("seed_1d_readme", 166), ("seed_2d", 13_002), ("seed_mnist", 3_039_784),
     ("seed_cifar", 48_311_072), ("seed_celeba", 16_501_744)],
)  # fmt: skip
def test_the_original_experiments_are_as_they_were(name: str, parameters: int) -> None:
    recipe = find_recipe(name)
    network, training = recipe.network, recipe.training
    assert network.parameters == parameters
    size, hidden, inner = network.size, network.hidden, network.n_linear - 2
    assert parameters == 2 * size * hidden + inner * hidden**2 + (inner + 1) * hidden + size
    assert (network.data_scale, network.init, training.noise, training.decay) == (1.0, "torch", 0.0, "constant")
    picture = network.is_picture
    assert (network.n_linear, network.head) == ((11, "tanh") if picture else (7, "sigmoid"))
    assert (training.steps, training.batch, training.learning_rate) == (
        (10_000, 1000, 1e-4) if picture else (2000, None, 1e-3)
    )  # fmt: skip


@pytest.mark.parametrize("name", ROBUST)
def test_robust_recipes_have_sources_that_differ(name: str) -> None:
    recipe = find_recipe(name)
    sources = recipe.sources(None)
    assert sources.data.shape == (recipe.models, 50, *recipe.network.shape)
    assert least_distance(sources) >= ROBUST[name]
    assert len(np.unique(sources.data.reshape(-1, recipe.network.size), axis=0)) == 50 * recipe.models
    assert set(np.unique(sources.labels)) == set(range(10)) and len(sources.titles) == 10
    assert recipe.training.noise >= 0.3
    remade = again(json.loads(json.dumps(sources.origin)))
    assert (remade.data == sources.data).all() and (remade.labels == sources.labels).all()


def test_files_lie_in_the_cache(fresh_cache: Path) -> None:
    assert model_path("seed_2d") == fresh_cache / "kaleidoscopes" / "seed_2d.safetensors"
    with pytest.raises(UnknownNameError, match="did you mean 'kaleidoscope-mnist'"):
        model_path("kaleidoscope-mnis")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.needs])
def test_recipes_say_which_data_they_lack(name: str, fresh_cache: Path) -> None:
    with pytest.raises(InvalidValueError, match=f"this recipe needs {RECIPES[name].needs}: pass root="):
        make(name, device="cpu")


def test_the_name_of_the_file_is_checked_before_anything_is_fitted(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"kept as \.safetensors, got .*digits\.pt"):
        make("seed_mnist", tmp_path / "digits.pt", root=tmp_path / "none", device="cpu")


def test_make_writes_a_whole_kaleidoscope(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fractal_streams.kaleidoscope.quality")
    torch.set_num_threads(1)
    recipe = RECIPES["seed_1d"]
    short: Any = {"training": recipe.training.replace(steps=600), "models": 2}
    monkeypatch.setitem(RECIPES, "seed_1d", presets.Recipe(**{**vars(recipe), **short}))
    path = make("seed_1d", device="cpu")
    assert path == model_path("seed_1d") and [each.name for each in path.parent.iterdir()] == [path.name]
    made = open_kaleidoscope(path)
    assert made.models == 2 and made.attractors is not None and made.quality is not None
    assert sorted(made.attractors.states[made.attractors.model == 0, 0]) == pytest.approx([0.2, 0.8], abs=0.01)
    assert made.training["steps"] == 600
    assert make("seed_1d", fresh_cache / "other.safetensors", device="cpu").read_bytes() == path.read_bytes()


def blobs(count: int) -> np.ndarray:
    """(count, 28, 28) uint8, like digits: strokes of full ink on an empty ground, 19 % of the pixels on average."""
    drawn, rows = np.random.default_rng(0), np.arange(28)
    made = np.zeros((count, 28, 28))
    for picture in made:
        for _ in range(3):
            (x, y), (u, v) = drawn.uniform(7, 21, 2), drawn.uniform(7, 21, 2)
            for part in np.linspace(0, 1, 12):
                square = (rows[:, None] - x - part * (u - x)) ** 2 + (rows - y - part * (v - y)) ** 2
                np.maximum(picture, np.clip(3.0 - square / 1.5, 0, 1), out=picture)
    return np.asarray(np.rint(255 * made), np.uint8)


def test_t6_the_digits_network_begins_as_its_program_says() -> None:
    """There the loss of step 1, mean squared on [-1, 1], is .93 for digits."""
    torch.set_num_threads(1)
    recipe = find_recipe("seed_mnist")
    digits = of_arrays(blobs(64))
    training = recipe.training.replace(steps=12, batch=32, evaluate_every=3)
    found = fit(recipe.network, digits, training, device="cpu", on_dead="allow", on_identity="allow")
    curve = 4.0 * np.array(found.training["curve"]["score"])[:, 0]
    assert 0.8 <= curve[0] <= 1.0
    assert (np.diff(curve) < 0.0).all()
