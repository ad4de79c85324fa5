"""Joules, where a driver counts them: NVIDIA's for a GPU, RAPL for CPU packages.

Sources: the manuals of NVML (`nvmlDeviceGetTotalEnergyConsumption`, millijoules since the driver was loaded) and
nvidia-smi (`power.draw`, watts); the Linux kernel's power capping framework (`energy_uj`, microjoules, which wrap).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

POWERCAP = Path("/sys/class/powercap")
PERIOD_MS = 50
"""Between two readings of a power that has no counter."""

Counter = Callable[[], float]
"""Joules since some moment."""


class Meter:
    """What is spent by one GPU and by all CPU packages, as far as it is counted; a context that ends its readers.

    Args:
        device: "cpu" or "cuda:N".

    Example:
        >>> with Meter("cpu") as meter:
        ...     before = meter.joules()
        >>> (before is None) == (meter.parts == ())
        True
    """

    def __init__(self, device: str) -> None:
        self._ends: list[Callable[[], Any]] = []
        self._counters: dict[str, Counter] = {}
        if device.startswith("cuda"):
            uuid = gpu_uuid(device)
            found = nvml_counter(uuid) or self._sampled(uuid)
            if found:
                self._counters["GPU"] = found
        packages = rapl_counter()
        if packages:
            self._counters["CPU"] = packages

    @property
    def parts(self) -> tuple[str, ...]:
        """What is counted: of "GPU" and "CPU"."""
        return tuple(self._counters)

    def joules(self) -> float | None:
        """Of all parts together, since some moment; None where nothing is counted."""
        return sum(counter() for counter in self._counters.values()) if self._counters else None

    def _sampled(self, uuid: str) -> Counter | None:
        sampler = PowerSampler.start(uuid)
        if sampler is None:
            return None
        self._ends.append(sampler.end)
        return lambda: sampler.joules

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        for end in self._ends:
            end()


def gpu_uuid(device: str) -> str:
    """As NVIDIA's tools name a GPU, whatever subset of them this process sees."""
    import torch

    name = str(torch.cuda.get_device_properties(device).uuid)
    return name if name.startswith("GPU-") else f"GPU-{name}"


def nvml_counter(uuid: str) -> Counter | None:
    """The driver's own counter, through `nvidia-ml-py`; None without it, or of a GPU that has none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


class PowerSampler:
    """Watts as nvidia-smi prints them, added up over time in a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.joules = 0.0
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, uuid: str) -> PowerSampler | None:
        """None where there is no nvidia-smi."""
        if shutil.which("nvidia-smi") is None:
            return None
        command = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
        return cls(subprocess.Popen(
            (*command, f"--loop-ms={PERIOD_MS}", f"--id={uuid}"), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        ))  # fmt: skip

    def _read(self) -> None:
        assert self.process.stdout is not None
        last = time.perf_counter()
        for line in self.process.stdout:
            now = time.perf_counter()
            with contextlib.suppress(ValueError):  # "[N/A]" of a GPU that measures none
                self.joules += float(line) * (now - last)
            last = now

    def end(self) -> None:
        """Stops nvidia-smi."""
        self.process.terminate()
        self.process.wait()
        self._thread.join()
        if self.process.stdout:
            self.process.stdout.close()


def rapl_counter() -> Counter | None:
    """All CPU packages; None where the kernel has no such counter or keeps it from this user."""
    packages = [path for path in sorted(POWERCAP.glob("intel-rapl:*")) if path.name.count(":") == 1]
    try:
        last = {path: int((path / "energy_uj").read_text()) for path in packages}
        turns = {path: int((path / "max_energy_range_uj").read_text()) + 1 for path in packages}
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    spent = 0

    def joules() -> float:
        nonlocal spent
        for path in packages:
            now = int((path / "energy_uj").read_text())
            spent += (now - last[path]) % turns[path]
            last[path] = now
        return spent / 1e6

    return joules
