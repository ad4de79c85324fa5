"""Kaleidoscopes: networks fitted to the identity on a manifold, iterated on noise; as experiments and as streams.

from fractal_streams.kaleidoscope import Network, completed, fit, open_kaleidoscope, points
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractal_streams.kaleidoscope.attractors import find_attractors as find_attractors
    from fractal_streams.kaleidoscope.chain import Outcome as Outcome, Schedule as Schedule
    from fractal_streams.kaleidoscope.engines import open_engine as open_engine
    from fractal_streams.kaleidoscope.fitted import (
        Attractors as Attractors,
        Kaleidoscope as Kaleidoscope,
        Sources as Sources,
        WeightFileError as WeightFileError,
        open_kaleidoscope as open_kaleidoscope,
    )
    from fractal_streams.kaleidoscope.fitting import fit as fit
    from fractal_streams.kaleidoscope.network import Network as Network
    from fractal_streams.kaleidoscope.presets import RECIPES as RECIPES, make as make
    from fractal_streams.kaleidoscope.quality import completed as completed, report as report
    from fractal_streams.kaleidoscope.sources import (
        of_arrays as of_arrays,
        of_pictures as of_pictures,
        of_stream as of_stream,
        of_torchvision as of_torchvision,
        points as points,
        stacked as stacked,
    )
    from fractal_streams.kaleidoscope.starts import Jitter as Jitter, Start as Start
    from fractal_streams.kaleidoscope.training import Training as Training

_HOME = {
    "RECIPES": "presets",
    "Attractors": "fitted",
    "Jitter": "starts",
    "Kaleidoscope": "fitted",
    "Network": "network",
    "Outcome": "chain",
    "Schedule": "chain",
    "Sources": "fitted",
    "Start": "starts",
    "Training": "training",
    "WeightFileError": "fitted",
    "completed": "quality",
    "find_attractors": "attractors",
    "fit": "fitting",
    "make": "presets",
    "of_arrays": "sources",
    "of_pictures": "sources",
    "of_stream": "sources",
    "of_torchvision": "sources",
    "open_engine": "engines",
    "open_kaleidoscope": "fitted",
    "points": "sources",
    "report": "quality",
    "stacked": "sources",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
