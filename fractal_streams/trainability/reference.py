"""The reference trainer: float64, one batch of matrices at a time, as the text of the paper has it."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, pi, sqrt
from typing import Any

import numpy as np

from fractal_streams.trainability.experiment import HYPERPARAMETERS, Experiment, Float64
from fractal_streams.trainability.inputs import Inputs, inputs_of
from fractal_streams.trainability.outcome import Outcome, Readout, outcome_of

EPSILON = 1e-8
CHUNK_BYTES = 2**24

Function = Callable[[Float64], Float64]
_erf = np.vectorize(erf, otypes=[np.float64])


def _gelu(z: Float64) -> Float64:
    return z * 0.5 * (1.0 + _erf(z * sqrt(0.5)))


def _gelu_slope(z: Float64) -> Float64:
    return 0.5 * (1.0 + _erf(z * sqrt(0.5))) + z * np.exp(-0.5 * z * z) / sqrt(2.0 * pi)


FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "relu": (lambda z: np.where(z <= 0.0, 0.0, z), lambda z: np.where(z <= 0.0, 0.0, 1.0)),
    "identity": (lambda z: z, np.ones_like),
    "sin": (np.sin, np.cos),
    "gelu": (_gelu, _gelu_slope),
}
"""Nonlinearities and their derivatives, of the scaled sum of inputs."""


class ReferenceTrainer:
    """Trains in NumPy, float64; slow, and what the others are held to.

    Example:
        >>> outcome = ReferenceTrainer().train(Experiment(width=8, steps=50), [[1.0, 1.0], [1.0, 1e4]])
        >>> outcome.converged
        array([ True, False])
    """

    device = "cpu"
    precision = "float64"

    def train(self, experiment: Experiment, points: Any, readout: Readout | None = None) -> Outcome:
        """The outcomes of (N, 2) points, see `Trainer`."""
        asked = (readout or Readout()).checked(experiment)
        table, inputs = experiment.table(points), inputs_of(experiment)
        chunk = max(1, CHUNK_BYTES // (8 * experiment.rows * experiment.width))
        starts = range(0, max(table.shape[1], 1), chunk)
        return Outcome.concatenate([trained(experiment, inputs, table[:, a : a + chunk], asked) for a in starts])


@np.errstate(all="ignore")
def trained(experiment: Experiment, inputs: Inputs, table: Float64, readout: Readout) -> Outcome:
    """All steps of (8, N) hyperparameters, together."""
    at = {name: row[:, None, None] for name, row in zip(HYPERPARAMETERS, table, strict=True)}
    rates = [at["lr0"], at["lr1"], at["lr2"]]
    weights = [at["scale"] * layer for layer in inputs.weights]
    drift = at["offset"] if experiment.offset_mode == "every_step" else None
    if drift is None:
        weights[0] = weights[0] + at["offset"]
    state = [(np.zeros_like(layer), np.zeros_like(layer)) for layer in weights]
    decays: tuple[Any, Any] = (1.0, 1.0)
    losses = np.empty((experiment.steps, table.shape[1]))
    probe = None
    for step in range(experiment.steps):
        if drift is not None:
            weights[0] = weights[0] + drift
        losses[step] = np.mean((forward(experiment, weights, inputs.x)[-1][..., 0] - inputs.y) ** 2, axis=1)
        if step == experiment.steps - 1 and readout.probe:
            probe = forward(experiment, weights, inputs.probe[None])[-1][:, 0, 0]
        rows = slice(None) if inputs.order is None else inputs.order[step]
        gradients = backward(experiment, weights, inputs.x[rows], inputs.y[rows])
        decays = (decays[0] * at["momentum"], decays[1] * at["beta2"])
        for layer, gradient in enumerate(gradients):
            change, state[layer] = update(
                experiment.optimiser, gradient + at["weight_decay"] * weights[layer], state[layer], at, decays
            )
            weights[layer] = weights[layer] - rates[layer] * change
    return outcome_of(losses, readout, probe)


def forward(experiment: Experiment, weights: list[Float64], x: Float64) -> list[Float64]:
    """Scaled sums of each hidden layer, (N, D, n), and the outputs, (N, D, 1)."""
    alpha0, alpha1 = experiment.factors
    sums, inward = [], x
    for layer in weights[:-1]:
        sums.append(alpha0 * (inward @ layer))
        inward = FUNCTIONS[experiment.nonlinearity][0](sums[-1])
    return [*sums, alpha1 * (inward @ weights[-1])]


def backward(experiment: Experiment, weights: list[Float64], x: Float64, y: Float64) -> list[Float64]:
    """The gradient of the mean squared error on the rows given, a layer each."""
    alpha0, alpha1 = experiment.factors
    function, slope = FUNCTIONS[experiment.nonlinearity]
    *sums, output = forward(experiment, weights, x)
    delta = (2.0 / len(y)) * alpha1 * (output - y[:, None])
    gradients = []
    for layer in range(len(weights) - 1, -1, -1):
        inward = function(sums[layer - 1]) if layer else x
        gradients.append(np.swapaxes(inward, -1, -2) @ delta)
        if layer:
            delta = alpha0 * slope(sums[layer - 1]) * (delta @ np.swapaxes(weights[layer], -1, -2))
    return gradients[::-1]


def update(kind: str, gradient: Float64, state: Any, at: dict[str, Float64], decays: Any) -> tuple[Float64, Any]:
    """What the rate is multiplied with, and the optimiser's new state."""
    first, second = state
    if kind == "gradient_descent":
        return gradient, state
    if kind == "momentum":
        first = at["momentum"] * first + gradient
        return first, (first, second)
    first = at["momentum"] * first + (1.0 - at["momentum"]) * gradient
    second = at["beta2"] * second + (1.0 - at["beta2"]) * gradient * gradient
    unbiased = np.sqrt(second / (1.0 - decays[1])) + EPSILON
    return first / (1.0 - decays[0]) / unbiased, (first, second)
