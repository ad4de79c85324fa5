"""The burning ship: both parts of z are folded to the first quadrant before squaring.

z -> (|Re z| + i |Im z|)**2 + c from 0; the pixel is c. The map is continuous and not analytic, so
that its small copies are sheared into masts and hulls; the armada lies along the negative axis.

M. Michelitsch, O. E. Roessler, "The burning ship and its quasi-Julia sets",
Computers & Graphics 16 (1992).
"""

from fractal_streams.dialect import absolute, csquare_plus
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.mandelbrot import square_stays_out


@formula(
    source="M. Michelitsch, O. E. Roessler, Computers & Graphics 16 (1992) 435-438",
    parameters={
        "centre_x": Parameter(-1.9, -1.5, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.1, 0.02, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.05, 1.5, "from the centre to the edge", "plane units", "log"),
    },
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=40,
    stays_out=square_stays_out,
)
def burning_ship(zr, zi, cr, ci):
    re, _ = csquare_plus(zr, zi, cr, ci)
    return re, 2.0 * absolute(zr * zi) + ci
