"""Hypothesis strategies for the values of the core."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fractal_streams.priors import LARGEST, Choice, Constant, Integer, LogUniform, Prior, Uniform
from fractal_streams.spec import StreamSpec

INDEX = st.integers(0, 2**63 - 1)
SEED = st.integers(0, 2**64 - 1)
NUMBER = st.floats(-LARGEST, LARGEST, allow_nan=False)
FORMULAS = ("polynomial_power", "sine", "mandelbrot")


def _ordered(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: tuple(sorted(pair)))


PRIOR: st.SearchStrategy[Prior] = st.one_of(
    st.builds(Constant, NUMBER),
    _ordered(NUMBER).map(lambda pair: Uniform(*pair)),
    _ordered(st.floats(1e-30, 1e30)).map(lambda pair: LogUniform(*pair)),
    st.tuples(st.integers(-(2**24), 2**24), st.integers(-(2**24), 2**24)).map(lambda pair: Integer(*sorted(pair))),
    st.lists(NUMBER, min_size=1, max_size=16).map(lambda values: Choice(tuple(values))),
)
PARAMETERS = ("centre_x", "centre_y", "half_width", "rotation")


@st.composite
def specs(draw: st.DrawFn, **fixed: Any) -> StreamSpec:
    """Any valid spec; `fixed` fields keep their value."""
    formulas = draw(st.lists(st.sampled_from(FORMULAS), min_size=1, max_size=3, unique=True))
    fields = {
        "formulas": tuple(formulas),
        "height": draw(st.integers(8, 4096)),
        "width": draw(st.integers(8, 4096)),
        "num_classes": draw(st.integers(len(formulas), 2**31 - 1)),
        "labels": draw(st.sampled_from(["drawn", "balanced"])),
        "class_parameters": tuple(draw(st.lists(st.sampled_from(PARAMETERS), min_size=1, unique=True))),
        "colouring": draw(st.sampled_from([None, "smooth", "three_phase_sine"])),
        "iterations": draw(st.none() | st.integers(1, 1_000_000)),
        "radius": draw(st.none() | st.floats(1e-3, 1e15)),
        "priors": draw(st.dictionaries(st.sampled_from(PARAMETERS), PRIOR, max_size=3)),
        "supersample": draw(st.integers(1, 3)),
        "counting": draw(st.sampled_from(["escape", "visits"])),
        "orientation": draw(st.sampled_from(["cartesian", "matrix"])),
        "version": draw(st.integers(1, 2**31 - 1)),
    }
    fields |= fixed
    if "priors" not in fixed and "class_parameters" not in fixed:
        fields["priors"][fields["class_parameters"][0]] = Uniform(0.25, 4.0)  # else the classes might look alike
    return StreamSpec(**fields)
