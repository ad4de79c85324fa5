"""What fitted networks must do: the margins are those of independent measurements, taken before this was written."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams import open_stream
from fractal_streams.kaleidoscope import measures
from fractal_streams.kaleidoscope.batched_points import grid
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.fitting import fit
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.quality import report
from fractal_streams.kaleidoscope.sources import distinct_indices, of_stream, points
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.kaleidoscope.training import Training

TWO = points([0.2, 0.8])
FOUR = points([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8]])
PLAIN = Training(steps=2000, learning_rate=1e-3, decay="constant", noise=0.0)
STEPS = (1, 3, 5, 10, 20, 50)


@cache
def bank(n_linear: int, hidden: int = 10, init: Any = "torch", models: int = 32) -> Kaleidoscope:
    """Networks of many seeds on two points, fitted as the original program does."""
    torch.set_num_threads(1)
    network = Network(shape=(1,), hidden=hidden, n_linear=n_linear, head="sigmoid", init=init, data_scale=1.0)
    return fit(network, TWO, PLAIN, models=models, device="cpu")


def shares(fitted: Kaleidoscope) -> dict[int, float]:
    """Mean over the fitted networks of the share of a grid that is within .02 of a point, by step."""
    found = measures.frac(fitted, grid(fitted.network, 200), STEPS, 0.02)[measures.is_fitted(fitted)]
    return dict(zip(STEPS, found.mean(axis=0).tolist(), strict=True))


def flat_in_the_middle(fitted: Kaleidoscope) -> None:
    """T1, of a bank of 7 linear layers of 10 units on .2 and .8."""
    good = measures.is_fitted(fitted)
    assert good.mean() >= 0.75
    share = shares(fitted)
    assert 0.28 <= share[1] <= 0.50
    assert share[10] >= 0.80
    assert share[50] >= 0.97
    two = [
        len(stable) == 2 and np.abs(stable - [0.2, 0.8]).max() < 0.02
        for found, fits in zip(measures.fixed_points(fitted), good, strict=True)
        if fits
        for stable in (found.places[found.stable, 0],)
    ]
    assert np.mean(two) >= 0.90


def test_deep_networks_on_two_points_take_nearly_all_starts_there() -> None:
    flat_in_the_middle(bank(7, models=16))


@pytest.mark.slow
def test_t1() -> None:
    flat_in_the_middle(bank(7))


@pytest.mark.slow
def test_t2_depth_speeds_convergence_up_and_flatness_is_of_the_first_weights() -> None:
    by_depth = [shares(bank(n_linear))[3] for n_linear in (3, 5, 7, 10)]
    assert min(np.diff(by_depth)) > 0.02, by_depth
    shallow, deep = (shares(bank(n_linear, 50, "he"))[1] for n_linear in (3, 10))
    assert abs(shallow - deep) < 0.06


@pytest.mark.slow
def test_t3_four_points_of_the_plane() -> None:
    torch.set_num_threads(1)
    network = Network(shape=(2,), hidden=50, n_linear=7, head="sigmoid", data_scale=1.0)
    training = Training(steps=4000, learning_rate=1e-4, decay="constant", noise=0.0)
    fitted = fit(network, FOUR, training, models=12, device="cpu")
    good = measures.is_fitted(fitted)
    assert good.mean() >= 0.9
    starts = grid(network, 41)
    assert measures.frac(fitted, starts, (50,), 0.03)[good].mean() >= 0.97
    radii = measures.source_radii(fitted)[good]
    assert (radii.max(axis=1) < 1.0).mean() >= 0.9
    smallest = measures.basin_shares(fitted, starts, 50, 0.03)[good, :4].min(axis=1)
    assert smallest.mean() > 0.08, smallest


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "start"), [("fractal-families", "uniform"), ("fractal-10", "pink")])
def test_t4_denoising_makes_fractals_attractors(preset: str, start: str) -> None:
    """Of fractal-10, uniform noise reaches 13 to 28 of 50 over seeds: some of its pictures are nearly the mean's."""
    torch.set_num_threads(1)
    stream = open_stream(preset, device="cpu", height=16, width=16)
    sources = of_stream(stream, distinct_indices(stream, 50, least=0.05, grey=True), grey=True)
    network = Network(shape=(1, 16, 16), hidden=256, n_linear=5)
    fitted = fit(network, sources, Training(steps=4000, noise=0.3), device="cpu")
    found = report(fitted, device="cpu", start=Start(kind=start))["networks"][0]
    assert found["controls"]["spacing"]["least"] > 0.05 * network.data_scale
    assert found["kick"]["returned"] >= 0.98
    within = dict(zip(found["nearest"]["steps"], found["nearest"]["within"], strict=True))
    assert within[10] >= 0.7
    assert within[30] >= 0.97
    assert found["ends"]["reached_sources"] >= 20
    assert found["spectral_radius"]["values"][1] < 0.7
    nearest = found["nearest"]["mean"][: found["nearest"]["steps"].index(10) + 1]
    assert all(late < early for early, late in zip(nearest, nearest[1:], strict=False)), nearest
    assert "memorises" in found["flags"]
