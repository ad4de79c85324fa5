"""ALAE as a whole: styles, truncation, the mean code, levels; and what a folder keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.keeping import load_model, save_model
from small_alae import SMALL, model_of

from fractal_streams.errors import InvalidValueError


@torch.no_grad()
def test_truncation_goes_to_the_mean_code_in_the_first_places() -> None:
    model = model_of(16)
    model.mean_code.copy_(torch.randn(8))
    codes = torch.randn(3, 8)
    plain, mean = model.styles(codes), model.mean_code.expand(3, 6, 8)
    assert plain.shape == (3, 6, 8) and all(torch.equal(plain[:, place], codes) for place in range(6))
    assert torch.equal(model.truncated(codes, 1.0), plain) and torch.equal(model.truncated(codes, 1.0, 2), plain)
    assert torch.equal(model.truncated(codes, 0.0), mean)
    for cutoff in (0, 1, 4, 6, 9):
        found = model.truncated(codes, 0.0, cutoff)
        assert torch.equal(found[:, :cutoff], mean[:, :cutoff]) and torch.equal(found[:, cutoff:], plain[:, cutoff:])
    torch.testing.assert_close(model.truncated(codes, 0.7), mean + 0.7 * (plain - mean))
    assert torch.equal(model.decode(plain, noise=False), model.decode(codes, noise=False))


def test_the_mean_code_is_a_running_mean() -> None:
    model = model_of()
    expected = torch.zeros(8, dtype=torch.float64)
    for _ in range(20):
        codes = torch.randn(5, 8, requires_grad=True) + 2.0
        model.remember(codes)
        expected = 0.995 * expected + 0.005 * codes.detach().double().mean(0)
    torch.testing.assert_close(model.mean_code.double(), expected, atol=1e-6, rtol=1e-5)
    assert not model.mean_code.requires_grad and "mean_code" in model.state_dict()


def test_what_can_not_be_made_is_refused() -> None:
    for shape in ((1, 8, 8), (3, 8, 16), (3, 8), (2,)):
        with pytest.raises(InvalidValueError, match="must be"):
            model_of(shape=shape)
    for level in (0, 2):
        with pytest.raises(InvalidValueError, match=r"first_level must lie in \[1, 1\]"):
            model_of(first_level=level)
    model = model_of(16, first_level=2)
    for level in (1, 3):
        with pytest.raises(InvalidValueError, match=rf"level must lie in \[2, 2\], got {level}"):
            model.grow(level)
    flat = model_of(shape=(2,), flat=True)
    assert flat.num_styles == 1 and flat.decode(flat.encode(torch.zeros(5, 2))).shape == (5, 2)
    with pytest.raises(InvalidValueError, match="no feature maps"):
        flat.features(torch.zeros(1, 2))


def test_draws_may_have_another_width_than_codes() -> None:
    model = model_of(prior_size=3)
    assert model.project(torch.randn(4, 3)).shape == (4, 8)


@pytest.mark.parametrize("kind", ["plain", "linear", "grown", "flat"])
@torch.no_grad()
def test_a_folder_gives_back_the_model(kind: str, tmp_path: Path) -> None:
    """With the rate of F and half grown, which change what the same weights do."""
    if kind == "grown":
        model = model_of(16, first_level=1, rate=0.01)
        model.grow(2, 0.3)
    elif kind == "flat":
        model = model_of(shape=(5,), flat=True, prior_size=3)
    else:
        model = model_of(activation="none" if kind == "linear" else "lrelu", rate=1.0, dense=kind == "linear")
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    model.remember(torch.randn(4, 8))
    save_model(tmp_path, model, SMALL)
    again = load_model(tmp_path)
    assert not again.training and again.num_styles == model.num_styles
    draws, images = torch.randn(4, model.prior_size), torch.randn(4, *model.shape)
    assert torch.equal(again.project(draws), model.project(draws))
    assert torch.equal(again.encode(images), model.encode(images))
    codes = model.encode(images)
    assert torch.equal(
        again.decode(again.truncated(codes), noise=False), model.decode(model.truncated(codes), noise=False)
    )
    assert torch.equal(again.score(codes), model.score(codes))


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"model\.json is missing"):
        load_model(tmp_path)
    save_model(tmp_path, model_of(), SMALL)
    told = json.loads((tmp_path / "model.json").read_text())
    changes: list[dict[str, Any]] = [
        {"shape": [3, 16, 16]},
        {"size": {}},
        {"activation": 3, "colour": 1},
        {"shape": None},
    ]
    for change in changes:
        (tmp_path / "model.json").write_text(json.dumps({**told, **change}))
        with pytest.raises(InvalidValueError, match="holds no ALAE that can be read"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InvalidValueError, match="train it anew"):
        load_model(tmp_path)
    save_model(tmp_path, model_of(), replace(SMALL))
    assert load_model(tmp_path).code_size == 8
