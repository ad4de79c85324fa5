"""Rendering ahead: work on a stream of its own while its consumer uses the work before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from fractal_streams.batch import Batch
from fractal_streams.errors import missing_extra

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

T = TypeVar("T")


class Lane(Protocol):
    """Where work runs beside its consumer; `CudaLane` is the real one."""

    def launch(self, work: Callable[[], T]) -> tuple[T, Any]:
        """What the work returns, and an event that comes when it is done."""

    def settle(self, event: Any) -> None:
        """Returns once the event has come."""

    def consumer(self) -> Any:
        """Where the caller's own work runs now."""

    def admit(self, batch: Batch, event: Any, consumer: Any) -> None:
        """Lets the consumer use the batch from the event on, and keeps the batch's memory until it has."""


class CudaLane:
    """A CUDA stream beside the one that the model runs on.

    priority: of the stream's kernels where both wait for room; 0, the lowest, is the default stream's too.
    """

    def __init__(self, device: str, priority: int = 0) -> None:
        self.device = torch.device(device)
        self.side = torch.cuda.Stream(self.device, priority=priority)
        self.side.wait_stream(torch.cuda.current_stream(self.device))

    def launch(self, work: Callable[[], T]) -> tuple[T, Any]:
        # not before the consumer's work so far: what it holds back is memory of a few results
        self.side.wait_stream(self.consumer())
        with torch.cuda.stream(self.side):
            result = work()
            event = torch.cuda.Event(blocking=True)
            event.record(self.side)
        return result, event

    def settle(self, event: Any) -> None:
        event.synchronize()

    def consumer(self) -> Any:
        return torch.cuda.current_stream(self.device)

    def admit(self, batch: Batch, event: Any, consumer: Any) -> None:
        consumer.wait_event(event)
        for tensor in (batch.index, batch.images, batch.labels, *batch.latents.values()):
            tensor.record_stream(consumer)


AHEAD = 2
"""Results that are launched and not yet handed over."""


def ahead(jobs: Iterator[Callable[[], T]], lane: Lane) -> Iterator[tuple[T, Any]]:
    """What each job returns with its event, the jobs after it launched before it is handed over.

    `AHEAD` jobs are launched and no more: the lane always has one to go on with, and a host that runs
    ahead of its GPU is held back.
    """
    waiting: deque[tuple[T, Any]] = deque()
    for job in jobs:
        if len(waiting) == AHEAD:
            lane.settle(waiting[0][1])
        waiting.append(lane.launch(job))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting
