"""A finite set cut from a stream, gone through again and again: what training on stored data does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import Batch, as_tensor
from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import whole
from fractal_streams.stream import Stream

FINITE_VERSION = 1
MAX_SAMPLES = 2**24
"""Of a shuffled set: an epoch's order lies in memory."""


class FiniteStream(Stream):
    """The first samples of a stream, without end: each epoch has every one of them once, in an order of its own.

    Sample i is sample `order(i // samples)[i % samples]` of the stream, and still a pure function of i: adapters,
    shards and resumed loaders treat it as any other stream. `chosen` tells which sample of the stream an index is.

    Args:
        stream: any `Stream`.
        samples: of the set, from index 0 on; 1 to 2**24 if shuffled.
        shuffled: an order of its own for each epoch; else each is the stream's.
        seed: names the orders.

    Raises:
        InvalidValueError: a value out of its range, named.

    Example:
        >>> from fractal_streams import FiniteStream, open_stream
        >>> finite = FiniteStream(open_stream("fractal-10", device="cpu", height=8, width=8), samples=3)
        >>> [sorted(finite.chosen(range(3 * k, 3 * k + 3)).tolist()) for k in range(2)]
        [[0, 1, 2], [0, 1, 2]]
    """

    def __init__(self, stream: Stream, samples: int, *, shuffled: bool = True, seed: int = 0) -> None:
        if not isinstance(stream, Stream):
            raise InvalidValueError(f"stream must be a Stream, got {type(stream).__name__}: open one by open_stream")
        self.stream = stream
        self.samples = whole(samples, "samples", 1, MAX_SAMPLES if shuffled else 2**63 - 1, "")
        if not isinstance(shuffled, bool):
            raise InvalidValueError(f"shuffled must be True or False, got {shuffled!r}")
        self.shuffled = shuffled
        self.order_seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.seed, self.split, self.device = stream.seed, stream.split, stream.device
        self.num_classes, self.pixels, self.cost = stream.num_classes, stream.pixels, stream.cost
        self.mixture_depth: int = getattr(stream, "mixture_depth", 0)

    def digest(self) -> str:
        order = f"shuffled-{self.order_seed}" if self.shuffled else "ordered"
        return f"{self.stream.digest()}-first-{self.samples}-{order}-{FINITE_VERSION}"

    def describe(self) -> dict[str, Any]:
        own = {"samples": self.samples, "shuffled": self.shuffled, "order_seed": self.order_seed}
        return {"finite": {**own, "stream": self.stream.describe()}, "digest": self.digest()}

    def class_title(self, label: int) -> str:
        return self.stream.class_title(label)

    def order(self, epoch: int) -> Int64:
        """(samples,) int64: indices of the stream in the order of an epoch."""
        return _order(self.samples, self.shuffled, self.order_seed, epoch)

    def chosen(self, indices: Any) -> Int64:
        """(B,) int64: the stream's indices of (B,) indices of this one."""
        asked = checked_indices(indices)
        if not self.shuffled:
            return asked % self.samples
        epochs, places = asked // self.samples, asked % self.samples
        found = np.empty_like(asked)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self.order(int(epoch))[places[here]]
        return found

    def labels(self, indices: Any) -> Int64:
        return self.stream.labels(self.chosen(indices))

    def generate(self, indices: Any) -> Batch:
        asked = checked_indices(indices)
        batch = self.stream.generate(self.chosen(asked))
        index = asked if isinstance(batch.index, np.ndarray) else as_tensor(asked).to(batch.index.device)
        return Batch(index, batch.images, batch.labels, batch.latents)


@lru_cache(maxsize=4)
def _order(samples: int, shuffled: bool, seed: int, epoch: int) -> Int64:
    """The order of an epoch, by sorting 64 random bits of each place; equal ones keep their places."""
    places = np.arange(samples, dtype=np.int64)
    places.setflags(write=False)
    if not shuffled:
        return places
    low, high, *_ = rng.words(places, rng.key("finite", FINITE_VERSION, seed, epoch))
    order = np.argsort(low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32)), kind="stable")
    order.setflags(write=False)
    return order
