"""The recipe at its smallest size: its figures are those of the networks it leaves, and what is finished stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")

from fractal_streams.recipes import kaleidoscope as recipe, kaleidoscope_pictures as of_pictures
from fractal_streams.recipes.kaleidoscope_points import NEAR, ONE, of_median_loss, one_value
from fractal_streams.recipes.kaleidoscope_study import Asked, Place, finished, spread

from fractal_streams import StreamSpec
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.batched_points import grid
from fractal_streams.kaleidoscope.depth import Study
from fractal_streams.kaleidoscope.fitted import open_kaleidoscope
from fractal_streams.kaleidoscope.measures import frac, is_fitted


def run(folder: Path, *names: str) -> None:
    recipe.main([*names, "--scale", "tiny", "--device", "cpu", "--quiet", "--output-dir", str(folder)])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces are of two formulas, whose kernels other tests compile, and not of sixteen."""
    folder = tmp_path_factory.mktemp("outputs")
    two = StreamSpec(formulas=("polynomial_power", "mandelbrot"), num_classes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(of_pictures.PRESETS, "fractal-families", two)
        run(folder, "1d", "celeba")
    return folder


def told(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name / "result.json").read_text()))


def test_figures_of_points_are_those_of_the_networks(done: Path) -> None:
    facts = told(done, "1d")
    bank = open_kaleidoscope(done / "1d" / "h10-l7-torch-k1.safetensors")
    assert bank.models == 4 and bank.source_values(0).ravel().tolist() == pytest.approx(ONE)
    there = frac(bank, grid(bank.network, 201), (1, 3, 5, 10, 20, 50), NEAR[1])
    figures = facts["figures"]["10 7 torch 1"]
    assert figures["frac"] == there.tolist() and figures["fit"] == is_fitted(bank).tolist()
    row = next(row for row in facts["tables"][0]["rows"] if row[:4] == ["10", "7", "torch", "1"])
    fit = is_fitted(bank)
    assert row[4] == f"{100 * fit.mean():.0f} %" and row[6] == spread(there[fit, 0])
    readme = open_kaleidoscope(done / "1d" / "h5-l7-torch-k8.safetensors")
    assert (readme.network.hidden, readme.training["restarts"]) == (5, 8)
    said = " ".join(facts["said"])
    assert f"of the best of 8 restarts each, {100 * is_fitted(readme).mean():.0f} % fit" in said


