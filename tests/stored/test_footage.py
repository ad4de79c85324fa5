"""Video files: which frames are kept, clips of them, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imageio_ffmpeg")
pytest.importorskip("PIL")

import subprocess

from imageio_ffmpeg import get_ffmpeg_exe

from fractal_streams.errors import InvalidValueError, PictureError
from fractal_streams.stored import StoredStream, open_stored, pack
from fractal_streams.stored.reduction import reduced


def film(path: Path, frames: np.ndarray, *options: str) -> Path:
    """A video of (T, H, W, 3) frames; lossless unless options say otherwise."""
    count, height, width, _ = frames.shape
    lossless = ("-c:v", "libx264rgb", "-qp", "0", "-g", "4") if not options else ()
    command = [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", "10", "-i", "-", *lossless, *options, str(path)]  # fmt: skip
    subprocess.run(command, input=frames.tobytes(), check=True)
    return path


@pytest.fixture
def frames() -> np.ndarray:
    """20 frames of noise, each shown 3 times but the last, which is shown twice."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), np.uint8)
    return np.repeat(noise, 3, axis=0)[:-1]


def test_every_frame_is_kept_as_it_is(frames: np.ndarray, tmp_path: Path) -> None:
    found = pack(film(tmp_path / "a.mkv", frames), tmp_path / "pack", height=16)
    assert np.array_equal(found.pixels.reshape(frames.shape), frames)
    assert found.names[:2] == ("a.mkv#000000", "a.mkv#000001") and set(found.groups) == {"a.mkv"}
    assert found.classes == ("a",) and found.decoded == len(found) == 59
    assert pack(tmp_path / "a.mkv", tmp_path / "pack", height=16).decoded == 0


@pytest.mark.parametrize("skip", [0, 1, 2, 6, 57, 58, 1000])
def test_skip_takes_one_frame_of_skip_and_one(skip: int, frames: np.ndarray, tmp_path: Path) -> None:
    found = pack(film(tmp_path / "a.mkv", frames), tmp_path / "pack", height=16, skip=skip)
    kept = range(0, 59, skip + 1)
    assert found.names == tuple(f"a.mkv#{number:06d}" for number in kept)
    assert np.array_equal(found.pixels.reshape(-1, 16, 24, 3), frames[list(kept)])


def test_minimum_change_drops_frames_like_the_last_kept(frames: np.ndarray, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", frames)
    found = pack(path, tmp_path / "pack", height=16, minimum_change=0.01)
    assert found.names == tuple(f"a.mkv#{number:06d}" for number in range(0, 59, 3)) and found.decoded == 59
    assert len(pack(path, tmp_path / "one", height=16, minimum_change=255)) == 1
    small = [reduced(frame, 4, 6).astype(int) for frame in frames]
    kept = [0]
    for number in range(1, 59):
        if np.abs(small[number] - small[kept[-1]]).mean() >= 20.5:
            kept.append(number)
    few = pack(path, tmp_path / "few", height=4, minimum_change=20.5)
    assert few.names == tuple(f"a.mkv#{number:06d}" for number in kept) and 1 < len(kept) < 20


def test_a_slow_drift_is_measured_from_the_frame_kept(tmp_path: Path) -> None:
    drift = np.repeat(np.arange(0, 100, 2, dtype=np.uint8), 16 * 16 * 3).reshape(50, 16, 16, 3)
    found = pack(film(tmp_path / "a.mkv", drift), tmp_path / "pack", height=16, minimum_change=7)
    assert [int(found.picture(n)[0, 0, 0]) for n in range(len(found))] == list(range(0, 100, 8))


def test_clips_and_splits_of_several_videos(frames: np.ndarray, tmp_path: Path) -> None:
    for place, count in (("x/one.mkv", 9), ("x/two.mkv", 7), ("y/three.mkv", 12), ("y/four.mkv", 2)):
        (tmp_path / "films" / place).parent.mkdir(parents=True, exist_ok=True)
        film(tmp_path / "films" / place, frames[:count])
    (tmp_path / "films" / "about.txt").write_text("")
    settings = {"height": 12, "cache": tmp_path / "cache", "device": "cpu", "clip_length": 3}
    with pytest.raises(PictureError, match="clip_length=3 .*y/four.mkv and 0 other groups of 4"):
        open_stored(tmp_path / "films", **settings)
    stream = open_stored(tmp_path / "films", on_error="skip", **settings)
    assert stream.pack.classes == ("x", "y") and stream.pack.facts["source"]["ignored"] == 1
    assert stream.short_groups == ("y/four.mkv",) and stream.count == 3 + 2 + 4
    batch = stream.generate(range(9))
    assert batch.images.shape == (9, 3, 3, 12, 12) and sorted(batch.labels.tolist()) == [0] * 5 + [1] * 4
    for k in range(9):
        names = [stream.pack.names[int(item)] for item in batch.latents["item"][k]]
        number = int(names[0][-6:])
        assert names == [f"{names[0][:-6]}{number + t:06d}" for t in range(3)] and number % 3 == 0
    parts = [StoredStream(stream.pack, height=12, split=split, test=0.5, device="cpu") for split in ("train", "test")]
    groups = [{stream.pack.groups[item] for item in part.placement.first} for part in parts]
    assert groups[0] | groups[1] == set(stream.pack.groups) and not groups[0] & groups[1]
    assert sum(part.count for part in parts) == 30


def test_a_variable_frame_rate_repeats_and_drops_no_frame(frames: np.ndarray, tmp_path: Path) -> None:
    times = "setpts='if(lt(N,5),N,N*7+3)/10/TB'"
    path = film(tmp_path / "a.mkv", frames[::3], "-vf", times, "-fps_mode", "vfr", "-c:v", "libx264rgb", "-qp", "0")
    found = pack(path, tmp_path / "pack", height=16)
    assert np.array_equal(found.pixels.reshape(-1, 16, 24, 3), frames[::3])


def test_damage_is_named(frames: np.ndarray, tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mkv", frames)
    nonsense = tmp_path / "nonsense.mp4"
    nonsense.write_bytes(b"nonsense" * 100)
    with pytest.raises(PictureError, match="nonsense.mp4, can't be used .its frame 0 can't be decoded"):
        pack(nonsense, tmp_path / "pack", height=8)
    with pytest.raises(InvalidValueError, match="no pictures in nonsense.mp4: 1 can't be used"):
        pack(nonsense, tmp_path / "pack", height=8, on_error="skip")
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(data)
    with pytest.raises(PictureError, match="torn.mkv, can't be used .its frame [0-9]+ can't be decoded"):
        pack(torn, tmp_path / "pack", height=16)
    found = pack(torn, tmp_path / "pack", height=16, on_error="skip")
    assert 0 < len(found) < 59 and [each.name for each in found.skipped] == ["torn.mkv"]
    assert np.array_equal(found.pixels.reshape(-1, 16, 24, 3)[:10], frames[:10])
    silent = tmp_path / "silent.mp4"
    subprocess.run(
        [get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "anullsrc", "-t", "0.1", str(silent)], check=True
    )
    with pytest.raises(PictureError, match="silent.mp4"):
        pack(silent, tmp_path / "other", height=8)
