"""Labelled points of a hyperparameter plane: drawn evenly, and in pairs that straddle the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker
from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Experiment, Float64, number
from fractal_streams.trainability.picture import colours
from fractal_streams.trainability.ranks import PALEST
from fractal_streams.trainability.straddling import ROW, straddling, uniform_places, values_of
from fractal_streams.trainability.trained_spec import MAX_EDGE, TrainedSpec
from fractal_streams.trainability.trained_stream import (
    TrainedStream,
    choices,
    finite,
    relative_cost,
    uniforms,
)

NEAREST = {"float64": 1e-12, "float32": 1e-4}
"""Least distance of a pair in decades, by precision: nearer points differ by rounding."""
LARGEST_SHARE = 1 / 64
"""Largest distance of a pair, in parts of the window's shorter side: a row of points must fit lines of most lengths."""
MAX_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class PointSpec(TrainedSpec):
    """What a stream of points draws: a training run each, and whether it converged.

    experiment: what is trained.
    window: where points are drawn, evenly in decades of logarithmic axes; None is the experiment's overview.
    boundary_share: of all pairs of samples 2j and 2j + 1, those that straddle the boundary, 0 to 1. The samples
        of other pairs are two points drawn evenly and independently.
    distance, halvings: a straddling pair is distance / 2**h decades apart (units on linear axes), h a whole number
        of 0 to `halvings`, drawn for each pair with equal chances. Distances lie between 1e-12 decades
        (float32: 1e-4) and 1/64 of the window's shorter side.
    losses: how many of a run's first losses are kept, 0 to the experiment's steps.
    height, width: of the picture, 1 to 4096 pixels of one colour.
    precision: "float64" or "float32". mode: "exact" or "reduced", see `open_trainer`.
    version: of the samples.

    A straddling pair is found so: of a line between two evenly drawn points of the window the middle part is taken,
    15 steps of distance * 2**m as long as fit; the 16 points are trained, one of the changes of the label is drawn,
    and halved m times. The labels are those of the runs at the two ends. Pairs are so no sample of the boundary by
    its length: places that many lines cross come more often. A line without a change is followed by another, up to 16;
    after that, as in a window without a boundary, both samples are drawn evenly, and their distance is NaN.

    The weight of a sample makes means of the stream means over the window: E[weight * f(sample)] is the mean of f
    over evenly drawn points. It is 1 / (1 - boundary_share) of an evenly drawn sample and 0 of a sample of a pair that
    was to straddle: their density is not known in closed form, and these weights are right whatever it is.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> spec = PointSpec(experiment=Experiment(width=8, dataset_mode="single_example", steps=50), distance=1e-3)
        >>> PointSpec.from_json(spec.to_json()) == spec, spec.num_classes
        (True, 2)
    """

    experiment: Experiment = field(default_factory=Experiment)
    boundary_share: float = 0.5
    distance: float = 1e-3
    halvings: int = 0
    losses: int = 0
    height: int = 1
    width: int = 1

    kind: ClassVar[str] = "points"
    class_titles: ClassVar[tuple[str, ...]] = ("converged", "diverged")

    def __post_init__(self) -> None:
        super().__post_init__()
        made: dict[str, Any] = {
            "boundary_share": number(self.boundary_share, "boundary_share", 0.0, 1.0),
            "halvings": whole(self.halvings, "halvings", 0, MAX_HALVINGS, "halvings"),
            "losses": whole(self.losses, "losses", 0, self.experiment.steps, "steps"),
            "height": whole(self.height, "height", 1, MAX_EDGE, "pixels"),
            "width": whole(self.width, "width", 1, MAX_EDGE, "pixels"),
        }
        most = min(self.window_of(self.experiment).size) * LARGEST_SHARE
        made["distance"] = number(self.distance, "distance", 0.0, most, above=True)
        if math.ldexp(made["distance"], -made["halvings"]) < NEAREST[self.precision]:
            raise InvalidValueError(
                f"distance must be at least {NEAREST[self.precision]:g} decades after its {made['halvings']} halvings, "
                f"got {made['distance']:g}: points nearer than that differ by rounding in {self.precision}"
            )
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def trained(self) -> tuple[Experiment, ...]:
        """The experiment."""
        return (self.experiment,)

    @property
    def num_classes(self) -> int:
        """2: converged and diverged."""
        return len(self.class_titles)

    @property
    def line(self) -> str:
        """What is drawn, in a line."""
        what = f"{self.experiment.nonlinearity}, width {self.experiment.width}, {self.experiment.steps} steps"
        return f"2 classes of training runs ({what}), {self.boundary_share:.0%} at the boundary"


