"""The experiments of the paper, with the windows that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fractal_streams.errors import unknown_name
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.window import Window

OVERVIEW = Window.of_exponents(x=(-3.0, 6.0), y=(-3.0, 6.0))
"""What the paper zooms from: nine decades of each rate."""


@dataclass(frozen=True)
class Published:
    """A picture of the paper: the experiment, its final window, the dimension that the paper gives for the zoom,
    and what is seen."""

    experiment: Experiment
    window: Window
    dimension: float
    title: str
    description: str


def _published(
    title: str, description: str, dimension: float, x: tuple[float, float], y: tuple[float, float], **settings: Any
) -> Published:
    return Published(
        Experiment(inputs="published", **settings), Window.of_values(x=x, y=y), dimension, title, description
    )


PUBLISHED: dict[str, Published] = {
    "tanh": _published(
        "tanh, full batch", "folded filaments, and islands within islands", 1.66,
        x=(13.29976231, 13.29978604), y=(200.3582269, 200.3585844),
    ),
    "relu": _published(
        "ReLU, full batch", "straight fronts whose ends are combed into needles", 1.20,
        x=(0.577622737, 0.577625590), y=(81.4432439, 81.4436463), nonlinearity="relu",
    ),
    "linear": _published(
        "deep linear, full batch", "a nearly straight edge with a few spikes", 1.17,
        x=(190.010080, 190.011840), y=(4.77745244, 4.77749670), nonlinearity="identity", dataset_mode="width",
    ),
    "single": _published(
        "tanh, one example", "islands within islands, crossed by streaks", 1.41,
        x=(48.298735, 48.299146), y=(18.2066141, 18.2067690), dataset_mode="single_example",
    ),
    "minibatch": _published(
        "tanh, minibatches of 16", "folded sheets, smooth on one side and rolled up on the other", 1.55,
        x=(0.267398835471957, 0.267398835475071), y=(174.269509700711, 174.269509702741), batch_size=16, steps=1000,
    ),
    "drift": _published(
        "tanh, drift of W0", "dust that fills the plane, drawn out into folds", 1.98,
        x=(0.1960618282403, 0.1960618285243), y=(39.0254607863, 39.0254608429),
        axes=("offset", "lr"), offset_mode="every_step",
    ),
}  # fmt: skip
"""Name to picture, section 3 and figure 2 of the paper: nonlinearities, one example, minibatches, initialisation."""


def find_published(name: str) -> Published:
    """The published picture of a name.

    Raises:
        UnknownNameError: no such preset; names the nearest known one.
    """
    if name not in PUBLISHED:
        raise unknown_name("published experiment", name, PUBLISHED)
    return PUBLISHED[name]
