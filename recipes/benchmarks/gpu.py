"""How fast a GPU renders, beside the first seed's method, in one run and only after parity.

    python -m fractal_streams.recipes.benchmarks.gpu --json gpu.json

Images per second of `stream.generate(range(n))` (drawing, labels and rendering; uint8, NCHW, preset
seed-readme), the renderer alone, the seed's `get_batch` and its kernel over a full batch; steps a second
without early exit; the host's time to hand a batch of 512 at 32x32 to a training loop; and rates of the other
formulas and formats. Shares are of the bound in `roofline.py`. Medians of CUDA-event times, warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from fractal_streams.recipes.benchmarks import roofline, seed_method
from fractal_streams.recipes.benchmarks.throughput import gate
from torch.utils.data import DataLoader
from triton.testing import do_bench

from fractal_streams import StreamDataset, StreamSpec, open_stream
from fractal_streams.formulas import CATALOGUE
from fractal_streams.stream import StillStream

SIZES = {32: 262144, 64: 65536, 256: 4096, 512: 1024}
SEED_SAMPLES = {32: 256, 64: 256, 256: 128, 512: 64}
SEED_BATCH = {32: 16384, 64: 4096, 256: 512, 512: 128}


def seconds(work: Callable[[], Any], repeats: int = 200) -> float:
    """Median time of one call, seconds, by CUDA events."""
    return float(do_bench(work, warmup=50, rep=repeats, return_mode="median")) / 1e3


def wall(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of one call with the GPU idle at both ends, seconds."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def sizes() -> list[dict[str, float]]:
    """One row for each size."""
    rows = []
    for size, count in SIZES.items():
        stream = open_stream("seed-readme", device="cuda", height=size, width=size)
        assert isinstance(stream, StillStream)
        _, _, table = stream.backend.draw(stream.plans[0], range(count))
        generate = count / seconds(lambda: stream.generate(range(count)))
        render = count / seconds(lambda: stream.backend.render(stream.rasters[0], table, stream.pixels))
        single = SEED_SAMPLES[size] / wall(lambda: seed_method.get_batch(0, SEED_SAMPLES[size], size))
        batch = SEED_BATCH[size] / wall(lambda: seed_method.full_batch(list(range(SEED_BATCH[size])), size))
        rows.append({
            "size": size, "generate": generate, "render": render, "seed get_batch": single, "seed full batch": batch,
            "share": roofline.share(stream, generate) or 0.0,
        })  # fmt: skip
    return rows


def full_steps() -> list[dict[str, float]]:
    """Steps a second when no orbit stops early (`counting="visits"`), and the share of the tighter bound."""
    rows = []
    for size, count in SIZES.items():
        stream = open_stream("seed-readme", device="cuda", height=size, width=size, counting="visits")
        assert isinstance(stream, StillStream)
        rate = count / seconds(lambda: stream.generate(range(count)))
        steps = rate * size * size * stream.rasters[0].iterations
        rows.append({"size": size, "steps/s": steps, "share": roofline.share(stream, rate) or 0.0})
    return rows


def delivery(batch_size: int = 512, size: int = 32, batches: int = 2000) -> dict[str, float]:
    """Host microseconds from asking a DataLoader for a batch to holding it; the work on it is a GPU sum."""
    stream = open_stream("seed-readme", device="cuda", height=size, width=size)
    loader = iter(DataLoader(StreamDataset(stream, batch_size=batch_size), batch_size=None))
    dataset = iter(StreamDataset(stream, batch_size=batch_size))
    result = {}
    for name, source in (("DataLoader", loader), ("dataset", dataset)):
        for _ in range(200):
            next(source)
        torch.cuda.synchronize()
        times = []
        begin = time.perf_counter()
        for _ in range(batches):
            ask = time.perf_counter()
            next(source)
            times.append(time.perf_counter() - ask)
        result[f"{name}, median"] = statistics.median(times) * 1e6
        result[f"{name}, mean"] = (time.perf_counter() - begin) / batches * 1e6
    return result


def formulas(size: int = 32, count: int = 131072) -> list[dict[str, Any]]:
    """Images per second of every formula with its own colouring."""
    rows = []
    for name in CATALOGUE:
        stream = StillStream(StreamSpec(formulas=name, height=size, width=size), device="cuda")
        rate = count / seconds(lambda: stream.generate(range(count)), 100)
        steps = stream.rasters[0].iterations
        limit = roofline.bound(stream.rasters[0], stream.device)
        rows.append({
            "formula": name, "iterations": steps, "mean steps": roofline.mean_steps(stream.spec), "images/s": rate,
            "instructions a step": limit.step.instructions if limit else None,
            "share": roofline.share(stream, rate),
        })  # fmt: skip
    return rows


def presets(counts: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """Samples per second of presets that are more than one launch, at their own size, wall time."""
    rows = []
    for name, count in (counts or {"fractal-families": 16384, "fractal-video": 1024}).items():
        stream = open_stream(name, device="cuda")
        shape = tuple(stream[0].image.shape)
        rate = count / wall(lambda: stream.generate(range(count)), 9)
        rows.append({"preset": name, "sample": "x".join(map(str, shape)), "samples/s": rate})
    return rows


def formats(size: int = 32, count: int = 262144) -> list[dict[str, Any]]:
    """Images per second of seed-readme in every form of pixels."""
    rows = []
    for dtype in ("uint8", "float16", "bfloat16", "float32"):
        for channels_last in (False, True):
            form = {} if dtype == "uint8" else {"mean": 0.5, "std": 0.25}
            stream = open_stream(
                "seed-readme", device="cuda", height=size, width=size, dtype=dtype, channels_last=channels_last, **form
            )
            rate = count / seconds(lambda: stream.generate(range(count)), 100)
            rows.append({"dtype": dtype, "layout": "NHWC" if channels_last else "NCHW", "images/s": rate})
    return rows


def shown(value: Any) -> str:
    """A figure as a table has it: four digits at least."""
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and value >= 1000
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="where to write the figures")
    arguments.add_argument("--quick", action="store_true", help="sizes and delivery only")
    given = arguments.parse_args()
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "parity": gate("seed-readme", "triton", "cuda", 64, ("uint8",)), "sizes": sizes(), "full steps": full_steps(),
        "delivery": delivery(),
    }  # fmt: skip
    if not given.quick:
        figures |= {"formulas": formulas(), "formats": formats(), "presets": presets()}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    print(f"{figures['device']}, torch {figures['torch']}, Triton {figures['triton']}; parity {figures['parity']}")
    for row in figures["sizes"]:
        rates = {name: value for name, value in row.items() if name != "share"}
        print("  ".join(f"{name} {value:,.0f}" for name, value in rates.items()), end=f"  share {row['share']:.0%}  ")
        ratio = row["generate"]
        print(f"ratio {ratio / row['seed get_batch']:,.0f} and {ratio / row['seed full batch']:,.0f}")
    for row in figures["full steps"]:
        print(f"all steps at {row['size']}: {row['steps/s'] / 1e9:.0f} G/s, {row['share']:.0%} of the tighter bound")
    print("  ".join(f"{name} {value:.1f} us" for name, value in figures["delivery"].items()))
    for row in (*figures.get("formulas", ()), *figures.get("formats", ()), *figures.get("presets", ())):
        print("  ".join(f"{name} {shown(value)}" for name, value in row.items()))


if __name__ == "__main__":
    main()
