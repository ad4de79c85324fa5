"""The draw: NumPy and Numba to the bit, names independent of each other, labels as promised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from strategies import INDEX, PRIOR, SEED, specs

from fractal_streams import rng
from fractal_streams.draw import Plan, make_plan, numba_backend, reference
from fractal_streams.priors import Choice, Constant, Integer, LogUniform, Uniform
from fractal_streams.spec import StreamSpec

SPLITS = ("train", "validation", "test")
EDGES = np.array([0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 2, 2**63 - 1])
EXTREME = {
    "centre_x": Uniform(-1e38, 1e38), "centre_y": LogUniform(1e-30, 1e30), "half_width": Integer(-(2**24), 2**24),
    "green_phase": Uniform(-1e-129, -1e-141), "rotation": Choice((1e38, -1e38, 1e-45, 0.0)),
    "brightness": Uniform(1.0, 1.0 + 1e-12),
    "contrast": LogUniform(1.0, 1.0000001), "red_phase": Constant(1e-42), "blue_phase": Integer(5, 5),
}  # fmt: skip


def plan_of(spec: StreamSpec, seed: int = 0, split: str = "train") -> Plan:
    return make_plan(spec, spec.parts()[0], seed=seed, split=split)


def spec_of(**fields: Any) -> StreamSpec:
    return StreamSpec(**{"formulas": "polynomial_power", "num_classes": 10, **fields})


def bits(table: np.ndarray) -> list[int]:
    return table.view(np.uint32).ravel().tolist()


@given(spec=specs(), seed=SEED, split=st.sampled_from(SPLITS), indices=st.lists(INDEX, max_size=20))
@settings(max_examples=60, deadline=None)
def test_numba_equals_numpy_to_the_bit(spec: StreamSpec, seed: int, split: str, indices: list[int]) -> None:
    asked = np.array([*indices, *EDGES], np.int64)
    for part in spec.parts():
        plan = make_plan(spec, part, seed=seed, split=split)
        (labels, table), (same_labels, same_table) = reference.draw(plan, asked), numba_backend.draw(plan, asked)
        assert labels.tolist() == same_labels.tolist()
        assert bits(table) == bits(same_table)


@pytest.mark.parametrize("labels", ["drawn", "balanced"])
def test_numba_equals_numpy_for_extreme_priors_over_many_indices(labels: str) -> None:
    spec = StreamSpec(formulas="mandelbrot", colouring="smooth", priors=EXTREME, num_classes=2**31 - 1, labels=labels,
                      class_parameters=("centre_x", "contrast"))  # fmt: skip
    plan = plan_of(spec, seed=2**64 - 1)
    asked = np.concatenate([np.arange(20_000), 2**63 - 1 - np.arange(20_000)])
    (drawn, table), (same, same_table) = reference.draw(plan, asked), numba_backend.draw(plan, asked)
    assert np.array_equal(drawn, same)
    assert np.array_equal(table.view(np.uint32), same_table.view(np.uint32))
    assert np.isfinite(table).all()


@given(PRIOR)
@settings(max_examples=60, deadline=None)
def test_every_prior_is_the_same_in_numba(prior: Any) -> None:
    plan = plan_of(StreamSpec(formulas="mandelbrot", priors={"centre_x": prior}))
    asked = np.arange(64)
    assert bits(reference.draw(plan, asked)[1]) == bits(numba_backend.draw(plan, asked)[1])


def test_numba_writes_every_element(poison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(spec_of())
    expected = reference.draw(plan, np.arange(99))
    numba_backend.draw(plan, np.arange(1))
    monkeypatch.setattr(numba_backend, "np", poison)
    found = numba_backend.draw(plan, np.arange(99))
    assert np.array_equal(found[0], expected[0]) and bits(found[1]) == bits(expected[1])


@pytest.mark.parametrize("draw", [reference.draw, numba_backend.draw])
def test_no_indices_give_an_empty_table(draw: Any) -> None:
    labels, table = draw(plan_of(spec_of()), np.empty(0, np.int64))
    assert labels.shape == (0,) and table.shape == (len(plan_of(spec_of()).names), 0)


def drawn(spec: StreamSpec, seed: int = 0, split: str = "train", count: int = 200) -> dict[str, np.ndarray]:
    """Every parameter by name, and the labels."""
    plan = plan_of(spec, seed, split)
    labels, table = reference.draw(plan, np.arange(count))
    return {"label": labels, **dict(zip(plan.names, table, strict=True))}


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 4096}, {"width": 9}, {"supersample": 3}, {"iterations": 999}, {"radius": 50.0},
        {"counting": "visits"}, {"orientation": "matrix"}, {"colouring": "smooth"},
        {"priors": {"alpha": Constant(1.0)}}, {"class_parameters": ("poly0", "poly1")},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_is_not_a_draw_changes_none(changes: dict[str, Any]) -> None:
    before, after = drawn(spec_of()), drawn(spec_of(**changes))
    touched = {"priors": {"alpha"}, "class_parameters": {"poly2", "poly3"}}.get(next(iter(changes)), set())
    assert len(before.keys() & after.keys()) >= 12
    for name in before.keys() & after.keys():
        assert np.array_equal(before[name], after[name]) == (name not in touched), name


def test_a_parameter_more_changes_no_other_draw() -> None:
    plan = plan_of(spec_of(colouring="smooth"))
    base = dict(zip(plan.names, reference.draw(plan, np.arange(64))[1], strict=True))
    for gone in range(len(plan.names)):
        kept = [row for row in range(len(plan.names)) if row != gone]
        fewer = Plan(
            names=tuple(plan.names[row] for row in kept), operation=plan.operation[kept], level=plan.level[kept],
            keys=plan.keys[kept], numbers=plan.numbers[kept], choices=plan.choices[kept],
            label_key=plan.label_key, num_classes=plan.num_classes, balanced=plan.balanced,
        )  # fmt: skip
        for name, row in zip(fewer.names, reference.draw(fewer, np.arange(64))[1], strict=True):
            assert np.array_equal(row, base[name])


def test_class_parameters_are_one_value_a_class_in_every_split_and_no_sample_parameter_is() -> None:
    found = {split: drawn(spec_of(), split=split, count=2000) for split in SPLITS}
    for name in ("poly0", "poly1", "poly2", "poly3"):
        of_class = {split: {} for split in SPLITS}  # type: ignore[var-annotated]
        for split in SPLITS:
            for label, value in zip(found[split]["label"].tolist(), found[split][name].tolist(), strict=True):
                assert of_class[split].setdefault(label, value) == value
        assert of_class["train"] == of_class["validation"] == of_class["test"]
        assert len(set(of_class["train"].values())) == 10
    for name in ("alpha", "beta", "power", "frequency"):
        together = np.concatenate([found[split][name] for split in SPLITS])
        assert len(np.unique(together)) > 0.999 * len(together)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"split": "test"}, {"version": 2}, {"formulas": "sine"}])
def test_another_name_is_another_stream(changed: dict[str, Any]) -> None:
    how = {name: changed[name] for name in ("seed", "split") if name in changed}
    spec = spec_of(**{name: value for name, value in changed.items() if name not in how})
    before, after = drawn(spec_of(), count=1000), drawn(spec, **how, count=1000)
    for name in ("alpha", "beta"):
        assert (before[name] == after[name]).mean() < 0.01
        assert abs(np.corrcoef(before[name], after[name])[0, 1]) < 4.5 / math.sqrt(1000)


@pytest.mark.parametrize("num_classes", [2, 10, 97, 1000])
def test_drawn_labels_are_equally_likely(num_classes: int) -> None:
    labels = drawn(spec_of(num_classes=num_classes), count=100_000)["label"]
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    chi_square = ((counts - 1e5 / num_classes) ** 2 / (1e5 / num_classes)).sum()
    freedom = num_classes - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10
    assert chi_square > freedom - 5 * math.sqrt(2 * freedom) or num_classes < 30


def test_drawn_labels_do_not_follow_the_index() -> None:
    labels = drawn(spec_of(), count=100_000)["label"]
    pairs = np.bincount(labels[:-1] * 10 + labels[1:], minlength=100)
    assert ((pairs - 999.99) ** 2 / 999.99).sum() < 99 + 5 * math.sqrt(2 * 99) + 10


@given(start=st.integers(0, 2**62), num_classes=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_balanced_labels_go_round(start: int, num_classes: int) -> None:
    plan = plan_of(spec_of(num_classes=num_classes, labels="balanced"))
    labels, _ = reference.draw(plan, start + np.arange(3 * num_classes))
    assert labels[0] == start % num_classes
    assert np.bincount(labels, minlength=num_classes).tolist() == [3] * num_classes


def test_the_largest_number_of_classes_reaches_both_ends() -> None:
    labels = drawn(spec_of(num_classes=2**31 - 1), count=100_000)["label"]
    assert labels.min() < 2e5 and 2**31 - 2e5 < labels.max() < 2**31 - 1
    assert len(np.unique(labels)) > 99_990


def test_a_hundred_thousand_classes_cost_what_ten_do() -> None:
    """No array of a plan grows with the classes, and no more random words are drawn."""
    few, many = plan_of(spec_of()), plan_of(spec_of(num_classes=100_000))
    for field in ("operation", "level", "keys", "numbers", "choices"):
        assert getattr(few, field).nbytes == getattr(many, field).nbytes
    calls: list[int] = []
    words = rng.words

    def counted(indices: Any, key: Any) -> Any:
        calls.append(len(indices))
        return words(indices, key)

    for plan in (few, many):
        calls.append(-1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rng, "words", counted)
            reference.draw(plan, np.arange(100))
    first, second = calls[1 : calls.index(-1, 1)], calls[calls.index(-1, 1) + 1 :]
    assert first == second and len(first) > 10


def test_a_prior_named_for_one_formula_goes_before_the_general() -> None:
    spec = spec_of(priors={"alpha": Constant(1.0), "polynomial_power.alpha": Constant(2.0)})
    assert (drawn(spec)["alpha"] == 2.0).all()
