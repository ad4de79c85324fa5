"""Seconds from the start of a process to its first image, with nothing compiled yet and with everything.

Question: how long does one wait before a loop begins, the first time and every other time?
Measured: fresh `python -c` processes with caches of their own: a cold one, whose folders for compiled code are
empty, and a warm one in the same folders. Wall and CPU time (of the process and of the compilers that it starts)
at each stage; medians over several pairs, after one process that is not counted, so that files are in memory. Wall
time is that of an idle machine only on an idle machine.
Gate: the renderer passes `throughput`'s, and every process gives its picture to the bit; a cold process adds files
to the caches, a warm one adds none.

    python -m fractal_streams.recipes.benchmarks.first_image --json first.json

The stages: "interpreter" until the first line runs, "imports" of NumPy, Numba (a GPU's: torch, Triton) and this
package, "open" the stream (a GPU's: and its context), "compile" or load what was compiled, "render" one image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from fractal_streams.recipes.benchmarks.throughput import ParityError, gate

from fractal_streams import open_stream
from fractal_streams.device import resolve_device
from fractal_streams.errors import FractalStreamsError

SIZES = (32, 256)
AIM = 2.0
"""Seconds to the first image of a second process on a CPU."""
STAGES = ("interpreter", "imports", "open", "compile", "render")
CACHES = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that name folders of compiled code."""

PROGRAM = """
import os, sys, time
marks = []
def mark():
    marks.append((time.time(), time.process_time() + sum(os.times()[2:4])))
mark()
device, size, picture = sys.argv[1], int(sys.argv[2]), sys.argv[3]
import fractal_streams.presets
if device == "cpu":
    import fractal_streams.render.numba_backend
else:
    import fractal_streams.cuda
mark()
stream = fractal_streams.open_stream("seed-readme", device=device, iterations=30, height=size, width=size)
if device != "cpu":
    import torch
    torch.zeros(1, device=device)
mark()
first = stream.generate(range(1)).numpy().images
mark()
stream.generate(range(1, 2)).numpy()
mark()
open(picture, "wb").write(first.tobytes())
import json
print(json.dumps(marks))
"""


