"""How far generated pictures are from real ones, on features of a network that was trained on the stream.

The Fréchet distance falls with the number of pictures even between two sets of the same kind; so it means something
beside that of two halves of real pictures, of the same counts. The kernel distance has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Features = Callable[[Tensor], Tensor]
"""(B, 3, H, W) normalised pictures to (B, D)."""
BLOCKS = 10
FEWEST = 2 * BLOCKS
"""Features of a set that a kernel distance takes."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """frechet, kernel: squared distances, 0 for equal distributions; samples: of each set.

    kernel_error: standard error of the kernel distance.
    """

    frechet: float
    kernel: float
    kernel_error: float
    samples: int


def distance(first: Tensor, second: Tensor) -> Distance:
    """Both distances between (N, D) and (N, D) features.

    Raises:
        InvalidValueError: fewer than 20 in a set, different counts or widths, or a value that is not finite.
    """
    if first.shape != second.shape or first.dim() != 2 or len(first) < FEWEST:
        raise InvalidValueError(
            f"features must be two sets of (N, D), N at least {FEWEST}, of one shape: as many of each, since the "
            f"Fréchet distance depends on how many; got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    kernel, kernel_error = kernel_distance(first, second)
    return Distance(
        frechet=frechet_distance(first, second), kernel=kernel, kernel_error=kernel_error, samples=len(first)
    )


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """That of the Gaussians with the sets' means and covariances (Heusel et al. 2017, equation 6).

    Args:
        first, second: (N, D) and (M, D), in float64 from here on.
    """
    check_finite(first, second)
    one, other = first.double(), second.double()
    return gaussian_distance(one.mean(0), torch.cov(one.T), other.mean(0), torch.cov(other.T))


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The squared 2-Wasserstein distance of two Gaussians: |m - n|^2 + tr(C + D - 2 (C^1/2 D C^1/2)^1/2).

    Args:
        mean, other_mean: (D,). covariance, other_covariance: (D, D), symmetric, no eigenvalue below 0.

    Example:
        >>> one, two = torch.ones(3), torch.eye(3)
        >>> round(gaussian_distance(0 * one, two, 2 * one, 4 * two), 6)
        15.0
    """
    one, other = covariance.double(), other_covariance.double()
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0.0).sqrt().sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    return float(apart + one.trace() + other.trace() - 2.0 * mixed)


def kernel_distance(first: Tensor, second: Tensor, blocks: int = BLOCKS) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy of the kernel (x.y / D + 1)^3, and its standard error.

    Bińkowski et al. (2018), section 4. The mean over disjoint blocks of both sets, of which the error is told too; it
    may be below 0.

    Args:
        first, second: (N, D) and (M, D), at least two rows of each in a block; a rest is left out.
    """
    check_finite(first, second)
    sizes = [len(each) // blocks for each in (first, second)]
    if min(sizes) < 2:
        raise InvalidValueError(
            f"{blocks} blocks need {2 * blocks} features of each set, got {len(first), len(second)}"
        )
    parts = [
        each[: size * blocks].double().reshape(blocks, size, -1)
        for each, size in zip((first, second), sizes, strict=True)
    ]
    found = torch.stack([discrepancy(one, other) for one, other in zip(*parts, strict=True)])
    return float(found.mean()), float(found.std() / blocks**0.5)


def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimate from all pairs of (N, D) and (M, D); pairs of a row with itself are left out."""

    def within(rows: Tensor) -> Tensor:
        values = polynomial(rows, rows)
        return (values.sum() - values.diagonal().sum()) / (len(rows) * (len(rows) - 1))

    return within(first) + within(second) - 2.0 * polynomial(first, second).mean()


def polynomial(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1.0) ** 3


def levels(pictures: Tensor) -> Tensor:
    """uint8 pictures from those in [-1, 1], rounded to the nearest level."""
    return (pictures.float() * 127.5 + 127.5).round().clamp(0.0, 255.0).to(torch.uint8)


@torch.no_grad()
def features_of(
    pictures: Tensor, network: Features, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 500
) -> Tensor:
    """(N, D) float64 features of (N, 3, H, W) uint8 pictures.

    Args:
        mean, std: of the channels, levels in [0, 1]: the form in which the network knows pictures.
    """
    centre, spread = (torch.tensor(each, device=pictures.device).reshape(3, 1, 1) for each in (mean, std))
    with torch.autocast(pictures.device.type, enabled=False):
        found = [network((part.float() / 255.0 - centre) / spread).double() for part in pictures.split(batch_size)]
    return torch.cat(found)


def check_finite(*sets: Tensor) -> None:
    """An `InvalidValueError` if a feature is no finite number."""
    for each in sets:
        if not bool(each.isfinite().all()):
            raise InvalidValueError(
                "features must be finite numbers: a NaN or infinity among them means a broken model"
            )
