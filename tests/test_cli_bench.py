"""`fractal-streams bench`: its rows, its gate, its files, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from commands import refused, run
from fractal_streams.recipes.benchmarks import throughput

from fractal_streams import cli_bench
from fractal_streams.render.reference import ReferenceRenderer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "CHECKED_PIXELS", 2**10)
    return tmp_path


def test_a_stream_by_itself() -> None:
    arguments = ("bench", "fractal-10", "--sizes", "8,16", "--dtypes", "uint8,bfloat16", "--seconds", "0.005")
    rows = json.loads(run(*arguments, "--device", "cpu", "--batch", "32", "--json", "-").stdout)
    assert [(row["size"], row["dtype"]) for row in rows] == [
        (8, "uint8"), (8, "bfloat16"), (16, "uint8"), (16, "bfloat16"),
    ]  # fmt: skip
    assert all(row["renderer"] == "numba" and row["batch"] == 32 and row["rate"] > 0 for row in rows)
    table = run(
        "bench", "mandelbrot", "--size", "8", "--seconds", "0.005", "--device", "cpu", "--json", "a.json"
    ).stdout
    assert re.search(r"numba, cpu +8 +uint8 +8,192 +[\d,]+", table)
    assert [row["batch"] for row in json.loads(Path("a.json").read_text())] == [8192]


def test_no_speed_of_wrong_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ReferenceRenderer):
        def levels(self, raster: Any, column: Any) -> Any:
            return 255 - super().levels(raster, column)

    monkeypatch.setattr(throughput, "NumbaRenderer", lambda threads: Wrong())
    monkeypatch.setattr(throughput, "throughput", None)
    assert "no speed" in refused("bench", "fractal-10", "--sizes", "16", "--device", "cpu")
    pytest.importorskip("torch")
    assert "no speed" in refused("bench", "--device", "cpu")


def test_no_speed_of_a_wrong_format(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = throughput.opened

    def shifted(source: Any, renderer: str, place: str, size: int, dtype: str = "uint8") -> Any:
        stream: Any = opened(source, renderer, place, size, dtype)
        if dtype != "uint8":
            generate = stream.generate
            stream.generate = lambda indices: generate([index + 1 for index in indices])
        return stream

    monkeypatch.setattr(throughput, "opened", shifted)
    assert "float16" in refused("bench", "fractal-10", "--sizes", "16", "--dtypes", "uint8,float16", "--device", "cpu")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `compare` was asked for; it gives made-up rates."""
    comparison = pytest.importorskip("fractal_streams.recipes.benchmarks.comparison")
    asked: list[dict[str, Any]] = []

    def compare(**settings: Any) -> Any:
        settings.pop("progress")("round 1")
        asked.append(settings)
        row = comparison.Row
        return comparison.Comparison(
            machine={"gpu": "A GPU", "cpu": "a CPU"}, device="cuda:0", size=settings["size"], batch=512,
            dtype="bfloat16", pictures=50_000, energy=("GPU",),
            parity={"triton": {"differing": 3, "allowed": 9, "checked": 1024}},
            rows=(
                row(name="fractal-streams", ours=True, rate=2e7, spread=0.01, ours_is=1.0, share=0.8, joules=2e-5,
                    first=0.01),
                row(name="PNG", workers=4, rate=5e3, spread=0.2, ours_is=4000.0, joules=0.0123, first=1.5),
                row(name="memory", rate=4e7, spread=0.0, ours_is=0.5, clock="core"),
                row(name="FFCV", reason="No module named 'ffcv'"),
            ),
        )  # fmt: skip

    monkeypatch.setattr(comparison, "compare", compare)
    return asked


