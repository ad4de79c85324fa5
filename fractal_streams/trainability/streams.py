"""Streams of the trainability boundary: labelled points of a plane, and tiles of it."""

from __future__ import annotations

from fractal_streams.trainability.point_stream import PointSpec as PointSpec, PointStream as PointStream
from fractal_streams.trainability.tile_stream import TileSpec as TileSpec, TileStream as TileStream
