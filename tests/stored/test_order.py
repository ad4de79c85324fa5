"""The order of each pass, and which split a name is in."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.stored.order import checked_shares, order_keys, permuted, sides, split_of


def passes_of(count: int, passes: range, seed: int = 0) -> np.ndarray:
    """(passes, count): the order of each pass."""
    number, place = np.repeat(np.array(passes), count), np.tile(np.arange(count), len(passes))
    return permuted(place, number, count, order_keys("test", "train", seed, count)).reshape(len(passes), count)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**40), st.integers(0, 2**64 - 1))
def test_each_pass_shows_every_picture_once(count: int, first: int, seed: int) -> None:
    orders = passes_of(count, range(first, first + 3), seed)
    assert (np.sort(orders, axis=1) == np.arange(count)).all()
    rows, columns = sides(count)
    assert count <= rows * columns < count + rows


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    orders = passes_of(500, range(20))
    other = passes_of(500, range(20), seed=1)
    for one, two in itertools.combinations([*orders, *other], 2):
        assert (one == two).sum() < 12  # of 500; 1 is expected, and more than 11 has a chance of 1e-9


def excess(counts: np.ndarray) -> float:
    """Chi-squared of even counts, in its own standard deviations above its mean."""
    even, freedom = counts.mean(), counts.size - 1
    return float((((counts - even) ** 2).sum() / even - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_all_orders_of_few_pictures_are_as_likely(count: int) -> None:
    found = Counter(map(tuple, passes_of(count, range(200 * math.factorial(count)))))
    assert abs(excess(np.array([found[each] for each in itertools.permutations(range(count))]))) < 5


@pytest.mark.parametrize("count", [10, 300])
def test_pairs_of_places_show_all_pairs_of_pictures_as_often(count: int) -> None:
    passes = 40_000
    numbers, keys = np.arange(passes), order_keys("pairs", "train", 0, count)
    for one, two in ((0, 1), (0, count - 1), (count // 2, count // 3)):
        first = permuted(np.full(passes, one), numbers, count, keys)
        second = permuted(np.full(passes, two), numbers, count, keys)
        table = np.bincount(first * count + second, minlength=count**2).reshape(count, count)
        assert not np.trace(table)
        assert abs(excess(table[~np.eye(count, dtype=bool)])) < 5


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0, 0.09))
def test_a_names_split_is_its_own(validation: float, test: float, more: float) -> None:
    names = [f"{number}.png" for number in range(400)]
    found = split_of(names, validation, test)
    assert np.array_equal(split_of(names[::-1], validation, test)[::-1], found)
    assert np.array_equal(split_of(names[100:], validation, test), found[100:])
    assert set(np.flatnonzero(found == 2)) <= set(np.flatnonzero(split_of(names, validation, test + more) == 2))
    for number, share in ((1, validation), (2, test)):
        assert abs((found == number).mean() - share) < 6 * math.sqrt(0.25 / 400)


@pytest.mark.parametrize(
    "shares", [(math.nan, 0), (0, math.nan), (-0.1, 0), (0, 1.0), (True, 0), ("0.1", 0), (0.5, 0.5)]
)
def test_what_are_no_shares_is_refused(shares) -> None:
    with pytest.raises(InvalidValueError, match="validation|test"):
        checked_shares(*shares)
