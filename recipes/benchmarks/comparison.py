"""This project beside everything a user would pick instead, each up to a normalised batch on its device.

Question: how many training pictures a second does each way deliver here?
Gate: ours are held to the float64 reference, and each path's first batch to the stream; every contestant's first batch
to its shape, dtype, device, labels and a normalised distribution. One that fails has a reason, and no speed.
Measured: turns of about 0.6 s, warm, all contestants one after the other and that three times, each opened anew;
medians. Wall time; without a GPU, of what works in one process alone, CPU time, so that a rate is that of one core.

    fractal-streams bench --json rates.json --plot rates.png
"""

from __future__ import annotations

import importlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fractal_streams.recipes.benchmarks.energy import Meter
from fractal_streams.recipes.benchmarks.throughput import gate

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.spec import whole

try:
    import torch
except ImportError:
    raise missing_extra("torch", "torch") from None

from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery
from fractal_streams.recipes.benchmarks.peers.pictures import SOURCE, Pictures
from fractal_streams.recipes.benchmarks.race import Turn, clock_of, race, reason_of

PEERS = {
    "fractal-streams": "ours",
    "first seed": "first_seed",
    "CIFAR on the device": "resident",
    "torchvision CIFAR-10": "torchvision_cifar",
    "FFCV": "ffcv_files",
    "NVIDIA DALI": "dali",
    "HF datasets": "huggingface",
    "webdataset": "web",
    "IFS in Numba": "ifs",
}
"""Kind of contestant to its module in `peers`, which is imported only here: each may lack what it stands on."""
WORKERS = (0, 2, 4, 8, 16)
PICTURES = 50_000
"""Of a stored set of 32x32; of larger pictures fewer, down to four batches, so that it stays as large."""
ROUNDS, SECONDS = 3, 0.6


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one contestant.

    rate: images a second, the median; each: of every round; spread: half of their range over the median.
    clock: "wall", or "core" for seconds of CPU time. ours_is: times as fast that ours is, median of the rounds.
    share: of the roofline, of 1. joules: per image. first: seconds from opening to the first batch, warm.
    reason: why there is no rate.
    """

    name: str
    workers: int = 0
    batch: int = 0
    ours: bool = False
    clock: str = "wall"
    rate: float | None = None
    each: tuple[float, ...] = ()
    spread: float | None = None
    ours_is: float | None = None
    share: float | None = None
    joules: float | None = None
    first: float | None = None
    reason: str | None = None

    @property
    def titled(self) -> str:
        """The name with the number of worker processes."""
        return self.name + (f", {self.workers} workers" if self.workers else "")

    @property
    def times(self) -> str:
        """How many times as fast ours is, in three digits or more; nothing for ours."""
        if self.ours or self.ours_is is None:
            return "" if self.ours else "-"
        return f"{self.ours_is:,.0f}x" if self.ours_is >= 100 else f"{self.ours_is:.3g}x"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole table.

    parity: by renderer, pixels that leave the reference, that may, and that were compared.
    energy: what joules are counted of: "GPU", "CPU".
    """

    machine: dict[str, str]
    device: str
    size: int
    batch: int
    dtype: str
    pictures: int
    parity: dict[str, dict[str, int]]
    energy: tuple[str, ...]
    rows: tuple[Row, ...]

    def figures(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def compare(
    *,
    size: int = 32,
    batch: int = 512,
    workers: Sequence[int] | None = None,
    pictures: int = PICTURES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    device: str = "auto",
    only: Iterable[str] = (),
    progress: Callable[[str], Any] = lambda text: None,
) -> Comparison:
    """Measure every contestant at one size.

    Args:
        size: edge of the pictures, pixels.
        workers: numbers of worker processes; None is 0, 2, 4, 8 and 16, as far as there are cores.
        pictures: of a stored set of 32x32.
        rounds, seconds: turns of each contestant, and how long one lasts, about.
        only: words of which a contestant's name must have one; none is everyone. Ours are always there.
        progress: is told what is measured now.

    Raises:
        ParityError: ours leaves the reference.
        InvalidValueError, DeviceError: names the argument and what is allowed.

    Example:
        >>> quick = {"batch": 16, "workers": [0], "pictures": 64, "rounds": 1, "seconds": 0.01}
        >>> table = compare(device="cpu", only=["none"], **quick)
        >>> [(row.name, row.ours_is) for row in table.rows]
        [('fractal-streams, CPU', 1.0)]
    """
    if not 0.0 < seconds <= 600.0:
        raise InvalidValueError(f"seconds must lie in (0, 600], got {seconds!r}")
    whole(rounds, "rounds", 1, 1000, "")
    whole(pictures, "pictures", 64, 10**7, "")
    delivery = Delivery(
        device=resolve_device(device), size=whole(size, "size", 8, 1024, "pixels"),
        batch=whole(batch, "batch", 2, 2**20, "samples"), workers=worker_counts(workers),
    )  # fmt: skip
    dtype = str(delivery.dtype).removeprefix("torch.")
    progress("parity with the reference")
    renderers = ("triton", "numba") if delivery.on_gpu else ("numba",)
    parity = {name: gate(SOURCE, name, delivery.device, size, (dtype,)) for name in renderers}
    count = max(4 * batch, min(pictures, pictures * 32**2 // size**2))
    with tempfile.TemporaryDirectory() as folder, Meter(delivery.device) as meter, torch_threads(delivery):
        stored = Pictures(
            Path(folder), count=count, size=size, shards=max(1, delivery.most_workers), device=delivery.device
        )
        progress("rendering the pictures that others store")
        drawn, absent = contestants(delivery, stored, tuple(only))
        for own in drawn:
            share_of(own, 1.0)  # what is wrong with a roofline shows now, not behind minutes of measuring
        turns, reasons = race(drawn, delivery, rounds=rounds, seconds=seconds, meter=meter, progress=progress)
        parts = meter.parts
    rows = [row_of(*each, delivery) for each in zip(drawn, turns, reasons, strict=True)]
    return Comparison(
        machine=machine(delivery), device=delivery.device, size=size, batch=batch, dtype=dtype, pictures=count,
        parity=parity, energy=parts, rows=(*with_ratios(rows, delivery), *absent),
    )  # fmt: skip


def worker_counts(asked: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of workers that were asked for; else all of `WORKERS` that there are cores for."""
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return tuple(count for count in WORKERS if count <= cores)
    if not asked:
        raise InvalidValueError("workers must have a number in it, such as 0, got none")
    return tuple(sorted({whole(count, "workers", 0, 1024, "processes") for count in asked}))


@contextmanager
def torch_threads(delivery: Delivery) -> Iterator[None]:
    """Without a GPU torch works on one thread meanwhile: threads that wait in a loop would count as work."""
    before = torch.get_num_threads()
    if not delivery.on_gpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contestants(delivery: Delivery, stored: Pictures, only: tuple[str, ...]) -> tuple[list[Contestant], list[Row]]:
    """All that can run here, ours first, and a row with the reason for each kind that can't."""

    def asked(name: str) -> bool:
        return not only or any(word.lower() in name.lower() for word in only)

    found: list[Contestant] = []
    absent: list[Row] = []
    for kind, module in PEERS.items():
        try:
            peers = importlib.import_module(f"fractal_streams.recipes.benchmarks.peers.{module}")
            found += [each for each in peers.contestants(delivery, stored) if each.ours or asked(each.name)]
        except Exception as error:
            if asked(kind):
                absent.append(Row(name=kind, reason=reason_of(error)))
    return found, absent


def row_of(contestant: Contestant, turns: Sequence[Turn], reason: str | None, delivery: Delivery) -> Row:
    """The row of one contestant, but for its ratio."""
    row = Row(
        name=contestant.name, workers=contestant.workers, batch=contestant.batch, ours=contestant.ours,
        clock=clock_of(contestant, delivery),
    )  # fmt: skip
    if reason or not turns:
        return replace(row, reason=reason)
    each = tuple(turn.rate for turn in turns)
    rate = statistics.median(each)
    joules = [turn.joules for turn in turns if turn.joules is not None]
    opened = [turn.first for turn in turns if turn.first is not None]
    return replace(
        row, rate=rate, each=each, spread=(max(each) - min(each)) / 2 / rate,
        share=share_of(contestant, rate),
        joules=statistics.median(joules) if joules else None, first=statistics.median(opened) if opened else None,
    )  # fmt: skip


def share_of(contestant: Contestant, rate: float) -> float | None:
    """The share of the roofline that a rate is, where there is a roofline of what is rendered."""
    if contestant.stream is None:
        return None
    try:
        from fractal_streams.recipes.benchmarks.roofline import share
    except ImportError:
        return None
    return share(contestant.stream, rate)


def with_ratios(rows: Sequence[Row], delivery: Delivery) -> list[Row]:
    """Every row with how many times as fast ours is.

    Ours is the fastest of ours by the same clock; without a GPU, of those with as many workers, where there is one.
    """
    made = []
    for row in rows:
        rivals = [each for each in rows if each.ours and each.rate and each.clock == row.clock]
        alike = [each for each in rivals if each.workers == row.workers]
        rivals = alike if alike and not delivery.on_gpu else rivals
        if row.rate is None or not rivals:
            made.append(row)
            continue
        best = max(rivals, key=lambda each: each.rate or 0.0)
        made.append(replace(row, ours_is=statistics.median(a / b for a, b in zip(best.each, row.each, strict=False))))
    return made


def machine(delivery: Delivery) -> dict[str, str]:
    """What this ran on."""
    from fractal_streams.recipes.benchmarks.cpu_peers import hardware

    gpu = {"gpu": torch.cuda.get_device_name(delivery.device)} if delivery.on_gpu else {}
    return {**gpu, **hardware(), "cores": str(os.cpu_count())}
