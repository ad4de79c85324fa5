"""Streams of points and tiles: pure in the index, true to the trainer, drawn by the laws that their specs state."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import PointSpec, PointStream, TileSpec, TileStream, open_stream
from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.descent import SCAN
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.outcome import Readout
from fractal_streams.trainability.picture import SPECTRAL, restretch
from fractal_streams.trainability.point_stream import shades
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.straddling import straddling
from fractal_streams.trainability.window import Window

TANH = Experiment(width=8, dataset_mode="single_example", steps=30)
IDENTITY = TANH.replace(nonlinearity="identity")
POINTS = PointSpec(experiment=TANH, distance=1e-3, halvings=4, losses=3)
TILES = TileSpec(experiments=(TANH, IDENTITY), height=16, width=20, min_depth=1, max_depth=3)
CONVERGED = Window.of_exponents(x=(-3, -2), y=(-3, -2))
INDEX = st.integers(0, 2**63 - 1)


def points(spec: PointSpec = POINTS, **given: Any) -> PointStream:
    return PointStream(spec, trainer=ReferenceTrainer(), **given)


def tiles(spec: TileSpec = TILES, **given: Any) -> TileStream:
    return TileStream(spec, trainer=ReferenceTrainer(), **given)


STREAMS = {"points": points(), "tiles": tiles()}
per_stream = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


def columns(batch: Any) -> dict[str, Any]:
    return {"index": batch.index, "images": batch.images, "labels": batch.labels, **batch.latents}


def assert_equal(found: Any, expected: Any, rows: Any = slice(None)) -> None:
    for name, values in columns(expected).items():
        np.testing.assert_array_equal(columns(found)[name], values[rows], err_msg=name)


# --- both -------------------------------------------------------------------------------------------------------------


@per_stream
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_sample_depends_on_its_index_alone(stream: Any, data: st.DataObject) -> None:
    index = data.draw(st.lists(INDEX, min_size=2, max_size=4))
    order = data.draw(st.permutations(range(len(index))))
    batch = stream.generate(index)
    assert_equal(stream.generate([index[place] for place in order]), batch, list(order))
    fresh = type(stream)(stream.spec, trainer=ReferenceTrainer())  # whose scans nobody made before
    assert_equal(fresh.generate(index[:1]), batch, slice(0, 1))


@per_stream
def test_splits_and_seeds_have_samples_of_their_own(stream: Any) -> None:
    kind, name = type(stream), "lr0" if isinstance(stream, PointStream) else "centre_x"
    others = [
        kind(stream.spec, trainer=ReferenceTrainer(), **given)
        for given in ({}, {"split": "validation"}, {"split": "test"}, {"seed": 1}, {"seed": 2**64 - 1})
    ]
    assert len({other.digest() for other in others}) == 5
    values = [other.generate(range(6)).latents[name].tolist() for other in others]
    assert len({value for row in values for value in row}) == 30


@per_stream
def test_no_indices_train_nothing_and_keep_every_shape(stream: Any) -> None:
    empty, one = columns(stream.generate(range(0))), columns(stream.generate(range(1)))
    assert {name: (values.dtype, values.shape[1:]) for name, values in empty.items()} == {
        name: (values.dtype, values.shape[1:]) for name, values in one.items()
    }
    assert all(len(values) == 0 for values in empty.values())


@per_stream
def test_a_copy_in_another_process_gives_the_same(stream: Any) -> None:
    assert_equal(pickle.loads(pickle.dumps(stream)).generate(range(2)), stream.generate(range(2)))


@per_stream
def test_a_spec_reads_back_and_its_digest_names_it(stream: Any) -> None:
    spec = stream.spec
    changed = spec.replace(version=2, window=Window.of_exponents(x=(-1, 4), y=(0, 3.5)))
    for each in (spec, changed):
        again = type(spec).from_json(each.to_json())
        assert again == each and again.digest() == each.digest() and hash(again) == hash(each)
    assert changed.digest() != spec.digest()
    with pytest.raises(VersionError):
        type(spec).from_json(spec.to_json().replace('"spec_version": 1', '"spec_version": 2'))
    with pytest.raises(InvalidValueError, match="kind"):
        type(spec).from_json(spec.to_json().replace(f'"kind": "{spec.kind}"', '"kind": "stills"'))


@per_stream
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pixels_have_the_form_asked_for(stream: Any, dtype: Any, channels_last: bool) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    levels = stream.generate(range(2)).images
    found = type(stream)(
        stream.spec, trainer=ReferenceTrainer(), dtype=dtype, channels_last=channels_last, mean=mean, std=std
    ).generate(range(2))  # fmt: skip
    floats = found.images
    assert floats.dtype == (np.uint16 if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        floats = (floats.astype(np.uint32) << 16).view(np.float32)
    floats = np.moveaxis(floats, -1, 1) if channels_last else floats
    expected = (levels / 255.0 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    places = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert (np.abs(floats.astype(np.float64) - expected) <= places * np.abs(expected) + 1e-7).all()


@per_stream
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
def test_where_arrays_are_tensors_the_samples_are_the_same(stream: Any, dtype: Any) -> None:
    """The way of a GPU's samples, with tensors of the CPU in place of its own."""
    torch = pytest.importorskip("torch")

    class Tensors:
        def upload(self, array: Any) -> Any:
            assert array.flags.c_contiguous
            return torch.from_numpy(array)

    here = type(stream)(stream.spec, trainer=ReferenceTrainer(), dtype=dtype)
    there = type(stream)(stream.spec, trainer=ReferenceTrainer(), dtype=dtype)
    there.device, there.backend = "cuda:0", Tensors()
    expected, found = here.generate(range(2)).torch(), there.generate(range(2))
    for name, values in columns(found).items():
        other = columns(expected)[name]
        assert values.dtype == other.dtype and torch.equal(values.nan_to_num(), other.nan_to_num()), name


