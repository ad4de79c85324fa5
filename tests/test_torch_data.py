"""Loaders: whatever workers, world size, batch size and restarts, the samples are the stream's, in its order."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from digits import Digits, indices_of
from torch.utils.data import DataLoader

from fractal_streams import IndexedStream, Shard, StreamDataset, open_stream, torch_data
from fractal_streams.batch import Batch, Sample
from fractal_streams.errors import DeviceError, IndexRangeError, InvalidValueError, VersionError

pytestmark = [
    # Python 3.12 warns wherever a process with threads forks, which is what DataLoader does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]


def test_real_images_are_the_streams_own_through_worker_processes() -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    expected = stream.generate(range(60))
    for workers, batch in ((0, 7), (3, 7), (1, 512)):
        got = list(DataLoader(StreamDataset(stream, batch, length=60), batch_size=None, num_workers=workers))
        assert (torch.cat([images for images, _ in got]).numpy() == expected.images).all()
        assert (torch.cat([labels for _, labels in got]).numpy() == expected.labels).all()
    singles = list(StreamDataset(stream, length=60))
    assert (torch.stack([image for image, _ in singles]).numpy() == expected.images).all()
    assert [label for _, label in singles] == expected.labels.tolist()


@pytest.mark.parametrize(("method", "indexed"), [("spawn", False), ("forkserver", True)])
def test_processes_that_inherit_nothing_give_the_same(method: str, indexed: bool) -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    dataset: Any = IndexedStream(stream, 24) if indexed else StreamDataset(stream, 4, length=24)
    loader = DataLoader(dataset, 4 if indexed else None, num_workers=1, multiprocessing_context=method)
    assert (torch.cat([images for images, _ in loader]).numpy() == stream.generate(range(24)).images).all()


def test_single_samples_keep_the_set_under_workers_and_ranks_and_are_rendered_in_blocks() -> None:
    for workers, world in ((0, 1), (0, 3), (3, 1), (2, 2)):
        got = []
        for rank in range(world):
            dataset = StreamDataset(Digits(), length=500, shard=Shard(rank, world))
            loader = DataLoader(dataset, batch_size=8, num_workers=workers)
            got += [index for images, _ in loader for index in indices_of(images)]
            assert len(dataset) == len(range(rank, 500, world))
        assert sorted(got) == list(range(500))
    stream = Digits()
    assert [label for _, label in StreamDataset(stream, length=500)] == [index % 10 for index in range(500)]
    assert [len(indices) for indices in stream.calls] == [1, 2, 4, 8, 16, 32, 64, 128, 245]
    # With batch_size=None DataLoader itself keeps the order of single samples.
    loader = DataLoader(StreamDataset(Digits(), length=50), batch_size=None, num_workers=3)
    assert [indices_of(image[None])[0] for image, _ in loader] == list(range(50))


def test_blocks_of_large_pictures_are_small() -> None:
    stream = Digits(height=2**17)  # 3 MiB a picture
    assert len(list(islice(iter(StreamDataset(stream)), 9))) == 9
    assert [len(indices) for indices in stream.calls] == [1, 2, 2, 2, 2]


def test_fields_and_transform() -> None:
    stream = Digits()

    def first(batch_size: int | None, fields: Any, start: int = 12) -> Any:
        return next(iter(StreamDataset(stream, batch_size, start=start, fields=fields, transform=torch.Tensor.float)))

    images, labels = first(4, "pair")
    assert images.dtype == torch.float32 and indices_of(images.byte()) == [12, 13, 14, 15]
    assert labels.tolist() == [2, 3, 4, 5] and labels.dtype == torch.int64
    named = first(4, "dict")
    assert named["index"].tolist() == [12, 13, 14, 15] and named["latents"]["half"].tolist() == [6.0, 6.5, 7.0, 7.5]
    assert torch.equal(named["images"], images) and torch.equal(named["labels"], labels)
    whole = first(4, "batch")
    assert isinstance(whole, Batch) and torch.equal(whole.images, images) and whole.latents["half"][1] == 6.5
    image, label = first(None, "pair")
    assert torch.equal(image, images[0]) and label == 2 and type(label) is int
    single = first(None, "dict")
    assert (single["index"], single["label"], float(single["latents"]["half"])) == (12, 2, 6.0)
    sample = first(None, "batch")
    assert isinstance(sample, Sample) and (sample.index, sample.label) == (12, 2) and torch.equal(sample.image, image)
    collated = next(iter(DataLoader(StreamDataset(stream, start=8, fields="dict"), batch_size=3)))
    assert collated["index"].tolist() == [8, 9, 10] and collated["latents"]["half"].tolist() == [4.0, 4.5, 5.0]


def test_cpu_batches_share_the_memory_of_the_stream() -> None:
    class Kept(Digits):
        def generate(self, indices: Any) -> Batch:
            self.last = super().generate(indices)
            return self.last

    stream = Kept()
    images, _ = next(iter(StreamDataset(stream, 4)))
    assert np.shares_memory(images.numpy(), stream.last.images)


def test_endless_streams_have_no_length_and_end_with_the_integers() -> None:
    dataset = StreamDataset(Digits(), 4, start=2**63 - 6)
    with pytest.raises(TypeError, match="endless"):
        len(dataset)
    assert [len(labels) for _, labels in dataset] == [4, 2]
    assert indices_of(next(iter(StreamDataset(Digits(), 2, start=2**63 - 2)))[0]) == [2**63 - 2, 2**63 - 1]


def test_endless_iterations_begin_at_start_each_time() -> None:
    dataset = StreamDataset(Digits(), 4, start=100)
    for _ in range(2):
        assert [indices_of(images)[0] for images, _ in islice(dataset, 3)] == [100, 104, 108]
        assert dataset.position == 112
    dataset.set_epoch(5)
    assert indices_of(next(iter(dataset))[0])[0] == 100


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 3])
def test_len_is_the_number_of_items_that_come(world: int, drop_last: bool) -> None:
    for length in (1, 20, 21, 22, 63, 64):
        for start in (0, 13, length * 3 + 7):
            counts = []
            for rank in range(world):
                dataset = StreamDataset(
                    Digits(), 7, start=start, length=length, shard=Shard(rank, world), drop_last=drop_last
                )  # fmt: skip
                counts.append(len(dataset))
                assert len(list(dataset)) == counts[-1] == len(DataLoader(dataset, batch_size=None))
                assert dataset.position == (start // length + 1) * length
            assert max(counts) - min(counts) <= (0 if drop_last else 1)


def test_drop_last_gives_full_batches_only() -> None:
    got = [labels for _, labels in StreamDataset(Digits(), 8, length=30, drop_last=True)]
    assert [len(labels) for labels in got] == [8, 8, 8]


def test_epochs_repeat_and_one_started_inside_is_finished_first() -> None:
    dataset = StreamDataset(Digits(), 10, start=250, length=100)
    assert [indices_of(images)[0] for images, _ in dataset] == [50, 60, 70, 80, 90]
    assert dataset.position == 300
    with pytest.raises(InvalidValueError, match=r"start=250 lies inside epoch 2 of 100 .*set_epoch\(3\)"):
        iter(dataset)
    dataset.set_epoch(3)
    assert len(dataset) == 10 and [index for images, _ in dataset for index in indices_of(images)] == list(range(100))
    assert dataset.position == 400 == dataset.position_after(10)
    with pytest.raises(InvalidValueError, match="items .* 0 to 10 received in one epoch, .* got 11"):
        dataset.position_after(11)
    dataset.set_epoch(2)
    assert len(dataset) == 5 and indices_of(next(iter(dataset))[0])[0] == 50
    unbroken = StreamDataset(Digits(), 10, length=100)
    assert [len(list(unbroken)) for _ in range(3)] == [10, 10, 10]


def test_the_start_can_be_moved_and_an_older_walk_ends_nothing_of_the_new() -> None:
    dataset = StreamDataset(Digits(), 10, start=250, length=100)
    older = iter(dataset)
    next(older)
    dataset.set_start(430)
    assert (dataset.start, dataset.position, len(dataset)) == (430, 430, 7)
    assert len(list(older)) == 4
    assert [indices_of(images)[0] for images, _ in dataset] == [30, 40, 50, 60, 70, 80, 90]
    with pytest.raises(InvalidValueError, match=r"start=430 lies inside epoch 4 .*set_epoch\(5\)"):
        iter(dataset)
    with pytest.raises(InvalidValueError, match="start .* got -1"):
        dataset.set_start(-1)
    endless = StreamDataset(Digits(), 4)
    loader = DataLoader(endless, batch_size=None, num_workers=1, persistent_workers=True)
    for start in (0, 12, 8):
        endless.set_start(start)
        assert indices_of(next(iter(loader))[0])[0] == start


def test_a_worker_that_ended_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned workers begin one after the other: the first may have ended before the last begins."""
    dataset, got = StreamDataset(Digits(), 1, start=50, length=150), []
    for worker in range(100):
        info = SimpleNamespace(id=worker, num_workers=100)
        monkeypatch.setattr("fractal_streams.torch_data.get_worker_info", lambda info=info: info)
        got += [indices_of(images)[0] for images, _ in dataset]
    assert got == list(range(50, 150))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch(persistent: bool) -> None:
    dataset = StreamDataset(Digits(), 10, start=250, length=100)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)
    assert [indices_of(images)[0] for images, _ in loader] == [50, 60, 70, 80, 90]
    with pytest.raises(InvalidValueError, match=r"call dataset.set_epoch\(3\)"):
        iter(dataset)  # here, because torch takes 5 s to end a worker that raised
    dataset.set_epoch(3)
    assert [indices_of(images)[0] for images, _ in loader] == list(range(0, 100, 10))


