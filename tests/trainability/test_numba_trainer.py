"""The CPU trainer: the reference's numbers, to the bit the same in whatever company, and exits that change nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.trainability import numba_trainer
from fractal_streams.trainability.experiment import NONLINEARITIES, OPTIMISERS, Experiment
from fractal_streams.trainability.numba_lanes import load, store
from fractal_streams.trainability.numba_trainer import NumbaTrainer, compiled, generated, split
from fractal_streams.trainability.outcome import FIELDS, Outcome, Readout, outcome_of
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.trainer import Trainer, open_trainer

TANH = PUBLISHED["tanh"].experiment
SINGLE = PUBLISHED["single"].experiment
SINE = Experiment(nonlinearity="sin", dataset_mode="single_example")
WIDTH8 = Experiment(inputs="published", width=8)
ALL = Readout(losses=30, checkpoints=(5, 20, 30), probe=True)

# Experiment, (lr0, lr1), v[1], v[10], v[499], V: measured with a program of their own from the published draws.
GOLDEN = [
    (TANH, (1, 1), 0.998495220403, 0.9864948166, 0.7626492275, -436.1781348),
    (TANH, (10, 100), 0.952461531616, 0.9119958578, 0.09759547343, -139.4429851),
    (TANH, (1, 200), 0.953528076887, 2.319798727, 0.4606118516, -329.6657378),
    (SINGLE, (1, 1), 0.695652392732, 0.05134366556, None, -3.666647185),
    (SINGLE, (10, 100), 38.8172638077, 1e6, 1e6, 1.518097621),
]
GOLDEN_OF_OTHERS = [
    (PUBLISHED["relu"].experiment, (1, 10), 0.982502752114, 0.9337521579, 0.4761728142, -341.0373825),
    (PUBLISHED["relu"].experiment, (10, 100), 1.07078887193, 905788.9708, 905788.9708, 2.377266888),
    (PUBLISHED["linear"].experiment, (1, 10), 0.907032411479, 0.5052229038, 0.008632371749, -21.41023716),
    (PUBLISHED["linear"].experiment, (10, 100), 0.695023623452, 1e6, 1e6, 3.741398767),
    (WIDTH8, (1, 1), 0.986751659198, 0.9115593753, 0.3130544121, -294.5434416),
]


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same to the bit, but for which of the NaNs a NaN is."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b))
        for a, b in pairs
    )


def bits(values: np.ndarray) -> bytes:
    return np.where(np.isnan(values), np.nan, values).tobytes()


def golden(rows: list[Any]) -> None:
    for experiment in dict.fromkeys(row[0] for row in rows):
        wanted = [row for row in rows if row[0] == experiment]
        found = NumbaTrainer().train(experiment, [row[1] for row in wanted], Readout(losses=experiment.steps))
        assert found.losses is not None
        for losses, measure, (_, _, first, tenth, last, told) in zip(found.losses, found.measure, wanted, strict=True):
            assert losses[1] == pytest.approx(first, rel=1e-11)  # the table has 12 digits
            assert losses[10] == pytest.approx(tenth, rel=1e-8)
            assert last is None or losses[499] == pytest.approx(last, rel=1e-5)
            assert measure == pytest.approx(told, rel=1e-6)


def test_golden_values() -> None:
    golden(GOLDEN)


@pytest.mark.slow
def test_golden_values_of_the_other_experiments() -> None:
    golden(GOLDEN_OF_OTHERS)


def neighbours(count: int) -> np.ndarray:
    """Points of all fates: `count` squared, of the nine decades that the paper begins with."""
    return OVERVIEW.grid(count, count).points()


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_run_is_the_same_alone_in_any_order_and_on_any_number_of_threads(precision: Any) -> None:
    experiment, points = TANH.replace(steps=30), neighbours(5)
    trainer = NumbaTrainer(precision, threads=1)
    whole = trainer.train(experiment, points, ALL)
    assert 0 < whole.converged.sum() < len(points)
    for k in (0, 7, 12, 24):
        assert same(trainer.train(experiment, points[k : k + 1], ALL), whole[k : k + 1])
    order = np.random.default_rng(0).permutation(len(points))
    assert same(trainer.train(experiment, points[order], ALL), whole[order])
    assert same(NumbaTrainer(precision, threads=3).train(experiment, points, ALL), whole)
    assert same(trainer.train(experiment, points[3:14], ALL), whole[3:14])


def test_a_crop_of_a_grid_is_the_grid_of_the_crop() -> None:
    grid = PUBLISHED["single"].window.grid(20, 20)
    trainer = NumbaTrainer(threads=1)
    whole = trainer.train(SINGLE, grid.points()).measure.reshape(20, 20)
    rows = np.arange(400).reshape(20, 20)[3:16, 5:12].ravel()
    assert np.array_equal(trainer.train(SINGLE, grid.points()[rows]).measure, whole[3:16, 5:12].ravel())
    assert 0.2 < (whole < 0).mean() < 0.5


@pytest.mark.parametrize(("experiment", "mode"), [(TANH.replace(steps=60), "exact"), (SINGLE, "exact"),
                                                  (SINGLE, "reduced")])  # fmt: skip
def test_networks_that_stop_leave_what_they_would_have_left(
    experiment: Experiment, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.concatenate([neighbours(4), np.tile([[1e5, 1e5]], (8, 1)), np.tile([[1.0, 1e6]], (8, 1))])
    asked = Readout(losses=experiment.steps, checkpoints=(10, 50), probe=mode == "exact")
    trainer = NumbaTrainer(mode=mode, threads=1)
    stopped = trainer.train(experiment, points, asked)
    monkeypatch.setattr(NumbaTrainer, "exits", False)
    assert same(trainer.train(experiment, points, asked), stopped)
    assert (stopped.diverged_at[-16:] < 5).all() and (stopped.measure > 0).any() and (stopped.measure < 0).any()


def test_the_measure_is_that_of_the_losses() -> None:
    """Step by step in the kernel what `outcome_of` makes of the whole curves."""
    asked = Readout(losses=30, checkpoints=(5, 20, 21, 30))
    found = NumbaTrainer().train(TANH.replace(steps=30), neighbours(5), asked)
    assert found.losses is not None and found.measures is not None
    told = outcome_of(found.losses.T, asked)
    for name in ("measure", "final_loss", "losses", "measures"):
        assert np.array_equal(getattr(found, name), getattr(told, name)), name
    assert np.array_equal(found.measures[:, -1], found.measure)


def test_labels_and_steps_of_divergence_are_the_reference_s() -> None:
    experiment, points = TANH.replace(steps=30), neighbours(6)
    found, told = NumbaTrainer().train(experiment, points, ALL), ReferenceTrainer().train(experiment, points, ALL)
    assert np.array_equal(found.converged, told.converged) and 0 < told.converged.sum() < 36
    assert np.array_equal(found.diverged_at, told.diverged_at)
    calm = told.converged & (told.losses.max(axis=1) <= 1.0)  # type: ignore[union-attr]
    assert calm.sum() > 9  # the others' rates are so large that rounding grows a millionfold
    for name in ("measure", "losses", "measures", "probe"):
        np.testing.assert_allclose(getattr(found, name)[calm], getattr(told, name)[calm], rtol=1e-9, err_msg=name)
    assert np.array_equal(np.isnan(found.probe), np.isnan(told.probe))  # type: ignore[arg-type]


@pytest.mark.slow
def test_labels_of_the_published_windows() -> None:
    """Shares of converged runs of the report's table, at its tolerances."""
    for name, side, share, off in (("single", 96, 0.3356, 0.002), ("linear", 96, 0.50705, 0.002)):
        preset = PUBLISHED[name]
        found = NumbaTrainer().train(preset.experiment, preset.window.grid(side, side).points())
        assert abs(found.converged.mean() - share) <= off


