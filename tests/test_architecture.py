"""The project's policy: who imports whom, how long a file is, what a library never does.

Every check is a function of a folder, so that `test_each_check_can_fail` runs it on a folder that breaks it.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"fractal_streams": "", "integrations": "integrations", "recipes": "recipes"}
TOP_LEVEL = {"fractal_streams", "integrations", "recipes", "tests"}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "shared", "base", "core"}

# Room or file, most particular first: what of this package it may import. A room may import itself.
MAY_IMPORT = {
    "dialect": "",
    "errors": "",
    "luma": "",
    "rng": "errors",
    "shard": "errors rng",
    "priors": "errors",
    "formulas": "dialect errors",
    "colouring": "dialect errors formulas.definition",
    "spec": "errors priors formulas colouring",
    "render": "dialect errors formulas colouring spec",
    "draw": "errors rng priors formulas spec",
    "batch": "errors",
    "device": "errors",
    "mp4": "errors",
    "normalisation": "",
    "finite": "errors rng spec batch stream",
    "kaleidoscope": "errors luma rng priors spec device batch stream backend draw.triton_kernel render mp4 stored",
    "trainability": "errors rng spec device batch stream shard backend render mp4",
}
NEVER = {
    "": "recipes integrations",
    "integrations": "recipes draw render rng priors backend",
    "recipes": "draw rng",
}
STREAMS = (
    "stream",
    "video",
    "mixture",
    "finite",
    "seed_code",
    "stored",
    "trainability",
    "kaleidoscope",
    "presets",
    "backend",
    "cuda",
)
ADAPTERS = (
    "torch_data loader prefetch seed_interface integrations recipes "
    "cli cli_bench cli_data cli_experiment cli_scan cli_status cli_trainability cli_zoom "
    "cli_kaleidoscope cli_kaleidoscope_chains cli_kaleidoscope_fit cli_kaleidoscope_options cli_kaleidoscope_sample "
    "cli_kaleidoscope_sheets cli_kaleidoscope_basins cli_train"
)


def python_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(module name without the package's, file) of the library, the integrations and the recipes."""
    for folder, prefix in ROOMS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [*([prefix] if prefix else []), *path.relative_to(root / folder).with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


def modules(root: Path) -> set[str]:
    return {name for name, _ in python_files(root)}


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of this package that a file imports, wherever in it, but for type checking."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("fractal_streams."):
                inner_name = name.removeprefix("fractal_streams.")
                if inner_name in known:
                    found.add(inner_name)
    return found


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def wrong_directions(root: Path) -> list[str]:
    known, wrong = modules(root), []
    for module, path in python_files(root):
        rule = next((room for room in MAY_IMPORT if within(module, room)), None)
        for asked in imports(path, known):
            refused = [word for room, words in NEVER.items() if room and within(module, room) for word in words.split()]
            runs = any(within(module, room) for room in ("recipes", "integrations"))
            if not runs and not module.startswith("cli"):
                refused += NEVER[""].split()
            if any(within(module, room) for room in STREAMS):
                refused += ADAPTERS.split()
            own = rule is not None and within(asked, rule.partition(".")[0])
            allowed = rule is None or own or any(within(asked, word) for word in MAY_IMPORT[rule].split())
            if not allowed or any(within(asked, word) for word in refused):
                wrong.append(f"{module or 'fractal_streams'} imports {asked}")
    return wrong


def cycles(root: Path) -> list[str]:
    """Modules that import each other, directly or around; a package's own `__init__` is left out."""
    known = modules(root)
    graph = {name: imports(path, known) - {name, ""} for name, path in python_files(root) if path.name != "__init__.py"}
    found, done = [], set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            found.append(" -> ".join((*trail[trail.index(module) :], module)))
        elif module not in done:
            for asked in sorted(graph.get(module, ())):
                walk(asked, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())
    return found


def drawers(root: Path) -> list[str]:
    return [str(path) for name, path in python_files(root) if DRAWERS & set(name.split("."))]


def too_long(root: Path) -> list[str]:
    """Files above 400 lines (500 of kernels), functions above 60."""
    wrong = []
    for _, path in python_files(root):
        text, kernel = path.read_text(), re.search("kernel|primitives", path.name)
        lines = len(text.splitlines())
        if lines > (500 if kernel else 400):
            wrong.append(f"{path.name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not kernel:
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    wrong.append(f"{path.name}: {node.name} has {length} lines")
    return wrong


def prints(root: Path) -> list[str]:
    return [
        f"{path.name}:{node.lineno}"
        for name, path in python_files(root)
        if not within(name, "recipes")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint")
    ]


def seed_arithmetic(root: Path) -> list[str]:
    """Where something is added to a seed, or mixed into it: keys are made from names instead."""
    wrong = []
    for _, path in python_files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.BitXor | ast.Mult):
                sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
                for side in sides:
                    name = (
                        side.id if isinstance(side, ast.Name) else side.attr if isinstance(side, ast.Attribute) else ""
                    )
                    if re.fullmatch(r"(.*_)?seeds?", name):
                        wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    return wrong


def left_over(root: Path) -> list[str]:
    """Marks of unfinished work, and paths of one machine."""
    banned = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|/(?:work|root|home)/[a-z]")
    return [
        f"{path.name}:{number}: {line.strip()}"
        for _, path in python_files(root)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]


CHECKS = (wrong_directions, cycles, drawers, too_long, prints, seed_arithmetic, left_over)
BREAKS = {
    wrong_directions: {"render/lamp.py": "from fractal_streams import rng\n", "rng.py": ""},
    cycles: {"one.py": "import fractal_streams.two\n", "two.py": "def f():\n    from fractal_streams import one\n"},
    drawers: {"render/utils.py": ""},
    too_long: {"long.py": "x = 1\n" * 401},
    prints: {"loud.py": "def f(x):\n    print(x)\n"},
    seed_arithmetic: {"adds.py": "def f(base_seed, i):\n    return base_seed + i\n"},
    left_over: {"unfinished.py": "# TO" + "DO: all of it\n"},
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_policy(check) -> None:  # type: ignore[no-untyped-def]
    assert check(ROOT) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_can_fail(check, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, text in BREAKS[check].items():
        path = tmp_path / "fractal_streams" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(check(tmp_path)) == 1


@pytest.mark.parametrize(
    "name, text",
    [
        ("fractal_streams/formulas/rose.py", "from fractal_streams.render import raster\n"),
        ("fractal_streams/colouring/tint.py", "from fractal_streams.formulas import julia\n"),
        ("fractal_streams/render/lamp.py", "def f():\n    import fractal_streams.priors\n"),
        ("fractal_streams/stream.py", "from fractal_streams.torch_data import StreamDataset\n"),
        ("fractal_streams/stream.py", "from fractal_streams.recipes import demo\n"),
        ("fractal_streams/trainability/scan.py", "import fractal_streams.cli_trainability\n"),
        ("fractal_streams/trainability/scan.py", "from fractal_streams import priors\n"),
        ("integrations/world.py", "from fractal_streams.render.raster import Raster\n"),
        ("integrations/world.py", "import fractal_streams.recipes.demo\n"),
    ],
)
def test_these_directions_are_wrong(name: str, text: str, tmp_path: Path) -> None:
    there = ("formulas/julia.py", "render/raster.py", "priors.py", "torch_data.py", "cli_trainability.py")
    for known in (*(f"fractal_streams/{each}" for each in there), "recipes/demo.py"):
        (tmp_path / known).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / known).touch()
    assert wrong_directions(tmp_path) == []
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert len(wrong_directions(tmp_path)) >= 1


def test_every_file_of_the_library_is_seen() -> None:
    assert {"rng", "render.bind", "formulas.mandelbrot", "integrations.torchvision", "recipes.demo"} <= modules(ROOT)
    assert "spec" in imports(ROOT / "fractal_streams/stream.py", modules(ROOT))


def test_the_top_level_holds_these_folders_and_no_others() -> None:
    built = {"build", "dist", "fractal-streams-demo", "fractal_streams.egg-info", "__pycache__"}
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert found - built - {"shared"} == TOP_LEVEL


def loaded_by(program: str) -> tuple[float, set[str]]:
    """CPU seconds that a program took in a fresh interpreter, and the modules that it loaded."""
    measured = (
        f"import json, sys, time\nstart = time.process_time()\n{program}\n"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    run = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True, cwd="/")
    seconds, names = json.loads(run.stdout)
    return seconds, set(names)


OUTSIDE = {"torch", "torchvision", "triton", "datasets", "fsspec", "pyarrow", "webdataset", "ray"}
HEAVY = {*OUTSIDE, "numba", "typer", "rich", "PIL", "imageio", "matplotlib", "tqdm"}


def test_importing_the_package_is_light() -> None:
    runs = [loaded_by("import fractal_streams") for _ in range(3)]
    assert not HEAVY & runs[0][1]
    assert min(seconds for seconds, _ in runs) < 0.2


def test_listing_and_describing_loads_nothing_heavy() -> None:
    _, names = loaded_by(
        "from fractal_streams import StreamSpec, open_stream\n"
        "StreamSpec(formulas='mandelbrot').digest(); dir(__import__('fractal_streams'))"
    )
    assert not HEAVY & names


def test_importing_trainability_is_light() -> None:
    _, names = loaded_by("import fractal_streams.trainability as t\nt.scan, t.open_zoom, t.TileStream, t.save_video")
    assert not HEAVY & names


def test_rendering_on_the_cpu_needs_no_torch() -> None:
    _, names = loaded_by(
        "from fractal_streams import open_stream\nopen_stream('fractal-10', device='cpu', height=8, width=8)[0]"
    )
    assert "numba" in names and not (HEAVY - {"numba"}) & names


@pytest.mark.slow
def test_the_light_import_check_can_fail() -> None:
    pytest.importorskip("torch")
    _, names = loaded_by("import fractal_streams\nfractal_streams.StreamDataset")
    assert "torch" in names
