"""The loader: one integer says where it stands, whatever the workers, the batch size and the world."""

from __future__ import annotations

import copy
import pickle
from itertools import islice
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from digits import Digits, indices_of
from hypothesis import given, settings, strategies as st

from fractal_streams import Shard, StreamDataset, open_stream
from fractal_streams.batch import Batch
from fractal_streams.errors import DeviceError, InvalidValueError, ShardingError, VersionError
from fractal_streams.loader import Loader

pytestmark = [
    # Python 3.12 warns wherever a process with threads forks, which is what a loader with workers does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def seen(items: Any) -> list[int]:
    """All indices that batches of (images, labels) hold, in their order; the labels are those of the pictures."""
    found = []
    for images, labels in items:
        indices = indices_of(images)
        assert labels.tolist() == [index % 10 for index in indices]
        found += indices
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_the_streams_for_any_number_of_workers(workers: int) -> None:
    loader = Loader(Digits(), 7, workers=workers)
    assert seen(islice(loader, 11)) == list(range(77)) and loader.position == 77
    single = Loader(Digits(), workers=workers, length=20)
    assert [label for _, label in single] == [index % 10 for index in range(20)] and single.position == 20


@pytest.mark.slow
def test_real_images_come_from_spawned_workers() -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    loader = Loader(stream, 5, workers=2, length=20, fields="batch", multiprocessing_context="spawn")
    batches = list(loader)
    assert all(isinstance(batch, Batch) for batch in batches)
    assert (torch.cat([batch.images for batch in batches]).numpy() == stream.generate(range(20)).images).all()


LAYOUTS = [(world, workers) for world in (1, 2, 3, 8) for workers in (0, 1, 3)]


def test_no_index_is_lost_or_repeated_when_ranks_workers_and_batch_size_change_on_the_way() -> None:
    """Each of the twelve layouts goes on, in lockstep, where the one before it stopped, in its fourth epoch."""
    length, state, expected = 900, None, 0
    for turn, (world, workers) in enumerate([*LAYOUTS, (1, 0)]):
        batch = 5 - turn % 3
        got, states = [], []
        for rank in range(world):
            loader = Loader(
                Digits(), batch, workers=workers, start=3 * length, length=length, shard=Shard(rank, world)
            )  # fmt: skip
            if state is not None:
                loader.load_state_dict(state)
            got += seen(islice(loader, 4) if turn < len(LAYOUTS) else loader)
            states.append(loader.state_dict())
        state, before = states[turn % world], expected
        assert all(each == state for each in states)
        expected = before + 4 * batch * world if turn < len(LAYOUTS) else length
        assert sorted(got) == list(range(before, expected)), (world, workers)
        assert state["position"] == 3 * length + expected


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_epochs_hold_every_index_once_over_any_chain_of_layouts(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 60))
    drop_last = data.draw(st.booleans())
    position = data.draw(st.integers(0, 3 * length))
    for _ in range(3):
        world, batch, stop = (data.draw(st.integers(low, high)) for low, high in ((1, 4), (1, 9), (0, 12)))
        got, ends = [], set()
        for rank in range(world):
            loader = Loader(
                Digits(), batch, start=position, length=length, shard=Shard(rank, world), drop_last=drop_last
            )  # fmt: skip
            got += seen(islice(loader, stop))
            ends.add(loader.state_dict()["position"])
        origin, base, width = position - position % length, position % length, batch * world
        left = length - base - ((length - base) % width if drop_last else 0)
        assert sorted(got) == list(range(base, base + min(left, stop * width)))
        # What drop_last leaves out counts with the last step; an iteration that found nothing has ended its epoch.
        position = origin + (length if stop and stop * width >= left else base + stop * width)
        assert ends == {position}


def test_epochs_follow_each_other_and_leaving_one_early_loses_nothing() -> None:
    for workers in (0, 2):
        loader = Loader(Digits(), 10, workers=workers, length=50)
        assert seen(loader) + seen(loader) == 2 * list(range(50)) and loader.position == 100
        assert seen(islice(loader, 2)) == list(range(20)) and loader.position == 120
        assert seen(islice(loader, 1)) == list(range(20, 30))
        assert seen(loader) == list(range(30, 50)) and loader.position == 150
        walk = iter(loader)
        assert indices_of(next(walk)[0])[0] == 0 and len(loader) == 5
        for _ in range(4):
            next(walk)
        # A trainer that knows len() asks for no more than that.
        assert loader.position == 200 and seen(islice(loader, 1)) == list(range(10))


