"""What the adapters cost: images per second when the pictures are there already, and the time of a resume.

Question: how much of a stream's speed reaches the loop through each ecosystem, and through its plain API?
Measured: images per second of CPU time, 32x32, out of a pool of pictures made before, so that only the
plumbing counts; one process, warm, rounds interleaved, medians. A resume is from `load_state_dict` (or the
construction with `start=`) after 10 million images to the first batch.
Gate: each way's first pictures and labels are the pool's; one that fails stops the run.

    python -m fractal_streams.recipes.benchmarks.plumbing
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import Batch, Loader, Stream, StreamDataset, load_dataset
from fractal_streams.errors import FractalStreamsError, missing_extra
from fractal_streams.render.raster import PixelFormat

try:
    import datasets
    import torch
    import webdataset as wds
    from fractal_streams.integrations.webdataset import StreamSource
    from PIL import Image
    from torch.utils.data import DataLoader
except ImportError as error:
    raise missing_extra(str(error.name), "all") from None

SIZE, BATCH, POOL = 32, 256, 8192
FAR = 10_000_000
"""Images before the resume."""


class Pool(Stream):
    """A stand-in for a stream: sample i is picture i modulo the pool's size, and class i modulo 10."""

    seed, split, device, num_classes = 0, "train", "cpu", 10
    pixels = PixelFormat()

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (POOL, 3, SIZE // 8, SIZE // 8), dtype=np.uint8)
        smooth = [np.asarray(Image.fromarray(each.transpose(1, 2, 0)).resize((SIZE, SIZE))) for each in noise]
        self.images = np.ascontiguousarray(np.stack(smooth).transpose(0, 3, 1, 2))
        self.classes = np.arange(POOL) % 10

    def digest(self) -> str:
        return "pool"

    def generate(self, indices: Any) -> Batch:
        if isinstance(indices, range) and indices.step == 1:
            first = indices.start % POOL if indices else 0
            if first + len(indices) <= POOL:
                cut = slice(first, first + len(indices))
                return Batch(np.arange(indices.start, indices.stop), self.images[cut], self.classes[cut], {})
        index = np.asarray(indices, np.int64)
        return Batch(index, self.images[index % POOL], self.classes[index % POOL], {})


class WrongSampleError(FractalStreamsError, AssertionError):
    """A way to read delivered other samples than the stream's."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to read the pool.

    group: the ways that are compared; ours: whether it is this project's.
    open: the iterable of items; take: an item to (number of images, uint8 pictures, labels).
    """

    group: str
    name: str
    ours: bool
    open: Callable[[], Any]
    take: Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Images per second of CPU time, the median and each round's."""

    group: str
    name: str
    ours: bool
    rate: float
    each: tuple[float, ...]


def pairs(item: Any) -> tuple[Any, Any]:
    return np.asarray(item[0]), np.asarray(item[1])


def columns(item: Any) -> tuple[Any, Any]:
    return np.asarray(item["images"]), np.asarray(item["labels"])


def picture(item: Any) -> tuple[Any, Any]:
    return np.asarray(item["image"]).transpose(2, 0, 1)[None], np.asarray([item["label"]])


def decoded(item: Any) -> tuple[Any, Any]:
    return np.asarray(item[0]).transpose(2, 0, 1)[None], np.asarray([item[1]])


def ways(pool: Pool, folder: Path) -> list[Way]:
    """Ours and the plain API's, of each ecosystem."""
    torch_images, torch_labels = torch.from_numpy(pool.images), torch.from_numpy(pool.classes)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for first in itertools.cycle(range(0, POOL, BATCH)):
            cut = slice(first, first + BATCH)
            yield {"images": torch_images[cut], "labels": torch_labels[cut]}

    def samples() -> Iterator[dict[str, Any]]:
        for k in itertools.cycle(range(POOL)):
            yield {"image": pool.images[k], "label": int(pool.classes[k])}

    def drawn() -> Iterator[dict[str, Any]]:
        for k in itertools.cycle(range(POOL)):
            yield {"image": Image.fromarray(pool.images[k].transpose(1, 2, 0)), "label": int(pool.classes[k])}

    classes = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    arrays = datasets.Features(image=datasets.Array3D((3, SIZE, SIZE), "uint8"), label=datasets.Value("int64"))
    plain = datasets.IterableDataset.from_generator

    def dictionaries() -> Iterator[dict[str, Any]]:
        for k in itertools.cycle(range(POOL)):
            yield {"__key__": f"{k:08d}", "image": pool.images[k], "cls": int(pool.classes[k])}

    return [
        Way(group="datasets, tensor batches", name="load_dataset(format='tensor')", ours=True, take=columns,
            open=lambda: load_dataset(pool, format="tensor", batch_size=BATCH)),
        Way(group="datasets, tensor batches", name="from_generator of ready batches", ours=False, take=columns,
            open=lambda: plain(batches)),
        Way(group="datasets, tensor batches", name="from_generator, Array3D, .batch(256)", ours=False,
            take=lambda item: (np.asarray(item["image"], np.uint8), np.asarray(item["label"])),
            open=lambda: plain(samples, features=arrays).batch(BATCH)),
        Way(group="datasets, Image()", name="load_dataset()", ours=True, take=picture, open=lambda: load_dataset(pool)),
        Way(group="datasets, Image()", name="from_generator of PIL pictures, as PNG", ours=False, take=picture,
            open=lambda: plain(drawn, features=classes)),
        Way(group="torch", name="Loader", ours=True, take=pairs, open=lambda: Loader(pool, BATCH)),
        Way(group="torch", name="DataLoader(StreamDataset)", ours=True, take=pairs,
            open=lambda: DataLoader(StreamDataset(pool, BATCH), batch_size=None)),
        Way(group="torch", name="DataLoader(TensorDataset), batches of 256", ours=False, take=pairs,
            open=lambda: DataLoader(torch.utils.data.TensorDataset(torch_images, torch_labels), batch_size=BATCH)),
        Way(group="webdataset", name="StreamSource, batches", ours=True, take=pairs,
            open=lambda: wds.DataPipeline(StreamSource(pool, batch_size=BATCH))),
        Way(group="webdataset", name="generated samples, batched(256)", ours=False, take=pairs,
            open=lambda: wds.DataPipeline(dictionaries, wds.to_tuple("image", "cls"), wds.batched(BATCH))),
        Way(group="webdataset", name="tar of PNG, decoded", ours=False, take=decoded,
            open=lambda: tar_dataset(pool, folder)),
    ]  # fmt: skip


def tar_dataset(pool: Pool, folder: Path) -> Any:
    """What webdataset reads from a stored shard of the pool's pictures."""
    path = folder / "pool.tar"
    if not path.exists():
        with wds.TarWriter(str(path)) as shard:
            for k in range(POOL):
                image = Image.fromarray(pool.images[k].transpose(1, 2, 0))
                shard.write({"__key__": f"{k:08d}", "png": image, "cls": int(pool.classes[k])})
    return wds.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("rgb8").to_tuple("png", "cls")


def check(way: Way, pool: Pool, items: int = 3) -> None:
    """Hold the first items to the pool.

    Raises:
        WrongSampleError: another picture, label or order.
    """
    first = 0
    for item in itertools.islice(iter(way.open()), items):
        images, labels = way.take(item)
        truth = pool.generate(range(first, first + len(labels)))
        if not (np.array_equal(images, truth.images) and np.array_equal(labels, truth.labels)):
            raise WrongSampleError(f"{way.group}, {way.name}: samples {first} on are not the stream's")
        first += len(labels)


def race(drawn: Sequence[Way], rounds: int, seconds: float) -> list[Rate]:
    """Rates of all ways, in turns."""
    loops = [again(way) for way in drawn]
    counts = [turn_length(way, loop, seconds) for way, loop in zip(drawn, loops, strict=True)]
    rates: list[list[float]] = [[] for _ in drawn]
    for _ in range(rounds):
        for k, (way, loop) in enumerate(zip(drawn, loops, strict=True)):
            rates[k].append(turn(way, loop, counts[k])[0])
    return [
        Rate(group=way.group, name=way.name, ours=way.ours, rate=statistics.median(each), each=tuple(each))
        for way, each in zip(drawn, rates, strict=True)
    ]


def again(way: Way) -> Iterator[Any]:
    """The items of a way without end."""
    while True:
        yield from way.open()


def turn(way: Way, loop: Iterator[Any], items: int) -> tuple[float, float]:
    """Images per second of CPU time over so many items, and the seconds."""
    start = time.process_time()
    last = deque(itertools.islice(loop, items), maxlen=1)
    spent = max(time.process_time() - start, 1e-9)
    return items * len(way.take(last.pop())[1]) / spent, spent


def turn_length(way: Way, loop: Iterator[Any], seconds: float) -> int:
    """Items that take about so long."""
    items = 1
    while (spent := turn(way, loop, items)[1]) < seconds / 4 and items < 10**7:
        items *= 2
    return max(1, round(items * seconds / spent))


def resumes(pool: Pool) -> dict[str, float]:
    """Milliseconds from what was saved after `FAR` images to the next batch, which is checked; medians of nine."""
    items = FAR // BATCH
    truth = pool.generate(range(items * BATCH, (items + 1) * BATCH)).images

    def read(loop: Any) -> Any:
        """Reads so many items; what holds their place is kept alive by the caller."""
        deque(itertools.islice(loop, items), maxlen=0)
        return loop

    dataset = load_dataset(pool, format="tensor", batch_size=BATCH)
    loader = Loader(pool, BATCH)
    source = StreamSource(pool, batch_size=BATCH)
    reading = [read(iter(each)) for each in (dataset, loader, wds.DataPipeline(source))]
    saved = dataset.state_dict(), loader.state_dict(), source.position

    def hugging_face() -> Any:
        again = load_dataset(pool, format="tensor", batch_size=BATCH)
        again.load_state_dict(saved[0])
        return next(iter(again))["images"]

    def torch_loader() -> Any:
        again = Loader(pool, BATCH)
        again.load_state_dict(saved[1])
        return next(iter(again))[0]

    def web() -> Any:
        return next(iter(wds.DataPipeline(StreamSource(pool, batch_size=BATCH, start=saved[2]))))[0]

    took = {}
    for name, resume in (("datasets", hugging_face), ("torch", torch_loader), ("webdataset", web)):
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            images = resume()
            times.append(1e3 * (time.perf_counter() - begin))
            if not np.array_equal(np.asarray(images), truth):
                raise WrongSampleError(f"{name}: after a resume at {items * BATCH:,} another sample came")
        took[name] = statistics.median(times)
    del reading
    return took


def table_text(rates: Sequence[Rate], took: dict[str, float]) -> str:
    """A line for each way: images per CPU second, and the ratio of its group's ours to it."""
    lines = [f"{'':<25} {'':<40} {'images/CPU-s':>14}  ours is"]
    for group, members in itertools.groupby(rates, key=lambda rate: rate.group):
        best = None
        for rate in members:
            best = best or rate
            ratio = "" if rate.ours else f"{best.rate / rate.rate:.1f}x"
            lines.append(f"{group:<25} {rate.name:<40} {rate.rate:>14,.0f}  {ratio}")
    resumed = ", ".join(f"{name} {value:.1f} ms" for name, value in took.items())
    return "\n".join([*lines, f"resume after {FAR:,} images: {resumed}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds of a turn, about")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pool = Pool()
    with tempfile.TemporaryDirectory() as folder:
        drawn = ways(pool, Path(folder))
        for way in drawn:
            check(way, pool)
        rates = race(drawn, asked.rounds, asked.seconds)
    took = resumes(pool)
    print(table_text(rates, took))
    if asked.json:
        written = asked.json.with_suffix(".tmp")
        written.write_text(json.dumps({"rates": [asdict(rate) for rate in rates], "resume_ms": took}, indent=2) + "\n")
        written.replace(asked.json)


if __name__ == "__main__":
    main()
