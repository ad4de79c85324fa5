"""From indices to labels and parameters: one plan, three equal ways to draw it."""

from fractal_streams.draw.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
