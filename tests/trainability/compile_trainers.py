"""Compile the trainers' kernels for GPUs that this machine need not have.

Run in a process of its own, without TRITON_INTERPRET: python tests/trainability/compile_trainers.py 80 90
Prints a line for each kernel: capability, name, bytes of machine code.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "render"))

from compile_kernels import machine_code

from fractal_streams.trainability.triton_kernel import train_kernel
from fractal_streams.trainability.triton_lanes_kernel import lanes_kernel, reduced_kernel
from fractal_streams.trainability.triton_trainer import DOUBLE_PRODUCTS

OPERANDS = ("w0", "w1", "w2", "xa", "xb", "x", "y", "probe", "z0", "direction")
TYPES = {
    **dict.fromkeys((*OPERANDS, "table", "measure", "final_loss", "losses", "probed"), "*fp64"),
    **dict.fromkeys(("order", "checkpoints", "diverged_at"), "*i32"),
    **dict.fromkeys(("points", "steps", "kept"), "i32"),
}
SINGLES = dict.fromkeys(OPERANDS, "*fp32")
NETWORK = {"width": 16, "nonlinearity": "tanh", "alpha1": 0.0625, "checks": 1}
FULL = {**NETWORK, "rows": 272, "batch": 0, "drift": False, "decays": False, "probes": False}
MATRIX = {**FULL, "units": 16, "depth": 2, "alpha0": 0.35355339059327373, "optimiser": "gradient_descent"}
LANES = {**FULL, "nets": 4, "unrolled": 2}
REDUCED = {**NETWORK, "units": 16, "nets": 32, "norm": 1.5}


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        kernels = {
            "matrix tf32x3": (train_kernel, {**TYPES, **SINGLES}, {**MATRIX, "precision": "tf32x3"}),
            "lanes float32": (lanes_kernel, {**TYPES, **SINGLES}, LANES),
            "reduced float64": (reduced_kernel, TYPES, REDUCED),
        }
        if DOUBLE_PRODUCTS:
            kernels["matrix float64"] = (train_kernel, TYPES, {**MATRIX, "precision": "float64"})
        for name, (kernel, types, values) in kernels.items():
            code = machine_code(kernel, types, values, capability, num_warps=1, num_stages=1, enable_fp_fusion=True)
            print(capability, name, len(code))


if __name__ == "__main__":
    main()
