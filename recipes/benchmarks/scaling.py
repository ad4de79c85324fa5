"""Cost as the work grows: images per second by size, iterations, classes, batch and number of GPUs.

Question: what is a stream's cost proportional to, and where does it stop being so?
Measured: `stream.generate` of seed-readme, uint8, warm, medians of five windows. On a GPU the time that it works, by
CUDA events with the launches queued ahead, and beside it the wall time of a loop of calls: what lies between the two is
the host's. On a CPU seconds of CPU time on one thread. Of several GPUs (on a CPU, of processes): one process for each,
each its own `Shard` through `StreamDataset`, started together and counted until the slowest ends.
Beside each curve stands what its cost should be proportional to; a line is anchored at one point, not fitted.

    python -m fractal_streams.recipes.benchmarks.scaling --json scaling.json --plot scaling.png
    python -m fractal_streams.recipes.benchmarks.scaling --panels gpus --json gpus.json
    python -m fractal_streams.recipes.benchmarks.scaling --draw scaling.json gpus.json --plot both.png
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.recipes.benchmarks.cpu_peers import hardware
from fractal_streams.recipes.benchmarks.orbit_steps import ends, mean_steps
from fractal_streams.recipes.benchmarks.throughput import cpu_seconds

from fractal_streams.device import resolve_device
from fractal_streams.errors import FractalStreamsError, InvalidValueError, missing_extra
from fractal_streams.presets import open_stream
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.stream import StillStream

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

from fractal_streams.recipes.benchmarks.ranks import rate_of_ranks

SOURCE, EDGE = "seed-readme", 32
AXES = {
    "size": "edge of a picture, pixels", "iterations": "iterations at most", "classes": "classes",
    "batch": "pictures in a call, 32x32", "gpus": "processes, one for each GPU or core",
}  # fmt: skip
"""Panels and what grows in them."""
GROWING: dict[str, tuple[int, ...]] = {
    "size": (16, 32, 64, 128, 256, 512, 1024),
    "iterations": (10, 20, 30, 50, 100, 200, 500, 1000),
    "classes": (10, 100, 1000, 10_000, 100_000, 1_000_000),
    "batch": tuple(4**power for power in range(10)),
    "gpus": (1, 2, 4, 8),
}
ON_CPU: dict[str, tuple[int, ...]] = {
    **GROWING, "size": GROWING["size"][:-1], "batch": tuple(4**power for power in range(7)),
}  # fmt: skip
PIXELS = {"cuda": 2**28, "cpu": 2**19}
"""Of a call whose pictures are not counted, one picture at least; on a GPU no more than `MEMORY` allows."""
MEMORY = 0.25
"""Share of a GPU's free memory that the pictures of a call may take."""
TILE = {"cuda": (8, 8), "cpu": (8, 16)}
"""Pixels that wait for each other, (height, width)."""
WINDOWS = 5
COUNTED = {"cuda": 256, "cpu": 64}
"""Pictures whose orbits' steps are counted; on a CPU the same ones are rendered, again and again."""
ANCHOR = 30
"""Iterations at which the lines of that panel go through the measured point."""
OFF = 0.2
"""Distance from the line, of 1, at which a point has left it."""
LARGE, LARGE_EDGE = 1024, 1024
"""Pictures and edge of the largest batch: more bytes than 32 bits count."""


class WrongPictureError(FractalStreamsError, AssertionError):
    """A picture of a large batch that is another than the picture alone."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement.

    x: what grows. batch: pictures in a call. rate: images a second of the device's own time; wall: by the clock on
    the wall, on a GPU. peak: bytes of the GPU that were taken at most.
    """

    x: int
    batch: int
    rate: float
    wall: float | None = None
    peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Points, and by name the lines that they should lie on, a rate for each point."""

    machine: str
    points: tuple[Point, ...]
    lines: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Panel:
        """From what JSON holds."""
        points = tuple(Point(**each) for each in figures["points"])
        lines = {name: tuple(rates) for name, rates in figures["lines"].items()}
        return cls(machine=figures["machine"], points=points, lines=lines)

    def leaves(self, line: str) -> list[int]:
        """Where the points have left a line."""
        return [
            point.x
            for point, rate in zip(self.points, self.lines[line], strict=True)
            if abs(point.rate / rate - 1.0) > OFF
        ]


def kind_of(device: str) -> str:
    return "cuda" if device.startswith("cuda") else "cpu"


def opened(device: str, **settings: Any) -> StillStream:
    """The stream; on a CPU on one thread, so that CPU time is a core's."""
    own = {} if kind_of(device) == "cuda" else {"renderer": NumbaRenderer(threads=1)}
    stream = open_stream(SOURCE, device=device, **{"height": EDGE, "width": EDGE, **settings}, **own)
    assert isinstance(stream, StillStream)
    return stream


