"""How much of a GPU one launch may take: all of it, or what the kernels of a model leave free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_most: ContextVar[int | None] = ContextVar("programs of a launch", default=None)


def gives_way() -> bool:
    """Whether launches are limited: then programs are short too, so that no kernel of a model waits long for room."""
    return _most.get() is not None


@contextmanager
def limited(programs: int | None) -> Iterator[None]:
    """Within it, pictures are rendered by launches of so many programs at most; None is no limit. Same pixels."""
    token = _most.set(programs)
    try:
        yield
    finally:
        _most.reset(token)


def launches(count: int, programs: int) -> Iterator[tuple[int, int]]:
    """(first, number) of the pictures of each launch, in order; programs: of one picture.

    Example:
        >>> with limited(100):
        ...     list(launches(8, 32))
        [(0, 3), (3, 3), (6, 2)]
    """
    most = _most.get()
    together = count if most is None else max(1, min(count, most // programs))
    for first in range(0, count, together):
        yield first, min(together, count - first)