@pytest.mark.parametrize(
    "kind, wrong",
    [
        (PointSpec, {"experiment": "tanh"}), (PointSpec, {"boundary_share": 1.5}), (PointSpec, {"distance": 0.0}),
        (PointSpec, {"distance": 1.0}), (PointSpec, {"distance": 1e-6, "halvings": 21}), (PointSpec, {"losses": 31}),
        (PointSpec, {"distance": 5e-5, "precision": "float32"}), (PointSpec, {"height": 0}),
        (PointSpec, {"precision": "tf32"}), (PointSpec, {"mode": "reduced", "experiment": Experiment(width=8)}),
        (PointSpec, {"window": Window(centre=(1, 0.5), size=(1, 0.5), linear=(False, True))}),
        (TileSpec, {"experiments": ()}), (TileSpec, {"experiments": 5}), (TileSpec, {"experiments": [{}]}),
        (TileSpec, {"experiments": (TANH, TANH)}), (TileSpec, {"max_depth": 44}),
        (TileSpec, {"min_depth": 5, "max_depth": 4}), (TileSpec, {"height": 7}), (TileSpec, {"window": (0, 1)}),
        (TileSpec, {"max_depth": 11, "precision": "float32"}), (TileSpec, {"version": 0}),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"experiment": TANH} if kind is PointSpec else {"experiments": (TANH,)}
    kind(**good)
    with pytest.raises(InvalidValueError):
        kind(**{**good, **wrong})


def test_a_trainer_of_another_device_or_precision_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="float32"):
        points(POINTS.replace(precision="float32"))
    with pytest.raises(InvalidValueError, match="cuda"):
        points(device="cuda")
    with pytest.raises(InvalidValueError, match="TileSpec"):
        tiles(POINTS)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="open_trainer"):
        PointStream(POINTS, trainer="cpu")
    with pytest.raises(InvalidValueError, match="channels"):
        points(POINTS.replace(height=3), channels_last=True)


# --- points -----------------------------------------------------------------------------------------------------------


def test_a_point_is_the_run_at_its_hyperparameters() -> None:
    batch = points().generate(range(40))
    values = np.stack([batch.latents["lr0"], batch.latents["lr1"]], axis=1)
    outcome = ReferenceTrainer().train(TANH, values, Readout(losses=3))
    np.testing.assert_array_equal(batch.labels, np.where(outcome.measure < 0, 0, 1))
    for name in ("measure", "final_loss", "diverged_at"):
        np.testing.assert_array_equal(batch.latents[name], getattr(outcome, name))
    np.testing.assert_array_equal(batch.latents["losses"], outcome.losses.astype(np.float32))  # type: ignore[union-attr]
    assert batch.latents["losses"].shape == (40, 3) and (batch.latents["losses"][:, 0] == 1.0).all()
    assert [points().class_title(label) for label in (0, 1)] == ["converged", "diverged"]


