"""The Numba renderer: its primitives' accuracy, every size and form of pixels, every byte written."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import budget
import numpy as np
import pytest
from machine_code import vectors_on_ice_lake

from fractal_streams.dialect import PRIMITIVES, where
from fractal_streams.errors import InvalidValueError
from fractal_streams.formulas import Parameter, formula
from fractal_streams.priors import Constant, Uniform
from fractal_streams.render import bind, numba_backend, numba_primitives
from fractal_streams.render.numba_backend import NumbaRenderer, split
from fractal_streams.render.raster import PixelFormat, Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.render.rounding import LEAST, Errors
from fractal_streams.spec import StreamSpec

RENDER = NumbaRenderer(1).render


@pytest.fixture(scope="module")
def errors() -> Errors:
    return budget.numba_errors()


def pictures(count: int = 4, **fields: Any) -> tuple[Raster, np.ndarray]:
    spec = StreamSpec(**{"formulas": "polynomial_power", "height": 16, "width": 16, **fields})
    return budget.pictures(spec, count)


def table_of(raster: Raster, **values: float) -> np.ndarray:
    """One picture's table: the middle of each parameter's range, but for those named."""
    declared = {**raster.formula.parameters, **raster.colouring.parameters}
    return np.array([[values.get(name, (p.low + p.high) / 2)] for name, p in declared.items()], np.float32)


# The polynomials are within 4 float32 roundings, 2**-22, of the truth; IEEE operations within one.
@pytest.mark.parametrize("name, allowed", [
    ("exp2", 2.0**-22), ("log2", 2.0**-21), ("atan2", 2.0**-20), ("sqrt", 2.0**-24), ("reciprocal", 2.0**-24),
    ("divide", 2.0**-24),
])  # fmt: skip
def test_a_primitive_is_as_accurate_as_it_says(name: str, allowed: float, errors: Errors) -> None:
    assert errors.tables[name].max() <= allowed


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sines_are_accurate_to_a_thousand_turns_and_stay_in_range(name: str, errors: Errors) -> None:
    binades = errors.tables[name][:, : 12 - LEAST + 1]
    assert binades.max() <= 2.0**-21
    arguments = np.linspace(-8000.0, 8000.0, 400_001).astype(np.float32)
    assert np.abs(budget._over_arrays(name)(arguments)).max() <= 1.0 + 2.0**-22


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("log2", (0.0, -0.0, 1.0, 8.0, 2.0**-126), (-math.inf, -math.inf, 0.0, 3.0, -126.0)),
        ("exp2", (-math.inf, 0.0, 3.0, -20.0), (2.0**-126, 1.0, 8.0, 2.0**-20)),
        ("sin", (0.0,), (0.0,)),
        ("cos", (0.0,), (1.0,)),
        ("sqrt", (0.0, 1.0, 4.0), (0.0, 1.0, 2.0)),
    ],
)
def test_special_values(name: str, arguments: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = budget._over_arrays(name)(np.array(arguments, np.float32))
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=2e-7, atol=1e-37)


def test_atan2_knows_its_quadrants() -> None:
    y, x = (part.ravel().astype(np.float32) for part in np.meshgrid([-2.0, 0.0, 1e-30, 3.0], [-5.0, 0.0, 1e-30, 0.5]))
    np.testing.assert_allclose(budget._over_arrays("atan2")(y, x), np.arctan2(y, x), rtol=1e-6, atol=1e-7)


def test_every_word_of_the_dialect_is_a_primitive() -> None:
    assert set(PRIMITIVES) <= set(numba_primitives.__all__)


SIZES = [(8, 8), (9, 31), (33, 17), (100, 9), (16, 16)]


@pytest.mark.parametrize(
    "height, width, supersample", [(8, 4096, 1), *((*size, n) for size in SIZES for n in (1, 2, 3))]
)
def test_any_size_is_the_same_picture_cut_finer(height: int, width: int, supersample: int) -> None:
    """Against float64 by count, and no row, column or tile edge is worse than the rest."""
    raster, table = pictures(2, height=height, width=width, supersample=supersample, formulas="mandelbrot")
    found, truth = RENDER(raster, table), ReferenceRenderer().render(raster, table)
    assert found.shape == (2, 3, height, width) and found.dtype == np.uint8
    wrong = (np.abs(found.astype(int) - truth) > budget.FAR).any(axis=1)
    assert wrong.mean() < 0.002
    assert wrong[:, -1].mean() < 0.2 and wrong[:, :, -1].mean() < 0.2


def test_a_pixel_lies_where_the_geometry_says() -> None:
    """Whether a point is inside |c| < radius after one step of c: a disk, by its closed form."""
    spec = StreamSpec(
        formulas=plain_plane.name, colouring="three_phase_sine", height=40, width=24, iterations=1, radius=0.75,
        priors={"half_width": Constant(0.9), "centre_x": Constant(0.2), "centre_y": Constant(-0.3),
                "rotation": Constant(0.5)},
    )  # fmt: skip
    raster, table = budget.pictures(spec, 1)
    rows, columns = np.mgrid[0:40, 0:24]
    u, v = (columns + 0.5) / 12 - 1.0, (20 - rows - 0.5) / 12
    x = 0.2 + 0.9 * (u * math.cos(0.5) - v * math.sin(0.5))
    y = -0.3 + 0.9 * (u * math.sin(0.5) + v * math.cos(0.5))
    black = (RENDER(raster, table)[0] == 0).all(axis=0)
    clear = np.abs(np.hypot(x, y) - 0.75) > 1e-5
    assert 0.1 < black.mean() < 0.9
    assert np.array_equal(black[clear], (np.hypot(x, y) < 0.75)[clear])


@formula(source="the plane itself: one step puts c where z was")
def plain_plane(zr: Any, zi: Any, cr: Any, ci: Any) -> Any:
    return zr - zr + cr, zi - zi + ci


@formula(source="a count: the orbit leaves the disk of radius 100 after `life` steps", parameters={
    "life": Parameter(0.0, 5000.0, "steps inside", "steps"),
})  # fmt: skip
def mayfly(zr: Any, zi: Any, n: Any, life: Any) -> Any:
    return 300.0 * where(n < life, 0.0, 1.0) + (zr - zr), zi - zi


@pytest.mark.parametrize("life", [0, 1, 126, 127, 128, 129, 255, 256, 257, 999, 1000, 1499, 1500, 4000])
def test_iteration_counts_are_right_far_above_127(life: int) -> None:
    raster, _ = pictures(formulas=mayfly.name, colouring="three_phase_sine", iterations=1500, height=8, width=9)
    table = table_of(raster, life=life, frequency=7.0)
    phase = 7.0 * (min(life, 1500) / 1500 + 1.0)
    expected = [255 * (0.5 + 0.5 * math.sin(phase + turn * 2 * math.pi / 3)) * (life < 1500) for turn in range(3)]
    for image in (RENDER(raster, table)[0], ReferenceRenderer().render(raster, table)[0]):
        assert (image == image[:, :1, :1]).all()
        np.testing.assert_allclose(image[:, 0, 0], expected, atol=1.01)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_the_mean_of_equal_subsamples_is_their_colour(supersample: int) -> None:
    """White stays 255 and not 254, whatever a ninth is in float32."""
    raster, _ = pictures(formulas=mayfly.name, colouring="smooth", supersample=supersample, iterations=5)
    table = table_of(raster, life=2, brightness=1.0, contrast=0.0)
    assert (RENDER(raster, table) == 255).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
def test_every_form_of_pixels_is_a_lookup_of_the_levels(dtype: Any, channels_last: bool) -> None:
    raster, table = pictures(5, height=9, width=31)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if dtype == "uint8" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    found = RENDER(raster, table, PixelFormat(dtype, channels_last, mean, std))
    assert found.flags.c_contiguous
    assert found.dtype == np.dtype("uint16" if dtype == "bfloat16" else dtype)
    found = found.transpose(0, 3, 1, 2) if channels_last else found
    levels = RENDER(raster, table)
    for channel in range(3):
        exact = (levels[:, channel] / 255.0 - mean[channel]) / std[channel]
        if dtype == "uint8":
            assert np.array_equal(found[:, channel], levels[:, channel])
        elif dtype == "bfloat16":
            value = (found[:, channel].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            assert (np.abs(value - exact) <= np.abs(np.ldexp(1.0, np.frexp(exact)[1] - 9)) * (1 + 1e-9)).all()
        else:
            assert np.array_equal(found[:, channel], exact.astype(dtype))


def test_bfloat16_is_rounded_once() -> None:
    torch = pytest.importorskip("torch")
    pixels = PixelFormat("bfloat16", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    exact = pixels.values()
    found = torch.from_numpy(pixels.table().view(np.int16)).view(torch.bfloat16).double().numpy()
    step = np.ldexp(1.0, np.frexp(exact)[1] - 8)
    assert (np.abs(found - exact) <= step / 2).all()
    assert (found != torch.from_numpy(exact).float().bfloat16().double().numpy()).sum() <= 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_form_of_pixels_that_overflows_is_refused(dtype: Any) -> None:
    with pytest.raises(InvalidValueError, match=f"out of the range of {dtype}"):
        PixelFormat(dtype, std=1e-45)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dtype": "int8"}, "'uint8', 'float16', 'bfloat16', 'float32', got 'int8'"),
        ({"dtype": "float32", "std": 0.0}, "std must be above 0"),
        ({"dtype": "float32", "mean": math.nan}, "mean must be a finite number"),
        ({"dtype": "float32", "mean": (0.0, 0.0)}, "3 channels"),
        ({"dtype": "float32", "mean": ("a", "b", "c")}, "3 channels"),
        ({"dtype": "uint8", "mean": 0.5}, "need a float dtype"),
    ],
)
def test_what_a_form_of_pixels_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        PixelFormat(**settings)


@pytest.mark.parametrize("form", [PixelFormat(), PixelFormat("float32", True), PixelFormat("bfloat16")], ids=str)
def test_every_element_is_written(form: PixelFormat, poison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = pictures(3, height=9, width=31)
    clean = RENDER(raster, table, form)
    monkeypatch.setattr(numba_backend, "np", poison)
    for threads in (1, 3):
        assert NumbaRenderer(threads).render(raster, table, form).tobytes() == clean.tobytes()


def test_what_was_rendered_before_leaves_no_trace() -> None:
    raster, table = pictures(6, formulas="newton", colouring="smooth")
    assert raster.accumulators
    alone = RENDER(raster, table)
    RENDER(raster, table * np.float32(1.5))
    assert np.array_equal(RENDER(raster, table), alone)
    assert np.array_equal(np.concatenate([RENDER(raster, table[:, [k]]) for k in range(6)]), alone)


def test_a_table_in_any_memory_order_is_the_same_table() -> None:
    raster, table = pictures(5)
    expected = RENDER(raster, table)
    assert np.array_equal(RENDER(raster, np.asfortranarray(table)), expected)
    assert np.array_equal(RENDER(raster, np.repeat(table, 2, axis=1)[:, ::2]), expected)


def test_a_number_that_float32_can_not_hold_is_refused() -> None:
    raster, table = pictures(3)
    wide = table.astype(np.float64)
    wide[4, 2] = 1e39
    with pytest.raises(InvalidValueError, match=f"{raster.names[4]!r} of picture 2 is inf"):
        RENDER(raster, wide)
    assert np.array_equal(RENDER(raster, table.tolist()), RENDER(raster, table))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("renderer", [NumbaRenderer(1), ReferenceRenderer()], ids=["numba", "reference"])
def test_a_table_with_nan_or_infinity_is_refused(bad: float, renderer: Any) -> None:
    raster, table = pictures(3)
    table[4, 2] = bad
    with pytest.raises(InvalidValueError, match=f"{raster.names[4]!r} of picture 2 is {bad}"):
        renderer.render(raster, table)


@pytest.mark.parametrize("renderer", [NumbaRenderer(1), ReferenceRenderer()], ids=["numba", "reference"])
def test_a_table_of_another_shape_is_refused(renderer: Any) -> None:
    raster, table = pictures(3)
    for wrong in (table[:-1], table[0], table[None]):
        with pytest.raises(InvalidValueError, match=r"a row for each of .*alpha"):
            renderer.render(raster, wrong)


def test_no_picture_is_an_empty_array() -> None:
    raster, table = pictures(0)
    for channels_last, shape in ((False, (0, 3, 16, 16)), (True, (0, 16, 16, 3))):
        form = PixelFormat("float32", channels_last)
        for renderer in (NumbaRenderer(1), NumbaRenderer(3), ReferenceRenderer()):
            found = renderer.render(raster, table, form)
            assert found.shape == shape and found.dtype == np.float32


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 1025])
def test_a_number_of_threads_is_a_count(threads: Any) -> None:
    with pytest.raises(InvalidValueError, match="threads"):
        NumbaRenderer(threads)


def test_a_worker_process_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    carried = NumbaRenderer()
    assert carried.threads == len(os.sched_getaffinity(0))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert NumbaRenderer().threads == carried.threads == 1


def test_a_system_that_tells_no_affinity_has_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert NumbaRenderer().threads == 3


def test_a_package_and_a_home_that_are_read_only_do_not_stop_it() -> None:
    """Numba then finds no folder for its cache, and says so when a function that asks for one is defined."""
    program = (
        "from numba.core.caching import FunctionCache\n"
        "FunctionCache._impl_class._locator_classes.clear()\n"
        "import fractal_streams.draw.numba_backend, fractal_streams.render.numba_backend\n"
        "from fractal_streams.rng import key, words\n"
        "import numpy as np\n"
        "word, _ = fractal_streams.draw.numba_backend.philox_words(5, *key('a'))\n"
        "print(word == words(np.array([5]), key('a'))[0][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "count, height, width", [(0, 8, 8), (1, 8, 8), (1, 4096, 4096), (7, 33, 17), (500, 32, 32), (3, 200, 300)]
)
def test_tasks_cover_every_pixel_once_in_whole_tiles(count: int, height: int, width: int, threads: int) -> None:
    covered = np.zeros((count, height), int)
    for first, last, top, bottom in split(count, height, width, threads):
        covered[first:last, top:bottom] += 1
        assert top % 8 == 0 and first < last and top < bottom
    assert (covered == 1).all()


def test_orbits_at_the_origin_are_those_of_the_reference() -> None:
    """0**power is 0 for every power above 0: the sine map starts there."""
    raster, table = pictures(8, formulas="sine", priors={"power": Uniform(0.01, 0.3)})
    wrong = budget.differing(RENDER(raster, table), ReferenceRenderer().render(raster, table))
    assert wrong.sum() <= 2


def test_float32_in_numpy_is_a_renderer_too() -> None:
    raster, table = pictures(4, formulas="mandelbrot")
    single = ReferenceRenderer(precision=np.float32).render(raster, table)
    assert budget.differing(single, ReferenceRenderer().render(raster, table)).sum() < 10


def test_a_raster_is_a_value() -> None:
    raster, _ = pictures()
    assert dataclasses.replace(raster) == raster and hash(dataclasses.replace(raster)) == hash(raster)


@formula(source="tests", parameters={"wait": Parameter(5.0, 15.0, "steps before the orbit leaves")})
def late(zr: Any, zi: Any, cr: Any, ci: Any, n: Any, wait: Any) -> Any:
    """Stands still, and leaves all the same: what an orbit that z alone decides can't do."""
    return where(n < wait, 0.25, 100.0), zi - zi


