"""The CPU benchmark's contestants draw the same pictures, and a wrong one is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.benchmarks import cpu_peers
from fractal_streams.recipes.benchmarks.cpu_peers import (
    COMPILED,
    COMPLEX,
    EAGER,
    OURS,
    PLAIN,
    Contestant,
    ParityError,
)

SIZE = 16
PIXELS = 32 * SIZE**2


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peers, "CHUNK_PIXELS", 8 * SIZE**2)


@pytest.mark.parametrize("name", [OURS, PLAIN, EAGER, COMPLEX])
def test_contestant_draws_the_reference_pictures(name: str) -> None:
    drawn, _ = cpu_peers.contestants(SIZE)
    shares, allowed = cpu_peers.gate(SIZE, {name: drawn[name]}, PIXELS)
    assert shares[name] <= allowed < 0.01


@pytest.mark.slow
def test_compiled_contestant_draws_the_reference_pictures() -> None:
    drawn, absent = cpu_peers.contestants(SIZE)
    if COMPILED in absent:
        pytest.skip(absent[COMPILED])
    shares, allowed = cpu_peers.gate(SIZE, {COMPILED: drawn[COMPILED]}, PIXELS)
    assert shares[COMPILED] <= allowed


def test_gate_refuses_pictures_of_another_stream() -> None:
    drawn, _ = cpu_peers.contestants(SIZE)
    late = Contestant(draw=lambda count: np.roll(drawn[PLAIN].draw(count), 1, axis=0))
    with pytest.raises(ParityError, match="plain Numba differs from the reference"):
        cpu_peers.gate(SIZE, {PLAIN: late}, PIXELS)


def test_turns_are_whole_chunks_and_every_asked_picture_is_drawn() -> None:
    asked = []

    def draw(count: int) -> np.ndarray:
        asked.append(count)
        for _ in range(count):
            sum(range(2000))
        return np.zeros((count, 3, SIZE, SIZE), np.uint8)

    rates = cpu_peers.race({"x": Contestant(draw=draw, chunk=24)}, rounds=3, seconds=0.02)
    assert all(count % 24 == 0 for count in asked)
    assert asked[-4:] == [asked[-1]] * 4
    assert len(rates["x"]) == 3


def test_command_writes_its_figures(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(cpu_peers.shutil, "which", lambda name: None)
    monkeypatch.setattr(cpu_peers, "CHECKED_PIXELS", PIXELS)
    monkeypatch.setattr(cpu_peers.torch, "set_num_threads", lambda count: None)
    path = tmp_path / "peers.json"
    cpu_peers.main(["--sizes", str(SIZE), "--rounds", "1", "--seconds", "0.001", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["absent"] == {COMPILED: "no C++ compiler on the path"}
    assert {speed["name"] for speed in figures["speeds"]} == {OURS, PLAIN, EAGER, COMPLEX}
    mine = next(speed for speed in figures["speeds"] if speed["name"] == OURS)
    for speed in figures["speeds"]:
        assert speed["ratio"] == pytest.approx(mine["per_core_second"] / speed["per_core_second"])
    shown = capsys.readouterr().out
    assert "absent: torch.compile (no C++ compiler on the path)" in shown
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_published_renderers_join_at_their_own_size_only() -> None:
    assert cpu_peers.others(SIZE) == {}
    joined = cpu_peers.others(256)
    assert set(joined) == {cpu_peers.IFS, cpu_peers.FILLING, cpu_peers.TUNED} <= set(cpu_peers.BARS)
    for contestant in joined.values():
        pictures = contestant.draw(2)
        assert pictures.shape == (2, 3, 256, 256) and len({each.tobytes() for each in pictures}) == 2


def test_a_code_that_breaks_the_method_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = cpu_peers.ifs_renderer.Code(maps=3.0 * cpu_peers.ifs_renderer.SIERPINSKI.maps)
    monkeypatch.setattr(cpu_peers, "CODES", 1)
    monkeypatch.setattr(cpu_peers.ifs_renderer, "contractive_code", lambda random: wide)
    with pytest.raises(cpu_peers.ifs_renderer.WrongOrbitError, match="singular value is 1.5"):
        cpu_peers.others(256)


@pytest.mark.parametrize(
    "name, rate, ratio, missed",
    [
        (OURS, 420.0, 1.0, False),
        (OURS, 419.0, 1.0, True),
        (PLAIN, 28.0, 15.0, False),
        (cpu_peers.IFS, 200.0, 2.1, True),
    ],
)
def test_the_table_says_which_aim_is_missed(name: str, rate: float, ratio: float, missed: bool) -> None:
    shares = (None, None) if name == cpu_peers.IFS else (0.0005, 0.001)
    speed = cpu_peers.Speed(
        size=256, name=name, per_core_second=rate, ratio=ratio, differing=shares[0], allowed=shares[1], each=(rate,)
    )  # fmt: skip
    line = cpu_peers.table_text([speed], {}).splitlines()[1]
    assert line.endswith("missed") == missed and ("other pictures" in line) == (name == cpu_peers.IFS)


def test_ours_allocates_as_often_for_one_picture_as_for_a_thousand() -> None:
    from numba.core.runtime import _nrt_python, rtsys

    stream = cpu_peers.peer_stream(SIZE)
    stream.generate(range(1))
    _nrt_python.memsys_enable_stats()
    taken = []
    for count in (1, 10, 1000):
        before = rtsys.get_allocation_stats()
        batch = stream.generate(range(count))
        after = rtsys.get_allocation_stats()
        assert after.alloc - before.alloc == after.free - before.free and len(batch) == count
        taken.append(after.alloc - before.alloc)
    _nrt_python.memsys_disable_stats()
    assert taken[0] > 0 and len(set(taken)) == 1