def test_pairs_straddle_the_boundary_at_distances_that_halve() -> None:
    batch = points(POINTS.replace(boundary_share=1.0)).generate(range(60))
    pairs = {name: values.reshape(30, 2) for name, values in batch.latents.items() if values.ndim == 1}
    labels, distance = batch.labels.reshape(30, 2), pairs["distance"]
    assert (labels.sum(axis=1) == 1).all() and 5 < labels[:, 0].sum() < 25
    assert (distance[:, 0] == distance[:, 1]).all()
    assert set(distance[:, 0].tolist()) == {1e-3 * 2.0**-h for h in range(5)}
    apart = np.hypot(*(np.log10(pairs[name][:, 1] / pairs[name][:, 0]) for name in ("lr0", "lr1")))
    np.testing.assert_allclose(apart, distance[:, 0], rtol=1e-9)
    assert (pairs["weight"] == 0).all()
    assert len(np.unique(pairs["lr0"])) == 60


def test_pairs_of_the_preset_are_pinned() -> None:
    """To a part in a million, as the golden latents: change only with a version bump."""
    batch = open_stream("trainability-points", seed=2024, device="cpu", boundary_share=1.0).generate(range(8))
    assert batch.labels.tolist() == [1, 0, 1, 0, 0, 1, 1, 0]
    lr0 = [0.0053692883, 0.00536907653, 1.94809421, 1.9478521, 79761.5179, 79806.1785, 1897.04433, 1931.62724]
    lr1 = [38.4141402, 38.4056372, 37.5072775, 37.5002495, 15.9445089, 16.0012761, 16.5937451, 15.7111315]
    np.testing.assert_allclose(batch.latents["lr0"], lr0, rtol=1e-6)
    np.testing.assert_allclose(batch.latents["lr1"], lr1, rtol=1e-6)
    np.testing.assert_array_equal(0.1 / batch.latents["distance"], np.repeat([1024.0, 1024.0, 64.0, 4.0], 2))


def test_deep_pairs_too() -> None:
    batch = points(POINTS.replace(boundary_share=1.0, distance=1e-11, halvings=0)).generate(range(8))
    assert (batch.labels.reshape(4, 2).sum(axis=1) == 1).all()
    ratio = [batch.latents[name].reshape(4, 2) for name in ("lr0", "lr1")]
    apart = np.hypot(*((each[:, 1] - each[:, 0]) / each[:, 0] / np.log(10.0) for each in ratio))
    np.testing.assert_allclose(apart, 1e-11, rtol=1e-3)


def test_a_distance_on_a_linear_axis_is_in_its_units() -> None:
    heavy = Experiment(
        width=8, dataset_mode="single_example", steps=30, optimiser="momentum", axes=("lr", "momentum")
    )  # fmt: skip
    batch = points(PointSpec(experiment=heavy, boundary_share=1.0, distance=1e-4)).generate(range(8))
    rate, share = (batch.latents[name].reshape(4, 2) for name in ("lr", "momentum"))
    assert (batch.labels.reshape(4, 2).sum(axis=1) == 1).all() and share.min() >= 0 and share.max() < 1
    apart = np.hypot(np.log10(rate[:, 1] / rate[:, 0]), share[:, 1] - share[:, 0])
    np.testing.assert_allclose(apart, 1e-4, rtol=1e-9)


def test_a_window_without_a_boundary_gives_even_points() -> None:
    batch = points(POINTS.replace(window=CONVERGED, boundary_share=1.0)).generate(range(10))
    assert np.isnan(batch.latents["distance"]).all() and (batch.labels == 0).all()
    assert (batch.latents["weight"] == 0).all()
    even = points(POINTS.replace(window=CONVERGED, boundary_share=0.0)).generate(range(10))
    np.testing.assert_array_equal(batch.latents["lr0"], even.latents["lr0"])


