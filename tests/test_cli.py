"""The command line: what each command says and writes, and how it refuses."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from fractal_streams import __version__, open_stream
from fractal_streams.cli import parsed_indices, parsed_settings
from fractal_streams.colouring import CATALOGUE as COLOURINGS
from fractal_streams.contact_sheet import contact_sheet
from fractal_streams.errors import InvalidValueError
from fractal_streams.formulas import CATALOGUE as FORMULAS
from fractal_streams.presets import PRESETS, find_source

COMMANDS = (
    "list", "show", "spec", "bench", "demo", "export", "tar", "stub", "run", "pack",
    "scan", "zoom", "dimension", "video",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_and_help():
    assert run("--version").output == f"fractal-streams {__version__}\n"
    assert run().output == run("--help").output
    assert all(re.search(rf"\b{name}\b", run("--help").output) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_parses(command):
    text = run(command, "--help").output
    found = re.search(rf"fractal-streams ({command}\b[^\n]*)", text.split("Example")[-1])
    assert found
    options = set(re.findall(r"--[a-z]+", found[1]))
    assert options <= set(re.findall(r"--[a-z]+", text.split("Example")[0]))


def test_list_has_every_name():
    text = run("list").output
    for name in (*PRESETS, *FORMULAS, *COLOURINGS):
        assert re.search(rf"^ *{re.escape(name)} +\S", text, re.MULTILINE), name


def test_list_says_what_a_preset_draws():
    text = run("list").output
    assert re.search(r"fractal-1k +1,000 classes of polynomial_power, 224 x 224", text)
    assert re.search(r"fractal-video +10 classes of polynomial_power, 64 x 64, 16 frames", text)


@pytest.mark.parametrize("name", PRESETS)
def test_spec_reads_back(name, folder):
    (folder / "mine.json").write_text(run("spec", name).output)
    assert find_source("mine.json") == PRESETS[name]


def test_show_draws_the_stream():
    line = run("show", "fractal-10", "--seed", "3", "--split", "test", "--indices", "5:9", "--device", "cpu").output
    assert line == "fractal-10.png: 4 pictures of fractal-10, test, seed 3\n"
    batch = open_stream("fractal-10", seed=3, split="test", device="cpu").generate(range(5, 9))
    captions = [f"class {label} · #{index}" for index, label in zip(batch.index, batch.labels, strict=True)]
    expected = contact_sheet(batch.images, captions, title="fractal-10, test, seed 3")
    assert np.array_equal(np.asarray(Image.open("fractal-10.png")), expected)


def test_show_size_columns_colouring_and_no_labels():
    run(
        "show", "mandelbrot", "--indices", "2,7,4", "--size", "16x24", "--columns", "1", "--scale", "1",
        "--colouring", "three_phase_sine", "--no-labels", "--out", "sheet.png", "--device", "cpu",
    )  # fmt: skip
    stream = open_stream(
        find_source("mandelbrot"), height=16, width=24, colouring="three_phase_sine", device="cpu"
    )  # fmt: skip
    expected = contact_sheet(stream.generate([2, 7, 4]).images, columns=1, scale=1)
    assert np.array_equal(np.asarray(Image.open("sheet.png")), expected)


def test_show_names_families():
    assert find_source("fractal-families").formulas == FORMULAS
    run("show", "fractal-families", "--indices", "0:2", "--size", "16", "--device", "cpu")


def test_show_a_formula_of_the_users_own(folder):
    (folder / "own_formulas.py").write_text(
        "from fractal_streams import formula\n\n\n"
        "@formula(source='a test')\n"
        "def bent(zr, zi, cr, ci):\n    return zr * zr - zi * zi + cr, 2.0 * abs(zr * zi) + ci\n"
    )
    line = run("show", "own_formulas:bent", "--indices", "0:2", "--size", "16", "--device", "cpu").output
    assert line.startswith("own_formulas-bent.png: 2 pictures")
    assert len(np.unique(np.asarray(Image.open("own_formulas-bent.png")))) > 10


@pytest.mark.parametrize("ending", ["gif", "mp4", "png"])
def test_show_clips(ending, folder):
    if ending == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    run("show", "fractal-video", "--indices", "0:2", "--size", "16", "--out", f"clips.{ending}", "--device", "cpu")
    assert [path.name for path in folder.iterdir()] == [f"clips.{ending}"]
    if ending == "gif":
        with Image.open("clips.gif") as gif:
            assert gif.n_frames == 16


def test_a_still_has_no_gif_and_a_clip_is_one_by_default():
    assert "still pictures are drawn as .png" in refused("show", "fractal-10", "--out", "a.gif")
    assert "as .png, .gif or .mp4" in refused("show", "fractal-video", "--out", "a.jpg")
    line = run("show", "fractal-video", "--indices", "0:1", "--size", "8", "--device", "cpu").output
    assert line.startswith("fractal-video.gif: 1 clip of")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "fractal-mnst"), "did you mean 'fractal-mnist'"),
        (("show", "mandelbrat"), "did you mean 'mandelbrot'"),
        (("show", "nowhere:thing"), "nowhere"),
        (("show", "nowhere.json"), "nowhere.json"),
        (("show", "fractal-10", "--seed", "-1"), "seed must be"),
        (("show", "fractal-10", "--split", "dev"), "'validation'"),
        (("show", "fractal-10", "--size", "7"), "8 to 4096"),
        (("show", "fractal-10", "--size", "big"), "HEIGHTxWIDTH"),
        (("show", "fractal-10", "--indices", "a:b"), "'a:b'"),
        (("show", "fractal-10", "--indices", "9:3"), "no sample"),
        (("show", "fractal-10", "--indices", "-2:3"), "[0, 2**63)"),
        (("show", "fractal-10", "--indices", "0:10000000000"), "fewer indices"),
        (("show", "fractal-10", "--colouring", "smoth"), "did you mean 'smooth'"),
        (("show", "fractal-10", "--out", "no/where.png"), "no folder"),
        (("show", "fractal-10", "--device", "tpu"), "'tpu'"),
        (("show",), "SOURCE"),
        (("shew",), "shew"),
        (("show", "fractal-10", "--seed", "x"), "--seed"),
        (("spec", "fractal"), "unknown preset"),
    ],
)
def test_refusals(arguments, message, folder):
    assert message in refused(*arguments)
    assert list(folder.iterdir()) == []


def test_a_file_that_is_no_spec(folder):
    for text in ("not json", "[]", "{}", '{"kind": "stills", "spec_version": 99}'):
        (folder / "bad.json").write_text(text)
        refused("show", "bad.json")


def test_indices():
    assert parsed_indices("3:9:2") == range(3, 9, 2)
    assert parsed_indices(" 4, 0,4") == [4, 0, 4]


def test_demo_passes_its_options_on(monkeypatch):
    demo = pytest.importorskip("fractal_streams.recipes.demo")
    given = []
    monkeypatch.setattr(demo, "run", lambda *arguments: given.append(arguments))
    run("demo", "--folder", "here", "--seconds", "3", "--device", "cpu")
    assert [str(part) for part in given[0]] == ["here", "3.0", "cpu"]


def test_a_file_that_ends_too_early_is_no_interruption(monkeypatch):
    demo = pytest.importorskip("fractal_streams.recipes.demo")
    monkeypatch.setattr(demo, "run", lambda *arguments: np.load(io.BytesIO()))
    assert "ended too early (No data left in file)" in refused("demo")


def process(*arguments, code):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stderr
    return result


def test_a_process_exits_with_2_and_one_line():
    result = process("-m", "fractal_streams", "show", "fractal-19", code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1 and "did you mean" in result.stderr


def test_without_typer_the_pip_line(folder):
    script = "import sys; sys.modules['typer'] = None; from fractal_streams.__main__ import main; main()"
    result = process("-c", script, code=2)
    assert result.stderr == "error: typer is not installed, and this needs it: pip install 'fractal-streams[cli]'\n"


def test_a_reader_who_leaves_early_sees_no_traceback():
    command = f"{sys.executable} -m fractal_streams list | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == ""


def test_settings_are_json_or_text() -> None:
    assert parsed_settings(["iterations=60", "colouring=smooth", "class_parameters=[\"power\"]", "radius=null"]) == {
        "iterations": 60, "colouring": "smooth", "class_parameters": ["power"], "radius": None,
    }  # fmt: skip
    for wrong in ("iterations", "=3", "a b=3"):
        with pytest.raises(InvalidValueError, match="NAME=VALUE"):
            parsed_settings([wrong])
