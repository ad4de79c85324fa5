"""How the queue kernels are launched: for which rasters, with which layout, in how many registers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from fractal_streams.render import triton_queue
from fractal_streams.render.bind import flags, generated, module_text
from fractal_streams.render.raster import PixelFormat, Raster

MAX_STEPS = 32767
"""Counts lie in 16 bits of the picture while it is made."""
MAX_SHADES = 128
"""Counts whose colours are computed once for a region; with more, each pixel computes its own."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """tall, wide: a program's region. tile: (height, width) that its lanes begin with. registers: tried in order."""

    tall: int
    wide: int
    tile: tuple[int, int]
    vote: int
    idle: int
    block: int
    warps: int
    registers: tuple[int | None, ...]


@cache
def suits(raster: Raster) -> bool:
    """Whether colours follow from the count alone, and the next z from z alone."""
    stepped = {*inspect.signature(raster.formula.step).parameters}
    painted = {*inspect.signature(raster.colouring.paint).parameters}
    return (
        not (stepped & {"pr", "pi", "n"} or painted & {"zr", "zi", "pr", "pi"} or raster.accumulators)
        and raster.formula.stop in ("escape", "never")
        and raster.supersample == 1
        and raster.iterations <= MAX_STEPS
    )


@cache
def layout(raster: Raster, tile: tuple[int, int] | None = None) -> Layout:
    """The fastest that was measured on an H200; `recipes/benchmarks/README.md` has the others."""
    steps = raster.iterations
    if raster.runs_through:
        made = tile or (16, 16)
        vote = next(count for count in (5, 6, 4, 3, 2, 1) if steps % count == 0)
        warps, idle, registers = 2, made[0] * made[1], (64, 96, None)
    else:
        made = tile or (8, 8)
        vote, warps, idle, registers = min(3, steps), 1, made[0] * made[1] // 4, (40, 56, None)
    tall, wide = (
        max(side, min(32, 1 << (length - 1).bit_length()))
        for side, length in zip(made, (raster.height, raster.width), strict=True)
    )
    return Layout(
        tall=tall, wide=wide, tile=made, vote=vote, idle=idle, block=min(256 * warps, tall * wide), warps=warps,
        registers=registers,
    )  # fmt: skip


class QueueLauncher:
    """Launches the kernels of rasters that `suits`; remembers with how many registers each gets by."""

    def __init__(self, tile: tuple[int, int] | None = None) -> None:
        self.tile = tile
        self._registers: dict[Raster, int | None] = {}

    def programs(self, raster: Raster, count: int) -> int:
        """Programs of a launch."""
        plan = layout(raster, self.tile)
        return count * -(-raster.height // plan.tall) * -(-raster.width // plan.wide)

    def launch(
        self, raster: Raster, table: torch.Tensor, lookup: torch.Tensor, out: torch.Tensor, pixels: PixelFormat
    ) -> None:
        """Fill `out` from the table; with fewer registers more warps run, unless values no longer fit."""
        plan, module, count = layout(raster, self.tile), compiled(raster), table.shape[1]
        shades = 1 << raster.iterations.bit_length()
        tried = (self._registers[raster],) if raster in self._registers else plan.registers
        for registers in tried:
            made = module.queue[(self.programs(raster, count),)](
                table, lookup, out, count, raster.height, raster.width, raster.matrix, plan.tall, plan.wide,
                *plan.tile, plan.vote, plan.idle, plan.block, max(32, shades) if shades <= MAX_SHADES else 0,
                pixels.channels_last, pixels.dtype == "uint8", num_warps=plan.warps, enable_fp_fusion=True,
                maxnreg=registers,
            )  # fmt: skip
            if not getattr(made, "n_spills", 0):
                break
        self._registers[raster] = registers


@cache
def compiled(raster: Raster) -> ModuleType:
    """The generated module of a raster; its kernels compile on first use and are cached on disk."""
    return generated("triton", source, raster)


def source(raster: Raster) -> str:
    """The generated module's text."""
    loads = "".join(f"tl.load(table + {row} * stride), " for row in range(len(raster.names)))
    gather = f"@triton.jit\ndef gather(table, stride):\n    return ({loads})\n"
    globals_ = "".join(f"{name} = tl.constexpr({value})\n" for name, value in flags(raster).items())
    imports = (
        "from fractal_streams.render.triton_kernel import clip, write\n"
        "from fractal_streams.render.triton_primitives import INTERPRETED, whole\n"
    )
    body = inspect.getsource(triton_queue)
    body = body[body.index("@triton.jit(") :]
    return f"{imports}{module_text(raster, 'triton')}\n{globals_}\n\n{gather}\n\n{body}"
