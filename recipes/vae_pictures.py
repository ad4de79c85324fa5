"""The pictures of `recipes.vae`: reconstructions, prior samples, latent traversals, rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fractal_streams.contact_sheet import contact_sheet, save_png, whole_file
from fractal_streams.errors import missing_extra

try:
    import torch
    from fractal_streams.recipes.models.autoencoders import Autoencoder
    from matplotlib.figure import Figure
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

UInt8 = npt.NDArray[np.uint8]
ACROSS = 10
"""Pictures in a row."""
STEPS = torch.linspace(-3.0, 3.0, 9)
"""Of a traversal: deviations of the prior."""
WIDEST = 8
"""Latents of a traversal: those with the most information."""


def levels(images: Tensor) -> UInt8:
    """(N, 3, H, W) uint8 of pictures in [-1, 1]; what lies outside is clipped."""
    found: UInt8 = ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return found


def save_rows(path: Path, sides: Mapping[str, Tensor], title: str) -> None:
    """Rows of pictures, each with what was made of them below.

    Args:
        sides: caption to (N, 3, H, W), the originals first.
    """
    parts = zip(*(side.split(ACROSS) for side in sides.values()), strict=True)
    rows = [row for several in parts for row in zip(sides, several, strict=True)]
    captions = [name for name, row in rows for _ in row]
    shown = levels(torch.cat([row.float() for _, row in rows]))
    save_png(path, contact_sheet(shown, captions, title=title, columns=min(ACROSS, len(rows[0][1]))))


def save_prior_samples(path: Path, model: Autoencoder, count: int, title: str) -> None:
    """Pictures of codes that are drawn from the prior."""
    device = model.log_scale.device
    codes = torch.randn(count, model.latent_size, device=device)
    save_png(path, contact_sheet(levels(model.decode(codes)), title=title, columns=ACROSS))


def save_traversals(path: Path, model: Autoencoder, image: Tensor, information: Tensor, title: str) -> None:
    """A row for each latent that holds most: the picture's mean code with that one from -3 to 3.

    Args:
        image: (3, H, W). information: (latent_size,), mean KL of each latent, nats.
    """
    mean = model.encode(image[None])[0]
    chosen = information.argsort(descending=True)[:WIDEST].tolist()
    codes = mean.repeat(len(chosen) * len(STEPS), 1)
    for row, latent in enumerate(chosen):
        codes[row * len(STEPS) : (row + 1) * len(STEPS), latent] = STEPS.to(mean)
    captions = [
        f"{called(latent, model.latent_shape)}: {information[latent]:.2f} nats" if place == 0 else f"{step:+.2f}"
        for latent in chosen
        for place, step in enumerate(STEPS.tolist())
    ]
    save_png(path, contact_sheet(levels(model.decode(codes)), captions, title=title, columns=len(STEPS)))


def called(latent: int, shape: tuple[int, ...]) -> str:
    """A latent by its place in a code.

    Example:
        >>> called(21, (4, 4, 4)), called(21, (64,))
        ('z 1,1,1', 'z 21')
    """
    return "z " + ",".join(str(int(place)) for place in np.unravel_index(latent, shape))


@dataclass(frozen=True, kw_only=True)
class Point:
    """Rate, bits per pixel, and distortion, PSNR in dB, of one β; and how it came there while it was trained."""

    beta: float
    rate: float
    psnr: float
    trail: tuple[tuple[float, float], ...] = ()


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio, dB, of the mean squared error of a value of pictures in [-1, 1].

    Example:
        >>> psnr(0.04)
        20.0
    """
    return 10.0 * math.log10(4.0 / max(squared_error, 1e-12))


def linear_code(variances: npt.ArrayLike, kept: int, rate: float, values: int) -> float:
    """Mean squared error of a value that the best linear code of a number of components leaves at a rate.

    The rate is shared by reverse water-filling over the first components, as for a normal source of this covariance
    (Cover and Thomas 2006, Elements of Information Theory, 10.3.3); the others are not coded.

    Args:
        variances: of all principal components, falling. kept: components that are coded.
        rate: nats per picture, 0 or more. values: of a picture, 3 H W.

    Example:
        >>> linear_code([4.0, 1.0], 2, 0.0, 2), linear_code([4.0, 1.0], 2, 2 * math.log(2), 2)
        (2.5, 0.5)
    """
    spectrum = np.asarray(variances, dtype=np.float64)
    coded = spectrum[:kept][spectrum[:kept] > 0.0]
    left = float(spectrum[kept:].sum())
    for count in range(len(coded), 0, -1):
        water = math.exp(float(np.log(coded[:count]).mean()) - 2.0 * rate / count)
        if water <= coded[count - 1]:
            return (count * water + float(coded[count:].sum()) + left) / values
    return (float(coded.sum()) + left) / values


def draw_rate_distortion(
    path: Path, points: Sequence[Point], shape: tuple[int, ...], title: str, variances: npt.ArrayLike | None, kept: int
) -> None:
    """PSNR against bits per pixel: each β with its way there, and the best linear codes of the same pixels.

    Args:
        shape: of a picture, (3, H, W). variances: of its principal components in [-1, 1], or None.
        kept: numbers of a code.
    """
    pixels, values = shape[1] * shape[2], math.prod(shape)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    most = 1.15 * max(point.rate for point in points) + 1e-3
    grid = np.linspace(0.0, most, 80)
    curves: Mapping[str, tuple[int, str]] = {
        f"best linear code, {kept} components": (kept, "--"),
        "best linear code, all components": (values, ":"),
    }
    spectrum = np.empty(0) if variances is None else np.asarray(variances)
    for name, (count, dashes) in curves.items() if len(spectrum) else ():
        errors = [linear_code(spectrum, count, rate * math.log(2) * pixels, values) for rate in grid]
        axes.plot(grid, [psnr(error) for error in errors], dashes, color="0.45", label=name)
    ordered = sorted(points, key=lambda point: point.rate)
    axes.plot([point.rate for point in ordered], [point.psnr for point in ordered], color="C0", linewidth=1)
    for place, point in enumerate(points):
        if len(point.trail) > 1:
            axes.plot(*zip(*point.trail, strict=True), "-", color=f"C{place % 10}", alpha=0.35, linewidth=1)
        axes.plot([point.rate], [point.psnr], "o", color=f"C{place % 10}", label=f"VAE, β = {point.beta:g}")
    axes.set(
        xlabel="rate, bits per pixel (KL to the prior)", ylabel="PSNR of the reconstruction, dB", title=title,
        xlim=(0.0, most),
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))
