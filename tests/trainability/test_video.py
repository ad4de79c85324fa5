"""Videos of zooms: the keyframes themselves at both ends, values blended between, as many frames as promised."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
from boundary_trainer import BoundaryTrainer, jagged
from PIL import Image

from fractal_streams import mp4
from fractal_streams.errors import InvalidValueError, MissingExtraError
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.nested import between, place_of
from fractal_streams.trainability.picture import SPECTRAL, colours, plain, restretch, save_plain
from fractal_streams.trainability.video import (
    RankedKeyframes,
    blended,
    frame,
    opacity_of,
    sampled,
    save_video,
    stitch_zoom_to_video,
    zoom_frames,
)
from fractal_streams.trainability.window import Window
from fractal_streams.trainability.zoom import Zoom, zoom, zoom_in, zoom_windows_about

SMALL = Experiment(width=8, dataset_mode="single_example", steps=30)


def concentric(folder: Path, levels: int = 3, resolution: int | tuple[int, int] = 24) -> Zoom:
    windows = zoom_windows_about((0.4, 1.6), levels=levels)
    return zoom(SMALL, windows, folder=folder, resolution=resolution, trainer=BoundaryTrainer(jagged))


def inwards(folder: Path, levels: int = 3, resolution: int | tuple[int, int] = 24) -> Zoom:
    return zoom_in(SMALL, levels=levels, folder=folder, resolution=resolution, trainer=BoundaryTrainer(jagged))


@pytest.mark.parametrize("course", [concentric, inwards])
@pytest.mark.parametrize("resolution", [24, (17, 30)])
def test_frames_at_the_keyframes_are_the_keyframes(course, resolution, tmp_path) -> None:
    made = course(tmp_path, resolution=resolution)
    frames = list(zoom_frames(made, frames_between=5))
    assert len(frames) == 11
    for level in range(3):
        assert np.array_equal(frames[5 * level], restretch(made.measure(level)))
        assert np.array_equal(colours(frames[5 * level])[::-1], np.asarray(Image.open(made.picture(level))))


def test_values_are_blended_by_the_papers_share_of_both_tables(tmp_path) -> None:
    """The rim of a frame, where only the outer keyframe is: each point's value is a mixture of two ranks."""
    made = concentric(tmp_path, levels=2)
    alpha = 0.4
    got = frame(made, RankedKeyframes(made), 0, alpha, (24, 24))
    window = between(*made.windows, alpha)
    rows, columns, where = sampled(made.windows[0], window, (24, 24), (24, 24))
    assert where == (slice(0, 24), slice(0, 24))
    share = math.sin(math.pi * alpha / 2) ** 2
    outer, inner = made.measure(0), made.measure(1)
    mixture = (1 - share) * restretch(outer) + share * restretch(outer, inner)
    (left, right), (low, high) = place_of(made.windows[1], window).spans()
    at = np.arange(24) / 23
    half = 0.5 * (right - left) / 23
    outside_x, outside_y = (at < left - half) | (at > right + half), (at < low - half) | (at > high + half)
    rim = outside_y[:, None] | outside_x[None, :]
    assert 0.2 < rim.mean() < 0.8
    np.testing.assert_allclose(got[rim], mixture[rows][:, columns][rim], rtol=1e-12)
    inner_mixture = (1 - share) * restretch(inner, outer) + share * restretch(inner)
    rows, columns, where = sampled(made.windows[1], window, (24, 24), (24, 24))
    base_rows, base_columns, _ = sampled(made.windows[0], window, (24, 24), (24, 24))
    under = mixture[base_rows][:, base_columns]
    over = inner_mixture[rows][:, columns]
    same = (over < 0) == (under[where] < 0)
    assert 0.7 < same.mean() < 1
    np.testing.assert_allclose(got[where][same], (under[where] + alpha * (over - under[where]))[same], rtol=1e-12)
    assert (np.abs(got) >= 0.25).all()


def test_a_change_of_label_passes_through_the_boundary() -> None:
    """1 and -1 are neighbours, the dark ends of both halves; the pale middle is on nobody's way."""
    below, above = np.array([0.5, 1.0, -0.25, 0.25, np.nan, 0.5]), np.array([-0.75, -1.0, 0.25, -0.25, 0.5, np.nan])
    np.testing.assert_allclose(blended(below, above, 0.25), [0.6875, 1.0, -0.625, 0.625, 0.5, 0.5])
    np.testing.assert_allclose(blended(below, above, 0.75), [-0.9375, 1.0, 0.625, -0.625, 0.5, 0.5])
    steps = np.array([blended(np.array([0.5]), np.array([-0.5]), share)[0] for share in np.linspace(0, 1, 11)[:-1]])
    way = np.where(steps > 0, steps - 1, steps + 1)  # signed distance from the boundary
    np.testing.assert_allclose(np.diff(way), 0.1, atol=1e-12)


