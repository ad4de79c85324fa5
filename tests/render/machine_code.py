"""What Numba makes of a formula for a processor that this machine need not have."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import re
from numba import float32, int64, uint8
from fractal_streams import StreamSpec
from fractal_streams.render import numba_backend, raster
spec = StreamSpec(formulas={formula!r}, height=8, width=16)
kernel = numba_backend.compiled(raster.Raster.of(spec, spec.parts()[0])).kernel
floats = float32[:, ::1]
kernel.compile((floats, uint8[:, ::1], uint8[:, :, :, ::1], float32[::1], floats, *[int64] * 4))
text = kernel.inspect_asm(kernel.signatures[0])
print(len(re.findall("zmm", text)), len(re.findall("ymm", text)))
"""


def vectors_on_ice_lake(formula: str) -> tuple[int, int]:
    """Registers of 512 and of 256 bits in a formula's kernel for an Ice Lake: compiled for one, none is needed."""
    environment = {**os.environ, "NUMBA_CPU_NAME": "icelake-server", "NUMBA_CPU_FEATURES": ""}
    program = PROGRAM.format(formula=formula)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    wide, narrow = map(int, done.stdout.split())
    return wide, narrow
