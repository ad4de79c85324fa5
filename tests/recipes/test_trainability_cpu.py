"""The benchmark of trainers on the CPU: its peer trains what the reference trains, and a wrong one is caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.benchmarks import trainability_cpu
from fractal_streams.recipes.benchmarks.trainability_cpu import WrongOutcomeError, batched, gate, step

from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer

SINGLE = PUBLISHED["single"].experiment.replace(steps=30)


def test_the_peer_trains_what_the_reference_trains_in_chunks_of_any_size() -> None:
    for chunk in (3, 64):
        gate("PyTorch", batched(chunk), SINGLE)
    points = np.array(trainability_cpu.STABLE)
    rows = PUBLISHED["tanh"].experiment.replace(steps=5)
    np.testing.assert_allclose(
        batched(4)(rows, points).measure, ReferenceTrainer().train(rows, points).measure, rtol=1e-9
    )


def test_the_gate_stops_a_peer_that_trains_something_else() -> None:
    def faster(x: Any, *rest: Any) -> Any:
        return step(1.001 * x, *rest)

    with pytest.raises(WrongOutcomeError, match="peer"):
        gate("peer", batched(8, faster), SINGLE)


@pytest.mark.slow
def test_every_contestant_has_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: Any, **settings: Any) -> Any:
        def fails(*args: Any) -> Any:
            raise RuntimeError("no compiler here")

        return fails

    monkeypatch.setattr(trainability_cpu.torch, "compile", absent)
    for name, value in (("SIDES", {"single": 4}), ("STEPS", {"single": 30}), ("CHUNKS", {"single": (4, 16)})):
        monkeypatch.setattr(trainability_cpu, name, value)
    path, threads = tmp_path / "figures.json", torch.get_num_threads()
    trainability_cpu.main(["--json", str(path), "--rounds", "2"])
    torch.set_num_threads(threads)
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    shown = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path] and len(rows) == 5 and all(name in shown for name in rows)
    assert rows["torch.compile, batched"]["reason"] == "RuntimeError: no compiler here"
    assert rows["PyTorch, batched"]["times"] == 1.0 and rows["PyTorch, batched"]["chunk"] in (4, 16)
    assert all(row["rate"] > 0 and len(row["each"]) == 2 for row in rows.values() if not row["reason"])
