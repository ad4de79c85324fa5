"""Terms on the codes of clips: frames that are near in time are near in code, and a code moves smoothly.

Differences, norms and exponentials are taken in float32 with autocast off. Frames of a clip follow each other at equal
distances; which clip they are of decides what is a negative, so codes come as (N, T, d), never flat.
"""

from __future__ import annotations

from fractal_streams.recipes.alae.contrast import directions
from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SPREAD_FLOOR = 1e-4
"""Added to a variance before its root is taken (VICReg's epsilon): the gradient stays finite at equal codes."""
STANDSTILL = 1e-6
"""Squared motion under which a clip counts as standing still rather than as turning."""


@full_precision
def time_contrast(codes: Tensor, temperature: float = 0.1, near: int = 1, far: int | None = None) -> Tensor:
    """InfoNCE over time: frames at most `near` apart are pairs (after arXiv:1704.06888, section III A).

    Negatives are all frames of other clips, and those of the same clip that are `far` or more apart (none, if `far` is
    None); what lies between is neither. The mean over all pairs (a, p) of -log(e_ap / (e_ap + sum over negatives n of
    e_an)), e_ab = exp(cos(a, b) / temperature).

    Args:
        codes: (N, T, d) of N clips of T frames, T at least 2.
        near, far: frames; 1 <= near < far.

    Raises:
        InvalidValueError: a frame that has no pair or no negative.
    """
    clips, frames = check_clips(codes, least=2)
    if near < 1 or (far is not None and far <= near):
        raise InvalidValueError(f"near must be 1 or more and far larger than near, got {near} and {far}")
    reach = frames // 2  # of the frame in the middle: the farthest that its own clip has
    if clips == 1 and (far is None or reach < far):
        raise InvalidValueError(
            f"one clip of {frames} frames leaves some without a negative: give more clips, or far at most {reach}, "
            f"not {far}"
        )
    rows = directions(codes.flatten(0, 1))
    place = torch.arange(len(rows), device=rows.device)
    clip, frame = place // frames, place % frames
    same, apart = clip[:, None] == clip, (frame[:, None] - frame).abs()
    positive = same & (apart >= 1) & (apart <= near)
    negative = ~same if far is None else ~same | (apart >= far)
    logits = rows @ rows.T / temperature
    crowd = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    pairs = clips * sum(2 * (frames - step) for step in range(1, min(near, frames - 1) + 1))
    return (functional.softplus(crowd - logits) * positive).sum() / pairs


@full_precision
def slow_features(codes: Tensor, floor: float = 0.5, floor_weight: float = 1.0) -> Tensor:
    """Codes move slowly from frame to frame, without shrinking to a point.

    mean (w_{t+1} - w_t)^2 + floor_weight * mean_j max(0, floor - std_j), std_j that of component j over all frames
    of all clips, sqrt(variance + 1e-4) with the variance over their number (the floor is VICReg's, arXiv:2105.04906).

    Args:
        codes: (N, T, d), T at least 2. floor: in units of the codes; F's own codes have a spread of about 0.6.
    """
    check_clips(codes, least=2)
    slowness = codes.diff(dim=1).square().mean()
    spread = (codes.flatten(0, 1).var(dim=0, correction=0) + SPREAD_FLOOR).sqrt()
    return slowness + floor_weight * (floor - spread).relu().mean()


@full_precision
def straightness(codes: Tensor) -> Tensor:
    """How much paths of codes bend: 0 on a straight line at one speed, 1/2 at a right angle, 1 at a turn back.

    With steps a = w_t - w_{t-1} and b = w_{t+1} - w_t, the mean of |b - a|^2 / (|b - a|^2 + |b + a|^2): of steps of one
    length, the squared sine of half the angle between them. The quotient |b - a|^2 / |b + a|^2 that is also in use is
    the squared tangent, which has no bound at a turn back. A change of speed counts as bending, standing
    still does not.

    Args:
        codes: (N, T, d), T at least 3.

    Example:
        >>> round(straightness(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])).item(), 3)
        0.5
    """
    check_clips(codes, least=3)
    steps = codes.diff(dim=1)
    bend = (steps[:, 1:] - steps[:, :-1]).square().sum(-1)
    chord = (steps[:, 1:] + steps[:, :-1]).square().sum(-1)
    return (bend / (bend + chord + STANDSTILL)).mean()


def check_clips(codes: Tensor, least: int) -> tuple[int, int]:
    """(N, T), or an `InvalidValueError`."""
    if codes.dim() != 3 or codes.shape[1] < least:
        raise InvalidValueError(
            f"codes of clips must be (N, T, d) with at least {least} frames, got {tuple(codes.shape)}: "
            "open the stream with more frames to a clip, or leave the term out"
        )
    return codes.shape[0], codes.shape[1]
