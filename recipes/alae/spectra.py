"""Distances that need no network: of patches at several scales, and of power spectra.

The first is the sliced Wasserstein distance of Karras et al. (2018), "Progressive Growing of GANs", section 5: patches
of 7 x 7 pixels from each level of a Laplacian pyramid, which are told by their distributions along random directions.
The second sees blur and noise at once: the power of each frequency, averaged over directions (Durall et al. 2020,
"Watch your Up-Convolution", section 2.1), in decibels.
"""

from __future__ import annotations

import math
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.alae.pixels import laplacian_pyramid
    from fractal_streams.recipes.loop import seed_named
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PATCH = 7
"""Pixels of a side of a patch."""
PATCHES = 128
"""Of each picture at each level."""
PROJECTIONS = 512
COARSEST = 16
"""Pixels of a side of the last level of a pyramid."""
FEWEST = 2
"""Pictures of a set."""
SMALLEST_POWER = 1e-7
"""Below which a frequency counts as empty; the rounding to 8 bits alone makes 5e-6."""
TOGETHER = 1000
"""Pictures whose patches are cut at once."""
SORTED = 2**25
"""Values that are sorted at once."""


def pyramid(images: Tensor, coarsest: int = COARSEST) -> list[Tensor]:
    """Levels of (N, C, H, W), finest first: what each halving loses, and the last halves themselves.

    Halves follow while an even side has at least 2 * coarsest pixels; see `pixels.laplacian_pyramid`.

    Example:
        >>> [level.shape[-1] for level in pyramid(torch.zeros(1, 3, 64, 64))]
        [64, 32, 16]
    """
    (height, width), levels = images.shape[-2:], 0
    while min(height, width) >= 2 * coarsest and not (height % 2 or width % 2):
        height, width, levels = height // 2, width // 2, levels + 1
    return laplacian_pyramid(images, levels) if levels else [images]


def descriptors(level: Tensor, patches: int, generator: torch.Generator) -> Tensor:
    """(N * patches, C * 7 * 7) patches at random places, each channel with mean 0 and deviation 1 over all of them.

    Args:
        level: (N, C, H, W), of which smaller ones give patches of their own size.
        generator: of a CPU.
    """
    count, channels, height, width = level.shape
    side = min(PATCH, height, width)
    asked = (count * patches,)
    rows = torch.randint(height - side + 1, asked, generator=generator).to(level.device)
    columns = torch.randint(width - side + 1, asked, generator=generator).to(level.device)
    windows = level.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
    parts = []
    for start in range(0, count, TOGETHER):
        here = windows[start : start + TOGETHER]
        places = slice(start * patches, (start + len(here)) * patches)
        parts.append(
            here[torch.arange(len(here)).repeat_interleave(patches).to(level.device), rows[places], columns[places]]
        )
    found = torch.cat(parts)
    mean = found.mean((0, 2, 3), keepdim=True)
    spread = found.std((0, 2, 3), correction=0, keepdim=True)
    return ((found - mean) / spread.clamp_min(1e-8)).flatten(1)