def test_the_reduced_form_gives_the_same_labels() -> None:
    points = PUBLISHED["single"].window.grid(64, 64).points()
    exact, short = NumbaTrainer().train(SINGLE, points), NumbaTrainer(mode="reduced").train(SINGLE, points)
    assert np.array_equal(exact.converged, short.converged) and 0.3 < exact.converged.mean() < 0.4
    assert np.abs(short.measure / exact.measure - 1.0).max() < 2e-3
    assert not np.array_equal(short.measure, exact.measure)


def test_what_has_no_reduced_form_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="mode='exact'"):
        NumbaTrainer(mode="reduced").train(TANH, [[1.0, 1.0]])
    with pytest.raises(InvalidValueError, match="probe"):
        NumbaTrainer(mode="reduced").train(SINGLE, [[1.0, 1.0]], Readout(probe=True))
    with pytest.raises(InvalidValueError, match="precision"):
        NumbaTrainer("float16")  # type: ignore[arg-type]


def test_an_infinite_weight_of_one_network_makes_nan_of_it_and_leaves_its_neighbours() -> None:
    """A hidden unit stays at 1 then, and only the decay term, 0 times infinity, says that the run is lost."""
    experiment = SINGLE.replace(inputs="native", alpha1=100.0, steps=30)
    points = np.array([[0.1, 1e-6], [1.7e308, 1e-6], [0.2, 1e-6], [1.6e308, 1e-7]])
    found, told = NumbaTrainer().train(experiment, points, ALL), ReferenceTrainer().train(experiment, points, ALL)
    assert told.diverged_at.tolist() == [30, 2, 30, 2] and found.diverged_at.tolist() == [30, 2, 30, 2]
    np.testing.assert_allclose(found.measure, told.measure, rtol=1e-9)
    for k in range(4):
        assert same(NumbaTrainer().train(experiment, points[k : k + 1], ALL), found[k : k + 1])


