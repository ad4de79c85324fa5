"""Priors: their distributions, their closed ends, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from strategies import NUMBER, PRIOR

from fractal_streams import rng
from fractal_streams.draw.reference import value
from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.priors import (
    LARGEST,
    Choice,
    Constant,
    Integer,
    LogUniform,
    Prior,
    Priors,
    Uniform,
    prior_from_json,
    prior_to_json,
)  # fmt: skip

COUNT = 100_000
EDGE_WORDS = np.array([0, 1, 15, 16, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1], np.uint32)


def values(prior: Prior, words: Any = None) -> np.ndarray:
    """What a prior makes of random words; without any, of 100,000 drawn ones."""
    if words is None:
        words = rng.words(np.arange(COUNT), rng.key("priors", repr(prior)))[0]
    operation, *numbers, given_choices = prior.encode()
    choices = np.zeros(16, np.float32)
    choices[: len(given_choices)] = given_choices
    return value(operation, words, np.array(numbers), choices)


def largest_gap(sample: np.ndarray, cumulative: Any) -> float:
    """The Kolmogorov-Smirnov distance times the root of the count; above 2.6 by chance once in 700,000."""
    ordered = np.sort(sample.astype(float))
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    truth = cumulative(ordered)
    return max(np.abs(truth - ranks[1:]).max(), np.abs(truth - ranks[:-1]).max()) * math.sqrt(len(ordered))


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 5.0), (1e-3, 2e-3), (-1e30, 1e30)])
def test_uniform_is_uniform(low: float, high: float) -> None:
    assert largest_gap(values(Uniform(low, high)), lambda x: (x - low) / (high - low)) < 2.6


@pytest.mark.parametrize("low, high", [(0.5, 8.0), (1e-20, 1e20), (3.0, 3.5)])
def test_log_uniform_is_uniform_in_the_logarithm(low: float, high: float) -> None:
    assert largest_gap(values(LogUniform(low, high)), lambda x: np.log(x / low) / math.log(high / low)) < 2.6


@pytest.mark.parametrize("prior", [Integer(-3, 12), Integer(0, 1), Choice((0.5, -2.0, 7.0, 7.5, 1e30))])
def test_integers_and_choices_are_equally_likely(prior: Integer | Choice) -> None:
    allowed = range(prior.low, prior.high + 1) if isinstance(prior, Integer) else prior.values
    found, counts = np.unique(values(prior), return_counts=True)
    assert found.tolist() == sorted(np.float32(list(allowed)).tolist())
    expected = COUNT / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10


@given(PRIOR)
@settings(max_examples=200, deadline=None)
def test_no_word_leaves_the_bounds(prior: Prior) -> None:
    *_, low, high, _ = prior.encode()
    drawn = values(prior, EDGE_WORDS)
    assert np.isfinite(drawn).all()
    assert (drawn >= np.float32(low)).all() and (drawn <= np.float32(high)).all()


def test_the_ends_are_the_first_and_last_values() -> None:
    ends = np.array([0, 2**32 - 1], np.uint32)
    assert values(Integer(-5, 9), ends).tolist() == [-5.0, 9.0]
    assert values(Choice((3.0, 1.0, 2.0)), ends).tolist() == [3.0, 2.0]
    assert values(Uniform(0.0, 1.0), ends).tolist() == [2.0**-29, 1.0]
    assert values(Uniform(-1.0, 1.0), ends).tolist() == [-1.0, 1.0]
    np.testing.assert_allclose(values(LogUniform(0.25, 16.0), ends), [0.25, 16.0], rtol=1e-7)


def test_symmetric_bounds_give_a_symmetric_draw() -> None:
    words = rng.words(np.arange(1000), rng.key("mirror"))[0]
    assert np.array_equal(values(Uniform(-1.0, 1.0), words), -values(Uniform(-1.0, 1.0), ~words))


@given(st.floats(-126.0, 127.0), st.floats(1e-3, 20.0))
@settings(max_examples=50, deadline=None)
def test_log_uniform_equals_the_power_of_two_to_float32(start: float, span: float) -> None:
    low, high = 2.0**start, 2.0 ** min(start + span, 99.0)
    if not 1e-30 <= low < high <= 1e30:
        return
    words = rng.words(np.arange(200), rng.key("power"))[0]
    unit = ((words >> 4).astype(float) * 2 + 1) / 2**29
    operation, a, b, least, most, _ = LogUniform(low, high).encode()
    exact = np.clip(np.exp2(a + b * unit), least, most)
    np.testing.assert_allclose(values(LogUniform(low, high), words), exact, rtol=6.1e-8)


@given(PRIOR)
@settings(max_examples=100, deadline=None)
def test_json_gives_the_prior_back(prior: Prior) -> None:
    assert prior_from_json(prior_to_json(prior)) == prior


def test_equal_priors_are_equal_as_text() -> None:
    assert prior_to_json(Uniform(0, 1)) == prior_to_json(Uniform(-0.0, np.float32(1)))
    assert repr(prior_to_json(Constant(2))) == repr(prior_to_json(Constant(2.0)))
    assert prior_to_json(Integer(1.0, 3)) == {"kind": "integer", "low": 1, "high": 3}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Uniform(1.0, 1.0), "low must be below high, got 1.0 and 1.0"),
        (lambda: Uniform(math.nan, 1.0), "got nan"),
        (lambda: Uniform(0.0, math.inf), "got inf"),
        (lambda: Uniform(0.0, 10**400), "Uniform: high must be a number"),
        (lambda: Uniform("0", 1.0), "got '0'"),
        (lambda: Constant(True), "got True"),
        (lambda: Constant(2 * LARGEST), "Constant: value must be a number from -1e[+]38 to 1e[+]38"),
        (lambda: LogUniform(0.0, 1.0), "1e-30 <= low"),
        (lambda: LogUniform(2.0, 1.0), "got 2.0 and 1.0"),
        (lambda: Integer(1.5, 3), "whole"),  # type: ignore[arg-type]
        (lambda: Integer(4, 3), "got 4.0 and 3.0"),
        (lambda: Integer(0, 2**24 + 1), "2[*][*]24"),
        (lambda: Choice(()), "1 to 16 values"),
        (lambda: Choice(tuple(range(17))), "1 to 16 values"),
        (lambda: Choice(5), "got 5"),  # type: ignore[arg-type]
        (lambda: Choice((1.0, math.nan)), "got nan"),
        (lambda: prior_from_json({"kind": "uniform", "low": 1.0}), "uniform"),
        (lambda: prior_from_json([1]), "JSON object"),  # type: ignore[arg-type]
        (lambda: Priors({"a": 3}), "'a': 3"),  # type: ignore[dict-item]
        (lambda: Priors([1]), "map names"),  # type: ignore[arg-type]
    ],
)
def test_what_a_prior_refuses(make: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'log_uniform'"):
        prior_from_json({"kind": "loguniform", "low": 1.0, "high": 2.0})


@given(st.dictionaries(st.text(max_size=5), PRIOR, max_size=4))
@settings(max_examples=50, deadline=None)
def test_priors_are_a_frozen_mapping(given_priors: dict[str, Prior]) -> None:
    priors = Priors(given_priors)
    backwards = Priors(dict(reversed(given_priors.items())))
    assert dict(priors) == given_priors and priors == backwards and hash(priors) == hash(backwards)
    with pytest.raises(TypeError):
        priors["x"] = Constant(1.0)  # type: ignore[index]


@given(NUMBER)
@settings(max_examples=50, deadline=None)
def test_a_constant_is_its_float32(number: float) -> None:
    assert (values(Constant(number), EDGE_WORDS) == np.float32(number)).all()
