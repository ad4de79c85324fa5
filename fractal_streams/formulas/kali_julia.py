"""A hybrid of Kali's fold and a Julia set: every `period`-th step blends the two, the others square.

z -> w kali(z) + (1 - w)(z**2 + c) with w = `blend` on every period-th step and 0 on the others:
period 1 is a blend throughout, blend 1 a strict alternation. The pixel is where the orbit starts.

The kind of mixture that CALAE (github.com/milesgray/CALAE, 2022) was trained on; its parts:
G. Julia (1918), P. R. Andrioli ("Kali"), fractalforums.com (2010).
"""

from fractal_streams.dialect import csquare, floor, reciprocal, where
from fractal_streams.formulas.definition import Parameter, formula
from fractal_streams.formulas.julia import TURN, julia_plane
from fractal_streams.formulas.kali import kali_step


@formula(
    source="CALAE (2022), after G. Julia (1918) and P. R. Andrioli (2010)",
    parameters={
        "centre_x": Parameter(-0.5, 0.5, "real part of the picture's centre", "plane units"),
        "centre_y": Parameter(-0.5, 0.5, "imaginary part of the picture's centre", "plane units"),
        "half_width": Parameter(0.4, 1.5, "from the centre to the edge", "plane units", "log"),
        "multiplier": Parameter(0.9, 1.3, "modulus of the multiplier that gives c"),
        "angle": Parameter(0.0, TURN, "angle of the multiplier that gives c", "radians"),
        "shift_x": Parameter(-1.1, -0.4, "real part of Kali's constant", "plane units"),
        "shift_y": Parameter(-1.1, -0.4, "imaginary part of Kali's constant", "plane units"),
        "period": Parameter(1.0, 4.0, "steps from one blend to the next", "steps", "integer"),
        "blend": Parameter(0.1, 1.0, "share of Kali's step in a blend"),
    },
    start=julia_plane,
    class_parameters=("multiplier", "angle", "shift_x", "shift_y", "period", "blend"),
    iterations=12,
    colouring="average_magnitude",
)
def kali_julia(zr, zi, cr, ci, n, shift_x, shift_y, period, blend):
    square_re, square_im = csquare(zr, zi)
    fold_re, fold_im = kali_step(zr, zi, shift_x, shift_y)
    place = n - period * floor((n + 0.5) * reciprocal(period))
    weight = where(place > period - 1.5, blend, 0.0)
    re, im = square_re + cr, square_im + ci
    return re + weight * (fold_re - re), im + weight * (fold_im - im)