class WrongStartError(FractalStreamsError, AssertionError):
    """A process that failed, gave another picture, or compiled what was compiled before."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process: seconds and CPU seconds of each of `STAGES`, files it added to the caches, its picture."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    files: int
    picture: bytes


@dataclass(frozen=True, kw_only=True)
class Start:
    """Medians over the processes of one device and size, cold or warm.

    wall, cpu: seconds of each of `STAGES`; total, total_cpu: seconds to the first image; totals: of each process.
    files: added to the caches by a process.
    """

    device: str
    size: int
    warm: bool
    total: float
    total_cpu: float
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    files: int
    totals: tuple[float, ...]


def run(device: str, size: int, folder: Path) -> Process:
    """Start a process whose compiled code lives in a folder.

    Raises:
        WrongStartError: it failed; its last line says why.
    """
    caches = {name: str(folder / name.lower()) for name in (*CACHES, "CUDA_CACHE_PATH")}
    picture = folder / "picture"
    before = compiled_files(folder)
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device, str(size), str(picture)],
        env={**os.environ, **caches}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WrongStartError(f"a process on {device} at {size}x{size} failed: {why}")
    marks = [(began, 0.0), *json.loads(done.stdout.splitlines()[-1])]
    wall, cpu = (np.diff(column).tolist() for column in zip(*marks, strict=True))
    for stages in (wall, cpu):  # the first image is compiled and rendered, the second is rendered
        stages[3] -= stages[4]
    return Process(
        wall=tuple(wall), cpu=tuple(cpu), files=compiled_files(folder) - before, picture=picture.read_bytes()
    )  # fmt: skip


def compiled_files(folder: Path) -> int:
    """Files in the caches."""
    return sum(path.is_file() for name in CACHES for path in (folder / name.lower()).rglob("*"))


def measure(device: str, size: int, pairs: int) -> list[Start]:
    """A cold and a warm row.

    Raises:
        WrongStartError: a process gave another picture, or compiled what was compiled before.
        ParityError: the renderer's pictures are not the reference's.
    """
    gate("seed-readme", "numba" if device == "cpu" else "triton", device, size, ("uint8",))
    cold, warm = [], []
    for pair in range(pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            processes = run(device, size, Path(folder)), run(device, size, Path(folder))
        if pair:
            cold.append(processes[0])
            warm.append(processes[1])
    check(rendered(device, size), cold, warm)
    return [medians(device, size, each is warm, each) for each in (cold, warm)]


def rendered(device: str, size: int) -> bytes:
    """The first image, rendered by this process."""
    stream = open_stream("seed-readme", device=device, iterations=30, height=size, width=size)
    return bytes(stream.generate(range(1)).numpy().images.tobytes())


def check(picture: bytes, cold: Sequence[Process], warm: Sequence[Process]) -> None:
    """Hold the processes to a picture, and to what cold and warm mean."""
    others = sum(process.picture != picture for process in (*cold, *warm))
    if others:
        raise WrongStartError(f"{others} of {len(cold) + len(warm)} processes gave another picture than this one")
    if not all(process.files for process in cold):
        raise WrongStartError("a process with empty caches added nothing to them, so that nothing is measured here")
    if added := max(process.files for process in warm):
        raise WrongStartError(f"a second process added {added} files to the caches: it compiled anew")


def medians(device: str, size: int, warm: bool, processes: Sequence[Process]) -> Start:
    """The row of some processes."""
    totals = tuple(sum(process.wall) for process in processes)
    return Start(
        device=device, size=size, warm=warm, totals=totals, total=statistics.median(totals),
        total_cpu=statistics.median(sum(process.cpu) for process in processes),
        wall=tuple(statistics.median(process.wall[k] for process in processes) for k in range(len(STAGES))),
        cpu=tuple(statistics.median(process.cpu[k] for process in processes) for k in range(len(STAGES))),
        files=int(statistics.median(process.files for process in processes)),
    )  # fmt: skip


def table_text(starts: Sequence[Start]) -> str:
    """A line for each device, size and state."""
    head = "".join(f"{stage:>13}" for stage in STAGES)
    lines = [f"{'':<8} {'size':>4}  {'':<5} {'first image':>12} {'CPU':>8}{head}  files"]
    for start in starts:
        stages = "".join(f"{seconds:>11.3f} s" for seconds in start.wall)
        aim = ""
        if start.warm and start.device == "cpu":
            aim = f"  aim {AIM:.0f} s{', missed' if start.total > AIM else ''}"
        lines.append(
            f"{start.device:<8} {start.size:>4}  {'warm' if start.warm else 'cold':<5} {start.total:>10.2f} s "
            f"{start.total_cpu:>6.2f} s{stages}  {start.files:>5}{aim}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", nargs="+", help="cpu, cuda or cuda:N; the CPU and a GPU, if there is one")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="edges of the image, pixels")
    parser.add_argument("--pairs", type=int, default=5, help="cold and warm processes of each")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args(arguments)
    starts: list[Start] = []
    absent: dict[str, str] = {}
    for device in asked.devices or dict.fromkeys(("cpu", resolve_device("auto"))):
        for size in asked.sizes:
            try:
                starts += measure(device, size, asked.pairs)
            except (WrongStartError, ParityError) as error:
                absent[f"{device} {size}x{size}"] = str(error)
    print(table_text(starts))
    for name, why in absent.items():
        print(f"no figures of {name}: {why}")
    if asked.json:
        figures = {"stages": STAGES, "starts": [asdict(start) for start in starts], "absent": absent}
        written = asked.json.with_suffix(".tmp")
        written.write_text(json.dumps(figures, indent=2) + "\n")
        written.replace(asked.json)


if __name__ == "__main__":
    main()
