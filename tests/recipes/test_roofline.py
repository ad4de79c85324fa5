"""The roofline: what it counts in machine code, and what it makes of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from fractal_streams.recipes.benchmarks import roofline
from fractal_streams.recipes.benchmarks.roofline import Bound, Step, loops, mean_steps, plain, share

from fractal_streams import StreamSpec, open_stream
from fractal_streams.priors import Constant

LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FADD R2, R2, R3 ;
.L_x_2:
        /*0020*/              @!P0 MUFU.RCP R4, R2 ;
        /*0030*/                   FSET.BF.LT.AND R5, R4, 4, PT ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0060*/                   BRA `(.L_x_3) ;
"""


def test_only_innermost_loops_count_and_predicates_do_not() -> None:
    assert loops(LISTING) == [["MUFU.RCP", "FSET.BF.LT.AND", "BRA"]]


def test_a_step_of_the_seeds_map_has_five_special_functions_and_one_of_mandelbrot_none() -> None:
    """Logarithm, exponential, reciprocal, sine, cosine; in a process without the interpreter, for sm_90."""
    code = (
        "from fractal_streams import open_stream\n"
        "from fractal_streams.recipes.benchmarks.roofline import plain, step_of\n"
        "for name in ('polynomial_power', 'mandelbrot'):\n"
        "    step = step_of(plain(open_stream(name, device='cpu').rasters[0]), 90)\n"
        "    print(step.instructions, step.special)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    (seed, seed_special), (square, square_special) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert seed_special == 5.0 and square_special == 0.0
    assert 33.0 < seed < 41.0, "the notes in recipes/benchmarks/README.md say 35"
    assert 7.0 < square < 10.0, "two squares, four additions and products, a test, a count"


@pytest.mark.slow
def test_orbits_that_stop_at_once_run_one_step_and_those_inside_all() -> None:
    home = {"centre_x": Constant(-0.1), "centre_y": Constant(0.0), "half_width": Constant(1e-3)}
    inside = StreamSpec(formulas="mandelbrot", iterations=300, priors=home)
    assert mean_steps(inside, pictures=1) == 300.0
    outside = StreamSpec(formulas="mandelbrot", priors={"centre_x": Constant(200.0)})
    assert mean_steps(outside, pictures=1) == 1.0
    assert mean_steps(StreamSpec(formulas="polynomial_power", counting="visits", iterations=7), pictures=1) == 7.0


def test_the_tighter_bound_holds_and_a_share_is_of_the_steps_that_orbits_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Bound(step=Step(instructions=40.0, special=5.0), by_instructions=9e11, by_special=8e11)
    assert limit.steps == 8e11
    monkeypatch.setattr(roofline, "bound", lambda raster, device: limit)
    stream = open_stream("seed-readme", device="cpu", counting="visits", radius=2.0, height=8, width=8)
    assert share(stream, 1e6) is None  # no GPU, no roofline
    stream.device = "cuda:0"
    assert share(stream, 1e6) == pytest.approx(1e6 * 64 * 30 / 8e11)


def test_a_step_that_asks_for_more_than_z_and_c_has_no_bound() -> None:
    assert plain(open_stream("phoenix", device="cpu").rasters[0]) is None
    assert plain(open_stream("julia", device="cpu").rasters[0]) is not None
