"""`fractal-streams alae`: what the commands write is what the functions give, whole or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("typer")
pytest.importorskip("safetensors")
image = pytest.importorskip("PIL.Image")

from commands import refused, run
from fractal_streams.recipes.alae import board, using, writing
from fractal_streams.recipes.alae.code_file import load_codes
from fractal_streams.recipes.alae.keeping import load_model, save_model
from fractal_streams.recipes.alae.model import ALAE, Size
from fractal_streams.recipes.alae.sources import opened_source
from fractal_streams.recipes.alae.train import ALAESettings
from fractal_streams.recipes.alae.using import decode, draws, encode, interpolate
from torch import Tensor

from fractal_streams.contact_sheet import MARGIN
from fractal_streams.errors import InvalidValueError

EDGE, CODE, STYLES = 16, 16, 6
SIZE = Size(image_size=EDGE, narrow=8, wide=16, code_size=CODE, projector=2)
TOLD = ALAESettings(size="tiny", preset="kali_julia", image_size=EDGE, data_seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one without settings, one of points, and a folder of three pictures."""
    root = tmp_path_factory.mktemp("commands")
    torch.manual_seed(5)
    save_model(root / "run", ALAE(SIZE, (3, EDGE, EDGE)), SIZE)
    save_model(root / "bare", ALAE(SIZE, (3, EDGE, EDGE)), SIZE)
    save_model(root / "points", ALAE(SIZE, (2,), flat=True), SIZE)
    (root / "run" / "result.json").write_text(json.dumps({"settings": TOLD.decisive()}))
    (root / "photos").mkdir()
    for number in range(3):
        levels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), np.uint8)
        image.fromarray(levels).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def model(place: Path) -> ALAE:
    return load_model(place / "run")


def alae(name: str, place: Path, *options: object, model: str = "run") -> Any:
    return run("alae", name, place / model, *options, "--device", "cpu", "--quiet")


def not_alae(name: str, place: Path, *options: object, model: str = "run") -> str:
    return refused("alae", name, place / model, *options, "--device", "cpu", "--quiet")


def samples(*indices: int) -> Tensor:
    """Pictures of the run's stream."""
    return opened_source(TOLD, "test", "cpu").generate(list(indices)).torch().images


def png(path: Path) -> np.ndarray:
    return np.asarray(image.open(path).convert("RGB"))


def test_encode_and_decode_are_reconstructions(place: Path, model: ALAE, tmp_path: Path) -> None:
    told = alae("encode", place, "--out", tmp_path / "codes.npz", "--indices", "2:7").output
    assert "codes.npz: 5 codes of 16 numbers" in told and "latent_" in told
    found = load_codes(tmp_path / "codes.npz")
    images = samples(2, 3, 4, 5, 6)
    assert found.index.tolist() == [2, 3, 4, 5, 6] and torch.equal(found.tensor(), encode(model, images))
    for name in ("again", "once more"):
        assert "5 pictures" in alae("decode", place, tmp_path / "codes.npz", "--out", tmp_path / name).output
    expected = board.levels(decode(model, encode(model, images)))
    files = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert files == [*(f"{number:06d}.png" for number in range(5)), "pictures.npz", "sheet.png"]
    for number, levels in enumerate(expected):
        assert np.array_equal(png(tmp_path / "again" / f"{number:06d}.png"), levels.transpose(1, 2, 0))
    held = np.load(tmp_path / "again" / "pictures.npz")
    assert np.array_equal(held["images"], expected) and held["images"].dtype == np.uint8
    assert np.array_equal(held["labels"], found.labels) and np.array_equal(held["codes"], found.codes)
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "once more" / file).read_bytes()
    assert "again is there already and not empty" in not_alae(
        "decode", place, tmp_path / "codes.npz", "--out", tmp_path / "again"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "codes.npz", "once more"]


