"""Scans of the published inputs converge as often as others found that they do."""

from __future__ import annotations

import pytest

from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.scan import scan

SHARES = {
    "width 8, 100 steps": (Experiment(width=8, steps=100, inputs="published"), OVERVIEW, 64, 0.5073, 0.001),
    "single, overview": (PUBLISHED["single"].experiment, OVERVIEW, 64, 0.4895, 0.001),
    "linear, overview": (PUBLISHED["linear"].experiment, OVERVIEW, 64, 0.3193, 0.001),
    "single, window": (PUBLISHED["single"].experiment, PUBLISHED["single"].window, 96, 0.3356, 0.002),
    "linear, window": (PUBLISHED["linear"].experiment, PUBLISHED["linear"].window, 96, 0.50705, 0.002),
}


@pytest.mark.parametrize(
    "name", [next(iter(SHARES)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(SHARES)[1:])]
)
def test_converged_shares_are_those_of_the_paper_s_inputs(name: str) -> None:
    experiment, area, points, share, tolerance = SHARES[name]
    made = scan(experiment, area, resolution=points, device="cpu")
    assert made.converged.mean() == pytest.approx(share, abs=tolerance)
