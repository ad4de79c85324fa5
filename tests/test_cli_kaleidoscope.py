"""`fractal-streams kaleidoscope`: what its commands write and say, the original's names, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")

from commands import refused, run

from fractal_streams.cli_kaleidoscope_chains import summary
from fractal_streams.cli_kaleidoscope_fit import described
from fractal_streams.kaleidoscope import presets
from fractal_streams.kaleidoscope.basin_stream import BasinSpec, BasinStream
from fractal_streams.kaleidoscope.fitted import open_kaleidoscope
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.sources import of_stream, points
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream
from fractal_streams.presets import open_stream

LINE = ("fit", "--data", "0.2,0.8", "--steps", "500", "--restarts", "2", "--models", "2", "--device", "cpu")
PICTURES = (
    "fit", "--data", "fractal-10", "--height", "8", "--count", "6", "--hidden", "48", "--n_linear", "3",
    "--steps", "400", "--learning_rate", "3e-3", "--grey", "--chains", "60", "--device", "cpu",
)  # fmt: skip


def kaleidoscope(*arguments: object) -> str:
    """What a command printed."""
    return str(run("kaleidoscope", *arguments).stdout)


def refusal(*arguments: object) -> str:
    return refused("kaleidoscope", *arguments)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Files that `fit` wrote, and what it printed."""
    place = tmp_path_factory.mktemp("fitted")
    found = {}
    for name, asked in (("line", LINE), ("pictures", PICTURES)):
        path = place / f"{name}.safetensors"
        found[name] = (path, kaleidoscope(*asked, "--out", path))
    return found


@pytest.fixture(scope="module")
def line(made: dict[str, tuple[Path, str]]) -> Path:
    return made["line"][0]


@pytest.fixture(scope="module")
def pictures(made: dict[str, tuple[Path, str]]) -> Path:
    return made["pictures"][0]


def test_a_fit_of_points_has_the_settings_of_the_original(made: Any) -> None:
    path, text = made["line"]
    fitted = open_kaleidoscope(path)
    assert fitted.network == Network(shape=(1,), hidden=10, n_linear=7, head="sigmoid", data_scale=1.0)
    assert fitted.models == 2 and fitted.sources.data.ravel().tolist() == pytest.approx([0.2, 0.8])
    told = fitted.training
    assert (told["steps"], told["noise"], told["decay"], told["restarts"]) == (500, 0.0, "constant", 2)
    assert fitted.attractors is not None and fitted.quality is not None
    assert text.startswith("2 of mlp 1, 7 linear layers of 10: 500 steps, noise 0, in ")
    assert f"\nattractors {len(fitted.attractors)}\n" in text
    assert f"\nfile       {path} ({path.stat().st_size / 1e3:.0f} kB), fingerprint {fitted.fingerprint}\n" in text
    mean = fitted.quality["summary"]["kick"]["returned"]["mean"]
    assert re.search(rf"kicked sources that return +{100 * mean:.3g} ± ", text)
    assert " ".join(fitted.quality["summary"]["verdict"].split()) in " ".join(text.split())
    assert {each.name for each in path.parent.iterdir()} >= {"line.safetensors"}
    assert not list(path.parent.glob("*.part.*"))


def test_a_fit_of_pictures_denoises_and_is_reported_beside_held_out_ones(made: Any) -> None:
    path, text = made["pictures"]
    fitted = open_kaleidoscope(path)
    assert fitted.network == Network(shape=(1, 8, 8), hidden=48, n_linear=3)
    assert fitted.training["noise"] == 0.3 and fitted.training["decay"] == "cosine"
    stream = open_stream("fractal-10", height=8, width=8, device="cpu")
    indices = fitted.sources.origin["indices"]
    assert np.array_equal(fitted.sources.data, of_stream(stream, indices, grey=True).data) and len(indices) == 6
    assert "nearest source of held-out data" in text and "verdict" not in text.splitlines()[0]


def test_the_same_call_finds_the_file_and_others_are_refused(line: Path) -> None:
    before = line.read_bytes()
    assert kaleidoscope(*LINE, "--out", line).splitlines()[0].endswith("noise 0, all there")
    assert "models (2 there, 3 here); give another --out, or --again" in refusal(*LINE, "--models", 3, "--out", line)
    assert "of other settings: data;" in refusal(*LINE, "--data", "0.2,0.7", "--out", line)
    assert "hidden (10 there, 9 here)" in refusal(*LINE, "--H", 9, "--out", line)
    assert "steps (500 there, 7 here)" in refusal(*LINE, "--epochs", 7, "--out", line)
    assert line.read_bytes() == before


