"""The package: what it installs, what it needs, and that its files name one version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fractal_streams

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def package_folders() -> dict[str, str]:
    """Package name to folder, of every folder with an `__init__.py`."""
    found = {}
    for top, name in (("fractal_streams", "fractal_streams"), ("integrations", "fractal_streams.integrations"),
                      ("recipes", "fractal_streams.recipes")):  # fmt: skip
        for init in (ROOT / top).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / top).parts
            found[".".join((name, *inner))] = "/".join((top, *inner))
    return found


def test_every_package_is_installed() -> None:
    tool = PROJECT["tool"]["setuptools"]
    assert sorted(tool["packages"]) == sorted(package_folders())
    outside = {name: folder for name, folder in package_folders().items() if not folder.startswith("fractal_streams/")}
    assert tool["package-dir"] == outside


def test_every_python_file_is_in_a_package() -> None:
    folders = set(package_folders().values())
    for top in ("fractal_streams", "integrations", "recipes"):
        for path in (ROOT / top).rglob("*.py"):
            assert str(path.parent.relative_to(ROOT)) in folders, path


def test_only_numpy_and_numba_are_needed() -> None:
    assert sorted(re.match(r"[a-z]+", line)[0] for line in PROJECT["project"]["dependencies"]) == ["numba", "numpy"]  # type: ignore[index]
    assert "triton" not in str(PROJECT["project"])[: str(PROJECT["project"]).index("keywords")]
    assert not any(line.startswith("triton") for lines in EXTRAS.values() for line in lines)


def members(extra: str) -> set[str]:
    """Packages that an extra installs, through the extras that it names."""
    found: set[str] = set()
    for line in EXTRAS[extra]:
        named = re.match(r"fractal-streams\[(.*)\]", line)
        if named:
            found |= set().union(*(members(inner) for inner in named[1].split(",")))
        else:
            found.add(re.match(r"[A-Za-z0-9-]+", line)[0].lower())  # type: ignore[index]
    return found


def test_all_has_every_extra_and_dev_has_all() -> None:
    everything = set().union(*(members(extra) for extra in EXTRAS if extra != "dev"))
    assert members("all") == everything <= members("dev")


def test_a_missing_extra_is_one_that_installs_the_package() -> None:
    calls = [
        node
        for top in ("fractal_streams", "integrations", "recipes")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("missing_extra")
    ]
    assert len(calls) > 5
    for call in calls:
        package, extra = call.args
        assert isinstance(extra, ast.Constant) and extra.value in EXTRAS, ast.unparse(call)
        names = [node.value for node in ast.walk(package) if isinstance(node, ast.Constant) and node.value]
        for name in names:
            assert str(name).lower() in members(str(extra.value)), ast.unparse(call)


def test_the_torch_extras_name_one_least_version() -> None:
    asked = {line for lines in EXTRAS.values() for line in lines if re.match(r"torch[^a-z]", line)}
    assert asked == {"torch>=2.8"} and PROJECT["project"]["requires-python"] == ">=3.11"


def test_one_version_everywhere() -> None:
    version = fractal_streams.__version__
    assert PROJECT["project"]["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(.+?)\]", changelog.replace("## [Unreleased]", ""), re.M)[1] == version  # type: ignore[index]


def test_the_citation_names_the_four_seeds() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    for name in ("Ryu", "Sohl-Dickstein", "Shrivastava", "Gray", "2402.06184", "2402.11793", "2004.04467",
                 "github.com/cloneofsimo/infinite-fractal-stream",
                 "github.com/Harshs27/generative-kaleidoscopic-networks"):  # fmt: skip
        assert name in text, name


def test_the_license_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License") and "WITHOUT WARRANTY OF ANY KIND" in text
    assert PROJECT["project"]["license"] == "MIT"


def test_integrations_and_recipes_are_installed_under_the_packages_name_only() -> None:
    program = (
        "import importlib.util as u, fractal_streams.integrations, fractal_streams.recipes;"
        "print(u.find_spec('integrations'), u.find_spec('recipes'))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip() == "None None"


def test_types_are_shipped() -> None:
    assert (ROOT / "fractal_streams/py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["fractal_streams"]


def test_the_command_is_there() -> None:
    module, _, function = PROJECT["project"]["scripts"]["fractal-streams"].partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", ".ci/run"])
def test_the_files_at_the_top_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
    assert name != ".ci/run" or (ROOT / name).stat().st_mode & 0o111
