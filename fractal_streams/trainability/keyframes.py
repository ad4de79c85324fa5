"""The folder of a zoom: keyframes as they are finished, beside a sidecar of what determines them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fractal_streams.errors import InvalidValueError, VersionError, missing_extra
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.picture import save_plain
from fractal_streams.trainability.plan import engine_of, grid_of
from fractal_streams.trainability.scan import device_of, open_scan, scan
from fractal_streams.trainability.store import Facts, flat, put, text_of
from fractal_streams.trainability.trainer import open_trainer
from fractal_streams.trainability.window import PrecisionWarning, Window, check_precision

ZOOM_VERSION = 1
SIDECAR = "zoom.json"
Limit = Literal["stop", "refuse", "warn", "allow"]


def level_folder(folder: Path, level: int) -> Path:
    """Where the scan of a level is."""
    return folder / f"level-{level:03d}"


def picture_file(folder: Path, level: int) -> Path:
    """Where the plain picture of a level is."""
    return folder / f"zoom_{level:03d}.png"


class Keyframes:
    """Makes the keyframes of a zoom in their order, those that are not in its folder yet.

    windows: of the finished ones.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: str | Path,
        resolution: int | tuple[int, int],
        course: Facts,
        on_limit: Limit,
        training: dict[str, Any],
    ) -> None:
        self.experiment, self.folder, self.resolution = experiment, Path(folder), resolution
        one_of(on_limit, "on_limit", ("stop", "refuse", "warn", "allow"))
        self.on_limit = on_limit
        self.training = dict(training)
        device, mode = self.training.pop("device", "auto"), self.training.pop("mode", "exact")
        precision, trainer = self.training.pop("precision", "float64"), self.training.pop("trainer", None)
        self.shard = self.training.get("shard") or Shard.detect()
        self.trainer = trainer or open_trainer(device_of(device, self.shard), precision, mode)
        self.mode = getattr(self.trainer, "mode", mode)
        self.course = course
        self.shape = grid_of(Window.of_experiment(experiment), resolution).shape
        self.warned, self.shown, self.bars = False, None, False
        self.left = sorted(self.folder.glob(".zoom*.tmp"))
        self.windows = self._found()

    def facts(self) -> Facts:
        """What determines the keyframes, but their windows."""
        refine = self.training.get("refine")
        return {
            "zoom_version": ZOOM_VERSION,
            "experiment": json.loads(self.experiment.to_json()),
            "resolution": list(self.shape),
            "precision": self.trainer.precision,
            "mode": self.mode,
            "refine": refine.to_dict() if refine else None,
            "engine": engine_of(self.trainer),
            **self.course,
        }

    def _found(self) -> list[Window]:
        """The windows of the levels that are finished in the folder."""
        begun = any(self.folder.glob("level-*")) or any(self.folder.glob("zoom_*.png"))
        if not (self.folder / SIDECAR).exists():  # looked for last: another rank writes it before all else
            if (self.folder / "scan.json").exists():
                raise InvalidValueError(f"{self.folder} holds a scan: give another folder")
            if begun:
                raise InvalidValueError(
                    f"{self.folder} holds keyframes, but no {SIDECAR} that says of what: give another folder"
                )
            self.windows = []
            self._write()
            return []
        there = read_zoom(self.folder)
        windows = windows_of(there.pop("windows", []), self.folder)
        was, now = flat(there), flat(json.loads(text_of(self.facts())))
        changed = [
            f"{name} is {was.get(name)!r} there, {now.get(name)!r} here"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if changed:
            raise InvalidValueError(
                f"{self.folder} holds another zoom ({'; '.join(changed[:4])}): give another folder, or ask for the "
                f"zoom that is there"
            )
        return windows

    def check_windows(self, asked: Sequence[Window]) -> None:
        """Refuse windows that are not those of the folder, and, with "refuse", any that is too narrow."""
        for level, (there, window) in enumerate(zip(self.windows, asked, strict=False)):
            if there != window:
                raise InvalidValueError(
                    f"{self.folder} holds another zoom (level {level} is {there} there, {window} here): give another "
                    f"folder, or ask for the zoom that is there"
                )
        if self.on_limit == "refuse":
            for level, window in enumerate(asked):
                self._narrow(level, window)

    def make(self, level: int, window: Window) -> bool:
        """See that a level is there; False where the zoom ends before it."""
        if self._narrow(level, window):
            return False
        if level >= len(self.windows) or not level_folder(self.folder, level).is_dir():
            scan(
                self.experiment, window, resolution=self.resolution, trainer=self.trainer, mode=self.mode,
                folder=level_folder(self.folder, level), on_limit="allow", progress=self.bars, **self.training,
            )  # fmt: skip
        if not picture_file(self.folder, level).exists():
            save_plain(self.measure(level), picture_file(self.folder, level))
        if level >= len(self.windows):
            self.windows.append(window)
            if self.shard.rank == 0 and len(read_zoom(self.folder).get("windows", ())) < len(self.windows):
                self._write()  # another process that lags behind takes no level out of the list
        if self.shown is not None:
            self.shown.update(1)
        return True

    def measure(self, level: int) -> Float64:
        """(H, W) V of a level that is there."""
        return open_scan(level_folder(self.folder, level)).measure

    def _narrow(self, level: int, window: Window) -> bool:
        """Whether the zoom ends before a window, because the precision does not reach into it."""
        if self.on_limit == "allow":
            return False
        told = check_precision(window, grid_of(window, self.resolution), self.trainer.precision, "allow")
        if told is None:
            return False
        if self.on_limit == "refuse" or (self.on_limit == "stop" and level == 0):
            raise InvalidValueError(f"level {level}: {told}; on_limit='warn' goes on all the same")
        if not self.warned:
            goes = "the zoom ends before" if self.on_limit == "stop" else "the zoom goes on from"
            warnings.warn(f"{goes} level {level}: {told}", PrecisionWarning, stacklevel=4)
        self.warned = True
        return self.on_limit == "stop"

    def _write(self) -> None:
        facts = {**self.facts(), "windows": [window.to_dict() for window in self.windows]}
        put(self.folder / SIDECAR, lambda file: file.write(text_of(facts).encode()))

    def finished(self) -> Path:
        """The folder, without what killed processes left in it."""
        for old in self.left:
            old.unlink(missing_ok=True)
        return self.folder

    @contextmanager
    def bar(self, levels: int, progress: bool) -> Iterator[None]:
        """A progress bar over the keyframes while they are made, of rank 0."""
        if not progress or self.shard.rank:
            yield
            return
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ImportError:
            raise missing_extra("tqdm", "cli") from None
        self.bars = True
        with tqdm(total=levels, desc="zoom", unit=" keyframes", dynamic_ncols=True) as self.shown:
            yield


def windows_of(values: Any, folder: Path) -> list[Window]:
    """The windows that a zoom's sidecar lists."""
    if not isinstance(values, list):
        raise InvalidValueError(f"{folder / SIDECAR} is damaged (windows is {values!r}): give another folder")
    return [Window.from_dict(each) for each in values]


def read_zoom(folder: Path) -> Facts:
    """The facts of a zoom's folder.

    Raises:
        InvalidValueError: no folder of a zoom, or a damaged one. VersionError: of another version of the layout.
    """
    try:
        facts = json.loads((folder / SIDECAR).read_text())
    except FileNotFoundError:
        raise InvalidValueError(
            f"{folder} holds no zoom: it has no {SIDECAR}; zoom(..., folder=...) and zoom_in make one"
        ) from None
    except ValueError as error:
        raise InvalidValueError(f"{folder / SIDECAR} is damaged ({error}): give another folder") from None
    version = facts.get("zoom_version") if isinstance(facts, dict) else None
    if version != ZOOM_VERSION:
        raise VersionError(
            f"{folder / SIDECAR} has the version {version!r}, this package writes {ZOOM_VERSION}: read it with the "
            f"version of fractal-streams that wrote it, or give another folder"
        )
    return dict(facts)
