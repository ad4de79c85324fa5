"""Which engine applies the networks of a kaleidoscope on a device."""

from __future__ import annotations

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.spec import one_of

PRECISIONS = ("float32", "bfloat16")


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
