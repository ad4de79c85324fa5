"""What a loop measures of itself: pace, time waited for data, memory, and the means of what its loss told."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fractal_streams.errors import missing_extra

try:
    import torch
    from accelerate import Accelerator
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


def memory(device: torch.device) -> int:
    """Bytes: the most that torch held on a GPU, or that this process held on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Window:
    """What the loss told in the steps of a record."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, Tensor]] = []
        self.steps = 0

    def add(self, told: list[Mapping[str, Tensor]]) -> None:
        self.told += told
        self.steps += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps, parts and ranks; waits for the device."""
        names = list(self.told[0])
        sums = torch.stack([torch.stack([each[name].double() for each in self.told]).mean() for name in names])
        found = accelerator.reduce(sums, reduction="mean")
        return dict(zip(names, found.tolist(), strict=True))


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

    def leave_out(self, seconds: float) -> None:
        """Time that was not the loop's."""
        self.begun += seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the last reading, and of them those waited; the device has to be idle."""
        now = time.perf_counter()
        seconds, waited = max(now - self.begun, 1e-9), self.waited
        if self.events:
            self.events[-1][1].synchronize()
            waited += sum(first.elapsed_time(last) for first, last in self.events) / 1e3
        self.begun, self.waited, self.events = now, 0.0, []
        return seconds, waited
