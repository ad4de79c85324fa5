"""Distances of pictures that can be trained against: pixels, scales, frequencies, features.

All but `spectral_distance` compare picture b of one batch with picture b of the other. Everything is in float32 with
autocast off; Fourier transforms are orthonormal, so that a spectrum has the pictures' own energy. Blurs are sums of
shifted pictures, exact in float32, where a convolution may round its inputs to 10 bits. (kornia and torchmetrics have
a pyramid and a spectrum of their own; neither is a dependency here, and these are a few lines each.)
"""

from __future__ import annotations

from collections.abc import Sequence

from fractal_streams.recipes.alae.contrast import directions
from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

TINY = 1e-12
"""The least that a difference is divided by (its largest power, features' strength): below it pictures are equal."""
QUIET = 1e-6
"""Power added to a ring of a spectrum before its logarithm: that of steps of a quarter level of 8 bits."""


@full_precision
def absolute_distance(first: Tensor, second: Tensor) -> Tensor:
    """L1: the mean of |x - y| over everything.

    Args:
        first, second: (B, ...) of one shape.
    """
    check_pictures(first, second)
    return (first - second).abs().mean()


@full_precision
def laplacian_distance(first: Tensor, second: Tensor, levels: int = 3) -> Tensor:
    """L1 of two Laplacian pyramids: the sum over bands of the mean of |difference|.

    Means over bands of falling size weigh them by 4 to the level, as in arXiv:1707.05776, section 3.2. The last band is
    what is left after all the others, so a constant shift costs its own size.

    Args:
        first, second: (B, C, H, W) of one shape, both sides at least 2 to the levels.
    """
    check_pictures(first, second, dims=4)
    bands = laplacian_pyramid(first - second, levels)
    return torch.stack([band.abs().mean() for band in bands]).sum()


@full_precision
def laplacian_pyramid(pictures: Tensor, levels: int = 3) -> list[Tensor]:
    """Band-pass pictures, finest first, and what is left: (B, C, H, W), (B, C, H/2, W/2), ... levels + 1 of them.

    Burt and Adelson (1983), with the binomial 1 4 6 4 1. Linear in the pictures; exact to undo (`from_pyramid`).

    Args:
        pictures: (B, C, H, W), both sides at least 2 to the levels.
    """
    check_levels(pictures, levels)
    bands = []
    for _ in range(levels):
        coarse = reduced(pictures)
        bands.append(pictures - expanded(coarse, pictures.shape[-2], pictures.shape[-1]))
        pictures = coarse
    return [*bands, pictures]


@full_precision
def from_pyramid(bands: Sequence[Tensor]) -> Tensor:
    """The pictures of a pyramid."""
    pictures = bands[-1]
    for band in reversed(bands[:-1]):
        pictures = band + expanded(pictures, band.shape[-2], band.shape[-1])
    return pictures


def reduced(pictures: Tensor) -> Tensor:
    """(..., H, W) to half of both sides, rounded up, blurred by 1 4 6 4 1; the edge goes on as it is."""
    for _ in range(2):
        edged = with_edges(pictures, 2)
        size = pictures.shape[-1]
        taps = [edged[..., shift : shift + size : 2] for shift in range(5)]
        pictures = ((taps[0] + taps[4] + 4.0 * (taps[1] + taps[3]) + 6.0 * taps[2]) / 16.0).transpose(-1, -2)
    return pictures


