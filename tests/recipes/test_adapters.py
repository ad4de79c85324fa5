"""The benchmark of the paths: each delivers the stream's own samples, and one with others is stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("datasets", "torch", "webdataset"):
    pytest.importorskip(package)

from fractal_streams.recipes.benchmarks import adapters
from fractal_streams.recipes.benchmarks.adapters import AIM, ALONE, Loss, Way, WrongSampleError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "BATCH", 8)
    monkeypatch.setattr(adapters, "CHECKED", 17)
    monkeypatch.setattr(adapters.torch, "set_num_threads", lambda count: None)


def of(name: str, group: str | None = None) -> Way:
    return next(way for way in adapters.ways() if way.name == name and (group is None or way.group == group))


def test_every_path_hands_out_the_very_same_samples() -> None:
    ways = adapters.ways()
    assert len(ways) == 19 and ways[0].name == ALONE
    for way in ways:
        adapters.check(way)


@pytest.mark.parametrize("group", ["torch", "normalised float32", "normalised bfloat16"])
def test_a_path_with_other_pictures_is_stopped(group: str) -> None:
    right = of("Loader", group)
    late = replace(right, open=lambda stream: adapters.Loader(stream, 8, start=1))
    with pytest.raises(WrongSampleError, match=f"{group}, Loader: pictures 0 on"):
        adapters.check(late)


def test_a_path_that_goes_wrong_later_or_in_its_labels_is_stopped() -> None:
    right = of("Loader", "torch")

    def twice(stream: Any) -> Iterator[Any]:
        loader = iter(adapters.Loader(stream, 8))
        first = next(loader)
        yield first
        yield first

    with pytest.raises(WrongSampleError, match="pictures 8 on"):
        adapters.check(replace(right, open=twice))
    with pytest.raises(WrongSampleError, match="labels 0 on"):
        adapters.check(replace(right, take=lambda item: (item[0], 9 - item[1])))


def test_arithmetic_that_is_not_the_lookup_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    way = of("Loader of levels, then torch")
    adapters.check(way)
    with pytest.raises(WrongSampleError, match="then torch: pictures 0 on"):
        adapters.check(replace(way, take=lambda item: (item[0] * 1.0001, item[1])))


def test_every_path_renders_the_same_indices_in_each_round() -> None:
    asked: dict[str, list[int]] = {}

    def counting(name: str) -> Way:
        asked[name] = []

        def items(stream: Any) -> Iterator[Any]:
            k = 0
            while True:
                asked[name].append(k)
                sum(range(20_000))
                yield np.zeros((8, 3, 4, 4)), np.zeros(8)
                k += 1

        return replace(of(ALONE, "renderer alone"), name=name, open=items)

    losses = adapters.race([counting("a"), counting("b")], rounds=3, seconds=0.02)
    assert asked["a"] == asked["b"] and len(asked["a"]) % 4 == 1  # one batch, a turn to warm up, three rounds
    assert losses[0].losses == (0.0, 0.0, 0.0) and losses[0].lost == 0.0
    for alone, rate, lost in zip(losses[0].rates, losses[1].rates, losses[1].losses, strict=True):
        assert lost == pytest.approx(100 * (1 - rate / alone))


def test_the_table_says_which_aim_is_missed() -> None:
    first = Loss(group="renderer alone", name=ALONE, rate=100.0, lost=0.0, aimed=True, rates=(), losses=())
    shown = (("kept", AIM, True), ("slow", AIM + 0.1, True), ("free", 50.0, False))
    ways = [replace(first, group="g", name=name, lost=lost, aimed=aimed) for name, lost, aimed in shown]
    lines = {line.split()[1]: line for line in adapters.table_text([first, *ways]).splitlines()[2:]}
    assert lines["kept"].endswith("15 %") and lines["slow"].endswith("missed") and lines["free"].rstrip().endswith("%")
    assert "15 %" not in lines["free"]


def test_the_command_shows_every_path_and_writes_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "adapters.json"
    adapters.main(["--rounds", "2", "--seconds", "0.001", "--json", str(path)])
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    ways = adapters.ways()
    assert [(loss["group"], loss["name"]) for loss in written["losses"]] == [(way.group, way.name) for way in ways]
    assert Counter(len(loss["rates"]) for loss in written["losses"]) == {2: len(ways)}
    assert all(way.name in shown for way in ways) and list(tmp_path.iterdir()) == [path]
