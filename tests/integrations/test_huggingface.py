"""What `datasets` reads of a stream: the right samples, once each, at once after any number of them."""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")

from datasets.distributed import split_dataset_by_node
from fractal_streams.integrations.huggingface import (
    FractalBuilder,
    generator,
    load_dataset,
    position,
    register,
    unregister,
)
from fractal_streams.integrations.huggingface_source import BatchSource
from hypothesis import given, settings as checked, strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fractal_streams import Batch, Mixture, Shard, Stream, open_stream
from fractal_streams.errors import FractalStreamsError, IndexRangeError, InvalidValueError, UnknownNameError
from fractal_streams.render.raster import PixelFormat

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # Python 3.12, of fork
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]
few = checked(max_examples=25, deadline=None)


class Counted(Stream):
    """8 x 8 pictures whose first 8 bytes are the index; counts what is rendered."""

    def __init__(self, *, split: str = "train", frames: int = 0) -> None:
        self.seed, self.split, self.device, self.num_classes = 0, split, "cpu", 10
        self.pixels, self.frames, self.made = PixelFormat(), frames, 0

    def generate(self, indices: Any) -> Batch:
        index = np.asarray(indices, np.int64)
        self.made += len(index)
        images = np.zeros((len(index), *([self.frames] if self.frames else []), 3, 8, 8), np.uint8)
        images.reshape(len(index), math.prod(images.shape[1:]))[:, :8] = (
            index.astype("<i8").view(np.uint8).reshape(-1, 8)
        )
        return Batch(index, images, index % 10, {})

    def digest(self) -> str:
        return f"counted-{self.split}-{self.frames}"


class Pool(Stream):
    """Slices of ready pictures: what reading them costs is the plumbing around them."""

    seed, split, device, num_classes, pixels = 0, "train", "cpu", 10, PixelFormat()

    def __init__(self) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (8192, 3, 32, 32), dtype=np.uint8)

    def generate(self, indices: Any) -> Batch:
        index = np.arange(indices.start, indices.stop, indices.step)
        begin = indices.start % len(self.pictures)
        return Batch(index, self.pictures[begin : begin + len(index)], index % 10, {})

    def digest(self) -> str:
        return "pool"


def indices(items: Any) -> list[int]:
    """The indices of rows or batches, which their pixels must say too."""
    found: list[int] = []
    for item in items:
        if "images" in item:
            pixels = item["images"].numpy()
            said = np.ascontiguousarray(pixels.reshape(len(pixels), -1)[:, :8]).view("<i8").ravel()
            assert said.tolist() == item["index"].tolist() and item["labels"].tolist() == (said % 10).tolist()
            found += said.tolist()
        else:
            tensor = isinstance(item["image"], torch.Tensor)
            pixels = item["image"].numpy() if tensor else np.asarray(item["image"]).transpose(2, 0, 1)
            said = int(np.ascontiguousarray(pixels).ravel()[:8].view("<i8")[0])
            assert said == int(item["index"]) and int(item["label"]) == said % 10
            found.append(said)
    return found


def first(dataset: Any, count: int) -> list[int]:
    return indices(itertools.islice(dataset, count))


FORMATS: dict[str, dict[str, Any]] = {"image": {}, "tensor": {"format": "tensor", "batch_size": 4}}
per_format = pytest.mark.parametrize("settings", FORMATS.values(), ids=FORMATS)


def test_rows_are_the_samples_of_the_stream() -> None:
    stream = open_stream("fractal-10", seed=3, split="test", device="cpu", height=12, width=10)
    batch = stream.generate(range(7, 10))
    dataset = load_dataset("fractal-10", seed=3, split="test", device="cpu", height=12, width=10)
    assert isinstance(dataset, datasets.IterableDataset) and str(dataset.split) == "test"
    assert dataset.features == {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=[f"class {k}" for k in range(10)]),
        "index": datasets.Value("int64"),
    }
    decoded = dataset.cast_column("image", datasets.Image(decode=False)).skip(7)
    for k, (row, stored) in enumerate(zip(itertools.islice(dataset.skip(7), 3), decoded, strict=False)):
        wanted = batch.images[k].transpose(1, 2, 0)
        assert np.array_equal(np.asarray(row["image"]), wanted) and row["image"].mode == "RGB"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored["image"]["bytes"]))), wanted)
        assert row["label"] == stored["label"] == batch.labels[k] and row["index"] == stored["index"] == 7 + k


