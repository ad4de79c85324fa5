"""The GPU as a backend: draws and renders on the current CUDA stream of one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from fractal_streams.draw.plan import Plan
from fractal_streams.draw.triton_backend import DevicePlan
from fractal_streams.render.raster import PixelFormat, Raster
from fractal_streams.render.triton_backend import TritonRenderer


class CudaBackend:
    """Triton kernels on one device; see `fractal_streams.backend.Backend`."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.renderer = TritonRenderer(device)
        self._plans: WeakKeyDictionary[Plan, DevicePlan] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaBackend, (str(self.device),)

    def draw(self, plan: Plan, indices: Any) -> tuple[Any, Any, Any]:
        with self._here():
            if plan not in self._plans:
                self._plans[plan] = DevicePlan(plan, self.device)
            return self._plans[plan].draw(indices)

    def render(self, raster: Raster, table: Any, pixels: PixelFormat) -> Any:
        with self._here():
            return self.renderer.render(raster, table, pixels)

    def full(self, count: int, value: float) -> Any:
        return torch.full((count,), value, dtype=torch.float32, device=self.device)

    def gather(self, order: npt.NDArray[np.int64], parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        places = self.upload(order)
        return tuple(torch.cat(column)[places] for column in zip(*parts, strict=True))

    def upload(self, array: npt.NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _here(self) -> Any:
        return torch.cuda.device(self.device)
