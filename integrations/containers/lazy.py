"""Files whose bytes are made as they are read, a block at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

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
        """Part k: 0 is the head, behind the last is the tail, None is behind everything."""
        if k == 0:
            return self.head
        if self.count is None or k <= self.count:
            return self.block(k - 1)
        return self.tail if k == self.count + 1 else None


class LazyFile(io.RawIOBase):
    """`Blocks` as a file to read; holds one block at a time.

    It seeks: forward by making what lies between, back by making one block again; the end of a file
    without end can't be sought.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._starts = [0]
        """Where each part begins, of those made so far."""
        self._part = -1
        self._bytes = b""
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
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence)
        place = (self._size() if start is None else start) + offset
        if place < 0:
            raise ValueError(f"a file has no place {place}")
        self._place = place
        return place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._load():
            return 0
        begin = self._place - self._starts[self._part]
        piece = self._bytes[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def _load(self) -> bool:
        """Have the part that holds the place; False behind the end."""
        part = self._part
        if part < 0 or not self._starts[part] <= self._place < self._starts[part] + len(self._bytes):
            part = max(k for k, start in enumerate(self._starts) if start <= self._place) if part < 0 else part
        return self._walk(part)

    def _walk(self, part: int) -> bool:
        raise NotImplementedError

    def _size(self) -> int:
        raise NotImplementedError


def opened(blocks: Blocks) -> BinaryIO:
    """The blocks as a buffered file."""
    return io.BufferedReader(LazyFile(blocks), BUFFER)
