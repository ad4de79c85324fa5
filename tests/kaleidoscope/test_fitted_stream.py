"""What streams of fitted networks share: which file is read, how it is named, where chains end, and pixels."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError, UnknownNameError, VersionError
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope, Sources, WeightFileError
from fractal_streams.kaleidoscope.fitted_stream import NEAR, formatted_array, formatted_tensor, relative_cost
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream
from fractal_streams.render.raster import PixelFormat


def opened(fitted: Kaleidoscope, spec: KaleidoscopeSpec | None = None, **settings: Any) -> KaleidoscopeStream:
    return KaleidoscopeStream(spec or KaleidoscopeSpec(), fitted=fitted, device="cpu", **settings)


def test_a_spec_goes_through_json() -> None:
    specs = [
        KaleidoscopeSpec(),
        KaleidoscopeSpec(model="a/b.safetensors", fingerprint="0" * 32, precision="bfloat16", start="pink", most=7),
        KaleidoscopeSpec(model="kaleidoscope-10", start_noise=0.5, tolerance=0, mode="clips", frames=3, stride=4),
    ]
    for spec in specs:
        assert KaleidoscopeSpec.from_json(spec.to_json()) == spec
    assert specs[2].tolerance == 0.0 and isinstance(specs[2].tolerance, float)
    with pytest.raises(VersionError, match="upgrade"):
        KaleidoscopeSpec.from_json(specs[0].to_json().replace('"spec_version": 1', '"spec_version": 99'))
    with pytest.raises(UnknownNameError, match="did you mean 'start'"):
        KaleidoscopeSpec.from_json(specs[0].to_json().replace('"start":', '"starts":'))


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("model", "", "model must be a .safetensors file"),
        ("model", 3, "model must be"),
        ("fingerprint", "12", "32 hexadecimal"),
        ("fingerprint", "G" * 32, "32 hexadecimal"),
        ("precision", "float64", "'float32', 'bfloat16'"),
        ("start", "white", "start kind"),
        ("start_noise", -1.0, r"start noise must lie in \[0, 100\]"),
        ("most", 0, "most must be a whole number from 1"),
        ("tolerance", 1.0, r"tolerance must lie in \[0, 1\)"),
        ("version", 0, "version"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, named: str) -> None:
    with pytest.raises(InvalidValueError, match=named):
        KaleidoscopeSpec(**{field: value})


def test_the_digest_names_the_kaleidoscope_and_not_its_place(pictures: Kaleidoscope, tmp_path: Path) -> None:
    first, second = (pictures.save(tmp_path / f"{name}.safetensors") for name in "ab")
    streams = [KaleidoscopeStream(KaleidoscopeSpec(model=str(path)), device="cpu") for path in (first, second)]
    assert streams[0].digest() == streams[1].digest() == opened(pictures).digest()
    assert [stream.spec.model for stream in streams] == [str(first), str(second)]
    assert streams[0].spec.fingerprint == pictures.fingerprint
    with pytest.raises(InvalidValueError, match=r"needs the fingerprint.*stream\.digest"):
        KaleidoscopeSpec(model=str(first)).digest()
    asked: list[Any] = [{}, {"most": 99}, {"start": "pink"}, {"precision": "bfloat16"}, {"tolerance": 0.0}]
    asked += [{"mode": "early"}, {"version": 2}, {"stratified": True}]
    digests = [opened(pictures, KaleidoscopeSpec(**changes)).digest() for changes in asked]
    digests += [opened(pictures, seed=1).digest(), opened(pictures, split="test").digest()]
    digests += [opened(pictures.one(0)).digest()]
    assert len(set(digests)) == len(digests)


def test_a_file_may_be_given_as_a_path(pictures: Kaleidoscope, tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "one.safetensors")
    spec = KaleidoscopeSpec(model=path)  # type: ignore[arg-type]
    assert spec == KaleidoscopeSpec(model=str(path)) == KaleidoscopeSpec.from_json(spec.to_json())


def test_another_file_in_the_same_place_is_refused(pictures: Kaleidoscope, tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "one.safetensors")
    spec = KaleidoscopeStream(KaleidoscopeSpec(model=str(path)), device="cpu").spec
    pictures.one(1).save(path)
    with pytest.raises(VersionError, match=f"{pictures.one(1).fingerprint}, and {pictures.fingerprint} was asked for"):
        KaleidoscopeStream(spec, device="cpu")
    found = KaleidoscopeStream(spec.replace(fingerprint=None), device="cpu")
    assert found.spec.fingerprint == pictures.one(1).fingerprint and found.fitted.models == 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightFileError, match="damaged"):
        KaleidoscopeStream(spec, device="cpu")
    path.unlink()
    with pytest.raises(WeightFileError, match="kaleidoscope fit"):
        KaleidoscopeStream(spec, device="cpu")


def test_what_is_no_kaleidoscope_is_refused(pictures: Kaleidoscope, two_points: Kaleidoscope) -> None:
    with pytest.raises(InvalidValueError, match="name a .safetensors file or a recipe"):
        KaleidoscopeStream(KaleidoscopeSpec(), device="cpu")
    with pytest.raises(InvalidValueError, match="open_kaleidoscope"):
        KaleidoscopeStream(KaleidoscopeSpec(), fitted="pictures", device="cpu")
    with pytest.raises(InvalidValueError, match="split must be one of"):
        opened(pictures, split="dev")
    with pytest.raises(InvalidValueError, match=r"points \(1,\).*BasinStream"):
        opened(two_points)
    with pytest.raises(InvalidValueError, match="must be a KaleidoscopeSpec"):
        KaleidoscopeStream("kaleidoscope-10", device="cpu")  # type: ignore[arg-type]


def test_draws_differ_by_name_seed_and_split(pictures: Kaleidoscope) -> None:
    stream = opened(pictures)
    keys = [stream.key("start"), stream.key("model"), stream.key("start", 1), opened(pictures, seed=1).key("start")]
    keys += [opened(pictures, split=split).key("start") for split in ("validation", "test")]
    keys += [opened(pictures, KaleidoscopeSpec(version=2)).key("start")]
    assert len(set(keys)) == len(keys)
    assert opened(pictures, KaleidoscopeSpec(most=3, start="pink")).key("start") == keys[0]
    models = stream.model_of(np.arange(10_000))
    assert abs(models.mean() - 0.5) < 5 * 0.005 and set(models) == {0, 1}
    assert (stream.model_of(np.arange(9_000, 10_000)) == models[9_000:]).all()
    assert (opened(pictures, seed=1).model_of(np.arange(1000)) != models[:1000]).mean() > 0.4


def test_ends_are_the_nearest_of_their_own_network(pictures: Kaleidoscope) -> None:
    stream, table = opened(pictures), pictures.attractors
    assert table is not None
    rows, span = np.arange(len(table)), pictures.network.span
    exact = stream.ended(table.states, table.model.astype(np.int64))
    assert (exact.attractor == rows).all() and (exact.source == table.source).all()
    assert (exact.label == pictures.sources.labels[0][table.source]).all()
    np.testing.assert_allclose(exact.distance, table.distance, atol=1e-6)
    for part, near in ((0.95, True), (1.05, False)):  # a shift of each value by so much is an RMSE of so much
        moved = stream.ended(table.states + np.float32(part * NEAR * span), table.model.astype(np.int64)).attractor
        assert ((moved == rows) == near).all() and (near or (moved == -1).all())
    other = stream.ended(table.states, 1 - table.model.astype(np.int64))
    assert (table.model[other.attractor[other.attractor >= 0]] != table.model[other.attractor >= 0]).all()


def test_ends_do_not_depend_on_the_batch(pictures: Kaleidoscope) -> None:
    stream = opened(pictures)
    states = np.random.default_rng(0).uniform(-1, 1, (300, 64)).astype(np.float32)
    models = np.arange(300) % 2
    whole = vars(stream.ended(states, models))
    for rows in ([7], [9, 4, 5, 100, 299, 1, 2]):
        for name, values in vars(stream.ended(states[rows], models[rows])).items():
            assert (values == whole[name][rows]).all(), name


def test_without_a_table_nothing_is_near(bare_pictures: Kaleidoscope) -> None:
    ends = opened(bare_pictures).ended(bare_pictures.source_values(0), np.zeros(12, np.int64))
    assert (ends.attractor == -1).all() and (ends.source == np.arange(12)).all() and (ends.distance == 0.0).all()


def test_each_network_may_have_sources_of_its_own() -> None:
    network = Network(shape=(3, 8, 8), hidden=8, n_linear=2)
    data = np.random.default_rng(1).integers(0, 256, (3, 5, 3, 8, 8)).astype(np.uint8)
    labels = np.arange(15).reshape(3, 5)
    sources = Sources(data=data, labels=labels, titles=tuple(map(str, range(15))))
    fitted = Kaleidoscope(network=network, tensors=network.first_weights(3), sources=sources)
    states = network.values_of(data).reshape(15, -1)
    ends = opened(fitted).ended(states, np.repeat(np.arange(3), 5))
    assert (ends.source == np.tile(np.arange(5), 3)).all() and (ends.label == np.arange(15)).all()
    assert (ends.distance == 0.0).all()
    elsewhere = opened(fitted).ended(states, np.full(15, 2))
    assert (elsewhere.label >= 10).all() and (elsewhere.distance[:10] > 0.1).all()
    lone = replace(fitted, attractors=Attractors(
        states=states[:1], model=np.int32([1]), source=np.int32([0]), distance=np.float32([0]), share=np.float32([1]),
    ))  # fmt: skip
    assert opened(lone).ended(states[[0, 0]], np.array([0, 1])).attractor.tolist() == [-1, 0]  # network 0 has none


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 5, 6), (2, 3, 3, 5, 6)])
def test_pixels_have_the_form_that_was_asked_for(dtype: Any, last: bool, shape: tuple[int, ...]) -> None:
    levels = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    colour = {} if dtype == "uint8" else {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    pixels = PixelFormat(dtype, last, **colour)
    found = formatted_array(levels, pixels)
    tensor = formatted_tensor(torch.from_numpy(levels), pixels)
    assert (as_array(tensor) == found).all() and str(tensor.dtype) == f"torch.{dtype}" and tensor.is_contiguous()
    plain = np.moveaxis(found, -1, -3) if last else found
    assert plain.shape == (*shape[:-3], 3, 5, 6)
    for channel in range(3):
        level = levels[..., channel % shape[-3], :, :]
        if dtype == "uint8":
            assert (plain[..., channel, :, :] == level).all()
            continue
        values = plain[..., channel, :, :]
        if dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        wanted = (level / 255.0 - colour["mean"][channel]) / colour["std"][channel]
        precise = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6}[dtype]
        np.testing.assert_allclose(values, wanted, atol=precise * np.abs(wanted).max())


def test_a_stream_travels_without_its_engine(pictures: Kaleidoscope) -> None:
    stream = opened(pictures, seed=5, split="test", dtype="float32", mean=0.5, std=0.5)
    here = stream.generate(range(9))
    assert stream._opened is not None
    sent = pickle.loads(pickle.dumps(stream))
    assert sent._opened is None and sent.digest() == stream.digest()
    there = sent.generate(range(9))
    assert (there.images == here.images).all() and here.images.dtype == np.float32


def test_a_sample_costs_its_products(pictures: Kaleidoscope) -> None:
    weights = 2 * 64 * 64 + 3 * 64 * 64 + 5 * 64
    assert relative_cost(pictures, 100) == round(100 * weights / (1000 * 64)) == 32
    assert opened(pictures, KaleidoscopeSpec(most=50)).cost == 16
    assert opened(pictures, KaleidoscopeSpec(mode="clips", frames=4)).cost == 8
