"""Exports as folders: byte for byte the same however they were made, killed or shared, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from exported import BOTH, PROGRAM, fractals, numbered
from fractal_streams.integrations import export as exporting
from fractal_streams.integrations.export import FORMATS, export
from fractal_streams.integrations.export_formats import WebDataset, class_folder, intervals
from hypothesis import given, strategies as st
from numbered_pictures import KILLED, NumberedPictures, tree

from fractal_streams import Mixture
from fractal_streams.errors import InvalidValueError, UnknownNameError, VersionError

EVERY = pytest.mark.parametrize("format", [format for format in FORMATS if format != "cifar10"])


# Byte for byte


@EVERY
def test_ranks_threads_and_order_do_not_show(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"format": format, "num": {"train": 2500, "test": 31}, "shards": {"train": 5, "test": 3}}
    numbered(tmp_path / "one", workers=1, **asked)
    missing = [numbered(tmp_path / "four", workers=3, rank=rank, world=4, **asked).missing for rank in (2, 0, 3, 1)]
    assert missing == [6, 4, 2, 0]
    assert tree(tmp_path / "four") == tree(tmp_path / "one")


@EVERY
def test_a_second_run_writes_nothing(format: str, tmp_path: Path) -> None:
    first = numbered(tmp_path, format=format)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for verify in (True, False):
        again = numbered(tmp_path, format=format, verify=verify)
        assert (first.written, first.kept, again.written, again.kept) == (6, 0, 0, 6)
        assert (first.images, again.images, again.bytes, again.missing) == (42, 0, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    report = numbered(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["num"], manifest["shape"]) == ("webdataset", BOTH, [3, 8, 8])
    assert manifest["streams"]["test"] == NumberedPictures(split="test").describe()
    assert [(each["split"], each["first"], each["count"]) for each in manifest["shards"]] == [
        ("train", 0, 10), ("train", 10, 10), ("train", 20, 10), ("test", 0, 4), ("test", 4, 4), ("test", 8, 4),
    ]  # fmt: skip
    found = tree(tmp_path)
    assert {each["name"]: each["sha256"] for each in manifest["shards"]}.items() <= found.items()
    assert sum(each["bytes"] for each in manifest["shards"]) == report.bytes
    assert set(found) == {
        "train",
        "test",
        "manifest.json",
        "_info.json",
        *(each["name"] for each in manifest["shards"]),
    }


@given(st.integers(1, 10**12), st.integers(1, 200))
def test_intervals_cover_all_samples_evenly(num: int, shards: int) -> None:
    cut = intervals(num, shards)
    assert cut[0].start == 0 and cut[-1].stop == num and len(cut) == shards
    assert all(one.stop == two.start for one, two in itertools.pairwise(cut))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_files_grow_with_the_export_and_not_with_the_machine() -> None:
    def shards(num: int) -> int:
        job = exporting.planned("fractal-10", "x", format="npz", num=num, shards=None, image="png", device="cpu")
        return len(job.pieces)

    assert [shards(num) for num in (1, 10_922, 50_000, 10**6, 10**7)] == [1, 1, 5, 64, 115]


def test_progress_counts_every_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[tuple[int, int, str, list[int]]] = []

    @contextlib.contextmanager
    def bar(total: int, done: int, what: str, show: bool) -> Iterator[Any]:
        counts: list[int] = []
        bars.append((total, done, what, counts))
        yield counts.append

    monkeypatch.setattr(exporting, "bar", bar)
    for world in (2, 1):
        numbered(tmp_path, num={"train": 2500, "test": 31}, shards=2, world=world, progress=True)
    assert [(total, done, what, sum(counts)) for total, done, what, counts in bars] == [
        (0, 0, "verify", 0), (1265, 0, "export webdataset", 1265),
        (1265, 0, "verify", 1265), (2531, 1265, "export webdataset", 1266),
    ]  # fmt: skip


# Damage, kills and full disks


@EVERY
def test_a_damaged_shard_is_made_again(format: str, tmp_path: Path) -> None:
    numbered(tmp_path, format=format)
    whole = tree(tmp_path)
    damaged = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and "0000" in path.name]
    damaged[0].write_bytes(damaged[0].read_bytes()[:-1] + b"?")
    assert numbered(tmp_path, format=format, verify=False).written == 0
    damaged[-1].unlink()
    again = numbered(tmp_path, format=format, rank=1, world=2)
    rest = numbered(tmp_path, format=format, rank=0, world=2)
    assert (again.written + rest.written, again.repaired + rest.repaired, rest.kept + again.kept) == (2, 2, 4)
    assert tree(tmp_path) == whole


def test_a_repair_that_makes_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(tmp_path)
    (tmp_path / "train" / "shard-000001.tar").write_bytes(b"damaged")
    before = tree(tmp_path)
    monkeypatch.setattr(exporting.Format, "rows", 1)
    monkeypatch.setattr(WebDataset, "encode", lambda self, piece, batch: b"other")
    with pytest.raises(VersionError, match=r"train/shard-000001\.tar is damaged or missing, and what is made now"):
        numbered(tmp_path)
    assert {name: digest for name, digest in tree(tmp_path).items() if ".export" not in name} == before


@pytest.mark.parametrize("format", ["webdataset", "parquet", "imagefolder", "npz"])
def test_a_full_disk_leaves_nothing_half_written(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(tmp_path / "whole", format=format)
    kind = type(exporting.planned(NumberedPictures(), "x", format=format, num=1, shards=1, image="png").made)
    write = kind.write

    def fills(self: Any, path: Path, piece: Any, blocks: Any) -> None:
        write(self, path, piece, blocks)
        if piece.first == 10:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kind, "write", fills)
    with pytest.raises(OSError, match=r"No space left on device, while .*train.*: nothing half-written") as caught:
        numbered(tmp_path / "made", format=format)
    assert caught.value.errno == errno.ENOSPC
    found = tree(tmp_path / "made")
    assert {name: digest for name, digest in found.items() if ".export" not in name}.items() <= tree(
        tmp_path / "whole"
    ).items()
    assert not [name for name in found if name.startswith(".export/writing/")]
    monkeypatch.undo()
    assert numbered(tmp_path / "made", format=format).kept == 1
    assert tree(tmp_path / "made") == tree(tmp_path / "whole")


@pytest.mark.parametrize("format", ["webdataset", "parquet", "arrow", "npz"])
def test_a_file_that_the_system_refuses_is_told(format: str, tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "from numbered_pictures import NumberedPictures\nfrom fractal_streams.integrations.export import export\n"
        f"export(NumberedPictures(), sys.argv[1], format={format!r}, num=900, shards=3, progress=False)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "made")], capture_output=True, text=True, cwd=PROGRAM.parent
    )
    assert re.search(r"OSError: \[Errno 27\] .*, while .*train.*-0+.* was written: nothing half-written", run.stderr)
    left = [name for name in tree(tmp_path / "made") if name.startswith(("data/", "train/", ".export/writing/"))]
    assert left == []


def start(folder: Path, format: str, rank: int, world: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(PROGRAM), "kill", str(folder), format, str(rank), str(world)])


def killed_and_resumed(folder: Path, format: str, world: int, kills: int, seed: int) -> int:
    """Kill an export so often, at random moments, each time all its ranks; the kills that hit one at work."""
    moments, hits = random.Random(seed), 0
    for _ in range(kills):
        ranks = [start(folder, format, rank, world) for rank in range(world)]
        deadline = time.monotonic() + 60
        seen = len(list(folder.glob(".export/shards/*")))
        while len(list(folder.glob(".export/shards/*"))) <= seen and time.monotonic() < deadline:
            if ranks[0].poll() is not None:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.05))
        for rank in ranks:
            hits += rank.poll() is None
            rank.send_signal(signal.SIGKILL)
            rank.wait()
    for rank in [start(folder, format, rank, world) for rank in range(world)]:
        assert rank.wait() == 0
    return hits


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trees of exports that nobody killed, by format."""
    made: dict[str, dict[str, str]] = {}

    def of(format: str) -> dict[str, str]:
        if format not in made:
            folder = tmp_path_factory.mktemp(format) / "whole"
            export(NumberedPictures(), folder, format=format, **KILLED)
            made[format] = tree(folder)
        return made[format]

    return of


