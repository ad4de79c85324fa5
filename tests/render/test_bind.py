"""One source, three compilers: what a formula may say, and how its text becomes a module."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import budget
import numpy as np
import pytest

from fractal_streams.colouring import colouring
from fractal_streams.dialect import absolute, reciprocal, where
from fractal_streams.errors import FormulaError, UnknownNameError
from fractal_streams.formulas import Formula, Parameter, find_formula, formula
from fractal_streams.render import bind, numba_backend
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.spec import StreamSpec

SOURCE = "tests"
HALF = 0.5
NEVER = math.inf


def folded(x: Any) -> Any:
    """A plain function that a formula calls."""
    return absolute(x) - HALF


@formula(source=SOURCE, parameters={"pull": Parameter(0.1, 0.4, "how far c pulls")}, degree=2.0)
def folded_square(zr: Any, zi: Any, cr: Any, ci: Any, pull: Any) -> Any:
    """Docstrings, comments, helpers, constants, locals and literals are all the dialect's."""
    side = folded(zr)  # a local
    re = where(side > 0, side * side, -side) - zi * zi
    return re + pull * cr + 0.1, 2.0 * side * zi + ci


def raster_of(made: Formula, **fields: Any) -> tuple[Raster, np.ndarray]:
    return budget.pictures(StreamSpec(formulas=made.name, height=16, width=16, **fields), 4)


def test_a_formula_of_ones_own_runs_on_both_renderers() -> None:
    raster, table = raster_of(folded_square)
    found, truth = NumbaRenderer(1).render(raster, table), ReferenceRenderer().render(raster, table)
    assert len(np.unique(truth)) > 20
    assert budget.differing(found, truth).sum() <= 4


@formula(source=SOURCE)
def inverted(zr: Any, zi: Any, cr: Any, ci: Any) -> Any:
    return 0.1 * reciprocal(zr) + cr, 0.1 / zi + ci


def test_division_by_zero_is_infinite_and_no_exception() -> None:
    """The orbit starts at 0, and so divides by it: as in NumPy, the orbit is outside."""
    raster, table = raster_of(inverted)
    found, truth = NumbaRenderer(1).render(raster, table), ReferenceRenderer().render(raster, table)
    assert (found == truth).all()


def test_the_module_holds_float32_and_nothing_of_the_callers() -> None:
    raster, _ = raster_of(folded_square)
    text = numba_backend.source(raster)
    assert "K_0_5 = np.float32(0.5)" in text and "K_0_1 = np.float32(0.1)" in text
    assert "Docstrings" not in text and "a local" not in text and "HALF" not in text
    body = text[text.index("def folded_square_") :]
    assert "2.0" not in body[: body.index("@")] and "K_2_0 *" in body


