"""The tricorn: z -> conj(z)**2 + c from 0; the pixel is c. A third of a turn maps it to itself.

`anchor` moves the view to c = w - conj(w)**2 with w = anchor/2 e^{i anchor_angle}, where w is a
fixed point: anchor 1 is the rim of the period-1 component, a deltoid.

W. D. Crowe, R. Hasson, P. J. Rippon, P. E. D. Strain-Clark, "On the structure of the Mandelbar
set", Nonlinearity 2 (1989).
"""

from fractal_streams.dialect import cos, sin
from fractal_streams.formulas.definition import Parameter, formula

ANCHOR = {
    "anchor": Parameter(0.0, 0.0, "twice the modulus of the fixed point where the view's origin lies; 0 leaves it at 0"),
    "anchor_angle": Parameter(0.0, 0.0, "angle of that fixed point", "radians"),
}


def deltoid_plane(x, y, anchor, anchor_angle):
    half = 0.5 * anchor
    re = half * cos(anchor_angle) - half * half * cos(2.0 * anchor_angle)
    im = half * sin(anchor_angle) + half * half * sin(2.0 * anchor_angle)
    return x - x, y - y, x + re, y + im


@formula(
    source="W. D. Crowe et al., Nonlinearity 2 (1989) 541-553",
    parameters={
        "centre_x": Parameter(-1.0, 0.5, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.9, 0.9, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 1.5, "from the centre to the edge", "plane units", "log"),
        **ANCHOR,
    },
    start=deltoid_plane,
    class_parameters=("centre_x", "centre_y", "half_width"),
    iterations=60,
)
def tricorn(zr, zi, cr, ci):
    return zr * zr - zi * zi + cr, ci - 2.0 * zr * zi