class PointStream(TrainedStream):
    """Training runs at drawn points. The label is what the run did: 0 converged, 1 diverged.

    This is the one stream whose labels are computed, not drawn; they are never read from pixels.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N": where networks are trained and samples are handed out. Kinds of
            device differ in rounding, so that pairs at very small distances may differ between them.
        trainer: a `Trainer` in place of the device's own, of the spec's precision.

    A picture is one colour, of the measure V on a fixed scale: log|V| / log(steps), at most 1, from pale (0) to dark
    (1), green to purple where converged and orange to red where diverged.

    Latents: (B,) float64 values of the two axes by their names ("lr0", "lr1"), "measure" (infinity stands as the
    largest float64) and "final_loss"; "diverged_at" int32; "distance" float64, of the pair in decades, NaN of
    samples drawn evenly; "weight" float32, see `PointSpec`; and "losses" (B, k) float32 where the spec asks for them.
    Streams of different experiments draw evenly spread samples at the same places, if seed, split and window agree.

    Example:
        >>> spec = PointSpec(experiment=Experiment(width=8, dataset_mode="single_example", steps=50), boundary_share=1)
        >>> batch = PointStream(spec, device="cpu").generate(range(6))
        >>> sorted(batch.labels[:2].tolist()), batch.images.shape, float(batch.latents["distance"][0])
        ([0, 1], (6, 3, 1, 1), 0.001)
    """

    spec: PointSpec

    def __init__(self, spec: PointSpec, **settings: Any) -> None:
        if not isinstance(spec, PointSpec):
            raise InvalidValueError(f"spec must be a PointSpec, got {type(spec).__name__}; presets open by open_stream")
        super().__init__(spec, **settings)
        if self.pixels.channels_last and spec.height == 3:
            raise InvalidValueError(
                "height=3 with channels_last=True: writers of files take 3 rows for 3 channels; use another height"
            )
        self.num_classes = spec.num_classes
        self.window = spec.window_of(spec.experiment)
        nearest = math.ldexp(spec.distance, -spec.halvings)
        searched = 2 * ROW + math.log2(max(self.window.size) / nearest)
        self.cost = relative_cost(spec.experiment, 1.0 + spec.boundary_share * searched / 2, spec.height * spec.width)

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        index = checked_indices(indices)
        places, distance, paired = self._places(index)
        values, spec = values_of(self.window, places), self.spec
        outcome = self.train(spec.experiment, values, spec.losses)
        labels = (~outcome.converged).astype(np.int64)
        weight = np.where(paired, 0.0, 1.0 / max(1.0 - spec.boundary_share, 2.0**-52))
        latents: dict[str, npt.NDArray[Any]] = {
            **{name: values[:, k] for k, name in enumerate(spec.experiment.axes)},
            "measure": finite(outcome.measure),
            "final_loss": outcome.final_loss,
            "diverged_at": outcome.diverged_at,
            "distance": distance,
            "weight": weight.astype(np.float32),
        }
        if outcome.losses is not None:
            latents["losses"] = outcome.losses.astype(np.float32)
        levels = colours(shades(outcome.measure, spec.experiment.steps))[:, None, None]
        images = self.formatted(np.broadcast_to(levels, (len(index), spec.height, spec.width, 3)))
        upload = self.backend.upload
        return Batch(upload(index), images, upload(labels), self.uploaded(latents))

    def _places(self, index: Int64) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
        """(B, 2) places, (B,) distance, NaN if drawn evenly, and whether the sample was to straddle."""
        spec, window = self.spec, self.window
        places = uniform_places(window, index, self.key("place"))
        distance = np.full(len(index), np.nan)
        pairs, of = np.unique(index // 2, return_inverse=True)
        straddles = uniforms(pairs, self.key("straddles"))[0] < spec.boundary_share
        chosen = pairs[straddles]
        halved = choices(chosen, self.key("halvings"), spec.halvings + 1)
        apart = np.ldexp(np.full(len(chosen), spec.distance), -halved.astype(np.int32))
        ends, found = straddling(window, chosen, apart, self.key, self._diverged)
        row = np.full(len(pairs), -1)
        row[np.flatnonzero(straddles)[found]] = np.flatnonzero(found)
        here = np.flatnonzero(row[of] >= 0)
        places[here] = ends[row[of[here]], index[here] % 2]
        distance[here] = apart[row[of[here]]]
        return places, distance, straddles[of]

    def _diverged(self, places: Float64) -> npt.NDArray[np.bool_]:
        return ~self.train(self.spec.experiment, values_of(self.window, places)).converged


def shades(measure: Float64, steps: int) -> Float64:
    """Values in [-1, -0.25] and [0.25, 1] of a measure on a scale that depends on the steps alone.

    Example:
        >>> shades(np.array([-1.0, -500.0, 1.0, 1e9]), steps=500)
        array([ 0.25,  1.  , -0.25, -1.  ])
    """
    slow = np.log(np.clip(np.abs(measure), 1.0, steps)) / math.log(max(steps, 2))
    return -np.sign(measure) * (PALEST + (1.0 - PALEST) * slow)