def test_the_same_raster_is_the_same_text_in_another_process() -> None:
    program = (
        "from fractal_streams import StreamSpec; from fractal_streams.render import numba_backend, raster;"
        "s = StreamSpec(formulas='mandelbrot');"
        "print(numba_backend.source(raster.Raster.of(s, s.parts()[0])), end='')"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    spec = StreamSpec(formulas="mandelbrot")
    assert there == numba_backend.source(Raster.of(spec, spec.parts()[0]))


def refused(step: Any, **settings: Any) -> str:
    """The message with which a step is refused, by its file and line."""
    made = formula(source=SOURCE, **settings)(step)
    raster = Raster(formula=made, colouring=StreamSpec(formulas="sine").parts()[0].colouring,
                    height=8, width=8, iterations=2, radius=2.0)  # fmt: skip
    with pytest.raises(FormulaError) as caught:
        NumbaRenderer(1).render(raster, np.zeros((len(raster.names), 1), np.float32))
    return str(caught.value)


def with_if(zr, zi):  # type: ignore[no-untyped-def]
    if zr > zi:
        zr = zi
    return zr, zi


def with_power(zr, zi):  # type: ignore[no-untyped-def]
    return zr**2, zi


def with_choice(zr, zi):  # type: ignore[no-untyped-def]
    return (zr if zr > 0 else zi), zi


def with_numpy(zr, zi):  # type: ignore[no-untyped-def]
    return np.sin(zr), zi


def with_text(zr, zi):  # type: ignore[no-untyped-def]
    return zr, "zi"


def with_unknown(zr, zi):  # type: ignore[no-untyped-def]
    return tan(zr), zi  # noqa: F821


def with_infinity(zr, zi):  # type: ignore[no-untyped-def]
    return zr + NEVER, zi


def with_class(zr, zi):  # type: ignore[no-untyped-def]
    return Parameter(zr, zi), zi  # type: ignore[arg-type]


def with_assignment_in_place(zr, zi):  # type: ignore[no-untyped-def]
    zr += zi
    return zr, zi


def with_loop(zr, zi):  # type: ignore[no-untyped-def]
    for _ in zr:
        zi = zi + zr
    return zr, zi


def with_both(zr, zi):  # type: ignore[no-untyped-def]
    return where(zr > 0 and zi > 0, zr, zi), zi


def with_not(zr, zi):  # type: ignore[no-untyped-def]
    return where(not (zr > 0), zr, zi), zi


def with_chain(zr, zi):  # type: ignore[no-untyped-def]
    return where(0 < zr < 1, zr, zi), zi


@pytest.mark.parametrize(
    "step, why",
    [
        (with_if, "`If` is not in the dialect; use where"),
        (with_power, "`Pow` is not in the dialect"),
        (with_choice, "`IfExp` is not in the dialect"),
        (with_numpy, "`Attribute` is not in the dialect"),
        (with_text, "'zi' is not a number"),
        (with_unknown, "the name 'tan' is not defined"),
        (with_infinity, "'NEVER' is inf"),
        (with_class, "'Parameter' is neither a primitive"),
        (with_assignment_in_place, "`AugAssign` is not in the dialect"),
        (with_loop, "`For` is not in the dialect"),
        (with_both, "`BoolOp` is not in the dialect"),
        (with_not, "`Not` is not in the dialect"),
        (with_chain, "a chain of comparisons is not in the dialect"),
    ],
)
def test_what_is_not_in_the_dialect_is_refused_by_line(step: Any, why: str) -> None:
    message = refused(step)
    assert why in message
    name, first = step.__name__, step.__code__.co_firstlineno
    line = int(message.partition("test_bind.py:")[2].partition(")")[0])
    assert message.startswith(f"{name} (test_bind.py:") and first < line <= first + 3


def test_a_lambda_has_no_source_of_its_own() -> None:
    assert "plain function written with def" in refused(lambda zr, zi: (zr, zi), name="short")


def test_a_function_without_a_file_is_told_to_have_one() -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("def homeless(zr, zi):\n    return zr, zi\n", scope)
    assert "put it in a file" in refused(scope["homeless"])


def test_a_step_that_asks_for_what_is_not_declared_is_refused() -> None:
    with pytest.raises(FormulaError, match="asks for 'k', which is neither one of .* add it to parameters="):

        @formula(source=SOURCE)
        def wanting(zr: Any, zi: Any, k: Any) -> Any:
            return zr * k, zi


@pytest.mark.parametrize("hook", ["stays_out", "interior"])
def test_a_hook_that_asks_for_what_is_not_declared_is_refused(hook: str) -> None:
    def bounded(zr: Any) -> Any:
        return zr > 2.0

    with pytest.raises(FormulaError, match="bounded asks for 'zr', which is neither one of (radius|cr, ci) nor"):
        formula(source=SOURCE, **{hook: bounded})(with_hook)


def with_hook(zr: Any, zi: Any) -> Any:
    return zr, zi


def test_a_colouring_that_asks_for_what_is_not_declared_is_refused() -> None:
    with pytest.raises(FormulaError, match="asks for 'hue'"):

        @colouring(source=SOURCE)
        def wanting(count: Any, hue: Any) -> Any:
            return count, hue, hue


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"stop": "excape"}, "stop must be one of escape, converge, either, never, got 'excape'"),
        ({"radius": math.nan}, r"radius must be in \(0, 1e\+15\], got nan"),
        ({"radius": 1e20}, "radius must be in"),
        ({"tolerance": 0.0}, "tolerance must be in"),
        ({"iterations": 0}, "iterations must be a whole number from 1 on, got 0"),
        ({"degree": -2.0}, "degree must be in"),
        ({"limit": (1.0, math.inf)}, "limit must be None or two finite numbers"),
        ({"parameters": {"n": Parameter(2, 3, "")}}, "a parameter can't be named 'n'"),
        ({"parameters": {"x": Parameter(2, 3, "")}}, "a parameter can't be named 'x'"),
        ({"class_parameters": ("k",)}, "class_parameters names 'k', which is no declared parameter"),
    ],
)
def test_a_declaration_that_can_not_be_meant_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(FormulaError, match=f"formula 'ill_declared': {why}"):

        @formula(source=SOURCE, **settings)
        def ill_declared(zr: Any, zi: Any) -> Any:
            return zr, zi


