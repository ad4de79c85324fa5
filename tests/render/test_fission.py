"""A step cut into loops: the same bits as the step as it stands, and what is not cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine_code import vectors_on_ice_lake

from fractal_streams.dialect import absolute, atan2, cos, cpow, exp2, log2, sin, sqrt, where
from fractal_streams.formulas import CATALOGUE, Formula, Parameter, find_formula, formula
from fractal_streams.render import bind, numba_backend
from fractal_streams.render.fission import MOST, WHOLE, fission
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.spec import StreamSpec

CUT = {"polynomial_power", "multibrot", "sine"}
PULL = {"pull": Parameter(0.2, 0.9, "how far c pulls")}
OFFSET = 0.25

BOTH = """

@numba.njit(nogil=True, fastmath=FLAGS, error_model="numpy")
def both(s, table, turn, out):
    p = gather(table, 0)
    for k in range(LANES):
        out[0, k], out[1, k] = step(s[ZR + k], s[ZI + k], s[CR + k], s[CI + k], s[PR + k], s[PI + k], turn, p)
    advance(s, turn, p)
    for k in range(LANES):
        out[2, k], out[3, k] = arrive(
            s, k, s[ZR + k], s[ZI + k], s[CR + k], s[CI + k], s[PR + k], s[PI + k], turn, p
        )
