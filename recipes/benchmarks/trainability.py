"""Networks trained per second on a GPU, beside PyTorch's batched form, each after a check of its losses.

    python -m fractal_streams.recipes.benchmarks.trainability [--json FILE]

The experiment is the paper's: width 16, 272 rows, full batch, tanh; and its single example. A network-step is one step
of one network. Medians of five runs that alternate, warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fractal_streams.recipes.benchmarks.peers.batched_networks import BatchedNetworks

from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.outcome import Readout
from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.trainer import open_trainer

STEPS, REPEATS, CHECKED = 100, 5, 10
TOLERANCES = {"float64": 1e-9, "float32": 2e-3, "tf32x3": 2e-3, "tf32": 0.2}
"""Of the first ten losses over the first, relative where they are above 1, at rates from 0.1 to 10."""


def rates_of(count: int) -> Any:
    """(count, 2) rates, log-uniform from 0.1 to 10: where no run ends early."""
    return 10.0 ** np.random.default_rng(0).uniform(-1.0, 1.0, (count, 2))


def truth(experiment: Experiment, rates: Any) -> Any:
    """(32, 10) losses of the reference."""
    return ReferenceTrainer().train(experiment.replace(steps=CHECKED), rates[:32], Readout(losses=CHECKED)).losses


def timed(run: Callable[[], object]) -> float:
    """Seconds, to the end of all work on the GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def ours(experiment: Experiment, precision: Any, mode: Any, count: int, steps: int) -> tuple[Callable[[], object], Any]:
    """A run of `count` networks, and the losses that they are checked by."""
    trainer, rates = open_trainer("cuda", precision, mode), rates_of(count)
    short = experiment.replace(steps=CHECKED)
    found = trainer.train(short, rates[:32], Readout(losses=CHECKED)).losses
    timed_experiment = experiment.replace(steps=steps)
    return lambda: trainer.train(timed_experiment, rates), found


def batched(experiment: Experiment, dtype: Any, compiled: bool, count: int, steps: int) -> tuple[Any, Any]:
    """The same of PyTorch's batched form."""
    networks = BatchedNetworks(experiment, rates_of(count), "cuda", dtype, compiled)
    found = networks.run(CHECKED)[:, :32].T.double().cpu().numpy()
    return lambda: networks.run(steps), found


def contestants() -> dict[str, tuple[str, str, Callable[[], tuple[Any, Any]], int, int]]:
    """Name to (experiment, precision, what makes it, networks, steps)."""
    full, single = PUBLISHED["tanh"].experiment, PUBLISHED["single"].experiment
    entries: dict[str, Any] = {}
    for precision in ("float64", "float32", "tf32x3", "tf32"):
        entries[f"fractal-streams {precision}"] = (
            "tanh", precision, lambda p=precision: ours(full, p, "exact", 65536, STEPS), 65536, STEPS
        )  # fmt: skip
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        for compiled in (False, True):
            label = f"PyTorch batched {name}{', torch.compile' if compiled else ''}"
            entries[label] = ("tanh", name, lambda d=dtype, c=compiled: batched(full, d, c, 4096, 20), 4096, 20)
    for mode in ("exact", "reduced"):
        entries[f"single example, {mode}"] = (
            "single", "float64", lambda m=mode: ours(single, "float64", m, 2**20, 500), 2**20, 500
        )  # fmt: skip
    return entries


def measure() -> list[dict[str, Any]]:
    """A row for each contestant."""
    rates = rates_of(32)
    known = {name: truth(PUBLISHED[name].experiment, rates) for name in ("tanh", "single")}
    runs: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, (experiment, precision, make, count, steps) in contestants().items():
        try:
            run, found = make()
            error = float((np.abs(found - known[experiment]) / np.maximum(known[experiment], 1.0)).max())
            if not error <= TOLERANCES[precision]:
                raise ArithmeticError(f"losses differ from the reference by {error:.1e}")
            timed(run)
            runs[name] = (run, count * steps, error, [])
        except Exception as refused:  # one contestant's failure is its own row
            rows.append({"name": name, "refused": str(refused)[:300]})
    for _ in range(REPEATS):
        for run, _, _, seconds in runs.values():
            seconds.append(timed(run))
    for name, (_, work, error, seconds) in runs.items():
        rate = work / statistics.median(seconds)
        rows.append({"name": name, "network_steps_per_second": rate, "error": error, "seconds": seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    asked = parser.parse_args()
    rows = measure()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for row in rows:
        if "refused" in row:
            print(f"{row['name']:42s} refused: {row['refused']}")
        else:
            print(
                f"{row['name']:42s} {row['network_steps_per_second'] / 1e6:10.2f} M network-steps/s   "
                f"losses within {row['error']:.0e}"
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
