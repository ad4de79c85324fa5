"""Stored pictures as streams: folders, archives, tables and videos, decoded once.

from fractal_streams.stored import open_stored
stream = open_stored("photos", height=64, split="train", test=0.1)
"""

from fractal_streams.stored.entries import Skipped as Skipped
from fractal_streams.stored.packed import Pack as Pack
from fractal_streams.stored.packing import pack as pack
from fractal_streams.stored.stream import StoredStream as StoredStream, open_stored as open_stored

__all__ = ["Pack", "Skipped", "StoredStream", "open_stored", "pack"]
