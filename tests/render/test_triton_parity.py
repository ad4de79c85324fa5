"""The Triton renderer keeps the budget that its own primitives' errors allow, over the catalogue."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl
from budget import judge, pictures

from fractal_streams.colouring import CATALOGUE as COLOURINGS
from fractal_streams.formulas import CATALOGUE as FORMULAS
from fractal_streams.render import triton_primitives
from fractal_streams.render.rounding import MEASURED, Errors, measure_errors
from fractal_streams.render.triton_backend import TritonRenderer
from fractal_streams.spec import StreamSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@triton.jit
def unary(x, out, count, function: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + place, function(tl.load(x + place, mask=place < count, other=1.0)), mask=place < count)


@triton.jit
def binary(y, x, out, count, function: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0) * block + tl.arange(0, block)
    first = tl.load(y + place, mask=place < count, other=1.0)
    second = tl.load(x + place, mask=place < count, other=1.0)
    tl.store(out + place, function(first, second), mask=place < count)


@triton.jit
def divide(a, b):
    return a / b


def over_arrays(name: str) -> Any:
    function = divide if name == "divide" else getattr(triton_primitives, name)

    def measured(*given: np.ndarray) -> np.ndarray:
        arrays = [torch.from_numpy(np.ascontiguousarray(part)).to(DEVICE) for part in given]
        out = torch.empty_like(arrays[0])
        kernel = unary if len(arrays) == 1 else binary
        kernel[(triton.cdiv(out.numel(), 4096),)](*arrays, out, out.numel(), function, 4096)
        return out.cpu().numpy()

    return measured


@pytest.fixture(scope="module")
def errors() -> Errors:
    """Measured errors of the primitives where the renderer runs."""
    return measure_errors({name: over_arrays(name) for name in MEASURED})


class AsArrays:
    """The renderer with NumPy tables and pictures, as `judge` wants."""

    def render(self, raster: Any, table: np.ndarray) -> np.ndarray:
        tile = None if DEVICE == "cuda" else (16, 16)
        return TritonRenderer(DEVICE, tile).render(raster, torch.from_numpy(table).to(DEVICE)).cpu().numpy()


def test_primitives_are_as_exact_as_they_say(errors: Errors) -> None:
    """Sine and cosine to 2**-20 in the first turns, the logarithm and the arctangent to 5e-6."""
    first_turns = slice(36, 44)
    assert errors.tables["sin"][:, first_turns].max() < 2.0**-18
    assert errors.tables["cos"][:, first_turns].max() < 2.0**-18
    assert errors.tables["atan2"].max() < 2e-5
    assert errors.tables["reciprocal"].max() < 2.0**-22
    assert errors.tables["exp2"][:, :42].max() < 2.0**-21


@pytest.mark.parametrize("formula", FORMULAS)
def test_every_formula_keeps_the_budget(formula: str, errors: Errors) -> None:
    size, count = (32, 24) if DEVICE == "cuda" else (16, 2)
    raster, table = pictures(StreamSpec(formulas=formula, height=size, width=size), count)
    verdict = judge(AsArrays(), errors, raster, table)
    assert verdict.passes, verdict


@pytest.mark.parametrize("colouring", COLOURINGS)
def test_every_colouring_keeps_the_budget(colouring: str, errors: Errors) -> None:
    size, count = (32, 24) if DEVICE == "cuda" else (16, 2)
    raster, table = pictures(StreamSpec(formulas="burning_ship", colouring=colouring, height=size, width=size), count)
    verdict = judge(AsArrays(), errors, raster, table)
    assert verdict.passes, verdict


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("formula", "colouring"), list(itertools.product(FORMULAS, COLOURINGS)))
def test_every_pair_keeps_the_budget_on_a_gpu(formula: str, colouring: str, errors: Errors) -> None:
    raster, table = pictures(StreamSpec(formulas=formula, colouring=colouring, height=24, width=24), 16)
    verdict = judge(AsArrays(), errors, raster, table)
    assert verdict.passes, verdict
