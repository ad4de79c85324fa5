"""What ALAE trains on: a stream of this project, stills or clips, or pictures and videos of one's own; in [-1, 1].

CALAE cut 512 x 512 pixels out of a picture and reduced them to the network's size; here a picture is reduced once, by
crop_size / image_size, and a random crop of image_size is cut: the same levels, wherever the crop begins at a multiple.

    settings = SourceSettings(data="film.mp4", image_size=64, crop_size=512, skip=4, clip_length=8)
    stream = opened_source(settings, "train", accelerator.device, image_type(accelerator))
    Source.of(stream).clips                                     # 8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fractal_streams.recipes.data import DataSettings, finite, opened_of_any_shape
from fractal_streams.recipes.settings import option

from fractal_streams import Stream, StreamSpec, VideoSpec, open_stored
from fractal_streams.errors import InvalidValueError
from fractal_streams.presets import find_source
from fractal_streams.spec import one_of
from fractal_streams.stored import Pack, StoredStream
from fractal_streams.stored.crops import FLIPS
from fractal_streams.stored.order import split_of
from fractal_streams.stored.packed import PixelDigest, contents_digest
from fractal_streams.stored.stream import is_pack
from fractal_streams.stream import SPLITS

HALF = 0.5
"""Mean and deviation that bring levels in [0, 1] to [-1, 1]."""
STORED_SIZE = 64
"""Pixels of one's own pictures, where no size is asked for."""
FEW_VIDEOS = 10
"""With fewer of them the last frames of each are held out, else some of the videos."""
OF_DATA = ("pack_height", "crop_size", "skip", "minimum_change", "on_error", "cache")
OF_STREAMS = ("num_classes", "max_iter", "supersample", "num_samples_per_class")


