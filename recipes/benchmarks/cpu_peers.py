"""CPU speed against peers that draw the same pictures, and published renderers that draw others, in one run.

Question: what does this project's CPU renderer gain over what one would write first, and over what was published?
Measured: pictures per core and second of CPU time. One thread, warm, rounds interleaved so that every
contestant sees the same weather; the median of the rounds, and the median of each round's ratio.
Gate: each contestant's pictures are held to the float64 reference first; one that fails stops the run.

    python -m fractal_streams.recipes.benchmarks.cpu_peers --json peers.json

Ours is timed with the draw of labels and parameters; the peers get theirs for nothing. Plain Numba stops an
orbit when it escapes, as ours does; tensor code can't, and iterates all pixels to the end. The renderers of
iterated function systems join at 256x256 (see `ifs_renderer`): their pictures are others, and have a gate of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from fractal_streams.recipes.benchmarks import ifs_renderer

from fractal_streams import StillStream, open_stream
from fractal_streams.errors import FractalStreamsError, missing_extra
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.reference import ReferenceRenderer

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

SIZES = (32, 256)
ROUNDS = 7
SECONDS = 0.4
"""CPU seconds that a contestant's turn lasts, about."""
CHECKED_PIXELS = 2**19
"""Pixels that the gate compares, at each size."""
MARGIN = 4.0
"""Times as often as float32 and float64 disagree with each other that a contestant may leave the reference."""
VISIBLE = 2
"""Levels by which a channel must differ to count."""
CHUNK_PIXELS = 2**16
"""Pixels that the torch peers take at once: tensors that fit the cache, the fastest of 2**12 to 2**21 within 5 %."""
OURS, PLAIN, COMPILED = "fractal-streams", "plain Numba", "torch.compile"
EAGER, COMPLEX = "eager torch, real", "eager torch, complex"
IFS, FILLING, TUNED = "IFS, WACV 2022", "IFS, FractalDB", "IFS, tuned by us"
BARS = {PLAIN: 15.0, COMPILED: 6.0, EAGER: 40.0, COMPLEX: 40.0, IFS: 4.0, FILLING: 4.0, TUNED: 4.0}
"""Ratios that this project means to keep."""
RATES = {32: 20_000, 256: 420}
"""Pictures per core and second that this project means to keep, where vectors are of 512 bits."""
CODES = 32
"""Iterated function systems of each kind that pictures are drawn of, in turns."""

