"""Addresses of files that a stream could fill: `fractal://PRESET/SPLIT/seed=S/FILE`.

Between the seed and the file stand as many `key=value` as are needed, in segments of their own or
joined by commas; or all of them behind the file, as in `FILE?key=value&key=value`. An address imports no
code and reads no file: it names presets and formulas, never "module:formula" or a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from fractal_streams.integrations.containers.pictures import FORMS

from fractal_streams.errors import AddressError, DeviceError, FractalStreamsError, MissingExtraError, unknown_name
from fractal_streams.presets import find_source, open_stream
from fractal_streams.stream import MAX_INDEX, SPLITS, Stream

PROTOCOL = "fractal"
SHARD_FORMATS = ("tar", "arrow", "parquet", "jsonl")
ENDLESS_FORMATS = ("tar", "arrow")
PICTURE_FORMATS = (*FORMS, "json")
SAMPLES, MAX_SAMPLES = 1000, 10**6
SHARDS, HELD_OUT_SHARDS, MAX_SHARDS = 1000, 10, 10**6
"""How many shards a folder lists, of "train" and of the other splits, and the most: six digits count them."""
OWN = ("samples", "shards", "image", "start", "digest")
"""Settings of the files, not of the stream."""
MIN_DIGEST = 8
KEPT_OUT = ("priors", "still", "experiment", "experiments", "window", "model")
"""Fields of specs that have no form in an address, or would read a file."""
STREAM = ("device", "channels_last")

QUERY = re.compile(r"\?(?=[a-z_]+=)")
SHARD_NAME = re.compile(r"shard-([0-9]{6})\.(\w+)")
PICTURE_NAME = re.compile(r"([0-9]{8,19})\.(\w+)")
ENDLESS_NAME = re.compile(r"endless\.(\w+)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
WORDS = {"true": True, "false": False, "none": None}
VALUE = re.compile(r"[A-Za-z0-9_.+-]{1,200}")
DEVICE = re.compile(r"[a-z]+(:\d+)?")
HEXADECIMAL = ("digest", "fingerprint")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A file that a stream could fill, or the folder of its shards.

    source: a preset or formula. split: "train", "validation" or "test". seed: 0 to 2**64 - 1.
    settings: fields of the spec, `device` ("cpu" unless named) and `channels_last`, sorted by name.
    samples: of each shard, 1 to 10**6. shards: 1 to 10**6, None for as many as the split has.
    image: the form of pictures inside: "png", "bmp" or "npy"; None is png in tar, bmp in tables.
    start: index that shard 0 and an endless file begin at.
    digest: what `stream.digest()` must begin with, at least 8 characters: an address that is kept in a file
        then never comes to mean another stream. None takes whatever the names mean now.
    file: "shard-000000.tar|arrow|parquet|jsonl", "endless.tar|arrow", "00000042.png|bmp|npy|json"; ""
        is the folder.

    Raises:
        AddressError: an unknown name or setting, or a value out of its range; it is a FileNotFoundError.

    Example:
        >>> address = Address.parse("fractal://fractal-10/train/seed=1/height=64,samples=500/shard-000002.tar")
        >>> address.indices, address.settings
        (range(1000, 1500), (('height', 64),))
        >>> str(address)
        'fractal://fractal-10/train/seed=1/height=64/samples=500/shard-000002.tar'
    """

    source: str
    split: str = "train"
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    samples: int = SAMPLES
    shards: int | None = None
    image: str | None = None
    start: int = 0
    digest: str | None = None
    file: str = ""

    def __post_init__(self) -> None:
        checked_source(self.source)
        if self.split not in SPLITS:
            raise AddressError(str(unknown_name("split", self.split, SPLITS)))
        _whole(self.seed, "seed", 0, 2**64 - 1)
        _whole(self.samples, "samples", 1, MAX_SAMPLES)
        if self.shards is not None:
            _whole(self.shards, "shards", 1, MAX_SHARDS)
        _whole(self.start, "start", 0, MAX_INDEX - MAX_SAMPLES * MAX_SHARDS)
        if self.image is not None and self.image not in FORMS:
            raise AddressError(str(unknown_name("image", self.image, FORMS)))
        if self.digest is not None and len(self.digest) < MIN_DIGEST:
            raise AddressError(f"digest must have at least {MIN_DIGEST} characters, got {self.digest!r}")
        object.__setattr__(self, "settings", tuple(sorted(self.settings)))
        last = dict(self.settings).get("channels_last", False)
        if not isinstance(last, bool):  # a stream takes what Python takes for true, which "no" is
            raise AddressError(f"channels_last must be true or false, got {last!r}")
        if self.file:
            self._check_file()

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address that a URL, or the same without `fractal://`, says.

        Raises:
            AddressError: it says none; what is wrong and what is known is in the message.
        """
        path, *query = QUERY.split(url.removeprefix(f"{PROTOCOL}://").strip("/"), maxsplit=1)
        source, *rest = path.split("/")
        if not rest:
            raise AddressError(f"{url!r} lacks a split: {PROTOCOL}://PRESET/SPLIT/seed=S/FILE")
        split, *rest = rest
        file = rest.pop() if rest and "=" not in rest[-1] else ""
        pairs = [pair for segment in rest for pair in segment.split(",")]
        pairs += query[0].split("&") if query else []
        given: dict[str, Any] = {}
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not equals:
                raise AddressError(f"{pair!r} in {url!r} is no setting: write key=value, and the file last")
            if name in given:
                raise AddressError(f"{url!r} gives {name} twice")
            given[name] = value_of(name, text)
        checked_source(source)
        known = known_settings(source)
        for name in given:
            if name not in (*OWN, "seed", *known):
                raise AddressError(str(unknown_name("setting", name, (*OWN, "seed", *known))))
        if "seed" not in given:
            raise AddressError(f"{url!r} lacks a seed: {PROTOCOL}://{source}/{split}/seed=0/{file}")
        own = {name: given.pop(name) for name in (*OWN, "seed") if name in given}
        return cls(source=source, split=split, settings=tuple(given.items()), file=file, **own)

    def __str__(self) -> str:
        return f"{PROTOCOL}://{self.path}"

    @property
    def path(self) -> str:
        """The address without its protocol, each setting in a segment of its own."""
        return "/".join(part for part in (self.folder, self.file) if part)

    @property
    def folder(self) -> str:
        """The path of the folder that the file is in."""
        pairs = [("seed", self.seed), *self.settings]
        plain = Address.__dataclass_fields__
        pairs += [(name, getattr(self, name)) for name in OWN if getattr(self, name) != plain[name].default]
        return "/".join((self.source, self.split, *(f"{name}={text_of(value)}" for name, value in pairs)))

    @property
    def format(self) -> str:
        """The extension of the file: "tar", "png", ..."""
        return self.file.rpartition(".")[2]

    @property
    def indices(self) -> range | None:
        """Indices of the samples in the file, None for an endless file."""
        if ENDLESS_NAME.fullmatch(self.file):
            return None
        if picture := PICTURE_NAME.fullmatch(self.file):
            return range(int(picture[1]), int(picture[1]) + 1)
        shard = SHARD_NAME.fullmatch(self.file)
        assert shard is not None, self.file
        first = self.start + int(shard[1]) * self.samples
        return range(first, first + self.samples)

    @property
    def is_picture(self) -> bool:
        """Whether the file is a single sample."""
        return PICTURE_NAME.fullmatch(self.file) is not None

    @property
    def shard_count(self) -> int:
        """How many shards the folder has."""
        return self.shards or (SHARDS if self.split == "train" else HELD_OUT_SHARDS)

    def shard_names(self, formats: tuple[str, ...] = SHARD_FORMATS) -> Iterator[str]:
        """The files that the folder lists."""
        for extension in formats:
            for shard in range(self.shard_count):
                yield f"shard-{shard:06d}.{extension}"

    def form(self, default: str) -> str:
        """The form of pictures inside the file."""
        return self.image or default

    def picture(self, index: int, form: str) -> Address:
        """The address of a single picture of the same stream."""
        bare = Address(source=self.source, split=self.split, seed=self.seed, settings=self.settings)
        return replace(bare, file=f"{index:08d}.{form}")

    def open_stream(self) -> Stream:
        """The stream that fills the file, opened once in each process.

        Raises:
            AddressError: a value that the spec refuses, or a stream that no longer has the digest.
            DeviceError: a device that is not there.
        """
        stream = _open(os.getpid(), self.source, self.split, self.seed, repr(self.settings), self.settings)
        if self.digest is not None and not stream.digest().startswith(self.digest):
            raise AddressError(
                f"{self.source} is not what it was when digest={self.digest} was written, and is now "
                f"{stream.digest()}: leave the digest out to read what it is now"
            )
        return stream

    def _check_file(self) -> None:
        known: tuple[str, ...]
        if found := SHARD_NAME.fullmatch(self.file):
            kind, known = "shard", SHARD_FORMATS
            if int(found[1]) >= self.shard_count:
                raise AddressError(
                    f"shard {int(found[1])} is out of range: {self.folder} has shards 0 to {self.shard_count - 1}; "
                    f"for more of them give shards=N, 1 to {MAX_SHARDS}"
                )
        elif found := PICTURE_NAME.fullmatch(self.file):
            kind, known = "picture", PICTURE_FORMATS
            if int(found[1]) > MAX_INDEX or found[1] != f"{int(found[1]):08d}":
                raise AddressError(f"an index is 0 to 2**63 - 1 in 8 digits or as many as it has, got {found[1]}")
        elif found := ENDLESS_NAME.fullmatch(self.file):
            kind, known = "endless", ENDLESS_FORMATS
        else:
            raise AddressError(
                f"no file {self.file!r} in {self.folder}: files are shard-000000.{'|'.join(SHARD_FORMATS)}, "
                f"endless.{'|'.join(ENDLESS_FORMATS)} and 00000042.{'|'.join(PICTURE_FORMATS)}"
            )
        if self.format not in known:
            raise AddressError(str(unknown_name(f"format of {kind} files", self.format, known)))


def checked_source(name: str) -> str:
    """The name of a preset or formula.

    Raises:
        AddressError: unknown, or one that would import code or read a file.
    """
    if ":" in name or name.endswith(".json"):
        raise AddressError(f"{name!r}: an address imports no code and reads no file; name a preset or a formula")
    try:
        find_source(name)
    except FractalStreamsError as error:
        raise AddressError(str(error)) from None
    return name


@lru_cache(maxsize=64)
def known_settings(source: str) -> tuple[str, ...]:
    """Names of the settings that an address of a source can give its stream."""
    spec = find_source(source)
    names = [item.name for kind in (spec, getattr(spec, "still", None)) if kind is not None for item in fields(kind)]
    return tuple(dict.fromkeys(name for name in (*names, *STREAM) if name not in KEPT_OUT))


def value_of(name: str, text: str) -> Any:
    """A setting's value: a number, true, false, none, a name, or names joined by `+`."""
    if (name == "device" and DEVICE.fullmatch(text)) or (name in HEXADECIMAL and VALUE.fullmatch(text)):
        return text  # digits of a digest are no number
    if not VALUE.fullmatch(text):
        raise AddressError(f"{name}={text!r}: a value is made of letters, digits and _ . + -")
    if text in WORDS:
        return WORDS[text]
    if NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return tuple(text.split("+")) if "+" in text else text


def text_of(value: Any) -> str:
    """What `value_of` reads as the value."""
    words = {True: "true", False: "false", None: "none"}
    if value is None or isinstance(value, bool):
        return words[value]
    return "+".join(value) if isinstance(value, tuple) else str(value)


@lru_cache(maxsize=16)
def _open(pid: int, source: str, split: str, seed: int, text: str, settings: tuple[tuple[str, Any], ...]) -> Stream:
    # A forked process must not use its parent's threads, so the process is part of the key; so is the settings'
    # text, because 1, 1.0 and True are one key and three settings.
    try:
        return open_stream(source, **{"seed": seed, "split": split, "device": "cpu", **dict(settings)})
    except (DeviceError, MissingExtraError):
        raise
    except FractalStreamsError as error:
        raise AddressError(f"{source}: {error}") from error


def _whole(value: Any, name: str, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise AddressError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
