"""Where a zoom goes: on the boundary, where both sides mix most, not into dust; and where windows lie in each other."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.centre import box_sums, choose_centre, group_sizes, nearest_centre
from fractal_streams.trainability.nested import Place, between, moved, place_of
from fractal_streams.trainability.window import Window

OVERVIEW = Window.of_exponents(x=(-3, 6), y=(-3, 6))


def groups_by_hand(mask: np.ndarray) -> np.ndarray:
    """Size of each set pixel's group of eight neighbours, by walking."""
    sizes, seen = np.zeros(mask.shape, int), np.zeros(mask.shape, bool)
    for start in map(tuple, np.argwhere(mask)):
        if seen[start]:
            continue
        group, queue = [start], deque([start])
        seen[start] = True
        while queue:
            row, column = queue.popleft()
            for beside in ((row + d, column + e) for d in (-1, 0, 1) for e in (-1, 0, 1)):
                if (
                    all(0 <= b < n for b, n in zip(beside, mask.shape, strict=True))
                    and mask[beside]
                    and not seen[beside]
                ):
                    seen[beside] = True
                    group.append(beside)
                    queue.append(beside)
        for one in group:
            sizes[one] = len(group)
    return sizes


@pytest.mark.parametrize("density", [0.1, 0.3, 0.45, 0.9])
def test_group_sizes_are_those_of_a_walk(density: float) -> None:
    mask = np.random.default_rng(7).random((31, 47)) < density
    places = np.nonzero(mask)
    assert np.array_equal(group_sizes(places, mask.shape), groups_by_hand(mask)[places])


def test_a_spiral_is_one_group() -> None:
    mask = np.zeros((41, 41), bool)
    for ring in range(0, 20, 4):
        mask[ring : 41 - ring, 40 - ring] = mask[40 - ring, ring : 41 - ring] = mask[ring, ring : 41 - ring] = True
        mask[ring + 4 : 41 - ring, ring] = True
        mask[ring + 4, ring : ring + 4] = True
    places = np.nonzero(mask)
    assert set(group_sizes(places, mask.shape)) == set(groups_by_hand(mask)[places])


def test_box_sums_are_sums_of_boxes() -> None:
    random = np.random.default_rng(3)
    mask, middle = random.random((20, 30)) < 0.4, (random.uniform(0, 19, 50), random.uniform(0, 29, 50))
    held, points = box_sums(mask, middle, (4.75, 6.25))
    for k, (row, column) in enumerate(zip(*middle, strict=True)):
        rows, columns = np.ogrid[:20, :30]
        inside = (np.abs(rows - row) <= 4.75) & (np.abs(columns - column) <= 6.25)
        assert held[k] == (mask & inside).sum() and points[k] == inside.sum()


def test_of_a_straight_boundary_the_place_nearest_the_middle() -> None:
    x, y = choose_centre(np.where(np.arange(41) < 21, -1.0, 1.0)[:, None] * np.ones((1, 41)))
    assert y == 20.5 / 40 and abs(x - 0.5) == pytest.approx(0.5 / 40)


def test_the_most_mixed_place_wins() -> None:
    """A straight edge on the left, thick stripes on the right: half of a window is converged only over the stripes."""
    measure = np.ones((64, 64))
    measure[:, 16:20] = -1.0  # a thin band: an eighth of a window
    measure[24:40, 34:60] = np.where(np.arange(16) % 8 < 4, -1.0, 1.0)[:, None]
    x, y = choose_centre(measure, factor=4.0)
    assert 34 <= x * 63 <= 60 and 24 <= y * 63 <= 40


def test_a_rough_boundary_is_taken_before_a_smooth_one() -> None:
    """Both run through the middle of their windows; that on the left is straight, that on the right has teeth."""
    rows, columns = np.mgrid[0:80, 0:80]
    teeth = np.where(columns < 40, 0, np.where(columns % 4 < 2, 6, -6))
    x, y = choose_centre(np.where(rows < 40 + teeth, -1.0, 1.0), factor=4.0)
    assert x * 79 > 42 and 30 <= y * 79 <= 50


def test_noise_is_no_better_than_a_rough_boundary() -> None:
    random = np.random.default_rng(0)
    measure = np.where(np.arange(80) % 8 < 4, -1.0, 1.0)[:, None] * np.ones((80, 80))  # a quarter are edge cells
    measure[:, :20] = random.choice([-1.0, 1.0], (80, 20))
    x, _ = choose_centre(measure, factor=4.0)
    assert abs(x - 0.5) < 0.02  # the middle decides


