"""The benchmark of small batches: every way gives its row, and the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from fractal_streams.recipes.benchmarks import small_batches


def test_every_way_is_measured_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_batches, "SIZES", (1, 3))
    monkeypatch.setattr(small_batches, "CALLS", 4)
    path = tmp_path / "small.json"
    small_batches.main(["--device", "cpu", "--size", "8", "--json", str(path)])
    figures, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert [row["batch"] for row in figures["rows"]] == [1, 3] and list(tmp_path.iterdir()) == [path]
    for row in figures["rows"]:
        assert {*row} == {"batch", "generate", "StreamDataset", "DataLoader", "Loader"}
        assert all(value > 0 for value in row.values())
        assert f"generate {row['generate']:.1f} us ({row['batch'] / row['generate']:.2f} M/s)" in shown
    assert set(figures["parts"]) == {"draw", "render", "generate", "torch.empty"}


def test_a_window_asks_for_as_many_batches_as_it_says() -> None:
    asked = []
    small_batches.microseconds((asked.append(k) for k in range(1000)), "cpu", 7)
    assert len(asked) == 6 * 7
