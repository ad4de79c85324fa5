"""How fast a GPU could be: the bound on steps of orbits a second, counted from a kernel's own machine code.

A scheduler of an NVIDIA GPU issues one instruction for 32 lanes in each cycle, and a multiprocessor
computes 16 special functions (logarithm, exponential, reciprocal, sine, cosine) in each. From the loop of
the kernel that runs all iterations (`counting="visits"`) follow the instructions and special functions of
one step of one orbit, its test and its count; the tighter of both bounds holds.

    python -m fractal_streams.recipes.benchmarks.roofline

NVIDIA, CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions", compute capability 9.0.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fractal_streams.colouring import colouring, find_colouring
from fractal_streams.dialect import floor
from fractal_streams.errors import FractalStreamsError, missing_extra
from fractal_streams.formulas import CATALOGUE
from fractal_streams.render import queue_launch
from fractal_streams.render.raster import Raster
from fractal_streams.spec import StreamSpec
from fractal_streams.stream import StillStream

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError:
    raise missing_extra("torch", "torch") from None

SCHEDULERS, LANES, SPECIAL = 4, 32, 16
"""Of a multiprocessor: instructions issued in a cycle, lanes of each, special functions of all lanes in a cycle."""


class DisassemblyError(FractalStreamsError, RuntimeError):
    """Machine code that could not be read: there is no roofline without it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of one orbit with its test and count: instructions of a lane, special functions among them."""

    instructions: float
    special: float


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Steps a second: by instructions, by special functions (infinite if there are none), and the tighter one."""

    step: Step
    by_instructions: float
    by_special: float

    @property
    def steps(self) -> float:
        return min(self.by_instructions, self.by_special)


def loops(text: str) -> list[list[str]]:
    """The innermost loops of a disassembly, each as its instructions without predicates, the longest first.

    Example:
        >>> loops('.L_1:\\n /*0000*/ FADD R0, R1, R2 ;\\n /*0010*/ @P0 BRA `(.L_1) ;')
        [['FADD', 'BRA']]
    """
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(found[1])
    spans = []
    for end, instruction in enumerate(code):
        target = re.search(r"BRA.*`\((\.L_\w+)\)", instruction)
        if target and labels.get(target[1], end) < end:
            spans.append((labels[target[1]], end))
    inner = [
        span for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]  # fmt: skip
    bodies = [[re.sub(r"^@!?U?P\w+\s+", "", word).split()[0] for word in code[a : b + 1]] for a, b in inner]
    return sorted(bodies, key=len, reverse=True)


@cache
def step_of(raster: Raster, capability: int) -> Step:
    """What a step of a raster's formula costs, compiled for one compute capability (90 is an H100 or H200).

    Raises:
        DisassemblyError: the machine code holds no loop of orbits, or can't be read.
    """
    cubin = machine_code(raster, capability)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DisassemblyError(f"{tool} could not read a kernel of {raster.formula.name}: {error}") from None
    for body in loops(done.stdout):
        kinds = Counter(word.split(".")[0] for word in body)
        if orbits := kinds["FSET"]:  # the test of one step of one orbit
            return Step(instructions=len(body) / orbits, special=kinds["MUFU"] / orbits)
    raise DisassemblyError(f"the kernel of {raster.formula.name} for sm_{capability} has no loop of orbits")


