"""Windows of a hyperparameter plane, the grid of points in them, and how deep a type of number can see."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import one_of, whole
from fractal_streams.trainability.experiment import LINEAR_AXES, Experiment, Float64, as_float

MAX_RESOLUTION = 8192
NARROWEST = {"float64": 1e-12, "float32": 9.0 / 2**10, "tf32x3": 9.0 / 2**10, "tf32": 9.0 / 2**4}
"""Decades below which labels near the boundary are one realisation of rounding, by precision."""
LN_10 = math.log(10.0)
OnLimit = Literal["refuse", "warn", "allow"]


class PrecisionWarning(UserWarning):
    """A window is narrower than its type of number can resolve."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of the plane, kept as a centre and offsets from it, so that deep windows keep their digits.

    centre: (x, y) values of the axes. offset: (x, y), from the centre to the middle of the window, and size:
    (width, height), both in decades, or in the axis's own units where `linear` is true.

    The point at d decades from the centre has the value centre * 10**d.

    Raises:
        InvalidValueError: a number that isn't finite, a size not above 0, a centre not above 0 of a logarithmic axis.

    Example:
        >>> overview = Window.of_exponents(x=(-3, 6), y=(-3, 6))
        >>> overview.scaled(0.5).size, overview.scaled(0.5, about=(0.5, 0.5)).offset
        ((4.5, 4.5), (0.0, 0.0))
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    linear: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        for name in ("centre", "size", "offset"):
            object.__setattr__(self, name, pair(getattr(self, name), name))
        object.__setattr__(self, "linear", switches(self.linear))
        if not min(self.size) > 0.0:
            raise InvalidValueError(f"size must be above 0 decades, got {self.size}")
        for value, offset, size, linear in zip(self.centre, self.offset, self.size, self.linear, strict=True):
            if not linear and not value > 0.0:
                raise InvalidValueError(f"centre must be above 0 on a logarithmic axis, got {value!r}")
            if not linear and abs(math.log10(value)) + abs(offset) + size / 2 > 300.0:
                raise InvalidValueError(
                    f"a window reaches from 1e-300 to 1e300 at most, got the centre {value!r}, offset {offset!r} and "
                    f"size {size!r} decades"
                )

    @classmethod
    def of_values(
        cls, *, x: tuple[float, float], y: tuple[float, float], linear: tuple[bool, bool] = (False, False)
    ) -> Window:
        """The window between two values of each axis, lowest first."""
        centre, size = [], []
        linear = switches(linear)
        for (low, high), name, plain in zip((pair(x, "x"), pair(y, "y")), "xy", linear, strict=True):
            if not low < high or not (plain or low > 0.0):
                raise InvalidValueError(
                    f"{name} must be two rising values{'' if plain else ' above 0'}, got {low}, {high}"
                )
            centre.append((low + high) / 2 if plain else math.sqrt(low) * math.sqrt(high))
            size.append(high - low if plain else decades(low, high))
        return cls(centre=(centre[0], centre[1]), size=(size[0], size[1]), linear=linear)

    @classmethod
    def of_exponents(cls, *, x: tuple[float, float], y: tuple[float, float]) -> Window:
        """The window between two powers of ten of each axis, lowest first."""
        ends = pair(x, "x"), pair(y, "y")
        for (low, high), name in zip(ends, "xy", strict=True):
            if not low < high:
                raise InvalidValueError(f"{name} must be two rising exponents of ten, got {low}, {high}")
            if max(-low, high) > 300.0:
                raise InvalidValueError(f"{name} reaches from 1e-300 to 1e300 at most, got the exponents {low}, {high}")
        middle, size = [(low + high) / 2 for low, high in ends], [high - low for low, high in ends]
        return cls(centre=(10.0 ** middle[0], 10.0 ** middle[1]), size=(size[0], size[1]))

    @classmethod
    def of_experiment(cls, experiment: Experiment) -> Window:
        """The paper's overview: nine decades from 10**-3 on; of an axis in its own units, 0 to 0.999."""
        linear = tuple(name in LINEAR_AXES for name in experiment.axes)
        centre = tuple(0.4995 if plain else 10.0**1.5 for plain in linear)
        size = tuple(0.999 if plain else 9.0 for plain in linear)
        return cls(centre=centre, size=size, linear=linear)  # type: ignore[arg-type]

    def scaled(self, factor: float, about: tuple[float, float] = (0.5, 0.5)) -> Window:
        """The window `factor` times as large whose middle lies at a place of this one, (0, 0) its lower left corner."""
        offset = [o + (a - 0.5) * s for o, a, s in zip(self.offset, about, self.size, strict=True)]
        return replace(self, offset=(offset[0], offset[1]), size=(self.size[0] * factor, self.size[1] * factor))

    def recentred(self) -> Window:
        """The same window with its middle as its centre and no offset; rounds the middle to float64."""
        ends = [
            float(value_at(c, np.array([o]), plain)[0])
            for c, o, plain in zip(self.centre, self.offset, self.linear, strict=True)
        ]
        return replace(self, centre=(ends[0], ends[1]), offset=(0.0, 0.0))

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((x lowest, x highest), (y lowest, y highest)), values of the axes."""
        grid = self.grid(2)
        return (float(grid.x[0]), float(grid.x[1])), (float(grid.y[0]), float(grid.y[1]))

    def grid(self, height: int, width: int | None = None) -> Grid:
        """The grid of points whose outermost lie on the window's edges.

        Args:
            height, width: points of the vertical and horizontal axis, 2 to 8192; width is height if None.
        """
        counts = (
            whole(height if width is None else width, "width", 2, MAX_RESOLUTION, "points"),
            whole(height, "height", 2, MAX_RESOLUTION, "points"),
        )
        axes = [
            value_at(c, o + s * (np.arange(n) / (n - 1) - 0.5), plain)
            for c, o, s, n, plain in zip(self.centre, self.offset, self.size, counts, self.linear, strict=True)
        ]
        return Grid(axes[0], axes[1])

    def to_dict(self) -> dict[str, Any]:
        """The window as values that JSON holds, to the last bit."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> Window:
        """The window that `to_dict` gave."""
        try:
            return cls(**{name: tuple(pair) for name, pair in values.items()})
        except (TypeError, AttributeError) as error:
            raise InvalidValueError(f"not a window: {values!r}: {error}") from None


