"""Where chains start, and the noise between steps: by name and by counter, so that chain i is the same in any batch.

The words of value p of chain i at iterate k are philox(counter=(i_low, i_high, k, p // 4), key)[p % 4].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32, Float64, Network
from fractal_streams.kaleidoscope.training import number
from fractal_streams.rng import Int64
from fractal_streams.spec import one_of

START_KINDS = ("uniform", "normal", "binary", "pink", "coarse", "blend", "source")
JITTER_KINDS = ("normal", "uniform", "seed_normal", "seed_uniform")
COARSE = 4
"""Cells along each edge of a "coarse" start."""

KeyOf = Callable[..., tuple[int, int]]
"""From the name of a draw, and more, to a key: `Stream.key` of a stream."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first state of chains, in the network's range [low, high] with its middle and half its span.

    kind: "uniform" over the range; "normal", middle + half * N(0, 1); "binary", either end; "pink", normal octaves of
        cells of 1, 2, 4, ... values an edge, of equal weight (amplitude about 1 / frequency; R. Voss and J. Clarke
        1978, in two dimensions); "coarse", 4 x 4 normal values with bilinear interpolation; "source", one of the
        network's sources; "blend", the mean of two of them.
    noise: standard deviation of normal noise that is added, in halves of the span, 0 and up.

    All but "uniform" and "binary" are clipped to the range.

    Example:
        >>> Start(kind="source", noise=0.5)
        Start(kind='source', noise=0.5)
    """

    kind: str = "uniform"
    noise: float = 0.0

    def __post_init__(self) -> None:
        one_of(self.kind, "start kind", START_KINDS)
        object.__setattr__(self, "noise", number(self.noise, "start noise", 0.0, 100.0))


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Noise that is added behind each step, its sum clipped to the range; what is shown is the clean iterate.

    kind: "normal", size * half the span * N(0, 1); "uniform", size * span * (U - 1/2), both of mean 0. "seed_normal"
        and "seed_uniform" are those of the original program, whose mean is not 0: size * N(middle, half the span) (for
        [0, 1]; N(0, 1) for [-1, 1]), and size * (high + span * U).
    size: 0 and up.
    """

    kind: str = "normal"
    size: float = 0.01

    def __post_init__(self) -> None:
        one_of(self.kind, "jitter kind", JITTER_KINDS)
        object.__setattr__(self, "size", number(self.size, "jitter size", 0.0, 100.0))


def start_values(start: Start, fitted: Kaleidoscope, chains: Int64, models: Int64, key_of: KeyOf) -> Float32:
    """(B, D) float32 first states of chains.

    Args:
        chains: (B,) int64, not negative.
        models: (B,) int64, the network of the bank of each; only "source" and "blend" look at it.
        key_of: names the draws.
    """
    network = fitted.network
    low, high = network.range
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    if start.kind == "uniform":
        values = low + (high - low) * unit_table(chains, network.size, key_of("start"))
    elif start.kind == "binary":
        values = np.where(unit_table(chains, network.size, key_of("start")) < 0.5, low, high)
    elif start.kind == "normal":
        values = middle + half * normal_table(chains, network.size, key_of("start"))
    elif start.kind == "pink":
        values = middle + half * pink(network, chains, key_of)
    elif start.kind == "coarse":
        values = middle + half * coarse(network, chains, key_of)
    else:
        values = of_sources(start, fitted, chains, models, key_of)
    if start.noise:
        values = values + start.noise * half * normal_table(chains, network.size, key_of("start noise"))
    return np.asarray(np.clip(values, low, high), np.float32)


def of_sources(start: Start, fitted: Kaleidoscope, chains: Int64, models: Int64, key_of: KeyOf) -> Float64:
    """(B, D): a source of each chain's network, or the mean of two."""
    rows = source_rows(fitted, chains, key_of)
    values = np.empty((len(chains), fitted.network.size))
    for model in np.unique(models):
        here, table = models == model, fitted.source_values(int(model)).astype(np.float64)
        first, second = (table[row[here]] for row in rows)
        values[here] = first if start.kind == "source" else 0.5 * (first + second)
    return values