def test_pictures_of_ones_own_and_of_another_preset(place: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "codes.npz", ("--cache", tmp_path / "cache")
    alae("encode", place, place / "photos", "--out", out, *cache)
    every = load_codes(out)
    assert [*every.names] == ["0.png", "1.png", "2.png"] and every.index.tolist() == [0, 1, 2]
    files = [place / "photos" / f"{number}.png" for number in (2, 0)]
    alae("encode", place, *files, "--out", out)
    assert np.allclose(load_codes(out).codes, every.codes[[2, 0]], atol=1e-5)
    alae("encode", place, place / "photos", "--out", out, "--indices", "1,1", *cache)
    assert np.allclose(load_codes(out).codes, every.codes[[1, 1]], atol=1e-5)
    alae("encode", place, "--preset", "fractal-10", "--indices", "0:4", "--out", out, model="bare")
    assert load_codes(out).names[0].startswith("class ")
    assert "there are pictures 0 to 2" in not_alae(
        "encode", place, place / "photos", "--indices", "1:4", *cache, "--out", out
    )
    assert "of streams, and pictures are given" in not_alae("encode", place, *files, "--preset", "kali", "--out", out)


def test_draws_are_those_of_the_function_and_of_their_seed(place: Path, model: ALAE, tmp_path: Path) -> None:
    asked = ("--count", 3, "--seed", 4, "--psi", 0.5)
    alae("decode", place, *asked, "--out", tmp_path / "one")
    alae("decode", place, *asked, "--out", tmp_path / "two")
    alae("decode", place, "--count", 3, "--seed", 5, "--psi", 0.5, "--out", tmp_path / "other")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    assert (tmp_path / "one" / files[0]).read_bytes() != (tmp_path / "other" / files[0]).read_bytes()
    codes = draws(model, 3, seed=4, psi=0.5)
    held = np.load(tmp_path / "one" / "pictures.npz")
    assert np.array_equal(held["codes"], codes.numpy())
    assert np.array_equal(held["images"], board.levels(decode(model, codes)))
    alae("decode", place, tmp_path / "one" / "pictures.npz", "--out", tmp_path / "three")
    assert all((tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes() for name in files[:3])


def test_clips_stay_clips(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda name: None)  # no ffmpeg: a GIF
    out = tmp_path / "codes.npz"
    alae("encode", place, "--preset", "fractal-video", "--indices", "0:2", "--out", out)
    frames = load_codes(out).frames
    assert frames and len(load_codes(out)) == 2 * frames
    assert "clips.gif" in alae("decode", place, out, "--out", tmp_path / "clips").output
    with image.open(tmp_path / "clips" / "clips.gif") as film:
        assert film.n_frames == frames
    assert (tmp_path / "clips" / f"000001-{frames - 1:03d}.png").is_file()


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """A picture of a board of 7 columns without groups: it ends a margin before the lower right corner."""
    size, step = 96, 96 + board.NARROW
    top, left = sheet.shape[0] - MARGIN - size - (2 - row) * step, MARGIN + column * step
    return sheet[top : top + size : 6, left : left + size : 6].transpose(2, 0, 1)


def test_ways_between_draws_pictures_and_samples(place: Path, model: ALAE, tmp_path: Path) -> None:
    out, film = tmp_path / "between.png", tmp_path / "between.gif"
    asked = ("--count", 3, "--seed", 2, "--loop", "--film", film, "--frames", 4)
    told = alae("interpolate", place, *asked, "--out", out).output
    assert "3 ways between 3 codes" in told and "12 frames" in told
    codes = draws(model, 3, seed=2)
    line = board.levels(interpolate(model, codes, codes.roll(-1, 0)))
    for row in range(3):
        for column in range(7):
            assert np.array_equal(tile(png(out), row, column), line[row, column]), (row, column)
    with image.open(film) as shown:
        assert shown.n_frames == 12 and shown.size == (256, 256)
    files, filmed = [place / "photos" / f"{number}.png" for number in range(2)], ("--film", film, "--frames", 3)
    assert "1 ways" in alae("interpolate", place, *files, "--out", out).output
    assert "2 ways" in alae("interpolate", place, "--indices", "5,1,3", "--out", out, *filmed).output
    with image.open(film) as shown:
        assert shown.n_frames == 7
    assert "two pictures at least" in not_alae("interpolate", place, files[0], "--out", tmp_path / "no.png")
    assert "leave one of them out" in not_alae("interpolate", place, *files, "--count", 2, "--out", out)
    assert "must end in .mp4 or .gif" in not_alae("interpolate", place, "--film", "film.avi", "--out", out)
    assert not (tmp_path / "no.png").exists()


def test_a_model_that_has_not_grown_up_is_shown_pictures_of_its_size(place: Path, tmp_path: Path) -> None:
    small = ALAE(SIZE, (3, EDGE, EDGE), first_level=1)
    small.grow(1)
    save_model(tmp_path / "small", small, SIZE)
    asked = ("--preset", "kali", "--indices", "0:2")
    alae("interpolate", tmp_path, *asked, "--out", tmp_path / "between.png", model="small")
    alae("project", tmp_path, *asked, "--steps", 1, "--out", tmp_path / "found", model="small")
    alae("decode", tmp_path, tmp_path / "found" / "codes.npz", "--out", tmp_path / "again", model="small")
    assert png(tmp_path / "again" / "000001.png").shape == (EDGE // 2, EDGE // 2, 3)
    board_of_nine = png(tmp_path / "between.png")
    step = 96 + board.NARROW
    real = board_of_nine[-MARGIN - 96 : -MARGIN : 12, MARGIN : MARGIN + 96 : 12].transpose(2, 0, 1)
    stream = opened_source(ALAESettings(preset="kali", image_size=EDGE), "test", "cpu")
    halves = torch.nn.functional.avg_pool2d(stream.generate([0]).torch().images, 2)
    assert np.array_equal(real, board.levels(halves)[0]) and board_of_nine.shape[1] > 9 * step - board.NARROW


def test_a_film_is_a_video(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    line = torch.linspace(-1, 1, 5)[None, :, None, None, None].expand(2, 5, 3, 8, 8)
    assert writing.save_film(tmp_path / "film.mp4", line) == 9
    with imageio.get_reader(tmp_path / "film.mp4") as opened:
        reader: Any = opened
        assert reader.count_frames() == 9
    assert [*tmp_path.iterdir()] == [tmp_path / "film.mp4"]


def test_projections_and_their_figures(place: Path, model: ALAE, tmp_path: Path) -> None:
    asked = ("--indices", "0:3", "--steps", 12, "--styles", "w+", "--features", 0)
    told = alae("project", place, *asked, "--out", tmp_path / "found").output
    assert "3 pictures, median PSNR" in told
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["board.png", "codes.npz"]
    found, images = load_codes(tmp_path / "found" / "codes.npz"), samples(0, 1, 2)
    assert found.codes.shape == (3, STYLES, CODE) and found.index.tolist() == [0, 1, 2] and set(found.latents)
    assert (found.figures["psnr"] > found.figures["first_psnr"]).all()
    made = decode(model, found.tensor())
    error = (made.clamp(-1, 1) - images).square().mean((1, 2, 3)).double()
    assert np.allclose(found.figures["psnr"], 10 * np.log10(4 / error.numpy()), atol=0.01)
    alae("decode", place, tmp_path / "found" / "codes.npz", "--out", tmp_path / "again")
    assert np.array_equal(np.load(tmp_path / "again" / "pictures.npz")["images"], board.levels(made))
    assert "not empty" in not_alae("project", place, *asked, "--out", tmp_path / "found")


def test_a_projection_that_was_stopped_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--indices", "0:5", "--steps", 3, "--batch-size", 2)
    alae("project", place, *asked, "--out", tmp_path / "whole")
    batches, over = [], using.Search.over

    def stopped(search: using.Search, images: Tensor, ahead: Any) -> Any:
        batches.append(len(images))
        if len(batches) == 3:
            raise OSError("no power")
        return over(search, images, ahead)

    monkeypatch.setattr(using.Search, "over", stopped)
    assert "no power" in not_alae("project", place, *asked, "--out", tmp_path / "found")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".found.parts", "whole"]
    alae("project", place, *asked, "--out", tmp_path / "found")
    assert batches == [2, 2, 1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found", "whole"]
    for name in ("codes.npz", "board.png"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(using.Search, "over", over)
    keep, pictures = tmp_path / "parts", samples(0, 1)
    model = load_model(place / "run")
    first = using.project(model, pictures, steps=2, parts=keep)
    assert torch.equal(using.project(model, pictures, steps=2, parts=keep).codes, first.codes)
    assert len([*keep.iterdir()]) == 1
    for change in ({"lr": 0.2}, {"styles": "w+"}, {"steps": 3}, {"features": 0.0}):
        using.project(model, pictures, **{"steps": 2, "parts": keep, **change})  # type: ignore[arg-type]
    using.project(model, pictures.flip(0), steps=2, parts=keep)
    with torch.no_grad():
        model.generator.begin.mul_(1.1)
    using.project(model, pictures, steps=2, parts=keep)
    assert len([*keep.iterdir()]) == 7  # nothing of other settings, pictures or weights was taken


@pytest.mark.slow
def test_a_projection_that_was_killed_goes_on(place: Path, tmp_path: Path) -> None:
    asked = ("--indices", "0:6", "--steps", 200, "--batch-size", 2)
    alae("project", place, *asked, "--out", tmp_path / "whole")
    words = ["alae", "project", place / "run", *asked, "--out", tmp_path / "found", "--device", "cpu", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "fractal_streams", *map(str, words)])
    parts = tmp_path / ".found.parts"
    while not [*parts.glob("[0-9a-f]*.safetensors")]:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len([*parts.glob("[0-9a-f]*.safetensors")]) < 3 and not (tmp_path / "found").exists()
    alae("project", place, *asked, "--out", tmp_path / "found")
    for name in ("codes.npz", "board.png"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found", "whole"]


def test_nothing_half_written_remains(tmp_path: Path) -> None:
    for path in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(RuntimeError), writing.new_folder(path) as inside:
            (inside / "half").write_text("a")
            raise RuntimeError
        assert [*tmp_path.iterdir()] == [tmp_path / "empty"] and not [*(tmp_path / "empty").iterdir()]
    with writing.new_folder(tmp_path / "empty") as inside:
        (inside / "whole").write_text("a")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["whole"]
    with pytest.raises(InvalidValueError, match="not empty"), writing.new_folder(tmp_path / "empty"):
        pass


def test_refusals_name_the_remedy(place: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "codes.npz")
    assert "holds no trained ALAE" in not_alae("encode", place, *out, model="none")
    assert "name a preset" in not_alae("encode", place, *out, model="bare")
    assert "a model of points (2,)" in not_alae("decode", place, "--out", tmp_path / "no", model="points")
    assert "make it first" in not_alae("encode", place, "--out", tmp_path / "no" / "codes.npz")
    assert "must end in .npz" in not_alae("encode", place, "--out", tmp_path / "codes.npy")
    assert "psi must lie in [0, 1]" in not_alae("decode", place, "--psi", 2, "--out", tmp_path / "no")
    assert "--count is of draws" in not_alae("decode", place, "no.npz", "--count", 2, "--out", tmp_path / "no")
    assert "are of pictures, and none" in not_alae("encode", place, "--skip", 2, *out)
    assert "styles" in not_alae("project", place, "--styles", "z", "--out", tmp_path / "no")
    assert "no codes at" in not_alae("decode", place, tmp_path / "none.npz", "--out", tmp_path / "no")
    np.savez(tmp_path / "wide.npz", codes=np.zeros((2, CODE + 1)))
    assert "codes must be (N, 16)" in not_alae("decode", place, tmp_path / "wide.npz", "--out", tmp_path / "no")
    (place / "points" / "result.json").write_text('{"settings": {"presets": "kali"}}')
    assert "holds no settings of a run" in not_alae("encode", place, *out, model="points")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.npz"]
