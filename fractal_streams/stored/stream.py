"""Stored pictures behind the interface of every other stream: crops, flips and orders drawn by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fractal_streams.batch import Batch
from fractal_streams.device import refuse_worker, resolve_device
from fractal_streams.errors import InvalidValueError, PictureError, unknown_name
from fractal_streams.render.bind import cache_folder
from fractal_streams.render.raster import DType, PixelFormat
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import one_of, whole
from fractal_streams.stored.crops import FLIPS, Placement
from fractal_streams.stored.order import checked_shares, split_of
from fractal_streams.stored.packed import Pack
from fractal_streams.stored.packing import OnError, key_of, pack
from fractal_streams.stored.settings import PackSettings, addresses, source_of
from fractal_streams.stored.shelf import Shelf
from fractal_streams.stored.tables import HUB
from fractal_streams.stream import SPLITS, Stream

STORED_VERSION = 1
Crop = Literal["random", "centre"]
Flip = Literal["none", "horizontal", "vertical", "both"]
Order = Literal["shuffled", "sequential"]


class StoredStream(Stream):
    """Crops of stored pictures, endlessly: each pass shows every picture of the split once.

    Args:
        source: a `Pack`, the folder of one, or (N, H, W, 3) uint8 pictures in memory.
        height, width: of the crops, pixels; width None is height.
        crop: "random", drawn anew for each index, or "centre".
        flip: "none"; or "horizontal", "vertical" or "both", each drawn with even chances.
        order: "shuffled", each pass in an order of its own, or "sequential".
        seed: names the stream's randomness, 0 to 2**64 - 1; it changes no split.
        split, validation, test: which part of the pictures, and the shares that the other two parts have, in
            [0, 1). Chosen by the names of the groups (a video's frames are one), each for itself; so splits
            are disjoint for all seeds, and of these sizes only on average.
        clip_length: T: samples are clips of T consecutive frames of a group, with one crop for all.
        clip_stride: frames from the start of a clip to that of the next, T if None.
        on_error: "raise", or "skip" to do without the groups of fewer than T frames, listed in `short_groups`.
        device: "auto", "cpu", "cuda" or "cuda:N"; on a GPU the pictures lie in its memory.
        dtype, channels_last, mean, std: the form of the pixels, see `PixelFormat`.

    Latents, float32: "item" (the picture's number in the pack), "top" and "left" of the crop in pixels, and
    "flip" (1 horizontal, 2 vertical, 3 both); (B,) of pictures, (B, T) of clips.

    Raises:
        InvalidValueError: a setting out of its range, crops larger than a picture, a split without pictures.
        PictureError: a group too short for a clip.
        DeviceError: no such device, or one whose memory the pictures don't fit.

    Example:
        >>> pictures = np.arange(4 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 8, 8, 3)
        >>> stream = StoredStream(pictures, height=5, flip="horizontal", seed=1, device="cpu")
        >>> batch = stream.generate(range(8))
        >>> batch.images.shape, sorted(batch.latents["item"][:4].tolist())
        ((8, 3, 5, 5), [0.0, 1.0, 2.0, 3.0])
    """

    def __init__(
        self, source: Any, *, height: int, width: int | None = None, crop: Crop = "random", flip: Flip = "none",
        order: Order = "shuffled", seed: int = 0, split: str = "train", validation: float = 0.0, test: float = 0.0,
        clip_length: int | None = None, clip_stride: int | None = None, on_error: OnError = "raise",
        device: str = "auto", dtype: DType = "uint8", channels_last: bool = False, mean: Any = 0.0, std: Any = 1.0,
    ) -> None:  # fmt: skip
        for value, name, known in (
            (crop, "crop", ("random", "centre")), (flip, "flip", tuple(FLIPS)), (split, "split", SPLITS),
            (order, "order", ("shuffled", "sequential")), (on_error, "on_error", ("raise", "skip")),
        ):  # fmt: skip
            one_of(value, name, known)
        self.pack = pack_of(source)
        self.seed, self.split = whole(seed, "seed", 0, 2**64 - 1, ""), split
        across = height if width is None else width
        self.size = (whole(height, "height", 1, 2**15, "pixels"), whole(across, "width", 1, 2**15, "pixels"))
        self.clip_length = None if clip_length is None else whole(clip_length, "clip_length", 1, 2**20, "frames")
        stride = self.clip_length or 1 if clip_stride is None else whole(clip_stride, "clip_stride", 1, 2**20, "frames")
        if clip_stride is not None and clip_length is None:
            raise InvalidValueError(f"clip_stride={clip_stride!r} is of clips: give clip_length too")
        shares = checked_shares(validation, test)
        self.settings = {
            "height": self.size[0], "width": self.size[1], "crop": crop, "flip": flip, "order": order,
            "validation": shares[0], "test": shares[1], "clip_length": self.clip_length, "clip_stride": stride,
        }  # fmt: skip
        self.device = resolve_device(device)
        self.pixels = PixelFormat(dtype, channels_last, mean, std)
        self.num_classes = len(self.pack.classes)
        check_covering(self.pack, *self.size)
        first, self.short_groups = self._items(shares, stride, on_error)
        self.placement = Placement(
            first=first, heights=self.pack.heights[first], widths=self.pack.widths[first], size=self.size,
            shuffled=order == "shuffled", random=crop == "random", flips=FLIPS[flip],
            stream_id=f"stored@{STORED_VERSION}:{names_digest(self.pack)}", split=split, seed=self.seed,
        )  # fmt: skip
        self.shelf = Shelf(self.pack, self.device)

    @property
    def count(self) -> int:
        """Pictures, or clips, of one pass."""
        return len(self.placement.first)

    def digest(self) -> str:
        told = json.dumps(["stored", STORED_VERSION, self.pack.digest, self.settings], sort_keys=True)
        return f"{hashlib.blake2s(told.encode(), digest_size=8).hexdigest()}-{self.seed}-{self.split}"

    def describe(self) -> dict[str, Any]:
        stored = {
            "version": STORED_VERSION, "contents": self.pack.digest, **self.settings, "count": self.count,
            "classes": list(self.pack.classes), "source": self.pack.facts.get("source", {}),
            "skipped": [f"{each.name}: {each.reason}" for each in self.pack.skipped],
            "short_groups": list(self.short_groups),
        }  # fmt: skip
        return {"stored": stored, **super().describe()}

    def class_title(self, label: int) -> str:
        return self.pack.classes[label]

    def labels(self, indices: Any) -> Int64:
        return self.pack.labels[self.placement.place(checked_indices(indices))[0]]

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        index = checked_indices(indices)
        frames = self.clip_length or 1
        placed = np.repeat(self.placement.place(index), frames, axis=1)
        if frames > 1:
            placed[0] += np.tile(np.arange(frames), len(index))
        labels = self.pack.labels[placed[0, ::frames]]
        index, labels, images, latents = self.shelf.take(index, labels, placed, self.size, self.pixels)
        if self.clip_length is not None:
            images = images.reshape(len(index), frames, *images.shape[1:])
            latents = latents.reshape(4, len(index), frames)
        return Batch(index, images, labels, dict(zip(("item", "top", "left", "flip"), latents, strict=True)))

    def _items(self, shares: tuple[float, float], stride: int, on_error: OnError) -> tuple[Int64, tuple[str, ...]]:
        """(N,) the picture, or first frame, of each item of this split; and groups too short for a clip."""
        kept, groups = split_of(self.pack.groups, *shares) == SPLITS.index(self.split), self.pack.groups
        short: list[str] = []
        if self.clip_length is None:
            first = np.flatnonzero(kept)
        else:
            first, short = clip_starts(self.pack, self.clip_length, stride)
            first = first[kept[first]]
            if short and on_error == "raise":
                raise PictureError(
                    f"clip_length={self.clip_length} is more than the frames kept of {short[0]} and {len(short) - 1} "
                    f"other groups of {len(set(groups))}: shorten it, or pass on_error='skip' to do without them"
                )
        if not len(first):
            what = "picture" if self.clip_length is None else f"clip of {self.clip_length} frames"
            raise InvalidValueError(
                f"split={self.split!r} has no {what} with validation={shares[0]:g} and test={shares[1]:g} of "
                f"{len(set(groups))} groups: give it a share, such as {self.split}=0.1, or more pictures"
                if self.split != "train" or self.clip_length is None
                else f"split='train' has no {what}: give a smaller clip_length"
            )
        return first.astype(np.int64), tuple(short)


def open_stored(
    source: Any,
    *,
    height: int,
    width: int | None = None,
    pack_height: int | None = None,
    pack_width: int | None = None,
    cache: str | Path | None = None,
    on_error: OnError = "raise",
    progress: bool = True,
    **settings: Any,
) -> StoredStream:
    """A stream of a folder, archive, table or video: packed on first use, found in the cache after that.

    Args:
        source: as `pack` takes it; also a `Pack`, the folder of one, or an array.
        height, width: of the crops, pixels.
        pack_height, pack_width: what the packed pictures cover at least; height and width if None, so that a
            crop has room along the longer edge alone.
        cache: folder that packs are kept in, each under a name of its own; None is the user's cache folder.
        on_error: as in `pack` and `StoredStream`.
        settings: of `PackSettings` and of `StoredStream`.

    Raises:
        UnknownNameError: no such setting; names the nearest known one.
        Others as `pack` and `StoredStream`.

    Example:
        >>> open_stored(np.zeros((3, 8, 8, 3), np.uint8), height=4, device="cpu").count
        3
    """
    of_pack = {name: settings.pop(name) for name in list(settings) if name in PackSettings.__dataclass_fields__}
    asked = (set(StoredStream.__init__.__annotations__) | {"seed"}) - {"source", "return"}
    for name in settings:
        if name not in asked:
            raise unknown_name("setting", name, (*asked, *PackSettings.__dataclass_fields__))
    shown = {"height": height, "width": width, "on_error": on_error, **settings}
    if isinstance(source, Pack | np.ndarray) or is_pack(source):
        if of_pack or pack_height is not None or pack_width is not None:
            named = ", ".join([*of_pack, *(["pack_height"] if pack_height is not None else [])]) or "pack_width"
            raise InvalidValueError(f"{named}: this source is packed already; pack its original anew")
        return StoredStream(source, **shown)
    across = pack_width or pack_height or width or height
    covering: dict[str, Any] = {"height": pack_height or height, "width": across}
    chosen = PackSettings.of(**covering, **of_pack)
    shelf = Path(cache) if cache is not None else cache_folder() / "stored"
    folder = shelf / cache_name(source, chosen)
    return StoredStream(pack(source, folder, on_error=on_error, progress=progress, **covering, **of_pack), **shown)


def cache_name(source: Any, settings: PackSettings) -> str:
    """The folder of a pack within a cache: by its key, and by where its files lie.

    Files of two places may agree in names, sizes and times, such as those of archives that are made without times.
    """
    key = key_of(source_of(source, settings), settings)
    if not isinstance(source, str | Path | Sequence) or str(source).startswith(HUB):
        return key  # a table has a fingerprint of its own
    told = json.dumps([str(path.resolve()) for path in addresses(source)])
    return f"{key}-{hashlib.blake2s(told.encode(), digest_size=8).hexdigest()}"


def pack_of(source: Any) -> Pack:
    """The pack that a stream is made of."""
    if isinstance(source, Pack):
        return source
    if isinstance(source, str | Path):
        return Pack.open(source)
    if isinstance(source, np.ndarray):
        return Pack.of(source)
    raise InvalidValueError(f"source must be a Pack, the folder of one, or an array, got {type(source).__name__}")


def is_pack(source: Any) -> bool:
    """Whether an address is a folder that `pack` wrote."""
    return isinstance(source, str | Path) and (Path(source) / "pack.json").is_file()


def check_covering(found: Pack, height: int, width: int) -> None:
    """Refuse crops that a picture does not cover."""
    small = np.flatnonzero((found.heights < height) | (found.widths < width))
    if len(small):
        item = int(small[np.argmin(found.heights[small] * found.widths[small])])
        raise InvalidValueError(
            f"a crop of {height} x {width} is larger than {len(small)} of {len(found)} pictures, such as "
            f"{found.names[item]} of {found.heights[item]} x {found.widths[item]}: ask for at most "
            f"{found.heights.min()} x {found.widths.min()}, or pack the originals at a larger height"
        )


def clip_starts(found: Pack, length: int, stride: int) -> tuple[Int64, list[str]]:
    """(N,) the first frame of each clip within a group, and the groups that are too short for one."""
    groups = np.array(found.groups, object)
    edges = [0, *(np.flatnonzero(groups[1:] != groups[:-1]) + 1).tolist(), len(groups)]
    starts: list[int] = []
    short = []
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        own = range(begin, end - length + 1, stride)
        starts += own
        if not own:
            short.append(str(groups[begin]))
        sizes = {*zip(found.heights[begin:end], found.widths[begin:end], strict=True)}
        if own and length > 1 and len(sizes) > 1:
            raise InvalidValueError(f"frames of {groups[begin]} differ in size: one crop can't be taken of all")
    return np.array(starts, np.int64), short


def names_digest(found: Pack) -> str:
    """Of the pictures' names: randomness follows these, so that another resolution changes no draw."""
    return hashlib.blake2s(json.dumps(found.names).encode(), digest_size=8).hexdigest()
