"""Recipes run small: what a run draws at its end would take longer than all its steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

JOURNAL = "fractal_streams.recipes.journal"


@pytest.fixture(scope="module", autouse=True)
def curves(request: pytest.FixtureRequest) -> Iterator[Callable[..., None] | None]:
    """Runs leave an empty page for their curves, but for those of the journal's own tests; the function that draws."""
    journal = sys.modules.get(JOURNAL)
    if journal is None or request.module.__name__.endswith("test_journal"):
        yield None
        return
    image = pytest.importorskip("PIL.Image")

    def empty(path: Path, rows: list[dict[str, Any]], title: str) -> None:
        image.new("RGB", (8, 8)).save(path)

    draws = journal.draw_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "draw_curves", empty)
        yield draws


@pytest.fixture
def drawn_curves(curves: Callable[..., None] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose curves are drawn."""
    if curves is not None:
        monkeypatch.setattr(sys.modules[JOURNAL], "draw_curves", curves)
