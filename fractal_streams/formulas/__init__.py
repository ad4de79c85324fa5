"""The catalogue of formulas: one formula, one file, in display order."""

from __future__ import annotations

import importlib

from fractal_streams.errors import unknown_name
from fractal_streams.formulas.definition import REGISTRY, Formula, Parameter, formula, import_home

CATALOGUE = (
    "polynomial_power",
    "sine",
    "mandelbrot",
    "multibrot",
    "julia",
    "burning_ship",
    "tricorn",
    "celtic",
    "phoenix",
    "newton",
    "nova",
    "lambda",
    "magnet_1",
    "magnet_2",
    "kali",
    "kali_julia",
)

MODULES = {"lambda": "lambda_map"}
"""Modules of the formulas whose names are words of Python."""

__all__ = ["CATALOGUE", "Formula", "Parameter", "find_formula", "formula"]


def find_formula(name: str) -> Formula:
    """The formula of that name, built in or registered by the caller's own file.

    A name of the form "package.module:formula" imports that module first.

    Raises:
        UnknownNameError: no such formula; names the nearest known one.
    """
    module, _, short = name.rpartition(":")
    if module:
        import_home(module, "formula", name)
    elif short in CATALOGUE:
        importlib.import_module(f"{__name__}.{MODULES.get(short, short)}")
    if short not in REGISTRY:
        raise unknown_name(
            "formula", short, {*CATALOGUE, *REGISTRY},
            "; a formula of your own must be imported first, or named as 'package.module:formula'",
        )  # fmt: skip
    return REGISTRY[short]
