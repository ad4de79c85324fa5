"""What `datasets` reads of a stream: the right samples, once each, at once after any number of them."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")

from counted_stream import FORMATS, Counted, first, indices, per_format
from datasets.distributed import split_dataset_by_node
from fractal_streams.integrations.huggingface import (
    load_dataset,
    position,
)
from fractal_streams.integrations.huggingface_source import BatchSource
from fractal_streams.recipes.benchmarks import plumbing
from hypothesis import given, settings as checked, strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fractal_streams import Mixture, Shard, StreamSpec, open_stream
from fractal_streams.errors import InvalidValueError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # Python 3.12, of fork
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]
few = checked(max_examples=25, deadline=None)


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
    pool = plumbing.Pool()
    batch = next(iter(load_dataset(pool, format="tensor", batch_size=64, start=128)))
    assert batch["images"].data_ptr() == pool.images[128:].ctypes.data and batch["images"].dtype == torch.uint8
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


SEVERAL = StreamSpec(formulas=("kali", "julia"), num_classes=2)


@pytest.mark.parametrize("source, shape", [(SEVERAL, ()), ("fractal-video", (3,))], ids=["several", "video"])
def test_latents_are_columns_where_they_are_asked_for(source: Any, shape: tuple[int, ...], tmp_path: Any) -> None:
    stream = open_stream(source, device="cpu", height=8, width=8, **({"frames": 3} if shape else {}))
    latents = stream.generate(range(6)).latents
    asked: dict[str, Any] = {"latents": True, "length": 6}
    streamed = load_dataset(stream, **asked)
    tables = list(streamed.with_format("arrow"))
    stored = load_dataset(stream, streaming=False, cache_dir=str(tmp_path), **asked)
    assert stored.features == streamed.features and list(streamed.features) == ["image", "label", "index", *latents]
    assert list(load_dataset(stream).features) == ["image", "label", "index"]
    (batch,) = load_dataset(stream, format="tensor", **asked)
    for column, values in latents.items():
        assert values.shape == (6, *shape)
        in_tables = [value for table in tables for value in table[column].to_pylist()]
        for found in (in_tables, [row[column] for row in streamed], stored[column][:], batch[column].numpy()):
            assert np.array_equal(np.asarray(found, np.float32), values, equal_nan=True)
    assert len(load_dataset(stream, streaming=False, cache_dir=str(tmp_path), length=6).column_names) == 3


def test_a_latent_with_the_name_of_a_column_is_refused() -> None:
    class Named(Counted):
        def generate(self, indices: Any) -> Any:
            batch = super().generate(indices)
            return replace(batch, latents={"label": batch.labels})

    for settings in FORMATS.values():
        assert first(load_dataset(Named(), **settings), 1)[0] == 0
        with pytest.raises(InvalidValueError, match="'label'"):
            load_dataset(Named(), latents=True, **settings)


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
def test_resume_behind_ten_million_images_renders_none_of_them(settings: dict[str, Any]) -> None:
    stream = Counted()
    state = load_dataset(stream, **settings).state_dict()
    leaf = state["examples_iterable"]
    leaf = leaf.get("examples_iterable", leaf)
    leaf["done"] = 10_000_000 // leaf["unit"]
    stream.made = 0
    dataset = load_dataset(stream, **settings)
    dataset.load_state_dict(state)
    assert indices([next(iter(dataset))])[0] == 10_000_000 and stream.made <= 16


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
