"""Smooth escape: the iteration count made continuous by the share of the last step at the bound.

Right for orbits that escape and for orbits that converge, see `crossing`; a large radius makes it
smooth in the slope too. What converges is tinted by where it went. The inside is black.

A. Douady, J. Hubbard (1984) for the potential; L. Vepstas, "Renormalizing the Mandelbrot escape" (1997).
"""

from fractal_streams.colouring.crossing import GAPS, crossing, gaps, magnitude_squared
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.dialect import log2, maximum, reciprocal, sqrt, where


def tint(zr, zi, radius, converges):
    """A part of a turn that tells one end of convergence from another; 0 for what escaped."""
    square = magnitude_squared(zr, zi)
    part = 0.2 * (zr + 0.25 * zi) * reciprocal(sqrt(maximum(square, 1e-12)))
    return where(converges > 0.5, where(square < radius * radius, part, 0.0), 0.0)


def smooth_place(count, inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges):
    """The place in a palette of an orbit's continuous count."""
    steps = count + crossing(inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    return 0.25 * log2(1.0 + steps) + tint(zr, zi, radius, converges)


@colouring(
    source="A. Douady, J. Hubbard (1984); L. Vepstas, Renormalizing the Mandelbrot escape (1997)",
    parameters=PALETTE,
    accumulators=GAPS,
    convergence=GAPS,
    inside_alike=True,
    observe=gaps,
)
def smooth(
    count, inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    place = smooth_place(count, inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges)
    red, green, blue = palette(place, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase)
    outside = 1.0 - inside
    return outside * red, outside * green, outside * blue
