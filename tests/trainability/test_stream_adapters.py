"""Points and tiles through every loader: each sample once, in order, with exact resume, latents and all."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractal_streams import Mixture, PointSpec, PointStream, Shard, TileSpec, TileStream
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.reference import ReferenceTrainer

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader

from fractal_streams import IndexedStream, Loader, StreamDataset

TANH = Experiment(width=8, dataset_mode="single_example", steps=30)
IDENTITY = TANH.replace(nonlinearity="identity")
STREAMS: dict[str, Any] = {
    "points": PointStream(PointSpec(experiment=TANH, losses=2), trainer=ReferenceTrainer()),
    "tiles": TileStream(
        TileSpec(experiments=(TANH, IDENTITY), height=8, width=10, min_depth=1, max_depth=2),
        trainer=ReferenceTrainer(),
    ),
}  # fmt: skip
COUNT = 24
per_stream = pytest.mark.parametrize("name", STREAMS)


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """The first samples of each stream, in one call."""
    return {name: stream.generate(range(COUNT)) for name, stream in STREAMS.items()}


def assert_samples(found: Any, truth: Any) -> list[int]:
    """Whether batches with all fields are what the stream gives; their indices."""
    indices: list[int] = []
    for item in found:
        rows = item["index"].tolist()
        for name, values in {"images": item["images"], "labels": item["labels"], **item["latents"]}.items():
            expected = getattr(truth, name) if name in ("images", "labels") else truth.latents[name]
            np.testing.assert_array_equal(values.numpy(), expected[rows], err_msg=name)
            assert values.numpy().dtype == expected.dtype
        indices += rows
    return indices


@per_stream
def test_a_loader_goes_on_where_it_stood(name: str, truth: dict[str, Any]) -> None:
    loader = Loader(STREAMS[name], batch_size=4, length=COUNT, fields="dict")
    read = list(itertools.islice(loader, 2))
    resumed = Loader(STREAMS[name], batch_size=8, length=COUNT, fields="dict")  # another batch size too
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert assert_samples([*read, *resumed], truth[name]) == list(range(COUNT))


@per_stream
def test_ranks_and_workers_share_every_sample(name: str, truth: dict[str, Any]) -> None:
    seen = []
    for rank in range(2):
        data = StreamDataset(STREAMS[name], 3, length=COUNT, shard=Shard(rank, 2), fields="dict")
        seen.append(assert_samples(DataLoader(data, batch_size=None, num_workers=2), truth[name]))
    assert sorted(seen[0] + seen[1]) == list(range(COUNT))
    assert seen[0][:3] == [0, 1, 2] and seen[1][:3] == [3, 4, 5]


@per_stream
def test_single_samples_and_random_access(name: str, truth: dict[str, Any]) -> None:
    batch = next(iter(DataLoader(IndexedStream(STREAMS[name], COUNT, fields="dict"), batch_size=5)))
    renamed = {"images": batch["image"], "labels": batch["label"], **{k: batch[k] for k in ("index", "latents")}}
    assert assert_samples([renamed], truth[name]) == list(range(5))
    singles = list(StreamDataset(STREAMS[name], length=7, fields="batch"))
    assert [sample.index for sample in singles] == list(range(7))
    np.testing.assert_array_equal(singles[6].latents["measure"].numpy(), truth[name].latents["measure"][6])


@per_stream
@pytest.mark.parametrize("form", ["image", "tensor"])
def test_hugging_face_goes_on_where_it_stood(name: str, form: Any, truth: dict[str, Any]) -> None:
    pytest.importorskip("datasets")
    from fractal_streams.integrations.huggingface import load_dataset

    settings = {"format": "tensor", "batch_size": 4} if form == "tensor" else {}

    def opened() -> Any:
        return load_dataset(STREAMS[name], length=COUNT, latents=True, **settings)

    dataset, found = opened(), []
    for item in itertools.islice(dataset, 3):
        found.append(item)
    again = opened()
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    found += list(again)
    if form == "tensor":
        images = np.concatenate([item["images"].numpy() for item in found])
        labels, index = (np.concatenate([item[key].numpy() for item in found]) for key in ("labels", "index"))
    else:
        images = np.stack([np.asarray(item["image"]).transpose(2, 0, 1) for item in found])
        labels, index = ([item[key] for item in found] for key in ("label", "index"))
        titles = [STREAMS[name].class_title(label) for label in range(2)]
        assert dataset.features["label"].names == titles
    assert list(index) == list(range(COUNT))
    np.testing.assert_array_equal(images, truth[name].images)
    np.testing.assert_array_equal(labels, truth[name].labels)
    for column, values in truth[name].latents.items():
        told = np.concatenate([item[column] for item in found]) if form == "tensor" else [row[column] for row in found]
        np.testing.assert_array_equal(np.asarray(told, values.dtype), values, err_msg=column)


def assert_json(facts: dict[str, Any], truth: Any, row: int) -> None:
    """Whether the JSON of a sample says its latents, maps as nested lists."""
    for name, values in truth.latents.items():
        told = np.array(facts["latents"][name], np.float64)
        np.testing.assert_array_equal(told, values[row].astype(np.float64), err_msg=name)


@per_stream
def test_webdataset_goes_on_where_it_stood(name: str, truth: dict[str, Any]) -> None:
    pytest.importorskip("webdataset")
    from fractal_streams.integrations.webdataset import StreamSource

    source = StreamSource(STREAMS[name], length=COUNT, image="png")
    found = list(itertools.islice(source, 7))
    resumed = StreamSource(STREAMS[name], length=COUNT, start=source.position, image="png")
    found += list(resumed)
    assert [int(sample["__key__"]) for sample in found] == list(range(COUNT))
    for row, sample in enumerate(found):
        assert int(sample["cls"]) == truth[name].labels[row]
        assert_json(json.loads(sample["json"]), truth[name], row)


@per_stream
def test_a_tar_holds_pictures_labels_and_maps(name: str, truth: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    pillow = pytest.importorskip("PIL.Image")
    from fractal_streams.integrations.export import export

    export(STREAMS[name], tmp_path / "out", format="webdataset", num=5, progress=False)
    (path,) = (tmp_path / "out").rglob("*.tar")
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    for row in range(5):
        shown = np.asarray(pillow.open(io.BytesIO(files[f"{row:08d}.png"]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(shown, truth[name].images[row])
        assert int(files[f"{row:08d}.cls"]) == truth[name].labels[row]
        assert_json(json.loads(files[f"{row:08d}.json"]), truth[name], row)


def test_mixtures_take_points_and_tiles() -> None:
    maps = TileStream(STREAMS["tiles"].spec, trainer=ReferenceTrainer())
    other = TileStream(STREAMS["tiles"].spec.replace(experiments=TANH), trainer=ReferenceTrainer())
    mixed = Mixture([maps, other], labels="component")
    batch, of = mixed.generate(range(12)), mixed.components(range(12))
    for row in range(12):
        assert batch.labels[row] == of[row]
        expected = (maps, other)[of[row]].generate([row]).latents["labels_map"][0]
        np.testing.assert_array_equal(batch.latents["labels_map"][row], expected)
    assert mixed.cost == max(maps.cost, other.cost) > 1
    rates, scales = (
        PointStream(PointSpec(experiment=TANH.replace(axes=axes), height=8, width=10), trainer=ReferenceTrainer())
        for axes in (("lr0", "lr1"), ("lr", "scale"))
    )
    pair = Mixture([rates, scales])
    latents, of = pair.generate(range(12)).latents, pair.components(range(12))
    np.testing.assert_array_equal(np.isnan(latents["lr0"]), of == 1)
    np.testing.assert_array_equal(np.isnan(latents["scale"]), of == 0)


def test_dear_samples_are_made_in_small_blocks() -> None:
    """Else a reader of single tiles would wait for 256 of them."""
    from fractal_streams.integrations.containers.samples import block_rows

    dear = Experiment()  # 272 rows, 500 steps
    stream = TileStream(TileSpec(experiments=dear), trainer=ReferenceTrainer())
    assert stream.cost > 10_000 and block_rows(stream, 2**23, 256) == 1
    cheap = STREAMS["tiles"]
    assert 1 < cheap.cost < 100 and block_rows(cheap, 2**23, 256) == 256


SMALL: dict[str, dict[str, Any]] = {
    "trainability-points": {"boundary_share": 1.0},
    "trainability-tiles": {"height": 8, "width": 8, "min_depth": 1, "max_depth": 2},
}
SEED = 38
"""Whose first four tiles are of one class: kernels of the others would be compiled for this test alone."""


@pytest.mark.parametrize("name", SMALL)
def test_presets_open_by_name_everywhere(name: str) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    import fsspec
    from fractal_streams.integrations.huggingface import load_dataset

    from fractal_streams import open_stream

    stream = open_stream(name, seed=SEED, split="test", device="cpu", **SMALL[name])
    truth = stream.generate(range(4))
    rows = list(load_dataset(name, split="test", seed=SEED, device="cpu", length=4, **SMALL[name]))
    for row in range(4):
        np.testing.assert_array_equal(np.asarray(rows[row]["image"]).transpose(2, 0, 1), truth.images[row])
        assert rows[row]["label"] == truth.labels[row]
    told = ",".join(f"{field}={value}" for field, value in SMALL[name].items())
    with fsspec.open(f"fractal://{name}/test/seed={SEED}/{told}/samples=4/shard-000000.jsonl", "rt") as lines:
        for row, line in enumerate(lines):
            assert_json(json.loads(line), truth, row)
    loaded = DataLoader(StreamDataset(stream, 2, length=4), batch_size=None, num_workers=2)
    np.testing.assert_array_equal(np.concatenate([images.numpy() for images, _ in loaded]), truth.images)
