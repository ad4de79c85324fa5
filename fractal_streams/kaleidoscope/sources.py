"""What networks are fitted to: points, arrays, stored pictures, and the pictures of this package's own streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import AddressError, InvalidValueError, missing_extra, unknown_name
from fractal_streams.kaleidoscope.fitted import Sources
from fractal_streams.kaleidoscope.network import units
from fractal_streams.luma import luma
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import StreamSpec, names_of, whole
from fractal_streams.stream import StillStream, Stream

MAX_TITLES = 1000
"""Classes of a stream that are all named; of more, only those that occur."""
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "celeba": "CelebA"}
MAX_CLASSES = 2**20
"""Classes that are numbered without titles."""
BLOCK = 256
"""Pictures that are drawn, or compared, at a time."""


def points(values: Any, *, labels: Any = None, titles: Sequence[str] | None = None) -> Sources:
    """Points, each a class of its own unless labels say otherwise.

    Args:
        values: (N, D) floats in the network's range; (N,) are points of D = 1.
        labels: (N,) whole numbers from 0 on.

    Raises:
        InvalidValueError: another shape, or values that aren't finite.

    Example:
        >>> points([0.2, 0.8]).data.tolist()
        [[[0.20000000298023224], [0.800000011920929]]]
    """
    try:
        with np.errstate(over="ignore"):
            given = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise InvalidValueError(f"points must be (N, D) finite numbers, got {str(values)[:200]!r}") from None
    table = given[:, None] if given.ndim == 1 else given
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise InvalidValueError(f"points must be (N, D) finite numbers, N and D from 1 on, got shape {given.shape}")
    chosen, names = classes_of(np.arange(len(table)) if labels is None else labels, len(table), titles, "point")
    return Sources(
        data=table[None], labels=chosen[None], titles=names, origin={"kind": "points"}
    )  # fmt: skip


def of_arrays(
    images: Any, labels: Any = None, titles: Sequence[str] | None = None, origin: Mapping[str, Any] | None = None
) -> Sources:
    """Pictures in memory.

    Args:
        images: (N, H, W) or (N, 1, H, W) grey, or (N, 3, H, W) coloured, uint8 levels.
        labels: (N,) whole numbers from 0 on; None is one class.
        origin: what is told of where they come from, as values that JSON holds.

    Raises:
        InvalidValueError: another shape or dtype, labels that don't fit.

    Example:
        >>> of_arrays(np.zeros((3, 8, 8), np.uint8)).data.shape
        (1, 3, 1, 8, 8)
    """
    given = np.asarray(images)
    table = given[:, None] if given.ndim == 3 else given
    if table.ndim != 4 or table.dtype != np.uint8 or not table.size or table.shape[1] not in (1, 3):
        hint = ": move the channels to the front" if given.ndim == 4 and given.shape[-1] in (1, 3) else ""
        raise InvalidValueError(
            f"pictures must be (N, H, W), (N, 1, H, W) or (N, 3, H, W) uint8, got {given.dtype} of {given.shape}{hint}"
        )
    chosen, names = classes_of(np.zeros(len(table)) if labels is None else labels, len(table), titles, "class")
    return Sources(
        data=np.ascontiguousarray(table[None]), labels=chosen[None], titles=names,
        origin=dict(origin) if origin is not None else {"kind": "arrays"},
    )  # fmt: skip


def of_stream(stream: Stream, indices: Any, *, grey: bool = False) -> Sources:
    """Pictures of a stream of stills, by their indices; `again` makes them anew from what `origin` says.

    Args:
        stream: with uint8 pixels, channels first.
        indices: (N,) whole numbers.
        grey: as one channel, by `luma`.

    Raises:
        InvalidValueError: a stream of clips or of floats, or no indices.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", height=8, width=8, device="cpu")
        >>> of_stream(stream, range(5)).data.shape
        (1, 5, 3, 8, 8)
    """
    index = checked_indices(indices)
    if not isinstance(stream, Stream) or not len(index):
        raise InvalidValueError(f"sources are pictures of a Stream at some indices, got {stream!r} and {len(index)}")
    drawn = [stream.generate(index[first : first + BLOCK]).numpy() for first in range(0, len(index), BLOCK)]
    images, labels = (np.concatenate([getattr(part, name) for part in drawn]) for name in ("images", "labels"))
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != 3:
        raise InvalidValueError(
            f"sources are stills of uint8 levels, channels first; this stream gives {images.dtype} of "
            f"{images.shape[1:]}: open it with dtype='uint8' and channels_last=False, and no clips"
        )
    present = np.arange(stream.num_classes) if stream.num_classes <= MAX_TITLES else np.unique(labels)
    told = {"kind": "stream", "stream": stream.describe(), "indices": index.tolist(), "grey": bool(grey)}
    return of_arrays(
        grey_of(images) if grey else images, np.searchsorted(present, labels),
        [stream.class_title(int(label)) for label in present], told,
    )  # fmt: skip


def of_pictures(
    address: Any, *, height: int, width: int | None = None, grey: bool = False, count: int = 1000, seed: int = 0,
    classes: Sequence[str] | None = None, **settings: Any,
) -> Sources:  # fmt: skip
    """Stored pictures, reduced and cut to one size about their middles.

    Args:
        address: a folder, a zip, tar shards, "hub:PATH", a `datasets.Dataset`, as `stored.pack` takes it.
        height, width: pixels; width None is height.
        count: pictures at most, drawn without repetition in an order that `seed` names.
        classes: titles to take pictures of; None is all.
        settings: of `open_stored`: cache, label, image_column, label_column, hub_split, ...

    Raises:
        InvalidValueError: no pictures of these classes. UnknownNameError: no such class. Others as `open_stored`.
    """
    from fractal_streams.stored import open_stored

    whole(count, "count", 1, 2**24, "pictures")
    settings = {"progress": False, **settings}
    stream = open_stored(
        address, height=height, width=width, crop="centre", order="shuffled", seed=seed, device="cpu", **settings
    )
    everything = np.arange(stream.count)
    labels, titles = stream.labels(everything), tuple(stream.pack.classes)
    places, numbers, names = chosen_classes(labels, titles, classes)
    batch = stream.generate(everything[places[:count]])
    told = {"kind": "pictures", "stream": stream.describe()["stored"], "seed": seed, "items": len(batch)}
    return of_arrays(grey_of(batch.images) if grey else batch.images, numbers[:count], names, told)


def of_torchvision(
    name: str, root: Any, *, count: int = 1000, seed: int = 0, classes: Sequence[str] | None = None, grey: bool = False,
    height: int | None = None, width: int | None = None,
) -> Sources:  # fmt: skip
    """Pictures of a dataset's training part as torchvision keeps it in a folder; nothing is downloaded.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "celeba" (one class, "face").
        root: torchvision's folder of it.
        count: pictures at most, drawn without repetition in an order that `seed` names.
        classes: titles to take pictures of, such as ("dog",); None is all.
        grey: one channel; MNIST's are grey as they are.
        height, width: to reduce the pictures to, pixels; None is their own size.

    Raises:
        AddressError: no such dataset in the folder. UnknownNameError: no such dataset or class.
        MissingExtraError: torchvision is not installed.
    """
    if name not in TORCHVISION:
        raise unknown_name("dataset", name, TORCHVISION)
    try:
        from torchvision import datasets
    except ImportError:
        raise missing_extra("torchvision", "recipes") from None
    whole(count, "count", 1, 2**24, "pictures")
    for edge, title in ((height, "height"), (width, "width")):
        if edge is not None:
            whole(edge, title, 1, 2**16, "pixels")
    kind, asked = getattr(datasets, TORCHVISION[name]), {"split": "train"} if name == "celeba" else {"train": True}
    try:
        opened = kind(str(root), download=False, **asked)
    except (RuntimeError, OSError) as error:
        raise AddressError(
            f"{name} is not in {root} ({error}): torchvision.datasets.{kind.__name__}({str(root)!r}, download=True) "
            f"gets it"
        ) from None
    labels = np.zeros(len(opened), np.int64) if name == "celeba" else np.asarray(opened.targets, np.int64)
    order = np.argsort(units(len(labels), rng.key("kaleidoscope-sources", name, seed)), kind="stable")
    places, numbers, names = chosen_classes(labels[order], tuple(getattr(opened, "classes", ("face",))), classes)
    items = order[places[:count]]
    images = np.stack([picture_of(opened[int(item)][0], grey or "mnist" in name, height, width) for item in items])
    told = {"kind": "torchvision", "name": name, "seed": seed, "items": items.tolist() if len(items) <= 5000 else None}
    return of_arrays(images, numbers[:count], names, told)


def again(origin: Mapping[str, Any], device: str = "cpu") -> Sources:
    """Sources made anew from their `origin`: of a `StillStream`'s pictures, also of several networks.

    Raises:
        InvalidValueError: they came from elsewhere.
    """
    if origin.get("kind") == "stacked":
        return stacked([again(part, device) for part in origin["parts"]])
    told = origin.get("stream", {}) if origin.get("kind") == "stream" else {}
    if told.get("spec", {}).get("kind") != "stills":
        raise InvalidValueError(f"only pictures of a stream of stills are made again, these are {str(origin)[:200]}")
    spec = StreamSpec.from_json(json.dumps(told["spec"]))
    stream = StillStream(spec, seed=told["seed"], split=told["split"], device=device)
    return of_stream(stream, origin["indices"], grey=origin["grey"])


def stacked(parts: Sequence[Sources]) -> Sources:
    """Sources of a bank of networks, each with its own: S parts of the same N and shape.

    Classes of the same title are one.

    Example:
        >>> both = stacked([points([0.2, 0.8]), points([0.1, 0.5])])
        >>> both.data.shape, both.titles
        ((2, 2, 1), ('point 0', 'point 1'))
    """
    if not parts or any(len(part.data) != 1 for part in parts):
        raise InvalidValueError(f"stack sources of one network each, at least one, got {len(parts)} parts")
    kinds = {(part.data.shape[1:], str(part.data.dtype)) for part in parts}
    if len(kinds) > 1:
        raise InvalidValueError(f"sources of a bank have one number, shape and dtype, got {sorted(map(str, kinds))}")
    titles = tuple(dict.fromkeys(title for part in parts for title in part.titles))
    place = {title: number for number, title in enumerate(titles)}
    labels = [np.array([place[title] for title in part.titles], np.int64)[part.labels[0]] for part in parts]
    return Sources(
        data=np.concatenate([part.data for part in parts]), labels=np.stack(labels), titles=titles,
        origin={"kind": "stacked", "parts": [dict(part.origin) for part in parts]},
    )  # fmt: skip


def least_distance(sources: Sources, *, span: float = 1.0) -> float:
    """The smallest RMSE between two sources of one network, over the range; infinite of single ones.

    Args:
        span: of the range of points, `Network.span`; levels of pictures have 255.

    Example:
        >>> round(least_distance(points([0.2, 0.8])), 6)
        0.6
    """
    least = np.inf
    for rows in flat_rows(sources, span):
        for first in range(0, len(rows), BLOCK):
            least = min(least, float(distances_after(rows, first).min(initial=np.inf)))
    return least


def near_duplicates(sources: Sources, least: float = 0.05, *, span: float = 1.0) -> list[tuple[int, int, int, float]]:
    """(network, first source, second source, RMSE over the range) of pairs nearer than `least`, nearest first.

    Basins of sources that are nearly the same run into one.
    """
    found = []
    for model, rows in enumerate(flat_rows(sources, span)):
        for first in range(0, len(rows), BLOCK):
            between = distances_after(rows, first)
            for one, two in np.argwhere(between < least).tolist():
                found.append((model, first + one, two, float(between[one, two])))
    return sorted(found, key=lambda pair: (pair[3], pair[:3]))


def distinct_indices(stream: Stream, count: int, *, start: int = 0, least: float = 0.05, grey: bool = False) -> Int64:
    """(count,) the first indices from `start` on whose pictures differ pairwise by `least` and more.

    Raises:
        InvalidValueError: among the first 20 * count + 1000 pictures there are not as many.
    """
    whole(count, "count", 1, 2**20, "pictures")
    kept: list[int] = []
    rows = np.empty((count, 0))
    for first in range(start, start + 20 * count + 1000, BLOCK):
        block = flat_rows(of_stream(stream, range(first, first + BLOCK), grey=grey), 1.0)[0]
        rows = rows if rows.size else np.empty((count, block.shape[1]))
        for place, row in enumerate(block):
            if np.square(rows[: len(kept)] - row).mean(axis=1).min(initial=np.inf) >= least**2:
                rows[len(kept)] = row
                kept.append(first + place)
            if len(kept) == count:
                return np.array(kept, np.int64)
    raise InvalidValueError(
        f"only {len(kept)} of {count} pictures from index {start} on differ by {least:g} of the range: ask for fewer, "
        f"or for a smaller distance"
    )


def chosen_classes(
    labels: Int64, titles: tuple[str, ...], classes: Sequence[str] | None
) -> tuple[Int64, Int64, tuple[str, ...]]:
    """Places of the labels that are taken, their new numbers, and the titles that these have."""
    if classes is None:
        return np.arange(len(labels)), labels, titles
    asked = (classes,) if isinstance(classes, str) else tuple(classes)
    for title in asked:
        if title not in titles:
            raise unknown_name("class", title, titles)
    renumbered = np.full(len(titles), -1, np.int64)
    renumbered[[titles.index(title) for title in asked]] = np.arange(len(asked))
    places = np.flatnonzero(renumbered[labels] >= 0)
    if not len(places):
        raise InvalidValueError(f"no pictures of the classes {', '.join(asked)}: there are {len(labels)} of others")
    return places, renumbered[labels[places]], asked


def picture_of(picture: Any, grey: bool, height: int | None, width: int | None) -> npt.NDArray[np.uint8]:
    """(C, H, W) uint8 of a PIL picture, reduced until it covers the size, and cut about its middle."""
    from fractal_streams.stored.reduction import covering_size, reduced

    levels = np.asarray(picture.convert("RGB"))
    if height is not None or width is not None:
        tall, wide = height or width or 1, width or height or 1
        size = covering_size(levels.shape[0], levels.shape[1], tall, wide)
        levels = reduced(levels, *size)
        top, left = (size[0] - tall) // 2, (size[1] - wide) // 2
        levels = levels[top : top + tall, left : left + wide]
    return luma(levels)[None] if grey else np.moveaxis(levels, -1, 0)


def classes_of(labels: Any, count: int, titles: Sequence[str] | None, noun: str) -> tuple[Int64, tuple[str, ...]]:
    """(N,) int64 labels, and the titles of their classes."""
    given = np.asarray(labels)
    whole_ones = given.dtype.kind in "biuf" and bool(np.isfinite(given).all()) and np.array_equal(given, np.rint(given))
    if given.shape != (count,) or not whole_ones or given.min() < 0:
        raise InvalidValueError(f"labels must be {count} whole numbers from 0 on, got {given.dtype} {given.shape}")
    chosen = given.astype(np.int64)
    if titles is not None:
        return chosen, names_of(titles, "titles")
    if int(chosen.max()) >= MAX_CLASSES:
        raise InvalidValueError(f"labels without titles must be below {MAX_CLASSES}, got {chosen.max()}: pass titles")
    known = tuple(f"{noun} {number}" for number in range(int(chosen.max()) + 1))
    return chosen, known


def grey_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(N, 1, H, W) grey levels of (N, 3, H, W); grey ones as they are."""
    return luma(np.moveaxis(images, 1, -1))[:, None] if images.shape[1] == 3 else images


