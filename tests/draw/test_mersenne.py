import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.draw.mersenne import MAX_WORDS, uniforms, words
from fractal_streams.errors import InvalidValueError


@pytest.mark.parametrize("seed", [0, 1, 5489, 2**31, 2**32 - 1])
def test_words_are_those_of_numpys_generator(seed: int) -> None:
    expected = np.random.RandomState(seed).randint(0, 2**32, MAX_WORDS, dtype=np.uint32)
    assert np.array_equal(words(np.array([seed]), MAX_WORDS)[:, 0], expected)


def test_first_words_of_the_published_seed() -> None:
    assert words(np.array([5489]), 4)[:, 0].tolist() == [3499211612, 581869302, 3890346734, 3586334585]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.integers(1, 30))
def test_a_seed_counts_modulo_two_to_the_32_and_for_itself(seeds: list[int], count: int) -> None:
    many = words(np.array(seeds, np.uint64), count)
    for column, seed in enumerate(seeds):
        alone = words(np.array([seed % 2**32]), count)
        assert np.array_equal(many[:, column], alone[:, 0])


def test_blocks_of_seeds_join_without_a_seam() -> None:
    seeds = np.arange(4090, 8200)
    drawn = words(seeds, 3)
    for place in (0, 4095, 4096, 4097, len(seeds) - 1):
        assert np.array_equal(drawn[:, place], words(seeds[place : place + 1], 3)[:, 0])


@pytest.mark.parametrize("seed", [0, 7, 108, 2**32 + 1, 67280421310721])
def test_uniforms_are_torchs(seed: int) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.rand(300, generator=torch.Generator().manual_seed(seed)).numpy()
    assert np.array_equal(uniforms(np.array([seed]), 300)[:, 0], expected)


@pytest.mark.parametrize("count", [0, MAX_WORDS + 1, 2.5])
def test_refuses_more_words_than_the_first_round_has(count: object) -> None:
    with pytest.raises(InvalidValueError, match="1 to 623"):
        words(np.array([1]), count)  # type: ignore[arg-type]
