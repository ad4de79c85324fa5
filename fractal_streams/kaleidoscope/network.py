"""Networks that are fitted to the identity: their shape, the range of their outputs, and their first weights.

H. Shrivastava, "Generative Kaleidoscopic Networks", arXiv:2402.11793: a deep ReLU network with a bounded head, fitted
to f(x) = x on a set of points, maps whole regions to those points; applied again and again it takes noise to them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError, unknown_name
from fractal_streams.spec import one_of, whole

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Tensors = dict[str, Float32]
"""Name to weights, the network of the bank first: "layers.0.weight" is (M, out, in), "layers.0.bias" (M, out)."""

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "tanh", "sin", "identity")
HEADS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "linear": (-1.0, 1.0)}
"""The range of values by the activation of the last layer; a linear head has none of its own."""
INITS = ("torch", "he", "he_torch_bias")
KINDS = ("mlp", "unet", "bottleneck")
LEAK = 0.01
MAX_WIDTH, MAX_LAYERS, MAX_VALUES = 2**16, 256, 2**20


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: its input and output have the same shape and range.

    kind: "mlp"; "unet" and "bottleneck" are convolutional, from diffusers.
    shape: (D,) of points, (C, H, W) of pictures with 1 or 3 channels.
    hidden: units of each hidden layer; channels of the first level of convolutional kinds.
    n_linear: linear layers, the head's among them: n_linear - 1 hidden ones, 2 to 256. Levels of convolutional kinds.
    activation: after each layer but the last: one of "relu", "leaky_relu", "gelu", "silu", "tanh", "sin", "identity".
        Convolutional kinds take "relu", "gelu" and "silu".
    head: after the last layer: "tanh" (values in [-1, 1]), "sigmoid" ([0, 1]) or "linear" (about [-1, 1]).
    init: "torch", uniform up to 1 / sqrt(inputs) for weights and biases; "he", normal with variance 2 / inputs and no
        bias; "he_torch_bias". Of "mlp" alone.
    data_scale: how much of the range, about its middle, the data fill, in (0, 1]: bounded heads can't reach its ends.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> network = Network(shape=(1, 28, 28), hidden=500, n_linear=11)
        >>> network.size, network.parameters, network.range
        (784, 3039784, (-1.0, 1.0))
    """

    shape: tuple[int, ...]
    kind: Literal["mlp", "unet", "bottleneck"] = "mlp"
    hidden: int = 256
    n_linear: int = 5
    activation: str = "relu"
    head: Literal["tanh", "sigmoid", "linear"] = "tanh"
    init: Literal["torch", "he", "he_torch_bias"] = "torch"
    data_scale: float = 0.8

    def __post_init__(self) -> None:
        if isinstance(self.kind, str) and self.kind.lower() in ("cnn", "transformer"):
            raise InvalidValueError(
                f"kind={self.kind!r} is not offered: without a bottleneck it learns the identity pixel by pixel, also "
                f"beside the data, and iterating it leads nowhere; use 'mlp', 'unet' with noise, or 'bottleneck'"
            )
        one_of(self.kind, "kind", KINDS)
        one_of(self.activation, "activation", ACTIVATIONS if self.kind == "mlp" else ("relu", "gelu", "silu"))
        one_of(self.head, "head", tuple(HEADS))
        one_of(self.init, "init", INITS)
        shape = (self.shape,) if isinstance(self.shape, int) else self.shape
        if not isinstance(shape, tuple | list) or len(shape) not in (1, 3):
            raise InvalidValueError(f"shape must be (D,) or (C, H, W), got {self.shape!r}")
        made: dict[str, Any] = {
            "shape": tuple(whole(edge, "shape", 1, MAX_VALUES, "values along an axis") for edge in shape),
            "hidden": whole(self.hidden, "hidden", 1, MAX_WIDTH, "units"),
            "n_linear": whole(self.n_linear, "n_linear", 2, MAX_LAYERS, "linear layers"),
        }
        if len(shape) == 3 and made["shape"][0] not in (1, 3):
            raise InvalidValueError(f"shape: pictures have 1 or 3 channels, got {made['shape']}")
        if self.kind != "mlp" and len(shape) != 3:
            raise InvalidValueError(f"kind={self.kind!r} takes pictures (C, H, W), got shape {made['shape']}")
        if math.prod(made["shape"]) > MAX_VALUES:
            raise InvalidValueError(f"shape must have at most {MAX_VALUES} values, got {made['shape']}")
        scale = self.data_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 < scale <= 1.0:
            raise InvalidValueError(f"data_scale must lie in (0, 1], got {scale!r}")
        made["data_scale"] = float(scale)
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def size(self) -> int:
        """D: values of an input."""
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether inputs are pictures (C, H, W)."""
        return len(self.shape) == 3

    @property
    def range(self) -> tuple[float, float]:
        """(low, high) of the values."""
        return HEADS[self.head]

    @property
    def span(self) -> float:
        """high - low."""
        return self.range[1] - self.range[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs of each linear layer of an "mlp", and the outputs of the last."""
        return (self.size, *(self.hidden for _ in range(self.n_linear - 1)), self.size)

    @property
    def parameters(self) -> int:
        """Weights and biases of an "mlp"."""
        return sum(out * (into + 1) for into, out in zip(self.widths, self.widths[1:], strict=False))

    def values_of(self, data: npt.NDArray[Any]) -> Float32:
        """(..., D) float32 values of data as the network sees them, shrunk by `data_scale`.

        Args:
            data: (..., *shape) uint8 levels of pictures, or floats in the network's range.

        Raises:
            InvalidValueError: another shape, or whole numbers that aren't uint8.
        """
        low, high = self.range
        if data.shape[-len(self.shape) :] != self.shape or (data.dtype != np.uint8 and data.dtype.kind != "f"):
            raise InvalidValueError(
                f"data must be (..., {', '.join(map(str, self.shape))}) uint8 levels, or floats in "
                f"[{low:g}, {high:g}], got {data.dtype} of shape {data.shape}"
            )
        flat = np.asarray(data).reshape(*data.shape[: data.ndim - len(self.shape)], self.size)
        values = low + flat * ((high - low) / 255.0) if data.dtype == np.uint8 else flat.astype(np.float64)
        middle = 0.5 * (low + high)
        return np.asarray(middle + self.data_scale * (values - middle), np.float32)

    def data_of(self, values: npt.NDArray[Any]) -> Float32:
        """(..., *shape) float32 in the network's range: `values_of` undone, for points."""
        middle = 0.5 * sum(self.range)
        data = middle + (np.asarray(values, np.float64) - middle) / self.data_scale
        return np.asarray(data.reshape(*values.shape[:-1], *self.shape), np.float32)

    def levels_of(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """(..., C, H, W) uint8 levels of (..., D) values, rounded to the nearest; beyond the range they are clipped.

        What is no number has level 0.
        """
        low, high = self.range
        with np.errstate(over="ignore"):
            share = (self.data_of(values) - np.float32(low)) * np.float32(255.0 / (high - low))
        return np.asarray(np.clip(np.rint(np.nan_to_num(share, nan=0.0)), 0.0, 255.0), np.uint8)

    def first_weights(self, models: int = 1, seed: int = 0) -> Tensors:
        """The weights that `models` networks of a bank begin with; network m's depend on (network, seed, m) alone."""
        if self.kind != "mlp":
            raise InvalidValueError(f"first_weights are of kind='mlp', got {self.kind!r}")
        models = whole(models, "models", 1, MAX_WIDTH, "networks")
        tensors: Tensors = {}
        for layer, (into, out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            limit = 1.0 / math.sqrt(into)
            weights = np.empty((models, out, into), np.float32)
            biases = np.zeros((models, out), np.float32)
            for model in range(models):
                draw = [rng.key("kaleidoscope-init", seed, model, layer, name) for name in ("weight", "bias")]
                if self.init == "torch":
                    weights[model] = ((2.0 * units(out * into, draw[0]) - 1.0) * limit).reshape(out, into)
                else:
                    weights[model] = (normals(out * into, draw[0]) * math.sqrt(2.0 / into)).reshape(out, into)
                if self.init != "he":
                    biases[model] = (2.0 * units(out, draw[1]) - 1.0) * limit
            tensors[f"layers.{layer}.weight"], tensors[f"layers.{layer}.bias"] = weights, biases
        return tensors

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON holds; `Network(**values)` undoes it."""
        return {item.name: list(v) if isinstance(v := getattr(self, item.name), tuple) else v for item in fields(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Network:
        """The network that `to_dict` told of.

        Raises:
            InvalidValueError, UnknownNameError: not one.
        """
        if not isinstance(values, dict) or "shape" not in values:
            raise InvalidValueError(f"not a network: {json.dumps(values, default=str)[:200]}")
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("field of a network", name, known)
        return cls(**values)

    def replace(self, **changes: Any) -> Network:
        """A copy with other values."""
        return replace(self, **changes)


def units(count: int, key: tuple[int, int]) -> Float64:
    """(count,) float64 in (0, 1): the words of Philox under a key, one after another, of 32 bits each."""
    words = rng.words(np.arange(-(-count // 4)), key)
    return ((np.stack(words, axis=1).reshape(-1)[:count].astype(np.float64)) + 0.5) * 2.0**-32


def normals(count: int, key: tuple[int, int]) -> Float64:
    """(count,) float64, standard normal by Box and Muller's transform of neighbouring units."""
    drawn = units(2 * (-(-count // 2)), key).reshape(-1, 2)
    radius, turn = np.sqrt(-2.0 * np.log(drawn[:, 0])), 2.0 * math.pi * drawn[:, 1]
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1).reshape(-1)[:count]