def test_position_with_workers_is_refused_and_counted_instead() -> None:
    dataset = StreamDataset(Digits(), 10, start=40, shard=Shard(1, 4))
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=2))
    last = [indices_of(next(loader)[0])[0] for _ in range(3)][-1]
    with pytest.raises(InvalidValueError, match="position_after"):
        _ = dataset.position
    with pytest.raises(InvalidValueError, match="position_after"):
        dataset.state_dict()
    assert dataset.position_after(3) == 160 == last - 10 + 40
    del loader
    next(iter(dataset))
    assert dataset.position == 80


def test_state_of_the_main_process_is_one_integer_for_any_layout() -> None:
    dataset = StreamDataset(Digits(), 8, length=1000, shard=Shard(0, 2))
    seen = list(islice(dataset, 5))
    state = pickle.loads(pickle.dumps(dataset.state_dict()))
    assert state == {"version": 1, "stream": "digits-0-train", "length": 1000, "epoch": 0, "position": 80}
    assert len(seen) == 5
    other = StreamDataset(Digits(), 3, length=1000, shard=Shard(0, 1))
    other.load_state_dict(state)
    assert other.position == 80 and len(other) == -(-920 // 3)
    assert [index for images, _ in other for index in indices_of(images)] == list(range(80, 1000))
    assert indices_of(next(iter(other))[0]) == [0, 1, 2]  # the next epoch, from its beginning
    other.load_state_dict(state)
    other.set_epoch(0)
    assert indices_of(next(iter(other))[0])[0] == 80
    other.load_state_dict(state)
    other.set_epoch(1)
    assert indices_of(next(iter(other))[0])[0] == 0


def test_a_state_at_the_very_end_leaves_nothing_of_its_epoch() -> None:
    dataset = StreamDataset(Digits(), 10, length=30)
    walk = iter(dataset)
    for _ in range(3):
        next(walk)
    dataset.load_state_dict(dataset.state_dict())
    assert list(dataset) == [] and len(list(dataset)) == 3


def test_states_of_something_else_are_refused() -> None:
    dataset = StreamDataset(Digits(), 4)
    state = dataset.state_dict()
    with pytest.raises(InvalidValueError, match="stream digits-0-train, this dataset has stream digits-1-train"):
        StreamDataset(Digits(seed=1), 4).load_state_dict(state)
    with pytest.raises(InvalidValueError, match="length None, this dataset has length 50"):
        StreamDataset(Digits(), 4, length=50).load_state_dict(state)
    with pytest.raises(VersionError, match="state version 2 is not 1"):
        dataset.load_state_dict({**state, "version": 2})
    with pytest.raises(InvalidValueError, match="it has no epoch, position"):
        dataset.load_state_dict({"version": 1, "stream": "", "length": None})
    with pytest.raises(InvalidValueError, match=r"position of the state .* got -1"):
        dataset.load_state_dict({**state, "position": -1})
    with pytest.raises(InvalidValueError, match="workers=3, here workers=0"):
        own = {"step": 3, "worker": 0, "workers": 3, "batch_size": 4, "world_size": 1}
        dataset.load_state_dict({**state, **own})


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("batch", [5, None])
def test_stateful_data_loader_resumes_exactly(workers: int, batch: int | None) -> None:
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make() -> Any:
        dataset = StreamDataset(Digits(), batch, length=83, shard=Shard(1, 2))
        return StatefulDataLoader(dataset, batch_size=None if batch else 5, num_workers=workers)

    def indices(item: Any) -> list[int]:
        return indices_of(item[0])

    unbroken = make()
    expected = [[indices(item) for item in unbroken] for _ in range(2)]
    total = len(expected[0])
    for stop in (0, 1, 4, total - 1, total):
        loader = make()
        walk = iter(loader)
        for _ in range(stop):
            next(walk)
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        del walk, loader
        again = make()
        again.load_state_dict(state)
        assert [indices(item) for item in again] == expected[0][stop:], stop
        if stop == 4:
            assert [indices(item) for item in again] == expected[1]
            twice = make()
            twice.load_state_dict(state)
            walk = iter(twice)
            next(walk)
            third = make()
            third.load_state_dict(twice.state_dict())
            assert [indices(item) for item in third] == expected[0][stop + 1 :]


class Worker:
    """What `get_worker_info` says in a worker process."""

    def __init__(self, id: int, num_workers: int) -> None:
        self.id, self.num_workers = id, num_workers


def test_a_workers_state_is_refused_by_another_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: Worker(1, 2))
    dataset = StreamDataset(Digits(), 5)
    assert [indices_of(images)[0] for images, _ in islice(dataset, 3)] == [5, 15, 25]
    state = dataset.state_dict()
    assert state["step"] == 7
    for other, words in (
        (StreamDataset(Digits(), 6), "batch_size=5, here batch_size=6"),
        (StreamDataset(Digits(), 5, shard=Shard(1, 2)), "world_size=1, here world_size=2"),
        (StreamDataset(Digits(seed=3), 5), "digits-0-train, this dataset has stream digits-3-train"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            other.load_state_dict(state)
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: Worker(1, 3))
    with pytest.raises(InvalidValueError, match=r"workers=2, here workers=3.*start=N"):
        dataset.load_state_dict(state)
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: Worker(1, 2))
    dataset.load_state_dict(state)
    assert indices_of(next(iter(dataset))[0])[0] == 35


