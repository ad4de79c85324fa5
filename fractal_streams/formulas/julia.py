"""Julia sets of z -> z**2 + c; the pixel is where the orbit starts.

c is drawn through the multiplier mu of a fixed point, c = mu/2 (1 - mu/2): for |mu| near 1 it lies
near the rim of the Mandelbrot set's main cardioid, where Julia sets are neither blobs nor dust.

An orbit outside a radius R >= 2.5 with R >= |c| stays there: |z**2 + c| >= |z|**2 - |c| >= |z| (|z| - 1)
>= 1.5 |z|; and |c| <= |mu|/2 + |mu|**2/4.

G. Julia, Journal de mathematiques pures et appliquees 8 (1918); the rim: A. Douady, J. Hubbard,
Etude dynamique des polynomes complexes (1984).
"""

from fractal_streams.dialect import absolute, cmul, cos, csquare_plus, sin
from fractal_streams.formulas.definition import Parameter, formula

TURN = 6.283185307179586


def rim_point(multiplier, angle):
    """The c of z**2 + c whose fixed point has the multiplier of that modulus and angle."""
    half_re = 0.5 * multiplier * cos(angle)
    half_im = 0.5 * multiplier * sin(angle)
    return cmul(half_re, half_im, 1.0 - half_re, -half_im)


def julia_plane(x, y, multiplier, angle):
    re, im = rim_point(multiplier, angle)
    return x, y, re + (x - x), im + (x - x)


def rim_stays_out(radius, multiplier):
    half = 0.5 * absolute(multiplier)
    return (radius >= 2.5) & (half + half * half <= radius)


@formula(
    source="G. Julia, J. Math. Pures Appl. 8 (1918) 47-245",
    parameters={
        "centre_x": Parameter(-0.4, 0.4, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.4, 0.4, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 1.4, "from the centre to the edge", "plane units", "log"),
        "multiplier": Parameter(0.96, 1.08, "modulus of the fixed point's multiplier; 1 is the cardioid's rim"),
        "angle": Parameter(0.0, TURN, "angle of the fixed point's multiplier", "radians"),
    },
    start=julia_plane,
    class_parameters=("multiplier", "angle"),
    iterations=100,
    stays_out=rim_stays_out,
)
def julia(zr, zi, cr, ci):
    return csquare_plus(zr, zi, cr, ci)
