"""Streams of kaleidoscopes: samples of chains, and maps of their basins."""

from __future__ import annotations

from fractal_streams.kaleidoscope.basin_spec import BasinSpec as BasinSpec
from fractal_streams.kaleidoscope.basin_stream import BasinStream as BasinStream
from fractal_streams.kaleidoscope.sample_spec import KaleidoscopeSpec as KaleidoscopeSpec
from fractal_streams.kaleidoscope.sample_stream import KaleidoscopeStream as KaleidoscopeStream