def test_fitting_again_gives_the_same_weights(folder: Path) -> None:
    short = ("fit", "--data", "0.2:0.3,0.8:0.7", "--steps", "30", "--on-dead", "allow", "--chains", "20")
    first = kaleidoscope(*short)
    assert first.startswith("mlp 2, 7 linear layers of 50: 30 steps")
    fingerprint = open_kaleidoscope("points.safetensors").fingerprint
    second = kaleidoscope(*short, "--again", "--no-resume")
    assert "all there" not in second and open_kaleidoscope("points.safetensors").fingerprint == fingerprint


def stopped(command: list[str], by: signal.Signals) -> tuple[int, int]:
    """Start a fit, send it a signal when it is on its way; the per cent where it began, and its exit code."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        text, shown = "", None
        while shown is None or not 0 < int(shown[-1]) < 100 or len(set(shown)) < 2:
            part = os.read(process.stderr.fileno(), 4096).decode()
            assert part, f"the fit ended by itself: {text}"
            text += part
            shown = re.findall(r"fitting: +(\d+)%", text) or None
        process.send_signal(by)
        process.communicate()
        return int(shown[0]), process.returncode


@pytest.mark.slow
def test_a_fit_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(folder: Path) -> None:
    asked = [*LINE, "--steps", "8000", "--chains", "50", "--out", "stopped.safetensors"]
    command = [sys.executable, "-m", "fractal_streams", "kaleidoscope", *asked]
    assert stopped(command, signal.SIGINT) == (0, 130)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"stopped.part.safetensors"}
    kept = (folder / "stopped.part.safetensors").read_bytes()
    begun, code = stopped(command, signal.SIGKILL)
    assert begun > 0 and code == -signal.SIGKILL
    assert (folder / "stopped.part.safetensors").read_bytes() == kept
    kaleidoscope(*asked)
    kaleidoscope(*asked[:-1], "whole.safetensors")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"stopped.safetensors", "whole.safetensors"}
    prints = [open_kaleidoscope(f"{name}.safetensors").fingerprint for name in ("stopped", "whole")]
    assert prints[0] == prints[1]


def stream_of(path: Path, **spec: Any) -> KaleidoscopeStream:
    return KaleidoscopeStream(KaleidoscopeSpec(model=str(path), **spec), device="cpu")


def test_samples_are_those_of_the_stream(pictures: Path) -> None:
    text = kaleidoscope("sample", pictures, "--out", "a.npz", "--count", 5, "--first", 3, "--start", "pink")
    batch = stream_of(pictures, start="pink").generate(range(3, 8)).numpy()
    with np.load("a.npz") as found:
        assert np.array_equal(found["images"], batch.images) and np.array_equal(found["label"], batch.labels)
        assert all(np.array_equal(found[name], batch.latents[name]) for name in ("steps", "attractor", "source"))
        assert found["chain"].tolist() == [3, 4, 5, 6, 7] and found["iterates"].size == 0
    rest = batch.latents["steps"] >= 0
    near = (batch.latents["nearest_distance"] <= 0.02).mean()
    fingerprint = open_kaleidoscope(pictures).fingerprint
    assert text.startswith(f"{pictures} ({fingerprint[:8]}): 5 chains, pink noise, at most 100 steps, seed 0\n")
    assert f"at rest    {rest.mean():.1%}" in text and f"copies     {near:.1%} within 0.02" in text
    run("kaleidoscope", "sample", pictures, "--out", "a.csv", "--count", 2, "--first", 3, "--start", "pink")
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [int(row["steps"]) for row in rows] == batch.latents["steps"][:2].tolist()
    assert [row["title"] for row in rows] == [stream_of(pictures).class_title(int(k)) for k in batch.labels[:2]]


def test_iterates_are_shown_as_a_strip_a_film_and_a_folder_of_sheets(pictures: Path, folder: Path) -> None:
    asked = ("sample", pictures, "--steps", 6, "--count", 4, "--SHOW_EVERY", 3)
    kaleidoscope(*asked, "--out", "a.npz")
    clips = stream_of(pictures, mode="clips", iterate=0, stride=3, frames=3, most=6).generate(range(4)).images
    with np.load("a.npz") as found:
        assert np.array_equal(found["images"], clips) and found["iterates"].tolist() == [0, 3, 6]
    kaleidoscope(*asked, "--out", "a.gif", "--fps", 5)
    with Image.open("a.gif") as film:
        assert film.n_frames == 3 and film.info["duration"] == 2000  # the noise is held for 10 frames
    kaleidoscope(*asked, "--out", "runs")
    assert {path.name for path in (folder / "runs").iterdir()} == {"0000.png", "0003.png", "0006.png", "samples.csv"}
    kaleidoscope(*asked, "--out", "strips/a.png")
    with Image.open("strips/a.png") as sheet:
        strip = np.asarray(sheet)
    tile = np.moveaxis(clips[0, 2], 0, -1).repeat(12, 0).repeat(12, 1)
    left = 16 + 2 * (96 + 10)
    assert np.array_equal(strip[46 : 46 + 96, left : left + 96], tile)


def test_pictures_of_ends_each_in_a_file(pictures: Path, folder: Path) -> None:
    kaleidoscope("sample", pictures, "--out", "ends", "--count", 2, "--first", 7)
    images = stream_of(pictures).generate(range(7, 9)).images
    for number, image in zip((7, 8), images, strict=True):
        with Image.open(folder / "ends" / f"{number:06d}.png") as found:
            assert np.array_equal(np.asarray(found), np.moveaxis(image, 0, -1))


def test_chains_with_jitter_never_rest(pictures: Path) -> None:
    text = kaleidoscope("sample", pictures, "--eps", 0.01, "--jitter_kind", "seed_uniform", "--runs", 3, "--num", 4)
    assert "jitter 0.01 seed_uniform, seed 0\nat rest    0.0%\n" in text
    assert "tolerance=0" in refusal("sample", pictures, "--jitter", 0.1, "--tolerance", 0.1)


def test_samples_of_points(line: Path) -> None:
    kaleidoscope("sample", line, "--out", "a.csv", "--count", 40, "--steps", 300)
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    values = np.array([float(row["value_0"]) for row in rows])
    titles = np.array([row["title"] for row in rows])
    near = np.abs(values[:, None] - [0.2, 0.8]).argmin(axis=1)
    assert titles.tolist() == [f"point {place}" for place in near] and set(near) == {0, 1}
    distance = np.array([float(row["nearest_distance"]) for row in rows])
    assert distance == pytest.approx(np.abs(values - np.array([0.2, 0.8])[near]), abs=1e-6)
    kaleidoscope("sample", line, "--out", "b.npz", "--count", 3, "--first", 5, "--steps", 300, "--every", 100)
    with np.load("b.npz") as found:
        assert found["values"].shape == (3, 4, 1)
        assert found["values"][:, -1, 0] == pytest.approx(values[5:8], abs=1e-3)


def test_a_summary_counts_what_became_of_chains(pictures: Path) -> None:
    from fractal_streams.cli_kaleidoscope_chains import Asked, Drawn
    from fractal_streams.kaleidoscope.starts import Start

    fitted = open_kaleidoscope(pictures)
    table = {
        "chain": np.arange(4), "model": np.zeros(4, int), "steps": np.array([3, -1, 9, 5]),
        "label": np.array([0, 1, 1, 1]), "nearest_distance": np.array([0.01, 0.5, 0.0, 0.3]),
        "source": np.array([2, 1, 2, 0]), "attractor": np.array([0, -1, 0, 1]),
    }  # fmt: skip
    asked = Asked(address="", count=4, first=0, start=Start(), steps=9, tolerance=0.1, jitter=None, every=None,
                  stratified=False, seed=0, device="cpu", precision="float32")  # fmt: skip
    assert fitted.attractors is not None
    assert summary(Drawn(table, ("low", "high")), fitted, asked) == [
        "at rest    75.0%, behind 3 to 9 steps, half of them within 5",
        "distance   0.155 of the range to the nearest source (median), most 0.5",
        "copies     50.0% within 0.02 of a source, of 1 of 6 sources",
        f"ends       at 2 of {len(fitted.attractors)} attractors, 50.0% at one; 25.0% at none",
        "classes    high 75%, low 25%",
    ]


def test_films_of_chains_and_of_points(pictures: Path, line: Path) -> None:
    pytest.importorskip("matplotlib")
    text = kaleidoscope("gif", pictures, "--out", "a.gif", "--chains", 5, "--steps", 3, "--fps", 10, "--held", 4)
    assert re.fullmatch(r"film       a\.gif \(\d+ kB\)\n", text)
    with Image.open("a.gif") as film:
        times = [film.info["duration"] for frame in range(film.n_frames) if film.seek(frame) is None]
        assert times == [400, 100, 100, 100]
    kaleidoscope("gif", line, "--out", "b.gif", "--steps", 2)
    with Image.open("b.gif") as film:
        assert film.n_frames == 3
    assert "--jitter are of pictures" in refusal("gif", line, "--out", "c.gif", "--jitter", 0.1)


def test_analysis_of_one_value(line: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    studies = ("--loss-range", "--points", "1,4", "--dimensions", "1", "--seeds", 2, "--training-steps", 20)
    text = kaleidoscope("analyse", line, "--out", "a", "--no-films", *studies)
    names = {path.name for path in (folder / "a").iterdir()}
    assert names == {"profile.png", "profiles.png", "quality.json", "loss-range.png", "loss-range.csv"}
    assert re.search(r"f\(x\) = x   at 0\.200 \(stable, slope 0\.\d\d\)", text) and "of 2 networks\n" in text
    rows = list(csv.DictReader(io.StringIO((folder / "a/loss-range.csv").read_text())))
    four = np.array([float(row["corner_loss"]) for row in rows if row["points"] == "4"])
    assert f"{four.mean():.3f} ± {four.std():.3f}" in text and len(rows) == 4
    assert json.loads((folder / "a/quality.json").read_text()) == open_kaleidoscope(line).quality


def test_analysis_of_pictures(pictures: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    study = ("--depth", "--depths", "2,3", "--noises", "0.3", "--seeds", 2, "--training-steps", 20)
    text = kaleidoscope("analyse", pictures, "--out", "a", "--starts", 2, "--steps", 4, "--no-films", *study)
    names = {path.name for path in (folder / "a").iterdir()}
    assert names == {"chains.png", "quality.png", "quality.json", "depth.png", "depth.csv"}
    rows = list(csv.DictReader(io.StringIO((folder / "a/depth.csv").read_text())))
    assert [(row["depth"], row["noise"]) for row in rows] == [("2", "0.3"), ("2", "0.3"), ("3", "0.3"), ("3", "0.3")]
    deep = np.array([float(row["reached_sources"]) for row in rows if row["depth"] == "3"])
    assert f"{deep.mean():.3g} ± {deep.std():.2g}" in text.split("noise", 2)[-1]


@pytest.mark.slow
def test_analysis_of_two_values(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    four = "0.2:0.2,0.2:0.8,0.8:0.2,0.8:0.8"
    kaleidoscope("fit", "--data", four, "--out", "square.safetensors", "--chains", 200)
    text = kaleidoscope("analyse", "square.safetensors", "--out", "a", "--steps", 3)
    assert {path.name for path in (folder / "a").iterdir()} == {
        "surface.png",
        "surface.gif",
        "basins.png",
        "quality.json",
    }
    shares = [float(share) for share in re.findall(r"of (\d+\.\d)% of the plane", text)]
    assert len(shares) >= 2 and 90.0 < sum(shares) <= 100.1 and shares == sorted(shares, reverse=True)


def test_a_report_is_the_files_or_measured_anew(line: Path) -> None:
    quality = open_kaleidoscope(line).quality
    assert json.loads(kaleidoscope("report", line, "--whole")) == quality
    anew = json.loads(kaleidoscope("report", line, "--whole", "--again", "--chains", 30, "--device", "cpu"))
    assert anew["settings"]["chains"] == 30 and quality is not None
    assert anew["networks"][0]["spectral_radius"] == quality["networks"][0]["spectral_radius"]
    text = kaleidoscope("report", line)
    assert "\nsources    2, 2 classes\n" in text and "flags " in text


def test_recipes_are_listed_and_made_into_the_cache_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    text = kaleidoscope("list")
    assert all(name in text for name in presets.RECIPES) and str(folder / "cache") in text.replace("\n", "")
    short = presets.RECIPES["seed_1d"].training.replace(steps=200)
    small = presets.Recipe(title="tiny", network=presets.LINE, training=short, sources=lambda root: points([0.2, 0.8]))
    monkeypatch.setitem(presets.RECIPES, "tiny", small)
    told = kaleidoscope("fit", "tiny", "--device", "cpu")
    path = presets.model_path("tiny")
    assert path.is_relative_to(folder / "cache") and f"file       {path} (" in told
    assert open_kaleidoscope(path).network == small.network
    assert "all there" in kaleidoscope("fit", "tiny")
    assert re.search(rf"tiny +tiny +7 of 10 +{path.stat().st_size / 1e3:.0f} kB", kaleidoscope("list"))
    assert kaleidoscope("sample", "tiny", "--count", 3).startswith("tiny (")
    assert "--steps would make another kaleidoscope than the recipe tiny" in refusal("fit", "tiny", "--steps", 3)


def test_a_damaged_file_and_a_pickle_are_refused(line: Path, folder: Path) -> None:
    whole = line.read_bytes()
    (folder / "a.safetensors").write_bytes(whole[:-9])
    assert "damaged" in refusal("sample", "a.safetensors")
    (folder / "b.safetensors").write_bytes(b"\x80\x04abc")
    assert "it looks like a pickle, which is never read" in refusal("report", "b.safetensors")
    assert "no file at c.safetensors" in refusal("gif", "c.safetensors", "--out", "a.gif")


def test_a_bank_in_words() -> None:
    assert (
        described(Network(shape=(3, 8, 8), kind="unet", hidden=32, n_linear=2), 1) == "unet 3 x 8 x 8, 2 levels of 32"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fit",), "give the NAME of a recipe"),
        (("fit", "seed_1d", "--data", "0.2,0.8"), "give the NAME of a recipe"),
        (("fit", "seed_1e"), "did you mean 'seed_1d'?"),
        (("fit", "seed_mnist"), "the recipe seed_mnist is of mnist: give --root"),
        (("fit", "seed_1d", "--lr", "1e-4"), "--learning-rate would make another kaleidoscope"),
        (("fit", "seed_1d", "--models", "2"), "--models is none of the recipe's"),
        (("fit", "--data", "0.2,0.8", "--root", "."), "--root is of a recipe"),
        (("fit", "--data", "0.2,0.8", "--L", "7"), "--L 7 has two meanings"),
        (("fit", "seed_1d", "--L", "10"), "say --n-linear"),
        (("fit", "--data", "0.2,0.8", "--out", "a.pt"), "must be .safetensors"),
        (("fit", "--data", "0.2,0.8", "--count", "3"), "--count is of pictures"),
        (("fit", "--data", "0.2,1.8"), "points must lie in [0, 1] or [-1, 1]"),
        (("fit", "--data", "0.2,0.8", "--own-data"), "--own-data takes its pictures from a stream"),
        (("fit", "--data", "0.2,0.8", "--kind", "unet"), "takes pictures"),
        (("fit", "--data", "0.2,0.8", "--data-scale", "2"), "data_scale must lie in (0, 1]"),
        (("fit", "--data", "0.2,0.8", "--noise", "-1"), "noise must lie in [0, 10]"),
        (("fit", "--data", "0.2,0.8", "--betas", "high"), "--betas is B1,B2"),
        (("fit", "--data", "0.2,0.8", "--device", "tpu"), "'tpu'"),
        (("fit", "--data", "nowhere"), "nothing at nowhere"),
        (("fit", "--data", "mnist:nowhere"), "mnist is not in nowhere"),
        (("fit", "--data", "fractal-10", "--height", "tall"), "--height is EDGE or HEIGHTxWIDTH"),
        (("fit", "--data", "fractal-10", "--classes", "a"), "--classes are of stored pictures"),
        (("sample", "nowhere"), "unknown kaleidoscope 'nowhere'"),
        (("sample", "kaleidoscope-10"), "`fractal-streams kaleidoscope fit kaleidoscope-10` makes it"),
        (("sample", "a.safetensors", "--out", "a.jpg"), "a sheet is .png"),
        (("sample", "a.safetensors", "--count", "0"), "count"),
        (("sample", "a.safetensors", "--start", "brown"), "start kind"),
        (("gif", "a.safetensors", "--out", "a.png"), "must be .gif or .mp4"),
        (("gif", "a.safetensors"), "--out"),
        (("analyse", "a.safetensors", "--out", "a", "--depths", "deep"), "--depths is a list of whole numbers"),
        (("analyse", "a.safetensors", "--out", "a", "--noises", "loud"), "--noises is a list of numbers"),
        (("basins", "a.safetensors", "--out", "a.jpg"), "a sheet is .png"),
        (("basins", "a.safetensors", "--depth", "deep"), "--depth is N or LOW:HIGH"),
        (("basins", "a.safetensors", "--depth", "3:2"), "max_depth"),
        (("basins", "a.safetensors", "--plane", "far"), "plane"),
        (("fit", "--data", "0.2,0.8", "--chains", "0"), "chains must be a whole number from 1"),
        (("fit", "--data", "fractal-10", "--height", "8", "--held-out", "-1"), "--held-out must be a whole number"),
        (("sample", "a.safetensors", "--every", "101"), "every must be a whole number from 1 to 100"),
        (("sample", "a.safetensors", "--jitter-kind", "brown"), "jitter kind"),
        (("sample", "a.safetensors", "--out", "a.gif", "--fps", "0"), "rate must lie in (0, 50]"),
        (("gif", "a.safetensors", "--out", "a.gif", "--fps", "0"), "rate must lie in (0, 50]"),
        (("gif", "a.safetensors", "--out", "a.gif", "--jitter-kind", "brown"), "jitter kind"),
        (("unfit",), "No such command"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    assert message in refusal(*arguments)
    assert [path.name for path in folder.iterdir() if path.name != "cache"] == []


def test_refusals_that_need_a_file(line: Path, pictures: Path) -> None:
    assert "which are written as .npz or .csv" in refusal("sample", line, "--out", "a.png")
    assert "--stratified is of pictures" in refusal("sample", line, "--stratified")
    assert "model must be a whole number from 0 to 1" in refusal("analyse", line, "--out", "a", "--model", "2")
    assert "networks of two values and more" in refusal("basins", line)
    assert "precision" in refusal("sample", line, "--precision", "float8")
    assert "million pixels" in refusal("sample", pictures, "--count", "50000", "--out", "a.png")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_run(line: Path, folder: Path) -> None:
    (folder / "taken").write_text("a file")
    for asked in (
        (*LINE, "--out", "taken/a.safetensors"), ("sample", "a.safetensors", "--out", "taken"),
        ("sample", "a.safetensors", "--out", "taken/deep/a.csv"), ("gif", "a.safetensors", "--out", "taken/a.gif"),
        ("analyse", "a.safetensors", "--out", "taken"), ("basins", "a.safetensors", "--out", "taken"),
    ):  # fmt: skip
        assert f"can't be written, for {folder / 'taken'} is a file: give a folder" in refusal(*asked)
    assert [path.name for path in folder.iterdir() if path.name != "cache"] == ["taken"]
    assert "starts must be a whole number from 1" in refusal("gif", line, "--out", "a.gif", "--chains", "0")


def test_basin_maps_are_those_of_the_stream(pictures: Path, folder: Path) -> None:
    asked = ("basins", pictures, "--count", 2, "--first", 3, "--size", "12x16", "--depth", "1:2", "--steps", 40)
    text = kaleidoscope(*asked, "--out", "a.npz", "--uncertainty")
    spec = BasinSpec(height=12, width=16, min_depth=1, max_depth=2, most=40)
    stream = BasinStream(spec, fitted=open_kaleidoscope(pictures), device="cpu")
    batch = stream.generate(range(3, 5)).numpy()
    with np.load("a.npz") as found:
        assert all(np.array_equal(found[name], batch.latents[name]) for name in ("attractor", "steps", "depth"))
        assert np.array_equal(found["images"], batch.images) and np.array_equal(found["labels"], batch.labels)
    assert "): 2 maps of 12 x 16, planes through sources, seed 0\ndepth      " in text and "boundary   " in text
    unknown, edges = batch.latents["unresolved_share"].mean(), batch.latents["edge_share"].mean()
    assert f"{unknown:.1%} end at none\n" in text and f"beside {edges:.1%} of the pixels" in text
    kaleidoscope(*asked, "--out", "maps")
    with Image.open(folder / "maps/000004.png") as found:
        assert np.array_equal(np.asarray(found), np.moveaxis(batch.images[1], 0, -1))
    kaleidoscope(*asked, "--out", "new/a.png")
    with Image.open("new/a.png") as sheet:
        tile = np.asarray(sheet)[46 : 46 + 96, 16 : 16 + 128]
    assert np.array_equal(tile, np.moveaxis(batch.images[0], 0, -1).repeat(8, 0).repeat(8, 1))


@pytest.mark.parametrize("command", ["fit", "report", "list", "sample", "gif", "analyse", "basins"])
def test_help_pages_have_examples(command: str) -> None:
    text = kaleidoscope(command, "--help")
    assert f"fractal-streams kaleidoscope {command}" in text and "Usage:" in text


def test_commands_load_torch_only_where_it_is_used() -> None:
    program = "import sys, fractal_streams.cli_kaleidoscope; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_group_alone_shows_its_commands() -> None:
    text = kaleidoscope()
    assert all(f" {name} " in text for name in ("fit", "report", "list", "sample", "gif", "analyse", "basins"))
