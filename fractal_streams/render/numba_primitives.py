"""The dialect's primitives in Numba: float32, branch-free, so that LLVM makes vectors of them.

The transcendental functions are polynomials of our own, because Numba has no vector library: least
maximal error over the reduced range by reweighted least squares, relative error about 1e-7 each.
`fastmath` leaves NaN and infinity alone: an orbit may overflow.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

FLAGS = {"nsz", "arcp", "contract", "afn"}

_f = np.float32
_i = np.int32
_HALF, _ONE, _ZERO, _TWO = _f(0.5), _f(1.0), _f(0.0), _f(2.0)
_PI, _HALF_PI = _f(np.pi), _f(np.pi / 2)
_TINY = _f(1e-37)
_MINUS_INFINITY = _f(-np.inf)

_LOG = tuple(_f(c) for c in (
    1.44269479170124, -0.7213566480594402, 0.48093846614844915, -0.3601038110525457,
    0.28672743373331644, -0.24992393178346592, 0.23674541764968807, -0.14598903621794532,
))  # fmt: skip
_EXP = tuple(_f(c) for c in (
    1.0000000716543664, 0.6931469670549113, 0.24022119724872876, 0.055507132895835136,
    0.009675541292966005, 0.0013276466792552192,
))  # fmt: skip
_ATAN = tuple(_f(c) for c in (
    0.999999607582096, -0.3333067642469193, 0.19954341072061993, -0.13942720824912702,
    0.09720735125820809, -0.05689538825410522, 0.02249566475809205, -0.004218562050849764,
))  # fmt: skip
_SIN = tuple(_f(c) for c in (0.9999999969263409, -0.16666650699195554, 0.008332036874863797, -0.00019504021968655836))
_COS = tuple(_f(c) for c in (0.9999999724232961, -0.49999856695773437, 0.041655026880986136, -0.0013585908474832585))
_TWO_OVER_PI = _f(2.0 / np.pi)
_QUARTER_HIGH = _f(1.5703125)
_QUARTER_LOW = _f(np.pi / 2 - 1.5703125)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = _LOG
_E0, _E1, _E2, _E3, _E4, _E5 = _EXP
_A0, _A1, _A2, _A3, _A4, _A5, _A6, _A7 = _ATAN
_S0, _S1, _S2, _S3 = _SIN
_C0, _C1, _C2, _C3 = _COS
_ROOT_HALF_BITS = _i(0x3F3504F3)
_MOST, _LEAST = _f(127.0), _f(-126.0)

__all__ = [
    "FLAGS", "absolute", "atan2", "cos", "exp2", "floor", "log2", "maximum", "minimum", "reciprocal", "sin", "sqrt",
    "where", "widest",
]  # fmt: skip

primitive = numba.njit(nogil=True, forceinline=True, fastmath=FLAGS, error_model="numpy")


@intrinsic  # type: ignore[misc]
def widest(typingctx: Any) -> Any:
    """Let the function that calls it use vectors of 512 bits, where the processor has them.

    LLVM prefers 256 for most of Intel's names, whose first ones lowered their clock for the wider.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add knows no such pairs
        return context.get_dummy_value()

    return types.none(), codegen


@primitive
def where(condition: Any, yes: Any, no: Any) -> Any:
    return _f(yes) if condition else _f(no)


@primitive
def minimum(a: Any, b: Any) -> Any:
    return _f(a) if a < b else _f(b)


@primitive
def maximum(a: Any, b: Any) -> Any:
    return _f(a) if a > b else _f(b)


@primitive
def absolute(x: Any) -> Any:
    return _f(abs(x))


@primitive
def floor(x: Any) -> Any:
    return _f(np.floor(x))


@primitive
def sqrt(x: Any) -> Any:
    return _f(np.sqrt(_f(x)))


@primitive
def reciprocal(x: Any) -> Any:
    return _ONE / _f(x)


@primitive
def log2(x: Any) -> Any:
    bits = _f(x).view(_i)
    power = _i(_i(bits - _ROOT_HALF_BITS) >> _i(23))
    t = _i(bits - _i(power << _i(23))).view(_f) - _ONE
    series = _L0 + t * (_L1 + t * (_L2 + t * (_L3 + t * (_L4 + t * (_L5 + t * (_L6 + t * _L7))))))
    return _f(power) + t * series if bits > _i(0) else _MINUS_INFINITY


@primitive
def exp2(x: Any) -> Any:
    held = _f(x)
    held = held if held < _MOST else _MOST
    held = held if held > _LEAST else _LEAST
    whole = _f(np.floor(held + _HALF))
    t = held - whole
    series = _E0 + t * (_E1 + t * (_E2 + t * (_E3 + t * (_E4 + t * _E5))))
    return series * _i(_i(_i(whole) + _i(127)) << _i(23)).view(_f)


@primitive
def _quarters(x: Any) -> Any:
    turns = _f(np.floor(x * _TWO_OVER_PI + _HALF))
    t = (x - turns * _QUARTER_HIGH) - turns * _QUARTER_LOW
    s = t * t
    sine = t * (_S0 + s * (_S1 + s * (_S2 + s * _S3)))
    cosine = _C0 + s * (_C1 + s * (_C2 + s * _C3))
    quarter = _i(turns)
    return sine, cosine, quarter


@primitive
def sin(x: Any) -> Any:
    sine, cosine, quarter = _quarters(_f(x))
    value = cosine if _i(quarter & _i(1)) != 0 else sine
    return -value if _i(quarter & _i(2)) != 0 else value


@primitive
def cos(x: Any) -> Any:
    sine, cosine, quarter = _quarters(_f(x))
    value = sine if _i(quarter & _i(1)) != 0 else cosine
    return -value if _i(_i(quarter + _i(1)) & _i(2)) != 0 else value


@primitive
def atan2(y: Any, x: Any) -> Any:
    across, up = _f(abs(_f(x))), _f(abs(_f(y)))
    swap = up > across
    short = across if swap else up
    long = up if swap else across
    t = short / (long if long > _TINY else _TINY)
    s = t * t
    series = _A0 + s * (_A1 + s * (_A2 + s * (_A3 + s * (_A4 + s * (_A5 + s * (_A6 + s * _A7))))))
    angle = t * series
    angle = _HALF_PI - angle if swap else angle
    angle = _PI - angle if x < _ZERO else angle
    return -angle if y < _ZERO else angle
