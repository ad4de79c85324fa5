"""How a walk inwards chooses where to go on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.descent import HALF, SCAN, chosen_centre, mixing
from fractal_streams.trainability.trained_stream import cell_uniforms


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_how_mixed_the_surroundings_of_a_cell_are(seed: int, share: float) -> None:
    labels = np.random.default_rng(seed).random((SCAN, SCAN)) < share
    chances, expected = mixing(labels), np.zeros((SCAN - 1, SCAN - 1), np.int64)
    for row, column in np.argwhere(edges(labels)):
        top, left = (min(max(at + 1 - HALF // 2, 0), SCAN - HALF) for at in (row, column))
        box = labels[top : top + HALF, left : left + HALF]
        expected[row, column] = min(box.sum(), (~box).sum()) * edges(box).sum()
    np.testing.assert_array_equal(chances, expected)


def test_cells_are_chosen_in_proportion_and_a_label_more_rarely_leads_elsewhere() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, SCAN), np.linspace(-1, 1, SCAN))
    labels = y > 0.3 * np.sin(9 * x)
    draws = cell_uniforms(np.arange(1500), (SCAN - 1) ** 2, (1, 2))
    assert abs(draws.mean() - 0.5) < 1e-3 and len(np.unique(draws[:2])) == 2 * (SCAN - 1) ** 2
    found = [chosen_centre(labels, row, (0.5, 0.5)) for row in draws]
    chances = mixing(labels)
    rows, columns = np.nonzero(chances)
    expected: dict[tuple[float, float], float] = {}
    for row, column in zip(rows, columns, strict=True):
        at = tuple(float(np.clip((cell + 0.5) / (SCAN - 1), 0.25, 0.75)) for cell in (column, row))
        expected[at] = expected.get(at, 0.0) + 1500 * chances[row, column] / chances.sum()  # type: ignore[index, arg-type]
    counts = {at: found.count(at) for at in expected}
    assert sum(counts.values()) == 1500
    excess = sum((counts[at] - mean) ** 2 / mean for at, mean in expected.items())
    assert excess < len(expected) + 4 * np.sqrt(2 * len(expected))  # chi-squared
    flipped = labels.copy()
    flipped[3, 3] ^= True
    moved = [chosen_centre(flipped, row, (0.5, 0.5)) != at for row, at in zip(draws, found, strict=True)]
    assert 0 < np.mean(moved) < 0.1
