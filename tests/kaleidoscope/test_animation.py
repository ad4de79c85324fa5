"""Animations, read back frame by frame; sheets of chains, pixel by pixel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_networks import linear

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.animation import (
    durations,
    palette_of,
    profile_frames,
    save_frames,
    save_profile_animation,
    save_surface_animation,
)
from fractal_streams.kaleidoscope.chains_picture import (
    BACKGROUND,
    chain_frames,
    chain_strip,
    run_chains,
    save_chains,
    save_strip,
)
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.starts import Jitter, Start
from fractal_streams.mp4 import whole_mp4

SIDE, FACTOR, LEFT, TOP = 4, 14, 12, 28


def picture_maps(*factors: float, channels: int = 1) -> Kaleidoscope:
    """x -> factor * x on pictures of 4 x 4, a network for each factor; the sources are all dark, grey and all light."""
    size = channels * SIDE * SIDE
    network = Network(
        shape=(channels, SIDE, SIDE), hidden=size, n_linear=2, activation="identity", head="linear", data_scale=1.0
    )
    eye = np.broadcast_to(np.eye(size, dtype=np.float32), (len(factors), size, size)).copy()
    none = np.zeros((len(factors), size), np.float32)
    scaled = eye * np.float32(factors)[:, None, None]
    tensors = {"layers.0.weight": scaled, "layers.0.bias": none, "layers.1.weight": eye, "layers.1.bias": none}
    levels = np.broadcast_to(np.uint8([0, 128, 255])[None, :, None, None, None], (1, 3, channels, SIDE, SIDE))
    sources = Sources(data=levels.copy(), labels=np.int64([[0, 1, 2]]), titles=("dark", "grey", "light"))
    return Kaleidoscope(network=network, tensors=tensors, sources=sources)


def frames_of(path: Path) -> tuple[list[Any], list[int], int]:
    """Pixels and durations of a GIF's frames, and how often it repeats."""
    with Image.open(path) as file:
        shown, lasts = [], []
        for number in range(file.n_frames):
            file.seek(number)
            shown.append(np.asarray(file.convert("RGB")))
            lasts.append(file.info["duration"])
        return shown, lasts, file.info["loop"]


def tiles_of(frame: Any, columns: int, count: int, top: int = TOP) -> Any:
    """(count, SIDE, SIDE, 3): one pixel from the middle of each enlarged one."""
    step = SIDE * FACTOR + 3
    places = FACTOR * np.arange(SIDE) + FACTOR // 2
    return np.stack([
        frame[top + number // columns * step + places][:, LEFT + number % columns * step + places]
        for number in range(count)
    ])  # fmt: skip


def test_times_are_the_nearest_hundredths() -> None:
    assert durations([10, *[1] * 3], 15.0) == [670, 60, 70, 70]
    assert durations([1] * 20, 3.0)[:3] == [330, 340, 330] and sum(durations([1] * 20, 3.0)) == 6670
    assert durations([1, 1], 50.0) == [20, 20]


def test_a_gif_reads_back_as_it_was_written(tmp_path: Path) -> None:
    frames = [np.full((6, 9, 3), (20 * k, 255 - k, k), np.uint8) for k in range(12)]
    for k, frame in enumerate(frames):
        frame[k % 6, k % 9] = (255, k, 0)
    path = save_frames(tmp_path / "a.gif", frames, rate=10.0, hold=[3] + [1] * 11)
    shown, lasts, loop = frames_of(path)
    assert len(shown) == 12 and (np.stack(shown) == np.stack(frames)).all()
    assert lasts == [300] + [100] * 11 and loop == 0
    assert path.read_bytes() == save_frames(tmp_path / "b.gif", frames, rate=10.0, hold=[3] + [1] * 11).read_bytes()


def test_all_greys_are_kept() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    codes, palette, place = palette_of([greys])
    assert (palette[place] == greys[:, 0]).all() and len(codes) == 256


def test_more_colours_than_a_palette_holds_do_not_flicker(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), axis=-1)
    still = np.concatenate([4 * grid, np.full((64, 64, 1), 90)], axis=2).astype(np.uint8)
    frames = [still.copy() for _ in range(6)]
    for number, frame in enumerate(frames):
        frame[:8, 8 * number : 8 * number + 8] = (255, 0, 255)  # a mark that moves
        frame[40:, :] = (7, 9, 11)
    shown, _, _ = frames_of(save_frames(tmp_path / "many.gif", frames, rate=10.0))
    still_part = np.stack(shown)[:, 8:40]
    assert (still_part == still_part[0]).all()
    assert np.abs(still_part[0].astype(int) - still[8:40]).mean() < 8.0
    for number, frame in enumerate(shown):
        assert (frame[:8, 8 * number : 8 * number + 8] == (255, 0, 255)).all()  # and keeps its colour
        assert (frame[40:] == (7, 9, 11)).all()


