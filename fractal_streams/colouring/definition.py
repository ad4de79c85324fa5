"""What a colouring is: what it keeps of an orbit while it runs, and how that becomes a colour."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fractal_streams.errors import FormulaError, UnknownNameError
from fractal_streams.formulas.definition import Parameter, import_home

SEEN = ("zr", "zi", "pr", "pi", "goal_r", "goal_i", "n")
"""What `observe` may ask for.

The new z, the z before (p), what convergence is measured against (`goal`: the formula's limit, or p),
and the number of steps done before (0, 1, ...).
"""
SUMMARY = ("count", "inside", "zr", "zi", "pr", "pi", "iterations", "radius", "degree", "tolerance", "converges")
"""What `paint` may ask for.

count: steps that ended inside, 0 to `iterations`; inside: 1 where the orbit never stopped, else 0;
zr, zi, pr, pi: the z at which it stopped (or the last), and the z before it;
the rest: constants of the formula and the spec, `degree` of the leading power, `converges` 0 where
every orbit that stops has left the radius and 1 where it may have stopped otherwise.
"""


@dataclass(frozen=True, kw_only=True)
class Colouring:
    """A frozen record around `paint` and, where orbits are followed, `observe`.

    paint: reads names of `SUMMARY`, accumulators and parameters; returns (red, green, blue) in [0, 1];
        what lies outside is clipped. A level is the truncation of 255 times the value.
    observe: reads names of `SEEN`, accumulators and parameters; returns the accumulators' new values,
        one tuple in their order. It sees every step of an orbit, the one that stops it too.
    accumulators: name to first value.
    convergence: accumulators that `paint` reads only where `converges` is 1, and that no other one follows
        from; elsewhere renderers may leave them at their first values.
    inside_alike: `paint` gives all orbits that never stop one colour, wherever they are.
    """

    name: str
    paint: Callable[..., Any]
    observe: Callable[..., Any] | None = None
    accumulators: Mapping[str, float] = field(default_factory=dict)
    convergence: tuple[str, ...] = ()
    inside_alike: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    source: str
    version: int = 1
    module: str = field(default="", compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _import_colouring, (self.module, self.name)

    def __hash__(self) -> int:
        return hash((self.name, self.module))


REGISTRY: dict[str, Colouring] = {}


def colouring(
    *,
    source: str,
    parameters: Mapping[str, Parameter] | None = None,
    observe: Callable[..., Any] | None = None,
    accumulators: Mapping[str, float] | None = None,
    convergence: Iterable[str] = (),
    inside_alike: bool = False,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Colouring]:
    """Make the decorated paint function a `Colouring` and register it under its name."""

    def register(paint: Callable[..., Any]) -> Colouring:
        title = name or paint.__name__
        own = (*(accumulators or {}), *(parameters or {}))
        for taken in own:
            if taken in (*SEEN, *SUMMARY) or own.count(taken) > 1:
                raise FormulaError(
                    f"colouring {title!r}: {taken!r} is named twice, or as the orbit's own values are "
                    f"({', '.join(dict.fromkeys((*SEEN, *SUMMARY)))}); rename the accumulator or parameter"
                )
        for named in convergence:
            if named not in (accumulators or {}):
                raise FormulaError(
                    f"colouring {title!r}: convergence names {named!r}, which is no accumulator "
                    f"({', '.join(accumulators or {}) or 'none declared'}); add it to accumulators="
                )
        for function, free in ((paint, SUMMARY), (observe, SEEN)):
            if function is None:
                continue
            for asked in inspect.signature(function).parameters:
                if asked not in free and asked not in own:
                    raise FormulaError(
                        f"colouring {title!r}: {function.__name__} asks for {asked!r}, which is neither one of "
                        f"{', '.join(free)} nor an accumulator or parameter ({', '.join(own) or 'none declared'})"
                    )
        known = REGISTRY.get(title)
        if known is not None and known.module != paint.__module__:
            raise FormulaError(f"colouring {title!r} is already registered by {known.module}; choose another name=")
        made = Colouring(
            name=title, paint=paint, observe=observe, accumulators=dict(accumulators or {}),
            convergence=tuple(convergence), inside_alike=inside_alike, parameters=dict(parameters or {}),
            source=source, module=paint.__module__,
        )  # fmt: skip
        REGISTRY[title] = made
        return made

    return register


def _import_colouring(module: str, name: str) -> Colouring:
    import_home(module, "colouring", name)
    if name not in REGISTRY:
        raise UnknownNameError(
            f"colouring {name!r} is not registered by {module!r} in this process: define it at the top of a file "
            f"that worker processes import, neither in a notebook nor under `if __name__ == '__main__'`"
        )
    return REGISTRY[name]
