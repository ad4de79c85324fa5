"""Specs: frozen values, the same as JSON, as a key of a dictionary, and after pickling."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import specs

from fractal_streams.errors import InvalidValueError, UnknownNameError, VersionError
from fractal_streams.formulas.definition import _import_formula
from fractal_streams.priors import Choice, Constant, Uniform
from fractal_streams.spec import StreamSpec


def spec_of(**fields: Any) -> StreamSpec:
    return StreamSpec(**{"formulas": "mandelbrot", **fields})


@given(specs())
@settings(max_examples=100, deadline=None)
def test_a_spec_survives_json_pickle_and_copy(spec: StreamSpec) -> None:
    for other in (
        StreamSpec.from_json(spec.to_json()), pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec), spec.replace(),
    ):  # fmt: skip
        assert other == spec
        assert hash(other) == hash(spec)
        assert other.to_json() == spec.to_json()
        assert other.digest() == spec.digest()


@given(specs(), specs())
@settings(max_examples=100, deadline=None)
def test_digests_are_equal_where_specs_are(spec: StreamSpec, other: StreamSpec) -> None:
    assert (spec == other) == (spec.digest() == other.digest()) == (spec.to_json() == other.to_json())


def test_each_field_is_in_the_digest() -> None:
    varied = {"centre_x": Uniform(0.0, 1.0), "centre_y": Uniform(0.0, 1.0)}
    spec = spec_of(num_classes=2, class_parameters=("centre_x",), priors=varied)
    changes: dict[str, Any] = {
        "formulas": ("sine",), "height": 33, "width": 33, "num_classes": 3, "labels": "balanced",
        "class_parameters": ("centre_y",), "colouring": "smooth", "iterations": 7, "radius": 3.0,
        "priors": {"centre_x": Uniform(0.0, 2.0)}, "supersample": 2, "counting": "visits", "orientation": "matrix",
        "version": 2,
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(spec)}
    digests = {spec.digest(), *(spec.replace(**{name: value}).digest() for name, value in changes.items())}
    assert len(digests) == len(changes) + 1


def test_equal_specs_are_equal_as_text() -> None:
    plain = spec_of(height=16, radius=2.0, priors={"centre_x": Uniform(0.0, 1.0)})
    dressed = spec_of(height=np.int64(16), radius=2, priors={"centre_x": Uniform(-0.0, 1)})
    assert plain == dressed and plain.to_json() == dressed.to_json() and len({plain, dressed}) == 1
    one, two = (dict(zip(order, (Constant(1.0), Constant(1.0)), strict=True)) for order in ("xy", "yx"))
    rename = {"x": "centre_x", "y": "centre_y"}
    first, second = (spec_of(priors={rename[name]: prior for name, prior in given.items()}) for given in (one, two))
    assert first == second and first.digest() == second.digest() and hash(first) == hash(second)


def test_a_spec_is_frozen_down_to_its_priors() -> None:
    given_priors = {"centre_x": Constant(0.0)}
    spec = spec_of(priors=given_priors)
    digest = spec.digest()
    given_priors["centre_x"] = Constant(1.0)
    assert spec.digest() == digest
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.height = 64  # type: ignore[misc]
    with pytest.raises(TypeError):
        spec.priors["centre_x"] = Constant(1.0)  # type: ignore[index]


def test_the_json_of_a_spec_is_pinned() -> None:
    """Change only with a new SPEC_VERSION, and read the old one for ever."""
    text = spec_of(
        height=16, num_classes=4, class_parameters=("centre_x",), priors={"rotation": Choice((1.0,))}
    ).to_json()
    assert json.loads(text) == {
        "spec_version": 1, "kind": "stills", "formulas": ["mandelbrot"], "height": 16, "width": 32, "num_classes": 4,
        "labels": "drawn", "class_parameters": ["centre_x"], "colouring": None, "iterations": None, "radius": None,
        "priors": {"rotation": {"kind": "choice", "values": [1.0]}}, "supersample": 1, "counting": "escape",
        "orientation": "cartesian", "version": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"height": 7}, "height must be a whole number from 8 to 4096 pixels, got 7"),
        ({"width": 4097}, "width .* got 4097"),
        ({"height": 32.0}, "height .* got 32.0"),
        ({"height": True}, "height .* got True"),
        ({"height": "32"}, "height .* got '32'"),
        ({"height": np.array([8, 9])}, "height"),
        ({"num_classes": 0}, "num_classes .* from 1"),
        ({"num_classes": 2**31}, "num_classes .* to 2147483647"),
        ({"supersample": 4}, "supersample .* from 1 to 3"),
        ({"iterations": 0}, "iterations .* from 1 to 1000000"),
        ({"iterations": math.nan}, "iterations"),
        ({"radius": 0.0}, "radius must lie in"),
        ({"radius": math.nan}, "radius .* nan"),
        ({"radius": math.inf}, "radius .* inf"),
        ({"radius": True}, "radius .* True"),
        ({"radius": "2"}, "radius .* '2'"),
        ({"labels": "random"}, "labels must be one of 'drawn', 'balanced', got 'random'"),
        ({"labels": ["drawn"]}, "labels"),
        ({"counting": "twice"}, "counting"),
        ({"orientation": "up"}, "orientation"),
        ({"version": 0}, "version"),
        ({"formulas": ()}, "at least one"),
        ({"formulas": 5}, "formulas .* got 5"),
        ({"formulas": ("mandelbrot", 3)}, "formulas"),
        ({"class_parameters": 5}, "class_parameters .* got 5"),
        ({"formulas": ("mandelbrot", "sine"), "num_classes": 1}, "at least the 2 formulas"),
        ({"num_classes": 5, "class_parameters": ()}, "look alike"),
        ({"priors": {"centre_x": 0.5}}, "centre_x"),
        ({"priors": 7}, "priors"),
    ],
)
def test_what_a_spec_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        spec_of(**fields)


@pytest.mark.parametrize(
    "fields, nearest",
    [
        ({"formulas": "mandelbrott"}, "mandelbrot"),
        ({"colouring": "smoth"}, "smooth"),
        ({"priors": {"center_x": Constant(0.0)}}, "centre_x"),
        ({"class_parameters": ("centre_z",)}, "centre_"),
        ({"priors": {"sine.alpha": Constant(0.0)}}, "known are"),
    ],
)
def test_an_unknown_name_names_the_nearest(fields: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=nearest):
        spec_of(**fields)


def with_fields(**fields: Any) -> str:
    return json.dumps({**json.loads(spec_of().to_json()), **fields})


@pytest.mark.parametrize("names", [{"mandelbrot", "sine"}, frozenset({"mandelbrot"}), {"mandelbrot": 1}])
def test_names_without_an_order_are_refused(names: Any) -> None:
    """Formulas are classes in their order, and a set has another one in each process."""
    with pytest.raises(InvalidValueError, match="formulas must be one name or a list of names"):
        spec_of(formulas=names, num_classes=2)


@pytest.mark.parametrize("colouring", [3, [], "", b"smooth"])
def test_a_colouring_is_a_name(colouring: Any) -> None:
    with pytest.raises(InvalidValueError, match="colouring must be a name"):
        spec_of(colouring=colouring)


def test_a_formula_named_twice_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="names 'mandelbrot' twice"):
        spec_of(formulas=("mandelbrot", "fractal_streams.formulas.mandelbrot:mandelbrot"), num_classes=2)


@pytest.mark.parametrize("name", ["nowhere.at_all:boat", "fractal_streams.nowhere:boat", "..:boat"])
@pytest.mark.parametrize("field", ["formulas", "colouring"])
def test_a_module_that_is_not_there_is_an_unknown_name(field: str, name: str) -> None:
    with pytest.raises(UnknownNameError, match="there is no module"):
        spec_of(**{field: name})


def test_a_formula_that_this_process_does_not_know_says_where_to_define_it() -> None:
    """What unpickling in a spawned worker process meets, of a formula made in a notebook."""
    with pytest.raises(UnknownNameError, match="define it at the top of a file"):
        _import_formula("fractal_streams.spec", "of_a_notebook")


@pytest.mark.parametrize("version", [2, 99, 0, -1, None, "1", True, 1.0])
def test_another_spec_version_is_refused(version: object) -> None:
    with pytest.raises(VersionError, match="upgrade"):
        StreamSpec.from_json(with_fields(spec_version=version))


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("{", InvalidValueError, "not a spec"),
        ("[1]", InvalidValueError, "JSON object"),
        (with_fields(kind="clips"), InvalidValueError, "'clips'"),
        (with_fields(hight=9), UnknownNameError, "did you mean 'height'"),
        (with_fields(height=3), InvalidValueError, "height"),
        (with_fields(priors=[]), InvalidValueError, "priors"),
        (with_fields(priors={"rotation": 3}), InvalidValueError, "prior"),
        (with_fields(formulas=None), InvalidValueError, "formulas"),
        ('{"spec_version": 1, "kind": "stills"}', InvalidValueError, "formulas"),
    ],
)
def test_text_that_is_no_spec_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StreamSpec.from_json(text)


def test_fields_left_out_of_the_json_take_their_default() -> None:
    assert StreamSpec.from_json('{"spec_version": 1, "kind": "stills", "formulas": "sine"}') == StreamSpec(
        formulas="sine"
    )


@pytest.mark.parametrize("priors", [{}, {"centre_x": Constant(2.0)}, {"centre_x": Choice((1.0, 1.0))}], ids=str)
def test_classes_of_constant_parameters_would_look_alike(priors: dict[str, Any]) -> None:
    fields = {"formulas": "polynomial_power", "class_parameters": ("centre_x",), "priors": priors}
    with pytest.raises(InvalidValueError, match="5 classes .* would look alike"):
        StreamSpec(**fields, num_classes=5)
    assert StreamSpec(**fields, num_classes=1).num_classes == 1
    assert StreamSpec(**{**fields, "priors": {"centre_x": Choice((1.0, 2.0))}}, num_classes=5).num_classes == 5
