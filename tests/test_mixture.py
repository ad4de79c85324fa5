"""Mixtures: each sample is its component's own, drawn as often as the weights say."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import Mixture, StillStream, StreamSpec, open_stream, rng
from fractal_streams.batch import Batch
from fractal_streams.errors import IndexRangeError, InvalidValueError
from fractal_streams.mixture import whole_weights
from fractal_streams.presets import spec_from_json
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices
from fractal_streams.stream import Stream


class Plain(Stream):
    """Pixels are all `level`, the label is index mod num_classes; latents as named, twice the index."""

    def __init__(
        self,
        level: int,
        *,
        classes: int = 10,
        split: str = "train",
        device: str = "cpu",
        dtype: Any = "uint8",
        shape: tuple[int, ...] = (3, 2, 2),
        latents: tuple[str, ...] = ("x",),
        frames: tuple[int, ...] = (),
    ) -> None:
        self.level, self.num_classes, self.split, self.device = level, classes, split, device
        self.seed, self.pixels, self.shape, self.names, self.frames = 0, PixelFormat(dtype), shape, latents, frames
        self.calls: list[list[int]] = []

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        self.calls.append(index.tolist())
        images = np.full((len(index), *self.shape), self.level, np.uint8)
        twice = np.broadcast_to((2 * index).reshape(-1, *(1 for _ in self.frames)), (len(index), *self.frames))
        return Batch(index, images, index % self.num_classes, {name: twice.astype(np.float32) for name in self.names})

    def digest(self) -> str:
        return f"plain{self.level}-0-{self.split}"


def levels(batch: Batch) -> list[int]:
    assert (batch.images == batch.images[:, :1, :1, :1]).all()
    return batch.images[:, 0, 0, 0].tolist()


def test_each_sample_is_its_components_own_in_one_call_each() -> None:
    parts = [Plain(level) for level in range(3)]
    mixture = Mixture(parts, (1, 2, 3))
    indices = [7, 3, 3, 2**63 - 1, 0, *range(40, 80)]
    for part in parts:
        part.calls.clear()
    batch = mixture.generate(indices)
    drawn = mixture.components(indices)
    assert set(drawn.tolist()) == {0, 1, 2} and drawn[1] == drawn[2]
    assert levels(batch) == drawn.tolist()
    assert batch.index.tolist() == indices and batch.labels.tolist() == [index % 10 for index in indices]
    for component, part in enumerate(parts):
        assert part.calls == [[i for i, d in zip(indices, drawn, strict=True) if d == component]]


def test_real_components_keep_their_samples_to_the_bit() -> None:
    parts: list[Stream] = [
        open_stream("fractal-10", seed=1, device="cpu", height=8, width=8),
        StillStream(StreamSpec(formulas="mandelbrot", height=8, width=8), device="cpu"),
    ]
    mixture = Mixture(parts, seed=5)
    assert mixture.label_rule == "offset" and mixture.num_classes == 11
    batch, drawn = mixture.generate(range(100, 164)), mixture.components(range(100, 164))
    whole = [part.generate(range(100, 164)) for part in parts]
    names = {name for part in whole for name in part.latents}
    assert set(batch.latents) == names and set(whole[0].latents) != set(whole[1].latents)
    for place, component in enumerate(drawn):
        assert (batch.images[place] == whole[component].images[place]).all()
        assert batch.labels[place] == whole[component].labels[place] + (0, 10)[component]
        for name in names:
            expected = whole[component].latents.get(name, np.full(64, np.nan))[place]
            assert np.array_equal(batch.latents[name][place], expected, equal_nan=True)
    assert (mixture.labels(range(100, 164)) == batch.labels).all()


def test_a_sample_depends_on_nothing_but_its_index() -> None:
    mixture = Mixture([Plain(0), Plain(1)], (3, 1))
    everything = mixture.generate(range(200))
    assert [levels(mixture.generate([index]))[0] for index in range(199, -1, -1)] == levels(everything)[::-1]
    assert mixture[17].index == 17 and mixture[17].image[0, 0, 0] == levels(everything)[17]


def test_the_draw_is_the_exact_share_of_the_64_bit_word() -> None:
    weights = (5, 1, 2**31 - 10, 3)
    mixture = Mixture([Plain(level) for level in range(4)], weights, seed=9)
    indices = np.arange(3000)
    low, high, _, _ = rng.words(indices, mixture._key)
    words = [(int(h) << 32) | int(w) for h, w in zip(high, low, strict=True)]
    bounds = np.cumsum(weights).tolist()
    expected = [sum(Fraction(word, 2**64) * bounds[-1] >= bound for bound in bounds) for word in words]
    assert mixture.components(indices).tolist() == expected


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (0.2, 0.3, 0.5), (1, 2, 3, 4)])
def test_components_come_as_often_as_their_weights(weights: tuple[float, ...]) -> None:
    count = 200_000
    drawn = Mixture([Plain(level) for level in range(len(weights))], weights).components(range(count))
    expected = np.array(weights) / sum(weights) * count
    chi_square = ((np.bincount(drawn, minlength=len(weights)) - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # under one in a thousand for up to 3 degrees of freedom; the draw is fixed


def test_proportions_not_their_scale_decide() -> None:
    def drawn(*weights: float) -> tuple[list[int], str]:
        mixture = Mixture([Plain(0), Plain(1)], weights)
        return mixture.components(range(500)).tolist(), mixture.digest()

    assert drawn(1, 3) == drawn(10, 30) == drawn(0.25, 0.75) == drawn(np.float32(1), np.int64(3))
    assert drawn(1, 3) != drawn(3, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_rounded_weights_are_within_a_part_of_the_given(weights: list[float]) -> None:
    if min(weights) / sum(weights) < 2**-29:
        return
    got = whole_weights(weights, len(weights))
    for number, weight in zip(got, weights, strict=True):
        assert abs(number / sum(got) - weight / sum(weights)) <= (len(weights) + 1) * 2**-30


def test_label_rules() -> None:
    parts = [Plain(0, classes=4), Plain(1, classes=3), Plain(2, classes=5)]
    offset = Mixture(parts)
    assert offset.label_rule == "offset" and offset.num_classes == 12
    drawn = offset.components(range(60))
    own = np.array([index % (4, 3, 5)[d] for index, d in enumerate(drawn)])
    assert (offset.generate(range(60)).labels == own + np.array([0, 4, 7])[drawn]).all()
    component = Mixture(parts, labels="component")
    assert component.num_classes == 3 and (component.generate(range(60)).labels == drawn).all()
    for mixture in (offset, component):
        assert (mixture.labels(range(60)) == mixture.generate(range(60)).labels).all()
        assert mixture.generate(range(60)).labels.dtype == np.int64
    with pytest.raises(InvalidValueError, match=r"as many classes, got \[4, 3, 5\]"):
        Mixture(parts, labels="own")
    alike = Mixture([Plain(0), Plain(1)])
    assert alike.label_rule == "own" and alike.num_classes == 10
    assert Mixture([Plain(0), Plain(1)], labels="offset").num_classes == 20


def test_latents_of_clips_are_filled_in_their_own_shape() -> None:
    parts = [Plain(0, latents=("x", "a"), frames=(4,)), Plain(1, latents=("b", "x"), frames=(4,))]
    mixture = Mixture(parts)
    batch, drawn = mixture.generate(range(50)), mixture.components(range(50))
    assert list(batch.latents) == ["x", "a", "b"]
    assert {values.shape for values in batch.latents.values()} == {(50, 4)}
    assert (batch.latents["x"] == 2 * np.arange(50)[:, None]).all()
    assert (np.isnan(batch.latents["a"]).all(axis=1) == (drawn == 1)).all()
    assert (np.isnan(batch.latents["b"]).any(axis=1) == (drawn == 0)).all()
    with pytest.raises(InvalidValueError, match=r"latents of one shape: 'x' .*\[1\] has \(\), before it \(4,\)"):
        Mixture([parts[0], Plain(1)])


def test_a_latents_type_depends_on_the_components_and_not_on_the_samples_asked_for() -> None:
    class Whole(Plain):
        def generate(self, indices: Any) -> Batch:
            batch = super().generate(indices)
            far = batch.index + 2**40
            return Batch(batch.index, batch.images, batch.labels, {"far": far, "depth": np.int32(far % 7)})

    mixed = Mixture([Whole(0), Plain(1), Whole(2)])
    drawn = mixed.components(range(40))
    batch = mixed.generate(range(40))
    assert {name: values.dtype.name for name, values in batch.latents.items()} == {
        "far": "float64", "depth": "float64", "x": "float32",
    }  # fmt: skip
    for index in range(40):
        for name, values in mixed.generate([index]).latents.items():
            assert values.dtype == batch.latents[name].dtype
            assert np.array_equal(values[0], batch.latents[name][index], equal_nan=True)
    assert (batch.latents["far"][drawn != 1] == np.arange(40)[drawn != 1] + 2**40).all()
    assert mixed.generate([]).latents["far"].dtype == "float64"
    alike = Mixture([Whole(0), Whole(1)]).generate(range(4)).latents
    assert (alike["far"].dtype, alike["depth"].dtype) == ("int64", "int32")


def test_a_mixture_inside_a_mixture_is_drawn_independently() -> None:
    inner = Mixture([Plain(0), Plain(1)])
    outer = Mixture([inner, Plain(2)])
    count = 40_000
    got = np.bincount(levels(outer.generate(range(count))), minlength=3)
    expected = np.array([0.25, 0.25, 0.5]) * count
    assert ((got - expected) ** 2 / expected).sum() < 13.8
    assert Mixture([outer, inner]).mixture_depth == 3


def test_no_indices_give_an_empty_batch_of_the_same_form() -> None:
    mixture = Mixture([Plain(0, latents=("a",)), Plain(1)])
    empty, one = mixture.generate([]), mixture.generate([0])
    assert len(empty) == 0 and empty.images.shape == (0, 3, 2, 2) and list(empty.latents) == list(one.latents)
    assert mixture.labels([]).tolist() == []


def test_the_digest_names_all_that_is_drawn() -> None:
    def digest(*parts: Stream, **settings: Any) -> str:
        return Mixture(parts, **settings).digest()

    different = {
        digest(Plain(0), Plain(1)), digest(Plain(1), Plain(0)), digest(Plain(0), Plain(2)),
        digest(Plain(0), Plain(1), weights=(1, 2)), digest(Plain(0), Plain(1), seed=1),
        digest(Plain(0), Plain(1), labels="component"),
        digest(Plain(0, split="test"), Plain(1, split="test")),
    }  # fmt: skip
    assert len(different) == 7
    assert digest(Plain(0), Plain(1)) == digest(Plain(0), Plain(1), weights=(7, 7))


def test_seeds_and_splits_draw_differently() -> None:
    def drawn(split: str, seed: int) -> np.ndarray:
        parts = [Plain(level, split=split) for level in range(2)]
        return Mixture(parts, seed=seed).components(range(2000))

    for other in (drawn("train", 1), drawn("test", 0)):
        assert 850 < (drawn("train", 0) == other).sum() < 1150


def test_a_pickled_mixture_gives_the_same() -> None:
    mixture = Mixture([open_stream("fractal-10", seed=seed, device="cpu", height=8, width=8) for seed in (0, 1)])
    twin = pickle.loads(pickle.dumps(mixture))
    assert twin.digest() == mixture.digest()
    assert (twin.generate(range(20)).images == mixture.generate(range(20)).images).all()


def test_a_mixture_runs_through_a_loader() -> None:
    torch = pytest.importorskip("torch")
    from fractal_streams import StreamDataset

    mixture = Mixture([Plain(0), Plain(1)])
    got = torch.cat([images[:, 0, 0, 0] for images, _ in StreamDataset(mixture, 7, length=50)])
    assert got.tolist() == mixture.components(range(50)).tolist()


@pytest.mark.parametrize(
    ("parts", "settings", "words"),
    [
        ([], {}, "at least one"),
        ([Plain(0), "fractal-10"], {}, r"streams\[1\] must be a Stream, got str"),
        ([Plain(0), Plain(1, split="test")], {}, "same split: .*'train', .*'test'"),
        ([Plain(0), Plain(1, device="cuda:0")], {}, "same device: .*'cpu', .*'cuda:0'"),
        ([Plain(0), Plain(1, dtype="float32")], {}, "same pixels: "),
        ([Plain(0), Plain(1, shape=(3, 2, 4))], {}, r"one shape: .*\(3, 2, 2\), .*\(3, 2, 4\)"),
        ([Plain(0)], {"weights": (1, 2)}, "one for each of the 1 streams, got 2"),
        ([Plain(0), Plain(1)], {"weights": (1, 0)}, "above 0, got 0"),
        ([Plain(0), Plain(1)], {"weights": (1, -0.5)}, "above 0, got -0.5"),
        ([Plain(0), Plain(1)], {"weights": (1, float("nan"))}, "above 0, got nan"),
        ([Plain(0), Plain(1)], {"weights": (1, True)}, "above 0, got True"),
        ([Plain(0), Plain(1)], {"weights": (1.5, 1e-12)}, r"rounds to 0 of 2\*\*30"),
        ([Plain(0), Plain(1)], {"weights": (2**31, 1)}, r"at most 2\*\*31 - 1"),
        ([Plain(0), Plain(1)], {"weights": 3}, "one number for each of the 2 streams, got 3"),
        (None, {}, "a list of at least one, got None"),
        ([Plain(0)], {"labels": "all"}, "'own', 'offset', 'component'"),
        ([Plain(0)], {"seed": -1}, "seed .* got -1"),
    ],
)
def test_what_can_not_be_mixed_is_refused(parts: list[Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Mixture(parts, **settings)


def test_indices_out_of_range_are_refused() -> None:
    with pytest.raises(IndexRangeError, match="-1"):
        Mixture([Plain(0)]).generate([-1])


@pytest.mark.gpu
def test_a_mixture_on_a_gpu_is_the_one_on_the_cpu() -> None:
    def mixture(device: str) -> Mixture:
        return Mixture([open_stream("fractal-10", seed=0, device=device), open_stream("fractal-100", device=device)])

    cpu, gpu = mixture("cpu").generate(range(300)), mixture("cuda").generate(range(300))
    assert gpu.images.is_cuda and (gpu.numpy().labels == cpu.labels).all() and (gpu.numpy().index == cpu.index).all()
    for name, values in gpu.numpy().latents.items():
        assert np.array_equal(values, cpu.latents[name], equal_nan=True)


def test_a_mixture_says_what_it_draws_and_names_its_classes() -> None:
    parts = [
        open_stream("fractal-10", device="cpu"),
        open_stream("fractal-families", device="cpu", height=32, width=32),
    ]
    mixed = Mixture(parts, weights=(3, 1), seed=5)
    said = json.loads(json.dumps(mixed.describe()))
    assert said["streams"] == [json.loads(json.dumps(part.describe())) for part in parts]
    assert (said["weights"], said["labels"], said["seed"], said["split"]) == ([3, 1], "offset", 5, "train")
    assert said["digest"] == mixed.digest()
    titles = [mixed.class_title(label) for label in range(mixed.num_classes)]
    assert titles[9:11] == ["class 9 of stream 0", f"{parts[1].class_title(0)} of stream 1"]
    assert len(set(titles)) == mixed.num_classes == 26
    assert Mixture(parts, labels="component").class_title(1) == "stream 1"
    assert Mixture(parts[:1] * 2).class_title(3) == "class 3"


def test_a_stream_says_what_it_draws() -> None:
    for name in ("fractal-10", "fractal-video", "seed-code"):
        stream = open_stream(name, seed=3, split="test", device="cpu")
        said = stream.describe()
        again = open_stream(
            spec_from_json(json.dumps(said["spec"])), seed=said["seed"], split=said["split"], device="cpu"
        )
        assert again.digest() == stream.digest() == said["digest"]
