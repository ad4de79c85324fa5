"""The README's Python snippets run as they stand, each for itself, in a folder of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path for path in (ROOT / "README.md", ROOT / "integrations/README.md", ROOT / "recipes/README.md") if path.is_file()
]
SNIPPET = re.compile(r"(?P<before>[^\n]*)\n+```python\n(?P<code>.*?)```", re.S)


def snippets() -> list[tuple[str, str, str]]:
    """(file, line before, code) of each; `<!-- not run: why -->` on the line before leaves one out."""
    return [
        (path.relative_to(ROOT).as_posix(), found["before"], found["code"])
        for path in FILES
        for found in SNIPPET.finditer(path.read_text())
    ]


@pytest.mark.parametrize("file, before, code", snippets(), ids=lambda value: None)
def test_a_snippet_runs(file: str, before: str, code: str, tmp_path: Path) -> None:
    reason = re.search(r"<!-- not run: (.+?) -->", before)
    if reason:
        pytest.skip(reason[1])
    run = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
                         capture_output=True, text=True, cwd=tmp_path, timeout=300)  # fmt: skip
    assert run.returncode == 0, f"{file}:\n{code}\n{run.stderr[-2000:]}"


def test_the_readme_shows_python() -> None:
    assert sum(file == "README.md" for file, _, _ in snippets()) >= 1
