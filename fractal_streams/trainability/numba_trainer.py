"""The CPU trainer: generated Numba code, a network in each lane of a vector, on all cores."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fractal_streams.render.bind import load
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.spec import one_of
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import inputs_of
from fractal_streams.trainability.modes import Mode, Precision, check_reducible
from fractal_streams.trainability.numba_lanes import LINE
from fractal_streams.trainability.outcome import CAP, WINDOW, Outcome, Readout
from fractal_streams.trainability.reference import EPSILON

BLOCK = 8
"""Rows that go through the network together."""
TASKS = 8
"""Tasks for each thread: their times differ, where some networks stop early."""

CONSTANTS = {
    "float64": {
        "magic": 1.5 * 2.0**52, "ln2_high": 2977044471 / 2**32, "ln2_low": 1.9082149292705877e-10, "flat": 20.0,
        "biggest": 1e300, "quarter_high": 1.57079632673412561417, "quarter_low": 6.07710050650619224932e-11,
        "turns": 1e10,
    },
    "float32": {
        "magic": 1.5 * 2.0**23, "ln2_high": 45426 / 2**16, "ln2_low": 1.4286068203094173e-06, "flat": 10.0,
        "biggest": 1e37, "quarter_high": 12867 / 2**13, "quarter_low": math.pi / 2 - 12867 / 2**13, "turns": 1e6,
    },
}  # fmt: skip
"""What a precision's functions are made of: a number whose last bit is 1, ln 2 in a part that a product with a small
integer is exact of and the rest, where tanh becomes 1, how large a square may be, a quarter turn in two parts, and the
square of the largest angle that they reduce."""


class NumbaTrainer:
    """Trains on the CPU.

    A run's outcome is the same to the bit alone, among others, and on any number of threads.

    precision: "float64", or "float32" with losses kept in float64.
    mode: "exact"; "reduced" trains single examples in 2 n numbers, see `check_reducible`.
    threads: None means every core this process may use, or NUMBA_NUM_THREADS of the environment, and one in a
        worker process.

    Example:
        >>> NumbaTrainer().train(Experiment(width=8, steps=50), [[1.0, 1.0], [1.0, 1e4]]).converged
        array([ True, False])
    """

    device = "cpu"
    exits = True
    """Whether networks stop whose losses can be no numbers any more: the outcome is the same."""

    def __init__(self, precision: Precision = "float64", mode: Mode = "exact", threads: int | None = None) -> None:
        one_of(precision, "precision", tuple(CONSTANTS))
        one_of(mode, "mode", ("exact", "reduced"))
        self.precision: str = precision
        self.mode = mode
        self._threads = NumbaRenderer(threads)

    @property
    def threads(self) -> int:
        """The number in the process that asks."""
        return self._threads.threads

    def train(self, experiment: Experiment, points: Any, readout: Readout | None = None) -> Outcome:
        """The outcomes of (N, 2) points, see `Trainer`.

        Raises:
            InvalidValueError: points that aren't finite pairs, a readout of more steps than the experiment has, or
                mode="reduced" of an experiment without that form.
        """
        asked = (readout or Readout()).checked(experiment)
        if self.mode == "reduced":
            check_reducible(experiment, asked)
        module = compiled(experiment, self.precision, self.mode)
        table = experiment.table(points)
        count, lanes = table.shape[1], module.LANES
        table = np.ascontiguousarray(np.pad(table, ((0, 0), (0, -count % lanes)), "edge") if count else table)
        size = table.shape[1]
        results = {
            "measures": np.empty((len(asked.checkpoints) + 1, size)), "diverged": np.empty(size),
            "final": np.empty(size), "kept": np.empty((asked.losses, size)),
            "probes": np.empty(size if asked.probe else 0),
        }  # fmt: skip
        given = (*arrays_of(experiment, self.precision), table, experiment.steps, *experiment.factors,
                 experiment.offset_mode == "every_step", self.exits,
                 np.array([*asked.checkpoints, experiment.steps]), *results.values())  # fmt: skip
        tasks = split(size // lanes, self.threads)
        bounds = [(first * lanes, last * lanes) for first, last in tasks]
        if len(tasks) <= 1:
            for bound in bounds:
                module.kernel(*given, *bound)
        else:
            with ThreadPoolExecutor(self.threads, thread_name_prefix="fractal-streams") as pool:
                list(pool.map(lambda bound: module.kernel(*given, *bound), bounds))
        return Outcome(
            measure=results["measures"][-1, :count].copy(),
            diverged_at=results["diverged"][:count].astype(np.int32),
            final_loss=results["final"][:count].copy(),
            losses=results["kept"][:, :count].T.copy() if asked.losses else None,
            measures=results["measures"][:-1, :count].T.copy() if asked.checkpoints else None,
            probe=results["probes"][:count].copy() if asked.probe else None,
        )


def split(groups: int, threads: int) -> list[tuple[int, int]]:
    """(first, last) of each task."""
    if threads == 1 or groups <= 1:
        return [(0, groups)] if groups else []
    size = max(1, -(-groups // (TASKS * threads)))
    return [(first, min(first + size, groups)) for first in range(0, groups, size)]


def arrays_of(experiment: Experiment, precision: str) -> tuple[Any, ...]:
    """The kernel's x, y, order, probe and weights: rows have the hidden layers' factor in them, arrays are flat."""
    inputs, alpha0 = inputs_of(experiment), experiment.factors[0]
    order = np.zeros((1, 1), np.int64) if inputs.order is None else np.array(inputs.order)
    rows = np.array((alpha0 * inputs.x).ravel(), precision), np.array(inputs.y, precision)
    weights = np.concatenate([layer.ravel() for layer in inputs.weights])
    return *rows, order, np.array(alpha0 * inputs.probe, precision), weights


def compiled(experiment: Experiment, precision: str = "float64", mode: str = "exact") -> ModuleType:
    """The generated module of an experiment; its kernel compiles on first use and is cached on disk."""
    plan = "reduced" if mode == "reduced" else "only row" if has_only_row(experiment) else "rows"
    optimiser = experiment.optimiser if plan == "rows" else "gradient_descent"
    batched = not experiment.full_batch
    return generated(
        experiment.nonlinearity, experiment.width, experiment.depth, optimiser, batched, plan, str(precision)
    )


def has_only_row(experiment: Experiment) -> bool:
    """Whether a step needs one row's sums, and descent can make the next ones as it changes the weights."""
    plain = experiment.optimiser == "gradient_descent" and experiment.depth == 2 and experiment.full_batch
    return plain and experiment.rows == 1 and experiment.offset_mode == "init"


