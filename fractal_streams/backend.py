"""A backend: drawing and rendering on one kind of device, behind one face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fractal_streams.draw.plan import Plan
from fractal_streams.errors import InvalidValueError
from fractal_streams.render.raster import PixelFormat, Raster
from fractal_streams.rng import checked_indices


class Backend(Protocol):
    """What a stream needs of a device; arrays are NumPy's on a CPU and torch's on a GPU."""

    def draw(self, plan: Plan, indices: Any) -> tuple[Any, Any, Any]:
        """(B,) int64 index, (B,) int64 labels and the (P, B) float32 table of a plan."""

    def render(self, raster: Raster, table: Any, pixels: PixelFormat) -> Any:
        """Pictures of a table, see `Renderer`."""

    def full(self, count: int, value: float) -> Any:
        """(count,) float32 of one value."""

    def gather(self, order: npt.NDArray[np.int64], parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Each column of the parts joined along its first axis, rows taken in `order`."""

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """The array on this device."""


class CpuBackend:
    """Numba, on every core."""

    def __init__(self, renderer: Any = None) -> None:
        if renderer is None:
            from fractal_streams.render.numba_backend import NumbaRenderer

            renderer = NumbaRenderer()
        self.renderer = renderer

    def draw(self, plan: Plan, indices: Any) -> tuple[Any, Any, Any]:
        from fractal_streams.draw.numba_backend import draw

        index = checked_indices(indices)
        labels, table = draw(plan, index)
        return index, labels, table

    def render(self, raster: Raster, table: Any, pixels: PixelFormat) -> Any:
        return self.renderer.render(raster, table, pixels)

    def full(self, count: int, value: float) -> Any:
        return np.full(count, value, np.float32)

    def gather(self, order: npt.NDArray[np.int64], parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return tuple(np.concatenate(column)[order] for column in zip(*parts, strict=True))

    def upload(self, array: npt.NDArray[Any]) -> Any:
        return array


def backend_of(device: str, renderer: Any = None) -> Backend:
    """The backend of a resolved device; a renderer given replaces the CPU's own.

    Raises:
        InvalidValueError: a renderer for a GPU, which has one of its own.
    """
    if device == "cpu":
        return CpuBackend(renderer)
    if renderer is not None:
        raise InvalidValueError(
            f"renderer= takes the place of the CPU's, and this stream renders on {device}: pass device='cpu' with it"
        )
    from fractal_streams.cuda import CudaBackend

    return CudaBackend(device)
