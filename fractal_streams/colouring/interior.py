"""Interior: orbits that never stop, by their closest approach to 0; the others muted, by smooth count.

Inside the Mandelbrot set the closest approach draws a disk around the centre of every component,
nested by the period at which it is reached.

H.-O. Peitgen, P. Richter, The Beauty of Fractals (1986), pages 60 and 62.
"""

from fractal_streams.colouring.crossing import GAPS, gaps, magnitude_squared
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.colouring.smooth import smooth_place
from fractal_streams.dialect import log2, minimum, sqrt, where


def closest_approach(zr, zi, goal_r, goal_i, gap, nearest):
    gap, gap_before = gaps(zr, zi, goal_r, goal_i, gap)
    return gap, gap_before, minimum(magnitude_squared(zr, zi), nearest)


@colouring(
    source="H.-O. Peitgen, P. Richter, The Beauty of Fractals (1986) 60-62",
    parameters=PALETTE,
    accumulators={**GAPS, "nearest": 1e30},
    convergence=GAPS,
    observe=closest_approach,
)
def interior(
    count, inside, zr, zi, pr, pi, gap, gap_before, nearest, radius, tolerance, converges,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    outer = smooth_place(count, inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    inner = 0.3 * log2(0.02 + sqrt(nearest))
    red, green, blue = palette(
        where(inside > 0.5, inner, outer),
        brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
    )  # fmt: skip
    grey = 0.4 * (red + green + blue) * 0.33333334
    weight = where(inside > 0.5, 1.0, 0.4)
    rest = 1.0 - weight
    return weight * red + rest * grey, weight * green + rest * grey, weight * blue + rest * grey
