"""Errors at the door: each says what was asked, what is allowed, and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class FractalStreamsError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidValueError(FractalStreamsError, ValueError):
    """A value outside its range, or of the wrong kind."""


class UnknownNameError(FractalStreamsError, KeyError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class IndexRangeError(FractalStreamsError, IndexError):
    """An index outside [0, 2**63) or outside a finite stream."""


class FormulaError(FractalStreamsError, TypeError):
    """A formula or colouring that breaks the dialect's laws."""


class DeviceError(FractalStreamsError, RuntimeError):
    """A device that is not there, or that can't be used from this process."""


class ShardingError(FractalStreamsError, RuntimeError):
    """A way of reading a stream under which samples would be lost or repeated."""


class VersionError(FractalStreamsError, ValueError):
    """A spec or state made by a version that this one can't reproduce."""


class AddressError(FractalStreamsError, FileNotFoundError):
    """An address under which no file is: an unknown name or setting, or a value outside its range."""


class ReadOnlyError(FractalStreamsError, OSError):
    """A write to what can only be read."""


class PictureError(FractalStreamsError, ValueError):
    """A stored picture, or a part of an archive or video, that can't be read or used."""


class DivergedError(FractalStreamsError, ArithmeticError):
    """A training whose loss is no longer a number."""


class MissingExtraError(FractalStreamsError, ImportError):
    """An optional dependency that is not installed."""


def unknown_name(kind: str, name: object, known: Iterable[str], remedy: str = "") -> UnknownNameError:
    """An `UnknownNameError` that names the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}known are {', '.join(names)}{remedy}")


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """A `MissingExtraError` with the pip line that installs the package.

    While an ImportError is handled, the cause is its own: a package that is there but broken or too old is not called
    missing, and an error that this function made already stays as it is.
    """
    cause = sys.exc_info()[1]
    if isinstance(cause, MissingExtraError):
        return cause
    if isinstance(cause, ImportError) and not isinstance(cause, ModuleNotFoundError):
        named = package if package != "None" else cause.name or "a package"
        return MissingExtraError(
            f"{named} is installed, but can't be loaded ({cause}): install one that this works with: "
            f"pip install --upgrade 'fractal-streams[{extra}]'"
        )
    return MissingExtraError(f"{package} is not installed, and this needs it: pip install 'fractal-streams[{extra}]'")
