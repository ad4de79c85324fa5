"""The reference trainer, against the losses of the paper's experiments, finite differences, and torch's optimisers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fractal_streams.trainability.experiment import NONLINEARITIES, Experiment
from fractal_streams.trainability.inputs import inputs_of
from fractal_streams.trainability.outcome import Readout
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.reference import FUNCTIONS, ReferenceTrainer, backward, forward
from fractal_streams.trainability.window import Window

TANH, RELU, LINEAR, SINGLE = (PUBLISHED[name].experiment for name in ("tanh", "relu", "linear", "single"))
WIDTH_8 = Experiment(width=8, inputs="published")
GOLDEN = [
    # experiment, (lr0, lr1), first loss, v[1], v[10], v[499], V; None where the last is 0 but for rounding
    (TANH, (1, 1), "1.08724514329001", "0.998495220403", "0.9864948166", "0.7626492275", "-436.1781348"),
    (TANH, (10, 100), "1.08724514329001", "0.952461531616", "0.9119958578", "0.09759547343", "-139.4429851"),
    (TANH, (1, 200), "1.08724514329001", "0.953528076887", "2.319798727", "0.4606118516", "-329.6657378"),
    (RELU, (1, 10), "1.10400990984641", "0.982502752114", "0.9337521579", "0.4761728142", "-341.0373825"),
    (RELU, (10, 100), "1.10400990984641", "1.07078887193", "905788.9708", "905788.9708", "2.377266888"),
    (LINEAR, (1, 10), "0.362413080575808", "0.907032411479", "0.5052229038", "0.008632371749", "-21.41023716"),
    (LINEAR, (10, 100), "0.362413080575808", "0.695023623452", "1000000", "1000000", "3.741398767"),
    (SINGLE, (1, 1), "0.317058572254086", "0.695652392732", "0.05134366556", None, "-3.666647185"),
    (SINGLE, (10, 100), "0.317058572254086", "38.8172638077", "1000000", "1000000", "1.518097621"),
    (WIDTH_8, (1, 1), "0.982139662264135", "0.986751659198", "0.9115593753", "0.3130544121", "-294.5434416"),
]
"""Float64 runs of 500 steps with the paper's own inputs, in a program that shares no code with this one."""


def as_printed(text: str, relative: float) -> Any:
    """Within a relative tolerance and half a unit of the last digit that is printed."""
    digits = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=relative, abs=0.5 * 10.0**-digits * (digits > 0))


@pytest.mark.parametrize("experiment, point, first, one, ten, last, measure", GOLDEN, ids=range(len(GOLDEN)))
def test_losses_at_stable_points(
    experiment: Experiment, point: tuple[float, float], first: str, one: str, ten: str, last: str | None, measure: str
) -> None:
    found = ReferenceTrainer().train(experiment, [point], Readout(losses=11))
    inputs = inputs_of(experiment)
    output = forward(experiment, [layer[None] for layer in inputs.weights], inputs.x)[-1][0, :, 0]
    assert np.mean((output - inputs.y) ** 2) == as_printed(first, 1e-13)
    assert found.losses is not None and found.losses[0, 0] == 1.0
    assert found.losses[0, 1] == as_printed(one, 1e-12)
    assert found.losses[0, 10] == as_printed(ten, 1e-8)
    assert found.measure[0] == as_printed(measure, 1e-6)
    if last is None:
        assert found.final_loss[0] < 1e-28
    else:
        assert found.final_loss[0] == as_printed(last, 1e-5)
    assert found.diverged_at[0] == 500 if float(measure) < 0 else found.diverged_at[0] <= 10


