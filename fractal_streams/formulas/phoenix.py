"""Phoenix: a square that remembers, z_{n+1} = z_n**2 + c + memory z_{n-1}, from z_{-1} = 0.

The pixel is where the orbit starts. c is drawn through an eigenvalue mu of the map's derivative at a
fixed point, which lies at w = (mu - memory/mu)/2 with c = (1 - memory) w - w**2; |mu| = 1 is the rim
of the component with an attracting fixed point. Ushiki's phoenix has c = 0.5667, memory = -0.5.

An orbit outside a radius R with R >= |c| and R >= 3 + |memory| stays there: while the z before is not
the farther one, |z**2 + c + memory p| >= |z| (|z| - 1 - |memory|) >= 2 |z|. It is not when the orbit
leaves: p lies within R, or is the start, from which the first step, without memory, leads out too.

S. Ushiki, "Phoenix", IEEE Transactions on Circuits and Systems 35 (1988).
"""

from fractal_streams.dialect import absolute, cos, csquare, csquare_plus, maximum, reciprocal, sin, where
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.julia import TURN


def phoenix_plane(x, y, multiplier, angle, memory):
    inverse = memory * reciprocal(maximum(multiplier, 1e-3))
    re = 0.5 * (multiplier - inverse) * cos(angle)
    im = 0.5 * (multiplier + inverse) * sin(angle)
    square_re, square_im = csquare(re, im)
    rest = 1.0 - memory
    return x, y, rest * re - square_re + (x - x), rest * im - square_im + (x - x)


def phoenix_stays_out(radius, multiplier, memory):
    """By |w| <= (|mu| + |memory / mu|)/2 and |c| <= (1 + |memory|) |w| + |w|**2."""
    weight = absolute(memory)
    reach = 0.5 * (absolute(multiplier) + weight * reciprocal(maximum(multiplier, 1e-3)))
    return (radius >= 3.0 + weight) & ((1.0 + weight) * reach + reach * reach <= radius)


@formula(
    source="S. Ushiki, IEEE Trans. Circuits Syst. 35 (1988) 788-789",
    parameters={
        "centre_x": Parameter(-0.3, 0.3, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.3, 0.3, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.5, 1.4, "from the centre to the edge", "plane units", "log"),
        "multiplier": Parameter(0.96, 1.08, "modulus of an eigenvalue at the fixed point; 1 is the rim"),
        "angle": Parameter(0.0, TURN, "angle of that eigenvalue", "radians"),
        "memory": Parameter(-0.7, 0.4, "weight of the z before"),
    },
    start=phoenix_plane,
    class_parameters=("multiplier", "angle", "memory"),
    iterations=100,
    stays_out=phoenix_stays_out,
)
def phoenix(zr, zi, cr, ci, pr, pi, n, memory):
    re, im = csquare_plus(zr, zi, cr, ci)
    weight = where(n < 0.5, 0.0, memory)
    return re + weight * pr, im + weight * pi