def calls(device: str, edge: int) -> int:
    """Pictures that fill the device and its memory allows."""
    pixels = PIXELS[kind_of(device)]
    if kind_of(device) == "cuda":
        pixels = min(pixels, int(torch.cuda.mem_get_info(device)[0] * MEMORY) // 3)
    return max(COUNTED["cpu"] if kind_of(device) == "cpu" else 1, pixels // edge**2)


def point(stream: StillStream, x: int, batch: int, seconds: float) -> Point:
    """The rate of calls of so many pictures."""

    chosen: Any = range(batch) if stream.device != "cpu" else np.arange(batch) % min(batch, COUNTED["cpu"])

    def work() -> None:
        stream.generate(chosen)

    work()
    if stream.device == "cpu":
        once = max(cpu_seconds("cpu", work, 1), 1e-6)
        repeats = max(1, round(seconds / once))
        windows = [repeats * batch / cpu_seconds("cpu", work, repeats) for _ in range(WINDOWS)]
        return Point(x=x, batch=batch, rate=statistics.median(windows))
    torch.cuda.reset_peak_memory_stats(stream.device)
    with torch.cuda.device(stream.device):
        busy, wall = gpu_seconds(work, seconds), wall_seconds(work, seconds)
    peak = torch.cuda.max_memory_allocated(stream.device)
    return Point(x=x, batch=batch, rate=batch / busy, wall=batch / wall, peak=peak)


def gpu_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The GPU's own time of a call, median: a cleared cache between two calls lets the host run ahead."""
    from triton.testing import do_bench

    return float(do_bench(work, warmup=50, rep=max(1, int(1e3 * seconds)), return_mode="median")) / 1e3


def wall_seconds(work: Callable[[], Any], seconds: float) -> float:
    """Wall time of a call in a loop of calls, median of the windows."""
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    repeats = max(1, round(seconds / max(time.perf_counter() - begin, 1e-6)))
    windows = []
    for _ in range(WINDOWS):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        windows.append((time.perf_counter() - begin) / repeats)
    return statistics.median(windows)


def size_panel(device: str, sizes: Sequence[int], seconds: float) -> Panel:
    """Lines: cost as the pixels, and as the pixels times the steps of a tile."""
    points, tiles = [], []
    for edge in sizes:
        stream = opened(device, height=edge, width=edge)
        points.append(point(stream, edge, calls(device, edge), seconds))
        most, tile = stream.rasters[0].iterations, TILE[kind_of(device)]
        tiles.append(mean_steps(ends(stream, COUNTED[kind_of(device)], most, tile[0]), [most], tile)[0].tile)
    pixels = [1.0 / edge**2 for edge in sizes]
    work = [share / steps for share, steps in zip(pixels, tiles, strict=True)]
    lines = {"pixels": through(pixels, points), "pixels x steps of a tile": through(work, points)}
    return Panel(machine=name_of(device), points=tuple(points), lines=lines)


def iterations_panel(device: str, numbers: Sequence[int], seconds: float) -> Panel:
    """Lines: cost as the steps that a pixel really runs, and as those of the slowest pixel of a tile."""
    tile = TILE[kind_of(device)]
    steps = mean_steps(ends(opened(device), COUNTED[kind_of(device)], max(numbers), tile[0]), numbers, tile)
    points = [point(opened(device, iterations=most), most, calls(device, EDGE), seconds) for most in numbers]
    at = min(range(len(numbers)), key=lambda place: abs(numbers[place] - ANCHOR))
    lines = {
        "steps of a pixel": through([1.0 / each.pixel for each in steps], points, at),
        "steps of a tile": through([1.0 / each.tile for each in steps], points, at),
    }
    return Panel(machine=name_of(device), points=tuple(points), lines=lines)


def classes_panel(device: str, numbers: Sequence[int], seconds: float) -> Panel:
    """Line: classes cost nothing."""
    points = [point(opened(device, num_classes=number), number, calls(device, EDGE), seconds) for number in numbers]
    middle = statistics.median(each.rate for each in points)
    return Panel(machine=name_of(device), points=tuple(points), lines={"constant": (middle,) * len(points)})


def batch_panel(device: str, numbers: Sequence[int], seconds: float) -> Panel:
    """Lines: the rate of the largest call, and the time of the smallest."""
    stream = opened(device)
    points = [point(stream, number, number, seconds) for number in numbers]
    first, last = points[0], points[-1]
    lines = {
        "rate of the largest": (last.rate,) * len(points),
        "time of the smallest": tuple(first.rate * number / first.x for number in numbers),
    }
    return Panel(machine=name_of(device), points=tuple(points), lines=lines)


def gpus_panel(device: str, numbers: Sequence[int], seconds: float) -> Panel:
    """Line: as many times the rate of one."""
    kind = kind_of(device)
    there = torch.cuda.device_count() if kind == "cuda" else len(os.sched_getaffinity(0))
    batch = 16384 if kind == "cuda" else 512
    points, steps = [], 0
    for number in (each for each in numbers if each <= there):
        rate, steps = rate_of_ranks(kind, number, batch=batch, steps=steps, seconds=seconds, windows=WINDOWS)
        points.append(Point(x=number, batch=batch, rate=rate))
    lines = {"proportional": tuple(points[0].rate * each.x / points[0].x for each in points)}
    return Panel(machine=name_of(device), points=tuple(points), lines=lines)


def through(shape: Sequence[float], points: Sequence[Point], at: int = -1) -> tuple[float, ...]:
    """A line of this shape through one of the points."""
    return tuple(points[at].rate * value / shape[at] for value in shape)


def name_of(device: str) -> str:
    """What the points were measured on."""
    return torch.cuda.get_device_name(device) if kind_of(device) == "cuda" else f"{hardware()['cpu']}, one core"


def large_batch(device: str, count: int = LARGE, edge: int = LARGE_EDGE) -> dict[str, Any]:
    """A batch whose bytes 32 bits can't count, its last pictures held to the same ones asked for alone.

    Raises:
        WrongPictureError: they differ.
    """
    stream = opened(device, height=edge, width=edge)
    size = 3 * count * edge**2
    if kind_of(device) == "cuda" and size > MEMORY * torch.cuda.mem_get_info(device)[0]:
        return {"pictures": count, "edge": edge, "bytes": size, "skipped": "too little memory"}
    batch = stream.generate(range(count)).torch()
    chosen = [0, count // 2 + 1, count - 1]
    alone = stream.generate(chosen).torch()
    if not torch.equal(batch.images[chosen], alone.images):
        raise WrongPictureError(f"pictures {chosen} of a batch of {count} at {edge}x{edge} are not the stream's")
    return {"pictures": count, "edge": edge, "bytes": size, "equal": True}


MAKERS = {
    "size": size_panel, "iterations": iterations_panel, "classes": classes_panel, "batch": batch_panel,
    "gpus": gpus_panel,
}  # fmt: skip


def measure(
    panels: Sequence[str] = tuple(AXES),
    device: str = "auto",
    seconds: float = 0.2,
    ranges: dict[str, Sequence[int]] | None = None,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[str, Panel]:
    """Panels by name.

    Args:
        seconds: of each of five windows, about. ranges: by panel, in place of `GROWING`.
        progress: is told the panel that is measured now.

    Raises:
        InvalidValueError, DeviceError: no such panel, or device.

    Example:
        >>> made = measure(["classes"], "cpu", 0.001, {"classes": (10, 1000)})
        >>> [point.x for point in made["classes"].points]
        [10, 1000]
    """
    place = resolve_device(device)
    for name in panels:
        if name not in MAKERS:
            raise InvalidValueError(f"a panel is one of {', '.join(MAKERS)}, got {name!r}")
    asked = {**(GROWING if kind_of(place) == "cuda" else ON_CPU), **(ranges or {})}
    made = {}
    for name in panels:
        progress(name)
        made[name] = MAKERS[name](place, asked[name], seconds)
    return made


def as_text(made: dict[str, Panel]) -> str:
    """A line for each point: its rate, and the rate over each line's; and where it left the first line."""
    lines = []
    for name, panel in made.items():
        lines.append(f"{name}, {panel.machine}: images/s" + "".join(f", over {line}" for line in panel.lines))
        for place, each in enumerate(panel.points):
            shares = "".join(f"  {each.rate / rates[place]:.3g}" for rates in panel.lines.values())
            wall = f"  (wall {each.wall:,.0f})" if each.wall else ""
            lines.append(f"  {each.x:>9,}  {each.rate:>14,.1f}{shares}{wall}")
        for line in panel.lines:
            left = ", ".join(f"{x:,}" for x in panel.leaves(line)) or "nowhere"
            lines.append(f"  off the line '{line}' by more than {OFF:.0%}: {left}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or draw what was measured; print, write and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--panels", type=lambda text: text.split(","), default=list(AXES), help="of " + ",".join(AXES))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each window, about")
    parser.add_argument("--draw", type=Path, nargs="+", help="files of earlier runs, to be drawn in place of measuring")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--plot", type=Path, help="draw them here")
    asked = parser.parse_args(arguments)
    figures: dict[str, Any] = {"panels": {}}
    for path in asked.draw or ():
        read = json.loads(path.read_text())
        figures = {**figures, **read, "panels": {**figures["panels"], **read["panels"]}}
    made = {name: Panel.of(panel) for name, panel in figures["panels"].items()}
    if not asked.draw:
        made = measure(asked.panels, asked.device, asked.seconds, progress=lambda name: print(name, "...", flush=True))
        figures = {"hardware": hardware(), "panels": {name: asdict(panel) for name, panel in made.items()}}
        if "size" in made and (place := resolve_device(asked.device)) != "cpu":
            figures["largest"] = large_batch(place)
            print(f"largest batch: {figures['largest']}")
    print(as_text(made))
    if asked.json:
        written = asked.json.with_suffix(".tmp")
        written.write_text(json.dumps(figures, indent=1) + "\n")
        written.replace(asked.json)
    if asked.plot:
        from fractal_streams.recipes.benchmarks.charts import save, scaling_chart

        save(scaling_chart(made, AXES), asked.plot)


if __name__ == "__main__":
    main()
