"""Scans: the same bytes however they are cut, shared, killed and gone on with; and the shares that others found."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError, MissingExtraError
from fractal_streams.shard import Shard
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.presets import OVERVIEW
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.refine import Refinement, mixed
from fractal_streams.trainability.scan import Scan, open_scan, scan
from fractal_streams.trainability.store import COLUMNS, NetworksBar
from fractal_streams.trainability.trainer import Trainer, open_trainer
from fractal_streams.trainability.window import PrecisionWarning, Window

scan_module = importlib.import_module("fractal_streams.trainability.scan")  # the package's `scan` is the function

DIGEST = "8e07c35b78354619"
SMALL = Experiment(width=8, dataset_mode="single_example", steps=30)
AREA = Window.of_exponents(x=(0.0, 3.0), y=(0.0, 3.0))
BOTH = (20, 26)
REFINED = Refinement(step=4, sample=40)


class Counting(ReferenceTrainer):
    """Says how many networks it trained, and raises when told to."""

    def __init__(self, precision: str = "float64") -> None:
        self.count = 0
        self.precision = precision

    def train(self, experiment: Experiment, points: Any, readout: Any = None) -> Any:
        self.count += len(points)
        return super().train(experiment, points, readout)


class Reduced(Counting):
    mode = "reduced"


def small(trainer: Trainer | None = None, **settings: Any) -> Scan:
    return scan(SMALL, AREA, **{"resolution": BOTH, "tile": 7, "trainer": trainer or ReferenceTrainer(), **settings})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, temporary ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(one: Scan, other: Scan) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMNS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """Uninterrupted scans, plain and refined: their folders' contents."""
    made = {}
    for refined in (False, True):
        folder = tmp_path_factory.mktemp("whole") / "scan"
        kept = small(folder=folder, refine=REFINED if refined else None)
        made[refined] = SimpleNamespace(contents=contents(folder), scan=kept, folder=folder)
    return made


def test_a_scan_is_what_the_trainer_says_of_each_point() -> None:
    made = small()
    rows, columns = BOTH
    for row, column in ((0, 0), (19, 25), (7, 13), (13, 6)):
        point = [[made.grid.x[column], made.grid.y[row]]]
        outcome = ReferenceTrainer().train(SMALL, point)
        for name, dtype in COLUMNS.items():
            assert getattr(made, name)[row, column] == getattr(outcome, name)[0]
            assert getattr(made, name).dtype == dtype and getattr(made, name).shape == (rows, columns)
    assert made.converged[0, 0] and not made.converged[-1, -1]  # row 0 and column 0 have the lowest rates
    assert (made.status == np.where(made.measure < 0, 0, 1)).all() and made.status.dtype == np.uint8
    assert made.evaluated is None and made.refined is None and made.window == AREA


def test_a_crop_of_a_scan_is_the_scan_of_the_crop() -> None:
    made = small(tile=9)
    for rows, columns in ((slice(3, 17), slice(5, 6)), (slice(0, 2), slice(20, 26)), (slice(19, 20), slice(0, 26))):
        part = made.grid.crop(rows, columns)
        outcome = ReferenceTrainer().train(SMALL, part.points())
        for name in COLUMNS:
            crop = np.ascontiguousarray(getattr(made, name)[rows, columns])
            assert crop.tobytes() == getattr(outcome, name).reshape(part.shape).tobytes()