def test_killed_and_resumed_is_byte_for_byte_the_same(unbroken: Any, tmp_path: Path) -> None:
    assert killed_and_resumed(tmp_path / "made", "webdataset", 1, kills=3, seed=1) == 3
    assert tree(tmp_path / "made") == unbroken("webdataset")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet", "arrow", "npz"])
@pytest.mark.parametrize("world", [1, 4])
def test_killed_twenty_times_and_resumed(format: str, world: int, unbroken: Any, tmp_path: Path) -> None:
    assert killed_and_resumed(tmp_path / "made", format, world, kills=20, seed=world) >= 20
    assert tree(tmp_path / "made") == unbroken(format)


@pytest.mark.parametrize("format", ["webdataset", pytest.param("imagefolder", marks=pytest.mark.slow)])
def test_a_death_at_every_step_leaves_what_the_next_run_completes(format: str, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(PROGRAM), "crash", str(tmp_path), format], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    steps, _ = map(int, run.stdout.split())
    assert steps > 40


def test_two_runs_of_the_same_export_at_once(unbroken: Any, tmp_path: Path) -> None:
    runs = [start(tmp_path / "made", "webdataset", 0, 1) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert tree(tmp_path / "made") == unbroken("webdataset")


@pytest.mark.parametrize("at", [1, 3, 5])
def test_another_run_may_make_the_same_piece_meanwhile(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_streams.integrations.export_formats.MAX_BLOCK", 5)
    asked: dict[str, Any] = {"num": 30, "shards": 1, "workers": 1, "progress": False}
    blocks = 0

    class Overtaken(NumberedPictures):
        def generate(self, indices: Any) -> Any:
            nonlocal blocks
            blocks += len(indices) > 0
            if len(indices) and blocks == at:
                export(NumberedPictures(clips=True), tmp_path / "made", **asked)
            return super().generate(indices)

    report = export(Overtaken(clips=True), tmp_path / "made", **asked)
    export(NumberedPictures(clips=True), tmp_path / "wanted", **asked)
    assert report.complete and tree(tmp_path / "made") == tree(tmp_path / "wanted")


# What is refused


@pytest.mark.parametrize(
    "change, told",
    [
        ({"format": "npz"}, r"format = 'webdataset', and 'npz'"),
        ({"num": {"train": 31, "test": 12}}, r"num.train = 30, and 31"),
        ({"num": {"train": 30}}, r"num.test = 12, and None"),
        ({"shards": 2}, r"num_shards.train = 3, and 2"),
        ({"image": "bmp"}, r"image = 'png', and 'bmp'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_for_the_same_folder_is_refused(change: Any, told: str, finished: bool, tmp_path: Path) -> None:
    numbered(tmp_path, rank=0, world=1 if finished else 2)
    before = tree(tmp_path)
    with pytest.raises(InvalidValueError, match=told):
        numbered(tmp_path, **change)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 4}, r"streams.train.seed = 3, and 4"),
        ({"height": 16, "width": 16}, r"shape = \[3, 8, 8\], and \[3, 16, 16\]"),
        ({"iterations": 7}, r"streams.train.spec.iterations = None, and 7"),
        ({"split": "test"}, r"num.train = 2, and None"),
    ],
)
def test_another_stream_for_the_same_folder_is_refused(change: Any, told: str, tmp_path: Path) -> None:
    asked = {"format": "npz", "num": 2, "device": "cpu", "seed": 3, "height": 8, "width": 8, "progress": False}
    export("fractal-10", tmp_path, **asked)
    with pytest.raises(InvalidValueError, match=told):
        export("fractal-10", tmp_path, **{**asked, **change})


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InvalidValueError, match=r"holds other things \(thesis.tex\)"):
        numbered(tmp_path)
    with pytest.raises(InvalidValueError, match="is a file"):
        numbered(tmp_path / "thesis.tex")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidValueError, match="a link to nothing"):
        numbered(tmp_path / "gone")
    (tmp_path / "gone").unlink()
    (tmp_path / "thesis.tex").rename(tmp_path / ".exported-thesis.tex")  # begins as our own folder does
    with pytest.raises(InvalidValueError, match=r"holds other things \(.exported-thesis.tex\)"):
        numbered(tmp_path)
    assert (tmp_path / ".exported-thesis.tex").read_text() == "x"
    (tmp_path / ".exported-thesis.tex").unlink()
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(InvalidValueError, match="not the manifest of an export"):
        numbered(tmp_path)
    assert set(tree(tmp_path)) == {"manifest.json"}


