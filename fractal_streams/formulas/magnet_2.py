"""Magnet II: a step of renormalisation of a magnet with three states.

z -> ((z**3 + 3(c-1)z + (c-1)(c-2)) / (3z**2 + 3(c-2)z + (c-1)(c-2) + 1))**2 from the critical point
0; the pixel is c. Orbits end at the fixed point 1, at infinity, or neither.

H.-O. Peitgen, P. Richter, The Beauty of Fractals (1986), from B. Derrida, L. De Seze,
C. Itzykson, "Fractal structure of zeros in hierarchical models", J. Stat. Phys. 33 (1983).
"""

from fractal_streams.dialect import cdiv, cmul, csquare
from fractal_streams.formulas.definition import Parameter, formula


@formula(
    source="B. Derrida, L. De Seze, C. Itzykson, J. Stat. Phys. 33 (1983) 559-569; The Beauty of Fractals (1986)",
    parameters={
        "centre_x": Parameter(0.8, 1.8, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-1.0, 1.0, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.4, 1.4, "from the centre to the edge", "plane units", "log"),
    },
    class_parameters=("centre_x", "centre_y", "half_width"),
    stop="either",
    limit=(1.0, 0.0),
    tolerance=1e-2,
    iterations=50,
)
def magnet_2(zr, zi, cr, ci):
    square_re, square_im = csquare(zr, zi)
    both_re, both_im = cmul(cr - 1.0, ci, cr - 2.0, ci)
    top_re, top_im = cmul(zr, zi, square_re + 3.0 * (cr - 1.0), square_im + 3.0 * ci)
    low_re, low_im = cmul(zr, zi, 3.0 * (zr + cr - 2.0), 3.0 * (zi + ci))
    re, im = cdiv(top_re + both_re, top_im + both_im, low_re + both_re + 1.0, low_im + both_im)
    return csquare(re, im)
