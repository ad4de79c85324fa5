"""`fractal-streams scan`, `zoom`, `dimension`, `video`: their files, fractalML's flags, and what they refuse."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
Image = pytest.importorskip("PIL.Image")

from commands import refused, run

from fractal_streams import cli_scan, cli_trainability
from fractal_streams.cli_experiment import asked_for, rewritten, window_of
from fractal_streams.cli_status import Status, batches_of, far_from_boundary, read_status
from fractal_streams.trainability import (
    OVERVIEW,
    PUBLISHED,
    Experiment,
    least_squares_dimension,
    open_scan,
    open_zoom,
    picture,
    published_dimension,
    scan,
    zoom,
    zoom_windows,
    zoom_windows_about,
)

SMALL = Experiment(width=8, dataset_mode="single_example", steps=50)
OPTIONS = ("--width", "8", "--dataset_mode", "single_example", "--num_steps", "50", "--device", "cpu")
BOUNDARY = (1.5, 1.9)
"""Exponents of a place near which training both converges and diverges."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: str | Path) -> Any:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_a_scan_is_the_librarys_and_is_read_again() -> None:
    window = ("--x-exponents", "-1:4", "--y", "0.01:1e5", "--resolution", "12x16", "--out", "a/b.png", "--plain")
    text = run("scan", *OPTIONS, *window).stdout
    made = open_scan("a/b")
    assert made.window.ends() == (pytest.approx((0.1, 1e4)), pytest.approx((0.01, 1e5)))
    expected = scan(SMALL, made.window, resolution=(12, 16), device="cpu")
    assert made.experiment == SMALL and made.shape == (12, 16)
    assert np.array_equal(made.measure, expected.measure) and 0 < made.converged.sum() < 192
    assert np.array_equal(pixels("a/b.png"), picture.plain(expected.measure))
    assert re.search(r"tanh, width 8, one example, 50 steps: 12 x 16 points, float64; 192 networks in ", text)
    assert f"converged  {expected.converged.mean():.2%}\n" in text and "picture    a/b.png\narrays     a/b\n" in text
    assert "; all there\n" in run("scan", *OPTIONS, *window).stdout
    assert "steps is 50 there, 40 here" in refused_late("scan", *OPTIONS, *window, "--steps", "40")


def refused_late(*arguments: object) -> str:
    """The error of a command that ends with code 2."""
    return str(run(*arguments, code=2).stderr)


def test_what_is_trained_and_where() -> None:
    single, own = PUBLISHED["single"], asked_for("single", {})
    assert (own.experiment, own.title, own.name) == (single.experiment, "tanh, one example", "single")
    assert window_of(own, {}) == single.window and window_of(own, {"overview": True}) == OVERVIEW
    half = window_of(own, {"y": "10:1000"})
    assert half.size == (single.window.size[0], pytest.approx(2.0)) and half.centre[1] == pytest.approx(100.0)
    given = {
        "optimiser": "adam", "axes": "lr,beta2", "settings": ["weight_decay=0.01", "momentum=0.5"], "batch_size": 4,
        "replacement": False, "nonlinearity": "gelu", "depth": 3, "dataset_ratio": 0.5, "offset_mode": "every_step",
        "alpha0": 0.25, "alpha1": 0.5, "weight_seed": 1, "data_seed": 2, "order_seed": 3, "inputs": "native",
        "width": 8, "steps": 9, "dataset_mode": "width",
    }  # fmt: skip
    adam = asked_for("", given)
    fields = {name: value for name, value in given.items() if name != "settings"} | {"axes": ("lr", "beta2")}
    assert adam.experiment == Experiment(**fields, hyperparameters={"weight_decay": 0.01, "momentum": 0.5})
    assert window_of(adam, {"y": "0.5:0.9"}).ends()[1] == pytest.approx((0.5, 0.9))
    other = asked_for("single", {"axes": "lr0,weight_decay"})
    assert window_of(other, {}) == OVERVIEW and other.title == "tanh, width 16, one example, 500 steps"
    assert asked_for("minibatch", {"batch_size": 0, "inputs": "native"}).experiment.full_batch


