"""Checkpoints: what is written is read, to the bit; they are there whole or not at all; what is none is refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

from fractal_streams.recipes import checkpoint
from hypothesis import given, settings, strategies as st
from safetensors import SafetensorError
from small_training import SMALL, noisy, pictures, plain, same, small_loop, weights
from torch import Tensor, nn

from fractal_streams.errors import InvalidValueError

KEYS = st.text(max_size=3) | st.integers(-3, 2**40)
PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5)
TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]


def tensor(dtype: torch.dtype, shape: list[int], turned: bool) -> Tensor:
    """A part of a larger tensor, or its transpose."""
    numbers = torch.arange(4 ** len(shape)).reshape([4] * len(shape)).to(dtype)[tuple(map(slice, shape))]
    return numbers.T if turned and len(shape) == 2 else numbers


TENSORS = st.builds(tensor, st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3), st.booleans())
VALUES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    """Whether values are of one type and equal, tensors with their type and, if they are dense, layout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        laid = one.to("cpu", copy=True).stride()
        return one.dtype == other.dtype and bool((one == other).all()) and laid == other.stride()
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@given(st.dictionaries(st.sampled_from(["network", "optimizer", "loop"]), VALUES, max_size=3))
@settings(max_examples=25, deadline=None)
def test_values_are_read_as_they_were_written(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("values")
    place = checkpoint.save(folder, 3, values)
    assert place == checkpoint.latest(folder) == folder / "step-000000003"
    assert equal(values, checkpoint.load(place))


def test_alike_names_stay_apart() -> None:
    values = {"a": {"x/y": torch.tensor(1), "x": {"y": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}}
    tensors: dict[str, Tensor] = {}
    checkpoint.packed(values, tensors, "")
    assert [int(each) for each in tensors.values()] == [1, 2, 3, 4]


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    for step in (2, 10, 10, 10, 1000000000):
        place = checkpoint.save(tmp_path, step, {"values": {"step": step, "tensor": torch.tensor(step)}})
        assert list(tmp_path.iterdir()) == [place] == [checkpoint.latest(tmp_path)]
        assert int(checkpoint.load(place)["values"]["tensor"]) == step


def test_what_a_killed_process_left_is_passed_over_and_removed(tmp_path: Path) -> None:
    whole = checkpoint.save(tmp_path, 5, {"values": 5})
    (tmp_path / ".step-000000009-123").mkdir()
    (tmp_path / ".step-000000009-123" / "values.json").write_text("{")
    (tmp_path / "step-000000007").mkdir()
    assert checkpoint.latest(tmp_path) == whole
    later = checkpoint.save(tmp_path, 8, {"values": 8})
    assert list(tmp_path.iterdir()) == [later]


@pytest.mark.parametrize("failing", ["save_file", "value"])
def test_a_save_that_fails_leaves_what_was_there(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.save(tmp_path, 5, {"values": torch.ones(3)})
    if failing == "save_file":

        def full(*arguments: object) -> None:
            raise SafetensorError("I/O error: no space left on device")  # so its library tells a full disk

        monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError if failing == "save_file" else InvalidValueError, match="no space left|is a set"):
        checkpoint.save(tmp_path, 5, {"values": torch.zeros(3), "odd": {1, 2} if failing == "value" else None})
    assert list(tmp_path.iterdir()) == [before]
    assert torch.equal(checkpoint.load(before)["values"], torch.ones(3))


@pytest.mark.parametrize(
    "value, said",
    [
        ({1, 2}, "optimizer/state is a set"),
        (print, "is a builtin"),
        ({(1, 2): 3}, "names are texts and numbers"),
    ],
)
def test_other_values_are_refused_by_their_place(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=said):
        checkpoint.save(tmp_path, 1, {"optimizer": {"state": value}})
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        place = checkpoint.save(tmp_path, 1, {"values": torch.ones(1)})
    finally:
        os.umask(old)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for record in (loop := small_loop()):
        if record.step == 4:
            loop.save(folder)
            break
    return folder


def copy(saved: Path, folder: Path) -> Path:
    """A copy of a checkpoint that may be damaged."""
    place = folder / "step-000000004"
    place.mkdir(parents=True)
    for path in (saved / place.name).iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


DAMAGE = {
    "cut short": ("network.safetensors", lambda held: held[:-40]),
    "empty": ("optimizer.safetensors", lambda held: b""),
    "no JSON": ("values.json", lambda held: held[:-3]),
    "other JSON": ("values.json", lambda held: b"[1, 2]"),
    "nameless": ("values.json", lambda held: b'{"loop": {"dict": []}}'),
    "no tensor": ("values.json", lambda held: held.replace(b"exp_avg", b"exp_agv")),
}


@pytest.mark.parametrize("name, change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(name: str, change: Any, saved: Path, tmp_path: Path) -> None:
    place = copy(saved, tmp_path)
    (place / name).write_bytes(change((place / name).read_bytes()))
    with pytest.raises(InvalidValueError, match="step-000000004 is"):
        small_loop().resume(tmp_path)


@pytest.mark.parametrize("name", ["network.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_without_a_file_is_refused_by_it(name: str, saved: Path, tmp_path: Path) -> None:
    (copy(saved, tmp_path) / name).unlink()
    with pytest.raises(InvalidValueError, match=f"step-000000004 is no .*{name}"):
        small_loop().resume(tmp_path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert not small_loop().resume(tmp_path) and not small_loop().resume(tmp_path / "nowhere")


def wider() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 17), nn.LayerNorm(17), nn.GELU(), nn.Linear(17, 10))


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"batch_size": 16}, "batch_size=8, not 16: ask for the same, or for another folder"),
        ({"num_steps": 13, "seed": 1}, "num_steps=12, not 13, seed=0, not 1"),
        ({"clip": 1.0}, "clip=None, not 1.0"),
        ({"stream": pictures(1)}, "stream"),
        ({"model": wider}, "another model or optimizer .*size mismatch"),
        ({"model": noisy}, "another model or optimizer .*Missing key"),
        (
            {"optimizer": lambda model: torch.optim.SGD([{"params": [each]} for each in model.parameters()], 0.1)},
            "group",
        ),
    ],
    ids=["batch", "several", "clip", "stream", "width", "model", "groups"],
)
def test_a_checkpoint_of_something_else_is_refused(asked: dict[str, Any], said: str, saved: Path) -> None:
    loop = small_loop(**asked)
    with pytest.raises(InvalidValueError, match=said):
        loop.resume(saved)


def test_settings_that_change_nothing_may_change(saved: Path) -> None:
    loop = small_loop(record_every=1, eval_once_every=3, checkpoint_every=2, workers=0, trackers=("tensorboard",))
    assert loop.resume(saved) and loop.step == 4 and loop.seconds > 0
    straight = small_loop()
    assert [record.step for record in straight] == [4, 8, 12] and len(list(loop)) == 8
    assert same(weights(loop), weights(straight))


def test_an_optimizer_that_keeps_an_object_is_refused_when_saved(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "history": {1.5}}

    loop = small_loop(plain, lambda model: Odd(model.parameters(), 0.1))
    next(iter(loop))
    with pytest.raises(InvalidValueError, match="optimizer/history is a set"):
        loop.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_tells_the_settings_and_the_place_in_the_stream(saved: Path) -> None:
    told = checkpoint.load(saved / "step-000000004")["loop"]
    decisive = json.loads(told["settings"])
    assert told["step"] == 4 and told["loader"]["position"] == 32 and told["loader"]["stream"] == pictures().digest()
    assert decisive["batch_size"] == SMALL["batch_size"] and "device" not in decisive and "record_every" not in decisive