def test_endless_iterations_go_on() -> None:
    loader = Loader(Digits(), 4, start=100)
    assert seen(islice(loader, 3)) + seen(islice(loader, 2)) == list(range(100, 120))
    with pytest.raises(TypeError, match="endless"):
        len(loader)
    loader.set_epoch(7)
    assert loader.position == 120
    assert Loader(Digits(), 4, start=2**63 - 6).position == 2**63 - 6
    assert seen(Loader(Digits(), 4, start=2**63 - 6)) == list(range(2**63 - 6, 2**63))


def test_persistent_workers_stay_over_epochs_and_rewinds() -> None:
    loader = Loader(Digits(), 5, workers=2, length=30)
    processes = []
    for stop in (6, 6, 1, 3, 6):
        walk = iter(loader)
        first = indices_of(next(walk)[0])[0]
        processes.append([worker.pid for worker in loader._torch_loader._iterator._workers])
        assert first == loader.position % 30 - 5
        for _ in range(min(stop, 6 - first // 5) - 1):
            next(walk)
    assert all(each == processes[0] for each in processes)
    fleeting = Loader(Digits(), 5, workers=1, length=10, persistent_workers=False)
    assert seen(fleeting) + seen(fleeting) == 2 * list(range(10)) and fleeting._torch_loader._iterator is None


def test_set_epoch_keeps_a_position_inside_the_epoch_and_else_goes_to_its_beginning() -> None:
    loader = Loader(Digits(), 10, start=230, length=100)
    loader.set_epoch(2)
    assert loader.position == 230 and seen(islice(loader, 2)) == list(range(30, 50))
    loader.set_epoch(2)
    assert seen(loader) == list(range(50, 100))
    loader.set_epoch(3)
    assert seen(loader) == list(range(100)) and loader.position == 400
    loader.set_epoch(3)
    assert loader.position == 300 and len(seen(loader)) == 100
    with pytest.raises(InvalidValueError, match="epoch .* got -1"):
        loader.set_epoch(-1)


def test_ranks_with_a_step_less_than_others_agree_on_the_position() -> None:
    loaders = [Loader(Digits(), 4, length=18, shard=Shard(rank, 2)) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [3, 2]
    walks = [iter(loader) for loader in loaders]
    for _ in range(2):
        assert len({len(next(walk)) for walk in walks}) == 1
        assert loaders[0].position == loaders[1].position
    assert loaders[1].state_dict()["position"] == 16  # sample 16 and 17 are rank 0's, and not read yet
    assert seen(walks[0]) == [16, 17] and seen(walks[1]) == []
    assert [loader.position for loader in loaders] == [18, 18]
    assert seen(loaders[0]) + seen(loaders[1]) == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 4, 5, 6, 7, 12, 13, 14, 15]
    # A rank that never asked behind its last step begins the next epoch all the same.
    walk = iter(loaders[1])
    next(walk), next(walk)
    assert indices_of(next(iter(loaders[1]))[0])[0] == 4


def test_an_older_iterator_is_refused() -> None:
    loader = Loader(Digits(), 4)
    older, newer = iter(loader), iter(loader)
    assert indices_of(next(newer)[0])[0] == 0
    with pytest.raises(ShardingError, match="taken over"):
        next(older)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ShardingError, match="taken over"):
        next(newer)
    assert seen(islice(loader, 1)) == [4, 5, 6, 7]


def test_what_workers_made_ahead_is_not_counted() -> None:
    loader = Loader(Digits(), 4, workers=2, prefetch_factor=8)
    walk = iter(loader)
    for step in range(1, 4):
        next(walk)
        assert loader.position == loader.state_dict()["position"] == 4 * step
    other = Loader(Digits(), 3, shard=Shard(0, 1))
    other.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert seen(islice(other, 2)) == list(range(12, 18))


def test_a_state_holds_one_integer_and_any_position_is_one_to_begin_at() -> None:
    loader = Loader(Digits(), 8, length=100)
    next(iter(loader))
    assert loader.state_dict() == {"version": 1, "stream": "digits-0-train", "length": 100, "position": 8}
    middle = {**loader.state_dict(), "position": 13}  # in the middle of a batch, of this size
    loader.load_state_dict(middle)
    assert loader.position == 13 and seen(loader) == list(range(13, 100))


def test_states_of_datasets_are_understood() -> None:
    dataset = StreamDataset(Digits(), 10, length=40)
    list(islice(dataset, 3))
    loader = Loader(Digits(), 10, length=40)
    loader.load_state_dict(dataset.state_dict())
    assert seen(loader) == list(range(30, 40))
    with pytest.raises(InvalidValueError, match="one worker process"):
        loader.load_state_dict({**dataset.state_dict(), "step": 3})


def test_states_of_something_else_are_refused() -> None:
    loader = Loader(Digits(), 4)
    state = loader.state_dict()
    for other, words in (
        (Loader(Digits(seed=1), 4), "stream digits-0-train, this dataset has stream digits-1-train"),
        (Loader(Digits(), 4, length=50), "length None, this dataset has length 50"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            other.load_state_dict(state)
    with pytest.raises(VersionError, match="state version 2 is not 1"):
        loader.load_state_dict({**state, "version": 2})
    with pytest.raises(InvalidValueError, match="it has no length, position"):
        loader.load_state_dict({"version": 1, "stream": ""})
    for wrong in (-1, 2.5, 2**63):
        with pytest.raises(InvalidValueError, match="position of the state"):
            loader.load_state_dict({**state, "position": wrong})
    assert loader.position == 0


def test_a_dataset_brings_its_own_settings() -> None:
    dataset = StreamDataset(Digits(), 6, start=12, length=60, shard=Shard(1, 2), fields="dict")
    loader = Loader(dataset, workers=1)
    assert (loader.batch_size, loader.length, loader.position) == (6, 60, 12) and len(loader) == 5
    assert [batch["index"].tolist()[0] for batch in loader] == [18, 30, 42, 54]
    with pytest.raises(InvalidValueError, match="has its own batch_size, drop_last: set them there"):
        Loader(dataset, 6, drop_last=True)


def test_copies_and_pickles_go_on_by_themselves() -> None:
    loader = Loader(Digits(), 5, workers=1, length=30)
    walk = iter(loader)
    next(walk), next(walk)
    for twin in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):
        assert twin.position == 10 and seen(twin) == list(range(10, 30))
    assert indices_of(next(walk)[0])[0] == 10 and loader.position == 15


@pytest.mark.parametrize("workers", [0, 1])
def test_ten_million_samples_are_passed_over_without_rendering_one(workers: int) -> None:
    stream = Digits()
    loader = Loader(stream, 256, workers=workers)
    loader.load_state_dict({**Loader(stream, 256).state_dict(), "position": 10_000_000})
    images, _ = next(iter(loader))
    assert indices_of(images) == list(range(10_000_000, 10_000_256))
    assert workers or [list(indices) for indices in stream.calls] == [list(range(10_000_000, 10_000_256))]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"workers": -1}, "workers .* got -1"), ({"workers": 1.5}, "workers .* got 1.5"),
     ({"workers": 2000}, "workers .* got 2000"), ({"batch_size": 0}, "batch_size .* got 0"),
     ({"start": -1}, "start .* got -1"), ({"length": 0}, "length .* got 0"), ({"shard": 1}, "Shard"),
     ({"fields": "index"}, "'pair', 'dict', 'batch'"), ({"source": "fractal-10"}, "open_stream"),
     ({"prefetch_factor": 0, "workers": 1}, "prefetch_factor .* got 0"),
     ({"multiprocessing_context": "thread"}, "'fork', 'spawn', 'forkserver'")],
)  # fmt: skip
def test_bad_settings_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Loader(**{"source": Digits(), **wrong})


def test_a_gpu_stream_with_workers_is_refused_at_once() -> None:
    for wrong in ({"workers": 1}, {"pin_memory": True}):
        with pytest.raises(DeviceError, match="workers=0 and pin_memory=False"):
            Loader(Digits(device="cuda:0"), 4, **wrong)


def test_an_error_inside_a_transform_counts_no_batch() -> None:
    def fail(images: Any) -> Any:
        if 9 in indices_of(images):
            raise ZeroDivisionError("of the transform")
        return images

    loader = Loader(Digits(), 4, transform=fail)
    with pytest.raises(ZeroDivisionError):
        seen(loader)
    assert loader.position == 8
