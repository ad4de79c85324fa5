"""Streams as files: the `fractal://` filesystem of fsspec, whose bytes are made when they are read.

An entry point registers it, so that whatever reads through fsspec (`datasets`, pandas, pyarrow) reads
streams without an import of this package.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

from fractal_streams.integrations.address import PROTOCOL, QUERY, SHARD_FORMATS, Address, checked_source
from fractal_streams.integrations.containers.tar import TAR_END
from fractal_streams.integrations.files import check_picture, entity_tag, file_blocks, file_size, opened_file

from fractal_streams.errors import AddressError, InvalidValueError, ReadOnlyError, missing_extra, unknown_name
from fractal_streams.presets import PRESETS
from fractal_streams.stream import SPLITS

try:
    from fsspec import AbstractFileSystem
    from fsspec.utils import read_block
except ImportError:
    raise missing_extra("fsspec", "filesystem") from None

MAGIC = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
COUNTING = re.compile(r"([0-9]+)\.\.([0-9]+)")
MAX_PATHS = 10**6
"""Most paths that braces are expanded to."""


class FractalFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Streams as files that can only be read; their addresses: `fractal_streams.integrations.address`.

    Folders list presets, their splits, `seed=0` (every other seed is there when asked for) and the shards in
    each format. Single pictures and endless files are there when named, and in no list. Tar, Arrow and JSON
    lines are made block by block; a Parquet file is made as a whole when it is opened.

    Raises:
        AddressError: nothing is under a path; a FileNotFoundError that says what is wrong with it.
        ReadOnlyError: a write; an OSError with EROFS.
        DeviceError: a device that an address names is not there.

    Example:
        >>> import fsspec
        >>> filesystem = fsspec.filesystem("fractal")
        >>> filesystem.glob("fractal://fractal-10/test/seed=0/shard-{000000..000001}.tar")
        ['fractal-10/test/seed=0/shard-000000.tar', 'fractal-10/test/seed=0/shard-000001.tar']
        >>> with fsspec.open("fractal://fractal-10/test/seed=0/00000042.bmp") as file:
        ...     file.read(2)
        b'BM'
    """

    protocol = PROTOCOL

    @property
    def fsid(self) -> str:
        """One for all: what is under an address does not depend on who reads it."""
        return PROTOCOL

    def info(self, path: str, **settings: Any) -> dict[str, Any]:
        """name, type, size (None where only making the file would tell) and, of files, ETag."""
        path = self._plain(path)
        if is_folder(path):
            return {"name": path, "size": 0, "type": "directory"}
        address = Address.parse(path)
        return FileInfo(name=path, size=file_size(address), type="file", ETag=entity_tag(address))

    def ls(self, path: str, detail: bool = True, **settings: Any) -> list[Any]:
        """What a folder holds, or the file itself."""
        path = self._plain(path)
        names = [joined(path, name) for name in listed(path)] if is_folder(path) else [self.info(path)["name"]]
        return [self.info(name) for name in names] if detail else names

    def glob(self, path: str, maxdepth: int | None = None, **settings: Any) -> Any:
        """Paths that a pattern of `*`, `**`, `?`, `[..]`, `{a,b}` and `{000000..000999}` names, in order.

        Raises:
            AddressError: a path without wildcards names nothing: what was asked for by name is never left out.
            InvalidValueError: a path with wildcards, but none of `**`, can name nothing.
        """
        found: dict[str, None] = {}
        plain = self._strip_protocol(path)
        for pattern in expanded(plain):
            try:
                found.update(dict.fromkeys(matches(as_path(pattern))))
            except AddressError as error:
                # `datasets` drops a pattern silently at a FileNotFoundError, and whatever has a `?` is one to it.
                raise (InvalidValueError(str(error)) if MAGIC.search(plain) else error) from None
        return {name: self.info(name) for name in found} if settings.get("detail") else list(found)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **settings: Any) -> Any:
        """The bytes of a file; of a pattern, a folder or a list a dict of them. The `?` of a query is no wildcard."""
        return super().cat(self._plain(path) if isinstance(path, str) else path, recursive, on_error, **settings)

    # fsspec's own of these two ask an open file for its `size`, which only making all of it would tell.

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **settings: Any) -> bytes:
        """Bytes `start` to `end` of a file, as `bytes[start:end]` counts them."""
        with self.open(path) as file:
            if min(start or 0, end or 0) < 0:
                start, end, _ = slice(start, end).indices(file.seek(0, os.SEEK_END))
            file.seek(start or 0)
            return bytes(file.read(-1 if end is None else max(0, end - (start or 0))))

    def read_block(self, fn: str, offset: int, length: int | None, delimiter: bytes | None = None) -> bytes:
        """`length` bytes from `offset` on, None to the end; with a delimiter, from behind one to behind one."""
        with self.open(fn) as file:
            whole = length is None and not delimiter
            return bytes(read_block(file, offset, -1 if whole else length, delimiter))

    def get_file(self, rpath: str, lpath: Any, *arguments: Any, **settings: Any) -> Any:
        """Copy a file to a local place.

        Raises:
            InvalidValueError: an endless file, which would fill the disk.
        """
        path = self._plain(rpath)
        if not is_folder(path) and Address.parse(path).indices is None:
            raise InvalidValueError(
                f"{path} has no end and can't be copied: read it as it is made (datasets: streaming=True), or name "
                f"shards"
            )
        return super().get_file(rpath, lpath, *arguments, **settings)

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> BinaryIO:
        if mode != "rb":
            raise read_only(path)
        path = self._plain(path)
        if is_folder(path):
            raise IsADirectoryError(errno.EISDIR, "a folder: name a file in it, such as shard-000000.tar", path)
        return opened_file(Address.parse(path))

    def _plain(self, path: str) -> str:
        return as_path(self._strip_protocol(path))

    def _refuse(self, path: Any = "", *arguments: Any, **settings: Any) -> Any:
        raise read_only(path)

    def _refuse_copy(self, source: Any = "", target: Any = "", *arguments: Any, **settings: Any) -> Any:
        raise read_only(target)

    mkdir = mkdirs = makedirs = makedir = rmdir = rm = rm_file = _rm = delete = touch = pipe_file = pipe = _refuse
    cp_file = copy = cp = mv = move = rename = put_file = put = upload = _refuse_copy


