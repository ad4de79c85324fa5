"""Shards: the intervals of all ranks and steps partition the integers, whatever the world."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import InvalidValueError
from fractal_streams.shard import INDEX_END, Course, Shard

worlds, batches = st.integers(1, 9), st.integers(1, 40)
bases = st.one_of(st.integers(0, 500), st.integers(2**62, INDEX_END - 4000))


@settings(max_examples=60, deadline=None)
@given(worlds, batches, bases, st.integers(0, 700))
def test_ranks_and_steps_partition_the_interval(world: int, batch: int, base: int, size: int) -> None:
    end = base + size
    shards = [Shard(rank, world) for rank in range(world)]
    steps = max(shard.steps(batch, base, end) for shard in shards)
    taken = [list(shard.interval(step, batch, base, end)) for step in range(steps) for shard in shards]
    assert list(chain.from_iterable(taken)) == list(range(base, end))


@settings(max_examples=60, deadline=None)
@given(worlds, batches, bases, st.integers(0, 700))
def test_a_rank_has_samples_in_exactly_its_steps(world: int, batch: int, base: int, size: int) -> None:
    for rank in range(world):
        shard = Shard(rank, world)
        count = shard.steps(batch, base, base + size)
        assert all(len(shard.interval(step, batch, base, base + size)) for step in range(count))
        assert not shard.interval(count, batch, base, base + size)


@settings(max_examples=60, deadline=None)
@given(worlds, worlds, st.integers(1, 12), st.integers(0, 20))
def test_a_step_of_the_world_is_the_same_set_for_equal_world_batches(a: int, b: int, unit: int, step: int) -> None:
    steps = [
        sorted(chain.from_iterable(Shard(r, world).interval(step, unit * other) for r in range(world)))
        for world, other in ((a, b), (b, a))
    ]
    assert steps[0] == steps[1] == list(range(step * unit * a * b, (step + 1) * unit * a * b))


@settings(max_examples=80, deadline=None)
@given(worlds, batches, bases, st.integers(0, 700), st.integers(0, 6), st.integers(0, 12), st.integers(1, 4))
def test_indices_are_the_intervals_end_to_end(
    world: int, batch: int, base: int, size: int, first: int, number: int, stride: int
) -> None:
    shard, steps = Shard(world - 1, world), range(first, first + number * stride, stride)
    got = shard.indices(steps, batch, base, base + size)
    expected = [index for step in steps for index in shard.interval(step, batch, base, base + size)]
    assert np.asarray(got).tolist() == expected
    if world == 1 and stride == 1:
        assert isinstance(got, range)


@settings(max_examples=80, deadline=None)
@given(worlds, batches, st.integers(0, 300), st.integers(1, 700), st.integers(1, 5), st.booleans())
def test_workers_share_the_steps_of_a_course_and_positions_rise_to_the_end(
    world: int, batch: int, base: int, size: int, workers: int, drop_last: bool
) -> None:
    course = Course(
        shard=Shard(0, world), batch_size=batch, origin=10_000, base=base, end=base + size, drop_last=drop_last,
        stride=workers,
    )  # fmt: skip
    walked = [step for worker in range(workers) for step in course.steps(worker, size + 1)]
    assert sorted(walked) == list(range(course.count))
    assert course.count == (size // (batch * world) if drop_last else -(-size // (batch * world)))
    positions = [course.position(done) for done in range(course.count + 1)]
    assert positions[0] == 10_000 + base
    assert all(b - a == course.width for a, b in pairwise(positions[:-1]))
    if course.count:
        assert positions[-1] == 10_000 + base + size


def test_the_last_index_is_reached_and_not_passed() -> None:
    interval = Shard(1, 2).interval(0, 8, base=INDEX_END - 12)
    assert interval == range(INDEX_END - 4, INDEX_END)
    assert Shard(0, 1).indices(range(2), 8, INDEX_END - 12) == range(INDEX_END - 12, INDEX_END)
    several = Shard(0, 2).indices(range(2), 3, INDEX_END - 8)
    assert isinstance(several, np.ndarray) and several.tolist() == [INDEX_END - k for k in (8, 7, 6, 2, 1)]


@pytest.mark.parametrize(
    ("rank", "world", "words"),
    [(2, 2, "0 to world_size - 1 = 1, got 2"), (-1, 2, "rank .* got -1"), (0, 0, "world_size .* got 0"),
     (0.5, 2, "rank .* got 0.5"), (True, 2, "got True"), (0, "4", "world_size .* got '4'")],
)  # fmt: skip
def test_what_is_no_rank_is_refused(rank: int, world: int, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Shard(rank, world)


def test_what_is_no_step_is_refused() -> None:
    for arguments, words in (((-1, 4), "step"), ((0, 0), "batch_size"), ((0, 4, -1), "base")):
        with pytest.raises(InvalidValueError, match=f"{words} must be a whole number"):
            Shard().interval(*arguments)


def environment(monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str | None) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_detect_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, None, None)
    assert Shard.detect() == Shard(0, 1)
    environment(monkeypatch, "3", "8")
    assert Shard.detect() == Shard(3, 8)


@pytest.mark.parametrize(("rank", "size"), [("3", None), (None, "8"), ("8", "8"), ("one", "8"), ("0", "")])
def test_detect_refuses_half_an_environment(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    environment(monkeypatch, rank, size)
    with pytest.raises(InvalidValueError, match=f"RANK={rank!r} and WORLD_SIZE={size!r}.*pass shard="):
        Shard.detect()


def test_detect_asks_an_initialised_process_group_first(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    distributed = pytest.importorskip("torch.distributed")
    environment(monkeypatch, "3", "8")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert Shard.detect() == Shard(0, 1)
    finally:
        distributed.destroy_process_group()
    assert Shard.detect() == Shard(3, 8)


def test_detect_loads_no_torch() -> None:
    code = "import sys; from fractal_streams import Shard; print(Shard.detect(), 'torch' in sys.modules)"
    settings = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=True)
    assert done.stdout.split(") ") == ["Shard(rank=1, world_size=2", "False\n"]
