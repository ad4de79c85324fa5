"""Throughput of any stream by size, renderer and pixel format, each gated by parity.

Question: how many pictures a second does this machine make?
Gate: before a size is timed, its pictures are held to the float64 reference, and every format to the
uint8 levels; a failure stops the run before any speed of that size.
Measured: whole `stream.generate` calls, draw and render, warm, the median of three windows. On a CPU
samples per core and second of CPU time, on one thread; on a GPU samples per second by CUDA events.

    fractal-streams bench fractal-10 --sizes 32,64 --dtypes uint8,float16
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.device import resolve_device
from fractal_streams.errors import FractalStreamsError, InvalidValueError
from fractal_streams.presets import find_source, open_stream
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.raster import PixelFormat
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import Stream
from fractal_streams.trainability.streams import PointSpec, TileSpec

RENDERERS = ("reference", "numba", "triton")
SIZES = (32, 64, 256, 512)
CHECKED_PIXELS, CHECKED_SIZE = 2**18, 64
"""Pixels compared with the reference at each size, one picture at least."""
MARGIN = 4
"""Times as often as float32 and float64 disagree with each other that a renderer may leave the reference."""
VISIBLE = 2
"""Levels by which a channel must differ to count."""
CPU_PIXELS, GPU_PIXELS = 2**19, 2**28
"""Of a batch whose size is not given."""
WINDOWS = 3


class ParityError(FractalStreamsError, AssertionError):
    """Pictures that are not the reference's: their speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One measurement.

    size: edge of the pictures, pixels. batch: samples, pictures or clips, in a call.
    rate: samples a second: of CPU time on one core, or of a GPU's time.
    differing, allowed: pixels of `checked` that left the reference, and that may.
    """

    renderer: str
    device: str
    size: int
    dtype: str
    batch: int
    rate: float
    differing: int
    allowed: int
    checked: int


def measure(
    source: Any = "seed-readme",
    *,
    sizes: Iterable[int] = SIZES,
    dtypes: Sequence[str] = ("uint8",),
    renderers: Sequence[str] | None = None,
    device: str = "auto",
    batch: int | None = None,
    seconds: float = 0.5,
) -> list[Throughput]:
    """A row for each size, renderer and dtype.

    Args:
        source: a preset's name or a spec, as `open_stream` takes it.
        renderers: names of `RENDERERS`; None means "numba", and "triton" too where `device` is a GPU.
        device: "auto", "cpu", "cuda" or "cuda:N"; where "triton" runs.
        batch: samples in a call; None fills about 0.5 (CPU) or 268 (GPU) million pixels.
        seconds: of CPU or GPU time in each of three windows, about.

    Raises:
        ParityError: a renderer or format gives other pictures than the reference.
        InvalidValueError, UnknownNameError, DeviceError: names the argument and what is allowed.

    Example:
        >>> row = measure("fractal-10", sizes=[8], renderers=["numba"], device="cpu", seconds=0.001)[0]
        >>> row.size, row.dtype, row.rate > 0
        (8, 'uint8', True)
    """
    spec = find_source(source) if isinstance(source, str) else source
    if isinstance(spec, PointSpec | TileSpec):
        raise InvalidValueError(
            f"{spec.kind} of trainability are trained, not rendered: python -m "
            f"fractal_streams.recipes.benchmarks.trainability measures how many networks a second"
        )
    place = resolve_device(device)
    chosen = tuple(renderers or (("numba",) if place == "cpu" else ("numba", "triton")))
    for name in chosen:
        one_of(name, "renderer", RENDERERS)
    for dtype in dtypes:
        PixelFormat(dtype)  # type: ignore[arg-type]
    if "triton" in chosen and place == "cpu":
        place = resolve_device("cuda")
    if not 0.0 < seconds <= 600.0:
        raise InvalidValueError(f"seconds must lie in (0, 600], got {seconds!r}")
    rows = []
    for size in sizes:
        gates = {name: gate(source, name, place, whole(size, "size", 8, 4096, "pixels"), dtypes) for name in chosen}
        for name in chosen:
            for dtype in dtypes:
                stream = opened(source, name, place, size, dtype)
                count = batch_size(stream, batch)
                rows.append(Throughput(
                    renderer=name, device=stream.device, size=size, dtype=dtype, batch=count,
                    rate=throughput(stream, count, seconds), **gates[name],
                ))  # fmt: skip
    return rows


def opened(source: Any, renderer: str, place: str, size: int, dtype: str = "uint8") -> Stream:
    """The source's stream on a renderer; on a CPU one thread, so that CPU time is a core's."""
    settings = {"dtype": dtype, "height": size, "width": size}
    if renderer == "triton":
        return open_stream(source, device=place, **settings)
    own = NumbaRenderer(threads=1) if renderer == "numba" else ReferenceRenderer()
    return open_stream(source, device="cpu", renderer=own, **settings)


def gate(source: Any, renderer: str, place: str, size: int, dtypes: Sequence[str]) -> dict[str, int]:
    """How many pixels leave the reference, how many may, and of how many; of pictures of 64x64 at most.

    A pixel is computed in the same way in a picture of any size, and many small pictures tell more
    than one large one: where it is smooth, no renderer errs.

    Allowed is `MARGIN` times one more than the number at which the reference in float32 leaves itself
    in float64. Formats other than uint8 must be its levels to the bit.

    Raises:
        ParityError: says what differs.
    """
    size = min(size, CHECKED_SIZE)
    right = open_stream(source, device="cpu", renderer=ReferenceRenderer(), height=size, width=size)
    single = open_stream(
        source, device="cpu", renderer=ReferenceRenderer(precision=np.float32), height=size, width=size
    )  # fmt: skip
    stream = opened(source, renderer, place, size)
    indices = range(max(1, CHECKED_PIXELS // pixels_of(stream)))
    truth = right.generate(indices).images
    found = differing(stream.generate(indices).numpy().images, truth)
    allowed = MARGIN * (differing(single.generate(indices).images, truth) + 1)
    checked = truth.size // 3
    if found > allowed:
        raise ParityError(
            f"{renderer} leaves the reference at {found} of {checked} pixels at {size}x{size}, {allowed} are allowed: "
            f"no speed is given for other pictures"
        )
    levels = stream.generate(range(4)).numpy().images
    for dtype in dtypes:
        other = opened(source, renderer, place, size, dtype)
        bits = other.generate(range(4)).numpy().images
        expected = other.pixels.table()[np.arange(3)[:, None, None], levels]
        if bits.view(expected.dtype).tobytes() != expected.tobytes():
            raise ParityError(f"{renderer} gives {dtype} pictures at {size}x{size} that are not its uint8 levels")
    return {"differing": found, "allowed": allowed, "checked": checked}


def differing(pictures: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> int:
    """Number of pixels at which some channel differs by more than `VISIBLE` levels."""
    gap = np.abs(pictures.astype(np.int16) - reference.astype(np.int16))
    return int((gap.max(axis=-3) > VISIBLE).sum())


def batch_size(stream: Stream, batch: int | None) -> int:
    """Samples in a call: what was asked for, or as many as fill the device."""
    if batch is not None:
        return whole(batch, "batch", 1, 2**24, "samples")
    return max(1, (CPU_PIXELS if stream.device == "cpu" else GPU_PIXELS) // pixels_of(stream))


def pixels_of(stream: Stream) -> int:
    """Pixels of one sample, all frames of a clip."""
    return int(stream.generate(range(1)).numpy().images[0].size) // 3


def throughput(stream: Stream, count: int, seconds: float) -> float:
    """Samples a second, the median of `WINDOWS` windows of about so many seconds."""
    clock = cpu_seconds if stream.device == "cpu" else gpu_seconds
    calls = 0

    def work() -> None:
        nonlocal calls
        stream.generate(range(calls * count, (calls + 1) * count))
        calls += 1

    work()
    once = max(clock(stream.device, work, 1), 1e-6)
    repeats = max(1, round(seconds / once))
    return statistics.median(repeats * count / clock(stream.device, work, repeats) for _ in range(WINDOWS))


def cpu_seconds(device: str, work: Callable[[], Any], repeats: int) -> float:
    """CPU time of the whole process."""
    start = time.process_time()
    for _ in range(repeats):
        work()
    return max(time.process_time() - start, 1e-9)


def gpu_seconds(device: str, work: Callable[[], Any], repeats: int) -> float:
    """Time of the GPU between two CUDA events."""
    import torch

    with torch.cuda.device(device):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        last.synchronize()
    return max(float(first.elapsed_time(last)) / 1e3, 1e-9)
