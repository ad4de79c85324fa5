"""webdataset's pipelines over streams: every sample once, in its conventions, and on from one integer."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    wds = pytest.importorskip("webdataset")

from digits import Digits, indices_of
from fractal_streams.integrations.webdataset import StreamPipeline, StreamSource, open_address, register

from fractal_streams import Shard, StreamSpec, open_stream
from fractal_streams.errors import FractalStreamsError, InvalidValueError, ReadOnlyError, ShardingError, VersionError

pytestmark = [
    # Python 3.12 warns wherever a process with threads forks, which is what a loader with workers does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
SPLITS = pytest.mark.filterwarnings("ignore:split_by_:UserWarning")


def spelled(samples: Any) -> list[int]:
    """The indices of samples, which the key, the picture, the class and the facts all tell."""
    found = []
    for sample in samples:
        (index,) = indices_of(sample["image"][None])
        assert sample["__key__"] == f"{index:08d}" and sample["cls"] == index % 10 == sample["json"]["label"]
        assert sample["json"]["index"] == index and sample["json"]["latents"]["half"] == index / 2
        found.append(index)
    return found


def rank_of(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def read(source: Any, workers: int, *stages: Any, stop: int | None = None) -> list[int]:
    """Indices of samples through a WebLoader; each worker makes `stop` of them."""
    pipeline = wds.DataPipeline(source, *stages, *([wds.slice(stop)] if stop else []))
    return spelled(wds.WebLoader(pipeline, batch_size=None, num_workers=workers))


def test_samples_have_the_keys_that_webdataset_wants() -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    expected = stream.generate(range(5, 9))
    for form, decode in (("png", "torchrgb8"), ("npy", None), ("bmp", None), ("tensor", None)):
        pipeline = StreamPipeline(stream, image=form, start=5)
        sample = next(iter(pipeline))
        name = "image" if form == "tensor" else form
        assert sorted(sample) == sorted(["__key__", "__url__", name, "cls", "json"])
        assert sample["__key__"] == "00000005" and stream.digest() in sample["__url__"]
        if form == "tensor":
            assert (sample["image"].numpy() == expected.images[0]).all() and sample["cls"] == expected.labels[0]
            continue
        assert isinstance(sample[form], bytes) and sample["cls"] == str(expected.labels[0]).encode()
        assert json.loads(sample["json"])["index"] == 5
        if form == "npy":
            assert (np.load(io.BytesIO(sample["npy"])) == expected.images[0]).all()
        decoded = StreamPipeline(stream, image=form, start=5).decode(decode) if decode else None
        if decoded is not None:
            images, labels = zip(*islice(decoded.to_tuple("png", "cls"), 4), strict=True)
            assert (torch.stack(images).numpy() == expected.images).all() and list(labels) == expected.labels.tolist()


# Of several formulas, each has parameters of its own.
@pytest.mark.parametrize(
    "source", ["fractal-10", StreamSpec(formulas=("kali", "julia"), num_classes=2)], ids=["one", "several"]
)
def test_a_pipeline_for_tars_runs_unchanged_and_gives_what_the_tar_gives(source: Any, tmp_path: Any) -> None:
    from fractal_streams.integrations.containers.tar import TAR_END, tar_bytes

    stream = open_stream(source, device="cpu", height=8, width=8)
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(tar_bytes(stream, stream.generate(range(12))) + TAR_END)
    stored = wds.WebDataset(str(path), shardshuffle=False)
    made = StreamPipeline(stream, image="png", length=12)
    for theirs, ours in zip(stored, made, strict=True):
        assert {name: theirs[name] for name in ("__key__", "png", "cls", "json")} == {
            name: ours[name] for name in ("__key__", "png", "cls", "json")
        }
    decoded = next(iter(wds.WebDataset(str(path), shardshuffle=False).decode()))["json"]
    assert repr(next(iter(StreamPipeline(stream)))["json"]) == repr(decoded)  # nan is not equal to itself


def test_clips_are_npy() -> None:
    stream = open_stream("fractal-video", device="cpu", height=8, width=8, frames=3)
    sample = next(iter(StreamSource(stream, image="png")))
    assert np.load(io.BytesIO(sample["npy"])).shape == (3, 3, 8, 8) and "png" not in sample


LAYOUTS = [(world, workers) for world in (1, 2, 3, 8) for workers in (0, 1, 3)]


def test_every_sample_comes_once_over_nodes_and_workers_and_a_change_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layout goes on from the integer that the one before it left; the ranks are webdataset's own."""
    position = 0
    for world, workers in LAYOUTS:
        got: list[int] = []
        for rank in range(world):
            rank_of(monkeypatch, rank, world)
            source = StreamSource(Digits(), start=position)
            part = read(source, workers, stop=5)
            got += part
            assert len(part) == 5 * max(1, workers)
        after = source.position_after(len(part))
        assert sorted(got) == list(range(position, after)), (world, workers)
        position = after
    rank_of(monkeypatch, 0, 1)
    assert read(StreamSource(Digits(), start=position, length=position + 50), 3)[-1] == position + 49


