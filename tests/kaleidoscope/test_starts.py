"""Where chains start and the noise between steps: moments, spectra, and no chain that depends on another."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.starts import JITTER_KINDS, START_KINDS, Jitter, Start, jittered, start_values

CHAINS = np.random.default_rng().integers(0, 2**63 - 1, 400)


def key_of(*names: Any) -> tuple[int, int]:
    return rng.key("a test of starts", *names)


def made(shape: tuple[int, ...] = (1, 32, 32), head: Any = "tanh") -> Kaleidoscope:
    network = Network(shape=shape, hidden=4, n_linear=2, head=head)
    levels = np.random.default_rng(1).integers(0, 256, (2, 5, *shape)).astype(np.uint8)
    sources = Sources(data=levels, labels=np.zeros((2, 5), np.int64), titles=("one",))
    return Kaleidoscope(network=network, tensors=network.first_weights(2), sources=sources)


def drawn(fitted: Kaleidoscope, chains: Any = CHAINS, **start: Any) -> Any:
    return start_values(Start(**start), fitted, chains, chains % 2, key_of)


@pytest.mark.parametrize("head, low, high", [("tanh", -1.0, 1.0), ("sigmoid", 0.0, 1.0)])
def test_noise_has_the_moments_of_its_kind_in_the_range_of_the_head(head: str, low: float, high: float) -> None:
    fitted, middle, half = made(head=head), 0.5 * (low + high), 0.5 * (high - low)
    clipped = 0.7182  # standard deviation of a normal variable clipped at one of its own
    deviations = {"uniform": 3.0**-0.5, "binary": 1.0, "normal": clipped, "pink": clipped}
    for kind, deviation in deviations.items():
        values = drawn(fitted, kind=kind)
        assert values.min() >= low and values.max() <= high and values.dtype == np.float32
        assert abs(values.mean() - middle) < 0.05 * half, kind
        assert abs(values.std() / half - deviation) < 0.03, kind
    assert set(np.unique(drawn(fitted, kind="binary"))) == {low, high}


def test_the_amplitude_of_pink_noise_falls_as_the_frequency_rises() -> None:
    pictures = drawn(made(), kind="pink").reshape(-1, 32, 32)
    power = (np.abs(np.fft.fft2(pictures)) ** 2).mean(axis=0)
    along = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32)] * 2))
    bands = [power[(along >= low) & (along < 2 * low)].mean() for low in (1 / 32, 2 / 32, 4 / 32, 8 / 32)]
    slopes = np.diff(np.log2(bands))
    assert (np.abs(slopes + 2.0) < 0.8).all(), slopes  # power 1 / f**2 in two dimensions
    white = (np.abs(np.fft.fft2(drawn(made(), kind="normal").reshape(-1, 32, 32))) ** 2).mean(axis=0)
    assert abs(np.log2(white[along >= 0.25].mean() / white[(along > 0) & (along < 0.1)].mean())) < 0.1


def test_coarse_noise_is_bilinear_between_its_corners() -> None:
    values = drawn(made((3, 10, 7)), kind="coarse", chains=np.arange(20)).reshape(20, 3, 10, 7)
    inside = (np.abs(values) < 1.0).all(axis=(2, 3))
    cells = values[inside][:, ::3, ::2]
    rows = np.arange(10) / 3
    low = np.minimum(rows.astype(int), 2)
    between = cells[:, low] * (1 - (rows - low))[:, None] + cells[:, low + 1] * (rows - low)[:, None]
    np.testing.assert_allclose(values[inside][:, :, ::2], between, atol=1e-6)


def test_sources_and_blends_are_of_the_network_s_own_pictures() -> None:
    fitted = made((1, 4, 4))
    starts = drawn(fitted, kind="source")
    for model in range(2):
        table = {row.tobytes() for row in fitted.source_values(model)}
        assert {row.tobytes() for row in starts[model == CHAINS % 2]} == table
    blends = drawn(fitted, kind="blend")
    own = fitted.source_values(0).astype(np.float64)
    halves = 0.5 * (own[:, None] + own[None]).reshape(-1, 16)
    assert max(np.abs(halves - row).max(axis=1).min() for row in blends[CHAINS % 2 == 0]) < 1e-6
    noisy = drawn(fitted, kind="source", noise=0.1) - starts
    assert abs(noisy.std() / 0.1 - 1.0) < 0.06


@pytest.mark.parametrize("kind", START_KINDS)
def test_a_chain_is_its_own_whatever_is_asked_with_it(kind: str) -> None:
    fitted = made((3, 5, 6))
    whole = drawn(fitted, kind=kind, noise=0.3)
    order = np.random.default_rng().permutation(len(CHAINS))
    np.testing.assert_array_equal(drawn(fitted, CHAINS[order], kind=kind, noise=0.3), whole[order])
    np.testing.assert_array_equal(drawn(fitted, CHAINS[7:8], kind=kind, noise=0.3), whole[7:8])
    assert drawn(fitted, CHAINS[:0], kind=kind, noise=0.3).shape == (0, 90)


@pytest.mark.parametrize("kind", JITTER_KINDS)
@pytest.mark.parametrize("head", ["tanh", "sigmoid"])
def test_noise_between_steps_has_mean_zero_but_for_the_original_s(kind: str, head: Any) -> None:
    fitted = made((1, 16, 16), head=head)
    low, high = fitted.network.range
    middle = np.full((400, 256), 0.5 * (low + high), np.float32)
    found = [jittered(middle, Jitter(kind=kind, size=0.01), fitted.network, CHAINS, step, key_of) for step in (1, 2)]
    moved = np.stack(found).astype(np.float64) - middle
    expected = {
        "normal": 0.0, "uniform": 0.0, "seed_normal": 0.01 * 0.5 * (low + high),
        "seed_uniform": 0.01 * (high + 0.5 * (high - low)),
    }[kind]  # fmt: skip
    assert abs(moved.mean() - expected) < 1e-4
    deviation = 0.01 * (high - low) * (0.5 if kind.endswith("normal") else 12.0**-0.5)
    assert abs(moved.std() / deviation - 1.0) < 0.02
    assert abs(np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("size", [-0.1, 101.0, float("nan"), "much", True])
def test_sizes_are_checked(size: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"must lie in \[0, 100\]"):
        Jitter(size=size)
    with pytest.raises(InvalidValueError, match=r"must lie in \[0, 100\]"):
        Start(noise=size)


ENGINES = ("reference.ReferenceEngine", "torch_engine.TorchEngine")
ODD: dict[str, Any] = {
    "models must be whole numbers": {"models": np.array([0.5, 0.0])},
    "models must be whole numbers, one of 0 to 1": {"models": np.array([0, 2])},
    r"states must be \(B, 12\)": {"states": np.zeros((2, 11), np.float32)},
    r"states must be \(B, 12\), B from 0 on, got shape \(12,\)": {"states": np.zeros(12, np.float32)},
    r"table must be \(B, 12\), B from 1 on, got shape \(0, 12\)": {"table": np.zeros((0, 12), np.float32)},
    r"table must be \(B, 12\), B from 1 on, got shape \(3, 5\)": {"table": np.zeros((3, 5), np.float32)},
}


@pytest.mark.parametrize("words", ODD)
@pytest.mark.parametrize("name", [*ENGINES, "triton_engine.TritonEngine"])
def test_engines_refuse_rows_that_are_none_of_theirs(name: str, words: str) -> None:
    if name.startswith("triton"):
        pytest.importorskip("triton")
    home, kind = name.split(".")
    fitted, fine = made((3, 2, 2)), np.zeros((2, 12), np.float32)
    built = getattr(importlib.import_module(f"fractal_streams.kaleidoscope.{home}"), kind)
    engine = built(fitted) if home == "reference" else built(fitted, "cpu")
    asked = {"states": fine, "table": fine, "models": np.array([0, 1]), **ODD[words]}
    with pytest.raises(InvalidValueError, match=words):
        engine.nearest(asked["states"], asked["table"], asked["models"])
    if "table" not in ODD[words]:
        with pytest.raises(InvalidValueError, match=words):
            engine.apply(asked["states"], asked["models"])


@pytest.mark.parametrize("name", ENGINES)
def test_no_chains_are_no_error(name: str) -> None:
    home, kind = name.split(".")
    fitted, none = made((3, 2, 2)), np.zeros((0, 12), np.float32)
    engine = getattr(importlib.import_module(f"fractal_streams.kaleidoscope.{home}"), kind)(fitted)
    assert engine.starts(Start(kind="blend"), np.arange(0), None, key_of).shape == (0, 12)
    found = engine.run(none, None, Schedule(most=3, keep=(0, 2)))
    assert [part.shape for part in vars(found).values()] == [(0, 12), (0,), (0,), (0, 2, 12)]
    assert [part.shape for part in engine.nearest(none, fitted.source_values(0))] == [(0,), (0,)]
