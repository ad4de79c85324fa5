"""Zooms: keyframes one inside the other, every one of them trained anew, from a final window or inwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.spec import one_of, whole
from fractal_streams.trainability.centre import choose_centre, nearest_centre
from fractal_streams.trainability.experiment import Experiment, Float64, number
from fractal_streams.trainability.keyframes import Keyframes, Limit, level_folder, picture_file, read_zoom, windows_of
from fractal_streams.trainability.scan import Scan, open_scan
from fractal_streams.trainability.window import Window, pair

MAX_LEVELS = 1000
ONE_CENTRE = 1e-3
"""Decades under which the windows of a zoom inwards keep one centre, and add up offsets from it: wider ones are
recentred, which moves them by less than 1e-12 of their width."""


@dataclass(frozen=True, eq=False)
class Zoom:
    """The keyframes of a zoom, in a folder; outermost first.

    folder: of zoom.json, zoom_000.png, ... (plain pictures), and level-000, ... (scans).
    windows: of each level. resolution: (height, width) of every keyframe.
    """

    folder: Path
    experiment: Experiment
    windows: tuple[Window, ...]
    resolution: tuple[int, int]

    def __len__(self) -> int:
        return len(self.windows)

    def scan(self, level: int) -> Scan:
        """The scan of a level, read when its arrays are first asked for.

        Raises:
            InvalidValueError: no such level, or one that is damaged.
        """
        return open_scan(level_folder(self.folder, whole(level, "level", 0, len(self) - 1, "")))

    def measure(self, level: int) -> Float64:
        """(H, W) float64, V, of a level."""
        return self.scan(level).measure

    def picture(self, level: int) -> Path:
        """The plain picture of a level: a pixel to each point."""
        return picture_file(self.folder, whole(level, "level", 0, len(self) - 1, ""))


def zoom_windows(
    final: Window, *, factor: float = 2.0, levels: int | None = None, widest: float = 6.0
) -> tuple[Window, ...]:
    """The windows of a zoom into a final one, outermost first, all with its centre (the paper's way).

    Args:
        final: the innermost window.
        factor: size of each window over that of the next, above 1, at most 64.
        levels: how many windows, 1 to 1000; None adds wider ones until the smaller side has `widest` decades.
        widest: decades, above 0, at most 100.

    Raises:
        InvalidValueError: a value out of its range; no `levels` for a window with an axis in its own units, whose
            range is bounded.

    Example:
        >>> windows = zoom_windows(Window(centre=(10.0, 100.0), size=(0.5, 1.0)))
        >>> [window.size for window in windows]
        [(8.0, 16.0), (4.0, 8.0), (2.0, 4.0), (1.0, 2.0), (0.5, 1.0)]
    """
    factor = checked_factor(factor)
    if levels is None:
        if any(final.linear):
            raise InvalidValueError("a window with a linear axis can't grow to decades: give levels=")
        number(widest, "widest", 0.0, 100.0, above=True)
        levels = 1
        while min(final.size) * factor ** (levels - 1) < widest:
            levels += 1
    whole(levels, "levels", 1, MAX_LEVELS, "windows")
    return tuple(final.scaled(factor**level) for level in reversed(range(levels)))


def zoom_windows_about(
    centre: tuple[float, float], *, levels: int = 50, factor: float = 2.0, start: float = 9.0
) -> tuple[Window, ...]:
    """The windows of a zoom about a point, outermost first.

    Args:
        centre: (x, y), decimal logarithms of the axes' values.
        levels: how many windows, 1 to 1000.
        factor: size of each window over that of the next.
        start: decades along each side of the outermost.

    Example:
        >>> windows = zoom_windows_about((1.0, 2.0), levels=3, start=6.0)
        >>> [window.size for window in windows], windows[0].centre
        ([(6.0, 6.0), (3.0, 3.0), (1.5, 1.5)], (10.0, 100.0))
    """
    x, y = pair(centre, "centre")
    factor, levels = checked_factor(factor), whole(levels, "levels", 1, MAX_LEVELS, "windows")
    number(start, "start", 0.0, 100.0, above=True)
    if max(abs(x), abs(y)) > 300.0:
        raise InvalidValueError(f"centre must be exponents of ten in [-300, 300], got {centre!r}")
    return tuple(
        Window(centre=(10.0**x, 10.0**y), size=(start / factor**level, start / factor**level))
        for level in range(levels)
    )


def zoom(
    experiment: Experiment,
    windows: Sequence[Window],
    *,
    folder: str | Path,
    resolution: int | tuple[int, int] = 512,
    on_limit: Limit = "warn",
    progress: bool = False,
    **training: Any,
) -> Zoom:
    """Train every keyframe of a zoom through given windows.

    The folder fills with level-000 (a scan), zoom_000.png (its plain picture, exactly as large as the resolution)
    and so on, and zoom.json, which says what determines them. The same call goes on after a kill, with the same
    bytes at the end; one with more windows appends them.

    Args:
        windows: outermost first; see `zoom_windows`.
        folder: a new one, or one of the same zoom.
        resolution: points of both axes, or (height, width), of each keyframe.
        on_limit: what a window does that is too narrow for the precision: "stop" ends the zoom before it,
            "refuse" is an error before anything is trained, "warn" and "allow" go on.
        progress: a bar over the keyframes, and one of each.
        training: device, precision, mode, trainer, tile, refine, shard of `scan`.

    Raises:
        InvalidValueError: a value out of its range, or a folder of another zoom.
        VersionError: a folder of another version. MissingExtraError: pillow, or tqdm for progress, is not installed.

    Warns:
        PrecisionWarning: with "warn" and "stop", at the first window that is too narrow.

    Example:
        >>> import tempfile
        >>> small = Experiment(width=8, dataset_mode="single_example", steps=30)
        >>> windows = zoom_windows_about((1.0, 1.0), levels=2)
        >>> made = zoom(small, windows, folder=tempfile.mkdtemp(), resolution=6, device="cpu")
        >>> made.measure(1).shape, made.picture(1).name
        ((6, 6), 'zoom_001.png')
    """
    asked = tuple(windows)
    whole(len(asked), "the number of windows", 1, MAX_LEVELS, "windows")
    for window in asked:
        if not isinstance(window, Window):
            raise InvalidValueError(f"windows must be of the class Window, got {type(window).__name__}")
    frames = Keyframes(experiment, folder, resolution, {"course": "given"}, on_limit, training)
    frames.check_windows(asked)
    with frames.bar(len(asked), progress):
        for level, window in enumerate(asked):
            if not frames.make(level, window):
                break
    return made_of(frames, len(asked))


def zoom_in(
    experiment: Experiment,
    start: Window | None = None,
    *,
    levels: int,
    folder: str | Path,
    factor: float = 2.0,
    choice: Literal["rough", "nearest"] = "rough",
    resolution: int | tuple[int, int] = 512,
    on_limit: Limit = "stop",
    progress: bool = False,
    **training: Any,
) -> Zoom:
    """Zoom inwards: each keyframe's boundary gives the middle of the next.

    All else as `zoom`. Every window lies within the one before. A call with more levels goes deeper.

    Args:
        start: the outermost window; None is the paper's overview.
        levels: how many keyframes, 1 to 1000.
        factor: size of each window over that of the next, above 1, at most 64.
        choice: "rough", to look at: the place with most boundary, see `choose_centre`; "nearest", to measure: the
            boundary nearest to the middle, see `nearest_centre`.
        on_limit: as of `zoom`; "refuse" is an error when the window is reached, and what was made is kept.

    Raises:
        InvalidValueError: also if no keyframe but all the points of one have one label.

    Example:
        >>> import tempfile
        >>> small = Experiment(width=8, dataset_mode="single_example", steps=30)
        >>> made = zoom_in(small, levels=3, folder=tempfile.mkdtemp(), resolution=12, device="cpu")
        >>> [window.size[0] for window in made.windows], len({*made.scan(2).status.ravel().tolist()})
        ([9.0, 4.5, 2.25], 2)
    """
    whole(levels, "levels", 1, MAX_LEVELS, "windows")
    factor = checked_factor(factor)
    one_of(choice, "choice", ("rough", "nearest"))
    window = start or Window.of_experiment(experiment)
    course = {"course": "inwards", "factor": factor, "choice": choice, "start": window.to_dict()}
    frames = Keyframes(experiment, folder, resolution, course, on_limit, training)
    with frames.bar(levels, progress):
        for level in range(levels):
            if level and level >= len(frames.windows):
                chosen = choose_centre if choice == "rough" else nearest_centre
                window = next_window(window, chosen(frames.measure(level - 1), factor), factor)
            elif level:
                window = frames.windows[level]
            if not frames.make(level, window):
                break
    return made_of(frames, levels)


def next_window(window: Window, place: tuple[float, float], factor: float) -> Window:
    """The window smaller by a factor about a place of this one, its digits kept; see `ONE_CENTRE`."""
    chosen = window.scaled(1.0 / factor, place)
    return chosen.recentred() if min(chosen.size) > ONE_CENTRE else chosen


def open_zoom(folder: str | Path) -> Zoom:
    """The zoom of a folder: as many levels as are finished.

    Raises:
        InvalidValueError: no zoom, or a damaged one. VersionError: written by another version.

    Example:
        >>> import tempfile
        >>> small = Experiment(width=8, dataset_mode="single_example", steps=30)
        >>> made = zoom_in(small, levels=2, folder=tempfile.mkdtemp(), resolution=8, device="cpu")
        >>> open_zoom(made.folder).windows == made.windows
        True
    """
    there = Path(folder)
    facts = read_zoom(there)
    try:
        experiment = Experiment.from_json(json.dumps(facts["experiment"]))
        windows = tuple(windows_of(facts["windows"], there))
        height, width = (int(count) for count in facts["resolution"])
    except VersionError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValueError(f"{there} holds no zoom that can be read: {error}") from None
    return Zoom(there, experiment, windows, (height, width))


def made_of(frames: Keyframes, levels: int) -> Zoom:
    """The first levels of what was made; not read from the folder, whose list another rank may still write."""
    return Zoom(frames.finished(), frames.experiment, tuple(frames.windows[:levels]), frames.shape)


def checked_factor(factor: float) -> float:
    """The factor, or an `InvalidValueError` if windows would not become smaller by it."""
    return number(factor, "factor", 1.0, 64.0, above=True)