PARAMETERS = ("alpha", "beta", "power", "poly0", "poly1", "poly2", "poly3", "frequency")

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to draw the first n pictures of the stream.

    draw: n to (n, 3, H, W) uint8; chunk: pictures drawn at once, n is a multiple of it.
    """

    draw: Callable[[int], UInt8]
    chunk: int = 1


class ParityError(FractalStreamsError, AssertionError):
    """A contestant's pictures are not the reference's, so its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One contestant at one size.

    per_core_second: pictures, median of the rounds; each, the rounds.
    ratio: how many times as fast ours is, median of the rounds' ratios.
    differing: share of checked pixels that left the reference; allowed: the share that may; None of other pictures.
    """

    size: int
    name: str
    per_core_second: float
    ratio: float
    differing: float | None
    allowed: float | None
    each: tuple[float, ...]


@numba.njit(nogil=True)
def plain_pictures(alpha, beta, power, poly, frequency, iterations, radius, out):  # type: ignore[no-untyped-def]
    """Fill out (B, 3, N, N), a pixel at a time. alpha, beta, power, frequency: (B,); poly: (4, B)."""
    one, half = np.float32(1), np.float32(0.5)
    full, third = np.float32(255), np.float32(2 * math.pi / 3)
    size = out.shape[2]
    limit = np.float32(radius * radius)
    for b in range(out.shape[0]):
        cos_a, sin_a = math.cos(alpha[b]), math.sin(alpha[b])
        cos_b, sin_b = math.cos(beta[b]), math.sin(beta[b])
        for row in range(size):
            y = one - np.float32(2 * row + 1) / np.float32(size)
            for column in range(size):
                x = np.float32(2 * column + 1) / np.float32(size) - one
                cr, ci = x * cos_b - y * sin_b, x * sin_b + y * cos_b
                zr, zi = np.float32(0), np.float32(0)
                count = 0
                while count < iterations:
                    square = zr * zr
                    value = poly[0, b] + square * (poly[1, b] + zr * (poly[2, b] + zr * poly[3, b]))
                    re, im = value * cos_a - zi * sin_a, value * sin_a + zi * cos_a
                    modulus = math.pow(re * re + im * im, half * power[b])
                    angle = power[b] * math.atan2(im, re)
                    zr, zi = modulus * math.cos(angle) + cr, modulus * math.sin(angle) + ci
                    if not zr * zr + zi * zi < limit:
                        break
                    count += 1
                phase = frequency[b] * (np.float32(count) / np.float32(iterations) + one)
                for channel in range(3):
                    wave = half + half * math.sin(phase + np.float32(channel) * third)
                    out[b, channel, row, column] = np.uint8(full * wave) if count < iterations else np.uint8(0)


def torch_pictures(table: torch.Tensor, size: int, iterations: int, radius: float) -> torch.Tensor:
    """(B, 3, size, size) uint8. table: (8, B) float32, the rows of `PARAMETERS`."""
    alpha, beta, power, poly0, poly1, poly2, poly3, frequency = table[:, :, None, None]
    centres = (2.0 * torch.arange(size, dtype=torch.float32) + 1.0) / size - 1.0
    x, y = centres[None, None, :], -centres[None, :, None]
    cr, ci = x * beta.cos() - y * beta.sin(), x * beta.sin() + y * beta.cos()
    cos_a, sin_a = alpha.cos(), alpha.sin()
    zr, zi = torch.zeros_like(cr), torch.zeros_like(cr)
    alive, count = torch.ones_like(cr, dtype=torch.bool), torch.zeros_like(cr)
    for _ in range(iterations):
        square = zr * zr
        value = poly0 + square * (poly1 + zr * (poly2 + zr * poly3))
        re, im = value * cos_a - zi * sin_a, value * sin_a + zi * cos_a
        modulus, angle = (re * re + im * im) ** (0.5 * power), power * torch.atan2(im, re)
        zr, zi = modulus * angle.cos() + cr, modulus * angle.sin() + ci
        alive = alive & (zr * zr + zi * zi < radius * radius)
        count = count + alive
    return torch_colours(count, frequency, iterations)


def torch_complex_pictures(table: torch.Tensor, size: int, iterations: int, radius: float) -> torch.Tensor:
    """As `torch_pictures`, in complex numbers, as the formula reads."""
    alpha, beta, power, poly0, poly1, poly2, poly3, frequency = table[:, :, None, None]
    centres = (2.0 * torch.arange(size, dtype=torch.float32) + 1.0) / size - 1.0
    c = torch.complex(*torch.meshgrid(centres, -centres, indexing="xy")) * torch.exp(1j * beta)
    turn = torch.exp(1j * alpha)
    z = torch.zeros_like(c)
    alive, count = torch.ones_like(c, dtype=torch.bool), torch.zeros_like(c.real)
    for _ in range(iterations):
        x = z.real
        value = poly0 + poly1 * x**2 + poly2 * x**3 + poly3 * x**4
        z = (torch.complex(value, z.imag) * turn) ** power + c
        alive = alive & (z.abs() < radius)
        count = count + alive
    return torch_colours(count, frequency, iterations)


def torch_colours(count: torch.Tensor, frequency: torch.Tensor, iterations: int) -> torch.Tensor:
    """(B, 3, H, W) uint8 of (B, H, W) counts."""
    phase = frequency * (count / iterations + 1.0)
    waves = [0.5 + 0.5 * (phase + channel * 2.0 * math.pi / 3.0).sin() for channel in range(3)]
    return torch.stack([(255.0 * wave * (count < iterations)).to(torch.uint8) for wave in waves], dim=1)


def parameters(stream: StillStream, count: int) -> Float32:
    """(8, count) float32, the rows of `PARAMETERS` for the first pictures of a stream."""
    latents = stream.generate(range(count)).latents
    return np.stack([latents[name] for name in PARAMETERS])


def ours(stream: StillStream) -> Contestant:
    """This project: labels, parameters and pixels."""
    return Contestant(draw=lambda count: stream.generate(range(count)).images)


def plain_numba(stream: StillStream) -> Contestant:
    """The formula as one would write it for Numba, with the functions of `math`."""
    raster = stream.rasters[0]
    table = lru_cache(partial(parameters, stream))

    def draw(count: int) -> UInt8:
        out = np.empty((count, 3, raster.height, raster.width), np.uint8)
        alpha, beta, power, *_, frequency = table(count)
        plain_pictures(alpha, beta, power, table(count)[3:7], frequency, raster.iterations, raster.radius, out)
        return out

    return Contestant(draw=draw)


def torch_peer(stream: StillStream, function: Callable[..., torch.Tensor]) -> Contestant:
    """The formula over whole tensors, in chunks that fit the cache."""
    raster = stream.rasters[0]
    chunk = max(1, CHUNK_PIXELS // (raster.height * raster.width))
    table = lru_cache(partial(parameters, stream))

    def draw(count: int) -> UInt8:
        with torch.inference_mode():
            parts = torch.from_numpy(table(count)).split(chunk, dim=1)
            drawn = [function(part.contiguous(), raster.height, raster.iterations, raster.radius) for part in parts]
            return torch.cat(drawn).numpy()

    return Contestant(draw=draw, chunk=chunk)


def contestants(size: int) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Name to contestant, and name to reason for those that are absent here."""
    stream = peer_stream(size)
    found = {
        OURS: ours(stream), PLAIN: plain_numba(stream),
        EAGER: torch_peer(stream, torch_pictures), COMPLEX: torch_peer(stream, torch_complex_pictures),
    }  # fmt: skip
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        return found, {COMPILED: "no C++ compiler on the path"}
    found[COMPILED] = torch_peer(stream, torch.compile(torch_pictures, dynamic=False))
    return found, {}


def others(size: int) -> dict[str, Contestant]:
    """Published renderers of other pictures of this size, behind their own gate."""
    if size != ifs_renderer.SIZE:
        return {}
    random = np.random.default_rng(0)
    contractive = [ifs_renderer.contractive_code(random) for _ in range(CODES)]
    filling = [ifs_renderer.filling_code(random) for _ in range(CODES)]
    ifs_renderer.check(contractive, filling)
    return {
        IFS: Contestant(draw=partial(ifs_renderer.published, contractive)),
        FILLING: Contestant(draw=partial(ifs_renderer.published, filling, coloured=False)),
        TUNED: Contestant(draw=partial(ifs_renderer.tuned, contractive)),
    }


def peer_stream(size: int) -> StillStream:
    """The benchmark's stream: `seed-readme`, 30 iterations, one thread."""
    stream = open_stream(
        "seed-readme", seed=0, device="cpu", height=size, width=size, iterations=30, renderer=NumbaRenderer(threads=1)
    )
    assert isinstance(stream, StillStream)
    return stream


def differing(pictures: UInt8, reference: UInt8) -> float:
    """Share of pixels at which some channel differs by more than `VISIBLE` levels."""
    gap = np.abs(pictures.astype(np.int16) - reference.astype(np.int16))
    return float((gap.max(axis=1) > VISIBLE).mean())


