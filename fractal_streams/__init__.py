"""Infinite, labelled, exactly reproducible image streams of fractal origin.

    from fractal_streams import open_stream
    batch = open_stream("fractal-10", seed=0, split="train").generate(range(512))

Names load on first use: importing this package loads neither torch nor Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractal_streams.batch import Batch as Batch, Sample as Sample
    from fractal_streams.colouring import Colouring as Colouring
    from fractal_streams.finite import FiniteStream as FiniteStream
    from fractal_streams.formulas import Formula as Formula, Parameter as Parameter, formula as formula
    from fractal_streams.integrations.huggingface import (
        load_dataset as load_dataset,
        register as register,
        unregister as unregister,
    )
    from fractal_streams.kaleidoscope.streams import (
        BasinSpec as BasinSpec,
        BasinStream as BasinStream,
        KaleidoscopeSpec as KaleidoscopeSpec,
        KaleidoscopeStream as KaleidoscopeStream,
    )
    from fractal_streams.loader import Loader as Loader
    from fractal_streams.mixture import Mixture as Mixture
    from fractal_streams.normalisation import channel_statistics as channel_statistics
    from fractal_streams.presets import open_stream as open_stream
    from fractal_streams.seed_code import SeedCodeSpec as SeedCodeSpec, SeedCodeStream as SeedCodeStream
    from fractal_streams.seed_interface import (
        FractalImageDataset as FractalImageDataset,
        FractalVideoDataset as FractalVideoDataset,
    )
    from fractal_streams.shard import Shard as Shard
    from fractal_streams.spec import StreamSpec as StreamSpec
    from fractal_streams.stored import StoredStream as StoredStream, open_stored as open_stored
    from fractal_streams.stream import StillStream as StillStream, Stream as Stream
    from fractal_streams.torch_data import IndexedStream as IndexedStream, StreamDataset as StreamDataset
    from fractal_streams.trainability.streams import (
        PointSpec as PointSpec,
        PointStream as PointStream,
        TileSpec as TileSpec,
        TileStream as TileStream,
    )
    from fractal_streams.video import VideoSpec as VideoSpec, VideoStream as VideoStream

__version__ = "0.1.0"

_HOME = {
    "BasinSpec": "kaleidoscope.streams",
    "BasinStream": "kaleidoscope.streams",
    "Batch": "batch",
    "Colouring": "colouring",
    "FiniteStream": "finite",
    "Formula": "formulas",
    "FractalImageDataset": "seed_interface",
    "FractalVideoDataset": "seed_interface",
    "IndexedStream": "torch_data",
    "KaleidoscopeSpec": "kaleidoscope.streams",
    "KaleidoscopeStream": "kaleidoscope.streams",
    "Loader": "loader",
    "Mixture": "mixture",
    "Parameter": "formulas",
    "PointSpec": "trainability.streams",
    "PointStream": "trainability.streams",
    "Sample": "batch",
    "SeedCodeSpec": "seed_code",
    "SeedCodeStream": "seed_code",
    "Shard": "shard",
    "StillStream": "stream",
    "StoredStream": "stored",
    "Stream": "stream",
    "StreamDataset": "torch_data",
    "StreamSpec": "spec",
    "TileSpec": "trainability.streams",
    "TileStream": "trainability.streams",
    "VideoSpec": "video",
    "VideoStream": "video",
    "channel_statistics": "normalisation",
    "formula": "formulas",
    "load_dataset": "integrations.huggingface",
    "open_stored": "stored",
    "open_stream": "presets",
    "register": "integrations.huggingface",
    "unregister": "integrations.huggingface",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
