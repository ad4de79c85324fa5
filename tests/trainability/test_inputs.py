"""Weights, data and minibatches: the paper's drawn again here, and laws of the native ones."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import PUBLISHED_SHAPES, Inputs, inputs_of, published_arrays

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Any, count: int) -> Any:
    """(count,) uint32: Threefry-2x32-20 (J. Salmon et al. 2011) of 0, 1, ..., halves paired, as old JAX."""
    even = np.arange(count + count % 2, dtype=np.uint32)
    if count % 2:
        even[-1] = 0
    left, right = (half.copy() for half in np.split(even, 2))
    keys = [np.uint32(key[0]), np.uint32(key[1])]
    keys.append(keys[0] ^ keys[1] ^ np.uint32(0x1BD11BDA))
    left, right = left + keys[0], right + keys[1]
    for turn in range(5):
        for bits in ROTATIONS[turn % 2]:
            left = left + right
            right = ((right << np.uint32(bits)) | (right >> np.uint32(32 - bits))) ^ left
        left = left + keys[(turn + 1) % 3]
        right = right + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return np.concatenate([left, right])[:count]


def split(key: Any, count: int = 2) -> Any:
    return threefry(key, 2 * count).reshape(count, 2)


def words64(key: Any, count: int) -> Any:
    high, low = np.split(threefry(key, 2 * count).astype(np.uint64), 2)
    return high << np.uint64(32) | low


def normals(key: Any, *shape: int) -> Any:
    """sqrt(2) erfinv(u) of u in (-1, 1) with 52 random bits."""
    ones = (words64(key, math.prod(shape)) >> np.uint64(12) | np.uint64(0x3FF << 52)).view(np.float64) - 1.0
    lowest = np.nextafter(-1.0, 0.0)
    uniform = np.maximum(lowest, ones * (1.0 - lowest) + lowest)
    return np.reshape([-np.sign(u) * NormalDist().inv_cdf((1.0 - abs(u)) / 2.0) for u in uniform], shape)


def integers(key: Any, count: int, below: int) -> Any:
    """Two 64-bit words of each, the high one times 2**64, modulo the bound."""
    high, low = (words64(half, count) for half in split(key))
    bound, times = np.uint64(below), np.uint64(2**64 % below)
    return ((high % bound) * times + low % bound) % bound


@pytest.mark.parametrize(
    "settings",
    [{}, {"nonlinearity": "identity", "dataset_mode": "width"}, {"dataset_mode": "single_example"}, {"width": 8}],
    ids=["tanh_relu", "identity", "single", "width 8"],
)
def test_published_arrays_are_those_of_the_papers_key_recipe(settings: dict[str, Any]) -> None:
    experiment = Experiment(inputs="published", **settings)
    found, width, rows = inputs_of(experiment), experiment.width, experiment.rows
    rest, layers = split((0, 0))
    first, last = split(layers)
    rest, x_key = split(rest)
    _, y_key = split(rest)
    for array, drawn in (
        (found.weights[0], normals(first, width, width)), (found.weights[1], normals(last, width, 1)),
        (found.x, normals(x_key, rows, width)), (found.y, normals(y_key, rows)),
    ):  # fmt: skip
        np.testing.assert_allclose(array, drawn, rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [500, 1000])
def test_published_minibatches_are_those_of_the_papers_key_recipe(steps: int) -> None:
    found = inputs_of(Experiment(inputs="published", batch_size=16, steps=steps)).order
    assert found is not None and found.dtype == np.int64
    assert (found == [integers(key, 16, 272) for key in split((0, 42), steps)]).all()


def test_the_first_published_values_are_those_that_the_authors_notebook_gives() -> None:
    tanh = inputs_of(Experiment(inputs="published"))
    single = inputs_of(Experiment(inputs="published", dataset_mode="single_example"))
    assert tanh.weights[0][0, :3] == pytest.approx([1.80203513, 0.59166611, 2.01222591], abs=5e-9)
    assert tanh.weights[1][:2, 0] == pytest.approx([0.48122124, 1.41846543], abs=5e-9)
    assert tanh.x[0, :2] == pytest.approx([0.01287725, 1.01651481], abs=5e-9)
    assert tanh.y[:2] == pytest.approx([-2.39675844, -0.05172164], abs=5e-9)
    assert (*single.x[0, :2], *single.y) == pytest.approx((0.14646465, 0.79576858, -0.89105327), abs=5e-9)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"width": 32}, "exist for depth 2 and width 16 with 272 rows.*has depth 2, width 32 and 1056 rows"),
        ({"depth": 3}, "this experiment has depth 3"),
        ({"dataset_ratio": 0.5}, "width 16 and 136 rows: use inputs='native'"),
        ({"data_seed": 1}, r"have no seeds, got \(0, 1, 0\)"),
        ({"batch_size": 8}, "minibatches of 16 rows with replacement, for 500 or 1000 steps.*batch_size=8"),
        ({"batch_size": 16, "steps": 600}, "for 500 or 1000 steps and 272 rows; this experiment has .*steps=600"),
        ({"batch_size": 16, "replacement": False}, "with replacement"),
        ({"batch_size": 16, "dataset_mode": "width"}, "and 272 rows"),
    ],
)
def test_what_was_not_published_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        inputs_of(Experiment(inputs="published", **settings))


def test_every_published_array_has_a_shape_that_is_offered() -> None:
    assert {name.split("/")[0] for name in published_arrays()} == {*PUBLISHED_SHAPES.values(), "minibatch"}


def every(found: Inputs) -> dict[str, Any]:
    layers = {f"layer {number}": layer for number, layer in enumerate(found.weights)}
    return {**layers, "x": found.x, "y": found.y, "probe": found.probe, "order": found.order}


def test_native_draws_do_not_change() -> None:
    found = inputs_of(Experiment(depth=3, batch_size=4, steps=10))
    np.testing.assert_array_equal(found.weights[0][0, :3], np.float32([0.7241308, 0.21794733, -1.7945566]))
    np.testing.assert_array_equal(inputs_of(Experiment()).weights[1][:3, 0], np.float32(W1))
    np.testing.assert_array_equal(inputs_of(Experiment()).x[0, :3], np.float32(X))
    np.testing.assert_array_equal(inputs_of(Experiment()).y[:3], np.float32(Y))
    np.testing.assert_array_equal(found.probe[:3], np.float32(PROBE))
    assert inputs_of(Experiment(batch_size=4, steps=10)).order[:2].tolist() == [[270, 220, 38, 27], [188, 98, 263, 8]]  # type: ignore[index]


W1 = [-1.4534043, 0.26886514, -0.002800783]
X = [-1.1752979, 0.023608336, 1.7790033]
Y = [0.020335551, 0.75403726, 0.18858127]
PROBE = [0.8014897, -0.07610867, 0.048609167]


def test_native_draws_are_normal() -> None:
    """Moments of 4160 * 64 numbers, within five standard errors, and the Kolmogorov-Smirnov distance at 1 in 10,000."""
    drawn = np.sort(inputs_of(Experiment(width=64)).x.ravel())
    count, cdf = drawn.size, np.vectorize(NormalDist().cdf)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (drawn**power).mean() == pytest.approx(moment, abs=5 * math.sqrt(variance / count)), power
    some = np.linspace(0, count - 1, 5000).astype(int)
    assert abs(cdf(drawn[some]) - (some + 0.5) / count).max() < 2.23 / math.sqrt(count)
    assert (drawn == drawn.astype(np.float32)).all()


@pytest.mark.parametrize(
    "seed, changed",
    [("weight_seed", {"layer 0", "layer 1", "layer 2"}), ("data_seed", {"x", "y", "probe"}), ("order_seed", {"order"})],
)
def test_each_seed_changes_its_own_arrays_and_no_others(seed: str, changed: set[str]) -> None:
    experiment = Experiment(width=8, depth=3, batch_size=8, steps=40)
    one, other = (every(inputs_of(experiment.replace(**{seed: value}))) for value in (1, 2))
    for name, array in one.items():
        if name not in changed:
            assert (array == other[name]).all(), name
        elif name == "order":
            assert (array == other[name]).mean() < 0.1
        else:
            assert not (array == other[name]).any(), name
            if array.size > 40:
                assert abs(np.corrcoef(array.ravel(), other[name].ravel())[0, 1]) < 5 / math.sqrt(array.size), name


def test_layers_and_arrays_are_not_copies_of_each_other() -> None:
    found = inputs_of(Experiment(width=8, depth=3))
    assert not (found.weights[0] == found.weights[1]).any()
    assert not (found.x[:8] == found.weights[0]).any() and not (found.x[:, 0] == found.y).any()


def test_more_data_begin_with_the_same_rows() -> None:
    small, large = (inputs_of(Experiment(width=8, dataset_ratio=ratio)) for ratio in (1.0, 3.0))
    assert (large.x[:72] == small.x).all() and (large.y[:72] == small.y).all() and len(large.x) == 216


@pytest.mark.parametrize("replacement", [True, False])
def test_a_longer_run_takes_the_minibatches_of_a_shorter_one(replacement: bool) -> None:
    experiment = Experiment(width=8, batch_size=9, replacement=replacement)
    short, long = (inputs_of(experiment.replace(steps=steps)).order for steps in (10, 100))
    assert short is not None and long is not None and long.shape == (100, 9)
    assert (long[:10] == short).all()


def test_minibatches_without_replacement_have_distinct_rows_each_as_often() -> None:
    order = inputs_of(Experiment(width=8, batch_size=36, replacement=False, steps=2000)).order
    assert order is not None and (np.diff(np.sort(order, axis=1), axis=1) > 0).all()
    counts = np.bincount(order.ravel(), minlength=72)
    assert len(counts) == 72 and abs(counts - 1000).max() < 5 * math.sqrt(500)
    whole = inputs_of(Experiment(width=8, batch_size=72, replacement=False, steps=3)).order
    assert whole is not None and (np.sort(whole, axis=1) == np.arange(72)).all() and (whole[0] != whole[1]).any()


def test_minibatches_with_replacement_repeat_rows_each_as_often() -> None:
    order = inputs_of(Experiment(width=8, batch_size=36, steps=2000)).order
    assert order is not None and (np.diff(np.sort(order, axis=1), axis=1) == 0).any(axis=1).mean() > 0.99
    assert abs(np.bincount(order.ravel(), minlength=72) - 1000).max() < 5 * math.sqrt(1000)


def test_arrays_are_float64_read_only_and_made_once() -> None:
    for experiment in (Experiment(), Experiment(inputs="published", batch_size=16)):
        found = inputs_of(experiment)
        assert inputs_of(experiment) is found
        for name, array in every(found).items():
            if array is not None:
                assert array.dtype == (np.int64 if name == "order" else np.float64)
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 1
    assert inputs_of(Experiment()).order is None


@pytest.mark.parametrize("replacement", [True, False])
def test_the_order_does_not_depend_on_how_much_is_drawn_at_once(
    replacement: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(width=8, batch_size=9, replacement=replacement, steps=50)
    at_once = inputs_of(experiment).order
    monkeypatch.setattr("fractal_streams.trainability.inputs.COUNTERS", 300)
    inputs_of.cache_clear()
    assert (inputs_of(experiment).order == at_once).all()