def test_even_points_are_even_in_decades() -> None:
    window = Window.of_exponents(x=(-1, 0), y=(-3, -1))
    latents = points(POINTS.replace(window=window, boundary_share=0.0, losses=0)).generate(range(3000)).latents
    for name, low, width in (("lr0", -1.0, 1.0), ("lr1", -3.0, 2.0)):
        place = (np.log10(latents[name]) - low) / width
        assert place.min() >= 0.0 and place.max() <= 1.0
        counts = np.histogram(place, 10, (0.0, 1.0))[0]
        assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-squared of 9 degrees, 0.1 %
    assert abs(np.corrcoef(np.log10(latents["lr0"]), np.log10(latents["lr1"]))[0, 1]) < 0.06
    assert (latents["weight"] == 1.0).all()


def test_weighted_means_are_means_over_the_window() -> None:
    """The share of diverged runs, against a grid of 64 x 64; the mean without weights is far from it."""
    window = Window.of_exponents(x=(-3, 1), y=(-3, 2))
    grid = ReferenceTrainer().train(TANH, window.grid(64).points())
    truth = (~grid.converged).mean()
    batch = points(POINTS.replace(window=window, losses=0)).generate(range(1600))
    weight = batch.latents["weight"].astype(np.float64)
    assert set(weight.tolist()) == {0.0, 2.0}
    error = np.std(weight * batch.labels) / np.sqrt(1600)
    assert abs((weight * batch.labels).mean() - truth) < 4 * error
    assert abs(batch.labels.mean() - truth) > 6 * error
    assert abs(weight.mean() - 1.0) < 4 * np.sqrt(2 / 1600)  # pairs are drawn as wholes


def test_a_points_colour_is_of_its_measure_alone() -> None:
    batch = points(POINTS.replace(height=2, width=3)).generate(range(20))
    assert batch.images.shape == (20, 3, 2, 3)
    assert (batch.images == batch.images[:, :, :1, :1]).all()
    shade = shades(batch.latents["measure"], TANH.steps)
    slow = np.minimum(np.log(np.abs(batch.latents["measure"])) / np.log(30), 1.0)
    np.testing.assert_allclose(np.abs(shade), 0.25 + 0.75 * slow, atol=1e-12)
    assert ((shade > 0) == (batch.labels == 0)).all()
    np.testing.assert_array_equal(batch.images[:, :, 0, 0], SPECTRAL[((shade + 1) * 128).astype(int).clip(0, 255)])


def test_straddling_finds_a_line_and_gives_up_without_one() -> None:
    window = Window.of_exponents(x=(-3, 3), y=(-3, 3))
    pairs, asked = np.arange(50), []

    def right(places: Any) -> Any:
        asked.append(len(places))
        return places[:, 0] > 0.7

    def key_of(name: str, attempt: int) -> tuple[int, int]:
        return len(name), attempt

    ends, found = straddling(window, pairs, np.full(50, 2.0**-20), key_of, right)
    assert found.all()
    sides = ends[:, :, 0] > 0.7
    assert (sides[:, 0] != sides[:, 1]).all()
    np.testing.assert_allclose(np.hypot(*(ends[:, 1] - ends[:, 0]).T), 2.0**-20, rtol=1e-9)
    assert np.abs(ends).max() <= 3.0 and ends[:, 0, 1].std() > 0.5
    assert asked[0] == 16 * 50 and len(asked) < 16 + 24
    assert not straddling(window, pairs, np.full(50, 0.01), key_of, lambda places: places[:, 0] > 9)[1].any()


# --- tiles ------------------------------------------------------------------------------------------------------------


def window_of(latents: Any, row: int) -> Window:
    told = {name: float(latents[name][row]) for name in ("centre_x", "centre_y", "size_x", "size_y")}
    return Window(centre=(told["centre_x"], told["centre_y"]), size=(told["size_x"], told["size_y"]))


