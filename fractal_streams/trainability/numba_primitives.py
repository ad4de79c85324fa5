"""Nonlinearities and their slopes on vectors of networks. The source is copied into generated modules.

For each nonlinearity f there is `f(z)` and `f_slope(z, h)` with h = f(z). NaN stays NaN.
"""

# mypy: ignore-errors

import math

import numba

from fractal_streams.trainability.numba_lanes import (
    fma,
    lane,
    nans,
    power_of_two,
    where_less,
    with_lane,
)

# A generated module has its own of these; here they are float64's.
LANES, MAGIC, FLAT, LN2, LN2_HIGH, LN2_LOW = 8, 1.5 * 2.0**52, 20.0, math.log(2.0), math.log(2.0), 0.0

jit = numba.njit(nogil=True, forceinline=True, error_model="numpy")
# Copied from here on.


@jit
def tanh(z):
    """With k = rint(2 z / ln 2) and r = z - k ln(2) / 2, exp(2 z) = 2**k (D + r N) / (D - r N).

    N / D is the continued fraction of tanh(r) / r cut after r**6 / D: 5e-19 of its value for |r| <= ln(2) / 4.
    """
    u = where_less(z, -FLAT, -FLAT, where_less(FLAT, z, FLAT, z))
    shifted = fma(u, 2.0 / LN2, MAGIC)
    k = shifted - MAGIC
    r = fma(k, -0.5 * LN2_LOW, fma(k, -0.5 * LN2_HIGH, u))
    q = r * r
    top = r * fma(q, fma(q, 21.0, 1260.0), 10395.0)
    bottom = fma(q, fma(q, q + 210.0, 4725.0), 10395.0)
    s = power_of_two(shifted)
    less, more = s - 1.0, s + 1.0
    return fma(less, bottom, more * top) / fma(more, bottom, less * top)


@jit
def tanh_slope(z, h):
    return 1.0 - h * h


@jit
def relu(z):
    return where_less(z, 0.0, 0.0, z)


@jit
def relu_slope(z, h):
    return where_less(0.0, h, 1.0, nans(h))


@jit
def identity(z):
    return z


@jit
def identity_slope(z, h):
    return where_less(z, z, 1.0, 1.0)


@jit
def sin(z):
    for k in range(LANES):
        z = with_lane(z, k, math.sin(lane(z, k)))
    return z


@jit
def sin_slope(z, h):
    for k in range(LANES):
        z = with_lane(z, k, math.cos(lane(z, k)))
    return z


@jit
def normal(z):
    """The normal distribution function."""
    half = z * math.sqrt(0.5)
    for k in range(LANES):
        half = with_lane(half, k, math.erf(lane(half, k)))
    return 0.5 * (1.0 + half)


@jit
def gelu(z):
    return z * normal(z)


@jit
def gelu_slope(z, h):
    density = z * z * -0.5
    for k in range(LANES):
        density = with_lane(density, k, math.exp(lane(density, k)))
    return normal(z) + z * density * (1.0 / math.sqrt(2.0 * math.pi))