@pytest.mark.slow
def test_stateful_data_loader_with_other_workers_is_refused() -> None:
    """Slow: torchdata waits 5 s for each worker of a loader that never began."""
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = StatefulDataLoader(StreamDataset(Digits(), 5), batch_size=None, num_workers=2)
    next(iter(loader))
    other = StatefulDataLoader(StreamDataset(Digits(), 5), batch_size=None, num_workers=3)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(InvalidValueError, match="workers=2, here workers=3"):
        next(iter(other))


def test_the_shard_is_found_when_iteration_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = StreamDataset(Digits(), 4)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for workers in (0, 1):
        images, _ = next(iter(DataLoader(dataset, batch_size=None, num_workers=workers)))
        assert indices_of(images) == [8, 9, 10, 11]


def test_a_spawned_worker_is_told_its_parents_rank(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = torch.distributed
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    dataset = StreamDataset(stream, 4, fields="dict")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert next(iter(loader))["index"].tolist() == [4, 5, 6, 7]


def test_copies_are_datasets_of_their_own() -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    dataset = StreamDataset(stream, 4, length=12)
    for twin in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        twin.set_epoch(7)
        assert twin.position == 84 and dataset.position < 12
        assert twin._shared.is_shared()
        assert torch.equal(next(iter(twin))[0], next(iter(dataset))[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"batch_size": 0}, "batch_size .* got 0"), ({"batch_size": 2.5}, "got 2.5"), ({"start": -1}, "start .* got -1"),
     ({"length": 0}, "length .* got 0"), ({"shard": (0, 1)}, "Shard"), ({"fields": "index"}, "'pair', 'dict', 'batch'"),
     ({"stream": "fractal-10"}, "open_stream")],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        StreamDataset(**{"stream": Digits(), **settings})


