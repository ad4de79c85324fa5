"""The Mandelbrot set: z -> z**2 + c from the critical point 0; the pixel is c.

As it stands the picture's centre is a plain point of the plane. `anchor` moves the whole view to
c(mu) = mu/2 (1 - mu/2), where the fixed point has the multiplier mu = anchor e^{i anchor_angle}:
|mu| = 1 is the rim of the main cardioid, so that a zoom at a random angle always meets the boundary.

An orbit outside a radius R >= 2.5 stays there, whatever c. From 0 the first step gives c, so that outside
|z| >= |c| at first; and while |z| >= |c| and |z| >= R, |z**2 + c| >= |z|**2 - |c| >= |z| (|z| - 1) >= 1.5 |z|.
The same holds of any map from 0 whose first part has the modulus |z|**2.

B. Mandelbrot, Annals of the New York Academy of Sciences 357 (1980); H.-O. Peitgen, P. Richter,
The Beauty of Fractals (1986).
"""

from fractal_streams.dialect import csquare_plus
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.julia import rim_point

ANCHOR = {
    "anchor": Parameter(0.0, 0.0, "modulus of the multiplier where the view's origin lies; 0 leaves it at 0"),
    "anchor_angle": Parameter(0.0, 0.0, "angle of that multiplier", "radians"),
}


def anchored_plane(x, y, anchor, anchor_angle):
    re, im = rim_point(anchor, anchor_angle)
    return x - x, y - y, x + re, y + im


def square_stays_out(radius):
    return radius >= 2.5


def cardioid_or_disk(cr, ci):
    """Whether c lies in the main cardioid or the disk of period 2, and not within about 1e-5 of their rims."""
    x, square = cr - 0.25, ci * ci
    distance = x * x + square
    cardioid = distance * (distance + x) + 1e-5 < 0.25 * square
    disk = (cr + 1.0) * (cr + 1.0) + square < 0.0625 - 1e-5
    return cardioid | disk


@formula(
    source="B. Mandelbrot, Annals NYAS 357 (1980) 249-259",
    parameters={
        "centre_x": Parameter(-1.4, 0.3, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.7, 0.7, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 1.5, "from the centre to the edge", "plane units", "log"),
        **ANCHOR,
    },
    start=anchored_plane,
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=60,
    stays_out=square_stays_out,
    interior=cardioid_or_disk,
)
def mandelbrot(zr, zi, cr, ci):
    return csquare_plus(zr, zi, cr, ci)
