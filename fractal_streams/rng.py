"""Counter-based randomness: Philox-4x32-10, with keys made from names.

The words of index i of a named quantity are philox(counter=(i_low, i_high, 0, 0), key(name)).
Nothing is ever added to a seed, and no draw depends on another.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import IndexRangeError, InvalidValueError

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]


def key(*names: str | int) -> tuple[int, int]:
    """Two 32-bit key words from a list of names; any other list gives unrelated words.

    Example:
        >>> key("mandelbrot@1", "train", 0, "centre_x") == key("mandelbrot@1", "test", 0, "centre_x")
        False
    """
    digest = hashlib.blake2s(json.dumps(names, ensure_ascii=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(counter: tuple[UInt32, UInt32, UInt32, UInt32], key: tuple[int, int]) -> tuple[UInt32, ...]:
    """Four random words for each counter.

    Args:
        counter: four (B,) uint32 arrays.
        key: two 32-bit words.
    """
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(ROUNDS):
        p0 = c0 * np.uint64(MULTIPLIER_0)
        p1 = c2 * np.uint64(MULTIPLIER_1)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def words(indices: Int64, key: tuple[int, int]) -> tuple[UInt32, ...]:
    """Four random words for each index: four (B,) uint32 arrays.

    Args:
        indices: (B,) int64, not negative.
        key: from `key`.
    """
    unsigned = indices.astype(np.uint64)
    zero = np.zeros(unsigned.shape, np.uint32)
    low = (unsigned & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return philox((low, (unsigned >> np.uint64(32)).astype(np.uint32), zero, zero), key)


def checked_indices(indices: object) -> Int64:
    """(B,) int64 of what a caller gave: a range, a list, an array, a tensor.

    Raises:
        InvalidValueError: not whole numbers, or not one-dimensional.
        IndexRangeError: a number below 0 or from 2**63 on.
    """
    if isinstance(indices, range):
        if not indices:
            return np.empty(0, np.int64)
        if min(indices[0], indices[-1]) < 0 or max(indices[0], indices[-1]) >= 2**63:
            raise IndexRangeError(f"indices must lie in [0, 2**63), got {indices}")
        if max(abs(indices.stop), abs(indices.step)) >= 2**63:
            return indices[0] + np.int64(indices.step if len(indices) > 1 else 1) * np.arange(len(indices))
        return np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    try:
        array = np.asarray(indices)
    except ValueError:
        raise InvalidValueError(f"indices must be one-dimensional whole numbers, got {indices!r}") from None
    if array.dtype.kind == "f" and isinstance(indices, list | tuple):
        array = np.array(indices, object)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuO":
        raise InvalidValueError(
            f"indices must be one-dimensional whole numbers, got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "O" and not all(isinstance(item, int | np.integer) for item in array):
        raise InvalidValueError(f"indices must be whole numbers, got {array[:4].tolist()}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**63:
        raise IndexRangeError(f"indices must lie in [0, 2**63), got {low if low < 0 else high}")
    return array.astype(np.int64)