class FileInfo(dict[str, Any]):
    """What `info` says of a file; `get` takes a size that is None for none at all.

    `datasets` compares what get("size", 0) gives with a number, before it copies 16 files or more.
    """

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key)
        return default if found is None else found


def copy_shards(urls: Iterable[str], out: BinaryIO) -> int:
    """Write tar files one behind the other as a single archive, for webdataset's `pipe:fractal-streams tar ...`.

    Args:
        urls: addresses of .tar files, with wildcards and braces; an endless one may be the last.
        out: where to; when its reader closes the pipe, this ends quietly.

    Returns:
        Bytes that were written.

    Raises:
        AddressError: an address names no file, or none that is a tar.
        InvalidValueError: no address, or one behind an endless file.

    Example:
        >>> import io, tarfile
        >>> out = io.BytesIO()
        >>> copy_shards(["fractal://fractal-10/test/seed=0/samples=2/shard-{000003..000004}.tar"], out)
        25600
        >>> tarfile.open(fileobj=io.BytesIO(out.getvalue())).getnames()[::3]
        ['00000006.png', '00000007.png', '00000008.png', '00000009.png']
    """
    addresses = [Address.parse(path) for url in urls for path in FractalFileSystem().glob(url)]
    for address in addresses:
        if address.format != "tar":
            raise AddressError(f"{address} is no .tar file, and only these are written one behind the other")
    if not addresses:
        raise InvalidValueError("no address names a file: give one such as fractal-10/train/seed=0/shard-000000.tar")
    for address in addresses[:-1]:
        if address.indices is None:
            raise InvalidValueError(f"{address} has no end, so that nothing can come behind it: name it last")
    written = 0
    try:
        for address in addresses:
            blocks = file_blocks(address)
            for k in itertools.count() if blocks.count is None else range(blocks.count):
                written += _write(out, blocks.block(k))
        written += _write(out, TAR_END)
        out.flush()
    except BrokenPipeError:
        _let_go(out)
    return written


def _write(out: BinaryIO, content: bytes) -> int:
    """Write all of it, also to a pipe without a buffer, which may take a part at a time."""
    left = memoryview(content)
    while left:
        left = left[out.write(left) :]
    return len(content)


def _let_go(out: BinaryIO) -> None:
    """Point a pipe that nobody reads to nowhere, so that what is left in its buffer fails no later flush."""
    try:
        pipe = out.fileno()
    except (AttributeError, OSError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, pipe)
    os.close(nowhere)


def expanded(pattern: str) -> Iterator[str]:
    """The patterns that braces stand for, in order.

    Raises:
        AddressError: more than a million of them, or numbers that count down.

    Example:
        >>> list(expanded("{train,test}/shard-{008..010}"))[2:4]
        ['train/shard-010', 'test/shard-008']
    """
    pieces = BRACES.split(pattern)
    choices: list[Iterable[str]] = []
    count = 1
    for place, piece in enumerate(pieces):
        bounds = COUNTING.fullmatch(piece) if place % 2 else None
        if bounds:
            low, high = int(bounds[1]), int(bounds[2])
            width = len(bounds[1])
            if high < low:
                raise AddressError(f"{{{piece}}} counts down: write {{{bounds[2]}..{bounds[1]}}}")
            choices.append([f"{number:0{width}d}" for number in range(low, min(high, low + MAX_PATHS) + 1)])
        else:
            choices.append(piece.split(",") if place % 2 else [piece])
        count *= len(list(choices[-1]))
    if count > MAX_PATHS:
        raise AddressError(f"{pattern!r} stands for more than {MAX_PATHS} paths: use fewer shards of more samples")
    return ("".join(parts) for parts in itertools.product(*choices))


