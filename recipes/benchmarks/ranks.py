"""One process for each GPU, each with its share of one stream: what they deliver together."""

from __future__ import annotations

import multiprocessing
import queue
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from fractal_streams import Shard, StreamDataset, open_stream
from fractal_streams.errors import FractalStreamsError
from fractal_streams.render.numba_backend import NumbaRenderer

SOURCE = "seed-readme"
PATIENCE = 180.0
"""Seconds that ranks may take to start, and to end."""


class RankError(FractalStreamsError, RuntimeError):
    """A process that failed, or delivered another share than its own."""


def rate_of_ranks(kind: str, world: int, *, batch: int, steps: int, seconds: float, windows: int) -> tuple[float, int]:
    """Images a second of all ranks together, median of the windows, and the steps of a window.

    Args:
        kind: "cuda", a GPU for each rank, or "cpu", a thread for each. steps: batches of each rank in a window; 0
            takes as many as fill so many seconds.

    Raises:
        RankError: says which rank failed and why.
    """
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(world), context.Queue()
    ranks = [
        context.Process(
            target=run_rank, args=(kind, rank, world, batch, steps, seconds, windows, barrier, answers), daemon=True
        )
        for rank in range(world)
    ]
    for each in ranks:
        each.start()
    try:
        told = [answer_of(answers, ranks) for _ in ranks]
    finally:
        for each in ranks:
            each.join(timeout=10.0)
            if each.is_alive():
                each.terminate()
    if failed := [f"rank {answer['rank']} of {world}: {answer['error']}" for answer in told if "error" in answer]:
        raise RankError("; ".join(failed))
    for answer in told:
        first = answer["rank"] * batch
        if answer["first"] != [first, first + batch - 1]:
            raise RankError(f"rank {answer['rank']} of {world} began with samples {answer['first']}, not {first} on")
    return statistics.median(together(told, batch)), int(told[0]["steps"])


def answer_of(answers: Any, ranks: list[Any]) -> dict[str, Any]:
    """The next answer; a `RankError` if none comes, or if a process died without one."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            found: dict[str, Any] = answers.get(timeout=1.0)
            return found
        except queue.Empty:
            if dead := [each.exitcode for each in ranks if each.exitcode]:
                raise RankError(f"{len(dead)} of {len(ranks)} ranks died with exit code {dead[0]}") from None
    raise RankError(f"a rank gave no answer in {PATIENCE:.0f} s")


def together(told: list[dict[str, Any]], batch: int) -> Iterator[float]:
    """Images a second of each window, from the first rank's start to the last one's end."""
    images = sum(answer["steps"] for answer in told) * batch
    for spans in zip(*(answer["spans"] for answer in told), strict=True):
        yield images / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def run_rank(
    kind: str, rank: int, world: int, batch: int, steps: int, seconds: float, windows: int, barrier: Any, answers: Any
) -> None:
    """One rank: its own device, its own share, windows that all ranks begin together."""
    try:
        device = f"cuda:{rank}" if kind == "cuda" else "cpu"
        own: dict[str, Any] = {} if kind == "cuda" else {"renderer": NumbaRenderer(threads=1)}
        if kind == "cuda":
            torch.cuda.set_device(rank)
        dataset = StreamDataset(
            open_stream(SOURCE, device=device, **own), batch, fields="batch", shard=Shard(rank, world)
        )  # fmt: skip
        batches = iter(dataset)
        first = next(batches).index[[0, -1]].tolist()
        read(batches, 20, kind)
        if not steps:
            steps = max(1, round(20 * seconds / read(batches, 20, kind)))
        spans = []
        for _ in range(windows):
            barrier.wait(timeout=PATIENCE)
            begin = time.monotonic()  # one clock of the whole machine
            read(batches, steps, kind)
            spans.append((begin, time.monotonic()))
        answers.put({"rank": rank, "first": first, "steps": steps, "spans": spans})
    except Exception as error:
        barrier.abort()
        answers.put({"rank": rank, "error": f"{type(error).__name__}: {error}"})


def read(batches: Iterator[Any], count: int, kind: str) -> float:
    """Seconds of the wall for so many batches, the device's work waited for."""
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
