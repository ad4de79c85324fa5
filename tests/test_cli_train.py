"""`fractal-streams train` and `sweep`: recipes are loaded when they are run, and have their own options and errors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

typer = pytest.importorskip("typer")

from commands import refused, run
from fractal_streams.recipes.settings import Settings, command, option

from fractal_streams.cli_train import ALAE, RECIPES, SWEEP
from fractal_streams.errors import InvalidValueError

PLACE = "fractal_streams.recipes"


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    num_steps: int = option(3, "How far.", low=1)
    pace: float = option(1.5, "How fast.", low=0.0)
    gait: str = option("trot", "In what way.", choices=("walk", "trot"))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Walk]]:
    """Each recipe's module with a command that notes its settings, and refuses to walk ten steps."""
    seen: list[Walk] = []

    def walk(settings: Walk) -> None:
        if settings.num_steps == 10:
            raise InvalidValueError("10 steps are too far")
        seen.append(settings)

    for recipe in (*RECIPES.values(), SWEEP):
        module = ModuleType(recipe.module)
        module.app = command(Walk, walk, "A long walk.")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"{PLACE}.{recipe.module}", module)
    yield seen


def test_help_lists_each_recipe_with_its_line() -> None:
    text = " ".join(run("train", "--help").output.replace("│", " ").split())
    assert run("train").output == run("train", "--help").output
    for name, recipe in RECIPES.items():
        assert re.search(rf" {name} {re.escape(recipe.line)}", text), name
    assert re.search(rf" sweep {re.escape(SWEEP.line)}", " ".join(run("--help").output.replace("│", " ").split()))


@pytest.mark.parametrize("name", [*(("train", name) for name in RECIPES), ("sweep",)], ids=lambda words: words[-1])
def test_a_recipe_is_called_with_its_options(name: tuple[str, ...], walks: list[Walk]) -> None:
    run(*name, "--num_steps", 7, "--pace=0.25", "--gait", "walk")
    run(*name)
    assert walks == [Walk(num_steps=7, pace=0.25, gait="walk"), Walk()]
    page = run(*name, "--help").output
    assert "A long walk." in page and "--num-steps" in page and "One of walk, trot." in page


def test_underscores_of_a_recipe_stand_for_hyphens(walks: list[Walk]) -> None:
    run("train", "finite_vs_endless", "--num-steps", 2)
    assert walks == [Walk(num_steps=2)]


def test_errors_are_one_line(walks: list[Walk]) -> None:
    assert refused("train", "vit", "--num-steps", 10) == "error: 10 steps are too far\n"
    assert "num_steps must" in refused("train", "vit", "--num-steps", 0) and "got 0" in refused(
        "sweep", "--num-steps", 0
    )
    assert "--num-stpes" in refused("train", "vit", "--num-stpes", 4)
    assert "gait" in refused("train", "vit", "--gait", "hop")
    assert walks == []


@pytest.mark.parametrize("wrong, near", [("vt", "vit"), ("diffuse", "diffusion"), ("finite", "finite-vs-endless")])
def test_an_unknown_recipe_names_the_nearest(wrong: str, near: str) -> None:
    text = refused("train", wrong)
    assert f"unknown recipe {wrong!r}" in text and f"did you mean {near!r}?" in text and "transfer" in text


def test_every_recipe_named_here_is_there() -> None:
    folder = Path(__file__).parents[1] / "recipes"
    files = [folder / f"{recipe.module.replace('.', '/')}.py" for recipe in (*RECIPES.values(), SWEEP)]
    has_app = re.compile(r"^app(: Any)? = ", re.MULTILINE)
    missing = [path.name for path in files if not path.is_file() or not has_app.search(path.read_text())]
    assert missing == []
    several = (folder / "alae" / "commands.py").read_text()
    assert all(f'@app.command("{name}"' in several for name in ALAE)


def test_help_lists_what_is_done_with_a_trained_alae() -> None:
    text = " ".join(run("alae", "--help").output.replace("│", " ").split())
    assert run("alae").output == run("alae", "--help").output
    for name, recipe in ALAE.items():
        assert re.search(rf" {name} {re.escape(recipe.line)}", text), name
    assert "No such command 'dream'" in refused("alae", "dream")


def test_a_command_of_several_is_called_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = ModuleType("several"), []
    module.app = several = typer.Typer()  # type: ignore[attr-defined]

    def noted(name: str) -> None:
        several.command(name)(lambda num_steps=3: seen.append((name, num_steps)))

    for name in ALAE:
        noted(name)
        monkeypatch.setitem(sys.modules, f"{PLACE}.{ALAE[name].module}", module)
    for name in ALAE:
        run("alae", name, "--num-steps", 7)
    assert seen == [(name, 7) for name in ALAE]


def loads(*arguments: str) -> set[str]:
    """What a command loaded, in a process of its own."""
    program = (
        "import sys\nfrom fractal_streams.__main__ import main\n"
        f"sys.argv = ['fractal-streams', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('loaded', *sorted(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(told.rpartition("loaded")[2].split())


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("alae", "--help")], ids=" ".join)
def test_pages_of_help_load_no_torch_and_no_recipe(words: tuple[str, ...]) -> None:
    found = loads(*words)
    assert "typer" in found and "fractal_streams.cli_train" in found
    assert not {"torch", "accelerate", "matplotlib", "numba"} & found
    assert not [name for name in found if name.startswith(PLACE)]
