"""One source, three compilers: writes a formula and a colouring as a module of one backend.

NumPy runs the functions as they stand. For Numba and Triton their source text is copied into a
generated module, where the dialect's words mean the backend's primitives, number literals are
float32, and adapters (`start`, `step`, `observe`, `paint`, ...) hand each function the arguments
that its signature asks for. The module is a real file in the user's cache folder, named
by its content, because both compilers read source files and keep their caches by them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
import os
import stat
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fractal_streams import dialect
from fractal_streams.errors import FormulaError
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import view_to_plane

Backend = Literal["numba", "triton"]
_loading = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_loading=threading.RLock()))

DECORATOR = {
    "numba": '@numba.njit(nogil=True, forceinline=True, fastmath=FLAGS, error_model="numpy")',  # x / 0 is no exception
    "triton": "@triton.jit",
}
OWN: dict[Backend, tuple[Callable[..., Any], ...]] = {"numba": (), "triton": (dialect.cpow, dialect.csquare_plus)}
"""The dialect's own functions that a backend's primitives have a shorter form of."""
HEADER = {
    "numba": "import numba\nimport numpy as np\nfrom fractal_streams.render.numba_primitives import *\n",
    "triton": "import triton\nimport triton.language as tl\nfrom fractal_streams.render.triton_primitives import *\n",
}
ALLOWED = (
    ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr, ast.Tuple, ast.Name, ast.Load, ast.Store, ast.Constant,
    ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd, ast.Invert,
    ast.BitAnd, ast.BitOr, ast.BitXor, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip


class Module:
    """A backend's module in the making: functions already written, literals already named."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.functions: dict[str, str] = {}
        self.constants: dict[str, float] = {}
        self.names: dict[Callable[..., Any], str] = {}

    def add(self, function: Callable[..., Any], name: str | None = None) -> str:
        """Write a function and all it calls; its name in the module."""
        if function in self.names:
            return self.names[function]
        title = name or f"{function.__name__}_"
        while title in self.functions:
            title += "_"
        tree = _definition(function)
        scope = {*inspect.signature(function).parameters}
        scope |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        tree = _Rewrite(self, function, scope).visit(tree)
        tree.name, tree.decorator_list, tree.returns = title, [], None
        if ast.get_docstring(tree):
            tree.body = tree.body[1:]
        for argument in tree.args.args:
            argument.annotation = None
        self.names[function] = title
        self.functions[title] = f"{DECORATOR[self.backend]}\n{ast.unparse(ast.fix_missing_locations(tree))}\n"
        return title

    def literal(self, value: float) -> str:
        """A float32 constant: by name in Numba, where a bare literal would be float64."""
        if self.backend == "triton":
            return repr(value)
        name = f"K_{value!r}".replace(".", "_").replace("-", "m").replace("+", "p")
        self.constants[name] = value
        return name

    def text(self) -> str:
        """The module's source."""
        values = "".join(f"{name} = np.float32({value!r})\n" for name, value in sorted(self.constants.items()))
        return f"{HEADER[self.backend]}\n{values}\n\n" + "\n\n".join(self.functions.values())


class _Rewrite(ast.NodeTransformer):
    """Check a function's dialect and rename what it refers to."""

    def __init__(self, module: Module, function: Callable[..., Any], scope: set[str]) -> None:
        self.module, self.function, self.scope = module, function, scope
        self.depth = 0

    def visit(self, node: ast.AST) -> Any:
        what = node.op if isinstance(node, ast.BinOp | ast.UnaryOp) else node  # an operator has no line of its own
        if not isinstance(what, ALLOWED) and not (isinstance(node, ast.FunctionDef) and self.depth == 0):
            raise self.refuse(node, f"`{type(what).__name__}` is not in the dialect; use where() and the primitives")
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            raise self.refuse(node, "a chain of comparisons is not in the dialect; join two of them with &")
        self.depth += 1
        try:
            return super().visit(node)
        finally:
            self.depth -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list, node.returns = [], None
        for argument in node.args.args:
            argument.annotation = None
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self.refuse(node, f"the constant {node.value!r} is not a number")
        return ast.Name(self.module.literal(float(node.value)), ast.Load())

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.scope:
            return node
        meant = inspect.getclosurevars(self.function)
        found = meant.globals.get(node.id, meant.nonlocals.get(node.id, meant.builtins.get(node.id)))
        if found is None:
            raise self.refuse(node, f"the name {node.id!r} is not defined")
        if isinstance(found, float) and not math.isfinite(found):
            raise self.refuse(node, f"{node.id!r} is {found}; constants are finite")
        for primitive in dialect.PRIMITIVES:
            if found is getattr(dialect, primitive) or (found is abs and primitive == "absolute"):
                return ast.Name(primitive, ast.Load())
        if found in OWN[self.module.backend]:
            return ast.Name(found.__name__, ast.Load())
        if isinstance(found, int | float) and not isinstance(found, bool):
            return ast.Name(self.module.literal(float(found)), ast.Load())
        step = getattr(found, "step", found)
        if inspect.isfunction(step):
            return ast.Name(self.module.add(step), ast.Load())
        raise self.refuse(node, f"{node.id!r} is neither a primitive ({', '.join(dialect.PRIMITIVES)}), "
                                f"nor a number, nor a plain function")  # fmt: skip

    def refuse(self, node: ast.AST, why: str) -> FormulaError:
        code = self.function.__code__
        line = code.co_firstlineno + getattr(node, "lineno", 1) - 1
        return FormulaError(f"{self.function.__name__} ({Path(code.co_filename).name}:{line}): {why}")


