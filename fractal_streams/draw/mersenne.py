"""The draws of the original infinite-fractal-stream: MT19937, the first words of many seeds at once.

The original made one generator for each sample, so that only a generator's first few words matter
here: word k needs the states k, k + 1 and k + 397, never the whole table of 624.

M. Matsumoto, T. Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998); seeding of their 2002 revision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.spec import whole

STATES, MIDDLE = 624, 397
MAX_WORDS = STATES - 1
"""Words of the first round that need no state of the second."""

_SEEDING = np.uint32(1812433253)
_TWIST = np.uint32(0x9908B0DF)
_UPPER, _LOWER = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_SEEDS_AT_ONCE = 4096


def words(seeds: npt.NDArray[Any], count: int) -> npt.NDArray[np.uint32]:
    """The first `count` words of the generator of each seed.

    Args:
        seeds: (B,) whole numbers not below 0; a generator sees a seed modulo 2**32.
        count: 1 to 623.

    Returns:
        (count, B) uint32.

    Example:
        >>> words(np.array([5489]), 2)[:, 0].tolist()
        [3499211612, 581869302]
    """
    whole(count, "count", 1, MAX_WORDS, "words")
    starts = (seeds.astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    drawn = np.empty((count, len(starts)), np.uint32)
    for first in range(0, len(starts), _SEEDS_AT_ONCE):
        part = slice(first, first + _SEEDS_AT_ONCE)
        drawn[:, part] = _first_words(starts[part], count)
    return drawn


def uniforms(seeds: npt.NDArray[Any], count: int) -> npt.NDArray[np.float32]:
    """The first `count` float32 in [0, 1) of each seed, as torch's CPU generator gives them.

    Each is the low 24 bits of a word, over 2**24.

    Returns:
        (count, B) float32.

    Example:
        >>> uniforms(np.array([0]), 1)[0]
        array([0.4962566], dtype=float32)
    """
    return (words(seeds, count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def _first_words(starts: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.uint32]:
    states = np.empty((min(STATES, MIDDLE + count), len(starts)), np.uint32)
    states[0] = starts
    for k in range(1, len(states)):
        states[k] = _SEEDING * (states[k - 1] ^ (states[k - 1] >> np.uint32(30))) + np.uint32(k)
    new = np.empty((count, len(starts)), np.uint32)
    for k in range(count):
        far = states[k + MIDDLE] if k + MIDDLE < STATES else new[k + MIDDLE - STATES]
        joined = (states[k] & _UPPER) | (states[k + 1] & _LOWER)
        new[k] = far ^ (joined >> np.uint32(1)) ^ (joined & np.uint32(1)) * _TWIST
    return _temper(new)


def _temper(y: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    y = y ^ (y >> np.uint32(11))
    y = y ^ ((y << np.uint32(7)) & np.uint32(0x9D2C5680))
    y = y ^ ((y << np.uint32(15)) & np.uint32(0xEFC60000))
    return y ^ (y >> np.uint32(18))
