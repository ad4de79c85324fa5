"""A second process compiles nothing, and the benchmark of it sees a process that does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fractal_streams.recipes.benchmarks import first_image
from fractal_streams.recipes.benchmarks.first_image import PROGRAM, STAGES, Process, WrongStartError

COUNTED = """
import numba.core.event as event
compiled = event.RecordingListener()
event.register("numba:compile", compiled)
{program}
names = sorted({{each.data["dispatcher"].py_func.__name__ for _, each in compiled.buffer if each.is_start}})
print(json.dumps(names))
"""


def compiled_by(folder: Path, program: str = PROGRAM) -> list[str]:
    """Names of the functions that Numba compiled in a fresh process with its caches in a folder."""
    caches = {name: str(folder / name) for name in first_image.CACHES}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED.format(program=program), "cpu", "16", str(folder / "picture")],
        env={**os.environ, **caches}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    cold = compiled_by(tmp_path)
    assert {"kernel", "_draw", "philox_words", "orbit"} <= set(cold)
    assert compiled_by(tmp_path) == []


@pytest.mark.slow
def test_another_stream_compiles_its_kernel_and_nothing_that_draws(tmp_path: Path) -> None:
    compiled_by(tmp_path)
    other = compiled_by(tmp_path, PROGRAM.replace("seed-readme", "mandelbrot"))
    assert "kernel" in other and not {"_draw", "philox_words"} & set(other)


def process(**changed: object) -> Process:
    return replace(Process(wall=(0.1,) * 5, cpu=(0.1,) * 5, files=3, picture=b"right"), **changed)  # type: ignore[arg-type]


def test_the_gate_stops_other_pictures_and_what_is_neither_cold_nor_warm() -> None:
    cold, warm = process(), process(files=0)
    first_image.check(b"right", [cold, cold], [warm, warm])
    with pytest.raises(WrongStartError, match="1 of 4 processes gave another picture"):
        first_image.check(b"right", [cold, process(picture=b"wrong")], [warm, warm])
    with pytest.raises(WrongStartError, match="added nothing"):
        first_image.check(b"right", [cold, warm], [warm, warm])
    with pytest.raises(WrongStartError, match="second process added 3 files"):
        first_image.check(b"right", [cold, cold], [warm, cold])


def test_rows_are_medians_and_stages_add_up() -> None:
    processes = [process(wall=(0.0, 1.0, 0.0, k, 0.0), cpu=(0.0, 0.5, 0.0, k, 0.0)) for k in (1.0, 9.0, 2.0)]
    row = first_image.medians("cpu", 32, False, processes)
    assert row.total == 3.0 and row.total_cpu == 2.5 and row.totals == (2.0, 10.0, 3.0)
    assert row.wall == (0.0, 1.0, 0.0, 2.0, 0.0) and row.files == 3 and len(row.wall) == len(STAGES)


@pytest.mark.parametrize("total, warm, device, shown", [
    (2.0, True, "cpu", "aim 2 s"), (2.1, True, "cpu", "missed"), (9.0, False, "cpu", "8"), (9.0, True, "cuda:0", "8"),
])  # fmt: skip
def test_the_aim_is_of_second_processes_on_a_cpu(total: float, warm: bool, device: str, shown: str) -> None:
    row = first_image.medians(device, 32, warm, [process(wall=(total, 0, 0, 0, 0), files=8)])
    assert first_image.table_text([row]).rstrip().endswith(shown)


def test_a_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_image, "PROGRAM", "raise SystemExit('no such device here')")
    with pytest.raises(WrongStartError, match="cpu at 16x16 failed: no such device here"):
        first_image.run("cpu", 16, tmp_path)


def test_the_command_writes_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_image, "gate", lambda *asked: None)  # `throughput`'s, and tested there
    starts = iter(range(10))
    right = first_image.rendered("cpu", 16)

    def run(device: str, size: int, folder: Path) -> Process:
        return process(picture=right, files=5 * (next(starts) % 2 == 0))

    monkeypatch.setattr(first_image, "run", run)
    path = tmp_path / "first.json"
    first_image.main(["--devices", "cpu", "--sizes", "16", "--pairs", "2", "--json", str(path)])
    written, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert [(row["device"], row["warm"], row["files"]) for row in written["starts"]] == [
        ("cpu", False, 5),
        ("cpu", True, 0),
    ]
    assert len(written["starts"][0]["totals"]) == 2 and next(starts) == 6  # one pair is not counted
    assert all(stage in shown for stage in STAGES) and not written["absent"]


@pytest.mark.slow
def test_one_process_pair_is_run_for_real(tmp_path: Path) -> None:
    cold, warm = (first_image.run("cpu", 16, tmp_path) for _ in range(2))
    first_image.check(first_image.rendered("cpu", 16), [cold], [warm])
    assert cold.files >= 2 and len(cold.wall) == len(cold.cpu) == len(STAGES)
