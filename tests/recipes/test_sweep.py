"""The sweep: what is trained, by whom, what of it stays when it is stopped, and what it says of transfer."""

from __future__ import annotations

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from fractal_streams.recipes import sweep, sweep_worker
from fractal_streams.recipes.sweep import Slot, SweepSettings, environments, row_of
from fractal_streams.recipes.sweep_plot import Row, best_rates, draw_sweep, mean_losses, sentence, transfers
from fractal_streams.recipes.vit import ViTSettings
from PIL import Image

from fractal_streams.errors import InvalidValueError

TINY: dict[str, Any] = {
    "widths": (8, 16), "head_dim": 8, "rates": (0.001, 0.02), "seeds": (0,), "parallel": 2, "depth": 1,
    "image_size": 8, "num_steps": 20, "batch_size": 16, "warmup_steps": 2, "final_samples": 64, "base_width": 8,
    "device": "cpu", "quiet": True,
}  # fmt: skip
ECHO = """
import json, sys, os
for line in sys.stdin:
    told = json.loads(line)
    with open("calls.txt", "a") as file:
        file.write(f"{os.getpid()} {told['lr_base']}\\n")
    if told["lr_base"] == 2.0:
        sys.exit(7)
    said = {1.0: "trained", 3.0: "failed", 4.0: "diverged"}[told["lr_base"]]
    print(json.dumps({"outcome": said, "error": "" if said == "trained" else "as told"}), flush=True)
    if said == "failed":
        sys.exit(1)
"""


def tiny(folder: Path, **asked: Any) -> SweepSettings:
    return SweepSettings(**{**TINY, "folder": folder, **asked})


