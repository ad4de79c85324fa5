"""Pictures as files: BMP and PNG made for a whole batch at once, and `.npy`.

All pictures of a batch have one size, so all files that hold them uncompressed have one length and one
header: they are the rows of a single array. BMP is by far the cheapest to write and to decode; a
"stored" PNG is a PNG whose deflate stream is not compressed, for readers that insist on PNG.

PNG: ISO/IEC 15948; zlib and deflate: RFC 1950, RFC 1951; BMP: the BITMAPINFOHEADER of Windows 3.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError

UInt8 = npt.NDArray[np.uint8]

FORMS = ("png", "bmp", "npy")
"""What a picture can be inside a file; clips are always npy."""

BMP_HEADER = 54
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
STORED_BLOCK = 65535
"""Most bytes of one stored block of a deflate stream."""
LEVEL = 6
"""Of zlib, in a compressed PNG."""


def pixel_rows(images: npt.ArrayLike) -> UInt8:
    """The pictures as a (B, H, W, 3) view.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3) uint8.

    Raises:
        InvalidValueError: another shape or dtype.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]) or 0 in array.shape[1:]:
        raise InvalidValueError(
            f"pictures must be (B, 3, H, W) or (B, H, W, 3) uint8, got {array.shape} {array.dtype}; "
            f"open the stream with dtype='uint8'"
        )
    return array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array


def bmp_array(images: npt.ArrayLike) -> UInt8:
    """(B, N) uint8: row b is the BMP file (24 bits, bottom row first) of picture b; see `bmp_bytes`."""
    rows = pixel_rows(images)
    count, height, width, _ = rows.shape
    stride = (3 * width + 3) // 4 * 4
    size = BMP_HEADER + stride * height
    header = struct.pack("<2sIHHI", b"BM", size, 0, 0, BMP_HEADER)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, stride * height, 2835, 2835, 0, 0)
    files = np.zeros((count, size), np.uint8)
    files[:, :BMP_HEADER] = np.frombuffer(header, np.uint8)
    lines = files[:, BMP_HEADER:].reshape(count, height, stride)[:, ::-1, : 3 * width]
    pixels = lines.reshape(count, height, width, 3)
    for channel in range(3):  # blue first
        pixels[..., 2 - channel] = rows[..., channel]
    return files


def bmp_bytes(images: npt.ArrayLike) -> list[bytes]:
    """The BMP file of each picture.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3) uint8.

    Raises:
        InvalidValueError: another shape or dtype.

    Example:
        >>> import numpy as np
        >>> [len(file) for file in bmp_bytes(np.zeros((2, 3, 32, 32), np.uint8))]
        [3126, 3126]
    """
    return rows_as_bytes(bmp_array(images))


