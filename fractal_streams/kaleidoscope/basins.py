"""Maps of basins: each point of a plane is the start of a chain; where does it end, and in how many steps?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import as_array, as_tensor
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.chain import Engine, Schedule, models_of
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.fitted_stream import nearest_own
from fractal_streams.kaleidoscope.network import Float32, Float64
from fractal_streams.kaleidoscope.planes import Plane, checked_size, checked_within
from fractal_streams.rng import Int64
from fractal_streams.spec import one_of

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

PART_VALUES = {"cpu": 2**22, "cuda": 2**26}
"""Values of states that are held at a time."""
FINER, FINEST = 1e-2, 2.0**-22
"""What the tolerance is multiplied by where a chain rests at no known end, and where that stops: about float32's own
rounding."""
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class EndRule:
    """How the end of a chain is told.

    most, tolerance: as in `Schedule`; a chain that rests where no known end is goes on from there with a hundredth of
        the tolerance, `most` steps more, twice: beside a boundary chains are slow where they turn off.
    within: how near the state at rest must be to an end, RMSE over the range, 0 and up.
    ends: "attractors" of the kaleidoscope's table; or its "sources", for networks whose chains rest at few of them.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.
    """

    most: int = 300
    tolerance: float = 1e-3
    within: float = 0.02
    ends: Literal["attractors", "sources"] = "attractors"

    def __post_init__(self) -> None:
        schedule = Schedule(most=self.most, tolerance=self.tolerance)
        object.__setattr__(self, "most", schedule.most)
        object.__setattr__(self, "tolerance", schedule.tolerance)
        object.__setattr__(self, "within", checked_within(self.within))
        one_of(self.ends, "ends", ("attractors", "sources"))

    @property
    def tolerances(self) -> tuple[float, ...]:
        """Those of each round, falling."""
        found = [self.tolerance]
        while len(found) < ROUNDS and found[-1] > FINEST:
            found.append(max(FINEST, FINER * found[-1]))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class EndTable:
    """The known ends of a kaleidoscope.

    states: (T, D) float32. models: (T,) int64, the network of the bank; rows of a network stand together.
    ranks: (T,) int64, the row among those of its network. labels: (T,) int64, the class of its (nearest) source.
    """

    states: Float32
    models: Int64
    ranks: Int64
    labels: Int64

    def __len__(self) -> int:
        return len(self.states)


def end_table(fitted: Kaleidoscope, ends: str = "attractors") -> EndTable:
    """The known ends, see `EndRule`.

    Raises:
        InvalidValueError: attractors of a kaleidoscope that has none.
    """
    found, labels = fitted.attractors, fitted.sources.labels
    if ends == "sources":
        count = len(fitted.sources)
        states = np.concatenate([fitted.source_values(model) for model in range(fitted.models)])
        of = np.concatenate([fitted.sources.of_model(model)[1] for model in range(fitted.models)])
        models = np.repeat(np.arange(fitted.models), count)
        return EndTable(states, models, np.tile(np.arange(count), fitted.models), of)
    if found is None or not len(found):
        raise InvalidValueError(
            "basins of attractors need a table of them, and this kaleidoscope has none: "
            "kaleidoscope.attractors.find_attractors(fitted) makes one; or ask for ends='sources'"
        )
    models = found.model.astype(np.int64)
    ranks = np.zeros(len(models), np.int64)
    for model in np.unique(models):
        ranks[models == model] = np.arange((models == model).sum())
    return EndTable(found.states, models, ranks, labels[models if len(labels) > 1 else 0, found.source])


@dataclass(frozen=True, eq=False)
class Ended:
    """Where N chains ended, tensors on the engine's device.

    nearest: (N,) int64, the nearest row of the table of ends; distance: (N,) float32 to it, RMSE over the range.
    steps: (N,) int32 behind which the chain rested; -1 never.
    """

    nearest: Any
    distance: Any
    steps: Any

    def row(self, within: float) -> Any:
        """(N,) int64: the row of the table, -1 where none is near."""
        return torch.where(self.distance <= within, self.nearest, -1)


class Chart:
    """Ends of chains that start at coordinates of planes, as many at a time as memory holds.

    Args:
        engine: of a kaleidoscope.
        table: its ends. rule: how they are told.
        planes: B of them. models: (B,) int64, the network of each.
    """

    def __init__(
        self, engine: Engine, table: EndTable, rule: EndRule, planes: Sequence[Plane], models: Int64
    ) -> None:  # fmt: skip
        self.engine, self.rule, self.models, self.table = engine, rule, models, table
        single = engine.fitted.models == 1
        self._own = None if single else table.models
        size = engine.fitted.network.size
        for plane in planes:
            if len(plane.origin) != size:
                raise InvalidValueError(f"a plane of (D,) = ({len(plane.origin)},) values, and the network has {size}")
        self._frames = [
            self._put(np.array([getattr(plane, name) for plane in planes], np.float64).reshape(-1, size))
            for name in ("origin", "across", "up")
        ]

    def ends(self, which: Int64, x: Float64, y: Float64) -> Ended:
        """Of (N,) chains: which plane, and the coordinates in it."""
        size = self.engine.fitted.network.size
        rows = max(1, PART_VALUES[self.engine.device.partition(":")[0]] // size)
        parts = [self._part(which[k : k + rows], x[k : k + rows], y[k : k + rows]) for k in range(0, len(which), rows)]
        if not parts:
            whole, real = self._put(np.zeros(0, np.int64)), self._put(np.zeros(0, np.float32))
            return Ended(whole, real, whole.int())
        return Ended(*(torch.cat([getattr(part, name) for part in parts]) for name in ("nearest", "distance", "steps")))

    def rows(self, which: Int64, x: Float64, y: Float64) -> Int64:
        """(N,) int64 on the host: the row of the table where each chain ends, -1 at none."""
        return np.asarray(as_array(self.ends(which, x, y).row(self.rule.within)), np.int64)

    def _part(self, which: Int64, x: Float64, y: Float64) -> Ended:
        place, right, high = self._put(which), self._put(x)[:, None], self._put(y)[:, None]
        origin, across, up = (frame[place] for frame in self._frames)
        states = (origin + right * across + high * up).float()
        return self._run(states.numpy() if self.engine.device == "cpu" else states, self.models[which])

    def _run(self, states: Any, models: Int64) -> Ended:
        """Round after round; later ones only of chains that rest at no known end."""
        rule, left = self.rule, np.arange(len(models))
        found = Ended(*(self._put(np.zeros(len(models), kind)) for kind in (np.int64, np.float32, np.int32)))
        for tolerance in rule.tolerances:
            places = self._put(left)
            outcome = self.engine.run(states, models[left], Schedule(most=rule.most, tolerance=tolerance))
            nearest, distance = nearest_own(self.engine, outcome.states, models[left], self.table.states, self._own)
            distance, steps = as_tensor(distance), as_tensor(outcome.steps)
            found.nearest[places], found.distance[places] = as_tensor(nearest), distance
            found.steps[places] = torch.where(steps >= 0, found.steps[places] + steps, -1)
            on = as_array((distance > rule.within) & (steps >= 0))
            if not on.any():
                break
            states, left = outcome.states[self._rows(on)], left[on]
        return found

    def _rows(self, chosen: npt.NDArray[np.bool_]) -> Any:
        return chosen if self.engine.device == "cpu" else self._put(chosen)

    def _put(self, array: npt.NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.engine.device)


@dataclass(frozen=True, eq=False)
class BasinMap:
    """Maps of B planes, row 0 on top; NumPy arrays from a CPU, tensors from a GPU.

    attractor: (B, H, W) int32, row of the table of ends; -1 where the chain ended at none.
    nearest: (B, H, W) int32, row of the nearest one, however far.
    steps: (B, H, W) int32 behind which the chain rested; -1 never.
    planes: of each map. models: (B,) int64, the network of each. table: of ends.
    """

    attractor: Any
    nearest: Any
    steps: Any
    planes: tuple[Plane, ...]
    models: Int64
    table: EndTable

    def __len__(self) -> int:
        return len(self.planes)

    def edges(self) -> Any:
        """(B, H - 1, W - 1) bool: four neighbours that do not all end alike."""
        here = self.attractor
        corner = here[:, :-1, :-1]
        return (corner != here[:, 1:, :-1]) | (corner != here[:, :-1, 1:]) | (corner != here[:, 1:, 1:])

    def shares(self) -> Float64:
        """(B, T) float64: the part of each map's pixels that end at each row of the table."""
        return shares(self.attractor, len(self.table))

    def numpy(self) -> BasinMap:
        """The same as NumPy arrays."""
        attractor, nearest, steps = (as_array(array) for array in (self.attractor, self.nearest, self.steps))
        return BasinMap(attractor, nearest, steps, self.planes, self.models, self.table)