def gate(size: int, drawn: dict[str, Contestant], pixels: int) -> tuple[dict[str, float], float]:
    """Each contestant's share of pixels that leave the reference, and the share allowed.

    Allowed is `MARGIN` times the share at which the reference, run in float32, leaves itself run in
    float64, and one pixel.

    Raises:
        ParityError: a contestant leaves it more often.
    """
    stream = peer_stream(size)
    count = max(1, pixels // size**2, *(contestant.chunk for contestant in drawn.values()))
    raster = stream.rasters[0]
    latents = stream.generate(range(count)).latents
    table = np.stack([latents[name] for name in raster.names])
    reference = ReferenceRenderer().render(raster, table)
    single = ReferenceRenderer(precision=np.float32).render(raster, table)
    allowed = MARGIN * differing(single, reference) + 1.0 / (count * size**2)
    shares = {name: differing(contestant.draw(count), reference) for name, contestant in drawn.items()}
    for name, share in shares.items():
        if share > allowed:
            raise ParityError(
                f"{name} differs from the reference at {share:.3%} of {count} pictures' pixels at {size}x{size}, "
                f"{allowed:.3%} are allowed: no speed is given for other pictures"
            )
    return shares, allowed


def race(drawn: dict[str, Contestant], rounds: int, seconds: float) -> dict[str, tuple[float, ...]]:
    """Pictures per second of CPU time of each contestant in each round, turns interleaved."""
    counts = {name: turn_length(contestant, seconds) for name, contestant in drawn.items()}
    rates: dict[str, list[float]] = {name: [] for name in drawn}
    for _ in range(rounds):
        for name, contestant in drawn.items():
            rates[name].append(rate(contestant, counts[name]))
    return {name: tuple(values) for name, values in rates.items()}


def turn_length(contestant: Contestant, seconds: float) -> int:
    """How many pictures take about that many CPU seconds, in whole chunks; warms everything up on the way."""
    chunks = 1
    contestant.draw(contestant.chunk)
    while (spent := chunks * contestant.chunk / rate(contestant, chunks * contestant.chunk)) < seconds / 4:
        chunks *= 4
    count = max(1, round(chunks * seconds / spent)) * contestant.chunk
    contestant.draw(count)
    return count


def rate(contestant: Contestant, count: int) -> float:
    """Pictures per second of CPU time over one call."""
    start = time.process_time()
    contestant.draw(count)
    return count / max(time.process_time() - start, 1e-9)


def measure(size: int, rounds: int = ROUNDS, seconds: float = SECONDS) -> tuple[list[Speed], dict[str, str]]:
    """Gate and race at one size; the speeds, and the absent contestants' reasons."""
    drawn, absent = contestants(size)
    if COMPILED in drawn:
        try:
            drawn[COMPILED].draw(drawn[COMPILED].chunk)
        except RuntimeError as error:
            absent[COMPILED] = str(error).strip().splitlines()[0]
            del drawn[COMPILED]
    shares, allowed = gate(size, drawn, CHECKED_PIXELS)
    rates = race(drawn | others(size), rounds, seconds)
    speeds = [
        Speed(
            size=size, name=name, per_core_second=statistics.median(each),
            ratio=statistics.median(mine / theirs for mine, theirs in zip(rates[OURS], each, strict=True)),
            differing=shares.get(name), allowed=allowed if name in shares else None, each=each,
        )
        for name, each in rates.items()
    ]  # fmt: skip
    return speeds, absent


def hardware() -> dict[str, str]:
    """What this ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = set(cpu.get("flags", "").split())
    vectors = "AVX-512" if "avx512f" in features else "AVX2" if "avx2" in features else "no AVX2 seen"
    return {
        "cpu": f"{cpu.get('model name', platform.machine())}, {vectors}",
        "python": platform.python_version(), "numba": numba.__version__, "torch": torch.__version__,
    }  # fmt: skip


def table_text(speeds: Sequence[Speed], absent: dict[str, str]) -> str:
    """A line for each contestant and size."""
    lines = [f"{'size':>5}  {'':<20} {'pictures/core-s':>15} {'ours is':>8}  {'aim':>7}  pixels that differ (allowed)"]
    for speed in speeds:
        if speed.name == OURS:
            ratio, aim = "", f"{RATES[speed.size]:,}" if speed.size in RATES else ""
            missed = speed.per_core_second < RATES.get(speed.size, 0)
        else:
            ratio, aim, missed = f"{speed.ratio:.1f}x", f"{BARS[speed.name]:.0f}x", speed.ratio < BARS[speed.name]
        apart = "other pictures" if speed.differing is None else f"{speed.differing:.4%} ({speed.allowed:.4%})"
        lines.append(
            f"{speed.size:>5}  {speed.name:<20} {speed.per_core_second:>15,.1f} {ratio:>8}  {aim:>7}  {apart}"
            f"{', missed' if missed else ''}"
        )
    return "\n".join([*lines, *(f"absent: {name} ({reason})" for name, reason in absent.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="edges of the pictures, pixels")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="CPU seconds of a turn, about")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    speeds: list[Speed] = []
    absent: dict[str, str] = {}
    for size in asked.sizes:
        measured, missing = measure(size, asked.rounds, asked.seconds)
        speeds += measured
        absent |= missing
    print(", ".join(f"{name} {value}" if name != "cpu" else value for name, value in hardware().items()))
    print(table_text(speeds, absent))
    if asked.json:
        figures = {"hardware": hardware(), "absent": absent, "speeds": [asdict(speed) for speed in speeds]}
        written = asked.json.with_suffix(".tmp")
        written.write_text(json.dumps(figures, indent=2) + "\n")
        written.replace(asked.json)


if __name__ == "__main__":
    main()
