"""Orbit trap: how near the orbit comes to a figure in the plane: a point, a cross or a circle.

The last step is weighed by the share of it at the bound, so that no edge shows between counts.

P. Carlson, "Two artistic orbit trap rendering methods for Newton M-set fractals",
Computers & Graphics 23 (1999).
"""

from fractal_streams.colouring.crossing import escape_share, magnitude_squared
from fractal_streams.colouring.definition import colouring
from fractal_streams.colouring.palette import PALETTE, TURN, palette
from fractal_streams.dialect import absolute, cmul, cos, log2, minimum, sin, sqrt, where
from fractal_streams.formulas.definition import Parameter


def trap_distance(zr, zi, trap_x, trap_y, trap_angle, trap_shape):
    """Distance from z to the trap; circles have the radius 1/2."""
    re, im = cmul(zr - trap_x, zi - trap_y, cos(trap_angle), -sin(trap_angle))
    point = sqrt(magnitude_squared(re, im))
    cross = minimum(minimum(absolute(re), absolute(im)), 1e15)
    return where(trap_shape < 0.5, point, where(trap_shape < 1.5, cross, absolute(point - 0.5)))


def trap_nearest(zr, zi, nearest, trap_x, trap_y, trap_angle, trap_shape):
    return minimum(trap_distance(zr, zi, trap_x, trap_y, trap_angle, trap_shape), nearest), nearest


@colouring(
    source="P. Carlson, Computers & Graphics 23 (1999) 925-931",
    parameters={
        **PALETTE,
        "trap_x": Parameter(-0.8, 0.8, "real part of the trap's centre", "plane units"),
        "trap_y": Parameter(-0.8, 0.8, "imaginary part of the trap's centre", "plane units"),
        "trap_angle": Parameter(0.0, TURN, "turn of the cross", "radians"),
        "trap_shape": Parameter(0.0, 2.0, "0 a point, 1 a cross, 2 a circle", "1", "integer"),
    },
    accumulators={"nearest": 4.0, "nearest_before": 4.0},
    observe=trap_nearest,
)
def orbit_trap(
    zr, zi, pr, pi, nearest, nearest_before, radius,
    brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase,
):  # fmt: skip
    part = escape_share(zr, zi, pr, pi, radius)
    distance = nearest_before + part * (nearest - nearest_before)
    place = 0.25 * log2(0.03 + distance)
    return palette(place, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase)