def test_what_is_trained_may_stand_in_a_file(folder: Path) -> None:
    (folder / "mine.json").write_text(SMALL.to_json())
    assert asked_for("mine.json", {}).experiment == SMALL and asked_for("mine.json", {}).window is None
    run("scan", "mine.json", "--overview", "--steps", "20", "--resolution", "4", "--plain", "--device", "cpu")
    assert {path.name for path in folder.iterdir()} == {"mine.json", "mine-overview", "mine-overview.png"}
    told = asked_for("mine-overview/scan.json", {})
    assert told.experiment == SMALL.replace(steps=20) and told.window == OVERVIEW
    windows = zoom_windows(PUBLISHED["single"].window, levels=2)
    zoom(SMALL, windows, folder="a-zoom", resolution=4, device="cpu")
    assert asked_for("a-zoom/zoom.json", {}).window == windows[-1]


def test_a_picture_with_axes_marks_where_the_preset_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(picture, "save_picture", lambda scan, path, **told: drawn.append({"path": path, **told}))
    common = ("scan", "single", "--mode", "reduced", "--device", "cpu", "--resolution", "4")
    run(*common, "--overview")
    run(*common, "--inset", "single-overview", "--tile", "4")
    window = PUBLISHED["single"].window
    assert [(each["title"], each["mark"]) for each in drawn] == [
        ("tanh, one example", window),
        ("tanh, one example", None),
    ]
    assert drawn[0]["overview"] is None and drawn[1]["overview"].window == OVERVIEW
    assert drawn[1]["path"] == Path("single-scan.png")
    assert "outside the picture" in refused(*common, "--inset", "single-overview", "--x", "1e8:1e9", "--folder", "far")
    assert not Path("far").exists()  # told before anything is trained
    run("scan", *OPTIONS, "--resolution", "4", "--x", "1:10")
    assert drawn[-1]["path"] == Path("tanh-scan.png")  # one side of a window is no overview


def test_a_refined_scan_says_its_error() -> None:
    text = run("scan", *OPTIONS, "--resolution", "40", "--refine", "--plain").stdout
    made = open_scan("tanh-scan")
    assert made.refined is not None and made.evaluated is not None
    trained = made.refined.evaluated + made.refined.sampled
    assert f"; {trained:,} networks in" in text
    share, error = made.evaluated.mean(), made.refined.error
    assert f"trained    {share:.2%} of the points; of the labels of the others {error:.2%} are wrong" in text


def test_fractal_ml_scans_by_its_flags_and_names(folder: Path) -> None:
    text = run(
        "scan", "--activations", "tanh", "linear", *OPTIONS, "--batch_size", "16", "--resolution", "12x16", "--plain",
        "--alpha1", "0.25",
    ).stdout  # fmt: skip
    assert text.count("labels     outputs/images/grid_status_") == 2
    names = {path.name for path in (folder / "outputs/images").iterdir() if path.is_file()}
    assert names == {f"grid_status_{act}_n8.{kind}" for act in ("tanh", "linear") for kind in ("npy", "png", "json")}
    for act, nonlinearity in (("tanh", "tanh"), ("linear", "identity")):
        path = Path(f"outputs/images/grid_status_{act}_n8.npy")
        experiment = SMALL.replace(nonlinearity=nonlinearity, alpha1=0.25)
        expected = scan(experiment, resolution=(12, 16), device="cpu")
        labels = np.load(path)
        assert labels.dtype == np.uint8 and labels.shape == (16, 12) and set(np.unique(labels)) == {0, 1}
        assert np.array_equal(labels, expected.status.T)
        assert np.array_equal(pixels(path.with_suffix(".png")), picture.plain(expected.measure))
        facts = json.loads(path.with_suffix(".json").read_text())
        assert facts["values"] == {"lr0": expected.grid.x.tolist(), "lr1": expected.grid.y.tolist()}
        assert facts["precision"] == "float64" and "trainer" in facts["engine"]
        status = read_status(path)
        assert (status.experiment, status.window) == (experiment, OVERVIEW)
        assert np.array_equal(open_scan(f"outputs/images/{facts['scan']}").measure, expected.measure)


def test_fractal_ml_takes_minibatches_without_replacement() -> None:
    matching = Experiment()
    assert batches_of(matching, None, None) == matching.replace(batch_size=16, replacement=False)
    assert batches_of(matching, 32, True) == matching.replace(batch_size=32, replacement=True)
    assert batches_of(matching, 272, None) == batches_of(matching, 0, None) == matching
    assert batches_of(SMALL, None, None) == SMALL