def test_the_comparison_is_a_table_and_a_file(measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = run(
        "bench", "--only", "PNG,memory", "--workers", "0,4", "--rounds", "2", "--batch", "64", "--json", "a.json"
    ).stdout
    assert measured == [{
        "size": 32, "batch": 64, "seconds": 0.6, "device": "auto", "workers": [0, 4], "rounds": 2, "pictures": 50_000,
        "only": ["PNG", "memory"],
    }]  # fmt: skip
    assert re.search(r"^ *fractal-streams +20,000,000 +1% +80% +0.02 +0.01 s", text, re.M)
    assert re.search(r"^ *PNG, 4 workers +5,000 +20% +4,000x +- +12.3 +1.50 s", text, re.M)
    assert re.search(r"^ *memory +40,000,000 \* +0% +0.5x +- +- +- *$", text, re.M)
    assert "not measured: FFCV: No module named 'ffcv'" in text and "* of one core" in text
    assert "A GPU: 32x32, batches of 512, bfloat16" in text and "joules of GPU" in text
    assert "triton: 3 of 1,024 pixels off the reference, 9 allowed" in text
    assert [len(table["rows"]) for table in json.loads(Path("a.json").read_text())] == [4]
    assert [path.name for path in Path().iterdir()] == ["a.json"]


def test_a_table_for_each_size_or_json_alone(measured: list[dict[str, Any]]) -> None:
    assert run("bench", "--sizes", "32,64").stdout.count("A GPU: ") == 2
    figures = json.loads(run("bench", "--sizes", "16,24", "--json", "-").stdout)
    assert [each["size"] for each in figures] == [16, 24] == [each["size"] for each in measured[2:]]


def test_a_narrow_terminal_keeps_the_rates() -> None:
    columns = {"contestant": ["x" * 30], "images/s": ["1"], "spread": ["1%"], "mJ/image": ["-"], "first batch": ["1 s"]}
    assert list(cli_bench.fitting(columns, 100)) == ["contestant", "images/s", "spread", "first batch"]
    assert list(cli_bench.fitting(columns, 55)) == ["contestant", "images/s", "spread"]
    assert list(cli_bench.fitting(columns, 20)) == ["contestant", "images/s"]


def test_the_plot_is_a_picture(measured: list[dict[str, Any]]) -> None:
    charts = pytest.importorskip("fractal_streams.recipes.benchmarks.charts")
    run("bench", "--plot", "rates.png")
    assert Path("rates.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in Path().iterdir()] == ["rates.png"]
    comparison = pytest.importorskip("fractal_streams.recipes.benchmarks.comparison")
    axes = charts.comparison_chart(comparison.compare(size=32, progress=print)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["memory", "fractal-streams", "PNG, 4 workers"]
    assert [bar.get_width() for bar in axes.patches] == [4e7, 2e7, 5e3]
    notes = [note.get_text() for note in axes.texts]
    assert notes == ["40,000,000 a core   ours is 0.5x", "20,000,000", "5,000   ours is 4,000x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "32;64"), "--sizes"),
        (("seed-readme", "--renderers", "opengl"), "'opengl'"),
        (("seed-readme", "--dtypes", "int8", "--sizes", "8"), "'int8'"),
        (("seed-readme", "--seconds", "0"), "seconds"),
        (("trainability-points",), "trained, not rendered"),
        (("--seconds", "0"), "seconds"),
        (("--workers", "two"), "--workers"),
        (("--dtypes", "uint8"), "--dtypes is no option of the comparison: name a SOURCE"),
        (("--renderers", "numba"), "--renderers"),
        (("seed-readme", "--rounds", "3"), "--rounds is no option of a SOURCE by itself: leave SOURCE out"),
        (("seed-readme", "--plot", "a.png"), "--plot"),
        (("--plot", "a.bmp"), ".png, .svg, .pdf"),
        (("--plot", "no/where.png"), "no folder"),
        (("--plot", "a.png", "--sizes", "32,64"), "--plot draws one size"),
        (("--device", "tpu"), "'tpu'"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    for package in ("torch", "matplotlib"):
        pytest.importorskip(package)
    assert message in refused("bench", *arguments)
    assert list(folder.iterdir()) == []
