"""The commands that hand streams to others: what they write is the library's, and what they refuse is one line."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")

from commands import refused, run
from PIL import Image
from warm import Warm

from fractal_streams import open_stream
from fractal_streams.cli_data import parsed_counts
from fractal_streams.errors import InvalidValueError

COMMAND = (sys.executable, "-m", "fractal_streams")
WARM = ("-c", "from fractal_streams.__main__ import main\nmain()")  # the same where torchvision is imported already


@pytest.mark.parametrize("asked", [
    ("stub", "--preset", "fractal-10", "--set", "seed=3"),
    ("stub", "--set", "splits=3"),
    ("stub", "--set", "source=julia"),
    ("export", "fractal-10", "--num", "3", "--set", "format=npz"),
    ("export", "fractal-10", "--num", "3", "--set", "seed=3"),
    ("export", "fractal-10", "--num", "3", "--set", "device=cpu"),
    ("export", "fractal-10", "--num", "3", "--size", "8", "--set", "height=9"),
])  # fmt: skip
def test_a_setting_with_an_option_of_its_own_is_refused(asked: tuple[str, ...], tmp_path: Path) -> None:
    name = asked[-1].partition("=")[0]
    command, *more = asked
    place = [*more[:1], tmp_path / "new", *more[1:]] if command == "export" else [tmp_path / "new", *more]
    assert f"--set {name}=: this command has an option of its own for {name}" in refused(command, *place)
    assert list(tmp_path.iterdir()) == []


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_writes_the_stream_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked = ("export", "fractal-10", tmp_path / "set", "--num", "8", "--num", "test=4", "--shards", "2", "--seed", "5",
             "--size", "16", "--set", "num_classes=3", "--device", "cpu")  # fmt: skip
    assert "4 shards written, 0 kept, 12 images" in run(*asked).stdout
    before = tree(tmp_path / "set")
    pictures = {name: content for name, content in before.items() if name.endswith(".png")}
    assert len(pictures) == 12
    for split in ("train", "test"):
        stream = open_stream("fractal-10", seed=5, split=split, device="cpu", height=16, width=16, num_classes=3)
        for name in (name for name in pictures if name.startswith(split)):
            sample = stream[int(Path(name).stem)]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures[name]))), sample.image.transpose(1, 2, 0))
    (tmp_path / "set" / min(pictures)).unlink()
    assert "1 shards written (1 were damaged), 3 kept" in run(*asked).stdout
    assert tree(tmp_path / "set") == before
    assert "num.train = 8, and 9 was asked for" in refused(*asked[:3], "--num", "9", *asked[5:])


def test_ranks_write_their_shards_and_the_last_completes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("export", "fractal-10", tmp_path / "set", "--num", "6", "--shards", "3", "--format", "npz", "--size", "8",
             "--device", "cpu")  # fmt: skip
    assert "2 shards written, 0 kept, 4 images" in (first := run(*asked, "--rank", "0", "--world", "2").stdout)
    assert "1 shards of other ranks are missing" in first
    assert "--rank and --world are given together" in refused(*asked, "--rank", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*asked).stdout.strip().endswith("complete")


def test_counts_are_of_a_split() -> None:
    assert parsed_counts([], "train") is None
    assert parsed_counts(["10", "test=2,validation=3"], "train") == {"train": 10, "test": 2, "validation": 3}
    assert parsed_counts(["5_000"], "test") == {"test": 5000}
    for wrong in (["-1"], ["train="], ["=3"], ["3", "train=4"], ["many"]):
        with pytest.raises(InvalidValueError, match="--num is N or SPLIT=N"):
            parsed_counts(wrong, "train")


def test_tar_writes_shards_behind_each_other() -> None:
    address = "fractal-10/test/seed=3/height=8,width=8/samples=2/shard-{000001..000002}.tar"
    written = subprocess.run([*COMMAND, "tar", address], capture_output=True, check=True).stdout
    members = tarfile.open(fileobj=io.BytesIO(written))  # noqa: SIM115  it is memory
    names = [f"{index:08d}.{kind}" for index in (2, 3, 4, 5) for kind in ("png", "cls", "json")]
    assert members.getnames() == names
    stream = open_stream("fractal-10", seed=3, split="test", device="cpu", height=8, width=8)
    picture = np.asarray(Image.open(members.extractfile("00000004.png")))  # type: ignore[arg-type]
    assert np.array_equal(picture, stream[4].image.transpose(1, 2, 0))
    assert int(members.extractfile("00000004.cls").read()) == stream[4].label  # type: ignore[union-attr]


def test_tar_ends_quietly_when_nobody_reads_on() -> None:
    asked = [*COMMAND, "tar", "fractal-10/train/seed=0/height=8,width=8/endless.tar"]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(512)[:12] == b"00000000.png"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) in (0, 1)
    process.stderr.close()


def test_a_script_runs_on_fractals_with_its_own_arguments_and_exit_code(tmp_path: Path, warm: Warm) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom torchvision.datasets import CIFAR10\n"
        "print(sys.argv[1:], len(CIFAR10('data', download=True)), CIFAR10('data')[0][1])\nsys.exit(7)\n"
    )
    asked = [*WARM, "run", "--length", "20", "--seed", "4", str(script), "--lr", "0.1", "--seed", "9"]
    done = warm.run(asked, cwd=tmp_path)
    label = open_stream("fractal-10", seed=4, device="cpu")[0].label
    assert (done.returncode, done.stdout.strip()) == (7, f"['--lr', '0.1', '--seed', '9'] 20 {label}"), done.stderr
    assert "no script at" in refused("run", tmp_path / "none.py")


@pytest.mark.parametrize("line, name", [
    pytest.param("open('not/there')", "FileNotFoundError", marks=pytest.mark.slow),
    ("from fractal_streams.errors import InvalidValueError; raise InvalidValueError('own')",
     "fractal_streams.errors.InvalidValueError"),
])  # fmt: skip
def test_a_failing_script_shows_its_own_traceback(line: str, name: str, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(f"def f():\n    {line}\nf()\n")
    done = subprocess.run([*COMMAND, "run", str(script)], capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and done.stdout == ""
    assert lines[0].startswith("Traceback") and lines[-1].startswith(name)
    places = [shown for shown in lines if shown.lstrip().startswith("File ")]
    assert len(places) == 2 and all(str(script) in place for place in places)


def test_pack_decodes_once_and_names_what_it_skips(tmp_path: Path) -> None:
    for name, label in (("one", "cats"), ("two", "dogs")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (20, 16), (200, 10, 30)).save(tmp_path / "photos" / label / f"{name}.png")
    (tmp_path / "photos" / "dogs" / "broken.png").write_bytes(b"no picture")
    asked = ("pack", tmp_path / "photos", tmp_path / "packed", "--height", "8")
    assert "dogs/broken.png" in refused(*asked)
    assert not (tmp_path / "packed").exists()
    result = run(*asked, "--on-error", "skip")
    assert "2 pictures of 2 classes, 2 decoded now" in result.stdout and "skipped dogs/broken.png" in result.stderr
    assert "0 decoded now" in run(*asked, "--on-error", "skip").stdout
    assert "'raise', 'skip'" in refused(*asked, "--on-error", "ignore")
