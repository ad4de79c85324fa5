"""Area reduction, held to whole-number sums; crops before and after it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.stored.picture import Size
from fractal_streams.stored.reduction import covering_size, reduced


def area_means(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every pixel repeated until the areas hold whole pixels, then plain means, halves rounded up."""
    tall, wide = picture.shape[:2]
    large = np.repeat(np.repeat(picture.astype(np.int64), height, 0), width, 1)
    total = large.reshape(height, tall, width, wide, 3).sum((1, 3))
    return (2 * total + tall * wide) // (2 * tall * wide)


sizes = st.tuples(st.integers(1, 19), st.integers(1, 19)).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, size[0]), st.integers(1, size[1]), st.integers(0, 2**32))
)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_a_pixel_is_the_mean_of_its_area(case) -> None:
    (tall, wide), height, width, seed = case
    picture = np.random.default_rng(seed).integers(0, 256, (tall, wide, 3), np.uint8)
    assert np.array_equal(reduced(picture, height, width), area_means(picture, height, width))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32))
def test_a_crop_of_the_reduced_is_the_reduced_crop(factor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (12 * factor + 5, 17 * factor + 1, 3), np.uint8)
    kept = Size(height=5, width=7, reduction=factor).fit(picture)
    assert kept.shape == (picture.shape[0] // factor, picture.shape[1] // factor, 3)
    top, left = rng.integers(0, 8), rng.integers(0, 11)
    part = picture[top * factor : (top + 5) * factor, left * factor : (left + 7) * factor]
    assert np.array_equal(kept[top : top + 5, left : left + 7], reduced(part, 5, 7))


@settings(max_examples=60, deadline=None)
@given(*(st.integers(1, 5000) for _ in range(4)))
def test_the_covering_size_touches_one_edge_and_keeps_the_aspect(tall: int, wide: int, height: int, width: int) -> None:
    high, across = covering_size(tall, wide, height, width)
    assert high >= height and across >= width and (high == height or across == width)
    if high == height:
        assert abs(across - wide * high / tall) <= 0.5
    else:
        assert abs(high - tall * across / wide) <= 0.5
    if tall >= height and wide >= width:
        assert high <= tall and across <= wide


def test_a_picture_of_many_megapixels_keeps_its_mean() -> None:
    picture = np.full((3000, 5000, 3), 255, np.uint8)
    picture[:, :2500] = 0
    small = reduced(picture, 3, 5)
    assert small[:, :, 0].tolist() == [[0, 0, 128, 255, 255]] * 3


def test_enlarging_and_what_is_no_picture_are_refused() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    for size in ((5, 6), (4, 7), (0, 3)):
        with pytest.raises(InvalidValueError, match="4 x 6"):
            reduced(picture, *size)
    with pytest.raises(InvalidValueError, match="uint8"):
        reduced(picture.astype(float), 2, 2)
    with pytest.raises(ValueError, match="don't cover 5 x 6"):
        Size(height=5, width=6).fit(picture)
    with pytest.raises(ValueError, match="reduced by 2"):
        Size(height=2, width=4, reduction=2).fit(picture)
    with pytest.raises(InvalidValueError, match="reduction"):
        Size(height=5, width=6, reduction=0)
