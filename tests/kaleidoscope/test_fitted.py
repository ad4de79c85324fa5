"""The file of a kaleidoscope: what is written is read, and nothing else is ever taken for it."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractal_streams.errors import FractalStreamsError, InvalidValueError, VersionError
from fractal_streams.kaleidoscope import fitted as kept_in
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope, Sources, WeightFileError, open_kaleidoscope
from fractal_streams.kaleidoscope.network import Network

pytest.importorskip("safetensors")

NETWORK = Network(shape=(2,), hidden=3, n_linear=3)


def made(**changes: Any) -> Kaleidoscope:
    """Two networks on three points each, with five attractors; nothing is fitted."""
    rng = np.random.default_rng(0)
    sources = Sources(
        data=rng.uniform(-1.0, 1.0, (2, 3, 2)).astype(np.float32), labels=np.int64([[0, 1, 1], [1, 0, 0]]),
        titles=("one", "two"), origin={"kind": "points", "of": [1, 2.5, None]},
    )  # fmt: skip
    attractors = Attractors(
        states=rng.uniform(-1.0, 1.0, (5, 2)).astype(np.float32), model=np.int32([0, 0, 0, 1, 1]),
        source=np.int32([0, 1, 2, 2, 0]), distance=np.float32([0.0, 0.1, 0.2, 0.3, 0.4]),
        share=np.float32([0.5, 0.25, 0.25, 0.75, 0.25]),
    )  # fmt: skip
    whole: dict[str, Any] = {
        "network": NETWORK, "tensors": NETWORK.first_weights(2, seed=1), "sources": sources, "attractors": attractors,
        "training": {"steps": 5, "loss": [0.1, 0.2]}, "quality": {"networks": [{"flags": []}], "summary": None},
    }  # fmt: skip
    return Kaleidoscope(**{**whole, **changes})


def arrays_of(fitted: Kaleidoscope) -> dict[str, Any]:
    table = {} if fitted.attractors is None else vars(fitted.attractors)
    return {**fitted.tensors, "data": fitted.sources.data, "labels": fitted.sources.labels, **table}


def written(path: Path, card: Any, arrays: dict[str, Any]) -> Path:
    """A file with any card and any tensors."""
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"card": card if isinstance(card, str) else json.dumps(card)})
    return path


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["card"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made().save(tmp_path / "kept.safetensors")


# --- round trip -----------------------------------------------------------------------------------------------------


def test_everything_comes_back(tmp_path: Path) -> None:
    for fitted in (made(), made(attractors=None, quality=None), made(attractors=none_of(made()))):
        again = open_kaleidoscope(fitted.save(tmp_path / "deeper" / "kept.safetensors"))
        assert again.card() == fitted.card() and again.network == fitted.network
        before, after = arrays_of(fitted), arrays_of(again)
        assert before.keys() == after.keys()
        for name, array in before.items():
            assert after[name].dtype == array.dtype and after[name].tobytes() == array.tobytes(), name
        assert again.sources.titles == ("one", "two") and again.sources.origin == fitted.sources.origin


def none_of(fitted: Kaleidoscope) -> Attractors:
    """A table of no attractors: what is found where no chain rests."""
    assert fitted.attractors is not None
    return Attractors(**{name: array[:0] for name, array in vars(fitted.attractors).items()})


def test_a_write_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def cut(tensors: Any, place: Path, metadata: Any) -> None:
        place.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(kept_in.safetensors_numpy(), "save_file", cut)
    with pytest.raises(OSError, match="no space left"):
        made(quality=None).save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_names_of_files_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"kept as \.safetensors, got .*weights\.pt"):
        made().save(tmp_path / "weights.pt")
    assert not list(tmp_path.iterdir())


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_names_what_decides_samples() -> None:
    fitted = made()
    assert fitted.attractors is not None
    assert made().fingerprint == fitted.fingerprint and len(fitted.fingerprint) == 32
    turned = {name: np.asfortranarray(array) for name, array in reversed(fitted.tensors.items())}
    assert fitted.replace(tensors=turned).fingerprint == fitted.fingerprint
    told = {"training": {}, "quality": None, "sources": replace(fitted.sources, titles=("a", "b"), origin={})}
    assert fitted.replace(**told).fingerprint == fitted.fingerprint
    changed = [fitted.replace(attractors=None), fitted.one(0), fitted.one(1)]
    changed += [fitted.replace(network=NETWORK.replace(head="linear"))]
    for name in fitted.tensors:
        moved = fitted.tensors[name].copy()
        moved.flat[-1] = np.nextafter(moved.flat[-1], np.float32(2.0))
        changed.append(fitted.replace(tensors={**fitted.tensors, name: moved}))
    for name, array in (("data", fitted.sources.data[::-1].copy()), ("labels", fitted.sources.labels[::-1].copy())):
        changed.append(fitted.replace(sources=replace(fitted.sources, **{name: array})))
    for name in ("states", "model", "source", "distance", "share"):
        table = replace(fitted.attractors, **{name: getattr(fitted.attractors, name)[::-1].copy()})
        changed.append(fitted.replace(attractors=table))
    prints = {fitted.fingerprint, *(each.fingerprint for each in changed)}
    assert len(prints) == 1 + len(changed)


# --- refused files --------------------------------------------------------------------------------------------------


def test_what_is_not_there_names_the_command_that_makes_it(tmp_path: Path) -> None:
    for place in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightFileError, match=r"no file at .*kaleidoscope fit"):
            open_kaleidoscope(place)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_never_read(protocol: int, tmp_path: Path) -> None:
    place = tmp_path / "kept.safetensors"
    place.write_bytes(pickle.dumps(Trap(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(WeightFileError, match="looks like a pickle" if protocol > 1 else "no safetensors file"):
        open_kaleidoscope(place)
    np.savez(tmp_path / "zip.npz", a=np.zeros(3))
    (tmp_path / "zip.npz").rename(place)
    with pytest.raises(WeightFileError, match="looks like a pickle, which is never read"):
        open_kaleidoscope(place)
    assert not (tmp_path / "ran").exists()


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def test_files_cut_anywhere_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightFileError, match="no safetensors file, or a damaged one") as caught:
            open_kaleidoscope(path)
        assert "pickle" not in str(caught.value)


def test_a_changed_bit_of_any_tensor_is_found(path: Path) -> None:
    card, arrays = parts_of(path)
    for name, array in arrays.items():
        changed = array.copy()
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        with pytest.raises(WeightFileError, match="damaged"):
            open_kaleidoscope(written(path, card, {**arrays, name: changed}))
    written(path, card, arrays)
    assert open_kaleidoscope(path).fingerprint == card["fingerprint"]


def test_safetensors_of_something_else_are_refused_before_their_tensors_are_read(tmp_path: Path) -> None:
    place = tmp_path / "kept.safetensors"
    for card in ("null", "[]", "7", json.dumps({"format": "another"}), "{}"):
        with pytest.raises(WeightFileError, match="something else"):
            open_kaleidoscope(written(place, card, {"a": np.zeros(3, np.float32)}))
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    place.write_bytes(struct.pack("<Q", len(header)) + header + b"\1")
    with pytest.raises(WeightFileError, match="something else"):
        open_kaleidoscope(place)


@pytest.mark.parametrize("kind, size", [("F8_E4M3", 1), ("BF16", 2)])
def test_numbers_that_numpy_has_no_name_for_are_refused(kind: str, size: int, path: Path) -> None:
    card, _ = parts_of(path)
    header = {"__metadata__": {"card": json.dumps(card)}, "x": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + bytes(size))
    with pytest.raises(WeightFileError, match="damaged"):
        open_kaleidoscope(path)


@pytest.mark.parametrize("card", ["[" * 100_000, "9" * 5000, "{", ""])
def test_cards_that_are_no_json_are_refused(card: str, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="damaged"):
        open_kaleidoscope(written(tmp_path / "kept.safetensors", card, {"a": np.zeros(1, np.float32)}))


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.0, True, None])
def test_other_versions_are_refused(version: Any, path: Path) -> None:
    card, arrays = parts_of(path)
    with pytest.raises(VersionError, match=rf"version {version!r}, this package reads 1 to 1: upgrade"):
        open_kaleidoscope(written(path, {**card, "version": version}, arrays))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"titles": 5}, "titles must be"), ({"titles": [1, 2]}, "titles must be"), ({"titles": ["one"]}, "labels must"),
        ({"titles": "one, two"}, "labels must"), ({"titles": {"one": 0, "two": 1}}, "titles must be"),
        ({"origin": 5}, "origin must be a mapping"), ({"origin": None}, "origin must be a mapping"),
        ({"training": [0.1]}, "training must be a mapping"), ({"quality": "good"}, "quality must be a mapping"),
        ({"network": None}, "not a network"), ({"network": []}, "not a network"), ({"network": {}}, "not a network"),
        ({"network": {"shape": 5}}, "sources have shape"), ({"network": {"shape": [2], "depth": 1}}, "unknown field"),
        ({"network": {"shape": [[2]]}}, "shape must be"), ({"network": {"shape": {"a": 2}}}, "shape must be"),
        ({"network": {"shape": [2], "data_scale": 1e400}}, "data_scale must"),
        ({"network": {"shape": [2], "hidden": 4, "n_linear": 3}}, "must be float32 of shape"),
        ({"network": {"shape": [2], "hidden": 3, "n_linear": 2}}, "weights are"),
        ({"fingerprint": None}, "card says None"), ({"fingerprint": "0" * 32}, "changed"),
    ],
)  # fmt: skip
def test_odd_cards_are_refused_with_the_reason(changes: dict[str, Any], words: str, path: Path) -> None:
    card, arrays = parts_of(path)
    with pytest.raises(WeightFileError, match=f"damaged.*{words}"):
        open_kaleidoscope(written(path, {**card, **changes}, arrays))
    for name in changes:
        if name != "fingerprint":
            less = {key: value for key, value in card.items() if key != name}
            with pytest.raises(WeightFileError, match=f"damaged: it has no '{name}'"):
                open_kaleidoscope(written(path, less, arrays))


def changed(name: str, change: Callable[[Any], Any]) -> Any:
    return lambda arrays: {**arrays, name: np.ascontiguousarray(change(arrays[name]))}


@pytest.mark.parametrize(
    "change, words",
    [
        (changed("attractors.model", lambda a: a + 1), r"attractors\.model must lie in 0 to 1, got 1 to 2"),
        (changed("attractors.model", lambda a: a - 1), r"attractors\.model must lie in 0 to 1, got -1 to 0"),
        (changed("attractors.source", lambda a: a + 1), r"attractors\.source must lie in 0 to 2, got 1 to 3"),
        (changed("attractors.source", lambda a: a.astype(np.int64)), r"attractors\.source must be finite int32"),
        (changed("attractors.states", lambda a: a[:, :1]), r"attractors\.states must be .* shape \(5, 2\)"),
        (changed("attractors.states", lambda a: a * np.nan), r"attractors\.states must be finite"),
        (changed("attractors.states", lambda a: a[:4]), r"attractors\.model must be .* shape \(4,\)"),
        (changed("attractors.share", lambda a: a[:, None]), r"attractors\.share must be"),
        (changed("sources.data", lambda a: a * np.inf), "sources must be finite"),
        (changed("sources.data", lambda a: a[..., :1]), r"sources have shape \(1,\), and the network \(2,\)"),
        (changed("sources.data", lambda a: a.astype(np.float64)), "uint8 or float32, got float64"),
        (changed("sources.labels", lambda a: a + 1), "labels must lie in 0 to 1"),
        (changed("layers.0.weight", lambda a: a * np.nan), "layers.0.weight holds values that aren't finite"),
        (changed("layers.2.bias", lambda a: a[0]), r"layers\.2\.bias must be float32 of shape \(2, 2\)"),
        (lambda arrays: {n: a[:0] if n.startswith("layers") else a for n, a in arrays.items()}, "1 network and up"),
        (lambda arrays: {n: a for n, a in arrays.items() if n != "attractors.share"}, "share"),
        (lambda arrays: {n: a for n, a in arrays.items() if n != "sources.labels"}, "it has no 'sources.labels'"),
        (lambda arrays: {**arrays, "layers.9.bias": np.zeros(1, np.float32)}, "weights are"),
        (lambda arrays: {**arrays, "attractors.more": np.zeros(1, np.float32)}, "more"),
    ],
)  # fmt: skip
def test_odd_tensors_are_refused_though_the_fingerprint_fits(
    change: Any, words: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, arrays = parts_of(path)
    monkeypatch.setattr(Kaleidoscope, "fingerprint", card["fingerprint"])  # whoever changes tensors can change the card
    with pytest.raises(WeightFileError, match=f"damaged.*{words}"):
        open_kaleidoscope(written(path, card, change(arrays)))


# --- refused values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": [[[0.1]]]}, "NumPy arrays, got list"), ({"labels": [[0]]}, "NumPy arrays"),
        ({"data": np.float32([[[np.nan]]])}, "finite"), ({"titles": 5}, "titles must be"),
        ({"titles": ()}, "labels must"),
        ({"origin": {"folder": Path("a")}}, "origin must hold values of JSON"),
    ],
)  # fmt: skip
def test_sources_that_no_file_could_hold_are_refused(changes: Any, words: str) -> None:
    fine: dict[str, Any] = {"data": np.float32([[[0.5]]]), "labels": np.int64([[0]]), "titles": ["a"]}
    assert Sources(**fine).titles == ("a",)
    with pytest.raises(InvalidValueError, match=words):
        Sources(**{**fine, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tensors": {}}, "weights are"),
        ({"training": {"loss": np.float32(1.0)}}, "training must hold values of JSON"),
        ({"quality": {1, 2}}, "quality must be a mapping"), ({"attractors": {}}, "must be Attractors or None"),
        ({"tensors": NETWORK.first_weights(3)}, "sources are of 2 networks, the bank has 3"),
    ],
)  # fmt: skip
def test_kaleidoscopes_that_no_file_could_hold_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        made(**changes)


def test_convolutional_weights_are_of_one_network() -> None:
    network = Network(shape=(1, 8, 8), kind="unet", hidden=8, n_linear=2)
    sources = Sources(data=np.zeros((1, 1, 1, 8, 8), np.uint8), labels=np.zeros((1, 1), np.int64), titles=("a",))
    for array in (np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((), np.float32)):
        with pytest.raises(InvalidValueError, match="1 of other kinds"):
            Kaleidoscope(network=network, tensors={"module.a": array}, sources=sources)


@pytest.mark.parametrize("model", [-1, 2, 0.0, "0", None])
def test_networks_that_are_not_in_the_bank_are_refused(model: Any) -> None:
    with pytest.raises(FractalStreamsError, match="model must be a whole number from 0 to 1 of the bank"):
        made().one(model)
    assert made().one(np.int64(1)).models == 1  # type: ignore[arg-type]
