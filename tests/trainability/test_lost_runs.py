"""Runs that are lost: their labels whatever their first loss was, and no numbers where there are none."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from conftest import GPU

from fractal_streams.errors import MissingExtraError
from fractal_streams.trainability import triton_kernel, triton_primitives
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.numba_trainer import NumbaTrainer
from fractal_streams.trainability.outcome import CAP, WINDOW, Readout, capped
from fractal_streams.trainability.reference import EPSILON, ReferenceTrainer
from fractal_streams.trainability.triton_trainer import DOUBLE_PRODUCTS, TritonTrainer

DEVICE = "cuda" if GPU else "cpu"

LOUD = Experiment(width=8, nonlinearity="relu", axes=("scale", "lr"), dataset_mode="width", steps=30)
"""Its first loss grows with the fourth power of the scale: above 1e6 from 100 on."""
LOUD_POINTS = np.array([[1.0, 1.0], [30.0, 10.0], [100.0, 10.0], [1000.0, 10.0], [100.0, 1e-9]])
LOST = LOUD.replace(axes=("lr0", "lr1"))
LOST_POINTS = np.array([[1e150, 1e150], [0.1, 0.1]])


def exact_trainers() -> list[Any]:
    """Those that this machine has."""
    found: list[Any] = [ReferenceTrainer(), NumbaTrainer(threads=1)]
    found.append(pytest.param(NumbaTrainer("float32", threads=1), marks=pytest.mark.slow))
    return [*found, TritonTrainer(DEVICE)] if GPU or DOUBLE_PRODUCTS else found


EXACT = pytest.mark.parametrize(
    "trainer", exact_trainers(), ids=lambda trainer: f"{type(trainer).__name__} {trainer.precision}"
)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_never_lies_below_a_first_loss_above_a_million(broken: float) -> None:
    losses = np.array([[1e5, 1e6, 2e6, 1e300], [broken] * 4, [5e4, 5e5, 1e6, 1e299]])
    np.testing.assert_allclose(capped(losses), [[1.0] * 4, [10.0, 1.0, CAP, CAP], [0.5, 0.5, 0.5, 0.1]], rtol=1e-15)


@EXACT
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numbers overflow in NumPy
def test_a_lost_run_has_not_converged_from_however_large_a_first_loss(trainer: Any) -> None:
    found = trainer.train(LOUD, LOUD_POINTS, Readout(losses=30, checkpoints=(25,)))
    assert found.converged.tolist() == [True, False, False, False, True]
    assert ((found.diverged_at == 30) == found.converged).all()
    assert ((found.measures[:, 0] < 0) == found.converged).all()
    assert found.losses[2:4, -1].tolist() == [CAP, CAP] and found.losses[4, -1] < 1.0


@EXACT
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_probe_of_a_network_without_numbers_is_nan(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the network was left before its last step, and memory held other numbers."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(7))
    found = trainer.train(LOST, LOST_POINTS, Readout(probe=True))
    assert np.isnan(found.probe).tolist() == [True, False]


def test_the_kernels_of_gpus_have_the_measure_s_constants() -> None:
    held = (triton_primitives.CAP.value, triton_primitives.WINDOW.value, triton_kernel.EPSILON.value)
    assert held == (CAP, WINDOW, EPSILON)


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_the_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without Triton exists too."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fractal_streams.trainability.triton_trainer")
    with pytest.raises(MissingExtraError, match=rf"^{package} is not installed"):
        importlib.import_module("fractal_streams.trainability.triton_trainer")
