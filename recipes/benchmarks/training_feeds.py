"""What feeds the loops of `training_step.py`: fixed batches, the live stream, and other ways to launch it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice, repeat
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from fractal_streams import StreamDataset
from fractal_streams.batch import Batch
from fractal_streams.prefetch import CudaLane, Lane, ahead
from fractal_streams.stream import Stream

Pair = tuple[torch.Tensor, torch.Tensor]
"""(B, 3, H, W) pictures in the model's memory layout, and (B,) classes."""
T = TypeVar("T")
POOL = 8
"""Batches that "pool" made before."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A way to have batches.

    open: stream and samples of a batch to an endless iterator. live: whether it gives the stream's samples in order.
    """

    open: Callable[[Stream, int], Iterator[Pair]]
    live: bool = True


class HostLane:
    """A lane without a GPU: work is done when it is launched."""

    def launch(self, work: Callable[[], T]) -> tuple[T, Any]:
        return work(), None

    def settle(self, event: Any) -> None:
        pass

    def consumer(self) -> Any:
        return None

    def admit(self, batch: Batch, event: Any, consumer: Any) -> None:
        pass


class UnhurriedLane(CudaLane):
    """A lane whose work doesn't wait for what its consumer was given before."""

    def launch(self, work: Callable[[], T]) -> tuple[T, Any]:
        with torch.cuda.stream(self.side):
            result = work()
            event = torch.cuda.Event(blocking=True)
            event.record(self.side)
        return result, event


def touched(stream: Stream, images: torch.Tensor) -> torch.Tensor:
    """Pictures as a torch model takes them: (B, 3, H, W), whatever their layout in memory."""
    return images.permute(0, 3, 1, 2) if stream.pixels.channels_last else images


def pair(stream: Stream, batch: Batch) -> Pair:
    batch = batch.torch()
    return touched(stream, batch.images), batch.labels


def fixed(stream: Stream, size: int) -> Iterator[Pair]:
    """The same batch for ever."""
    images, labels = pair(stream, stream.generate(range(size)))
    return repeat((images.clone(), labels.clone()))


def pool(stream: Stream, size: int) -> Iterator[Pair]:
    """A few batches, made before, in turns: other pictures in each step, and nothing generated."""
    return cycle([pair(stream, batch) for batch in islice(stream.batches(size), POOL)])


def live(stream: Stream, size: int) -> Iterator[Pair]:
    """The public path."""
    return iter(DataLoader(StreamDataset(stream, size, transform=partial(touched, stream)), batch_size=None))


def inline(stream: Stream, size: int) -> Iterator[Pair]:
    """A launch for each step, on the CUDA stream of the model."""
    return (pair(stream, batch) for batch in stream.batches(size))


def chunked(chunk: int, lane_of: Callable[[str], Lane], stream: Stream, size: int) -> Iterator[Pair]:
    """Runs of `chunk` batches in a launch, beside the model."""
    lane = HostLane() if stream.device == "cpu" else lane_of(stream.device)
    jobs = (partial(stream.generate, range(k * chunk * size, (k + 1) * chunk * size)) for k in count())
    for batch, event in ahead(jobs, lane):
        lane.admit(Batch(batch.index, batch.images, batch.labels, {}), event, lane.consumer())
        images, labels = pair(stream, batch)
        for k in range(chunk):
            yield images[k * size : (k + 1) * size], labels[k * size : (k + 1) * size]


def recorded(stream: Stream, size: int) -> tuple[Any, Pair]:
    """A CUDA graph of drawing and rendering one batch, and a counter on the device; and where the batch lies.

    It draws the same samples each time: what a graph would cost at least.
    """
    stream.generate(range(size))
    counter = torch.zeros(1, dtype=torch.int64, device=stream.device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter.add_(size)
        batch = stream.generate(range(size))
    return graph, pair(stream, batch)


def graph_inline(stream: Stream, size: int) -> Iterator[Pair]:
    """A graph for each step, on the CUDA stream of the model."""
    graph, batch = recorded(stream, size)
    while True:
        graph.replay()
        yield batch


def graph_beside(stream: Stream, size: int) -> Iterator[Pair]:
    """Two graphs in turns, one step ahead, beside the model."""
    graphs = [recorded(stream, size) for _ in range(2)]
    lane = CudaLane(stream.device)

    def replay(k: int) -> Pair:
        graphs[k % 2][0].replay()
        return graphs[k % 2][1]

    for batch, event in ahead((partial(replay, k) for k in count()), lane):
        lane.consumer().wait_event(event)
        yield batch


FEEDS = {
    "fixed": Feed(open=fixed, live=False),
    "pool": Feed(open=pool, live=False),
    "live": Feed(open=live),
    "inline": Feed(open=inline),
    **{f"chunk {k}": Feed(open=partial(chunked, k, CudaLane)) for k in (1, 2, 4, 8, 16, 32, 64)},
    **{f"chunk {k}, first": Feed(open=partial(chunked, k, partial(CudaLane, priority=-1))) for k in (1, 4, 16)},
    **{f"chunk {k}, unhurried": Feed(open=partial(chunked, k, UnhurriedLane)) for k in (1, 4, 16)},
    "graph inline": Feed(open=graph_inline, live=False),
    "graph beside": Feed(open=graph_beside, live=False),
}
"""Name to feed. With ", raised" behind it the model runs on a CUDA stream of higher priority than the renderer."""


def synchronized(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(stream: Stream, size: int, chunk: int, repeats: int = 12) -> float:
    """Milliseconds of the device for one batch, by launches of `chunk` batches that nothing runs beside; the median."""
    device, found = torch.device(stream.device), []
    for k in range(repeats):
        indices = range(k * chunk * size, (k + 1) * chunk * size)
        synchronized(device)
        begin = time.perf_counter()
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(2_000_000)  # the host is through before the device begins
            first.record()
            stream.generate(indices)
            last.record()
            synchronized(device)
            found.append(float(first.elapsed_time(last)) / chunk)
        else:
            stream.generate(indices)
            found.append(1e3 * (time.perf_counter() - begin) / chunk)
    return sorted(found[2:])[len(found[2:]) // 2]
