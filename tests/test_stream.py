"""Streams: their two verbs, the order of families, the form of the pixels, and what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fractal_streams import StillStream, StreamSpec, open_stream
from fractal_streams.errors import DeviceError, IndexRangeError, InvalidValueError, UnknownNameError
from fractal_streams.presets import PRESETS, find_preset
from fractal_streams.priors import Uniform
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.stream import Stream

FAMILIES = StreamSpec(formulas=("polynomial_power", "sine", "mandelbrot"), num_classes=6, height=8, width=12)


def stream_of(spec: Any = "fractal-10", **settings: Any) -> Stream:
    return open_stream(spec, device="cpu", **{"height": 12, "width": 8, **settings})


def test_a_sample_is_its_row_of_a_batch() -> None:
    stream = stream_of()
    batch, sample = stream.generate([4, 9, 2]), stream[9]
    assert batch.index.tolist() == [4, 9, 2] and len(batch) == 3
    assert isinstance(sample.index, int) and isinstance(sample.label, int)
    assert (sample.index, sample.label) == (9, int(batch.labels[1]))
    assert np.array_equal(sample.image, batch.images[1])
    assert sample.latents == {name: values[1] for name, values in batch.latents.items()}


def test_a_slice_is_a_batch() -> None:
    stream = stream_of()
    assert stream[3:12:4].index.tolist() == [3, 7, 11]
    assert stream[:2].index.tolist() == [0, 1]
    assert len(stream[5:5]) == 0 and stream[5:5].images.shape == (0, 3, 12, 8)
    assert np.array_equal(stream[3:12:4].images, stream.generate([3, 7, 11]).images)


def test_batches_follow_each_other_without_end() -> None:
    stream = stream_of()
    found = list(itertools.islice(stream.batches(3, start=10), 4))
    assert [batch.index.tolist() for batch in found] == [[10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20, 21]]
    assert np.array_equal(np.concatenate([batch.images for batch in found]), stream[10:22].images)


@pytest.mark.parametrize(
    "slicing", [slice(None), slice(3, None), slice(-3, 5), slice(0, -1), slice(0, 5, -1), slice(0, 5, 0)]
)
def test_a_slice_without_two_ends_is_refused(slicing: slice) -> None:
    with pytest.raises(IndexRangeError, match="endless"):
        stream_of()[slicing]


@pytest.mark.parametrize("slicing", [slice(1.5, 3), slice("a", 3), slice(0, 2.0), slice(0, 4, 0.5)], ids=str)
def test_a_slice_of_no_whole_numbers_is_refused(slicing: slice) -> None:
    with pytest.raises(InvalidValueError, match="whole numbers"):
        stream_of()[slicing]


@pytest.mark.parametrize("index", [-1, 2**63, 2**64])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexRangeError, match=str(index)):
        stream_of()[index]
    with pytest.raises(IndexRangeError, match=str(index)):
        stream_of().generate([0, index])


@pytest.mark.parametrize("index", [1.0, "1", None, True, (0, 1)])
def test_what_is_no_index_is_refused(index: Any) -> None:
    with pytest.raises(InvalidValueError, match="whole number"):
        stream_of()[index]


def test_looping_over_an_endless_stream_names_what_to_loop_over() -> None:
    with pytest.raises(TypeError, match=r"endless: loop over stream.batches"):
        iter(stream_of())


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_size_is_a_count(size: Any) -> None:
    with pytest.raises(InvalidValueError, match="batch_size"):
        next(stream_of().batches(size))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"seed": 0.5}, "seed"), ({"seed": True}, "seed"),
        ({"split": "dev"}, "split must be one of 'train', 'validation', 'test'"), ({"dtype": "int8"}, "dtype"),
        ({"std": 0.0, "dtype": "float32"}, "std"), ({"mean": 0.5}, "need a float dtype"), ({"height": 5}, "height"),
    ],
)  # fmt: skip
def test_what_a_stream_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        stream_of(**settings)


def test_a_name_is_no_spec() -> None:
    with pytest.raises(InvalidValueError, match="open_stream"):
        StillStream("fractal-10")  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["fractal-10", "fractal-video", "seed-code"])
@pytest.mark.parametrize(
    "name, nearest", [("hieght", "height"), ("devise", "device"), ("chanels_last", "channels_last")]
)
def test_an_unknown_setting_names_the_nearest(preset: str, name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown setting '{name}': did you mean '{nearest}'"):
        open_stream(preset, **{name: 8})


def test_a_setting_of_other_streams_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="unknown setting 'supersample': known are channels_last, device"):
        open_stream("seed-code", supersample=2)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fractal-10'"):
        find_preset("fractal10")


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match="no GPU"):
        open_stream("fractal-10", device="cuda")


def test_families_come_back_in_the_order_asked_for() -> None:
    stream = StillStream(FAMILIES, device="cpu")
    asked = [11, 3, 0, 7, 3, 5, 8]
    batch = stream.generate(asked)
    assert batch.index.tolist() == asked
    for place, index in enumerate(asked):
        alone = stream[index]
        assert np.array_equal(alone.image, batch.images[place]) and alone.label == batch.labels[place]


def test_a_family_is_its_formula_alone_in_that_stream() -> None:
    """Each sample of a family is what the family's own plan and raster give for its index."""
    stream = StillStream(FAMILIES, device="cpu")
    batch = stream.generate(range(24))
    for place in range(24):
        kind = int(batch.labels[place]) % 3
        names = set(stream.plans[kind].names)
        present = {name for name, values in batch.latents.items() if np.isfinite(values[place])}
        assert present == names
        table = np.array([[batch.latents[name][place]] for name in stream.plans[kind].names], np.float32)
        image = stream.backend.render(stream.rasters[kind], table, stream.pixels)[0]
        assert np.array_equal(image, batch.images[place])