def test_batches_are_handed_on_without_a_copy() -> None:
    pool = Pool()
    batch = next(iter(load_dataset(pool, format="tensor", batch_size=64, start=128)))
    assert batch["images"].data_ptr() == pool.pictures[128:].ctypes.data and batch["images"].dtype == torch.uint8
    assert batch["index"].tolist() == list(range(128, 192)) and batch["labels"].dtype == torch.int64


def test_clips_are_lists_of_pictures() -> None:
    stream = open_stream("fractal-video", device="cpu", height=8, width=10, frames=3)
    clip = stream.generate(range(2, 3)).images[0]
    dataset = load_dataset(stream).skip(2)
    assert [np.asarray(each).tolist() for each in next(iter(dataset))["image"]] == clip.transpose(0, 2, 3, 1).tolist()
    shown = next(iter(dataset.with_format("torch")))["image"]
    assert shown.dtype == torch.uint8 and np.array_equal(shown.numpy(), clip)
    assert np.array_equal(next(iter(load_dataset(stream, format="tensor", batch_size=1, start=2)))["images"][0], clip)


def test_a_mixture_is_read_like_any_stream() -> None:
    streams = [open_stream("fractal-10", seed=seed, device="cpu", height=8, width=8) for seed in (0, 1)]
    mixture = Mixture(streams, labels="component")
    row = next(iter(load_dataset(mixture, start=9)))
    assert row["label"] == mixture.labels([9])[0]
    assert np.array_equal(np.asarray(row["image"]).transpose(2, 0, 1), mixture[9].image)
    assert load_dataset(mixture).features["label"].names == ["stream 0", "stream 1"]


@per_format
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_index_comes_once_over_ranks_and_workers(world: int, settings: dict[str, Any]) -> None:
    dataset = load_dataset(Counted(), length=101, **settings)
    for workers in (0, 1, 3):
        found: list[int] = []
        for rank in range(world):
            part = split_dataset_by_node(dataset, rank=rank, world_size=world)
            found += indices(DataLoader(part, batch_size=None, num_workers=workers))
        assert sorted(found) == list(range(101)), workers


@per_format
@pytest.mark.parametrize("world", [1, 3, 7, 8, 11])
def test_ranks_of_an_endless_stream_share_its_beginning(world: int, settings: dict[str, Any]) -> None:
    dataset = load_dataset(Counted(), start=50, **settings)
    ranks = [first(split_dataset_by_node(dataset, rank=rank, world_size=world), 3) for rank in range(world)]
    each = 3 if not settings else 12
    assert sorted(itertools.chain(*ranks)) == list(range(50, 50 + world * each))


@per_format
def test_given_shards_are_what_nodes_get(settings: dict[str, Any]) -> None:
    whole = load_dataset(Counted(), length=40, **settings)
    for rank in range(4):
        own = load_dataset(Counted(), length=40, shard=Shard(rank, 4), **settings)
        assert indices(own) == indices(split_dataset_by_node(whole, rank=rank, world_size=4)) != []


@given(length=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 6), workers=st.integers(1, 6),
       shards=st.integers(1, 50), contiguous=st.booleans())  # fmt: skip
@few
def test_slices_of_slices_are_a_partition(
    length: int, size: int, world: int, workers: int, shards: int, contiguous: bool
) -> None:
    whole = BatchSource(Counted(), unit=size, start=0, length=length, num_shards=shards)
    parts = [whole.shard_data_sources(world, rank, contiguous) for rank in range(world)]
    parts = [part.shard_data_sources(workers, worker, contiguous) for part in parts for worker in range(workers)]
    found = [number for part in parts for _, batch in part for number in batch["index"].tolist()]
    assert Counter(found) == Counter(range(length))
    assert not contiguous or found == list(range(length))


@pytest.mark.parametrize("drop", [False, True])
def test_the_last_batch(drop: bool) -> None:
    sizes = [
        len(batch["labels"]) for batch in load_dataset(Counted(), length=10, drop_last_batch=drop, **FORMATS["tensor"])
    ]
    assert sizes == ([4, 4] if drop else [4, 4, 2])


# ---- resume


def same(dataset: Any) -> Any:
    return dataset


