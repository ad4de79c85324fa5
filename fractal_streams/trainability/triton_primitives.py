"""Arithmetic of the trainers' kernels: nonlinearities with their slopes, operands of tensor cores, the measure.

Triton's interpreter knows no inline assembly: there reciprocals are divisions.

PTX ISA, "Floating Point Instructions" (rcp.approx.ftz.f64, ex2.approx) and "mma" (fragments of m16n8k8 and m16n8k16).
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
CAP = tl.constexpr(1e6)
WINDOW = tl.constexpr(20)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def reciprocal64(x):
    """1 / x for 2**-1000 < x < 2**1000: 20 bits from the hardware, and one cubic step to the last bit but one."""
    if INTERPRETED:
        return 1.0 / x
    else:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f64 $0, $1;", "=d,d", [x], tl.float64, True, 1)
        error = 1.0 - x * y  # one fused operation: launches ask for fusion
        return tl.fma(tl.fma(error, error, error), y, y)


@triton.jit
def reciprocal32(x):
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def exponential32(x):
    """2**x."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def tanh64(u):
    """The hyperbolic tangent, within 3e-16; of NaN it is NaN.

    With u = k ln(2) / 2 + r, s = 2**k and tanh(r) = n / d, it is ((s - 1) d + (s + 1) n) / ((s + 1) d + (s - 1) n).
    n / d meets tanh at r = 0 and at four more squares of r within |r| <= ln(2) / 4; its error is below 7e-18.
    Constants stand behind operators: as arguments of `tl.fma` they would be rounded to float32.
    """
    bits = u.to(tl.int64, bitcast=True)
    high = (bits >> 32).to(tl.int32)
    magnitude = high & 0x7FFFFFFF
    beyond = (magnitude >= 0x40340000) & (magnitude <= 0x7FF00000)  # 20 to infinity; NaN lies above
    u = tl.where(beyond, tl.where(high < 0, -20.0, 20.0).to(tl.float64), u)
    shifted = u * 2.8853900817779268 + 6755399441055744.0  # 1.5 * 2**52: the sum's low word is the nearest k
    k = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    r = u - (shifted - 6755399441055744.0) * 0.34657359027997264
    s = ((k + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    q = r * r
    n = r * ((q + 105.06760569047503) * q + 945.7099470292994)
    d = (q * 15.006758631407596 + 420.3042547002353) * q + 945.7099470292994
    less, more = s - 1.0, s + 1.0
    return tl.fma(less, d, more * n) * reciprocal64(tl.fma(more, d, less * n))


@triton.jit
def tanh32(u):
    """The hyperbolic tangent, within 2e-7."""
    return 1.0 - 2.0 * reciprocal32(exponential32(u * 2.8853900817779268) + 1.0)


@triton.jit
def activation(z, nonlinearity: tl.constexpr):
    """(f(z), f'(z)) of a float64 or float32 block."""
    if nonlinearity == "tanh":
        if z.dtype == tl.float64:
            h = tanh64(z)
        else:
            h = tanh32(z)
        slope = 1.0 - h * h
    elif nonlinearity == "relu":
        h = tl.where(z <= 0.0, 0.0, z)
        slope = tl.where(z <= 0.0, 0.0, 1.0).to(z.dtype)
    elif nonlinearity == "identity":
        h = z
        slope = tl.full(z.shape, 1.0, z.dtype)
    elif nonlinearity == "sin":
        h = tl.sin(z)
        slope = tl.cos(z)
    else:
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        h = z * below
        slope = below + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    return h, slope


@triton.jit
def fold(matrix, width: tl.constexpr, across: tl.constexpr):
    """A (width, across) product as the left operand of the next, its columns in the order that `contraction` gives.

    A product lies on the lanes as pairs of columns, an operand as single ones: read in this order they are the
    same registers, and nothing moves.
    """
    pairs = tl.permute(tl.reshape(matrix, (width, across // 8, 4, 2)), (0, 1, 3, 2))
    return tl.reshape(pairs, (width, across))


@triton.jit
def contraction(k):
    """The column that stands at place k of a folded operand."""
    return (k // 8) * 8 + (k % 4) * 2 + (k // 4) % 2


@triton.jit
def operand(at, rows: tl.constexpr, columns: tl.constexpr):
    """A (rows, columns) right operand from memory; 16 x 16 ones lie there in the order of the lanes.

    Each lane takes 16 bytes: 2 elements of float64, 4 of float32, which are next to each other in its operand.
    """
    if rows == 16 and columns == 16:
        flat = tl.load(at + tl.arange(0, 256))
        if flat.dtype == tl.float64:
            return tl.reshape(tl.permute(tl.reshape(flat, (2, 2, 8, 4, 2)), (1, 4, 3, 0, 2)), (16, 16))
        else:
            return tl.reshape(tl.permute(tl.reshape(flat, (2, 8, 4, 2, 2)), (3, 4, 2, 0, 1)), (16, 16))
    else:
        return tl.load(at + tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :])


@triton.jit
def high(x):
    """The part of a float32 that TF32 holds."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(left, left_rest, right, right_rest, precision: tl.constexpr):
    """left @ right; the rests are what TF32 leaves of the operands, of "tf32x3" alone."""
    if precision == "float64":
        return tl.dot(left, right, out_dtype=tl.float64)
    elif precision == "tf32x3":
        total = tl.dot(left_rest, right, input_precision="tf32")
        total = tl.dot(left, right_rest, acc=total, input_precision="tf32")
        return tl.dot(left, right, acc=total, input_precision="tf32")
    else:
        return tl.dot(left, right, input_precision=precision)


@triton.jit
def product_onto(total, left, left_rest, right, right_rest, precision: tl.constexpr):
    """total + left @ right."""
    if precision == "float64":
        return tl.dot(left, right, acc=total, out_dtype=tl.float64)
    elif precision == "tf32x3":
        total = tl.dot(left_rest, right, acc=total, input_precision="tf32")
        total = tl.dot(left, right_rest, acc=total, input_precision="tf32")
        return tl.dot(left, right, acc=total, input_precision="tf32")
    else:
        return tl.dot(left, right, acc=total, input_precision=precision)


@triton.jit
def parted(x, precision: tl.constexpr):
    """(what TF32 holds, the rest) of an operand of "tf32x3"; of other precisions, it and itself."""
    if precision == "tf32x3":
        held = high(x)
        return held, x - held
    else:
        return x, x


@triton.jit
def account(loss, step, steps, ends, first, diverged, final, tail, total, inverse):
    """One loss, (B, 1) float64, taken into the sums of the measure, (B, K), of runs that end at `ends`, (1, K)."""
    finite = tl.where(loss < INFINITY, loss, tl.where(first > CAP, INFINITY, CAP))
    first = tl.where(step == 0, finite, first)
    quotient = finite / first
    quotient = tl.where(quotient < CAP, quotient, CAP)
    blown = (quotient >= CAP) | (loss >= INFINITY) | (loss != loss)
    diverged = tl.where(blown & (diverged == steps), step, diverged)
    tail += tl.where((step >= ends - WINDOW) & (step < ends), quotient, 0.0)
    total += tl.where(step < ends, quotient, 0.0)
    inverse += tl.where(step < ends, 1.0 / quotient, 0.0)
    return first, diverged, quotient, tail, total, inverse


@triton.jit
def signed(ends, tail, total, inverse):
    """(B, K) measures."""
    return tl.where(tail < tl.minimum(ends, WINDOW), -total, inverse)
