"""Newton's method for z**roots = 1, relaxed: z -> z - a (z**p - 1) / (p z**(p - 1)).

The pixel is where the search starts; it ends when a step is shorter than the tolerance. A relaxation
a other than 1 makes the convergence linear, with the factor |1 - a|, and an imaginary part twists
the chains into spirals. Written as z (1 - a/p) + (a/p) (1/z)**(p - 1), which no large z overflows.

A. Cayley, American Journal of Mathematics 2 (1879); J. Curry, L. Garnett, D. Sullivan,
Communications in Mathematical Physics 91 (1983).
"""

from fractal_streams.dialect import cmul, cpow, maximum, reciprocal
from fractal_streams.formulas.definition import Parameter, formula

ROOTS = Parameter(3.0, 6.0, "degree of the polynomial z**roots - 1", scale="integer")


def newton_step(zr, zi, roots, relaxation, relaxation_im):
    """Newton's step for z**roots - 1; a z nearer to 0 than 1e-6 is taken that far out at most."""
    scale = reciprocal(maximum(zr * zr + zi * zi, 1e-12))
    re, im = cpow(zr * scale, -zi * scale, roots - 1.0)
    share = reciprocal(roots)
    move_re, move_im = cmul(re - zr, im - zi, relaxation * share, relaxation_im * share)
    return zr + move_re, zi + move_im


def newton_plane(x, y):
    return x, y, x - x, y - y


@formula(
    source="A. Cayley, Amer. J. Math. 2 (1879) 97; J. Curry et al., Commun. Math. Phys. 91 (1983) 267-277",
    parameters={
        "centre_x": Parameter(-0.7, 0.7, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.7, 0.7, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.4, 2.0, "from the centre to the edge", "plane units", "log"),
        "roots": ROOTS,
        "relaxation": Parameter(0.8, 1.6, "real part of the step's factor a"),
        "relaxation_im": Parameter(-0.4, 0.4, "imaginary part of the step's factor a"),
    },
    start=newton_plane,
    class_parameters=("roots", "relaxation", "relaxation_im"),
    stop="converge",
    tolerance=1e-2,
    iterations=80,
)
def newton(zr, zi, roots, relaxation, relaxation_im):
    return newton_step(zr, zi, roots, relaxation, relaxation_im)