PIPELINES: dict[str, Any] = {
    "plain": same,
    "torch": lambda dataset: dataset.with_format("torch"),
    "map": lambda dataset: dataset.map(lambda row: {"more": row["index"] + 1}),
    "filter": lambda dataset: dataset.filter(lambda row: row["index"] % 3 != 1),
    "cast": lambda dataset: dataset.cast_column("label", datasets.Value("int64")),
    "rank": lambda dataset: split_dataset_by_node(dataset, rank=1, world_size=3),
    "odd rank": lambda dataset: split_dataset_by_node(dataset, rank=1, world_size=11),
    "part": lambda dataset: dataset.skip(5).take(500),
    "interleaved": lambda dataset: datasets.interleave_datasets([dataset, dataset.skip(1000)]),
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
@given(counts=st.tuples(st.integers(0, 300), st.integers(1, 40)))
@checked(max_examples=5, deadline=None)
def test_rows_resume_where_they_stood_twice_in_a_row(pipeline: Any, counts: tuple[int, int]) -> None:
    wanted = first(pipeline(load_dataset(Counted())), sum(counts) + 3)
    state = None
    for count in counts:
        dataset = pipeline(load_dataset(Counted()))
        if state is not None:
            dataset.load_state_dict(state)
        assert first(dataset, count) == wanted[:count]
        wanted, state = wanted[count:], json.loads(json.dumps(dataset.state_dict()))
    dataset = pipeline(load_dataset(Counted()))
    dataset.load_state_dict(state)
    assert first(dataset, 3) == wanted


@given(counts=st.tuples(st.integers(0, 30), st.integers(1, 30)), size=st.integers(1, 9), rank=st.integers(0, 2))
@few
def test_batches_resume_where_they_stood(counts: tuple[int, int], size: int, rank: int) -> None:
    def opened() -> Any:
        dataset = load_dataset(Counted(), format="tensor", batch_size=size)
        return split_dataset_by_node(dataset, rank=rank, world_size=3)

    wanted = first(opened(), sum(counts) + 2)
    before, then = opened(), opened()
    first(before, counts[0])
    then.load_state_dict(before.state_dict())
    first(then, counts[1])
    last = opened()
    last.load_state_dict(then.state_dict())
    assert first(last, 2) == wanted[sum(counts) * size :]


@per_format
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_twice_in_a_row(workers: int, settings: dict[str, Any]) -> None:
    loading = pytest.importorskip("torchdata.stateful_dataloader")

    def opened() -> Any:
        dataset = load_dataset(Counted(), length=400, **settings)
        return loading.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    wanted, found = indices(opened()), []
    assert sorted(wanted) == list(range(400))
    state = None
    for count in (7, 0, 12, None):
        loader = opened()
        if state is not None:
            loader.load_state_dict(state)
        found += indices(itertools.islice(loader, count))
        state = loader.state_dict()
    assert found == wanted


@per_format
def test_resume_behind_ten_million_images_takes_no_time(settings: dict[str, Any]) -> None:
    stream = Counted()
    state = load_dataset(stream, **settings).state_dict()
    leaf = state["examples_iterable"]
    leaf = leaf.get("examples_iterable", leaf)
    leaf["done"] = 10_000_000 // leaf["unit"]
    took = []
    for _ in range(3):
        stream.made = 0
        dataset = load_dataset(stream, **settings)
        begin = time.process_time()
        dataset.load_state_dict(state)
        item = next(iter(dataset))
        took.append(time.process_time() - begin)
        assert indices([item])[0] == 10_000_000 and stream.made <= 16
    assert min(took) < 0.01, took


@given(world=st.integers(1, 5), other=st.integers(1, 5), steps=st.integers(0, 20), size=st.integers(1, 6),
       rows=st.booleans())  # fmt: skip
@few
def test_a_position_goes_on_with_another_world(world: int, other: int, steps: int, size: int, rows: bool) -> None:
    settings = {} if rows else {"format": "tensor", "batch_size": size}
    start, found, said = 0, [], set()
    for ranks in (world, other):
        dataset = load_dataset(Counted(), start=start, **settings)
        parts = [split_dataset_by_node(dataset, rank=rank, world_size=ranks) for rank in range(ranks)]
        found += [number for part in parts for number in first(part, steps)]
        said = {position(part) for part in parts} | {position(part.state_dict()) for part in parts}
        assert len(said) == 1
        start = said.pop()
    assert sorted(found) == list(range(start))


@pytest.mark.parametrize("settings, each", [({"format": "tensor", "batch_size": 4}, 5), ({}, 6)], ids=FORMATS)
def test_ranks_and_workers_change_at_resume(settings: dict[str, Any], each: int) -> None:
    """Batches keep their order at any number of workers; rows are complete after as many from each worker."""
    start, found = 0, []
    for world, workers in ((2, 3), (3, 0), (1, 1), (8, 3), (1, 0)):
        dataset = load_dataset(Counted(), start=start, **settings)
        steps = each if settings else each * max(1, workers)
        for rank in range(world):
            part = split_dataset_by_node(dataset, rank=rank, world_size=world)
            loader = DataLoader(part, batch_size=None if settings else 2, num_workers=workers, collate_fn=same)
            for item in itertools.islice(loader, steps):
                found += indices([item] if settings else item)
        start += steps * world * (4 if settings else 2)
    assert sorted(found) == list(range(start))


def test_a_position_is_refused_where_it_is_not_known() -> None:
    apart = [lambda dataset, k=k: dataset.shard(2, k) for k in (0, 1)]  # each a connected half: no position of both
    for pipeline in (PIPELINES["map"], PIPELINES["torch"], lambda dataset: dataset.repeat(2), *apart):
        dataset = pipeline(load_dataset(Counted(), length=40))
        first(dataset, 5)
        with pytest.raises(InvalidValueError, match="count the samples"):
            position(dataset)
    with pytest.raises(InvalidValueError, match="count the samples"):
        position({"epoch": 0})
    strided = load_dataset(Counted(), length=40).shard(2, 1, contiguous=False)
    assert first(strided, 3) == [1, 3, 5] and position(strided) == 6


@pytest.mark.parametrize("other, named", [
    ({"source": "fractal-100"}, "stream="),
    ({"seed": 1}, "stream="),
    ({"height": 9}, "stream="),
    ({"start": 8}, "start="),
    ({"length": 100}, "stop="),
    ({"batch_size": 8}, "unit="),
    ({"format": "image", "batch_size": None}, "type="),
    ({"shard": Shard(0, 2)}, "units="),
])  # fmt: skip
def test_the_state_of_another_dataset_is_refused(other: dict[str, Any], named: str) -> None:
    asked = {"source": "fractal-10", "height": 8, "width": 8, "device": "cpu", **FORMATS["tensor"]}
    before, after = load_dataset(**asked), load_dataset(**{**asked, **other})
    next(iter(before))
    with pytest.raises(InvalidValueError, match=named):
        after.load_state_dict(before.state_dict())
        next(iter(after))


# ---- what users do with datasets


@per_format
def test_skip_and_take_render_nothing_else(settings: dict[str, Any]) -> None:
    stream = Counted()
    part = load_dataset(stream, **settings).skip(10**12).take(3)
    unit = settings.get("batch_size", 1)
    assert indices(part) == list(range(10**12 * unit, 10**12 * unit + 3 * unit)) and stream.made == 3 * unit
    assert indices(part.skip(2)) == indices(part)[2 * unit :] and indices(part.take(0)) == indices(part.skip(9)) == []
    assert len(indices(split_dataset_by_node(load_dataset(stream), rank=1, world_size=2).skip(2).take(2))) == 2


def test_shuffle_mixes_a_buffer_and_loses_nothing() -> None:
    dataset = load_dataset(Counted(), length=200)
    mixed = dataset.shuffle(seed=1, buffer_size=50)
    assert sorted(indices(mixed)) == list(range(200)) != indices(mixed) == indices(mixed)
    once = indices(mixed)
    mixed.set_epoch(1)
    assert sorted(indices(mixed)) == list(range(200)) and indices(mixed) != once
    assert sorted(indices(DataLoader(mixed, batch_size=None, num_workers=3))) == list(range(200))
    endless = load_dataset(Counted()).shuffle(seed=1, buffer_size=50)
    assert len(set(first(endless, 150))) == 150 and max(first(endless, 150)) < 300
    dataset.set_epoch(3)
    assert indices(dataset) == list(range(200))


@per_format
def test_pipelines_of_datasets(settings: dict[str, Any]) -> None:
    one, two = load_dataset(Counted(), length=8, **settings), load_dataset(Counted(), length=16, start=8, **settings)
    assert indices(datasets.concatenate_datasets([one, two])) == list(range(16))
    mixed = datasets.interleave_datasets(
        [one, two], probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted"
    )
    assert set(indices(mixed)) == set(range(16))
    assert indices(one.map(lambda item: {"more": 1})) == indices(one.filter(lambda item: True)) == list(range(8))
    assert indices(one.repeat(2)) == [*range(8), *range(8)]
    assert indices(datasets.concatenate_datasets([two.shard(2, k) for k in range(2)])) == list(range(8, 16))
    assert set(next(iter(one.remove_columns("index")))) == set(one.column_names) - {"index"}
    batch = next(iter(one.batch(2)))
    assert [len(values) for values in batch.values()] == [2, 2, 2]
    if "format" in settings:
        mixed_batch = next(iter(mixed))
        assert mixed_batch["images"].dtype == torch.uint8 and mixed_batch["images"].shape == (4, 3, 8, 8)


def test_formats_keep_bytes_or_are_refused() -> None:
    rows, batches = load_dataset(Counted()), load_dataset(Counted(), **FORMATS["tensor"])
    assert next(iter(rows.with_format("torch")))["image"].dtype == torch.uint8
    assert next(iter(rows.with_format("numpy")))["image"].dtype == np.uint8
    assert next(iter(rows.with_format("arrow"))).num_rows == 1
    assert next(iter(rows.with_format(None)))["image"].size == (8, 8)
    assert next(iter(batches.with_format("torch")))["images"].dtype == torch.uint8
    for name in ("numpy", "np", "jax", "tf", "pandas", "arrow"):
        with pytest.raises(InvalidValueError, match=r"int64.*\.numpy\(\)"):
            batches.with_format(name)
        with pytest.raises(InvalidValueError, match="int64"):
            batches.skip(3).take(5).with_format(name)


def test_columns_of_rows_batched_by_a_loader() -> None:
    loader = DataLoader(load_dataset(Counted()).with_format("torch"), batch_size=16, num_workers=2)
    for place, batch in enumerate(itertools.islice(loader, 3)):
        assert batch["image"].shape == (16, 3, 8, 8) and batch["image"].dtype == torch.uint8
        assert batch["index"].shape == (16,), place


def test_all_splits_at_once() -> None:
    found = load_dataset(
        "fractal-10", split=None, device="cpu", height=8, width=8, length={"train": 3, "validation": 2, "test": 1}
    )
    assert isinstance(found, datasets.IterableDatasetDict) and list(found) == ["train", "validation", "test"]
    assert {name: len(list(part)) for name, part in found.items()} == {"train": 3, "validation": 2, "test": 1}
    for name, part in found.items():
        stream = open_stream("fractal-10", split=name, device="cpu", height=8, width=8)
        assert np.array_equal(np.asarray(next(iter(part))["image"]).transpose(2, 0, 1), stream[0].image)


def test_batches_rendered_ahead_are_the_same() -> None:
    for asked in ({"length": 50}, {"length": 50, "drop_last": True}, {"length": None}):
        whole = BatchSource(Counted(), unit=4, start=3, num_shards=12, **asked)  # type: ignore[arg-type]
        for part in (whole, whole.shard_data_sources(3, 1, False), whole.part(whole.units[2:9]), whole.part(range(0))):
            for done in (0, 2, 4):
                ahead, here = (
                    [batch.index.tolist() for batch in itertools.islice(way(done), 5)]
                    for way in (part._ahead, part._here)
                )
                assert ahead == here


# ---- stored datasets, builders, names


def test_a_finite_dataset_is_stored_once(tmp_path: Any) -> None:
    stream = Counted()
    asked = {"streaming": False, "length": 2100, "cache_dir": str(tmp_path)}
    stored = load_dataset(stream, **asked)
    assert isinstance(stored, datasets.Dataset) and len(stored) == 2100 and indices(stored) == list(range(2100))
    stream.made = 0
    again = load_dataset(stream, **asked)
    assert stream.made == 0 and again._fingerprint == stored._fingerprint
    other = load_dataset(stream, **{**asked, "length": 2101})
    assert len(other) == 2101 and other._fingerprint != stored._fingerprint
    assert len(load_dataset(stream, **asked, start=2000)) == 100
    parts = load_dataset(
        "fractal-10", split="train[:3]+test[1:]", device="cpu", height=8, width=8, **{**asked, "length": 4}
    )
    assert parts["index"][:] == [0, 1, 2, 1, 2, 3]


def test_two_names_of_a_source_are_refused() -> None:
    register()
    try:
        for name in ("fractal-100", "defautl"):
            with pytest.raises(InvalidValueError, match=f"'fractal-10' and config_name={name!r}"):
                datasets.load_dataset("fractal/fractal-10", name, split="train", streaming=True)
        for name in (None, "default", "fractal-10"):
            assert datasets.load_dataset_builder("fractal/fractal-10", name, device="cpu").config.source == "fractal-10"
    finally:
        unregister()


def test_splits_may_be_those_of_datasets(tmp_path: Any) -> None:
    asked = {"device": "cpu", "height": 8, "width": 8}
    row = next(iter(load_dataset("fractal-10", split=datasets.Split.TEST, **asked)))
    assert row["label"] == open_stream("fractal-10", split="test", **asked).labels([0])[0]
    finite = {"streaming": False, "length": {"test": 3}, "cache_dir": str(tmp_path)}
    assert len(load_dataset("fractal-10", split=datasets.Split.TEST, **finite, **asked)) == 3


def test_a_spec_in_a_file_is_stored_too(tmp_path: Any) -> None:
    spec = open_stream("fractal-10", device="cpu", height=8, width=8).spec
    (tmp_path / "own.json").write_text(spec.to_json())
    finite = {"streaming": False, "length": 3, "cache_dir": str(tmp_path / "cache"), "device": "cpu"}
    stored = load_dataset(str(tmp_path / "own.json"), **finite)
    assert stored["label"][:] == load_dataset(spec, **finite)["label"][:] == open_stream(spec).labels(range(3)).tolist()


def test_a_builder(tmp_path: Any) -> None:
    asked = {"seed": 3, "device": "cpu", "height": 8, "width": 8, "cache_dir": str(tmp_path)}
    stream = open_stream("fractal-10", split="test", **{k: asked[k] for k in ("seed", "device", "height", "width")})
    streaming = FractalBuilder("fractal-10", **asked)
    assert isinstance(streaming, datasets.DatasetBuilder)
    for row in itertools.islice(streaming.as_streaming_dataset(split="test"), 2):
        assert np.array_equal(np.asarray(row["image"]).transpose(2, 0, 1), stream[row["index"]].image)
    assert set(streaming.as_streaming_dataset()) == {"train", "validation", "test"}
    finite = FractalBuilder("fractal-10", length={"train": 5, "validation": 4, "test": 3}, **asked)
    assert {name: split.num_examples for name, split in finite.info.splits.items()} == {
        "train": 5, "validation": 4, "test": 3,
    }  # fmt: skip
    finite.download_and_prepare()
    stored = finite.as_dataset()
    assert {name: len(part) for name, part in stored.items()} == {"train": 5, "validation": 4, "test": 3}
    assert np.array_equal(np.asarray(stored["test"][2]["image"]).transpose(2, 0, 1), stream[2].image)
    ids = [FractalBuilder(source, **{**asked, **more}).config_id for source, more in (
        ("fractal-10", {}), ("fractal-10", {"seed": 4}), ("fractal-10", {"height": 9}), ("fractal-100", {}),
        ("fractal-10", {"length": 5}), ("fractal-10", {"start": 1}))]  # fmt: skip
    assert len(set(ids)) == 6


NAMED = """
import datasets, json, os, sys
import fractal_streams.integrations.huggingface as ours
before = datasets.load.dataset_module_factory
ours.register(); ours.register()
asked = dict(seed=3, height=8, width=8, device="cpu")
streaming = datasets.load_dataset("fractal/fractal-10", split="train", streaming=True, **asked)
finite = datasets.load_dataset("fractal/fractal-10", split="test", length=2100, num_proc=2, **asked)
formula = datasets.load_dataset("fractal/julia", split="train", streaming=True, **asked)
named = datasets.load_dataset("fractal", "fractal-100", split="train", streaming=True, **asked)
state = streaming.state_dict()
said = [len(finite), finite["index"][2099], next(iter(streaming))["label"], next(iter(formula.skip(9)))["index"],
        named.features["label"].num_classes, state["examples_iterable"]["examples_iterable"]["done"],
        "fractal-10" in datasets.get_dataset_config_names("fractal")]
wrong = []
for name, more in (("fractal/fractal-1O", {}), ("fractal/fractal-10", {"hieght": 8}),
                   ("fractal/fractal-10", {"data_files": "x"}), ("fractal/fractal-10", {"streaming": False})):
    try:
        datasets.load_dataset(name, split="train", **{"streaming": True, **more})
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}")
ours.unregister(); ours.unregister()
try:
    datasets.load_dataset("fractal/fractal-10", split="train", streaming=True)
except Exception as error:
    gone = type(error).__name__
print(json.dumps([said, wrong, datasets.load.dataset_module_factory is before, gone, os.listdir(".")]))
"""


def test_a_name_in_datasets_from_an_empty_folder(tmp_path: Any) -> None:
    (tmp_path / "here").mkdir()
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NAMED], cwd=tmp_path / "here", capture_output=True, text=True,
        env={"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said, wrong, undone, gone, left = json.loads(run.stdout)
    label = int(open_stream("fractal-10", seed=3, device="cpu", height=8, width=8).labels([0])[0])
    assert said == [2100, 2099, label, 9, 100, 0, True] and undone and left == []
    assert gone not in ("UnknownNameError", "InvalidValueError")
    assert "did you mean 'fractal-1" in wrong[0] and "did you mean 'height'" in wrong[1]
    assert "a stream has no files" in wrong[2] and "endless on disk" in wrong[3]


@pytest.mark.parametrize("copied", [True, False])
def test_registering_is_undone(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between other libraries that wrap the same lookup, with `functools.wraps` or without."""
    import datasets.load

    def wrapped(factory: Any) -> Any:
        def other(path: str, *arguments: Any, **settings: Any) -> Any:
            return factory(path, *arguments, **settings)

        return functools.wraps(factory)(other) if copied else other

    def found_by_others(path: str, **settings: Any) -> str:
        return f"theirs {path}"

    def known() -> bool:
        return datasets.load.dataset_module_factory("fractal/julia") != "theirs fractal/julia"

    below, plain = wrapped(found_by_others), datasets.inspect.dataset_module_factory
    monkeypatch.setattr(datasets.load, "dataset_module_factory", below)
    monkeypatch.setattr(datasets.inspect, "dataset_module_factory", plain)
    register()
    once = datasets.load.dataset_module_factory
    register()
    assert datasets.load.dataset_module_factory is once and known()
    unregister()
    unregister()
    assert datasets.load.dataset_module_factory is below and datasets.inspect.dataset_module_factory is plain
    register()
    above = datasets.load.dataset_module_factory = wrapped(datasets.load.dataset_module_factory)
    assert known()
    unregister()
    assert datasets.load.dataset_module_factory is above and not known()
    register()
    assert known()
    unregister()
    assert datasets.load.dataset_module_factory is above and not known()


def test_generators_for_datasets(tmp_path: Any) -> None:
    stream = Counted()
    streaming = datasets.IterableDataset.from_generator(**generator(stream, length=2500))
    assert streaming.num_shards == 3 and indices(streaming) == list(range(2500))
    assert sorted(indices(DataLoader(streaming, batch_size=None, num_workers=2))) == list(range(2500))
    batches = datasets.IterableDataset.from_generator(**generator(stream, format="tensor", batch_size=7, length=2500))
    assert indices(batches) == list(range(2500)) and next(iter(batches))["images"].dtype == torch.uint8
    endless = datasets.IterableDataset.from_generator(**generator(stream, start=5))
    assert first(endless, 3) == [5, 6, 7] and endless.num_shards == 1
    stored = datasets.Dataset.from_generator(**generator(stream, length=30), cache_dir=str(tmp_path))
    assert indices(stored) == list(range(30))


def test_caches_of_generators_follow_what_is_drawn_and_the_version(tmp_path: Any, monkeypatch: Any) -> None:
    from datasets.fingerprint import Hasher
    from fractal_streams.integrations import huggingface

    def key(**settings: Any) -> str:
        stream = open_stream("fractal-10", device="cpu", height=8, width=8, **settings)
        return str(Hasher.hash(generator(stream, length=30)["gen_kwargs"]))

    assert key() == key() and len({key(), key(seed=1), key(split="test")}) == 3
    before = key()
    monkeypatch.setattr(huggingface, "__version__", "9.9.9")
    assert key() != before


# ---- refusals


@pytest.mark.parametrize("asked, kind, named", [
    ({"source": "fractal-1O"}, UnknownNameError, "did you mean 'fractal-1"),
    ({"hieght": 8}, UnknownNameError, "did you mean 'height'"),
    ({"split": "trian"}, InvalidValueError, "split must be one of 'train'"),
    ({"split": "train[:5]"}, InvalidValueError, "split must be one of"),
    ({"format": "numpy"}, InvalidValueError, "format must be one of 'image', 'tensor'"),
    ({"length": 0}, InvalidValueError, "length"),
    ({"length": 2**63}, InvalidValueError, "length"),
    ({"length": {"train": 5, "tset": 4}}, InvalidValueError, "tset"),
    ({"length": {"test": 5}}, InvalidValueError, "does not say how many samples 'train' has"),
    ({"start": -1}, InvalidValueError, "start"),
    ({"start": 11, "length": 10}, InvalidValueError, "start must lie in 0 to length = 10, got 11"),
    ({"seed": -1}, InvalidValueError, "seed"),
    ({"batch_size": 4}, InvalidValueError, "format='tensor'"),
    ({"format": "tensor", "batch_size": 0}, InvalidValueError, "batch_size"),
    ({"dtype": "float32"}, InvalidValueError, "dtype='uint8'"),
    ({"shard": (0, 2)}, InvalidValueError, "Shard"),
    ({"num_shards": 0}, InvalidValueError, "num_shards"),
    ({"num_proc": 2}, InvalidValueError, "streaming=False"),
    ({"streaming": False}, InvalidValueError, "give length="),
    ({"streaming": False, "length": 5, "format": "tensor"}, InvalidValueError, "streaming=True"),
    ({"streaming": False, "length": 5, "shard": Shard(0, 2)}, InvalidValueError, r"dataset\.shard"),
    ({"source": Counted(), "seed": 3}, InvalidValueError, "an opened stream has its own"),
    ({"source": Counted(), "split": "test"}, InvalidValueError, "pass split='train'"),
    ({"source": Counted(split="test")}, InvalidValueError, "pass split='test'"),
    ({"source": 7}, InvalidValueError, "preset"),
])  # fmt: skip
def test_bad_input_is_named(asked: dict[str, Any], kind: type[Exception], named: str, tmp_path: Any) -> None:
    where = {"cache_dir": str(tmp_path)} if asked.get("streaming") is False else {}
    with pytest.raises(kind, match=named) as caught:
        load_dataset(
            **{
                "source": "fractal-10",
                **({} if isinstance(asked.get("source"), Stream) else {"device": "cpu"}),
                **where,
                **asked,
            }
        )
    assert isinstance(caught.value, FractalStreamsError)
    assert not any(path.is_file() and path.suffix != ".lock" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["push_to_hub", "to_parquet", "to_csv", "to_json", "to_list", "to_dict", "to_pandas"])
def test_what_would_never_end_is_refused(name: str) -> None:
    place = [] if name in ("to_list", "to_dict", "to_pandas") else ["somewhere"]
    with pytest.raises(InvalidValueError, match=r"never end: dataset\.take\(n\)"):
        getattr(load_dataset(Counted()), name)(*place)
    with pytest.raises(InvalidValueError, match="format='image'"):
        getattr(load_dataset(Counted(), length=8, **FORMATS["tensor"]), name)(*place)
    with pytest.raises((InvalidValueError, IndexRangeError)):
        load_dataset(Counted()).skip(-1)


class Hub:
    """Takes what `datasets` uploads."""

    files: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, **settings: Any) -> None:
        pass

    def repo_info(self, repo_id: str, **settings: Any) -> Any:
        return type("Repository", (), {"id": repo_id, "sha": "0" * 40, "siblings": []})

    def preupload_lfs_files(self, repo_id: str, additions: list[Any], **settings: Any) -> None:
        import pyarrow.parquet as pq

        self.files += [(each.path_in_repo, pq.read_table(each.path_or_fileobj)) for each in additions]
        raise ConnectionRefusedError("this hub is a test")


def test_a_finite_part_goes_to_the_hub_as_one_file(monkeypatch: Any) -> None:
    import datasets.iterable_dataset as module

    monkeypatch.setattr(module, "HfApi", Hub)
    Hub.files.clear()
    with pytest.raises(ConnectionRefusedError):
        load_dataset(Counted()).take(300).push_to_hub("someone/fractals", token="none")
    [(path, table)] = Hub.files
    assert path == "data/train-00000-of-00001.parquet" and table["index"].to_pylist() == list(range(300))
    pixels = Image.open(io.BytesIO(table["image"][299].as_py()["bytes"]))
    assert indices([{"image": pixels, "label": table["label"][299].as_py(), "index": 299}]) == [299]


def test_a_part_becomes_parquet(tmp_path: Any) -> None:
    load_dataset(Counted(), start=10).take(300).to_parquet(str(tmp_path / "part.parquet"))
    stored = datasets.Dataset.from_parquet(str(tmp_path / "part.parquet"), cache_dir=str(tmp_path))
    assert indices(stored) == list(range(10, 310)) and stored.features["label"].names[3] == "class 3"


def test_an_unsupported_version_of_datasets_says_so() -> None:
    program = (
        "import datasets.iterable_dataset as module\n"
        "del module._BaseExamplesIterable.shard_data_sources\n"
        "import fractal_streams.integrations.huggingface\n"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert "MissingExtraError: datasets " in run.stderr and "has no shard_data_sources" in run.stderr


# ---- rates: CPU time, beside the plain way in the same run


def rate(items: Any, count: int, each: int = 1) -> float:
    """Images a second of CPU, the best of three runs."""
    best = 0.0
    for _ in range(3):
        reading = iter(items)
        next(reading)
        begin = time.process_time()
        assert sum(1 for _ in itertools.islice(reading, count)) == count
        best = max(best, each * count / (time.process_time() - begin))
    return best


def test_tensor_batches_pass_at_ten_million_images_a_second() -> None:
    assert rate(load_dataset(Pool(), format="tensor", batch_size=256), 3000, 256) > 1e7


def test_pictures_pass_at_twice_the_rate_of_png() -> None:
    pool = Pool()

    def plain() -> Any:
        for index in itertools.count():
            yield {"image": Image.fromarray(pool.pictures[index % 8192].transpose(1, 2, 0)), "label": index % 10}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    png = rate(datasets.IterableDataset.from_generator(plain, features=features), 300)
    rows = load_dataset(pool)
    assert rate(rows, 3000) > 2 * png
    assert rate(rows.map(same), 500) > 2 * png
