"""Folders of scans: parts are there whole or not at all, and a folder holds one scan."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.shard import Shard
from fractal_streams.trainability.store import (
    COLUMNS,
    SCAN_VERSION,
    SIDECAR,
    Folder,
    Part,
    Silent,
    completed,
    open_folder,
    put,
    read_columns,
    read_facts,
    write_columns,
)  # fmt: skip

PART = Part("tiles/tile-0000-0001", (slice(0, 5), slice(4, 10)))


def columns_of(seed: int, shape: tuple[int, ...] = (5, 6)) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: (draw.normal(size=shape) * 100).astype(dtype) for name, dtype in COLUMNS.items()}


def same(one: dict[str, np.ndarray] | None, other: dict[str, np.ndarray]) -> bool:
    return one is not None and all(one[name].tobytes() == other[name].tobytes() for name in COLUMNS)


def test_a_part_comes_back_to_the_bit_and_its_bytes_do_not_change(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.load(PART) is None
    columns = columns_of(0)
    columns["measure"][0, :4] = np.inf, -np.inf, np.nan, -0.0
    folder.save(PART, columns)
    first = folder.file(PART).read_bytes()
    assert same(folder.load(PART), columns)
    os.utime(folder.file(PART), (0, 0))
    folder.save(PART, {name: np.asfortranarray(values) for name, values in columns.items()})
    assert folder.file(PART).read_bytes() == first
    with np.load(folder.file(PART)) as archive:  # what anyone can read
        assert sorted(archive.files) == sorted(COLUMNS) and archive["diverged_at"].dtype == np.int32
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tile-0000-0001.npz"]


def test_a_part_that_is_cut_anywhere_is_not_there(tmp_path: Path) -> None:
    whole = io.BytesIO()
    write_columns(whole, columns_of(1))
    data, path = whole.getvalue(), tmp_path / "part.npz"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert read_columns(path, (5, 6), COLUMNS) is None, length
    path.write_bytes(data)
    assert read_columns(path, (5, 6), COLUMNS) is not None


def test_a_part_with_a_changed_byte_is_not_there_or_the_same(tmp_path: Path) -> None:
    whole, columns = io.BytesIO(), columns_of(2)
    write_columns(whole, columns)
    data, path, missed = whole.getvalue(), tmp_path / "part.npz", 0
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        found = read_columns(path, (5, 6), COLUMNS)
        assert found is None or same(found, columns), place
        missed += found is not None
    assert missed < len(data) / 3 / 4  # times and permissions of an archive's entries carry nothing


@pytest.mark.parametrize("other", [(6, 5), (30,), (5, 7)])
def test_a_part_of_another_shape_is_not_there(other: tuple[int, ...], tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.save(PART, columns_of(3, other))
    assert folder.load(PART) is None


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fails(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device; what was finished is kept") as caught:
        put(tmp_path / "tiles" / "a.npz", fails)
    assert caught.value.errno == 28 and caught.value.filename.endswith("a.npz")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_temporary_files_of_killed_processes_disturb_nothing_and_go(tmp_path: Path) -> None:
    Folder(tmp_path).save(PART, columns_of(4))
    other = Part("tiles/tile-0001-0000", PART.place)
    for part in (PART, other):
        (tmp_path / f"tiles/.{part.name[6:]}.npz.0123456789ab.tmp").write_bytes(b"half")
    folder = Folder(tmp_path)
    assert len(folder.left) == 2 and same(folder.load(PART), columns_of(4)) and folder.load(other) is None
    assert len(list((tmp_path / "tiles").glob(".*.tmp"))) == 1  # may become a part yet
    folder.save(other, columns_of(5))
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == ["tile-0000-0001.npz", "tile-0001-0000.npz"]


def test_a_file_that_another_process_finished_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one put its own in place, and removed our temporary file as one that was left."""
    replace, target = os.replace, tmp_path / "a.npz"

    def late(source: Path, goal: Path) -> None:
        target.write_bytes(b"done")
        Path(source).unlink()
        replace(source, goal)

    monkeypatch.setattr(os, "replace", late)
    put(target, lambda file: file.write(b"done"))
    assert target.read_bytes() == b"done" and len(list(tmp_path.iterdir())) == 1


FACTS = {"scan_version": SCAN_VERSION, "experiment": {"steps": 50, "width": 8}, "window": {"size": [9.0, 0.1]}}


