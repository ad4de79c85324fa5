"""What determines a scan, and how it is cut into parts."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import numpy as np

from fractal_streams.errors import FractalStreamsError, InvalidValueError
from fractal_streams.shard import Shard
from fractal_streams.spec import whole
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.inputs import inputs_of
from fractal_streams.trainability.modes import check_reducible
from fractal_streams.trainability.refine import Bool, Int64, Refined, Refinement, checked, of_dict, refine
from fractal_streams.trainability.store import COLUMNS, SCAN_VERSION, Columns, Facts, Part, Silent, Store, completed
from fractal_streams.trainability.trainer import Trainer
from fractal_streams.trainability.window import MAX_RESOLUTION, Grid, Window

MIN_TILE = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines a scan, and how it is cut into parts."""

    experiment: Experiment
    window: Window
    grid: Grid
    tile: int
    precision: str
    mode: str
    engine: dict[str, str]
    refine: Refinement | None = None

    def __post_init__(self) -> None:
        whole(self.tile, "tile", MIN_TILE, MAX_RESOLUTION, "points")
        if self.mode == "reduced":
            check_reducible(self.experiment)
        inputs_of(self.experiment)  # refuses here what it would refuse at the first tile

    def facts(self) -> Facts:
        """The contents of `scan.json`."""
        return {
            "scan_version": SCAN_VERSION,
            "experiment": json.loads(self.experiment.to_json()),
            "window": self.window.to_dict(),
            "resolution": list(self.grid.shape),
            "tile": int(self.tile),
            "precision": self.precision,
            "mode": self.mode,
            "refine": self.refine.to_dict() if self.refine else None,
            "engine": self.engine,
        }

    @classmethod
    def of_facts(cls, facts: Facts) -> Plan:
        """The plan that `facts` gave.

        Raises:
            InvalidValueError: something is missing, or isn't what it should be.
        """
        try:
            window = Window.from_dict(facts["window"])
            return cls(
                experiment=Experiment.from_json(json.dumps(facts["experiment"])), window=window,
                grid=window.grid(*facts["resolution"]), tile=facts["tile"], precision=facts["precision"],
                mode=facts["mode"], engine=facts["engine"], refine=of_dict(facts["refine"]),
            )  # fmt: skip
        except FractalStreamsError:
            raise
        except (KeyError, TypeError) as error:
            raise InvalidValueError(f"these are no facts of a scan: {error}") from None

    def tiles(self) -> list[Part]:
        """Squares of the grid, row by row, the lowest row first; the last of a row or column may be smaller."""
        rows, columns = (
            [slice(first, min(first + self.tile, count)) for first in range(0, count, self.tile)]
            for count in self.grid.shape
        )
        return [
            Part(f"tiles/tile-{r:04d}-{c:04d}", (row, column))
            for r, row in enumerate(rows)
            for c, column in enumerate(columns)
        ]

    def batches(self, title: str, rows: Int64, columns: Int64) -> list[Part]:
        """Single points, as many to a part as a tile has."""
        size = self.tile * self.tile
        return [
            Part(f"points/{title}-{number:04d}", (rows[first : first + size], columns[first : first + size]))
            for number, first in enumerate(range(0, len(rows), size))
        ]

    def refined(
        self, store: Store, train: Callable[[Part], Columns], shard: Shard, bar: Silent
    ) -> tuple[Columns, Bool, Refined]:
        """The columns of a refined scan, where they were evaluated, and how wrong they are elsewhere."""
        dealt = passes = 0

        def evaluate(rows: Int64, columns: Int64, title: str = "") -> Columns:
            nonlocal dealt, passes
            parts = self.batches(title or f"pass-{passes:04d}", rows, columns)
            there = {part.name: kept for part, kept in completed(parts, store, train, shard, bar, dealt)}
            dealt, passes = dealt + len(parts), passes + 1
            return {name: np.concatenate([there[part.name][name] for part in parts]) for name in COLUMNS}

        asked = cast(Refinement, self.refine)
        canvas, evaluated = refine(self.grid.shape, asked, evaluate)
        name = self.experiment.digest()
        return canvas, evaluated, checked(canvas, evaluated, asked, lambda r, c: evaluate(r, c, "check"), name)


def grid_of(window: Window, resolution: int | tuple[int, int]) -> Grid:
    """The grid of a window, with so many points of both axes or (height, width)."""
    both = tuple(resolution) if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(both) != 2:
        raise InvalidValueError(f"resolution must be one number of points or (height, width), got {resolution!r}")
    return window.grid(*both)


def engine_of(trainer: Trainer) -> dict[str, str]:
    """Names and versions that the last bits of a result depend on."""
    from fractal_streams import __version__

    kind, names = platform.machine(), ("numpy", "numba")
    if trainer.device.startswith("cuda"):
        import torch

        kind, names = torch.cuda.get_device_name(trainer.device), ("torch", "triton")
    told = {"trainer": type(trainer).__name__, "device": kind, "fractal-streams": __version__}
    return told | {name: version_of(name) for name in names}


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
