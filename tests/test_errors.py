"""Errors: each is of one family, of the kind that Python's own code expects, and says what to do."""

from __future__ import annotations

import inspect
import pickle

import pytest

from fractal_streams import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
BUILTIN = {
    "InvalidValueError": ValueError, "UnknownNameError": KeyError, "IndexRangeError": IndexError,
    "FormulaError": TypeError, "DeviceError": RuntimeError, "ShardingError": RuntimeError,
    "VersionError": ValueError, "MissingExtraError": ImportError, "AddressError": FileNotFoundError,
    "ReadOnlyError": OSError, "PictureError": ValueError,
    "DivergedError": ArithmeticError,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_of_the_family_and_a_builtin(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.FractalStreamsError) and kind.__doc__
    assert kind is errors.FractalStreamsError or issubclass(kind, BUILTIN[kind.__name__])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_reads_as_its_message_also_after_a_worker_sent_it(kind: type[Exception]) -> None:
    assert str(kind("it's 3")) == "it's 3"
    assert str(pickle.loads(pickle.dumps(kind("it's 3")))) == "it's 3"


def test_an_unknown_name_gives_the_nearest_and_all_known() -> None:
    message = str(errors.unknown_name("preset", "fractal10", ["fractal-100", "fractal-10", "seed"]))
    assert message == "unknown preset 'fractal10': did you mean 'fractal-10'? known are fractal-10, fractal-100, seed"
    assert "did you mean" not in str(errors.unknown_name("preset", "zzz", ["fractal-10"]))
    assert "unknown kind None" in str(errors.unknown_name("kind", None, ["a"]))


def test_a_missing_extra_gives_the_line_that_installs_it() -> None:
    error = errors.missing_extra("imageio", "video")
    assert str(error) == "imageio is not installed, and this needs it: pip install 'fractal-streams[video]'"


IMPORTS = {
    "import no_such_package": "no_such_package is not installed, and this needs it: pip install",
    "from json import no_such_name": "json is installed, but can't be loaded (cannot import name 'no_such_name'",
    "raise ImportError('libtorch.so: undefined symbol')": "a package is installed, but can't be loaded (libtorch.so:",
    "raise errors.missing_extra('timm', 'recipes')": "timm is not installed, and this needs it: pip install 'fractal",
}


@pytest.mark.parametrize("statement, said", IMPORTS.items(), ids=list(IMPORTS))
def test_an_import_that_fails_tells_the_true_cause(statement: str, said: str) -> None:
    """Also from one module of ours to the next, and where the error has no name."""
    with pytest.raises(errors.MissingExtraError) as raised:
        try:
            exec(statement, {"errors": errors})
        except ImportError as error:
            raise errors.missing_extra(str(error.name), "recipes") from None
    assert str(raised.value).startswith(said) and "fractal-streams[recipes]'" in str(raised.value)
