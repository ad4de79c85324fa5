"""The benchmark of stored pictures: its gate, and that each way is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from fractal_streams.recipes.benchmarks import stored

from fractal_streams.stored import Pack, StoredStream, pack


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COUNT", 2), ("EDGE", 96), ("FACTOR", 2), ("SIZE", 32), ("ROUNDS", 1)):
        monkeypatch.setattr(stored, name, value)
    whole = stored.rate
    monkeypatch.setattr(stored, "rate", lambda work: whole(work, 0.01))


def test_packed_crops_are_faster_than_decoding_anew() -> None:
    rates = stored.measure()
    assert set(rates) == {"packing", "decoded anew", "packed, slices", "packed"}
    assert rates["packed"] > 10 * rates["decoded anew"] > 0  # of tiny pictures; thousands of times at full size


def test_the_gate_stops_at_another_picture(tmp_path: Path) -> None:
    (tmp_path / "originals").mkdir()
    stored.originals(tmp_path / "originals")
    made = pack(tmp_path / "originals", tmp_path / "pack", height=32, reduction=2)
    stored.gate(tmp_path / "originals", StoredStream(made, height=32, device="cpu"))
    images = np.stack([made.picture(item) for item in range(2)])
    images[1, 24, 24] ^= 1  # in every crop
    changed = Pack.of(images, names=made.names)
    with pytest.raises(AssertionError, match="is not the reduced crop of 1.jpg"):
        stored.gate(tmp_path / "originals", StoredStream(changed, height=32, device="cpu"))