def test_dust_is_left_for_a_boundary() -> None:
    measure = np.ones((96, 96))
    measure[20:76:3, 14:44:3] = -1.0  # single points: each makes four edge cells, a group under six
    measure[:, 72:] = -1.0
    x, _ = choose_centre(measure, factor=4.0)
    assert x * 95 == 71.5
    only_dust = np.where(np.arange(96) < 60, measure, 1.0)
    x, y = choose_centre(only_dust, factor=4.0)  # better dust than nothing
    assert 13 <= x * 95 <= 45 and 19 <= y * 95 <= 77


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
def test_the_place_is_on_the_boundary_and_its_window_within_the_picture(factor: float) -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        rows, columns = np.mgrid[0:33, 0:41] / 32
        a, b, c, d = random.normal(size=4)
        measure = np.sin(3 * a * rows + 5 * b * columns + c) + d
        if not edges(measure).any():
            continue
        x, y = choose_centre(measure, factor)
        assert (x, y) == choose_centre(measure * 7.0, factor)
        assert 0.5 / factor - 1e-12 <= min(x, y) and max(x, y) <= 1 - 0.5 / factor + 1e-12
        reach = [(n - 1) / factor / 2 for n in measure.shape]
        near = np.argwhere(edges(measure)) + 0.5 - (y * 32, x * 40)
        assert (np.abs(near) <= (reach[0] + 0.5, reach[1] + 0.5)).all(axis=1).any()


def test_an_edge_in_the_corner_stays_in_the_next_window() -> None:
    measure = np.ones((21, 21))
    measure[:3, :3] = -1.0
    assert choose_centre(measure) == (0.25, 0.25)


def test_no_boundary_names_the_remedy() -> None:
    for value, side in ((1.0, "diverged"), (-1.0, "converged")):
        with pytest.raises(InvalidValueError, match=f"all {side}: start from a wider window"):
            choose_centre(np.full((9, 9), value))
    for wrong in (np.ones(9), np.ones((1, 9))):
        with pytest.raises(InvalidValueError, match="measure must be"):
            choose_centre(wrong)
    with pytest.raises(InvalidValueError, match="factor"):
        choose_centre(np.eye(9) - 0.5, 1.0)


def test_place_of_a_window_in_another() -> None:
    assert place_of(OVERVIEW.scaled(0.5, (0.25, 0.75)), OVERVIEW) == Place(0.25, 0.75, 0.5, 0.5)
    apart = Window(centre=(100.0, 1.0), size=(1.0, 2.0))  # a centre of its own, at exponents (2, 0)
    place = place_of(apart, OVERVIEW)
    np.testing.assert_allclose((place.x, place.y, place.width, place.height), (5 / 9, 3 / 9, 1 / 9, 2 / 9), rtol=1e-14)
    assert place.spans()[0] == (place.x - place.width / 2, place.x + place.width / 2)
    with pytest.raises(InvalidValueError, match="different axes"):
        place_of(Window(centre=(0.5, 1.0), size=(1, 1), linear=(True, False)), OVERVIEW)


def test_windows_between_two_keep_the_fixed_point_of_both() -> None:
    start, end = OVERVIEW, OVERVIEW.scaled(0.5, (0.7, 0.3))
    assert between(start, end, 0.0) == start
    last = between(start, end, 1.0)
    np.testing.assert_allclose((*last.size, *moved(last, end)), (4.5, 4.5, 0, 0), atol=1e-14)
    fixed = [0.9, 0.1]  # of x -> 0.7 + 0.5 (x - 0.5): the place that both windows call the same
    for share in (0.2, 0.5, 0.9):
        middle = between(start, end, share)
        assert middle.size[0] == pytest.approx(9 * 0.5**share, rel=1e-14)
        place = place_of(middle, start)
        at = place.x + (fixed[0] - 0.5) * place.width, place.y + (fixed[1] - 0.5) * place.height
        np.testing.assert_allclose(at, fixed, rtol=1e-13)
    aside = OVERVIEW.scaled(1.0, (0.75, 0.5))
    assert between(OVERVIEW, aside, 0.5).offset == (9 / 8, 0.0)  # of one size: evenly


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 9), st.floats(1.1, 8.0))
def test_the_nearest_centre_is_the_nearest_edge_kept_inside(seed: int, height: int, width: int, factor: float) -> None:
    measure = np.random.default_rng(seed).choice([-1.0, 1.0], (height, width))
    found = [
        (((i + 0.5) / (height - 1) - 0.5) ** 2 + ((j + 0.5) / (width - 1) - 0.5) ** 2, i, j)
        for i in range(height - 1)
        for j in range(width - 1)
        if len({*measure[i : i + 2, j : j + 2].ravel()}) == 2
    ]
    if not found:
        with pytest.raises(InvalidValueError, match="no boundary"):
            nearest_centre(measure, factor)
        return
    x, y = nearest_centre(measure, factor)
    least = min(found)[0]
    half = 0.5 / factor
    near = [(i, j) for distance, i, j in found if distance < least + 1e-12]
    inside = lambda value: min(max(value, half), 1 - half)  # noqa: E731
    assert any(
        (x, y) == pytest.approx((inside((j + 0.5) / (width - 1)), inside((i + 0.5) / (height - 1)))) for i, j in near
    )
