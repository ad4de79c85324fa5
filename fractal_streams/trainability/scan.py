"""Scans: one network trained at every point of a window, in tiles, resumable, shared by the GPUs of a machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.modes import Mode, Precision
from fractal_streams.trainability.plan import Plan, engine_of, grid_of
from fractal_streams.trainability.refine import Bool, Refined, Refinement
from fractal_streams.trainability.store import (
    COLUMNS,
    Columns,
    Folder,
    NetworksBar,
    Nowhere,
    Part,
    Silent,
    Store,
    completed,
    open_folder,
    read_facts,
)
from fractal_streams.trainability.trainer import Trainer, open_trainer
from fractal_streams.trainability.window import Grid, OnLimit, PrecisionWarning, Window, check_precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What was measured at every point of a window. Row 0 is the lowest.

    experiment, window, grid, precision, mode: what was trained, where, and how.
    measure: (H, W) float64, the signed measure; below 0 is converged.
    diverged_at: (H, W) int32, first step whose loss is 1e6 times the first or isn't finite; `steps` if none.
    final_loss: (H, W) float64, the last loss over the first, at most 1e6.
    evaluated: (H, W) bool, of a refined scan: where a network was trained; else None, which is everywhere.
    refined: of a refined scan: shares of evaluated points and of wrong labels; else None.

    Example:
        >>> made = scan(Experiment(width=8, dataset_mode="single_example", steps=30), resolution=8, device="cpu")
        >>> made.status.shape, int(made.converged.sum() + made.status.sum())
        ((8, 8), 64)
    """

    experiment: Experiment
    window: Window
    grid: Grid = field(repr=False)
    measure: Float64 = field(repr=False)
    diverged_at: npt.NDArray[np.int32] = field(repr=False)
    final_loss: Float64 = field(repr=False)
    precision: str = "float64"
    mode: str = "exact"
    evaluated: Bool | None = field(default=None, repr=False)
    refined: Refined | None = None

    def __post_init__(self) -> None:
        for name in COLUMNS:
            if np.shape(getattr(self, name)) != self.grid.shape:
                raise InvalidValueError(
                    f"{name} must have the grid's shape {self.grid.shape}, got {np.shape(getattr(self, name))}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.grid.shape

    @property
    def converged(self) -> Bool:
        """(H, W) bool: the mean of the last 20 losses lies below the first."""
        return self.measure < 0

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """(H, W) uint8: 0 converged, 1 diverged."""
        return (~self.converged).astype(np.uint8)


class FolderScan(Scan):
    """A scan whose arrays are read from the tiles of a folder, each when it is first asked for."""

    @classmethod
    def of(cls, plan: Plan, folder: Folder) -> FolderScan:
        """The scan of a folder in which all tiles are there."""
        made, kept = object.__new__(cls), Folder(folder.path.absolute())  # found from other working directories too
        told = {name: getattr(plan, name) for name in ("experiment", "window", "grid", "precision", "mode")}
        for name, value in {**told, "evaluated": None, "refined": None, "_plan": plan, "_folder": kept}.items():
            object.__setattr__(made, name, value)
        return made

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS or "_plan" not in self.__dict__:
            raise AttributeError(f"a scan has no {name!r}")
        made: npt.NDArray[Any] = np.empty(self.grid.shape, COLUMNS[name])
        for part in self._plan.tiles():
            made[part.place] = found(self._folder, part, (name,))[name]
        object.__setattr__(self, name, made)
        return made


def scan(
    experiment: Experiment,
    window: Window | None = None,
    *,
    resolution: int | tuple[int, int] = 512,
    device: str = "auto",
    precision: Precision = "float64",
    mode: Mode = "exact",
    trainer: Trainer | None = None,
    folder: str | Path | None = None,
    tile: int | None = None,
    on_limit: OnLimit = "warn",
    refine: Refinement | None = None,
    shard: Shard | None = None,
    progress: bool = False,
) -> Scan:
    """Train at every point of a window.

    Args:
        window: None is the paper's overview.
        resolution: points of both axes, or (height, width), 2 to 8192.
        device, precision, mode: see `open_trainer`. Under torchrun "auto" and "cuda" are the GPU LOCAL_RANK.
        trainer: another one, which then says device and precision.
        folder: where tiles are kept as they are finished, `tiles/tile-RRRR-CCCC.npz` beside `scan.json`. The same
            call goes on after a kill, with the same bytes at the end; a damaged tile is made again.
        tile: points along each edge of a tile, 4 to 8192; None is 256 on a GPU and 64 on a CPU. Changes no value.
        on_limit: what a window does that is too narrow for the precision: "refuse", "warn" or "allow".
        refine: leave out what lies far from the boundary; the result says where, and how often it is wrong.
        shard: None is this process's, by torchrun or torch.distributed. Ranks share the folder, tile i is rank i's
            modulo the world size; each returns when the tiles of all are there, for which it waits without end.
        progress: a bar with networks/s and the time left, of rank 0.

    Raises:
        InvalidValueError: a value outside its range; a folder of another scan; ranks without a folder.
        VersionError: a folder of another version. MissingExtraError: progress without tqdm.
        OSError: of the disk; finished tiles are kept.

    Example:
        >>> small = Experiment(width=8, dataset_mode="single_example", steps=30)
        >>> scan(small, resolution=(4, 6), device="cpu").measure.shape
        (4, 6)
    """
    rank = shard or Shard.detect()
    if rank.world_size > 1 and folder is None:
        raise InvalidValueError(
            f"{rank.world_size} ranks share a scan through its folder: pass folder=, or shard=Shard() to scan alone"
        )
    area = window or Window.of_experiment(experiment)
    opened = trainer or open_trainer(device_of(device, rank), precision, mode)
    plan = Plan(
        experiment=experiment, window=area, grid=grid_of(area, resolution), refine=refine,
        tile=tile if tile is not None else 64 if opened.device == "cpu" else 256,
        precision=opened.precision, mode=getattr(opened, "mode", mode), engine=engine_of(opened),
    )  # fmt: skip
    guard(plan, on_limit)
    store: Store = Nowhere() if folder is None else open_folder(Path(folder), plan.facts())
    bar = NetworksBar() if progress and rank.rank == 0 else Silent()
    return made(plan, store, lambda part: trained(opened, plan, part), rank, bar)


def guard(plan: Plan, on_limit: OnLimit) -> None:
    """Refuse or warn, on behalf of who called `scan`, of a window that is too narrow for the precision."""
    one_of(on_limit, "on_limit", ("refuse", "warn", "allow"))
    told = check_precision(plan.window, plan.grid, plan.precision, "refuse" if on_limit == "refuse" else "allow")
    if told and on_limit == "warn":
        warnings.warn(told, PrecisionWarning, stacklevel=3)


def open_scan(folder: str | Path) -> Scan:
    """The finished scan of a folder. Its arrays are read when they are first asked for.

    Raises:
        InvalidValueError: no scan, an unfinished one, or one with a damaged tile; says what is there and what to do.
        VersionError: written by another version of this package.

    Example:
        >>> import tempfile
        >>> small = Experiment(width=8, dataset_mode="single_example", steps=30)
        >>> folder = tempfile.mkdtemp()
        >>> made = scan(small, resolution=8, device="cpu", folder=folder)
        >>> bool((open_scan(folder).measure == made.measure).all())
        True
    """
    path = Path(folder)
    plan, store = Plan.of_facts(read_facts(path)), Folder(path)
    if plan.refine is not None:
        return made(plan, store, lambda part: unfinished(store, part), Shard(), Silent())
    parts = plan.tiles()
    done = sum(store.file(part).exists() for part in parts)
    if done < len(parts):
        raise InvalidValueError(
            f"{path} holds {done} of {len(parts)} tiles: the scan is unfinished; scan(..., folder=...) with the "
            f"settings in its scan.json goes on"
        )
    return FolderScan.of(plan, store)


def found(folder: Folder, part: Part, names: tuple[str, ...]) -> Columns:
    """Columns of a part that should be there."""
    columns = folder.load(part, names)
    return unfinished(folder, part) if columns is None else columns


def unfinished(folder: Folder, part: Part) -> Columns:
    """The error of a part that is missing or damaged."""
    state = "damaged" if folder.file(part).exists() else "missing"
    raise InvalidValueError(
        f"{folder.file(part)} is {state}: the scan is unfinished; scan(..., folder=...) with the settings in its "
        f"scan.json makes it"
    )


def made(plan: Plan, store: Store, train: Callable[[Part], Columns], shard: Shard, bar: Silent) -> Scan:
    """The scan, when all its parts are there."""
    with bar:
        if plan.refine is not None:
            canvas, evaluated, refined = plan.refined(store, train, shard, bar)
            return scan_of(plan, canvas, evaluated, refined)
        parts = completed(plan.tiles(), store, train, shard, bar)
        if isinstance(store, Folder):
            for _ in parts:
                pass
            return FolderScan.of(plan, store)
        canvas = {name: np.empty(plan.grid.shape, dtype) for name, dtype in COLUMNS.items()}
        for part, columns in parts:
            for name, values in columns.items():
                canvas[name][part.place] = values
        return scan_of(plan, canvas)


def scan_of(plan: Plan, canvas: Columns, evaluated: Bool | None = None, refined: Refined | None = None) -> Scan:
    """The scan of a plan with these columns."""
    return Scan(
        experiment=plan.experiment, window=plan.window, grid=plan.grid, precision=plan.precision, mode=plan.mode,
        evaluated=evaluated, refined=refined, **canvas,
    )  # fmt: skip


def trained(trainer: Trainer, plan: Plan, part: Part) -> Columns:
    """A part's columns, in its shape."""
    outcome = trainer.train(plan.experiment, part.points(plan.grid))
    return {name: np.asarray(getattr(outcome, name), dtype).reshape(part.shape) for name, dtype in COLUMNS.items()}


def device_of(device: str, shard: Shard) -> str:
    """The device of a rank: of "auto" and "cuda" the GPU that torchrun gave it, where there are GPUs."""
    resolved = resolve_device(device)
    local = os.environ.get("LOCAL_RANK", "")
    if shard.world_size == 1 or resolved == "cpu" or device not in ("auto", "cuda") or not local.isdigit():
        return resolved
    import torch

    return f"cuda:{int(local) % torch.cuda.device_count()}"
