"""Pictures of known pixels, as files of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def levels(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 noise that the number names."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def picture() -> Callable[[int, int, int], np.ndarray]:
    """A function of a number, height and width to a picture."""
    return levels


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of two classes, 6 pictures each, of several sizes, and a file that is none; names count to 12."""
    image = pytest.importorskip("PIL.Image")
    for number in range(12):
        place = tmp_path / "pets" / ("cat" if number < 6 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        size = (24 + number, 40 - number) if number % 2 else (36, 24)
        image.fromarray(levels(number, *size)).save(place / f"{number}.png")
    (tmp_path / "pets" / "notes.txt").write_text("not a picture")
    (tmp_path / "pets" / ".hidden.png").write_text("not a picture")
    return tmp_path / "pets"
