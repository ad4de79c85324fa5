"""Channel statistics: those that are published are those of samples on which they were not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fractal_streams import channel_statistics, open_stream
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.normalisation import CHANNEL_STATISTICS, OTHERWISE
from fractal_streams.presets import PRESETS

FRESH = 2**40
"""First index of samples that nobody measured."""
SMALL: dict[str, Any] = {"height": 32, "width": 32}
BLOCKS: dict[str, tuple[int, dict[str, Any]]] = {
    "fractal-10": (2048, {}),
    "fractal-100": (2048, {}),
    "fractal-1k": (2048, SMALL),
    "fractal-10k": (2048, {}),
    "fractal-mnist": (2048, {}),
    "fractal-families": (1024, SMALL),
    "seed-readme": (2048, {}),
    "seed-code": (2048, {}),
    "fractal-video": (512, {"height": 16, "width": 16}),
    "trainability-points": (256, {}),
    "trainability-tiles": (64, {}),
}
"""Samples of a block, and what is changed to make them sooner: neither size nor frames move a mean."""
DEVIATES = 4.0
"""Standard errors. 66 numbers are compared: of a right table, one in 250 blocks of fresh samples would be refused."""


def block(name: str) -> npt.NDArray[np.float64]:
    """(N / 2, 2, 3) mean and mean square of the channels over two neighbours, which some streams draw together."""
    count, changes = BLOCKS[name]
    first = FRESH if name != "seed-code" else 10**7  # whose samples come again from 10**9 on
    stream = open_stream(name, device="cpu", **changes)
    parts = []
    for start in range(first, first + count, 256):
        images = stream.generate(range(start, min(start + 256, first + count))).images / 255.0
        levels = np.moveaxis(images, -3, 1).reshape(len(images), 3, -1)
        parts.append(np.stack([levels.mean(2), (levels**2).mean(2)], 1))
    return np.concatenate(parts).reshape(-1, 2, 2, 3).mean(1)


def deviates(name: str, rows: npt.NDArray[np.float64], published: Any) -> npt.NDArray[np.float64]:
    """(2, 3) how many standard errors mean and deviation are off. The published ones have errors of their own, at most
    as large as a fresh block's, whose samples are fewer."""
    mean, square = rows.mean(0)
    std = np.sqrt(square - mean**2)
    moved = (rows[:, 1] - 2 * mean * rows[:, 0]) / (2 * std)
    errors = np.stack([rows[:, 0].std(0, ddof=1), moved.std(0, ddof=1)]) / np.sqrt(len(rows))
    return np.asarray((np.stack([mean, std]) - np.array(published)) / (np.sqrt(2.0) * errors))


def test_every_preset_of_pictures_has_its_statistics() -> None:
    """Kaleidoscopes have none: their pictures follow from a file that each machine fits."""
    assert set(CHANNEL_STATISTICS) == {name for name, spec in PRESETS.items() if not isinstance(spec, FittedSpec)}
    assert set(BLOCKS) == set(CHANNEL_STATISTICS)
    assert channel_statistics("mandelbrot") == channel_statistics("kaleidoscope-10") == OTHERWISE


SLOW = ("trainability-tiles", "fractal-families")
"""Training, and sixteen kernels to compile."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BLOCKS]
)
def test_fresh_samples_have_the_published_statistics(name: str) -> None:
    rows, published = block(name), np.array(channel_statistics(name))
    assert np.abs(deviates(name, rows, published)).max() < DEVIATES
    for shift in (0.05, -0.05):  # a table that is wrong by 13 of 255 levels is found out
        assert np.abs(deviates(name, rows, published + shift)).max() > DEVIATES


def test_a_normalised_stream_has_mean_0_and_deviation_1() -> None:
    mean, std = channel_statistics("fractal-10")
    images = open_stream("fractal-10", device="cpu", dtype="float32", mean=mean, std=std)[0:2048].images
    assert np.abs(images.mean((0, 2, 3))).max() < 0.06  # 4 errors of the mean of a block of 2,048, over the deviation
    assert np.abs(images.std((0, 2, 3)) - 1.0).max() < 0.04
    raw = open_stream("fractal-10", device="cpu", dtype="float32")[0:2048].images
    assert np.abs(raw.mean((0, 2, 3))).min() > 0.2
