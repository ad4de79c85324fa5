"""Settings of a run: frozen dataclasses whose fields know their ranges, and the command line that follows from them."""

from __future__ import annotations

import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.spec import one_of, whole

try:
    import typer

    from fractal_streams.cli import LoneCommand
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

MOST = 2**63 - 1


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    changes_nothing: bool = False,
) -> Any:
    """A field of `Settings`: its default, what it means, and what is allowed.

    Args:
        low, high: of numbers, both included. choices: of texts.
        changes_nothing: a resumed run may have another value, as what is trained does not depend on it.
    """
    limits = {"low": low, "high": high, "choices": tuple(choices)}
    return field(default=default, metadata={"help": help, "changes_nothing": changes_nothing, **limits})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of a run, each checked at the door.

    panel: of a class's own fields on a page of help; not inherited.

    Raises:
        InvalidValueError: a value of the wrong type or out of its range, named.
    """

    panel: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for item in fields(self):
            value = checked(item, kinds[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)

    def decisive(self) -> dict[str, Any]:
        """The values that decide what is trained, as JSON holds them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if decides(item)}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def decides(item: Field[Any]) -> bool:
    return not item.metadata.get("changes_nothing", False)


def checked(item: Field[Any], kind: Any, value: Any) -> Any:
    """The value as its field's type, else an `InvalidValueError`."""
    if value is None and types.NoneType in typing.get_args(kind):
        return None
    inner, many = type_of(kind)
    if many:
        values = (
            apart(value, inner) if isinstance(value, str) else tuple(value if isinstance(value, Iterable) else [value])
        )
        if not values and item.default != ():
            raise InvalidValueError(f"{item.name} must hold at least one value, got {value!r}")
        return tuple(checked_one(item, inner, each) for each in values)
    return checked_one(item, inner, value)


def apart(text: str, kind: type) -> tuple[Any, ...]:
    """The values that commas separate, as numbers where a number stands; what is none is refused by its own check."""

    def value(word: str) -> Any:
        try:
            return kind(word)
        except ValueError:
            return word

    return tuple(value(word.strip()) for word in text.split(",") if word.strip())


def checked_one(item: Field[Any], kind: type, value: Any) -> Any:
    limits, name = item.metadata, item.name
    low, high = limits.get("low"), limits.get("high")
    if kind is bool:
        if not isinstance(value, bool):
            raise InvalidValueError(f"{name} must be True or False, got {value!r}")
        return value
    if kind is int:
        return whole(value, name, 0 if low is None else int(low), MOST if high is None else int(high), "")
    if kind is float:
        right = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        first, last = -math.inf if low is None else low, math.inf if high is None else high
        if not right or not first <= value <= last:
            raise InvalidValueError(f"{name} must be a finite number in [{first:g}, {last:g}], got {value!r}")
        return float(value)
    if kind is Path:
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise InvalidValueError(f"{name} must be a path, got {value!r}")
        return Path(value)
    if limits.get("choices"):
        one_of(value, name, limits["choices"])
    elif not isinstance(value, str):
        raise InvalidValueError(f"{name} must be a text, got {value!r}")
    return value


def refuse_others(found: Mapping[str, Any], asked: Mapping[str, Any], place: Path) -> None:
    """An `InvalidValueError` if a checkpoint is of other settings."""
    names = [name for name in sorted({*found, *asked}) if found.get(name) != asked.get(name)]
    if names:
        said = ", ".join(f"{name}={found.get(name)!r}, not {asked.get(name)!r}" for name in names)
        raise InvalidValueError(f"{place} was trained with {said}: ask for the same, or for another folder")


def type_of(kind: Any) -> tuple[type, bool]:
    """The type of a field's value without its None, or of its values, and whether there are several."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def command(settings: type[Settings], run: Callable[[Any], Any], help: str = "", epilog: str = "") -> typer.Typer:
    """A command whose options are the fields of the settings, its own first; underscores may stand for hyphens.

    Args:
        settings: what the options make. run: called with it. help: the first words of its page.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Walk(Settings):
        ...     steps: int = option(3, "How far.", low=1)
        >>> command(Walk, lambda walk: print(walk.steps)).registered_commands[0].name is None
        True
    """

    def call(**values: Any) -> None:
        run(settings(**values))

    kinds = typing.get_type_hints(settings)
    items = sorted(fields(settings), key=lambda item: -kin(settings).index(declarer(settings, item.name)))
    panels = {item.name: vars(declarer(settings, item.name)).get("panel", Settings.panel) for item in items}
    parameters = [parameter(item, kinds[item.name], panels[item.name]) for item in items]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__doc__ = help or inspect.getdoc(settings)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=LoneCommand, epilog=epilog)(call)
    return app


def kin(settings: type[Settings]) -> list[type]:
    """The classes that fields are of, the oldest first."""
    return [each for each in reversed(settings.__mro__) if is_dataclass(each)]


def declarer(settings: type[Settings], name: str) -> type:
    """The oldest class that has the field: others change its default."""
    return next(each for each in kin(settings) if name in inspect.get_annotations(each))


def parameter(item: Field[Any], kind: Any, panel: str) -> inspect.Parameter:
    """A field as a parameter that typer reads."""
    inner, many = type_of(kind)
    text, default = item.metadata.get("help", ""), None if item.default is MISSING else item.default
    if item.metadata.get("choices"):
        text = f"{text} One of {', '.join(item.metadata['choices'])}."
    if many:
        inner, default = str, None if default is None else ",".join(str(each) for each in default)
    free: dict[str, Any] = {}
    if inner in (int, float) and types.NoneType in typing.get_args(kind):
        text = text if default is None else f"{text} Or none."
        free = {"parser": number_or_none(inner), "metavar": f"<{inner.__name__}>"}
    names = [f"--{item.name.replace('_', '-')}"] if default is False else []  # else --no-... of what is off
    page = typer.Option(*names, help=text, rich_help_panel=None if panel == Settings.panel else panel, **free)
    annotation = Annotated[inner | None if default is None else inner, page]  # type: ignore[valid-type]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def number_or_none(kind: type) -> Callable[[Any], Any]:
    """What makes an option's word a number, or None of "none"."""

    def number(word: Any) -> Any:
        return None if str(word).lower() == "none" else kind(word)

    return number
