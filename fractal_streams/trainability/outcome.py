"""What a training run leaves: the signed measure, and what else can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Experiment, Float64

CAP = 1e6
"""What a loss that isn't finite becomes, and the most that a loss over its first may be."""
WINDOW = 20
"""Last steps whose mean loss decides the label."""
MAX_CHECKPOINTS = 16


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What is asked of each run besides the measure.

    losses: how many of the first losses to keep, 0 to `steps`.
    checkpoints: step counts, increasing, at which the measure of a run of that length is kept too.
    probe: whether the output at `Inputs.probe` with the weights of the last loss is kept.
    """

    losses: int = 0
    checkpoints: tuple[int, ...] = ()
    probe: bool = False

    def checked(self, experiment: Experiment) -> Readout:
        """This, or an `InvalidValueError` if the experiment has too few steps for it."""
        whole(self.losses, "losses", 0, experiment.steps, "steps")
        if not isinstance(self.checkpoints, tuple | list):
            raise InvalidValueError(f"checkpoints must be a tuple of steps, got {self.checkpoints!r}")
        if not isinstance(self.probe, bool):
            raise InvalidValueError(f"probe must be True or False, got {self.probe!r}")
        for before, count in zip((0, *self.checkpoints), self.checkpoints, strict=False):
            if whole(count, "a checkpoint", 1, experiment.steps, "steps") <= before:
                raise InvalidValueError(f"checkpoints must increase, got {self.checkpoints}")
        if len(self.checkpoints) > MAX_CHECKPOINTS:
            raise InvalidValueError(f"at most {MAX_CHECKPOINTS} checkpoints, got {len(self.checkpoints)}")
        return self


@dataclass(frozen=True, eq=False)
class Outcome:
    """N runs, as NumPy arrays.

    measure: (N,) float64, V: minus the sum of the losses over the first loss if the run converged, else the sum
        of their inverses. |V| >= 1 where the run's first loss is not 0, so its sign is the label; large |V|
        is near the boundary.
    diverged_at: (N,) int32, the first step whose loss isn't finite or is 1e6 times the first; `steps` if none.
    final_loss: (N,) float64, the last loss over the first, at most 1e6.
    losses: (N, k) float64, the first k losses over the first, or None.
    measures: (N, K) float64, the measure at each checkpoint, or None.
    probe: (N,) float64, or None.
    """

    measure: Float64
    diverged_at: npt.NDArray[np.int32]
    final_loss: Float64
    losses: Float64 | None = None
    measures: Float64 | None = None
    probe: Float64 | None = None

    def __len__(self) -> int:
        return len(self.measure)

    @property
    def converged(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the mean of the last 20 losses lies below the first."""
        return self.measure < 0

    def __getitem__(self, rows: Any) -> Outcome:
        """Some of the runs."""
        some: dict[str, Any] = {name: None if (a := getattr(self, name)) is None else a[rows] for name in FIELDS}
        return Outcome(**some)

    @staticmethod
    def concatenate(parts: list[Outcome]) -> Outcome:
        """The runs of several outcomes, in their order."""
        columns = {name: [getattr(part, name) for part in parts] for name in FIELDS}
        joined: dict[str, Any] = {
            name: None if any(array is None for array in column) else np.concatenate(column)
            for name, column in columns.items()
        }
        return Outcome(**joined)


FIELDS = ("measure", "diverged_at", "final_loss", "losses", "measures", "probe")


def capped(losses: npt.ArrayLike) -> Float64:
    """(T, N) losses over the first, as the measure takes them.

    What isn't finite counts as 1e6 before the division, and no quotient as more than 1e6 (Sohl-Dickstein 2024,
    his notebook). Of a first loss above 1e6, what isn't finite is a quotient of 1e6: a lost run has not converged.
    """
    raw = np.asarray(losses, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        finite = np.where(np.isfinite(raw), raw, np.where(np.isfinite(raw[:1]) & (raw[:1] > CAP), np.inf, CAP))
        return np.where((quotient := finite / finite[:1]) < CAP, quotient, CAP)


def measure_of(quotients: Float64) -> Float64:
    """(N,) V of (T, N) capped losses.

    Example:
        >>> measure_of(np.array([[1.0, 1.0], [0.5, 4.0]]))
        array([-1.5 ,  1.25])
    """
    tail = quotients[-WINDOW:]
    converged = np.cumsum(tail, axis=0)[-1] < len(tail)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(converged, -np.cumsum(quotients, axis=0)[-1], np.cumsum(1.0 / quotients, axis=0)[-1])


def outcome_of(losses: Float64, readout: Readout, probe: Float64 | None = None) -> Outcome:
    """The outcome of (T, N) raw losses."""
    quotients = capped(losses)
    steps = len(quotients)
    blown = (quotients >= CAP) | ~np.isfinite(losses)
    first = np.where(blown.any(axis=0), blown.argmax(axis=0), steps).astype(np.int32)
    at = [measure_of(quotients[:count]) for count in readout.checkpoints]
    return Outcome(
        measure_of(quotients), first, quotients[-1].copy(),
        quotients[: readout.losses].T.copy() if readout.losses else None,
        np.stack(at, axis=1) if at else None,
        probe if readout.probe else None,
    )  # fmt: skip
