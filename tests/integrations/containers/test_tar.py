"""Tar archives: what tarfile and webdataset read, and bytes that depend on the samples alone."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fractal_streams.integrations.containers.samples import checked_uint8, sample_json, sample_key, sample_rows
from fractal_streams.integrations.containers.tar import TAR_END, tar_bytes, tar_header
from hypothesis import given, settings, strategies as st
from PIL import Image

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError

from .pool import PoolStream, picture


def members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["png", "bmp", "npy"])
def test_tarfile_reads_every_sample_in_its_form(form: str) -> None:
    stream = PoolStream((3, 9, 11))
    found = members(tar_bytes(stream, stream[98:104], image=form) + TAR_END)
    assert list(found) == [f"{i:08d}.{end}" for i in range(98, 104) for end in (form, "cls", "json")]
    for i in range(98, 104):
        file = io.BytesIO(found[f"{i:08d}.{form}"])
        image = np.load(file) if form == "npy" else np.asarray(Image.open(file)).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, picture(i, (3, 9, 11)))
        assert int(found[f"{i:08d}.cls"]) == i % 10
        said = json.loads(found[f"{i:08d}.json"])
        assert (said["index"], said["label"], said["class"]) == (i, i % 10, f"class {i % 10}")
        assert said["latents"]["depth"] == i % 5
        angle = np.float32(i / 7)
        assert math.isnan(said["latents"]["angle"]) if i % 3 == 0 else said["latents"]["angle"] == float(angle)


def test_clips_are_arrays() -> None:
    stream = PoolStream((2, 3, 8, 8))
    found = members(tar_bytes(stream, stream[:2], image="png"))
    np.testing.assert_array_equal(np.load(io.BytesIO(found["00000001.npy"])), picture(1, (2, 3, 8, 8)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**62))
def test_batches_join_to_the_same_archive_however_they_are_cut(sizes: list[int], start: int) -> None:
    stream, total = PoolStream(), sum(sizes)
    whole = tar_bytes(stream, stream[start : start + total])
    place, joined = start, b""
    for size in sizes:
        joined += tar_bytes(stream, stream[place : place + size])
        place += size
    assert joined == whole
    assert len(members(whole)) == 3 * total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 8**11 - 1))
def test_a_header_is_what_the_standard_library_writes(index: int, size: int) -> None:
    expected = tarfile.TarInfo(f"{sample_key(index)}.json")
    expected.size, expected.mode = size, 0o644
    header = tarfile.TarInfo.frombuf(tar_header(expected.name, size), "ascii", "strict")
    for name in ("name", "size", "mode", "uid", "gid", "mtime", "type", "linkname", "uname", "gname"):
        assert getattr(header, name) == getattr(expected, name)
    assert tar_header(expected.name, size)[:329] == expected.tobuf(tarfile.USTAR_FORMAT)[:329]


def test_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset as wds

    stream = PoolStream()
    (tmp_path / "shard-000000.tar").write_bytes(tar_bytes(stream, stream[:5]) + TAR_END)
    dataset = (
        wds.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    )
    found = list(dataset)
    assert [label for _, label in found] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found[3][0], picture(3, (3, 8, 8)).transpose(1, 2, 0))


def test_a_key_is_a_number_in_at_least_eight_digits() -> None:
    assert [sample_key(index) for index in (0, 99_999_999, 2**63 - 1)] == [
        "00000000", "99999999", "9223372036854775807",
    ]  # fmt: skip


def test_what_is_said_of_a_sample_is_strict_json() -> None:
    stream = PoolStream()
    batch = stream[:4]
    rows = sample_rows(batch, stream)
    assert rows == [sample_json(batch, k, stream) for k in range(4)]
    assert [row["latents"]["angle"] for row in rows] == [None, float(np.float32(1 / 7)), float(np.float32(2 / 7)), None]
    json.dumps(rows, allow_nan=False)
    clips = open_stream("fractal-video", device="cpu", height=8, width=8, frames=3)
    batch = clips[5:6]
    said = sample_json(batch, 0, clips)["latents"]["alpha"]
    assert said == batch.latents["alpha"][0].tolist()
    assert len(said) == 3


def test_a_stream_of_another_dtype_is_refused() -> None:
    stream = PoolStream(dtype="float16")
    with pytest.raises(InvalidValueError, match="dtype='float16'.*open it with dtype='uint8'"):
        tar_bytes(stream, stream[:1])
    with pytest.raises(InvalidValueError, match="must be a Stream, got str"):
        checked_uint8("fractal-10")  # type: ignore[arg-type]
    assert checked_uint8(open_stream("fractal-10", device="cpu")).num_classes == 10


def test_an_unknown_form_is_refused() -> None:
    stream = PoolStream((2, 3, 8, 8))
    with pytest.raises(InvalidValueError, match="image must be one of"):
        tar_bytes(stream, stream[:1], image="gif")
