"""The law of order: the same samples in the same order, whatever workers, world size, batch size and restarts."""

from __future__ import annotations

import os
import random
import signal
import struct
from itertools import chain
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from digits import Digits, indices_of
from torch.utils.data import DataLoader

from fractal_streams import Shard, StreamDataset

pytestmark = [
    # Python 3.12 warns wherever a process with threads forks, which is what DataLoader does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

WORKERS, WORLDS, BATCHES = (0, 1, 3), (1, 2, 3, 8), (1, 7, 512)


def rank_steps(dataset: StreamDataset, workers: int) -> list[list[int]]:
    """What one rank's loader gives: the indices of each of its steps."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    steps = []
    for images, labels in loader:
        steps.append(indices_of(images))
        assert labels.tolist() == [index % 10 for index in steps[-1]]
    return steps


def world_order(world: int, workers: int, **settings: Any) -> list[int]:
    """The indices of all ranks: step by step, within a step rank by rank."""
    ranks = [
        rank_steps(StreamDataset(Digits(), shard=Shard(rank, world), **settings), workers) for rank in range(world)
    ]
    longest = max(map(len, ranks))
    return [index for step in range(longest) for rank in ranks for index in (rank[step] if step < len(rank) else [])]


def check_order(total: int, grid: list[tuple[int, int, int]]) -> None:
    for workers, world, batch in grid:
        got = world_order(world, workers, batch_size=batch, length=total)
        assert got == list(range(total)), (workers, world, batch)


def check_restarts(total: int, restarts: int, seed: int) -> None:
    """Killed at random points and each time resumed from one integer in another layout: nothing lost or repeated."""
    chance = random.Random(seed)
    stops = sorted(chance.sample(range(1, total), restarts)) + [total]
    position, seen = 0, []
    for stop in stops:
        workers, world, batch = chance.choice(WORKERS), chance.choice(WORLDS), chance.choice(BATCHES)
        count = max(0, stop - position) // (batch * world)
        if stop == total:
            count = total
        elif not count:
            continue
        datasets = [
            StreamDataset(Digits(), batch, start=position, length=total, shard=Shard(rank, world))
            for rank in range(world)
        ]
        loaders = [iter(DataLoader(dataset, batch_size=None, num_workers=workers)) for dataset in datasets]
        steps = 0
        while steps < count:
            taken = [next(loader, None) for loader in loaders]
            if taken[0] is None:
                break
            seen += chain.from_iterable(indices_of(item[0]) for item in taken if item is not None)
            steps += 1
        position = datasets[0].position_after(steps)
        if not workers and stop != total:
            assert position == datasets[0].position
        del loaders
    assert position == total
    assert seen == list(range(total))


def test_order_is_the_streams_for_any_workers_world_and_batch() -> None:
    check_order(2300, [(0, world, batch) for world in WORLDS for batch in BATCHES])
    check_order(2300, [(1, 2, 512), (3, 1, 7), (3, 3, 512), (3, 2, 64)])


def test_restarts_in_other_layouts_lose_and_repeat_nothing() -> None:
    for seed in range(2):
        check_restarts(2500, 5, seed)


def read_until_killed(pipe: int, position: int, workers: int, batch: int, world: int, total: int) -> None:
    """What a training process does, of rank 0: takes batches, and after each one tells what it holds."""
    dataset = StreamDataset(Digits(), batch, start=position, length=total, shard=Shard(0, world))
    for done, (images, _) in enumerate(DataLoader(dataset, batch_size=None, num_workers=workers), start=1):
        own = indices_of(images)
        os.write(pipe, struct.pack(f"<qq{len(own)}q", len(own), dataset.position_after(done), *own))


def killed_run(position: int, stop: int, layout: tuple[int, int, int], total: int) -> tuple[int, list[int]]:
    """Where a process stood that was killed once it had passed `stop`, and what it had been given."""
    workers, world, batch = layout
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        read_until_killed(send, position, workers, batch, world, total)
        os._exit(0)
    os.close(send)
    got: list[int] = []
    with os.fdopen(receive, "rb", buffering=0) as pipe:
        while position < stop and len(head := pipe.read(16)) == 16:
            count, position = struct.unpack("<qq", head)
            got += struct.unpack(f"<{count}q", pipe.read(8 * count))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return position, got


def check_kills(total: int, kills: int, seed: int) -> None:
    """Each process is killed by signal, and the next goes on from the one integer, in another layout."""
    chance = random.Random(seed)
    position, seen, expected = 0, [], []
    for stop in [*sorted(chance.sample(range(1, total), kills)), total]:
        if position >= stop:
            continue
        layout = chance.choice(WORKERS), chance.choice(WORLDS), chance.choice((7, 64, 128))
        begin, (position, got) = position, killed_run(position, stop, layout, total)
        _, world, batch = layout
        for first in range(begin, position, batch * world):
            expected += range(first, min(first + batch, total))
        seen += got
        assert seen == expected, layout
    assert position == total


def test_a_killed_process_is_gone_on_from_where_it_stood() -> None:
    check_kills(4000, 4, seed=3)


GRID = [(workers, world, batch) for workers in WORKERS for world in WORLDS for batch in BATCHES]


@pytest.mark.slow
@pytest.mark.parametrize("layout", GRID, ids=str)
def test_the_same_100_000_samples(layout: tuple[int, int, int]) -> None:
    check_order(100_000, [layout])


@pytest.mark.slow
def test_100_000_samples_over_20_restarts_in_other_layouts() -> None:
    check_restarts(100_000, 20, seed=0)


@pytest.mark.slow
def test_100_000_samples_over_20_kills() -> None:
    check_kills(100_000, 20, seed=0)