def table(losses: dict[int, dict[float, list[float | None]]]) -> list[Row]:
    return [
        Row(width=width, rate=rate, seed=seed, outcome="diverged" if loss is None else "trained", test_loss=loss)
        for width, row in losses.items()
        for rate, values in row.items()
        for seed, loss in enumerate(values)
    ]


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has slots train here; the folders of what they trained."""
    trained: list[str] = []

    def answer(slot: Slot, asked: Any) -> dict[str, str]:
        trained.append(asked.folder.name)
        told = {item.name: getattr(asked, item.name) for item in fields(asked)}
        return sweep_worker.outcome(json.loads(json.dumps(told, default=str)))

    monkeypatch.setattr(Slot, "answer", answer)
    return trained


def test_a_sweep_trains_every_run_once_and_tells_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = in_this_process(monkeypatch)
    first = sweep.run(tiny(tmp_path, rates=(0.02, 1e30), parallel=1))
    assert len(set(trained)) == len(trained) == 4
    outcomes = {(row.width, row.rate): row.outcome for row in first.rows}
    assert outcomes == {
        (8, 0.02): "trained", (16, 0.02): "trained", (8, 1e30): "diverged", (16, 1e30): "diverged",
    }  # fmt: skip
    assert first.best == {8: 0.02, 16: 0.02} and first.transfers is True
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["width"], row["outcome"]) for row in rows] == [
        ("8", "trained"), ("8", "diverged"), ("16", "trained"), ("16", "diverged"),
    ]  # fmt: skip
    assert float(rows[0]["test_loss"]) == first.rows[0].test_loss
    assert json.loads((tmp_path / "sweep.json").read_text())["sentence"] == first.sentence
    assert Image.open(tmp_path / "sweep.png").size[0] > 400
    assert sweep.run(tiny(tmp_path, rates=(0.02, 1e30), parallel=1)) == first
    assert len(trained) == 4
    with pytest.raises(InvalidValueError, match="num_steps=20, not 30"):
        sweep.run(tiny(tmp_path, num_steps=30))


def test_rates_and_heads_of_a_run(tmp_path: Path) -> None:
    runs = tiny(tmp_path, seeds=(0, 1), widths=(8, 16), optimizer_type="sgd", parametrization="standard").runs()
    assert len({run.folder for run in runs}) == len(runs) == 2 * 2 * 2
    assert [run.embed_dim for run in runs] == [16] * 4 + [8] * 4
    for run in runs:
        assert run.embed_dim // run.num_heads == 8 and run.lr_base == run.lr_embedding
        assert (run.optimizer_type, run.parametrization, run.depth, run.num_steps) == ("sgd", "standard", 1, 20)
    with pytest.raises(InvalidValueError, match=r"head_dim=8, got \[12\]"):
        tiny(tmp_path, widths=(8, 12)).runs()


def test_a_process_trains_on_until_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "WORKER", ("-c", ECHO))
    runs = tiny(tmp_path, widths=(8,), rates=(1.0, 4.0, 2.0, 3.0), seeds=(0,)).runs()
    line: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for each in [*runs, runs[0]]:
        line.put(each)
    slot = Slot(dict(os.environ), line, tmp_path / "worker.log")
    slot.start()
    slot.join(60)
    calls = [text.split() for text in (tmp_path / "calls.txt").read_text().splitlines()]
    assert [rate for _, rate in calls] == ["1.0", "4.0", "2.0", "3.0", "1.0"]
    first, second, third = (calls[place][0] for place in (0, 3, 4))
    assert [process for process, _ in calls] == [first, first, first, second, third] and len(
        {first, second, third}
    ) == 3
    rows = [row_of(run) for run in runs]
    assert [row.outcome for row in rows] == ["not trained", "diverged", "failed", "failed"]
    assert "ended with 7" in rows[2].error and rows[3].error == "as told"
    with pytest.raises(ProcessLookupError):
        os.kill(int(third), 0)


def test_an_ended_slot_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "WORKER", ("-c", "import time; time.sleep(600)"))
    line: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for each in tiny(tmp_path).runs():
        line.put(each)
    slot = Slot(dict(os.environ), line, tmp_path / "worker.log")
    slot.start()
    while slot.worker is None:
        time.sleep(0.01)
    worker = slot.worker
    slot.end()
    slot.join(60)
    assert not slot.is_alive() and worker.poll() == -signal.SIGTERM
    assert not list(tmp_path.glob("runs/*/failure.json"))


def test_processes_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments("auto", 5)] == ["0", "1", "0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments("cuda", 3)] == ["3", "5", "3"]
    assert environments("cpu", 1)[0]["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_the_best_rate_has_the_least_mean_over_seeds() -> None:
    rows = table({8: {0.1: [1.0, 1.0], 0.2: [0.5, 1.4], 0.3: [0.1, None]}, 16: {0.1: [None, None]}})
    assert mean_losses(rows)[8] == {0.1: 1.0, 0.2: 0.95, 0.3: float("inf")}
    assert best_rates(rows) == {8: 0.2}
    assert transfers(rows) is None and "Fewer than two" in sentence(rows)


@pytest.mark.parametrize(
    "best, moved, words",
    [
        ({8: 1, 16: 1, 32: 1}, True, "0.2 at every width: it transfers"),
        ({8: 1, 16: 2, 32: 2}, True, "neighbours on the grid"),
        ({8: 3, 16: 2, 32: 1}, False, "does not transfer"),
        ({8: 0, 16: 0, 32: 0}, True, "edge of the grid at width 8, 16, 32"),
    ],
)
def test_whether_a_rate_transfers(best: dict[int, int], moved: bool, words: str) -> None:
    grid = (0.1, 0.2, 0.4, 0.8, 1.6)
    losses: Any = {
        width: {rate: [1.0 + abs(place - index)] for index, rate in enumerate(grid)} for width, place in best.items()
    }
    assert transfers(table(losses)) is moved
    assert words in sentence(table(losses))


def test_the_sentence_tells_what_seeds_do_not() -> None:
    """A rate that is best by less than seeds differ is not better: figures of a real sweep of three widths."""
    real: Any = {
        64: {0.0005: [0.891, 0.867], 0.00125: [0.774, 0.885], 0.003: [1.228, 1.117]},
        128: {0.0005: [0.743, 0.777], 0.00125: [0.578, 0.722], 0.003: [1.038, 1.080]},
        256: {0.0005: [0.749, 0.762], 0.00125: [0.776, 0.765], 0.003: [0.891, 0.787]},
    }
    words = sentence(table(real))
    assert "That of width 64 costs width 256 0.015 nats" in words
    assert "within the spread of 2 seeds: 0.0005 and 0.00125 may be best at every width" in words
    sure = {width: {rate: [sum(each) / 2 + bit for bit in (0, 1e-3)] for rate, each in row.items()}
            for width, row in real.items()}  # fmt: skip
    assert "neighbours" in sentence(table(sure)) and "spread" not in sentence(table(sure))
    alone = {width: {rate: each[:1] for rate, each in row.items()} for width, row in real.items()}
    alone[64][0.0005] = [0.7]
    assert "One seed does not tell" in sentence(table(alone))
    wide = {
        8: {0.1: [1.0, 3.0], 0.2: [8.0, 9.0], 0.4: [1.5, 3.5]},
        16: {0.1: [1.5, 3.5], 0.2: [8.0, 9.0], 0.4: [1.0, 3.0]},
    }
    words = sentence(table(wide))  # type: ignore[arg-type]
    assert "moves with the width" in words and "it does not" not in words and "0.1 and 0.4 may" in words


def test_a_run_that_failed_says_nothing_of_its_rate() -> None:
    rows = table({8: {0.1: [2.0, 2.0], 0.2: [1.0, 1.0]}, 16: {0.1: [2.0, 2.0], 0.2: [1.0, 1.0]}})
    rows[2] = Row(width=8, rate=0.2, seed=0, outcome="failed", error="out of memory")
    assert best_rates(rows) == {8: 0.2, 16: 0.2}
    assert "1 of 8 runs are missing: sweep again" in sentence(rows)


def test_the_sentence_fits_below_the_plot(tmp_path: Path) -> None:
    grid = (0.1, 0.2, 0.4, 0.8, 1.6)
    draw_sweep(tmp_path / "plot.png", table({w: {r: [abs(r - w / 100), 0.0] for r in grid} for w in (8, 16, 90)}), "")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    words = (pixels < 128)[int(0.9 * len(pixels)) :].any(0).nonzero()[0]
    assert words.min() > 10 and words.max() < pixels.shape[1] - 10


def test_a_clip_to_nothing_is_refused(tmp_path: Path) -> None:
    for made in (ViTSettings, SweepSettings):
        with pytest.raises(InvalidValueError, match="clip"):
            made(clip=0.0, folder=tmp_path)


def children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def alive(process: int) -> bool:
    """Whether it runs: one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("ending, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sweep_that_is_ended_ends_its_children_and_goes_on(ending: signal.Signals, code: int, tmp_path: Path) -> None:
    words = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in {**TINY, "num_steps": 100}.items()
        if name != "quiet"
    ]
    call = [sys.executable, "-m", "fractal_streams.recipes.sweep", "--quiet", f"--folder={tmp_path}", *words]
    parent = subprocess.Popen(call)
    while not list(tmp_path.glob("runs/*/checkpoint/step-*")):
        assert parent.poll() is None
        time.sleep(0.02)
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.send_signal(ending)
    assert parent.wait(60) == code
    while any(alive(worker) for worker in workers):
        assert ending == signal.SIGKILL, "Ctrl-C waits for its children"
        time.sleep(0.02)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(done) < 4
    subprocess.run(call, check=True)
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [row["outcome"] for row in rows] == ["trained"] * 4
