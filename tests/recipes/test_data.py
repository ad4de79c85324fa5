"""The streams of a run: what recipes refuse to train on, said by the names of their own options."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("typer")

from fractal_streams.recipes.data import DataSettings, opened, training_stream

from fractal_streams import FiniteStream
from fractal_streams.errors import InvalidValueError, UnknownNameError


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"preset": "fractal-video"}, "preset='fractal-video' makes clips"),
        ({"preset": "trainability-tiles", "max_iter": 5}, "preset='trainability-tiles' has no max_iter to choose"),
        ({"preset": "trainability-points", "num_classes": 5}, "has no num_classes to choose: let it be none"),
        ({"preset": "seed-code", "supersample": 2}, "preset='seed-code' has no supersample to choose"),
        ({"num_samples_per_class": 1_677_722}, "num_samples_per_class must be at most 1677721 with 10 classes, got"),
    ],
)
def test_what_can_t_be_trained_on_is_refused_by_its_option(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        training_stream(DataSettings(**settings), "cpu")


def test_a_preset_that_is_none_is_still_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fractal-10'"):
        opened(DataSettings(preset="fractal10"), "train", "cpu")


def test_a_finite_set_has_so_many_samples_per_class_on_average() -> None:
    stream = training_stream(DataSettings(num_samples_per_class=7, num_classes=3, image_size=8), "cpu")
    assert isinstance(stream, FiniteStream) and stream.samples == 21
    assert sorted(stream.chosen(range(21, 42)).tolist()) == list(range(21))
