"""What each ecosystem's path loses of the CPU renderer's speed, with pictures that are really rendered.

Question: does it matter through which library a loop reads? `plumbing` asks how fast the adapters are with
pictures made before; here the renderer works, and what is left of it is the answer.
Measured: images per second of CPU time on one core, 32x32 of `seed-readme`, 30 iterations; one process and
thread, warm, rounds interleaved, every path over the same indices in each round. The loss is against
`stream.generate` alone in the same round; medians.
Gate: each path's first pictures and labels are the stream's to the bit; those that torch normalises to 1e-6.

    python -m fractal_streams.recipes.benchmarks.adapters --json adapters.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import Loader, Stream, StreamDataset, load_dataset, open_stream
from fractal_streams.batch import as_tensor
from fractal_streams.errors import FractalStreamsError, missing_extra
from fractal_streams.render.numba_backend import NumbaRenderer

try:
    import torch
    import webdataset as wds
    from fractal_streams.integrations.webdataset import StreamSource
    from torch.utils.data import DataLoader
except ImportError as error:
    raise missing_extra(str(error.name), "all") from None

BATCH = 512
AIM = 15.0
"""Percent of the renderer's speed that a path may cost."""
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
"""Of the normalised batches; any others cost the same."""
CHECKED = 2 * BATCH + 1
"""Samples that the gate compares, at least."""
ALONE = "stream.generate"


class WrongSampleError(FractalStreamsError, AssertionError):
    """A path delivered other samples than the stream's."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One path from the renderer to a loop.

    stream: what it reads; open: an iterable of items of the stream; take: an item to (images, labels) of a batch.
    single: an item is one sample. aimed: whether the aim binds it, as it does where nothing but the path is added.
    tolerance: by which pixels may differ; 0 is to the bit.
    """

    group: str
    name: str
    stream: Stream
    open: Callable[[Stream], Any]
    take: Callable[[Any], tuple[Any, Any]]
    single: bool = False
    aimed: bool = True
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One path's images per second of CPU time, and percent lost of the renderer's; medians, and each round's."""

    group: str
    name: str
    rate: float
    lost: float
    aimed: bool
    rates: tuple[float, ...]
    losses: tuple[float, ...]


def batches(stream: Stream) -> Iterator[Any]:
    """What every path is held against: the stream asked for one batch after the other."""
    for first in itertools.count(0, BATCH):
        yield stream.generate(range(first, first + BATCH))


def normalised(stream: Stream) -> Iterator[Any]:
    """Batches of levels through a Loader, and then what a training loop does with them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for images, labels in Loader(stream, BATCH):
        yield (images.to(torch.float32) / 255.0 - mean) / std, labels


def fields(item: Any) -> tuple[Any, Any]:
    return item.images, item.labels


def columns(item: Any) -> tuple[Any, Any]:
    return item["images"], item["labels"]


def picture(item: Any) -> tuple[Any, Any]:
    return np.array(item["image"]).transpose(2, 0, 1)[None], [item["label"]]


def decoded(item: Any) -> tuple[Any, Any]:
    return item["image"][None], [item["label"]]


def sample(item: Any) -> tuple[Any, Any]:
    return item["image"][None], [item["cls"]]


def pair(item: Any) -> tuple[Any, Any]:
    return item[0], item[1]


def rendered(**settings: Any) -> Stream:
    """The benchmark's stream, on one thread."""
    return open_stream("seed-readme", device="cpu", iterations=30, renderer=NumbaRenderer(threads=1), **settings)


def hugging_face(stream: Stream) -> Any:
    return load_dataset(stream, format="tensor", batch_size=BATCH)


def pipeline(stream: Stream) -> Any:
    return wds.DataPipeline(StreamSource(stream, BATCH))


