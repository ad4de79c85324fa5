"""Trainers: a batch of points in, a batch of outcomes out, on one kind of device and in one precision."""

from __future__ import annotations

from typing import Any, Protocol

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import one_of
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.modes import PRECISIONS, PREVIEWS, Mode, Precision, check_reducible
from fractal_streams.trainability.outcome import Outcome, Readout

__all__ = ["PRECISIONS", "PREVIEWS", "Mode", "Precision", "Trainer", "check_reducible", "open_trainer"]


class Trainer(Protocol):
    """Trains one network at each of a list of points.

    A run's outcome depends on the experiment and on its own two values, to the bit: not on the other points, their
    number, order, or the GPU that it ran on (of one kind).
    """

    @property
    def device(self) -> str:
        """ "cpu" or "cuda:N"."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""

    def train(self, experiment: Experiment, points: Any, readout: Readout | None = None) -> Outcome:
        """Outcomes of (N, 2) values of the horizontal and the vertical axis."""


def open_trainer(device: str = "auto", precision: Precision = "float64", mode: Mode = "exact") -> Trainer:
    """The fastest trainer of a device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float64" and "float32" (IEEE products) for labels; on a GPU also the previews "tf32x3"
            (three passes of TF32) and "tf32".
        mode: "exact" runs each step as written; "reduced" trains single examples by gradient descent in
            2 n numbers instead of n**2 + n, equal but for rounding.

    Raises:
        DeviceError: a GPU was asked for that is not there.
        InvalidValueError: not a precision or mode, or one that the device does not have.

    Example:
        >>> open_trainer("cpu").train(Experiment(width=8, steps=50), [[1.0, 1.0]]).converged
        array([ True])
    """
    one_of(precision, "precision", PRECISIONS)
    one_of(mode, "mode", ("exact", "reduced"))
    resolved = resolve_device(device)
    if resolved != "cpu":
        from fractal_streams.trainability.triton_trainer import TritonTrainer

        return TritonTrainer(resolved, precision, mode)
    if precision in PREVIEWS:
        raise InvalidValueError(f"precision={precision!r} is of GPUs: use 'float64' or 'float32' with device='cpu'")
    from fractal_streams.trainability.numba_trainer import NumbaTrainer

    return NumbaTrainer(precision, mode)
