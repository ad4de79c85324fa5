"""The comparison: what it refuses to time, how a turn is counted, whose rate is set against whose, and its joules."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.benchmarks import comparison, energy, race
from fractal_streams.recipes.benchmarks.comparison import Row, compare, with_ratios
from fractal_streams.recipes.benchmarks.energy import Meter, PowerSampler
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item
from fractal_streams.recipes.benchmarks.race import Opened, WrongBatchError, check

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError

CPU = Delivery(device="cpu", size=8, batch=16)
GOOD = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


def endless(item: Item = GOOD) -> Iterator[Item]:
    while True:
        yield item


PLAIN = Contestant(name="plain", batch=16, read=endless)


@pytest.mark.parametrize("wrong, message", [
    (lambda x, y: (x[:8], y[:8]), "shapes"),
    (lambda x, y: (x, y[:, None]), "shapes"),
    (lambda x, y: (x.half(), y), "float16"),
    (lambda x, y: (x.to("meta"), y), "meta"),
    (lambda x, y: (x, y + 1), "labels"),
    (lambda x, y: (x, y - 1), "labels"),
    (lambda x, y: (x, y.float()), "labels"),
    (lambda x, y: (x, y * 0), "1 labels"),
    (lambda x, y: (x + 1.0, y), "not normalised"),
    (lambda x, y: (x * 0.3, y), "not normalised"),
    (lambda x, y: (x * 3.0, y), "not normalised"),
    (lambda x, y: (x * torch.tensor([1.0, 1.0, 0.1]).view(3, 1, 1), y), "not normalised"),
    (lambda x, y: (x / 0.0, y), "nan|inf"),
    (lambda x, y: (x[:2].repeat(8, 1, 1, 1), y), "2 different pictures"),
])  # fmt: skip
def test_a_batch_that_is_none_has_no_speed(wrong: Callable[..., Item], message: str) -> None:
    check(PLAIN, CPU, *GOOD)
    with pytest.raises(WrongBatchError, match=message):
        check(PLAIN, CPU, *wrong(*GOOD))


def test_ours_must_be_the_streams_own_samples() -> None:
    stream = open_stream("seed-readme", device="cpu", height=8, width=8, dtype="float32", mean=0.3, std=0.35)
    own = Contestant(name="ours", batch=16, ours=True, stream=stream, read=endless)
    batch = stream.generate(range(17)).torch()
    check(own, CPU, batch.images[:16], batch.labels[:16])
    for images, labels in ((batch.images[1:], batch.labels[:16]), (batch.images[:16], batch.labels[1:])):
        with pytest.raises(WrongBatchError, match="first samples"):
            check(own, CPU, images, labels)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that passes only where it is said to: both clocks of a turn, in seconds."""
    now = types.SimpleNamespace(wall=0.0, process=0.0)
    monkeypatch.setattr(race.time, "perf_counter", lambda: now.wall)
    monkeypatch.setattr(race.time, "process_time", lambda: now.process)
    return now


def paced(clock: Any, wall: float, process: float, setup: float = 0.0) -> Callable[[], Iterator[Item]]:
    def read() -> Iterator[Item]:
        clock.wall += setup
        while True:
            clock.wall, clock.process = clock.wall + wall, clock.process + process
            yield GOOD

    return read


@pytest.mark.parametrize("workers, rate, warm, timed", [(0, 16 / 0.5, 2, 5), (4, 16 / 0.25, 8, 8)])
def test_a_turn_counts_whole_batches_by_its_own_clock(
    clock: Any, workers: int, rate: float, warm: int, timed: int
) -> None:
    """One process alone by CPU seconds, workers by the wall, in whole rounds of them."""
    read = paced(clock, wall=0.25, process=0.5, setup=1.75)
    opened = Opened(Contestant(name="x", batch=16, workers=workers, read=read), CPU)
    joules = itertools.count(0.0, 24.0)
    meter: Any = types.SimpleNamespace(joules=lambda: next(joules))
    before = clock.wall
    turn = opened.turn(1.1, meter)
    assert (turn.rate, turn.first) == (rate, 2.0)
    assert clock.wall - before == 0.25 * (warm + timed)
    assert turn.joules == 24.0 / (16 * timed)
    assert opened.turn(1.1, meter).first is None


