"""Streams of kaleidoscopes: samples of chains, and maps of their basins."""

from __future__ import annotations

from fractal_streams.kaleidoscope.sample_spec import KaleidoscopeSpec as KaleidoscopeSpec
from fractal_streams.kaleidoscope.sample_stream import KaleidoscopeStream as KaleidoscopeStream
