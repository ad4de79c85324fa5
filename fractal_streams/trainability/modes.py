"""In what precision, and in which form, networks are trained."""

from __future__ import annotations

from typing import Literal

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.outcome import Readout

Precision = Literal["float64", "float32", "tf32x3", "tf32"]
Mode = Literal["exact", "reduced"]
PRECISIONS = ("float64", "float32", "tf32x3", "tf32")
PREVIEWS = ("tf32x3", "tf32")
"""Precisions whose labels near the boundary are not to be trusted."""


def check_reducible(experiment: Experiment, readout: Readout | None = None) -> None:
    """An `InvalidValueError` unless the experiment has the reduced form, and the readout can be read off it.

    With one example x, W0 changes along x alone: its sums z = alpha0 * x W0 change by -lr0 * |alpha0 x|**2 * dL/dz.
    """
    plain = experiment.optimiser == "gradient_descent" and experiment.depth == 2 and experiment.rows == 1
    decayed = "weight_decay" in experiment.axes or experiment.hyperparameters.get("weight_decay", 0.0) != 0.0
    if not plain or decayed or experiment.offset_mode == "every_step" or experiment.batch_size is not None:
        raise InvalidValueError(
            "mode='reduced' trains single examples (dataset_mode='single_example') in full batch by plain gradient "
            "descent, depth 2, without weight decay or a drift: use mode='exact' for this experiment"
        )
    if readout is not None and readout.probe:
        raise InvalidValueError("mode='reduced' has no weights to probe: use mode='exact' with Readout(probe=True)")
