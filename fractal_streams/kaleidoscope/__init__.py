"""Kaleidoscopes: networks fitted to the identity on a manifold, iterated on noise; as experiments and as streams.

from fractal_streams.kaleidoscope import fit, open_kaleidoscope
"""
