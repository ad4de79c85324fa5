"""Which interval of indices a step of training means on one rank.

With a local batch b and world size w, step s of rank r is [base + s*b*w + r*b, +b): a step of the
whole world is one interval of b*w integers, the same for every w with equal b*w, and the place to
go on from is one integer.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import numpy as np

from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64

INDEX_END = 2**63
"""Where the indices of an endless stream end."""


@dataclass(frozen=True)
class Shard:
    """One rank of a world that shares a stream.

    rank: 0 to world_size - 1. world_size: 1 or more.

    Raises:
        InvalidValueError: names the value and the range.

    Example:
        >>> Shard(1, 4).interval(2, batch_size=8)
        range(72, 80)
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _whole(self.world_size, "world_size", 1)
        _whole(self.rank, "rank", 0)
        if self.rank >= self.world_size:
            raise InvalidValueError(
                f"rank must lie in 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}; ranks count from 0"
            )

    @classmethod
    def detect(cls) -> Shard:
        """This process's shard.

        From torch.distributed if it is loaded and initialised, else from the RANK and WORLD_SIZE that
        torchrun sets, else rank 0 of 1.

        Raises:
            InvalidValueError: only one of RANK and WORLD_SIZE is set, or they are no rank of a world.
        """
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        if set(found.values()) == {None}:
            return cls()
        try:
            return cls(*(int(text or "") for text in found.values()))
        except ValueError as error:
            raise InvalidValueError(
                f"the environment has RANK={found['RANK']!r} and WORLD_SIZE={found['WORLD_SIZE']!r}, which name no "
                f"rank of a world ({error}): set both, unset both, or pass shard=Shard(rank, world_size)"
            ) from None

    def interval(self, step: int, batch_size: int, base: int = 0, end: int = INDEX_END) -> range:
        """Indices of one step here, clipped at `end`, so empty behind it.

        Args:
            step: 0 and up. batch_size: samples of one rank in one step.
            base: index that step 0 of rank 0 begins at. end: first index that belongs to nobody.

        Raises:
            InvalidValueError: a negative step or base, a batch of none.
        """
        _whole(step, "step", 0)
        _whole(batch_size, "batch_size", 1)
        _whole(base, "base", 0)
        first = base + (step * self.world_size + self.rank) * batch_size
        return range(min(first, end), min(first + batch_size, end))

    def steps(self, batch_size: int, base: int = 0, end: int = INDEX_END) -> int:
        """Number of steps in which this rank has samples: ranks differ by at most one.

        Example:
            >>> [Shard(rank, 3).steps(10, end=50) for rank in range(3)]
            [2, 2, 1]
        """
        _whole(batch_size, "batch_size", 1)
        return max(0, -((base + self.rank * batch_size - end) // (batch_size * self.world_size)))

    def indices(self, steps: range, batch_size: int, base: int = 0, end: int = INDEX_END) -> range | Int64:
        """Indices of several steps, one after the other: a range wherever they make one, else (n,) int64.

        Example:
            >>> Shard(0, 1).indices(range(2, 5), batch_size=8), Shard(1, 2).indices(range(3), batch_size=1)
            (range(16, 40), range(1, 6, 2))
        """
        intervals = [self.interval(step, batch_size, base, end) for step in steps]
        if not intervals:
            return range(0)
        if batch_size == 1:
            return range(intervals[0].start, intervals[-1].stop, self.world_size * steps.step)
        if len(intervals) == 1 or (self.world_size == 1 and steps.step == 1):
            return range(intervals[0].start, intervals[-1].stop)
        return np.concatenate([each.start + np.arange(len(each), dtype=np.int64) for each in intervals])


@dataclass(frozen=True, kw_only=True)
class Course:
    """The steps that one process walks in one iteration, and the position that each leaves behind.

    shard, batch_size: which samples of a step are this rank's.
    origin: samples that the world consumed before index 0 of this epoch.
    base: index that step 0 begins at. end: first index behind the epoch.
    drop_last: leave out the last step if the world's batch would not be full.
    stride: of this process's steps, the number of worker processes.
    """

    shard: Shard
    batch_size: int
    origin: int = 0
    base: int = 0
    end: int = INDEX_END
    drop_last: bool = False
    stride: int = 1

    @property
    def width(self) -> int:
        """Samples of the whole world in one step."""
        return self.batch_size * self.shard.world_size

    @property
    def count(self) -> int:
        """Steps in which this rank has samples."""
        return self.total if self.drop_last else self.shard.steps(self.batch_size, self.base, self.end)

    @property
    def total(self) -> int:
        """Steps in which any rank has samples."""
        left = max(0, self.end - self.base)
        return left // self.width if self.drop_last else -(-left // self.width)

    def steps(self, first: int, number: int) -> range:
        """Up to `number` of this process's steps, from one of them on."""
        return range(first, min(first + number * self.stride, self.count), self.stride)

    def indices(self, steps: range) -> range | Int64:
        """Indices of the samples of these steps, one step after the other."""
        return self.shard.indices(steps, self.batch_size, self.base, self.end)

    def position(self, done: int) -> int:
        """Samples that the world has consumed after `done` steps; what drop_last leaves out counts with the last."""
        over = done and done >= self.total
        return self.origin + (self.end if over else self.base + done * self.width)


def _whole(value: object, name: str, low: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < low:
        raise InvalidValueError(f"{name} must be a whole number from {low} on, got {value!r}")
