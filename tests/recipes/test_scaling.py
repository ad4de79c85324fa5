"""Cost against work: the steps that the lines stand on, the lines, the ranks' shares, and the files."""

from __future__ import annotations

import json
import queue
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.benchmarks import orbit_steps, ranks, scaling
from fractal_streams.recipes.benchmarks.orbit_steps import ends, mean_steps
from fractal_streams.recipes.benchmarks.scaling import Panel, Point

from fractal_streams.render.reference import call, plane, stopped


def reference_ends(stream: Any, count: int, most: int) -> np.ndarray:
    """(count, N, N) steps until an orbit of the float64 reference leaves the disc, `most` at most."""
    raster, found = stream.rasters[0], []
    latents = stream.generate(range(count)).latents
    for k in range(count):
        parameters = {name: np.float64(latents[name][k]) for name in raster.names}
        x, y = plane(raster, parameters, 0.0, 0.0, np.float64, np.float64)
        zr, zi, cr, ci = (part + 0.0 * x for part in call(raster.formula.start, parameters, x=x, y=y))
        end = np.full(x.shape, most)
        with np.errstate(all="ignore"):
            for n in range(most):
                zr, zi = call(raster.formula.step, parameters, zr=zr, zi=zi, cr=cr, ci=ci, pr=zr, pi=zi, n=float(n))
                end = np.where((end == most) & stopped(raster, zr, zi, zr, zi), n + 1, end)
        found.append(end)
    return np.stack(found)


def test_orbits_end_where_the_references_do_or_are_periodic() -> None:
    stream = scaling.opened("cpu", height=16, width=16)
    counted, right = ends(stream, 24, 60, 8), reference_ends(stream, 24, 60)
    inside = right == 60
    assert 0.2 < inside.mean() < 0.7
    assert (counted[~inside] != right[~inside]).mean() < 0.01
    early = counted[inside] < 60
    assert early.mean() > 0.1  # proven by their period
    periodic = counted[inside][early] % orbit_steps.PERIOD == 0
    assert periodic.mean() > 0.95  # the others left in float32 alone


def test_bands_of_a_large_picture_are_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = scaling.opened("cpu", height=64, width=64)
    whole = ends(stream, 5, 30, 8)
    assert whole.shape == (5, 64, 64)
    monkeypatch.setattr(orbit_steps, "COUNTED", 3 * 8 * 64)
    part = ends(stream, 5, 30, 8)
    rows = [row for band in (0, 4, 7) for row in range(8 * band, 8 * band + 8)]
    assert np.array_equal(part, whole[:, rows])


def test_a_tile_waits_for_its_slowest_pixel() -> None:
    found = np.ones((2, 4, 8), np.int32)
    found[0, 1, 3], found[1, 3, 7] = 100, 9
    steps = mean_steps(found, [5, 50], (2, 4))
    assert [each.pixel for each in steps] == [(62 + 5 + 5) / 64, (62 + 50 + 9) / 64]
    assert [each.tile for each in steps] == [(6 + 5 + 5) / 8, (6 + 50 + 9) / 8]


def measured(monkeypatch: pytest.MonkeyPatch, rate: Any) -> None:
    """Points with a made-up rate, of (stream, batch)."""
    monkeypatch.setattr(
        scaling, "point",
        lambda stream, x, batch, seconds: Point(x=x, batch=batch, rate=rate(stream, batch)),
    )  # fmt: skip
    monkeypatch.setitem(scaling.COUNTED, "cpu", 8)


def test_a_cost_as_the_pixels_lies_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, lambda stream, batch: 1e6 / stream.spec.height**2)
    panel = scaling.size_panel("cpu", (16, 32, 64), 0.1)
    assert panel.lines["pixels"] == pytest.approx([point.rate for point in panel.points])
    assert panel.leaves("pixels") == [] and [point.x for point in panel.points] == [16, 32, 64]
    work = panel.lines["pixels x steps of a tile"]
    assert work[-1] == pytest.approx(panel.points[-1].rate) and work[0] < 0.9 * panel.points[0].rate


def test_a_cost_as_the_steps_lies_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = scaling.opened("cpu")
    found = ends(stream, 8, 90, 8)
    tile = scaling.TILE["cpu"]
    measured(monkeypatch, lambda own, batch: 5e6 / mean_steps(found, [own.spec.iterations], tile)[0].tile)
    panel = scaling.iterations_panel("cpu", (10, 30, 90), 0.1)
    assert panel.lines["steps of a tile"] == pytest.approx([point.rate for point in panel.points])
    assert panel.lines["steps of a pixel"][1] == panel.points[1].rate
    assert panel.lines["steps of a pixel"][2] > panel.points[2].rate


def test_a_launch_and_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, lambda stream, batch: min(100.0 * batch, 1000.0))
    panel = scaling.batch_panel("cpu", (1, 4, 16, 64), 0.1)
    assert panel.lines == {
        "rate of the largest": (1000.0,) * 4, "time of the smallest": (100.0, 400.0, 1600.0, 6400.0),
    }  # fmt: skip
    assert panel.leaves("rate of the largest") == [1, 4] and panel.leaves("time of the smallest") == [16, 64]


def test_the_named_number_of_classes_is_measured() -> None:
    made = scaling.measure(["classes"], "cpu", 0.001, {"classes": (10, 10**6)})
    assert [point.x for point in made["classes"].points] == [10, 10**6]
    assert all(point.rate > 0 and point.batch == 512 for point in made["classes"].points)
    assert scaling.opened("cpu", num_classes=10**6).num_classes == 10**6
    with pytest.raises(ValueError, match="a panel is one of size"):
        scaling.measure(["colour"], "cpu")


