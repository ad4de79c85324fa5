"""Magnet I: a step of renormalisation of a magnet with two states, z -> ((z**2 + c - 1) / (2z + c - 2))**2.

From the critical point 0; the pixel is c. Orbits end at the fixed point 1 (magnetic) or at infinity
(not); what does neither draws copies of the Mandelbrot set.

H.-O. Peitgen, P. Richter, The Beauty of Fractals (1986), from B. Derrida, L. De Seze,
C. Itzykson, "Fractal structure of zeros in hierarchical models", J. Stat. Phys. 33 (1983).
"""

from fractal_streams.dialect import cdiv, csquare
from fractal_streams.formulas.definition import Parameter, formula


@formula(
    source="B. Derrida, L. De Seze, C. Itzykson, J. Stat. Phys. 33 (1983) 559-569; The Beauty of Fractals (1986)",
    parameters={
        "centre_x": Parameter(1.0, 2.6, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-1.5, 1.5, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.4, 1.8, "from the centre to the edge", "plane units", "log"),
    },
    class_parameters=("centre_x", "centre_y", "half_width"),
    stop="either",
    limit=(1.0, 0.0),
    tolerance=1e-2,
    iterations=50,
)
def magnet_1(zr, zi, cr, ci):
    square_re, square_im = csquare(zr, zi)
    re, im = cdiv(square_re + cr - 1.0, square_im + ci, 2.0 * zr + cr - 2.0, 2.0 * zi + ci)
    return csquare(re, im)
