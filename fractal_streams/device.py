"""Where a stream renders: explicit is final, only "auto" chooses."""

from __future__ import annotations

import multiprocessing
import re
from importlib.util import find_spec

from fractal_streams.errors import DeviceError, InvalidValueError


def resolve_device(device: str) -> str:
    """ "cpu", or "cuda:N".

    Args:
        device: "auto" (a GPU if torch sees one and this is no worker process, else the CPU), "cpu",
            "cuda" or "cuda:N".

    Raises:
        DeviceError: a GPU was asked for that is not there, or from inside a DataLoader worker.
        InvalidValueError: not a device.
    """
    name = str(device)
    if name == "cpu":
        return "cpu"
    number = name.partition(":")[2]
    if name != "auto" and not re.fullmatch(r"cuda(:[0-9]{1,4})?", name):
        raise InvalidValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    worker = multiprocessing.parent_process() is not None
    if name == "auto" and (worker or find_spec("torch") is None):
        return "cpu"
    if find_spec("torch") is None:
        raise DeviceError(f"device={name!r} needs torch: pip install 'fractal-streams[torch]', or pass device='cpu'")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return f"cuda:{torch.cuda.current_device()}" if count else "cpu"
    if not count:
        raise DeviceError(f"device={name!r} was asked for, but torch sees no GPU here; pass device='cpu' or 'auto'")
    refuse_worker(name)
    chosen = int(number) if number else torch.cuda.current_device()
    if chosen >= count:
        raise DeviceError(f"device={name!r} was asked for, but this machine has GPUs 0 to {count - 1}")
    return f"cuda:{chosen}"


def refuse_worker(device: str) -> None:
    """A `DeviceError` if this is a DataLoader worker process and the device is a GPU."""
    if not device.startswith("cuda") or multiprocessing.parent_process() is None:
        return
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        raise DeviceError(
            "a stream on a GPU can't render inside a DataLoader worker: use DataLoader(..., num_workers=0), "
            "which renders ahead on its own CUDA stream, or device='cpu' for worker processes"
        )
