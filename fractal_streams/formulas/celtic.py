"""The celtic fractal: the real part of z**2 is folded, z -> |Re z**2| + i Im z**2 + c from 0.

The pixel is c. Left of the imaginary axis the fold draws knots where the Mandelbrot set has bulbs.

Folklore of fractal software, about 2010; it is in the formula list of Kalles Fraktaler 2.
"""

from fractal_streams.dialect import absolute
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.mandelbrot import square_stays_out


@formula(
    source="folklore of fractal software, about 2010; formula list of Kalles Fraktaler 2",
    parameters={
        "centre_x": Parameter(-1.5, -0.3, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.6, 0.6, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.25, 1.2, "from the centre to the edge", "plane units", "log"),
    },
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=40,
    stays_out=square_stays_out,
)
def celtic(zr, zi, cr, ci):
    return absolute(zr * zr - zi * zi) + cr, 2.0 * zr * zi + ci
