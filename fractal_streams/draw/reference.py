"""The draw in NumPy: the meaning of a plan, which Numba and Triton must equal to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.draw.plan import CLASS, Plan
from fractal_streams.priors import CHOICE, CONSTANT, INTEGER, LOG_UNIFORM

EXP2_TAYLOR = tuple(0.6931471805599453**k / float(np.prod(np.arange(1.0, k + 1))) for k in range(14))
"""Coefficients of 2**f = sum (ln 2)**k / k! f**k; 14 terms reach 7e-14 for f in [0, 1), float32 asks for 6e-8."""


def draw_labels(plan: Plan, indices: rng.Int64) -> rng.Int64:
    """(B,) int64 class of each index."""
    if plan.balanced:
        return indices % np.int64(plan.num_classes)
    low, high, _, _ = rng.words(indices, plan.label_key)
    count = np.uint64(plan.num_classes)
    shift = np.uint64(32)
    return ((high.astype(np.uint64) * count + (low.astype(np.uint64) * count >> shift)) >> shift).astype(np.int64)


def draw(plan: Plan, indices: rng.Int64) -> tuple[rng.Int64, npt.NDArray[np.float32]]:
    """Labels and parameters of each index.

    Args:
        indices: (B,) int64.

    Returns:
        (B,) int64 labels, and the (P, B) float32 table, a row for each name of the plan.
    """
    labels = draw_labels(plan, indices)
    table = np.empty((len(plan.names), len(indices)), np.float32)
    for row, (operation, key) in enumerate(zip(plan.operation, plan.keys, strict=True)):
        counter = labels if plan.level[row] == CLASS else indices
        word = rng.words(counter, (int(key[0]), int(key[1])))[0]
        table[row] = value(int(operation), word, plan.numbers[row], plan.choices[row])
    return labels, table


def value(
    operation: int, word: rng.UInt32, numbers: npt.NDArray[np.float64], choices: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(B,) float32 values of a prior for (B,) random words.

    The unit uniform (2k + 1) / 2**29 has 29 bits and a prior's span 24: their product is exact in
    float64, so that a fused multiply-add gives the same sum as two roundings.
    """
    a, b, low, high = numbers
    if operation == CONSTANT:
        return np.full(word.shape, a, np.float32)
    if operation in (INTEGER, CHOICE):
        picked = (word.astype(np.uint64) * np.uint64(b)) >> np.uint64(32)
        return choices[picked.astype(np.int64)] if operation == CHOICE else (a + picked).astype(np.float32)
    unit = ((word >> np.uint32(4)) * np.uint32(2) + np.uint32(1)).astype(np.float64) * 2.0**-29
    real = a + b * unit
    if operation == LOG_UNIFORM:
        real = exp2(real)
    return np.minimum(np.maximum(real, low), high).astype(np.float32)


def exp2(exponents: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Powers of 2 by additions and products alone, the same on every machine to the bit."""
    whole = np.floor(exponents)
    part = exponents - whole
    power = np.full(part.shape, EXP2_TAYLOR[-1])
    for coefficient in EXP2_TAYLOR[-2::-1]:
        power = power * part + coefficient
    return np.ldexp(power, whole.astype(np.int32))