def test_frames_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    for asked, told in (
        (("a.jpg", [frame], 10.0, None), "written as"), (("a.gif", [frame], 51.0, None), "rate"),
        (("a.gif", [frame], 0.0, None), "rate"), (("a.gif", [frame, frame[:2]], 10.0, None), "one size"),
        (("a.gif", [], 10.0, None), "one size"), (("a.gif", [frame], 10.0, [1, 2]), "hold"),
        (("a.gif", [frame], 10.0, [0]), "hold"),
    ):  # fmt: skip
        name, frames, rate, hold = asked
        with pytest.raises(InvalidValueError, match=told):
            save_frames(tmp_path / str(name), frames, rate=rate, hold=hold)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_profile_moves_for_20_frames_of_a_third_of_a_second(tmp_path: Path) -> None:
    path = save_profile_animation(tmp_path / "one.gif", linear([[0.5]]), device="cpu")
    shown, lasts, loop = frames_of(path)
    assert len(shown) == 20 and set(lasts) == {330, 340} and loop == 0
    first = next(profile_frames(linear([[0.5]]), frames=1, device="cpu"))
    assert first.shape == shown[0].shape
    assert np.abs(shown[0].astype(int) - first).mean() < 0.1
    green = [(np.abs(frame.astype(int) - (0x2F, 0x9E, 0x44)).max(axis=2) < 12) for frame in shown]
    middle = shown[0].shape[1] // 2
    spread = [np.abs(np.nonzero(mask[100:])[1] - middle).max() for mask in green]
    assert spread[0] > 1.5 * spread[1] > 2.0 * spread[2]  # starts first, and each step halves


def test_a_surface_moves_for_15_frames(tmp_path: Path) -> None:
    path = save_surface_animation(tmp_path / "two.gif", linear(0.5 * np.eye(2)), points=6, starts=3, device="cpu")
    shown, lasts, _ = frames_of(path)
    assert len(shown) == 15 and set(lasts) == {330, 340}
    below = [frame[80:].astype(int) for frame in shown]  # the title
    assert all((one != other).any() for one, other in zip(below[:4], below[1:5], strict=True))
    red = [np.argwhere(np.abs(frame - (0xD7, 0x26, 0x3D)).max(axis=2) < 4).tolist() for frame in below[2:]]
    assert red[0] and all(places == red[0] for places in red)  # starts stay


def test_chains_are_k_applications_and_step_0_is_the_noise() -> None:
    fitted = picture_maps(0.5, -0.5)
    kept, owners = run_chains(fitted, (0, 1, 3), chains=5, device="cpu")
    assert owners.tolist() == [0, 1, 0, 1, 0]
    factor = np.float32([0.5, -0.5])[owners][:, None]
    assert kept[:, 1] == pytest.approx(factor * kept[:, 0]) and kept[:, 2] == pytest.approx(factor**3 * kept[:, 0])
    assert np.abs(kept[:, 0]).max() > 0.9
    alone, _ = run_chains(fitted, (0,), chains=2, device="cpu")
    assert (alone[:, 0] == kept[:2, 0]).all()
    assert (run_chains(fitted, (0,), chains=2, seed=1, device="cpu")[0] != alone).all()
    assert run_chains(fitted, (1,), chains=2, model=1, device="cpu")[1].tolist() == [1, 1]


def test_frames_show_the_same_chains_in_their_places() -> None:
    fitted = picture_maps(0.5)
    frames = chain_frames(fitted, chains=5, steps=3, columns=3, device="cpu")
    kept, _ = run_chains(fitted, range(4), chains=5, device="cpu")
    levels = fitted.network.levels_of(kept)
    assert len(frames) == 4
    for step, frame in enumerate(frames):
        assert (tiles_of(frame, 3, 5) == levels[:, step].transpose(0, 2, 3, 1)).all()
        assert (tiles_of(frame, 3, 6)[5] == BACKGROUND).all()
    heads = [frame[: TOP - 4] for frame in frames]
    assert all((head < 128).any() for head in heads)
    assert all((one != other).any() for one, other in zip(heads, heads[1:], strict=False))


