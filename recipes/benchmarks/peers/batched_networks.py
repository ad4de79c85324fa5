"""The usual way to train many small networks: one batch of matrices in PyTorch, gradients written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import inputs_of

State = tuple[Any, Any]
Step = Callable[..., tuple[Any, Any, Any]]


def step(w0: Any, w1: Any, x: Any, y: Any, rates: Any, alpha0: float, alpha1: float) -> tuple[Any, Any, Any]:
    """(weights, weights, losses) after one step of gradient descent of (N, n, n) and (N, n, 1) weights."""
    h = torch.tanh(alpha0 * (x @ w0))
    error = alpha1 * (h @ w1) - y
    loss = (error * error).mean(dim=(1, 2))
    delta = error * (2.0 * alpha1 / len(x))
    g1 = h.transpose(1, 2) @ delta
    g0 = alpha0 * (x.T @ ((1.0 - h * h) * (delta @ w1.transpose(1, 2))))
    return w0 - rates[:, :1, None] * g0, w1 - rates[:, 1:, None] * g1, loss


class BatchedNetworks:
    """A chunk of tanh networks, trained together.

    Args:
        experiment: full batch, depth 2, plain gradient descent of "lr0" and "lr1".
        rates: (N, 2).
        device, dtype: of every tensor.
        compiled: whether `torch.compile` makes the step.
    """

    def __init__(self, experiment: Experiment, rates: Any, device: str, dtype: torch.dtype, compiled: bool) -> None:
        inputs = inputs_of(experiment)
        self.alphas = experiment.factors
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        self.rates = torch.tensor(rates, **on)
        count = len(self.rates)
        self.first = [torch.tensor(layer, **on).expand(count, -1, -1).contiguous() for layer in inputs.weights]
        self.x, self.y = torch.tensor(inputs.x, **on), torch.tensor(inputs.y, **on)[:, None]
        self.step: Step = torch.compile(step, dynamic=False) if compiled else step

    def run(self, steps: int) -> Any:
        """(steps, N) losses over the first."""
        w0, w1 = self.first
        losses = []
        for _ in range(steps):
            w0, w1, loss = self.step(w0, w1, self.x, self.y, self.rates, *self.alphas)
            losses.append(loss)
        taken = torch.stack(losses)
        return taken / taken[0]
