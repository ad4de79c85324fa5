"""The training benchmark: its gate lets the stream's own samples through only, and its ratios are of its turns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from fractal_streams.recipes.benchmarks import training_feeds, training_models, training_step
from fractal_streams.recipes.benchmarks.training_models import Task

from fractal_streams import open_stream
from fractal_streams.errors import UnknownNameError
from fractal_streams.stream import Stream

BATCH = 16


def tiny(classes: int) -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, classes)
    )


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two test processes with two spinning threads each would wait for each other
    made = Task(
        network=tiny, optimizer=training_models.momentum, preset="fractal-10", size=8, batch=BATCH, channels_last=True,
        steps=4, warm=2,
    )  # fmt: skip
    monkeypatch.setitem(training_step.TASKS, "tiny", made)
    monkeypatch.setattr(training_step, "CHECKED", 40)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def stream() -> Stream:
    return open_stream(
        "fractal-10", device="cpu", height=8, width=8, dtype="bfloat16", channels_last=True, mean=0.5, std=0.25
    )


def training(task: Task) -> training_step.Training:
    return training_step.Training(task, 10, "cpu", "none")


LIVE = [name for name, feed in training_feeds.FEEDS.items() if feed.live and "," not in name]


@pytest.mark.parametrize("name", LIVE)
def test_a_live_feed_gives_the_streams_samples_in_order(name: str, stream: Stream) -> None:
    for step, (images, labels) in enumerate(islice(training_feeds.FEEDS[name].open(stream, 4), 11)):
        truth = stream.generate(range(4 * step, 4 * step + 4)).torch()
        assert images.shape == (4, 3, 8, 8) and images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images.permute(0, 2, 3, 1), truth.images) and torch.equal(labels, truth.labels)
        training_step.check(step, stream, 4, images, labels)


def test_the_fixed_batch_and_the_pool_come_round(stream: Stream) -> None:
    first, second = islice(training_feeds.fixed(stream, 4), 2)
    assert first[0] is second[0]
    pool = list(islice(training_feeds.pool(stream, 4), 2 * training_feeds.POOL))
    for (images, labels), (again, classes) in zip(pool[: len(pool) // 2], pool[len(pool) // 2 :], strict=True):
        assert images is again and labels is classes
    assert len({images.float().sum().item() for images, _ in pool}) == training_feeds.POOL


def late(stream: Stream, size: int) -> Iterator[Any]:
    return islice(training_feeds.inline(stream, size), 1, None)


def relabelled(stream: Stream, size: int) -> Iterator[Any]:
    return ((images, 9 - labels) for images, labels in training_feeds.inline(stream, size))


def dimmed(stream: Stream, size: int) -> Iterator[Any]:
    return ((images * 0.5, labels) for images, labels in training_feeds.inline(stream, size))


@pytest.mark.parametrize("wrong", [late, relabelled, dimmed])
def test_a_loop_on_other_samples_is_stopped(
    wrong: Any, task: Task, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = training_step.gate(training(task), stream, BATCH, 40)
    assert len(losses) == 40 and all(map(math.isfinite, losses))
    monkeypatch.setitem(training_feeds.FEEDS, "live", training_feeds.Feed(open=wrong))
    with pytest.raises(training_step.WrongTrainingError, match="step 0 did not get the stream's samples from 0"):
        training_step.gate(training(task), stream, BATCH, 40)


@pytest.mark.parametrize("rate", [0.0, float("nan")])
def test_a_loop_that_does_not_learn_is_stopped(rate: float, task: Task, stream: Stream) -> None:
    idle = replace(task, optimizer=lambda weights, fused: torch.optim.SGD(weights, lr=0.0))
    loop = training(idle)
    loop.optimizer.param_groups[0]["lr"] = rate
    if rate == 0.0:
        loop.step = lambda images, labels: torch.tensor(1.0)  # type: ignore[method-assign]
    with pytest.raises(training_step.WrongTrainingError, match="the loss does not fall"):
        training_step.gate(loop, stream, BATCH, 40)


def test_a_turn_begins_from_the_same_weights_and_takes_as_many_batches_as_it_says(task: Task, stream: Stream) -> None:
    loop = training(task)
    loop.hold()
    begun, taken = [], 0

    def counted() -> Iterator[Any]:
        nonlocal taken
        for pair in training_feeds.inline(stream, BATCH):
            taken += 1
            yield pair

    load = loop.network.load_state_dict
    loop.network.load_state_dict = lambda state: (load(state), begun.append(loop.network[0].weight.clone()))
    batches = counted()
    turns = [loop.turn(batches, 5, 3) for _ in range(2)]
    assert taken == 16
    assert torch.equal(begun[0], begun[1]) and not torch.equal(begun[1], loop.network[0].weight)
    for turn in turns:
        assert 0 < turn.median <= turn.slowest <= 5 * turn.gpu
        assert turn.host <= turn.wall


def test_the_run_shows_every_contestant_and_a_failing_one_stops_no_other(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training_feeds.FEEDS, "chunk 2", training_feeds.Feed(open=late))
    path = tmp_path / "steps.json"
    training_step.main([
        "--model", "tiny", "--device", "cpu", "--compile", "none", "--repeats", "3", "--steps", "3",
        "--only", "fixed again;live;chunk 2;live, raised;graph beside", "--json", str(path),
    ])  # fmt: skip
    figures = json.loads(path.read_text())
    rows = {row["name"]: row for row in figures["results"]}
    assert list(rows) == ["fixed", "fixed again", "live", "chunk 2", "live, raised", "graph beside"]
    assert figures["steps"] == 4 and figures["losses"][-1] < figures["losses"][0]
    for name in ("fixed", "fixed again", "live", "live, raised"):
        gpu = [turn["gpu"] for turn in rows[name]["turns"]]
        base = [turn["gpu"] for turn in rows["fixed"]["turns"]]
        assert rows[name]["ratios"] == [mine / other for mine, other in zip(gpu, base, strict=True)] and len(gpu) == 3
    assert not rows["chunk 2"]["turns"] and "step 0 did not get the stream's samples" in rows["chunk 2"]["error"]
    assert not rows["graph beside"]["turns"] and rows["graph beside"]["error"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows) and "1.0000  1.0000 to 1.0000" in shown
    assert list(tmp_path.iterdir()) == [path]


def test_no_repeat_begins_behind_the_deadline(task: Task, stream: Stream) -> None:
    results = training_step.Race(training(task), stream, task, ("fixed",), 2).run(5, deadline=0.0)
    assert [len(result.turns) for result in results] == [1]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UnknownNameError, match="contestant"):
        training_step.measure("resnet9", device="cpu", names=("life",))
    with pytest.raises(UnknownNameError, match="model"):
        training_step.measure("resnet", device="cpu")


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet9", 6_573_120), ("resnet18", 11_173_962), ("vit_s16", 22_050_664)]
)
def test_the_models_are_the_known_ones(name: str, weights: int) -> None:
    classes = 1000 if name == "vit_s16" else 10
    task = training_models.TASKS[name]
    network = task.network(classes)
    assert sum(weight.numel() for weight in network.parameters()) == weights
    with torch.no_grad():
        scores = network.eval()(torch.zeros(1, 3, task.size, task.size))
    assert scores.shape == (1, classes) and torch.isfinite(scores).all()
    assert task.steps % task.warm == 0