@cache
def generated(
    nonlinearity: str, width: int, depth: int, optimiser: str, batched: bool, plan: str, precision: str
) -> ModuleType:
    """The module of one kind of network."""
    constants: dict[str, Any] = {
        "CACHED": True, "LANES": lanes_of(precision), "HALVES": lanes_of(precision) // 8,
        "N": width, "HIDDEN": depth - 1, "PARAMETERS": (depth - 1) * width * width + width,
        "BLOCK": BLOCK if plan == "rows" else 1, "OPTIMISER": optimiser, "BATCHED": batched, "PLAN": plan,
        "CAP": CAP, "WINDOW": WINDOW, "EPSILON": EPSILON, "LN2": math.log(2.0),
    }  # fmt: skip
    constants |= {name.upper(): value for name, value in CONSTANTS[precision].items()}
    here = Path(__file__)
    lanes = hashlib.blake2s(here.with_name("numba_lanes.py").read_bytes(), digest_size=8).hexdigest()
    text = f"# vectors {lanes}\n" + HEADER + "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    for name in ("numba_primitives.py", "numba_kernel.py"):
        source = here.with_name(name).read_text()
        text += "\n\n" + source[source.index("# Copied from here on.") :]
    text += f"\n\nactivate, slope = {nonlinearity}, {nonlinearity}_slope\n"
    return load("numba", text)


def lanes_of(precision: str) -> int:
    """Networks in a vector."""
    return LINE // np.dtype(precision).itemsize


HEADER = """import math
import numba
import numpy as np
from fractal_streams.render.numba_primitives import widest
from fractal_streams.trainability.numba_lanes import *

jit = numba.njit(nogil=True, forceinline=True, error_model="numpy")
"""
