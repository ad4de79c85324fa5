"""Exports: what every reader finds in them, stills and clips."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from exported import fractals, hwc, numbered
from fractal_streams.integrations.cifar_files import batch_pickle, meta_pickle
from fractal_streams.integrations.export import export
from hypothesis import given, settings, strategies as st
from numbered_pictures import NumberedPictures

from fractal_streams import StreamSpec, open_stream

# What each reader finds


@pytest.mark.slow
def test_torchvision_reads_an_image_folder(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    spec = StreamSpec(formulas=("kali", "julia", "sine", "burning_ship"), num_classes=4, height=16, width=16)
    report = export(spec, tmp_path, num={"train": 150, "test": 40}, progress=False, seed=5, device="cpu")
    assert report.complete and report.images == 190
    for split, count in (("train", 150), ("test", 40)):
        stream = open_stream(spec, split=split, seed=5, device="cpu")
        read = torchvision.datasets.ImageFolder(str(tmp_path / split), allow_empty=True)
        assert [int(name.partition("-")[0]) for name in read.classes] == list(range(stream.num_classes))
        assert read.classes[3].partition("-")[2] == stream.class_title(3).replace("_", "-")
        assert sorted(int(Path(path).stem) for path, _ in read.samples) == list(range(count))
        for place in range(count):
            image, label = read[place]
            index = int(Path(read.samples[place][0]).stem)
            assert label == stream[index].label and np.array_equal(np.asarray(image), hwc(stream, index))


def test_a_class_without_a_sample_keeps_its_folder(tmp_path: Path) -> None:
    numbered(tmp_path, format="imagefolder", num={"train": 4}, shards=1)
    assert sorted(each.name for each in (tmp_path / "train").iterdir()) == [str(label) for label in range(10)]


@pytest.mark.parametrize("image", ["png", "bmp", "npy"])
def test_webdataset_reads_its_archives(image: str, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    stream = fractals()
    export(stream, tmp_path, format="webdataset", num=50, shards=4, image=image, progress=False)
    urls = [str(tmp_path / "train" / f"shard-{place:06d}.tar") for place in range(4)]
    samples = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    if image == "bmp":
        from PIL import Image

        pictures = [(np.asarray(Image.open(io.BytesIO(each["bmp"]))), each["__key__"]) for each in samples]
    else:
        read = list(samples.decode("rgb8") if image == "png" else samples.decode())
        pictures = [
            (each[image] if image == "png" else each["npy"].transpose(1, 2, 0), each["__key__"]) for each in read
        ]
        assert [each["cls"] for each in read] == stream.labels(range(50)).tolist()
        assert read[7]["json"]["index"] == 7 and read[7]["json"]["class"] == stream.class_title(read[7]["cls"])
    assert [int(key) for _, key in pictures] == list(range(50))
    for index, (picture, _) in enumerate(pictures):
        assert np.array_equal(picture, hwc(stream, index))


def test_timm_finds_the_lengths_of_archives(tmp_path: Path) -> None:
    numbered(tmp_path)
    told = json.loads((tmp_path / "_info.json").read_text())["splits"]["test"]
    assert told["num_samples"] == 12 and sum(told["shard_lengths"]) == 12
    for name, length in zip(told["filenames"], told["shard_lengths"], strict=True):
        with tarfile.open(tmp_path / name) as archive:
            assert len(archive.getnames()) == 3 * length


@pytest.mark.parametrize("format", ["parquet", "hub"])
def test_datasets_loads_the_folder_of_parquet_files(format: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = {"train": fractals(), "test": fractals(split="test")}
    export(source, tmp_path / "made", format=format, num={"train": 45, "test": 10}, shards=2, progress=False)
    read = datasets.load_dataset(str(tmp_path / "made"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in read.items()} == {"train": 45, "test": 10}
    assert read["train"].features == datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[f"class {label}" for label in range(10)]),
        index=datasets.Value("int64"),
    )  # fmt: skip
    for split, rows in read.items():
        for index, row in enumerate(rows):
            assert row["index"] == index and row["label"] == source[split][index].label
            assert np.array_equal(np.asarray(row["image"]), hwc(source[split], index))


def test_a_card_names_classes_in_all_letters(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    titles = ["\U0001f600 smile", "a: b", '"quoted"', "\u65e5", "- dash", "# hash", "null", "10", "\\u0041", "\xe9\x7f"]

    class Titled(NumberedPictures):
        def class_title(self, label: int) -> str:
            return titles[label]

    export(Titled(), tmp_path / "made", format="hub", num=20, progress=False)
    builder = datasets.load_dataset_builder(str(tmp_path / "made"), cache_dir=str(tmp_path / "cache"))
    assert builder.info.features["label"].names == titles


def test_pandas_reads_parquet(tmp_path: Path) -> None:
    pandas, image = pytest.importorskip("pandas"), pytest.importorskip("PIL.Image")
    stream = fractals()
    export(stream, tmp_path, format="parquet", num=20, shards=1, progress=False)
    table = pandas.read_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert table["label"].tolist() == stream.labels(range(20)).tolist()
    for index, cell in enumerate(table["image"]):
        assert np.array_equal(np.asarray(image.open(io.BytesIO(cell["bytes"]))), hwc(stream, index))


def test_datasets_loads_arrow_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = {"train": fractals(), "test": fractals(split="test")}
    export(source, tmp_path / "made", format="arrow", num={"train": 45, "test": 10}, shards=2, progress=False)
    read = datasets.load_from_disk(str(tmp_path / "made"))
    assert {split: len(rows) for split, rows in read.items()} == {"train": 45, "test": 10}
    assert str(read["test"].split) == "test" and read["train"].features["label"].names[3] == "class 3"
    for split, rows in read.items():
        for index, row in enumerate(rows):
            assert (row["index"], row["label"]) == (index, source[split][index].label)
            assert np.array_equal(np.asarray(row["image"]), hwc(source[split], index))


def test_numpy_reads_npz(tmp_path: Path) -> None:
    stream = fractals()
    export(stream, tmp_path, format="npz", num=41, shards=2, progress=False)
    parts = [np.load(tmp_path / "train" / f"shard-{place:06d}.npz") for place in range(2)]
    wanted = stream.generate(range(41))
    for name in ("images", "labels", "index"):
        assert np.array_equal(np.concatenate([part[name] for part in parts]), getattr(wanted, name))


def cifar(folder: Path, **settings: Any) -> dict[str, Any]:
    source = {
        split: open_stream("fractal-10", seed=5, device="cpu", split=split, **settings) for split in ("train", "test")
    }
    export(source, folder, format="cifar10", num={"train": 53, "test": 11}, progress=False)
    return source


@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
def test_the_pickles_of_cifar10_read_as_the_authors_say(encoding: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = cifar(tmp_path, channels_last=encoding == "bytes")
    read: dict[str, Any] = {"train": [], "test": []}
    for split, names in (("train", [f"data_batch_{place}" for place in range(1, 6)]), ("test", ["test_batch"])):
        for name in names:
            with (tmp_path / "cifar-10-batches-py" / name).open("rb") as file:
                read[split].append(pickle.load(file, encoding=encoding))
    kind = (lambda name: name.encode()) if encoding == "bytes" else str
    assert set(read["test"][0]) == {kind(name) for name in ("batch_label", "labels", "data", "filenames")}
    for split, stream in source.items():
        data = np.concatenate([each[kind("data")] for each in read[split]])
        labels = [label for each in read[split] for label in each[kind("labels")]]
        wanted = stream.generate(range(len(labels)))
        images = wanted.images.transpose(0, 3, 1, 2) if stream.pixels.channels_last else wanted.images
        assert np.array_equal(data.reshape(-1, 3, 32, 32), images) and labels == wanted.labels.tolist()
        assert len(labels) == {"train": 53, "test": 11}[split]


def test_torchvisions_cifar10_reads_the_pickles_but_for_its_checksums(tmp_path: Path) -> None:
    original = pytest.importorskip("torchvision").datasets.CIFAR10

    class Unchecked(original):  # type: ignore[misc, valid-type]
        meta: ClassVar[Any] = {**original.meta, "md5": None}

        def _check_integrity(self) -> bool:
            return True

    source = cifar(tmp_path)
    for train, split, count in ((True, "train", 53), (False, "test", 11)):
        read = Unchecked(str(tmp_path), train=train)
        assert read.classes == [f"class {label}" for label in range(10)] and len(read) == count
        for index, (image, label) in enumerate(read):
            assert label == source[split][index].label and np.array_equal(np.asarray(image), hwc(source[split], index))
    with pytest.raises(RuntimeError, match="corrupted"):
        original(str(tmp_path))


def test_fast_trainers_read_the_pt_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = cifar(tmp_path)
    for split, count in (("train", 53), ("test", 11)):
        read = torch.load(tmp_path / f"{split}.pt", weights_only=True)
        wanted = source[split].generate(range(count))
        assert (read["images"].dtype, read["images"].shape) == (torch.uint8, (count, 32, 32, 3))
        assert np.array_equal(read["images"].numpy(), wanted.images.transpose(0, 2, 3, 1))
        assert read["labels"].tolist() == wanted.labels.tolist() and read["classes"][9] == "class 9"


@given(st.lists(st.integers(0, 9), max_size=4), st.text(max_size=300))
@settings(max_examples=30, deadline=None)
def test_pickles_of_python_2_hold_what_they_are_given(labels: list[int], title: str) -> None:
    data = np.arange(len(labels) * 3072, dtype=np.int64).astype(np.uint8).reshape(-1, 3072)
    names = [f"{title}{label}" for label in labels]
    plain = [name.encode("latin1", "replace").decode("latin1") for name in (title, *names)]
    read = pickle.loads(batch_pickle(title, data, labels, names), encoding="latin1")
    assert np.array_equal(read["data"], data) and read["data"].dtype == np.uint8
    assert (read["batch_label"], read["labels"], read["filenames"]) == (plain[0], labels, plain[1:])
    assert pickle.loads(meta_pickle(70_000, names), encoding="latin1")["num_cases_per_batch"] == 70_000


# Clips


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_tables_carry_clips(format: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    stream = NumberedPictures(clips=True)
    export(stream, tmp_path / "made", format=format, num=7, shards=2, progress=False)
    if format == "arrow":
        read = datasets.load_from_disk(str(tmp_path / "made"))["train"]
    else:
        read = datasets.load_dataset(str(tmp_path / "made"), cache_dir=str(tmp_path / "cache"), split="train")
    assert read.features["image"].shape == (3, 3, 8, 8)
    assert np.array_equal(np.stack(list(read.with_format("numpy")["image"])), stream.generate(range(7)).images)


def test_archives_carry_clips(tmp_path: Path) -> None:
    stream = NumberedPictures(clips=True)
    export(stream, tmp_path / "tar", format="webdataset", num=3, shards=1, progress=False)
    export(stream, tmp_path / "npz", format="npz", num=3, shards=1, progress=False)
    wanted = stream.generate(range(3)).images
    assert np.array_equal(np.load(tmp_path / "npz" / "train" / "shard-000000.npz")["images"], wanted)
    with tarfile.open(tmp_path / "tar" / "train" / "shard-000000.tar") as archive:
        for index in range(3):
            file = archive.extractfile(f"{index:08d}.npy")
            assert file is not None and np.array_equal(np.load(io.BytesIO(file.read())), wanted[index])


def test_an_image_folder_has_a_folder_of_frames_for_a_clip(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    stream = NumberedPictures(clips=True)
    export(stream, tmp_path, num=12, shards=2, progress=False)
    frames = [image.open(tmp_path / "train" / "1" / "00000011" / f"{frame:04d}.png") for frame in range(3)]
    assert np.array_equal(np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in frames]), stream[11].image)
    assert export(stream, tmp_path, num=12, shards=2, progress=False).kept == 2