@dataclass(frozen=True, eq=False)
class Grid:
    """Points of a plane: x: (W,) and y: (H,) float64 values of the axes, rising."""

    x: Float64
    y: Float64

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.y), len(self.x)

    def crop(self, rows: slice, columns: slice) -> Grid:
        """Some rows, lowest first, and columns, with the values that they have here."""
        return Grid(self.x[columns], self.y[rows])

    def points(self) -> Float64:
        """(H * W, 2) values of the axes, row by row, the lowest row first."""
        height, width = self.shape
        return np.stack([np.tile(self.x, height), np.repeat(self.y, width)], axis=1)


def value_at(centre: float, offset: Float64, linear: bool) -> Float64:
    """Values at offsets from a centre, in decades or units; the same bits on every machine.

    Of d decades, centre * 2**k is taken exactly, and the factor that is left lies between sqrt(1/2) and sqrt(2), so
    that values far below the centre keep their digits.
    """
    if linear:
        return centre + offset
    twos, rest = growth(offset)
    near = np.ldexp(centre, twos)
    return near + near * rest


def growth(decades: Float64) -> tuple[npt.NDArray[np.int64], Float64]:
    """(k, g) with 10**d = 2**k * (1 + g), by additions and multiplications alone, which every machine rounds alike."""
    exponent = np.asarray(decades, np.float64) * LN_10
    twos = np.rint(exponent * (1.0 / math.log(2.0)))
    rest = (exponent - twos * 0.693145751953125) - twos * 1.42860682030941723212e-6
    series = np.ones_like(rest)
    for order in range(22, 1, -1):
        series = 1.0 + series * rest * (1.0 / order)
    return twos.astype(np.int64), series * rest


def check_precision(window: Window, grid: Grid, precision: str, on_limit: OnLimit = "warn") -> str | None:
    """What is wrong with a window for a type of number, or None.

    Two limits: a window under 1e-12 decades (float64) or ten halvings of nine decades (float32), where the order of
    a sum flips labels; and a pitch at which neighbouring points are the same number.

    Raises:
        InvalidValueError: there is something, and `on_limit` is "refuse".

    Warns:
        PrecisionWarning: there is something, and `on_limit` is "warn".
    """
    one_of(on_limit, "on_limit", ("refuse", "warn", "allow"))
    one_of(precision, "precision", tuple(NARROWEST))
    kind = np.float64 if precision == "float64" else np.float32
    told = []
    narrow = (
        min(size for size, plain in zip(window.size, window.linear, strict=True) if not plain)
        if not all(window.linear)
        else math.inf
    )
    if narrow < NARROWEST[precision]:
        told.append(
            f"the window is {narrow:.2g} decades wide, under the {NARROWEST[precision]:.2g} that {precision} resolves"
        )
    for name, values in (("horizontal", grid.x), ("vertical", grid.y)):
        same = int((np.diff(values.astype(kind)) == 0).sum())
        if same:
            told.append(f"{same} of {len(values) - 1} {name} steps lie between equal numbers")
    if not told:
        return None
    remedy = "use precision='float64' or a wider window" if precision != "float64" else "use a wider window"
    message = f"{'; '.join(told)}: labels near the boundary are one realisation of rounding; {remedy}"
    if on_limit == "refuse":
        raise InvalidValueError(f"{message}, or on_limit='warn'")
    if on_limit == "warn":
        warnings.warn(message, PrecisionWarning, stacklevel=2)
    return message


def pair(value: Any, name: str) -> tuple[float, float]:
    """The value as two finite floats, else an `InvalidValueError`."""
    try:
        numbers = tuple(map(as_float, value))
    except TypeError:
        numbers = ()
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise InvalidValueError(f"{name} must be two finite numbers, got {value!r}")
    return numbers[0], numbers[1]


def decades(low: float, high: float) -> float:
    """log10(high / low), to the last digits of near values too."""
    grown = (high - low) / low
    return math.log1p(grown) / LN_10 if grown < math.inf else math.log10(high) - math.log10(low)


def switches(value: Any) -> tuple[bool, bool]:
    """Whether each axis is linear, else an `InvalidValueError`."""
    plain = tuple(value) if isinstance(value, tuple | list) else ()
    if len(plain) != 2 or not all(isinstance(each, bool | np.bool) for each in plain):
        raise InvalidValueError(f"linear must be True or False for each of two axes, got {value!r}")
    return bool(plain[0]), bool(plain[1])