def test_tiles_of_any_size_give_the_same_values(tmp_path: Path, whole: dict[bool, Any]) -> None:
    for tile in (7, 16, 64, None):
        made = small(tile=tile, folder=tmp_path / str(tile))
        assert same(made, whole[False].scan) and same(small(tile=tile), made)
        size = tile or 64
        names = {path.name for path in (tmp_path / str(tile) / "tiles").iterdir()}
        assert names == {f"tile-{r:04d}-{c:04d}.npz" for r in range(-(-20 // size)) for c in range(-(-26 // size))}
    with np.load(tmp_path / "7" / "tiles" / "tile-0001-0003.npz") as tile_there:  # row-major, lowest row first
        assert (tile_there["measure"] == whole[False].scan.measure[7:14, 21:26]).all()


def test_the_sidecar_gives_the_experiment_and_the_window_to_the_bit(whole: dict[bool, Any]) -> None:
    facts = json.loads(whole[True].contents["scan.json"])
    assert Experiment.from_json(json.dumps(facts["experiment"])) == SMALL
    assert Window.from_dict(facts["window"]) == AREA
    assert (facts["resolution"], facts["tile"], facts["precision"], facts["mode"]) == ([20, 26], 7, "float64", "exact")
    assert facts["refine"] == {"step": 4, "margin": 1, "sample": 40}
    assert facts["engine"]["trainer"] == "ReferenceTrainer" and facts["engine"]["numpy"] == np.__version__
    back = open_scan(whole[True].folder)
    assert (back.experiment, back.window, back.refined) == (SMALL, AREA, whole[True].scan.refined)


def test_a_finished_folder_is_read_and_nothing_is_trained(whole: dict[bool, Any]) -> None:
    for refined, there in whole.items():
        counting = type("ReferenceTrainer", (Counting,), {})()
        again = small(counting, folder=there.folder, refine=REFINED if refined else None)
        assert counting.count == 0 and same(again, there.scan) and same(open_scan(there.folder), there.scan)
        assert contents(there.folder) == there.contents


def test_arrays_of_a_folder_are_read_when_asked_for(whole: dict[bool, Any]) -> None:
    opened = open_scan(whole[False].folder)
    assert not set(COLUMNS) & set(vars(opened)) and "measure" not in repr(opened)
    assert opened.final_loss is opened.final_loss and set(COLUMNS) & set(vars(opened)) == {"final_loss"}
    with contextlib.chdir(whole[False].folder.parent):
        relative = open_scan(whole[False].folder.name)
    assert same(relative, opened)  # read from another working directory than it was opened from
    turned = replace(opened, measure=-opened.measure)
    assert type(opened) is not Scan and (turned.measure == -opened.measure).all()
    with pytest.raises(AttributeError, match="nonsense"):
        opened.nonsense


def damage(folder: Path, kind: str) -> Path:
    """Spoil one file of a scan."""
    path = sorted(folder.glob("*/*.npz"))[1]
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256)) * 8}[kind])
    return path


@pytest.mark.parametrize("kind", ["cut", "empty", "noise"])
@pytest.mark.parametrize("refined", [False, True])
def test_a_damaged_tile_is_found_and_made_again(
    refined: bool, kind: str, tmp_path: Path, whole: dict[bool, Any]
) -> None:
    settings = {"folder": tmp_path, "refine": REFINED if refined else None}
    small(**settings)
    spoilt = damage(tmp_path, kind)
    with pytest.raises(InvalidValueError, match=rf"{spoilt.name} is damaged.*scan\(\.\.\., folder"):
        open_scan(tmp_path).measure
    counting = type("ReferenceTrainer", (Counting,), {})()
    assert same(small(counting, **settings), whole[refined].scan)
    assert 0 < counting.count <= 49 and contents(tmp_path) == whole[refined].contents


def test_an_unfinished_scan_is_refused_with_what_is_there(tmp_path: Path, whole: dict[bool, Any]) -> None:
    small(folder=tmp_path)
    for name in ("tile-0000-0002", "tile-0002-0000"):
        (tmp_path / "tiles" / f"{name}.npz").unlink()
    with pytest.raises(InvalidValueError, match=r"holds 10 of 12 tiles.*scan\(\.\.\., folder=\.\.\.\)"):
        open_scan(tmp_path)
    with pytest.raises(InvalidValueError, match="holds no scan"):
        open_scan(tmp_path / "tiles")
    small(folder=tmp_path / "refined", refine=REFINED)
    (tmp_path / "refined" / "points" / "check-0000.npz").unlink()
    with pytest.raises(InvalidValueError, match="check-0000.npz is missing"):
        open_scan(tmp_path / "refined")


class Killed(BaseException):
    """A process that ends, and cleans nothing up."""