def test_no_indices_give_an_empty_batch_of_the_same_form() -> None:
    for spec in (FAMILIES, FAMILIES.replace(formulas=("sine",))):
        stream = StillStream(spec, device="cpu")
        empty, full = stream.generate([]), stream.generate([0])
        assert len(empty) == 0 and empty.latents.keys() == full.latents.keys()
        assert empty.images.shape[1:] == full.images.shape[1:] and empty.images.dtype == full.images.dtype
        assert all(values.shape == (0,) for values in empty.latents.values())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_form_of_the_pixels_changes_no_level(dtype: str, channels_last: bool) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    levels = stream_of()[0:5].images
    floats = stream_of(dtype=dtype, channels_last=channels_last, mean=mean, std=std)[0:5].images
    floats = floats.transpose(0, 3, 1, 2) if channels_last else floats
    if dtype == "bfloat16":
        floats = (floats.astype(np.uint32) << 16).view(np.float32)
    back = floats.astype(np.float64) * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    close = {"float32": 1e-5, "float16": 0.25, "bfloat16": 2.0}[dtype]
    assert np.abs(back * 255.0 - levels).max() < close


def test_a_given_renderer_takes_the_place_of_the_devices_own() -> None:
    stream = StillStream(FAMILIES, device="cpu", renderer=ReferenceRenderer())
    own = StillStream(FAMILIES, device="cpu").generate(range(6))
    given = stream.generate(range(6))
    assert np.array_equal(own.labels, given.labels)
    assert (np.abs(own.images.astype(int) - given.images.astype(int)) > 2).mean() < 0.02


def test_the_digest_names_spec_seed_and_split() -> None:
    spec = PRESETS["fractal-10"]
    settings: list[tuple[Any, int, str]] = [
        (spec, 0, "train"), (spec, 1, "train"), (spec, 0, "test"), (spec.replace(height=64), 0, "train"),
    ]  # fmt: skip
    digests = [StillStream(one, seed=seed, split=split, device="cpu").digest() for one, seed, split in settings]
    assert len(set(digests)) == len(digests)
    assert digests[0] == StillStream(spec, device="cpu", dtype="float32").digest()


@pytest.mark.parametrize("name", [name for name in PRESETS if isinstance(PRESETS[name], StreamSpec)])
def test_a_preset_is_a_stream_whose_classes_are_all_drawn(name: str) -> None:
    stream = open_stream(name, device="cpu", height=8, width=8)
    assert isinstance(stream.spec, StreamSpec)  # type: ignore[attr-defined]
    labels = stream.labels(range(20 * stream.num_classes))
    assert labels.min() >= 0 and labels.max() < stream.num_classes
    assert len(np.unique(labels)) > 0.99 * stream.num_classes
    several = len(stream.spec.parts()) > 1  # type: ignore[attr-defined]
    shown = (2, 6) if several else range(stream.num_classes)  # two kernels of sixteen, which others compile as well
    some = np.flatnonzero(np.isin(labels, shown))[:200]
    assert (stream.generate(some).labels == labels[some]).all()


@pytest.mark.parametrize("name", ["fractal-10", "fractal-mnist"])
def test_under_half_a_percent_of_a_presets_pictures_are_constant(name: str) -> None:
    images = open_stream(name, device="cpu").generate(range(2000)).images.reshape(2000, -1)
    assert (images == images[:, :1]).all(axis=1).mean() < 0.005


def test_settings_and_fields_of_the_spec_are_told_apart() -> None:
    stream = open_stream(
        "fractal-10", device="cpu", seed=3, split="test", num_classes=4, priors={"power": Uniform(2.0, 3.0)}
    )
    assert (stream.seed, stream.split, stream.num_classes) == (3, "test", 4)
    power = stream[0:200].latents["power"]
    assert power.min() >= 2.0 and power.max() <= 3.0
