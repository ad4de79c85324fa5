"""Checkpoints: tensors as safetensors, all else as JSON, in a folder that is there whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

NAME = "step-{:09d}"


def save(folder: Path, step: int, values: Mapping[str, Any]) -> Path:
    """Write nested values as the checkpoint of a step, and remove those before it.

    Args:
        folder: of all checkpoints of a run; made if it is not there.
        values: name to dicts, lists and tuples of tensors, numbers, texts and None; each name is a file.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full, or the folder can't be written to; the checkpoint before is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = unused(folder / NAME.format(step))
    written = folder / f".{place.name}-{os.getpid()}"
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir()
        plain = {}
        for name, value in values.items():
            tensors: dict[str, Tensor] = {}
            plain[name] = packed(value, tensors, name)
            if tensors:
                save_file(tensors, written / f"{name}.safetensors")
        (written / "values.json").write_text(json.dumps(plain))
        written.rename(place)
    except BaseException as error:
        shutil.rmtree(written, ignore_errors=True)
        if isinstance(error, SafetensorError):  # how safetensors tells a full disk
            raise OSError(f"the checkpoint {place} can't be written ({error})") from error
        raise
    for other in [*folder.glob("step-*"), *folder.glob(".step-*")]:
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place


def unused(place: Path) -> Path:
    """The place, or the first behind it that is free: what is there stays until the new one is whole."""
    again = (place.with_name(f"{place.name}-{number:03d}") for number in itertools.count(1))
    return next(each for each in itertools.chain([place], again) if not each.exists())


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = sorted(place for place in folder.glob("step-*") if (place / "values.json").is_file())
    return found[-1] if found else None


def load(place: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The values that `save` wrote.

    Raises:
        InvalidValueError: a file that is damaged or was not written here; names it.
    """
    try:
        plain = json.loads((place / "values.json").read_text())
        return {name: unpacked(value, Tensors(place / f"{name}.safetensors", device)) for name, value in plain.items()}
    except Exception as error:
        raise InvalidValueError(
            f"{place} is no checkpoint that can be read ({error}): remove it to begin anew"
        ) from error


class Tensors:
    """The tensors of a file, read when the first is asked for."""

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self.path, self.device = path, device
        self.found: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self.found is None:
            self.found = load_file(self.path, device=str(self.device))
        return self.found[name]


def packed(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """A value as JSON holds it; its tensors go into `tensors` under their place.

    Raises:
        InvalidValueError: a value of another kind; names its place.
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{place}"
        copy = value.detach().to("cpu", copy=True)
        tensors[name] = copy.contiguous()
        return {"tensor": [name, *copy.stride()]}  # sums over other strides round otherwise
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, int | str)]
        if odd:
            raise InvalidValueError(f"a checkpoint's names are texts and numbers; {place} has {odd[0]!r}")
        return {"dict": [[key, packed(each, tensors, f"{place}/{key}")] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        items = [packed(each, tensors, f"{place}/{number}") for number, each in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidValueError(f"a checkpoint holds tensors, numbers and texts; {place} is a {type(value).__name__}")


def unpacked(value: Any, tensors: Tensors) -> Any:
    """What `packed` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        name, *strides = inner
        found = tensors[name]
        if found.stride() == tuple(strides):
            return found
        return torch.empty_strided(found.shape, strides, dtype=found.dtype, device=found.device).copy_(found)
    if kind == "dict":
        return {key: unpacked(each, tensors) for key, each in inner}
    items = [unpacked(each, tensors) for each in inner]
    return tuple(items) if kind == "tuple" else items