def test_what_workers_hold_ready_is_read_before_the_turn(clock: Any) -> None:
    """The first batches lie ready and cost nothing: the turn must not see them."""
    pace = itertools.chain([0.0] * 8, itertools.repeat(0.25))

    def read() -> Iterator[Item]:
        for seconds in pace:
            clock.wall += seconds
            yield GOOD

    opened = Opened(Contestant(name="x", batch=16, workers=4, read=read), CPU)
    meter: Any = types.SimpleNamespace(joules=lambda: None)
    assert opened.turn(1.0, meter).rate == 16 / 0.25


def test_a_failure_ends_one_contestant_and_no_other(clock: Any) -> None:
    closed: list[str] = []

    def counted(name: str, setup: float = 0.0) -> Callable[[], Iterator[Item]]:
        def read() -> Iterator[Item]:
            try:
                yield from paced(clock, 0.1, 0.1, setup)()
            finally:
                closed.append(name)

        return read

    def fails() -> Iterator[Item]:
        yield GOOD
        raise OSError("the disk is full\nand more")

    def unprepared() -> None:
        raise ModuleNotFoundError("No module named 'ffcv'")

    drawn = [
        Contestant(name="quick", batch=16, read=counted("quick")),
        Contestant(name="fails", batch=16, read=fails),
        Contestant(name="wrong", batch=16, read=lambda: endless((GOOD[0] * 9, GOOD[1]))),
        Contestant(name="absent", batch=16, read=endless, prepare=unprepared),
        Contestant(name="slow", batch=16, read=counted("slow", setup=race.LONG_SETUP)),
    ]
    told: list[str] = []
    meter: Any = types.SimpleNamespace(joules=lambda: None)
    turns, reasons = race.race(drawn, CPU, rounds=3, seconds=0.3, meter=meter, progress=told.append)
    assert [len(each) for each in turns] == [3, 0, 0, 0, 3]
    assert closed == ["quick", "slow", "quick", "quick"]
    assert [turn.first is None for turn in turns[4]] == [False, True, True]
    assert reasons[1] == "OSError: the disk is full" and reasons[3] == "No module named 'ffcv'"
    assert "not normalised" in str(reasons[2]) and (reasons[0], reasons[4]) == (None, None)
    assert told[0] == "round 1 of 3: quick" and len(told) == 5 + 1 + 1


def rows_of(*given: tuple[str, int, str, float]) -> list[Row]:
    return [
        Row(
            name=name,
            workers=workers,
            ours=name.startswith("ours"),
            clock=clock,
            rate=rate,
            each=(rate, rate, 2 * rate),
        )
        for name, workers, clock, rate in given
    ]


def test_a_ratio_is_to_ours_with_as_many_workers_and_by_the_same_clock() -> None:
    rows = rows_of(
        ("ours", 0, "core", 100.0), ("ours", 2, "wall", 300.0),
        ("a", 0, "core", 50.0), ("b", 2, "wall", 30.0), ("c", 4, "wall", 60.0),
    )  # fmt: skip
    absent = Row(name="d", reason="why")
    assert [row.ours_is for row in with_ratios([*rows, absent], CPU)] == [1.0, 1.0, 2.0, 10.0, 5.0, None]


def test_on_a_gpu_a_ratio_is_to_the_fastest_of_ours() -> None:
    rows = rows_of(("ours", 0, "wall", 100.0), ("ours, slower", 0, "wall", 50.0), ("a", 0, "wall", 20.0))
    rows[2] = replace(rows[2], each=(20.0, 25.0, 100.0))  # rounds 5, 4 and 2 times
    assert [row.ours_is for row in with_ratios(rows, Delivery(device="cuda:0"))] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("name", ["comparison", "energy", "scaling", "charts"])
