"""The filesystem: listings, globs, lazy files, tags, refusals, and the archive for a pipe."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fractal_streams.integrations import files
from fractal_streams.integrations.address import Address
from fractal_streams.integrations.filesystem import FractalFileSystem, as_path, copy_shards, expanded
from PIL import Image

from fractal_streams import open_stream
from fractal_streams.errors import AddressError, FractalStreamsError, InvalidValueError, ReadOnlyError
from fractal_streams.presets import PRESETS

HOME = "fractal-10/train/seed=0/height=8/width=8/samples=6"


@pytest.fixture
def filesystem() -> FractalFileSystem:
    return fsspec.filesystem("fractal")


def stream_of(**settings):  # type: ignore[no-untyped-def]
    return open_stream("fractal-10", device="cpu", height=8, width=8, **settings)


def names_in(content: bytes) -> list[str]:
    return tarfile.open(fileobj=io.BytesIO(content)).getnames()


def test_folders_are_listed_level_by_level(filesystem: FractalFileSystem) -> None:
    assert filesystem.ls("", detail=False) == [*PRESETS]
    assert filesystem.ls("fractal://fractal-10", detail=False) == [
        "fractal-10/train", "fractal-10/validation", "fractal-10/test",
    ]  # fmt: skip
    assert filesystem.ls("fractal-10/test/", detail=False) == ["fractal-10/test/seed=0"]
    found = filesystem.ls("fractal-10/test/seed=0", detail=False)
    assert found == [
        f"fractal-10/test/seed=0/shard-{shard:06d}.{end}"
        for end in ("tar", "arrow", "parquet", "jsonl") for shard in range(10)
    ]  # fmt: skip
    assert len(filesystem.ls("fractal-10/train/seed=5/shards=7", detail=False)) == 4 * 7
    assert filesystem.ls(f"{HOME}/endless.tar", detail=False) == [f"{HOME}/endless.tar"]
    assert all(entry["type"] == "directory" for entry in filesystem.ls("fractal-10"))
    assert all(entry["type"] == "file" for entry in filesystem.ls("fractal-10/test/seed=0"))


def test_everything_listed_is_there(filesystem: FractalFileSystem) -> None:
    found = filesystem.find("fractal-10/test", withdirs=True)
    assert len([path for path in found if filesystem.isfile(path)]) == 40
    assert all(filesystem.exists(path) for path in found)
    assert filesystem.isdir("fractal-10/test")
    assert filesystem.isfile(f"{HOME}/shard-000999.arrow")
    assert not filesystem.isfile("fractal-10/test")
    for missing in (
        "fractal-11",
        "fractal-10/trian",
        f"{HOME}/shard-001000.tar",
        f"{HOME}/x",
        "fractal-10/test/seed=x",
    ):
        assert not filesystem.exists(missing)
        assert not filesystem.isdir(missing)
        with pytest.raises(AddressError):
            filesystem.ls(missing)
        with pytest.raises(FileNotFoundError):
            filesystem.open(missing)


@pytest.mark.parametrize(
    "pattern, count, first, last",
    [
        ("shard-00000[0-4].tar", 5, "shard-000000.tar", "shard-000004.tar"),
        ("shard-00099?.arrow", 10, "shard-000990.arrow", "shard-000999.arrow"),
        ("*.parquet", 1000, "shard-000000.parquet", "shard-000999.parquet"),
        ("shard-000007.*", 4, "shard-000007.tar", "shard-000007.jsonl"),
        ("shard-{000..012}.tar", None, "", ""),
        ("shard-{000098..000101}.tar", 4, "shard-000098.tar", "shard-000101.tar"),
        ("shard-{000001,000003}.{tar,arrow}", 4, "shard-000001.tar", "shard-000003.arrow"),
        ("0000000{1..3}.png", 3, "00000001.png", "00000003.png"),
        ("endless.tar", 1, "endless.tar", "endless.tar"),
        ("{shard-000003,*0[3-4]}.tar", 20, "shard-000003.tar", "shard-000904.tar"),
    ],
)
def test_patterns(filesystem: FractalFileSystem, pattern: str, count: int | None, first: str, last: str) -> None:
    if count is None:
        with pytest.raises(AddressError, match="no file 'shard-000.tar'"):
            filesystem.glob(f"fractal://{HOME}/{pattern}")
        return
    found = filesystem.glob(f"fractal://{HOME}/{pattern}")
    assert (len(found), found[0], found[-1]) == (count, f"{HOME}/{first}", f"{HOME}/{last}")
    assert len({*found}) == count
    assert [*filesystem.glob(f"{HOME}/{pattern}", detail=True)] == found


def test_patterns_of_folders(filesystem: FractalFileSystem) -> None:
    assert filesystem.glob("fractal-1*/t*") == [
        f"{preset}/{split}"
        for preset in ("fractal-10", "fractal-100", "fractal-1k", "fractal-10k")
        for split in ("train", "test")
    ]
    assert filesystem.glob("fractal-10/{train,test}/seed={3..4}/shard-000001.tar") == [
        f"fractal-10/{split}/seed={seed}/shard-000001.tar" for split in ("train", "test") for seed in (3, 4)
    ]
    assert filesystem.glob("fractal-10/*/seed=0/shard-000500.tar") == ["fractal-10/train/seed=0/shard-000500.tar"]
    assert filesystem.glob("fractal-10/**/shard-000009.jsonl") == [
        f"fractal-10/{split}/seed=0/shard-000009.jsonl" for split in ("train", "validation", "test")
    ]
    assert filesystem.glob("fractal-10/**/*.zip") == []


@pytest.mark.parametrize(
    "pattern", ["*", "fractal-10/**", "fractal-10/test/seed=0/**", "fractal-10/**/seed=0", "*/test/seed=0/*7.arrow"]
)
def test_patterns_name_what_they_name_to_fsspec(filesystem: FractalFileSystem, pattern: str) -> None:
    found = filesystem.glob(pattern)
    assert len(found) == len({*found}) and {*found} == {*fsspec.AbstractFileSystem.glob(filesystem, pattern)}


def test_a_query_is_written_as_segments() -> None:
    assert as_path("fractal-10/train/seed=1/shard-00000?.tar?height=16&image=bmp") == (
        "fractal-10/train/seed=1/height=16/image=bmp/shard-00000?.tar"
    )
    assert as_path("fractal-10/train?seed=3") == "fractal-10/train/seed=3"
    found = FractalFileSystem().glob("fractal://fractal-10/test/seed=0/shard-00000?.tar?height=16")
    assert found[9] == "fractal-10/test/seed=0/height=16/shard-000009.tar"


def test_braces_count_in_the_width_of_their_first_number() -> None:
    assert list(expanded("a{08..11}b{x,y}")) == [f"a{n:02d}b{end}" for n in range(8, 12) for end in "xy"]
    with pytest.raises(AddressError, match="more than 1000000 paths"):
        expanded("{0..9999999999999999}")
    with pytest.raises(AddressError, match="more than 1000000 paths"):
        expanded("{0..1999}/{0..1999}")
    with pytest.raises(AddressError, match=r"{000003..000001} counts down: write {000001..000003}"):
        expanded("shard-{000003..000001}.tar")


@pytest.mark.parametrize(
    "pattern, said",
    [
        ("fractal-11/train/seed=0/*.tar", "unknown preset or formula 'fractal-11'"),
        ("fractal-10/train/seed=x/*.tar", "seed must be a whole number"),
        ("fractal-10/train/seed=0/colour=red/*.tar", "unknown setting 'colour'"),
        ("fractal-10/train/seed=0/shard-*.zip", "no name fits 'shard-\\*.zip'.*shard-000999.tar"),
        ("fractal-10/train/seed=0/shard-001*.tar", "no name fits"),
        ("fractal-10/train/seed=0/shard-001000.tar?height=16", "shard 1000 is out of range"),
    ],
)
def test_a_pattern_that_can_name_nothing_says_why(filesystem: FractalFileSystem, pattern: str, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said) as caught:
        filesystem.glob(pattern)
    assert not isinstance(caught.value, FileNotFoundError)  # which `datasets` would swallow


def test_a_path_without_wildcards_that_names_nothing_is_not_left_out(filesystem: FractalFileSystem) -> None:
    with pytest.raises(AddressError, match="shard 1000 is out of range"):
        filesystem.glob("fractal-10/train/seed=0/shard-{000998..001001}.tar")


def test_shards_hold_their_samples(filesystem: FractalFileSystem) -> None:
    batch = stream_of().generate(range(12, 18))
    table = pa.ipc.open_stream(filesystem.open(f"{HOME}/shard-000002.arrow")).read_all()
    parquet = pq.read_table(filesystem.open(f"{HOME}/shard-000002.parquet"))
    assert table.equals(parquet.cast(table.schema))
    assert table["index"].to_pylist() == batch.index.tolist() == [*range(12, 18)]
    assert table["label"].to_pylist() == batch.labels.tolist()
    for value, image in zip(table["image"].to_pylist(), batch.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(value["bytes"]))), image.transpose(1, 2, 0))
    rows = [json.loads(line) for line in filesystem.open(f"{HOME}/shard-000002.jsonl", "r")]
    assert [row["label"] for row in rows] == batch.labels.tolist()
    assert [row["latents"]["alpha"] for row in rows] == batch.latents["alpha"].tolist()
    with fsspec.open(rows[4]["image"]) as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), batch.images[4].transpose(1, 2, 0))


@pytest.mark.parametrize("form", ["png", "bmp", "npy"])
def test_single_pictures(filesystem: FractalFileSystem, form: str) -> None:
    path, expected = f"{HOME}/00000042.{form}", stream_of()[42]
    content = filesystem.cat_file(path)
    assert filesystem.info(path)["size"] == len(content)
    file = io.BytesIO(content)
    image = np.load(file) if form == "npy" else np.asarray(Image.open(file)).transpose(2, 0, 1)
    np.testing.assert_array_equal(image, expected.image)
    said = json.loads(filesystem.cat_file(f"{HOME}/00000042.json"))
    assert (said["index"], said["label"]) == (42, expected.label)
    archive = tarfile.open(fileobj=filesystem.open(f"{HOME}/image={form}/shard-000007.tar"))  # noqa: SIM115
    assert archive.extractfile(f"00000042.{form}").read() == content  # type: ignore[union-attr]


def test_clips_are_arrays(filesystem: FractalFileSystem) -> None:
    home = "fractal-video/train/seed=0/height=8/width=8/frames=3/samples=2"
    expected = open_stream("fractal-video", device="cpu", height=8, width=8, frames=3)[3].image
    content = filesystem.cat_file(f"{home}/00000003.npy")
    assert filesystem.info(f"{home}/00000003.npy")["size"] == len(content)
    np.testing.assert_array_equal(np.load(io.BytesIO(content)), expected)
    table = pq.read_table(filesystem.open(f"{home}/shard-000001.parquet"))
    np.testing.assert_array_equal(np.array(table["image"][1].as_py(), np.uint8), expected)
    assert names_in(filesystem.cat_file(f"{home}/shard-000001.tar"))[3] == "00000003.npy"
    row = json.loads(filesystem.cat_file(f"{home}/shard-000001.jsonl").splitlines()[1])
    assert row["image"].endswith("/00000003.npy")
    for use in (filesystem.info, filesystem.cat_file):
        with pytest.raises(AddressError, match="clips, whose files are .npy"):
            use(f"{home}/00000003.png")
    with pytest.raises(AddressError, match="clips, whose files are .npy"):
        filesystem.glob(f"{home}/00000003.png")


@pytest.mark.parametrize("extension", ["tar", "arrow"])
def test_an_endless_file_goes_on_where_it_is_told(filesystem: FractalFileSystem, extension: str) -> None:
    with filesystem.open(f"{HOME}/start=1000/endless.{extension}") as file:
        if extension == "tar":
            archive = tarfile.open(fileobj=file, mode="r|")  # noqa: SIM115
            keys = [archive.next().name for _ in range(3 * 600)][::3]  # type: ignore[union-attr]
            assert keys == [f"{index:08d}.png" for index in range(1000, 1600)]
        else:
            reader = pa.ipc.open_stream(file)
            found = [index for _ in range(3) for index in reader.read_next_batch()["index"].to_pylist()]
            assert found == [*range(1000, 1000 + len(found))]
            assert len(found) > 600


def test_reading_renders_a_block_and_no_more(filesystem: FractalFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 4)
    path = "fractal-10/train/seed=77/height=8/width=8/shard-000001.tar"
    stream = Address.parse(path).open_stream()
    asked: list[int] = []
    generate = stream.generate
    monkeypatch.setattr(stream, "generate", lambda indices: (asked.extend(indices), generate(indices))[1])
    with filesystem.open(path) as file:
        assert file.read(8) == b"00001000"
    assert asked == [1000, 1001, 1002, 1003]
    filesystem.info(path), filesystem.exists(path), filesystem.glob(path)
    assert len(asked) == 4


def test_a_part_of_a_file_is_that_part(filesystem: FractalFileSystem) -> None:
    path = f"{HOME}/shard-000001.tar"
    whole = filesystem.cat_file(path)
    assert filesystem.cat_file(path, 700, 1900) == whole[700:1900]
    assert filesystem.head(path, 33) == whole[:33]
    assert filesystem.tail(path, 33) == whole[-33:]
    assert names_in(whole)[0] == "00000006.png"


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.parquet", "shard-000001.jsonl", "00000003.png"])
def test_parts_are_counted_from_the_end_as_of_bytes(filesystem: FractalFileSystem, name: str) -> None:
    path = f"{HOME}/{name}"
    whole = filesystem.cat_file(path)
    beyond = len(whole) + 9
    bounds = ((-10, None), (-20, -5), (10, -3), (None, -4), (-beyond, 7), (10, 5), (3, beyond), (beyond, None))
    for start, end in bounds:
        assert filesystem.cat_file(path, start, end) == whole[start:end], (start, end)
    assert filesystem.cat_ranges([path, path], [0, -7], [5, None]) == [whole[:5], whole[-7:]]
    assert filesystem.read_block(path, 10, beyond) == whole[10:] == filesystem.read_block(path, 10, None)


def test_blocks_end_at_delimiters_also_of_a_file_without_end(filesystem: FractalFileSystem) -> None:
    path = f"{HOME}/shard-000000.jsonl"
    lines = filesystem.cat_file(path).splitlines(keepends=True)
    assert filesystem.read_block(path, 5, len(lines[0]), b"\n") == lines[1]
    assert filesystem.read_block(f"{HOME}/endless.tar", 0, 12) == b"00000000.png"
    with pytest.raises(io.UnsupportedOperation, match="no end"):
        filesystem.cat_file(f"{HOME}/endless.tar", -5)


def test_a_single_file_is_bytes_wherever_its_settings_stand(filesystem: FractalFileSystem) -> None:
    plain = filesystem.cat(f"{HOME}/00000003.png")
    assert filesystem.cat("fractal://fractal-10/train/seed=0/00000003.png?height=8&width=8") == plain
    several = filesystem.cat("fractal://fractal-10/train/seed=0/shard-00000[01].tar?height=8&width=8&samples=6")
    assert several == {path: filesystem.cat_file(path) for path in (f"{HOME}/shard-{k:06d}.tar" for k in (0, 1))}


def test_parquet_is_made_once_for_readers_that_open_it_twice(
    filesystem: FractalFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fractal_streams.integrations.containers import tables

    made = []
    write = tables.parquet_bytes
    monkeypatch.setattr(
        tables, "parquet_bytes", lambda *given, **also: (made.append(given[1]), write(*given, **also))[1]
    )
    path = "fractal-10/train/seed=78/height=8/width=8/samples=3/shard-00000{}.parquet"
    first = filesystem.cat_file(path.format(0))
    assert filesystem.cat_file(path.format(0)) == first
    assert made == [range(3)]
    assert filesystem.cat_file(path.format(1)) != first
    assert filesystem.cat_file(path.format(0)) == first
    assert made == [range(3), range(3, 6), range(3)]


def test_the_tag_tells_files_and_streams_apart(filesystem: FractalFileSystem) -> None:
    paths = [
        f"fractal-10/{split}/seed={seed}/{settings}{name}"
        for split in ("train", "test") for seed in (0, 1)
        for settings in ("", "height=16/", "iterations=7/", "image=npy/", "samples=10/", "start=5/")
        for name in ("shard-000000.tar", "shard-000001.tar", "shard-000000.arrow")
    ]  # fmt: skip
    tags = [filesystem.info(path)["ETag"] for path in paths]
    assert len({*tags}) == len(paths)
    assert tags == [filesystem.info(path)["ETag"] for path in paths]
    one = filesystem.info("fractal-10/train/seed=0/shard-000000.tar?height=16")
    assert one["ETag"] == filesystem.info("fractal://fractal-10/train/height=16,seed=0/shard-000000.tar")["ETag"]
    assert one["name"] == "fractal-10/train/seed=0/height=16/shard-000000.tar"


def test_the_tag_names_version_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address.parse(f"{HOME}/shard-000000.tar")
    before = files.entity_tag(address)
    assert stream_of().digest() in before
    monkeypatch.setattr("fractal_streams.__version__", "99.0")
    assert files.entity_tag(address).startswith("99.0-")
    assert files.entity_tag(address) != before


WRITES = {
    "open": lambda fs, path: fs.open(path, "wb"),
    "open text": lambda fs, path: fs.open(path, "w"),
    "append": lambda fs, path: fs.open(path, "ab"),
    "fsspec.open": lambda fs, path: fsspec.open(f"fractal://{path}", "w").open(),
    "mkdir": lambda fs, path: fs.mkdir(path),
    "makedirs": lambda fs, path: fs.makedirs(path, exist_ok=True),
    "rm": lambda fs, path: fs.rm(path, recursive=True),
    "rm_file": lambda fs, path: fs.rm_file(path),
    "delete": lambda fs, path: fs.delete(path),
    "rmdir": lambda fs, path: fs.rmdir(path),
    "touch": lambda fs, path: fs.touch(path),
    "pipe": lambda fs, path: fs.pipe({path: b"x"}),
    "pipe_file": lambda fs, path: fs.pipe_file(path, b"x"),
    "cp": lambda fs, path: fs.cp(path, f"{path}2"),
    "copy": lambda fs, path: fs.copy(path, f"{path}2"),
    "mv": lambda fs, path: fs.mv(path, f"{path}2"),
    "put": lambda fs, path: fs.put(__file__, path),
    "put_file": lambda fs, path: fs.put_file(__file__, path),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused(filesystem: FractalFileSystem, write: str) -> None:
    with pytest.raises(ReadOnlyError, match="can only be read") as caught:
        WRITES[write](filesystem, f"{HOME}/shard-000000.tar")
    assert caught.value.errno == errno.EROFS
    assert isinstance(caught.value, OSError | FractalStreamsError)


def test_a_folder_has_no_bytes(filesystem: FractalFileSystem) -> None:
    for path in ("", "fractal-10", HOME):
        with pytest.raises(IsADirectoryError):
            filesystem.open(path)


def test_copying_out_is_allowed(filesystem: FractalFileSystem, tmp_path: Path) -> None:
    filesystem.get(f"{HOME}/shard-000001.tar", str(tmp_path / "one.tar"))
    assert (tmp_path / "one.tar").read_bytes() == filesystem.cat_file(f"{HOME}/shard-000001.tar")


def test_one_instance_for_all_and_it_is_pickled(filesystem: FractalFileSystem) -> None:
    assert fsspec.filesystem("fractal") is filesystem
    assert pickle.loads(pickle.dumps(filesystem)) is filesystem
    opened = fsspec.open(f"fractal://{HOME}/00000003.npy")
    with pickle.loads(pickle.dumps(opened)) as file:
        np.testing.assert_array_equal(np.load(file), stream_of()[3].image)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_read_the_same(filesystem: FractalFileSystem, method: str) -> None:
    path = f"{HOME}/shard-000003.tar"
    expected = filesystem.cat_file(path)
    context = multiprocessing.get_context(method)
    if method == "fork":
        import warnings

        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with context.Pool(1) as pool:
        assert pool.apply(filesystem.cat_file, (path,)) == expected


def test_threads_read_the_same(filesystem: FractalFileSystem) -> None:
    paths = [f"{HOME}/shard-00000{k}.{end}" for k in range(3) for end in ("tar", "parquet")]
    expected = [filesystem.cat_file(path) for path in paths]
    found: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda path=path: found.update({path: filesystem.cat_file(path)})) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[path] for path in paths] == expected


def test_shards_are_copied_into_one_archive(filesystem: FractalFileSystem) -> None:
    out = io.BytesIO()
    written = copy_shards([f"fractal://{HOME}/shard-{{000002..000003}}.tar", f"{HOME}/shard-000000.tar"], out)
    assert written == len(out.getvalue())
    keys = names_in(out.getvalue())[::3]
    assert keys == [f"{index:08d}.png" for index in (*range(12, 24), *range(6))]
    single = io.BytesIO()
    copy_shards([f"{HOME}/shard-000001.tar"], single)
    assert single.getvalue() == filesystem.cat_file(f"{HOME}/shard-000001.tar")


@pytest.mark.parametrize(
    "urls, error, said",
    [
        ([], InvalidValueError, "no address"),
        ([f"{HOME}/shard-000001.arrow"], AddressError, "no .tar file"),
        ([HOME], AddressError, "no .tar file"),
        ([f"{HOME}/shard-001000.tar"], AddressError, "out of range"),
        ([f"{HOME}/endless.tar", f"{HOME}/shard-000001.tar"], InvalidValueError, "name it last"),
    ],
)
def test_other_addresses_are_not_copied(urls: list[str], error: type[Exception], said: str) -> None:
    out = io.BytesIO()
    with pytest.raises(error, match=said):
        copy_shards(urls, out)
    assert out.getvalue() == b""


def test_a_reader_that_closes_the_pipe_ends_an_endless_copy_quietly() -> None:
    program = (
        "import sys\nfrom fractal_streams.integrations.filesystem import copy_shards\n"
        f"copy_shards(['{HOME}/endless.tar'], sys.stdout.buffer)\nprint('done', file=sys.stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8) == b"00000000"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b"done\n"
        assert process.wait(60) == 0


def test_a_pipe_that_takes_little_at_a_time_gets_everything() -> None:
    class Narrow(io.RawIOBase):
        def __init__(self) -> None:
            self.taken = b""

        def writable(self) -> bool:
            return True

        def write(self, content) -> int:  # type: ignore[no-untyped-def]
            self.taken += bytes(content[:1000])
            return min(len(content), 1000)

    out = Narrow()
    copy_shards([f"{HOME}/shard-000001.tar"], out)  # type: ignore[arg-type]
    assert len(names_in(out.taken)) == 18


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    with fsspec.open(f"fractal://{HOME}/endless.tar") as file:
        file.read(10)
    assert before in (0, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
