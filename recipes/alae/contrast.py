"""Contrastive terms: a code has to be told from the other codes of its batch, not only to lie near its pair.

All are the cross-entropy of cosines over a temperature, with the pair on the diagonal: three lines of torch, so that no
library is asked for (pytorch-metric-learning has NT-Xent with labels, which it reads on the host, a stop in every
step). Norms and exponentials are taken in float32 with autocast off. Rows pair by position; a caller that permutes one
side gets another loss, and a test holds that it is a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SHORTEST = 1e-4
"""Vectors shorter than this are divided by it instead of by their length, so that a dead one has a finite gradient."""


def directions(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors over their length: unit ones, but those shorter than `SHORTEST`, which stay proportionally short.

    Args:
        vectors: (..., d) floats. dim: the axis of components.

    Example:
        >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return vectors * vectors.square().sum(dim, keepdim=True).clamp(min=SHORTEST**2).rsqrt()


@full_precision
def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE: the mean of -log softmax_j(cos(q_i, k_j) / temperature) at j = i (arXiv:1807.03748, equation 4).

    ln B where nothing tells the pairs apart; log(1 + (B - 1) exp(-1 / temperature)) for orthogonal codes.

    Args:
        queries, keys: (B, d), B at least 2; row i of one is the pair of row i of the other, all else is negative.

    Example:
        >>> bool(info_nce(torch.eye(4), torch.eye(4)) < info_nce(torch.eye(4), torch.eye(4).roll(1, 0)))
        True
    """
    check_pairs(queries, keys, dims=2)
    logits = directions(queries) @ directions(keys).T / temperature
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@full_precision
def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of two views: each of 2B codes has to find its other view among 2B - 1 (arXiv:2002.05709, equation 1).

    Args:
        first, second: (B, d), B at least 2; row i of both shows the same picture.
    """
    check_pairs(first, second, dims=2)
    codes = directions(torch.cat([first, second]))
    place = torch.arange(len(codes), device=codes.device)
    logits = (codes @ codes.T / temperature).masked_fill(place[:, None] == place, -torch.inf)
    return functional.cross_entropy(logits, place.roll(len(first)))


@full_precision
def patch_nce(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """PatchNCE: a place of one picture has to find itself among the places of its pair (arXiv:2007.15651, section 3).

    Negatives are the other places of the same picture, never another picture's.

    Args:
        queries, keys: (B, S, c) features at S places, S at least 2, aligned: the same picture and place at (b, s).
    """
    check_pairs(queries, keys, dims=3)
    count, places = queries.shape[:2]
    logits = directions(queries) @ directions(keys).transpose(1, 2) / temperature
    found = torch.arange(places, device=logits.device).expand(count, places)
    return functional.cross_entropy(logits.flatten(0, 1), found.flatten())


def drawn_places(count: int, size: int, places: int, device: torch.device) -> Tensor:
    """(B, S) int64 places of each of B pictures, without repetition; drawn with torch's global generator.

    Args:
        count: B. size: places to choose from, H times W. places: S; all of them where there are no more.
    """
    return torch.rand(count, size, device=device).topk(min(places, size), dim=1).indices


def features_at(features: Tensor, places: Tensor) -> Tensor:
    """(B, S, C) features of a (B, C, H, W) map at (B, S) places, row by row."""
    rows = features.flatten(2).transpose(1, 2)
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))


def patches_of(
    generated: Sequence[Tensor], real: Sequence[Tensor], places: int = 128
) -> tuple[list[Tensor], list[Tensor]]:
    """(B, S, C) features of each map at drawn places, the same places in both.

    As they are, without a projection: E's maps are normalised, each channel of each picture, so that cosines tell them
    apart, and nothing is left to be trained that an optimiser might not know of.

    Args:
        generated, real: (B, C, H, W) maps of aligned pictures, of the same shapes.
    """
    queries, keys = [], []
    for one, other in zip(generated, real, strict=True):
        check_pairs(one, other, dims=4)
        chosen = drawn_places(len(one), one.shape[2] * one.shape[3], places, one.device)
        queries.append(features_at(one, chosen))
        keys.append(features_at(other, chosen))
    return queries, keys


def check_pairs(first: Tensor, second: Tensor, dims: int) -> None:
    """An `InvalidValueError` unless both have one shape, of so many axes, and something to be told apart from."""
    crowd = 1 if dims == 3 else 0
    if first.shape != second.shape or first.dim() != dims or (dims < 4 and first.shape[crowd] < 2):
        raise InvalidValueError(
            f"a contrast takes two tensors of one shape and {dims} axes, with at least 2 entries along axis {crowd}: "
            f"one pair alone has no negatives; got {tuple(first.shape)} and {tuple(second.shape)}"
        )
