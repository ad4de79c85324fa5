"""Devices: explicit is final, only "auto" chooses."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from fractal_streams import device
from fractal_streams.backend import backend_of
from fractal_streams.device import refuse_worker, resolve_device
from fractal_streams.errors import DeviceError, InvalidValueError


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine with so many GPUs, as torch would see it; the second is the current one."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return int(request.param)


def test_auto_takes_the_current_gpu_where_there_is_one(gpus: int) -> None:
    assert resolve_device("auto") == ("cuda:1" if gpus else "cpu")
    assert resolve_device("cpu") == "cpu"


def test_an_explicit_gpu_is_that_gpu_or_an_error(gpus: int) -> None:
    if gpus:
        assert resolve_device("cuda") == "cuda:1"
        assert resolve_device("cuda:0") == "cuda:0"
        with pytest.raises(DeviceError, match=r"'cuda:2' was asked for, but this machine has GPUs 0 to 1"):
            resolve_device("cuda:2")
    else:
        for asked in ("cuda", "cuda:0"):
            with pytest.raises(DeviceError, match=rf"'{asked}' was asked for, .*pass device='cpu' or 'auto'"):
                resolve_device(asked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "CUDA", "", "cpu:0", None, 0])
def test_what_is_no_device_is_refused(asked: Any) -> None:
    with pytest.raises(InvalidValueError, match="'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device(asked)


def test_a_torch_device_is_a_device(gpus: int) -> None:
    import torch

    assert resolve_device(torch.device("cpu")) == "cpu"  # type: ignore[arg-type]
    if gpus:
        assert resolve_device(torch.device("cuda", 0)) == "cuda:0"  # type: ignore[arg-type]


def test_without_torch_auto_is_the_cpu_and_a_gpu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(DeviceError, match=r"pip install 'fractal-streams\[torch\]'"):
        resolve_device("cuda")


def test_a_worker_process_renders_on_the_cpu_and_refuses_a_gpu(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.data

    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert resolve_device("auto") == "cpu"
    refuse_worker("cpu")
    with pytest.raises(DeviceError, match=r"num_workers=0.*device='cpu'"):
        refuse_worker("cuda:0")
    if gpus:
        with pytest.raises(DeviceError, match="num_workers=0"):
            resolve_device("cuda")


def test_a_process_that_is_no_dataloader_worker_may_use_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    refuse_worker("cuda:0")


def test_a_renderer_for_a_gpu_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="renders on cuda:0: pass device='cpu'"):
        backend_of("cuda:0", renderer=object())
