"""The Python snippets of each README run in their order, as one script in a folder of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = [name for name in ("README.md", "integrations/README.md", "recipes/README.md") if (ROOT / name).is_file()]
SNIPPET = re.compile(r"(?P<before>[^\n]*)\n+(?P<indent> *)```python\n(?P<code>.*?)```", re.S)


def script(name: str) -> str:
    """All snippets of a file at their own line numbers; `<!-- not run: why -->` on the line before leaves one out."""
    text = (ROOT / name).read_text()
    lines = [""] * (text.count("\n") + 1)
    for found in SNIPPET.finditer(text):
        if "<!-- not run:" not in found["before"]:
            first = text.count("\n", 0, found.start("code"))
            for offset, line in enumerate(found["code"].splitlines()):
                lines[first + offset] = line.removeprefix(found["indent"])
    return "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_the_snippets_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "readme.py"
    path.write_text(script(name))
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert run.returncode == 0, f"{name}, by its own line numbers:\n{run.stderr[-3000:]}"


def test_the_readme_shows_python() -> None:
    assert len(SNIPPET.findall((ROOT / "README.md").read_text())) >= 3
    assert "import" in script("README.md")
