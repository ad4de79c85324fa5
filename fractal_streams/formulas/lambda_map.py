"""Lambda, the complex logistic map: z -> lambda z (1 - z) from its critical point 1/2.

The pixel is lambda. The plane shows the Mandelbrot set unrolled to two discs that touch at 1, of
radius 1 about 0 and about 2; a half turn about 1 maps it to itself. `anchor` moves the view to
lambda = anchor e^{i anchor_angle}: anchor 1 is the rim of the left disc.

An orbit outside a radius R >= 4 stays there. For |lambda| <= 1/2 none gets there: from |z| <= 1/2 the next
is at most 1/2 * 1/2 * 3/2. For others |lambda z (1 - z)| >= 1/2 |z| (|z| - 1) >= 1.5 |z|.

B. Mandelbrot, Annals of the New York Academy of Sciences 357 (1980).
"""

from fractal_streams.dialect import cmul, cos, sin
from fractal_streams.formulas.definition import Parameter, formula

ANCHOR = {
    "anchor": Parameter(0.0, 0.0, "modulus of the lambda where the view's origin lies; 0 leaves it at 0"),
    "anchor_angle": Parameter(0.0, 0.0, "angle of that lambda", "radians"),
}


def lambda_plane(x, y, anchor, anchor_angle):
    return 0.5 + (x - x), y - y, x + anchor * cos(anchor_angle), y + anchor * sin(anchor_angle)


def logistic_stays_out(radius):
    return radius >= 4.0


@formula(
    name="lambda",
    source="B. Mandelbrot, Annals NYAS 357 (1980) 249-259",
    parameters={
        "centre_x": Parameter(-1.2, 3.2, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(0.5, 1.2, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 2.0, "from the centre to the edge", "plane units", "log"),
        **ANCHOR,
    },
    start=lambda_plane,
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=60,
    stays_out=logistic_stays_out,
)
def lambda_map(zr, zi, cr, ci):
    re, im = cmul(zr, zi, 1.0 - zr, -zi)
    return cmul(cr, ci, re, im)
