"""The Mandelbrot set: z -> z**2 + c from the critical point.

B. Mandelbrot, Annals of the New York Academy of Sciences 357 (1980); H.-O. Peitgen, P. Richter,
The Beauty of Fractals (1986).
"""

from fractal_streams.dialect import csquare
from fractal_streams.formulas.definition import Parameter, formula


@formula(
    source="B. Mandelbrot, Annals NYAS 357 (1980) 249-259",
    parameters={
        "centre_x": Parameter(-1.4, 0.3, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.7, 0.7, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.3, 1.5, "from the centre to the edge", "plane units", "log"),
    },
    iterations=60,
)
def mandelbrot(zr, zi, cr, ci):
    re, im = csquare(zr, zi)
    return re + cr, im + ci