@pytest.mark.parametrize("workers", [0, 3])
def test_finite_epochs_are_whole_over_nodes_and_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        got: list[int] = []
        for rank in range(3):
            rank_of(monkeypatch, rank, 3)
            got += read(StreamSource(Digits(), length=100), workers)
        assert sorted(got) == list(range(100))
    sources = [StreamSource(Digits(), 7, length=100, shard=Shard(rank, 2)) for rank in range(2)]
    for _ in range(2):
        loaders = [wds.WebLoader(wds.DataPipeline(source), batch_size=None, num_workers=workers) for source in sources]
        batches = [indices_of(images) for loader in loaders for images, _ in loader]
        assert sorted(index for batch in batches for index in batch) == list(range(100))


@SPLITS
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("stages", ["node", "worker", "both", "after shuffling"])
def test_splitters_that_follow_do_not_split_again(stages: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {
        "node": [wds.split_by_node], "worker": [wds.split_by_worker], "both": [wds.split_by_node, wds.split_by_worker],
        "after shuffling": [wds.shuffle(8, seed=3), wds.split_by_worker, wds.split_by_node],
    }[stages]  # fmt: skip
    got: list[int] = []
    for rank in range(2):
        rank_of(monkeypatch, rank, 2)
        got += read(StreamSource(Digits(), length=48), workers, *chosen)
    assert sorted(got) == list(range(48))


def test_a_splitter_behind_a_shuffle_of_each_readers_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_of(monkeypatch, 0, 2)
    with pytest.raises(ShardingError, match="split_by_node behind a shuffle without seed"):
        read(StreamSource(Digits(), length=48), 0, wds.shuffle(8), wds.split_by_node)
    assert len(read(StreamSource(Digits(), length=48), 0, wds.shuffle(8))) == 24


def test_splitters_that_follow_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="split_by_node behind a StreamSource .* leave it out"):
        next(iter(wds.DataPipeline(StreamSource(Digits()), wds.split_by_node)))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_epochs_of_with_epoch_go_on_and_hold_no_sample_twice(workers: int) -> None:
    pipeline = StreamPipeline(Digits()).with_epoch(10)
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
    each = 10 * max(1, workers)
    for epoch in range(3):
        got = spelled(loader)
        assert sorted(got) == list(range(epoch * each, (epoch + 1) * each))
    persistent = StreamPipeline(Digits(), 5, length=60).with_epoch(4)
    loader = wds.WebLoader(persistent, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = [[index for images, _ in loader for index in indices_of(images)] for _ in range(4)]
    assert epochs == [[*range(20)], [*range(20, 40)], [*range(40, 60)], [*range(20)]]


def test_a_look_at_the_pipeline_first_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = StreamPipeline(Digits(), start=3).with_epoch(6)
    assert spelled(islice(pipeline, 2)) == [3, 4] and pipeline.source.position == 5
    assert sorted(spelled(wds.WebLoader(pipeline, batch_size=None, num_workers=2))) == list(range(5, 17))
    for other in ("1", "3"):  # webdataset's own way to name a worker; torch takes 5 s to end one that raised
        monkeypatch.setenv("WORKER", "0")
        monkeypatch.setenv("NUM_WORKERS", other)
        with pytest.raises(ShardingError, match="2 workers read this source before"):
            next(iter(pipeline))


def test_an_older_iterator_is_refused_and_gives_no_sample_twice() -> None:
    source = StreamSource(Digits())
    older = iter(source)
    assert spelled(islice(older, 2)) == [0, 1]
    newer = iter(source)
    assert spelled(islice(newer, 2)) == [2, 3]
    with pytest.raises(ShardingError, match="later iteration"):
        next(older)
    assert spelled(islice(newer, 2)) == [4, 5]


def test_an_epoch_that_was_begun_inside_is_ended_first() -> None:
    source = StreamSource(Digits(), start=250, length=100)
    assert spelled(source) == list(range(50, 100)) and spelled(source) == list(range(100))
    assert source.position == 400
    source.set_epoch(2)
    assert spelled(islice(source, 3)) == [50, 51, 52]
    repeated = wds.DataPipeline(StreamSource(Digits(), start=70, length=100)).repeat(3)
    assert spelled(repeated) == [*range(70, 100), *range(100), *range(100)]


def test_stages_of_the_fluent_kind() -> None:
    pipeline = StreamPipeline(Digits(), length=64).shuffle(32, seed=1).map_dict(image=torch.Tensor.float)
    seen = list(pipeline.to_tuple("image", "cls").batched(8))
    got = [index for images, _ in seen for index in indices_of(images.byte())]
    assert len(seen) == 8 and sorted(got) == list(range(64)) != got and seen[0][0].dtype == torch.float32


def test_a_mix_takes_from_both_in_their_orders() -> None:
    parts = [StreamPipeline(Digits(seed=seed), start=1000 * seed) for seed in (0, 1)]
    got = spelled(islice(wds.RandomMix(parts, [0.8, 0.2]), 300))
    low, high = [index for index in got if index < 1000], [index for index in got if index >= 1000]
    assert low == list(range(len(low))) and high == list(range(1000, 1000 + len(high)))
    assert 20 < len(high) < 110


def test_state_is_one_integer_for_any_number_of_workers() -> None:
    source = StreamSource(Digits(), 8)
    assert [indices_of(images)[0] for images, _ in islice(source, 3)] == [0, 8, 16]
    state = pickle.loads(pickle.dumps(source.state_dict()))
    assert state["position"] == 24
    for workers in (0, 1, 3):
        other = StreamSource(Digits(), 5)
        other.load_state_dict(state)
        loader = wds.WebLoader(wds.DataPipeline(other, wds.slice(2)), batch_size=None, num_workers=workers)
        got = [index for images, _ in loader for index in indices_of(images)]
        assert sorted(got) == list(range(24, 24 + 10 * max(1, workers)))
    with pytest.raises(VersionError, match="state version 2"):
        source.load_state_dict({**state, "version": 2})
    with pytest.raises(InvalidValueError, match="one worker process"):
        source.load_state_dict({**state, "step": 2})
    with pytest.raises(InvalidValueError, match="this dataset has stream digits-1-train"):
        StreamSource(Digits(seed=1)).load_state_dict(state)


def test_resume_behind_ten_million_samples_renders_one_batch() -> None:
    stream = Digits()
    for batch in (256, None):
        stream.calls.clear()
        source = StreamSource(stream, batch)
        source.load_state_dict({**source.state_dict(), "position": 10_000_000})
        item = next(iter(wds.DataPipeline(source)))
        assert indices_of(item[0] if batch else item["image"][None])[0] == 10_000_000
        assert [len(indices) for indices in stream.calls] == [batch or 1]


@pytest.mark.slow
def test_processes_that_inherit_nothing_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_stream("fractal-10", device="cpu", height=8, width=8)
    rank_of(monkeypatch, 1, 2)
    pipeline = wds.DataPipeline(StreamSource(stream, 4, fields="dict"), wds.slice(2))
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [batch["index"].tolist() for batch in loader] == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert [batch["index"].tolist()[0] for batch in loader] == [20, 28]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"image": "jpg"}, "'tensor', 'png', 'bmp', 'npy'"), ({"image": "png", "batch_size": 4}, "batch_size=4"),
     ({"start": -1}, "start .* got -1"), ({"stream": "fractal-10"}, "open_stream"),
     ({"stream": "fractal-10", "image": "png"}, "open_stream")],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        StreamSource(**{"stream": Digits(), **settings})


