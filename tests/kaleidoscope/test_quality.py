"""The quality report against values worked out by hand, its laws, and its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_networks import linear, sources_of, staircase

torch = pytest.importorskip("torch")

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, open_kaleidoscope
from fractal_streams.kaleidoscope.quality import completed, quality_rows, report
from fractal_streams.kaleidoscope.quality_summary import spread
from fractal_streams.kaleidoscope.starts import Start

STAIRS = staircase([[0.2], [-0.4]], [-0.5, 0.5], [0, 1])


def part(fitted: Kaleidoscope, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = report(fitted, device="cpu", **settings)["networks"][0]
    return found


def test_controls_worked_out_by_hand() -> None:
    """Sources at -.6, .2 and .6 of [-1, 1], the last two of one class: distances are halves of differences."""
    points = staircase([0.0], [-0.6, 0.2, 0.6], [0, 1, 1])
    held = np.float32([[0.0], [1.0], [-0.6]])
    controls = part(points, chains=10, held_out=held)["controls"]
    mean = 0.2 / 3
    assert controls["mean"] == pytest.approx((0.2 - mean) / 2, rel=1e-5)
    assert controls["class_means"] == pytest.approx(0.1, rel=1e-5), "of the second class alone, at .4"
    assert controls["blends"] == pytest.approx((0.2 + 0.1 + 0.1) / 3, rel=1e-5), "at -.2, 0 and .4"
    assert controls["held_out"] == pytest.approx((0.1 + 0.2 + 0.0) / 3, rel=1e-5)
    assert controls["spacing"] == {"least": pytest.approx(0.2), "median": pytest.approx(0.2)}
    spread_by_hand = np.sqrt(np.mean([(-0.6 - mean) ** 2, (0.2 - mean) ** 2, (0.6 - mean) ** 2])) / 2
    assert controls["spread"] == pytest.approx(spread_by_hand, rel=1e-5)


def test_reconstruction_worked_out_by_hand() -> None:
    """Stairs with the edge 0 take -.6 to -.5, .2 to .4 and .6 to .5."""
    found = part(staircase([0.0], [-0.6, 0.2, 0.6]), chains=10, held_out=np.float32([[0.5], [0.1]]))["reconstruction"]
    assert found["sources"] == pytest.approx(np.sqrt((0.1**2 + 0.2**2 + 0.1**2) / 3) / 2, rel=1e-5)
    assert found["held_out"] == pytest.approx(np.sqrt((0.0 + 0.1**2) / 2) / 2, rel=1e-5)


def test_single_sources_and_classes_have_no_blends_nor_class_means() -> None:
    controls = part(staircase([0.0], [0.5]), chains=10)["controls"]
    assert (controls["blends"], controls["class_means"], controls["spacing"]) == (None, None, None)
    assert part(STAIRS, chains=10)["controls"]["class_means"] is None, "each class has one source, its own mean"


def test_ends_and_basins_that_are_known() -> None:
    first, second = report(STAIRS, device="cpu", chains=2000)["networks"]
    assert first["ends"]["largest_basin"] == pytest.approx(0.6, abs=0.045)
    assert second["ends"]["largest_basin"] == pytest.approx(0.7, abs=0.045)
    share = first["ends"]["largest_basin"]
    assert first["ends"]["classes"] == pytest.approx([share, 1 - share], abs=1e-6)
    assert second["ends"]["classes"] == pytest.approx([0.3, 0.7], abs=0.045)
    assert first["ends"]["entropy"] == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share), rel=1e-4)
    for one in (first, second):
        assert one["ends"] | {"distinct": 2, "reached_sources": 2, "copies": 1.0, "unresolved": 0.0} == one["ends"]
        assert one["kick"] | {"returned": 1.0, "stayed": 1.0, "left": 0.0} == one["kick"]
        assert one["spectral_radius"]["values"] == [0.0, 0.0, 0.0, 0.0]
        assert one["nearest"]["within"][-1] == 1.0 and one["nearest"]["mean"][-1] == pytest.approx(0.0, abs=1e-6)


def test_the_curve_of_a_contraction_is_its_powers() -> None:
    """x / 2 from uniform starts: the mean of |x| / 2 halves with each step."""
    found = part(linear([[0.5]]), chains=500, schedule=Schedule(most=100, tolerance=1e-6))
    mean = found["nearest"]["mean"]
    assert mean[0] == pytest.approx(0.25, abs=4 * 0.144 / np.sqrt(500))
    for step, value in zip(found["nearest"]["steps"][:5], mean, strict=False):
        assert value == pytest.approx(mean[0] * 0.5**step, rel=1e-3)
    away = found["convergence"]["distance_to_end"]
    assert away[1] / away[0] == pytest.approx(0.5, rel=1e-3)
    assert found["convergence"]["at_rest"] == sorted(found["convergence"]["at_rest"])


def test_steps_to_rest_are_counted() -> None:
    """From 1 the k-th step of x / 2 changes the state by 2^-k, over a range of 2: below 1e-4 first at step 13."""
    rest = part(linear([[0.5]]), chains=500)["steps_to_rest"]
    assert rest["quantiles"][-1] == 1.0 and rest["values"][-1] == 13
    assert rest["values"][2] == 12, "from .5, one less"


def test_an_unstable_source_neither_stays_nor_returns() -> None:
    found = part(staircase([0.2], [-0.5, 0.5, 0.25]), chains=50)
    assert found["kick"]["returned"] == found["kick"]["stayed"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["spectral_radius"]["values"][-1] == 2.0
    assert found["spectral_radius"]["attracting"] == pytest.approx(2 / 3, abs=1e-5)


def test_chains_that_turn_for_ever_are_unresolved() -> None:
    found = part(linear([[0.0, -1.0], [1.0, 0.0]]), chains=20)
    assert found["ends"]["unresolved"] == 1.0 and found["ends"]["distinct"] == 0
    assert found["ends"]["entropy"] is None and found["steps_to_rest"]["values"] == [None] * 7
    assert found["flags"] == ["restless"] and "100 % of chains never rest" in found["verdict"]


def test_a_network_that_grows_without_bound_is_reported_as_json() -> None:
    found = report(linear(2.0 * np.eye(2)), device="cpu", chains=20)
    assert "Infinity" not in json.dumps(found, allow_nan=False)
    assert found["networks"][0]["spectral_radius"]["values"] == [2.0] * 4


def test_flags_of_identity_and_of_constant_maps() -> None:
    spots = np.float32(np.random.default_rng(0).uniform(-1, 1, (20, 8)))
    identity = part(linear(np.eye(8), spots), chains=50)
    assert "identity" in identity["flags"] and "memorises" not in identity["flags"]
    assert identity["kick"]["left"] == pytest.approx(1.0, abs=1e-3)
    assert identity["verdict"].startswith("It learnt the identity")
    constant = part(linear(np.zeros((8, 8)), spots), chains=50)
    assert {"constant", "blobs", "collapsed"} <= set(constant["flags"]) and "identity" not in constant["flags"]
    assert constant["ends"]["distinct"] == 1 and "isn't fitted" in constant["verdict"]
    for flags in (part(STAIRS)["flags"], part(linear([[0.5]]))["flags"]):
        assert not {"identity", "constant", "blobs", "collapsed", "restless"} & set(flags)


def test_a_grey_blob_is_told_from_a_sample() -> None:
    """All goes to 0, the mean of the sources, nearer to them than they are to each other."""
    spots = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
    found = part(linear(0.5 * np.eye(6), spots), chains=100)
    assert found["nearest"]["mean"][-1] < found["controls"]["spacing"]["median"]
    assert "blobs" in found["flags"]
    assert "no nearer to the sources than a mean of sources is" in found["verdict"]


def test_denoised_pictures_memorise(bare_pictures: Kaleidoscope) -> None:
    found = report(bare_pictures, device="cpu", chains=200)
    for one in found["networks"]:
        assert "memorises" in one["flags"] and "don't share it if they are private" in one["verdict"]
        assert one["nearest"]["mean"][0] > one["controls"]["blends"] > one["nearest"]["mean"][-1]
        assert one["spectral_radius"]["attracting"] == 1.0
    assert found["summary"]["flags"]["memorises"] == 1.0


def test_a_network_is_the_same_in_any_bank(bare_pictures: Kaleidoscope) -> None:
    bank = report(bare_pictures, device="cpu", chains=100)["networks"]
    for model, found in enumerate(bank):
        alone = part(bare_pictures.one(model), chains=100)
        assert alone | {"model": model} == found


class Pieces:
    """An engine that is given few rows at a time."""

    def __init__(self, engine: Any, rows: int) -> None:
        self._engine, self._rows = engine, rows
        self.fitted, self.device, self.precision = engine.fitted, engine.device, engine.precision

    def _parts(self, count: int) -> list[slice]:
        return [slice(first, first + self._rows) for first in range(0, count, self._rows)]

    def starts(self, start: Any, chains: Any, models: Any, key_of: Any) -> Any:
        return np.concatenate(
            [self._engine.starts(start, chains[rows], models[rows], key_of) for rows in self._parts(len(chains))]
        )

    def apply(self, states: Any, models: Any = None) -> Any:
        return np.concatenate([self._engine.apply(states[rows], models[rows]) for rows in self._parts(len(states))])

    def run(self, states: Any, models: Any = None, schedule: Any = None) -> Any:
        found = [self._engine.run(states[rows], models[rows], schedule) for rows in self._parts(len(states))]
        names = ("states", "steps", "change", "kept")
        return type(found[0])(*[np.concatenate([getattr(one, name) for one in found]) for name in names])


def test_a_report_does_not_depend_on_batch_sizes(bare_pictures: Kaleidoscope) -> None:
    engine = open_engine(bare_pictures, "cpu")
    whole, pieces = (report(bare_pictures, engine=one, chains=60) for one in (engine, Pieces(engine, 7)))
    assert pieces == whole


def test_the_same_seed_gives_the_same_report(bare_points: Kaleidoscope) -> None:
    one, again, other = (report(bare_points, device="cpu", chains=100, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one["networks"][0]["nearest"]["mean"][0] != other["networks"][0]["nearest"]["mean"][0]


def test_the_summary_is_mean_and_deviation_over_networks() -> None:
    found = report(STAIRS, device="cpu", chains=500)
    basins = [one["ends"]["largest_basin"] for one in found["networks"]]
    summary = found["summary"]["ends"]["largest_basin"]
    assert summary == {"mean": pytest.approx(np.mean(basins)), "sd": pytest.approx(np.std(basins), rel=1e-4)}
    assert found["summary"]["nearest"]["steps"] == found["networks"][0]["nearest"]["steps"]
    assert spread([None, 1.0, 3.0]) == {"mean": 2.0, "sd": 1.0} and spread([None, None]) is None
    assert spread([[1, {"steps": [5]}], [3, {"steps": [5]}]]) == [{"mean": 2.0, "sd": 1.0}, {"steps": [5]}]


def test_rows_for_a_table() -> None:
    found = report(STAIRS, device="cpu", chains=500)
    rows = dict(quality_rows(found))
    assert rows["networks"] == "2" and rows["distinct ends"] == "2 ± 0"
    assert rows["kicked sources that return"] == "100 ± 0 %"
    assert rows["nearest source of held-out data"] == "none"
    assert rows["nearest source at step 100"].endswith("within 0.02: 100 ± 0 %")
    alone = dict(quality_rows({"summary": {**found["summary"], "networks": 1}}))
    assert alone["distinct ends"] == "2" and alone["kicked sources that return"] == "100 %"
    assert rows["flags"] == "memorises 100 %" and rows["verdict"] == found["summary"]["verdict"]


def test_completed_is_kept_in_the_file(bare_points: Kaleidoscope, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    done = completed(bare_points, device="cpu", chains=300)
    assert done.attractors is not None and done.quality is not None
    assert done.quality["settings"]["chains"] == 300
    again = open_kaleidoscope(done.save(tmp_path / "points.safetensors"))
    assert again.quality == done.quality
    assert again.attractors is not None and np.array_equal(again.attractors.share, done.attractors.share)


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidValueError, match="tolerance must be above 0"):
        report(STAIRS, device="cpu", schedule=Schedule(tolerance=0.0))
    with pytest.raises(InvalidValueError, match=r"held-out data must be \(N, 1\)"):
        report(STAIRS, device="cpu", held_out=np.zeros((4, 2), np.float32))
    with pytest.raises(InvalidValueError, match="chains must be"):
        report(STAIRS, device="cpu", chains=10_000)
    with pytest.raises(InvalidValueError, match="tolerance must be above 0, got 'slow'"):
        report(STAIRS, device="cpu", schedule="slow")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="start must be a Start or several"):
        report(STAIRS, device="cpu", start="pink")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"data must be .*uint8 levels, or floats.*got int64"):
        report(STAIRS, device="cpu", held_out=np.arange(4)[:, None])


def test_whole_numbers_of_numpy_go_into_the_file() -> None:
    found = report(STAIRS, device="cpu", chains=np.int64(20), seed=np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(found["settings"])) == report(STAIRS, device="cpu", chains=20, seed=3)["settings"]


def test_held_out_data_of_each_network_and_short_schedules() -> None:
    held = sources_of([[0.0], [1.0]])
    short = report(
        STAIRS, device="cpu", chains=20, held_out=held, schedule=Schedule(most=5, tolerance=1e-4),
        start=Start(kind="source", noise=0.1),
    )  # fmt: skip
    assert short["networks"][0]["nearest"]["steps"] == [0, 1, 3, 5]
    assert short["networks"][1]["controls"]["held_out"] == pytest.approx(0.25)
    assert short["settings"]["start"] == "source" and short["settings"]["start_noise"] == 0.1


@pytest.mark.gpu
def test_a_gpu_gives_the_same_report(bare_pictures: Kaleidoscope) -> None:
    cpu, gpu = (report(bare_pictures, device=device, chains=200) for device in ("cpu", "cuda"))
    for one, other in zip(cpu["networks"], gpu["networks"], strict=True):
        assert other["ends"]["distinct"] == pytest.approx(one["ends"]["distinct"], abs=1)
        assert other["nearest"]["mean"] == pytest.approx(one["nearest"]["mean"], abs=1e-3)
        assert other["spectral_radius"]["values"] == pytest.approx(one["spectral_radius"]["values"], rel=1e-3)