STEPS = ("replace", "fsync")


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise at the n-th step of the file system from here on, before or after it, and leave temporary files."""
    left = [count]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            done = real(*given, **named)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return done

        return step

    for name in STEPS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    monkeypatch.setattr(np.lib.format, "write_array", wrapped(np.lib.format.write_array))
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **named: unlink(self, **named) if left[0] > 0 else None)


@pytest.mark.parametrize("refined", [False, True])
def test_killed_at_any_step_of_the_file_system_and_gone_on_with(
    refined: bool, tmp_path: Path, whole: dict[bool, Any]
) -> None:
    draw, kills, half = random.Random(5), 0, 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            killed_after(draw.randrange(1, 45), patch)
            try:
                made = small(folder=tmp_path, refine=REFINED if refined else None)
                break
            except Killed:
                kills += 1
        half += bool(list(tmp_path.rglob(".*.tmp")))
    assert kills >= 3 and half >= 2
    assert same(made, whole[refined].scan) and contents(tmp_path) == whole[refined].contents


PROGRAM = """
import sys
from pathlib import Path
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.presets import OVERVIEW
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.scan import scan
from fractal_streams.trainability.refine import Refinement
from fractal_streams.trainability.window import Window
print("go", flush=True)
made = scan(
    Experiment(width=8, dataset_mode="single_example", steps=int(sys.argv[2])),
    Window.of_exponents(x=(0.0, 3.0), y=(0.0, 3.0)), resolution=(20, 26), tile=int(sys.argv[3]),
    trainer=ReferenceTrainer(), folder=sys.argv[1], refine=Refinement(step=4, sample=40) if sys.argv[4:] else None,
)
print(made.measure.shape, flush=True)
"""


def started(folder: Path, *words: str, program: str = PROGRAM, **environment: str) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), *words],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert run.stdout is not None and run.stdout.readline() == "go\n"
    return run


@pytest.mark.slow
@pytest.mark.parametrize("words", [("300", "4"), ("300", "4", "refined")], ids=["plain", "refined"])
def test_ten_kills_of_a_process(words: tuple[str, ...], tmp_path: Path) -> None:
    whole = started(tmp_path / "whole", *words)
    began = time.monotonic()
    assert whole.communicate()[0] == "(20, 26)\n" and whole.returncode == 0
    seconds, draw, folder, hits = time.monotonic() - began, random.Random(1), tmp_path / "killed", 0
    for _ in range(10):
        run = started(folder, *words)
        time.sleep(draw.uniform(0, 0.2 * seconds))
        hits += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert hits >= 5
    run = started(folder, *words)
    assert run.communicate()[0] == "(20, 26)\n" and run.returncode == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_two_processes_as_torchrun_starts_them_give_the_same_bytes(tmp_path: Path, whole: dict[bool, Any]) -> None:
    runs = [started(tmp_path, "30", "7", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [run.communicate()[0] for run in runs] == ["(20, 26)\n"] * 2
    assert contents(tmp_path) == whole[False].contents


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_worlds_of_any_size_give_the_same_bytes(
    world: int, refined: bool, tmp_path: Path, whole: dict[bool, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_streams.trainability.store.POLL_SECONDS", 0.005)
    trainers = [type("ReferenceTrainer", (Counting,), {})() for _ in range(world)]
    made: dict[int, Scan] = {}

    def run(rank: int) -> None:
        shard = Shard(rank, world)
        made[rank] = small(trainers[rank], folder=tmp_path, shard=shard, refine=REFINED if refined else None)

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert contents(tmp_path) == whole[refined].contents
    assert len(made) == world and all(same(each, whole[refined].scan) for each in made.values())
    alone = whole[refined].scan
    total = alone.refined.evaluated + alone.refined.sampled if refined else 20 * 26
    assert sum(trainer.count for trainer in trainers) == total  # each once, by one of them
    assert refined or min(trainer.count for trainer in trainers) >= total // world - 49


def test_what_one_world_began_another_finishes(tmp_path: Path, whole: dict[bool, Any]) -> None:
    small(folder=tmp_path)
    for number, path in enumerate(sorted((tmp_path / "tiles").iterdir())):
        if number % 2:
            path.unlink()  # as if rank 1 of 2 had been killed at once
    small(folder=tmp_path, shard=Shard())
    assert contents(tmp_path) == whole[False].contents


def test_only_the_first_rank_shows_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(folder=tmp_path)
    for rank, shown in ((1, False), (0, True)):
        small(folder=tmp_path, shard=Shard(rank, 2), progress=True)
        assert ("520/520" in capsys.readouterr().err) is shown


def test_ranks_need_a_folder() -> None:
    with pytest.raises(InvalidValueError, match="2 ranks share a scan through its folder"):
        small(shard=Shard(0, 2))


def test_each_rank_takes_the_gpu_that_torchrun_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(scan_module, "resolve_device", lambda name: name if ":" in name else "cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert scan_module.device_of("auto", Shard(1, 2)) == scan_module.device_of("cuda", Shard(1, 2)) == "cuda:1"
    assert scan_module.device_of("cuda:0", Shard(1, 2)) == "cuda:0"  # explicit is final
    assert scan_module.device_of("auto", Shard()) == "cuda:0"
    monkeypatch.setattr(scan_module, "resolve_device", lambda name: "cpu")
    assert scan_module.device_of("auto", Shard(1, 2)) == "cpu"


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "experiment": ({"experiment": SMALL.replace(steps=31)}, r"experiment\.steps is 30 there, 31 here"),
    "window": ({"window": AREA.scaled(0.5)}, r"window\.size"),
    "an ulp": ({"window": replace(AREA, centre=(np.nextafter(AREA.centre[0], 1), AREA.centre[1]))}, r"window\.centre"),
    "resolution": ({"resolution": (20, 25)}, r"resolution is \[20, 26\] there, \[20, 25\] here"),
    "tile": ({"tile": 8}, "tile is 7 there, 8 here"),
    "refine": ({"refine": REFINED}, r"refine\.step is None there, 4 here"),
    "trainer": ({"trainer": Counting()}, r"engine\.trainer is 'ReferenceTrainer' there, 'Counting' here"),
    "precision": ({"trainer": Counting("float32")}, "precision is 'float64' there, 'float32' here"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_scan_in_the_folder_is_refused_and_nothing_changes(other: str, whole: dict[bool, Any]) -> None:
    changes, words = OTHERS[other]
    asked = {"resolution": BOTH, "tile": 7, "trainer": ReferenceTrainer(), "experiment": SMALL, "window": AREA}
    with pytest.raises(InvalidValueError, match=words) as caught:
        scan(**{**asked, **changes}, folder=whole[False].folder)
    assert "give another folder" in str(caught.value)
    assert contents(whole[False].folder) == whole[False].contents


def test_a_change_of_version_is_refused_and_named(tmp_path: Path) -> None:
    small(folder=tmp_path)
    facts = json.loads((tmp_path / "scan.json").read_text())
    facts["engine"]["numba"] = "0.0.1"
    (tmp_path / "scan.json").write_text(json.dumps(facts))
    with pytest.raises(InvalidValueError, match=r"engine\.numba is '0\.0\.1' there"):
        small(folder=tmp_path)
    assert open_scan(tmp_path).measure.shape == BOTH  # what is finished can be read


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"resolution": 1}, "from 2 to 8192 points, got 1"),
        ({"resolution": (2, 8193)}, "8192"),
        ({"resolution": (2, 3, 4)}, "height, width"),
        ({"tile": 3}, "tile"),
        ({"on_limit": "shout"}, "on_limit"),
        ({"experiment": SMALL.replace(inputs="published")}, "published"),
        ({"experiment": SMALL.replace(dataset_mode="matching"), "trainer": Reduced()}, "mode='reduced'"),
    ],
)
def test_what_cannot_be_scanned_is_refused_before_anything_is_written(
    wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    counting = Counting()
    asked = {"experiment": SMALL, "window": AREA, "resolution": 8, "trainer": counting, "folder": tmp_path / "scan"}
    with pytest.raises(InvalidValueError, match=words):
        scan(**{**asked, **wrong})
    assert counting.count == 0 and not (tmp_path / "scan").exists()


def test_too_narrow_a_window_is_said_at_the_door(tmp_path: Path) -> None:
    narrow = Window(centre=(10.0, 10.0), size=(1e-13, 1e-13))
    asked: dict[str, Any] = {"resolution": 4, "trainer": ReferenceTrainer()}
    with pytest.warns(PrecisionWarning, match="float64 resolves") as caught:
        scan(SMALL, narrow, **asked)
    assert caught[0].filename == __file__
    with pytest.raises(InvalidValueError, match="realisation of rounding"):
        scan(SMALL, narrow, **asked, on_limit="refuse", folder=tmp_path / "scan")
    assert not (tmp_path / "scan").exists()
    assert scan(SMALL, narrow, **asked, on_limit="allow").measure.shape == (4, 4)


def test_the_default_window_is_the_overview() -> None:
    assert scan(SMALL, resolution=4, trainer=ReferenceTrainer()).window == OVERVIEW


def test_progress_counts_what_was_found_but_not_in_its_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[bool, Any]
) -> None:
    small(folder=tmp_path, progress=True)
    assert "520/520" in capsys.readouterr().err
    (tmp_path / "tiles" / "tile-0000-0000.npz").unlink()
    small(folder=tmp_path, progress=True)
    assert "520/520" in capsys.readouterr().err
    with NetworksBar() as bar:
        bar.expect(1000)
        bar.found(900)
        bar.trained(50)
        told = bar.bar.format_dict
    assert (told["n"], told["initial"], told["total"], told["rate"]) == (950, 900, 1000, None)  # None: since `initial`


def test_progress_without_tqdm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match=r"tqdm is not installed.*fractal-streams\[cli\]"):
        small(progress=True)


def test_a_refined_scan_is_the_full_one_where_it_was_evaluated(whole: dict[bool, Any]) -> None:
    full, counting = small(resolution=(50, 65)), Counting()
    made = small(counting, resolution=(50, 65), refine=Refinement(step=8, sample=10**6))
    known = made.evaluated
    assert known is not None and made.refined is not None and 0.02 < known.mean() < 0.7
    for name in COLUMNS:
        assert getattr(made, name)[known].tobytes() == getattr(full, name)[known].tobytes()
    wrong = (made.converged != full.converged) & ~known
    assert made.refined.wrong == wrong.sum() and made.refined.sampled == (~known).sum()  # all were checked
    assert made.refined.evaluated == known.sum() and counting.count == known.size
    cells = mixed(made.converged)
    assert all(part[cells].all() for part in (known[:-1, :-1], known[1:, 1:], known[:-1, 1:], known[1:, :-1]))


def test_the_layout_of_a_folder_does_not_change(whole: dict[bool, Any]) -> None:
    """Names, and the labels that they hold, which the last digits of a tanh do not move."""
    tiles = [f"tiles/tile-{r:04d}-{c:04d}.npz" for r in range(3) for c in range(4)]
    assert sorted(whole[False].contents) == ["scan.json", *tiles]
    assert {"points/pass-0000-0000.npz", "points/check-0000.npz", "scan.json"} < set(whole[True].contents)
    assert hashlib.blake2s(np.packbits(whole[False].scan.status).tobytes(), digest_size=8).hexdigest() == DIGEST


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_tiles_of_any_size_give_the_same_values_on_a_gpu(precision: Any, tmp_path: Path) -> None:
    for experiment in (SMALL, SMALL.replace(dataset_mode="matching"), Experiment(steps=30)):
        full, *others = (
            scan(experiment, AREA, resolution=BOTH, tile=tile, device="cuda", precision=precision)
            for tile in (64, 7, 16)
        )
        assert all(same(full, other) for other in others)
        crop = full.grid.crop(slice(3, 17), slice(5, 6))
        outcome = open_trainer("cuda", precision).train(experiment, crop.points())
        assert full.measure[3:17, 5].tobytes() == outcome.measure.tobytes()


@pytest.mark.gpu
def test_two_gpus_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    program = PROGRAM.replace("trainer=ReferenceTrainer()", 'device="cuda"')
    for words in (("30", "7"), ("30", "7", "refined")):
        one, two = tmp_path / f"one {len(words)}", tmp_path / f"two {len(words)}"
        assert started(one, *words, program=program).communicate()[0] == "(20, 26)\n"
        runs = [
            started(two, *words, program=program, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
            for rank in range(2)
        ]
        assert [run.communicate()[0] for run in runs] == ["(20, 26)\n"] * 2
        assert contents(one) == contents(two)