def flat_rows(sources: Sources, span: float) -> list[npt.NDArray[np.float64]]:
    """(N, D) float64 of each network's sources, over the range."""
    whole_range = 255.0 if sources.data.dtype == np.uint8 else span
    return [each.reshape(len(each), -1).astype(np.float64) / whole_range for each in sources.data]


def distances_after(rows: npt.NDArray[np.float64], first: int) -> npt.NDArray[np.float64]:
    """(n, N) RMSE of the rows from `first` on, a block of them, to all rows behind each; infinite to the others."""
    block = rows[first : first + BLOCK]
    squares = (block**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1) - 2.0 * block @ rows.T
    found = np.sqrt(np.maximum(squares, 0.0) / rows.shape[1])
    found[np.arange(len(rows)) <= np.arange(first, first + len(block))[:, None]] = np.inf
    return np.asarray(found)


def split(sources: Sources, count: int) -> tuple[Sources, Sources]:
    """The first `count` sources of each network, and the others: to fit to, and to hold out.

    Raises:
        InvalidValueError: fewer than one source on a side.

    Example:
        >>> first, others = split(points([0.1, 0.5, 0.9]), 2)
        >>> len(first), len(others)
        (2, 1)
    """
    whole(count, "count", 1, len(sources) - 1, f"of {len(sources)} sources")
    parts = []
    for rows in (slice(count), slice(count, None)):
        parts.append(Sources(
            data=np.ascontiguousarray(sources.data[:, rows]), labels=np.ascontiguousarray(sources.labels[:, rows]),
            titles=sources.titles, origin=cut_origin(sources.origin, rows),
        ))  # fmt: skip
    return parts[0], parts[1]


def cut_origin(origin: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """What is told of some rows of sources; of stacked ones, of those of each part."""
    cut = {name: value[rows] for name in ("indices", "items") if isinstance(value := origin.get(name), list)}
    if origin.get("kind") == "stacked":
        cut["parts"] = [cut_origin(part, rows) for part in origin["parts"]]
    return {**origin, **cut}
