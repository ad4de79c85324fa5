"""The multibrot sets with real power: z -> z**power + c from 0, principal branch; the pixel is c.

A whole power has power - 1 arms; between two of them a new arm grows out of the branch cut.
`anchor` moves the view to the c whose fixed point has the multiplier mu = anchor e^{i anchor_angle},
z = (mu/power)**(1/(power - 1)) and c = z - z**power: the rim of the period-1 component for |mu| = 1.

U. G. Gujar, V. C. Bhavsar, "Fractals from z <- z**alpha + c in the complex c-plane",
Computers & Graphics 15 (1991).
"""

from fractal_streams.dialect import cos, cpow, exp2, log2, maximum, reciprocal, sin, where
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.mandelbrot import ANCHOR


def anchored_power_plane(x, y, power, anchor, anchor_angle):
    share = reciprocal(maximum(power - 1.0, 0.1))
    modulus = where(anchor > 0.0, exp2(share * log2(maximum(anchor, 1e-9) * reciprocal(power))), 0.0)
    turn = share * anchor_angle
    reach = anchor * reciprocal(power) * modulus
    re = modulus * cos(turn) - reach * cos(turn + anchor_angle)
    im = modulus * sin(turn) - reach * sin(turn + anchor_angle)
    return x - x, y - y, x + re, y + im


@formula(
    source="U. G. Gujar, V. C. Bhavsar, Computers & Graphics 15 (1991) 441-449",
    parameters={
        "half_width": Parameter(0.7, 1.4, "from the centre to the edge", "plane units", "log"),
        "centre_x": Parameter(-0.4, 0.4, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.4, 0.4, "imaginary part of the picture's centre", "plane units"),
        "power": Parameter(2.0, 6.0, "exponent of the map"),
        **ANCHOR,
    },
    start=anchored_power_plane,
    class_parameters=("power",),
    iterations=60,
)
def multibrot(zr, zi, cr, ci, power):
    re, im = cpow(zr, zi, power)
    return re + cr, im + ci
