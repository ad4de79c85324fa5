"""Philox against its published vectors, keys, and what counts as an index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import rng
from fractal_streams.draw import numba_backend
from fractal_streams.draw.numba_backend import philox_words
from fractal_streams.errors import IndexRangeError, InvalidValueError

# D. E. Shaw Research, Random123, kat_vectors: philox 4x32, 10 rounds.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
INDEX = st.integers(0, 2**63 - 1)
KEY = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


def hexadecimal(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, expected", KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    given_counter = tuple(np.array([word], np.uint32) for word in hexadecimal(counter))
    found = rng.philox(given_counter, hexadecimal(key))
    assert tuple(int(word[0]) for word in found) == hexadecimal(expected)


@given(index=INDEX, key=KEY)
@settings(max_examples=200, deadline=None)
def test_words_are_philox_of_the_halves_of_the_index(index: int, key: tuple[int, int]) -> None:
    zero = np.zeros(1, np.uint32)
    counter = (np.array([index & 0xFFFFFFFF], np.uint32), np.array([index >> 32], np.uint32), zero, zero)
    expected = [int(word[0]) for word in rng.philox(counter, key)]
    assert [int(word[0]) for word in rng.words(np.array([index]), key)] == expected
    assert [int(word) for word in philox_words(index, *key)] == expected[:2]


def test_words_do_not_depend_on_the_batch() -> None:
    indices = np.array([0, 1, 2**32 - 1, 2**32, 2**63 - 1])
    together = rng.words(indices, (7, 9))
    for place, index in enumerate(indices):
        alone = rng.words(indices[[place]], (7, 9))
        assert [int(word[place]) for word in together] == [int(word[0]) for word in alone], index


def test_compiled_words_of_several_keys_are_those_of_each() -> None:
    indices, keys = np.array([0, 1, 2**32 - 1, 2**32, 2**63 - 1]), np.array([[7, 9], [0, 2**32 - 1]], np.uint32)
    assert np.array_equal(numba_backend.words(indices, keys), [rng.words(indices, (int(a), int(b))) for a, b in keys])
    assert numba_backend.words(indices[:0], keys).shape == (2, 4, 0)


def test_key_words_are_pinned() -> None:
    """Change only with a version bump: every sample ever drawn hangs on these words."""
    assert rng.key("mandelbrot@1", "train", 0, "centre_x") == (0x54AC03D6, 0x95852BF7)
    assert rng.key() == (0x29CDF3E8, 0x1142478F)


@given(st.lists(st.one_of(st.text(max_size=8), st.integers(0, 2**64 - 1)), max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_other_names_give_other_keys(names: list[str | int], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.one_of(st.text(max_size=8), st.integers(0, 2**64 - 1)), max_size=4))
    assert (rng.key(*names) == rng.key(*others)) == (names == others)


def test_a_number_and_its_text_are_other_names() -> None:
    assert rng.key("a", 1) != rng.key("a", "1")
    assert rng.key("ab", "c") != rng.key("a", "bc")


def test_bits_are_balanced_and_uncorrelated() -> None:
    count = 1 << 16
    first, second, *_ = rng.words(np.arange(count), rng.key("balance"))
    bits = np.unpackbits(np.stack([first, second]).view(np.uint8)).reshape(-1, 8)
    deviation = np.abs(bits.mean(axis=0) - 0.5).max() / (0.5 / np.sqrt(len(bits)))
    assert deviation < 4.5
    a, b = (word.astype(float) / 2**32 - 0.5 for word in (first, second))
    for x, y in ((a, b), (a[1:], a[:-1])):
        assert abs((x * y).mean()) * 12 * np.sqrt(len(x)) < 4.5


@pytest.mark.parametrize(
    "asked",
    [
        range(3, 9),
        [3, 4, 5, 6, 7, 8],
        (3, 4, 5, 6, 7, 8),
        np.arange(3, 9, dtype=np.uint8),
        np.arange(3, 9, dtype=object),
    ],
)
def test_every_container_of_indices_means_the_same(asked: object) -> None:
    found = rng.checked_indices(asked)
    assert found.dtype == np.int64
    assert found.tolist() == [3, 4, 5, 6, 7, 8]


def test_a_torch_tensor_is_a_container_of_indices() -> None:
    torch = pytest.importorskip("torch")
    assert rng.checked_indices(torch.arange(4, 6)).tolist() == [4, 5]


@pytest.mark.parametrize(
    "asked",
    [
        range(2**63 - 3, 2**63),
        range(2**63 - 1, 2**63 - 4, -1),
        range(0, 2**63, 2**62),
        range(2**63 - 1, 2**64 - 1, 2**63),
    ],
)
def test_ranges_up_to_the_last_index(asked: range) -> None:
    assert rng.checked_indices(asked).tolist() == list(asked)


@pytest.mark.parametrize("nothing", [[], (), range(0), range(5, 5), range(2**70, 2**70), np.empty(0)])
def test_no_indices_are_no_samples(nothing: object) -> None:
    assert rng.checked_indices(nothing).tolist() == []


@pytest.mark.parametrize(
    "asked, value",
    [
        ([-1], "-1"), ([0, 2**63], str(2**63)), ([2**64], str(2**64)), (range(-2, 3), "range(-2, 3)"),
        (range(2**63 - 1, 2**63 + 1), "range"), (np.array([2**63], np.uint64), str(2**63)),
    ],
)  # fmt: skip
def test_an_index_out_of_range_is_named(asked: object, value: str) -> None:
    with pytest.raises(IndexRangeError, match=r"\[0, 2\*\*63\)") as caught:
        rng.checked_indices(asked)
    assert value in str(caught.value)


ODD = [[1.0, 2.0], ["a"], [[1, 2]], 3, [None], [True, False], "12", [1, 2.5], [[1], [1, 2]]]


@pytest.mark.parametrize("asked", ODD)
def test_what_is_no_list_of_whole_numbers_is_refused(asked: object) -> None:
    with pytest.raises(InvalidValueError, match="whole numbers"):
        rng.checked_indices(asked)
