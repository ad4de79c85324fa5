"""The journal: what it writes for each record, what a resumed run finds, its curves, and who else is told."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.recipes import journal as journals
from fractal_streams.recipes.journal import Journal, draw_curves, read_records
from fractal_streams.recipes.loop import Loop
from small_training import small_loop

from fractal_streams.errors import InvalidValueError, MissingExtraError, UnknownNameError


def journalled(folder: Path, loop: Loop, **settings: Any) -> list[Any]:
    """A training whose every second record is tested."""
    records = []
    with Journal(folder, loop, title="small", **{"quiet": True, **settings}) as journal:
        for record in loop:
            journal.write(record, {"test_loss": torch.tensor(2.5)} if record.step % 4 == 0 else {})
            records.append(record)
    return records


def test_each_record_is_a_row_that_is_read_as_it_was(tmp_path: Path) -> None:
    records = journalled(tmp_path / "made" / "here", small_loop(record_every=2))
    rows = read_records(tmp_path / "made" / "here")
    assert len(rows) == 6 and [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for record, row in zip(records, rows, strict=True):
        tested = {"test_loss": 2.5} if record.step % 4 == 0 else {}
        own = {name: getattr(record, name) for name in journals.COLUMNS}
        assert row == {**own, "accuracy": record.terms["accuracy"], **tested}
        assert type(row["samples"]) is int and type(row["loss"]) is float
    assert {each.name for each in (tmp_path / "made" / "here").iterdir()} == {"records.csv", "curves.png"}


def test_a_resumed_run_drops_the_rows_behind_its_checkpoint(tmp_path: Path) -> None:
    loop = small_loop(record_every=2)
    with pytest.raises(RuntimeError), Journal(tmp_path, loop, title="small", quiet=True) as journal:
        for record in loop:
            journal.write(record)
            if record.step == 6:
                loop.save(tmp_path / "checkpoint")
            if record.step == 10:
                raise RuntimeError("the power is gone")
    assert [row["step"] for row in read_records(tmp_path)] == [2, 4, 6, 8, 10]
    before = read_records(tmp_path)[:3]
    later = small_loop(record_every=3)
    assert later.resume(tmp_path / "checkpoint")
    journalled(tmp_path, later)
    rows = read_records(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 9, 12] and rows[:3] == before
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    journalled(tmp_path, small_loop(record_every=6))
    assert [row["step"] for row in read_records(tmp_path)] == [6, 12]


def test_a_record_is_appended_and_all_is_written_again_only_for_a_new_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a long run writes as much as it has records, not their square."""
    whole: list[Path] = []
    real = journals.whole_file
    monkeypatch.setattr(journals, "whole_file", lambda path, write: (whole.append(path), real(path, write)))
    records = journalled(tmp_path, small_loop(record_every=1))
    assert [path.name for path in whole] == ["records.csv", "records.csv", "curves.png"]
    rows = read_records(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13)) and [row["loss"] for row in rows] == [
        record.loss for record in records
    ]
    assert [row["step"] for row in rows if "test_loss" in row] == [4, 8, 12]


def test_a_row_that_a_kill_cut_is_dropped_and_one_that_failed_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = small_loop(record_every=2)
    with Journal(tmp_path, loop, title="small", quiet=True) as journal:
        records = iter(loop)
        journal.write(next(records))
        with (tmp_path / "records.csv").open("a") as file:
            file.write("1")  # of a row "12,96,..."
        assert [row["step"] for row in read_records(tmp_path)] == [2]

        def full(self: Any, row: Any) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
            patched.setattr(csv.DictWriter, "writerow", full)
            journal.write(next(records))
        journal.write(next(records))
    assert [row["step"] for row in read_records(tmp_path)] == [2, 4, 6]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(InvalidValueError, match="is a file: give the name of a folder"):
        Journal(tmp_path / "runs", small_loop(), title="small")


def test_a_run_that_is_stopped_tells_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = small_loop(record_every=1)
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, loop, title="small") as journal:
        for record in loop:
            journal.write(record)
            if record.step == 5:
                loop.save(tmp_path / "checkpoint")
            if record.step == 8:
                raise KeyboardInterrupt
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "small: stopped behind step 8; the same again goes on from step 5"
    later = small_loop()
    assert later.resume(tmp_path / "checkpoint") and later.saved == later.step == 5


@pytest.mark.parametrize("name", ["loss", "rate", "accuracy", "step"])
def test_a_figure_may_not_take_the_name_of_another(name: str, tmp_path: Path) -> None:
    loop = small_loop()
    said = pytest.raises(InvalidValueError, match=f"a record has '{name}' already")
    with Journal(tmp_path, loop, title="small", quiet=True) as journal, said:
        journal.write(next(iter(loop)), {name: 1.0})
    assert read_records(tmp_path) == []


@pytest.mark.parametrize("text", ["step,loss\n1,low\n", "loss\n0.5\n", "step,loss\n1,2,3\n"])
def test_other_records_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text(text)
    with pytest.raises(InvalidValueError, match=r"records.csv holds no records .*: move it away"):
        read_records(tmp_path)


def test_a_write_that_fails_leaves_the_rows_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalled(tmp_path, small_loop())
    before = (tmp_path / "records.csv").read_bytes()

    def full(self: Any, rows: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space"):
        journals.write_records(tmp_path, [{"step": 1}], [])
    assert (tmp_path / "records.csv").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"records.csv", "curves.png"}


