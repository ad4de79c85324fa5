"""Chains: a network applied again and again, until its output rests. What is asked of them, and what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.starts import Jitter, KeyOf, Start
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import whole

MAX_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long chains run, and what is kept of them.

    most: steps at most, 1 to 100,000.
    least: steps before a chain may rest (burn-in), 0 to `most`.
    tolerance: a chain rests behind the first step k > least - 1 by which no value changes by more than this part of the
        range, max|y_k - y_(k-1)| <= tolerance * span; from there on its state stays. 0 never rests.
    keep: iterates whose states are kept, increasing, 0 (the start) to `most`; of a chain at rest, where it rests.
    jitter: noise behind each step; with it a chain does not rest, so `tolerance` must be 0.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.
    """

    most: int = 100
    least: int = 0
    tolerance: float = 1e-3
    keep: tuple[int, ...] = ()
    jitter: Jitter | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", whole(self.most, "most", 1, MAX_STEPS, "steps"))
        object.__setattr__(self, "least", whole(self.least, "least", 0, self.most, "steps"))
        rest = self.tolerance
        if isinstance(rest, bool) or not isinstance(rest, int | float) or not 0.0 <= rest < 1.0:
            raise InvalidValueError(f"tolerance must lie in [0, 1) of the range, got {rest!r}")
        object.__setattr__(self, "tolerance", float(rest))
        if not isinstance(self.keep, tuple | list):
            raise InvalidValueError(f"keep must be a tuple of iterates, got {self.keep!r}")
        keep = tuple(whole(step, "an iterate to keep", 0, self.most, "steps") for step in self.keep)
        if any(late <= early for early, late in zip(keep, keep[1:], strict=False)):
            raise InvalidValueError(f"iterates to keep must increase, got {keep}")
        object.__setattr__(self, "keep", keep)
        if self.jitter is not None and (not isinstance(self.jitter, Jitter) or (self.jitter.size and rest)):
            raise InvalidValueError(
                f"chains with jitter don't rest: use tolerance=0 with it, got tolerance={rest} and {self.jitter!r}"
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """B chains, as NumPy arrays from a CPU and as tensors from a GPU.

    states: (B, D) float32, the clean iterate at rest, or the last one.
    steps: (B,) int32, the step behind which the chain rested; -1 if it never did.
    change: (B,) float32, the largest change of a value by the last step taken, over the range.
    kept: (B, K, D) float32, the iterates that the schedule keeps.
    """

    states: Any
    steps: Any
    change: Any
    kept: Any

    def numpy(self) -> Outcome:
        """The same as NumPy arrays."""
        return Outcome(as_array(self.states), as_array(self.steps), as_array(self.change), as_array(self.kept))


def noisy_chains(schedule: Schedule, count: int, chains: Any, key_of: KeyOf | None) -> Int64:
    """(B,) int64 chains that name the draws of B rows with jitter; none without."""
    if schedule.jitter is None:
        return np.zeros(0, np.int64)
    if chains is None or key_of is None:
        raise InvalidValueError("a schedule with jitter needs chains and key_of, which name its draws")
    numbers = checked_indices(chains)
    if len(numbers) != count:
        raise InvalidValueError(f"jitter needs a chain for each of {count} rows, got {len(numbers)} chains")
    return numbers


class Engine(Protocol):
    """Applies the networks of a kaleidoscope on one device, in one precision of weights, states and products.

    Rows of states never depend on their place or on other rows: row r of any batch is, to the bit, what it would be
    alone. States are (B, D) float32, NumPy's on a CPU, tensors on a GPU; NumPy arrays are taken everywhere. models:
    (B,) the network of the bank of each row; None is network 0 of all.
    """

    fitted: Kaleidoscope
    device: str
    precision: str

    def starts(self, start: Start, chains: Int64, models: Int64 | None, key_of: KeyOf) -> Any:
        """(B, D) first states, see `starts.start_values`."""

    def apply(self, states: Any, models: Any = None) -> Any:
        """(B, D) float32: each state's network applied once."""

    def run(
        self, states: Any, models: Any = None, schedule: Schedule | None = None, *, chains: Int64 | None = None,
        key_of: KeyOf | None = None,
    ) -> Outcome:  # fmt: skip
        """Chains from first states. A schedule with jitter needs `chains` and `key_of`, which name its draws."""

    def nearest(self, states: Any, table: Any, models: Any = None, table_models: Any = None) -> tuple[Any, Any]:
        """(B,) int64 row of the nearest of (T, D) `table`, and (B,) float32 RMSE to it over the range.

        Of equal ones it is the first. With table_models, (T,), only rows of each state's own network count; where
        there is none the distance is infinite.
        """

    def levels(self, values: Any) -> Any:
        """(B, C, H, W) uint8 of (B, D) values of a network of pictures, see `Network.levels_of`."""


def models_of(models: Any, count: int, fitted: Kaleidoscope) -> Int64:
    """(B,) int64 networks of rows, checked."""
    given = (
        np.zeros(count, np.int64)
        if models is None
        else as_array(np.asarray(models) if isinstance(models, list | tuple) else models)
    )
    rows: npt.NDArray[np.int64] = given.astype(np.int64)
    outside = count and rows.shape == (count,) and (rows.min() < 0 or rows.max() >= fitted.models)
    if given.dtype.kind not in "iu" or rows.shape != (count,) or outside:
        raise InvalidValueError(
            f"models must be whole numbers, one of 0 to {fitted.models - 1} for each of {count} rows, "
            f"got {given.dtype} of shape {given.shape}: {str(given)[:80]}"
        )
    return rows


def check_rows(rows: Any, size: int, name: str, least: int = 0) -> None:
    """Refuse what isn't (B, D), B from `least` on."""
    shape = tuple(getattr(rows, "shape", ()))
    if len(shape) != 2 or shape[1] != size or shape[0] < least:
        raise InvalidValueError(f"{name} must be (B, {size}), B from {least} on, got shape {shape}")
