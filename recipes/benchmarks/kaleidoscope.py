"""Chains of kaleidoscopic networks a second on a GPU, beside a plain product and the original program's loop.

    python -m fractal_streams.recipes.benchmarks.kaleidoscope [--json FILE]

A sample-iteration is one application of the network to one state. Each precision's share is of the rate of a plain
8192 x 8192 x 8192 product of that type by torch in the same run. Before anything is timed, one application is held to
float64, and rows are held to be the same alone. Medians of five runs, warm. The seed's loop is rewritten from its
description: eager torch in float32, the reconstruction error computed at every step, noise drawn on the CPU and copied,
added and clamped. Beside it stands what torch does with the same network alone: neither error nor noise, compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.reference import ReferenceEngine

BATCH, STEPS, REPEATS = 32768, 30, 5
CASES: dict[str, Network] = {
    "D=784, 7 layers, H=500": Network(shape=(1, 28, 28), hidden=500, n_linear=7, init="he"),
    "D=784, 7 layers, H=2000": Network(shape=(1, 28, 28), hidden=2000, n_linear=7, init="he"),
    "D=3072, 11 layers, H=2000": Network(shape=(3, 32, 32), hidden=2000, n_linear=11, init="he"),
    "D=256, 5 layers, H=256": Network(shape=(1, 16, 16), hidden=256, n_linear=5, init="he"),
}
LIMITS = {"float32": 1e-4, "bfloat16": 0.5}
"""Of one application, the largest difference from float64."""


def fitted_of(network: Network) -> Kaleidoscope:
    """The network with its first weights: what they are does not change the work."""
    data = np.zeros((1, 1, *network.shape), np.uint8)
    return Kaleidoscope(
        network=network, tensors=network.first_weights(),
        sources=Sources(data=data, labels=np.zeros((1, 1), np.int64), titles=("none",)),
    )  # fmt: skip


def timed(run: Callable[[], object], count: int = 1) -> float:
    """Median seconds of a run."""
    run()
    seconds = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / count)
    return statistics.median(seconds)


def plain_rate(precision: str) -> float:
    """FLOP/s of torch's own product of two matrices of 8192 x 8192."""
    kind = getattr(torch, precision)
    first, second = (torch.randn(8192, 8192, device="cuda", dtype=kind) for _ in range(2))
    return 2 * 8192**3 / timed(lambda: first @ second.T, 10 if precision == "bfloat16" else 2)


class SeedLoop:
    """The original program's sampler, from its description."""

    def __init__(self, fitted: Kaleidoscope) -> None:
        layers: list[torch.nn.Module] = []
        for k in range(fitted.network.n_linear):
            weight = torch.from_numpy(fitted.tensors[f"layers.{k}.weight"][0])
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = weight, torch.from_numpy(fitted.tensors[f"layers.{k}.bias"][0])
            layers += [linear, torch.nn.ReLU() if k < fitted.network.n_linear - 1 else torch.nn.Tanh()]
        self.module = torch.nn.Sequential(*layers).to("cuda").requires_grad_(False)

    def run(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            y = self.module(x)
            torch.nn.functional.mse_loss(y, x)
            noise = torch.rand(x.shape).to("cuda") * 2.0 - 1.0
            x = torch.clamp(y + 0.01 * noise, -1.0, 1.0)
        return x


def repeated(module: Any, x: torch.Tensor, steps: int) -> torch.Tensor:
    """A network applied again and again, and nothing else."""
    for _ in range(steps):
        x = module(x)
    return x


def checked(fitted: Kaleidoscope, precision: str) -> tuple[Any, float]:
    """The engine, and how far one application is from float64; rows must be the same alone."""
    engine = open_engine(fitted, "cuda", precision)
    states = np.random.default_rng(0).uniform(-1, 1, (64, fitted.network.size)).astype(np.float32)
    found = engine.apply(states).cpu().numpy()
    error = float(np.abs(found - ReferenceEngine(fitted).apply(states)).max())
    if not error <= LIMITS[precision]:
        raise ArithmeticError(f"one application differs from float64 by {error:.1e}")
    if not np.array_equal(engine.apply(states[9:10]).cpu().numpy(), found[9:10]):
        raise ArithmeticError("a row alone differs from the same row in a batch")
    return engine, error


def measure(batch: int) -> list[dict[str, Any]]:
    """A row for each network and precision."""
    plain = {precision: plain_rate(precision) for precision in LIMITS}
    rows: list[dict[str, Any]] = [{"name": f"plain product, {each}", "flops": rate} for each, rate in plain.items()]
    for name, network in CASES.items():
        fitted = fitted_of(network)
        widths = network.widths
        flops = 2 * sum(into * out for into, out in zip(widths, widths[1:], strict=False))
        states = torch.rand((batch, network.size), device="cuda") * 2.0 - 1.0
        for precision in LIMITS:
            engine, error = checked(fitted, precision)
            seconds = timed(partial(engine.run, states, None, Schedule(most=STEPS, tolerance=0.0)))
            rate = batch * STEPS / seconds
            rows.append({
                "name": name, "precision": precision, "sample_iterations_per_second": rate, "flops": rate * flops,
                "share": rate * flops / plain[precision], "error": error,
            })  # fmt: skip
        loop = SeedLoop(fitted)
        seconds = timed(partial(loop.run, states, 3))
        rows.append({"name": name, "precision": "the seed's loop", "sample_iterations_per_second": batch * 3 / seconds})
        for precision in LIMITS:
            kind = getattr(torch, precision)
            module, x = torch.compile(loop.module.to(kind)), states.to(kind)
            seconds = timed(partial(repeated, module, x, 6))
            told = f"torch, {precision}"
            rows.append({"name": name, "precision": told, "sample_iterations_per_second": batch * 6 / seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=BATCH, help="states at a time")
    parser.add_argument("--json", type=Path, help="write the rows there")
    asked = parser.parse_args()
    rows = measure(asked.batch)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.batch} chains of {STEPS} steps")
    for row in rows:
        line = f"{row['name']:28s} {row.get('precision', ''):16s}"
        if "sample_iterations_per_second" in row:
            line += f" {row['sample_iterations_per_second'] / 1e6:9.3f} M sample-iterations/s"
        if "flops" in row:
            line += f" {row['flops'] / 1e12:7.1f} TFLOP/s"
        if "share" in row:
            line += f"  {100 * row['share']:5.1f} % of the plain product, within {row['error']:.0e} of float64"
        print(line)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
