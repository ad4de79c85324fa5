"""Which engine applies the networks of a kaleidoscope on a device."""

from __future__ import annotations

import numpy as np

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.spec import one_of

PRECISIONS = ("float32", "bfloat16")


def engine_of(fitted: Kaleidoscope, engine: Engine | None, device: str = "auto") -> Engine:
    """The engine that is given, if it applies these networks; else one in float32 on the device.

    Raises:
        InvalidValueError: it is of other networks. Others as `open_engine`.
    """
    if engine is None:
        return open_engine(fitted, device)
    other = engine.fitted
    arrays = [(fitted.tensors, other.tensors), (vars(fitted.sources), vars(other.sources))]
    same = (
        fitted is other
        or fitted.network == other.network
        and all(
            mine is theirs[name] or np.array_equal(mine, theirs[name])
            for own, theirs in arrays
            for name, mine in own.items()
            if isinstance(mine, np.ndarray)
        )
    )
    if not same:
        raise InvalidValueError(
            "the engine applies other networks, or has other sources, than this kaleidoscope: open_engine(fitted) "
            "opens one of its own, and engine=None does it for you"
        )
    return engine


def open_engine(fitted: Kaleidoscope, device: str = "auto", precision: str = "float32") -> Engine:
    """The engine of a device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32" or "bfloat16", of weights, states and products; sums are float32. It changes where some
            chains end.

    Raises:
        InvalidValueError: not one of them. DeviceError: no such device. MissingExtraError: torch is not installed.
    """
    one_of(precision, "precision", PRECISIONS)
    if not isinstance(fitted, Kaleidoscope):
        raise InvalidValueError(f"an engine applies a Kaleidoscope, got {type(fitted).__name__}: open_kaleidoscope")
    chosen = resolve_device(device)
    from fractal_streams.kaleidoscope.torch_engine import TorchEngine

    if chosen == "cpu" or fitted.network.kind != "mlp":
        return TorchEngine(fitted, chosen, precision)
    from fractal_streams.kaleidoscope.triton_engine import TritonEngine

    return TritonEngine(fitted, chosen, precision)
