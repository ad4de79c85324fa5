"""What a stream gives: pictures with the index, class and parameters that they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import missing_extra


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples, as NumPy arrays from a CPU and as torch tensors from a GPU.

    index: (B,) int64, the sample's address in its stream.
    images: (B, 3, H, W), or (B, H, W, 3) if channels last; (B, T, 3, H, W) of clips. uint8 levels in
        [0, 255] or normalised floats; bfloat16 stands as its uint16 bits in NumPy.
    labels: (B,) int64, the class.
    latents: name to (B, ...), every parameter that was drawn: (B,) float32 ((B, T) of clips) where the stream does
        not say otherwise.
    """

    index: Any
    images: Any
    labels: Any
    latents: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def torch(self) -> Batch:
        """The same batch as torch tensors; shares memory with NumPy arrays."""
        return Batch(
            as_tensor(self.index), as_tensor(self.images), as_tensor(self.labels),
            {name: as_tensor(values) for name, values in self.latents.items()},
        )  # fmt: skip

    def numpy(self) -> Batch:
        """The same batch as NumPy arrays; copies from a GPU."""
        return Batch(
            as_array(self.index), as_array(self.images), as_array(self.labels),
            {name: as_array(values) for name, values in self.latents.items()},
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: a `Batch` without its first axis; index and label are ints."""

    index: int
    image: Any
    label: int
    latents: Mapping[str, Any]


def as_tensor(array: Any) -> Any:
    """A torch tensor of an array, without a copy; uint16 bits become bfloat16."""
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    if isinstance(array, torch.Tensor):
        return array
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Any) -> npt.NDArray[Any]:
    """A NumPy array of a tensor or array; bfloat16 becomes its uint16 bits."""
    if isinstance(tensor, np.ndarray):
        return tensor
    host = tensor.detach().cpu()
    if str(host.dtype) == "torch.bfloat16":
        import torch

        return np.asarray(host.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(host.numpy())


def as_type(values: Any, name: str) -> Any:
    """An array or tensor as another type of number, by its name; itself if it is of that type.

    Example:
        >>> as_type(np.arange(2, dtype=np.int32), "float64")
        array([0., 1.])
    """
    if isinstance(values, np.ndarray):
        return values.astype(name, copy=False)
    import torch

    return values.to(getattr(torch, name))
