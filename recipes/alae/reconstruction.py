"""How near a picture's reconstruction is to it, and to what it has to be held: simpler codes of the same pictures.

Pictures are in [-1, 1], clipped to it; so the peak is 2. A ratio of a squared error sums both over all pictures: an
average of decibels would be led by the few that are nearly one colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fractal_streams.recipes.probe import Principal, principal_components

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.alae.spectra import log_spectrum
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PEAK = 2.0
"""From the darkest to the lightest value."""
WINDOW = 11
"""Pixels of a side of the structural similarity's window, a Gaussian of deviation 1.5."""
DEVIATION = 1.5
FINEST = 10.0 * math.log10(12.0 * 255.0**2)
"""Decibels of the error that is left by rounding to 255 steps, 58.9: no picture counts as nearer than that."""
BOX = 8
"""Values along each side of the box baseline."""


def clipped(images: Tensor) -> Tensor:
    """Float32 pictures in [-1, 1]."""
    return images.float().clamp(-1.0, 1.0)


def squared_errors(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(B,) float64: mean over a picture's values, of pictures (B, ...) that are clipped to [-1, 1].

    Raises:
        InvalidValueError: other shapes, no pictures, or a value that is no finite number.
    """
    if images.shape != reconstructions.shape or not len(images):
        raise InvalidValueError(
            f"a reconstruction must have its picture's shape: got {tuple(images.shape)} and "
            f"{tuple(reconstructions.shape)}"
        )
    if not bool(images.isfinite().all() and reconstructions.isfinite().all()):
        raise InvalidValueError("pictures must be finite numbers: a NaN or infinity among them means a broken model")
    return (clipped(images) - clipped(reconstructions)).square().flatten(1).double().mean(1)


def decibels(squared_error: float) -> float:
    """Peak signal-to-noise ratio, dB, of a mean squared error; infinite of none.

    Example:
        >>> round(decibels(0.04), 6), decibels(0.0)
        (20.0, inf)
    """
    return 10.0 * math.log10(PEAK**2 / squared_error) if squared_error > 0.0 else math.inf


def psnr(images: Tensor, reconstructions: Tensor) -> float:
    """Decibels of the mean squared error over all values of pictures (B, ...)."""
    return decibels(float(squared_errors(images, reconstructions).mean()))


def median_psnr(images: Tensor, reconstructions: Tensor) -> float:
    """Decibels that half of the pictures are above."""
    return decibels(float(squared_errors(images, reconstructions).median()))


def picture_psnr(images: Tensor, reconstructions: Tensor) -> float:
    """The mean over pictures of each one's decibels, of which one that is met exactly has `FINEST`."""
    return decibels_each(squared_errors(images, reconstructions))


def decibels_each(errors: Tensor) -> float:
    return float((10.0 * torch.log10(PEAK**2 / errors)).clamp(max=FINEST).mean())


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(B,) float32 structural similarity, 1 of equal pictures: Wang et al. (2004), equation 13.

    Of pictures (B, C, H, W); the mean over channels and all places where the Gaussian window of 11 x 11 pixels lies
    inside the picture, with the paper's constants (0.01 and 0.03 of the peak, squared).

    Raises:
        InvalidValueError: pictures that are smaller than the window, or of other shapes.
    """
    if images.shape != reconstructions.shape or images.dim() != 4 or min(images.shape[-2:]) < WINDOW:
        raise InvalidValueError(
            f"structural similarity is of two (B, C, H, W) of one shape, H and W at least {WINDOW}: got "
            f"{tuple(images.shape)} and {tuple(reconstructions.shape)}"
        )
    one, other, channels = clipped(images), clipped(reconstructions), images.shape[1]
    places = torch.arange(WINDOW, dtype=one.dtype, device=one.device) - (WINDOW - 1) / 2
    taps = torch.exp(-0.5 * (places / DEVIATION).square())
    taps = taps / taps.sum()

    def mean(values: Tensor) -> Tensor:
        rows = functional.conv2d(values, taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return functional.conv2d(rows, taps.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    here, there = mean(one), mean(other)
    spread, other_spread = mean(one * one) - here * here, mean(other * other) - there * there
    shared = mean(one * other) - here * there
    small, large = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    likeness = (2 * here * there + small) / (here * here + there * there + small)
    return (likeness * (2 * shared + large) / (spread + other_spread + large)).flatten(1).mean(1)


def spectrum_error(images: Tensor, reconstructions: Tensor) -> float:
    """Decibels, root mean square over frequencies, between a picture's log spectrum and its reconstruction's; the mean.

    Args:
        images, reconstructions: (B, C, H, W), at least 4 pixels a side.
    """
    squared_errors(images, reconstructions)
    apart = log_spectrum(images) - log_spectrum(reconstructions)
    return float(apart.double().square().mean(1).sqrt().mean())


def matched_ratio(images: Tensor, reconstructions: Tensor) -> float:
    """MSE(x, G(E x)) / MSE(x, G(E x')), x' the next picture: 0 is perfect, 1 is a reconstruction that says nothing.

    As of BiGAN (Donahue et al. 2017, code). Mean colours alone make it less than 1.

    Args:
        images, reconstructions: (B, ...), B at least 2, in an order that means nothing.

    Raises:
        InvalidValueError: one picture, or mismatched reconstructions without an error.

    Example:
        >>> pictures = torch.tensor([[0.0], [1.0]])
        >>> matched_ratio(pictures, pictures), matched_ratio(pictures, pictures * 0 + 0.5)
        (0.0, 1.0)
    """
    if len(images) < 2:
        raise InvalidValueError(f"a mismatched reconstruction needs 2 pictures, got {len(images)}")
    matched = float(squared_errors(images, reconstructions).mean())
    mismatched = float(squared_errors(images, reconstructions.roll(1, 0)).mean())
    if mismatched == 0.0:
        raise InvalidValueError(
            "reconstructions tell nothing where mismatched ones are perfect too: take other pictures"
        )
    return matched / mismatched


def mean_colour(images: Tensor) -> Tensor:
    """(B, C, H, W): each picture in its own mean colour."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def box(images: Tensor, side: int = BOX) -> Tensor:
    """(B, C, H, W): the means of side x side boxes that tile each picture.

    Raises:
        InvalidValueError: a picture that they don't tile.
    """
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise InvalidValueError(f"{side} boxes a side can't tile {height} x {width} pixels")
    means = functional.avg_pool2d(images.float(), (height // side, width // side))
    return means.repeat_interleave(height // side, 2).repeat_interleave(width // side, 3)


def principal(known: Tensor, count: int) -> Principal:
    """The `count` principal components of pictures (N, C, H, W); see `from_components`.

    Raises:
        InvalidValueError: more than N - 1 or than a picture's values.
    """
    return principal_components(clipped(known).flatten(1), count)


def from_components(components: Principal, images: Tensor) -> Tensor:
    """(B, C, H, W): what is left of pictures in so many principal components."""
    rows = clipped(images).flatten(1)
    return (components.mean + components(rows) @ components.components.T).reshape(images.shape)


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near reconstructions are to their pictures.

    psnr: dB, of the mean squared error over all pictures. median_psnr: dB, that half of the pictures are above.
    picture_psnr: mean of the pictures' own, see the function; above psnr, as it forgives those that are far off.
    ssim: mean structural similarity; None of pictures smaller than its window. spectrum_error: dB, see the function.
    """

    psnr: float
    median_psnr: float
    picture_psnr: float
    ssim: float | None
    spectrum_error: float


def nearness(images: Tensor, reconstructions: Tensor, batch_size: int = 1000) -> Nearness:
    """All figures of (N, C, H, W) pictures and their reconstructions."""
    errors = squared_errors(images, reconstructions)
    similar = None
    if min(images.shape[-2:]) >= WINDOW:
        pairs = zip(images.split(batch_size), reconstructions.split(batch_size), strict=True)
        similar = float(torch.cat([ssim(one, other) for one, other in pairs]).double().mean())
    return Nearness(
        psnr=decibels(float(errors.mean())), median_psnr=decibels(float(errors.median())),
        picture_psnr=decibels_each(errors), ssim=similar, spectrum_error=spectrum_error(images, reconstructions),
    )  # fmt: skip


@torch.no_grad()
def through(
    images: Tensor, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """(N, d) float32 codes of (N, C, H, W) pictures, and (N, C, H, W) float32 pictures of these codes.

    Args:
        decode: adds no noise.
    """
    codes = torch.cat([encode(part).float() for part in images.split(batch_size)])
    return codes, torch.cat([decode(part).float() for part in codes.split(batch_size)])
