"""The catalogue of colourings: one colouring, one file, in display order."""

from __future__ import annotations

import importlib

from fractal_streams.colouring.definition import REGISTRY, Colouring, colouring
from fractal_streams.errors import unknown_name
from fractal_streams.formulas.definition import import_home

CATALOGUE = (
    "three_phase_sine",
    "smooth",
    "exponential_smoothing",
    "orbit_trap",
    "stripe_average",
    "average_magnitude",
    "interior",
)

__all__ = ["CATALOGUE", "Colouring", "colouring", "find_colouring"]


def find_colouring(name: str) -> Colouring:
    """The colouring of that name, built in or registered by the caller's own file.

    Raises:
        UnknownNameError: no such colouring; names the nearest known one.
    """
    module, _, short = name.rpartition(":")
    if module:
        import_home(module, "colouring", name)
    elif short in CATALOGUE:
        importlib.import_module(f"{__name__}.{short}")
    if short not in REGISTRY:
        raise unknown_name(
            "colouring", short, {*CATALOGUE, *REGISTRY},
            "; a colouring of your own must be imported first, or named as 'package.module:colouring'",
        )  # fmt: skip
    return REGISTRY[short]
