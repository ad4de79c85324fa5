"""Spectral radii against eigenvalues that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hand_made_networks import linear, staircase

torch = pytest.importorskip("torch")

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.batched_points import bank_function, iterates
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import ACTIVATIONS, Network, normals
from fractal_streams.kaleidoscope.spectrum import jacobians, spectral_radii

SHEAR = [[0.5, 100.0], [0.0, 0.25]]
TURN = [[0.0, -0.9], [0.9, 0.0]]


def drawn(rows: int, columns: int, *names: str | int) -> np.ndarray:
    return normals(rows * columns, rng.key("test", *names)).reshape(rows, columns)


def with_eigenvalues(values: np.ndarray) -> np.ndarray:
    """A matrix that isn't symmetric with these eigenvalues."""
    sides = np.eye(len(values)) + 0.3 * drawn(len(values), len(values), "sides") / np.sqrt(len(values))
    return np.asarray(sides @ np.diag(values) @ np.linalg.inv(sides))


def test_it_is_the_eigenvalue_not_the_singular_value() -> None:
    states = drawn(5, 2, "states")
    for matrix, radius in ((SHEAR, 0.5), (TURN, 0.9), ([[0.0, 7.0], [0.0, 0.0]], 0.0)):
        assert spectral_radii(linear(matrix), states) == pytest.approx(np.full(5, radius), abs=1e-6)
    assert np.linalg.norm(SHEAR, 2) > 100.0


def test_power_iteration_finds_known_eigenvalues() -> None:
    size = 80
    for values in (np.linspace(-1.3, 0.8, size), np.concatenate([np.linspace(-0.5, 0.5, size - 1), [0.75]])):
        fitted = linear(with_eigenvalues(values))
        expected = np.abs(values).max()
        assert spectral_radii(fitted, drawn(3, size, "states")) == pytest.approx(np.full(3, expected), rel=1e-2)
        assert spectral_radii(fitted, drawn(1, size, "states"), exact=True) == pytest.approx([expected], rel=1e-5)


def test_power_iteration_follows_a_turning_pair() -> None:
    assert spectral_radii(linear(TURN), np.zeros((1, 2)), exact=False) == pytest.approx([0.9], rel=1e-5)


def test_a_vector_that_vanishes_has_radius_0() -> None:
    assert spectral_radii(linear([[0.0, 7.0], [0.0, 0.0]]), np.zeros((2, 2)), exact=False).tolist() == [0.0, 0.0]


def test_each_row_has_its_own_network() -> None:
    bank = linear(np.float32([np.diag([0.5, 0.1]), np.diag([2.0, 0.1]), SHEAR]))
    found = spectral_radii(bank, np.zeros((4, 2)), np.array([1, 0, 2, 1]))
    assert found == pytest.approx([2.0, 0.5, 0.5, 2.0], abs=1e-6)


def test_slopes_of_stairs() -> None:
    stairs = staircase([0.2], [-0.5, 0.5])
    assert spectral_radii(stairs, np.array([[-0.5], [0.2], [0.5]])).tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobians_are_differences(activation: str) -> None:
    network = Network(shape=(3,), hidden=7, n_linear=3, activation=activation)
    sources = Sources(data=np.zeros((1, 1, 3), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
    fitted = Kaleidoscope(network=network, tensors=network.first_weights(), sources=sources)
    states, small = 0.5 * drawn(4, 3, "states"), 1e-5
    found = jacobians(bank_function(fitted), states, "cpu")
    for column in range(3):
        step = small * np.eye(3)[column]
        ahead, behind = (iterates(fitted, states + sign * step, 1)[0, 1] for sign in (1, -1))
        assert found[:, :, column] == pytest.approx((ahead - behind) / (2 * small), abs=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_a_row_does_not_depend_on_its_batch(exact: bool) -> None:
    network = Network(shape=(5,), hidden=30, n_linear=4, activation="gelu")
    sources = Sources(data=np.zeros((1, 1, 5), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
    fitted = Kaleidoscope(network=network, tensors=network.first_weights(2), sources=sources)
    states, models = drawn(150, 5, "states"), np.arange(150) % 2
    whole = spectral_radii(fitted, states, models, exact=exact)
    for rows in (np.array([149]), np.arange(7), np.arange(150)[::-1]):
        assert np.array_equal(spectral_radii(fitted, states[rows], models[rows], exact=exact), whole[rows])


@pytest.mark.slow
def test_convolutional_networks_have_radii_too() -> None:
    pytest.importorskip("diffusers")
    from fractal_streams.kaleidoscope.convolutional import first_module_weights

    network = Network(shape=(1, 4, 4), kind="bottleneck", hidden=8, n_linear=2, activation="silu")
    sources = Sources(data=np.zeros((1, 1, 1, 4, 4), np.uint8), labels=np.zeros((1, 1), np.int64), titles=("0",))
    fitted = Kaleidoscope(network=network, tensors=first_module_weights(network, 0), sources=sources)
    states = 0.3 * drawn(2, 16, "states")
    exact, grown = (spectral_radii(fitted, states, exact=exact) for exact in (True, False))
    assert exact.min() > 0.0
    assert grown == pytest.approx(exact, rel=0.05)


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidValueError, match=r"\(B, 2\), got \(3, 4\)"):
        spectral_radii(linear(SHEAR), np.zeros((3, 4)))
    with pytest.raises(InvalidValueError, match="steps must be 20 and up, got 5"):
        spectral_radii(linear(SHEAR), np.zeros((1, 2)), steps=5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_radii() -> None:
    size = 80
    fitted = linear(with_eigenvalues(np.linspace(-1.3, 0.8, size)))
    for exact in (True, False):
        cpu, gpu = (spectral_radii(fitted, drawn(9, size, "s"), device=d, exact=exact) for d in ("cpu", "cuda"))
        assert gpu == pytest.approx(cpu, rel=1e-3)