def test_a_run_does_not_depend_on_its_neighbours_to_the_bit() -> None:
    points = np.array([[1.0, 1.0], [300.0, 2.0], [3.0, 500.0], [20.0, 20.0], [1e5, 1e5]])
    for experiment in (WIDTH_8.replace(steps=40), Experiment(width=8, depth=3, optimiser="adam", steps=40)):
        together = ReferenceTrainer().train(experiment, points, Readout(losses=40, probe=True))
        for place, point in enumerate(points):
            alone = ReferenceTrainer().train(experiment, [point], Readout(losses=40, probe=True))
            for name in ("measure", "diverged_at", "final_loss", "losses", "probe"):
                np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name)[0], name)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(width=8, dataset_mode="width", steps=30)
    points = OVERVIEW.grid(6).points()
    at_once = ReferenceTrainer().train(experiment, points)
    monkeypatch.setattr("fractal_streams.trainability.reference.CHUNK_BYTES", 8 * 8 * 8 * 5)
    assert (ReferenceTrainer().train(experiment, points).measure == at_once.measure).all()
    assert len(ReferenceTrainer().train(experiment, np.empty((0, 2)))) == 0


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_gradients_are_those_of_finite_differences(name: str, depth: int) -> None:
    """Central differences of every weight of two networks at once."""
    experiment = Experiment(nonlinearity=name, width=8, depth=depth, dataset_mode="width", alpha0=0.7, alpha1=0.4)
    inputs = inputs_of(experiment)
    weights = [np.stack([layer, 0.5 * layer[::-1]]) for layer in inputs.weights]

    def loss() -> Any:
        return np.mean((forward(experiment, weights, inputs.x)[-1][..., 0] - inputs.y) ** 2, axis=1)

    step = 1e-5
    for layer, gradient in zip(weights, backward(experiment, weights, inputs.x, inputs.y), strict=True):
        assert gradient.shape == layer.shape
        for row, column in itertools.product(*map(range, layer.shape[1:])):
            kept = layer[:, row, column].copy()
            layer[:, row, column] = kept + step
            above = loss()
            layer[:, row, column] = kept - step
            difference = (above - loss()) / (2 * step)
            layer[:, row, column] = kept
            assert gradient[:, row, column] == pytest.approx(difference, rel=1e-6, abs=1e-9), (row, column)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_functions_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    place = torch.linspace(-6.0, 6.0, 401, dtype=torch.float64, requires_grad=True)
    own = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda z: z * 1.0, "sin": torch.sin}
    value = own.get(name, torch.nn.functional.gelu)(place)
    value.sum().backward()
    function, slope = FUNCTIONS[name]
    np.testing.assert_allclose(function(place.detach().numpy()), value.detach().numpy(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(slope(place.detach().numpy()), place.grad.numpy(), rtol=1e-11, atol=1e-13)


OPTIMISERS: list[tuple[str, dict[str, float], dict[str, Any]]] = [
    ("gradient_descent", {}, {}),
    ("gradient_descent", {"weight_decay": 0.03}, {"weight_decay": 0.03}),
    ("momentum", {"momentum": 0.8}, {"momentum": 0.8}),
    ("momentum", {"momentum": 0.8, "weight_decay": 0.03}, {"momentum": 0.8, "weight_decay": 0.03}),
    ("adam", {"momentum": 0.7, "beta2": 0.95}, {"betas": (0.7, 0.95)}),
    ("adam", {"weight_decay": 0.03}, {"betas": (0.9, 0.999), "weight_decay": 0.03}),
]


@pytest.mark.parametrize("optimiser, hyperparameters, told", OPTIMISERS, ids=[f"{o[0]} {o[1]}" for o in OPTIMISERS])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_twenty_steps_are_torchs(
    optimiser: str, hyperparameters: dict[str, float], told: dict[str, Any], batch_size: int | None
) -> None:
    """Three layers, each with a rate of its own; autograd and torch.optim beside the reference."""
    torch = pytest.importorskip("torch")
    experiment = Experiment(
        width=8, depth=3, dataset_mode="width", dataset_ratio=2.0, steps=20, optimiser=optimiser, batch_size=batch_size,
        axes=("lr2", "lr1"), hyperparameters={"lr0": 0.3, "scale": 1.25, **hyperparameters},
    )  # fmt: skip
    rates = (0.03, 0.02, 0.05) if optimiser == "adam" else (0.3, 0.7, 1.1)
    experiment = experiment.replace(hyperparameters={**experiment.hyperparameters, "lr0": rates[0]})
    found = ReferenceTrainer().train(experiment, [[rates[2], rates[1]]], Readout(losses=20))
    inputs, (alpha0, alpha1) = inputs_of(experiment), experiment.factors
    layers = [torch.tensor(1.25 * layer, requires_grad=True) for layer in inputs.weights]
    groups = [{"params": [layer], "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    kind = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
    trained = kind(groups, **told)
    x, y = torch.tensor(inputs.x.copy()), torch.tensor(inputs.y.copy())

    def loss(rows: Any) -> Any:
        hidden = torch.tanh(alpha0 * x[rows] @ layers[0])
        hidden = torch.tanh(alpha0 * hidden @ layers[1])
        return ((alpha1 * hidden @ layers[2])[:, 0] - y[rows]).pow(2).mean()

    losses = []
    for step in range(20):
        losses.append(loss(slice(None)).item())
        trained.zero_grad()
        loss(slice(None) if inputs.order is None else inputs.order[step].copy()).backward()
        trained.step()
    assert found.losses is not None
    np.testing.assert_allclose(found.losses[0], np.array(losses) / losses[0], rtol=1e-11)
    assert abs(losses[-1] / losses[0] - 1.0) > 1e-3


def test_a_drift_adds_the_offset_at_every_step_and_an_initial_offset_once() -> None:
    """At rate 0 the drift's loss at step t is the first loss of an initial offset t + 1 times as large."""
    once = Experiment(width=8, axes=("offset", "lr"), steps=6)
    inputs = inputs_of(once)
    shifted = [inputs.weights[0] + 0.3 * (step + 1) for step in range(6)]
    raw = [
        float(np.mean((forward(once, [first[None], inputs.weights[1][None]], inputs.x)[-1][0, :, 0] - inputs.y) ** 2))
        for first in shifted
    ]
    drift = ReferenceTrainer().train(once.replace(offset_mode="every_step"), [[0.3, 0.0]], Readout(losses=6))
    still = ReferenceTrainer().train(once, [[0.3, 0.0]], Readout(losses=6))
    assert drift.losses is not None and still.losses is not None
    np.testing.assert_allclose(drift.losses[0], np.array(raw) / raw[0], rtol=1e-12)
    assert (still.losses == 1.0).all() and len(set(drift.losses[0])) == 6


def test_the_probe_is_the_output_with_the_weights_of_the_last_loss() -> None:
    experiment = Experiment(width=8, dataset_mode="width", steps=1)
    inputs = inputs_of(experiment)
    found = ReferenceTrainer().train(experiment, [[1.0, 1.0]], Readout(probe=True)).probe
    expected = np.tanh(math.sqrt(2 / 8) * inputs.probe @ inputs.weights[0]) @ inputs.weights[1][:, 0] / 8
    assert found is not None and found[0] == pytest.approx(expected, rel=1e-13)
    later = ReferenceTrainer().train(experiment.replace(steps=2), [[1.0, 1.0]], Readout(probe=True)).probe
    assert later is not None and later[0] != found[0]


def test_a_minibatch_of_all_rows_is_a_full_batch() -> None:
    full = Experiment(width=8, dataset_mode="width", steps=20)
    point = [[3.0, 5.0]]
    batched = ReferenceTrainer().train(full.replace(batch_size=8, replacement=False), point, Readout(losses=20))
    np.testing.assert_allclose(
        batched.losses, ReferenceTrainer().train(full, point, Readout(losses=20)).losses, rtol=1e-11
    )


SHARES = [
    ("single", None, 500, 96, 0.3356, 0.002),
    ("linear", None, 500, 96, 0.50705, 0.002),
    ("single", OVERVIEW, 500, 64, 0.4895, 0.001),
    ("linear", OVERVIEW, 500, 64, 0.3193, 0.001),
    ("tanh", OVERVIEW, 500, 24, 0.5451, 0.001),
    ("relu", OVERVIEW, 500, 24, 0.3264, 1 / 576),  # one point of them flips with its rates' 30th bit
    ("tanh", None, 500, 56, 0.5552, 0.005),
    ("relu", None, 500, 56, 0.4369, 0.005),
    ("minibatch", None, 1000, 40, 0.3363, 0.02),
    ("minibatch", None, 500, 40, 0.0, 0.0),
    ("drift", None, 500, 44, 0.793, 0.02),
]
"""Preset, window (its own if None), steps, points along a side, share that converges and its tolerance."""


@pytest.mark.slow
@pytest.mark.parametrize("name, window, steps, side, share, tolerance", SHARES)
def test_as_many_networks_converge_as_in_the_paper(
    name: str, window: Window | None, steps: int, side: int, share: float, tolerance: float
) -> None:
    preset = PUBLISHED[name]
    points = (window or preset.window).grid(side).points()
    found = ReferenceTrainer().train(preset.experiment.replace(steps=steps), points)
    assert found.converged.mean() == pytest.approx(share, abs=tolerance + 5e-5)


@pytest.mark.slow
def test_as_many_narrow_networks_converge_as_in_the_authors_quick_look() -> None:
    found = ReferenceTrainer().train(WIDTH_8.replace(steps=100), OVERVIEW.grid(64).points())
    assert found.converged.mean() == pytest.approx(0.5073, abs=0.001)
