"""Each Python snippet of each README runs as a script of its own, in a process and a folder of its own.

The everyday run forks the processes from one that has imported the large packages; `pytest -m slow` starts fresh ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

ROOT = Path(__file__).parents[1]
NAMES = [name for name in ("README.md", "integrations/README.md", "recipes/README.md") if (ROOT / name).is_file()]
SNIPPET = re.compile(r"(?P<before>[^\n]*)\n+(?P<indent> *)```python\n(?P<code>.*?)```", re.S)


def scripts(text: str) -> list[str]:
    """The snippets of a text, each at its own line numbers.

    On the line before, `<!-- not run: why -->` leaves one out, and `<!-- goes on -->` joins one to the last.
    """
    found: list[str] = []
    for snippet in SNIPPET.finditer(text):
        if "<!-- not run:" in snippet["before"]:
            continue
        first = text.count("\n", 0, snippet.start("code"))
        goes_on = "<!-- goes on -->" in snippet["before"]
        before = found.pop() if goes_on else ""
        code = "\n".join(line.removeprefix(snippet["indent"]) for line in snippet["code"].splitlines())
        found.append(before + "\n" * (first - before.count("\n")) + code + "\n")
    return found


def cases() -> list[tuple[str, int]]:
    return [(name, place) for name in NAMES for place in range(len(scripts((ROOT / name).read_text())))]


def written(name: str, place: int, folder: Path) -> str:
    path = folder / "readme.py"
    path.write_text(scripts((ROOT / name).read_text())[place])
    return str(path)


def check(name: str, run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, f"{name}, by its own line numbers:\n{run.stderr[-3000:]}"


def quick() -> list[Any]:
    """A cluster of Ray takes half a minute to start: `integrations/test_ray.py` asks more of the one it starts. Tiles
    of a preset take as long to train: `trainability/test_stream_adapters.py` reads smaller ones in every way."""
    dear = ("ray.init(", "trainability-tiles")
    slow = {case for case in cases() if any(word in scripts((ROOT / case[0]).read_text())[case[1]] for word in dear)}
    return [pytest.param(*case, marks=[pytest.mark.slow] if case in slow else []) for case in cases()]


@pytest.mark.parametrize("name, place", quick())
def test_a_snippet_runs(name: str, place: int, tmp_path: Path, warm: Warm) -> None:
    check(name, warm.run([written(name, place, tmp_path)], cwd=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name, place", cases())
def test_a_snippet_runs_in_a_fresh_process(name: str, place: int, tmp_path: Path) -> None:
    command = [sys.executable, written(name, place, tmp_path)]
    check(name, subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600))


def test_a_snippet_that_fails_is_told(tmp_path: Path, warm: Warm) -> None:
    """By its exit code and with its traceback; and what one leaves in its process, the next doesn't find."""
    path = tmp_path / "readme.py"
    path.write_text(
        "import sys, torch\n\nassert 'fractal_streams' not in sys.modules\ntorch.left = 1\nprint(2); nowhere\n"
    )
    for _ in range(2):
        run = warm.run([str(path)], cwd=tmp_path)
        assert run.returncode == 1 and run.stdout == "2\n"
        assert "line 5, in <module>" in run.stderr and "NameError" in run.stderr and "nowhere" in run.stderr
    found = warm.run(
        ["-c", "import os, sys, torch\nsys.exit(3 + hasattr(torch, 'left') + len(os.environ))"], cwd=tmp_path, env={}
    )
    assert found.returncode == 3


def test_a_snippet_stands_at_its_own_line_and_may_go_on() -> None:
    block = "```python\n{}\n```\n"
    text = "a\n\n{}\n<!-- not run: no -->\n{}<!-- goes on -->\n{}".format(*map(block.format, ("x = 1", "no", "y = x")))
    (joined,) = scripts(text)
    assert [joined.splitlines()[line - 1] for line in (4, 13)] == ["x = 1", "y = x"] and "no" not in joined
    assert len(scripts(text.replace("<!-- goes on -->", "and\n"))) == 2


def test_the_readme_shows_python() -> None:
    shown = scripts((ROOT / "README.md").read_text())
    assert len(shown) >= 3 and all("import" in snippet for snippet in shown)
