"""The crossing: how far between its last two steps an orbit crossed the bound that stopped it.

A share in [0, 1] of the last step, 1 where the orbit stopped exactly on the bound and 0 where it
would have stopped one step earlier. Adding it to the count, or weighing the last step of an average
by it, leaves no edge where the count changes. Distances are compared as log log of their squares:
for an orbit that escapes with degree d from a large radius the share is the classical
1 - log(log|z| / log radius) / log d, and for Newton's quadratic convergence it is smooth as well.

A. Douady, J. Hubbard (1984) for the potential; L. Vepstas, "Renormalizing the Mandelbrot escape" (1997).
"""

from fractal_streams.dialect import log2, maximum, minimum, reciprocal, where

GAPS = {"gap": 1.0, "gap_before": 1.0}
"""Accumulators: squared distance to the goal of convergence after the last step, and the step before."""


def gaps(zr, zi, goal_r, goal_i, gap):
    """The new values of `GAPS`."""
    re, im = zr - goal_r, zi - goal_i
    return re * re + im * im, gap


def magnitude_squared(zr, zi):
    """|z|**2, at most 1e30; a z that has overflowed counts as that far."""
    square = zr * zr + zi * zi
    return where(square < 1e30, square, 1e30)


def potential(square):
    return log2(log2(2.0 + square))


def share(before, after, bound):
    """Where a bound lies between the squares of two steps, 0 to 1; 1 if they have not reached it."""
    low = potential(before)
    return minimum(maximum((potential(bound) - low) * reciprocal(maximum(potential(after) - low, 1e-9)), 0.0), 1.0)


def escape_share(zr, zi, pr, pi, radius):
    """The share of the last step at which the orbit left the disk; 1 if it is still inside."""
    return share(magnitude_squared(pr, pi), magnitude_squared(zr, zi), radius * radius)


def crossing(inside, zr, zi, pr, pi, gap, gap_before, radius, tolerance, converges):
    """The share of the last step at which the orbit escaped or converged; 1 if it did neither.

    Where nothing converges neither `gap` matters, and compilers leave out what reads them.
    """
    near, nearer = reciprocal(maximum(gap_before, 1e-30)), reciprocal(maximum(gap, 1e-30))
    converged = share(near, nearer, reciprocal(tolerance * tolerance))
    escaped = escape_share(zr, zi, pr, pi, radius)
    ended_inside = where(magnitude_squared(zr, zi) < radius * radius, converged, escaped)
    stopped = where(converges > 0.5, ended_inside, escaped)
    return where(inside > 0.5, 1.0, stopped)