def test_facts_keep_every_bit_and_the_same_folder_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "scan"
    open_folder(folder, FACTS)
    before = (folder / SIDECAR).read_bytes()
    assert read_facts(folder) == FACTS
    open_folder(folder, FACTS)
    assert (folder / SIDECAR).read_bytes() == before and [path.name for path in folder.iterdir()] == [SIDECAR]


def test_another_scan_is_refused_with_what_differs(tmp_path: Path) -> None:
    open_folder(tmp_path, FACTS)
    other = {**FACTS, "experiment": {"steps": 60, "width": 8}, "window": {"size": [9.0, 0.1 + 2.0**-56]}}
    with pytest.raises(InvalidValueError) as caught:
        open_folder(tmp_path, other)
    told = str(caught.value)
    assert "experiment.steps is 50 there, 60 here" in told and "window.size" in told and "another folder" in told
    assert "width" not in told and read_facts(tmp_path) == FACTS
    many = {**FACTS, **{f"field {number}": number for number in range(9)}}
    with pytest.raises(InvalidValueError, match="and 5 more"):
        open_folder(tmp_path, many)


@pytest.mark.parametrize("looks", range(8))
def test_ranks_that_begin_at_once_open_one_folder(looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank makes the folder, and its first tile, after this one looked so many times for a file."""
    exists, looked = Path.exists, 0

    def other_comes_between(path: Path) -> bool:
        nonlocal looked
        found = exists(path)
        looked += 1
        if looked == looks:
            Folder(tmp_path).save(PART, columns_of(2))
            put(tmp_path / SIDECAR, lambda file: file.write(json.dumps(FACTS).encode()))
        return found

    monkeypatch.setattr(Path, "exists", other_comes_between)
    assert same(open_folder(tmp_path, FACTS).load(PART), columns_of(2)) == (0 < looks <= looked)
    assert read_facts(tmp_path) == FACTS and looked >= 5


def test_folders_that_hold_no_scan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="holds no scan"):
        read_facts(tmp_path)
    (tmp_path / "tiles").mkdir()
    with pytest.raises(InvalidValueError, match=r"holds tiles, but no scan\.json"):
        open_folder(tmp_path, FACTS)
    (tmp_path / SIDECAR).write_text('{"scan_ver')
    with pytest.raises(InvalidValueError, match="is damaged"):
        open_folder(tmp_path, FACTS)
    (tmp_path / SIDECAR).write_text(json.dumps({**FACTS, "scan_version": 99}))
    with pytest.raises(VersionError, match="version 99"):
        open_folder(tmp_path, FACTS)
    with pytest.raises(InvalidValueError, match="is a file"):
        open_folder(tmp_path / SIDECAR, FACTS)


class Counted(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def expect(self, networks: int) -> None:
        self.told.append(("expect", networks))

    def found(self, networks: int) -> None:
        self.told.append(("found", networks))

    def trained(self, networks: int) -> None:
        self.told.append(("trained", networks))


def test_parts_are_dealt_by_number_and_those_of_others_are_awaited(tmp_path: Path) -> None:
    parts = [Part(f"tiles/{number}", (slice(0, number + 1), slice(0, 2))) for number in range(7)]
    made: list[str] = []

    def train(part: Part) -> dict[str, np.ndarray]:
        made.append(part.name)
        return columns_of(int(part.name[6:]), part.shape)

    others = Folder(tmp_path)
    for part in parts[0::3]:
        others.save(part, columns_of(int(part.name[6:]), part.shape))
    bar = Counted()
    walk = completed(parts, Folder(tmp_path), train, Shard(1, 3), bar, first=9)
    got = [next(walk) for _ in range(5)]
    assert made == ["tiles/1", "tiles/4"]  # 9 + 1 and 9 + 4 are 1 modulo 3
    for part in parts[2::3]:
        others.save(part, columns_of(int(part.name[6:]), part.shape))
    got += walk
    assert sorted(part.name for part, _ in got) == [part.name for part in parts]
    assert all(same(columns, columns_of(int(part.name[6:]), part.shape)) for part, columns in got)
    networks = sum(part.size for part in parts)
    assert bar.told[0] == ("expect", networks) and sum(count for _, count in bar.told[1:]) == networks
    assert sum(count for kind, count in bar.told if kind == "found") == 2 + 8 + 14
