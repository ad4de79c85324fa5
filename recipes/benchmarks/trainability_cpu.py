"""Training steps of a network a second on the CPU: this project's trainer beside PyTorch's batched form.

Question: how many networks take one step in a second, tanh with 272 rows and the published single example, width 16,
full batch, in float64?
Contestants: `NumbaTrainer`; PyTorch with all networks of a chunk as one batch of matrices, the gradient by hand (faster
than autograd, and what torch.func.vmap comes to), at the best of a few chunk sizes; torch.compile of its step.
Measured: the points of the published windows, all steps, labels included; wall and CPU time, all cores, warm, rounds
interleaved, medians. Networks whose loss can be no number any more are stopped by `NumbaTrainer`, whose rows say what
it does without that too.
Gate: labels equal and measures within 1e-6 of the reference's, at points where rounding doesn't grow.

    python -m fractal_streams.recipes.benchmarks.trainability_cpu --json trainability_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import FractalStreamsError, missing_extra
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import inputs_of
from fractal_streams.trainability.numba_trainer import NumbaTrainer
from fractal_streams.trainability.outcome import Outcome, Readout, outcome_of
from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

SIDES = {"tanh": 16, "single": 64}
"""Points across each window."""
STEPS = {"tanh": 50, "single": 500}
CHUNKS = {"tanh": (4, 16, 64, 256), "single": (256, 1024, 4096)}
"""Networks of a batch that PyTorch may choose from."""
STABLE = [[0.1, 1.0], [1.0, 1.0], [3.0, 10.0], [1e5, 1e5]]
"""Points of the gate."""
ROUNDS = 5

Train = Callable[[Experiment, Any], Outcome]


class WrongOutcomeError(FractalStreamsError, AssertionError):
    """A contestant doesn't train what the reference trains."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Network-steps a second, medians of the rounds; times: as fast as PyTorch, the median over rounds.

    rate: by the clock on the wall; core: of one second of CPU time. reason: why there is none.
    """

    task: str
    name: str
    rate: float | None = None
    core: float | None = None
    times: float | None = None
    each: tuple[float, ...] = ()
    chunk: int | None = None
    reason: str | None = None


def step(x: Any, xt: Any, y: Any, w0: Any, w1: Any, rate0: Any, rate1: Any, alpha0: float, alpha1: float) -> Any:
    """One step of (N, n, n) and (N, n, 1) weights: the losses, and the next weights."""
    h = torch.tanh(alpha0 * torch.matmul(x, w0))
    error = alpha1 * torch.matmul(h, w1) - y
    e = (2.0 * alpha1 / len(y)) * error
    dz = alpha0 * (1.0 - h * h) * (e * w1.transpose(1, 2))
    w0 = w0 - rate0 * torch.matmul(xt, dz)
    return (error * error).mean((1, 2)), w0, w1 - rate1 * torch.matmul(h.transpose(1, 2), e)


def batched(chunk: int, advance: Callable[..., Any] = step) -> Train:
    """PyTorch's trainer in chunks of so many networks."""

    def train(experiment: Experiment, points: Any) -> Outcome:
        inputs, table = inputs_of(experiment), torch.from_numpy(experiment.table(points))
        x, y = torch.tensor(inputs.x), torch.tensor(inputs.y)[:, None]
        xt, parts = x.T.contiguous(), []
        for first in range(0, table.shape[1], chunk):
            rates = table[:2, first : first + chunk, None, None]
            w0, w1 = (torch.tensor(layer).repeat(rates.shape[1], 1, 1) for layer in inputs.weights)
            losses = torch.empty((experiment.steps, rates.shape[1]), dtype=torch.float64)
            for t in range(experiment.steps):
                losses[t], w0, w1 = advance(x, xt, y, w0, w1, rates[0], rates[1], *experiment.factors)
            parts.append(outcome_of(losses.numpy(), Readout()))
        return Outcome.concatenate(parts)

    return train


def without_exits(experiment: Experiment, points: Any) -> Outcome:
    """`NumbaTrainer` that trains every network to the end."""
    trainer = NumbaTrainer()
    trainer.exits = False
    return trainer.train(experiment, points)


