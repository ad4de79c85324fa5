"""What a formula is: one step function, its parameters, and the plane that it lives in."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fractal_streams.errors import FormulaError, UnknownNameError

Scale = Literal["linear", "log", "integer"]
Stop = Literal["escape", "converge", "either", "never"]
Plane = Literal["parameter", "dynamical"]

MAX_RADIUS = 1e15
"""Of a formula's distances: the square is still a float32."""

STATE = ("zr", "zi", "cr", "ci", "pr", "pi", "n")
"""What a step may ask for besides its parameters: z, c, the z before (p), the iteration number."""


@dataclass(frozen=True)
class Parameter:
    """One number that is drawn for each sample or each class.

    `low` and `high` bound the default draw: uniform, or uniform in the logarithm, or whole numbers
    from low to high. A constant has low == high.
    """

    low: float
    high: float
    meaning: str
    unit: str = "1"
    scale: Scale = "linear"


VIEW = {
    "centre_x": Parameter(0.0, 0.0, "real part of the picture's centre", "plane units"),
    "centre_y": Parameter(0.0, 0.0, "imaginary part of the picture's centre", "plane units"),
    "half_width": Parameter(1.0, 1.0, "from the centre to the left and right edge", "plane units"),
    "rotation": Parameter(0.0, 0.0, "turn of the picture in the plane, anticlockwise", "radians"),
}
"""The view: parameters of every formula, where the picture lies in its plane."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A frozen record around one step function; made by `formula`.

    step: reads any of `zr zi cr ci pr pi n` and its own parameters by name, returns (zr, zi).
    start: reads `x y` and parameters by name, returns (zr, zi, cr, ci).
    stop: "escape" when |z| >= radius, "converge" when |z - previous z| < tolerance or, when
        `limit` names a point, |z - limit| < tolerance; "either" of them; or "never": the orbit runs
        through, and its count is of the steps that ended within the radius.
    stays_out: reads `radius` and parameters by name, and is true where an orbit that has left the radius
        never comes back (a float32 that overflows counts as outside). The formula's page proves it.
        Renderers then look for the step at which it left only once in a while.
    interior: reads `cr ci` and parameters by name, and is true only of c whose orbits from `start` never
        stop; it need not find them all. It keeps a margin for float32.

    Raises:
        FormulaError: names the formula, the field, the value and what is allowed.
    """

    name: str
    step: Callable[..., Any]
    start: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    source: str
    stop: Stop = "escape"
    radius: float = 100.0
    tolerance: float = 1e-3
    limit: tuple[float, float] | None = None
    iterations: int = 50
    degree: float = 2.0
    class_parameters: tuple[str, ...] = ()
    colouring: str = "smooth"
    stays_out: Callable[..., Any] | None = None
    interior: Callable[..., Any] | None = None
    version: int = 1
    module: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        allowed = {
            "stop": (self.stop in get_args(Stop), f"one of {', '.join(get_args(Stop))}"),
            "radius": (0.0 < self.radius <= MAX_RADIUS, f"in (0, {MAX_RADIUS:g}]"),
            "tolerance": (1e-15 <= self.tolerance <= MAX_RADIUS, f"in [1e-15, {MAX_RADIUS:g}]"),
            "iterations": (type(self.iterations) is int and self.iterations >= 1, "a whole number from 1 on"),
            "degree": (0.0 < self.degree <= MAX_RADIUS, f"in (0, {MAX_RADIUS:g}]"),
            "limit": (
                self.limit is None or len(self.limit) == 2 and all(map(math.isfinite, self.limit)),
                "None or two finite numbers",
            ),
        }
        for field_name, (holds, what) in allowed.items():
            if not holds:
                raise FormulaError(
                    f"formula {self.name!r}: {field_name} must be {what}, got {getattr(self, field_name)!r}"
                )
        for name in self.parameters:
            if name in (*STATE, "x", "y"):
                raise FormulaError(
                    f"formula {self.name!r}: a parameter can't be named {name!r}, as the orbit's own values are "
                    f"({', '.join((*STATE, 'x', 'y'))}); rename it"
                )
        for name in self.class_parameters:
            if name not in self.parameters:
                raise FormulaError(
                    f"formula {self.name!r}: class_parameters names {name!r}, which is no declared parameter "
                    f"({', '.join(self.parameters)}); add it to parameters="
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return _import_formula, (self.module, self.name)

    def __hash__(self) -> int:
        return hash((self.name, self.module))


def parameter_plane(x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """The pixel is c, the orbit starts at the critical point 0."""
    return x - x, y - y, x, y


def dynamical_plane(x: Any, y: Any, c_re: Any, c_im: Any) -> tuple[Any, Any, Any, Any]:
    """The pixel is where the orbit starts, c belongs to the picture."""
    return x, y, c_re + (x - x), c_im + (y - y)


REGISTRY: dict[str, Formula] = {}


def formula(
    *,
    parameters: Mapping[str, Parameter] | None = None,
    source: str,
    plane: Plane = "parameter",
    start: Callable[..., Any] | None = None,
    name: str | None = None,
    **settings: Any,
) -> Callable[[Callable[..., Any]], Formula]:
    """Make the decorated step function a `Formula` and register it under its name.

    Example:
        >>> from fractal_streams import formula
        >>> from fractal_streams.dialect import absolute
        >>> @formula(source="M. Michelitsch, O. E. Roessler, Computers & Graphics 16 (1992)")
        ... def flaming_boat(zr, zi, cr, ci):
        ...     return zr * zr - zi * zi + cr, 2.0 * absolute(zr * zi) + ci
    """
    begin = start or (parameter_plane if plane == "parameter" else dynamical_plane)
    declared = {**VIEW, **(parameters or {})}

    def register(step: Callable[..., Any]) -> Formula:
        title = name or step.__name__
        hooks = ((settings.get("stays_out"), ("radius",)), (settings.get("interior"), ("cr", "ci")))
        for function, free in ((step, STATE), (begin, ("x", "y")), *hooks):
            if function is None:
                continue
            for asked in inspect.signature(function).parameters:
                if asked not in free and asked not in declared:
                    raise FormulaError(
                        f"formula {title!r}: {function.__name__} asks for {asked!r}, which is neither one of "
                        f"{', '.join(free)} nor a declared parameter ({', '.join(declared)}); "
                        f"add it to parameters="
                    )
        known = REGISTRY.get(title)
        if known is not None and known.module != step.__module__:
            raise FormulaError(f"formula {title!r} is already registered by {known.module}; choose another name=")
        made = Formula(
            name=title, step=step, start=begin, parameters=declared, source=source,
            module=step.__module__, **settings,
        )  # fmt: skip
        REGISTRY[title] = made
        return made

    return register


def import_home(module: str, kind: str, name: str) -> None:
    """Import the module that registers a formula or colouring.

    Raises:
        UnknownNameError: there is no such module. What goes wrong inside of one is its own.
    """
    try:
        importlib.import_module(module)
    except (ModuleNotFoundError, TypeError) as error:
        missing = getattr(error, "name", None) or ""
        if not f"{module}.".startswith(f"{missing}.") and not module.startswith("."):
            raise
        raise UnknownNameError(
            f"unknown {kind} {name!r}: there is no module {module!r} to import; "
            f"give a path that Python finds, as 'package.module:{kind}'"
        ) from None


def _import_formula(module: str, name: str) -> Formula:
    import_home(module, "formula", name)
    if name not in REGISTRY:
        raise UnknownNameError(
            f"formula {name!r} is not registered by {module!r} in this process: define it at the top of a file "
            f"that worker processes import, neither in a notebook nor under `if __name__ == '__main__'`"
        )
    return REGISTRY[name]