def module_text(raster: Raster, backend: Backend) -> str:
    """Source of the module that holds a raster's formula and colouring for a backend."""
    module = Module(backend)
    formula, colouring = raster.formula, raster.colouring
    rows = {name: f"p[{row}]" for row, name in enumerate(raster.names)}
    kept = list(raster.accumulators)
    constants = {
        "iterations": module.literal(float(raster.iterations)),
        "radius": module.literal(float(raster.radius)),
        "degree": module.literal(float(formula.degree)),
        "tolerance": module.literal(float(formula.tolerance)),
        "converges": module.literal(float(raster.converges)),
    }
    if backend == "triton":  # a tensor, so that log2(radius) is a call like any other; it is folded all the same
        constants = {name: f"tl.full([], {value}, tl.float32)" for name, value in constants.items()}

    def adapter(name: str, arguments: str, function: Callable[..., Any], given: dict[str, str]) -> str:
        own = {word: word for word in arguments.split(", ") if word not in ("a", "p")}  # before a parameter's name
        meant = {**rows, **given, **own}
        called = ", ".join(meant.get(asked, asked) for asked in inspect.signature(function).parameters)
        inner = module.add(function)
        return f"{DECORATOR[backend]}\ndef {name}({arguments}):\n    return {inner}({called})\n"

    view = module.add(view_to_plane)
    view_rows = ", ".join(rows[name] for name in ("centre_x", "centre_y", "half_width", "rotation"))
    adapters = [
        filled(adapter("start", "x, y, p", formula.start, {}), backend),
        adapter("step", "zr, zi, cr, ci, pr, pi, n, p", formula.step, {}),
        f"{DECORATOR[backend]}\ndef to_plane(u, v, p):\n    return {view}(u, v, {view_rows})\n",
    ]
    if formula.stays_out:
        adapters.append(adapter("stays_out", "p", formula.stays_out, constants))
    if formula.interior:
        adapters.append(adapter("interior", "cr, ci, p", formula.interior, {}))
    held = {name: module.literal(float(first)) for name, first in colouring.accumulators.items()}
    held |= {name: f"a[{row}]" for row, name in enumerate(kept)}
    if colouring.observe and observes(raster):
        aim = [module.literal(value) for value in formula.limit] if formula.limit else ["pr", "pi"]
        aims = dict(zip(("goal_r", "goal_i"), aim, strict=True))
        adapters.append(adapter("observe", "a, zr, zi, pr, pi, n, p", colouring.observe, {**held, **aims}))
        if len(colouring.accumulators) == 1 or len(kept) < len(colouring.accumulators):
            head, _, called = adapters.pop().rpartition("return ")
            rows_of = [f"new[{row}]" for row, name in enumerate(colouring.accumulators) if name in kept]
            new = called.strip() if len(colouring.accumulators) > 1 else f"({called.strip()},)"
            adapters.append(f"{head}new = {new}\n    return ({', '.join(rows_of)},)\n")
    summary = "count, inside, zr, zi, pr, pi, a, p"
    adapters.append(adapter("paint", summary, colouring.paint, {**constants, **held}))
    goal = formula.limit or (0.0, 0.0)
    ends = {
        "RADIUS_SQUARED": float(raster.radius) ** 2, "TOLERANCE_SQUARED": formula.tolerance**2,
        "LIMIT_R": goal[0], "LIMIT_I": goal[1],
    }  # fmt: skip
    firsts = "".join(f"{float(first)!r}, " for first in raster.accumulators.values())
    make = "np.float32" if backend == "numba" else "tl.constexpr"
    tail = "".join(f"{name} = {make}({value!r})\n" for name, value in ends.items())
    tail += f"FIRSTS = ({firsts})\n"
    return f"{module.text()}\n\n" + "\n\n".join(adapters) + f"\n\n{tail}"


