"""Pictures as files: what PIL and NumPy read is, to the pixel, what was written."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from fractal_streams.integrations.containers.pictures import (
    bmp_bytes,
    npy_bytes,
    picture_bytes,
    picture_size,
    png_bytes,
)
from hypothesis import given, settings, strategies as st
from PIL import Image

from fractal_streams.errors import InvalidValueError

WRITERS = {
    "bmp": bmp_bytes,
    "png": png_bytes,
    "compressed png": lambda images: png_bytes(images, compress=True),
}
SIZES = [(8, 8), (8, 9), (9, 10), (13, 11), (300, 301), (8, 4096), (4096, 9)]


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def read(file: bytes, kind: str) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == kind.split()[-1].upper()
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("kind", WRITERS)
def test_pil_reads_what_was_written(kind: str, height: int, width: int) -> None:
    images = noise((2, height, width, 3))
    for given_images in (images, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), images.transpose(0, 3, 1, 2)):
        files = WRITERS[kind](given_images)
        assert len(files) == 2
        for file, image in zip(files, images, strict=True):
            np.testing.assert_array_equal(read(file, kind), image)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(4, 40), st.integers(4, 40), st.integers(0, 2**32))
def test_a_picture_is_written_alike_in_any_batch(count: int, height: int, width: int, seed: int) -> None:
    images = noise((count, 3, height, width), seed)
    for kind, writer in WRITERS.items():
        together = writer(images)
        assert together == [writer(images[k : k + 1])[0] for k in range(count)]
        np.testing.assert_array_equal(read(together[-1], kind), images[-1].transpose(1, 2, 0))


@pytest.mark.parametrize("height, width", [(8, 8), (21, 1040), (150, 145), (151, 145), (300, 301)])
def test_a_stored_png_keeps_its_own_checksums(height: int, width: int) -> None:
    file = png_bytes(noise((1, 3, height, width)))[0]
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    place, names, body = 8, [], b""
    while place < len(file):
        size, name = struct.unpack(">I4s", file[place : place + 8])
        content = file[place + 8 : place + 8 + size]
        (stated,) = struct.unpack(">I", file[place + 8 + size : place + 12 + size])
        assert stated == zlib.crc32(name + content)
        names.append(name)
        body += content if name == b"IDAT" else b""
        place += 12 + size
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    assert place == len(file)
    lines = zlib.decompress(body)  # refuses a wrong Adler-32
    assert len(lines) == height * (1 + 3 * width)
    blocks = -(-len(lines) // 65535)
    assert len(body) == 2 + len(lines) + 5 * blocks + 4


def test_a_length_of_exactly_one_stored_block_has_no_empty_one_behind_it() -> None:
    height, width = 15, 1456  # 15 * (1 + 3 * 1456) = 65535
    file = png_bytes(noise((1, 3, height, width)))[0]
    assert len(file) == picture_size((3, height, width), "png") == 8 + 25 + 12 + 2 + 65535 + 5 + 4 + 12
    read(file, "png")


def test_npy_is_what_numpy_writes() -> None:
    for array in (noise((3, 8, 8)), noise((4, 3, 5, 7)), noise((3, 8, 9)).transpose(1, 2, 0)):
        expected = io.BytesIO()
        np.save(expected, np.ascontiguousarray(array))
        assert npy_bytes(array) == expected.getvalue()


@pytest.mark.parametrize("form", ["png", "bmp", "npy"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 33, 17), (33, 17, 3), (3, 400, 401)])
def test_the_size_is_known_before_a_file_is_made(form: str, shape: tuple[int, ...]) -> None:
    (file,) = picture_bytes(noise((1, *shape)), form)
    assert picture_size(shape, form) == len(file)


def test_the_size_of_clips_is_known_too() -> None:
    (file,) = picture_bytes(noise((1, 4, 3, 8, 9)), "npy")
    assert picture_size((4, 3, 8, 9), "npy") == len(file)


def test_no_pictures_are_no_files() -> None:
    for writer in WRITERS.values():
        assert writer(np.zeros((0, 3, 8, 8), np.uint8)) == []
    assert picture_bytes(np.zeros((0, 3, 8, 8), np.uint8), "npy") == []


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 3, 8, 8), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((1, 4, 8, 8), np.uint8)],
    ids=["floats", "one picture", "four channels"],
)
def test_other_arrays_are_refused_by_name(images: np.ndarray) -> None:
    for writer in WRITERS.values():
        with pytest.raises(InvalidValueError, match="dtype='uint8'"):
            writer(images)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="'png', 'bmp', 'npy', got 'jpg'"):
        picture_bytes(noise((1, 3, 8, 8)), "jpg")
    with pytest.raises(InvalidValueError, match="got None"):
        picture_bytes(noise((1, 3, 8, 8)), None)  # type: ignore[arg-type]
