"""What streams of points and of tiles share: draws by name, a trainer on their device, the form of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.backend import backend_of
from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.render.raster import DType, PixelFormat
from fractal_streams.rng import Int64
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import SPLITS, Stream
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.outcome import Outcome, Readout
from fractal_streams.trainability.trained_spec import TrainedSpec
from fractal_streams.trainability.trainer import Trainer, open_trainer

MOST = float(np.finfo(np.float64).max)
MOST_POINTS = 2**21
"""Points of one call of a trainer, whose tables take about 200 bytes for each."""
PIXEL_WORK = 1000
"""Multiplications that take as long as a pixel of a formula, about."""


class TrainedStream(Stream):
    """Samples that are training runs; see `PointStream` and `TileStream`.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N", where networks are trained and samples are handed out.
        trainer: a `Trainer` in place of the device's own, of the spec's precision.
    """

    def __init__(
        self,
        spec: TrainedSpec,
        *,
        seed: int = 0,
        split: str = "train",
        device: str = "auto",
        dtype: DType = "uint8",
        channels_last: bool = False,
        mean: Any = 0.0,
        std: Any = 1.0,
        trainer: Trainer | None = None,
    ) -> None:
        one_of(split, "split", SPLITS)
        self.spec = spec
        self.seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.split = split
        self.pixels = PixelFormat(dtype, channels_last, mean, std)
        if trainer is None:
            self.device = resolve_device(device)
            trainer = open_trainer(self.device, spec.precision, spec.mode)
        elif not hasattr(trainer, "train"):
            raise InvalidValueError(f"trainer must be a Trainer or None, got {trainer!r}: open_trainer gives one")
        else:
            self.device = trainer.device
            if device not in ("auto", trainer.device) or trainer.precision != spec.precision:
                raise InvalidValueError(
                    f"the trainer given is of {trainer.device} and {trainer.precision}, and device={device!r} and "
                    f"precision={spec.precision!r} were asked for: ask for the same"
                )
        self.trainer = trainer
        self.backend = backend_of(self.device)

    def digest(self) -> str:
        return f"{self.spec.digest()}-{self.seed}-{self.split}"

    def key(self, name: str, *more: str | int) -> tuple[int, int]:
        """The key of a named draw."""
        stream_id = f"trainability-{self.spec.kind}@{self.spec.version}"
        return rng.key("sample", stream_id, self.split, self.seed, name, *more)

    def train(self, experiment: Experiment, points: Float64, losses: int = 0) -> Outcome:
        """The outcomes of (N, 2) values of the axes, in as few calls of the trainer as memory allows."""
        if len(points):
            parts = [points[first : first + MOST_POINTS] for first in range(0, len(points), MOST_POINTS)]
            return Outcome.concatenate([self.trainer.train(experiment, part, Readout(losses=losses)) for part in parts])
        kept = np.zeros((0, losses)) if losses else None
        return Outcome(measure=np.zeros(0), diverged_at=np.zeros(0, np.int32), final_loss=np.zeros(0), losses=kept)

    def formatted(self, levels: npt.NDArray[np.uint8]) -> Any:
        """(B, H, W, 3) levels in the form of the stream's pixels, on its device."""
        table = self.pixels.table()
        bits = np.stack([table[channel][levels[..., channel]] for channel in range(3)], axis=-1)
        if not self.pixels.channels_last:
            bits = np.ascontiguousarray(np.moveaxis(bits, -1, 1))
        dtype = self.pixels.dtype
        if self.device == "cpu":
            return bits.view(dtype) if dtype in ("float16", "float32") else bits
        import torch

        if dtype == "uint8":
            return self.backend.upload(bits)
        return self.backend.upload(bits.view(f"int{8 * bits.itemsize}")).view(getattr(torch, dtype))

    def uploaded(self, latents: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Latents on the stream's device."""
        return {name: self.backend.upload(np.ascontiguousarray(values)) for name, values in latents.items()}


def uniforms(indices: Int64, key: tuple[int, int]) -> tuple[Float64, Float64]:
    """Two (B,) float64 draws of each index from (0, 1), of 52 bits.

    Example:
        >>> first, second = uniforms(np.arange(1000), rng.key("a name"))
        >>> round(float(first.mean()), 1), bool(abs(np.corrcoef(first, second)[0, 1]) < 0.1)
        (0.5, True)
    """
    a, b, c, d = (word.astype(np.uint64) for word in rng.words(indices, key))
    shift, rest = np.uint64(32), np.uint64(12)
    first, second = ((a << shift | b) >> rest), ((c << shift | d) >> rest)
    return (first.astype(np.float64) + 0.5) * 2.0**-52, (second.astype(np.float64) + 0.5) * 2.0**-52


def cell_uniforms(indices: Int64, cells: int, key: tuple[int, int]) -> Float64:
    """(B, cells) float64: a draw from (0, 1) for each index and cell, of 32 bits."""
    unsigned = indices.astype(np.uint64)[:, None]
    low, high = unsigned & np.uint64(0xFFFFFFFF), unsigned >> np.uint64(32)
    zero = np.zeros((1, 1), np.uint32)
    counter = low.astype(np.uint32), high.astype(np.uint32), np.arange(cells, dtype=np.uint32)[None], zero
    return np.asarray((rng.philox(counter, key)[0].astype(np.float64) + 0.5) * 2.0**-32)


def choices(indices: Int64, key: tuple[int, int], count: int) -> Int64:
    """(B,) int64: one of `count` with equal chances for each index."""
    word = rng.words(indices, key)[0].astype(np.uint64)
    return (word * np.uint64(count) >> np.uint64(32)).astype(np.int64)


def finite(measure: Float64) -> Float64:
    """The measure with the largest float64 in place of infinity, which files of JSON can't hold."""
    return np.minimum(measure, MOST)


def relative_cost(experiment: Experiment, runs: float, pixels: int) -> int:
    """What a picture of so many pixels costs that takes so many runs, in pictures of its size that a formula draws."""
    work = runs * experiment.steps * experiment.rows * experiment.parameters
    return max(1, round(work / (PIXEL_WORK * pixels)))
