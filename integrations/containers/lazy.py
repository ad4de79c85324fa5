"""Files whose bytes are made as they are read, a block at a time."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

BUFFER = 2**16


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The bytes of a file: `head`, then `block(0)`, `block(1)`, ..., then `tail`.

    block: the bytes of block k, the same whenever it is asked for.
    count: number of blocks; None is without end, and then there is no tail.
    """

    block: Callable[[int], bytes]
    count: int | None
    head: bytes = b""
    tail: bytes = b""

    def part(self, k: int) -> bytes | None:
        """Part k: 0 is the head, behind the last block is the tail, None is behind everything."""
        if k == 0:
            return self.head
        if self.count is None or k <= self.count:
            return self.block(k - 1)
        return self.tail if k == self.count + 1 else None


class LazyFile(io.RawIOBase):
    """`Blocks` as a file to read; holds one block at a time.

    It seeks: forward by making what lies between, back by making one block again. What has no end can't be
    sought from its end.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._starts = [0]  # of the parts made so far, and of the one behind them
        self._held, self._base = memoryview(b""), 0
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self._blocks.count is None:
            raise io.UnsupportedOperation("this file has no end to seek from")
        place = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence)
        place = (self._size() if place is None else place) + offset
        if place < 0:
            raise ValueError(f"a place in a file is 0 or more, got {place}")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        if not target or not self._load():
            return 0
        piece = self._held[self._place - self._base :][: len(target)]
        target[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def _load(self) -> bool:
        """Hold the part that the place lies in; False behind the end."""
        if self._base <= self._place < self._base + len(self._held):
            return True
        part = bisect_right(self._starts, self._place) - 1
        while (made := self._make(part)) is not None:
            if self._place < self._starts[part + 1]:
                self._held, self._base = memoryview(made), self._starts[part]
                return True
            part += 1
        return False

    def _make(self, part: int) -> bytes | None:
        made = self._blocks.part(part)
        if made is not None and part + 1 == len(self._starts):
            self._starts.append(self._starts[part] + len(made))
        return made

    def _size(self) -> int:
        while self._make(len(self._starts) - 1) is not None:
            pass
        return self._starts[-1]


def opened(blocks: Blocks) -> BinaryIO:
    """The blocks as a buffered file to read.

    Example:
        >>> opened(Blocks(block=lambda k: b"%d " % k, count=3, tail=b"end")).read()
        b'0 1 2 end'
    """
    return io.BufferedReader(LazyFile(blocks), BUFFER)
