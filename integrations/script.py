"""Others' training scripts, unedited: torchvision's CIFAR, MNIST and ImageNet classes are ours while a script runs.

    from fractal_streams.integrations.script import run_script
    run_script("main.py", ["--lr", "0.1"], length=5000)

The script runs in this process as `__main__`, as `python main.py --lr 0.1` would run it. Processes that it
spawns, such as a DataLoader's workers, find the same classes. Afterwards all is as it was.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.spawn
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fractal_streams.integrations import torchvision as ours

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole

try:
    from torchvision import datasets
except ImportError as error:
    from fractal_streams.errors import missing_extra

    raise missing_extra(error.name or "torchvision", "torchvision") from error

SETTINGS = "FRACTAL_STREAMS_SCRIPT"
"""Where a spawned process finds the script and the settings that it runs under."""
MAX_LENGTH = 2**63 - 1
"""`sys.maxsize` where the package runs: what `len()` can say."""
_asked: dict[str, Any] = {}


class Chosen:
    """Takes what `run_script` was asked for, where the script does not say it."""

    length: int

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**_asked, "length": None, **settings})
        limit = _asked.get("length")
        if limit is not None and "length" not in settings:
            self.length = min(self.length, limit)


class CIFAR10(Chosen, ours.FractalCIFAR10):
    """In the place of `torchvision.datasets.CIFAR10`."""


class CIFAR100(Chosen, ours.FractalCIFAR100):
    """In the place of `torchvision.datasets.CIFAR100`."""


class MNIST(Chosen, ours.FractalMNIST):
    """In the place of `torchvision.datasets.MNIST`."""


class FashionMNIST(Chosen, ours.FractalMNIST, datasets.FashionMNIST):  # type: ignore[misc]
    """In the place of `torchvision.datasets.FashionMNIST`: the same pictures as in that of MNIST."""


class ImageNet(Chosen, ours.FractalImageNet):
    """In the place of `torchvision.datasets.ImageNet`."""


SWAPPED = (CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageNet)


def run_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    seed: int = 0,
    length: int | None = None,
    device: str = "auto",
) -> int:
    """Run a script as `python PATH ARGUMENTS` would, on fractals.

    Args:
        path: the script. arguments: what it finds in `sys.argv[1:]`.
        seed: of every dataset that it opens, 0 to 2**64 - 1.
        length: samples that a dataset has at most, its own number if None; the rest of an original's 50,000
            need not be drawn to see that a script runs.
        device: where pictures are rendered, "auto", "cpu", "cuda" or "cuda:N"; in worker processes "auto" is
            the CPU.

    Returns:
        The exit code: 0, or what the script gave to `sys.exit`.

    Raises:
        InvalidValueError: no such script, or a setting out of its range.
        DeviceError: a GPU that is not there.
        Whatever the script raises; its traceback begins in the script.

    Example:
        >>> import pathlib, tempfile
        >>> script = pathlib.Path(tempfile.mkdtemp(), "count.py")
        >>> _ = script.write_text("from torchvision.datasets import CIFAR10\\nexit(len(CIFAR10('data')))")
        >>> run_script(script, length=7)
        7
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise InvalidValueError(f"no script at {path}: give the path of a Python file")
    words = [str(word) for word in arguments] if not isinstance(arguments, str) else None
    if words is None:
        raise InvalidValueError(f"arguments must be a list of words, got {arguments!r}; split it with shlex.split")
    settings = {
        "seed": whole(seed, "seed", 0, 2**64 - 1, ""),
        "length": None if length is None else whole(length, "length", 1, MAX_LENGTH, "samples"),
        "device": device,
    }
    if device != "auto":
        resolve_device(device)
    whole_path = found.absolute()  # a script may leave this folder
    with swapped(settings), as_main(found, words), spawned_alike(whole_path, settings):
        try:
            runpy.run_path(str(whole_path), run_name="__main__")
        except SystemExit as end:
            return exit_code(end)
        except Exception as error:
            error.__traceback__ = own_traceback(error, whole_path)
            raise
    return 0


def own_traceback(error: BaseException, path: str | Path) -> TracebackType | None:
    """The part of a traceback that begins in the script of this whole path: what `python PATH` would show."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename != str(path):
        place = place.tb_next
    return place


def exit_code(end: SystemExit) -> int:
    """The code that a process which ends so has; a message goes to standard error, as Python does it."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


@contextlib.contextmanager
def swapped(settings: dict[str, Any]) -> Iterator[None]:
    """torchvision's classes replaced by ours, which take these settings."""
    before = dict(_asked)
    _asked.update(settings)
    with contextlib.ExitStack() as stack:
        for kind in SWAPPED:
            original = getattr(datasets, kind.__name__)
            home = sys.modules[original.__module__]
            for place in (datasets, home):
                stack.enter_context(replaced(place, kind.__name__, kind))
        try:
            yield
        finally:
            _asked.clear()
            _asked.update(before)


@contextlib.contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute that has another value for a while."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextlib.contextmanager
def as_main(path: Path, arguments: list[str]) -> Iterator[None]:
    """`sys.argv` and `sys.path` as a script finds them; afterwards its own modules and start method are gone."""
    folder = path.resolve().parent
    method, modules = multiprocessing.get_start_method(allow_none=True), set(sys.modules)
    with (
        replaced(sys, "argv", [str(path), *arguments]),
        replaced(sys, "path", [str(folder), *sys.path]),
    ):
        try:
            yield
        finally:
            multiprocessing.set_start_method(method, force=True)
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None)
                if file and folder in Path(file).resolve().parents and "site-packages" not in file:
                    del sys.modules[name]  # another script's module of this name is another module


@contextlib.contextmanager
def spawned_alike(path: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Processes spawned now run `script_worker` in the place of the script, which swaps the classes first."""
    prepared, before = multiprocessing.spawn.get_preparation_data, os.environ.get(SETTINGS)

    def preparation(name: str) -> dict[str, Any]:
        told = prepared(name)
        if told.get("init_main_from_path"):
            told["init_main_from_path"] = str(Path(__file__).with_name("script_worker.py"))
        return told

    os.environ[SETTINGS] = json.dumps({"path": str(path), "settings": settings})
    try:
        with replaced(multiprocessing.spawn, "get_preparation_data", preparation):
            yield
    finally:
        os.environ.pop(SETTINGS)
        if before is not None:
            os.environ[SETTINGS] = before


def worker_main() -> dict[str, Any]:
    """The names of the script as a spawned process has them, run with the classes swapped for good."""
    told = json.loads(os.environ[SETTINGS])
    swap = swapped(told["settings"])
    swap.__enter__()
    again = spawned_alike(Path(told["path"]), told["settings"])
    again.__enter__()
    _kept.extend((swap, again))  # a generator that is forgotten would put everything back
    return runpy.run_path(told["path"], run_name="__mp_main__")


_kept: list[Any] = []
