"""Steps as CUDA graphs: what Python launches once, kernel for kernel, is replayed at once from then on.

A step of three updates is more than a thousand kernels, and a small model is done with each before the next one comes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fractal_streams.recipes.alae.updates import Kind, Updates

from fractal_streams import Batch
from fractal_streams.errors import missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

WARM = 3
"""Steps of a kind that are launched before it is recorded: libraries choose their ways in them."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A graph, and tensors in its memory: it reads a batch from one part of them, and tells in the other."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    told: dict[str, Tensor]


@dataclass(eq=False)
class StepGraphs:
    """`Updates.step`, recorded once for each kind of step and form of batch, and replayed.

    Draws follow torch's seed in a replay as they do in a step that is launched. All graphs share their memory, so what
    a replay tells is copied out behind it.
    """

    updates: Updates
    launched: dict[Hashable, int] = field(default_factory=dict)
    recorded: dict[Hashable, Recorded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.forget()

    def step(self, batch: Batch, step: int, seen: int) -> dict[str, Tensor]:
        """As `Updates.step`."""
        kind = self.updates.begin(step, seen)
        key = (kind, tuple((name, each.shape, each.dtype) for name, each in tensors(batch).items()))
        if self.launched.get(key, 0) < WARM:
            self.launched[key] = self.launched.get(key, 0) + 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                told = self.updates.run(batch, kind)
            torch.cuda.current_stream().wait_stream(self.stream)
            return told
        if key not in self.recorded:
            self.recorded[key] = self.record(batch, kind)
        recorded = self.recorded[key]
        places, values = tensors(recorded.batch), tensors(batch)
        for name, place in places.items():
            place.copy_(values[name])
        recorded.graph.replay()
        copied = torch.stack(list(recorded.told.values())).unbind()
        self.updates.told |= dict(zip(recorded.told, copied, strict=True))
        return dict(self.updates.told)

    def record(self, batch: Batch, kind: Kind) -> Recorded:
        """A step of a kind, of which nothing is done yet."""
        updates = self.updates
        latents = {name: each.clone() if isinstance(each, Tensor) else each for name, each in batch.latents.items()}
        own = Batch(batch.index.clone(), batch.images.clone(), batch.labels.clone(), latents)
        before, updates.told = updates.told, {}
        graph = torch.cuda.CUDAGraph()
        others = "thread_local"  # threads that render, which may use the GPU meanwhile
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=others):
                updates.run(own, kind)
            told = updates.told
        finally:
            updates.told = before
        return Recorded(graph, own, told)

    def forget(self) -> None:
        """Record anew, as where an optimizer's state lies elsewhere; gives the graphs' memory back."""
        self.launched.clear()
        self.recorded.clear()
        self.pool = torch.cuda.graph_pool_handle()


def tensors(batch: Batch) -> dict[str, Tensor]:
    """All that a step can read of a batch, by name."""
    latents = {f"latents.{name}": each for name, each in batch.latents.items()}
    parts = {"index": batch.index, "images": batch.images, "labels": batch.labels, **latents}
    return {name: each for name, each in parts.items() if isinstance(each, Tensor)}