@dataclass(frozen=True, kw_only=True)
class SourceSettings(DataSettings):
    """What ALAE is trained on: a preset, or data.

    Raises:
        InvalidValueError: a value out of its range; an option of data without any, or one of presets beside it.
    """

    panel: ClassVar[str] = "Source"
    preset: str = option("fractal-families", "A preset, a formula, or a spec's JSON file.")
    image_size: int | None = option(None, "Height and width, pixels; the preset's own, 64 of data.", low=1)
    clip_length: int | None = option(None, "Frames of a clip; the preset's own, stills of data.", low=2, high=4096)
    data: str = option("", "In place of a preset: a folder, zip, tar shards or videos, a pack, or hub:NAME.")
    pack_height: int | None = option(None, "Data is reduced until it just covers so many pixels; image_size.", low=1)
    crop_size: int | None = option(None, "Instead, pixels of data that a crop covers: a multiple of image_size.", low=1)
    flip: str = option("both", "Mirror data, with even chances.", choices=tuple(FLIPS))
    skip: int = option(0, "Frames of a video left out after each that is taken.", low=0, high=2**31 - 1)
    minimum_change: float = option(0.0, "Mean levels by which a frame differs from the last.", low=0.0, high=255.0)
    held_out_share: float = option(0.1, "Of data, to validate on, and as much to test on.", low=1e-6, high=0.4)
    on_error: str = option("raise", "What damaged or small pictures of data do.", choices=("raise", "skip"))
    cache: Path | None = option(None, "Of decoded data; the user's cache.", changes_nothing=True)  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {name: item.default for name, item in self.__dataclass_fields__.items()}
        for name in OF_STREAMS if self.data else OF_DATA:
            if (value := getattr(self, name)) != defaults[name]:
                where = "of a preset, and data is given" if self.data else "of data, and none is given"
                raise InvalidValueError(f"{name}={value!r} is {where}: leave it out")
        if self.pack_height is not None and self.crop_size is not None:
            raise InvalidValueError("pack_height and crop_size both say how far data is reduced: give one of them")
        if self.image_size is not None:
            self.refuse_reductions(self.image_size)

    def refuse_reductions(self, size: int) -> None:
        """An `InvalidValueError` if data that is reduced as asked does not come to pictures of this size."""
        if self.pack_height is not None and self.pack_height < size:
            raise InvalidValueError(f"pack_height must be at least image_size={size}, got {self.pack_height}")
        if self.crop_size is not None and self.crop_size % size:
            near = max(1, round(self.crop_size / size)) * size
            raise InvalidValueError(
                f"crop_size must be a multiple of image_size={size}, got {self.crop_size}: {near} is the nearest"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """What a stream hands over.

    shape: (3, H, W) of a picture. clips: T where samples are clips (T, 3, H, W), None of stills.
    latents: their names.
    """

    stream: Stream
    shape: tuple[int, int, int]
    clips: int | None
    latents: tuple[str, ...]

    @classmethod
    def of(cls, stream: Stream) -> Source:
        """Of any stream; sample 0 is rendered.

        Example:
            >>> stream = opened_source(SourceSettings(preset="kali", image_size=8, clip_length=3), "train", "cpu")
            >>> Source.of(stream).shape, Source.of(stream).clips
            ((3, 8, 8), 3)
        """
        batch = stream.generate(range(1))
        *clips, channels, height, width = batch.images.shape[1:]
        return cls(
            stream=stream, shape=(channels, height, width), clips=clips[0] if clips else None,
            latents=tuple(batch.latents),
        )  # fmt: skip


def opened_source(settings: SourceSettings, split: str, device: Any, dtype: str = "float32") -> Stream:
    """The stream of a split, of pictures in [-1, 1]: (B, 3, N, N), or (B, T, 3, N, N) of clips.

    Data is cut at random places and flipped in every split: what is held out is distributed as what is trained on. It
    is chosen by the names of pictures and videos, whichever the seed; of fewer than 10 videos the last frames of each
    are held out, tested on behind validated on.

    Args:
        split: "train" (a finite set where `num_samples_per_class` says so), "validation" or "test".
        device: of the run's accelerator. dtype: of the pictures, see `image_type`.

    Raises:
        InvalidValueError: what the preset has not to choose; what this data can't do; a split without pictures.
        UnknownNameError: no such preset. PictureError: a picture that can't be read, or is too small.

    Example:
        >>> settings = SourceSettings(preset="kali_julia", image_size=8)
        >>> opened_source(settings, "test", "cpu").generate(range(4)).images.shape
        (4, 3, 8, 8)
    """
    one_of(split, "split", SPLITS)
    if settings.data:
        return of_data(settings, split, device, dtype)
    source, changes = of_clips(settings.preset, settings.clip_length)
    stream = opened_of_any_shape(source, settings, split, device, dtype, HALF, HALF, **changes)
    return finite(stream, settings) if split == "train" else stream


def of_clips(preset: str, length: int | None) -> tuple[Any, dict[str, int]]:
    """What makes clips of so many frames of a preset: a source of streams, and what to change of it.

    Stills become clips that move straight through all that their samples draw.
    """
    if length is None:
        return preset, {}
    spec = find_source(preset)
    if isinstance(spec, StreamSpec):
        return VideoSpec(still=spec, frames=length), {}
    if not hasattr(spec, "frames"):
        raise InvalidValueError(f"preset={preset!r} has no clips: let clip_length be none, or choose another preset")
    return spec, {"frames": length}


def of_data(settings: SourceSettings, split: str, device: Any, dtype: str) -> StoredStream:
    """The stream of a split of one's own pictures."""
    pack = packed(settings)
    kind = pack.facts.get("source", {}).get("kind")
    refuse_of_videos(settings, kind)
    share = settings.held_out_share
    shares: dict[str, Any] = {"split": split, "validation": share, "test": share}
    if kind == "video" and len({*pack.groups}) < FEW_VIDEOS:
        pack, shares = part_of(pack, frames_of_split(pack.groups, split, share, settings.clip_length or 1)), {}
    elif SPLITS.index(split) not in split_of(pack.groups, share, share):
        raise InvalidValueError(
            f"none of the {len({*pack.groups})} pictures or videos of {settings.data} falls to split={split!r} with "
            f"held_out_share={share:g}: raise it, or give more of them"
        )
    place = str(device)  # that of a rank is cpu:0
    return StoredStream(
        pack, height=settings.image_size or STORED_SIZE, crop="random", flip=settings.flip,  # type: ignore[arg-type]
        seed=settings.data_seed, clip_length=settings.clip_length, on_error=settings.on_error,  # type: ignore[arg-type]
        device="cpu" if place.startswith("cpu") else place, dtype=dtype, mean=HALF, std=HALF,  # type: ignore[arg-type]
        **shares,
    )  # fmt: skip


def packed(settings: SourceSettings) -> Pack:
    """The data, decoded and reduced once, and found in the cache from then on."""
    size = settings.image_size or STORED_SIZE
    settings.refuse_reductions(size)
    asked: dict[str, Any] = {
        "pack_height": settings.pack_height, "skip": settings.skip or None,
        "minimum_change": settings.minimum_change or None,
        "reduction": settings.crop_size and settings.crop_size // size,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    if given and is_pack(settings.data):
        names = ", ".join(name if name != "reduction" else "crop_size" for name in given)
        raise InvalidValueError(f"{names}: {settings.data} is packed already; leave it out, or pack its original anew")
    found = open_stored(
        settings.data, height=size, cache=settings.cache, on_error=settings.on_error,  # type: ignore[arg-type]
        device="cpu", **given,
    )  # fmt: skip
    return found.pack


def refuse_of_videos(settings: SourceSettings, kind: str | None) -> None:
    """An `InvalidValueError` if something is asked of data that only videos have."""
    for name in ("skip", "minimum_change", "clip_length"):
        if (value := getattr(settings, name)) and kind != "video":
            raise InvalidValueError(f"{name}={value!r} is of videos, and {settings.data} is a {kind}: leave it out")


def frames_of_split(groups: Sequence[str], split: str, share: float, least: int) -> list[int]:
    """Numbers of the frames of a split: of each video the first, those before its last, or its last.

    Args:
        groups: the video of each frame, those of one together. share: of a video that is validated on, and tested on.
        least: frames that each part of a video must have.

    Example:
        >>> [frames_of_split(["a"] * 10 + ["b"] * 5, split, 0.2, 1) for split in ("train", "validation", "test")]
        [[0, 1, 2, 3, 4, 5, 10, 11, 12], [6, 7, 13], [8, 9, 14]]
    """
    found: list[int] = []
    edges = [place for place in range(1, len(groups)) if groups[place] != groups[place - 1]]
    for begin, end in zip([0, *edges], [*edges, len(groups)], strict=True):
        held = max(least, round(share * (end - begin)))
        if end - begin - 2 * held < least:
            raise InvalidValueError(
                f"{groups[begin]} has {end - begin} frames, too few for three parts of at least {least} with "
                f"held_out_share={share:g}: lower skip, clip_length or held_out_share, or give a longer video"
            )
        cuts = (begin, end - 2 * held, end - held, end)
        place = SPLITS.index(split)
        found += range(cuts[place], cuts[place + 1])
    return found


def part_of(pack: Pack, kept: Sequence[int]) -> Pack:
    """Some pictures of a pack, in memory."""
    pictures = [pack.picture(item) for item in kept]
    hashed = PixelDigest()
    for picture in pictures:
        hashed.add(picture)
    names, groups = ([values[item] for item in kept] for values in (pack.names, pack.groups))
    labels = pack.labels[kept]
    return Pack(
        pixels=np.concatenate([picture.reshape(-1, 3) for picture in pictures]), names=tuple(names),
        groups=tuple(groups), labels=labels, heights=pack.heights[kept], widths=pack.widths[kept],
        classes=pack.classes, digest=contents_digest(hashed.digest(), names, groups, labels, pack.classes),
        facts=pack.facts,
    )  # fmt: skip
