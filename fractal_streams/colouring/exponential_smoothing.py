"""Exponential smoothing: the sum over the orbit of exp(-|z| - 1/|z - previous z|).

A step counts while the orbit is neither far out nor at rest, so that the sum is continuous across
the counts of orbits that escape, converge or wander, and inside and outside are painted alike.

R. Barton's "Exponential Smoothing" of the Ultra Fractal formula collection (2001), its term for
escape and its term for convergence in one.
"""

from fractal_streams.colouring.crossing import escape_share, magnitude_squared
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.dialect import exp2, log2, maximum, reciprocal, sqrt

BITS = 1.4426950408889634


def exponential_sum(zr, zi, pr, pi, total):
    length = sqrt(maximum(magnitude_squared(zr - pr, zi - pi), 1e-12))
    last = exp2(-BITS * (sqrt(magnitude_squared(zr, zi)) + reciprocal(length)))
    return total + last, last


@colouring(
    source="R. Barton, Exponential Smoothing, Ultra Fractal formula collection (2001)",
    parameters=PALETTE,
    accumulators={"total": 0.0, "last": 0.0},
    observe=exponential_sum,
)
def exponential_smoothing(
    zr, zi, pr, pi, total, last, radius,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    weighed = total - (1.0 - escape_share(zr, zi, pr, pi, radius)) * last
    place = 0.4 * log2(0.1 + weighed)
    return palette(place, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase)
