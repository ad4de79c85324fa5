"""The tricorn: z -> conj(z)**2 + c from 0; the pixel is c. A third of a turn maps it to itself.

The default view lies along the arm on the negative real axis; by the symmetry it is any of the three.

W. D. Crowe, R. Hasson, P. J. Rippon, P. E. D. Strain-Clark, "On the structure of the Mandelbar
set", Nonlinearity 2 (1989).
"""

from fractal_streams.dialect import csquare_plus
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.mandelbrot import square_stays_out


@formula(
    source="W. D. Crowe et al., Nonlinearity 2 (1989) 541-553",
    parameters={
        "centre_x": Parameter(-1.6, -0.2, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.25, 0.25, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.25, 1.3, "from the centre to the edge", "plane units", "log"),
    },
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=60,
    stays_out=square_stays_out,
)
def tricorn(zr, zi, cr, ci):
    return csquare_plus(zr, -zi, cr, ci)
