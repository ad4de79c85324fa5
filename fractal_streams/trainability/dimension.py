"""The fractal dimension of a boundary: by the published estimator, by least squares, and by how often labels flip.

Three numbers that answer one question. The published one (J. Sohl-Dickstein 2024, his notebook) is the median of local
slopes of box counts and has no error of its own; least squares over boxes from 2 pixels on has one; the uncertainty
exponent (C. Grebogi, S. McDonald, E. Ott, J. Yorke 1983, https://doi.org/10.1016/0375-9601(83)90945-3) needs no
picture at all. `calibration` tells what the first two give for shapes of known dimension.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.spec import whole
from fractal_streams.trainability.boxes import (
    EdgeMap,
    Fit,
    box_counts as box_counts,
    edges as edges,
    line_fit,
    local_slopes,
    power_sizes,
    published_sizes,
)  # fmt: skip
from fractal_streams.trainability.experiment import Float64
from fractal_streams.trainability.store import put

RESAMPLES = 2000
"""Bootstrap samples behind an interval."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture's part of a dimension.

    sizes: sides of a box in pixels, or distances of points. counts: boxes of each size, or the share of labels that
    flip. slopes: local ones. value: this frame's dimension; None without an edge. standard_error, r_squared: of the
    fitted line, None of the published estimator.
    """

    sizes: tuple[float, ...]
    counts: tuple[float, ...]
    slopes: tuple[float, ...]
    value: float | None = None
    standard_error: float | None = None
    r_squared: float | None = None


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A measured dimension.

    method: "published", "least squares" or "uncertainty". value: the dimension. low, high: its bootstrap 95 % interval
    over frames; over the local slopes, or from the error of the fit, where there is one frame.
    standard_error: of the value, by the same bootstrap or fit. frames: all of them, in order.
    """

    method: str
    value: float
    low: float
    high: float
    standard_error: float
    frames: tuple[Frame, ...]

    @property
    def used(self) -> int:
        """Frames with an edge."""
        return sum(frame.value is not None for frame in self.frames)

    @property
    def empty(self) -> int:
        """Frames without an edge, which count for nothing."""
        return len(self.frames) - self.used

    @property
    def slopes(self) -> Float64:
        """All local slopes of all frames."""
        return np.array([slope for frame in self.frames for slope in frame.slopes])

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, {self.method}, {self.used} frames)"


def edge_maps_of(measures: Any, *, edge_maps: bool = False) -> Iterator[EdgeMap]:
    """The edges of each of some frames, one after another; a single (H, W) array or scan is one frame.

    Args:
        measures: (H, W) arrays of the signed measure or of labels, or scans, as any iterable; or a zoom.
        edge_maps: whether they are (H, W) bool edge maps already.
    """
    for each in frames_in(measures):
        found = getattr(each, "measure", each)
        yield np.asarray(found, np.bool_) if edge_maps else edges(found)


def frames_in(measures: Any) -> Iterator[Any]:
    """The frames of a zoom, of any iterable, or one frame alone."""
    if callable(getattr(measures, "measure", None)):
        yield from (measures.measure(level) for level in range(len(measures)))
    elif hasattr(measures, "measure") or (isinstance(measures, np.ndarray) and measures.ndim == 2):
        yield measures
    else:
        yield from measures


