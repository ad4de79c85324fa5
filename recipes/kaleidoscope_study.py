"""What the experiments of `recipes.kaleidoscope` share: sizes, banks that are fitted once, and what is found."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources, open_kaleidoscope
from fractal_streams.kaleidoscope.fitting import fit
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.quality import completed
from fractal_streams.kaleidoscope.training import Training

SCALES = ("tiny", "small", "full")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is told.

    scale: "tiny" shows that it runs, "small" is for a CPU, "full" for a GPU.
    mnist, cifar, celeba: torchvision's folders of them; None takes pictures of this package's own streams.
    """

    output_dir: Path
    scale: str = "small"
    device: str = "auto"
    mnist: str | None = None
    cifar: str | None = None
    celeba: str | None = None
    quiet: bool = False

    def of_scale(self, tiny: Any, small: Any, full: Any) -> Any:
        """One of three values."""
        return (tiny, small, full)[SCALES.index(self.scale)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table: its heads, its rows of text, and a title."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment found.

    said: sentences made from the figures. pictures: (file in the experiment's folder, caption).
    """

    said: tuple[str, ...]
    tables: tuple[Cell, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder of one experiment, and how it is run."""

    folder: Path
    asked: Asked

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that most functions of the library take."""
        return {"device": self.asked.device}

    @property
    def films(self) -> bool:
        """Whether GIFs are made."""
        return self.asked.scale != "tiny"

    def bank(
        self, name: str, network: Network, sources: Sources, training: Training, *, models: int, restarts: int = 1,
        held_out: Sources | None = None, whole: bool = True,
    ) -> Kaleidoscope:  # fmt: skip
        """A fitted bank, from its file if it is there; a fit that was killed goes on.

        Args:
            name: of its file.
            whole: with attractors and quality report.
        """
        path, part = self.folder / f"{name}.safetensors", self.folder / f"{name}.part.safetensors"
        if path.is_file():
            return open_kaleidoscope(path)
        bars = not self.asked.quiet
        fitted = fit(
            network, sources, training, models=models, restarts=restarts, checkpoint=part, on_identity="allow",
            on_dead="allow", progress=bars, **self.common,
        )  # fmt: skip
        if whole:
            chains = self.asked.of_scale(100, 1000, 2000)
            fitted = completed(fitted, chains=chains, held_out=held_out, progress=bars, **self.common)
        fitted.save(path)
        part.unlink(missing_ok=True)
        return fitted


def finished(place: Place, name: str, title: str, claim: str, run: Any) -> dict[str, Any]:
    """What an experiment found, as its result.json has it; it is run if that is not there yet.

    Raises:
        InvalidValueError: the folder is of a run with other settings.
    """
    asked = place.asked
    settings = {"scale": asked.scale, "mnist": asked.mnist, "cifar": asked.cifar, "celeba": asked.celeba}
    known, done = place.folder / "settings.json", place.folder / "result.json"
    if known.is_file():
        there = json.loads(known.read_text())
        changed = [f"{key} is {there.get(key)!r} there, {value!r} here"
                   for key, value in settings.items() if there.get(key) != value]  # fmt: skip
        if changed:
            raise InvalidValueError(
                f"{place.folder} is of another run ({'; '.join(changed)}): give another --output-dir, or ask as before"
            )
    if done.is_file():
        return dict(json.loads(done.read_text()))
    write(known, json.dumps(settings, indent=1))
    start = time.perf_counter()
    result: Result = run(place)
    told = {
        "name": name, "title": title, "claim": claim, "settings": settings, **asdict(result),
        "seconds": time.perf_counter() - start, "device": device_name(asked.device),
    }  # fmt: skip
    write(done, json.dumps(told, indent=1))
    return dict(json.loads(done.read_text()))


def device_name(device: str) -> str:
    """The device in words."""
    import torch

    from fractal_streams.device import resolve_device

    chosen = resolve_device(device)
    if chosen == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' * (threads > 1)}"
    return str(torch.cuda.get_device_name(chosen))


def spread(values: Any, digits: int = 2, percent: bool = False) -> str:
    """Mean and standard deviation of values in text.

    Args:
        digits: behind the point; more where the mean would have less than two that count, of percent one.

    Example:
        >>> spread([0.25, 0.75], percent=True), spread([]), spread([2.0]), spread([0.003, 0.004]), spread([3e-7])
        ('50 ± 25 %', '-', '2.00', '0.0035 ± 0.0005', '3.0e-07')
    """
    row = np.asarray(values, np.float64)
    row = row[np.isfinite(row)] * (100.0 if percent else 1.0)
    unit, digits = (" %", 0) if percent else ("", digits)
    if not len(row):
        return "-"
    mean, form = float(row.mean()), f".{digits}f"
    if mean:
        needed = (0 if percent else 1) - math.floor(math.log10(abs(mean)))
        form = f".{max(digits, needed)}f" if needed < 6 else ".1e"
    tail = f" ± {row.std():{form}}" if len(row) > 1 else ""
    return f"{mean:{form}}{tail}{unit}"


def percent(share: float) -> str:
    """A share in text."""
    return f"{100.0 * share:.0f} %"


def rises(values: Sequence[float]) -> bool:
    """Whether each is above the one before."""
    return all(late > early for early, late in zip(values, values[1:], strict=False))


def write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_text(text)
    os.replace(whole, path)
