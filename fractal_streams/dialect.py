"""The words that formulas and colourings are written in, with their NumPy meaning.

A formula is a plain function of real numbers over `+ - *`, comparisons, and the primitives below.
It is run as it stands by the reference renderer (float64 arrays), and its source is compiled by
Numba and by Triton with the primitives of the same names (`render/numba_primitives.py`,
`render/triton_primitives.py`). Number literals may be written naturally: they become float32.

Two laws: no control flow (`where` chooses; loops and the escape test belong to the renderer), and
no name but primitives, numbers, and other plain functions that keep these laws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Real = Any
"""A real value of one backend: a float64 array, a float32 scalar, or a block of float32 lanes."""

PRIMITIVES = (
    "where", "minimum", "maximum", "absolute", "floor", "sqrt", "reciprocal",
    "exp2", "log2", "sin", "cos", "atan2",
)  # fmt: skip

where = np.where
minimum = np.minimum
maximum = np.maximum
absolute = np.abs
floor = np.floor
sqrt = np.sqrt
reciprocal = np.reciprocal
exp2 = np.exp2
log2 = np.log2
sin = np.sin
cos = np.cos
atan2 = np.arctan2


def csquare(re: Real, im: Real) -> tuple[Real, Real]:
    """The square of re + i im."""
    return re * re - im * im, 2.0 * re * im


def csquare_plus(re: Real, im: Real, cre: Real, cim: Real) -> tuple[Real, Real]:
    """The square of re + i im, and a number added."""
    return re * re - im * im + cre, 2.0 * re * im + cim


def cmul(are: Real, aim: Real, bre: Real, bim: Real) -> tuple[Real, Real]:
    """The product of two complex numbers."""
    return are * bre - aim * bim, are * bim + aim * bre


def cdiv(are: Real, aim: Real, bre: Real, bim: Real) -> tuple[Real, Real]:
    """The quotient of two complex numbers; a divisor nearer to 0 than 1e-15 counts as that far."""
    scale = reciprocal(maximum(bre * bre + bim * bim, 1e-30))
    return (are * bre + aim * bim) * scale, (aim * bre - are * bim) * scale


def cpow(re: Real, im: Real, exponent: Real) -> tuple[Real, Real]:
    """The principal value of (re + i im)**exponent for a real exponent above 0; 0**exponent is 0."""
    modulus = exp2(0.5 * exponent * log2(re * re + im * im))
    angle = exponent * atan2(im, re)
    return modulus * cos(angle), modulus * sin(angle)
