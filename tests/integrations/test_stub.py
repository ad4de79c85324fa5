"""The stub: one README.md, written whole or not at all, that `datasets` reads as the stream."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from warm import Warm

datasets = pytest.importorskip("datasets")
fsspec = pytest.importorskip("fsspec")
yaml = pytest.importorskip("yaml")

from fractal_streams.integrations import address
from fractal_streams.integrations.address import Address
from fractal_streams.integrations.stub import is_stub, size_category, write_stub

from fractal_streams import Mixture, open_stream
from fractal_streams.errors import FractalStreamsError, InvalidValueError, UnknownNameError
from fractal_streams.presets import PRESETS, find_preset
from fractal_streams.priors import Uniform

OWN_PRIORS = find_preset("fractal-10").replace(priors={"power": Uniform(1.0, 2.0)})
SMALL: dict[str, Any] = {"height": 8, "width": 8}


def head(card: Path) -> dict[str, Any]:
    opening, text, _ = card.read_text().split("---\n", 2)
    assert opening == ""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_a_folder_with_only_a_card(tmp_path: Path) -> None:
    card = write_stub(tmp_path / "new" / "stub", "fractal-10", seed=5, splits={"train": 2345, "test": 20}, **SMALL)
    assert [path.name for path in card.parent.iterdir()] == ["README.md"] and is_stub(card.parent)
    assert [path.name for path in card.parent.parent.iterdir()] == ["stub"]
    said = head(card)
    stream = open_stream("fractal-10", seed=5, device="cpu", **SMALL)
    assert said["fractal_streams"]["digest"] == stream.digest() and said["license"] == "mit"
    assert said["fractal_streams"]["spec"] == json.loads(stream.spec.to_json())  # type: ignore[attr-defined]
    default, endless = said["dataset_info"]
    assert {each["name"]: each["num_examples"] for each in default["splits"]} == {"train": 2345, "test": 20}
    assert default["features"] == endless["features"] and "&" not in card.read_text().partition("\n# ")[0]
    assert [config["config_name"] for config in said["configs"]] == ["default", "endless"]
    builder = datasets.load_dataset_builder(str(card.parent), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 2345, "test": 20}
    assert builder.info.features["label"] == datasets.ClassLabel(names=[f"class {k}" for k in range(10)])


@pytest.mark.parametrize("container", ["parquet", "arrow", "tar"])
def test_datasets_reads_the_stream(container: str, tmp_path: Path) -> None:
    lengths = {"train": 1100, "validation": 7, "test": 3}
    folder = str(
        write_stub(tmp_path / "stub", "fractal-10", seed=5, splits=lengths, container=container, **SMALL).parent
    )
    image, label = ("png", "cls") if container == "tar" else ("image", "label")
    stored = datasets.load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in stored.items()} == lengths
    for split, place in (("train", 1099), ("validation", 6), ("test", 0)):
        stream = open_stream("fractal-10", seed=5, split=split, device="cpu", **SMALL)
        streamed = datasets.load_dataset(folder, split=split, streaming=True)
        for row in (stored[split][place], list(streamed)[place]):
            assert np.array_equal(np.asarray(row[image]).transpose(2, 0, 1), stream[place].image)
            assert row[label] == stream[place].label
            assert container == "tar" or row["index"] == place
    if container == "parquet":
        assert datasets.get_dataset_config_names(folder) == ["default"]
    else:
        endless = iter(datasets.load_dataset(folder, "endless", split="train", streaming=True))
        rows = [next(endless) for _ in range(1500)]
        stream = open_stream("fractal-10", seed=5, device="cpu", **SMALL)
        assert [row[label] for row in rows] == stream.labels(range(1500)).tolist()


@pytest.mark.parametrize("length", [1, 3, 47, 49, 1100, 50_000, 48_001, 1_281_167])
def test_files_share_the_samples_and_ranks_share_the_files(length: int, tmp_path: Path) -> None:
    card = write_stub(tmp_path / "stub", "fractal-10", splits={"test": length}, **SMALL)
    covered, sizes = 0, set()
    for pattern in head(card)["configs"][0]["data_files"][0]["path"]:
        files = fsspec.filesystem("fractal").glob(pattern)
        for file in files:
            held = Address.parse(file).indices
            assert held is not None and held.start == covered
            covered, sizes = held.stop, sizes | {len(held)}
    count = len(datasets.load_dataset(str(card.parent), split="test", streaming=True)._ex_iterable.kwargs["files"])
    assert covered == length and max(sizes) <= min(1000, min(sizes) + 1)
    assert count == length or count % 48 == 0


def test_a_stub_never_comes_to_mean_another_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(address._open.cache_clear)
    folder = str(write_stub(tmp_path / "stub", "fractal-10", splits={"train": 3}, **SMALL).parent)
    asked = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    assert len(datasets.load_dataset(folder, **asked)) == 3
    monkeypatch.setitem(PRESETS, "fractal-10", OWN_PRIORS)  # a later version's
    address._open.cache_clear()
    for streaming in (True, False):
        with pytest.raises(InvalidValueError, match="fractal-10 is not what it was when digest="):
            datasets.load_dataset(folder, streaming=streaming, **asked)
    write_stub(folder, "fractal-10", splits={"train": 3}, force=True, **SMALL)
    wanted = open_stream("fractal-10", device="cpu", **SMALL)[2].image
    assert np.array_equal(np.asarray(datasets.load_dataset(folder, **asked)[2]["image"]).transpose(2, 0, 1), wanted)


def test_an_endless_config_is_not_downloaded(tmp_path: Path) -> None:
    folder = str(write_stub(tmp_path / "stub", "fractal-10", splits={"train": 3}, **SMALL).parent)
    with pytest.raises(InvalidValueError, match=r"endless\.arrow has no end.*streaming=True"):
        datasets.load_dataset(folder, "endless", split="train", cache_dir=str(tmp_path / "cache"))


def test_clips_and_specs(tmp_path: Path) -> None:
    spec = find_preset("fractal-10").replace(num_classes=3, height=9, width=8)
    card = write_stub(tmp_path / "spec", spec, splits={"train": 3})
    assert head(card)["fractal_streams"]["digest"] == open_stream(spec, device="cpu").digest()
    assert head(card)["dataset_info"][0]["features"][1]["dtype"]["class_label"]["names"]["2"] == "class 2"
    clips = write_stub(tmp_path / "clips", "fractal-video", splits={"test": 2}, frames=2, **SMALL)
    stored = datasets.load_dataset(str(clips.parent), split="test", cache_dir=str(tmp_path / "cache"))
    wanted = open_stream("fractal-video", split="test", device="cpu", frames=2, **SMALL).generate(range(2)).images
    assert np.array_equal(np.array(stored["image"][:], np.uint8), wanted)


def test_the_defaults_are_the_lengths_of_cifar(tmp_path: Path) -> None:
    said = head(write_stub(tmp_path / "stub", "julia"))
    lengths = {each["name"]: each["num_examples"] for each in said["dataset_info"][0]["splits"]}
    assert lengths == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert said["size_categories"] == ["10K<n<100K"]
    assert [size_category(10**power) for power in range(2, 10)] == [
        "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B",
    ]  # fmt: skip


def test_nothing_but_a_stub_is_ever_overwritten(tmp_path: Path) -> None:
    folder, asked = tmp_path / "stub", {"splits": {"train": 3}, **SMALL}
    card = write_stub(folder, "fractal-10", **asked)
    before = card.read_text()
    with pytest.raises(InvalidValueError, match="force=True"):
        write_stub(folder, "fractal-100", **asked)
    assert card.read_text() == before
    write_stub(folder, "fractal-100", force=True, **asked)
    assert head(card)["fractal_streams"]["spec"]["num_classes"] == 100 and is_stub(folder)
    mine = tmp_path / "mine"
    for name, text in (("README.md", "my own\n"), ("README.md", "---\nlicense: mit\n---\nmine\n"), ("notes", "my own")):
        mine.mkdir()
        (mine / name).write_text(text)
        for force in (False, True):
            with pytest.raises(InvalidValueError, match="in use and no stub"):
                write_stub(mine, "fractal-10", force=force, **asked)
        assert [(path.name, path.read_text()) for path in mine.iterdir()] == [(name, text)]
        (mine / name).unlink()
        mine.rmdir()
    (folder / "data.bin").write_text("more")
    with pytest.raises(InvalidValueError, match="in use and no stub"):
        write_stub(folder, "fractal-10", force=True, **asked)
    with pytest.raises(InvalidValueError, match="is a file"):
        write_stub(folder / "data.bin", "fractal-10", **asked)
    (tmp_path / "empty").mkdir()
    assert is_stub(write_stub(tmp_path / "empty", "fractal-10", **asked).parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "stub"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write_stub(tmp_path / "old", "fractal-10", splits={"train": 3})
    before = (tmp_path / "old" / "README.md").read_text()
    monkeypatch.setattr(os, "replace", full)
    for place in ("new", "old"):
        with pytest.raises(OSError, match="No space"):
            write_stub(tmp_path / place, "fractal-100", splits={"train": 3}, force=True)
    assert (tmp_path / "old" / "README.md").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("asked, kind, named", [
    ({"source": "fractal-1O"}, UnknownNameError, "did you mean 'fractal-1"),
    ({"hieght": 8}, UnknownNameError, "did you mean 'height'"),
    ({"height": 0}, InvalidValueError, "height"),
    ({"splits": {"trian": 5}}, InvalidValueError, "split must be one of"),
    ({"splits": {"train": 0}}, InvalidValueError, "samples of train"),
    ({"splits": {"train": 10**10}}, InvalidValueError, "samples of train"),
    ({"splits": {}}, InvalidValueError, "splits names"),
    ({"splits": 50}, InvalidValueError, "splits names"),
    ({"seed": -1}, InvalidValueError, "seed"),
    ({"container": "zip"}, InvalidValueError, "container must be one of 'parquet', 'arrow', 'tar'"),
    ({"dtype": "float32"}, FractalStreamsError, "dtype"),
    ({"source": "my.module:formula"}, FractalStreamsError, "formula"),
    ({"source": OWN_PRIORS}, InvalidValueError, "can't say priors"),
    ({"split": "test"}, FractalStreamsError, "split"),
    ({"source": open_stream("fractal-10", device="cpu")}, InvalidValueError, "give stream.spec"),
    ({"source": Mixture([open_stream("fractal-10", device="cpu")])}, InvalidValueError, "export the stream"),
])  # fmt: skip
def test_bad_input_is_named(asked: dict[str, Any], kind: type[Exception], named: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=named):
        write_stub(tmp_path / "stub", **{"source": "fractal-10", **asked})
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_part_of_the_address(tmp_path: Path) -> None:
    card = write_stub(tmp_path / "stub", "fractal-10", splits={"train": 3}, device="cpu")
    assert "/seed=0/device=cpu/" in head(card)["configs"][0]["data_files"][0]["path"][0]


def test_upper_case_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="timm lowers"):
        write_stub(tmp_path / "Stub", "fractal-10", splits={"train": 3})


def test_readers_need_no_import_of_this_package(tmp_path: Path, warm: Warm) -> None:
    folder = write_stub(tmp_path / "stub", "fractal-10", splits={"train": 30}, **SMALL).parent
    program = (
        "import sys, datasets\n"
        "assert not [name for name in sys.modules if name.startswith('fractal_streams')]\n"
        "row = next(iter(datasets.load_dataset(sys.argv[1], split='train', streaming=True)))\n"
        "print(row['image'].size, row['label'])"
    )
    run = warm.run(["-c", program, str(folder)], cwd=Path("/"))
    label = open_stream("fractal-10", device="cpu", **SMALL).labels([0])[0]
    assert run.stdout == f"(8, 8) {label}\n", run.stderr
