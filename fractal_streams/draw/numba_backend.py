"""The draw on the CPU, compiled by Numba."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.draw.plan import CLASS, Plan
from fractal_streams.draw.reference import EXP2_TAYLOR
from fractal_streams.priors import CHOICE, CONSTANT, INTEGER, LOG_UNIFORM

_M0, _M1 = np.uint64(rng.MULTIPLIER_0), np.uint64(rng.MULTIPLIER_1)
_W0, _W1 = np.uint64(rng.WEYL_0), np.uint64(rng.WEYL_1)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_ONE = np.uint64(1)
_TAYLOR = np.array(EXP2_TAYLOR)
_ROUNDS = rng.ROUNDS


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code: kept on disk, where either this package's folder or the user's is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": Numba found no folder for its cache
        return numba.njit(nogil=True)(function)


@compiled
def philox(index: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """The four words of an index, each a uint64 below 2**32."""
    unsigned = np.uint64(index)
    c0, c1, c2, c3 = unsigned & _LOW, unsigned >> _SHIFT, np.uint64(0), np.uint64(0)
    k0, k1 = np.uint64(k0), np.uint64(k1)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@compiled
def philox_words(index: Any, k0: Any, k1: Any) -> tuple[Any, Any]:
    """The first two of them."""
    c0, c1, _, _ = philox(index, k0, k1)
    return c0, c1


@compiled
def _words(indices, keys, words):  # type: ignore[no-untyped-def]
    for row in range(keys.shape[0]):
        for i in range(indices.size):
            c0, c1, c2, c3 = philox(indices[i], keys[row, 0], keys[row, 1])
            words[row, 0, i], words[row, 1, i], words[row, 2, i], words[row, 3, i] = c0, c1, c2, c3


@compiled
def _draw(indices, k0, k1, num_classes, balanced, operation, level, keys, numbers, choices, labels, table):  # type: ignore[no-untyped-def]
    for i in range(indices.size):
        if balanced:
            labels[i] = indices[i] % num_classes
        else:
            low, high = philox_words(indices[i], k0, k1)
            count = np.uint64(num_classes)
            labels[i] = np.int64((high * count + ((low * count) >> _SHIFT)) >> _SHIFT)
    for row in range(operation.size):
        kind = operation[row]
        a, b, least, most = numbers[row]
        if kind == CONSTANT:
            table[row] = np.float32(a)
            continue
        for i in range(indices.size):
            counter = labels[i] if level[row] == CLASS else indices[i]
            word, _ = philox_words(counter, keys[row, 0], keys[row, 1])
            if kind in (INTEGER, CHOICE):
                picked = (word * np.uint64(b)) >> _SHIFT
                table[row, i] = choices[row, picked] if kind == CHOICE else np.float32(a + np.float64(picked))
                continue
            real = a + b * (np.float64(((word >> np.uint64(4)) << _ONE) | _ONE) * 2.0**-29)
            if kind == LOG_UNIFORM:
                whole = math.floor(real)
                part = real - whole
                power = _TAYLOR[-1]
                for k in range(_TAYLOR.size - 2, -1, -1):
                    power = power * part + _TAYLOR[k]
                real = math.ldexp(power, np.int32(whole))  # type: ignore[arg-type]
            table[row, i] = np.float32(min(max(real, least), most))


def words(indices: rng.Int64, keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """(K, 4, B) words, each key's as `fractal_streams.rng.words` gives them.

    Args:
        indices: (B,) int64, not negative.
        keys: (K, 2).
    """
    made = np.empty((len(keys), 4, len(indices)), np.uint32)
    _words(indices, keys, made)
    return made


def draw(plan: Plan, indices: rng.Int64) -> tuple[rng.Int64, npt.NDArray[np.float32]]:
    """As `fractal_streams.draw.reference.draw`, to the bit."""
    labels = np.empty(len(indices), np.int64)
    table = np.empty((len(plan.names), len(indices)), np.float32)
    _draw(
        indices, plan.label_key[0], plan.label_key[1], plan.num_classes, plan.balanced, plan.operation, plan.level,
        plan.keys, plan.numbers, plan.choices, labels, table,
    )  # fmt: skip
    return labels, table
