"""The GPU's engine against the reference: in Triton's interpreter for a step or two, on a GPU whole chains and bits."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from conftest import GPU

from fractal_streams import rng
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.reference import ReferenceEngine
from fractal_streams.kaleidoscope.starts import JITTER_KINDS, START_KINDS, Jitter, Start
from fractal_streams.kaleidoscope.torch_engine import TorchEngine
from fractal_streams.kaleidoscope.triton_engine import TritonEngine, chunks
from fractal_streams.kaleidoscope.triton_layers import halves, joined, ladder

DEVICE = "cuda:0" if GPU else "cpu"
RUNS = pytest.mark.skipif(
    not GPU and tuple(map(int, __import__("triton").__version__.split(".")[:2])) < (3, 6),
    reason="this Triton's interpreter can't loop under NumPy 2.4",
)


def key_of(*names: Any) -> tuple[int, int]:
    return rng.key("a test", *names)


def made(shape: tuple[int, ...] = (1, 5, 7), models: int = 2, **fields: Any) -> Kaleidoscope:
    """Untrained networks that move their states well."""
    network = Network(**{"shape": shape, "hidden": 20, "n_linear": 3, "init": "he", **fields})
    levels = np.random.default_rng(0).integers(0, 256, (1, 6, *shape)).astype(np.uint8)
    sources = Sources(data=levels, labels=np.arange(6)[None] % 2, titles=("even", "odd"))
    return Kaleidoscope(network=network, tensors=network.first_weights(models), sources=sources)


def test_pairs_of_float16_hold_22_bits() -> None:
    values = torch.from_numpy(np.random.default_rng().normal(size=10_000).astype(np.float32)) * 4.0
    back = joined(halves(values, "float32"))
    assert ((back - values).abs() / values.abs().clamp(min=2e-4)).max() <= 2.0**-22
    assert joined(halves(torch.tensor([1e9, -1e9]), "float32")).tolist() == [65504.0, -65504.0]


def test_rows_are_packed_by_network_into_whole_tiles() -> None:
    models = np.random.default_rng(3).integers(0, 5, 1000)
    parts = list(chunks(models, 512))
    assert all(len(part) % 128 == 0 and len(part) <= 512 for part in parts)
    flat = np.concatenate(parts)
    assert sorted(flat[flat >= 0]) == list(range(1000))
    for tile in flat.reshape(-1, 128):
        assert len(np.unique(models[tile[tile >= 0]])) == 1
    assert [ladder(rows, 4096) // 128 for rows in range(128, 1025, 128)] == [1, 2, 3, 4, 6, 6, 8, 8]


@RUNS
@pytest.mark.parametrize("head, activation", [("tanh", "relu"), ("sigmoid", "silu")])
def test_steps_are_the_reference_s(head: Any, activation: str) -> None:
    fitted = made(head=head, activation=activation)
    chains, models = np.arange(5) + 2**40, np.arange(5) % 2
    states = ReferenceEngine(fitted).starts(Start(), chains, models, key_of)
    schedule = Schedule(most=2, tolerance=0.02, keep=(0, 1, 2))
    known = ReferenceEngine(fitted).run(states, models, schedule)
    found = TritonEngine(fitted, DEVICE).run(states, models, schedule).numpy()
    assert np.abs(found.kept - known.kept).max() < 5e-6
    np.testing.assert_array_equal(found.steps, known.steps)
    np.testing.assert_allclose(found.change, known.change, atol=5e-6)


@RUNS
def test_noise_follows_chains_that_move_up_for_those_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter of size 0 lets chains rest; half of these do at once, and the others are packed into half the rows."""
    monkeypatch.setattr("fractal_streams.kaleidoscope.triton_engine.CHECK", 1)
    monkeypatch.setattr(TritonEngine, "_noise", lambda self, table, *rest, **more: table.zero_())
    network = Network(shape=(1,), hidden=1, n_linear=2, activation="identity", head="linear", data_scale=1.0)
    shrink = {"layers.0.weight": np.full((1, 1, 1), 0.9, np.float32), "layers.1.weight": np.ones((1, 1, 1), np.float32)}
    shrink |= {f"layers.{layer}.bias": np.zeros((1, 1), np.float32) for layer in (0, 1)}
    middle = Sources(data=np.zeros((1, 1, 1), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
    fitted = Kaleidoscope(network=network, tensors=shrink, sources=middle)
    states = np.where(np.arange(200) % 2, np.linspace(0.5, 1.0, 200), 0.0).astype(np.float32)[:, None]
    schedule = Schedule(most=2, tolerance=1e-3, jitter=Jitter(size=0.0))
    given: Any = {"schedule": schedule, "chains": np.arange(200), "key_of": key_of}
    known = ReferenceEngine(fitted).run(states, **given)
    found = TritonEngine(fitted, DEVICE).run(states, **given).numpy()
    np.testing.assert_array_equal(found.steps, known.steps)
    assert np.abs(found.states - known.states).max() < 1e-6


@RUNS
def test_starts_and_the_nearest_are_the_reference_s() -> None:
    fitted = made((3, 6, 5))
    ours, theirs = TritonEngine(fitted, DEVICE), ReferenceEngine(fitted)
    chains, models = np.array([0, 5, 2**40, 2**62]), np.array([1, 0, 1, 1])
    for kind in START_KINDS:
        start = Start(kind=kind, noise=0.2)
        states = theirs.starts(start, chains, models, key_of)
        found = ours.starts(start, chains, models, key_of).cpu().numpy()
        assert np.abs(found - states).max() < 1e-6, kind
    table, own = fitted.source_values(0), np.arange(6) % 2
    for arguments in ((table,), (table, models, own), (table, models, own * 0)):
        place, distance = ours.nearest(states, *arguments)
        known_place, known_distance = theirs.nearest(states, *arguments)
        np.testing.assert_array_equal(place.cpu().numpy(), known_place)
        np.testing.assert_allclose(distance.cpu().numpy(), known_distance, atol=1e-6)
    levels = ours.levels(torch.from_numpy(states).to(DEVICE)).cpu().numpy()
    np.testing.assert_array_equal(levels, fitted.network.levels_of(states))
    np.testing.assert_array_equal(ours.levels(states).cpu().numpy(), levels)
    odd = np.full((1, 90), np.nan, np.float32)
    assert not ours.levels(torch.from_numpy(odd).to(DEVICE)).any()


@pytest.mark.parametrize(
    "capability, names",
    [("90", ["last of pairs"]), *(pytest.param(each, [], marks=pytest.mark.slow) for each in ("80", "90"))],
)
def test_kernels_compile_without_a_gpu(capability: str, names: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_layers.py"
    done = subprocess.run(
        [sys.executable, script, capability, *names], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == (len(names) or 5) and all(line[0] == capability and int(line[-1]) > 1000 for line in lines)


LARGE: dict[str, Any] = {
    "a bank": {"shape": (3, 8, 8), "hidden": 100, "n_linear": 5, "models": 3},
    "wide": {"shape": (1, 28, 28), "hidden": 500, "n_linear": 7, "models": 1},
    "small": {"shape": (1, 4, 4), "hidden": 10, "n_linear": 3, "models": 2, "head": "sigmoid", "activation": "gelu"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", LARGE)
def test_a_row_is_the_same_in_any_batch(case: str, precision: str) -> None:
    fitted = made(**LARGE[case])
    engine = TritonEngine(fitted, DEVICE, precision)
    chains = np.random.default_rng().integers(0, 2**62, 4096)
    models = chains % fitted.models
    schedule = Schedule(most=20, tolerance=0.02, keep=(0, 3, 20))
    for start in (Start(), Start(kind="pink", noise=0.1), Start(kind="blend")):
        states = engine.starts(start, chains, models, key_of)
        whole = engine.run(states, models, schedule).numpy()
        order = np.random.default_rng().permutation(4096)
        for rows in (np.array([77]), np.arange(1000, 1007), order, np.repeat(5, 300)):
            apart = engine.starts(start, chains[rows], models[rows], key_of)
            assert torch.equal(apart, states[torch.from_numpy(rows).to(DEVICE)])
            part = engine.run(apart, models[rows], schedule).numpy()
            for name in ("states", "steps", "change", "kept"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
            place, distance = engine.nearest(whole.states[rows], fitted.source_values(0))
            known = engine.nearest(whole.states, fitted.source_values(0))
            np.testing.assert_array_equal(place.cpu(), known[0].cpu()[rows])
            np.testing.assert_array_equal(distance.cpu(), known[1].cpu()[rows])


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE)
def test_float32_is_as_near_to_float64_as_a_cpu_s(case: str) -> None:
    fitted = made(**LARGE[case])
    states = np.random.default_rng().uniform(-1, 1, (2000, fitted.network.size)).astype(np.float32)
    models = np.arange(2000) % fitted.models
    known = ReferenceEngine(fitted).apply(states, models)
    ours = np.abs(TritonEngine(fitted, DEVICE).apply(states, models).cpu().numpy() - known)
    cpu = np.abs(TorchEngine(fitted).apply(states, models) - known)
    assert ours.mean() <= 1.5 * cpu.mean() + 1e-8 and ours.max() <= 2.0 * cpu.max() + 1e-7
    rough = np.abs(TritonEngine(fitted, DEVICE, "bfloat16").apply(states, models).cpu().numpy() - known)
    assert rough.mean() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("kind", JITTER_KINDS)
def test_jitter_is_the_reference_s(kind: str) -> None:
    fitted = made((1, 6, 6), models=2)
    chains, models = np.arange(300) * 3, np.arange(300) % 2
    states = ReferenceEngine(fitted).starts(Start(), chains, models, key_of)
    schedule = Schedule(most=4, tolerance=0.0, jitter=Jitter(kind=kind, size=0.1), keep=(1, 2, 4))
    known = ReferenceEngine(fitted).run(states, models, schedule, chains=chains, key_of=key_of)
    engine = pickle.loads(pickle.dumps(TritonEngine(fitted, DEVICE)))
    found = engine.run(states, models, schedule, chains=chains, key_of=key_of).numpy()
    assert np.abs(found.kept - known.kept).max() < 1e-4


@pytest.mark.gpu
def test_chains_at_rest_are_dropped_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from fractal_streams.kaleidoscope import triton_engine

    fitted = made((1, 6, 6), models=2, init="torch", n_linear=4)
    states = np.random.default_rng(0).uniform(-1, 1, (3000, 36)).astype(np.float32)
    models = np.arange(3000) % 2
    schedule = Schedule(most=60, tolerance=1e-5, keep=(0, 2, 9, 30))
    whole = TritonEngine(fitted, DEVICE).run(states, models, schedule).numpy()
    monkeypatch.setattr(triton_engine, "CAPACITY", 512)
    parts = TritonEngine(fitted, DEVICE).run(states, models, schedule).numpy()
    known = TorchEngine(fitted).run(states, models, schedule)
    for name in ("states", "steps", "change", "kept"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert (whole.steps > 0).all() and np.abs(whole.steps - known.steps).max() <= 1
    assert np.abs(whole.states - known.states).max() < 1e-4