def test_a_tile_is_its_window_trained() -> None:
    stream = tiles()
    batch = stream.generate(range(6))
    assert {0, 1} == set(batch.labels.tolist()) and len(set(batch.latents["depth"].tolist())) > 1
    for row in range(6):
        window, experiment = window_of(batch.latents, row), TILES.experiments[batch.labels[row]]
        assert window == stream.windows([row])[0]
        assert window.size == (9.0 * 2.0 ** -batch.latents["depth"][row],) * 2
        measure = ReferenceTrainer().train(experiment, window.grid(16, 20).points()).measure.reshape(16, 20)
        np.testing.assert_array_equal(batch.latents["measure"][row], measure)
        np.testing.assert_array_equal(batch.latents["labels_map"][row], np.where(measure < 0, 0, 1))
        np.testing.assert_array_equal(batch.latents["edges"][row], edges(measure))
        corners = np.stack([measure[:-1, :-1], measure[:-1, 1:], measure[1:, :-1], measure[1:, 1:]])
        changes = np.sign(corners).max(axis=0) * np.sign(corners).min(axis=0) < 0
        np.testing.assert_array_equal(batch.latents["edges"][row], changes)
        assert batch.latents["edge_share"][row] == np.float32(changes.mean()) > 0
        assert batch.latents["converged_share"][row] == pytest.approx((measure < 0).mean(), abs=1e-6)


def test_the_picture_stands_upright() -> None:
    batch = tiles().generate(range(3))
    for row in range(3):
        shown = restretch(batch.latents["measure"][row])[::-1]
        levels = SPECTRAL[((shown + 1) * 128).astype(int).clip(0, 255)]
        np.testing.assert_array_equal(batch.images[row].transpose(1, 2, 0), levels)
    flipped = batch.latents["measure"][:, ::-1]
    assert (flipped[:, 0] != batch.latents["measure"][:, 0]).any()


def test_classes_and_windows_of_tiles_are_drawn_from_parameters() -> None:
    stream = tiles()
    labels = stream.labels(range(4000))
    assert abs(labels.mean() - 0.5) < 0.04
    depths = stream.depths(range(4000))
    assert np.bincount(depths, minlength=4)[1:].min() > 1200 and depths.min() == 1 and depths.max() == 3
    assert [stream.class_title(label) for label in (0, 1)] == ["tanh", "identity"]
    titles = TileSpec(experiments=(TANH, TANH.replace(width=16), IDENTITY)).class_titles
    assert titles == ("tanh, width 8", "tanh, width 16", "identity, width 8")
    near = [TANH.replace(hyperparameters={"scale": scale}) for scale in (2.0, 2.0000001)]
    assert TileSpec(experiments=near).class_titles == ("hyperparameters scale=2", "hyperparameters scale=2.0000001")


def test_another_resolution_moves_no_window_and_deeper_walks_go_on() -> None:
    stream, wide = tiles(), tiles(TILES.replace(height=8, width=8))
    assert stream.windows(range(5)) == wide.windows(range(5))
    fixed = [tiles(TILES.replace(min_depth=depth, max_depth=depth)).windows(range(4)) for depth in (1, 3)]
    for shallow, deep in zip(*fixed, strict=True):
        for near, far, size in zip(shallow.centre, deep.centre, shallow.size, strict=True):
            # the window of the longer walk was the shorter one's, but for a shift within a cell
            assert abs(np.log10(near / far)) < size * (0.5 + 1 / (SCAN - 1))


def test_walks_stay_inside_and_no_boundary_leads_to_the_middle() -> None:
    start = Window.of_exponents(x=(-3, 6), y=(-3, 6))
    for window in tiles(TILES.replace(min_depth=3)).windows(range(12)):
        for low, high in window.ends():
            assert 10**-3.001 < low < high < 10**6.001
    blank = tiles(TILES.replace(window=CONVERGED, min_depth=2, max_depth=2)).windows(range(2))
    for window in blank:
        np.testing.assert_allclose(window.centre, CONVERGED.centre, rtol=1e-12)
        assert window.size == (0.25, 0.25)
    zero = tiles(TILES.replace(min_depth=0, max_depth=0)).generate(range(2))
    assert window_of(zero.latents, 0) == start


def test_scans_are_shared_between_walks() -> None:
    class Counting(ReferenceTrainer):
        trained = 0

        def train(self, experiment: Any, points: Any, readout: Any = None) -> Any:
            self.trained += len(points)
            return super().train(experiment, points, readout)

    trainer = Counting()
    spec = TileSpec(experiments=TANH, height=8, width=8, min_depth=1, max_depth=1)
    stream = TileStream(spec, trainer=trainer)
    stream.generate(range(5))
    assert trainer.trained == SCAN**2 + 5 * 64
    stream.generate(range(5, 10))
    assert trainer.trained == SCAN**2 + 10 * 64
