"""Files made as they are read: the same bytes as the whole, by any way of reading and seeking."""

from __future__ import annotations

import io

import pytest
from fractal_streams.integrations.containers.lazy import Blocks, LazyFile, opened
from hypothesis import given, settings, strategies as st

Steps = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=8)


def blocks_of(parts: list[bytes], head: bytes, tail: bytes) -> tuple[Blocks, list[int]]:
    made: list[int] = []

    def block(k: int) -> bytes:
        made.append(k)
        return parts[k]

    return Blocks(block=block, count=len(parts), head=head, tail=tail), made


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=5), st.binary(max_size=5), st.binary(max_size=5), Steps)
def test_it_reads_and_seeks_as_the_whole_does(parts: list[bytes], head: bytes, tail: bytes, steps) -> None:  # type: ignore[no-untyped-def]
    whole = io.BytesIO(b"".join((head, *parts, tail)))
    blocks, _ = blocks_of(parts, head, tail)
    for file in (LazyFile(blocks), opened(blocks)):
        for place, size in steps:
            assert file.seek(place) == whole.seek(place)
            expected = whole.read(size)
            got = b""
            while len(got) < len(expected):  # a raw file may give less than was asked for
                piece = file.read(size - len(got))
                assert piece
                got += piece
            assert got == expected
            assert file.tell() == whole.tell()
        assert file.seek(-1 if whole.getvalue() else 0, io.SEEK_END) == max(len(whole.getvalue()) - 1, 0)
    with opened(blocks) as file:
        assert file.read() == whole.getvalue()


def test_one_block_is_held_and_one_is_made_again_to_go_back() -> None:
    blocks, made = blocks_of([bytes([k]) * 10 for k in range(50)], b"", b"")
    file = LazyFile(blocks)
    file.seek(499)
    assert file.read(1) == b"\x31"
    assert made == [*range(50)]
    made.clear()
    file.seek(123)
    assert file.read(4) == bytes([12]) * 4
    assert made == [12]


def test_a_file_without_end_is_read_as_far_as_one_likes() -> None:
    file = opened(Blocks(block=lambda k: b"%09d " % k, count=None, head=b"start "))
    assert file.read(26) == b"start 000000000 000000001 "
    file.seek(6 + 10 * 12345)
    assert file.read(10) == b"000012345 "
    with pytest.raises(io.UnsupportedOperation, match="no end"):
        file.seek(0, io.SEEK_END)


def test_nothing_is_made_before_it_is_read() -> None:
    blocks, made = blocks_of([b"a", b"b"], b"head", b"")
    file = LazyFile(blocks)
    assert file.read(4) == b"head"
    assert made == []


def test_a_place_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        LazyFile(Blocks(block=lambda k: b"", count=0)).seek(-1)