def test_vectors_are_the_processor_s_widest(fresh_cache: Path) -> None:
    """LLVM, left alone, takes half of an Ice Lake's."""
    wide, narrow = vectors_on_ice_lake("mandelbrot")
    assert wide > 300 and wide > 4 * narrow, (wide, narrow)


def test_an_interior_that_is_known_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = pictures(32, formulas="mandelbrot", height=24, width=24, supersample=2)
    assert bind.flags(raster)["INTERIOR"]
    found = RENDER(raster, table)
    assert (found == 0).all(axis=1).mean() > 0.2
    monkeypatch.setattr(numba_backend, "flags", lambda raster: {**bind.flags(raster), "INTERIOR": False})
    numba_backend.compiled.cache_clear()
    assert np.array_equal(RENDER(raster, table), found)
    numba_backend.compiled.cache_clear()


def without_cycles(raster: Raster) -> dict[str, Any]:
    return {**bind.flags(raster), "CYCLES": False}


def with_cycles(raster: Raster) -> dict[str, Any]:
    return {**bind.flags(raster), "CYCLES": True}


def test_an_orbit_that_repeats_is_stopped_only_where_it_can_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = pictures(1, formulas="late", colouring="three_phase_sine", iterations=20)
    assert not bind.flags(raster)["CYCLES"]
    truth = ReferenceRenderer().render(raster, table)
    assert np.array_equal(RENDER(raster, table), truth) and truth.any()
    monkeypatch.setattr(numba_backend, "flags", with_cycles)
    numba_backend.compiled.cache_clear()
    assert not RENDER(raster, table).any()  # taken for inside, which is black
    numba_backend.compiled.cache_clear()


