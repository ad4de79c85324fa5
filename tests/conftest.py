"""What every test stands on: Triton's interpreter where there is no GPU, caches of their own, compilers unmeasured."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from warm import Warm


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


def untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, and all it calls, unseen by the tracer that measures coverage."""

    @functools.wraps(method)
    def call(*arguments: Any, **settings: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return method(*arguments, **settings)
        finally:
            sys.settrace(tracer)

    return call


def pytest_collection_finish() -> None:
    """Leave compilers and Triton's interpreter out of coverage: tracing their calls took as long as the calls."""
    if sys.gettrace() is None:
        return
    Dispatcher.compile = untraced(Dispatcher.compile)
    interpreter = sys.modules.get("triton.runtime.interpreter")  # without it, no test here runs a kernel
    if interpreter is not None:
        interpreter.GridExecutor.__call__ = untraced(interpreter.GridExecutor.__call__)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Processes with the large packages imported, forked from one that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    client = Warm((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "warm")
    yield client
    client.close()


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
