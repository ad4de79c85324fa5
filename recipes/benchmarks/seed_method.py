"""The first seed's way of rendering, written anew from its description, to be measured beside ours.

infinite-fractal-stream renders a sample with one kernel launch: real and imaginary parts, the start
values and the empty output are made on the host and copied to the GPU; a program owns 1024 pixels
in a row; all iterations run, with precise pow, atan2, sin and cos; a counter of one byte holds the
visits; the bytes become floats and the samples of a batch are stacked at the end. `get_batch` does
this sample by sample, `full_batch` in one launch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

BLOCK = 1024


@triton.jit
def _kernel(
    re, im, z_re, z_im, alpha, beta, power, frequency, c0, c1, c2, c3, out, radius, pixels, steps, block: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    within = place < pixels
    at = image.to(tl.int64) * pixels + place
    x, y = tl.load(re + at, mask=within), tl.load(im + at, mask=within)
    zr, zi = tl.load(z_re + at, mask=within), tl.load(z_im + at, mask=within)
    a, b, p, f = tl.load(alpha + image), tl.load(beta + image), tl.load(power + image), tl.load(frequency + image)
    p0, p1, p2, p3 = tl.load(c0 + image), tl.load(c1 + image), tl.load(c2 + image), tl.load(c3 + image)
    visits = tl.zeros([block], tl.int8)
    for _ in range(steps):
        wr = p0 + p1 * libdevice.pow(zr, 2) + p2 * libdevice.pow(zr, 3) + p3 * libdevice.pow(zr, 4)
        ur = wr * tl.cos(a) - zi * tl.sin(a)
        ui = wr * tl.sin(a) + zi * tl.cos(a)
        size = libdevice.pow(tl.sqrt(ur * ur + ui * ui), p)
        angle = libdevice.atan2(ui, ur) * p
        zr = size * tl.cos(angle) + x * tl.cos(b) - y * tl.sin(b)
        zi = size * tl.sin(angle) + x * tl.sin(b) + y * tl.cos(b)
        visits += (zr * zr + zi * zi < radius * radius).to(tl.int8)
    t = visits.to(tl.float16) / steps.to(tl.float16) + 1.0
    outside = tl.where(visits < steps, 255.0, 0.0)
    for channel in tl.static_range(3):
        wave = 0.5 + 0.5 * tl.sin(f * t.to(tl.float32) + channel * 2.0943951023931953)
        tl.store(out + (image.to(tl.int64) * 3 + channel) * pixels + place, (outside * wave).to(tl.uint8), mask=within)


def full_batch(seeds: list[int], size: int, steps: int = 30, radius: float = 2.0, device: str = "cuda") -> torch.Tensor:
    """(B, 3, size, size) float32 in [0, 1]: every sample of a list of seeds in one launch."""
    count, pixels = len(seeds), size * size
    generator = torch.Generator().manual_seed(sum(seeds))

    def uniform(scale: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * scale

    alpha, beta, power = uniform(2 * math.pi), uniform(3.0), uniform(5.0)
    coefficients = [uniform(1.0) for _ in range(4)]
    frequency = uniform(10.0)
    axis_x, axis_y = torch.linspace(-1, 1, size), torch.linspace(-1, 1, size)
    real, imaginary = torch.meshgrid(axis_x, axis_y, indexing="ij")
    re, im = real.flatten().repeat(count), imaginary.flatten().repeat(count)
    z_re, z_im = torch.zeros(count * pixels), torch.zeros(count * pixels)
    out = torch.empty(count, 3, size, size, dtype=torch.uint8)
    host = (re, im, z_re, z_im, alpha, beta, power, frequency, *coefficients, out)
    arrays = [array.to(device) for array in host]
    _kernel[(count, triton.cdiv(pixels, BLOCK))](*arrays, radius, pixels, steps, block=BLOCK)
    return arrays[-1].float() / 255.0


def get_batch(first: int, count: int, size: int, steps: int = 30, radius: float = 2.0) -> torch.Tensor:
    """(count, 3, size, size) float32: a launch for each sample, stacked at the end."""
    return torch.stack([full_batch([first + index], size, steps, radius)[0] for index in range(count)])