def expanded(pictures: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) to twice both sides, as far as asked; the transpose of `reduced` but for the edges."""
    for size in (width, height):
        edged = with_edges(pictures, 1)
        before, here, after = edged[..., :-2], edged[..., 1:-1], edged[..., 2:]
        between = torch.stack([(before + 6.0 * here + after) / 8.0, (here + after) / 2.0], dim=-1)
        pictures = between.flatten(-2)[..., :size].transpose(-1, -2)
    return pictures


def with_edges(pictures: Tensor, count: int) -> Tensor:
    """The last axis, with its ends repeated; a sum of slices, whose gradient is the same at every run."""
    ends = pictures[..., :1], pictures[..., -1:]
    return torch.cat([*ends[:1] * count, pictures, *ends[1:] * count], dim=-1)


@full_precision
def focal_frequency_distance(first: Tensor, second: Tensor, alpha: float = 1.0) -> Tensor:
    """The mean of w |X - Y|^2 over frequencies, w = (|X - Y| / max |X - Y|)^alpha (arXiv:2012.12821, section 3.3).

    Frequencies that are far off weigh most; the weight has no gradient, and its maximum is that of one picture's
    channel. Where w is 1 everywhere, this is the mean squared error of pixels (Parseval).

    Args:
        first, second: (B, C, H, W) of one shape. alpha: 0 or more; 0 is the mean squared error.

    Example:
        >>> wave = torch.sin(2 * torch.pi * torch.arange(8) / 8).expand(1, 1, 8, 8)
        >>> round(focal_frequency_distance(wave, torch.zeros(1, 1, 8, 8)).item(), 3)
        0.5
    """
    check_pictures(first, second, dims=4)
    apart = torch.fft.fft2(first - second, norm="ortho")
    power = apart.real.square() + apart.imag.square()
    held = power.detach()
    weight = (held / held.amax((-2, -1), keepdim=True).clamp(min=TINY)).pow(alpha / 2.0)
    return (weight * power).mean()


@full_precision
def radial_spectrum(pictures: Tensor) -> Tensor:
    """(min(H, W) // 2,) mean power at frequencies of 1, 2, ... cycles a side, over pictures, channels and directions.

    A frequency belongs to the ring whose radius is nearest to its own; the mean colour (0 cycles) is left out.

    Args:
        pictures: (B, C, H, W); of sides that differ, a frequency is counted in cycles over the shorter.
    """
    height, width = pictures.shape[-2:]
    shorter, device = min(height, width), pictures.device
    found = torch.fft.fft2(pictures, norm="ortho")
    power = (found.real.square() + found.imag.square()).mean(dim=(0, 1))
    down, across = (torch.fft.fftfreq(size, 1.0 / shorter, device=device) for size in (height, width))
    radius = torch.hypot(down[:, None], across).round()
    rings = (radius == torch.arange(1, shorter // 2 + 1, device=device)[:, None, None]).to(power.dtype)
    return (rings * power).sum(dim=(1, 2)) / rings.sum(dim=(1, 2))


def spectral_distance(first: Tensor, second: Tensor) -> Tensor:
    """The mean over rings of the squared difference of log power: how far the sharpness of unpaired sets is apart.

    Takes no notice of which picture is beside which, of phase, of shifts around the edge, or of mean colour. A set that
    is a times as contrasty as the other is (2 ln a)^2 away, up to `QUIET`.

    Args:
        first, second: (B, C, H, W) and (B', C, H, W).
    """
    if first.dim() != 4 or first.shape[1:] != second.shape[1:]:
        raise InvalidValueError(
            f"spectra compare (B, C, H, W) pictures of one size, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    one, other = ((radial_spectrum(each) + QUIET).log() for each in (first, second))
    return (one - other).square().mean()


@full_precision
def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The mean over maps and places of the squared distance of unit feature vectors (after arXiv:1801.03924).

    Without that paper's learned weights of channels, which belong to one downloaded network. 0 to 4; 2 for features
    that have nothing in common. A place without any feature is a zero vector.

    Args:
        first, second: lists of (B, C, H, W) feature maps of a network, of the same shapes.
    """
    check_features(first, second)
    apart = []
    for one, other in zip(first, second, strict=True):
        apart.append((directions(one, dim=1) - directions(other, dim=1)).square().sum(dim=1).mean())
    return torch.stack(apart).mean()


@full_precision
def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The mean over features of |f - g|, in units of the mean |f| + |g| of their map: features and their strength.

    The likelihood of a discriminator's features in place of pixels' (Larsen et al. 2016, arXiv:1512.09300), with a
    Laplace distribution in place of the normal one, as wide as each map's features are large: 0 to 1, whatever the
    network's scale. As in a likelihood each number counts once, so that fine maps weigh more than coarse ones. The unit
    has no gradient.

    Args:
        first, second: lists of (B, C, H, W) feature maps of a network, of the same shapes.
    """
    check_features(first, second)
    total = sum(one.numel() for one in first)
    apart = []
    for one, other in zip(first, second, strict=True):
        strength = (one.abs() + other.abs()).mean().detach()
        apart.append((one - other).abs().mean() / strength.clamp(min=TINY) * (one.numel() / total))
    return torch.stack(apart).sum()


def check_features(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """An `InvalidValueError` unless they are as many maps, of the same shapes, and at least one."""
    if not first or len(first) != len(second):
        raise InvalidValueError(
            f"features must be as many maps of both, at least 1, got {len(first)} and {len(second)}"
        )
    for one, other in zip(first, second, strict=True):
        check_pictures(one, other, dims=4)


def check_pictures(first: Tensor, second: Tensor, dims: int | None = None) -> None:
    """An `InvalidValueError` unless both have one shape, of so many axes."""
    if first.shape != second.shape or (dims is not None and first.dim() != dims):
        raise InvalidValueError(
            f"pictures must pair: two tensors of one shape{'' if dims is None else f' and {dims} axes'}, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def check_levels(pictures: Tensor, levels: int) -> None:
    """An `InvalidValueError` unless the pictures are large enough for so many levels."""
    shortest = min(pictures.shape[-2:])
    if levels < 1 or shortest < 2**levels:
        raise InvalidValueError(
            f"levels must be from 1 to the base-2 logarithm of the shorter side ({shortest} pixels), got {levels}"
        )
