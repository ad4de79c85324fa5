"""The GPU renderer: generated Triton code, one warp to a tile."""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType

import torch

from fractal_streams.errors import InvalidValueError
from fractal_streams.render import triton_kernel
from fractal_streams.render.bind import flags, generated, module_text, observes
from fractal_streams.render.queue_launch import QueueLauncher, suits
from fractal_streams.render.raster import PixelFormat, Raster

BITS = {"uint8": torch.uint8, "float16": torch.int16, "bfloat16": torch.int16, "float32": torch.int32}
MAX_PROGRAMS = 2**31 - 1
VOTES = (3, 5, 4)
"""Steps between two votes on whether a tile is done; the first that divides the iterations."""
GROUP = 8
"""Steps of a group that is run again from its beginning, a power of two: see `orbit_in_groups`."""


class TritonRenderer:
    """Renders on a GPU, on the current CUDA stream; in Triton's interpreter, on CPU tensors.

    device: "cuda", "cuda:N", or "cpu" for the interpreter (TRITON_INTERPRET=1).
    tile: (height, width) of the pixels that one warp renders, powers of two; None chooses by size.
    """

    def __init__(self, device: str = "cuda", tile: tuple[int, int] | None = None) -> None:
        self.device = torch.device(device)
        self.tile = tile
        self._queue = QueueLauncher(tile)
        self._lookups: dict[PixelFormat, torch.Tensor] = {}

    def render(self, raster: Raster, table: torch.Tensor, pixels: PixelFormat | None = None) -> torch.Tensor:
        """Pictures as `Renderer.render` gives, on the device; the table's values are not checked."""
        pixels = pixels or PixelFormat()
        if table.ndim != 2 or table.shape[0] != len(raster.names) or table.dtype != torch.float32:
            raise InvalidValueError(
                f"a table of {raster.formula.name} with {raster.colouring.name} is ({len(raster.names)}, B) float32, "
                f"got {tuple(table.shape)} {table.dtype}"
            )
        count, height, width = table.shape[1], raster.height, raster.width
        shape = (count, height, width, 3) if pixels.channels_last else (count, 3, height, width)
        out = torch.empty(shape, dtype=BITS[pixels.dtype], device=table.device)
        if not count:
            return out.view(getattr(torch, pixels.dtype))
        lookup = self.lookup(pixels)
        queued = suits(raster)
        tall, wide = self.tile or tile_shape(raster)
        programs = self._queue.programs(raster, count) if queued else count * -(-height // tall) * -(-width // wide)
        vote = min(raster.iterations, next((steps for steps in VOTES if raster.iterations % steps == 0), 4))
        table = table.contiguous()
        if max(programs, table.numel()) > MAX_PROGRAMS:
            raise InvalidValueError(
                f"{count} pictures of {height}x{width} are more than one launch holds: ask for fewer"
            )
        if queued:
            self._queue.launch(raster, table, lookup, out, pixels)
            return out.view(getattr(torch, pixels.dtype))
        compiled(raster).kernel[(programs,)](
            table, lookup, out, count, height, width, raster.supersample, tall, wide, vote,
            pixels.channels_last, pixels.dtype == "uint8", num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        return out.view(getattr(torch, pixels.dtype))

    def lookup(self, pixels: PixelFormat) -> torch.Tensor:
        """The bits of each level on the device, uploaded once."""
        if pixels not in self._lookups:
            signed = {"uint8": "uint8", "float32": "int32"}.get(pixels.dtype, "int16")
            self._lookups[pixels] = torch.from_numpy(pixels.table().view(signed)).to(self.device)
        return self._lookups[pixels]


def tile_shape(raster: Raster) -> tuple[int, int]:
    """(height, width) of a tile: small ones stop early, large ones keep a warp's pipes busy."""
    return (8, 8) if raster.height * raster.width <= 256 * 256 else (16, 8)


@cache
def compiled(raster: Raster) -> ModuleType:
    """The generated module of a raster; its kernel compiles on first use and is cached on disk."""
    return generated("triton", source, raster)


def source(raster: Raster) -> str:
    """The generated module's text."""
    rows = len(raster.names)
    kept = len(raster.accumulators)
    held = "".join(f"tl.where(on, new[{j}], a[{j}]), " for j in range(kept)) or "a[0],"
    first = "".join(f"z - z + FIRST_{j}, " for j in range(kept)) or "z - z,"
    loads = "".join(f"tl.load(table + (image + {j} * stride)), " for j in range(rows))
    helpers = [
        f"def gather(table, image, stride):\n    return ({loads})\n",
        f"def keep(on, new, a):\n    return ({held})\n",
        f"def begin(z):\n    return ({first})\n",
    ]
    if not observes(raster):
        helpers.append("def observe(a, zr, zi, pr, pi, n, p):\n    return a\n")
    written = "\n\n".join("@triton.jit\n" + helper for helper in helpers)
    asked = {*inspect.signature(raster.colouring.paint).parameters}
    switches = flags(raster) | {"FREEZES": bool(asked & {"zr", "zi", "pr", "pi"}) or observes(raster)}
    groups = switches["FREEZES"] and not observes(raster) and not raster.converges
    switches |= {"SPAN": min(GROUP, 1 << raster.iterations.bit_length() - 1) if groups else 0}
    grid = zip(("U0", "U_COLUMN", "U_ROW", "V0", "V_COLUMN", "V_ROW"), raster.grid(), strict=True)
    globals_ = "".join(f"{name} = tl.constexpr({value})\n" for name, value in (*switches.items(), *grid))
    firsts = "".join(
        f"FIRST_{j} = tl.constexpr({float(value)!r})\n" for j, value in enumerate(raster.accumulators.values())
    )
    body = inspect.getsource(triton_kernel)
    body = body[body.index("@triton.jit(") :]
    imports = "from fractal_streams.render.triton_primitives import INTERPRETED, whole\n"
    return f"{imports}{module_text(raster, 'triton')}\n{globals_}{firsts}\n\n{written}\n\n{body}"
