"""The Kali set: an inversion of the folded plane, z -> |z| / (z . z) + c, |z| taken part by part.

The pixel is where the orbit starts. Orbits neither escape nor settle: they wander, and their
averages draw the picture. The count is of the steps that ended within the radius.

P. R. Andrioli ("Kali"), fractalforums.com (2010); "Star Nest", shadertoy.com/view/XlfGRj (2013).
"""

from fractal_streams.dialect import absolute, maximum, reciprocal
from fractal_streams.formulas.definition import Parameter, formula


def kali_step(zr, zi, shift_x, shift_y):
    """Fold to the first quadrant, invert in the unit circle, shift; a z nearer to 0 than 1e-6 counts as that far."""
    scale = reciprocal(maximum(zr * zr + zi * zi, 1e-12))
    return absolute(zr) * scale + shift_x, absolute(zi) * scale + shift_y


def kali_plane(x, y):
    return x, y, x - x, y - y


@formula(
    source="P. R. Andrioli (Kali), fractalforums.com (2010)",
    parameters={
        "centre_x": Parameter(-0.5, 0.5, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.5, 0.5, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.1, 2.0, "from the centre to the edge", "plane units", "log"),
        "shift_x": Parameter(-1.15, -0.35, "real part of c", "plane units"),
        "shift_y": Parameter(-1.15, -0.35, "imaginary part of c", "plane units"),
    },
    start=kali_plane,
    class_parameters=("shift_x", "shift_y"),
    stop="never",
    radius=1.0,
    iterations=12,
    colouring="average_magnitude",
)
def kali(zr, zi, shift_x, shift_y):
    return kali_step(zr, zi, shift_x, shift_y)
