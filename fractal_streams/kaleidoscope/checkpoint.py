"""A fit on its way, in a file: written whole or not at all, and continued only as what it is."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.descent import Descent
from fractal_streams.kaleidoscope.fitted import (
    Sources,
    WeightFileError,
    checked_path,
    digest_of,
    read_tensors,
    safetensors_numpy,
)
from fractal_streams.spec import whole

FORMAT = "fractal-streams-fit"
CHECKPOINT_VERSION = 1
NAMED = 4
"""Differences that an error names before it only counts them."""


@dataclass(kw_only=True)
class Checkpoint:
    """The file of a fit.

    path: ends in .safetensors; None writes nothing.
    facts: what decides the fit, as values that JSON holds; a file of other ones is refused.
    every: seconds between writes.
    """

    path: Path | None
    facts: dict[str, Any]
    every: float
    written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.path is not None:
            self.path = checked_path(self.path)

    def restore(self, descent: Descent) -> None:
        """Let a descent go on from the file, if there is one.

        Raises:
            InvalidValueError: it is of another fit; names what differs.
            WeightFileError: it is damaged, or something else.
        """
        if self.path is None or not self.path.exists():
            return
        card, arrays = read_tensors(self.path, FORMAT, CHECKPOINT_VERSION)
        there, here = flat(card.get("facts", {})), flat(json.loads(json.dumps(self.facts)))
        changed = [
            f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        if changed:
            more = f", and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
            raise InvalidValueError(
                f"{self.path} is the checkpoint of another fit ({'; '.join(changed[:NAMED])}{more}): give another "
                f"file, or ask for the fit that is there"
            )
        try:
            if card.get("digest") != digest_of([card["facts"], card["step"]], arrays):
                raise ValueError("it has not the digest that its card says")
            descent.restore(arrays, whole(card["step"], "step", 0, descent.training.steps, "steps"))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise WeightFileError(f"{self.path} is damaged ({error}): remove it, and the fit begins again") from None

    def keep(self, descent: Descent, *, now: bool = False) -> None:
        """Write the file if the time has come, or now."""
        if self.path is None or not (now or time.monotonic() - self.written >= self.every):
            return
        write = safetensors_numpy().save_file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        card = {"format": FORMAT, "version": CHECKPOINT_VERSION, "facts": self.facts, "step": descent.done}
        arrays = descent.state()
        card["digest"] = digest_of([self.facts, descent.done], arrays)
        complete = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            write(arrays, complete, metadata={"card": json.dumps(card, sort_keys=True)})
            os.replace(complete, self.path)
        finally:
            complete.unlink(missing_ok=True)
        self.written = time.monotonic()


@contextmanager
def held_interrupts() -> Iterator[list[int]]:
    """Ctrl-C does not fall into the middle of a step: it is noted in the list. A second one interrupts at once.

    Only in the main thread, which alone can; elsewhere the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def sources_digest(sources: Sources) -> str:
    """32 hexadecimal digits of the data."""
    told = json.dumps([str(sources.data.dtype), sources.data.shape]).encode()
    return hashlib.blake2s(told + np.ascontiguousarray(sources.data).tobytes(), digest_size=16).hexdigest()


def flat(facts: Any, name: str = "") -> dict[str, Any]:
    """Facts with the names of nested ones joined by dots."""
    if not isinstance(facts, dict):
        return {name: facts}
    return {
        inner: value for key, each in facts.items() for inner, value in flat(each, f"{name}.{key}".strip(".")).items()
    }
