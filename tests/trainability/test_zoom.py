"""Zooms: windows that halve exactly, every keyframe trained, the same bytes after a kill, on the edge to the end."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from boundary_trainer import BoundaryTrainer, Killed, jagged, wavy
from PIL import Image

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.shard import Shard
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.keyframes import Keyframes
from fractal_streams.trainability.nested import place_of
from fractal_streams.trainability.picture import plain
from fractal_streams.trainability.presets import OVERVIEW, PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.scan import scan
from fractal_streams.trainability.window import PrecisionWarning, Window
from fractal_streams.trainability.zoom import open_zoom, zoom, zoom_in, zoom_windows, zoom_windows_about

SMALL = Experiment(width=8, dataset_mode="single_example", steps=30)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_windows_about_the_final_one_double_until_six_decades() -> None:
    final = PUBLISHED["tanh"].window
    windows = zoom_windows(final)
    assert windows[-1] == final and {(w.centre, w.offset) for w in windows} == {(final.centre, final.offset)}
    for outer, inner in zip(windows, windows[1:], strict=False):
        assert outer.size == (2 * inner.size[0], 2 * inner.size[1])  # to the bit
    assert min(windows[0].size) >= 6.0 > min(windows[1].size)
    assert len(windows) == 1 + int(np.ceil(np.log2(6.0 / min(final.size))))
    assert len(zoom_windows(final, levels=5)) == 5 and zoom_windows(final, factor=3.0, levels=2)[0] == final.scaled(3.0)


def test_windows_about_a_point() -> None:
    windows = zoom_windows_about((-3.0, 1.5), levels=4)
    assert [w.size for w in windows] == [(9.0 / 2**k,) * 2 for k in range(4)]
    assert {w.centre for w in windows} == {(10.0**-3, 10.0**1.5)}


def test_windows_refuse_what_makes_no_sense() -> None:
    for call, said in (
        (lambda: zoom_windows(OVERVIEW, factor=1.0), "factor"),
        (lambda: zoom_windows(OVERVIEW, levels=0), "levels"),
        (lambda: zoom_windows(Window(centre=(0.5, 1), size=(0.1, 1), linear=(True, False))), "give levels="),
        (lambda: zoom_windows_about((1.0, 400.0)), "exponents of ten"),
        (lambda: zoom_windows_about((1.0, 1.0), start=0.0), "start"),
    ):
        with pytest.raises(InvalidValueError, match=said):
            call()


def test_every_keyframe_is_trained_where_its_window_lies(tmp_path) -> None:
    windows = zoom_windows_about((1.0, 1.0), levels=3)
    made = zoom(SMALL, windows, folder=tmp_path / "z", resolution=(6, 8), trainer=ReferenceTrainer())
    assert made.windows == windows and len(made) == 3
    for level, window in enumerate(windows):
        alone = scan(SMALL, window, resolution=(6, 8), trainer=ReferenceTrainer())
        assert np.array_equal(made.measure(level), alone.measure)
        assert np.array_equal(np.asarray(Image.open(made.picture(level))), plain(alone.measure))
        assert made.scan(level).window == window
    again = open_zoom(tmp_path / "z")
    assert (again.windows, again.experiment, again.resolution) == (windows, SMALL, (6, 8))
    with pytest.raises(InvalidValueError, match="level"):
        made.scan(3)


def inwards(folder: Path, trainer: BoundaryTrainer, levels: int = 6, **changes: object):
    return zoom_in(SMALL, levels=levels, folder=folder, resolution=16, trainer=trainer, tile=8, **changes)  # type: ignore[arg-type]


def through(folder: Path, trainer: BoundaryTrainer, **changes: object):
    windows = zoom_windows_about((1.0, 2.0), levels=6)
    return zoom(SMALL, windows, folder=folder, resolution=16, trainer=trainer, tile=8, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("course", [inwards, through])
def test_a_killed_zoom_goes_on_to_the_same_bytes_and_trains_nothing_twice(course, tmp_path) -> None:
    whole = course(tmp_path / "whole", BoundaryTrainer(jagged))
    trained, random = 0, np.random.default_rng(1)
    for _ in range(100):
        trainer = BoundaryTrainer(jagged, kill_after=float(random.integers(64, 700)))
        try:
            course(tmp_path / "killed", trainer)
            break
        except Killed:
            trained += trainer.trained
            # what a kill amid a write would leave
            (tmp_path / "killed/.zoom_003.png.0123456789ab.tmp").write_bytes(b"half")
    assert trained + trainer.trained == 6 * 256 and trained > 0
    assert contents(tmp_path / "killed") == contents(whole.folder)
    before = BoundaryTrainer(jagged)
    course(tmp_path / "whole", before)
    assert before.trained == 0


def test_two_ranks_make_the_zoom_of_one(tmp_path) -> None:
    whole = contents(inwards(tmp_path / "one", BoundaryTrainer(jagged), levels=3).folder)
    trainers = [BoundaryTrainer(jagged) for _ in range(2)]
    with ThreadPoolExecutor(2) as ranks:
        made = [
            ranks.submit(inwards, tmp_path / "two", trainers[rank], levels=3, shard=Shard(rank, 2)) for rank in range(2)
        ]
        assert [each.result().windows for each in made] == [open_zoom(tmp_path / "one").windows] * 2
    assert contents(tmp_path / "two") == whole
    assert [trainer.trained for trainer in trainers] == [3 * 128, 3 * 128]


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2)], ids=["process", "rank"])
def test_who_lags_behind_takes_no_level_out_of_the_list(shard: Shard, tmp_path, monkeypatch) -> None:
    """One that looked into the folder when no level was there, and comes to its levels when all are finished."""
    deep = inwards(tmp_path, BoundaryTrainer(jagged), levels=5)
    listed = contents(tmp_path)
    seen: list[int] = []
    monkeypatch.setattr(Keyframes, "_found", lambda self: [])
    monkeypatch.setattr(BoundaryTrainer, "train", lambda *_: pytest.fail("all is there"))
    make = Keyframes.make

    def watched(self: Keyframes, level: int, window: Window) -> bool:
        made = make(self, level, window)
        seen.append(len(open_zoom(tmp_path)))
        return made

    monkeypatch.setattr(Keyframes, "make", watched)
    assert inwards(tmp_path, BoundaryTrainer(jagged), levels=3, shard=shard).windows == deep.windows[:3]
    assert seen == [5, 5, 5] and contents(tmp_path) == listed


def test_a_zoom_goes_deeper_and_mends_a_lost_picture(tmp_path) -> None:
    deep = contents(inwards(tmp_path / "deep", BoundaryTrainer(jagged), levels=5).folder)
    inwards(tmp_path / "z", BoundaryTrainer(jagged), levels=2)
    assert len(open_zoom(tmp_path / "z")) == 2
    (tmp_path / "z/zoom_001.png").unlink()
    more = BoundaryTrainer(jagged)
    assert len(inwards(tmp_path / "z", more, levels=5)) == 5 and more.trained == 3 * 256
    assert contents(tmp_path / "z") == deep
    assert len(inwards(tmp_path / "z", BoundaryTrainer(jagged), levels=3)) == 3  # fewer are read, none removed
    assert contents(tmp_path / "z") == deep


def test_another_zoom_in_the_folder_is_refused(tmp_path) -> None:
    inwards(tmp_path, BoundaryTrainer(wavy), levels=1)
    for call, said in (
        (lambda: inwards(tmp_path, BoundaryTrainer(wavy), factor=3.0), "factor is 2.0 there, 3.0 here"),
        (lambda: through(tmp_path, BoundaryTrainer(wavy)), "course is 'inwards' there, 'given' here"),
        (lambda: inwards(tmp_path, BoundaryTrainer(wavy), start=OVERVIEW.scaled(0.5)), "start.size"),
    ):
        with pytest.raises(InvalidValueError, match=said):
            call()
    through(tmp_path / "t", BoundaryTrainer(wavy))
    with pytest.raises(InvalidValueError, match="level 0 is"):
        zoom(SMALL, [OVERVIEW], folder=tmp_path / "t", resolution=16, trainer=BoundaryTrainer(wavy))
    with pytest.raises(InvalidValueError, match=r"holds zoom\.json, but no scan\.json"):
        scan(SMALL, folder=tmp_path, resolution=4, trainer=BoundaryTrainer(wavy))
    with pytest.raises(InvalidValueError, match="level-000 holds a scan"):
        inwards(tmp_path / "level-000", BoundaryTrainer(wavy))
    (tmp_path / "zoom.json").unlink()
    with pytest.raises(InvalidValueError, match=r"holds keyframes, but no zoom\.json"):
        inwards(tmp_path, BoundaryTrainer(wavy))
    with pytest.raises(InvalidValueError, match=r"it has no zoom\.json"):
        open_zoom(tmp_path)
    damaged, newer, empty = "{", '{"zoom_version": 99}', '{"zoom_version": 1}'
    for text, error in ((damaged, InvalidValueError), (newer, VersionError), (empty, InvalidValueError)):
        (tmp_path / "zoom.json").write_text(text)
        with pytest.raises(error):
            open_zoom(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("windows", 5), ("windows", ["a"]), ("resolution", ["a", 3])])
def test_a_sidecar_that_makes_no_sense_is_refused(name: str, value: Any, tmp_path) -> None:
    inwards(tmp_path, BoundaryTrainer(wavy), levels=1)
    facts = json.loads((tmp_path / "zoom.json").read_text())
    (tmp_path / "zoom.json").write_text(json.dumps({**facts, name: value}))
    for call in (lambda: open_zoom(tmp_path), lambda: inwards(tmp_path, BoundaryTrainer(wavy), levels=1)):
        with pytest.raises(InvalidValueError):
            call()


@pytest.mark.parametrize("formula", [wavy, jagged], ids=["smooth", "rough"])
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_inwards_it_stays_on_the_boundary_for_20_levels(formula, factor: float, tmp_path) -> None:
    made = zoom_in(SMALL, levels=20, folder=tmp_path, factor=factor, resolution=24, trainer=BoundaryTrainer(formula))
    assert len(made) == 20
    for level in range(20):
        window = made.windows[level]
        assert window.size[0] == pytest.approx(9.0 / factor**level, rel=1e-12)
        assert 0.1 < (made.measure(level) < 0).mean() < 0.9
        if level:
            (left, right), (low, high) = place_of(window, made.windows[level - 1]).spans()
            assert min(left, low) > -1e-9 and max(right, high) < 1 + 1e-9  # within the one before
    if formula is wavy:  # whose slope is under 3: truly there
        x, y = (np.array([end]) for end in (made.windows[-1].recentred().centre))
        assert abs(float(formula(x, y)[0])) < 3 * 9.0 / factor**19
    if factor == 2.0:
        deep = [w.centre for w in made.windows if w.size[0] < 1e-3]
        assert len(deep) > 4 and len(set(deep)) == 1  # one centre, offsets added up


def test_a_scan_without_a_boundary_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InvalidValueError, match="start from a wider window"):
        inwards(tmp_path, BoundaryTrainer(lambda x, y: np.ones_like(x)))
    assert len(open_zoom(tmp_path)) == 1  # what was trained is kept


def test_the_precision_guard(tmp_path) -> None:
    """From 2e-11 decades on, the windows of levels 0 to 4 are above 1e-12 decades."""
    start = Window(centre=(10.0, 10.0), size=(2e-11, 2e-11))

    def to(name: str, on_limit: str):
        trainer = BoundaryTrainer(lambda x, y: y - 10.0)
        return zoom_in(SMALL, start, levels=7, folder=tmp_path / name, resolution=6, trainer=trainer, on_limit=on_limit)  # type: ignore[arg-type]

    with pytest.warns(PrecisionWarning, match="the zoom ends before level 5: the window is"):
        stopped = to("stop", "stop")
    assert len(stopped) == 5 and stopped.windows[-1].size[0] == 2e-11 / 16 >= 1e-12 > 2e-11 / 32
    with pytest.warns(PrecisionWarning, match="the zoom goes on from level 5") as seen:
        assert len(to("warn", "warn")) == 7
    assert len(seen) == 1  # said once, not at each level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(to("warn", "allow")) == 7
    with pytest.raises(InvalidValueError, match="level 5: "):
        to("refuse", "refuse")
    assert len(open_zoom(tmp_path / "refuse")) == 5
    narrow = zoom_windows(Window(centre=(10.0, 10.0), size=(1e-13, 1e-13)), levels=3)
    trainer = BoundaryTrainer(wavy)
    with pytest.raises(InvalidValueError, match="level 2: "):
        zoom(
            SMALL,
            [OVERVIEW, OVERVIEW, narrow[2]],
            folder=tmp_path / "g",
            resolution=6,
            trainer=trainer,
            on_limit="refuse",
        )
    with pytest.raises(InvalidValueError, match="level 0: "):
        zoom(SMALL, narrow, folder=tmp_path / "h", resolution=6, trainer=trainer, on_limit="stop")
    assert trainer.trained == 0  # refused before anything is trained


def test_the_sidecar_says_what_determines_the_zoom(tmp_path) -> None:
    through(tmp_path, BoundaryTrainer(wavy))
    facts = json.loads((tmp_path / "zoom.json").read_text())
    assert Experiment.from_json(json.dumps(facts["experiment"])) == SMALL
    assert [facts[name] for name in ("resolution", "precision", "mode")] == [[16, 16], "float64", "exact"]
    assert facts["engine"]["trainer"] == "BoundaryTrainer" and len(facts["windows"]) == 6


def test_progress_counts_keyframes(tmp_path, capsys) -> None:
    pytest.importorskip("tqdm")
    through(tmp_path, BoundaryTrainer(wavy), progress=True)
    assert "6/6" in capsys.readouterr().err