def source_rows(fitted: Kaleidoscope, chains: Int64, key_of: KeyOf) -> tuple[Int64, Int64]:
    """Two (B,) int64: which sources "source" (the first) and "blend" (both) start from."""
    words = rng.words(chains, key_of("start source"))
    count = np.uint64(len(fitted.sources))
    first, second = ((word.astype(np.uint64) * count >> np.uint64(32)).astype(np.int64) for word in words[:2])
    return first, second


def pink(network: Network, chains: Int64, key_of: KeyOf) -> Float64:
    """(B, D): octaves of cells, of equal variance, whose sum has variance 1."""
    channels, height, width = network.shape if network.is_picture else (1, 1, network.size)
    octaves = max(height, width).bit_length()
    total = np.zeros((len(chains), channels, height, width))
    for octave in range(octaves):
        tall, wide = -(-height >> octave), -(-width >> octave)
        cells = normal_table(chains, channels * tall * wide, key_of("start octave", octave))
        cells = cells.reshape(len(chains), channels, tall, wide)
        total += cells[:, :, np.arange(height)[:, None] >> octave, np.arange(width) >> octave]
    return (total / math.sqrt(octaves)).reshape(len(chains), network.size)


def coarse(network: Network, chains: Int64, key_of: KeyOf) -> Float64:
    """(B, D): few normal values with bilinear interpolation between them, corners on corners."""
    channels, height, width = network.shape if network.is_picture else (1, 1, network.size)
    tall, wide = min(COARSE, height), min(COARSE, width)
    cells = normal_table(chains, channels * tall * wide, key_of("start")).reshape(len(chains), channels, tall, wide)
    down, across = between(height, tall), between(width, wide)
    return np.einsum("yr,bcrs,xs->bcyx", down, cells, across).reshape(len(chains), network.size)


def between(length: int, cells: int) -> Float64:
    """(length, cells) weights of linear interpolation."""
    place = np.linspace(0.0, cells - 1.0, length) if length > 1 else np.zeros(1)
    return np.asarray(np.clip(1.0 - np.abs(place[:, None] - np.arange(cells)), 0.0, 1.0))


def jittered(values: Any, jitter: Jitter, network: Network, chains: Int64, iterate: int, key_of: KeyOf) -> Float32:
    """(B, D) float32: states behind step `iterate` (1 and up) with their noise, clipped to the range."""
    low, high = network.range
    key, half = key_of("jitter"), 0.5 * (high - low)
    if jitter.kind.endswith("normal"):
        drawn = half * normal_table(chains, network.size, key, iterate)
        drawn += 0.5 * (low + high) if jitter.kind == "seed_normal" else 0.0
    else:
        drawn = (high - low) * unit_table(chains, network.size, key, iterate)
        drawn += high if jitter.kind == "seed_uniform" else -half
    return np.asarray(np.clip(values + jitter.size * drawn, low, high), np.float32)


def word_table(chains: Int64, count: int, key: tuple[int, int], iterate: int = 0) -> Any:
    """(B, count) uint32 words of chains at an iterate."""
    unsigned = chains.astype(np.uint64)[:, None]
    low, high = (unsigned & np.uint64(0xFFFFFFFF)).astype(np.uint32), (unsigned >> np.uint64(32)).astype(np.uint32)
    step, block = np.full((1, 1), iterate, np.uint32), np.arange(-(-count // 4), dtype=np.uint32)[None]
    words = np.stack(np.broadcast_arrays(*rng.philox((low, high, step, block), key)), axis=-1)
    return words.reshape(len(chains), 4 * block.size)[:, :count]


def unit_table(chains: Int64, count: int, key: tuple[int, int], iterate: int = 0) -> Float64:
    """(B, count) float64 in (0, 1) of 32 bits."""
    return (word_table(chains, count, key, iterate).astype(np.float64) + 0.5) * 2.0**-32


def normal_table(chains: Int64, count: int, key: tuple[int, int], iterate: int = 0) -> Float64:
    """(B, count) float64 standard normal values: of words 2j and 2j + 1, cosine and sine of Box and Muller."""
    pairs = 2 * -(-count // 4)
    drawn = unit_table(chains, 2 * pairs, key, iterate).reshape(len(chains), pairs, 2)
    radius, turn = np.sqrt(-2.0 * np.log(drawn[..., 0])), 2.0 * math.pi * drawn[..., 1]
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=-1).reshape(len(chains), 2 * pairs)[:, :count]
