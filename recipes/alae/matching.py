"""How far two sets of codes are apart as sets, with a gradient: sliced, so that it needs no pairs and no critic."""

from __future__ import annotations

from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@full_precision
def sliced_distance(first: Tensor, second: Tensor, projections: int = 256) -> Tensor:
    """The squared sliced Wasserstein-2 distance, over the second set's variance (after arXiv:1804.01947, section 3).

    The mean over random directions of the squared distance of what both sets have there, in order; times d, over the
    sum of the second set's variances of its d components, which has no gradient. So it does not change with the unit
    of the codes: it is near 1 where the first set is one point in the middle of the second, and for two sets of one
    distribution above 0 by what N draws differ. Directions are drawn with torch's global generator.

    Args:
        first, second: (N, d), N at least 2.

    Raises:
        InvalidValueError: other shapes.

    Example:
        >>> codes = torch.randn(8, 3)
        >>> round(float(sliced_distance(codes.flip(0), codes)), 6), float(sliced_distance(codes * 0 + 9, codes)) > 1
        (0.0, True)
    """
    if first.shape != second.shape or first.dim() != 2 or len(first) < 2:
        raise InvalidValueError(
            f"sets of codes must be two (N, d) of one shape, N at least 2, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    size = first.shape[1]
    across = functional.normalize(torch.randn(size, projections, device=first.device), dim=0)
    one, other = ((codes @ across).sort(dim=0).values for codes in (first, second))
    spread = second.detach().var(dim=0, correction=0).sum()
    return (one - other).square().mean() * size / spread.clamp(min=1e-12)
