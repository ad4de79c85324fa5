"""The sine map of infinite-fractal-stream: both parts of z pass through sin, each for itself.

z -> ((sin Re z + i sin Im z) e^{i alpha})**power + c e^{i beta}, from z = 0. It stands in the
original's kernel as its second map, where the dataset never reached it. Powers below 1.5 and views
below 1.2, which the original would have drawn too, give mostly black pictures.

S. Ryu, Infinite-Fractal-Stream (2024).
"""

from fractal_streams.dialect import cmul, cos, cpow, sin
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.polynomial_power import PARAMETERS, rotated_plane


@formula(
    source="S. Ryu, Infinite-Fractal-Stream (2024)",
    parameters={
        "half_width": Parameter(1.2, 2.0, "from the centre to the edge", "plane units", "log"),
        "alpha": PARAMETERS["alpha"],
        "beta": PARAMETERS["beta"],
        "power": Parameter(1.5, 5.0, "exponent of the map"),
    },
    start=rotated_plane,
    class_parameters=("alpha", "power"),
    radius=2.0,
    iterations=30,
    colouring="three_phase_sine",
)
def sine(zr, zi, cr, ci, alpha, power):
    re, im = cmul(sin(zr), sin(zi), cos(alpha), sin(alpha))
    re, im = cpow(re, im, power)
    return re + cr, im + ci