def gate(name: str, train: Train, experiment: Experiment) -> None:
    """A `WrongOutcomeError` unless a contestant gives the reference's labels and measures at the stable points."""
    points = np.resize(np.array(STABLE), (64, 2))
    found, told = train(experiment, points), ReferenceTrainer().train(experiment, points)
    off = float(np.abs(found.measure / told.measure - 1.0).max())
    if not np.array_equal(found.converged, told.converged) or not off < 1e-6:
        raise WrongOutcomeError(f"{name} leaves the reference by {off:.3g} of the measure, or in a label")


def seconds(train: Train, experiment: Experiment, points: npt.NDArray[Any]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    wall, core = time.perf_counter(), time.process_time()
    train(experiment, points)
    return time.perf_counter() - wall, time.process_time() - core


def contestants(task: str, experiment: Experiment, points: npt.NDArray[Any]) -> dict[str, tuple[Train, int | None]]:
    """Name to trainer and chunk; the chunk is what was fastest of three tries each."""
    few = experiment.replace(steps=min(experiment.steps, 50))
    tried = {size: min(seconds(batched(size), few, points)[0] for _ in range(3)) for size in CHUNKS[task]}
    best = min(tried, key=lambda size: tried[size])
    compiled = torch.compile(step, dynamic=False)
    found: dict[str, tuple[Train, int | None]] = {
        "NumbaTrainer": (NumbaTrainer().train, None),
        "NumbaTrainer, no early stop": (without_exits, None),
        "PyTorch, batched": (batched(best), best),
        "torch.compile, batched": (batched(best, compiled), best),
    }
    if experiment.rows == 1:
        found["NumbaTrainer, reduced"] = (NumbaTrainer(mode="reduced").train, None)
    return found


def measured(task: str, rounds: int = ROUNDS) -> list[Row]:
    """The rows of one task; a contestant that fails has a reason instead of a rate."""
    preset = PUBLISHED[task]
    experiment, points = preset.experiment.replace(steps=STEPS[task]), preset.window.grid(SIDES[task], SIDES[task])
    values, work = points.points(), SIDES[task] ** 2 * STEPS[task]
    field, failed = contestants(task, experiment, values), {}
    for name, (train, _) in field.items():
        try:
            gate(name, train, experiment)
            seconds(train, experiment, values)
        except Exception as error:  # a compiler that is not there must not end the others' run
            if name.startswith("Numba"):
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in field if name not in failed}
    for _ in range(rounds):
        for name in turns:
            turns[name].append(seconds(field[name][0], experiment, values))
    rows = []
    for name, (_, chunk) in field.items():
        if name in failed:
            rows.append(Row(task=task, name=name, chunk=chunk, reason=failed[name]))
            continue
        each = tuple(work / wall for wall, _ in turns[name])
        times = [other[0] / own[0] for own, other in zip(turns[name], turns["PyTorch, batched"], strict=True)]
        rows.append(Row(
            task=task, name=name, rate=statistics.median(each), each=each, chunk=chunk,
            core=statistics.median(work / core for _, core in turns[name]), times=statistics.median(times),
        ))  # fmt: skip
    return rows


def shown(row: Row) -> str:
    """A line of the table, rates in thousands."""
    head = f"{row.task:<8}{row.name:<30}"
    if row.reason:
        return f"{head}{row.reason}"
    assert row.rate and row.core and row.times
    return f"{head}{row.rate / 1e3:>12,.1f}{row.core / 1e3:>14,.1f}{row.times:>10.2f}x" + (
        f"  chunks of {row.chunk}" if row.chunk else ""
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(argv)
    cores = NumbaTrainer().threads
    torch.set_num_threads(cores)
    machine = {"cores": cores, "torch": torch.__version__, "numpy": np.__version__}
    print(f"network-steps/s, thousands, float64, width 16, full batch, {cores} cores, torch {torch.__version__}")
    print(f"{'task':<8}{'contestant':<30}{'wall':>12}{'per core s':>14}{'PyTorch':>11}")
    rows = []
    for task in SIDES:
        for row in measured(task, asked.rounds):
            rows.append(row)
            print(shown(row), flush=True)
    if asked.json:
        handle, written = tempfile.mkstemp(dir=asked.json.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump({"machine": machine, "rows": [asdict(row) for row in rows]}, file, indent=1)
        os.replace(written, asked.json)


if __name__ == "__main__":
    main()
