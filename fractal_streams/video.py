"""Video: clips in which a still picture's parameters move along a path."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker
from fractal_streams.draw.plan import SAMPLE, Plan, default_prior
from fractal_streams.draw.reference import draw_labels, exp2
from fractal_streams.errors import IndexRangeError, InvalidValueError, unknown_name
from fractal_streams.priors import LOG_UNIFORM, UNIFORM, LogUniform, Uniform
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import SPEC_VERSION, Part, StreamSpec, names_of, one_of, spec_fields, whole
from fractal_streams.stream import StillStream, Stream

PathKind = Literal["linear", "loop", "constant_speed"]
MAX_FRAMES = 4096
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """What a stream of clips draws.

    still: the pictures that the clips are made of.
    frames: T, 1 to 4096.
    moving: names of the parameters that move; None means every parameter of the sample with a
        `Uniform` or `LogUniform` prior. A class's own parameters never move.
    path: "linear", from start to end, both drawn from the prior, over linspace(0, 1, T); frame 0 is the
        still picture of the same index. "loop", an ellipse between two drawn ends with a drawn phase
        for each parameter; frame T would be frame 0. "constant_speed", a straight line in a drawn
        direction, its start drawn among those whose line stays inside the priors.
    speed: of "constant_speed" only: the distance from frame to frame, in widths of each prior (of its
        logarithm for `LogUniform`), over all moving parameters together; (T - 1) * speed is at most 1.

    Raises:
        InvalidValueError, UnknownNameError: names the field, the value and the allowed range.

    Example:
        >>> from fractal_streams import StreamSpec, VideoSpec
        >>> from fractal_streams.priors import Uniform
        >>> spec = VideoSpec(still=StreamSpec(formulas="mandelbrot", priors={"centre_x": Uniform(-1, 0)}), frames=8)
        >>> VideoSpec.from_json(spec.to_json()) == spec
        True
    """

    still: StreamSpec
    frames: int = 16
    moving: tuple[str, ...] | None = None
    path: PathKind = "linear"
    speed: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.still, StreamSpec):
            raise InvalidValueError(f"still must be a StreamSpec, got {type(self.still).__name__}")
        object.__setattr__(self, "frames", whole(self.frames, "frames", 1, MAX_FRAMES, "frames"))
        one_of(self.path, "path", ("linear", "loop", "constant_speed"))
        if self.moving is not None:
            object.__setattr__(self, "moving", names_of(self.moving, "moving"))
        self._check_speed()
        able = [movable(self.still, part) for part in self.still.parts()]
        for name in self.moving or ():
            known = {parameter for part in self.still.parts() for parameter in part.parameters}
            if name not in known:
                raise unknown_name("parameter", name, known)
            if not any(name in names for names in able):
                raise InvalidValueError(
                    f"moving: {name!r} belongs to the class or its prior is neither Uniform nor LogUniform; "
                    f"these can move: {', '.join(dict.fromkeys(one for names in able for one in names)) or 'none'}"
                )
        for part, names in zip(self.still.parts(), able, strict=True):
            if not self.moves(names):
                raise InvalidValueError(
                    f"nothing moves in a clip of {part.formula.name}: give one of its parameters "
                    f"({', '.join(part.parameters)}) a Uniform or LogUniform prior, and name it in moving="
                )

    def _check_speed(self) -> None:
        if self.path != "constant_speed":
            if self.speed is not None:
                raise InvalidValueError(f"speed is of path='constant_speed', got {self.speed!r} with {self.path!r}")
            return
        most = 1.0 / max(self.frames - 1, 1)
        if isinstance(self.speed, bool) or not isinstance(self.speed, Real) or not 0.0 < self.speed <= most:
            raise InvalidValueError(
                f"speed must lie in (0, {most:g}], so that {self.frames} frames stay inside the priors, "
                f"got {self.speed!r}"
            )
        object.__setattr__(self, "speed", float(self.speed))

    @property
    def formulas(self) -> tuple[str, ...]:
        """The names of the still pictures' formulas."""
        return tuple(self.still.formulas)

    @property
    def num_classes(self) -> int:
        """The number of classes of the still pictures."""
        return self.still.num_classes

    def moves(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that move."""
        return tuple(name for name in names if self.moving is None or name in self.moving)

    def to_json(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        values["still"] = json.loads(self.still.to_json())
        return json.dumps({"spec_version": SPEC_VERSION, "kind": "video", **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VideoSpec:
        """The spec that `to_json` wrote.

        Raises:
            VersionError: written by a newer version of this package.
            InvalidValueError, UnknownNameError: not a spec, or one with unknown fields or values.
        """
        values = spec_fields(text, "video", cls)
        values["still"] = StreamSpec.from_json(json.dumps(values.get("still")))
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        return hashlib.blake2s(self.to_json().encode(), digest_size=8).hexdigest()

    def replace(self, **changes: Any) -> VideoSpec:
        """A copy with other values; fields of the still pictures' spec (height, ...) are changed there."""
        own = {item.name for item in fields(self)}
        inner = {name: changes.pop(name) for name in list(changes) if name not in own}
        still = changes.pop("still", self.still)
        return replace(self, still=still.replace(**inner) if inner else still, **changes)


def movable(still: StreamSpec, part: Part) -> tuple[str, ...]:
    """Names of a part's parameters that belong to the sample and have a continuous prior."""
    fixed = still.class_names(part.formula)
    able = []
    for name, parameter in part.parameters.items():
        given = still.priors.get(f"{part.formula.name}.{name}") or still.priors.get(name)
        if name not in fixed and isinstance(given or default_prior(parameter), Uniform | LogUniform):
            able.append(name)
    return tuple(able)


class Path:
    """How one formula's parameters move: from indices and frame numbers to a parameter table.

    Everything is computed on the host in float64 by additions, products, quotients and roots, and
    rounded once, so that every machine and device gets the same float32.
    """

    def __init__(self, spec: VideoSpec, plan: Plan, *, seed: int, split: str) -> None:
        self.kind, self.frames, self.speed = spec.path, spec.frames, spec.speed or 0.0
        names = spec.moves(plan.names)
        continuous = (plan.level == SAMPLE) & np.isin(plan.operation, (UNIFORM, LOG_UNIFORM))
        self.plan = plan
        self.rows = [row for row, name in enumerate(plan.names) if name in names and continuous[row]]
        self.logarithmic = [plan.operation[row] == LOG_UNIFORM for row in self.rows]
        self.low, self.width, self.least, self.most = plan.numbers[self.rows].T[:, :, None]
        named = {
            end: [rng.key("sample", spec.still.stream_id, split, seed, plan.names[row] + end) for row in self.rows]
            for end in (".end", ".phase", ".direction")
        }
        self.keys = {end: np.array(keys, np.uint32) for end, keys in named.items()}
        self.start_keys = plan.keys[self.rows]

    def table(self, index: Int64, times: Int64) -> tuple[Int64, npt.NDArray[np.float32]]:
        """(B,) labels and the (P, B, K) table of K frames of each of B clips; times: (B, K)."""
        from fractal_streams.draw.numba_backend import draw

        labels, still = draw(self.plan, index)
        table = np.repeat(still[:, :, None], times.shape[1], axis=2)
        place = getattr(self, f"_{self.kind}")(index, times.astype(np.float64))
        for j, row in enumerate(self.rows):
            coordinate = self.low[j] + self.width[j] * place[j]
            value = exp2(coordinate) if self.logarithmic[j] else coordinate
            table[row] = np.minimum(np.maximum(value, self.least[j]), self.most[j])
        return labels, table

    def _linear(self, index: Int64, times: Float64) -> list[Float64]:
        share = times / max(self.frames - 1, 1)
        starts, ends = _units(index, self.start_keys), _units(index, self.keys[".end"])
        return [start * (1.0 - share) + end * share for start, end in zip(starts, ends, strict=True)]

    def _loop(self, index: Int64, times: Float64) -> list[Float64]:
        starts, ends = _units(index, self.start_keys), _units(index, self.keys[".end"])
        phases = _units(index, self.keys[".phase"])
        return [
            0.5 * (start + end) + 0.5 * (end - start) * cosine_of_turns(times / self.frames + phase)
            for start, end, phase in zip(starts, ends, phases, strict=True)
        ]

    def _constant_speed(self, index: Int64, times: Float64) -> list[Float64]:
        steps = [self.speed * part for part in directions(index, self.keys[".direction"])]
        placed = []
        for unit, step in zip(_units(index, self.start_keys), steps, strict=True):
            reach = step * (self.frames - 1)
            start = unit * (1.0 - np.abs(reach)) - np.minimum(reach, 0.0)
            placed.append(start + step * times)
        return placed


def _units(index: Int64, keys: npt.NDArray[np.uint32]) -> Float64:
    """(K, B, 1) units in (0, 1), of each of (K, 2) keys, the same that a prior is drawn from."""
    from fractal_streams.draw.numba_backend import words

    top = words(index, keys)[:, 0] >> np.uint32(4)
    return ((top * np.uint32(2) + np.uint32(1)).astype(np.float64) * 2.0**-29)[..., None]


def directions(index: Int64, keys: npt.NDArray[np.uint32]) -> list[Float64]:
    """For each of (K, 2) keys, (B, 1) components of a unit vector, nearly uniform on the sphere.

    A component is the sum of four words about its mean, close to normal, exact in integers and never
    0; so the vector has a length, and neither logarithm nor cosine is needed.
    """
    from fractal_streams.draw.numba_backend import words

    total = words(index, keys).astype(np.int64).sum(axis=1)
    parts = (2 * total - 4 * (2**32 - 1) + 1).astype(np.float64)[..., None]
    square = np.zeros((len(index), 1))
    for part in parts:  # one after another: NumPy's own sum adds in an order that depends on the batch
        square = square + part * part
    return [part / np.sqrt(square) for part in parts]


def cosine_of_turns(turns: Float64) -> Float64:
    """cos(2 pi turns) by additions and products alone, the same on every machine to the bit."""
    near = np.abs(turns - np.rint(turns))
    beyond = near > 0.25
    square = (2.0 * math.pi * np.where(beyond, 0.5 - near, near)) ** 2
    total = np.zeros_like(square)
    for k in range(12, -1, -1):
        total = total * square + (-1.0) ** k / math.factorial(2 * k)
    return np.where(beyond, -total, total)


class VideoStream(Stream):
    """Labelled clips: (B, T, 3, H, W), or (B, T, H, W, 3) if channels last, and the path of their parameters.

    Latents are name to (B, T) float32. Everything else is as in `StillStream`, the settings too.

    Example:
        >>> from fractal_streams import VideoSpec, VideoStream, StreamSpec
        >>> still = StreamSpec(formulas="polynomial_power", num_classes=10, height=16, width=16)
        >>> stream = VideoStream(VideoSpec(still=still, frames=4), device="cpu")
        >>> clip = stream[7]
        >>> clip.image.shape, clip.latents["alpha"].shape
        ((4, 3, 16, 16), (4,))
        >>> bool((stream.frames([7], [2]).images[0] == clip.image[2]).all())
        True
    """

    def __init__(
        self, spec: VideoSpec, *, seed: int = 0, split: str = "train", device: str = "auto", **settings: Any
    ) -> None:
        if not isinstance(spec, VideoSpec):
            raise InvalidValueError(f"spec must be a VideoSpec, got {type(spec).__name__}; presets open by open_stream")
        self.spec = spec
        self.still = StillStream(spec.still, seed=seed, split=split, device=device, **settings)
        self.seed, self.split, self.device = self.still.seed, self.still.split, self.still.device
        self.pixels, self.num_classes = self.still.pixels, self.still.num_classes
        self.paths = tuple(Path(spec, plan, seed=self.seed, split=split) for plan in self.still.plans)

    def digest(self) -> str:
        return f"{self.spec.digest()}-{self.seed}-{self.split}"

    def labels(self, indices: Any) -> Int64:
        return self.still.labels(indices)

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        return self._clips(index, np.broadcast_to(np.arange(self.spec.frames), (len(index), self.spec.frames)))

    def frames(self, indices: Any, times: Any) -> Batch:
        """Single frames: frame `times[k]` of clip `indices[k]`, to the bit what the whole clip holds.

        Args:
            indices: (B,) clips, as in `generate`.
            times: (B,) frame numbers in [0, T).

        Returns:
            A `Batch` of pictures: images (B, 3, H, W), latents name to (B,).

        Raises:
            IndexRangeError: a clip outside [0, 2**63), or a frame outside [0, T).
        """
        index, chosen = checked_indices(indices), checked_indices(times)
        if len(index) != len(chosen):
            raise InvalidValueError(f"frames: give one time for each index, got {len(chosen)} for {len(index)}")
        if len(chosen) and chosen.max() >= self.spec.frames:
            raise IndexRangeError(f"frame must lie in [0, {self.spec.frames}), got {chosen.max()}")
        batch = self._clips(index, chosen[:, None])
        rows = {name: values[:, 0] for name, values in batch.latents.items()}
        return Batch(batch.index, batch.images[:, 0], batch.labels, rows)

    def _clips(self, index: Int64, times: Int64) -> Batch:
        """Frames times[k] of clips index[k], formula by formula, put back in order."""
        refuse_worker(self.device)
        if len(self.paths) == 1 or not len(index):
            labels, images, rows = self._rendered(0, index, times)
            return Batch(self._upload(index), images, labels, dict(zip(self.paths[0].plan.names, rows, strict=True)))
        family = draw_labels(self.still.plans[0], index) % len(self.paths)
        names = list(dict.fromkeys(name for path in self.paths for name in path.plan.names))
        order, parts = [], []
        for kind in np.unique(family):
            places = np.flatnonzero(family == kind)
            labels, images, rows = self._rendered(kind, index[places], times[places])
            moved = dict(zip(self.paths[kind].plan.names, rows, strict=True))
            missing = self.still.backend.full(times[places].size, np.nan).reshape(len(places), -1)
            order.append(places)
            parts.append((labels, images, *(moved.get(name, missing) for name in names)))
        labels, images, *rows = self.still.backend.gather(np.argsort(np.concatenate(order)), parts)
        return Batch(self._upload(index), images, labels, dict(zip(names, rows, strict=True)))

    def _rendered(self, kind: int, index: Int64, times: Int64) -> tuple[Any, Any, Any]:
        """Labels (B,), images (B, K, ...) and the table (P, B, K) of one formula, on the device."""
        labels, table = self.paths[kind].table(index, times)
        flat = self._upload(table.reshape(len(table), times.size))
        images = self.still.backend.render(self.still.rasters[kind], flat, self.pixels)
        shape = (*times.shape, *images.shape[1:])
        return self._upload(labels), images.reshape(shape), flat.reshape((len(table), *times.shape))

    def _upload(self, array: npt.NDArray[Any]) -> Any:
        return self.still.backend.upload(array)
