"""A pack: pictures decoded and reduced once, as uint8 levels in one memory map or array.

Pictures keep their own aspects, one after the other in one run of pixels: real folders hold upright and
wide ones, and cutting them all to one shape when packing would fix the crop that the stream is to draw.

A pack on disk is a folder with `pixels.npy`, the (P, 3) uint8 run, and `pack.json`, all else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.rng import Int64
from fractal_streams.stored.entries import Skipped

PACK_VERSION = 1
PIXELS, FACTS = "pixels.npy", "pack.json"
MAX_PICTURES = 2**24
"""A picture's number is a latent, which float32 holds."""
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Pack:
    """N stored pictures.

    pixels: (P, 3) uint8, the rows of picture 0, then those of picture 1, ...
    names, groups: N, see `Entry`. labels: (N,) int64. heights, widths: (N,) int64, pixels.
    classes: the title of each class. skipped: what was left out of the source, and why.
    digest: 32 hexadecimal digits of pixels, names, groups, labels and classes.
    facts: the source and settings that it was made of. folder: where it lies; None in memory.
    decoded: pictures decoded to make this object: 0 of a pack that was found.
    """

    pixels: UInt8
    names: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Int64
    heights: Int64
    widths: Int64
    classes: tuple[str, ...]
    digest: str
    skipped: tuple[Skipped, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    decoded: int = 0
    starts: Int64 = field(init=False)
    """(N,) int64: where each picture's first pixel lies in `pixels`."""

    def __post_init__(self) -> None:
        ends = np.cumsum(self.heights * self.widths)
        object.__setattr__(self, "starts", np.concatenate([np.zeros(1, np.int64), ends[:-1]]))

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            return _of_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__ if name != "starts"},)
        return _reopened, (self.folder, self.digest)  # another process maps the same file

    def picture(self, item: int) -> UInt8:
        """(H, W, 3) uint8: one whole picture, a view."""
        start, height, width = (int(values[item]) for values in (self.starts, self.heights, self.widths))
        return self.pixels[start : start + height * width].reshape(height, width, 3)

    def verify(self) -> None:
        """Read everything and compare it with the digest.

        Raises:
            InvalidValueError: something changed since the pack was made.
        """
        hashed = PixelDigest()
        for item in range(len(self)):
            hashed.add(self.picture(item))
        found = contents_digest(hashed.digest(), self.names, self.groups, self.labels, self.classes)
        if found != self.digest:
            raise InvalidValueError(
                f"the pack in {self.folder} holds other pictures than it was made with: its digest is {found}, and "
                f"{self.digest} is written in {FACTS}; pack it again with overwrite=True"
            )

    @classmethod
    def of(
        cls,
        images: UInt8,
        labels: Any = None,
        *,
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> Pack:
        """A pack in memory of pictures that are decoded already; nothing is copied.

        Args:
            images: (N, H, W, 3) uint8.
            labels: (N,) whole numbers from 0 on; None is one class.
            classes: the title of each class. names: of the pictures, "00000000" and on if None.
            groups: of the pictures, see `Entry`; the names if None.

        Raises:
            InvalidValueError: another shape or dtype, or lists that don't fit.

        Example:
            >>> pack = Pack.of(np.zeros((3, 8, 8, 3), np.uint8), [0, 1, 0])
            >>> len(pack), pack.classes
            (3, ('class 0', 'class 1'))
        """
        array = np.asarray(images)
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not array.size:
            raise InvalidValueError(f"images must be (N, H, W, 3) uint8, N from 1 on, got {array.shape} {array.dtype}")
        count, height, width, _ = array.shape
        pixels = np.ascontiguousarray(array).reshape(-1, 3)
        titles = [f"{number:08d}" for number in range(count)] if names is None else list(names)
        together = titles if groups is None else list(groups)
        given = np.zeros(count, np.int64) if labels is None else np.asarray(labels)
        if given.dtype.kind not in "iu" or given.shape != (count,) or given.min() < 0:
            raise InvalidValueError(f"labels must be {count} whole numbers from 0 on, got {given.dtype} {given.shape}")
        if not len(titles) == len(together) == count:
            raise InvalidValueError(f"names and groups must be {count}, got {len(titles)} and {len(together)}")
        known = tuple(f"class {label}" for label in range(int(given.max()) + 1)) if classes is None else tuple(classes)
        if given.max() >= len(known):
            raise InvalidValueError(f"classes must name all {given.max() + 1} classes, got {len(known)}")
        return cls(
            pixels=pixels, names=tuple(titles), groups=tuple(together), labels=given.astype(np.int64), classes=known,
            heights=np.full(count, height, np.int64), widths=np.full(count, width, np.int64),
            digest=contents_digest(PixelDigest().add(array).digest(), titles, together, given, known),
            facts={"source": {"kind": "arrays", "title": "arrays", "ignored": 0}},
        )  # fmt: skip

    @classmethod
    def open(cls, folder: str | Path, *, in_memory: bool = False) -> Pack:
        """The pack that `pack` wrote into a folder, its pixels mapped, or read into memory.

        Raises:
            InvalidValueError: no pack, or one that is damaged.
            VersionError: written by a newer version of this package.
        """
        folder = Path(folder)
        facts = read_facts(folder)
        try:
            pixels = np.load(folder / PIXELS, mmap_mode=None if in_memory else "r", allow_pickle=False)
            pictures = facts.pop("pictures")
            names = tuple(pictures["names"])
            labels, heights, widths = (np.array(pictures[word], np.int64) for word in ("labels", "heights", "widths"))
            opened = cls(
                pixels=pixels, names=names, groups=tuple(pictures["groups"] or names), folder=folder,
                labels=labels, heights=heights, widths=widths,
                classes=tuple(facts.pop("classes")), digest=facts.pop("digest"), facts=facts,
                skipped=tuple(Skipped(**each) for each in facts.pop("skipped")),
            )  # fmt: skip
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InvalidValueError(f"the pack in {folder} is damaged ({error}): pack it again") from error
        if pixels.shape != (int((opened.heights * opened.widths).sum()), 3) or pixels.dtype != np.uint8:
            raise InvalidValueError(f"the pack in {folder} is damaged ({PIXELS} is {pixels.shape}): pack it again")
        return opened


class PixelDigest:
    """Of pixels, picture by picture."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, pictures: UInt8) -> PixelDigest:
        """One picture (H, W, 3), or several of one size (n, H, W, 3)."""
        for picture in pictures if pictures.ndim == 4 else pictures[None]:
            self._hash.update(np.array(picture.shape[:2], "<i8").tobytes())
            self._hash.update(np.ascontiguousarray(picture).data)
        return self

    def digest(self) -> str:
        """Hexadecimal digits."""
        return self._hash.hexdigest()


def contents_digest(
    pixels: str, names: Sequence[str], groups: Sequence[str], labels: Any, classes: Sequence[str]
) -> str:
    """32 hexadecimal digits that name all that a stream shows of a pack."""
    told = json.dumps([PACK_VERSION, pixels, list(names), list(groups), np.asarray(labels).tolist(), list(classes)])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def read_facts(folder: Path) -> dict[str, Any]:
    """What `pack.json` holds."""
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{folder} holds no pack ({error}): give a folder that pack() wrote") from error
    version = facts.get("pack_version") if isinstance(facts, dict) else None
    if version != PACK_VERSION:
        raise VersionError(
            f"the pack in {folder} has version {version!r}, and this one reads {PACK_VERSION}: upgrade "
            f"fractal-streams, or pack it again with overwrite=True"
        )
    return dict(facts)


def _reopened(folder: Path, digest: str) -> Pack:
    found = Pack.open(folder)
    if found.digest != digest:
        raise InvalidValueError(f"the pack in {folder} was replaced while a stream of it was in use: open it again")
    return found


def _of_fields(fields: dict[str, Any]) -> Pack:
    return Pack(**fields)
