"""What every formula of the catalogue must be: cited, finite, bounded, alive."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest

from fractal_streams import formulas
from fractal_streams.colouring import find_colouring
from fractal_streams.draw import make_plan
from fractal_streams.draw.reference import draw
from fractal_streams.formulas import CATALOGUE, MODULES, Formula, find_formula
from fractal_streams.formulas.definition import VIEW
from fractal_streams.presets import find_preset, open_stream
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer, call, stopped, view_to_plane
from fractal_streams.spec import StreamSpec

PRESETS = ["fractal-10", "fractal-100", "fractal-1k", "fractal-mnist"]


def constant(images: np.ndarray) -> np.ndarray:
    """(B,) whether all pixels of a picture are one colour."""
    flat = images.reshape(*images.shape[:2], -1)
    return (flat.min(axis=2) == flat.max(axis=2)).all(axis=1)


def test_each_formula_has_one_file_and_each_file_one_formula() -> None:
    files = {path.stem for path in Path(formulas.__file__).parent.glob("*.py")} - {"__init__", "definition"}
    assert {MODULES.get(name, name) for name in CATALOGUE} == files
    assert len(set(CATALOGUE)) == len(CATALOGUE) == 16


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_formula_is_a_page_with_its_source(name: str) -> None:
    formula = find_formula(name)
    page = importlib.import_module(formula.module).__doc__ or ""
    year = r"\b(18|19|20)\d\d\b"
    assert formula.name == name and re.search(year, formula.source) and re.search(year, page)
    assert len(page.splitlines()) >= 3


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameters_are_finite_and_say_what_they_are(name: str) -> None:
    formula = find_formula(name)
    for title, parameter in formula.parameters.items():
        assert -10.0 <= parameter.low <= parameter.high <= 10.0, title
        assert parameter.meaning and parameter.unit
        assert parameter.scale != "log" or parameter.low > 0
        assert parameter.scale != "integer" or parameter.low % 1 == parameter.high % 1 == 0
    assert formula.parameters["half_width"].low >= 1e-3, "float32 resolves no finer pixel"
    assert formula.parameters["half_width"].high > 0
    assert formula.class_parameters
    for title in formula.class_parameters:
        assert formula.parameters[title].low < formula.parameters[title].high, title


@pytest.mark.parametrize("name", CATALOGUE)
def test_bounds_are_finite_in_float32_and_steps_moderate(name: str) -> None:
    formula = find_formula(name)
    assert math.isfinite(np.float32(formula.radius) ** 2) and formula.radius >= 1
    assert 1e-3 <= formula.tolerance <= 0.1, "a step that float32 can tell from none"
    assert 8 <= formula.iterations <= 100
    assert find_colouring(formula.colouring).name == formula.colouring


def orbit_ends(formula: Formula, real: type, count: int) -> np.ndarray:
    """(count, 16, 16, 2) of each orbit's last z, in that precision, over its first samples."""
    spec = StreamSpec(formulas=(formula.name,), height=16, width=16)
    part = spec.parts()[0]
    raster = Raster.of(spec, part)
    _, table = draw(make_plan(spec, part, seed=0, split="train"), np.arange(count))
    ends = []
    for column in table.T:
        q = {title: real(value) for title, value in zip(raster.names, column, strict=True)}
        v, u = np.mgrid[-1:1:16j, -1:1:16j].astype(real)
        x, y = view_to_plane(u, v, *(q[title] for title in VIEW))
        zr, zi, cr, ci = (part + (x - x) for part in call(formula.start, q, x=x, y=y))
        pr, pi, alive = zr, zi, np.ones(x.shape, bool)
        for n in range(formula.iterations):
            new = call(formula.step, q, zr=zr, zi=zi, cr=cr, ci=ci, pr=pr, pi=pi, n=real(n))
            pr, pi = np.where(alive, zr, pr), np.where(alive, zi, pi)
            zr, zi = (np.where(alive, part, held) for part, held in zip(new, (zr, zi), strict=True))
            alive &= ~stopped(raster, zr, zi, pr, pi)
        assert zr.dtype == real
        ends.append(np.stack([zr, zi], axis=-1))
    return np.stack(ends)


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_ordinary_orbit_becomes_nan_or_infinite(name: str) -> None:
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        for real in (np.float32, np.float64):
            assert np.isfinite(orbit_ends(find_formula(name), real, 12)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_under_one_picture_in_200_is_constant(preset: str) -> None:
    size = {} if preset == "fractal-mnist" else {"height": 32, "width": 32}
    images = open_stream(preset, device="cpu", **size).generate(range(1500)).images
    assert constant(images).mean() < 0.005


def test_the_original_powers_and_a_radius_of_4_give_more_constant_pictures() -> None:
    """So that the test above can fail: powers below 1 are what the presets leave out."""
    images = open_stream("seed-readme", device="cpu", radius=4.0).generate(range(1500)).images
    assert constant(images).mean() > 0.005


def test_no_family_is_constant_and_none_has_a_colour_of_its_own() -> None:
    """Drawn by the reference: sixteen kernels take a minute to compile, and parity holds them to it."""
    spec = find_preset("fractal-families").replace(height=16, width=16)
    titles = ("brightness", "contrast", "red_phase", "green_phase", "blue_phase")
    colours = []
    for part in spec.parts():
        raster = Raster.of(spec, part)
        _, table = draw(make_plan(spec, part, seed=0, split="train"), np.arange(100))
        assert not constant(ReferenceRenderer().render(raster, table)).any(), part
        colours.append([table[raster.names.index(title)] for title in titles])
    for kind, mine in enumerate(np.array(colours, np.float64)):
        for title, own, rest in zip(titles, mine, np.delete(colours, kind, 0).swapaxes(0, 1), strict=True):
            error = np.hypot(rest.std() / 10.0, rest.std() / np.sqrt(rest.size))
            assert abs(own.mean() - rest.mean()) < 5 * error, (kind, title)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_under_one_picture_in_100_of_a_formula_is_constant(name: str) -> None:
    stream = open_stream(StreamSpec(formulas=(name,)), device="cpu")
    assert constant(stream.generate(range(6000)).images).mean() < 0.01
