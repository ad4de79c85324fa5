"""Stored pictures: packed crops beside decoding anew for each sample.

Question: what does decoding and reducing once save, and how fast are crops then?
Gate: every crop of the packed picture equals the area-reduced crop of the original, to the bit; else nothing is timed.
Measured: samples a second of CPU time (`process_time`) in turns of one run, the median of the rounds.

    python -m fractal_streams.recipes.benchmarks.stored
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fractal_streams.presets import open_stream
from fractal_streams.stored import StoredStream, pack
from fractal_streams.stored.reduction import reduced
from fractal_streams.stream import StillStream

COUNT, EDGE, FACTOR, SIZE = 6, 3072, 8, 64
"""Pictures, their edge, the reduction, and the edge of a crop: windows of 512 pixels shown at 64."""
ROUNDS = 5


def originals(folder: Path) -> None:
    """JPEG files of `COUNT` fractals of 9.4 megapixels."""
    stream = open_stream("fractal-10", height=EDGE, width=EDGE, device="cpu", channels_last=True)
    assert isinstance(stream, StillStream)
    for number in range(COUNT):
        Image.fromarray(stream[number].image).save(folder / f"{number}.jpg", quality=90)


def gate(folder: Path, stream: StoredStream) -> None:
    """Stop unless crops are what cropping first and reducing then gives."""
    batch = stream.generate(range(2 * COUNT))
    for k, image in enumerate(batch.images):
        item, top, left = (int(batch.latents[name][k]) for name in ("item", "top", "left"))
        with Image.open(folder / stream.pack.names[item]) as file:
            window = np.asarray(file)[top * FACTOR :, left * FACTOR :][: SIZE * FACTOR, : SIZE * FACTOR]
        if not np.array_equal(reduced(window, SIZE, SIZE).transpose(2, 0, 1), image):
            raise AssertionError(f"sample {k} is not the reduced crop of {stream.pack.names[item]}")


def decoded_anew(folder: Path, stream: StoredStream) -> Callable[[], int]:
    """Each sample opens its file, cuts a window and resizes it."""
    places = stream.placement.place(np.arange(2))

    def work() -> int:
        for item, top, left, _ in places.T:
            x, y = int(left) * FACTOR, int(top) * FACTOR
            with Image.open(folder / stream.pack.names[item]) as file:
                window = file.convert("RGB").crop((x, y, x + FACTOR * SIZE, y + FACTOR * SIZE))
                np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BOX))
        return places.shape[1]

    return work


def sliced(stream: StoredStream) -> Callable[[], int]:
    """The same packed pictures, by NumPy's slices in a loop."""
    places = stream.placement.place(np.arange(512))

    def work() -> int:
        images = np.empty((places.shape[1], 3, SIZE, SIZE), np.uint8)
        for k, (item, top, left, _) in enumerate(places.T):
            window = stream.pack.picture(item)[top : top + SIZE, left : left + SIZE]
            images[k] = window.transpose(2, 0, 1)
        return len(images)

    return work


def measure() -> dict[str, float]:
    """Samples per second of CPU time of each way; pictures per second that are packed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "originals")
        folder.mkdir()
        originals(folder)
        start = time.process_time()
        made = pack(folder, Path(place, "pack"), height=SIZE, reduction=FACTOR, progress=False)
        seconds = time.process_time() - start
        stream = StoredStream(made, height=SIZE, device="cpu")
        gate(folder, stream)
        ways = {
            "decoded anew": decoded_anew(folder, stream), "packed, slices": sliced(stream),
            "packed": lambda: len(stream.generate(range(512))),
        }  # fmt: skip
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for work in ways.values():
            work()
        for _ in range(ROUNDS):
            for name, work in ways.items():
                rates[name].append(rate(work))
        return {"packing": COUNT / seconds, **{name: statistics.median(found) for name, found in rates.items()}}


def rate(work: Callable[[], int], seconds: float = 0.3) -> float:
    """Samples per second of CPU time."""
    start, count = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        count += work()
    return count / spent


if __name__ == "__main__":
    for way, speed in measure().items():
        print(f"{way:16} {speed:12,.1f} {'pictures' if way == 'packing' else 'samples'}/s of CPU time")