def test_a_gpu_stream_is_refused_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Digits(device="cuda:0")
    with pytest.raises(DeviceError, match="num_workers=0"):
        next(iter(DataLoader(StreamDataset(stream, 4), batch_size=None, num_workers=1)))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "a process")
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", Worker(0, 1))
    with pytest.raises(DeviceError, match="num_workers=0"):
        IndexedStream(stream, 100)[0]
    assert not stream.calls


# Map-style


def test_indexed_stream_renders_a_batch_in_one_call() -> None:
    stream = Digits()
    loader = DataLoader(IndexedStream(stream, 64), batch_size=16, shuffle=True)
    got = [index for images, _ in loader for index in indices_of(images)]
    assert sorted(got) == list(range(64)) != got
    assert [len(indices) for indices in stream.calls] == [16] * 4


@pytest.mark.parametrize("index", [1.7, "3", True, None])
def test_an_index_that_is_no_whole_number_is_refused(index: Any) -> None:
    with pytest.raises(InvalidValueError, match="index must be a whole number"):
        IndexedStream(Digits(), 5)[index]


def test_indexed_stream_is_a_sequence() -> None:
    dataset = IndexedStream(Digits(), 5, fields="dict", transform=torch.Tensor.float)
    assert [item["label"] for item in dataset] == [0, 1, 2, 3, 4] and len(dataset) == 5
    assert dataset[torch.tensor(3)]["index"] == dataset[np.int64(3)]["index"] == 3
    assert dataset[3]["image"].dtype == torch.float32 and float(dataset[3]["latents"]["half"]) == 1.5
    assert isinstance(IndexedStream(Digits(), 5, fields="batch")[4], Sample)
    for index in (5, -1):
        with pytest.raises(IndexRangeError, match=rf"\[0, 5\), got {index}"):
            dataset[index]
    assert len(IndexedStream(Digits())) == 50_000
    with pytest.raises(InvalidValueError, match=r"length .* got 0"):
        IndexedStream(Digits(), 0)


def test_a_length_that_shuffle_would_list_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="RandomSampler"):
        assert len(IndexedStream(Digits(), 10**12)) == 10**12
    IndexedStream(Digits(), 10**7)