def test_stopping_orbits_that_repeat_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = pictures(64, height=32, width=32, iterations=30)
    assert bind.flags(raster)["CYCLES"]
    found = RENDER(raster, table)
    monkeypatch.setattr(numba_backend, "flags", without_cycles)
    numba_backend.compiled.cache_clear()
    assert np.array_equal(RENDER(raster, table), found)
    numba_backend.compiled.cache_clear()


@pytest.mark.parametrize(
    "name, colouring",
    [
        ("mandelbrot", "smooth"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [
            ("phoenix", "stripe_average"), ("phoenix", "smooth"), ("mandelbrot", "stripe_average"),
            ("phoenix", "average_magnitude"), ("mandelbrot", "interior"), ("mandelbrot", "average_magnitude"),
            ("phoenix", "interior"),
        ]),
    ],
)  # fmt: skip
def test_what_only_convergence_needs_is_left_out_and_changes_no_pixel(name: str, colouring: str) -> None:
    raster, table = pictures(6, formulas=name, colouring=colouring, height=24, width=24)
    assert "gap" not in raster.accumulators and "gap" in raster.colouring.accumulators
    full = dataclasses.replace(raster, colouring=dataclasses.replace(raster.colouring, convergence=()))
    assert bind.flags(full)["ACCUMULATORS"] == bind.flags(raster)["ACCUMULATORS"] + 2
    assert np.array_equal(RENDER(raster, table), RENDER(full, table))
    truth = ReferenceRenderer().render(raster, table)
    assert budget.differing(RENDER(raster, table), truth).sum() <= 6


@pytest.mark.parametrize("fields", [{"formulas": "newton"}, {"formulas": "kali"}, {"counting": "visits"}], ids=str)
def test_gaps_are_kept_where_an_orbit_may_end_inside(fields: dict[str, Any]) -> None:
    raster, _ = pictures(1, **{"formulas": "mandelbrot", "colouring": "smooth", **fields})
    assert raster.converges and list(raster.accumulators) == ["gap", "gap_before"]


@pytest.mark.parametrize("fields", [
    {"formulas": "phoenix"}, {"formulas": "newton"}, {"colouring": "smooth"}, {"colouring": "orbit_trap"},
    {"counting": "visits"},
])  # fmt: skip
def test_orbits_whose_path_is_asked_for_run_on(fields: dict[str, Any]) -> None:
    assert not bind.flags(pictures(1, **fields)[0])["CYCLES"]
