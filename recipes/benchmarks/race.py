"""Turns of contestants: opened, checked, warmed and timed, all of them again and again."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fractal_streams.recipes.benchmarks.energy import Meter
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, placed

from fractal_streams.errors import FractalStreamsError

WARM = 0.25
"""Seconds of reading before a turn; at least as many batches as workers hold ready."""
READY = 2
"""Batches that a worker holds ready."""
LONG_SETUP = 3.0
"""Seconds; a contestant that takes longer to open is opened once, and its turns follow each other."""
MEAN, LEAST_STD, MOST_STD = 0.4, 0.6, 1.5
"""Largest mean, and bounds of the deviation, of each channel of a batch that passes for normalised."""


class WrongBatchError(FractalStreamsError, AssertionError):
    """A batch that is not what the training loop asked for: its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn: images a second, seconds from opening to the first batch (None: it was open), joules per image."""

    rate: float
    first: float | None
    joules: float | None


class Opened:
    """A contestant that is being read, from its first batch on, which is checked."""

    def __init__(self, contestant: Contestant, delivery: Delivery) -> None:
        self.contestant, self.delivery = contestant, delivery
        begin = time.perf_counter()
        self.batches = contestant.read()
        try:
            images, labels = next(self.batches)
            finish(delivery)
            self.first: float | None = time.perf_counter() - begin
            check(contestant, delivery, images, labels)
        except BaseException:
            self.close()
            raise

    def turn(self, seconds: float, meter: Meter) -> Turn:
        """Reads for so long, in whole rounds of the workers; the GPU's work is waited for."""
        contestant, delivery = self.contestant, self.delivery
        stride = max(1, contestant.workers)
        self._read(WARM, READY * stride)
        clock = time.process_time if clock_of(contestant, delivery) == "core" else time.perf_counter
        joules, begin = meter.joules(), clock()
        batches = self._read(seconds, stride)
        spent, after = max(clock() - begin, 1e-9), meter.joules()
        images = batches * contestant.batch
        first, self.first = self.first, None
        each = None if joules is None or after is None else (after - joules) / images
        return Turn(rate=images / spent, first=first, joules=each)

    def _read(self, seconds: float, stride: int) -> int:
        """Batches read in at least so many seconds, a multiple of the stride."""
        begin, batches = time.perf_counter(), 0
        while not batches or time.perf_counter() - begin < seconds:
            for _ in itertools.islice(self.batches, stride):
                batches += 1
        finish(self.delivery)
        return batches

    def close(self) -> None:
        """Ends its workers and frees what it holds."""
        close = getattr(self.batches, "close", None)
        if close:
            close()


def clock_of(contestant: Contestant, delivery: Delivery) -> str:
    """ "core", seconds of CPU time, for what one process does without a GPU; else "wall"."""
    return "wall" if delivery.on_gpu or contestant.workers else "core"


def finish(delivery: Delivery) -> None:
    """Waits for the GPU, where there is one."""
    if delivery.on_gpu:
        torch.cuda.synchronize(delivery.device)


def check(contestant: Contestant, delivery: Delivery, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Hold a contestant's first batch to what was asked for; ours to its stream, to the bit.

    Raises:
        WrongBatchError: says what is wrong.
    """
    size, count, place = delivery.size, contestant.batch, torch.device(delivery.device)
    asked = (count, 3, size, size), (count,)
    if (tuple(images.shape), tuple(labels.shape)) != asked:
        raise WrongBatchError(f"shapes {tuple(images.shape)} and {tuple(labels.shape)}, asked for {asked}")
    if images.device != place or labels.device != place or images.dtype != delivery.dtype:
        raise WrongBatchError(f"{images.dtype} on {images.device}, asked for {delivery.dtype} on {place}")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= contestant.classes:
        raise WrongBatchError(f"labels are not whole numbers of 0 to {contestant.classes - 1}")
    values = images.double()
    means, deviations = values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3)).tolist()
    normal = all(map(math.isfinite, (*means, *deviations)))
    if not normal or max(map(abs, means)) > MEAN or not LEAST_STD < min(deviations) <= max(deviations) < MOST_STD:
        found = f"means {rounded(means)} and deviations {rounded(deviations)}"
        raise WrongBatchError(f"channels have {found}: not normalised")
    pictures, kinds = len(values.flatten(1).std(1).unique()), len(labels.unique())
    if kinds < 2 or pictures <= count // 2:
        raise WrongBatchError(f"a batch of {count} with {pictures} different pictures and {kinds} labels")
    if contestant.ours:
        truth = contestant.stream.generate(range(count)).torch()
        expected = placed(truth.images, truth.labels, delivery)
        if not (torch.equal(images, expected[0]) and torch.equal(labels, expected[1])):
            raise WrongBatchError("the first batch is not the stream's first samples")


def rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def race(
    drawn: Sequence[Contestant],
    delivery: Delivery,
    *,
    rounds: int,
    seconds: float,
    meter: Meter,
    progress: Callable[[str], Any],
) -> tuple[list[list[Turn]], list[str | None]]:
    """The turns of every contestant, and the reason why one has no more of them.

    Every round opens, reads and closes each contestant in turn, so that they share the machine's weather and never
    its memory. One contestant's failure ends its own turns alone.
    """
    turns: list[list[Turn]] = [[] for _ in drawn]
    reasons: list[str | None] = [None for _ in drawn]
    for place in range(rounds):
        for k, contestant in enumerate(drawn):
            if reasons[k] or len(turns[k]) == rounds:
                continue
            progress(f"round {place + 1} of {rounds}: {described(contestant)}")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of other packages, about their own insides
                    if not place:
                        contestant.prepare()
                    with contextlib.closing(Opened(contestant, delivery)) as opened:
                        again = rounds if (opened.first or 0.0) > LONG_SETUP else 1
                        turns[k] += [opened.turn(seconds, meter) for _ in range(again)]
            except Exception as error:
                reasons[k] = reason_of(error)
    return turns, reasons


def described(contestant: Contestant) -> str:
    """Name and workers."""
    return contestant.name + (f", {contestant.workers} workers" if contestant.workers else "")


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its kind where that says more."""
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, FractalStreamsError | ImportError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0]}".rstrip(": ")[:160]
