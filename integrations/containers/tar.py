"""Samples as a tar archive in webdataset's form: KEY.png, KEY.cls and KEY.json stand together.

Headers are ustar (POSIX.1-1988) and the same wherever and whenever they are made: no time, no owner.
"""

from __future__ import annotations

import json
from typing import Any

from fractal_streams.integrations.containers.pictures import checked_form, picture_bytes
from fractal_streams.integrations.containers.samples import checked_uint8, sample_key, sample_rows

from fractal_streams.stream import Stream

BLOCK = 512
TAR_END = bytes(2 * BLOCK)
"""Two blocks of zeros, behind the last member."""


def tar_bytes(stream: Stream, batch: Any, *, image: str = "png", compress: bool = False) -> bytes:
    """The members of a batch, without `TAR_END`: archives are made by joining these and ending them once.

    Args:
        stream: what the batch came from; names the classes.
        batch: a `Batch` of uint8 pictures, or of clips, which are written as npy whatever `image` says.
        image: "png", "bmp" or "npy".
        compress: smaller PNG files, many times slower.

    KEY.json is what `sample_json` says, with NaN, as Python's json reads and writes it, where that has None:
    `datasets` takes the type of a value from the first samples, and null for a type of its own.

    Raises:
        InvalidValueError: an unknown form, or a stream whose dtype is not uint8.

    Example:
        >>> import io, tarfile
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu")
        >>> archive = tarfile.open(fileobj=io.BytesIO(tar_bytes(stream, stream[40:42]) + TAR_END))
        >>> archive.getnames()[:4]
        ['00000040.png', '00000040.cls', '00000040.json', '00000041.png']
    """
    checked_uint8(stream)
    checked_form(image)
    host = batch.numpy()
    form = "npy" if host.images.ndim == 5 else image
    parts: list[bytes] = []
    pictures = picture_bytes(host.images, form, compress=compress)
    for row, picture in zip(sample_rows(host, stream, keep_nan=True), pictures, strict=True):
        key = sample_key(row["index"])
        for extension, content in (
            (form, picture),
            ("cls", str(row["label"]).encode()),
            ("json", json.dumps(row).encode()),
        ):
            parts += (tar_header(f"{key}.{extension}", len(content)), content, bytes(-len(content) % BLOCK))
    return b"".join(parts)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member of `size` bytes: mode 0644, no owner, no time."""
    name_field = name.encode("ascii")
    size_field = b"%011o\0" % size
    total = sum(name_field) + sum(size_field) + FIXED_SUM
    return b"".join((name_field.ljust(100, b"\0"), OWNER, size_field, MTIME, b"%06o\0 " % total, REST))


OWNER = b"0000644\x00" + 2 * b"0000000\x00"
MTIME = b"00000000000\0"
REST = (b"0" + bytes(100) + b"ustar\x00" + b"00").ljust(BLOCK - 156, b"\0")
FIXED_SUM = sum(OWNER) + sum(MTIME) + 8 * ord(" ") + sum(REST)
"""Of the checksum; its own field counts as spaces."""