def test_a_frame_shows_the_points_of_the_plane_where_its_window_lies(tmp_path) -> None:
    """Labels of a smooth boundary, frame by frame, against the formula at the frame's own points."""
    line = lambda x, y: np.log10(y) + 0.5 * np.log10(x) - 1.7  # noqa: E731
    start = Window.of_exponents(x=(-3, 6), y=(-3, 6))
    windows = (start, start.scaled(0.5, (0.3, 0.7)), start.scaled(0.25, (0.3, 0.65)))
    made = zoom(SMALL, windows, folder=tmp_path, resolution=49, trainer=BoundaryTrainer(line))
    for number, values in enumerate(zoom_frames(made, frames_between=4)):
        level, step = min(divmod(number, 4), (1, number - 4))
        seen = between(windows[level], windows[level + 1], step / 4)
        points = seen.grid(49).points()
        truth = line(points[:, 0], points[:, 1]).reshape(49, 49)
        pitch = seen.size[0] / 48
        sure = np.abs(truth) > 2.5 * pitch  # nearest points may lie on the other side of the line nearer to it
        assert sure.mean() > 0.8 and ((values < 0) == (truth > 0))[sure].all()


def test_frames_of_twice_the_size_have_the_next_keyframe_from_the_start(tmp_path) -> None:
    made = concentric(tmp_path, resolution=25)
    assert [opacity_of(made, 0, k, 0.25, (25, 25)) for k in range(4)] == [1.0, 0.25, 0.0, 0.0]
    assert [opacity_of(made, 0, k, 0.25, (49, 49)) for k in range(4)] == pytest.approx([1.0, 1.0, 0.25, 0.0])
    assert [opacity_of(made, 0, k, 0.25, (13, 13)) for k in range(3)] == [1.0, 0.25, 0.0]  # smaller: as at its own
    first = next(zoom_frames(made, frames_between=2, size=49))
    inner = restretch(made.measure(1), made.measure(0))
    assert np.array_equal(first[12:37, 12:37], inner)  # each of its points a pixel
    assert np.array_equal(first[::2, ::2][0], restretch(made.measure(0))[0])
    assert next(zoom_frames(made, size=(10, 31))).shape == (10, 31)


def test_it_moves_smoothly(tmp_path) -> None:
    """No frame differs from the one before by much more than any other does: nothing pops at a keyframe."""
    made = inwards(tmp_path, levels=4, resolution=48)
    frames = np.stack(list(zoom_frames(made, frames_between=12)))
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2))
    assert change.min() > 0 and change.max() < 4 * np.median(change)


def test_a_table_without_one_side_takes_its_neighbours(tmp_path) -> None:
    windows = (Window.of_exponents(x=(-3, 6), y=(-3, 6)), Window.of_exponents(x=(0, 1), y=(4, 5)))
    made = zoom(SMALL, windows, folder=tmp_path, resolution=12, trainer=BoundaryTrainer(lambda x, y: np.log10(y) - 1))
    assert (made.measure(1) > 0).all()
    for values in zoom_frames(made, frames_between=3):
        assert np.isfinite(values).all() and (np.abs(values) <= 1).all()


def test_a_gif_holds_every_frame_to_the_pixel(tmp_path) -> None:
    made = inwards(tmp_path / "z")
    path = save_video(made, tmp_path / "new" / "zoom.gif", fps=30, frames_between=4)
    frames = list(zoom_frames(made, frames_between=4))
    with Image.open(path) as gif:
        assert gif.n_frames == len(frames) == 9 and gif.info["loop"] == 0
        lasting = 0
        for number, values in enumerate(frames):
            gif.seek(number)
            assert np.array_equal(np.asarray(gif.convert("RGB")), colours(values)[::-1])
            lasting += gif.info["duration"]
    assert lasting == 300  # nine thirtieths of a second, in hundredths
    assert [file.name for file in path.parent.iterdir()] == ["zoom.gif"]


