"""The CPU renderer: generated Numba code over tiles, on all cores."""

from __future__ import annotations

import inspect
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.render import numba_kernel
from fractal_streams.render.bind import flags, generated, module_text, observes
from fractal_streams.render.fission import WHOLE, Fission, fission
from fractal_streams.render.raster import PixelFormat, Raster, check_table
from fractal_streams.spec import whole

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


class NumbaRenderer:
    """Renders on the CPU.

    threads: None means every core this process may use, or NUMBA_NUM_THREADS of the environment, and one in a
        worker process.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = None if threads is None else whole(threads, "threads", 1, 1024, "threads")

    @property
    def threads(self) -> int:
        """The number in the process that asks: a stream made before its workers is carried into them."""
        if self._threads is not None:
            return self._threads
        if multiprocessing.parent_process() is not None:
            return 1
        asked = os.environ.get("NUMBA_NUM_THREADS", "")
        if asked.isdecimal() and int(asked):
            return int(asked)
        # Only Linux tells which cores a process may use.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def render(
        self, raster: Raster, table: npt.NDArray[np.float32], pixels: PixelFormat | None = None
    ) -> npt.NDArray[Any]:
        """Pictures as `Renderer.render` gives; bfloat16 as its uint16 bits."""
        pixels = pixels or PixelFormat()
        with np.errstate(over="ignore"):  # what float32 can't hold is refused as infinite
            table = np.ascontiguousarray(table, np.float32)
        check_table(raster, table)
        module = compiled(raster)
        lookup = pixels.table()
        count, height, width = table.shape[1], raster.height, raster.width
        shape = (count, height, width, 3) if pixels.channels_last else (count, 3, height, width)
        images = np.empty(shape, lookup.dtype)
        out = images.transpose(0, 3, 1, 2) if pixels.channels_last else images
        fixed = (
            table, lookup, out,
            np.array(raster.grid(), np.float32), np.array(raster.offsets(), np.float32),
        )  # fmt: skip
        threads = self.threads
        tasks = split(count, height, width, threads)
        if len(tasks) == 1 or threads == 1:
            for task in tasks:
                module.kernel(*fixed, *task)
        else:
            list(_pool(threads).map(lambda task: module.kernel(*fixed, *task), tasks))
        return images.view(pixels.dtype) if pixels.dtype in ("float16", "float32") else images


def split(count: int, height: int, width: int, threads: int) -> list[tuple[int, int, int, int]]:
    """(first, last, top, bottom) of each task: runs of pictures, or bands of rows of large ones."""
    if threads == 1 or count == 0:
        return [(0, count, 0, height)] if count else []
    if count >= 4 * threads or count * height * width < 16384:
        size = max(1, -(-count // (8 * threads)))
        return [(first, min(first + size, count), 0, height) for first in range(0, count, size)]
    band = numba_kernel.TILE_HEIGHT * max(1, height // (8 * threads * numba_kernel.TILE_HEIGHT))
    return [
        (image, image + 1, top, min(top + band, height)) for image in range(count) for top in range(0, height, band)
    ]


@cache
def compiled(raster: Raster) -> ModuleType:
    """The generated module of a raster; its kernel compiles on first use and is cached on disk."""
    return generated("numba", source, raster)


def source(raster: Raster) -> str:
    """The generated module's text."""
    rows = len(raster.names)
    kept = [f"s[KEPT + {j} * LANES + k]" for j in range(len(raster.accumulators))]
    new = "".join(f"    {place} = new[{j}] if on else {place}\n" for j, place in enumerate(kept))
    first = "".join(f"    {place} = np.float32(FIRSTS[{j}])\n" for j, place in enumerate(kept))
    helpers = [
        f"def gather(table, b):\n    return ({''.join(f'table[{j}, b], ' for j in range(rows))})\n",
        f"def kept_at(s, k):\n    return ({''.join(f'{place}, ' for place in kept) or 'ZERO,'})\n",
        f"def keep(s, k, on, new):\n{new or '    pass'}\n",
        f"def begin(s, k):\n{first or '    pass'}\n",
    ]
    body = inspect.getsource(numba_kernel)
    body = body[body.index("TILE_HEIGHT =") :]
    if not observes(raster):
        helpers.append("def observe(a, zr, zi, pr, pi, n, p):\n    return (zr,)\n")
    if not raster.formula.interior:
        helpers.append("def interior(cr, ci, p):\n    return False\n")
    text = module_text(raster, "numba")
    step = fission(text) or Fission(0, WHOLE)
    written = "\n\n".join("@numba.njit(nogil=True, forceinline=True, fastmath=FLAGS)\n" + helper for helper in helpers)
    switches = "".join(f"{name} = {value}\n" for name, value in flags(raster).items())
    numbers = f"CACHED = True\nSLOTS = {step.slots}\nONE, ZERO = np.float32(1), np.float32(0)\n"
    numbers += f"ITERATIONS = np.float32({raster.iterations})\n"
    return f"{text}\n{switches}{numbers}\n\n{body}\n\n{step.text}\n\n{written}"


def _pool(threads: int) -> ThreadPoolExecutor:
    """One pool for each process: a forked child must not use its parent's threads."""
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="fractal-streams")
    return _pools[key]
