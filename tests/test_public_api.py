"""The public names: what `__all__` says is there, is lazily loaded, documented, and its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import fractal_streams
from fractal_streams.formulas import CATALOGUE
from fractal_streams.formulas.definition import REGISTRY

PUBLIC = [name for name in fractal_streams.__all__ if name != "__version__"]
OPTIONAL = {"torch_data", "prefetch", "seed_interface", "contact_sheet", "loader"}  # and those of the command line
GENERATED = {"numba_kernel", "triton_kernel"}  # text that is copied beside a formula's; it can't run where it stands


def library_modules() -> list[str]:
    found = pkgutil.walk_packages(fractal_streams.__path__, "fractal_streams.")
    return sorted(
        module.name for module in found
        if module.name.rpartition(".")[2] not in GENERATED | {"__main__"}
        and not module.name.startswith(("fractal_streams.integrations", "fractal_streams.recipes"))
    )  # fmt: skip


def test_the_lazy_names_the_typed_names_and_all_agree() -> None:
    tree = ast.parse(Path(fractal_streams.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert names == {name: f"fractal_streams.{home}.{name}" for name, home in fractal_streams._HOME.items()}
    assert set(fractal_streams.__all__) == {"__version__", *fractal_streams._HOME} == set(dir(fractal_streams))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(fractal_streams, name)
    assert inspect.getdoc(value) and not name.startswith("_")
    assert value is getattr(importlib.import_module(f"fractal_streams.{fractal_streams._HOME[name]}"), name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Fractal'"):
        fractal_streams.Fractal  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", library_modules())
def test_a_module_says_what_it_is_and_its_examples_run(name: str) -> None:
    stem = name.rpartition(".")[2]
    for package in ("torch", "typer", "PIL"):
        if stem in OPTIONAL or stem.startswith("cli"):
            pytest.importorskip(package)
    if "triton" in name or name.endswith(".cuda"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    assert module.__doc__ and len(module.__doc__.splitlines()[0]) <= 120
    before = set(REGISTRY)
    names = {public: getattr(fractal_streams, public) for public in ("open_stream", "StreamSpec", "StillStream")}
    try:
        result = doctest.testmod(
            module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False
        )
    finally:
        for made in set(REGISTRY) - before - set(CATALOGUE):
            del REGISTRY[made]
    assert result.failed == 0


def public_definitions() -> list[tuple[str, str]]:
    """(module, name) of every public class and function that a module of the library defines."""
    found = []
    for name in library_modules():
        source = Path(importlib.util.find_spec(name).origin or "")  # type: ignore[union-attr]
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                dialect = name.startswith(("fractal_streams.formulas.", "fractal_streams.colouring."))
                primitive = name.endswith("_primitives")
                if not primitive and (not dialect or name.endswith(".definition")):
                    found.append((name, node.name if ast.get_docstring(node) else f"{node.name} without a docstring"))
    return found


def test_every_public_class_and_function_has_a_docstring() -> None:
    assert len(public_definitions()) > 100
    assert [pair for pair in public_definitions() if "without" in pair[1]] == []
