"""Packs: decoded once, found again, complete or not there, and never silent about what is left out."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from fractal_streams.errors import InvalidValueError, PictureError, UnknownNameError, VersionError
from fractal_streams.stored import Pack, pack, packing
from fractal_streams.stored.reduction import reduced


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}


def test_a_folder_is_packed_in_natural_order(pets: Path, tmp_path: Path, picture) -> None:
    found = pack(pets, tmp_path / "pack", height=20, width=16)
    assert found.names == (*(f"cat/{n}.png" for n in range(6)), *(f"dog/{n}.png" for n in range(6, 12)))
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0] * 6 + [1] * 6
    assert found.decoded == 12 and found.groups == found.names and found.skipped == ()
    assert found.facts["source"] == {"kind": "folder", "title": "pets", "ignored": 1}
    assert np.array_equal(found.picture(0), reduced(picture(0, 36, 24), 24, 16))
    assert np.array_equal(found.picture(11), reduced(picture(11, 35, 29), 20, 17))
    found.verify()
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == ["pack.json", "pixels.npy"]
    pixels = np.load(tmp_path / "pack" / "pixels.npy")
    assert pixels.dtype == np.uint8 and pixels.shape == (int((found.heights * found.widths).sum()), 3)


def test_a_second_call_decodes_nothing(pets: Path, tmp_path: Path, monkeypatch) -> None:
    made = pack(pets, tmp_path / "pack", height=20)
    monkeypatch.setattr(packing, "decoded", None)
    again = pack(str(pets), str(tmp_path / "pack"), height=20, width=20, on_error="skip")
    assert again.decoded == 0 and again.digest == made.digest
    moved = shutil.copytree(pets, tmp_path / "moved" / "pets")
    assert pack(moved, tmp_path / "pack", height=20).decoded == 0


def test_where_and_when_it_is_packed_changes_nothing(pets: Path, tmp_path: Path) -> None:
    one, two = pack(pets, tmp_path / "one", height=20), pack(pets, tmp_path / "two", height=20)
    for name in ("pack.json", "pixels.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert one.digest == two.digest != pack(pets, tmp_path / "three", height=19).digest


def test_a_pack_of_another_source_or_setting_is_refused_or_replaced(pets: Path, tmp_path: Path) -> None:
    first = pack(pets, tmp_path / "pack", height=20)
    with pytest.raises(InvalidValueError, match=r"height=20 there, 18 asked.*overwrite=True"):
        pack(pets, tmp_path / "pack", height=18)
    with pytest.raises(InvalidValueError, match="label='auto' there, 'none' asked"):
        pack(pets, tmp_path / "pack", height=20, label="none")
    Image.new("RGB", (30, 30)).save(pets / "cat" / "3.png")
    with pytest.raises(InvalidValueError, match="another source"):
        pack(pets, tmp_path / "pack", height=20)
    assert Pack.open(tmp_path / "pack").digest == first.digest
    second = pack(pets, tmp_path / "pack", height=20, overwrite=True)
    assert second.decoded == 12 and second.digest != first.digest and not second.picture(3).any()
    assert beside(tmp_path / "pack") == {"pets", "pack"}


@pytest.mark.parametrize("damage", ["nonsense", "cut short", "empty", "tiny"])
def test_a_picture_that_cant_be_used_is_named_and_counted(damage: str, pets: Path, tmp_path: Path) -> None:
    bad = pets / "dog" / "8.png"
    data = bad.read_bytes()
    bad.write_bytes({"nonsense": b"nonsense", "cut short": data[: len(data) // 2], "empty": b""}.get(damage, b""))
    if damage == "tiny":
        Image.new("RGB", (40, 7)).save(bad)
    with pytest.raises(PictureError, match=r"picture 9 of 12 in pets, dog/8.png.*on_error='skip'") as caught:
        pack(pets, tmp_path / "pack", height=20)
    assert ("7 x 40 pixels don't cover 20 x 20" in str(caught.value)) == (damage == "tiny")
    assert beside(tmp_path / "pack") == {"pets"}
    found = pack(pets, tmp_path / "pack", height=20, on_error="skip")
    assert len(found) == found.decoded == 11 and [each.name for each in found.skipped] == ["dog/8.png"]
    told = json.loads((tmp_path / "pack" / "pack.json").read_text())["skipped"]
    assert told == [{"name": "dog/8.png", "reason": found.skipped[0].reason}] and "0x" not in told[0]["reason"]
    assert pack(pets, tmp_path / "pack", height=20, on_error="skip").skipped == found.skipped
    with pytest.raises(PictureError, match=r"without 1 of 12 pictures \(dog/8.png: "):
        pack(pets, tmp_path / "pack", height=20)


def test_a_class_keeps_its_number_when_its_pictures_are_left_out(pets: Path, tmp_path: Path) -> None:
    for path in (pets / "cat").iterdir():
        path.write_bytes(b"")
    found = pack(pets, tmp_path / "pack", height=20, on_error="skip")
    assert found.classes == ("cat", "dog") and set(found.labels) == {1} and len(found.skipped) == 6


def test_what_can_not_be_packed_is_refused(pets: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.md").write_text("")
    with pytest.raises(InvalidValueError, match=r"no pictures in .*empty: it holds 1 files.*png"):
        pack(empty, tmp_path / "pack", height=20)
    with pytest.raises(InvalidValueError, match="12 can't be used.*cat/0.png: its 36 x 24"):
        pack(pets, tmp_path / "pack", height=100, on_error="skip")
    with pytest.raises(InvalidValueError, match="not empty and holds no pack"):
        pack(pets, empty, height=20)
    with pytest.raises(InvalidValueError, match="nothing at"):
        pack(tmp_path / "nowhere", tmp_path / "pack", height=20)
    assert beside(tmp_path / "pack") == {"pets", "empty"}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "height is missing"), ({"height": 0}, "height"), ({"height": 8, "width": 2.5}, "width"),
        ({"height": 8, "label": "colour"}, "label"), ({"height": 8, "skip": -1}, "skip"),
        ({"height": 8, "minimum_change": float("nan")}, "minimum_change"),
        ({"height": 8, "on_error": "pass"}, "on_error"),
        ({"height": 8, "minimum_change": 256}, "minimum_change"), ({"height": 8, "image_column": ""}, "image_column"),
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused(settings: dict, words: str, pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=words):
        pack(pets, tmp_path / "pack", **settings)


def test_an_unknown_setting_names_the_nearest(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'height'"):
        pack(pets, tmp_path / "pack", hieght=20)


KILLED = """
import os, sys
from fractal_streams.stored import pack, packing
count = [0]
real = packing.PixelDigest.add
def add(self, picture):
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        os._exit(9)
    return real(self, picture)
