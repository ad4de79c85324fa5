"""The loop of ALAE: what goes on behind a stop, on two ranks, compiled, and in a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

import torch._functorch.config as functorch
from fractal_streams.recipes import checkpoint
from fractal_streams.recipes.alae import adversarial_loop
from fractal_streams.recipes.alae.adversarial_loop import AdversarialLoop
from fractal_streams.recipes.alae.compiled import CompiledPenalty
from fractal_streams.recipes.alae.growth import Growth
from fractal_streams.recipes.loop import Record
from small_alae import small_run, weights_of
from torch import Tensor, nn

from fractal_streams.errors import InvalidValueError

PROGRAM = Path(__file__).parents[1] / "small_alae.py"
GROWTH = Growth(first=1, last=2, fade=12, stable=8)
WHOLE: dict[str, Any] = {
    "names": ("latent_infonce", "patch_critic", "hessian"), "growth": GROWTH, "edge": 16, "batch_size": 4,
    "num_steps": 8, "record_every": 1, "ema": 0.7, "rules": {"r1_every": 4, "separate": True},
}  # fmt: skip
"""A head, a critic, lazy terms, an average, and a level that begins with step 2 and is blended in until step 5."""


def state(loop: AdversarialLoop) -> dict[str, Tensor]:
    """All that a run goes on from: weights, buffers, averages, moments."""
    average: Any = loop.average
    found = {f"network.{name}": value for name, value in loop.network.state_dict().items()}
    found |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for name, part in loop.updates.optimisers.parts.items():
        for number, kept in part.state_dict()["state"].items():
            found |= {f"{name}.{number}.{key}": value for key, value in kept.items()}
    return found


def told(records: list[Record]) -> list[Any]:
    return [(record.step, record.loss, sorted(record.terms.items())) for record in records]


@pytest.fixture(scope="module")
def straight() -> tuple[AdversarialLoop, list[Record]]:
    loop = small_run(**WHOLE)
    return loop, list(loop)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_run_is_the_uninterrupted_one(stop: int, straight: Any, tmp_path: Path) -> None:
    """Bit for bit, in the middle of a blend and of the steps between two terms that are not told each time."""
    first = small_run(**WHOLE)
    for record in first:
        if record.step == stop:
            first.save(tmp_path)
            break
    later = small_run(**WHOLE)
    assert later.resume(tmp_path) and later.step == stop
    assert later.updates.model.level == 2 and later.updates.model.blending == (stop == 3)
    assert later.averaged.level == 2 and torch.equal(later.averaged.blend, later.updates.model.blend)
    records = list(later)
    whole, rows = straight
    ends, expected = state(later), state(whole)
    assert ends.keys() == expected.keys() and len(ends) > 200
    assert [name for name, value in ends.items() if not torch.equal(value, expected[name])] == []
    assert repr(told(records)) == repr(told(rows[stop:]))  # a term that never was due is no number on both sides
    assert any(name.endswith("mean_code") for name in ends) and bool(whole.updates.model.mean_code.any())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    small: dict[str, Any] = {"num_steps": 1, "record_every": 1, "batch_size": 4}
    loop = small_run(**small)
    list(loop)
    loop.save(tmp_path)
    with pytest.raises(InvalidValueError, match="seed"):
        small_run(**small, seed=1).resume(tmp_path)
    for change in ({"names": ("latent_infonce",)}, {"rules": {"separate": True}}, {"edge": 16}):
        other = small_run(**small, **change)
        with pytest.raises(InvalidValueError):
            other.resume(tmp_path)
        if "edge" not in change:  # it is part of another's by then
            with pytest.raises(InvalidValueError, match="half done"):
                list(other)
    assert small_run(**small).resume(tmp_path)
    assert not small_run(**small).resume(tmp_path / "none")


def test_what_a_step_of_several_updates_can_not_do_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="accumulation=2"):
        small_run(accumulation=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it, and hides the warning
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_networks_train_as_plain_ones(backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second makes graphs of a forward and its backward, which terms of other networks go through twice."""
    compiled: list[str] = []
    compile_, function_ = nn.Module.compile, torch.compile

    def traced(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(self).__name__)
        compile_(self, *args, backend=backend, **kwargs)

    def made_of(function: Any, **kwargs: Any) -> Any:
        if "backend" not in kwargs:  # networks have told theirs
            compiled.append(function.__name__)
        return function_(function, **{"backend": backend, **kwargs})

    monkeypatch.setattr(nn.Module, "compile", traced)
    monkeypatch.setattr(torch, "compile", made_of)
    monkeypatch.setattr(adversarial_loop, "CompiledPenalty", partial(CompiledPenalty, backend=backend))
    names = ("latent_infonce", "l1", "laplacian", "feature_matching")
    asked: dict[str, Any] = {"names": names, "num_steps": 2, "batch_size": 4, "ema": 0.5}
    with functorch.patch(donated_buffer=True):
        check_compiled(backend, asked, tmp_path)
    assert compiled == ["Generator", "Encoder", "laplacian_distance", "feature_distance"]  # each once in two steps


def check_compiled(backend: str, asked: dict[str, Any], folder: Path) -> None:
    loop = small_run(**asked, compile=True)
    (made,) = loop
    plain = small_run(**asked)
    (record,) = plain
    assert made.loss == pytest.approx(record.loss, rel=1e-2)
    if backend == "eager":  # others round otherwise, and Adam's first steps are as long for any gradient
        assert made.terms == record.terms
        ends = weights_of(loop.updates)
        assert all(torch.equal(ends[key], weight) for key, weight in weights_of(plain.updates).items())
    loop.save(folder)
    assert small_run(**asked).resume(folder)
    with loop.evaluating():
        assert loop.averaged.encode(torch.zeros(3, 3, 8, 8)).isfinite().all()


def started(folder: Path, settings: dict[str, Any], ranks: int = 1) -> list[subprocess.Popen[bytes]]:
    """A training in processes of its own, one for each rank, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    own = {**os.environ, **(world if ranks > 1 else {"OMP_NUM_THREADS": str(torch.get_num_threads())})}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), json.dumps(settings)],
            env={**own, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})},
        )
        for rank in range(ranks)
    ]


@pytest.mark.slow
def test_two_ranks_come_to_the_weights_of_one(tmp_path: Path) -> None:
    """Draws follow from the samples there, and nothing from the rank; all terms are means over pictures."""
    asked = {"alike": True, "num_steps": 4, "record_every": 2, "rules": {"mixing": 0.0}, "names": ["l1"]}
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        for process in started(folder, asked, ranks):
            assert process.wait(300) == 0
        found.append([json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)])
    ((alone,), (first, second)) = found
    assert first == second
    assert [loss for _, loss in first["records"]] == pytest.approx([loss for _, loss in alone["records"]], rel=1e-5)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(torch.tensor(first["weights"][name]), torch.tensor(weight), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "names": ["latent_infonce"], "num_steps": 4000, "record_every": 3, "checkpoint_every": 3, "ema": 0.9,
        "batch_size": 4,
    }  # fmt: skip
    (process,) = started(tmp_path, asked)
    try:
        limit = time.monotonic() + 240
        while checkpoint.latest(tmp_path) is None and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.2)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    later, straight = small_run(**asked), small_run(**asked)
    assert later.resume(tmp_path) and later.step >= 3
    end = later.step + 3
    for loop in (later, straight):
        next(record for record in loop if record.step == end)
    ends, expected = state(later), state(straight)
    assert [name for name, value in ends.items() if not torch.equal(value, expected[name])] == []
