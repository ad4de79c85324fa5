"""What a small batch costs where the host's work outweighs the device's.

Question: how many microseconds pass from one batch of 1 to 512 small pictures to the next, by each way to ask for them?
Measured: wall time of a loop that leaves its batches alone, and of the parts of `stream.generate`, until queued.
A CUDA graph of drawing and rendering, replayed, stands beside the launches of several batches that `StreamDataset`
makes: it draws the same samples each time, and is what a graph would cost at least.

    python -m fractal_streams.recipes.benchmarks.small_batches
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from fractal_streams import Loader, StreamDataset, open_stream
from fractal_streams.errors import missing_extra
from fractal_streams.stream import Stream

try:
    import torch
    from fractal_streams.recipes.benchmarks.training_feeds import graph_inline, synchronized
    from torch.utils.data import DataLoader
except ImportError as error:
    raise missing_extra(str(error.name), "torch") from None

SIZES, CALLS = (1, 16, 64, 256, 512), 2000
"""Pictures of a batch, and batches of a window."""


def small_batches(stream: Stream, sizes: Sequence[int] = SIZES, calls: int = CALLS) -> list[dict[str, Any]]:
    """Microseconds of wall time for a batch that is asked for and left alone, by each way, and for its parts."""
    rows = []
    for size in sizes:
        ways: dict[str, Iterator[Any]] = {
            "generate": (stream.generate(range(k * size, (k + 1) * size)) for k in count()),
            "StreamDataset": iter(StreamDataset(stream, size)),
            "DataLoader": iter(DataLoader(StreamDataset(stream, size), batch_size=None)),
            "Loader": iter(Loader(stream, size)),
        }
        if stream.device != "cpu":
            ways["graph"] = graph_inline(stream, size)
        row: dict[str, Any] = {"batch": size}
        for name, batches in ways.items():
            try:
                row[name] = microseconds(batches, stream.device, calls)
            except Exception as error:
                row[name] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def parts(stream: Any, size: int = 64, calls: int = 200) -> dict[str, float]:
    """Microseconds of the host to queue each part of `stream.generate(range(size))`, the device left behind."""
    _, _, table = stream.backend.draw(stream.plans[0], range(size))
    device = torch.device(stream.device)
    works: dict[str, Callable[[], Any]] = {
        "draw": lambda: stream.backend.draw(stream.plans[0], range(size)),
        "render": lambda: stream.backend.render(stream.rasters[0], table, stream.pixels),
        "generate": lambda: stream.generate(range(size)),
        "torch.empty": lambda: torch.empty((size, 3, 8, 8), dtype=torch.uint8, device=device),
    }
    return {name: microseconds((work() for _ in count()), stream.device, calls, drained=False)
            for name, work in works.items()}  # fmt: skip


def microseconds(batches: Iterator[Any], place: str, calls: int, drained: bool = True) -> float:
    """Of one `next`, the median of five windows. drained: until the device has done it, else until it is queued."""
    device, found = torch.device(place), []
    for _ in range(6):
        synchronized(device)
        begin = time.perf_counter()
        for _ in islice(batches, calls):
            pass
        if drained:
            synchronized(device)
        found.append(1e6 * (time.perf_counter() - begin) / calls)
    return sorted(found[1:])[2]


def measure(device: str = "cuda", preset: str = "fractal-10", size: int = 32) -> dict[str, Any]:
    """All figures of one stream of uint8 pictures."""
    stream = open_stream(preset, device=device, height=size, width=size)
    return {"size": size, "preset": preset, "parts": parts(stream), "rows": small_batches(stream, SIZES, CALLS)}


def table_text(figures: dict[str, Any]) -> str:
    """A line for each size of batch: microseconds a batch, and images a second."""
    queued = ", ".join(f"{name} {value:.1f}" for name, value in figures["parts"].items())
    lines = [f"{figures['preset']} at {figures['size']}x{figures['size']}; us of the host to queue: {queued}"]
    for row in figures["rows"]:
        count = row["batch"]
        lines.append(f"batch {count:<5}" + "  ".join(
            f"{name} {value:.1f} us ({count / value:.2f} M/s)" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items() if name != "batch"
        ))  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="fractal-10")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args(arguments)
    figures = measure(given.device, given.preset, given.size)
    print(table_text(figures))
    if given.json:
        written = given.json.with_suffix(".tmp")
        written.write_text(json.dumps(figures, indent=1) + "\n")
        written.replace(given.json)


if __name__ == "__main__":
    main()
