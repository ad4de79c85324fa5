"""Where a scan keeps what is trained: parts that appear whole or not at all, and what determines them."""

from __future__ import annotations

import json
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, VersionError, missing_extra
from fractal_streams.shard import Shard
from fractal_streams.trainability.window import Grid

SCAN_VERSION = 1
"""Version of the folder's layout and of what its facts mean."""
SIDECAR = "scan.json"
COLUMNS: dict[str, type] = {"measure": np.float64, "diverged_at": np.int32, "final_loss": np.float64}
"""What is kept of each network, with its dtype."""
POLL_SECONDS = 0.2
NAMED = 4
"""Differences that an error names before it only counts them."""

Columns = dict[str, npt.NDArray[Any]]
Facts = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """Networks that are trained and kept together.

    name: of its file, without the ending. place: (rows, columns) of the scan, two slices (a tile) or two (n,)
    arrays (single points).
    """

    name: str
    place: tuple[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) of a tile, (n,) of points."""
        rows, columns = self.place
        return (rows.stop - rows.start, columns.stop - columns.start) if isinstance(rows, slice) else rows.shape

    @property
    def size(self) -> int:
        """Networks."""
        return int(np.prod(self.shape))

    def points(self, grid: Grid) -> npt.NDArray[np.float64]:
        """(size, 2) values of the axes."""
        rows, columns = self.place
        if isinstance(rows, slice):
            return grid.crop(rows, columns).points()
        return np.stack([grid.x[columns], grid.y[rows]], axis=1)


class Store(Protocol):
    """Keeps the columns of parts by their names."""

    def load(self, part: Part) -> Columns | None:
        """What is kept of a part; None if nothing is, or it is damaged."""

    def save(self, part: Part, columns: Columns) -> None:
        """Keep a part."""


class Nowhere:
    """Keeps nothing: whoever trains a part takes it as it is made."""

    def load(self, part: Part) -> Columns | None:
        return None

    def save(self, part: Part, columns: Columns) -> None:
        pass


class Folder:
    """Keeps each part in an `.npz` file of its own; the same columns give the same bytes.

    A part is written under a temporary name and renamed. Temporary files that a killed process left are removed
    when the part that they were to become is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = [each for part in ("", "tiles", "points") for each in sorted((path / part).glob(".*.tmp"))]

    def file(self, part: Part) -> Path:
        """Where a part is, or will be."""
        return self.path / f"{part.name}.npz"

    def load(self, part: Part, names: Iterable[str] = COLUMNS) -> Columns | None:
        found = read_columns(self.file(part), part.shape, names)
        if found is not None:
            self.tidy(self.file(part))
        return found

    def save(self, part: Part, columns: Columns) -> None:
        path = self.file(part)
        put(path, lambda file: write_columns(file, columns))
        self.tidy(path)

    def tidy(self, path: Path) -> None:
        """Remove what killed processes left of a file that is there now."""
        for old in [each for each in self.left if each.name.startswith(f".{path.name}.")]:
            old.unlink(missing_ok=True)
            self.left.remove(old)


def put(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name and rename it; at an error nothing of it is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:
        if not path.exists():  # else another process made the same file, and tidied up
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror or error}; what was finished is kept, and the same call goes on", str(path)
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_columns(file: IO[bytes], columns: Columns) -> None:
    """Write arrays as an uncompressed `.npz` without times or names of machines."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, dtype in COLUMNS.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.create_system = 3
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(columns[name], dtype), (1, 0), False)


def read_columns(path: Path, shape: tuple[int, ...], names: Iterable[str]) -> Columns | None:
    """Arrays of a file; None if it is not there, cut, changed, or of another shape."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in names}
    except MemoryError:
        raise
    except Exception:  # readers raise nearly anything over a damaged file
        return None
    good = all(array.shape == shape and array.dtype == COLUMNS[name] for name, array in found.items())
    return found if good else None


