"""The plumbing benchmark: its gate lets the stream's own samples through and no others, and its table is whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("datasets", "webdataset"):
    pytest.importorskip(package)

from fractal_streams.recipes.benchmarks import plumbing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_the_stand_in_is_a_stream_of_its_pool() -> None:
    pool = plumbing.Pool()
    far = plumbing.POOL * 1000 - 3
    for indices in (range(5), range(far, far + 6), [7, plumbing.POOL + 7, 3], range(0), range(0, 40, 7)):
        batch = pool.generate(indices)
        places = np.array([index % plumbing.POOL for index in indices], int)
        assert batch.index.tolist() == list(indices)
        assert np.array_equal(batch.images, pool.images[places])
        assert np.array_equal(batch.labels, places % 10)
    assert pool.images.std() > 30 and len({image.tobytes() for image in pool.images}) == plumbing.POOL


def test_a_way_with_other_samples_is_stopped(tmp_path: Path) -> None:
    pool = plumbing.Pool()
    ours = next(way for way in plumbing.ways(pool, tmp_path) if way.name == "Loader")
    plumbing.check(ours, pool)
    late = replace(ours, open=lambda: plumbing.Loader(pool, plumbing.BATCH, start=1))
    with pytest.raises(plumbing.WrongSampleError, match="torch, Loader: samples 0 on"):
        plumbing.check(late, pool)
    relabelled = replace(ours, take=lambda item: (np.asarray(item[0]), 9 - np.asarray(item[1])))
    with pytest.raises(plumbing.WrongSampleError):
        plumbing.check(relabelled, pool)


def test_the_run_shows_every_way_and_writes_its_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plumbing, "FAR", 4000)
    plumbing.main(["--rounds", "2", "--seconds", "0.01", "--json", str(tmp_path / "rates.json")])
    shown, written = capsys.readouterr().out, json.loads((tmp_path / "rates.json").read_text())
    names = [way.name for way in plumbing.ways(plumbing.Pool(), tmp_path)]
    assert [rate["name"] for rate in written["rates"]] == names and all(name in shown for name in names)
    assert all(len(rate["each"]) == 2 and min(rate["each"]) > 0 for rate in written["rates"])
    assert set(written["resume_ms"]) == {"datasets", "torch", "webdataset"}