@pytest.mark.parametrize(
    "names", [{"accumulators": {"count": 0.0}}, {"parameters": {"n": Parameter(0, 1, "")}},
              {"accumulators": {"k": 0.0}, "parameters": {"k": Parameter(0, 1, "")}}]
)  # fmt: skip
def test_a_colouring_names_nothing_as_the_orbit_does(names: dict[str, Any]) -> None:
    with pytest.raises(FormulaError, match="colouring 'ill_named': '[knc]"):

        @colouring(source=SOURCE, **names)
        def ill_named(inside: Any) -> Any:
            return inside, inside, inside


@formula(source=SOURCE, parameters={"count": Parameter(0.1, 0.4, "a word of the colourings")})
def counted(zr: Any, zi: Any, cr: Any, ci: Any, count: Any) -> Any:
    return zr * zr - zi * zi + cr + count, 2.0 * zr * zi + ci


def test_a_colouring_counts_steps_whatever_a_formula_calls_its_parameters() -> None:
    raster, table = raster_of(counted, colouring="three_phase_sine")
    found, truth = NumbaRenderer(1).render(raster, table), ReferenceRenderer().render(raster, table)
    assert len(np.unique(truth)) > 5
    assert budget.differing(found, truth).sum() <= 4


def test_a_name_that_is_taken_by_another_module_is_refused() -> None:
    find_formula("mandelbrot")
    with pytest.raises(FormulaError, match="already registered by fractal_streams.formulas.mandelbrot"):

        @formula(source=SOURCE)
        def mandelbrot(zr: Any, zi: Any) -> Any:
            return zr, zi


def test_a_formula_in_a_module_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boats_of_mine.py").write_text(
        "from fractal_streams import formula\n"
        "from fractal_streams.dialect import absolute\n\n"
        "@formula(source='mine')\n"
        "def boat_of_flames(zr, zi, cr, ci):\n"
        "    return zr * zr - zi * zi + cr, 2.0 * absolute(zr * zi) + ci\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownNameError, match="imported first, or named as 'package.module:formula'"):
        StreamSpec(formulas="boat_of_flames")
    spec = StreamSpec(formulas="boats_of_mine:boat_of_flames", height=8, width=8)
    assert StreamSpec.from_json(spec.to_json()) == spec
    raster, table = budget.pictures(spec, 2)
    found, truth = NumbaRenderer(1).render(raster, table), ReferenceRenderer().render(raster, table)
    assert budget.differing(found, truth).sum() <= 2


def test_a_module_is_written_once_and_whole(fresh_cache: Path) -> None:
    text = "VALUE = 7\n"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: bind.load("numba", text), range(32)))
    assert all(module is made[0] for module in made) and made[0].VALUE == 7
    files = [path.name for path in fresh_cache.iterdir() if path.is_file()]
    assert files == [f"{made[0].__name__}.py"]
    assert (fresh_cache / files[0]).read_text().endswith(text)


