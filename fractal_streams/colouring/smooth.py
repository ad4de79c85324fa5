"""Smooth escape: the iteration count made continuous by how far the last z overshot.

nu = count + 1 - log(log|z| / log radius) / log degree; for orbits that converge the last step's
length takes the place of |z|.

A. Douady, J. Hubbard (1982) for the potential; L. Vepstas, "Renormalizing the Mandelbrot escape".
"""

from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, palette
from fractal_streams.dialect import log2, maximum, minimum


@colouring(source="Douady and Hubbard (1982); Vepstas, Renormalizing the Mandelbrot escape", parameters=PALETTE)
def smooth(
    count, inside, zr, zi, radius, degree,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    far = maximum(log2(minimum(zr * zr + zi * zi, 1e30)) / (2.0 * log2(radius)), 1.0)
    nu = count + 1.0 - minimum(log2(far) / log2(degree), 1.0)
    red, green, blue = palette(
        0.25 * log2(1.0 + nu), brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase
    )
    outside = 1.0 - inside
    return outside * red, outside * green, outside * blue
