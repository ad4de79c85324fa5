"""Which stored picture a sample shows: a keyed permutation for each pass, and splits by name.

The permutation of n pictures is a Feistel network over the smallest near-square grid that holds them,
its round function Philox; what falls outside n is sent through again (cycle walking). So any place of
any pass is found in constant time, and nothing is ever shuffled in memory.

J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64

FEW, ROUNDS, ROUNDS_OF_FEW = 256, 10, 24
"""Rounds of the network: from 10 on pairs stand as chance has them, all orders of up to 6 pictures only from 20 on."""
SPLIT_WORDS = "stored@1 split"


def sides(count: int) -> tuple[int, int]:
    """Rows and columns of the grid that the permutation of `count` pictures lives on.

    Example:
        >>> sides(1), sides(10), sides(60_000)
        ((1, 1), (4, 3), (245, 245))
    """
    rows = math.isqrt(count - 1) + 1
    return rows, -(-count // rows)


def order_keys(stream_id: str, split: str, seed: int, count: int) -> npt.NDArray[np.uint64]:
    """(rounds, 2) uint64: the key words of each round of a permutation of `count` pictures."""
    rounds = ROUNDS_OF_FEW if count < FEW else ROUNDS
    return np.array([rng.key("order", stream_id, split, seed, number) for number in range(rounds)], np.uint64)


def permuted(places: Int64, passes: Int64, count: int, keys: npt.NDArray[np.uint64]) -> Int64:
    """(B,) int64: which of `count` pictures stands at each place of each pass; the reference of the compiled one.

    Args:
        places: (B,) in [0, count). passes: (B,), 0 and up. keys: of `order_keys`.

    Example:
        >>> keys = order_keys("doc", "train", 0, 7)
        >>> sorted(permuted(np.arange(7), np.full(7, 3), 7, keys).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    rows, columns = sides(count)
    result = places.copy()
    outside = np.ones(len(places), bool)
    while outside.any():
        row, column = result[outside] // columns, result[outside] % columns
        for number, (high, low) in enumerate(keys):
            key = (int(high), int(low))
            if number % 2 == 0:
                row = (row + _below(passes[outside] * columns + column, rows, key)) % rows
            else:
                column = (column + _below(passes[outside] * rows + row, columns, key)) % columns
        result[outside] = row * columns + column
        outside = result >= count
    return result


def _below(counter: Int64, bound: int, key: tuple[int, int]) -> Int64:
    word = rng.words(counter, key)[0].astype(np.uint64)
    return (word * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def checked_shares(validation: object, test: object) -> tuple[float, float]:
    """Both shares as floats; an `InvalidValueError` unless each lies in [0, 1) and both leave some for training."""
    shares = []
    for name, share in (("validation", validation), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, Real) or not 0.0 <= float(share) < 1.0:
            raise InvalidValueError(f"{name} must be a share of the pictures in [0, 1), got {share!r}")
        shares.append(float(share))
    if sum(shares) >= 1.0:
        raise InvalidValueError(
            f"validation + test must lie below 1, so that pictures are left for training, got {shares[0]} + {shares[1]}"
        )
    return shares[0], shares[1]


def split_of(groups: Sequence[str], validation: float, test: float) -> npt.NDArray[np.int64]:
    """(N,) int64 split of each group's name: 0 train, 1 validation, 2 test.

    A name's split is its own: it depends on no seed, no other picture and no order. What one set of
    shares tests on, another with a larger `test` tests on too.

    Example:
        >>> np.bincount(split_of([f"{number}.png" for number in range(1000)], 0.1, 0.2)).tolist()
        [705, 98, 197]
    """
    if not validation and not test:
        return np.zeros(len(groups), np.int64)
    tested, validated = int(test * 2**64), int((test + validation) * 2**64)
    found: dict[str, int] = {}
    for group in groups:
        if group not in found:
            name = f"{SPLIT_WORDS}\0{group}".encode("utf-8", "surrogatepass")
            ticket = int.from_bytes(hashlib.blake2s(name, digest_size=8).digest(), "little")
            found[group] = 2 if ticket < tested else 1 if ticket < validated else 0
    return np.array([found[group] for group in groups], np.int64)
