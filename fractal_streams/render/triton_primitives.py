"""The dialect's primitives in Triton.

On a GPU the transcendental functions are the hardware's approximations (one or two instructions
where `tl.sin` or `tl.log2` take 30 to 85) and an odd polynomial of degree 11 for the arctangent.
Triton's interpreter knows no inline assembly: there they are Triton's own functions.

PTX ISA, "Floating Point Instructions": lg2.approx, ex2.approx, sin.approx, cos.approx, rcp.approx.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = [
    "absolute", "atan2", "cos", "cpow", "csquare_plus", "exp2", "floor", "log2", "maximum", "minimum", "reciprocal",
    "sin", "sqrt", "where",
]  # fmt: skip

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def where(condition, yes, no):
    return tl.where(condition, yes, no)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def floor(x):
    return tl.floor(x)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def reciprocal(x):
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def exp2(x):
    return tl.exp2(x)


@triton.jit
def log2(x):
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def sin(x):
    if INTERPRETED:
        return tl.sin(x)
    else:
        return tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def cos(x):
    if INTERPRETED:
        return tl.cos(x)
    else:
        return tl.inline_asm_elementwise("cos.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def csquare_plus(re, im, cre, cim):
    """As the dialect's, added in an order that fuses: four instructions in place of five."""
    return re * re + (cre - im * im), (re + re) * im + cim


@triton.jit
def _ratio(short, long):
    """short / long for 0 <= short <= long, and 0 where both are 0: saturation turns NaN into 0."""
    if INTERPRETED:
        return short / tl.maximum(long, 1e-37)
    else:
        return tl.inline_asm_elementwise(
            "mul.sat.f32 $0, $1, $2;", "=f,f,f", [short, reciprocal(long)], tl.float32, True, 1
        )


@triton.jit
def _slope(s):
    """atan(t) / t for s = t * t, t in [-1, 1]."""
    series = 0.19413312793500234 + s * (-0.117687241387055 + s * (0.053846179753495704 + s * -0.012139092102612362))
    return 0.999984503921933 + s * (-0.33274128231808775 + s * series)


@triton.jit
def atan2(y, x):
    across, up = tl.abs(x), tl.abs(y)
    t = _ratio(tl.minimum(across, up), tl.maximum(across, up))
    angle = t * _slope(t * t)
    angle = tl.where(up > across, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0.0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0.0, -angle, angle)


@triton.jit
def _signed(size, sign):
    """size with its sign turned where that of `sign` is minus."""
    bits = size.to(tl.int32, bitcast=True) ^ (sign.to(tl.int32, bitcast=True) & -2147483648)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def cpow(re, im, exponent):
    """The dialect's `cpow` in 21 instructions where its text gives 26.

    The angle of (|re|, |im|) is a quarter of a turn less pi/4 + atan((|re| - |im|) / (|re| + |im|)), whose
    argument needs no larger and smaller of the two; the sign of im goes to the modulus of the sine.
    """
    modulus = exp2(0.5 * exponent * log2(re * re + im * im))
    across = tl.abs(re)
    r = 2.0 * _ratio(across, across + tl.abs(im)) - 1.0
    up = _signed(r * _slope(r * r) + 0.7853981633974483, re)
    angle = exponent * 1.5707963267948966 - exponent * up
    return modulus * cos(angle), _signed(modulus, im) * sin(angle)


@triton.jit
def whole(x):
    """The integer part of 0 <= x < 256, at a quarter of a conversion's cost: a sum rounded down ends in its bits."""
    if INTERPRETED:
        return x.to(tl.int32)
    else:
        bits = tl.inline_asm_elementwise("add.rm.f32 $0, $1, 0f4B000000;", "=f,f", [x], tl.float32, True, 1)
        return bits.to(tl.int32, bitcast=True) & 255
