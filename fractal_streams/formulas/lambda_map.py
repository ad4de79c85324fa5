"""Lambda, the complex logistic map: z -> lambda z (1 - z) from its critical point 1/2.

The pixel is lambda. The plane shows the Mandelbrot set unrolled to two discs that touch at 1, of
radius 1 about 0 and about 2; a half turn about 1 maps it to itself.

B. Mandelbrot, Annals of the New York Academy of Sciences 357 (1980).
"""

from fractal_streams.dialect import cmul
from fractal_streams.formulas.definition import Parameter, formula


def lambda_plane(x, y):
    return 0.5 + (x - x), y - y, x, y


@formula(
    name="lambda",
    source="B. Mandelbrot, Annals NYAS 357 (1980) 249-259",
    parameters={
        "centre_x": Parameter(-1.2, 3.2, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(0.5, 1.2, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 2.0, "from the centre to the edge", "plane units", "log"),
    },
    start=lambda_plane,
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=60,
)
def lambda_map(zr, zi, cr, ci):
    re, im = cmul(zr, zi, 1.0 - zr, -zi)
    return cmul(cr, ci, re, im)
