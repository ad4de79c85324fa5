"""Compile the layers' kernels for GPUs that this machine need not have.

Run in a process of its own, without TRITON_INTERPRET: python tests/kaleidoscope/compile_layers.py 90 [NAME ...]
Prints a line for each kernel: capability, name, bytes of machine code.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "render"))

from compile_kernels import machine_code

from fractal_streams.kaleidoscope.triton_kernel import layer_kernel
from fractal_streams.kaleidoscope.triton_layers import GROUP, NARROW, PAIRS, SMALL, SMALL_PAIRS, WIDE

KINDS = {
    "last": (WIDE, True), "hidden": (NARROW, False), "last of pairs": (PAIRS, True), "small": (SMALL, True),
    "small of pairs": (SMALL_PAIRS, True),
}  # fmt: skip


def main() -> None:
    capability, names = int(sys.argv[1]), sys.argv[2:] or list(KINDS)
    for name in names:
        tile, last = KINDS[name]
        pair = tile in (PAIRS, SMALL_PAIRS)
        number = "fp16" if pair else "bf16"
        x, w, y = (
            f"tensordesc<{number}[{rows},{columns}]>"
            for rows, columns in (
                (tile.rows, tile.depth), (tile.columns, tile.depth), (tile.rows, tile.columns // tile.parts),
            )
        )  # fmt: skip
        types = {
            "x": x, "x_low": x, "w": w, "w_low": w, "bias": "*fp32",
            **dict.fromkeys(("state", "state_low", "y", "y_low"), y),
            **dict.fromkeys(("tile_models", "steps", "change"), "*i32"),
            **dict.fromkeys(("rows", "columns", "k_tiles", "size"), "i32"), "one": "fp32",
        }  # fmt: skip
        values = {
            "name": "tanh" if last else "relu", "last": last, "pair": pair, "full": False, "bm": tile.rows,
            "bn": tile.columns, "bk": tile.depth, "group": GROUP, "parts": tile.parts,
        }  # fmt: skip
        code = machine_code(
            layer_kernel, types, values, capability, num_warps=tile.warps, num_stages=tile.stages,
            enable_fp_fusion=True,
        )  # fmt: skip
        print(capability, name, len(code))


if __name__ == "__main__":
    main()