packing.PixelDigest.add = add
pack(sys.argv[1], sys.argv[2], height=20)
"""


def test_a_kill_leaves_no_half_of_a_pack(pets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    assert subprocess.run([sys.executable, "-c", KILLED, str(pets), str(folder), "7"], check=False).returncode == 9
    assert not folder.exists()
    made = pack(pets, folder, height=20)
    assert made.decoded == 12
    made.verify()


def test_two_at_once_make_one_pack(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    with ThreadPoolExecutor(4) as workers:
        jobs = [workers.submit(pack, pets, tmp_path / "pack", height=20, progress=False) for _ in range(4)]
    assert len({job.result().digest for job in jobs}) == 1
    assert beside(tmp_path / "pack") == {"pets", "pack"}
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InvalidValueError, match="filled by another process"):
        packing.put(other, tmp_path / "pack", "another key", False)
    with pytest.raises(FileNotFoundError):
        packing.put(tmp_path / "none", tmp_path / "new", "key", False)


def test_damage_is_found(pets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    made = pack(pets, folder, height=20)
    with (folder / "pixels.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(InvalidValueError, match="other pictures than it was made with"):
        Pack.open(folder).verify()
    with (folder / "pixels.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InvalidValueError, match="damaged"):
        Pack.open(folder)
    facts = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**facts, "pack_version": 99}))
    with pytest.raises(VersionError, match="99"):
        pack(pets, folder, height=20)
    assert pack(pets, folder, height=20, overwrite=True).digest == made.digest
    with pytest.raises(InvalidValueError, match="holds no pack"):
        Pack.open(pets)


def test_a_pack_travels_by_its_folder(pets: Path, tmp_path: Path) -> None:
    made = pack(pets, tmp_path / "pack", height=20)
    data = pickle.dumps(made)
    assert len(data) < 400 and np.array_equal(pickle.loads(data).picture(4), made.picture(4))
    pack(pets, tmp_path / "pack", height=21, overwrite=True)
    with pytest.raises(InvalidValueError, match="replaced"):
        pickle.loads(data)


def test_a_pack_of_arrays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    made = Pack.of(images, [0, 2, 1, 0, 0], names=list("abcde"))
    assert made.classes == ("class 0", "class 1", "class 2") and np.array_equal(made.picture(3), images[3])
    assert np.shares_memory(made.pixels, images)
    made.verify()
    assert np.array_equal(pickle.loads(pickle.dumps(made)).picture(2), images[2])
    assert made.digest != Pack.of(images, [0, 2, 1, 0, 1], names=list("abcde")).digest
    for wrong in (images[0], images.astype(np.float32), images[:0]):
        with pytest.raises(InvalidValueError, match="uint8"):
            Pack.of(wrong)
    for labels in ([0, 1], [0, 1, 2, 3, -1], [0.5] * 5):
        with pytest.raises(InvalidValueError, match="labels"):
            Pack.of(images, labels)
    with pytest.raises(InvalidValueError, match="classes"):
        Pack.of(images, [0, 2, 1, 0, 0], classes=("a", "b"))
    with pytest.raises(InvalidValueError, match="names"):
        Pack.of(images, names=["a"])


def test_modes_and_orientation(tmp_path: Path) -> None:
    source = tmp_path / "modes"
    source.mkdir()
    grey = np.random.default_rng(1).integers(0, 256, (8, 6), np.uint8)
    Image.fromarray(grey).save(source / "1-grey.png")
    deep = np.random.default_rng(2).integers(0, 65536, (8, 6), np.uint16)
    Image.fromarray(deep).save(source / "2-deep.png")
    clear = np.random.default_rng(3).integers(0, 256, (8, 6, 4), np.uint8)
    Image.fromarray(clear).save(source / "3-clear.png")
    Image.fromarray(grey).convert("P").save(source / "4-palette.gif")
    turned = Image.fromarray(clear[:, :, :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise, to see it upright
    turned.save(source / "5-turned.png", exif=exif)
    found = pack(source, tmp_path / "pack", height=6, reduction=1)
    for item, expected in enumerate((grey, deep >> 8, clear[:, :, :3], grey)):
        expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, 2)
        assert np.array_equal(found.picture(item), expected)
    assert np.array_equal(found.picture(4), np.rot90(clear[:, :, :3], -1))
    assert found.classes == ("modes",)
    Image.fromarray(grey.astype(np.float32)).save(source / "6-real.tiff")
    with pytest.raises(PictureError, match="6-real.tiff.*real numbers"):
        pack(source, tmp_path / "pack", height=6, overwrite=True)


def test_a_palette_with_transparency_is_looked_up(tmp_path: Path, picture) -> None:
    (tmp_path / "set").mkdir()
    coloured = Image.fromarray(picture(3, 8, 8) // 64 * 64).quantize(64)
    coloured.save(tmp_path / "set" / "palette.png", transparency=bytes(range(64)))
    made = pack(tmp_path / "set", tmp_path / "pack", height=8)  # no warning, which would be an error here
    assert np.array_equal(made.picture(0), np.asarray(coloured.convert("RGB")))


@pytest.mark.parametrize("high", [255, 70_000])
def test_levels_of_32_bits_are_refused(high: int, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    levels = np.linspace(0, high, 64).astype(np.int32).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "set" / "deep.tif")
    with pytest.raises(PictureError, match=f"its levels, 0 to {high}, are not of 16 bits"):
        pack(tmp_path / "set", tmp_path / "pack", height=8)


def test_a_full_disk_is_told_and_leaves_nothing(pets: Path, tmp_path: Path, monkeypatch) -> None:
    def full(file, pixels) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packing, "finish", full)
    with pytest.raises(OSError, match="No space left on device, while this pack was written: nothing") as caught:
        pack(pets, tmp_path / "pack", height=8)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_a_pack_behind_a_link_is_replaced_there(pets: Path, tmp_path: Path) -> None:
    pack(pets, tmp_path / "real", height=8)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert pack(pets, tmp_path / "link", height=8).decoded == 0
    made = pack(pets, tmp_path / "link", height=6, overwrite=True)
    assert made.decoded == 12 and (tmp_path / "link").is_symlink()
    assert Pack.open(tmp_path / "real").digest == made.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pets", "real"]
