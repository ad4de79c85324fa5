"""Average magnitude: the mean over the orbit of log2(1 + |z|), the natural paint of the Kali set.

The last step is weighed by the share of it at the bound, so that no edge shows between counts.

P. R. Andrioli ("Kali"), fractalforums.com (2010), the average of |z| over the orbit; the logarithm
keeps the rare steps that are thrown far out from drowning the others.
"""

from fractal_streams.colouring.crossing import GAPS, crossing, gaps, magnitude_squared
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.dialect import log2, maximum, reciprocal, sqrt


def magnitude_sum(zr, zi, goal_r, goal_i, n, gap, total):
    gap, gap_before = gaps(zr, zi, goal_r, goal_i, gap)
    last = log2(1.0 + sqrt(magnitude_squared(zr, zi)))
    return gap, gap_before, total + last, last, n + 1.0


@colouring(
    source="P. R. Andrioli (Kali), fractalforums.com (2010)",
    parameters=PALETTE,
    accumulators={**GAPS, "total": 0.0, "last": 0.0, "steps": 0.0},
    convergence=GAPS,
    observe=magnitude_sum,
)
def average_magnitude(
    inside, zr, zi, pr, pi, gap, gap_before, total, last, steps, radius, tolerance, converges,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    part = crossing(inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    mean = (total - (1.0 - part) * last) * reciprocal(maximum(steps - 1.0 + part, 0.01))
    return palette(mean, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase)