def ways() -> list[Way]:
    """The renderer alone, and each path."""
    levels = rendered()
    floats = rendered(dtype="float32", mean=MEAN, std=STD)
    halves = rendered(dtype="bfloat16", mean=MEAN, std=STD)
    found = [
        Way(group="renderer alone", name=ALONE, stream=levels, take=fields, open=batches),
        Way(group="datasets", name="load_dataset(format='tensor')", stream=levels, take=columns, open=hugging_face),
        Way(group="datasets", name="the same behind a DataLoader", stream=levels, take=columns,
            open=lambda stream: DataLoader(hugging_face(stream), batch_size=None)),
        Way(group="datasets", name="load_dataset(): PIL pictures", stream=levels, take=picture, single=True,
            open=load_dataset),
        Way(group="datasets", name="the same, with_format('torch')", stream=levels, take=decoded, single=True,
            aimed=False, open=lambda stream: load_dataset(stream).with_format("torch")),
        Way(group="torch", name="Loader", stream=levels, take=pair, open=lambda stream: Loader(stream, BATCH)),
        Way(group="torch", name="DataLoader(StreamDataset)", stream=levels, take=pair,
            open=lambda stream: DataLoader(StreamDataset(stream, BATCH), batch_size=None)),
        Way(group="torch", name="samples that a DataLoader batches", stream=levels, take=pair,
            open=lambda stream: DataLoader(StreamDataset(stream), batch_size=BATCH)),
        Way(group="webdataset", name="StreamSource, batches", stream=levels, take=pair, open=pipeline),
        Way(group="webdataset", name="StreamSource, samples", stream=levels, take=sample, single=True,
            open=lambda stream: wds.DataPipeline(StreamSource(stream))),
    ]  # fmt: skip
    for name, stream in (("float32", floats), ("bfloat16", halves)):
        group = f"normalised {name}"
        found += [
            Way(group=group, name=ALONE, stream=stream, take=fields, open=batches),
            Way(group=group, name="Loader", stream=stream, take=pair, open=lambda each: Loader(each, BATCH)),
            Way(group=group, name="load_dataset(format='tensor')", stream=stream, take=columns, open=hugging_face),
            Way(group=group, name="StreamSource, batches", stream=stream, take=pair, open=pipeline),
        ]
    found.append(Way(
        group="normalised float32", name="Loader of levels, then torch", stream=levels, take=pair, open=normalised,
        aimed=False, tolerance=1e-6,
    ))  # fmt: skip
    return found


def check(way: Way) -> None:
    """Hold a path's first samples to what the stream gives by itself.

    Raises:
        WrongSampleError: another picture, label or order.
    """
    first, items = 0, iter(way.open(way.stream))
    while first < CHECKED:
        images, labels = way.take(next(items))
        truth = way.stream.generate(range(first, first + len(labels))).torch()
        found, expected = as_tensor(images), truth.images
        if way.tolerance:
            mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
            expected = ((expected.double() / 255.0 - mean) / std).to(found.dtype)
        if found.dtype != expected.dtype or not torch.allclose(found, expected, rtol=0.0, atol=way.tolerance):
            raise WrongSampleError(f"{way.group}, {way.name}: pictures {first} on are not the stream's")
        if not np.array_equal(labels, truth.labels):
            raise WrongSampleError(f"{way.group}, {way.name}: labels {first} on are not the stream's")
        first += len(labels)


def race(drawn: Sequence[Way], rounds: int, seconds: float) -> list[Loss]:
    """Rates of all paths in turns of as many samples each; the first of them is the renderer alone."""
    loops = [iter(way.open(way.stream)) for way in drawn]
    first = turn(drawn[0], loops[0], BATCH)
    samples = max(1, round(seconds * first / BATCH)) * BATCH
    for way, loop in zip(drawn, loops, strict=True):  # as far as the first has come, then a turn to warm up
        turn(way, loop, samples + (0 if way is drawn[0] else BATCH))
    rates = [[] for _ in drawn]  # type: list[list[float]]
    for _ in range(rounds):
        for each, way, loop in zip(rates, drawn, loops, strict=True):
            each.append(turn(way, loop, samples))
    found = []
    for each, way in zip(rates, drawn, strict=True):
        losses = tuple(100.0 * (1.0 - mine / alone) for mine, alone in zip(each, rates[0], strict=True))
        found.append(Loss(
            group=way.group, name=way.name, rate=statistics.median(each), lost=statistics.median(losses),
            aimed=way.aimed, rates=tuple(each), losses=losses,
        ))  # fmt: skip
    return found


def turn(way: Way, loop: Iterator[Any], samples: int) -> float:
    """Images per second of CPU time over the next so many."""
    start = time.process_time()
    deque(itertools.islice(loop, samples if way.single else samples // BATCH), maxlen=0)
    return samples / max(time.process_time() - start, 1e-9)


def table_text(losses: Sequence[Loss]) -> str:
    """A line for each path: images per CPU second, and the loss."""
    lines = [f"{'':<20} {'':<36} {'images/CPU-s':>12} {'lost':>7}  aim"]
    for loss in losses:
        aim = "" if loss is losses[0] or not loss.aimed else f"{AIM:.0f} %{', missed' if loss.lost > AIM else ''}"
        lost = "" if loss is losses[0] else f"{loss.lost:.1f} %"
        lines.append(f"{loss.group:<20} {loss.name:<36} {loss.rate:>12,.0f} {lost:>7}  {aim}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each path")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds of a turn of the renderer, about")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    drawn = ways()
    for way in drawn:
        check(way)
    losses = race(drawn, asked.rounds, asked.seconds)
    print(table_text(losses))
    if asked.json:
        written = asked.json.with_suffix(".tmp")
        written.write_text(json.dumps({"aim": AIM, "losses": [asdict(loss) for loss in losses]}, indent=2) + "\n")
        written.replace(asked.json)


if __name__ == "__main__":
    main()
