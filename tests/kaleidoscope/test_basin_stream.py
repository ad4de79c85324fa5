"""The stream of basin maps: pure samples, zooms at boundaries, labels by dynamics, loaders."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from hand_made_basins import dust, quadrants, stairs
from torch.utils.data import DataLoader

from fractal_streams import BasinSpec, BasinStream, Loader, Shard, StreamDataset, open_stream
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.basin_colours import NOWHERE, palette, shades_of_steps
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.presets import PRESETS, spec_from_json

SMALL: dict[str, Any] = {"height": 16, "width": 24}


def basins(fitted: Kaleidoscope, seed: int = 0, split: str = "train", **spec: Any) -> BasinStream:
    return BasinStream(BasinSpec(**{**SMALL, **spec}), fitted=fitted, seed=seed, split=split, device="cpu")


def assert_equal(found: Any, expected: Any, rows: Any = slice(None)) -> None:
    for name in ("index", "images", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[rows], err_msg=name)
    assert found.latents.keys() == expected.latents.keys()
    for name, values in found.latents.items():
        np.testing.assert_array_equal(values, expected.latents[name][rows], err_msg=name)
        assert values.dtype == expected.latents[name].dtype


@pytest.fixture(scope="module")
def pictured(pictures: Kaleidoscope) -> BasinStream:
    """Of two networks that were really fitted."""
    return basins(pictures, plane="middle", label="model", min_depth=0, max_depth=5, supersample=2)


@pytest.fixture(scope="module")
def truth(pictured: BasinStream) -> Any:
    return pictured.generate(range(12))


def test_a_sample_is_the_same_in_any_batch(pictured: BasinStream, truth: Any) -> None:
    for rows in ([7], [11, 3, 3, 0], list(range(4, 11))):
        assert_equal(pictured.generate(rows), truth, rows)
    assert_equal(pickle.loads(pickle.dumps(pictured)).generate([5, 2]), truth, [5, 2])
    assert_equal(pictured.generate([]), truth, slice(0, 0))
    assert len(np.unique(truth.images.reshape(12, -1), axis=0)) == 12


def test_latents_say_what_is_seen(pictured: BasinStream, truth: Any) -> None:
    latents = truth.latents
    assert {name: (values.dtype.name, values.shape[1:]) for name, values in latents.items()} == {
        "attractor": ("int32", (16, 24)), "steps": ("int32", (16, 24)), "depth": ("int32", ()),
        "half_width": ("float64", ()), "centre_x": ("float64", ()), "centre_y": ("float64", ()),
        "edge_share": ("float32", ()), "unresolved_share": ("float32", ()), "ends_in_view": ("int32", ()),
        "model": ("int64", ()),
    }  # fmt: skip
    planes, maps = pictured.planes(range(12)), pictured.maps(range(12))
    for row, plane in enumerate(planes):
        rows = latents["attractor"][row]
        assert (plane.half_width, *plane.centre) == tuple(
            latents[name][row] for name in ("half_width", "centre_x", "centre_y")
        )
        assert latents["ends_in_view"][row] == len(set(rows[rows >= 0].tolist()))
        assert latents["unresolved_share"][row] == pytest.approx((rows < 0).mean(), abs=1e-6)
        cells = [len(set(rows[y : y + 2, x : x + 2].ravel().tolist())) > 1 for y in range(15) for x in range(23)]
        assert latents["edge_share"][row] == pytest.approx(np.mean(cells), abs=1e-6)
        own = pictured.fitted.attractors.model[rows[rows >= 0]]  # type: ignore[union-attr]
        assert (own == latents["model"][row]).all()
    assert np.array_equal(maps.attractor, latents["attractor"]) and np.array_equal(maps.steps, latents["steps"])
    first = {latents["half_width"][row] * 2.0 ** latents["depth"][row] for row in range(12)}
    np.testing.assert_allclose(list(first), 1.5 * 8.0, rtol=1e-12)  # extent times the root of 64 values
    assert np.array_equal(latents["depth"], pictured.depths(range(12))) and len(set(latents["depth"])) > 3


def test_labels_are_the_network(pictured: BasinStream, truth: Any) -> None:
    assert np.array_equal(truth.labels, truth.latents["model"]) and set(truth.labels) == {0, 1}
    assert np.array_equal(pictured.labels(range(12)), truth.labels)
    assert pictured.num_classes == 2 and pictured.class_title(1) == "network 1"
    many = pictured.labels(range(4000))
    assert 0.46 < many.mean() < 0.54


@pytest.mark.parametrize("kind", ["sources", "attractors", "middle"])
def test_every_zoom_has_a_boundary(kind: str) -> None:
    stream = basins(quadrants(), plane=kind, min_depth=1, max_depth=30)
    batch = stream.generate(range(40))
    assert (batch.latents["ends_in_view"] > 1).all() and (batch.latents["edge_share"] > 0.0).all()
    guard = [plane.narrowest(16, 24) for plane in stream.planes(range(40))]
    assert (batch.latents["half_width"] >= guard).all() and 10 < batch.latents["depth"].max() < 25


def test_dust_has_a_boundary_at_every_depth() -> None:
    """In its fixed share of fifths, there are ends within ends: more than a single line at any depth."""
    batch = basins(dust(), plane="sources", extent=0.7, min_depth=8, max_depth=8).generate(range(12))
    changes = (np.diff(batch.latents["attractor"], axis=2) != 0).sum(axis=(1, 2)) + (
        np.diff(batch.latents["attractor"], axis=1) != 0
    ).sum(axis=(1, 2))
    assert np.median(changes) > 3 * 16


def test_labels_are_the_largest_basin() -> None:
    for label, of in (("attractor", [0, 1, 2, 3]), ("class", [0, 0, 1, 1])):
        fitted = quadrants()
        sources = fitted.sources
        named = type(sources)(data=sources.data, labels=np.int64([[0, 0, 1, 1]]), titles=("up", "down"))
        stream = basins(fitted.replace(sources=named), label=label, extent=3.0, max_depth=0)
        batch = stream.generate(range(10))
        for row, rows in enumerate(batch.latents["attractor"]):
            assert batch.labels[row] == of[np.bincount(rows.ravel(), minlength=4).argmax()]
        assert np.array_equal(stream.labels(range(10)), batch.labels) and len(set(batch.labels)) > 1
    assert stream.class_title(1) == "down" and stream.num_classes == 2


def test_pictures_where_nothing_is_resolved_have_the_nearest_label() -> None:
    fitted, asked = quadrants(), {"label": "attractor", "most": 1, "within": 0.0, "max_depth": 0}
    table = fitted.attractors
    assert table is not None
    fitted = fitted.replace(attractors=type(table)(**{**vars(table), "states": 0.9 * table.states}))
    stream = basins(fitted, **asked)
    batch, nearest = stream.generate(range(6)), stream.maps(range(6)).nearest
    lost = batch.latents["unresolved_share"] == 1.0
    assert lost.all() and (batch.latents["steps"] == -1).all() and (batch.latents["ends_in_view"] == 0).all()
    assert (batch.images == NOWHERE).all() and len(set(batch.labels)) > 1
    assert batch.labels.tolist() == [int(np.bincount(rows.ravel()).argmax()) for rows in nearest]
    shown = basins(fitted, unresolved="nearest", **asked)
    colours = palette(4)[1:, shades_of_steps(1)[0]]
    assert {tuple(pixel) for pixel in shown.generate([0]).images[0].reshape(3, -1).T.tolist()} <= {
        tuple(colour) for colour in colours.tolist()
    }


def test_a_network_of_one_basin_gives_whole_planes() -> None:
    fitted = quadrants()
    flat = {name: np.zeros_like(array) for name, array in fitted.tensors.items()}
    flat["layers.1.bias"] = np.float32([[0.5, 0.5]])
    batch = basins(fitted.replace(tensors=flat), min_depth=2, max_depth=9).generate(range(4))
    assert (batch.latents["depth"] == 0).all() and (batch.latents["attractor"] == 0).all()
    assert (batch.latents["steps"] == 2).all() and (batch.latents["edge_share"] == 0).all()


def test_seeds_and_splits_have_other_pictures() -> None:
    shown = [
        basins(stairs(), seed=seed, split=split).generate(range(6)).images
        for seed, split in ((0, "train"), (1, "train"), (0, "test"))
    ]
    for first, second in itertools.combinations(shown, 2):
        assert not any(np.array_equal(a, b) for a in first for b in second)
    digests = {basins(stairs(), seed=seed, split=split).digest() for seed in (0, 1) for split in ("train", "test")}
    assert len(digests) == 4


def test_size_and_supersampling_leave_the_place_alone() -> None:
    small, large = basins(stairs()), basins(stairs(), height=64, width=96, supersample=3)
    for name in ("centre_x", "centre_y", "half_width", "model", "depth"):
        assert np.array_equal(*(stream.generate(range(5)).latents[name] for stream in (small, large)))
    plain, finer = basins(stairs()).generate(range(5)), basins(stairs(), supersample=3).generate(range(5))
    assert np.array_equal(plain.latents["attractor"], finer.latents["attractor"])
    assert (plain.images != finer.images).any()


def test_cost_grows_with_the_network_and_its_samples(pictures: Kaleidoscope) -> None:
    cheap, finer = basins(pictures, height=64, width=64), basins(pictures, height=64, width=64, supersample=4)
    weights = sum(array[0].size for array in pictures.tensors.values())
    assert cheap.cost == pytest.approx(20 * weights / 1000, rel=0.1) and finer.cost == pytest.approx(
        cheap.cost * 1.96, rel=0.05
    )
    assert basins(quadrants()).cost == 1


def test_pixels_take_any_form() -> None:
    spec = BasinSpec(**SMALL)
    settings: dict[str, Any] = {"fitted": stairs(), "device": "cpu"}
    plain = BasinStream(spec, **settings)[3]
    last = BasinStream(spec, dtype="float32", channels_last=True, mean=0.5, std=0.5, **settings)[3]
    expected = (plain.image.transpose(1, 2, 0) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(last.image, expected, atol=1e-6)


def test_specs_are_text_and_the_preset_is_one() -> None:
    spec = BasinSpec(model="some.safetensors", plane="attractors", label="attractor", unresolved="nearest", extent=2)
    assert BasinSpec.from_json(spec.to_json()) == spec == spec_from_json(spec.to_json())
    assert isinstance(PRESETS["kaleidoscope-basins"], BasinSpec)
    moved, other = (spec.replace(model=name, fingerprint="0" * 32) for name in ("a.safetensors", "b.safetensors"))
    assert moved.digest() == other.digest() != moved.replace(extent=2.5).digest()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"height": 4}, "height"),
        ({"plane": "corner"}, "plane must be one of"),
        ({"extent": -1.0}, "extent"),
        ({"min_depth": 3, "max_depth": 2}, "max_depth"),
        ({"max_depth": 41}, "max_depth"),
        ({"supersample": 0}, "supersample"),
        ({"label": "colour"}, "label must be one of"),
        ({"ends": "both"}, "ends must be one of"),
        ({"within": True}, "within"),
        ({"unresolved": "black"}, "unresolved must be one of"),
        ({"start": "pink"}, "choose a plane"),
        ({"precision": "bfloat16"}, "float32"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        BasinSpec(**change)


def test_networks_without_planes_or_attractors_are_refused(two_points: Kaleidoscope) -> None:
    with pytest.raises(InvalidValueError, match="two values"):
        basins(two_points)
    with pytest.raises(InvalidValueError, match="find_attractors"):
        basins(quadrants().replace(attractors=None))
    assert basins(quadrants().replace(attractors=None), ends="sources").num_classes == 4
    with pytest.raises(InvalidValueError, match="BasinSpec"):
        BasinStream(PRESETS["kaleidoscope-10"], fitted=quadrants())


def test_loaders_go_on_where_they_stood(tmp_path: Path) -> None:
    path = stairs().save(tmp_path / "stairs.safetensors")
    stream = open_stream(BasinSpec(model=str(path), **SMALL), device="cpu", label="model")
    truth = stream.generate(range(12))

    def matches(batch: Any) -> list[int]:
        rows = batch["index"].tolist()
        for name, values in {"images": batch["images"], "labels": batch["labels"], **batch["latents"]}.items():
            known = getattr(truth, name) if name in ("images", "labels") else truth.latents[name]
            np.testing.assert_array_equal(values.numpy(), known[rows], err_msg=name)
        return list(rows)

    loader = Loader(stream, batch_size=2, length=12, fields="dict")
    read = [row for batch in itertools.islice(loader, 2) for row in matches(batch)]
    resumed = Loader(stream, batch_size=4, length=12, fields="dict")
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert read + [row for batch in resumed for row in matches(batch)] == list(range(12))
    halves = [
        [row for batch in DataLoader(data, batch_size=None) for row in matches(batch)]
        for data in (StreamDataset(stream, 3, length=12, shard=Shard(rank, 2), fields="dict") for rank in range(2))
    ]
    assert sorted(itertools.chain(*halves)) == list(range(12))


def test_hugging_face_goes_on_where_it_stood(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from fractal_streams.integrations.huggingface import load_dataset

    path = stairs().save(tmp_path / "stairs.safetensors")
    stream = open_stream(BasinSpec(model=str(path), **SMALL), device="cpu")

    def opened() -> Any:
        return load_dataset(stream, length=10, latents=True)

    data = opened()
    first = list(itertools.islice(data, 4))
    again = opened()
    again.load_state_dict(json.loads(json.dumps(data.state_dict())))
    found = [*first, *again]
    truth = stream.generate(range(10))
    assert [row["label"] for row in found] == truth.labels.tolist()
    for row, item in enumerate(found):
        assert np.array_equal(np.asarray(item["image"]), truth.images[row].transpose(1, 2, 0))
        assert np.array_equal(item["attractor"], truth.latents["attractor"][row])