def matches(pattern: str) -> list[str]:
    """Paths that a pattern without braces names; an `AddressError` if it has no wildcards and names nothing."""
    segments = pattern.split("/") if pattern else []
    wild = [place for place, segment in enumerate(segments) if MAGIC.search(segment)]
    found = [""]
    for place, segment in enumerate(segments):
        before = found
        chosen = any(earlier < place for earlier in wild)
        if segment == "**":
            last = place == len(segments) - 1
            found = [name for path in found for name in folders(path, files=last, chosen=chosen)]
        elif place in wild:
            ending = segment.rpartition(".")[2]
            formats = (ending,) if ending in SHARD_FORMATS else SHARD_FORMATS
            found = [path for path in found if not chosen or is_there(path)]
            found = [
                joined(path, name) for path in found for name in listed(path, formats) if fnmatchcase(name, segment)
            ]
        else:
            found = [joined(path, segment) for path in found]
        if not found and "**" not in segments:
            raise AddressError(f"no name fits {segment!r} in {', '.join(before[:3])}: {known_names(before[0])}")
    if wild and wild[-1] == len(segments) - 1:
        return found
    return [path for path in found if is_there(path)] if wild else [path for path in found if is_folder(path) or path]


def known_names(path: str) -> str:
    """What a folder holds, in words."""
    names = list(listed(path, SHARD_FORMATS[:1]))
    if len(names) <= len(PRESETS):
        return f"it holds {', '.join(names)}"
    return f"it holds {names[0]} to {names[-1]}, each also as {', '.join(SHARD_FORMATS[1:])}"


def folders(path: str, *, files: bool = False, chosen: bool = False) -> list[str]:
    """A folder and all folders in it; and what these hold, if files are asked for.

    chosen: by a wildcard and not by name; then one whose stream can't be opened here is left out.
    """
    if chosen and not is_there(path):
        return []
    if path.count("/") >= 2:
        return [path, *(joined(path, name) for name in (listed(path) if files else ()))]
    inside = (joined(path, name) for name in listed(path))
    return [path, *(found for each in inside for found in folders(each, files=files, chosen=True))]


def listed(path: str, formats: tuple[str, ...] = SHARD_FORMATS) -> Iterable[str]:
    """Names in a folder; of shards, those in some formats. A file holds none."""
    if not is_folder(path):
        return ()
    depth = len(path.split("/")) if path else 0
    return (PRESETS, SPLITS, ("seed=0",))[depth] if depth < 3 else Address.parse(path).shard_names(formats)


def is_folder(path: str) -> bool:
    """Whether a folder is under a path, and not a file.

    Raises:
        AddressError: neither is.
    """
    source, *rest = path.split("/")
    if path:
        checked_source(source)
    if not rest:
        return True
    if len(rest) == 1:
        if rest[0] not in SPLITS:
            raise AddressError(str(unknown_name("split", rest[0], SPLITS)))
        return True
    address = Address.parse(path)
    stream = address.open_stream()
    if address.is_picture:
        check_picture(address, stream)
    return not address.file


def is_there(path: str) -> bool:
    """Whether a file or folder is under a path."""
    try:
        is_folder(path)
    except AddressError:
        return False
    return True


def as_path(path: str) -> str:
    """The path with the settings of its query as segments before the file.

    Example:
        >>> as_path("fractal-10/train/seed=1/shard-*.tar?height=64&samples=10")
        'fractal-10/train/seed=1/height=64/samples=10/shard-*.tar'
    """
    plain, *query = QUERY.split(path.strip("/"), maxsplit=1)
    if not query:
        return plain
    *folder, last = plain.split("/")
    named = len(folder) >= 2 and "=" not in last
    return "/".join((*folder, *(() if named else (last,)), *query[0].split("&"), *((last,) if named else ())))


def joined(path: str, name: str) -> str:
    """A name in a folder as a path."""
    return f"{path}/{name}" if path else name


def read_only(path: object) -> ReadOnlyError:
    """The error of a write."""
    return ReadOnlyError(
        errno.EROFS, f"{PROTOCOL}:// is made from streams and can only be read; write to another filesystem", str(path)
    )