def test_no_points_are_an_empty_outcome() -> None:
    found = NumbaTrainer().train(SINGLE, np.empty((0, 2)), Readout(losses=3, checkpoints=(2,)))
    assert len(found) == 0 and found.losses.shape == (0, 3) and found.measures.shape == (0, 1)  # type: ignore[union-attr]


def test_every_group_is_in_one_task() -> None:
    for groups in (0, 1, 2, 7, 100):
        for threads in (1, 2, 5):
            tasks = split(groups, threads)
            assert [k for first, last in tasks for k in range(first, last)] == list(range(groups))


def test_the_cpu_s_trainer_is_this_one() -> None:
    opened: Trainer = open_trainer("cpu", "float32", "reduced")
    assert isinstance(opened, NumbaTrainer) and opened.precision == "float32" and opened.mode == "reduced"


def applied(module: Any, function: Any, values: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """A primitive of a generated module, of an array whose length is a multiple of the lanes."""
    lanes = module.LANES

    @numba.njit
    def every(given: Any, out: Any) -> None:
        for k in range(len(given) // lanes):
            store(out, k, function(load(given, k)))

    given = np.ascontiguousarray(np.resize(values, -(-len(values) // lanes) * lanes).astype(dtype))
    out = np.empty_like(given)
    every(given, out)
    return out[: len(values)]


def test_tanh_is_exact_to_three_units_in_the_last_place() -> None:
    random = np.random.default_rng(1)
    values = np.concatenate([
        np.linspace(-22.0, 22.0, 50_001), random.normal(size=50_000), 10.0 ** random.uniform(-300, 0, 20_000),
        (np.arange(-58, 59)[:, None] + 0.5 + np.array([-1e-13, 0.0, 1e-13])).ravel() * np.log(2.0) / 2.0,
    ])  # fmt: skip
    found, told = applied(compiled(TANH), compiled(TANH).tanh, values), np.tanh(values.astype(np.longdouble))
    error = np.abs(found - told)
    assert error.max() < 3.4e-16
    assert (error <= 3.0 * np.spacing(np.abs(found))).all()
    special = np.array([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 5e-324, -20.5])
    np.testing.assert_array_equal(
        applied(compiled(TANH), compiled(TANH).tanh, special), [np.nan, 1.0, -1.0, 0.0, 1.0, -1.0, 5e-324, -1.0]
    )


@st.composite
def experiments(draw: st.DrawFn) -> tuple[Experiment, np.ndarray]:
    """Experiments of all kinds, with points at which rounding is not blown up in a few steps."""
    optimiser = draw(st.sampled_from(OPTIMISERS))
    free = {"lr": (0.01, 0.5), "weight_decay": (0.0, 0.3), "offset": (-0.3, 0.3), "scale": (0.5, 1.5),
            "lr0": (0.01, 0.5), "lr1": (0.01, 0.5)}  # fmt: skip
    free |= {"momentum": (0.0, 0.95)} if optimiser != "gradient_descent" else {}
    free |= {"beta2": (0.5, 0.999)} if optimiser == "adam" else {}
    axes = draw(st.sampled_from([(a, b) for a in free for b in free if a != b and {a[:2], b[:2]} != {"lr"}]))
    rates = {name for name in axes if name.startswith("lr")}
    others = sorted(set(free) - set(axes) - {"lr0", "lr1", "lr"})
    given = {name: draw(st.floats(*free[name])) for name in draw(st.sets(st.sampled_from(others)))} if others else {}
    if not rates:
        given["lr"] = draw(st.floats(0.01, 0.5))
    experiment = Experiment(
        nonlinearity=draw(st.sampled_from(NONLINEARITIES)), width=draw(st.sampled_from([8, 16, 32])),
        depth=draw(st.sampled_from([2, 3])), dataset_mode=draw(st.sampled_from(["width", "single_example"])),
        dataset_ratio=draw(st.sampled_from([1.0, 0.7])), batch_size=draw(st.sampled_from([None, None, 1, 3, 13])),
        optimiser=optimiser, steps=draw(st.integers(1, 25)), axes=axes, hyperparameters=given,
        offset_mode=draw(st.sampled_from(["init", "every_step"])), alpha0=draw(st.sampled_from([None, 0.4])),
        alpha1=draw(st.sampled_from([None, 0.2])), weight_seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    return experiment, np.array([[draw(st.floats(*free[axis])) for axis in axes] for _ in range(3)])


def held_to_the_reference(experiment: Experiment, points: np.ndarray) -> None:
    asked = Readout(losses=experiment.steps, probe=True)
    found, told = NumbaTrainer().train(experiment, points, asked), ReferenceTrainer().train(experiment, points, asked)
    assert found.losses is not None and told.losses is not None and found.probe is not None
    floor = 1e-12 * np.abs(told.losses).max()
    np.testing.assert_allclose(found.losses, told.losses, rtol=1e-8, atol=floor)
    np.testing.assert_allclose(found.probe, told.probe, rtol=1e-8, atol=1e-9)
    assert np.array_equal(found.diverged_at, told.diverged_at)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(experiments())
def test_any_experiment_is_the_reference_s(drawn: tuple[Experiment, np.ndarray]) -> None:
    held_to_the_reference(*drawn)


@pytest.mark.slow
def test_an_experiment_with_everything_is_the_reference_s() -> None:
    """Three layers, minibatches whose rows fill no block, a drift, decay, moments."""
    experiment = Experiment(
        nonlinearity="gelu", width=8, depth=3, dataset_mode="width", dataset_ratio=1.4, batch_size=5, optimiser="adam",
        steps=25, axes=("lr", "beta2"), hyperparameters={"weight_decay": 0.1, "offset": 0.01, "momentum": 0.8},
        offset_mode="every_step", alpha0=0.6,
    )  # fmt: skip
    assert experiment.rows == 11
    held_to_the_reference(experiment, np.array([[0.01, 0.9], [0.1, 0.99], [0.3, 0.5]]))


@pytest.mark.slow
def test_single_precision_follows_double() -> None:
    experiment, points = TANH.replace(steps=30), neighbours(8)
    single, double = NumbaTrainer("float32").train(experiment, points), NumbaTrainer().train(experiment, points)
    assert (single.converged == double.converged).mean() > 0.95
    calm = double.converged & (points[:, 0] < 1e3)  # larger rates of the first layer let rounding grow
    assert calm.sum() > 20
    np.testing.assert_allclose(single.measure[calm], double.measure[calm], rtol=1e-3)


def test_another_kind_of_network_is_another_module_and_the_same_kind_the_same() -> None:
    kinds = [("tanh", 16, 2, "gradient_descent", False, "rows", precision) for precision in ("float64", "float32")]
    assert generated(*kinds[0]) is compiled(TANH.replace(steps=7, weight_seed=0))
    assert generated(*kinds[0]).__name__ != generated(*kinds[1]).__name__


def test_the_module_s_name_follows_all_that_is_compiled_into_it(fresh_cache: Path) -> None:
    """Numba finds compiled code by the module's file, which is named by its text."""
    made = generated.__wrapped__("gelu", 64, 3, "adam", True, "rows", "float32")  # which no other test has loaded
    text = Path(made.__file__).read_text()
    assert Path(made.__file__).parent == fresh_cache
    for name in ("numba_kernel", "numba_primitives"):
        source = Path(numba_trainer.__file__).with_name(f"{name}.py").read_text()
        assert source[source.index("# Copied from here on.") :] in text
    lanes = Path(numba_trainer.__file__).with_name("numba_lanes.py").read_bytes()
    assert hashlib.blake2s(lanes, digest_size=8).hexdigest() in text


def test_sines_are_those_of_the_c_library_at_any_angle() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate([
        np.linspace(-40.0, 40.0, 20_001), random.normal(size=20_000) * 1e4, random.normal(size=20_000) * 1e9,
        np.arange(-500, 500) * (np.pi / 4.0), [0.0, 1e300, -1e22, 1e-300],
    ])  # fmt: skip
    sine, slope = compiled(SINE).sin, compiled(SINE).sin_slope
    wide = values.astype(np.longdouble)
    near = np.abs(values) < 1e6  # where NumPy's long double sine is exact enough to be the judge
    for function, told in ((sine, np.sin), (lambda z: slope(z, z), np.cos)):
        found = applied(compiled(SINE), numba.njit(function) if function is not sine else sine, values)
        assert np.abs(found - told(wide))[near].max() < 2.3e-16
        assert np.abs(found - told(values))[~near].max() < 2.3e-16
        special = applied(
            compiled(SINE), numba.njit(function) if function is not sine else sine, np.array([np.nan, np.inf])
        )
        assert np.isnan(special).all()
