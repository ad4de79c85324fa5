"""Finished parts of long work in a folder, each under a name that tells all that it follows from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import missing_extra

try:
    from safetensors.torch import load_file, save_file
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Tensors = tuple[Tensor, ...]


def key_of(model: nn.Module, *settings: Any) -> str:
    """Hexadecimal digits of a model's weights and buffers, and of settings as JSON holds them."""
    hashed = hashlib.blake2s(json.dumps(settings).encode())
    for name, value in sorted(model.state_dict().items()):
        hashed.update(name.encode() + bytes_of(value))
    return hashed.hexdigest()


def kept(folder: Path | None, key: str, given: Tensor, work: Callable[[], Tensors]) -> tuple[Tensors, bool]:
    """What work makes of a tensor, and whether it was found in the folder instead; without a folder, work is done.

    Args:
        folder: made if it is not there. key: of all else that the result follows from.

    Example:
        >>> import tempfile, torch
        >>> place, given = Path(tempfile.mkdtemp()), torch.ones(2)
        >>> [kept(place, "doubled", given, lambda: (2 * given,)) for _ in range(2)]
        [((tensor([2., 2.]),), False), ((tensor([2., 2.]),), True)]
    """
    if folder is None:
        return work(), False
    name = hashlib.blake2s(key.encode() + json.dumps([*given.shape]).encode() + bytes_of(given)).hexdigest()
    path = folder / f"{name}.safetensors"
    if path.is_file():
        held = load_file(path)
        return tuple(held[str(place)].to(given.device) for place in range(len(held))), True
    found = work()
    folder.mkdir(parents=True, exist_ok=True)
    whole = {str(place): each.detach().cpu().contiguous().clone() for place, each in enumerate(found)}
    whole_file(path, lambda written: save_file(whole, written))
    return found, False


def bytes_of(values: Tensor) -> bytes:
    """The bytes of a tensor."""
    return values.detach().cpu().contiguous().numpy().tobytes()
