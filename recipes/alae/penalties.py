"""Penalties of slopes and curvatures: R1 on real pictures, and the Hessian penalty on what codes are decoded to.

Both are derivatives, so the network runs in float32 inside, with autocast off. R1 differentiates twice: a compiled
network refuses that, so it is given the network as it is in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable

from fractal_streams.recipes.alae.precision import full_precision, widened

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

REDUCTIONS = ("max", "mean")


def squared_slopes(scores: Tensor, images: Tensor) -> Tensor:
    """(B,) squared lengths of each score's gradient at its own picture, summed over pixels; their graph is kept.

    Args:
        scores: (B,) of pictures that do not see each other (no batch norm).
        images: (B, ...) that they came from, with a gradient asked for.
    """
    (slopes,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return widened(slopes).square().flatten(1).sum(1)


@full_precision
def gradient_penalty(score: Callable[[Tensor], Tensor], images: Tensor, gamma: float = 10.0) -> Tensor:
    """R1: gamma / 2 times the mean over pictures of |d score / d picture|^2 (arXiv:1801.04406, equation 9).

    gamma / 2 |a|^2 for a linear score a . x + b.

    Args:
        score: (B, ...) pictures to (B,) logits, differentiable twice, each logit of its own picture only.
        images: (B, ...) real pictures; gradients don't go back beyond them.
    """
    leaves = images.detach().requires_grad_()
    return gamma / 2.0 * squared_slopes(score(leaves), leaves).mean()


@full_precision
def hessian_penalty(
    function: Callable[[Tensor], Tensor],
    codes: Tensor,
    directions: int = 2,
    step: float = 0.1,
    reduction: str = "max",
) -> Tensor:
    """How much the inputs of a function act on each other: off-diagonal entries of its Hessian (arXiv:2008.10599).

    For each activation, the variance of v H v over `directions` random vectors of signs, which is 2 sum_{i != j} H_ij^2
    in expectation; then the largest or the mean over activations of a picture, and the mean over pictures. Costs one
    forward and backward of 1 + 2 * directions times the batch.

    Args:
        function: (B, n) to (B, ...), deterministic, rows apart: a decoder without noise.
        codes: (B, n). directions: 2 or more. step: of the finite difference, in units of the codes.
        reduction: over activations, "max" or "mean".
    """
    if directions < 2 or step <= 0.0 or reduction not in REDUCTIONS:
        raise InvalidValueError(
            f"a Hessian penalty takes 2 or more directions, a step above 0 and a reduction of {REDUCTIONS}, got "
            f"{directions}, {step} and {reduction!r}"
        )
    signs = torch.randint(0, 2, (directions, *codes.shape), device=codes.device).to(codes.dtype) * 2.0 - 1.0
    variances = directional_curvatures(function, codes, signs, step).var(dim=0).flatten(1)
    return (variances.amax(1) if reduction == "max" else variances.mean(1)).mean()


def directional_curvatures(function: Callable[[Tensor], Tensor], codes: Tensor, signs: Tensor, step: float) -> Tensor:
    """(k, B, ...) second differences (f(z + step v) - 2 f(z) + f(z - step v)) / step^2, from one call of the function.

    Args:
        codes: (B, n). signs: (k, B, n), the directions v.
    """
    count = len(signs)
    points = torch.cat([codes[None], codes + step * signs, codes - step * signs])
    values = widened(function(points.flatten(0, 1))).unflatten(0, points.shape[:2])
    return (values[1 : 1 + count] - 2.0 * values[:1] + values[1 + count :]) / step**2
