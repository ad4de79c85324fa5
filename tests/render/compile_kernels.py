"""Compile every formula's kernel, and the draw, for GPUs that this machine need not have.

Run in a process of its own, without TRITON_INTERPRET: python tests/render/compile_kernels.py 80 90
Prints a line for each kernel: capability, name, bytes of machine code.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fractal_streams.colouring import CATALOGUE as COLOURINGS
from fractal_streams.draw.triton_kernel import draw_kernel
from fractal_streams.formulas import CATALOGUE as FORMULAS
from fractal_streams.render import queue_launch
from fractal_streams.render.raster import Raster
from fractal_streams.render.triton_backend import compiled
from fractal_streams.spec import StreamSpec

KERNEL = {"table": "*fp32", "lookup": "*u8", "out": "*u8", "count": "i32"}
DRAW = {
    "indices": "*i64", "operation": "*i32", "level": "*i32", "keys": "*u32", "numbers": "*fp64", "choices": "*fp32",
    "taylor": "*fp64", "index_out": "*i64", "labels": "*i64", "table": "*fp32",
    "start": "i64", "step": "i64", "count": "i64", "num_classes": "i64",
}  # fmt: skip


def machine_code(kernel: triton.JITFunction, types: dict, values: dict, capability: int, **options: object) -> bytes:
    """The cubin of a kernel for one compute capability."""
    signature = {name: "constexpr" if name in values else types[name] for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


def pairs() -> list[tuple[str, str | None]]:
    """Every formula with its own colouring, and every colouring with the first formula."""
    return [(formula, None) for formula in FORMULAS] + [("mandelbrot", colouring) for colouring in COLOURINGS]


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        for formula, colouring in pairs():
            spec = StreamSpec(formulas=formula, colouring=colouring)
            raster = Raster.of(spec, spec.parts()[0])
            values = {
                "height": 32, "width": 32, "supersample": 2, "tile_height": 8, "tile_width": 8, "vote": 5,
                "channels_last": False, "levels": True,
            }  # fmt: skip
            code = machine_code(compiled(raster).kernel, KERNEL, values, capability, num_warps=1)
            print(capability, formula, raster.colouring.name, len(code))
        for counting in ("escape", "visits"):
            spec = StreamSpec(formulas="polynomial_power", counting=counting)
            raster = Raster.of(spec, spec.parts()[0])
            plan = queue_launch.layout(raster)
            values = {
                "height": 32, "width": 32, "matrix": False, "tall": plan.tall, "wide": plan.wide,
                "tile_height": plan.tile[0], "tile_width": plan.tile[1], "vote": plan.vote, "idle": plan.idle,
                "block": plan.block, "shades": 32, "channels_last": False, "levels": True,
            }  # fmt: skip
            types = {name: KERNEL[name] for name in ("table", "lookup", "out", "count")}
            code = machine_code(
                queue_launch.compiled(raster).queue, types, values, capability, num_warps=plan.warps,
                maxnreg=plan.registers[0],
            )  # fmt: skip
            print(capability, "queue", counting, len(code))
        for balanced in (False, True):
            values = {"rows": 12, "balanced": balanced, "given": not balanced, "block": 256}
            code = machine_code(draw_kernel, DRAW, values, capability, num_warps=4, enable_fp_fusion=False)
            print(capability, "draw", "balanced" if balanced else "drawn", len(code))


if __name__ == "__main__":
    main()
