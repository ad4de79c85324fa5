"""A folder that an export fills: what it is to hold, what it holds already, and how a file gets there.

While ranks write, the folder has a hidden folder `.export`: `plan.json` says what is being written, `shards/` has
one record for each shard that is whole, and `writing/` what is not. A file is written there and renamed into its
place, then its record is renamed into its own: a process that is killed leaves a whole file or none. When every
shard has its record, whoever sees that writes `manifest.json`, which is the plan and all records in their order, and
takes `.export` away. All of it is a function of the plan, so it does not matter who does it, or how often.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError, VersionError

MANIFEST = "manifest.json"
HIDDEN = ".export"
OWN = re.compile(re.escape(HIDDEN) + r"(\.[0-9a-f]{12})?")
"""Names that the hidden folder has, laid out and before; what else begins so is another's."""
MANIFEST_VERSION = 1
ATTEMPTS = 5
"""Times that a folder is looked at anew, if another rank changes it in between."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is written at once: the samples [first, first + count) of a split.

    name: the file, relative to the folder, with forward slashes; of an image folder, whose pieces are many files,
        only a name.
    """

    name: str
    split: str
    first: int
    count: int

    @property
    def indices(self) -> range:
        """The indices of the samples."""
        return range(self.first, self.first + self.count)

    @property
    def mark(self) -> str:
        """The name as one word."""
        return self.name.replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A piece that is whole: its bytes, and the SHA-256 of its file.

    Of many files, that of path, length and bytes of each, in the order of their paths.
    """

    name: str
    split: str
    first: int
    count: int
    bytes: int
    sha256: str


class ExportFolder:
    """The folder of an export with a plan.

    Args:
        root: the folder; it need not exist.
        plan: what it is to hold, as values that JSON has.
    """

    def __init__(self, root: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        self.root = Path(root)
        self.plan = json.loads(json.dumps(plan))
        self.hidden = self.root / HIDDEN

    def begin(self) -> None:
        """Lay out the folder, or find it laid out for the same plan; any number of ranks may do so at once.

        Raises:
            InvalidValueError: the folder holds other things, or an export of another plan; names the difference.
            VersionError: it was begun by another version of this package, and is not complete.
        """
        if (self.root.exists() or self.root.is_symlink()) and not self.root.is_dir():
            raise InvalidValueError(f"{str(self.root)!r} is a file, or a link to nothing: name a folder to export to")
        for _ in range(ATTEMPTS):
            found = self._held()
            if found is not None:
                self._refuse_other_plan(found)
                return
            here = [each.name for each in self.root.iterdir()] if self.root.exists() else []
            others = sorted(name for name in here if not OWN.fullmatch(name))
            if not others:
                self._lay_out()
            elif self._held() is None:  # unless another rank has begun since
                raise InvalidValueError(
                    f"{str(self.root)!r} holds other things ({', '.join(others[:3])}{', …' if others[3:] else ''}) and "
                    f"no export: name an empty or new folder"
                )
        raise InvalidValueError(f"{str(self.root)!r} is taken away while it is written: let one program write it")

    def records(self) -> dict[str, Record]:
        """The pieces that are whole, as recorded, by name."""
        manifest = read_json(self.root / MANIFEST)
        if manifest is None:
            found = [read_json(path) for path in sorted((self.hidden / "shards").glob("*.json"))]
            manifest = read_json(self.root / MANIFEST)  # another rank may have completed it meanwhile
        shards = found if manifest is None else manifest["shards"]
        return {each["name"]: Record(**each) for each in shards if each is not None}

    def intact(self, record: Record, files: Sequence[str], verify: bool) -> bool:
        """Whether the files of a piece are there as recorded; without `verify` only their length is compared."""
        try:
            if sum((self.root / name).stat().st_size for name in files) != record.bytes:
                return False
            return not verify or fingerprint(self.root, files)[0] == record.sha256
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False

    @contextlib.contextmanager
    def writing(self, piece: Piece) -> Iterator[Path]:
        """A place for a piece that is not whole yet; what is still there afterwards is deleted."""
        folder = self.hidden / "writing"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{piece.mark}.{secrets.token_hex(6)}"
        try:
            yield path
        finally:
            discard(path)

    def commit(self, piece: Piece, written: Path, files: Sequence[str]) -> Record:
        """Put a piece that was written whole, a file or a folder of these files, in its place, and record it.

        Raises:
            FileNotFoundError: another run, which has made this piece too, took some of it away.
            VersionError: its bytes are not those that were recorded for it before.
        """
        many = written.is_dir()
        sha256, size = fingerprint(written, files if many else [""])
        record = Record(**asdict(piece), bytes=size, sha256=sha256)
        known = self._record(piece)
        if known is not None and known != record:
            raise VersionError(
                f"{piece.name} is damaged or missing, and what is made now is not what was recorded ({sha256[:12]}, "
                f"recorded {known.sha256[:12]}): repair it with the versions and the machine that wrote it, or export "
                f"to a new folder"
            )
        for folder in {(self.root / name).parent for name in files}:
            folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            os.replace(f"{written}/{name}" if many else written, f"{self.root}/{name}")
        if not (self.root / MANIFEST).exists():
            self._place(self.hidden / "shards" / f"{piece.mark}.json", as_json(asdict(record)))
        # What a killed run left of this piece, or what another run is about to throw away.
        for left in (self.hidden / "writing").glob(f"{piece.mark}.*"):
            discard(left)
        return record

    def finish(self, pieces: Sequence[Piece], closing: Mapping[str, bytes], folders: Iterable[str] = ()) -> int:
        """Complete the folder if every piece is recorded: closing files, manifest, nothing hidden.

        Args:
            pieces: all of the plan, in their order.
            closing: files that say what the pieces are, by name; in a complete folder only those that are
                missing are written, so that a card may be edited.
            folders: that must be there, if empty.

        Returns:
            The number of pieces that nobody has recorded: 0 if the folder is complete.
        """
        found = self.records()
        missing = sum(piece.name not in found for piece in pieces)
        if missing:
            return missing
        complete = (self.root / MANIFEST).exists()
        for name in folders:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name, content in closing.items():
            if not (complete and (self.root / name).exists()):
                self._place(self.root / name, content)
        if not complete:
            ordered = [asdict(found[piece.name]) for piece in pieces]
            self._place(self.root / MANIFEST, as_json({**self.plan, "shards": ordered}))
        for left in [path for path in self.root.iterdir() if OWN.fullmatch(path.name)]:
            discard(left)
        return 0

    def _record(self, piece: Piece) -> Record | None:
        """The record of one piece, if it has one."""
        if (self.root / MANIFEST).exists():
            return self.records().get(piece.name)
        found = read_json(self.hidden / "shards" / f"{piece.mark}.json")
        return None if found is None else Record(**found)

    def _place(self, path: Path, content: bytes) -> None:
        """Write a file in the hidden folder and rename it: it appears whole or not at all."""
        written = self.hidden / "writing" / f"{path.name}.{secrets.token_hex(6)}"
        for attempt in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError) if attempt + 1 < ATTEMPTS else contextlib.nullcontext():
                written.parent.mkdir(parents=True, exist_ok=True)  # a rank that completes the folder takes it away
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    written.write_bytes(content)
                    os.replace(written, path)
                    return
                finally:
                    discard(written)

    def _held(self) -> Any:
        """The plan that the folder was laid out for, "complete" if its manifest is there; None of an empty one."""
        manifest = read_json(self.root / MANIFEST)
        if manifest is not None:
            if not isinstance(manifest, dict) or "manifest_version" not in manifest or "shards" not in manifest:
                raise InvalidValueError(
                    f"{str(self.root / MANIFEST)!r} is not the manifest of an export: name another folder"
                )
            return {**{name: value for name, value in manifest.items() if name != "shards"}, "complete": True}
        plan = read_json(self.hidden / "plan.json")
        return None if plan is None else {**plan, "complete": False}

    def _refuse_other_plan(self, found: dict[str, Any]) -> None:
        if found["manifest_version"] != MANIFEST_VERSION:
            raise VersionError(
                f"{str(self.root)!r} was exported in version {found['manifest_version']!r} of the manifest, this is "
                f"{MANIFEST_VERSION}: use the fractal-streams version that wrote it"
            )
        held, asked = dict(found), dict(self.plan)
        complete, begun, now = held.pop("complete"), held.pop("package", None), asked.pop("package", None)
        for place, here, there in differences(held, asked):
            raise InvalidValueError(
                f"{str(self.root)!r} holds an export with {place} = {here!r}, and {there!r} was asked for: ask for the "
                f"same, or name another folder"
            )
        if begun != now and not complete:
            raise VersionError(
                f"{str(self.root)!r} was begun by {begun} and this is {now}, which may write other bytes: go on with "
                f"the version that began it, or name another folder"
            )
        if complete:
            self.plan = {**self.plan, "package": begun}

    def _lay_out(self) -> None:
        """Make the hidden folder with the plan in it; it appears whole, and only where there is none."""
        made = self.root / f"{HIDDEN}.{secrets.token_hex(6)}"
        try:
            (made / "shards").mkdir(parents=True)
            (made / "plan.json").write_bytes(as_json(self.plan))
            made.rename(self.hidden)
        except OSError as error:
            discard(made)
            if not isinstance(error, FileNotFoundError) and not self.hidden.exists():
                raise


def fingerprint(root: Path, files: Iterable[str]) -> tuple[str, int]:
    """SHA-256 in hexadecimal digits, and the bytes, of files under a folder; of one file, the file's own."""
    names = sorted(files)
    if len(names) == 1:
        path = root / names[0]
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    digest, size = hashlib.sha256(), 0
    for name in names:
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        size += len(content)
    return digest.hexdigest(), size


def differences(held: Any, asked: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two values of JSON differ: (place, one value, the other)."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*held, *asked)):
            yield from differences(held.get(name), asked.get(name), f"{place}.{name}" if place else name)
    elif held != asked:
        yield place, held, asked


def discard(path: Path) -> None:
    """Delete a file or a folder, also one that another rank is deleting."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None if there is no file.

    Raises:
        InvalidValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InvalidValueError(f"{str(path)!r} is not JSON ({error}): name another folder") from None


def as_json(value: Any) -> bytes:
    """JSON for people, in the order of the value."""
    return (json.dumps(value, indent=1) + "\n").encode()
