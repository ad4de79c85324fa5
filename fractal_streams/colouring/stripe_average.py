"""Stripe average: the mean over the orbit of 1/2 + 1/2 sin(stripes arg z), the first step left out.

The last step is weighed by the share of it at the bound, so that no edge shows between counts. An
orbit that falls into 0 has no angle there: its stripes fade below |z| = 1e-10, before float32 ends.

J. Haerkoenen, "On Smooth Fractal Coloring Techniques", master's thesis, Abo Akademi (2007).
"""

from fractal_streams.colouring.crossing import GAPS, crossing, gaps
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.dialect import atan2, log2, maximum, minimum, reciprocal, sin, where
from fractal_streams.formulas.definition import Parameter


def stripe_sum(zr, zi, goal_r, goal_i, n, gap, total, last, stripes):
    gap, gap_before = gaps(zr, zi, goal_r, goal_i, gap)
    size = minimum(zr * zr + zi * zi, 1.0)
    weight = size * reciprocal(size + 1e-20)
    last = where(n < 0.5, 0.0, 0.5 + 0.5 * weight * sin(stripes * atan2(zi, zr)))
    return gap, gap_before, total + last, last, n


@colouring(
    source="J. Haerkoenen, On Smooth Fractal Coloring Techniques (2007)",
    parameters={**PALETTE, "stripes": Parameter(1.0, 5.0, "stripes to a turn", "1", "integer")},
    accumulators={**GAPS, "total": 0.0, "last": 0.0, "steps": 0.0},
    convergence=GAPS,
    observe=stripe_sum,
)
def stripe_average(
    count, inside, zr, zi, pr, pi, gap, gap_before, total, last, steps, radius, tolerance, converges,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    part = crossing(inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    mean = (total - (1.0 - part) * last) * reciprocal(maximum(steps - 1.0 + part, 0.01))
    place = mean + 0.1 * log2(1.0 + count + part)
    return palette(place, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase)