def png_array(images: npt.ArrayLike) -> UInt8:
    """(B, N) uint8: row b is the stored PNG file of picture b; see `png_bytes`."""
    lines = _png_lines(pixel_rows(images))
    count, length = lines.shape
    blocks = -(-length // STORED_BLOCK)
    body = 2 + length + 5 * blocks + 4
    head = _png_head(*pixel_rows(images).shape[1:3]) + struct.pack(">I", body) + b"IDAT" + b"\x78\x01"
    files = np.empty((count, len(head) + body - 2 + 4 + len(PNG_END)), np.uint8)
    files[:, : len(head)] = np.frombuffer(head, np.uint8)
    place = len(head)
    for start in range(0, length, STORED_BLOCK):
        part = lines[:, start : start + STORED_BLOCK]
        size = part.shape[1]
        last = start + size == length
        files[:, place : place + 5] = np.frombuffer(struct.pack("<BHH", last, size, size ^ 0xFFFF), np.uint8)
        files[:, place + 5 : place + 5 + size] = part
        place += 5 + size
    files[:, place + 8 :] = np.frombuffer(PNG_END, np.uint8)
    adler = np.array([zlib.adler32(line) for line in lines], ">u4")
    files[:, place : place + 4] = adler.view(np.uint8).reshape(count, 4)
    checked = len(head) - 6  # the checksum of a chunk begins at its name
    crc = np.array([zlib.crc32(file[checked : place + 4]) for file in files], ">u4")
    files[:, place + 4 : place + 8] = crc.view(np.uint8).reshape(count, 4)
    return files


def png_bytes(images: npt.ArrayLike, *, compress: bool = False) -> list[bytes]:
    """The PNG file of each picture.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3) uint8.
        compress: smaller files, by zlib at level 6, many times slower; else the pixels are stored.

    Raises:
        InvalidValueError: another shape or dtype.

    Example:
        >>> import numpy as np
        >>> [len(file) for file in png_bytes(np.zeros((2, 3, 32, 32), np.uint8))]
        [3172, 3172]
    """
    if not compress:
        return rows_as_bytes(png_array(images))
    rows = pixel_rows(images)
    head = _png_head(*rows.shape[1:3])
    bodies = (zlib.compress(line, LEVEL) for line in _png_lines(rows))
    return [
        b"".join(
            (head, struct.pack(">I", len(body)), b"IDAT", body, struct.pack(">I", zlib.crc32(body, IDAT_CRC)), PNG_END)
        )
        for body in bodies
    ]


IDAT_CRC = zlib.crc32(b"IDAT")


def npy_bytes(array: Any) -> bytes:
    """The array as a `.npy` file, in C order.

    Example:
        >>> import io, numpy as np
        >>> np.load(io.BytesIO(npy_bytes(np.arange(3))))
        array([0, 1, 2])
    """
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def picture_bytes(images: Any, form: str, *, compress: bool = False) -> list[bytes]:
    """The file of each picture in a form of `FORMS`; clips, (B, T, 3, H, W), as npy only.

    compress: of "png", see `png_bytes`.

    Raises:
        InvalidValueError: an unknown form, or a picture's form for clips.
    """
    if form == "npy":
        return [npy_bytes(image) for image in np.asarray(images)]
    return png_bytes(images, compress=compress) if checked_form(form) == "png" else bmp_bytes(images)


def picture_size(shape: tuple[int, ...], form: str) -> int:
    """Bytes of the file of one sample of this shape, as `picture_bytes` makes it; nothing is made for it.

    Example:
        >>> [picture_size((3, 32, 32), form) for form in FORMS]
        [3172, 3126, 3200]
    """
    if form == "npy":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "|u1"})
        return header.tell() + math.prod(shape)
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    if checked_form(form) == "bmp":
        return BMP_HEADER + (3 * width + 3) // 4 * 4 * height
    lines = height * (1 + 3 * width)
    return len(_png_head(height, width)) + 8 + 2 + lines + 5 * -(-lines // STORED_BLOCK) + 4 + 4 + len(PNG_END)


def checked_form(form: object) -> str:
    """The form if it is one of `FORMS`, else an `InvalidValueError`."""
    if not isinstance(form, str) or form not in FORMS:
        raise InvalidValueError(f"image must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    return form


def rows_as_bytes(files: UInt8) -> list[bytes]:
    """The rows of a C-contiguous (B, N) array."""
    size = files.shape[1]
    everything = memoryview(files.reshape(-1).data)
    return [bytes(everything[start : start + size]) for start in range(0, files.size, size)]


def _png_head(height: int, width: int) -> bytes:
    """Signature and first chunk of a picture of 8-bit RGB."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _png_lines(rows: UInt8) -> UInt8:
    """(B, H * (1 + 3 W)): what deflate packs, each line of pixels behind its filter's number, 0."""
    count, height, width, _ = rows.shape
    lines = np.zeros((count, height, 1 + 3 * width), np.uint8)
    pixels = lines[:, :, 1:].reshape(count, height, width, 3)
    for channel in range(3):
        pixels[..., channel] = rows[..., channel]
    return lines.reshape(count, height * (1 + 3 * width))
