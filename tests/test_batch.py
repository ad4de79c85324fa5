"""Batches: what they hold, and the same memory as tensors."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from fractal_streams.batch import Batch, as_tensor
from fractal_streams.errors import MissingExtraError


def batch(dtype: str = "uint8") -> Batch:
    images = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).astype(dtype)
    return Batch(np.array([5, 6]), images, np.array([1, 0]), {"power": np.array([0.5, 1.5], np.float32)})


def test_length_is_the_number_of_samples() -> None:
    assert len(batch()) == 2


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_tensors_share_the_memory(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    given = batch(dtype)
    tensors = given.torch()
    assert tensors.images.dtype == getattr(torch, dtype)
    assert tensors.index.dtype == tensors.labels.dtype == torch.int64
    given.images[1, 2, 3, 3] = 7
    assert tensors.images[1, 2, 3, 3].item() == 7
    assert tensors.latents["power"].tolist() == [0.5, 1.5]
    assert tensors.torch().images.data_ptr() == tensors.images.data_ptr()


def test_uint16_bits_become_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    bits = np.array([0x3F80, 0xC000, 0x0000], np.uint16)
    tensor = as_tensor(bits)
    assert tensor.dtype == torch.bfloat16 and tensor.tolist() == [1.0, -2.0, 0.0]


def test_without_torch_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ModuleNotFoundError(name)
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"torch is not installed.*pip install 'fractal-streams\[torch\]'"):
        batch().torch()
