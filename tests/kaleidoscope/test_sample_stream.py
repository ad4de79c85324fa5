"""Samples of kaleidoscopes: the first law, what each mode shows, equal shares, and labels that can be learned."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams import open_stream
from fractal_streams.errors import DeviceError, InvalidValueError, UnknownNameError
from fractal_streams.kaleidoscope import sample_stream
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.reference import ReferenceEngine
from fractal_streams.kaleidoscope.starts import Start, start_values
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream

SPECS = {
    "samples": KaleidoscopeSpec(start="pink"),
    "early": KaleidoscopeSpec(mode="early", iterate=1, last_iterate=4, label="attractor"),
    "pairs": KaleidoscopeSpec(mode="pairs", iterate=2, start="blend", start_noise=0.5),
    "clips": KaleidoscopeSpec(mode="clips", frames=4, stride=2, precision="bfloat16"),
    "jitter": KaleidoscopeSpec(jitter=0.05, tolerance=0.0, most=12, start="coarse"),
    "stratified": KaleidoscopeSpec(stratified=True),
    "stratified early": KaleidoscopeSpec(stratified=True, mode="early", label="attractor", trials=3),
}  # fmt: skip
per_spec = pytest.mark.parametrize("name", SPECS)


def opened(fitted: Kaleidoscope, spec: Any = "samples", **settings: Any) -> KaleidoscopeStream:
    return KaleidoscopeStream(SPECS.get(spec, spec), fitted=fitted, device="cpu", **settings)


def rows(batch: Any) -> list[tuple[Any, ...]]:
    """Each sample of a batch as bytes."""
    columns = {"index": batch.index, "images": batch.images, "labels": batch.labels, **batch.latents}
    return [tuple((name, values[k].tobytes()) for name, values in columns.items()) for k in range(len(batch))]


def chi_square(counts: Any) -> float:
    """Pearson's statistic of counts against equal chances."""
    mean = np.mean(counts)
    return float(((np.asarray(counts) - mean) ** 2 / mean).sum())