def published_dimension(
    measures: Any, *, edge_maps: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> Dimension:
    """The paper's dimension: the median of the local slopes of box counts of all frames.

    Args:
        measures: frames, see `edge_maps_of`; read one at a time, so that a generator of 4096**2 frames needs the memory
            of one.
        edge_maps: whether they are edge maps already.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Raises:
        InvalidValueError: no frame has an edge, or one is under 16 pixels wide.

    Example:
        >>> from fractal_streams.trainability.calibration import find_shape
        >>> round(published_dimension(find_shape("sierpinski_triangle").edge_map(), edge_maps=True).value, 2)
        1.64
    """
    return dimensions(measures, edge_maps=edge_maps, seed=seed, resamples=resamples)[0]


def least_squares_dimension(
    measures: Any, *, edge_maps: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> Dimension:
    """The mean over frames of the slope of the boxes that hold an edge, over sides of 2 pixels to a 16th of the frame.

    Arguments and errors are those of `published_dimension`. The error of one frame is the fit's.

    Example:
        >>> from fractal_streams.trainability.calibration import find_shape
        >>> round(least_squares_dimension(find_shape("sierpinski_triangle").edge_map(512), edge_maps=True).value, 3)
        1.585
    """
    return dimensions(measures, edge_maps=edge_maps, seed=seed, resamples=resamples)[1]


def dimensions(
    measures: Any, *, edge_maps: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Dimension, Dimension]:
    """(published, least squares) of the same frames, each read once; see `published_dimension`."""
    whole(resamples, "resamples", 100, 10**6, "samples")
    pairs = [measured(each) for each in edge_maps_of(measures, edge_maps=edge_maps)]
    if not any(pair[0].value is not None for pair in pairs):
        raise InvalidValueError(
            f"none of {len(pairs)} frames has an edge, so there is no dimension: give windows on the boundary"
        )
    return (
        pooled("published", [pair[0] for pair in pairs], seed, resamples),
        pooled("least squares", [pair[1] for pair in pairs], seed, resamples),
    )


def measured(edge_map: EdgeMap) -> tuple[Frame, Frame]:
    """(published, least squares) of one edge map; values are None without an edge."""
    side = min(edge_map.shape)
    small, large = power_sizes(side + 1), published_sizes(side)
    some, held = box_counts(edge_map, large), box_counts(edge_map, small, counting="any")
    slopes, every = local_slopes(large, some), local_slopes(small, held)
    first = Frame(sizes=large, counts=told(some), slopes=told(slopes), value=median(slopes))
    if not len(every):
        return first, Frame(sizes=small, counts=told(held), slopes=())
    fit = line_fit(np.log(small), np.log(held))
    return first, framed(small, held, every, -fit.slope, fit)


def framed(sizes: Any, counts: Any, slopes: Any, value: float, fit: Fit) -> Frame:
    """A frame of a fitted line."""
    return Frame(
        sizes=told(sizes), counts=told(counts), slopes=told(slopes),
        value=float(value), standard_error=fit.standard_error, r_squared=fit.r_squared,
    )  # fmt: skip


def told(values: Any) -> tuple[float, ...]:
    """An array as a tuple of Python's numbers."""
    return tuple(np.asarray(values).tolist())


def median(slopes: Any) -> float | None:
    """The median, None of nothing."""
    return float(np.median(slopes)) if len(slopes) else None


def pooled(method: str, frames: Sequence[Frame], seed: int, resamples: int) -> Dimension:
    """The dimension of all frames, with its bootstrap over those that have an edge."""
    kept = [frame for frame in frames if frame.value is not None]
    parts: list[Any] = [frame.slopes if method == "published" else (frame.value,) for frame in kept]
    statistic: Callable[..., Any] = np.nanmedian if method == "published" else np.nanmean
    if not kept:
        raise InvalidValueError(f"no frame has boxes enough for the {method} dimension: give larger frames")
    if len(kept) == 1 and kept[0].standard_error is not None:
        value, error = float(parts[0][0]), kept[0].standard_error
        interval = (value - 1.96 * error, value + 1.96 * error)
        return Dimension(
            method=method, value=value, low=interval[0], high=interval[1], standard_error=error, frames=tuple(frames)
        )
    if len(kept) == 1:
        parts = [(slope,) for slope in parts[0]]
    table = np.full((len(parts), max(map(len, parts))), np.nan)
    for row, part in zip(table, parts, strict=True):
        row[: len(part)] = part
    picked = resampled(len(parts), resamples, seed)
    drawn = np.concatenate(
        [statistic(table[some].reshape(len(some), -1), axis=1) for some in np.array_split(picked, 20)]
    )
    return of_bootstrap(method, float(statistic(table)), drawn, frames)


def resampled(count: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """(resamples, count) places drawn with replacement."""
    key = rng.key("trainability@1", "bootstrap", whole(seed, "seed", 0, 2**64 - 1, ""))
    word = rng.words(np.arange(resamples * count, dtype=np.int64), key)[0].astype(np.uint64)
    return (word * np.uint64(count) >> np.uint64(32)).astype(np.int64).reshape(resamples, count)


def of_bootstrap(method: str, value: float, drawn: Float64, frames: Sequence[Frame]) -> Dimension:
    """A dimension whose interval is that of its bootstrap samples."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Dimension(
        method=method, value=value, low=float(low), high=float(high),
        standard_error=float(drawn.std(ddof=1)), frames=tuple(frames),
    )  # fmt: skip


def frames_of(folder: str | Path) -> Iterator[Float64]:
    """(H, W) measures of the keyframes of a zoom's folder, outermost first, one at a time.

    The arrays of `level-000`, `level-001`, ... are read where they are. A folder that holds pictures only,
    `zoom_000.png`, ... as `save_plain` writes them, gives -1 (converged) and 1 (diverged), which have the same edges
    exactly, because the two halves of the colours are the two labels.

    Raises:
        InvalidValueError: no such folder, nothing of a zoom in it, a damaged level, or a picture in other colours.
        MissingExtraError: pictures are read and pillow is not installed.
    """
    there = Path(folder)
    pictures = sorted(there.glob("zoom_*.png"))
    if any(there.glob("level-*")):
        from fractal_streams.trainability.zoom import open_zoom

        return frames_in(open_zoom(there))
    if pictures:
        return (signs_of(picture) for picture in pictures)
    raise InvalidValueError(
        f"{str(folder)!r} holds no keyframes (level-000, ...) and no pictures (zoom_000.png, ...): give a zoom's folder"
    )


def signs_of(picture: str | Path) -> Float64:
    """(H, W) -1, 0 (unknown) or 1, row 0 the lowest, of a picture that `save_plain` wrote."""
    from fractal_streams.trainability.picture import SPECTRAL, UNKNOWN, read_pixels

    pixels = read_pixels(picture).astype(np.int64)
    signs = np.full(2**24, np.nan, np.float32)
    for half, sign in ((SPECTRAL[:128], 1.0), (SPECTRAL[128:], -1.0), (np.array([UNKNOWN]), 0.0)):
        signs[half.astype(np.int64) @ (65536, 256, 1)] = sign
    found = signs[pixels @ (65536, 256, 1)].astype(np.float64)
    if np.isnan(found).any():
        raise InvalidValueError(
            f"{str(picture)!r} has colours that are not of the plain pictures of a zoom: give those, or its arrays"
        )
    return np.ascontiguousarray(found[::-1])


def save_csv(path: str | Path, *measured: Dimension) -> None:
    """Write a row for each level: `level,estimated_dimension`, then columns of further dimensions of the same frames.

    The first one is `estimated_dimension`; each other one adds its value, standard error and r squared. The cells of a
    level without an edge are empty. The folder is made; the file appears whole or not at all.

    Args:
        path: of the file.
        measured: one or more, of the same frames.

    Raises:
        InvalidValueError: none, or of different numbers of frames.
    """
    counts = {len(each.frames) for each in measured}
    if len(counts) != 1:
        raise InvalidValueError(f"save_csv needs dimensions of the same frames, got {sorted(counts)} frames")
    titles = ["level", "estimated_dimension"]
    for each in measured[1:]:
        name = each.method.replace(" ", "_")
        titles += [f"{name}_dimension", f"{name}_standard_error", f"{name}_r_squared"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    for level in range(counts.pop()):
        cells = [measured[0].frames[level].value]
        for each in measured[1:]:
            frame = each.frames[level]
            cells += [frame.value, frame.standard_error, frame.r_squared]
        writer.writerow([level, *("" if cell is None else f"{cell:.6f}" for cell in cells)])
    put(Path(path), lambda file: file.write(text.getvalue().encode()))


def save_plot(
    path: str | Path, measured: Iterable[Dimension], *, published: float | None = None, title: str | None = None
) -> None:
    """Draw the dimension of each level and the box counts, as PNG; see `dimension_plot.save`."""
    from fractal_streams.trainability.dimension_plot import save

    save(path, tuple(measured), published=published, title=title)
