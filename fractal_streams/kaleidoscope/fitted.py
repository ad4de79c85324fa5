"""A fitted kaleidoscope: networks, what they were fitted to, where their iterates end; and its file.

The file is safetensors: tensors, and a card of JSON in its metadata. Nothing in it is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import FractalStreamsError, InvalidValueError, VersionError, missing_extra
from fractal_streams.kaleidoscope.network import Float32, Network, Tensors
from fractal_streams.spec import names_of, whole

FILE_VERSION = 1
ENDING = ".safetensors"
FORMAT = "fractal-streams-kaleidoscope"


class WeightFileError(FractalStreamsError, ValueError):
    """A file of weights that is damaged, or not of a kaleidoscope."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sources:
    """What networks are fitted to.

    data: (S, N, *shape) uint8 levels of pictures, or float32 points in the network's range. S is 1 where all networks
        of a bank share them, else the number of networks.
    labels: (S, N) int64, the class of each.
    titles: the classes' names.
    origin: where they come from, as values that JSON holds: a stream's `describe` and its indices, a folder, ...
    """

    data: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    titles: tuple[str, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "titles", names_of(self.titles, "titles"))
        check_json(self.origin, "origin")
        if not isinstance(self.data, np.ndarray) or not isinstance(self.labels, np.ndarray):
            raise InvalidValueError(
                f"data and labels of sources are NumPy arrays, got {type(self.data).__name__} and "
                f"{type(self.labels).__name__}: `points` and `of_arrays` make sources of lists"
            )
        if self.data.ndim not in (3, 5) or self.data.dtype not in (np.uint8, np.float32) or not self.data.size:
            raise InvalidValueError(
                f"sources must be (S, N, D) or (S, N, C, H, W), uint8 or float32, got {self.data.dtype} of shape "
                f"{self.data.shape}"
            )
        if self.data.dtype == np.float32 and not np.isfinite(self.data).all():
            raise InvalidValueError("sources must be finite, and some of these aren't: leave them out")
        if self.labels.shape != self.data.shape[:2] or self.labels.dtype != np.int64:
            raise InvalidValueError(
                f"labels must be {self.data.shape[:2]} int64, got {self.labels.dtype} of shape {self.labels.shape}"
            )
        if not self.titles or self.labels.min() < 0 or self.labels.max() >= len(self.titles):
            raise InvalidValueError(
                f"labels must lie in 0 to {len(self.titles) - 1}, one of the {len(self.titles)} titles, "
                f"got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        """N."""
        return int(self.data.shape[1])

    def of_model(self, model: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """(N, *shape) data and (N,) labels of one network of the bank."""
        row = model if len(self.data) > 1 else 0
        return self.data[row], self.labels[row]


@dataclass(frozen=True, eq=False, kw_only=True)
class Attractors:
    """Where chains end: A states at rest, those of each network together, by falling share.

    states: (A, D) float32 values of the network.
    model: (A,) int32, the network of the bank.
    source: (A,) int32, the nearest source of that network; distance: (A,) float32 RMSE to it over the range.
    share: (A,) float32, of the probing chains of that network that ended there.
    """

    states: Float32
    model: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]
    distance: Float32
    share: Float32

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True, eq=False, kw_only=True)
class Kaleidoscope:
    """M fitted networks of one shape, their sources, their attractors, and what is known of their quality.

    tensors: name to float32 weights with the bank as first axis, see `network.Tensors`; of convolutional kinds
        "module.NAME" with a first axis of 1.
    training: what they were fitted with, as values that JSON holds (see `training.Training`), with "loss", a list of M
        reconstruction errors (mean squared, over the range squared) on the clean sources.
    quality: the report of `quality.report`, as values that JSON holds; None before it is made.
    attractors: None before `attractors.find_attractors`.
    """

    network: Network
    tensors: Tensors
    sources: Sources
    training: Mapping[str, Any] = field(default_factory=dict)
    attractors: Attractors | None = None
    quality: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.sources.data.shape[2:] != self.network.shape:
            raise InvalidValueError(
                f"sources have shape {self.sources.data.shape[2:]}, and the network {self.network.shape}"
            )
        expected = {name: array.shape[1:] for name, array in self.tensors.items()}
        if self.network.kind == "mlp":
            widths = self.network.widths
            expected = {}
            for layer, (into, out) in enumerate(zip(widths, widths[1:], strict=False)):
                expected |= {f"layers.{layer}.weight": (out, into), f"layers.{layer}.bias": (out,)}
        if set(self.tensors) != set(expected) or not expected:
            raise InvalidValueError(f"weights are {sorted(self.tensors)}, expected {sorted(expected)}")
        bank = next(iter(self.tensors.values())).shape[:1]
        if bank in ((), (0,)) or (self.network.kind != "mlp" and bank != (1,)):
            raise InvalidValueError(
                f"the first axis of weights is the bank's, 1 network and up of 'mlp' and 1 of other kinds, got {bank}"
            )
        for name, array in self.tensors.items():
            if array.dtype != np.float32 or array.shape != (self.models, *expected[name]):
                raise InvalidValueError(
                    f"{name} must be float32 of shape {(self.models, *expected[name])}, "
                    f"got {array.dtype} of {array.shape}"
                )
            if not np.isfinite(array).all():
                raise InvalidValueError(f"{name} holds values that aren't finite: fit again with a lower rate")
        if len(self.sources.data) not in (1, self.models):
            raise InvalidValueError(f"sources are of {len(self.sources.data)} networks, the bank has {self.models}")
        check_json(self.training, "training")
        if self.quality is not None:
            check_json(self.quality, "quality")
        if self.attractors is not None:
            check_table(self.attractors, self.network.size, self.models, len(self.sources))

    @property
    def models(self) -> int:
        """M: networks of the bank."""
        return len(next(iter(self.tensors.values())))

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the network, its weights, its sources and its attractors."""
        return digest_of(self.network.to_dict(), self._arrays())

    def source_values(self, model: int) -> Float32:
        """(N, D) values of the sources of one network."""
        return self.network.values_of(self.sources.of_model(model)[0])

    def one(self, model: int) -> Kaleidoscope:
        """One network of the bank, by itself; without attractors and quality.

        Raises:
            InvalidValueError: no such network.
        """
        model = whole(model, "model", 0, self.models - 1, "of the bank")
        sources = self.sources if len(self.sources.data) == 1 else replace(
            self.sources, data=self.sources.data[model : model + 1], labels=self.sources.labels[model : model + 1]
        )  # fmt: skip
        tensors = {name: array[model : model + 1] for name, array in self.tensors.items()}
        return Kaleidoscope(network=self.network, tensors=tensors, sources=sources, training=self.training)

    def replace(self, **changes: Any) -> Kaleidoscope:
        """A copy with other values."""
        return replace(self, **changes)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        found: dict[str, npt.NDArray[Any]] = {
            **self.tensors, "sources.data": self.sources.data, "sources.labels": self.sources.labels,
        }  # fmt: skip
        if self.attractors is not None:
            for name in ("states", "model", "source", "distance", "share"):
                found[f"attractors.{name}"] = getattr(self.attractors, name)
        return found

    def card(self) -> dict[str, Any]:
        """What the file says of itself, as values that JSON holds."""
        return {
            "format": FORMAT, "version": FILE_VERSION, "fingerprint": self.fingerprint,
            "network": self.network.to_dict(), "models": self.models, "training": dict(self.training),
            "titles": list(self.sources.titles), "origin": dict(self.sources.origin),
            "quality": None if self.quality is None else dict(self.quality),
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; its path.

        Raises:
            InvalidValueError: a name that does not end in .safetensors.
            MissingExtraError: safetensors is not installed.
        """
        place = checked_path(path)
        write = safetensors_numpy().save_file
        place.parent.mkdir(parents=True, exist_ok=True)
        complete = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            contiguous = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
            write(contiguous, complete, metadata={"card": json.dumps(self.card(), sort_keys=True)})
            os.replace(complete, place)
        finally:
            complete.unlink(missing_ok=True)
        return place


def open_kaleidoscope(path: str | Path) -> Kaleidoscope:
    """The kaleidoscope of a file.

    Raises:
        WeightFileError: no such file, not safetensors, not a kaleidoscope, damaged, or changed since it was written.
        VersionError: written by a newer version of this package.
        MissingExtraError: safetensors is not installed.
    """
    place = Path(path)
    if not place.is_file():
        raise WeightFileError(f"no file at {place}: `fractal-streams kaleidoscope fit` makes one")
    card, arrays = read_tensors(place, FORMAT, FILE_VERSION)
    try:
        found = of_arrays(card, arrays)
    except KeyError as error:
        raise WeightFileError(f"{place} is damaged: it has no {error}; fit it again") from None
    except (FractalStreamsError, TypeError, ValueError, RecursionError) as error:
        raise WeightFileError(f"{place} is damaged: {error}; fit it again") from None
    if found.fingerprint != card.get("fingerprint"):
        raise WeightFileError(
            f"{place} is damaged or was changed: its tensors have the fingerprint {found.fingerprint}, its card says "
            f"{card.get('fingerprint')}; fit it again"
        )
    return found


def of_arrays(card: Mapping[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Kaleidoscope:
    """The kaleidoscope of a card and its tensors."""
    sources = Sources(
        data=arrays.pop("sources.data"), labels=arrays.pop("sources.labels"), titles=card["titles"],
        origin=card["origin"],
    )  # fmt: skip
    names = [name for name in arrays if name.startswith("attractors.")]
    table = {name.removeprefix("attractors."): arrays.pop(name) for name in names}
    return Kaleidoscope(
        network=Network.from_dict(card["network"]), tensors=arrays, sources=sources, training=card["training"],
        attractors=Attractors(**table) if table else None, quality=card["quality"],
    )  # fmt: skip


def digest_of(told: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """32 hexadecimal digits of values that JSON holds, and of arrays."""
    digest = hashlib.blake2s(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_json(values: Any, name: str) -> None:
    """Refuse what the card of a file can't hold."""
    try:
        if isinstance(values, Mapping):
            json.dumps(dict(values))
            return
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"{name} must hold values of JSON alone, so that a file can: {error}") from None
    raise InvalidValueError(f"{name} must be a mapping of values that JSON holds, got {str(values)[:200]!r}")


def check_table(table: Attractors, size: int, models: int, sources: int) -> None:
    """Refuse attractors of other networks."""
    if not isinstance(table, Attractors):
        raise InvalidValueError(f"attractors must be Attractors or None, got {type(table).__name__}")
    count = np.shape(table.states)[:1]
    for name, kind, limit in (
        ("states", np.float32, None), ("model", np.int32, models), ("source", np.int32, sources),
        ("distance", np.float32, None), ("share", np.float32, None),
    ):  # fmt: skip
        array, shape = np.asarray(getattr(table, name)), (*count, size) if name == "states" else count
        if array.dtype != kind or array.shape != shape or not np.isfinite(array).all():
            raise InvalidValueError(
                f"attractors.{name} must be finite {np.dtype(kind)} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        if limit is not None and array.size and not 0 <= array.min() <= array.max() < limit:
            raise InvalidValueError(
                f"attractors.{name} must lie in 0 to {limit - 1}, got {array.min()} to {array.max()}: find them again"
            )


def read_tensors(place: Path, form: str, version: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The card and the tensors of a safetensors file of ours.

    Raises:
        WeightFileError: not one, with the reason. VersionError: a newer one.
    """
    safetensors_numpy()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="np") as file:
            card = checked_card(json.loads((file.metadata() or {}).get("card", "null")), place, form, version)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
    except FractalStreamsError:
        raise
    except (SafetensorError, ValueError, OSError, TypeError, AttributeError, RecursionError) as error:
        hint = "; it looks like a pickle, which is never read" if is_pickle(place) else ""
        raise WeightFileError(f"{place} is no safetensors file, or a damaged one ({error}){hint}") from None
    return card, arrays


def is_pickle(place: Path) -> bool:
    """Whether a file begins as a pickle of protocols 2 to 5 or as a zip, in which torch keeps one."""
    try:
        with place.open("rb") as file:
            begins = file.read(3)
    except OSError:
        return False
    return begins[:2] == b"PK" or (begins[:1] == b"\x80" and begins[1:2] in b"\2\3\4\5" and begins[2:] != b"\0")


def checked_card(card: Any, place: Path, form: str, version: int) -> dict[str, Any]:
    """The card, if it is of ours and of a version that is read."""
    if not isinstance(card, dict) or card.get("format") != form:
        raise WeightFileError(f"{place} is a safetensors file of something else: it has no card of {form!r}")
    if type(card.get("version")) is not int or not 1 <= card["version"] <= version:
        raise VersionError(
            f"{place} has version {card.get('version')!r}, this package reads 1 to {version}: upgrade fractal-streams"
        )
    return card


def checked_path(path: str | Path) -> Path:
    """The path, if its name says what it holds."""
    place = Path(path)
    if place.suffix != ENDING:
        raise InvalidValueError(f"weights are kept as {ENDING}, got {place}")
    return place


def safetensors_numpy() -> Any:
    """The module that writes, or an error that says how to install it."""
    try:
        import safetensors.numpy
    except ImportError:
        raise missing_extra("safetensors", "kaleidoscope") from None
    return safetensors.numpy