def test_one_thread_at_a_time_writes_a_module() -> None:
    """Python 3.11 fails now and then with a SystemError where two threads parse at once."""
    writing: list[int] = []

    def source(number: Any) -> str:
        writing.append(number)
        time.sleep(0.002)  # lets the others in, were they let
        assert writing == [number]
        writing.pop()
        return f"VALUE = {number}\n"

    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda number: bind.generated("numba", source, number), range(16))
        assert [module.VALUE for module in made] == [*range(16)]


def test_a_module_that_can_not_be_imported_is_not_kept(fresh_cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            bind.load("numba", "1 / 0\n")


def test_other_primitives_are_another_module(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The primitives are compiled into a kernel; with the old name its cached machine code would stay in use."""
    before = bind.load("numba", "VALUE = 8\n").__name__
    monkeypatch.setattr(bind, "primitives_digest", lambda backend: "0" * 16)
    assert bind.load("numba", "VALUE = 8\n").__name__ != before


def test_the_cache_is_the_users_or_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert bind.cache_folder() == tmp_path / "cache" / "fractal-streams"
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bind.temporary_folder.cache_clear()
    other = bind.cache_folder()
    assert other.parent == tmp_path and other.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bind.temporary_folder.cache_clear()
    yield tmp_path
    bind.temporary_folder.cache_clear()


def test_a_user_without_a_home_has_a_cache(no_home: Path) -> None:
    assert bind.cache_folder() == no_home / f"fractal-streams-{os.getuid()}"


def test_a_system_without_user_numbers_has_a_cache(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getuid")
    assert bind.cache_folder() == no_home / "fractal-streams-cache"


@pytest.mark.parametrize("kind", ["foreign", "open", "link"])
def test_a_folder_that_others_may_write_to_is_not_used(kind: str, no_home: Path) -> None:
    """Its modules are executed: who could write there would run code as this user."""
    expected = no_home / f"fractal-streams-{os.getuid()}"
    if kind == "link":
        (no_home / "elsewhere").mkdir(mode=0o700)
        expected.symlink_to(no_home / "elsewhere")
    else:
        expected.mkdir(mode=0o700)
        if kind == "open":
            expected.chmod(0o777)
        elif os.getuid():
            pytest.skip("only root can give a folder to another user")
        else:
            os.chown(expected, 54321, -1)
    found = bind.cache_folder()
    assert found != expected and found.stat().st_uid == os.getuid() and found.stat().st_mode & 0o777 == 0o700
    assert bind.cache_folder() == found


@pytest.mark.parametrize(
    "formula_name, flag, value",
    [("mandelbrot", "ESCAPES", True), ("mandelbrot", "CONVERGES", False), ("newton", "CONVERGES", True),
     ("phoenix", "PREVIOUS", True), ("mandelbrot", "PREVIOUS", False)],
)  # fmt: skip
def test_the_switches_of_a_kernel_follow_its_formula(formula_name: str, flag: str, value: bool) -> None:
    spec = StreamSpec(formulas=formula_name, colouring="three_phase_sine")
    assert bind.flags(Raster.of(spec, spec.parts()[0]))[flag] is value


def test_a_generated_file_that_was_cut_short_is_written_again(fresh_cache: Path) -> None:
    text = "VALUE = 7\n"
    name = "cut_short_test"
    written = Path(load_in_a_new_process(fresh_cache, name, text))
    written.write_text(written.read_text()[:-3])
    assert load_in_a_new_process(fresh_cache, name, text) == str(written)


def load_in_a_new_process(cache: Path, name: str, text: str) -> str:
    """The file that a fresh process imported the text from, with its value checked."""
    program = (
        "from fractal_streams.render import bind; bind.primitives_digest = lambda name: '';"
        f"module = bind.load({name!r}, {text!r}); assert module.VALUE == 7; print(module.__file__)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache.parent)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return run.stdout.strip()
