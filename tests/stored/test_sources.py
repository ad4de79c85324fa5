"""Zips, shards, tables: what each kind of source hands over, and what it refuses."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError, PictureError
from fractal_streams.stored import pack
from fractal_streams.stored.packing import key_of
from fractal_streams.stored.settings import PackSettings, source_of


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "png")
    return data.getvalue()


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zip_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with zipfile.ZipFile(path, mode) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system has no symbolic links")


@pytest.fixture
def packed(tmp_path: Path):
    """A function that packs a source at 8 x 8, as it stands."""
    return lambda source, **settings: pack(
        source, tmp_path / "pack", **{"height": 8, "reduction": 1, "overwrite": True, **settings}
    )


def test_links_of_a_folder_are_followed_once(pets: Path, tmp_path: Path, packed) -> None:
    whole = packed(pets)
    link(pets / "dog" / "up", pets)
    link(pets / "cat" / "friends", pets / "dog")
    found = packed(pets)
    assert len(found) == len(whole) + 6  # the dogs among the cats, and nothing for ever
    assert sum(name.startswith("cat/friends/") for name in found.names) == 6


def test_a_link_to_nothing_is_named(pets: Path, tmp_path: Path, packed) -> None:
    link(pets / "dog" / "12.png", tmp_path / "gone.png")
    with pytest.raises(PictureError, match=r"dog/12.png, can't be used \(.*No such file"):
        packed(pets)
    found = packed(pets, on_error="skip")
    assert len(found) == 12 and [each.name for each in found.skipped] == ["dog/12.png"]


def test_a_zip_gives_what_its_folder_gives(pets: Path, tmp_path: Path, packed) -> None:
    members = {f"top/{path.relative_to(pets)}": path.read_bytes() for path in pets.rglob("*.*")}
    archive = zip_of(tmp_path / "pets.zip", {**members, "__MACOSX/top/cat/._0.png": b"", "top/list.csv": b""})
    folder, found = packed(pets), packed(archive)
    assert found.names == tuple(f"top/{name}" for name in folder.names)
    assert found.classes == folder.classes and np.array_equal(found.labels, folder.labels)
    assert np.array_equal(found.pixels, folder.pixels) and found.facts["source"]["ignored"] == 2


def test_a_zip_that_is_none_and_a_damaged_member(tmp_path: Path, picture, packed) -> None:
    wrong = tmp_path / "wrong.zip"
    wrong.write_bytes(b"PK nonsense")
    with pytest.raises(InvalidValueError, match="wrong.zip is no zip archive"):
        packed(wrong)
    archive = zip_of(tmp_path / "two.zip", {"1.png": png(picture(1, 9, 9)), "2.png": png(picture(2, 9, 9))})
    data = bytearray(archive.read_bytes())
    data[data.index(b"1.png") + 60] ^= 255
    archive.write_bytes(data)
    with pytest.raises(PictureError, match=r"picture 1 of 2 in two.zip, 1.png.*CRC"):
        packed(archive)
    found = packed(archive, on_error="skip")
    assert found.names == ("2.png",) and [each.name for each in found.skipped] == ["1.png"]


def test_a_zips_key_is_made_of_its_contents(tmp_path: Path, picture) -> None:
    settings = PackSettings(height=8)
    one, two = ({"1.png": png(picture(number, 9, 9))} for number in (1, 2))
    keys = [key_of(source_of(zip_of(tmp_path / "a.zip", members), settings), settings) for members in (one, two, one)]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("ending, mode", [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_shards_of_webdatasets_convention(ending: str, mode: str, tmp_path: Path, picture, packed) -> None:
    arrays = [picture(number, 8 + number, 9) for number in range(4)]
    for shard in range(2):
        members = {}
        for number in (2 * shard, 2 * shard + 1):
            members |= {f"{number:08d}.png": png(arrays[number]), f"{number:08d}.cls": b"%d" % (3 - number),
                        f"{number:08d}.txt": b"ignored"}  # fmt: skip
        tar_of(tmp_path / f"shard-{shard:03d}.{ending}", members, mode)
    found = packed(str(tmp_path / f"shard-{{000..001}}.{ending}"))
    assert found.names == tuple(f"shard-{n // 2:03d}.{ending}/{n:08d}.png" for n in range(4))
    assert found.labels.tolist() == [3, 2, 1, 0] and found.classes[3] == "class 3"
    assert all(np.array_equal(found.picture(n), arrays[n]) for n in range(4))
    assert found.facts["source"]["ignored"] == 4
    (tmp_path / "pack").rename(tmp_path / "kept")
    for source in (tmp_path, str(tmp_path / f"shard-*.{ending}"), sorted(tmp_path.glob(f"*.{ending}"), reverse=True)):
        assert packed(source).digest == found.digest


def test_classes_of_shards_come_from_json_or_folders(tmp_path: Path, picture, packed) -> None:
    image = png(picture(0, 9, 9))
    told = {"a.png": image, "a.json": b'{"label": 1}', "b.jpg": image, "b.json": b'{"class": 0, "label": 0}'}
    assert packed(tar_of(tmp_path / "json.tar", told)).labels.tolist() == [1, 0]
    named = {"a.png": image, "a.json": b'{"class": "dog"}', "b.png": image, "b.json": b'{"class": "cat"}'}
    assert packed(tar_of(tmp_path / "names.tar", named)).classes == ("cat", "dog")
    placed = {"train/cat/1.png": image, "train/dog/2.PNG": image, "train/dog/3.webp": image}
    found = packed(tar_of(tmp_path / "folders.tar", placed))
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 1, 1]
    alone = packed(tar_of(tmp_path / "alone.tar", {"1.png": image}))
    assert alone.classes == ("alone",)


@pytest.mark.parametrize(
    "members, reason",
    [
        ({"2.cls": b"1"}, "2, .*no picture among its members"),
        ({"2.png": b"?", "2.cls": b"1"}, "2.png, .*no picture that Pillow knows"),
        ({"2.png": None, "2.cls": b"dog"}, "2.png, .*'dog', not the number"),
        ({"2.png": None, "2.json": b"{"}, "2.png, "),
        ({"2.npy": b"\x93NUMPY"}, "2.npy, "),
    ],
)
def test_a_sample_that_cant_be_used_is_named(members: dict, reason: str, tmp_path: Path, picture, packed) -> None:
    image = png(picture(0, 9, 9))
    given = {"1.png": image, "1.cls": b"0", **{name: data or image for name, data in members.items()}}
    archive = tar_of(tmp_path / "one.tar", {**given, "3.png": image, "3.cls": b"1"})
    with pytest.raises(PictureError, match=f"picture 2 in one.tar, one.tar/{reason}"):
        packed(archive)
    found = packed(archive, on_error="skip")
    assert found.names == ("one.tar/1.png", "one.tar/3.png") and len(found.skipped) == 1
    assert found.labels.tolist() == [0, 1]


def test_links_of_a_tar_are_what_they_name(tmp_path: Path, picture, packed) -> None:
    path = tar_of(tmp_path / "linked.tar", {"a/1.png": png(picture(1, 8, 8)), "a/1.cls": b"1"})
    links = {
        "b/2.png": (tarfile.LNKTYPE, "a/1.png"), "b/2.cls": (tarfile.LNKTYPE, "a/1.cls"),
        "a/3.png": (tarfile.SYMTYPE, "1.png"), "a/3.cls": (tarfile.SYMTYPE, "1.cls"),
        "a/4.png": (tarfile.SYMTYPE, "/etc/passwd"), "a/5.png": (tarfile.SYMTYPE, "5.png"),
        "a/6.png": (tarfile.SYMTYPE, "1.png"), "a/6.cls": (tarfile.LNKTYPE, "gone.cls"),
    }  # fmt: skip
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    found = packed(path, on_error="skip")
    assert found.names == tuple(f"linked.tar/{name}" for name in ("a/1.png", "b/2.png", "a/3.png"))
    assert found.labels.tolist() == [1, 1, 1]
    assert all(np.array_equal(found.picture(item), picture(1, 8, 8)) for item in range(3))
    assert [(each.name, each.reason) for each in found.skipped] == [
        (f"linked.tar/a/{number}", f"its {kind} is a link to nothing in the archive")
        for number, kind in ((4, "png"), (5, "png"), (6, "cls"))
    ]


def test_a_member_that_a_sample_has_twice_is_named(tmp_path: Path, picture, packed) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as archive:
        for name, number in (("1", 1), ("2", 2), ("2", 3), ("3", 4)):
            info, data = tarfile.TarInfo(f"{name}.png"), png(picture(number, 8, 8))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(PictureError, match=r"twice.tar/2, can't be used \(the archive holds its png twice"):
        packed(path)
    found = packed(path, on_error="skip")
    assert found.names == ("twice.tar/1.png", "twice.tar/3.png") and len(found.skipped) == 1


def test_a_tar_that_is_none_or_cut_short(tmp_path: Path, picture, packed) -> None:
    wrong = tmp_path / "wrong.tar"
    wrong.write_bytes(b"nonsense" * 200)
    with pytest.raises(PictureError, match="wrong.tar, can't be used .*no tar archive"):
        packed(wrong)
    whole = tar_of(tmp_path / "whole.tar", {f"{n}.png": png(picture(n, 40, 40)) for n in range(4)})
    short = tmp_path / "short.tar"
    short.write_bytes(whole.read_bytes()[:12_000])
    found = packed(short, on_error="skip")
    assert found.names == ("short.tar/0.png", "short.tar/1.png") and "cut short, at 2.png" in found.skipped[-1].reason
    (tmp_path / "ends.tar").write_bytes(whole.read_bytes()[: whole.read_bytes().rindex(b"3.png") // 512 * 512])
    with pytest.raises(PictureError, match="ends.tar, can't be used .cut short behind 2.png"):
        packed(tmp_path / "ends.tar")


def test_what_a_stream_writes_is_read_back(tmp_path: Path, packed) -> None:
    tar = pytest.importorskip("fractal_streams.integrations.containers.tar")
    for name in ("fractal-10", "fractal-video"):
        stream = open_stream(name, device="cpu", height=8, width=8)
        batch = stream.generate(range(6))
        (tmp_path / f"{name}.tar").write_bytes(tar.tar_bytes(stream, batch) + tar.TAR_END)
        found = packed(tmp_path / f"{name}.tar")
        frames = batch.images.reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)
        assert np.array_equal(found.pixels.reshape(-1, 8, 8, 3), frames)
        assert found.labels.tolist() == np.repeat(batch.labels, len(frames) // 6).tolist()
        assert len(set(found.groups)) == 6


def test_what_is_no_source_is_refused(tmp_path: Path, packed) -> None:
    strange = tmp_path / "data.xyz"
    strange.write_bytes(b"")
    with pytest.raises(InvalidValueError, match=r"unknown ending 'xyz'; known are zip, tar, .*mp4"):
        packed(strange)
    unnamed = zip_of(tmp_path / "pictures.bin", {"1.png": b""})
    with pytest.raises(InvalidValueError, match="it is a zip archive"):
        packed(unnamed)
    for wrong in (7, [], [7], None, {"a": 1}):
        with pytest.raises(InvalidValueError, match="a source is"):
            packed(wrong)
    tar_of(tmp_path / "a.tar", {})
    zip_of(tmp_path / "a.zip", {})
    with pytest.raises(InvalidValueError, match="tar shards or of videos alone"):
        packed([tmp_path / "a.tar", tmp_path / "a.zip"])
    with pytest.raises(InvalidValueError, match="nothing at"):
        packed([tmp_path / "a.tar", tmp_path / "b.tar"])
    with pytest.raises(InvalidValueError, match="no pictures in a.tar"):
        packed(tmp_path / "a.tar")


def test_some_with_and_some_without_a_class_is_refused(tmp_path: Path, picture, packed) -> None:
    image = png(picture(0, 9, 9))
    archive = tar_of(tmp_path / "a.tar", {"1.png": image, "1.cls": b"0", "2.png": image})
    with pytest.raises(InvalidValueError, match="label='none'"):
        packed(archive)
    assert packed(archive, label="none").classes == ("a",)


class TestTables:
    """Datasets of the `datasets` library."""

    @pytest.fixture
    def table(self, picture):
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            {
                "img": datasets.Image(),
                "fine": datasets.ClassLabel(names=["ant", "bee", "cow"]),
                "text": datasets.Value("string"),
            }
        )
        images = [Image.fromarray(picture(n, 9, 8 + n)) for n in range(4)]
        rows = {"img": images, "fine": [2, 0, 2, 0], "text": list("abcd")}
        return datasets.Dataset.from_dict(rows, features=features)

    def test_images_and_class_names(self, table, packed, picture) -> None:
        found = packed(table, image_column="img", label_column="fine")
        assert found.classes == ("ant", "bee", "cow") and found.labels.tolist() == [2, 0, 2, 0]
        assert all(np.array_equal(found.picture(n), picture(n, 9, 8 + n)) for n in range(4))
        assert found.names[3] == "00000003" and found.facts["source"]["kind"] == "dataset"
        assert packed(table, image_column="img", label_column="text").classes == ("a", "b", "c", "d")
        assert packed(table, image_column="img").classes == ("dataset",)
        assert packed(table, image_column="img", label_column="fine", label="none").classes == ("dataset",)

    def test_a_second_call_decodes_nothing(self, table, tmp_path: Path) -> None:
        settings = {"height": 8, "image_column": "img", "label_column": "fine"}
        assert pack(table, tmp_path / "pack", **settings).decoded == 4
        assert pack(table, tmp_path / "pack", **settings).decoded == 0
        with pytest.raises(InvalidValueError, match="another source"):
            pack(table.select([0, 1]), tmp_path / "pack", **settings)

    def test_saved_and_hub_addresses(self, table, tmp_path: Path, packed) -> None:
        direct = packed(table, image_column="img", label_column="fine")
        table.save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "hub").mkdir()
        table.to_parquet(str(tmp_path / "hub" / "train.parquet"))
        for source in (tmp_path / "saved", f"hub:{tmp_path / 'hub'}"):
            found = packed(source, image_column="img", label_column="fine")
            assert np.array_equal(found.pixels, direct.pixels) and found.classes == direct.classes
        with pytest.raises(InvalidValueError, match="hub_split='dev'|split='dev'"):
            packed(f"hub:{tmp_path / 'hub'}", hub_split="dev", image_column="img")

    def test_arrays_in_a_column(self, packed, picture) -> None:
        datasets = pytest.importorskip("datasets")
        arrays = [picture(n, 8, 9).transpose(2, 0, 1) for n in range(3)]
        features = datasets.Features({"image": datasets.Array3D((3, 8, 9), "uint8"), "label": datasets.Value("int64")})
        found = packed(datasets.Dataset.from_dict({"image": arrays, "label": [0, 1, 0]}, features=features))
        assert all(np.array_equal(found.picture(n), picture(n, 8, 9)) for n in range(3))
        wrong = datasets.Dataset.from_dict({"image": [[[[0.5] * 3] * 9] * 8], "label": [0]})
        with pytest.raises(PictureError, match="00000000.*float64"):
            packed(wrong)

    def test_what_is_no_table_of_pictures_is_refused(self, table, packed) -> None:
        datasets = pytest.importorskip("datasets")
        with pytest.raises(InvalidValueError, match="no column 'image': its columns are img, fine, text"):
            packed(table)
        with pytest.raises(InvalidValueError, match="streaming=False"):
            packed(table.to_iterable_dataset(), image_column="img")
        with pytest.raises(InvalidValueError, match="hub_split must be one of 'a'"):
            packed(datasets.DatasetDict(a=table), image_column="img")
        empty = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("int64")}))  # fmt: skip
        with pytest.raises(PictureError, match="picture 1 of 1 in dataset, 00000000.*holds no picture"):
            packed(empty)
        unknown = table.cast_column("fine", datasets.Value("int64")).map(lambda row: {"fine": row["fine"] - 1})
        with pytest.raises(InvalidValueError, match="numbered from 0 .*found -1"):
            packed(unknown, image_column="img", label_column="fine")


def test_the_sources_facts_are_json(pets: Path, tmp_path: Path) -> None:
    found = source_of(pets, PackSettings(height=8))
    assert json.loads(json.dumps(found.facts())) == found.facts() and len(found.facts()) == found.count == 12