def machine_code(raster: Raster, capability: int) -> bytes:
    """The cubin of the kernel that runs all iterations of a raster's formula, no GPU needed."""
    module, plan = queue_launch.compiled(raster), queue_launch.layout(raster)
    names = module.queue.arg_names
    values = {
        "height": raster.height, "width": raster.width, "matrix": raster.matrix, "tall": plan.tall, "wide": plan.wide,
        "tile_height": plan.tile[0], "tile_width": plan.tile[1], "vote": plan.vote, "idle": plan.idle,
        "block": plan.block, "shades": 32, "channels_last": False, "levels": True,
    }  # fmt: skip
    types = {"table": "*fp32", "lookup": "*u8", "out": "*u8", "count": "i32"}
    source = ASTSource(
        module.queue, {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in values.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in ("table", "lookup", "out")},
    )  # fmt: skip
    options = {"num_warps": plan.warps, "maxnreg": plan.registers[0], "enable_fp_fusion": True}
    return bytes(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"])


def plain(raster: Raster) -> Raster | None:
    """The raster as the kernel that runs all iterations knows it; None where that kernel can't."""
    made = replace(
        raster, colouring=find_colouring("three_phase_sine"), supersample=1, iterations=30, visits=True, height=32,
        width=32, matrix=False,
    )  # fmt: skip
    return made if queue_launch.suits(made) else None


def bound(raster: Raster, device: str = "cuda") -> Bound | None:
    """The bound of a raster's formula on a GPU at its highest clock; None where a step needs more than z and c."""
    made = plain(raster)
    if made is None:
        return None
    found = torch.cuda.get_device_properties(device)
    step = step_of(made, 10 * found.major + found.minor)
    cycles = found.multi_processor_count * clock(device)
    return Bound(
        step=step,
        by_instructions=cycles * SCHEDULERS * LANES / step.instructions,
        by_special=cycles * SPECIAL / step.special if step.special else float("inf"),
    )


@cache
def clock(device: str) -> float:
    """The highest clock of a GPU's multiprocessors, in Hz."""
    asked = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    number = torch.device(device).index or 0
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    return float(lines[min(number, len(lines) - 1)]) * 1e6


@colouring(source="none: a count to be read, not to be looked at")
def count_as_levels(count: Any) -> tuple[Any, Any, Any]:
    """The count in the levels of two channels, the lower byte in red."""
    high = floor(count * 0.00390625)
    return (count - 256.0 * high + 0.5) * 0.00392156862745098, (high + 0.5) * 0.00392156862745098, 0.0 * count


def mean_steps(spec: StreamSpec, pictures: int = 256) -> float:
    """Steps that an orbit of a spec runs until it stops, the mean over the pixels of some pictures.

    Example:
        >>> from fractal_streams import StreamSpec
        >>> from fractal_streams.priors import Constant
        >>> far = StreamSpec(formulas="mandelbrot", priors={"centre_x": Constant(200.0)})
        >>> mean_steps(far, pictures=2)
        1.0
    """
    counted = StillStream(replace(spec, colouring=count_as_levels.name), device="cpu")
    raster = counted.rasters[0]
    levels = counted.generate(range(pictures)).images.astype(int)
    count = levels[:, 0] + 256 * levels[:, 1]
    if raster.runs_through:
        return float(raster.iterations)
    return float((count + (count < raster.iterations)).mean())


def share(stream: Any, rate: float) -> float | None:
    """Which part of its bound a GPU stream reaches at so many images a second; None where no bound is known.

    The work is the steps that each pixel's orbit runs until it stops, no more: what a kernel spends on
    lanes that wait, on colours and on stores counts against it.
    """
    rasters: Sequence[Raster] = getattr(stream, "rasters", ())
    if len(rasters) != 1 or not stream.device.startswith("cuda"):
        return None
    limit = bound(rasters[0], stream.device)
    if limit is None:
        return None
    return rate * rasters[0].height * rasters[0].width * _mean_steps(stream.spec) / limit.steps


_mean_steps = cache(mean_steps)


def main() -> None:
    print("formula            instructions  special  G steps/s by instructions  by special functions")
    for name in CATALOGUE:
        found = bound(StillStream(StreamSpec(formulas=name), device="cuda").rasters[0])
        if found is None:
            print(f"{name:18} a step asks for more than z and c")
            continue
        print(
            f"{name:18} {found.step.instructions:12.1f} {found.step.special:8.1f} {found.by_instructions / 1e9:26.0f} "
            f"{found.by_special / 1e9:21.0f}"
        )


if __name__ == "__main__":
    main()
