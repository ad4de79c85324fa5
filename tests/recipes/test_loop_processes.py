"""The training loop on several ranks, in processes that are killed, and compiled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

from accelerate.utils import TorchDynamoPlugin
from fractal_streams.recipes import checkpoint, loop as loops
from fractal_streams.recipes.loop import Loop
from small_training import noisy, plain, same, small_loop, sums, weights
from warm import Warm

from fractal_streams.errors import DeviceError, InvalidValueError

PROGRAM = Path(__file__).parents[1] / "small_training.py"


def started(folder: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A training in a process of its own."""
    own = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # others give other sums
    return subprocess.Popen([sys.executable, str(PROGRAM), str(folder), json.dumps(settings)], env=own)


def trained(warm: Warm, folder: Path, settings: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """What each rank of a training saw, in processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}

    def run(rank: int) -> Any:
        own = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        return warm.run([str(PROGRAM), str(folder), json.dumps(settings)], cwd=folder, env=own, timeout=120)

    with ThreadPoolExecutor(ranks) as pool:
        for done in pool.map(run, range(ranks)):
            assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def finished(loop: Loop) -> Loop:
    for _ in loop:
        pass
    return loop


def test_two_ranks_train_on_the_same_batches_as_one(tmp_path: Path, warm: Warm) -> None:
    """In two parts each: the samples of a step, the losses, the weights; and one rank resumes what two have saved."""
    asked = {"accumulation": 2, "ema": 0.8, "clip": 1.0, "record_every": 1}
    ranks = trained(warm, tmp_path, asked, 2)
    for step in range(12):
        parts = [index for rank in ranks for part in rank["indices"][2 * step : 2 * step + 2] for index in part]
        assert sorted(parts) == list(range(8 * step, 8 * step + 8))
    assert [len(part) for part in ranks[1]["indices"]] == [2] * 24
    assert ranks[0]["records"] == ranks[1]["records"] and ranks[0]["sums"] == ranks[1]["sums"]
    alone = small_loop(**asked)
    losses = [record.loss for record in alone]
    assert [loss for _, loss in ranks[0]["records"]] == pytest.approx(losses, rel=1e-5)
    assert ranks[0]["sums"] == pytest.approx(sums(alone), abs=1e-4)
    later = small_loop(**asked)
    assert later.resume(tmp_path) and later.step == 12 and sums(later) == ranks[0]["sums"]
    assert later.loader.position == 96 and int(later.average.state_dict()["n_averaged"]) == 12


@pytest.mark.parametrize("steps, apart", [([-1, 4], True), ([4, 8], True), ([4, 4], False)])
def test_ranks_that_find_other_checkpoints_are_refused(steps: list[int], apart: bool, tmp_path: Path) -> None:
    """As on two hosts whose folders have one name; else one would train on while the other waits for it."""
    first = small_loop(num_steps=4)
    if steps[0] > 0:
        finished(first).save(tmp_path)
    loop = small_loop(num_steps=4)
    gathered: list[int] = []

    def gather(own: Any) -> Any:
        gathered.extend(own.tolist())
        return torch.tensor(steps)

    loop.accelerator = SimpleNamespace(  # type: ignore[assignment]
        num_processes=2, device=loop.accelerator.device, gather=gather, scaler=None
    )
    with pytest.raises(InvalidValueError, match="share a folder") if apart else nullcontext():
        loop.resume(tmp_path)
    assert gathered == steps[:1] and loop.step == (0 if apart else 4)


@pytest.mark.slow
def test_ranks_have_the_same_buffers_whenever_a_record_is_told(tmp_path: Path, warm: Warm) -> None:
    """A network with statistics of batches, saved by one rank and continued by two, and by one."""
    asked = {"model": "noisy", "num_steps": 8, "record_every": 2, "checkpoint_every": 4, "ema": 0.5}
    first = small_loop(noisy, num_steps=8, record_every=4, ema=0.5)
    next(iter(first))
    first.save(tmp_path)
    ranks = trained(warm, tmp_path, asked, 2)
    assert ranks[0]["sums"] == ranks[1]["sums"]
    seen = [index for rank in ranks for part in rank["indices"] for index in part]
    assert sorted(seen) == list(range(32, 64))
    last = small_loop(noisy, num_steps=8, ema=0.5)
    assert last.resume(tmp_path) and last.step == 8 and ranks[0]["sums"] == sums(last)


def killed(folder: Path, settings: dict[str, Any], pause: float = 0.0) -> int:
    """The step of the checkpoint that a training leaves that is killed so many seconds behind its first new one."""
    before = checkpoint.latest(folder)
    process = started(folder, settings)
    try:
        limit = time.monotonic() + 120
        while checkpoint.latest(folder) == before and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(pause)
        assert process.poll() is None, "it was done before it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = checkpoint.latest(folder)
    assert last is not None
    return int(last.name.split("-")[1])


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"num_steps": 4000, "record_every": 5, "checkpoint_every": 5, "ema": 0.9}
    step = killed(tmp_path, {**asked, "model": "noisy"})
    later, straight = small_loop(noisy, **asked), small_loop(noisy, **asked)
    assert later.resume(tmp_path) and later.step == step >= 5
    for loop in (later, straight):
        for record in loop:
            if record.step >= step + 10:
                break
    assert later.step == straight.step == step + 10 and same(weights(later), weights(straight))
    assert same(later.average.state_dict(), straight.average.state_dict())


@pytest.mark.slow
def test_a_run_killed_at_random_times_gives_the_same_weights(tmp_path: Path) -> None:
    """Again and again, at any moment of a step or of a save, until it is done."""
    asked: dict[str, Any] = {"num_steps": 3000, "record_every": 1, "checkpoint_every": 1, "ema": 0.9}
    chosen = random.Random(7)
    steps = [killed(tmp_path, {**asked, "model": "noisy"}, chosen.uniform(0.0, 1.0)) for _ in range(6)]
    assert steps == sorted(set(steps)) and 0 < steps[-1] < 3000
    end = steps[-1] + 5
    later, straight = small_loop(noisy, **asked), small_loop(noisy, **asked)
    assert later.resume(tmp_path) and later.step == steps[-1]
    for loop in (later, straight):
        next(record for record in loop if record.step == end)
    assert same(weights(later), weights(straight))
    assert same(later.average.state_dict(), straight.average.state_dict())
    later.save(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [f"step-{end:09d}"]


def compiled_by(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "TorchDynamoPlugin", lambda **_: TorchDynamoPlugin(backend=backend))


def check_compiled(folder: Path) -> None:
    """A compiled model trains as a plain one, keeps its names, and either goes on from the other's checkpoint."""
    loop = small_loop(plain, ema=0.5, compile=True)
    assert type(loop.model).__name__ == "OptimizedModule"
    for record in loop:
        with loop.evaluating() as model:
            model(torch.randn(5, 3, 8, 8))
        if record.step == 8:
            loop.save(folder)
    straight = finished(small_loop(plain, ema=0.5))
    assert list(loop.network.state_dict()) == list(straight.network.state_dict()) == list(plain().state_dict())
    for name, value in weights(straight).items():
        assert torch.allclose(weights(loop)[name], value, rtol=0, atol=1e-4)
    later = small_loop(plain, ema=0.5)
    assert later.resume(folder) and later.step == 8
    assert all(
        torch.allclose(value, weights(straight)[name], rtol=0, atol=1e-4)
        for name, value in weights(finished(later)).items()
    )


def test_a_compiled_model_keeps_its_names_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by("eager", monkeypatch)
    check_compiled(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_a_model_compiled_by_inductor_trains_as_a_plain_one(tmp_path: Path) -> None:
    check_compiled(tmp_path)


def test_a_full_memory_tells_what_to_do() -> None:
    def loss(model: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="full at batch_size=8, accumulation=2: double accumulation"):
        finished(small_loop(loss=loss, accumulation=2))