def test_the_examples_run(name: str) -> None:
    pytest.importorskip("matplotlib")
    module = importlib.import_module(f"fractal_streams.recipes.benchmarks.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PEERS", {"fractal-streams": "ours", "CIFAR": "resident", "none": "nowhere"})
    monkeypatch.setattr(race, "WARM", 0.0)
    before = torch.get_num_threads()
    table = compare(size=16, batch=16, workers=[0, 1], pictures=64, rounds=2, seconds=0.001, device="cpu")
    assert [(row.name, row.workers) for row in table.rows] == [
        ("fractal-streams, CPU", 0), ("fractal-streams, CPU", 1), ("CIFAR in memory, one gather", 0), ("none", 0),
    ]  # fmt: skip
    assert all(row.rate and len(row.each) == 2 and row.first and row.spread is not None for row in table.rows[:3])
    assert "nowhere" in str(table.rows[3].reason) and table.rows[3].rate is None
    assert table.parity["numba"]["differing"] <= table.parity["numba"]["allowed"]
    assert json.loads(json.dumps(table.figures()))["rows"][2]["ours_is"] == table.rows[2].ours_is
    assert torch.get_num_threads() == before


def test_only_those_asked_for_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: Any = types.SimpleNamespace(mean=(0.3,) * 3, std=(0.3,) * 3)
    found, absent = comparison.contestants(CPU, stored, ("gather", "seed"))
    assert [each.name for each in found] == ["fractal-streams, CPU", "CIFAR in memory, one gather"]
    assert [row.name for row in absent] == ["first seed"]


def test_a_share_is_the_rooflines_and_of_rendered_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    roofline = types.ModuleType("roofline")
    roofline.share = lambda stream, rate: rate / stream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fractal_streams.recipes.benchmarks.roofline", roofline)
    turns = [race.Turn(rate=rate, first=None, joules=None) for rate in (10.0, 30.0, 20.0)]
    drawn = comparison.row_of(replace(PLAIN, stream=80.0), turns, None, CPU)
    assert (drawn.rate, drawn.spread, drawn.share, drawn.joules, drawn.first) == (20.0, 0.5, 0.25, None, None)
    assert comparison.row_of(PLAIN, turns, None, CPU).share is None
    monkeypatch.setitem(sys.modules, "fractal_streams.recipes.benchmarks.roofline", None)
    assert comparison.share_of(replace(PLAIN, stream=80.0), 10.0) is None


@pytest.mark.parametrize("wrong", [
    {"seconds": 0.0}, {"rounds": 0}, {"batch": 1}, {"size": 4}, {"workers": [-1]}, {"workers": []}, {"pictures": 3},
])  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(wrong))):
        compare(device="cpu", **wrong)


def test_cpu_packages_are_added_up_and_their_counters_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert Meter("cpu").parts == () and Meter("cpu").joules() is None

    def count(name: str, value: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9999999\n")

    count("intel-rapl:0", 9_000_000)
    count("intel-rapl:1", 500_000)
    count("intel-rapl:0:0", 77)  # a part of package 0
    with Meter("cpu") as meter:
        assert (meter.parts, meter.joules()) == (("CPU",), 0.0)
        count("intel-rapl:0", 1_000_000)  # 2 J on, past the end of the counter
        count("intel-rapl:1", 750_000)
        assert meter.joules() == 2.25
        count("intel-rapl:1", 1_000_000)
        assert meter.joules() == 2.5


def test_a_gpus_joules_are_its_drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    millijoules = iter((1000, 1500, 4500))

    class Absent(Exception):
        pass

    def handle(uuid: str) -> str:
        if uuid != "GPU-1":
            raise Absent
        return uuid

    driver = types.SimpleNamespace(
        NVMLError=Absent, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "gpu_uuid", lambda device: "GPU-1")
    meter = Meter("cuda:0")
    assert (meter.parts, meter.joules(), meter.joules()) == (("GPU",), 1.5, 4.5)
    assert energy.nvml_counter("GPU-2") is None


def test_without_a_counter_watts_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0.0, 0.5)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(now))
    ended = []

    class Lines(list[str]):
        def close(self) -> None:
            ended.append(3)

    process: Any = types.SimpleNamespace(
        stdout=Lines(["100.0\n", "[N/A]\n", "60.0\n"]), terminate=lambda: ended.append(1), wait=lambda: ended.append(2)
    )
    sampler = PowerSampler(process)
    sampler.end()
    assert sampler.joules == 0.5 * 100 + 0.5 * 60 and ended == [1, 2, 3]
