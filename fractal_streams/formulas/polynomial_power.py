"""The polynomial-power map of infinite-fractal-stream: a class is four coefficients.

z -> ((P(Re z) + i Im z) e^{i alpha})**power + c e^{i beta}, from z = 0, with
P(x) = poly0 + poly1 x**2 + poly2 x**3 + poly3 x**4 and the principal branch of the power.

S. Ryu, Infinite-Fractal-Stream (2024), README, "How to use".
"""

from fractal_streams.dialect import cmul, cos, cpow, sin
from fractal_streams.formulas.definition import Parameter, formula

TURN = 6.283185307179586

PARAMETERS = {
    "alpha": Parameter(0.0, TURN, "rotation before the power", "radians"),
    "beta": Parameter(0.0, TURN, "rotation of c", "radians"),
    "power": Parameter(0.0, 5.0, "exponent of the map"),
    "poly0": Parameter(-1.0, 1.0, "coefficient of 1 in P"),
    "poly1": Parameter(-1.0, 1.0, "coefficient of x**2 in P"),
    "poly2": Parameter(-1.0, 1.0, "coefficient of x**3 in P"),
    "poly3": Parameter(-1.0, 1.0, "coefficient of x**4 in P"),
}
COEFFICIENTS = ("poly0", "poly1", "poly2", "poly3")


def rotated_plane(x, y, beta):
    re, im = cmul(x, y, cos(beta), sin(beta))
    return 0.0, 0.0, re, im


@formula(
    source="S. Ryu, Infinite-Fractal-Stream (2024)",
    parameters=PARAMETERS,
    start=rotated_plane,
    class_parameters=COEFFICIENTS,
    radius=2.0,
    iterations=30,
    colouring="three_phase_sine",
)
def polynomial_power(zr, zi, cr, ci, alpha, power, poly0, poly1, poly2, poly3):
    square = zr * zr
    image = poly0 + square * (poly1 + zr * (poly2 + zr * poly3))
    re, im = cmul(image, zi, cos(alpha), sin(alpha))
    re, im = cpow(re, im, power)
    return re + cr, im + ci
