"""The command line, run in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from fractal_streams.cli_train import app


def run(*arguments: object, code: int = 0) -> Any:
    """What a command gave, which ended with this code."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object) -> str:
    """The one line that a refusal is."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return str(result.stderr)