def test_another_version_may_check_an_export_but_not_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(tmp_path / "done")
    numbered(tmp_path / "begun", rank=0, world=2)
    monkeypatch.setattr("fractal_streams.__version__", "9.0")
    assert numbered(tmp_path / "done").kept == 6
    with pytest.raises(VersionError, match=r"begun by fractal-streams .* and this is fractal-streams 9\.0"):
        numbered(tmp_path / "begun", rank=1, world=2)
    manifest = json.loads((tmp_path / "done" / "manifest.json").read_text())
    (tmp_path / "done" / "manifest.json").write_text(json.dumps({**manifest, "manifest_version": 2}))
    with pytest.raises(VersionError, match="version 2 of the manifest"):
        numbered(tmp_path / "done")


@pytest.mark.parametrize(
    "asked, error, told",
    [
        ({"format": "webdatset"}, UnknownNameError, "did you mean 'webdataset'"),
        ({"num": None}, InvalidValueError, "num: say how many"),
        ({"num": 0}, InvalidValueError, "num of train must be a whole number from 1"),
        ({"num": {}}, InvalidValueError, "num: say how many"),
        ({"num": {"tain": 5}}, InvalidValueError, "a split of num must be one of 'train'"),
        ({"num": {"train": 5}, "split": "test"}, InvalidValueError, "leave out split='test'"),
        ({"shards": 6}, InvalidValueError, "shards of train must be a whole number from 1 to 5 files"),
        ({"shards": {"test": 2}}, UnknownNameError, "unknown split in shards 'test'"),
        ({"rank": 2, "world": 2}, InvalidValueError, "rank must lie in 0 to world_size - 1 = 1, got 2"),
        ({"workers": 0}, InvalidValueError, "workers must be a whole number from 1"),
        ({"image": "jpeg"}, InvalidValueError, "image must be one of 'png', 'bmp', 'npy', got 'jpeg'"),
        ({"format": "imagefolder", "image": "npy"}, InvalidValueError, "image must be one of 'png', 'bmp', got"),
        ({"format": "imagefolder", "num_classes": 200_000}, InvalidValueError, "folder for each class, at most"),
        ({"dtype": "float32"}, InvalidValueError, "dtype='uint8'"),
        ({"hight": 16}, UnknownNameError, "did you mean 'height'"),
        ({"format": "cifar10"}, InvalidValueError, "needs train and test"),
        ({"format": "cifar10", "num": None, "height": 16}, InvalidValueError, "this stream has .* height=32"),
        ({"format": "cifar10", "num": None, "num_classes": 9}, InvalidValueError, "and 9 classes"),
        ({"format": "cifar10", "num": None, "shards": 3}, InvalidValueError, "leave out shards=3"),
        ({"format": "cifar10", "num": {"train": 10**8, "test": 5}}, InvalidValueError, "holds 2 GiB"),
        ({"repo": "me/fractals"}, InvalidValueError, "format 'hub' that is complete"),
        ({"repo": "me/fractals", "format": "hub", "world": 2}, InvalidValueError, "run once more with world=1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    asked: Any, error: Any, told: str, tmp_path: Path
) -> None:
    defaults = {"format": "webdataset", "num": 5, "device": "cpu", "progress": False}
    with pytest.raises(error, match=told):
        export("fractal-10", tmp_path / "new", **{**defaults, **asked})
    assert not (tmp_path / "new").exists()


def test_streams_that_are_open_keep_their_settings_and_splits(tmp_path: Path) -> None:
    stream = fractals()
    for source, asked, told in (
        (stream, {"num": 5, "seed": 3}, "seed: of a stream that is open already"),
        (stream, {"num": {"train": 5, "test": 5}}, "there are streams of train"),
        ({"test": stream}, {"num": {"test": 5}}, "given for 'test' is of split 'train'"),
        ({"train": stream, "test": fractals(split="test", num_classes=7)}, {"num": BOTH}, "same classes"),
        (NumberedPictures(clips=True), {"num": 5, "format": "cifar10"}, "clips of"),
        (3, {"num": 5}, "opens from a preset's name or a spec"),
    ):
        with pytest.raises(InvalidValueError, match=told):
            export(source, tmp_path / "new", progress=False, **asked)


def test_a_mixture_is_exported_as_any_stream(tmp_path: Path) -> None:
    mixture = Mixture([fractals(), NumberedPictures16()], weights=(1, 2), labels="component")
    export(mixture, tmp_path, format="npz", num=40, shards=2, progress=False)
    read = np.load(tmp_path / "train" / "shard-000001.npz")
    assert np.array_equal(read["images"], mixture.generate(range(20, 40)).images)
    assert json.loads((tmp_path / "manifest.json").read_text())["streams"]["train"]["weights"] == [1, 2]


class NumberedPictures16(NumberedPictures):
    """Numbered pictures of 16 x 16."""

    def generate(self, indices: Any) -> Any:
        from dataclasses import replace

        batch = super().generate(indices)
        return replace(batch, images=batch.images.repeat(2, axis=2).repeat(2, axis=3), latents={})


def test_folders_of_classes_have_names_that_every_system_takes() -> None:
    class Named(NumberedPictures):
        def class_title(self, label: int) -> str:
            return ("Fatou/Julia: *c* = \u03c6", "", "class 2", "..")[label]

    assert [class_folder(Named(), label, 2) for label in range(4)] == ["00-fatou-julia-c", "01", "02", "03"]


# The hub


def test_a_complete_folder_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    class Api:
        def create_repo(self, repo: str, **asked: Any) -> str:
            calls.append((repo, asked, {}))
            return f"https://huggingface.co/datasets/{repo}"

        def upload_folder(self, *, folder_path: str, **asked: Any) -> None:
            calls.append(("", asked, tree(Path(folder_path))))

    monkeypatch.setattr(hub, "HfApi", Api)
    report = numbered(tmp_path, format="hub", repo="me/fractals")
    assert report.url == "https://huggingface.co/datasets/me/fractals"
    assert calls[0] == ("me/fractals", {"repo_type": "dataset", "exist_ok": True}, {})
    assert calls[1][1]["repo_id"] == "me/fractals" and calls[1][2] == tree(tmp_path)
    assert {"README.md", "manifest.json", "data/train-00000-of-00003.parquet"} <= set(calls[1][2])


def test_a_card_that_was_edited_stays(tmp_path: Path) -> None:
    numbered(tmp_path, format="hub")
    card = tmp_path / "README.md"
    made = card.read_text()
    card.write_text(made + "\nOur own words.\n")
    numbered(tmp_path, format="hub")
    assert card.read_text().endswith("Our own words.\n")
    card.unlink()
    numbered(tmp_path, format="hub")
    assert card.read_text() == made


def test_exporting_archives_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom numbered_pictures import NumberedPictures\n"
        "from fractal_streams.integrations.export import export\n"
        "export(NumberedPictures(), sys.argv[1], format='webdataset', num=5, progress=False)\n"
        "assert not {'torch', 'pyarrow', 'datasets', 'PIL', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "made")], check=True, cwd=PROGRAM.parent)
