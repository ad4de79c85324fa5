"""What a loop measures of itself: pace, time waited for data, memory, and the means of what its loss told."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from accelerate import Accelerator
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


BLOCK = 256
"""Steps whose figures are folded into one tensor, and whose events are read."""


def memory(device: torch.device) -> int:
    """Bytes: the most that torch held on a GPU, or that this process held on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refuse_no_scalars(terms: Any) -> None:
    """An `InvalidValueError` if this is nothing that a loss returns."""
    found = terms if isinstance(terms, Mapping) else {}
    forms = {
        name: f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        for name, value in found.items()
    }
    if "loss" not in forms or set(forms.values()) != {"()"}:
        raise InvalidValueError(
            f"a loss returns a dict of tensors of shape (), 'loss' among them, got {forms or type(terms).__name__}"
        )


class Window:
    """What the loss told in the steps of a record, on the device until it is asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[Tensor] = []
        self.blocks: list[Tensor] = []
        self.steps = 0

    def add(self, told: list[Mapping[str, Tensor]]) -> None:
        """What each part of a step told.

        Raises:
            InvalidValueError: other names than in the step before.
        """
        self.names = self.names or list(told[0])
        if odd := [list(part) for part in told if set(part) != set(self.names)]:
            raise InvalidValueError(f"a loss tells the same names each time, got {odd[0]} behind {self.names}")
        parts = [torch.stack(self.wide([part[name] for name in self.names])).double() for part in told]
        self.rows.append(parts[0] if len(parts) == 1 else torch.stack(parts).mean(0))
        self.steps += 1
        if len(self.rows) == BLOCK:
            self.blocks.append(torch.stack(self.rows))
            self.rows = []

    @staticmethod
    def wide(values: list[Tensor]) -> list[Tensor]:
        """The values, in float64 where they are of several types: stacked they would be rounded to one of them."""
        return values if len({value.dtype for value in values}) == 1 else [value.double() for value in values]

    def told(self) -> Tensor:
        """(steps, names) float64 of this rank."""
        return torch.cat([*self.blocks, *([torch.stack(self.rows)] if self.rows else [])])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps, parts and ranks; waits for the device."""
        found = accelerator.reduce(self.told().mean(0), reduction="mean")
        return dict(zip(self.names, found.tolist(), strict=True))

    def losses(self, accelerator: Accelerator) -> list[float]:
        """The loss of each step, the mean over ranks."""
        own = self.told()[:, self.names.index("loss")].clone()
        return list(accelerator.reduce(own, reduction="mean").tolist())


class Clock:
    """Seconds of the loop, and how many of them its model waited for a batch.

    On a GPU a wait is what lies between two events of the model's CUDA stream, before and behind asking for the
    batch: the device's own time, while the host runs ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begun, self.waited = time.perf_counter(), 0.0
        self.events: list[tuple[Any, Any]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        if self.device.type != "cuda":
            asked = time.perf_counter()
            yield
            self.waited += time.perf_counter() - asked
            return
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        yield
        last.record()
        self.events.append((first, last))
        if len(self.events) == 2 * BLOCK:
            self._read_events(BLOCK)

    def _read_events(self, count: int) -> None:
        """Adds the waits of the oldest events, which the device has to have passed or is waited for."""
        read, self.events = self.events[:count], self.events[count:]
        if read:
            read[-1][1].synchronize()
            self.waited += sum(first.elapsed_time(last) for first, last in read) / 1e3

    def leave_out(self, seconds: float) -> None:
        """Time that was not the loop's."""
        self.begun += seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the last reading, and of them those waited; the device has to be idle."""
        now = time.perf_counter()
        self._read_events(len(self.events))
        seconds, waited = max(now - self.begun, 1e-9), self.waited
        self.begun, self.waited = now, 0.0
        return seconds, waited
