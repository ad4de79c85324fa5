"""What streams of fitted networks share: a file and its fingerprint, draws by name, where chains end, pixels."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.kaleidoscope.chain import Engine
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import ENDING, Kaleidoscope, WeightFileError, open_kaleidoscope
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.render.raster import DType, PixelFormat
from fractal_streams.rng import Int64
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import SPLITS, Stream

NEAR = 0.02
"""How far from an attractor a state may be that ended there: RMSE over the range."""
PIXEL_WORK = 1000
"""Multiplications that take as long as a pixel of a formula, about."""


@dataclass(frozen=True, eq=False)
class Ends:
    """Where B chains ended, as NumPy arrays from a CPU and as tensors from a GPU.

    attractor: (B,) int64 row of the table of attractors; -1 where none of the row's network is within .02 of the range.
    source: (B,) int64, the nearest source of the row's network; distance: (B,) float32, RMSE to it over the range.
    label: (B,) int64, the class of that source.
    """

    attractor: Any
    source: Any
    distance: Any
    label: Any


class FittedStream(Stream):
    """Samples that are chains of fitted networks; see `KaleidoscopeStream` and `BasinStream`.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N", where networks are applied and samples are handed out. Kinds of
            device differ in rounding, so that a few chains may end elsewhere.
        fitted: a `Kaleidoscope` in place of the file that the spec names.

    Raises:
        WeightFileError: no such file, with the command that makes it; or a damaged one.
        VersionError: the file has another fingerprint than the spec asks for.
    """

    def __init__(
        self,
        spec: FittedSpec,
        *,
        seed: int = 0,
        split: str = "train",
        device: str = "auto",
        dtype: DType = "uint8",
        channels_last: bool = False,
        mean: Any = 0.0,
        std: Any = 1.0,
        fitted: Kaleidoscope | None = None,
    ) -> None:
        one_of(split, "split", SPLITS)
        self.seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.split = split
        self.pixels = PixelFormat(dtype, channels_last, mean, std)
        if fitted is not None and not isinstance(fitted, Kaleidoscope):
            raise InvalidValueError(f"fitted must be a Kaleidoscope or None, got {fitted!r}: open_kaleidoscope")
        self.fitted = opened(spec.model) if fitted is None else fitted
        found = self.fitted.fingerprint
        if spec.fingerprint not in (None, found):
            raise VersionError(
                f"the kaleidoscope {spec.model or 'given'} has the fingerprint {found}, and {spec.fingerprint} was "
                f"asked for: give the file that has it, or leave the fingerprint out and take other samples"
            )
        self.spec = spec.replace(fingerprint=found)
        self.device = resolve_device(device)
        self._opened: tuple[int, Engine, Tables] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def digest(self) -> str:
        return f"{self.spec.digest()}-{self.seed}-{self.split}"

    def key(self, name: str, *more: str | int) -> tuple[int, int]:
        """The key of a named draw."""
        return rng.key("sample", f"{self.spec.kind}@{self.spec.version}", self.split, self.seed, name, *more)

    @property
    def engine(self) -> Engine:
        """The engine of the stream's device, opened once in each process."""
        return self._here()[0]

    def model_of(self, indices: Int64) -> Int64:
        """(B,) int64: the network of the bank that each index uses, drawn with equal chances."""
        word = rng.words(indices, self.key("model"))[0].astype(np.uint64)
        return (word * np.uint64(self.fitted.models) >> np.uint64(32)).astype(np.int64)

    def ended(self, states: Any, models: Int64) -> Ends:
        """Where chains ended, from their (B, D) last states and the (B,) networks of them; row by row, on the device.

        Without a table of attractors in the kaleidoscope, none is near.
        """
        engine, tables = self._here()
        place, distance = nearest_own(engine, states, models, tables.sources, tables.source_models)
        source, label = place % len(self.fitted.sources), tables.labels[place]
        if tables.attractors is None:
            return Ends(place * 0 - 1, source, distance, label)
        row, away = nearest_own(engine, states, models, tables.attractors, tables.attractor_models)
        near = (away <= NEAR) * 1
        return Ends(row * near + near - 1, source, distance, label)

    def formatted(self, levels: Any, pixels: PixelFormat | None = None) -> Any:
        """(..., C, H, W) uint8 levels on the stream's device, of 1 or 3 channels, in the form of its pixels."""
        asked = self.pixels if pixels is None else pixels
        return formatted_array(levels, asked) if self.device == "cpu" else formatted_tensor(levels, asked)

    def uploaded(self, array: npt.NDArray[Any]) -> Any:
        """The array on the stream's device."""
        if self.device == "cpu":
            return array
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _here(self) -> tuple[Engine, Tables]:
        """The engine and the tables of this process: a forked one has no threads and no GPU of its parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            if _forked:
                one_thread()
            engine = open_engine(self.fitted, self.device, self.spec.precision)
            self._opened = (os.getpid(), engine, Tables(self))
        return self._opened[1], self._opened[2]


class Tables:
    """What ends are looked up in, on a stream's device.

    sources: (T, D) float32, the sources of all networks; labels: (T,) int64, their classes.
    attractors: (A, D) float32, or None.
    source_models, attractor_models: (T,) and (A,) int64 NumPy arrays of their networks; None where all share the rows.
    """

    def __init__(self, stream: FittedStream) -> None:
        fitted, put = stream.fitted, stream.uploaded
        count = len(fitted.sources.data)
        self.sources = put(np.concatenate([fitted.source_values(model) for model in range(count)]))
        shared = count == 1
        self.source_models = None if shared else np.repeat(np.arange(count), len(fitted.sources))
        self.labels = put(np.ascontiguousarray(fitted.sources.labels.reshape(-1)))
        table, self.attractors, self.attractor_models = fitted.attractors, None, None
        if table is not None and len(table):
            self.attractors = put(table.states)
            self.attractor_models = None if fitted.models == 1 else table.model.astype(np.int64)


def nearest_own(engine: Engine, states: Any, models: Int64, table: Any, table_models: Any) -> tuple[Any, Any]:
    """(B,) int64 row of `table` nearest to each state among those of its network, and (B,) float32 how far that is.

    Far is infinite where the network has no row. On a CPU only the rows of networks that occur are looked at.
    """
    if table_models is None or engine.device != "cpu":
        return engine.nearest(states, table, models, table_models)
    place, distance = np.zeros(len(states), np.int64), np.full(len(states), np.inf, np.float32)
    for model in np.unique(models):
        rows, own = np.flatnonzero(models == model), np.flatnonzero(table_models == model)
        if len(own):
            found, distance[rows] = engine.nearest(states[rows], table[own], models[rows])
            place[rows] = own[found]
    return place, distance


def formatted_array(levels: npt.NDArray[np.uint8], pixels: PixelFormat) -> npt.NDArray[Any]:
    """(..., C, H, W) uint8 as (..., 3, H, W), or (..., H, W, 3), in the form of pixels; bfloat16 as its bits."""
    table = pixels.table()
    drawn = [levels[..., channel % levels.shape[-3], :, :] for channel in range(3)]
    if pixels.dtype != "uint8":
        drawn = [table[channel][plane] for channel, plane in enumerate(drawn)]
    bits = np.stack(drawn, axis=-1 if pixels.channels_last else -3)
    return bits.view(pixels.dtype) if pixels.dtype in ("float16", "float32") else bits


def formatted_tensor(levels: Any, pixels: PixelFormat) -> Any:
    """`formatted_array` of a tensor, on its device; bfloat16 as itself."""
    import torch

    colours = levels.expand(*levels.shape[:-3], 3, *levels.shape[-2:])
    if pixels.dtype != "uint8":
        bits = pixels.table()
        table = torch.from_numpy(bits.view(f"int{8 * bits.itemsize}")).view(getattr(torch, pixels.dtype))
        offsets = torch.arange(0, 768, 256, dtype=torch.int32, device=levels.device)[:, None, None]
        colours = table.reshape(-1).to(levels.device)[colours.int() + offsets]
    if pixels.channels_last:
        colours = colours.movedim(-3, -1)
    return colours.contiguous()


def opened(address: str | None) -> Kaleidoscope:
    """The kaleidoscope of a file's path or a recipe's name.

    Raises:
        WeightFileError: no such file, or a damaged one. UnknownNameError: no such recipe.
    """
    if address is None:
        raise InvalidValueError(f"name a {ENDING} file or a recipe in model=, or give the stream fitted=Kaleidoscope")
    if address.endswith(ENDING):
        return remembered(Path(address))
    from fractal_streams.kaleidoscope.presets import model_path

    path = model_path(address)
    if not path.is_file():
        raise WeightFileError(
            f"{address} is not fitted yet, there is no {path}: `fractal-streams kaleidoscope fit {address}` makes it"
        )
    return remembered(path)


def remembered(path: Path) -> Kaleidoscope:
    """The kaleidoscope of a file, read again only if the file changed: streams of each split share one."""
    if not path.is_file():
        return open_kaleidoscope(path)
    found = path.stat()
    return _read(str(path.absolute()), found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=8)
def _read(path: str, *changes: int) -> Kaleidoscope:
    return open_kaleidoscope(path)


def relative_cost(fitted: Kaleidoscope, steps: float) -> int:
    """What a picture at the end of so many steps costs, in pictures of its size that a formula draws.

    Each weight of an "mlp" is multiplied once in a step; of convolutional kinds at most once for each pixel.
    """
    pixels = math.prod(fitted.network.shape[1:])
    weights = sum(math.prod(array.shape[1:]) for array in fitted.tensors.values())
    work = steps * weights * (1 if fitted.network.kind == "mlp" else pixels)
    return max(1, round(work / (PIXEL_WORK * pixels)))


_forked = False


def _mark() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark)


def one_thread() -> None:
    """Keep torch from asking for threads of OpenMP that a forked process does not have, and would wait for."""
    import torch

    torch.set_num_threads(1)
