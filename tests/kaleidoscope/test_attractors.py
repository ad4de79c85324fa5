"""Attractors and their basins where both are known, nearest rows and clusters against the plainest search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_made_networks import linear, staircase

torch = pytest.importorskip("torch")

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.attractors import find_attractors
from fractal_streams.kaleidoscope.batched_points import clusters, grid, nearest_rows
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope
from fractal_streams.kaleidoscope.network import Network, normals
from fractal_streams.kaleidoscope.starts import Start


def drawn(rows: int, columns: int, *names: str | int) -> np.ndarray:
    return normals(rows * columns, rng.key("test", *names)).reshape(rows, columns)


def table(fitted: Kaleidoscope, **settings: Any) -> Attractors:
    found = find_attractors(fitted, device="cpu", **settings).attractors
    assert found is not None
    return found


def test_known_attractors_have_their_known_basins() -> None:
    """Below the edge chains go to -.5, above to .5: of uniform starts (1 + edge) / 2 and (1 - edge) / 2."""
    found = table(staircase([[0.2], [-0.4]], [-0.5, 0.5]), chains=2000)
    assert found.states[:, 0] == pytest.approx([-0.5, 0.5, 0.5, -0.5])
    assert found.model.tolist() == [0, 0, 1, 1]
    assert found.source.tolist() == [0, 1, 1, 0]
    assert found.distance == pytest.approx(np.zeros(4), abs=1e-7)
    assert found.share == pytest.approx([0.6, 0.4, 0.7, 0.3], abs=4 * np.sqrt(0.24 / 2000))
    assert found.share[:2].sum() == found.share[2:].sum() == 1.0


def test_the_distance_is_over_the_range() -> None:
    found = table(staircase([0.2], [-0.3, 0.9]), chains=100)
    assert found.source.tolist() == [0, 1]
    assert found.distance == pytest.approx([0.1, 0.2])


def test_sources_that_attract_and_were_never_reached_have_share_0() -> None:
    """Starts at the ends of the range never come to the middle stair."""
    three = staircase([-0.25, 0.25], [-0.5, 0.0, 0.5, 0.25])
    found = table(three, chains=200, start=Start(kind="binary"))
    assert sorted(found.states[:2, 0].tolist()) == pytest.approx([-0.5, 0.5])
    assert found.states[2:, 0] == pytest.approx([0.0], abs=1e-6), "the source at .25 is unstable"
    assert found.source[2:].tolist() == [1] and found.share[2:].tolist() == [0.0]
    assert table(three, chains=200, start=(Start(kind="binary"), Start())).share.min() > 0.05


def test_only_the_largest_are_kept_if_asked() -> None:
    three = staircase([-0.25, 0.25], [-0.5, 0.0, 0.5])
    every, few = table(three, chains=500), table(three, chains=500, most=2)
    assert len(every) == 3 and len(few) == 2
    assert few.share.tolist() == every.share[:2].tolist()
    assert few.states.tolist() == every.states[:2].tolist()


def test_chains_that_never_rest_end_nowhere() -> None:
    turn = linear([[0.0, -1.0], [1.0, 0.0]], [[0.1, 0.2]])
    found = table(turn, chains=50)
    assert len(found) == 0 and found.states.shape == (0, 2)


def test_slow_chains_on_either_side_are_one_attractor() -> None:
    """At a slope of .98 chains rest, by the schedule, up to 49 times its tolerance from 0; then they run on."""
    slow = linear([[0.98]], [[0.0]])
    coarse = Schedule(most=1000, tolerance=2e-3)
    outcome = open_engine(slow, "cpu").run(np.float32([[-0.9], [0.9]]), None, coarse).numpy()
    assert outcome.steps.min() > 0
    assert np.diff(outcome.states[:, 0])[0] > 2 * 0.01 * 2
    found = table(slow, chains=100, schedule=coarse)
    assert found.share.tolist() == [1.0]
    assert abs(found.states[0, 0]) < 0.02


def test_a_network_is_the_same_in_any_bank(bare_points: Kaleidoscope) -> None:
    bank = table(bare_points, chains=100)
    for model in range(bare_points.models):
        alone, here = table(bare_points.one(model), chains=100), bank.model == model
        for name in ("states", "source", "distance", "share"):
            assert np.array_equal(getattr(alone, name), getattr(bank, name)[here])


def test_the_same_seed_gives_the_same_table(bare_pictures: Kaleidoscope) -> None:
    one, again, other = (table(bare_pictures, chains=200, seed=seed) for seed in (0, 0, 1))
    for name in ("states", "model", "source", "distance", "share"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert one.share.tolist() != other.share.tolist()
    for model in range(bare_pictures.models):
        share = one.share[one.model == model]
        assert (np.diff(share) <= 0).all() and share.sum() == pytest.approx(1.0)


def test_what_it_refuses() -> None:
    stairs = staircase([0.2], [-0.5, 0.5])
    for said, settings in (
        (r"chains must be .* 1 to 8192", {"chains": 0}),
        ("at most 8192 chains of a network, got 5000 from 2 starts", {"chains": 5000, "start": [Start(), Start()]}),
        ("tolerance must be above 0", {"schedule": Schedule(tolerance=0.0)}),
        (r"tolerance must lie in \(0, 1\)", {"tolerance": 0.0}),
        ("start must be a Start or several", {"start": ()}),
        ("start must be a Start or several", {"start": "pink"}),
        ("tolerance must be above 0, got 5", {"schedule": 5}),
        ("seed must be a whole number", {"seed": 0.5}),
    ):
        with pytest.raises(InvalidValueError, match=said):
            find_attractors(stairs, device="cpu", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("others", [False, True])
def test_nearest_rows_are_those_of_the_plainest_search(others: bool) -> None:
    states = np.round(drawn(60, 6, "states"), 1)
    known = states if others else np.round(drawn(40, 6, "table"), 1)
    known[7], known[20] = known[3], states[0]
    squares = np.square(states[:, None] - known[None]).mean(axis=2)
    if others:
        np.fill_diagonal(squares, np.inf)
    place, distance = nearest_rows(states, known, 2.0, others=others)
    assert np.array_equal(place, squares.argmin(axis=1))
    assert distance == pytest.approx(np.sqrt(squares.min(axis=1)) / 2.0, abs=1e-15)


def test_of_equal_distances_the_first_is_nearest() -> None:
    known = np.float64([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    place, distance = nearest_rows(np.zeros((1, 2)), known, 1.0)
    assert place.tolist() == [1] and distance.tolist() == [np.sqrt(0.5)]
    assert nearest_rows(np.zeros((1, 2)), known[::-1], 1.0)[0].tolist() == [0]


def test_nearest_rows_of_a_large_offset_are_exact() -> None:
    """A product alone would lose the small distances: |a|^2 + |b|^2 - 2ab is 1e6 times larger."""
    known = 1e3 + 1e-4 * drawn(30, 4, "table")
    states = known[::-1] + 1e-9 * drawn(30, 4, "states")
    assert nearest_rows(states, known, 1.0)[0].tolist() == list(range(29, -1, -1))


def test_nearest_rows_do_not_depend_on_the_batch() -> None:
    states, known = drawn(50, 300, "states"), drawn(80, 300, "table")
    place, distance = nearest_rows(states, known, 2.0)
    for row in (0, 17, 49):
        one = nearest_rows(states[row : row + 1], known, 2.0)
        assert (one[0][0], one[1][0]) == (place[row], distance[row])
    engine = open_engine(linear(np.eye(300)), "cpu")
    assert np.array_equal(engine.nearest(np.float32(states), np.float32(known))[0], place)


def test_states_that_are_not_finite_are_infinitely_far() -> None:
    place, distance = nearest_rows(np.float64([[np.inf], [np.nan], [1.0]]), np.float64([[0.0], [1.0]]), 1.0)
    assert place.tolist() == [0, 0, 1] and distance.tolist() == [np.inf, np.inf, 0.0]


def greedy(states: np.ndarray, tolerance: float, span: float, weights: np.ndarray) -> tuple[list[int], list[int]]:
    """The definition, word by word."""
    left, middles, member = set(range(len(states))), [], [-1] * len(states)
    near = np.sqrt(np.square(states[:, None] - states[None]).mean(axis=2)) / span <= tolerance
    while left:
        middle = max(sorted(left), key=lambda row: sum(weights[other] for other in left if near[row, other]))
        for other in [other for other in left if near[middle, other]]:
            member[other] = len(middles)
            left.remove(other)
        middles.append(middle)
    return middles, member


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.5])
def test_clusters_are_those_of_the_definition(tolerance: float) -> None:
    states = drawn(150, 2, "clusters")
    weights = 1 + np.arange(150) % 7
    for given in (None, weights):
        middles, member = clusters(states, tolerance, 2.0, weights=given)
        expected = greedy(states, tolerance, 2.0, np.ones(150) if given is None else given)
        assert (middles.tolist(), member.tolist()) == expected


def test_states_at_exactly_the_tolerance_are_one_cluster() -> None:
    states = np.float64([[0.0], [0.25], [0.5], [5.0]])
    assert clusters(states, 0.25, 1.0)[1].tolist() == [0, 0, 0, 1]
    assert clusters(states, 0.2499, 1.0)[1].tolist() == [0, 1, 2, 3]


def test_clusters_of_many_large_states() -> None:
    """2,000 states of 3,072 values about 40 centres, in falling numbers."""
    number = np.repeat(np.arange(40), 50 + np.arange(20, -20, -1))[:2000]
    centres = drawn(40, 3072, "centres")
    states = np.tile(drawn(100, 3072, "noise"), (20, 1))[: len(number)] * 1e-3 + centres[number]
    middles, member = clusters(states, 0.01, 2.0)
    assert len(middles) == 40
    assert np.array_equal(member, number)


def test_a_grid_is_checked() -> None:
    assert grid(Network(shape=(2,), head="sigmoid"), 3)[:4].tolist() == [[0, 0], [0, 0.5], [0, 1], [0.5, 0]]
    with pytest.raises(InvalidValueError, match="got 2 points along each of 64 axes"):
        grid(Network(shape=(64,)), 2)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(bare_pictures: Kaleidoscope) -> None:
    cpu, gpu = (find_attractors(bare_pictures, device=device, chains=500).attractors for device in ("cpu", "cuda"))
    assert cpu is not None and gpu is not None
    for model in range(bare_pictures.models):
        one, other = ((found.source[found.model == model], found.share[found.model == model]) for found in (cpu, gpu))
        assert dict(zip(*map(np.ndarray.tolist, one), strict=True)) == pytest.approx(
            dict(zip(*map(np.ndarray.tolist, other), strict=True)), abs=0.01
        )
