"""Where half precision is not enough: exponentials, norms, Fourier transforms, differences of near equals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fractal_streams.errors import missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def widened(value: Any) -> Any:
    """float32 of a float16 or bfloat16 tensor, in a list or tuple too; anything else, and float64, as it is.

    Example:
        >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype, widened(3)
        (torch.float32, 3)
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return [widened(each) for each in value]
    return value


def full_precision(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """The function with its tensors at float32 or more and autocast off on their device."""

    @functools.wraps(function)
    def exact(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        with torch.autocast(device_of((*args, *kwargs.values())), enabled=False):
            return function(*map(widened, args), **{name: widened(each) for name, each in kwargs.items()})  # type: ignore[arg-type]

    return exact


def device_of(values: Any) -> str:
    """The kind of device of the first tensor among values and in their lists, "cpu" if there is none."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
            return device_of(value)
    return "cpu"