def sliced_wasserstein(first: Tensor, second: Tensor, projections: int, generator: torch.Generator) -> float:
    """The mean over random directions of the 1-Wasserstein distance of two sets' coordinates along them.

    Args:
        first, second: (N, D) both: as many of each. generator: of a CPU.

    Raises:
        InvalidValueError: sets of other shapes.

    Example:
        >>> points = torch.randn(100, 1)
        >>> round(sliced_wasserstein(points, points + 3.0, 5, torch.Generator().manual_seed(0)), 4)
        3.0
    """
    if first.shape != second.shape or first.dim() != 2:
        raise InvalidValueError(
            f"sets must be (N, D) of one shape, got {tuple(first.shape)} and {tuple(second.shape)}: take as many of "
            f"each"
        )
    directions = functional.normalize(torch.randn(projections, first.shape[1], generator=generator), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for part in directions.to(first.device, first.dtype).split(max(1, SORTED // len(first))):
        one, other = ((part @ each.T).sort(dim=1).values for each in (first, second))
        total += (one - other).abs().mean(1).double().sum()
    return float(total) / projections


@torch.no_grad()
def pyramid_distance(
    first: Tensor, second: Tensor, *, seed: int = 0, patches: int = PATCHES, projections: int = PROJECTIONS
) -> dict[str, float]:
    """The sliced Wasserstein distance of two sets of pictures times 1000, at each level of their pyramids.

    Args:
        first, second: (N, C, H, W) both, in [-1, 1], clipped to it. Patches lie at the same places in both sets.

    Returns:
        Pixels of a level's side ("64", "32", "16") to its distance, and their "mean". It is above 0 for two sets of
        one distribution: hold it against that of two sets of real pictures of these counts.

    Raises:
        InvalidValueError: sets of other shapes, or of fewer than 2 pictures.
    """
    check_pictures(first, second)
    parts = [pyramid(each.float().clamp(-1.0, 1.0)) for each in (first, second)]
    found = {}
    for place, levels in enumerate(zip(*parts, strict=True)):
        one, other = (
            descriptors(level, patches, torch.Generator().manual_seed(seed_named("patches", seed, place)))
            for level in levels
        )
        generator = torch.Generator().manual_seed(seed_named("directions", seed, place))
        found[str(min(levels[0].shape[-2:]))] = 1000.0 * sliced_wasserstein(one, other, projections, generator)
    return {**found, "mean": sum(found.values()) / len(found)}


def radial_power(images: Tensor) -> Tensor:
    """(N, K) mean power of 1 to K cycles per picture's shorter side, K below half its pixels; all channels together.

    Of pictures less their means, under a Hann window on both axes, scaled so that white noise has its variance at each
    frequency.

    Args:
        images: (N, C, H, W), at least 4 pixels a side.

    Example:
        >>> radial_power(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 31])
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    if side < 4:
        raise InvalidValueError(f"a spectrum needs pictures of at least 4 pixels a side, got {height} x {width}")
    exact = images.float()
    form: dict[str, Any] = {"dtype": exact.dtype, "device": exact.device}
    window = torch.hann_window(height, **form)[:, None] * torch.hann_window(width, **form)
    window = window / window.square().mean().sqrt()
    centred = exact - exact.mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centred * window, norm="ortho").abs().square().mean(1).flatten(1)
    up, across = torch.fft.fftfreq(height, **form), torch.fft.fftfreq(width, **form)
    rings = (torch.hypot(up[:, None], across) * side).round().long().flatten()
    count = (side + 1) // 2
    sums = power.new_zeros(len(power), int(rings.max()) + 1).index_add_(1, rings, power)
    return sums[:, 1:count] / torch.bincount(rings)[1:count]


def log_spectrum(images: Tensor, batch_size: int = 1000) -> Tensor:
    """(N, K) decibels of `radial_power`: 10 log10; 0 dB is white noise of deviation 1.

    Args:
        images: (N, C, H, W) in [-1, 1], clipped to it.
    """
    parts = [radial_power(part.float().clamp(-1.0, 1.0)) for part in images.split(batch_size)]
    return 10.0 * torch.cat(parts).clamp_min(SMALLEST_POWER).log10()


def spectrum_distance(first: Tensor, second: Tensor) -> float:
    """Decibels, root mean square over frequencies, between the mean log spectra of two sets of pictures.

    Args:
        first, second: (N, C, H, W) and (M, C, H, W), in [-1, 1].

    Raises:
        InvalidValueError: pictures of other sizes, or fewer than 2 in a set.
    """
    check_pictures(first[: len(second)], second[: len(first)])
    apart = log_spectrum(first).mean(0) - log_spectrum(second).mean(0)
    return math.sqrt(float(apart.double().square().mean()))


def check_pictures(first: Tensor, second: Tensor) -> None:
    """An `InvalidValueError` if two sets of pictures can't be compared."""
    if first.shape != second.shape or first.dim() != 4 or len(first) < FEWEST:
        raise InvalidValueError(
            f"pictures must be two sets of (N, C, H, W), N at least {FEWEST}, of one shape: got {tuple(first.shape)} "
            f"and {tuple(second.shape)}"
        )
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise InvalidValueError("pictures must be finite numbers: a NaN or infinity among them means a broken model")