def plots_of(rows: list[dict[str, Any]], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of drawn curves."""
    made: list[Any] = []

    class Kept(journals.Figure):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            made.append(self)

    monkeypatch.setattr(journals, "Figure", Kept)
    draw_curves(path, rows, "Curves")
    return list(made[0].axes)


@pytest.mark.parametrize("count, shape", [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (7, (2, 4)), (8, (2, 4))])
def test_curves_are_a_grid(count: int, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["loss", *(f"term_{number}" for number in range(1, count))]
    rows = [{"step": s, "samples": 1000 * s, "rate": 0.1, **dict.fromkeys(names, s + 0.5)} for s in range(1, 6)]
    axes = plots_of(rows, tmp_path / "curves.png", monkeypatch)
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    shown = [each for each in axes if each.axison]
    assert [each.get_ylabel() for each in shown] == [name.replace("_", " ") for name in names]
    assert {each.get_xlabel() for each in shown} == {"samples seen, thousands"}
    (line,) = shown[-1].get_lines()
    assert line.get_xydata().tolist() == [[float(s), s + 0.5] for s in range(1, 6)]
    with Image.open(tmp_path / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_what_was_tested_stands_beside_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "samples": 10**6 * s, "loss": 1.0 / s} for s in range(1, 5)]
    rows[3] |= {"test_loss": 0.5, "test_accuracy": float("nan")}
    first, second = plots_of(rows, tmp_path / "curves.png", monkeypatch)
    assert [line.get_label() for line in first.get_lines()] == ["loss", "test loss"] and first.get_legend()
    assert first.get_lines()[1].get_xydata().tolist() == [[4.0, 0.5]]
    assert first.get_xlabel() == "samples seen, millions"
    assert second.get_ylabel() == "accuracy" and not second.get_legend()


def test_where_no_bar_can_move_lines_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journalled(tmp_path, small_loop(record_every=1), quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("small: step 1 of 12, loss ") and "images/s, waiting" in lines[0]
    assert lines[-1].startswith("small: step 12 of 12") and lines[-1].endswith(", test loss 2.5")
    journalled(tmp_path, small_loop(), quiet=True)
    assert capsys.readouterr() == ("", "")


def test_tensorboard_is_told_all_by_name_and_pictures(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(tmp_path / "grid.png")
    loop = small_loop(record_every=4, trackers=("tensorboard",))
    with Journal(tmp_path, loop, title="small", quiet=True) as journal:
        for record in loop:
            journal.write(record, {"test_loss": 1.5})
            journal.picture("samples", tmp_path / "grid.png")
            loop.save(tmp_path / "checkpoint")
            if record.step == 8:
                break
    told = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_records(tmp_path)
    assert {*told.Tags()["scalars"]} == {*rows[0]} - {"step"}
    for name in told.Tags()["scalars"]:
        found = [(each.step, each.value) for each in told.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in rows]
    pictures = told.Images("samples")
    assert [(each.step, each.width, each.height) for each in pictures] == [(4, 6, 4), (8, 6, 4)]
    assert told.Tags()["tensors"] == ["settings/text_summary"] and told.Images("curves")
    later = small_loop(record_every=4, trackers=("tensorboard",))
    assert later.resume(tmp_path / "checkpoint")
    journalled(tmp_path, later)
    again = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [each.step for each in again.Scalars("loss")] == [4, 8, 12]


class Told(ModuleType):
    """A module that stands for wandb or trackio, and notes what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name, origin="here")  # type: ignore[assignment]
        self.calls: list[tuple[str, Any]] = []
        self.config = SimpleNamespace(update=lambda values, **_: self.calls.append(("config", values)))
        self.Image = lambda pixels: ("image", pixels.shape)

    def init(self, **settings: Any) -> Any:
        self.calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda values, step, **_: self.calls.append((f"log {step}", values)),
            finish=lambda: self.calls.append(("finish", None)),
        )


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_are_told_by_their_own_modules(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Told(name)
    monkeypatch.setitem(sys.modules, name, module)
    journalled(tmp_path, small_loop(num_steps=4), trackers=(name,))
    kinds = [kind for kind, _ in module.calls]
    assert kinds == ["init", "config", "log 4", "log 4", "finish"]
    assert module.calls[0][1]["project"] == "fractal-streams" and module.calls[0][1]["name"].startswith("small, ")
    assert module.calls[1][1]["batch_size"] == 8
    (row,) = read_records(tmp_path)
    assert module.calls[2][1] == {key: value for key, value in row.items() if key != "step"}
    with Image.open(tmp_path / "curves.png") as image:
        shown = ("image", (image.height, image.width, 3))
    assert module.calls[3][1] == {"curves": [shown] if name == "wandb" else shown}


def test_trackers_that_are_not_there_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name in ("wandb", "trackio"):
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
        with pytest.raises(MissingExtraError, match=f"trackers='{name}' needs it: pip install {name}"):
            Journal(tmp_path, small_loop(trackers=(name,)), title="small")
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: SimpleNamespace(origin=None))  # a folder
        with pytest.raises(MissingExtraError, match=f"pip install {name}"):
            Journal(tmp_path, small_loop(trackers=(name,)), title="small")
    with pytest.raises((InvalidValueError, UnknownNameError), match="tensorbord"):
        Journal(tmp_path, small_loop(), title="small", trackers=("tensorbord",))
