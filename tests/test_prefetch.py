"""Rendering ahead of a training loop: chunks, whose turn it is, and the memory they keep."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from digits import Digits
from torch.utils.data import DataLoader

from fractal_streams import Shard, StreamDataset, open_stream, torch_data
from fractal_streams.prefetch import CudaLane, ahead
from fractal_streams.stream import Stream

pytestmark = [
    # Python 3.12 warns wherever a process with threads forks, which is what DataLoader does.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]


class RecordingLane:
    """A lane on the CPU that notes what is asked of it; its consumer can be changed."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = "main"
        self.launched = 0

    def launch(self, work: Any) -> tuple[Any, int]:
        event = self.launched
        self.launched += 1
        self.log.append(f"launch {event}")
        return work(), event

    def settle(self, event: int) -> None:
        self.log.append(f"settle {event}")

    def consumer(self) -> str:
        return self.now

    def admit(self, batch: Any, event: int, consumer: str) -> None:
        self.log.append(f"admit {event} to {consumer}")


def test_the_next_work_is_launched_before_a_result_is_handed_over() -> None:
    lane, taken = RecordingLane(), []
    for result, event in ahead(iter([lambda k=k: 10 * k for k in range(4)]), lane):
        taken.append((result, event))
        lane.log.append(f"use {event}")
    assert taken == [(0, 0), (10, 1), (20, 2), (30, 3)]
    assert lane.log == [
        "launch 0", "launch 1", "settle 0", "launch 2", "use 0", "settle 1", "launch 3", "use 1", "use 2", "use 3",
    ]  # fmt: skip
    assert list(ahead(iter([]), lane)) == []


class Ahead(StreamDataset):
    """A dataset that renders ahead through a recording lane."""

    def _lane(self) -> Any:
        self.lane = RecordingLane()
        return self.lane


@pytest.fixture
def small_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of at least 2**20 pixels: 2048 pictures of 64 x 8."""
    assert torch_data.LAUNCH_PIXELS >= 2**22
    monkeypatch.setattr(torch_data, "LAUNCH_PIXELS", 2**20)


@pytest.mark.usefixtures("small_launch")
@pytest.mark.parametrize(("world", "batch", "start"), [(1, 512, 0), (3, 512, 0), (8, 7, 0), (1, 7, 8000), (2, None, 0)])
def test_rendering_ahead_gives_the_same_and_in_large_launches(world: int, batch: int | None, start: int) -> None:
    settings: dict[str, Any] = {"length": 20_011, "start": start}
    for rank in (0, world - 1):
        plain = StreamDataset(Digits(height=64), batch, shard=Shard(rank, world), **settings)
        rendered = Ahead(Digits(height=64), batch, shard=Shard(rank, world), **settings)
        for expected, got in zip(plain, rendered, strict=True):
            assert torch.equal(expected[0], got[0])
            assert torch.equal(torch.as_tensor(expected[1]), torch.as_tensor(got[1]))
            assert plain.position == rendered.position
        calls = [len(indices) * 64 * 8 for indices in rendered.stream.calls]
        assert all(2**20 <= pixels < 2**20 + (batch or 1) * 512 for pixels in calls[1:-1]) and len(calls) > 2
        assert all(isinstance(indices, range) for indices in rendered.stream.calls if world == 1)


@pytest.mark.usefixtures("small_launch")
def test_a_consumer_is_admitted_once_for_each_chunk_and_when_it_changes() -> None:
    dataset = Ahead(Digits(height=64), 512, length=512 * 9)  # 4 batches to a chunk, after a first of 1
    walk = iter(dataset)
    for step, _ in enumerate(walk):
        if step == 2:
            dataset.lane.now = "side"
    assert [line for line in dataset.lane.log if line.startswith("admit")] == [
        "admit 0 to main", "admit 1 to main", "admit 1 to side", "admit 2 to side",
    ]  # fmt: skip


@pytest.mark.usefixtures("small_launch")
def test_batches_of_a_chunk_are_views_of_it() -> None:
    walk = iter(Ahead(Digits(height=64), 512, length=512 * 40))
    storages = [images.untyped_storage().data_ptr() for images in [images for images, _ in islice(walk, 6)]]
    assert len(set(storages[1:5])) == 1 and storages[0] != storages[1] and storages[5] != storages[4]


# On a GPU


@pytest.fixture
def cuda_stream() -> Iterator[Stream]:
    yield open_stream("fractal-10", device="cuda")


@pytest.mark.gpu
def test_gpu_batches_are_the_streams_own(cuda_stream: Stream) -> None:
    for world in (1, 2):
        dataset = StreamDataset(cuda_stream, 512, shard=Shard(world - 1, world), fields="dict")
        for step, item in enumerate(islice(DataLoader(dataset, batch_size=None), 30)):
            images = item["images"].clone()
            torch.cuda.current_stream().synchronize()
            expected = cuda_stream.generate(Shard(world - 1, world).interval(step, 512))
            assert torch.equal(images, expected.images) and torch.equal(item["labels"], expected.labels)
            assert torch.equal(item["index"], expected.index)


@pytest.mark.gpu
def test_gpu_batches_stay_whole_while_a_slow_consumer_reads_them(cuda_stream: Stream) -> None:
    dataset = StreamDataset(cuda_stream, 512)
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for images, _ in islice(dataset, 64):
        for _ in range(4):
            busy = torch.tanh(busy @ busy)
        sums.append(images.sum(dtype=torch.int64))
        del images
    expected = [cuda_stream.generate(range(s * 512, s * 512 + 512)).images.sum(dtype=torch.int64) for s in range(64)]
    assert torch.equal(torch.stack(sums), torch.stack(expected))


@pytest.mark.gpu
def test_gpu_chunks_are_rendered_on_a_stream_of_their_own(cuda_stream: Stream) -> None:
    lane = CudaLane(cuda_stream.device)
    assert lane.side != torch.cuda.current_stream()
    batch, event = lane.launch(lambda: cuda_stream.generate(range(64)))
    lane.settle(event)
    assert event.query() and batch.images.is_cuda
    lane.admit(batch, event, lane.consumer())
    assert torch.equal(batch.images, cuda_stream.generate(range(64)).images)


@pytest.mark.gpu
def test_gpu_batches_are_slices_of_few_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_stream("seed-readme", device="cuda")
    asked: list[int] = []
    generate = type(stream).generate
    monkeypatch.setattr(
        type(stream), "generate", lambda self, indices: asked.append(len(indices)) or generate(self, indices)
    )
    walk = iter(DataLoader(StreamDataset(stream, 512), batch_size=None))
    kept = [next(walk)[0] for _ in range(33)]
    assert len(asked) <= 4 and sum(asked) >= 33 * 512  # one step to see how large a picture is, then chunks
    assert len({images.untyped_storage().data_ptr() for images in kept}) == 2
