"""Nonlinearities and their slopes on vectors of networks. The source is copied into generated modules.

For each nonlinearity f there is `f(z)` and `f_slope(z, h)` with h = f(z). NaN stays NaN.
"""

# mypy: ignore-errors

import math

import numba

from fractal_streams.trainability.numba_lanes import (
    any_less,
    fma,
    lane,
    nans,
    power_of_two,
    where_bit,
    where_less,
    with_lane,
)

# A generated module has its own of these; here they are float64's.
LANES, MAGIC, FLAT, LN2, LN2_HIGH, LN2_LOW = 8, 1.5 * 2.0**52, 20.0, math.log(2.0), math.log(2.0), 0.0
QUARTER_HIGH, QUARTER_LOW, TURNS = math.pi / 2.0, 0.0, 1e10

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
def turned(z):
    """Sine and cosine of z - k pi / 2, |.| <= pi / 4, by the polynomials of fdlibm, and k as `power_of_two` has it."""
    shifted = fma(z, 2.0 / math.pi, MAGIC)
    k = shifted - MAGIC
    r = fma(k, -QUARTER_LOW, fma(k, -QUARTER_HIGH, z))
    q = r * r
    s = fma(q, fma(q, 1.58969099521155010221e-10, -2.50507602534068634195e-08), 2.75573137070700676789e-06)
    s = fma(q, fma(q, fma(q, s, -1.98412698298579493134e-04), 8.33333333332248946124e-03), -1.66666666666666324348e-01)
    c = fma(q, fma(q, -1.13596475577881948265e-11, 2.08757232129817482790e-09), -2.75573143513906633035e-07)
    c = fma(q, fma(q, fma(q, c, 2.48015872894767294178e-05), -1.38888888888741095749e-03), 4.16666666666666019037e-02)
    return fma(r * q, s, r), fma(q * q, c, fma(q, -0.5, 1.0)), shifted


@jit
def sin(z):
    sine, cosine, shifted = turned(z)
    value = where_bit(shifted, 1, cosine, sine)
    value = where_bit(shifted, 2, 0.0 - value, value)
    if any_less(TURNS, z * z):
        for k in range(LANES):
            if lane(z, k) * lane(z, k) > TURNS:
                value = with_lane(value, k, math.sin(lane(z, k)))
    return value


@jit
def sin_slope(z, h):
    sine, cosine, shifted = turned(z)
    value = where_bit(shifted, 1, sine, cosine)
    value = where_bit(shifted + 1.0, 2, 0.0 - value, value)
    if any_less(TURNS, z * z):
        for k in range(LANES):
            if lane(z, k) * lane(z, k) > TURNS:
                value = with_lane(value, k, math.cos(lane(z, k)))
    return value


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