def test_bytes_of_floats_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="dtype='uint8'"):
        StreamSource(open_stream("fractal-10", device="cpu", dtype="float32"), image="png")


# Addresses


def test_shards_behind_addresses_are_read_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(wds.gopen_schemes, "fractal", raising=False)
    address = "fractal://fractal-10/train/seed=0/height=8,width=8,samples=6/shard-{000000..000002}.tar"
    with pytest.raises(ValueError, match="no gopen handler"):
        next(iter(wds.WebDataset(address, shardshuffle=False)))
    register()
    register(3)  # as a worker_init_fn
    expected = open_stream("fractal-10", device="cpu", height=8, width=8).generate(range(18))
    dataset = wds.WebDataset(address, shardshuffle=False).decode("torchrgb8").to_tuple("png", "cls", "__key__")
    for workers in (0, 2):
        samples = sorted(wds.WebLoader(dataset, batch_size=None, num_workers=workers), key=lambda sample: sample[2])
        assert (torch.stack([image for image, _, _ in samples]).numpy() == expected.images).all()
        assert [label for _, label, _ in samples] == expected.labels.tolist()
    with pytest.raises(ReadOnlyError, match="read only"):
        open_address("fractal://fractal-10/train/seed=0/shard-000000.tar", "wb")
    with pytest.raises(FractalStreamsError):
        next(iter(wds.WebDataset("fractal://fractal-11/train/seed=0/shard-000000.tar", shardshuffle=False)))
