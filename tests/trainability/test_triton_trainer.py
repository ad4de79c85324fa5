"""The GPU's trainer against the reference: in Triton's interpreter step by step, on a GPU by golden values and bits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from conftest import GPU

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability import triton_trainer
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import inputs_of
from fractal_streams.trainability.outcome import Outcome, Readout
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.triton_trainer import TILE, TritonTrainer, contraction, in_lane_order

DEVICE = "cuda" if GPU else "cpu"
DOUBLE = pytest.mark.skipif(not triton_trainer.DOUBLE_PRODUCTS, reason="this Triton has no float64 products")
RUNS = pytest.mark.skipif(
    not GPU and not triton_trainer.DOUBLE_PRODUCTS, reason="this Triton's interpreter can't loop under NumPy 2.4"
)
EVERYTHING = Readout(losses=4, checkpoints=(2, 3), probe=True)
CASES: dict[str, dict[str, Any]] = {
    "tanh": {"steps": 5},
    "relu": {"nonlinearity": "relu", "steps": 5},
    "identity": {"nonlinearity": "identity", "dataset_mode": "width", "steps": 8},
    "sin": {"nonlinearity": "sin", "dataset_mode": "width", "steps": 5},
    "gelu": {"nonlinearity": "gelu", "dataset_mode": "width", "steps": 5},
    "one row": {"dataset_mode": "single_example", "steps": 12},
    "width 16": {"width": 16, "dataset_mode": "width", "dataset_ratio": 1.5, "steps": 5},
    "width 32": {"width": 32, "dataset_mode": "width", "steps": 4},
    "depth 3": {"depth": 3, "dataset_mode": "width", "dataset_ratio": 2.5, "steps": 5, "axes": ("lr0", "lr2")},
    "minibatch": {"batch_size": 5, "dataset_mode": "width", "dataset_ratio": 2.5, "steps": 5},
    "minibatch of two tiles": {"batch_size": 18, "replacement": False, "steps": 4},
    "minibatch, depth 3": {"batch_size": 7, "depth": 3, "dataset_mode": "width", "steps": 4},
    "momentum": {"optimiser": "momentum", "dataset_mode": "width", "steps": 5, "axes": ("lr", "momentum")},
    "adam": {"optimiser": "adam", "dataset_mode": "width", "steps": 4, "axes": ("lr", "beta2")},
    "weight decay": {"dataset_mode": "width", "steps": 5, "axes": ("lr", "weight_decay")},
    "drift": {"dataset_mode": "width", "steps": 5, "axes": ("offset", "lr"), "offset_mode": "every_step"},
    "offset and scale": {"dataset_mode": "width", "steps": 5, "axes": ("offset", "scale")},
}


def experiment_of(case: str) -> Experiment:
    return Experiment(**{"width": 8, **CASES[case]})


def points_of(experiment: Experiment, count: int, seed: int) -> Any:
    """Fresh values of the axes at which nothing explodes at once."""
    generator = np.random.default_rng(seed)
    spans = {"momentum": (0.1, 0.95), "beta2": (0.5, 0.99), "scale": (0.5, 2.0), "offset": (0.01, 0.5)}
    columns = [
        generator.uniform(*spans[name], count)
        if name in spans
        else 10.0 ** generator.uniform(*((-4, -1) if name == "weight_decay" else (-1.5, 1.0)), count)
        for name in experiment.axes
    ]
    return np.stack(columns, axis=1)


def check(found: Outcome, known: Outcome, tolerance: float) -> None:
    """All that can be asked of a run, relative where it is above 1."""
    for name in ("measure", "measures", "losses", "final_loss", "probe"):
        ours, theirs = getattr(found, name), getattr(known, name)
        assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max()), name
    np.testing.assert_array_equal(found.diverged_at, known.diverged_at)
    np.testing.assert_array_equal(found.converged, known.converged)


@DOUBLE
@pytest.mark.parametrize("case", CASES)
def test_float64_is_the_reference_but_for_rounding(case: str) -> None:
    experiment = experiment_of(case)
    points = points_of(experiment, 3, seed=np.random.SeedSequence().entropy % 2**32)
    known = ReferenceTrainer().train(experiment, points, EVERYTHING)
    # The square root in Adam's first steps divides by gradients near 0, whose digits are few.
    check(TritonTrainer(DEVICE).train(experiment, points, EVERYTHING), known, 1e-6 if case == "adam" else 1e-12)


@RUNS
@pytest.mark.parametrize("precision", ["float32", "tf32x3", "tf32"])
@pytest.mark.parametrize("case", ["identity", "depth 3"])
def test_single_precision_is_the_reference_to_its_digits(case: str, precision: Any) -> None:
    experiment = experiment_of(case)
    points = points_of(experiment, 3, seed=5)
    known = ReferenceTrainer().train(experiment, points, EVERYTHING)
    loose = precision == "tf32" and GPU  # the interpreter multiplies in float32
    check(TritonTrainer(DEVICE, precision).train(experiment, points, EVERYTHING), known, 0.05 if loose else 2e-4)


@RUNS
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_units_on_lanes_in_both_types(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    precision: Any = "float64" if kind == torch.float64 else "float32"
    monkeypatch.setattr(triton_trainer, "DOUBLE_PRODUCTS", False)
    experiment = Experiment(width=8, dataset_mode="width", dataset_ratio=1.3, batch_size=3, steps=4)
    points = points_of(experiment, 5, seed=7)  # a program of four networks, and one that is not full
    known = ReferenceTrainer().train(experiment, points, EVERYTHING)
    tolerance = 1e-12 if kind == torch.float64 else 1e-5
    check(TritonTrainer(DEVICE, precision).train(experiment, points, EVERYTHING), known, tolerance)
    with pytest.raises(InvalidValueError, match=r"Triton 3\.6 or newer, or use precision='float32'"):
        TritonTrainer(DEVICE).train(experiment.replace(depth=3), points)


@RUNS
def test_the_reduced_form_is_the_exact_one_but_for_rounding() -> None:
    experiment = Experiment(
        width=8, dataset_mode="single_example", steps=24, hyperparameters={"scale": 1.5, "offset": 0.1}
    )
    points = points_of(experiment, 3, seed=9)
    asked = Readout(losses=4, checkpoints=(2, 3))
    known = ReferenceTrainer().train(experiment, points, asked)
    found = TritonTrainer(DEVICE, mode="reduced").train(experiment, points, asked)
    np.testing.assert_allclose(found.measure, known.measure, rtol=1e-9)
    np.testing.assert_allclose(found.losses, known.losses, rtol=1e-9, atol=1e-12)
    with pytest.raises(InvalidValueError, match="no weights to probe"):
        TritonTrainer(DEVICE, mode="reduced").train(experiment, points, Readout(probe=True))
    with pytest.raises(InvalidValueError, match="single examples"):
        TritonTrainer(DEVICE, mode="reduced").train(Experiment(width=8), points)


@DOUBLE
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numbers overflow in NumPy
def test_a_run_that_is_lost_is_left_and_its_measure_is_that_of_all_steps() -> None:
    experiment = Experiment(width=8, nonlinearity="identity", dataset_mode="width", steps=60)
    points = np.array([[1e150, 1e150], [0.1, 0.1]])
    known = ReferenceTrainer().train(experiment, points, EVERYTHING)
    found = TritonTrainer(DEVICE).train(experiment, points, EVERYTHING)
    assert known.diverged_at[0] == 1 and found.diverged_at[0] == 1
    inputs, (alpha0, alpha1) = inputs_of(experiment), experiment.factors
    first = np.mean((alpha1 * (alpha0 * inputs.x @ inputs.weights[0] @ inputs.weights[1])[:, 0] - inputs.y) ** 2)
    assert found.measure[0] == pytest.approx(1.0 + 59.0 / min(1e6, 1e6 / first), rel=1e-12)
    assert found.measure[0] == pytest.approx(known.measure[0], rel=1e-12)
    assert found.measure[1] == pytest.approx(known.measure[1], rel=1e-12)


def test_gpus_with_few_float64_units_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    triton_trainer.warn_if_slow("NVIDIA H200", (9, 0))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"NVIDIA L4 \(compute capability 8\.9\).*precision='float32'"):
        triton_trainer.warn_if_slow("NVIDIA L4", (8, 9))


def test_no_points_give_no_outcomes() -> None:
    found = TritonTrainer(DEVICE).train(Experiment(width=8, steps=5), np.empty((0, 2)), Readout(losses=3))
    assert len(found) == 0 and found.losses.shape == (0, 3)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_operands_lie_where_the_lanes_read_them(precision: str) -> None:
    """The fragment of a right operand by the PTX manual: lane 4 n + k of rows k + 4 i, a column n of 8."""
    matrix = np.arange(256.0).reshape(16, 16)
    flat = in_lane_order(matrix[None], precision)
    each = 2 if precision == "float64" else 4  # elements of 16 bytes
    for lane in range(32):
        taken = {
            flat[start + lane * each + place] for start in range(0, 256, 32 * each) for place in range(each)
        }  # fmt: skip
        rows, columns = [lane % 4 + 4 * i for i in range(4)], [lane // 4, lane // 4 + 8]
        assert taken == {matrix[row, column] for row in rows for column in columns}
    held, rest = np.split(in_lane_order(np.full((1, 16, 16), math.pi), "tf32x3"), 2)
    assert (held.view(np.int32) & 0x1FFF == 0).all() and np.abs(held + rest - np.float32(math.pi)).max() == 0


def test_folded_columns_are_each_column_once() -> None:
    assert sorted(contraction(32)) == list(range(32)) and list(contraction(TILE)[:8]) == [0, 2, 4, 6, 1, 3, 5, 7]


GOLDEN = [
    # name, (lr0, lr1), v[1], v[10], v[499] or None, V
    ("tanh", (1, 1), 0.998495220403, 0.9864948166, 0.7626492275, -436.1781348),
    ("tanh", (10, 100), 0.952461531616, 0.9119958578, 0.09759547343, -139.4429851),
    ("tanh", (1, 200), 0.953528076887, 2.319798727, 0.4606118516, -329.6657378),
    ("relu", (1, 10), 0.982502752114, 0.9337521579, 0.4761728142, -341.0373825),
    ("relu", (10, 100), 1.07078887193, 905788.9708, 905788.9708, 2.377266888),
    ("linear", (1, 10), 0.907032411479, 0.5052229038, 0.008632371749, -21.41023716),
    ("linear", (10, 100), 0.695023623452, 1000000, 1000000, 3.741398767),
    ("single", (1, 1), 0.695652392732, 0.05134366556, None, -3.666647185),
    ("single", (10, 100), 38.8172638077, 1000000, 1000000, 1.518097621),
]


@pytest.mark.gpu
@pytest.mark.parametrize("name, point, first, tenth, last, measure", GOLDEN)
def test_golden_losses(name: str, point: Any, first: float, tenth: float, last: Any, measure: float) -> None:
    found = TritonTrainer("cuda").train(PUBLISHED[name].experiment, np.array([point], float), Readout(losses=11))
    digit = 0.51 * 10.0 ** -np.array([12, 10, 10])  # the report prints as many
    assert found.losses[0, 1] == pytest.approx(first, rel=1e-12, abs=10 * digit[0] * abs(first))
    assert found.losses[0, 10] == pytest.approx(tenth, rel=1e-8)
    assert found.measure[0] == pytest.approx(measure, rel=1e-6)
    if last is not None:
        assert found.final_loss[0] == pytest.approx(last, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name, size, share, tolerance",
    [
        ("single", 96, 0.3356, 0.002), ("single", 256, 0.33170, 0.002), ("linear", 96, 0.50705, 0.002),
        ("linear", 256, 0.50821, 0.002), ("tanh", 56, 0.5552, 0.005), ("relu", 56, 0.4369, 0.005),
        ("minibatch", 40, 0.3363, 0.02), ("drift", 44, 0.793, 0.02),
    ],
)  # fmt: skip
def test_published_shares(name: str, size: int, share: float, tolerance: float) -> None:
    published = PUBLISHED[name]
    found = TritonTrainer("cuda").train(published.experiment, published.window.grid(size).points())
    assert abs(found.converged.mean() - share) <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float64", "float32", "tf32x3", "tf32"])
@pytest.mark.parametrize("name", ["tanh", "minibatch", "relu", "single", "linear"])
def test_a_run_does_not_depend_on_the_others(name: str, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = PUBLISHED[name]
    experiment = published.experiment.replace(steps=500)
    points = published.window.scaled(4.0 / min(published.window.size)).grid(48).points()
    trainer = TritonTrainer("cuda", precision)
    whole = trainer.train(experiment, points)
    assert 0.02 < whole.converged.mean() < 0.98
    chosen = np.random.default_rng().permutation(len(points))[:777]
    monkeypatch.setattr(triton_trainer, "LAUNCH", 100)
    part = trainer.train(experiment, points[chosen])
    for field in ("measure", "final_loss", "diverged_at"):
        assert getattr(part, field).tobytes() == getattr(whole, field)[chosen].tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision, share", [("float32", 0.99), ("tf32x3", 0.99), ("tf32", 0.98)])
def test_single_precision_agrees_on_the_overview(precision: Any, share: float) -> None:
    points, experiment = OVERVIEW.grid(64).points(), PUBLISHED["tanh"].experiment
    known = TritonTrainer("cuda").train(experiment, points).converged
    assert (TritonTrainer("cuda", precision).train(experiment, points).converged == known).mean() >= share


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_without_a_gpu(capability: int) -> None:
    script = Path(__file__).with_name("compile_trainers.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(capability)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 3 + triton_trainer.DOUBLE_PRODUCTS and all(int(line.split()[-1]) > 1000 for line in lines)
