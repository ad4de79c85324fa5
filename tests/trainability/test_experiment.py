"""Experiments: what is refused at the door, the table of hyperparameters, and names that last."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError, UnknownNameError, VersionError
from fractal_streams.trainability.experiment import AXES, DEFAULTS, HYPERPARAMETERS, NONLINEARITIES, Experiment

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"nonlinearity": "tahn"}, "nonlinearity must be one of 'tanh', 'relu', 'identity', 'sin', 'gelu', got 'tahn'"),
    ({"dataset_mode": "single"}, "dataset_mode must be one of .*'single_example', got 'single'"),
    ({"optimiser": "sgd"}, "optimiser must be one of 'gradient_descent', .*got 'sgd'"),
    ({"offset_mode": "once"}, "offset_mode must be one of 'init', 'every_step', got 'once'"),
    ({"inputs": "jax"}, "inputs must be one of 'native', 'published', got 'jax'"),
    ({"width": 12}, "width must be one of 8, 16, 32, 64 units, got 12"),
    ({"depth": 1}, "depth must .*2.*3.*got 1"),
    ({"depth": 4}, "depth must .*2.*3.*got 4"),
    ({"depth": 2.5}, "depth must"),
    ({"steps": 0}, "steps must .*got 0"),
    ({"steps": 100_001}, "steps must .*got 100,?001"),
    ({"dataset_ratio": 0.0}, r"dataset_ratio must lie in \(0, 100\], got 0.0"),
    ({"dataset_ratio": math.nan}, "dataset_ratio must lie in .*got nan"),
    ({"dataset_ratio": True}, "dataset_ratio must lie in .*got True"),
    ({"weight_seed": -1}, "weight_seed must .*got -1"),
    ({"data_seed": 2**64}, "data_seed must"),
    ({"order_seed": 0.5}, "order_seed must"),
    ({"alpha0": math.inf}, r"alpha0 must lie in \[-1e\+06, 1e\+06\], got inf"),
    ({"alpha0": 10**400}, "alpha0 must lie in .*got 1000"),
    ({"width": np.arange(2)}, "width must be one of .*got array"),
    ({"alpha1": "1"}, "alpha1 must lie in .*got '1'"),
    ({"batch_size": 0}, "batch_size must .*got 0"),
    ({"batch_size": 273, "replacement": False}, "batch_size must .*272.*got 273"),
    ({"batch_size": 4097}, "batch_size must .*4,?096.*got 4,?097"),
    ({"replacement": 1}, "replacement must be True or False, got 1"),
    ({"axes": ("lr0",)}, "axes must be two different names of lr, lr0.*got"),
    ({"axes": ("lr0", "lr0")}, "axes must be two different names"),
    ({"axes": "lr"}, "axes must be two different names.*got 'lr'"),
    ({"axes": ("lr0", "lr_1")}, "unknown axis 'lr_1': did you mean 'lr1'"),
    ({"hyperparameters": [("lr0", 1.0)]}, "hyperparameters must be a dict of names"),
    ({"hyperparameters": {"momentun": 0.5}}, "unknown hyperparameter 'momentun': did you mean 'momentum'"),
    ({"hyperparameters": {"lr0": 1.0}}, "hyperparameters gives 'lr0', which an axis sets: leave it out"),
    ({"hyperparameters": {"scale": math.nan}}, "scale must lie in .*got nan"),
    ({"axes": ("lr", "lr1")}, '"lr" sets the rate of every layer'),
    ({"hyperparameters": {"lr": 1.0}}, '"lr" sets the rate of every layer'),
    ({"axes": ("lr0", "momentum")}, "'momentum' has no effect with .*='gradient_descent': use 'momentum' or 'adam'"),
    ({"axes": ("lr0", "beta2"), "optimiser": "momentum"}, "'beta2' has no effect with .*='momentum': use 'adam'"),
    ({"hyperparameters": {"momentum": 0.5}}, "'momentum' has no effect"),
    ({"hyperparameters": {"momentum": 1.0}, "optimiser": "adam"}, r"momentum must lie in \[0, 1\), got 1"),
    ({"hyperparameters": {"beta2": -0.1}, "optimiser": "adam"}, r"beta2 must lie in \[0, 1\), got -0.1"),
    ({"hyperparameters": {"lr2": 1.0}}, "'lr2' is the rate of a third layer, and depth is 2: give depth=3"),
]  # fmt: skip


@pytest.mark.parametrize("settings, told", REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_says_what_is_allowed(settings: dict[str, Any], told: str) -> None:
    with pytest.raises((InvalidValueError, UnknownNameError), match=told):
        Experiment(**settings)


def test_fields_are_frozen_and_named_only() -> None:
    with pytest.raises(AttributeError):
        Experiment().width = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        Experiment("tanh")  # type: ignore[misc]


MANY = [
    Experiment(),
    Experiment(
        nonlinearity="gelu", width=8, depth=3, axes=("lr2", "weight_decay"), hyperparameters={"lr0": 3, "scale": 2}
    ),
    Experiment(
        optimiser="adam", axes=("beta2", "momentum"), hyperparameters={"lr": 1e-2}, steps=77, alpha0=0.5, alpha1=1
    ),
    Experiment(batch_size=16, replacement=False, data_seed=2**64 - 1, dataset_mode="width", dataset_ratio=2.5),
    Experiment(axes=("offset", "lr"), offset_mode="every_step", inputs="published"),
]  # fmt: skip


@pytest.mark.parametrize("experiment", MANY, ids=range(len(MANY)))
def test_json_gives_the_same_experiment(experiment: Experiment) -> None:
    again = Experiment.from_json(experiment.to_json())
    assert (again, hash(again), again.digest()) == (experiment, hash(experiment), experiment.digest())
    assert again.to_json() == experiment.to_json()


def test_equal_experiments_are_equal_as_text() -> None:
    numbers: dict[str, Any] = {"scale": 2, "offset": np.float32(1)}
    one = Experiment(axes=["lr0", "lr1"], hyperparameters=numbers, width=np.int64(16), alpha0=1)  # type: ignore[arg-type]
    other = Experiment(axes=("lr0", "lr1"), hyperparameters={"offset": 1.0, "scale": 2.0}, width=16, alpha0=1.0)
    assert one.to_json() == other.to_json() and one == other and len({one, other}) == 1
    assert type(one.width) is int and type(one.alpha0) is float


@pytest.mark.parametrize("setting", [{"alpha0": -0.0}, {"hyperparameters": {"offset": -0.0}}])
def test_minus_zero_is_zero(setting: dict[str, Any]) -> None:
    """They are equal, so their text and hash must be, and all that is kept by either."""
    other = Experiment(**{name: 0.0 if name == "alpha0" else {"offset": 0.0} for name in setting})
    one = Experiment(**setting)
    assert (one, hash(one), one.digest()) == (other, hash(other), other.digest())


def test_hyperparameters_stay_as_they_were_given() -> None:
    """An experiment is a key of caches: what it was made of may change, it may not."""
    given = {"scale": 2.0}
    experiment = Experiment(hyperparameters=given)
    given["scale"] = 3.0
    with pytest.raises(TypeError):
        experiment.hyperparameters["scale"] = 3.0  # type: ignore[index]
    assert dict(experiment.hyperparameters) == {"scale": 2.0} == experiment.hyperparameters
    again = pickle.loads(pickle.dumps(experiment))
    assert (again, hash(again), again.to_json()) == (experiment, hash(experiment), experiment.to_json())
    assert copy.deepcopy(experiment) == experiment and repr(experiment.hyperparameters) == "{'scale': 2.0}"


def test_every_field_is_in_the_digest() -> None:
    changes: list[dict[str, Any]] = [
        {"nonlinearity": "relu"}, {"width": 8}, {"depth": 3}, {"dataset_mode": "width"}, {"dataset_ratio": 2.0},
        {"batch_size": 4}, {"replacement": False}, {"optimiser": "adam"}, {"steps": 3}, {"axes": ("lr1", "lr0")},
        {"hyperparameters": {"scale": 2.0}}, {"offset_mode": "every_step"}, {"alpha0": 1.0}, {"alpha1": 1.0},
        {"weight_seed": 1}, {"data_seed": 1}, {"order_seed": 1}, {"inputs": "published"},
    ]  # fmt: skip
    assert {name for change in changes for name in change} == set(Experiment.__dataclass_fields__)
    digests = {Experiment().replace(**change).digest() for change in changes} | {Experiment().digest()}
    assert len(digests) == len(changes) + 1


def test_digests_do_not_change() -> None:
    assert [experiment.digest() for experiment in MANY] == [
        "a6d80e02b11e6327", "59ea04add68ee2bc", "05b1227a855c0cbb", "37ad43a85e640bac", "3f6b64cf42001e62",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, error, told",
    [
        ("{", InvalidValueError, "not an experiment"),
        ("[]", InvalidValueError, "expected a JSON object, got list"),
        ("{}", VersionError, "experiment version None is not 1"),
        ('{"experiment_version": 2}', VersionError, "experiment version 2 is not 1: use the version"),
        ('{"experiment_version": 1, "widht": 8}', UnknownNameError, "did you mean 'width'"),
        ('{"experiment_version": 1, "width": 9}', InvalidValueError, "width must be"),
        ('{"experiment_version": 1, "axes": 7}', InvalidValueError, "axes must be two"),
    ],
)
def test_text_that_is_no_experiment_is_refused(text: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Experiment.from_json(text)


def test_json_has_every_field() -> None:
    assert set(json.loads(Experiment().to_json())) == {"experiment_version", *Experiment.__dataclass_fields__}


@pytest.mark.parametrize("axes", list(itertools.permutations(AXES, 2)), ids="-".join)
def test_each_axis_sets_its_own_row_and_all_else_keeps_its_value(axes: tuple[str, str]) -> None:
    settings: dict[str, Any] = {"axes": axes, "depth": 3, "optimiser": "adam"}
    if "lr" in axes and any(name in ("lr0", "lr1", "lr2") for name in axes):
        with pytest.raises(InvalidValueError, match="rate of every layer"):
            Experiment(**settings)
        return
    points = np.array([[0.25, 0.5], [0.125, 0.75], [0.0625, 0.875]])
    table = dict(zip(HYPERPARAMETERS, Experiment(**settings).table(points), strict=True))
    expected: dict[str, Any] = {name: np.full(3, value) for name, value in DEFAULTS.items() if value is not None}
    for name, values in zip(axes, points.T, strict=True):
        expected.update(dict.fromkeys(("lr0", "lr1", "lr2") if name == "lr" else (name,), values))
    expected.setdefault("lr2", expected["lr0"])
    assert list(table) == list(HYPERPARAMETERS)
    for name, values in table.items():
        assert (values == expected[name]).all(), name


def test_hyperparameters_fill_the_rows_that_no_axis_sets() -> None:
    points = np.array([[0.5, 0.25]])
    three = Experiment(depth=3, axes=("offset", "scale"), hyperparameters={"lr": 7.0, "weight_decay": 0.5})
    assert three.table(points).ravel().tolist() == [7.0, 7.0, 7.0, 0.9, 0.999, 0.5, 0.5, 0.25]
    third = Experiment(depth=3, axes=("offset", "scale"), hyperparameters={"lr0": 3.0, "lr2": 2.0})
    assert third.table(points)[:3].ravel().tolist() == [3.0, 1.0, 2.0]
    table = Experiment().table(points)
    assert table.shape == (8, 1) and table.dtype == np.float64 and table.flags.c_contiguous


@pytest.mark.parametrize(
    "points, told",
    [
        ([1.0, 2.0], r"shape \(N, 2\), got \(2,\)"),
        ([[1.0]], r"got \(1, 1\)"),
        ([[math.inf, 1.0]], "must be finite"),
        ([["a", "b"]], r"numbers in the shape \(N, 2\), got \[\['a'"),
        ([[1.0, 2.0], [3.0]], "must be numbers"),
    ],
)
def test_points_that_are_refused(points: Any, told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        Experiment().table(points)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("depth", [2, 3])
def test_rows_and_parameters(width: int, depth: int) -> None:
    """A matching set has as many rows as the network has weights."""
    one = Experiment(width=width, depth=depth)
    assert one.parameters == one.rows == sum([width * width] * (depth - 1)) + width
    assert one.replace(dataset_mode="width").rows == width
    assert one.replace(dataset_mode="single_example", dataset_ratio=9.0).rows == 1
    assert one.replace(dataset_ratio=0.5).rows == one.parameters // 2
    assert one.replace(dataset_mode="width", dataset_ratio=1e-3).rows == 1


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_factors_are_those_of_the_paper(name: str) -> None:
    """sqrt(2 / n) before every nonlinearity but the identity, whose is sqrt(1 / n); 1 / n of the output."""
    one = Experiment(nonlinearity=name)
    assert one.factors == (math.sqrt((1 if name == "identity" else 2) / 16), 1 / 16)
    assert one.replace(alpha0=1.0, alpha1=2.0).factors == (1.0, 2.0)
    assert one.full_batch and not one.replace(batch_size=4).full_batch
