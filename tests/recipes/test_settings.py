"""Settings: each field is checked at the door, what decides a run is told, and the command line follows from them."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("typer")

from fractal_streams.recipes.settings import Settings, command, option, refuse_others
from typer.testing import CliRunner

from fractal_streams.errors import FractalStreamsError, InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    steps: int = option(10, "How far.", low=1, high=100)
    loops: int = option(0, "How often.")
    pace: float = option(1.5, "How fast.", low=0.5, high=4.0)
    rest: float | None = option(None, "Seconds at the end.", low=0.0)
    pause: float | None = option(0.25, "Seconds on the way.")
    gait: str = option("trot", "In what way.", choices=("walk", "trot"))
    name: str = option("path", "Of the way.")
    uphill: bool = option(False, "Which way.")
    lengths: tuple[int, ...] = option((1, 2), "Of each part.", low=1)
    rates: tuple[float, ...] | None = option(None, "Of each part.")
    marks: tuple[str, ...] = option((), "Left behind.", choices=("stone", "stick"), changes_nothing=True)
    place: Path = option(Path("here"), "Where.", changes_nothing=True)  # noqa: RUF009
    map: Path | None = option(None, "To read.")  # noqa: RUF009


def test_values_are_taken_as_their_types() -> None:
    walk = Walk(
        steps=np.int64(3), pace=2, rest=np.float32(0.5), pause=None, lengths=[np.int32(4), 5], rates="0.5, 2",
        marks="stick", place="there", map="map.png",
    )  # fmt: skip
    assert walk == Walk(
        steps=3, pace=2.0, rest=0.5, pause=None, lengths=(4, 5), rates=(0.5, 2.0),
        marks=("stick",), place=Path("there"), map=Path("map.png"),
    )  # fmt: skip
    assert [type(each) for each in (walk.steps, walk.pace, walk.rest, walk.place)] == [int, float, float, type(Path())]
    assert Walk(lengths=7).lengths == (7,) and Walk(marks=()).marks == () == Walk().marks
    with pytest.raises(FrozenInstanceError):
        walk.steps = 4  # type: ignore[misc]


WRONG: list[tuple[str, Any]] = [
    ("steps", 0), ("steps", 101), ("steps", 2.5), ("steps", "3"), ("steps", True), ("steps", None), ("loops", -1),
    ("pace", 0.4), ("pace", 4.1), ("pace", float("nan")), ("pace", float("inf")), ("pace", "fast"), ("pace", True),
    ("pace", None), ("rest", -1.0), ("gait", "hop"), ("gait", None), ("gait", 3), ("name", None), ("name", 3),
    ("uphill", 1), ("uphill", "yes"), ("uphill", None), ("lengths", ()), ("lengths", (0,)), ("lengths", "1,x"),
    ("lengths", ""), ("lengths", None), ("rates", ()), ("rates", "fast"), ("marks", ("stone", "leaf")),
    ("marks", "leaf"), ("place", None), ("place", 3), ("place", ""),
]  # fmt: skip


@pytest.mark.parametrize("name, value", WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_a_wrong_value_is_refused_by_its_name_and_itself(name: str, value: Any) -> None:
    with pytest.raises(FractalStreamsError) as raised:
        Walk(**{name: value})
    odd = {"1,x": "'x'", (0,): "got 0", ("stone", "leaf"): "'leaf'"}
    told = odd.get(value, repr(value)) if isinstance(value, str | tuple) else repr(value)
    assert name in str(raised.value) and told in str(raised.value)


@given(st.integers(-(2**70), 2**70))
@settings(max_examples=50, deadline=None)
def test_a_range_holds_its_ends_and_nothing_beyond(value: int) -> None:
    for name, low, high in (("steps", 1, 100), ("loops", 0, 2**63 - 1)):
        if low <= value <= high:
            assert getattr(Walk(**{name: value}), name) == value
        else:
            with pytest.raises(InvalidValueError):
                Walk(**{name: value})


def test_what_decides_a_run_is_told_as_json_holds_it() -> None:
    told = Walk(lengths=(3, 4), map=Path("a/b.png"), marks=("stone",), place=Path("there")).decisive()
    assert set(told) == {item.name for item in fields(Walk)} - {"marks", "place"}
    assert told["lengths"] == [3, 4] and told["map"] == "a/b.png" and told["rest"] is None
    assert json.loads(json.dumps(told)) == told
    assert Walk(marks=("stick",), place=Path("x")).decisive() == Walk().decisive()


def test_other_settings_are_refused_by_what_differs() -> None:
    refuse_others(Walk().decisive(), Walk(place=Path("x")).decisive(), Path("saved"))
    with pytest.raises(InvalidValueError) as raised:
        refuse_others(Walk(steps=7).decisive() | {"old": 1}, Walk(pace=2.0).decisive(), Path("saved"))
    text = str(raised.value)
    assert (
        "old=1, not None" in text and "pace=1.5, not 2.0" in text and "steps=7, not 10" in text and "gait" not in text
    )


@pytest.fixture
def walked() -> tuple[Any, list[Walk]]:
    seen: list[Walk] = []
    app = command(Walk, seen.append, "A long walk.", epilog="Then rest.")

    def call(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    return call, seen


def test_every_field_is_an_option(walked: Any) -> None:
    call, seen = walked
    call()
    call(
        "--steps", "7", "--loops=3", "--pace", "2", "--rest", "1.5", "--gait", "walk", "--name", "a_b", "--uphill",
        "--lengths", "3,4", "--rates", "1e-3,2", "--marks", "stone,stick", "--place", "x/y", "--map", "m.png",
    )  # fmt: skip
    assert seen == [
        Walk(),
        Walk(
            steps=7, loops=3, pace=2.0, rest=1.5, gait="walk", name="a_b", uphill=True, lengths=(3, 4),
            rates=(1e-3, 2.0), marks=("stone", "stick"), place=Path("x/y"), map=Path("m.png"),
        ),
    ]  # fmt: skip


def test_numbers_that_may_be_none_can_be_told_so(walked: Any) -> None:
    call, seen = walked
    call("--pause", "none", "--rest", "None")
    call("--pause", "0.5")
    assert seen == [Walk(pause=None), Walk(pause=0.5)]
    assert "'fast'" in call("--pause", "fast", code=2).stderr and "Or none." in call("--help").output


def test_the_page_tells_every_field(walked: Any) -> None:
    text = walked[0]("--help").output
    assert "A long walk." in text and "Then rest." in text and "One of walk, trot." in text
    for item in fields(Walk):
        line = re.search(rf"--{item.name}\b.*", text)
        assert line and item.metadata["help"] in line[0], item.name
    assert "[default: 1,2]" in text and "[default: 1.5]" in text


def test_a_page_has_a_run_s_own_options_first_then_those_it_shares_in_panels() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Ground(Settings):
        panel: ClassVar[str] = "Ground"
        slope: int = option(1, "Of it.")

    @dataclass(frozen=True, kw_only=True)
    class Pace(Settings):
        panel: ClassVar[str] = "Pace"
        speed: int = option(2, "Of it.")

    @dataclass(frozen=True, kw_only=True)
    class Hike(Pace, Ground):
        slope: int = option(3, "Of it.")
        boots: bool = option(False, "To wear.")

    text = CliRunner().invoke(command(Hike, print), ["--help"]).output
    order = ["─ Options", "--boots", "--help", "─ Pace", "--speed", "─ Ground", "--slope", "[default: 3]"]
    places = [text.index(word) for word in order]
    assert places == sorted(places) and "--no-boots" not in text


@pytest.mark.parametrize(
    "words, said",
    [
        (("--steps", "0"), "steps must"),
        (("--steps", "many"), "--steps"),
        (("--gait", "hop"), "did you mean|hop"),
        (("--lengths", "1,x"), "'x'"),
        (("--stps", "3"), "--stps"),
        (("--pace", "nan"), "pace must be a finite number in [0.5, 4]"),
    ],
)
def test_an_error_is_one_line(words: tuple[str, ...], said: str, walked: Any) -> None:
    call, seen = walked
    result = call(*words, code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert any(each in result.stderr for each in said.split("|")) and seen == []


def test_underscores_stand_for_hyphens() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Long(Settings):
        num_steps: int = option(1, "Of it.")
        text: str = option("", "Of it.")

    seen: list[Any] = []
    app = command(Long, seen.append)
    for words in (["--num_steps", "3", "--text", "a_b"], ["--num-steps=3", "--text=a_b"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert seen == [Long(num_steps=3, text="a_b")] * 2