def rare(degrees: int) -> float:
    """What chi-square of so many degrees of freedom exceeds once in 1000 (E. Wilson and M. Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.09 * spread**0.5) ** 3


@per_spec
def test_a_sample_is_the_same_alone_in_seven_and_in_4096(name: str, pictures: Kaleidoscope) -> None:
    whole = rows(opened(pictures, name).generate(range(4096)))
    seven = [4000, 3, 17, 2048, 17, 4095, 0]
    assert rows(opened(pictures, name).generate(seven)) == [whole[k] for k in seven]
    for k in (0, 17, 4095):
        assert rows(opened(pictures, name).generate([k])) == [whole[k]]
    assert rows(opened(pictures, name)[7:11]) == whole[7:11]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@per_spec
def test_neither_threads_nor_parts_change_a_byte(
    name: str, pictures: Kaleidoscope, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = opened(pictures, name)
    torch.set_num_threads(1)
    one = rows(stream.generate(range(150)))
    torch.set_num_threads(3)
    monkeypatch.setitem(sample_stream.PART_VALUES, "cpu", 64 * 5 * 11)
    assert len(list(stream._parts(np.arange(150)))) > 2
    assert rows(stream.generate(range(150))) == one


@per_spec
def test_labels_alone_are_those_of_the_samples(name: str, pictures: Kaleidoscope) -> None:
    stream = opened(pictures, name)
    batch = stream.generate(range(60))
    assert (stream.labels(range(60)) == batch.labels).all() and batch.labels.dtype == np.int64
    assert batch.labels.min() >= 0 and batch.labels.max() < stream.num_classes
    assert (stream.labels(np.array([9, 2])) == batch.labels[[9, 2]]).all()
    titles = [stream.class_title(label) for label in range(stream.num_classes)]
    assert len(set(titles)) == stream.num_classes
    if stream.spec.label == "class":
        assert titles == list(pictures.sources.titles)
    else:
        assert titles[-1] == "no attractor" and titles[0].startswith("attractor 0 (class ")


@per_spec
def test_no_index_gives_an_empty_batch_of_the_same_form(name: str, pictures: Kaleidoscope) -> None:
    stream = opened(pictures, name, dtype="float16", mean=0.5, std=0.5, channels_last=True)
    none, some = stream.generate(range(0)), stream.generate(range(2))
    assert len(none) == 0 and none.images.shape == (0, *some.images.shape[1:]) and none.images.dtype == np.float16
    assert some.images.shape[-1] == 3
    forms = [{key: (v.dtype, v.shape[1:]) for key, v in batch.latents.items()} for batch in (none, some)]
    assert forms[0] == forms[1] and stream._opened is not None


def test_a_sample_is_where_its_chain_ends(pictures: Kaleidoscope) -> None:
    """By the definitions, in float64, for all but a few that rounding takes elsewhere."""
    stream, reference = opened(pictures), ReferenceEngine(pictures)
    index = np.arange(500, 1000)
    models = stream.model_of(index)
    first = start_values(Start(kind="pink"), pictures, index, models, stream.key)
    truth = reference.run(first, models, Schedule())
    batch, table = stream.generate(index), pictures.attractors
    assert table is not None
    close = np.abs(batch.images[:, :1].astype(int) - pictures.network.levels_of(truth.states)).max(axis=(1, 2, 3)) <= 3
    assert close.mean() > 0.98
    row, away = reference.nearest(truth.states, table.states, models, table.model)
    assert (np.where(away <= 0.02, row, -1) == batch.latents["attractor"]).mean() >= 0.99
    source, distance = reference.nearest(truth.states, pictures.source_values(0))
    assert (source == batch.latents["source"]).mean() >= 0.99
    assert (pictures.sources.labels[0][batch.latents["source"]] == batch.labels).all()
    assert (np.abs(distance - batch.latents["nearest_distance"]) < 0.002).mean() > 0.98
    assert (truth.steps == batch.latents["steps"]).mean() > 0.95
    assert (batch.latents["iteration"] == batch.latents["steps"]).all() and batch.latents["steps"].min() > 0
    assert (batch.latents["change"] <= 1e-3).all()
    assert (batch.latents["chain"] == index).all() and (batch.latents["model"] == models).all()
    grey = batch.images
    assert (grey[:, 0] == grey[:, 1]).all() and (grey[:, 0] == grey[:, 2]).all()


def test_early_pairs_and_clips_show_iterates_of_the_same_chains(pictures: Kaleidoscope) -> None:
    ends = opened(pictures, KaleidoscopeSpec()).generate(range(80))
    clips = opened(pictures, KaleidoscopeSpec(mode="clips", frames=6)).generate(range(80))
    drawn = opened(pictures, KaleidoscopeSpec(mode="early", iterate=0, last_iterate=5))
    early = drawn.generate(range(80))
    pairs = opened(pictures, KaleidoscopeSpec(mode="pairs", iterate=3)).generate(range(80))
    strided = opened(pictures, KaleidoscopeSpec(mode="clips", iterate=1, frames=2, stride=4)).generate(range(80))
    shown = early.latents["iteration"]
    assert (early.images == clips.images[np.arange(80), shown]).all() and (shown == drawn.iterates(range(80))).all()
    assert (pairs.images == clips.images[:, 3]).all() and (strided.images == clips.images[:, [1, 5]]).all()
    assert (pairs.latents["target"] == ends.images).all() and (pairs.images != ends.images).any()
    for batch in (clips, early, pairs, strided):
        assert (batch.labels == ends.labels).all()
        for name in ("attractor", "source", "steps", "change", "nearest_distance"):
            assert (batch.latents[name] == ends.latents[name]).all()
    assert (clips.latents["iteration"] == np.arange(6)).all() and (strided.latents["iteration"] == [1, 5]).all()
    engine, index = drawn.engine, np.arange(80)
    models = drawn.model_of(index)
    state = engine.starts(Start(), index, models, drawn.key)
    for frame in range(3):  # none rests so early
        assert (clips.images[:, frame, :1] == pictures.network.levels_of(state)).all()
        state = engine.apply(state, models)


def test_the_iterate_is_drawn_evenly(pictures: Kaleidoscope) -> None:
    stream = opened(pictures, KaleidoscopeSpec(mode="early", iterate=2, last_iterate=9))
    counts = np.bincount(stream.iterates(range(20_000)))
    assert counts[:2].tolist() == [0, 0] and len(counts) == 10
    assert chi_square(counts[2:]) < rare(7)
    with pytest.raises(InvalidValueError, match="latent 'iteration'"):
        opened(pictures).iterates([0])


@pytest.mark.parametrize("label", ["class", "attractor"])
def test_stratified_classes_come_evenly(label: Any, pictures: Kaleidoscope) -> None:
    table = pictures.attractors
    assert table is not None
    stream = opened(pictures, KaleidoscopeSpec(stratified=True, label=label))
    batch = stream.generate(range(2000))
    counts = np.bincount(batch.labels, minlength=stream.num_classes)
    there = set(pictures.sources.labels[0][table.source]) if label == "class" else set(range(len(table)))
    assert set(np.flatnonzero(counts)) == there
    assert chi_square(counts[sorted(there)]) < rare(len(there) - 1)
    assert (batch.latents["attractor"] == stream.targets(range(2000))).mean() > 0.995
    assert (batch.latents["model"] == table.model[stream.targets(range(2000))]).all()
    trials = np.bincount(batch.latents["trial"], minlength=stream.spec.trials)
    assert len(trials) == stream.spec.trials and trials[0] > 1000 > trials[1] > trials[-1]
    plain = opened(pictures, KaleidoscopeSpec(label=label)).labels(range(2000))
    assert chi_square(np.bincount(plain, minlength=stream.num_classes)[sorted(there)]) > 1000


def test_the_last_trial_is_the_target_itself(pictures: Kaleidoscope) -> None:
    table = pictures.attractors
    assert table is not None
    stream = opened(pictures, KaleidoscopeSpec(stratified=True, trials=1, mode="early", iterate=0))
    batch, targets = stream.generate(range(100)), stream.targets(range(100))
    assert (batch.images[:, :1] == pictures.network.levels_of(table.states[targets])).all()
    assert (batch.latents["attractor"] == targets).all() and (batch.latents["trial"] == 0).all()
    with pytest.raises(InvalidValueError, match="stratified=True"):
        opened(pictures).targets([0])


def test_a_first_trial_mixes_target_and_noise(pictures: Kaleidoscope) -> None:
    table = pictures.attractors
    assert table is not None
    stream = opened(pictures, KaleidoscopeSpec(stratified=True, mode="early", iterate=0, trials=9))
    index = np.arange(100)
    targets, models = stream.targets(index), stream.model_of(index)
    key_of = partial(stream.key, "trial", 0)
    noise = start_values(Start(), pictures, index, models, key_of)
    share = sample_stream.shares(index, key_of("share"))[:, None]
    mixed = (1 - share) * table.states[targets] + share * noise
    batch = stream.generate(index)
    first = batch.latents["trial"] == 0
    assert first.sum() > 40
    assert (batch.images[first, :1] == pictures.network.levels_of(mixed)[first]).all()
    assert 0.4 < sample_stream.shares(np.arange(10_000), key_of("share")).mean() < 0.6


def test_a_chain_that_ends_nowhere_has_a_class_of_its_own(pictures: Kaleidoscope) -> None:
    stream = opened(pictures, KaleidoscopeSpec(most=1, label="attractor"))
    batch, table = stream.generate(range(50)), pictures.attractors
    assert table is not None and stream.num_classes == len(table) + 1
    nowhere = batch.latents["attractor"] == -1
    assert nowhere.sum() > 25 and (batch.labels[nowhere] == len(table)).all()
    assert (batch.labels[~nowhere] == batch.latents["attractor"][~nowhere]).all()
    assert stream.class_title(len(table)) == "no attractor"
    unrested = batch.latents["steps"] == -1
    assert unrested.any() and (batch.latents["iteration"] == 1).all()


def test_noise_between_steps_keeps_chains_moving(pictures: Kaleidoscope) -> None:
    still, moved = opened(pictures, KaleidoscopeSpec(most=12, start="coarse")), opened(pictures, "jitter")
    batch = moved.generate(range(50))
    assert (batch.latents["steps"] == -1).all() and np.median(batch.latents["change"]) > 2e-3
    assert (batch.latents["iteration"] == 12).all() and (batch.images != still.generate(range(50)).images).any()
    with pytest.raises(InvalidValueError, match="use tolerance=0"):
        KaleidoscopeSpec(jitter=0.05, tolerance=1e-3)
    assert KaleidoscopeSpec(jitter=0.05).schedule.tolerance == 0.0
    assert KaleidoscopeSpec(precision="bfloat16").schedule.tolerance == 4e-3 > KaleidoscopeSpec().rest


def test_no_picture_is_in_two_streams(pictures: Kaleidoscope) -> None:
    spec = KaleidoscopeSpec(mode="early", iterate=0)
    shown = [opened(pictures, spec)]
    shown += [
        opened(pictures, spec, **changes) for changes in ({"seed": 1}, {"split": "validation"}, {"split": "test"})
    ]
    starts = [{image.tobytes() for image in stream.generate(range(300)).images} for stream in shown]
    assert len(set().union(*starts)) == 4 * 300


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"mode": "chains"}, "mode must be one of"),
        ({"label": "model"}, "label must be one of"),
        ({"iterate": 3}, "iterate=3 is of mode early, pairs or clips"),
        ({"mode": "clips", "last_iterate": 3}, "last_iterate=3 is of mode early or pairs"),
        ({"mode": "early", "frames": 3}, "frames=3 is of mode clips"),
        ({"mode": "pairs", "stride": 2}, "stride=2 is of mode clips"),
        ({"mode": "early", "iterate": 101}, "iterate must be a whole number from 0 to 100"),
        ({"mode": "early", "iterate": 5, "last_iterate": 4}, "last_iterate must be a whole number from 5 to 100"),
        ({"mode": "early", "most": 999, "last_iterate": 500}, "last_iterate must be a whole number from 1 to 256"),
        ({"mode": "clips", "frames": 51, "stride": 3}, r"iterate 150, and chains have most=100.*lower frames"),
        ({"stratified": 1}, "stratified must be true or false"),
        ({"trials": 0}, "trials must be a whole number from 1 to 64"),
        ({"jitter_kind": "white"}, "jitter kind"),
    ],
)
def test_a_wrong_field_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidValueError, match=named):
        KaleidoscopeSpec(**settings)


def test_what_needs_attractors_says_so(bare_pictures: Kaleidoscope) -> None:
    for settings, named in (({"stratified": True}, "stratified"), ({"label": "attractor"}, "label='attractor'")):
        with pytest.raises(InvalidValueError, match=f"{named} needs a table of attractors.*find_attractors"):
            opened(bare_pictures, KaleidoscopeSpec(**settings))
    batch = opened(bare_pictures).generate(range(20))
    assert (batch.latents["attractor"] == -1).all() and (batch.latents["source"] >= 0).all()


def test_equal_specs_are_equal_as_text() -> None:
    clips = KaleidoscopeSpec(mode="clips")
    assert clips == KaleidoscopeSpec(mode="clips", iterate=0, frames=8, stride=1) and clips.iterates == tuple(range(8))
    early = KaleidoscopeSpec(mode="early")
    assert early == KaleidoscopeSpec(mode="early", iterate=1, last_iterate=1) and early.iterates == (1,)
    assert KaleidoscopeSpec(jitter=0).to_json() == KaleidoscopeSpec(jitter=0.0).to_json()


def test_settings_open_a_spec(pictures: Kaleidoscope) -> None:
    stream = open_stream(
        KaleidoscopeSpec(), fitted=pictures, seed=3, most=40, mode="early", device="cpu", dtype="float32"
    )
    assert isinstance(stream, KaleidoscopeStream) and stream.spec.most == 40 and stream.pixels.dtype == "float32"
    with pytest.raises(UnknownNameError, match="did you mean 'stratified'"):
        open_stream(KaleidoscopeSpec(), fitted=pictures, stratify=True)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            open_stream(KaleidoscopeSpec(), fitted=pictures, device="cuda")


def test_a_line_on_labels_of_early_iterates_beats_chance(pictures: Kaleidoscope) -> None:
    """Logistic regression from the first iterate to the class of the end, in equal shares: guessing .13, it .99."""
    settings: dict[str, Any] = {"dtype": "float32", "mean": 0.5, "std": 0.25}
    spec = KaleidoscopeSpec(mode="early", stratified=True)
    train, test = (opened(pictures, spec, split=split, **settings).generate(range(2000)) for split in ("train", "test"))
    guess = np.bincount(test.labels).max() / 2000
    torch.manual_seed(0)
    line = torch.nn.Linear(64, 10)
    optimiser = torch.optim.Adam(line.parameters(), lr=0.02)
    pixels, labels = (torch.from_numpy(part) for part in (train.images[:, 0].reshape(2000, 64), train.labels))
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(line(pixels), labels).backward()
        optimiser.step()
    found = line(torch.from_numpy(test.images[:, 0].reshape(2000, 64))).argmax(dim=1).numpy()
    assert guess < 0.16 and (found == test.labels).mean() > guess + 0.7