def open_folder(path: Path, facts: Facts) -> Folder:
    """The folder of a scan with these facts, made if it is not there.

    Raises:
        InvalidValueError: it holds another scan; names what differs, and what to do.
        VersionError: it was written by another version of the layout.
    """
    if path.exists() and not path.is_dir():
        raise InvalidValueError(f"{path} is a file: give a folder")
    held = [name for name in ("tiles", "points", "zoom.json") if (path / name).exists()]
    if not (path / SIDECAR).exists():  # looked for last: another rank writes it before all else
        if held:
            raise InvalidValueError(f"{path} holds {held[0]}, but no {SIDECAR} that says of what: give another folder")
        put(path / SIDECAR, lambda file: file.write(text_of(facts).encode()))
    there, asked = flat(read_facts(path)), flat(json.loads(text_of(facts)))
    changed = [
        f"{name} is {there.get(name)!r} there, {asked.get(name)!r} here"
        for name in sorted({*there, *asked})
        if there.get(name) != asked.get(name)
    ]
    if changed:
        more = f", and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise InvalidValueError(
            f"{path} holds another scan ({'; '.join(changed[:NAMED])}{more}): give another folder, or ask for the "
            f"scan that is there"
        )
    made = Folder(path)
    made.tidy(path / SIDECAR)
    return made


def text_of(facts: Facts) -> str:
    """Facts as JSON: equal facts give equal text."""
    return json.dumps(facts, sort_keys=True, indent=1) + "\n"


def read_facts(path: Path) -> Facts:
    """The facts of a scan's folder.

    Raises:
        InvalidValueError: no folder of a scan. VersionError: of another version of the layout.
    """
    try:
        facts = json.loads((path / SIDECAR).read_text())
    except FileNotFoundError:
        raise InvalidValueError(f"{path} holds no scan: it has no {SIDECAR}; scan(..., folder=...) makes one") from None
    except ValueError as error:
        raise InvalidValueError(f"{path / SIDECAR} is damaged ({error}): give another folder") from None
    version = facts.get("scan_version") if isinstance(facts, dict) else None
    if version != SCAN_VERSION:
        raise VersionError(
            f"{path / SIDECAR} has the version {version!r}, this package writes {SCAN_VERSION}: read it with the "
            f"version of fractal-streams that wrote it, or give another folder"
        )
    return facts


def flat(facts: Any, name: str = "") -> dict[str, Any]:
    """Facts with the names of nested ones joined by dots."""
    if not isinstance(facts, dict):
        return {name: facts}
    return {
        inner: value for key, each in facts.items() for inner, value in flat(each, f"{name}.{key}".strip(".")).items()
    }


class Silent:
    """Is told how many networks are there, and shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def expect(self, networks: int) -> None:
        """So many more are to be trained or found."""

    def found(self, networks: int) -> None:
        """So many were there already."""

    def trained(self, networks: int) -> None:
        """So many came, from here or from another rank."""


class NetworksBar(Silent):
    """A progress bar of networks; what was found is done, and not part of the rate.

    Raises:
        MissingExtraError: tqdm is not installed.
    """

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ImportError:
            raise missing_extra("tqdm", "cli") from None
        self.bar = tqdm(total=0, unit=" networks", unit_scale=True, smoothing=0.0, dynamic_ncols=True)

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def expect(self, networks: int) -> None:
        self.bar.total += networks
        self.bar.refresh()

    def found(self, networks: int) -> None:
        self.bar.initial += networks
        self.bar.update(networks)

    def trained(self, networks: int) -> None:
        self.bar.update(networks)


def completed(
    parts: Sequence[Part], store: Store, train: Callable[[Part], Columns], shard: Shard, bar: Silent, first: int = 0
) -> Iterator[tuple[Part, Columns]]:
    """Each part with its columns, once: those of this rank are trained if they are not there, the others awaited.

    Args:
        first: the number of the first part; part i belongs to rank i modulo the world size.

    The order is that in which they are there.
    """
    bar.expect(sum(part.size for part in parts))
    mine: list[Part] = []
    awaited: list[Part] = []
    for number, part in enumerate(parts, first):
        found = store.load(part)
        if found is None:
            (mine if number % shard.world_size == shard.rank else awaited).append(part)
            continue
        bar.found(part.size)
        yield part, found
    for part in mine:
        columns = train(part)
        store.save(part, columns)
        bar.trained(part.size)
        yield part, columns
    while awaited:
        for part in list(awaited):
            found = store.load(part)
            if found is not None:
                awaited.remove(part)
                bar.trained(part.size)
                yield part, found
        time.sleep(POLL_SECONDS if awaited else 0.0)
