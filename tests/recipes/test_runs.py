"""Runs in folders: those done are read, those stopped go on, others are refused; steps in equal ratios."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("rich")

from fractal_streams.recipes.loop import open_accelerator
from fractal_streams.recipes.runs import CurveSettings, Run, all_finished, logarithmic_steps

from fractal_streams.errors import InvalidValueError

CPU = open_accelerator(CurveSettings(device="cpu"))


def counted(calls: list[str], name: str, factor: int = 1, fails: bool = False) -> Run:
    """A run that leaves two records, and tells how often it was trained."""

    def train(folder: Path, tell: Callable[[int, str], None]) -> dict[str, Any]:
        calls.append(name)
        (folder / "records.csv").write_text(f"step,loss\n1,{2 * factor}.0\n2,{factor}.0\n")
        if fails:
            raise RuntimeError("stopped")
        tell(2, "done")
        return {"calls": len(calls)}

    return Run(name=name, steps=2, decisive={"factor": factor, "sizes": (1, 2)}, train=train)


def test_a_run_that_is_done_is_read_and_not_done_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = all_finished(tmp_path, [counted(calls, "a"), counted(calls, "b", 3)], CPU, quiet=True)
    again = all_finished(
        tmp_path, [counted(calls, "a"), counted(calls, "c", 5), counted(calls, "b", 3)], CPU, quiet=True
    )
    assert calls == ["a", "b", "c"]
    assert [each.facts["calls"] for each in again] == [1, 3, 2]
    assert [[row["loss"] for row in each.rows] for each in again] == [[2.0, 1.0], [10.0, 5.0], [6.0, 3.0]]
    assert [again[0], again[2]] == first


def test_a_run_that_was_stopped_is_not_done(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(RuntimeError, match="stopped"):
        all_finished(tmp_path, [counted(calls, "a"), counted(calls, "b", fails=True)], CPU, quiet=True)
    assert not (tmp_path / "b" / "run.json").exists()
    all_finished(tmp_path, [counted(calls, "a"), counted(calls, "b")], CPU, quiet=True)
    assert calls == ["a", "b", "b"]


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    calls: list[str] = []
    all_finished(tmp_path, [counted(calls, "b")], CPU, quiet=True)
    with pytest.raises(InvalidValueError, match="factor=1, not 2"):
        all_finished(tmp_path, [counted(calls, "a"), counted(calls, "b", 2)], CPU, quiet=True)
    assert calls == ["b"]


@pytest.mark.parametrize("text", ["{", json.dumps({"settings": {}}), "[]", "3"])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(text)
    with pytest.raises(InvalidValueError, match=r"run\.json can't be read: remove"):
        all_finished(tmp_path, [counted([], "a")], CPU, quiet=True)


@pytest.mark.parametrize("num_steps, points", [(1, 2), (2, 50), (10_000, 50), (6000, 20)])
def test_steps_lie_in_equal_ratios(num_steps: int, points: int) -> None:
    steps = sorted(logarithmic_steps(num_steps, points))
    assert steps[0] == 1 and steps[-1] == num_steps and len(steps) <= points
    ratio = num_steps ** (1 / (points - 1))
    for before, after in zip(steps, steps[1:], strict=False):
        assert after - before == 1 or (before - 0.5) * ratio - 0.5 <= after <= (before + 0.5) * ratio + 0.5


def test_a_curve_is_evaluated_there_and_every_so_often() -> None:
    settings = CurveSettings(num_steps=100, points=5, eval_once_every=40, record_every=50)
    evaluated = [step for step in range(1, 101) if settings.evaluates(step)]
    assert evaluated == [1, 3, 10, 32, 40, 80, 100]
    assert all(settings.records(step) for step in evaluated)
    assert [step for step in range(1, 101) if settings.records(step) and not settings.evaluates(step)] == [50]
