"""Nova: Newton's step for z**roots = 1 plus a constant, from z = 1; the pixel is the constant c.

z -> z - relaxation (z**p - 1) / (p z**(p - 1)) + c. Near c = 0 the search ends at a fixed point;
elsewhere it falls into cycles, whose regions are copies of the Mandelbrot set.

P. Derbyshire, "Nova", a formula of Ultra Fractal and Fractint (1996).
"""

from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.newton import newton_step


def nova_plane(x, y):
    return 1.0 + (x - x), y - y, x, y


@formula(
    source="P. Derbyshire (1996), formula files of Fractint and Ultra Fractal",
    parameters={
        "centre_x": Parameter(-0.6, 0.1, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.4, 0.4, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.2, 0.9, "from the centre to the edge", "plane units", "log"),
        "roots": Parameter(3.0, 5.0, "degree of the polynomial z**roots - 1", scale="integer"),
        "relaxation": Parameter(0.8, 1.5, "factor of Newton's step"),
    },
    start=nova_plane,
    class_parameters=("roots", "relaxation"),
    stop="converge",
    tolerance=1e-2,
    iterations=60,
)
def nova(zr, zi, cr, ci, roots, relaxation):
    re, im = newton_step(zr, zi, roots, relaxation, 0.0)
    return re + cr, im + ci
