"""The reference: slow, obvious float64 NumPy. It decides what is right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.dialect import cos, sin
from fractal_streams.render.raster import PixelFormat, Raster, check_table
from fractal_streams.render.rounding import Rounding


class ReferenceRenderer:
    """Renders in NumPy.

    precision: np.float64, or np.float32 to see what single precision changes.
    rounding: errors put on every operation, in float64: what a renderer with those errors could give
        just as well. The budgets that renderers are held to come from it.
    """

    def __init__(self, precision: type = np.float64, rounding: Rounding | None = None) -> None:
        self.precision = precision
        self.number: Callable[[Any], Any] = rounding.number if rounding else precision

    def render(
        self, raster: Raster, table: npt.NDArray[np.float32], pixels: PixelFormat | None = None
    ) -> npt.NDArray[Any]:
        """Pictures as `Renderer.render` gives; bfloat16 as its uint16 bits."""
        pixels = pixels or PixelFormat()
        table = np.asarray(table, np.float32)
        check_table(raster, table)
        images = (
            np.stack([self.levels(raster, column) for column in table.T])
            if table.size
            else np.empty((table.shape[1], 3, raster.height, raster.width), np.uint8)
        )
        out = pixels.table()[np.arange(3)[None, :, None, None], images]
        if pixels.dtype in ("float16", "float32"):
            out = out.view(pixels.dtype)
        return np.ascontiguousarray(out.transpose(0, 2, 3, 1)) if pixels.channels_last else out

    def levels(self, raster: Raster, column: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """(3, H, W) uint8 levels of one picture; column: its (P,) parameters."""
        colours = [self.sample(raster, column, across, down) for across, down in raster.offsets()]
        mean = sum(colours[1:], start=colours[0]) / self.precision(len(colours))
        return np.asarray(np.floor(self.precision(255.0) * mean)).astype(np.uint8)

    def sample(self, raster: Raster, column: npt.NDArray[np.float32], across: float, down: float) -> npt.NDArray[Any]:
        """(3, H, W) colours in [0, 1] of one subsample of each pixel."""
        real = self.precision
        parameters = {name: self.number(value) for name, value in zip(raster.names, column, strict=True)}
        formula, colouring = raster.formula, raster.colouring
        with np.errstate(all="ignore"):
            x, y = plane(raster, parameters, across, down, real, self.number)
            zr, zi, cr, ci = (real(1.0) * part + (x - x) for part in call(formula.start, parameters, x=x, y=y))
            pr, pi = zr, zi
            alive = np.ones(x.shape, bool)
            count: npt.NDArray[Any] = np.zeros(x.shape, real)
            kept = {name: np.full(x.shape, real(first)) for name, first in colouring.accumulators.items()}
            for n in range(raster.iterations):
                new_r, new_i = call(
                    formula.step, parameters, zr=zr, zi=zi, cr=cr, ci=ci, pr=pr, pi=pi, n=real(n)
                )  # fmt: skip
                pr, pi = np.where(alive, zr, pr), np.where(alive, zi, pi)
                zr, zi = np.where(alive, new_r, zr), np.where(alive, new_i, zi)
                if colouring.observe:
                    goal_r, goal_i = formula.limit or (pr, pi)
                    seen = call(
                        colouring.observe, {**parameters, **kept}, zr=zr, zi=zi, pr=pr, pi=pi,
                        goal_r=goal_r, goal_i=goal_i, n=real(n),
                    )  # fmt: skip
                    seen = seen if isinstance(seen, tuple) else (seen,)
                    kept = {name: np.where(alive, new, kept[name]) for name, new in zip(kept, seen, strict=True)}
                inside = ~stopped(raster, zr, zi, pr, pi)
                count += alive & inside
                if not raster.runs_through:
                    alive &= inside
            colours = call(
                colouring.paint, {**parameters, **kept}, count=self.number(count),
                inside=(count == raster.iterations).astype(real), zr=zr, zi=zi, pr=pr, pi=pi,
                iterations=self.number(raster.iterations), radius=self.number(raster.radius),
                degree=self.number(formula.degree), tolerance=self.number(formula.tolerance),
                converges=self.number(raster.converges),
            )  # fmt: skip
            shown = np.stack([channel + (x - x) for channel in colours])
            return np.minimum(np.maximum(np.where(np.isnan(shown), real(0.0), shown), real(0.0)), real(1.0))


def plane(
    raster: Raster, parameters: Mapping[str, Any], across: float, down: float, real: type, number: Callable[[Any], Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(H, W) coordinates of each pixel's subsample in the formula's plane."""
    u0, u_column, u_row, v0, v_column, v_row = (number(value) for value in raster.grid())
    columns = np.arange(raster.width, dtype=real)[None, :] + number(across)
    rows = np.arange(raster.height, dtype=real)[:, None] + number(down)
    u = u0 + u_column * columns + u_row * rows
    v = v0 + v_column * columns + v_row * rows
    return view_to_plane(
        u, v, parameters["centre_x"], parameters["centre_y"], parameters["half_width"], parameters["rotation"]
    )


def view_to_plane(u: Any, v: Any, centre_x: Any, centre_y: Any, half_width: Any, rotation: Any) -> tuple[Any, Any]:
    """From the view, [-1, 1] across, to the plane; written in the dialect, used by every renderer."""
    right = half_width * cos(rotation)
    up = half_width * sin(rotation)
    return centre_x + u * right - v * up, centre_y + u * up + v * right


def stopped(raster: Raster, zr: Any, zi: Any, pr: Any, pi: Any) -> npt.NDArray[np.bool_]:
    """Where an orbit has left the disk of `radius`, or has converged; NaN has left."""
    formula = raster.formula
    ends = np.zeros(zr.shape, bool)
    if formula.stop != "converge":
        ends |= ~(zr * zr + zi * zi < raster.radius**2)
    if formula.stop in ("converge", "either"):
        goal_r, goal_i = formula.limit or (pr, pi)
        ends |= (zr - goal_r) ** 2 + (zi - goal_i) ** 2 < formula.tolerance**2
    return ends


def call(function: Callable[..., Any], parameters: Mapping[str, Any], **state: Any) -> Any:
    """The function with the arguments that its signature asks for by name."""
    asked = inspect.signature(function).parameters
    return function(**{name: state[name] if name in state else parameters[name] for name in asked})
