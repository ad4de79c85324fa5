"""Contact sheets: every tile is its picture, every file whole and the same each time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFont

from fractal_streams import open_stream
from fractal_streams.contact_sheet import (
    BACKGROUND,
    CAPTION_HEIGHT,
    GAP,
    MARGIN,
    TITLE_HEIGHT,
    animated_sheet,
    check_sheet,
    contact_sheet,
    film_strips,
    fitted,
    save_animation,
    save_png,
)
from fractal_streams.errors import InvalidValueError, MissingExtraError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def tile_at(sheet, row, column, height, width, scale, captions, title):
    top = MARGIN + (TITLE_HEIGHT if title else 0) + row * (height * scale + (CAPTION_HEIGHT if captions else GAP))
    left = MARGIN + column * (width * scale + GAP)
    return sheet[top : top + height * scale, left : left + width * scale]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 9), st.integers(8, 20), st.integers(8, 20), st.integers(1, 5), st.integers(1, 4),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_every_tile_is_its_picture(count, height, width, columns, scale, labelled, titled):
    images = noise(count, 3, height, width)
    captions = ["a long caption under a picture"] * count if labelled else None
    sheet = contact_sheet(images, captions, title="t" if titled else "", columns=columns, scale=scale)
    across = min(count, columns)
    for place, image in enumerate(images):
        tile = tile_at(sheet, place // across, place % across, height, width, scale, labelled, titled)
        assert np.array_equal(tile, np.kron(image.transpose(1, 2, 0), np.ones((scale, scale, 1), np.uint8)))
    assert (sheet[:, :MARGIN] == BACKGROUND).all() and (sheet[:, -MARGIN:] == BACKGROUND).all()


def test_small_pictures_are_enlarged_and_the_sheet_is_about_square():
    sheet = contact_sheet(noise(64, 3, 32, 32))
    assert sheet.shape == (2 * MARGIN + 8 * 96 + 7 * GAP,) * 2 + (3,)
    assert contact_sheet(noise(1, 3, 224, 224)).shape == (2 * MARGIN + 224,) * 2 + (3,)


def test_a_caption_is_drawn_under_its_own_tile():
    images = noise(4, 3, 16, 48)
    blank = contact_sheet(images, [""] * 4, columns=2, scale=2)
    written = contact_sheet(images, ["", "class 1", "", ""], columns=2, scale=2)
    rows, columns = np.nonzero((blank != written).any(axis=2))
    assert MARGIN + 32 <= rows.min() <= rows.max() < MARGIN + 32 + CAPTION_HEIGHT
    assert MARGIN + 96 + GAP <= columns.min() <= columns.max() < MARGIN + 2 * 96 + GAP


def test_a_long_caption_keeps_its_index():
    font = ImageFont.load_default(12)
    for line, width in (("polynomial_power · #28", 96), ("polynomial_power · #28", 40), ("a" * 50, 96)):
        shown = fitted(line, font, width)
        assert font.getlength(shown) <= width < font.getlength(line) and "…" in shown
    assert fitted("polynomial_power · #28", font, 96).endswith("… · #28")
    assert fitted("class 1 · #2", font, 96) == "class 1 · #2"


def test_png_holds_the_sheet_and_equal_sheets_equal_bytes(tmp_path):
    sheet = contact_sheet(noise(5, 3, 16, 16), list("abcde"), title="noise")
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, contact_sheet(noise(5, 3, 16, 16), list("abcde"), title="noise"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), sheet)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_png(path, np.zeros((4, 4, 5, 6)))  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_film_strips_run_from_first_to_last_frame():
    clips = noise(2, 16, 3, 8, 8)
    sheet = film_strips(clips, ["one", "two"], frames=4, scale=1)
    for row, clip in enumerate(clips):
        for column, time in enumerate((0, 5, 10, 15)):
            tile = tile_at(sheet, row, column, 8, 8, 1, True, False)
            assert np.array_equal(tile, clip[time].transpose(1, 2, 0))


def clip_sheet():
    stream = open_stream("fractal-video", device="cpu", height=16, width=17, frames=5)
    return animated_sheet(stream.generate(range(3)).images, columns=3, scale=1)


def test_gif_holds_every_frame(tmp_path):
    frames = clip_sheet()
    save_animation(tmp_path / "clip.gif", frames, rate=10)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 5 and gif.info["loop"] == 0 and gif.info["duration"] == 100
        for time, frame in enumerate(frames):
            gif.seek(time)
            assert np.abs(np.asarray(gif.convert("RGB"), int) - frame).mean() < 2
    assert all((one != other).any() for one, other in pairwise(frames))


def test_mp4_holds_every_frame_the_same_each_time(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    frames = clip_sheet()
    for name in ("a.mp4", "b.mp4"):
        save_animation(tmp_path / name, frames)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        shown = [seen for seen in reader]  # noqa: C416 - the reader's len is infinite
    height, width = frames[0].shape[:2]
    assert len(shown) == 5
    for frame, seen in zip(frames, shown, strict=True):
        assert np.abs(seen[:height, :width].astype(int).mean(axis=2) - frame.mean(axis=2)).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_mp4_without_imageio_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio.v2", None)
    with pytest.raises(MissingExtraError, match=r"fractal-streams\[video\]"):
        save_animation(tmp_path / "a.mp4", clip_sheet())
    assert not list(tmp_path.iterdir())


def test_bad_values(tmp_path):
    good = noise(2, 3, 8, 8)
    for arguments, settings_, named in (
        ((good[:0],), {}, "images"), ((good.astype(float),), {}, "float64"), ((good[:, :1],), {}, "images"),
        ((good, ["one"]), {}, "captions"), ((good,), {"columns": 0}, "columns"), ((good,), {"scale": 0}, "scale"),
    ):  # fmt: skip
        with pytest.raises(InvalidValueError, match=named):
            contact_sheet(*arguments, **settings_)
    with pytest.raises(InvalidValueError, match="clips"):
        film_strips(good)
    with pytest.raises(InvalidValueError, match=r"\.gif or \.mp4"):
        save_animation(tmp_path / "a.avi", [good])
    with pytest.raises(InvalidValueError, match="no folder"):
        save_png(tmp_path / "nowhere" / "a.png", contact_sheet(good))
    with pytest.raises(InvalidValueError, match="million"):
        check_sheet((3, 4096, 4096), 64)
    with pytest.raises(InvalidValueError, match="million"):
        check_sheet((8, 3, 4096, 4096), 8)
    check_sheet((3, 4096, 4096), 8)
