"""The spectral radius of df/dx: below 1 a fixed point attracts, above 1 it repels.

The Jacobian isn't symmetric, so its largest singular value says something else: it is never taken for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.batched_points import bank_function
from fractal_streams.kaleidoscope.chain import models_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float64, normals

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

EXACT_SIZE = 64
"""Values of a state up to which all eigenvalues are found."""
STEPS, LAST = 60, 20
TILE_ROWS = 2048
"""Rows of each product of a Jacobian."""
POWER_TILE = 64
"""States whose radii grow together."""
VANISHED = 1e-30


def spectral_radii(
    fitted: Kaleidoscope, values: Any, models: Any = None, *, device: str = "cpu", steps: int = STEPS,
    exact: bool | None = None,
) -> Float64:  # fmt: skip
    """(B,) float64 spectral radii of df/dx; NaN where a state or the derivative isn't finite.

    Up to 64 values a state they are the largest modulus of the eigenvalues, in float64. Above, they come from power
    iteration of the product of Jacobian and vector, in float32: the geometric mean growth over the last 20 steps.

    Args:
        values: (B, D) states.
        models: (B,) the network of the bank of each; None is network 0 of all.
        device: where it is computed.
        steps: of power iteration, 20 and up.
        exact: all eigenvalues or power iteration, whatever the size; None chooses by it.

    Raises:
        InvalidValueError: states of another size, or fewer than 20 steps.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> network = Network(shape=(2,), hidden=2, n_linear=2, activation="identity", head="linear")
        >>> weight = np.float32([[[0.5, 7.0], [0.0, -0.25]]])
        >>> tensors = {"layers.0.weight": weight, "layers.1.weight": np.float32([[[1.0, 0.0], [0.0, 1.0]]])}
        >>> tensors |= {f"layers.{layer}.bias": np.zeros((1, 2), np.float32) for layer in (0, 1)}
        >>> points = Sources(data=np.zeros((1, 1, 2), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
        >>> spectral_radii(Kaleidoscope(network=network, tensors=tensors, sources=points), np.zeros((1, 2)))
        array([0.5])
    """
    size = fitted.network.size
    if values.ndim != 2 or values.shape[1] != size:
        raise InvalidValueError(f"states must be (B, {size}), got {tuple(values.shape)}")
    if steps < LAST:
        raise InvalidValueError(f"steps must be {LAST} and up, got {steps}")
    rows, states = models_of(models, len(values), fitted), np.asarray(as_array(values), np.float64)
    whole = size <= EXACT_SIZE if exact is None else exact
    found = np.empty(len(states))
    for model in np.unique(rows):
        one = fitted if fitted.models == 1 else fitted.one(int(model))
        bank = bank_function(one, device, "float64" if whole else "float32")
        here = np.flatnonzero(rows == model)
        tile = max(1, TILE_ROWS // size) if whole else POWER_TILE
        for start in range(0, len(here), tile):
            places = here[start : start + tile]
            padded = np.zeros((tile, size))
            padded[: len(places)] = states[places]
            radii = by_eigenvalues(bank, padded, device) if whole else by_growth(bank, padded, device, steps)
            found[places] = radii[: len(places)]
    return found


def jacobians(bank: Callable[[Any], Any], states: Float64, device: str) -> Float64:
    """(B, D, D) float64: row i, column j is the derivative of output i by input j."""
    count, size = states.shape
    here = torch.tensor(states, dtype=torch.float64, device=device).repeat_interleave(size, dim=0)[None]
    unit = torch.eye(size, dtype=torch.float64, device=device).repeat(count, 1)[None]
    with torch.enable_grad(), plain_attention():
        here.requires_grad_(True)
        rows = torch.autograd.grad(bank(here), here, unit)[0]
    return np.asarray(as_array(rows).reshape(count, size, size))


def by_eigenvalues(bank: Callable[[Any], Any], states: Float64, device: str) -> Float64:
    """(B,) the largest modulus of the eigenvalues."""
    rows, radii = jacobians(bank, states, device), np.full(len(states), np.nan)
    known = np.isfinite(rows).all(axis=(1, 2)) & np.isfinite(states).all(axis=1)
    radii[known] = np.abs(np.linalg.eigvals(rows[known])).max(axis=1)
    return radii


def by_growth(bank: Callable[[Any], Any], states: Float64, device: str, steps: int) -> Float64:
    """(B,) geometric mean growth of a vector under the Jacobian over the last 20 of some steps; 0 if it vanishes."""
    here = torch.tensor(states, dtype=torch.float32, device=device)[None]
    first = normals(states.shape[1], rng.key("kaleidoscope-spectrum"))
    vector = torch.tensor(first / math.sqrt(np.square(first).sum()), dtype=torch.float32, device=device)
    vectors = vector.expand_as(here)
    total = torch.zeros(len(states), dtype=torch.float64, device=device)
    gone = torch.zeros(len(states), dtype=torch.bool, device=device)
    times = times_jacobian(bank, here)
    for step in range(1, steps + 1):
        vectors = times(vectors)
        length = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
        gone |= length[0, :, 0] <= VANISHED
        vectors = vectors / length.clamp_min(VANISHED)
        if step > steps - LAST:
            total += length[0, :, 0].double().clamp_min(VANISHED).log()
    radii = torch.where(gone, torch.zeros_like(total), (total / LAST).exp())
    radii = torch.where(here[0].isfinite().all(dim=1), radii, math.nan)
    return np.asarray(as_array(radii), np.float64)


def times_jacobian(bank: Callable[[Any], Any], states: Any) -> Callable[[Any], Any]:
    """The product of the Jacobian and a vector, for (1, B, D) of each.

    It is the derivative of (cotangent times Jacobian) by the cotangent, which is linear: the network runs once, and
    each product costs as much as running it again. Every operation that can be differentiated twice has it.
    """
    with torch.enable_grad(), plain_attention():
        here = states.detach().requires_grad_(True)
        output = bank(here)
        cotangent = torch.zeros_like(output, requires_grad=True)
        row = torch.autograd.grad(output, here, cotangent, create_graph=True)[0]

    def product(vectors: Any) -> Any:
        return torch.autograd.grad(row, cotangent, vectors, retain_graph=True)[0]

    return product


def plain_attention() -> AbstractContextManager[Any]:
    """Attention by plain products, the only form that can be differentiated twice."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)  # type: ignore[no-any-return]
