"""ALAE on a ring of Gaussians: a part of the run always, the whole with the slow tests."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from fractal_streams.recipes.alae.toy import ToyResult, ToySettings, measured, middles, ring, run
from torch import nn


def settings_of(folder: Path, **changes: Any) -> ToySettings:
    return ToySettings(folder=folder, quiet=True, **changes)


def test_the_ring() -> None:
    centres = middles(8)
    assert centres.norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-6)
    sides = (centres - centres.roll(1, 0)).norm(dim=1).tolist()
    assert sides == pytest.approx([2.0 * math.sin(math.pi / 8)] * 8, abs=1e-6)
    torch.manual_seed(0)
    points, labels = ring(ToySettings(deviation=0.02), 8000)
    apart = points - centres[labels]
    assert apart.std(0).tolist() == pytest.approx([0.02, 0.02], rel=0.05)
    assert int(torch.bincount(labels).min()) > 850


class Plain(nn.Module):
    """A model whose codes are the points, and whose draws are points of the first `modes` Gaussians."""

    def __init__(self, settings: ToySettings, modes: int, shift: float) -> None:
        super().__init__()
        self.settings, self.modes, self.shift, self.prior_size = settings, modes, shift, 2

    def project(self, draws: Any) -> Any:
        return middles(8)[torch.arange(len(draws)) % self.modes] + self.settings.deviation * draws

    def decode(self, codes: Any) -> Any:
        return codes + self.shift

    def encode(self, points: Any) -> Any:
        return points.clone()


@pytest.mark.parametrize("modes", [8, 5, 1])
def test_what_is_measured_of_a_known_model(modes: int, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    found = measured(Plain(settings, modes, 0.0), settings)  # type: ignore[arg-type]
    assert found.modes == modes and found.relative_reciprocity == 0.0 and found.distance == 0.0
    assert found.near == pytest.approx(1.0 - math.exp(-8.0), abs=2e-3)  # within 4 deviations, in the plane
    moved = measured(Plain(settings, modes, 0.1), settings)  # type: ignore[arg-type]
    assert moved.distance == pytest.approx(0.1 * math.sqrt(2.0), rel=1e-4)
    if modes == 8:  # the variance of each coordinate is 1/2 + deviation^2
        assert moved.relative_reciprocity == pytest.approx(0.01 / (0.5 + settings.deviation**2), rel=0.02)


def test_codes_are_found_again_long_before_the_ring(tmp_path: Path) -> None:
    """In 100 steps relative reciprocity falls from above 1, as of an E that knows nothing, to a tenth."""
    first = run(settings_of(tmp_path / "first", num_steps=1))
    result = run(settings_of(tmp_path, num_steps=100))
    assert first.relative_reciprocity > 0.9 and result.relative_reciprocity < 0.1
    assert ToyResult(**json.loads((tmp_path / "result.json").read_text())) == result
    assert set(asdict(result)) == {"modes", "near", "relative_reciprocity", "distance"}
    assert (tmp_path / "points.png").read_bytes()[:4] == b"\x89PNG"
    assert run(settings_of(tmp_path / "other", num_steps=1, seed=1)) != first
    assert run(settings_of(tmp_path / "again", num_steps=1)) == first


@pytest.mark.slow
def test_all_modes_are_found_and_their_codes_again(tmp_path: Path) -> None:
    result = run(settings_of(tmp_path))
    assert result.modes == 8 and result.relative_reciprocity < 0.05
    assert result.near > 0.6 and result.distance < 0.2
