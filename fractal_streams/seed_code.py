"""What the code of infinite-fractal-stream drew, draw for draw, as a stream.

It differs from what its README promises: coefficients from U(0, 1), beta from U(0, 3), a step is
counted whenever it ends inside, before or after an escape, rows run along the real axis, the
generator of sample k is seeded with k alone, and every clip of a class is the same.

S. Ryu, Infinite-Fractal-Stream (2024).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker
from fractal_streams.draw.mersenne import uniforms
from fractal_streams.errors import InvalidValueError
from fractal_streams.formulas.definition import VIEW
from fractal_streams.formulas.polynomial_power import COEFFICIENTS
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import MAX_CLASSES, SPEC_VERSION, StreamSpec, spec_fields, whole
from fractal_streams.stream import StillStream, Stream

SCALES = {"alpha": 6.283185307179586, "beta": 3.0, "power": 5.0, "frequency": 10.0}
"""What the original multiplied its uniforms with, in the order that it drew them."""
UNSEEDED = 67280421310721
"""The seed of a torch generator that nobody seeds, as the original's for clips."""
BLOCKS = {"test": 0, "train": 1, "validation": 2}
"""Which run of `total` generator seeds a split has; the original knew the first two."""
MAX_ITERATIONS = 127
SEEDS = 2**32

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SeedCodeSpec:
    """What the original's datasets drew.

    num_classes: class k has the first four uniforms of generator k as its coefficients.
    samples_per_class: sample i is sample i % total, total = num_classes * samples_per_class. None takes
        as many as keep three splits apart: a generator sees its seed modulo 2**32, so that beyond
        3 * total = 2**32 samples come again, and are shared between splits.
    height, width: equal; the original scrambled other pictures.
    iterations: 1 to 127; the original counted in 8 bits.
    radius: R, inside means |z|**2 < R**2.
    frames: None for still pictures, T for clips.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> from fractal_streams.seed_code import SeedCodeSpec
        >>> SeedCodeSpec(num_classes=10, samples_per_class=10).total
        100
    """

    num_classes: int = 10
    samples_per_class: int | None = None
    height: int = 32
    width: int = 32
    iterations: int = 30
    radius: float = 2.0
    frames: int | None = None

    def __post_init__(self) -> None:
        whole(self.num_classes, "num_classes", 1, MAX_CLASSES, "classes")
        for name, most in (("samples_per_class", 2**31 - 1), ("frames", 4096)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(getattr(self, name), name, 1, most, ""))
        if self.height != self.width:
            raise InvalidValueError(
                f"the original drew square pictures only, got height {self.height} and width {self.width}; "
                f"'seed-readme' draws others"
            )
        still = self.still
        if still.iterations is None or still.iterations > MAX_ITERATIONS:
            raise InvalidValueError(
                f"iterations must be a whole number from 1 to {MAX_ITERATIONS}, got {self.iterations!r}: the original "
                f"counted in 8 bits, which overflow at 128; semantics='readme' counts any number"
            )
        if still.radius is None:
            raise InvalidValueError("radius must be a number above 0, got None")
        for name in ("num_classes", "height", "width", "iterations", "radius"):
            object.__setattr__(self, name, getattr(still, name))

    @property
    def still(self) -> StreamSpec:
        """The geometry and colours of its pictures."""
        return StreamSpec(
            formulas=("polynomial_power",), colouring="three_phase_sine", num_classes=self.num_classes,
            labels="balanced", class_parameters=COEFFICIENTS, height=self.height, width=self.width,
            iterations=self.iterations, radius=self.radius, counting="visits", orientation="matrix",
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Samples until the stream comes round."""
        return self.num_classes * (self.samples_per_class or max(1, SEEDS // 3 // self.num_classes))

    def to_json(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps({"spec_version": SPEC_VERSION, "kind": "seed_code", **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SeedCodeSpec:
        """The spec that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not a spec, or one with unknown fields or values.
        """
        return cls(**spec_fields(text, "seed_code", cls))

    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        return hashlib.blake2s(self.to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> SeedCodeSpec:
        """A copy with other values."""
        return replace(self, **changes)


class SeedCodeStream(Stream):
    """The original's samples: (B, 3, H, W), or clips (B, T, 3, H, W) where the spec has frames.

    Args:
        spec: what to draw.
        seed: taken and without effect, as in the original.
        split: "train" is its training set, "test" its evaluation set, "validation" the seeds after both.
        device, dtype, channels_last, mean, std, renderer: as in `StillStream`.

    Example:
        >>> from fractal_streams import open_stream
        >>> sample = open_stream("seed-code", device="cpu", samples_per_class=10, split="test")[0]
        >>> float(sample.latents["poly0"]), float(sample.latents["alpha"])
        (0.49625658988952637, 3.118072271347046)
    """

    def __init__(
        self, spec: SeedCodeSpec, *, seed: int = 0, split: str = "train", device: str = "auto", **settings: Any
    ) -> None:
        if not isinstance(spec, SeedCodeSpec):
            raise InvalidValueError(
                f"spec must be a SeedCodeSpec, got {type(spec).__name__}; presets open by open_stream"
            )
        self.spec = spec
        self.still = StillStream(spec.still, seed=seed, split=split, device=device, **settings)
        self.seed, self.split, self.device = self.still.seed, self.still.split, self.still.device
        self.pixels, self.num_classes = self.still.pixels, self.still.num_classes

    def digest(self) -> str:
        return f"{self.spec.digest()}-{self.split}"

    def labels(self, indices: Any) -> Int64:
        return checked_indices(indices) % self.spec.total % self.num_classes

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        index = checked_indices(indices)
        labels = self.labels(index)
        shape: tuple[int, ...] = (len(index), 1 if self.spec.frames is None else self.spec.frames)
        view = {name: np.float32(parameter.low) for name, parameter in VIEW.items()}
        classes = {name: row[:, None] for name, row in zip(COEFFICIENTS, class_coefficients(labels), strict=True)}
        drawn = self._samples(index) if self.spec.frames is None else sweep(self.spec.frames)
        values = {**view, **classes, **drawn}
        raster, backend = self.still.rasters[0], self.still.backend
        table = np.stack([np.broadcast_to(values[name], shape) for name in raster.names])
        if self.spec.frames is None:
            shape = shape[:1]
        rows = backend.upload(table.reshape(len(table), -1))
        images = backend.render(raster, rows, self.pixels)
        rows = rows.reshape((len(table), *shape))
        return Batch(
            backend.upload(index), images.reshape((*shape, *images.shape[1:])), backend.upload(labels),
            dict(zip(raster.names, rows, strict=True)),
        )  # fmt: skip

    def _samples(self, index: Int64) -> dict[str, Float32]:
        """(B, 1) values of the parameters that each sample has for itself."""
        total = np.uint64(self.spec.total)
        block = total * np.uint64(BLOCKS[self.split])
        drawn = uniforms(index.astype(np.uint64) % total + block, len(SCALES))
        return {
            name: (row * np.float32(scale))[:, None] for (name, scale), row in zip(SCALES.items(), drawn, strict=True)
        }


def class_coefficients(labels: Int64) -> Float32:
    """(4, B) float32 coefficients of the class of each label: the first uniforms of generator `label`.

    Example:
        >>> class_coefficients(np.array([1]))[0]
        array([0.7576316], dtype=float32)
    """
    classes, places = np.unique(labels, return_inverse=True)
    return uniforms(classes, len(COEFFICIENTS))[:, places]


def sweep(frames: int) -> dict[str, Float32]:
    """(T,) values of each parameter that moves in a clip: from start to end, the same for every clip."""
    ends = uniforms(np.array([UNSEEDED]), 2 * len(SCALES))[:, 0].reshape(-1, 2)
    share = np.linspace(0.0, 1.0, frames)
    moved = {}
    for (name, scale), pair in zip(SCALES.items(), ends, strict=True):
        start, end = (pair * np.float32(scale)).astype(np.float64)
        moved[name] = (start * (1.0 - share) + end * share).astype(np.float32)
    return moved
