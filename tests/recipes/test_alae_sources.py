"""What ALAE trains on: levels in [-1, 1], clips, and pictures of one's own, held to the files they were made of."""

from __future__ import annotations

import math
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("typer")
image = pytest.importorskip("PIL.Image")

from fractal_streams.recipes.alae.sources import Source, SourceSettings, frames_of_split, opened_source
from fractal_streams.recipes.data import held_out

from fractal_streams import FiniteStream, StreamSpec, open_stream
from fractal_streams.errors import InvalidValueError, PictureError, UnknownNameError
from fractal_streams.stored.reduction import reduced


def noise(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 levels that the number names."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def in_range(levels: np.ndarray) -> np.ndarray:
    """uint8 levels as a network takes them: 0 is -1, 255 is 1."""
    return ((levels / 255.0 - 0.5) / 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of 32 x 48 in a folder of two classes; the same in a zip; 3 of one size for errors."""
    root = tmp_path_factory.mktemp("pictures")
    with zipfile.ZipFile(root / "same.zip", "w") as archive:
        for number in range(40):
            path = root / "folder" / ("kali" if number % 2 else "julia") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(noise(number, 32, 48)).save(path)
            archive.write(path, path.relative_to(root / "folder"))
    (root / "few").mkdir()
    for number in range(3):
        image.fromarray(noise(number, 12, 12)).save(root / "few" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def film(place: Path) -> Path:
    """A video of 50 frames of noise, 16 x 24, without loss."""
    imageio = pytest.importorskip("imageio_ffmpeg")
    frames = np.stack([noise(number, 16, 24) for number in range(50)])
    command = [imageio.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "24x16",
               "-r", "10", "-i", "-", "-c:v", "libx264rgb", "-qp", "0", str(place / "film.mp4")]  # fmt: skip
    subprocess.run(command, input=frames.tobytes(), check=True)
    return place / "film.mp4"


def asked(place: Path, **settings: Any) -> SourceSettings:
    return SourceSettings(**{"image_size": 8, "cache": place / "cache", "held_out_share": 0.2, **settings})


@pytest.mark.parametrize("preset", ["fractal-10", "kali", "kali_julia", "fractal-video", "spec"])
def test_levels_are_those_of_the_uint8_picture(preset: str, tmp_path: Path) -> None:
    if preset == "spec":
        path = tmp_path / "mine.json"
        path.write_text(StreamSpec(formulas=("kali", "kali_julia"), num_classes=2, height=8, width=8).to_json())
        preset = str(path)
    settings = SourceSettings(preset=preset, image_size=8, data_seed=3)
    levels = open_stream(preset, seed=3, split="test", device="cpu", height=8, width=8).generate(range(20, 26))
    batch = opened_source(settings, "test", "cpu").generate(range(20, 26))
    assert np.array_equal(batch.images, in_range(levels.images)) and np.array_equal(batch.labels, levels.labels)
    assert batch.images.min() >= -1.0 and batch.images.max() <= 1.0 and batch.images.std() > 0.2
    half = opened_source(settings, "test", torch.device("cpu"), "bfloat16").generate(range(20, 26)).torch().images
    assert half.dtype == torch.bfloat16
    assert float((half.float() - torch.from_numpy(batch.images)).abs().max()) <= 2.0**-9  # half an ulp below 1


def test_pixels_can_be_means_of_more_samples() -> None:
    asked = SourceSettings(preset="kali", image_size=8, supersample=2)
    levels = open_stream("kali", split="test", device="cpu", height=8, width=8, supersample=2).generate(range(4))
    assert np.array_equal(opened_source(asked, "test", "cpu").generate(range(4)).images, in_range(levels.images))


def test_clips_of_any_formula_begin_with_its_stills() -> None:
    stills = opened_source(SourceSettings(preset="kali_julia", image_size=8), "train", "cpu")
    clips = opened_source(SourceSettings(preset="kali_julia", image_size=8, clip_length=3), "train", "cpu")
    batch = clips.generate(range(5))
    assert batch.images.shape == (5, 3, 3, 8, 8) and batch.latents["blend"].shape == (5, 3)
    assert np.array_equal(batch.images[:, 0], stills.generate(range(5)).images)
    assert (batch.latents["blend"][:, 0] != batch.latents["blend"][:, 2]).all()
    assert Source.of(stills).clips is None
    found = Source.of(clips)
    assert (found.shape, found.clips) == ((3, 8, 8), 3) and "shift_x" in found.latents


@pytest.mark.parametrize(
    "preset, length, frames", [("fractal-video", None, 16), ("fractal-video", 5, 5), ("seed-code", 4, 4)]
)
def test_streams_of_clips_have_their_own_length_or_that_asked_for(preset: str, length: Any, frames: int) -> None:
    stream = opened_source(SourceSettings(preset=preset, image_size=8, clip_length=length), "validation", "cpu")
    assert Source.of(stream).clips == frames


def test_a_finite_set_is_of_the_training_split_alone() -> None:
    settings = SourceSettings(preset="fractal-10", image_size=8, num_samples_per_class=2)
    stream = opened_source(settings, "train", "cpu")
    assert isinstance(stream, FiniteStream) and stream.samples == 20
    assert not isinstance(opened_source(settings, "test", "cpu"), FiniteStream)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("source", ["folder", "same.zip", "film.mp4", "kali"])
def test_a_sample_is_the_same_alone_and_in_a_batch(source: str, split: str, place: Path, film: Path) -> None:
    kali = SourceSettings(preset="kali", image_size=8)
    stream = opened_source(kali if source == "kali" else asked(place, data=str(place / source)), split, "cpu")
    batch = stream.generate(range(100, 130))
    for number in (0, 17, 29):
        assert np.array_equal(stream[100 + number].image, batch.images[number])


def test_a_seed_names_samples_and_changes_no_split(place: Path) -> None:
    one, two = (
        opened_source(asked(place, data=str(place / "folder"), data_seed=seed), "test", "cpu") for seed in (0, 1)
    )
    first, second = (stream.generate(range(2 * stream.count)) for stream in (one, two))
    assert not np.array_equal(first.images, second.images) and {*first.latents["item"]} == {*second.latents["item"]}


def test_a_crop_is_that_of_the_original_reduced(place: Path) -> None:
    """CALAE's own order of things: cut crop_size pixels, flip them, reduce them to image_size."""
    settings = asked(place, data=str(place / "folder"), crop_size=16)
    stream = opened_source(settings, "train", "cpu")
    batch = stream.generate(range(64))
    item, top, left, flip = (batch.latents[name].astype(int) for name in ("item", "top", "left", "flip"))
    for k in range(64):
        whole = noise(int(Path(stream.pack.names[item[k]]).stem), 32, 48)
        crop = reduced(whole[2 * top[k] : 2 * top[k] + 16, 2 * left[k] : 2 * left[k] + 16], 8, 8)
        crop = crop[:: -1 if flip[k] & 2 else 1, :: -1 if flip[k] & 1 else 1]
        assert np.array_equal(batch.images[k], in_range(crop.transpose(2, 0, 1)))
    assert set(flip) == {0, 1, 2, 3} and set(top) == set(range(9)) and max(left) <= 16


def test_a_zip_is_the_folder_that_it_was_made_of(place: Path) -> None:
    first, second = (
        opened_source(asked(place, data=str(place / name), pack_height=16), "test", "cpu").generate(range(50))
        for name in ("folder", "same.zip")
    )
    assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)
    assert first.latents["top"].max() == 8 and first.latents["left"].max() == 16  # 16 x 24 stay of 32 x 48


def test_splits_of_pictures_share_none_and_leave_none_out(place: Path) -> None:
    streams = {
        split: opened_source(asked(place, data=str(place / "folder")), split, "cpu")
        for split in ("train", "validation", "test")
    }
    shown = {
        split: {*(item for batch in held_out(stream, 2 * stream.count, 16) for item in batch.latents["item"].tolist())}
        for split, stream in streams.items()
    }
    assert [len(shown[split]) for split in streams] == [stream.count for stream in streams.values()]
    assert sorted(item for items in shown.values() for item in items) == list(range(40))
    assert len(shown["train"]) > 20 and min(map(len, shown.values())) >= 3


@pytest.mark.parametrize("skip", [0, 1, 4])
def test_skip_keeps_one_frame_of_skip_and_one(skip: int, place: Path, film: Path) -> None:
    settings = asked(place, data=str(film), skip=skip, pack_height=16, image_size=16)
    parts = [opened_source(settings, split, "cpu") for split in ("train", "validation", "test")]
    numbers = [[int(name[-6:]) for name in part.pack.names] for part in parts]
    assert [number for part in numbers for number in part] == list(range(0, 50, skip + 1))  # in time: none leaks
    held = round(0.2 * math.ceil(50 / (skip + 1)))
    assert [len(part) for part in numbers[1:]] == [held, held]
    batch = parts[2].generate(range(200))
    place_of = {number: item for item, number in enumerate(numbers[2])}
    for k in (0, 99, 199):
        number = numbers[2][int(batch.latents["item"][k])]
        left, flip = int(batch.latents["left"][k]), int(batch.latents["flip"][k])
        crop = noise(number, 16, 24)[:, left : left + 16][:: -1 if flip & 2 else 1, :: -1 if flip & 1 else 1]
        assert np.array_equal(batch.images[k], in_range(crop.transpose(2, 0, 1)))
    assert set(batch.latents["item"].astype(int)) == set(place_of.values())


def test_clips_of_a_video_are_frames_that_follow(place: Path, film: Path) -> None:
    for split, clips in (("train", 7), ("test", 2)):  # 30 and 10 frames of 50
        stream = opened_source(asked(place, data=str(film), clip_length=4), split, "cpu")
        batch = stream.generate(range(20))
        assert Source.of(stream).clips == 4 and stream.count == clips and batch.images.shape == (20, 4, 3, 8, 8)
        numbers = np.array([int(name[-6:]) for name in stream.pack.names])[batch.latents["item"].astype(int)]
        assert (np.diff(numbers, axis=1) == 1).all() and len({*numbers[:, 0]}) == clips


def test_of_many_videos_whole_ones_are_held_out(place: Path, film: Path) -> None:
    (place / "films").mkdir(exist_ok=True)
    for number in range(12):
        (place / "films" / f"{number}.mp4").write_bytes(film.read_bytes())
    parts = [
        opened_source(asked(place, data=str(place / "films"), skip=24), split, "cpu")
        for split in ("train", "validation", "test")
    ]
    groups = [{part.pack.groups[item] for item in part.placement.first} for part in parts]
    assert sum(map(len, groups)) == 12 == len(groups[0] | groups[1] | groups[2]) and all(groups)
    assert sum(part.count for part in parts) == 24


def test_frames_are_parted_with_a_clip_at_least_in_each() -> None:
    parts = [frames_of_split(["a"] * 12, split, 0.1, 4) for split in ("train", "validation", "test")]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InvalidValueError, match="a has 11 frames, too few for three parts of at least 4"):
        frames_of_split(["a"] * 11, "train", 0.1, 4)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"preset": "kali", "skip": 2}, "skip=2 is of data, and none is given: leave it out"),
        ({"preset": "kali", "crop_size": 512}, "crop_size=512 is of data, and none is given"),
        ({"data": "photos", "max_iter": 9}, "max_iter=9 is of a preset, and data is given: leave it out"),
        (
            {"data": "photos", "image_size": 64, "crop_size": 500},
            "multiple of image_size=64, got 500: 512 is the nearest",
        ),
        ({"data": "photos", "crop_size": 128, "pack_height": 128}, "give one of them"),
        ({"data": "photos", "image_size": 64, "pack_height": 32}, "pack_height must be at least image_size=64, got 32"),
        ({"held_out_share": 0.5}, r"held_out_share must be a finite number in \[1e-06, 0.4\], got 0.5"),
        ({"clip_length": 1}, "clip_length must be a whole number from 2 to 4096, got 1"),
        ({"flip": "left"}, "flip must be one of 'none', 'horizontal', 'vertical', 'both', got 'left'"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        SourceSettings(**settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"data": "folder", "skip": 1}, "skip=1 is of videos, and .*folder is a folder: leave it out"),
        ({"data": "same.zip", "clip_length": 2}, "clip_length=2 is of videos, and .*same.zip is a zip: leave it out"),
        ({"data": "few", "held_out_share": 0.01}, "none of the 3 pictures or videos of .*few falls to split='test'"),
        ({"data": "folder", "image_size": None, "crop_size": 96}, "multiple of image_size=64, got 96: 128 is the near"),
        ({"data": "nowhere"}, "nothing at .*nowhere: give a folder, a zip, tar shards, a video"),
        ({"preset": "trainability-tiles", "clip_length": 2}, "preset='trainability-tiles' has no clips: let"),
        ({"preset": "trainability-tiles", "max_iter": 5}, "has no max_iter to choose: let it be none"),
    ],
)
def test_what_a_source_can_t_do_is_refused(settings: dict[str, Any], said: str, place: Path) -> None:
    if "data" in settings:
        settings = {**settings, "data": str(place / settings["data"]), "cache": place / "cache"}
    with pytest.raises(InvalidValueError, match=said):
        opened_source(SourceSettings(**{"image_size": 8, **settings}), "test", "cpu")


def test_small_pictures_are_named_or_left_out(place: Path) -> None:
    with pytest.raises(PictureError, match="don't cover 16 x 16"):
        opened_source(asked(place, data=str(place / "few"), image_size=16), "train", "cpu")
    image.fromarray(noise(9, 30, 30)).save(place / "few" / "large.png")
    settings = asked(place, data=str(place / "few"), image_size=16, on_error="skip", held_out_share=0.4)
    kept = [split for split in ("train", "validation", "test") if not refused(settings, split)]
    assert len(kept) == 1 and opened_source(settings, kept[0], "cpu").pack.names == ("large.png",)


def refused(settings: SourceSettings, split: str) -> bool:
    try:
        opened_source(settings, split, "cpu")
    except InvalidValueError:
        return True
    return False


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kali_julia'"):
        opened_source(SourceSettings(preset="kalijulia"), "train", "cpu")
    with pytest.raises(UnknownNameError, match="did you mean 'kali_julia'"):
        opened_source(SourceSettings(preset="kalijulia", clip_length=4), "train", "cpu")
    with pytest.raises(InvalidValueError, match="split must be one of 'train', 'validation', 'test', got 'eval'"):
        opened_source(SourceSettings(preset="kali"), "eval", "cpu")