def test_fractal_ml_zooms_by_its_flags_and_trains_every_level(folder: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    run("scan", "--activations", "tanh", *OPTIONS, "--resolution", "24", "--plain", "--output_dir", "images")
    result = run(
        "zoom", "--status_npy", "images/grid_status_tanh_n8.npy", "--center_lr0", BOUNDARY[0], "--center_lr1",
        BOUNDARY[1], "--num_levels", "3", "--zoom_factor", "3.0", "--image_size", "16", "--output_dir", "zooms/tanh",
        "--fps", "5", "--device", "cpu",
    )  # fmt: skip
    assert "warning" not in result.stderr
    made = open_zoom("zooms/tanh")
    assert made.experiment == SMALL and made.windows == zoom_windows_about(BOUNDARY, levels=3, factor=3.0)
    for level, window in enumerate(made.windows):
        anew = scan(SMALL, window, resolution=16, device="cpu")
        assert np.array_equal(made.measure(level), anew.measure)
        assert np.array_equal(pixels(f"zooms/tanh/zoom_{level:03d}.png"), picture.plain(anew.measure))
    with imageio.get_reader("zooms/tanh/zoom_sequence.mp4") as film:
        assert film.get_meta_data()["fps"] == 5.0 and sum(1 for _ in film) == 3
    away = ("--center_lr0", "-3.0", "--center_lr1", "-2.0", "--num_levels", "2", "--image_size", "4", "--no-video")
    told = run("zoom", "--status_npy", "images/grid_status_tanh_n8.npy", *away, "--device", "cpu").stderr
    assert re.search(r"^warning: the nearest boundary .* from level 1 on, windows will show one", told)
    assert not (folder / "tanh_n8-zoom/zoom_sequence.mp4").exists() and len(open_zoom("tanh_n8-zoom")) == 2
    found = ("--inwards", "--num_levels", "2", "--image_size", "8", "--output_dir", "in", "--no-video")
    run("zoom", "--status_npy", "images/grid_status_tanh_n8.npy", *found, "--device", "cpu")
    assert open_zoom("in").windows[0] == OVERVIEW and len({*open_zoom("in").scan(1).status.flat}) == 2


def test_how_far_a_centre_is_from_the_boundary() -> None:
    labels = np.zeros((91, 91), np.uint8)
    labels[:, 46:] = 1  # diverged above 10**1.55 of the vertical axis
    status = Status(experiment=SMALL, window=OVERVIEW, labels=labels)
    near = zoom_windows_about((0.0, 1.53), levels=6)
    assert far_from_boundary(status, (0.0, 1.53), near) is None
    assert far_from_boundary(status, (0.0, 1.40), zoom_windows_about((0.0, 1.4), levels=6)) is None  # 4.5 / 32 = 0.14
    told = far_from_boundary(status, (0.0, 0.55), zoom_windows_about((0.0, 0.55), levels=8))
    assert told is not None and "is 1 decades from the centre (0, 0.55): from level 3 on," in told
    assert re.search(r"near --center_lr0 -?0.05\d* --center_lr1 1.55, ", told)
    labels[:] = 0
    assert "one label alone" in str(far_from_boundary(status, (0.0, 1.5), near))


def test_zooms_out_from_a_final_window_and_inwards() -> None:
    run(
        "zoom",
        "single",
        "--mode",
        "reduced",
        "--levels",
        "2",
        "--resolution",
        "6",
        "--device",
        "cpu",
        "--folder",
        "out",
    )
    made = open_zoom("out")
    assert made.experiment == PUBLISHED["single"].experiment
    assert made.windows == zoom_windows(PUBLISHED["single"].window, levels=2)
    text = run("zoom", *OPTIONS, "--inwards", "--levels", "3", "--factor", "4", "--resolution", "12x10").stdout
    inwards = open_zoom("tanh-zoom")
    assert inwards.windows[0] == OVERVIEW and inwards.resolution == (12, 10)
    assert [window.size[0] for window in inwards.windows] == [9.0, 2.25, 0.5625]
    assert "3 levels of 12 x 10 points, 9 to 0.562 wide" in text
    assert "pictures   tanh-zoom/zoom_000.png to zoom_002.png" in text


def test_a_window_beyond_the_precision_is_told_in_a_line() -> None:
    deep = ("--x", "1:1.0000000000001", "--resolution", "4", "--plain")
    told = [line for line in run("scan", *OPTIONS, *deep).stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "that float64 resolves" in told[0] and ".py" not in told[0]
    assert "that float64 resolves" in refused("scan", *OPTIONS, *deep, "--on-limit", "refuse", "--out", "b.png")


def test_dimension_of_a_zoom_by_its_arrays_and_by_its_pictures(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    run("zoom", *OPTIONS, "--inwards", "--levels", "3", "--resolution", "40", "--folder", "deep")
    measures = [open_zoom("deep").measure(level) for level in range(3)]
    first, second = published_dimension(measures), least_squares_dimension(measures)
    text = run("dimension", "deep", "--output_csv", "metrics/a.csv", "--plot", "a.png", "--uncertainty").stdout
    interval = f"{first.value:.3f} (95 %: {first.low:.3f} to {first.high:.3f})"
    assert f"deep: 3 levels, {first.used} with a boundary\npublished estimator   {interval}\n" in text
    assert f"least squares         {second.value:.3f} (95 %: " in text and "uncertainty exponent  " in text
    rows = list(csv.reader(Path("metrics/a.csv").read_text().splitlines()))
    assert rows[0] == ["level", "estimated_dimension"]
    assert rows[1:] == [[str(k), f"{frame.value:.6f}"] for k, frame in enumerate(first.frames)]
    assert pixels("a.png").shape[0] > 300
    assert run("dimension", "deep/level-001").stdout.startswith("deep/level-001: 1 level, 1 with a boundary\n")
    (folder / "alone").mkdir()
    for path in (folder / "deep").glob("zoom_*.png"):
        path.rename(folder / "alone" / path.name)
    run("dimension", "--images_dir", "alone", "--output_csv", "b.csv")
    assert Path("b.csv").read_text() == Path("metrics/a.csv").read_text()


def test_dimension_stands_beside_that_of_the_paper(folder: Path) -> None:
    facts = {"experiment": json.loads(PUBLISHED["relu"].experiment.to_json())}
    (folder / "scan.json").write_text(json.dumps(facts))
    assert cli_trainability.paper_value(folder) is None  # the paper's is of a zoom
    (folder / "zoom.json").write_text(json.dumps(facts))
    assert cli_trainability.paper_value(folder) == 1.20
    facts["experiment"]["steps"] = 400
    (folder / "zoom.json").write_text(json.dumps(facts))
    assert cli_trainability.paper_value(folder) is None


def test_videos_blend_a_zoom_or_stitch_its_pictures() -> None:
    run("zoom", *OPTIONS, "--inwards", "--levels", "3", "--resolution", "8", "--folder", "deep")
    run("video", "deep", "--frames-between", "4", "--out", "a.gif", "--size", "12")
    with Image.open("a.gif") as film:
        assert (film.n_frames, film.size) == (9, (12, 12))
    run("video", "--images_dir", "deep", "--out", "b.gif", "--fps", "5")
    with Image.open("b.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (3, 200)
        for level in range(3):
            film.seek(level)
            assert np.array_equal(np.asarray(film.convert("RGB")), pixels(f"deep/zoom_{level:03d}.png"))


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    run("scan", *OPTIONS, "--resolution", "4", "--plain")
    (folder / "tanh-scan.png").unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("scan", *OPTIONS, "--resolution", "4", "--plain").output == ""
    assert [path.name for path in folder.iterdir()] == ["tanh-scan"]
    course = ("zoom", *OPTIONS, "--inwards", "--levels", "1", "--resolution", "8", "--folder", "z")
    monkeypatch.setenv("RANK", "0")
    assert "1/1" in run(*course).stderr  # its one tile is this rank's
    monkeypatch.setenv("RANK", "1")
    assert run(*course).output == ""


def test_what_is_missing_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(cli_scan, "find_spec", lambda name: None if name in ("matplotlib", "imageio_ffmpeg") else name)
    assert "pip install 'fractal-streams[recipes]'; or give --plain" in refused("scan", "single")
    assert "pip install 'fractal-streams[video]'" in refused("zoom", "single", "--video")
    assert list(folder.iterdir()) == []


def test_values_of_activations_and_underscores() -> None:
    assert rewritten(["--activations", "tanh", "relu", "linear", "--num_steps=5", "--x", "-3:6"]) == [
        "--activations", "tanh", "--activations", "relu", "--activations", "linear", "--num-steps=5", "--x", "-3:6",
    ]  # fmt: skip
    assert rewritten(["my_file.json", "--activations=tanh", "--out", "a_b.png"]) == [
        "my_file.json", "--activations=tanh", "--out", "a_b.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scan", "tahn"), "did you mean 'tanh'"),
        (("scan", "nowhere.json"), "nowhere.json"),
        (("scan", "--nonlinearity", "tahn"), "'tahn'"),
        (("scan", "--width", "12"), "width must be one of 8, 16, 32, 64 units, got 12"),
        (("scan", "--steps", "0"), "steps"),
        (("scan", "--axes", "lr0"), "two different names"),
        (("scan", "--axes", "lr0,momentum"), "optimiser"),
        (("scan", "--set", "lr0=3"), "leave it out"),
        (("scan", "--set", "speed=3"), "unknown hyperparameter 'speed'"),
        (("scan", "--set", "scale"), "NAME=VALUE"),
        (("scan", "single", "--weight-seed", "3"), "use 'native'"),
        (("scan", "--x", "3"), "--x is LOW:HIGH"),
        (("scan", "--y", "5:2"), "y must be two rising values above 0"),
        (("scan", "--x", "1:2", "--x-exponents", "0:1"), "same side"),
        (("scan", "--optimiser", "momentum", "--axes", "momentum,lr", "--x-exponents", "0:1"), "its own units"),
        (("scan", "--resolution", "1"), "2 to 8192"),
        (("scan", "--resolution", "a"), "N or HEIGHTxWIDTH"),
        (("scan", "--precision", "float16"), "float16"),
        (("scan", "--mode", "reduced"), "mode='exact'"),
        (("scan", "--device", "tpu"), "'tpu'"),
        (("scan", "--device", "cpu", "--tile", "2"), "tile"),
        (("scan", "--out", "a.jpg"), "must be .png"),
        (("scan", "--inset", "nowhere"), "no scan"),
        (("scan", "--output_dir", "a"), "--activations"),
        (("scan", "--activations", "tanh", "softmax"), "unknown activation 'softmax'"),
        (("scan", "tanh", "--activations", "tanh"), "exclude each other"),
        (("zoom",), "needs a final window"),
        (("zoom", "single", "--factor", "1"), "factor"),
        (("zoom", "single", "--levels", "0"), "1 to 1000 windows"),
        (("zoom", "single", "--levels", "1", "--video"), "at least 2"),
        (("zoom", "single", "--fps", "3"), "add --video"),
        (("zoom", "single", "--center_lr0", "3"), "given together"),
        (("zoom", "single", "--center_lr0", "3", "--center_lr1", "3", "--inwards"), "exclude each other"),
        (("zoom", "--status_npy", "a.npy", "--center_lr0", "3", "--center_lr1", "3"), "no such file"),
        (("dimension",), "as FOLDER or as --images-dir"),
        (("dimension", "nowhere"), "no folder"),
        (("dimension", "."), "no keyframes"),
        (("dimension", ".", "--plot", "a.svg"), "must be .png"),
        (("video",), "as FOLDER or as --images-dir"),
        (("video", "."), "no pictures zoom_*.png"),
        (("video", ".", "--out", "a.avi"), ".mp4 or .gif"),
        (("video", ".", "--size", "32"), "is read as pictures"),
        (("video", ".", "--size", "0"), "is read as pictures"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    assert message in refused(*arguments)
    assert list(folder.iterdir()) == []


def test_a_status_array_without_what_says_of_what(folder: Path) -> None:
    zoomed = ("zoom", "--status_npy", "a.npy", "--center_lr0", "1", "--center_lr1", "2")
    np.save("a.npy", np.zeros((4, 4), np.uint8))
    assert "has no a.json beside it" in refused(*zoomed)
    assert "leave EXPERIMENT out" in refused(*made_status(folder, (4, 4)), "tanh")
    assert "uint8 (4, 5)" in refused(*made_status(folder, (5, 4)))
    assert "a.json is damaged" in refused(*made_status(folder, 4))
    (folder / "a.json").write_text("{}")
    assert "version None" in refused(*zoomed)
    for damaged in (b"", b"PK\3\4xxxx", Path("a.npy").read_bytes()[:-1]):
        Path("a.npy").write_bytes(damaged)
        assert "is damaged" in refused(*made_status(folder, (4, 4)))


def made_status(folder: Path, resolution: Any) -> tuple[str, ...]:
    """The command line of a zoom of a 4 x 4 array whose sidecar tells of another resolution."""
    facts = {
        "status_version": 1, "experiment": json.loads(SMALL.to_json()), "window": OVERVIEW.to_dict(),
        "resolution": resolution,
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(facts))
    return ("zoom", "--status_npy", "a.npy", "--center_lr0", "1", "--center_lr1", "2")
