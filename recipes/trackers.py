"""Trackers of runs: TensorBoard, Weights & Biases and trackio, by accelerate's classes of them."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams.errors import MissingExtraError, missing_extra
from fractal_streams.spec import one_of

try:
    from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
    from PIL import Image
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "fractal-streams"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not known or not installed.

    Raises:
        UnknownNameError: no tracker has this name.
        MissingExtraError: it is not installed; names the pip line.
    """
    for name in names:
        one_of(name, "trackers", TRACKERS)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder of that name, as wandb makes one where it runs
            raise MissingExtraError(f"{name} is not installed, and trackers={name!r} needs it: pip install {name}")


class Trackers:
    """Several trackers, told the same; on the main process.

    Args:
        names: of `TRACKERS`. folder: of the run; TensorBoard's files go to its "tensorboard".
        title: of the run. settings: what decides the run. step: that a resumed run goes on behind.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, title: str, settings: Mapping[str, Any], step: int = 0
    ) -> None:
        check_trackers(names)
        told = {name: value if isinstance(value, str | int | float) else str(value) for name, value in settings.items()}
        self.open: dict[str, Any] = {}
        for name in names:
            tracker = opened(name, folder, f"{title}, {folder.name}", step)
            if hasattr(tracker, "start"):
                tracker.start()
            self.open[name] = tracker
            if name == "tensorboard":  # its own way makes a run of its own of the settings
                tracker.tracker.add_text("settings", f"```\n{json.dumps(told, indent=1)}\n```", step)
            else:
                tracker.store_init_configuration(told)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name."""
        for tracker in self.open.values():
            tracker.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture by name, from a file that PIL reads."""
        if not self.open:
            return
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for kind, tracker in self.open.items():
            if kind == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            elif kind == "wandb":
                tracker.log_images({name: [pixels]}, step=step)
            else:
                tracker.log({name: importlib.import_module(kind).Image(pixels)}, step=step)

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].finish()


def opened(name: str, folder: Path, title: str, step: int) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
    if name == "wandb":
        return WandBTracker(PROJECT, name=title, dir=str(folder))
    return TrackioTracker(PROJECT, name=title)