def shares(rows: Any, count: int) -> Float64:
    """(B, count) float64: the part of (B, H, W) pixels that has each number from 0 to count - 1."""
    held = as_tensor(rows).reshape(len(rows), int(np.prod(rows.shape[1:]))).long()
    found = torch.zeros((len(held), count + 1), dtype=torch.int64, device=held.device)
    found.scatter_add_(1, held + 1, torch.ones_like(held))
    return np.asarray(as_array(found[:, 1:]) / max(1, held.shape[1]), np.float64)


def basin_map(
    fitted: Kaleidoscope, planes: Plane | Sequence[Plane], height: int, width: int, *, models: Any = None,
    rule: EndRule | None = None, engine: Engine | None = None, device: str = "auto", table: EndTable | None = None,
) -> BasinMap:  # fmt: skip
    """Maps of the basins in planes: each pixel's centre is the first state of a chain.

    Args:
        planes: one, or B of them.
        height, width: pixels, 1 to 65,536.
        models: network of the bank, or (B,) of them; None is network 0.
        rule: how ends are told; None is `EndRule()`.
        engine: that applies the networks; None opens one of `device`.
        table: of ends; None is the one that the rule names.

    Raises:
        InvalidValueError: no table of attractors, or planes of another space.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Attractors, Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> points = Sources(data=np.float32([[[0.5, 0.5], [-0.5, 0.5]]]), labels=np.int64([[0, 1]]), titles=("a", "b"))
        >>> network = Network(shape=(2,), hidden=2, n_linear=2, activation="tanh")
        >>> steep, eye = 9 * np.eye(2, dtype=np.float32)[None], np.eye(2, dtype=np.float32)[None]
        >>> none = np.zeros((1, 2), np.float32)
        >>> weights = {"layers.0.weight": steep, "layers.0.bias": none, "layers.1.weight": eye, "layers.1.bias": none}
        >>> fitted = Kaleidoscope(network=network, tensors=weights, sources=points)  # the sign of either value
        >>> square = Plane(origin=np.zeros(2), across=np.eye(2)[0], up=np.eye(2)[1], half_width=1.0)
        >>> rule = EndRule(ends="sources", within=0.5)
        >>> basin_map(fitted, square, 2, 2, rule=rule, device="cpu").nearest[0].tolist()
        [[1, 0], [1, 0]]
    """
    asked, drawn = rule or EndRule(), (planes,) if isinstance(planes, Plane) else tuple(planes)
    height, width = checked_size(height, width)
    used = engine_of(fitted, engine, device)
    given = models if hasattr(models, "detach") else np.asarray(0 if models is None else models)
    of = models_of(np.full(len(drawn), given) if given.ndim == 0 else given, len(drawn), fitted)
    known = end_table(fitted, asked.ends) if table is None else table
    which, x, y = pixels(drawn, height, width)
    ended = Chart(used, known, asked, drawn, of).ends(which, x, y)
    shape = (len(drawn), height, width)
    row, nearest, steps = (
        as_array(held) if used.device == "cpu" else held
        for held in (tensor.int().reshape(shape) for tensor in (ended.row(asked.within), ended.nearest, ended.steps))
    )
    return BasinMap(row, nearest, steps, drawn, of, known)


def pixels(planes: Sequence[Plane], height: int, width: int) -> tuple[Int64, Float64, Float64]:
    """(B * H * W,) which plane, x and y of the centres of all pixels."""
    x, y = (np.zeros((len(planes), count)) for count in (width, height))
    for place, plane in enumerate(planes):
        x[place], y[place] = plane.axes(height, width)
    shape = (len(planes), height, width)
    of = np.broadcast_to(np.arange(len(planes))[:, None, None], shape)
    across, upwards = np.broadcast_to(x[:, None, :], shape), np.broadcast_to(y[:, :, None], shape)
    return of.reshape(-1), across.reshape(-1), upwards.reshape(-1)