def filled(start: str, backend: Backend) -> str:
    """The start adapter, whose numbers become blocks of lanes where the backend has such; x - 0 is no instruction."""
    if backend == "numba":
        return start
    head, _, called = start.rpartition("return ")
    block = "    none = tl.zeros_like(x)\n    return zr - none, zi - none, cr - none, ci - none\n"
    return f"{head}zr, zi, cr, ci = {called}{block}"


def observes(raster: Raster) -> bool:
    """Whether the colouring follows the orbits of this raster step by step."""
    return raster.colouring.observe is not None and bool(raster.accumulators)


def outward(raster: Raster) -> int:
    """Whether orbits that have left the radius never come back: 0 no, 1 yes, 2 as a picture's parameters say."""
    holds = raster.formula.stays_out
    if holds is None or raster.converges:
        return 0
    return int(bool(holds(raster.radius))) if {*inspect.signature(holds).parameters} == {"radius"} else 2


def flags(raster: Raster) -> dict[str, int | bool]:
    """The switches of a kernel's generated module."""
    stepped = {*inspect.signature(raster.formula.step).parameters}
    painted = {*inspect.signature(raster.colouring.paint).parameters}
    asked = stepped | painted
    # Where z alone decides the next z, an orbit that comes back to a z it had repeats for ever, and never escapes.
    repeats = not asked & {"pr", "pi"} and "n" not in stepped and not painted & {"zr", "zi"}
    return {
        "STEPS": raster.iterations,
        "ACCUMULATORS": len(raster.accumulators),
        "OBSERVES": observes(raster),
        "PREVIOUS": bool(asked & {"pr", "pi"}),
        "ESCAPES": raster.formula.stop != "converge",
        "CONVERGES": raster.formula.stop in ("converge", "either"),
        "LIMITED": raster.formula.limit is not None,
        "VISITS": raster.runs_through,
        "OUTWARD": outward(raster),
        "INTERIOR": raster.formula.interior is not None and raster.colouring.inside_alike and not raster.converges,
        "CYCLES": repeats and not raster.converges and not observes(raster),
    }


def generated(name: Backend, source: Callable[[Raster], str], raster: Raster) -> ModuleType:
    """A raster's module; one thread at a time writes, as Python 3.11's parser counts its depth for all together."""
    with _loading:
        return load(name, source(raster))


def load(name: str, text: str) -> ModuleType:
    """Import a generated module from the cache folder, writing it first if it is new."""
    text = f"# primitives {primitives_digest(name)}\n{text}"
    title = f"fractal_streams_generated_{name}_{hashlib.blake2s(text.encode(), digest_size=8).hexdigest()}"
    with _loading:
        if title in sys.modules:
            return sys.modules[title]
        path = cache_folder() / f"{title}.py"
        if not path.is_file() or path.read_text() != text:  # or one that was cut short
            handle, written = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(written, path)
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[title] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[title]
            raise
        return module


@cache
def primitives_digest(backend: str) -> str:
    """Of the text of a backend's primitives: they are compiled in, so the generated name must change with them."""
    text = Path(__file__).with_name(f"{backend}_primitives.py").read_bytes()
    return hashlib.blake2s(text, digest_size=8).hexdigest()


def cache_folder() -> Path:
    """Where generated modules and compiled code live: the user's cache folder, else a temporary one."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fractal-streams"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        pass
    return temporary_folder()


@cache
def temporary_folder() -> Path:
    """A folder of this user alone: its modules are run, so nobody else may write there."""
    user = os.getuid() if hasattr(os, "getuid") else None  # Windows gives each user a temporary folder
    folder = Path(tempfile.gettempdir()) / f"fractal-streams-{'cache' if user is None else user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if user is not None and (found.st_uid != user or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode)):
        return Path(tempfile.mkdtemp(prefix="fractal-streams-"))
    return folder


def _definition(function: Callable[..., Any]) -> ast.FunctionDef:
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise FormulaError(f"{function.__name__}: its source text can't be read ({error}); put it in a file") from None
    tree = ast.parse(source).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise FormulaError(f"{function.__name__}: a formula is a plain function written with def")
    return tree
