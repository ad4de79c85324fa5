"""The bytes of the file that an address names, made when they are read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any, BinaryIO

from fractal_streams.integrations.address import Address
from fractal_streams.integrations.containers.lazy import Blocks, opened
from fractal_streams.integrations.containers.pictures import picture_bytes, picture_size
from fractal_streams.integrations.containers.samples import block_rows, is_clips, sample_json
from fractal_streams.integrations.containers.tar import TAR_END, tar_bytes

import fractal_streams
from fractal_streams.errors import AddressError
from fractal_streams.stream import MAX_INDEX, Stream

BLOCK_BYTES, BLOCK = 2**23, 256
"""Most bytes of pixels, and most samples, that are rendered together."""
HELD_PARQUET = 2**26
"""The last Parquet file is kept if it has no more bytes: readers open a file for its schema, and again."""

_held: dict[str, bytes] = {}


def opened_file(address: Address) -> BinaryIO:
    """The file of an address, made as it is read, a block at a time; Parquet is made as a whole.

    Raises:
        AddressError: the address of a folder, or of a clip as a picture.

    Example:
        >>> with opened_file(Address.parse("fractal://fractal-10/test/seed=0/endless.tar")) as file:
        ...     file.read(12)
        b'00000000.png'
    """
    if not address.file:
        raise AddressError(f"{address} is a folder: name a file in it, such as shard-000000.tar")
    if address.format == "parquet":
        return io.BytesIO(_parquet(address))
    if address.is_picture:
        return io.BytesIO(_sample(address))
    return opened(file_blocks(address))


def file_blocks(address: Address) -> Blocks:
    """The bytes of a tar, Arrow or JSON lines file.

    Raises:
        AddressError: another kind of file.
    """
    stream = address.open_stream()
    encode, head, tail = _encoding(address, stream)
    indices = address.indices or range(address.start, MAX_INDEX + 1)
    rows = block_rows(stream, BLOCK_BYTES, BLOCK)

    def block(k: int) -> bytes:
        return encode(stream.generate(indices[k * rows : (k + 1) * rows]))

    count = None if address.indices is None else -(-len(indices) // rows)
    return Blocks(block=block, count=count, head=head, tail=tail)


def file_size(address: Address) -> int | None:
    """Bytes of the file, None where only making it would tell: of all files but the pixels of single samples."""
    if not address.is_picture or address.format == "json":
        return None
    stream = address.open_stream()
    check_picture(address, stream)
    return picture_size(tuple(stream.generate(range(0)).images.shape[1:]), address.format)


def entity_tag(address: Address) -> str:
    """What changes when the bytes under an address may: made of the package's version, the stream and the settings.

    Example:
        >>> entity_tag(Address.parse("fractal-10/train/seed=0/shard-000000.tar"))[:27]
        '0.1.0-f0e46db540887a8b-0-tr'
    """
    name = hashlib.blake2s(address.path.encode(), digest_size=8).hexdigest()
    return f"{fractal_streams.__version__}-{address.open_stream().digest()}-{name}"


def _encoding(address: Address, stream: Stream) -> tuple[Callable[[Any], bytes], bytes, bytes]:
    """How a batch becomes bytes, and what stands before and behind all of them."""
    if address.format == "tar":
        return lambda batch: tar_bytes(stream, batch, image=address.form("png")), b"", TAR_END
    from fractal_streams.integrations.containers import tables

    if address.format == "arrow":
        schema = tables.arrow_schema(stream, image=address.form("bmp"))
        head = tables.arrow_bytes(schema)
        return lambda batch: tables.arrow_bytes(tables.record_batch(stream, batch, schema)), head, tables.ARROW_END
    if address.format != "jsonl":
        raise AddressError(f"{address} is made as a whole, not in blocks")
    form = "npy" if is_clips(stream) else address.form("bmp")

    def lines(batch: Any) -> bytes:
        images = [str(address.picture(index, form)) for index in batch.numpy().index.tolist()]
        return tables.jsonl_bytes(stream, batch, images=images)

    return lines, b"", b""


def _sample(address: Address) -> bytes:
    stream = address.open_stream()
    check_picture(address, stream)
    batch = stream.generate(address.indices)
    if address.format == "json":
        return json.dumps(sample_json(batch, 0, stream), allow_nan=False).encode() + b"\n"
    return picture_bytes(batch.numpy().images, address.format)[0]


def check_picture(address: Address, stream: Stream) -> None:
    """Refuse the address of a clip as a picture, by an `AddressError`."""
    if address.format in ("png", "bmp") and is_clips(stream):
        raise AddressError(f"{address.file}: the samples of {address.source} are clips, whose files are .npy and .json")


def _parquet(address: Address) -> bytes:
    from fractal_streams.integrations.containers.tables import parquet_bytes

    tag = entity_tag(address)
    made = _held.get(tag)
    if made is None:
        assert address.indices is not None, address.file
        made = parquet_bytes(address.open_stream(), address.indices, image=address.form("bmp"))
        if len(made) <= HELD_PARQUET:
            _held.clear()
            _held[tag] = made
    return made