def test_colours_come_in_the_order_of_channels() -> None:
    fitted = picture_maps(1.0, channels=3)
    (frame,) = chain_frames(fitted, chains=1, steps=0, device="cpu")
    kept, _ = run_chains(fitted, (0,), chains=1, device="cpu")
    assert (tiles_of(frame, 1, 1)[0] == fitted.network.levels_of(kept)[0, 0].transpose(1, 2, 0)).all()


def test_the_noise_is_held_for_ten_frames(tmp_path: Path) -> None:
    fitted = picture_maps(0.5)
    path = save_chains(tmp_path / "chains.gif", fitted, steps=4, device="cpu")
    shown, lasts, loop = frames_of(path)
    assert lasts == [670, 60, 70, 70, 60] and loop == 0
    frames = chain_frames(fitted, steps=4, device="cpu")
    assert (np.stack(shown) == np.stack(frames)).all()  # greys are exact
    assert path.read_bytes() == save_chains(tmp_path / "b.gif", fitted, steps=4, device="cpu").read_bytes()
    noise = tiles_of(shown[0], 8, 48)
    assert len({tile.tobytes() for tile in noise}) == 48  # 48 chains, all different


def test_a_strip_ends_with_the_nearest_source(tmp_path: Path) -> None:
    fitted = picture_maps(0.5, 1.0)
    strip = chain_strip(fitted, iterates=(0, 1, 8), chains=2, device="cpu", start=Start(kind="uniform"))
    kept, _ = run_chains(fitted, (0, 1, 8), chains=2, device="cpu")
    levels = fitted.network.levels_of(kept).transpose(0, 1, 3, 4, 2)
    tiles = tiles_of(strip, 4, 8).reshape(2, 4, SIDE, SIDE, 3)
    assert (tiles[:, :3] == levels).all()
    assert (tiles[0, 3] == 128).all()  # halved again and again it is grey
    sources = chain_strip(fitted, iterates=(0, 8), chains=6, model=0, start=Start(kind="source"), device="cpu")
    tiles = tiles_of(sources, 3, 18).reshape(6, 3, SIDE, SIDE, 3)
    assert {0, 255} <= set(tiles[:, 0].ravel().tolist()) and (tiles[:, 2] == 128).all()
    with Image.open(save_strip(tmp_path / "strip.png", fitted, chains=2, device="cpu")) as picture:
        assert picture.size[0] > picture.size[1]
        drawn = tiles_of(np.asarray(picture), 9, 9)
    assert (drawn[8] == 128).all()  # columns 0, 1, 2, 3, 5, 10, 20, 30 and the source


def test_jitter_moves_chains() -> None:
    fitted = picture_maps(0.5)
    still, moved = (
        run_chains(fitted, (1, 2), chains=2, jitter=jitter, device="cpu")[0] for jitter in (None, Jitter(size=0.1))
    )
    assert (still[:, 0] == moved[:, 0]).all() and (still[:, 1] != moved[:, 1]).mean() > 0.9


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_chains_as_mp4(tmp_path: Path) -> None:
    path = save_chains(tmp_path / "chains.mp4", picture_maps(0.5), chains=4, steps=2, device="cpu")
    import imageio.v2 as imageio

    assert whole_mp4(path) and len(imageio.mimread(path, memtest=False)) == 12  # ten times the noise, and two steps


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="networks of pictures"):
        save_chains(tmp_path / "a.gif", linear([[0.5]]), device="cpu")
    with pytest.raises(InvalidValueError, match="written as"):
        save_chains(tmp_path / "a.png", picture_maps(0.5), device="cpu")
    with pytest.raises(InvalidValueError, match="million pixels"):
        chain_frames(picture_maps(0.5), chains=4096, steps=0, scale=60, device="cpu")
    with pytest.raises(InvalidValueError, match="at least one"):
        run_chains(picture_maps(0.5), (), device="cpu")
    assert list(tmp_path.iterdir()) == []