def test_an_mp4_has_every_frame_and_an_even_size(tmp_path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    made = concentric(tmp_path / "z", resolution=(33, 47))
    path = save_video(str(tmp_path / "z"), tmp_path / "zoom.mp4", fps=24, frames_between=3)
    with imageio.get_reader(path) as reader:
        facts, shown = reader.get_meta_data(), [seen for seen in reader]  # noqa: C416 - the reader's len is infinite
    assert facts["size"] == (48, 34) and facts["fps"] == 24 and len(shown) == 7
    for level in range(3):
        picture = plain(made.measure(level)).astype(int)
        assert np.abs(shown[3 * level][:33, :47].astype(int) - picture).mean() < 25  # colours at half the resolution
        assert np.abs(shown[3 * level][:33, :47].mean(axis=2) - picture.mean(axis=2)).mean() < 12
    assert sorted(file.name for file in tmp_path.iterdir()) == ["z", "zoom.mp4"]


def test_an_mp4_that_ffmpeg_could_not_finish_is_an_error(tmp_path, monkeypatch) -> None:
    """On a full disk ffmpeg stops, and imageio says nothing of it."""
    pytest.importorskip("imageio_ffmpeg")
    made = concentric(tmp_path, levels=2)
    path = save_video(made, tmp_path / "a.mp4", frames_between=2)
    data = path.read_bytes()
    assert mp4.whole_mp4(path)
    for count in (0, 4, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.mp4").write_bytes(data[:count])
        assert not mp4.whole_mp4(tmp_path / "cut.mp4")
    monkeypatch.setattr(mp4, "whole_mp4", lambda path: False)
    with pytest.raises(OSError, match="is there space on the disk"):
        save_video(made, path, frames_between=2)
    assert path.read_bytes() == data and not list(tmp_path.glob(".*"))


def test_stitching_takes_the_pictures_in_order(tmp_path) -> None:
    made = inwards(tmp_path / "z", levels=4)
    path = stitch_zoom_to_video(tmp_path / "z", tmp_path / "out.gif", fps=10)
    with Image.open(path) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 100
        for level in range(4):
            gif.seek(level)
            assert np.array_equal(np.asarray(gif.convert("RGB")), np.asarray(Image.open(made.picture(level))))


def test_stitching_pictures_of_other_colours_and_many(tmp_path) -> None:
    for number in range(12):  # zoom_1000 comes after zoom_999
        Image.new("RGB", (4, 4), (number * 20, 7, 99)).save(tmp_path / f"zoom_{number + 994:03d}.png")
    with Image.open(stitch_zoom_to_video(tmp_path, tmp_path / "a.gif")) as gif:
        seen = [gif.seek(number) or gif.convert("RGB").getpixel((1, 1))[0] for number in range(gif.n_frames)]
    assert seen == [number * 20 for number in range(12)]


def test_stitching_says_what_is_wrong(tmp_path) -> None:
    with pytest.raises(InvalidValueError, match=r"no pictures zoom_\*\.png in"):
        stitch_zoom_to_video(tmp_path, tmp_path / "a.mp4")
    Image.new("RGB", (4, 4)).save(tmp_path / "zoom_000.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "zoom_001.png")
    with pytest.raises(InvalidValueError, match=r"zoom_000\.png has 4 x 4, zoom_001\.png has 6 x 4"):
        stitch_zoom_to_video(tmp_path, tmp_path / "a.mp4")
    for level in range(2):
        save_plain(np.random.default_rng(level).normal(size=(40, 40)), tmp_path / f"zoom_00{level}.png")
    (tmp_path / "zoom_001.png").write_bytes((tmp_path / "zoom_001.png").read_bytes()[:600])
    with pytest.raises(InvalidValueError, match=r"zoom_001\.png' is no picture that can be read"):
        stitch_zoom_to_video(tmp_path, tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == []


def test_bad_values_and_missing_packages_leave_nothing(tmp_path, monkeypatch) -> None:
    made = concentric(tmp_path / "z", levels=2, resolution=8)
    for path, changes, said in (
        ("a.avi", {}, r"\.mp4 or \.gif"), ("a.gif", {"fps": 60}, r"fps of a \.gif"), ("a.mp4", {"fps": 0}, "fps"),
        ("a.mp4", {"frames_between": 0}, "frames_between"), ("a.gif", {"size": 1}, "height"),
        ("a.gif", {"size": (4, 4, 4)}, "size must be"),
    ):  # fmt: skip
        with pytest.raises(InvalidValueError, match=said):
            save_video(made, tmp_path / path, **changes)  # type: ignore[arg-type]
    alone = concentric(tmp_path / "one", levels=1, resolution=8)
    with pytest.raises(InvalidValueError, match="at least 2 keyframes"):
        save_video(alone, tmp_path / "a.gif")
    monkeypatch.setitem(__import__("sys").modules, "imageio.v2", None)
    with pytest.raises(MissingExtraError, match=r"fractal-streams\[video\]"):
        save_video(made, tmp_path / "a.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "z"]
    assert len({tuple(colour) for colour in SPECTRAL.tolist()}) > 240  # a GIF's palette holds them all
