"""The Mandelbrot set: z -> z**2 + c from the critical point 0; the pixel is c.

As it stands the picture's centre is a plain point of the plane. `anchor` moves the whole view to
c(mu) = mu/2 (1 - mu/2), where the fixed point has the multiplier mu = anchor e^{i anchor_angle}:
|mu| = 1 is the rim of the main cardioid, so that a zoom at a random angle always meets the boundary.

B. Mandelbrot, Annals of the New York Academy of Sciences 357 (1980); H.-O. Peitgen, P. Richter,
The Beauty of Fractals (1986).
"""

from fractal_streams.dialect import csquare
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.julia import rim_point

ANCHOR = {
    "anchor": Parameter(0.0, 0.0, "modulus of the multiplier where the view's origin lies; 0 leaves it at 0"),
    "anchor_angle": Parameter(0.0, 0.0, "angle of that multiplier", "radians"),
}


def anchored_plane(x, y, anchor, anchor_angle):
    re, im = rim_point(anchor, anchor_angle)
    return x - x, y - y, x + re, y + im


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
)
def mandelbrot(zr, zi, cr, ci):
    re, im = csquare(zr, zi)
    return re + cr, im + ci