def test_a_large_batch_is_held_to_single_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scaling.large_batch("cpu", 20, 16) == {"pictures": 20, "edge": 16, "bytes": 20 * 3 * 256, "equal": True}
    opened = scaling.opened

    monkeypatch.setattr(scaling, "opened", lambda device, **more: Overflowing(opened(device, **more)))
    with pytest.raises(scaling.WrongPictureError, match="of a batch of 20"):
        scaling.large_batch("cpu", 20, 16)


class Overflowing:
    """A stream whose large batches write over their beginning."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def generate(self, indices: Any) -> Any:
        chosen = list(indices)
        return self.stream.generate([index % 16 for index in chosen] if len(chosen) > 16 else chosen)


def told(*spans: tuple[float, float], steps: int = 4) -> dict[str, Any]:
    return {"rank": 0, "first": [0, 9], "steps": steps, "spans": list(spans)}


def test_ranks_are_counted_until_the_slowest_ends() -> None:
    answers = [told((0.0, 1.0), (5.0, 7.0)), told((0.5, 2.0), (5.0, 6.0))]
    assert list(ranks.together(answers, batch=10)) == [80 / 2.0, 80 / 2.0]


class Barrier:
    def __init__(self) -> None:
        self.waits, self.broken = 0, False

    def wait(self, timeout: float) -> None:
        self.waits += 1

    def abort(self) -> None:
        self.broken = True


def test_a_rank_reads_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, answers = Barrier(), queue.Queue()  # type: ignore[var-annotated]
    ranks.run_rank("cpu", 1, 2, 4, 3, 0.0, 2, barrier, answers)
    answer = answers.get_nowait()
    assert (answer["rank"], answer["first"], answer["steps"], barrier.waits) == (1, [4, 7], 3, 2)
    assert all(end > begin for begin, end in answer["spans"]) and len(answer["spans"]) == 2
    ranks.run_rank("cpu", 2, 2, 4, 3, 0.0, 2, barrier, answers)
    assert "rank" in answers.get_nowait()["error"] and barrier.broken


def test_a_rank_that_dies_or_begins_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dead: Any = types.SimpleNamespace(exitcode=-9)

    class Silent:
        def get(self, timeout: float) -> None:
            raise queue.Empty

    with pytest.raises(ranks.RankError, match="1 of 1 ranks died with exit code -9"):
        ranks.answer_of(Silent(), [dead])
    monkeypatch.setattr(ranks, "answer_of", lambda answers, started: told((0.0, 1.0)) | {"first": [4, 7]})
    context = types.SimpleNamespace(
        Barrier=lambda world: None, Queue=queue.Queue,
        Process=lambda **given: types.SimpleNamespace(
            start=lambda: None, join=lambda timeout: None, is_alive=lambda: False
        ),
    )  # fmt: skip
    monkeypatch.setattr(ranks.multiprocessing, "get_context", lambda method: context)
    with pytest.raises(ranks.RankError, match=r"rank 0 of 1 began with samples \[4, 7\], not 0 on"):
        ranks.rate_of_ranks("cpu", 1, batch=4, steps=1, seconds=0.1, windows=1)


@pytest.mark.slow
def test_processes_share_a_stream() -> None:
    rate, steps = ranks.rate_of_ranks("cpu", 2, batch=64, steps=0, seconds=0.2, windows=3)
    assert rate > 0 and steps >= 1


def panels() -> dict[str, Panel]:
    points = tuple(Point(x=x, batch=1, rate=rate, wall=wall) for x, rate, wall in ((1, 10.0, 5.0), (4, 20.0, 19.0)))
    one = Panel(machine="A GPU", points=points, lines={"rate of the largest": (20.0, 20.0), "other": (1.0, 4.0)})
    plain = Panel(machine="B", points=(Point(x=1, batch=1, rate=3.0),), lines={"proportional": (3.0,)})
    return {"batch": one, "gpus": plain}


def test_files_of_two_machines_become_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name, panel in panels().items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"panels": {name: asdict(panel)}, name: 1}))
    scaling.main([
        "--draw", str(tmp_path / "batch.json"), str(tmp_path / "gpus.json"), "--json", str(tmp_path / "both.json"),
        "--plot", str(tmp_path / "both.png"),
    ])  # fmt: skip
    both = json.loads((tmp_path / "both.json").read_text())
    assert {name: Panel.of(panel) for name, panel in both["panels"].items()} == panels() and both["batch"] == 1
    shown = capsys.readouterr().out
    assert "off the line 'rate of the largest' by more than 20%: 1\n" in shown and "(wall 19)" in shown
    assert (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "both.json", "both.png", "gpus.json"]


def test_the_picture_holds_points_and_lines() -> None:
    charts = pytest.importorskip("fractal_streams.recipes.benchmarks.charts")
    left, right = charts.scaling_chart(panels(), scaling.AXES).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.get_lines()}
    assert drawn == {
        "rate of the largest": [20.0, 20.0], "other": [1.0, 4.0], "wall time": [5.0, 19.0],
        "time of the GPU": [10.0, 20.0],
    }  # fmt: skip
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "4"]
    assert left.get_xlabel() == scaling.AXES["batch"] and right.get_title(loc="left") == "B"
    assert left.get_xscale() == left.get_yscale() == "log"


def test_the_command_measures_what_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling.ON_CPU, "batch", (1, 8))
    scaling.main(["--panels", "batch", "--device", "cpu", "--seconds", "0.001", "--json", str(tmp_path / "a.json")])
    written = json.loads((tmp_path / "a.json").read_text())
    assert set(written["panels"]) == {"batch"} and "cpu" in written["hardware"] and "largest" not in written
    assert [each["x"] for each in written["panels"]["batch"]["points"]] == [1, 8]
