"""What every test stands on: Triton's interpreter where there is no GPU, and caches of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


def has_gpu() -> bool:
    """Whether torch is installed and sees a CUDA device."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


GPU = has_gpu()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none here"))


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of this test's own, so that nothing compiled before is found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fractal-streams"


class PoisonedNumPy:
    """NumPy, but what `empty` returns is full of one byte."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def empty(self, *shape: object, **settings: object) -> np.ndarray:
        made = np.empty(*shape, **settings)  # type: ignore[call-overload]
        made.view(np.uint8).fill(self.byte)
        return made

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


@pytest.fixture(params=[0xAB, 0xFF], ids=["0xAB", "NaN"])
def poison(request: pytest.FixtureRequest) -> Iterator[PoisonedNumPy]:
    """Memory that a renderer or a draw must overwrite to the last byte; 0xFF is NaN as a float."""
    yield PoisonedNumPy(request.param)