"""


def raster_of(made: Formula, **fields: Any) -> Raster:
    spec = StreamSpec(**{"formulas": made.name, "height": 16, "width": 16, **fields})
    return Raster.of(spec, spec.parts()[0])


def cut_of(made: Formula) -> Any:
    return fission(bind.module_text(raster_of(made), "numba"))


def halves(x: Any) -> Any:
    """Two values, one of which nobody reads."""
    return (x - OFFSET, 0.5 * x)


@formula(source="tests", parameters=PULL)
def folded_power(zr: Any, zi: Any, cr: Any, ci: Any, pr: Any, pi: Any, n: Any, pull: Any) -> Any:
    """Truth values, tuples, constants, the z before and the turn, on both sides of the cuts."""
    (low, _), high = halves(zr), 3.0
    near = (absolute(low) < 1.0) & ~(zi > pull)
    size = log2(zr * zr + zi * zi + 0.1)
    kept = where(near | (n > 2.5), size, -size)
    grown = exp2(pull * kept * 0.25) * where(near, 1.0, 0.5)
    re, im = sin(grown) * cos(pull) - grown * sin(pull), cos(grown)
    return sqrt(absolute(re)) + cr + pull * pr, where(near, im, high) - ci + pi


@formula(source="tests")
def turned(zr: Any, zi: Any, cr: Any, ci: Any) -> Any:
    """A product whose only reader is the sum behind the cut; a number among the results."""
    turn = atan2(zi, zr)
    return exp2(turn) + zr * ci, 0.5


@pytest.mark.parametrize("made", [*map(find_formula, sorted(CUT)), folded_power, turned], ids=lambda made: made.name)
def test_the_loops_give_the_bits_of_the_step(made: Formula) -> None:
    raster = raster_of(made)
    cut = fission(bind.module_text(raster, "numba"))
    assert cut and cut.text.count("for k in range(LANES)") >= 1
    module = bind.load("numba", numba_backend.source(raster) + BOTH)
    rng = np.random.default_rng(1)
    declared = {**raster.formula.parameters, **raster.colouring.parameters}
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-30, 1e30, -3e38, 1.0, -1.0, 2.0], np.float32)
    lanes, rows, finite = module.LANES, 11 + len(raster.accumulators) + cut.slots, 0
    for turn in range(40):
        table = np.array([[rng.uniform(p.low, p.high)] for p in declared.values()], np.float32)
        state = rng.standard_normal((rows, lanes)).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 3))
        if turn % 2:
            state = np.where(rng.random(state.shape) < 0.3, rng.choice(odd, state.shape), state)
        out = np.empty((4, lanes), np.float32)
        module.both(state.ravel(), table, np.float32(turn % 5), out)
        plain, loops = out[:2], out[2:]
        assert np.array_equal(np.isnan(plain), np.isnan(loops))
        known = ~np.isnan(plain)  # and the sign of a zero is free: the compiler is told that none is looked at
        plain, loops = plain + np.float32(0.0), loops + np.float32(0.0)
        assert np.array_equal(plain[known].view(np.int32), loops[known].view(np.int32))
        finite += int(np.isfinite(plain).sum())
    assert finite > 40 * lanes


@pytest.mark.parametrize("name, colouring", [
    ("polynomial_power", "three_phase_sine"),
    *(pytest.param(name, "stripe_average", marks=pytest.mark.slow) for name in sorted(CUT)),  # which observes orbits
])  # fmt: skip
def test_pictures_of_a_step_in_loops_are_those_of_the_step_as_it_stands(
    name: str, colouring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StreamSpec(formulas=name, colouring=colouring, height=33, width=21)
    raster = Raster.of(spec, spec.parts()[0])
    declared = {**raster.formula.parameters, **raster.colouring.parameters}
    rng = np.random.default_rng(5)
    table = np.array([rng.uniform(p.low, p.high, 3) for p in declared.values()], np.float32)
    found = NumbaRenderer(1).render(raster, table)
    assert len(np.unique(found)) > 20
    with monkeypatch.context() as patch:
        patch.setattr(numba_backend, "fission", lambda text: None)
        numba_backend.compiled.cache_clear()
        assert WHOLE in numba_backend.source(raster)
        assert np.array_equal(NumbaRenderer(1).render(raster, table), found)
    numba_backend.compiled.cache_clear()


def test_what_is_cut_and_what_is_not() -> None:
    assert {name for name in CATALOGUE if cut_of(find_formula(name))} == CUT


@pytest.mark.parametrize("name, loops, slots", [("polynomial_power", 3, 3), ("multibrot", 3, 2), ("sine", 3, 3)])
def test_a_loop_for_each_heavy_part(name: str, loops: int, slots: int) -> None:
    """Logarithm, exponential, arctangent; sine and cosine are the kernel's own loop's."""
    cut = cut_of(find_formula(name))
    assert (cut.text.count("for k in range(LANES)"), cut.slots) == (loops, slots)
    for heavy in ("log2(", "exp2(", "atan2("):
        assert cut.text.count(heavy) == 1
    assert cut.text[cut.text.index("def arrive") :].count("sin(") == 1


def test_nothing_is_evaluated_twice() -> None:
    """But for truth values, which no slot holds, and what is the same in all lanes, which compilers take out."""
    lines = [line.split(" = ")[1] for line in cut_of(folded_power).text.splitlines() if "    v" in line]
    made = [line for line in lines if "s[" not in line and "<" not in line and ">" not in line and "p[" not in line]
    logic = [line for line in made if "&" in line or "|" in line or "~" in line]
    assert len(made) - len(logic) == len({*made} - {*logic}) > 20


def divided(zr: Any, zi: Any) -> Any:
    re, im = cpow(zr, zi, 2.5)
    return re / zr, im / zr


def with_default(zr: Any, zi: Any) -> Any:
    def_re, def_im = scaled(zr, zi)
    return def_re, sin(exp2(def_im))


def scaled(re: Any, im: Any, by: Any = 2.0) -> Any:
    return re * by, im * by


def fused(zr: Any, zi: Any) -> Any:
    """Which product is fused into the sum depends on how a compiler ranks them, and that on the cut."""
    re, im = cpow(zr, zi, 2.5)
    return re, re * zr + im * zi


def one_heavy(zr: Any, zi: Any) -> Any:
    return sin(zr), cos(zr) + zi


def long(zr: Any, zi: Any) -> Any:
    re, im = cpow(zr, zi, 2.5)
    return doubled9(re), im


def doubled(x: Any) -> Any:
    return x + absolute(x)


def doubled3(x: Any) -> Any:
    return doubled(doubled(doubled(doubled(doubled(doubled(doubled(doubled(x))))))))


def doubled6(x: Any) -> Any:
    return doubled3(doubled3(doubled3(doubled3(doubled3(doubled3(doubled3(doubled3(x))))))))


def doubled9(x: Any) -> Any:
    return doubled6(doubled6(doubled6(doubled6(doubled6(doubled6(doubled6(doubled6(x))))))))


def truth(zr: Any, zi: Any) -> Any:
    return exp2(log2(zr)) * (zi > 0.0), zi


@pytest.mark.parametrize("step", [divided, with_default, fused, one_heavy, long, truth], ids=lambda step: step.__name__)
def test_what_stays_whole(step: Any) -> None:
    assert cut_of(formula(source="tests")(step)) is None
    assert MOST < 8**3 * 4


@pytest.mark.parametrize("step", [
    folded_power, pytest.param(turned, marks=pytest.mark.slow), pytest.param(divided, marks=pytest.mark.slow),
], ids=lambda step: getattr(step, "name", "divided"))  # fmt: skip
def test_a_whole_step_and_a_cut_one_of_ones_own_are_drawn(step: Any) -> None:
    made = step if isinstance(step, Formula) else formula(source="tests")(step)
    raster = raster_of(made, iterations=3, colouring="three_phase_sine")
    declared = {**raster.formula.parameters, **raster.colouring.parameters}
    table = np.array([[(p.low + p.high) / 2] for p in declared.values()], np.float32)
    found, truth = NumbaRenderer(1).render(raster, table), ReferenceRenderer().render(raster, table)
    assert (np.abs(found.astype(int) - truth) > 2).mean() < 0.02


def test_vectors_of_a_step_in_loops_are_the_processor_s_widest(fresh_cache: Path) -> None:
    wide, narrow = vectors_on_ice_lake("polynomial_power")
    assert wide > 600 and wide > 4 * narrow, (wide, narrow)