def test_figures_of_pictures_are_those_of_the_reports(done: Path) -> None:
    facts, folder = told(done, "celeba"), done / "celeba"
    rows = facts["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["the original's, 4 layers of 32", "denoising, 3 layers of 32"]
    for row, name in zip(rows, ("plain", "denoising"), strict=True):
        bank = open_kaleidoscope(folder / f"{name}.safetensors")
        assert bank.quality is not None and bank.network.shape == (3, 10, 8) and len(bank.sources) == 16
        back = [part["kick"]["returned"] for part in bank.quality["networks"]]
        assert row[8] == spread(back, percent=True) and row[2] == str(bank.models) == "2"
        assert (bank.training["noise"] == 0.3) == (name == "denoising")
    plain = open_kaleidoscope(folder / "plain.safetensors").quality
    assert plain is not None and facts["figures"]["plain"] == plain["summary"]


def test_the_page_shows_what_lies_in_the_folders(done: Path) -> None:
    page = (done / "results.md").read_text()
    for name in ("1d", "celeba"):
        facts = told(done, name)
        assert f"## {facts['title']}\n\nClaim: {facts['claim']}\n" in page
        assert all(f"- {line}\n" in page for line in facts["said"]) and len(facts["pictures"]) >= 2
        for file, _ in facts["pictures"]:
            assert f"({name}/{file})" in page
            with Image.open(done / name / file) as picture:
                assert min(picture.size) > 50
        for table in facts["tables"]:
            assert all(len(row) == len(table["heads"]) for row in table["rows"])
    assert "Digits" not in page


def test_what_is_finished_is_not_run_again(done: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*.*")}
    broken = recipe.EXPERIMENTS["1d"].__class__(title="", claim="", run=lambda place: pytest.fail("run again"))
    monkeypatch.setitem(recipe.EXPERIMENTS, "1d", broken)
    run(done, "1d")
    assert {path: path.read_bytes() for path in done.rglob("*.*")} == before
    assert capsys.readouterr().out.strip().endswith(str(done / "results.md"))
    with pytest.raises(InvalidValueError, match="scale is 'tiny' there, 'small' here.*another --output-dir"):
        recipe.main(["1d", "--scale", "small", "--output-dir", str(done)])


def test_a_killed_experiment_goes_on_with_the_banks_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, fits = Place(folder=tmp_path, asked=Asked(output_dir=tmp_path, scale="tiny", device="cpu", quiet=True)), []
    study = "fractal_streams.recipes.kaleidoscope_study.fit"
    from fractal_streams.kaleidoscope.fitting import fit

    def counted(network: Any, *given: Any, **more: Any) -> Any:
        fits.append(network.n_linear)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(network, *given, **more)

    monkeypatch.setattr(study, counted)
    with pytest.raises(KeyboardInterrupt):
        finished(place, "1d", "", "", one_value)
    assert not (tmp_path / "result.json").exists() and fits == [3, 7]
    finished(place, "1d", "", "", one_value)
    assert fits == [3, 7, 7, 7, 7] and (tmp_path / "result.json").exists()


def study_of(**columns: list[list[float]]) -> Study:
    """Two seeds at 3 and at 10 layers, without noise."""
    rows = []
    for place, depth in enumerate((3, 10)):
        for model in range(2):
            row: dict[str, Any] = {name: 0.5 for name, *_ in of_pictures.CLAIMS}
            row |= {name: values[place][model] for name, values in columns.items()}
            rows.append({"depth": depth, "noise": 0.0, "model": model, **row})
    return Study(rows=tuple(rows), sources=9)


def test_claims_are_judged_by_the_spread() -> None:
    found = study_of(
        frac_10=[[0.1, 0.2], [0.8, 0.9]], returned=[[0.9, 0.8], [0.1, 0.2]], frac_100=[[0.1, 0.9], [0.4, 0.9]],
        reached_sources=[[9.0, 8.0], [2.0, 3.0]], error=[[0.01, 0.02], [0.1, 0.11]],
    )  # fmt: skip
    said = of_pictures.said_of_depth(found)
    verdicts = [line.rpartition(": ")[2].partition(" (")[0] for line in said[:5]]
    none, other = "no difference beyond the spread over the seeds", "does not hold, it is the other way"
    assert verdicts == ["holds", none, other, "holds", other]
    assert said[0].endswith("(0.15 ± 0.05, 0.85 ± 0.05 at 3, 10 layers).")
    assert said[5] == "Without noise, 50 % of the sources attract over all depths and seeds."


def test_a_spread_in_text() -> None:
    assert spread([0.1, 0.3]) == "0.20 ± 0.10" and spread([0.5], 3) == "0.500"
    assert spread([0.0, 1.0], percent=True) == "50 ± 50 %" and spread([np.nan, 2.0]) == "2.00" and spread([]) == "-"
    assert spread([0.0012, 0.0014]) == "0.0013 ± 0.0001" and spread([0.0, 0.0]) == "0.00 ± 0.00"
    assert spread([3e-7, 5e-7], 3) == "4.0e-07 ± 1.0e-07" and spread([0.002, 0.004], percent=True) == "0.3 ± 0.1 %"
    assert spread([12.0, 14.0], 0) == "13 ± 1" and spread([-0.004]) == "-0.0040"


def test_a_verdict_is_of_what_is_printed() -> None:
    """Figures below a hundredth are told apart in the sentence too; ones that print alike make no difference."""
    small = study_of(error=[[0.0040, 0.0042], [0.0010, 0.0012]], frac_10=[[0.5011, 0.5012], [0.5031, 0.5032]])
    said = of_pictures.said_of_depth(small)
    assert "no difference" in said[0] and "(0.50 ± 0.00, 0.50 ± 0.00 at" in said[0]
    error = next(line for line in said if "give the sources back" in line)
    assert error.endswith(": holds (0.0041 ± 0.0001, 0.0011 ± 0.0001 at 3, 10 layers).")


def test_the_profile_is_of_a_usual_seed(done: Path) -> None:
    part = {"loss": np.array([5.0, 1.0, 0.01, 2.0, 9.0]), "fit": np.array([False, True, True, True, False])}
    assert of_median_loss(part) == 1 and of_median_loss({**part, "fit": np.zeros(5, bool)}) == 3
    facts = told(done, "1d")
    figures = facts["figures"]["10 7 torch 1"]
    model = of_median_loss({name: np.array(figures[name]) for name in ("loss", "fit")})
    assert facts["pictures"][0][1].endswith(f"of seed {model}, that of median loss.")
    assert "nan" not in " ".join(facts["said"])


def test_unknown_experiments_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="did you mean 'digits'"):
        recipe.main(["1d", "digit", "--output-dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_data_by_path_takes_the_place_of_fractals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def stored(name: str, root: str, **more: Any) -> Any:
        asked.append((name, root, more))
        raise InterruptedError

    monkeypatch.setattr(of_pictures, "of_torchvision", stored)
    given = ["--mnist", "m", "--cifar", "c", "--celeba", "f", "--scale", "full", "--device", "cpu", "--quiet"]
    for name in ("digits", "cifar", "celeba"):
        with pytest.raises(InterruptedError):
            recipe.main([name, *given, "--output-dir", str(tmp_path)])
    assert asked == [
        ("mnist", "m", {"count": 60_500, "height": 28}),
        ("cifar10", "c", {"count": 1200, "classes": ("dog",), "height": 32}),
        ("celeba", "f", {"count": 1200, "height": 39, "width": 32}),
    ]


@pytest.mark.slow
def test_every_experiment_runs_at_its_smallest(tmp_path: Path) -> None:
    run(tmp_path, "all")
    page = (tmp_path / "results.md").read_text()
    assert all(f"## {each.title}\n" in page for each in recipe.EXPERIMENTS.values())
    basins = told(tmp_path, "basins")
    assert [row[0] for row in basins["tables"][0]["rows"]] == ["plain", "denoising"]
    depth = told(tmp_path, "depth")["figures"]["rows"]
    assert len(depth) == 2 * 2 * 2
    assert np.isfinite([row["error"] for row in depth]).all()
