"""What networks are fitted to: from points, arrays, streams, folders and torchvision's files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from fractal_streams import open_stream
from fractal_streams.errors import AddressError, InvalidValueError, UnknownNameError
from fractal_streams.kaleidoscope import sources as told
from fractal_streams.luma import luma
from fractal_streams.stream import Stream


@pytest.fixture(scope="module")
def stream() -> Stream:
    return open_stream("fractal-10", seed=3, split="validation", height=8, width=12, device="cpu")


def test_points_are_classes_of_their_own_unless_labels_say_otherwise() -> None:
    line = told.points([0.2, 0.8])
    assert line.data.dtype == np.float32 and line.data.shape == (1, 2, 1)
    assert line.labels.tolist() == [[0, 1]] and line.titles == ("point 0", "point 1")
    plane = told.points([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], labels=[0, 1, 0], titles=("a", "b"))
    assert plane.labels.tolist() == [[0, 1, 0]] and plane.titles == ("a", "b")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: told.points(np.zeros((2, 2, 2))), r"\(N, D\) finite numbers.*\(2, 2, 2\)"),
        (lambda: told.points([0.1, np.nan]), "finite"),
        (lambda: told.points([0.1, 0.2], labels=[0, -1]), "labels must be 2 whole numbers"),
        (lambda: told.points([0.1, 0.2], labels=[0, 5], titles=("a", "b")), "0 to 1"),
        (lambda: told.of_arrays(np.zeros((2, 8, 8, 3), np.uint8)), "move the channels to the front"),
        (lambda: told.of_arrays(np.zeros((2, 8, 8), np.float32)), "uint8, got float32"),
        (lambda: told.stacked([]), "at least one, got 0"),
        (lambda: told.stacked([told.points([0.1]), told.points([0.1, 0.2])]), "one number, shape and dtype"),
        (lambda: told.again({"kind": "points"}), "only pictures of a stream"),
        (lambda: told.points(["a", "b"]), "finite numbers, got"),
        (lambda: told.points([[1.0], [1.0, 2.0]]), "numbers"),
        (lambda: told.points([1e300]), "finite"),
        (lambda: told.points(None), "finite numbers"),
        (lambda: told.points([0.1, 0.2], labels=["a", "b"]), "labels must be 2 whole numbers"),
        (lambda: told.points([0.1, 0.2], labels=[0, 0.5]), "labels must be 2 whole numbers"),
        (lambda: told.points([0.1, 0.2], labels=[0, np.nan]), "labels must be 2 whole numbers"),
        (lambda: told.points([0.1], labels=[2**40]), "labels without titles must be below"),
        (lambda: told.points([0.1], titles=5), "titles must be one name or a list of names, got 5"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match=words):
        make()


def test_pictures_of_a_stream_are_its_own_and_are_made_again(stream: Stream) -> None:
    indices = [7, 3, 2**40, 0]
    found, truth = told.of_stream(stream, indices), stream.generate(indices)
    np.testing.assert_array_equal(found.data[0], truth.images)
    np.testing.assert_array_equal(found.labels[0], truth.labels)
    assert found.titles == tuple(f"class {number}" for number in range(10))
    origin = json.loads(json.dumps(found.origin))
    assert origin["indices"] == indices and origin["stream"]["digest"] == stream.digest()
    again = told.again(origin)
    assert (again.data == found.data).all() and (again.labels == found.labels).all() and again.origin == found.origin


def test_grey_is_luma_of_the_coloured(stream: Stream) -> None:
    grey, colour = (told.of_stream(stream, range(6), grey=grey).data[0] for grey in (True, False))
    np.testing.assert_array_equal(grey[:, 0], luma(np.moveaxis(colour, 1, -1)))
    assert told.again(told.of_stream(stream, range(6), grey=True).origin).data.shape == (1, 6, 1, 8, 12)


def test_streams_of_many_classes_name_those_that_occur() -> None:
    many = open_stream("fractal-10", num_classes=10**6, height=8, width=8, device="cpu")
    found, truth = told.of_stream(many, range(5)), many.labels(range(5))
    assert [found.titles[label] for label in found.labels[0]] == [f"class {label}" for label in truth]


def test_streams_of_clips_and_floats_are_refused() -> None:
    for refused in (
        open_stream("fractal-10", dtype="float32", height=8, width=8, device="cpu"),
        open_stream("fractal-video", height=8, width=8, frames=2, device="cpu"),
    ):
        with pytest.raises(InvalidValueError, match="stills of uint8 levels"):
            told.of_stream(refused, range(2))


def test_a_stack_keeps_each_networks_own(stream: Stream) -> None:
    parts = [told.of_stream(stream, range(first, first + 3)) for first in (0, 3, 6)]
    bank = told.stacked(parts)
    assert bank.data.shape == (3, 3, 3, 8, 12)
    for model, part in enumerate(parts):
        data, labels = bank.of_model(model)
        assert (data == part.data[0]).all() and (labels == part.labels[0]).all()
    assert (told.again(bank.origin).data == bank.data).all()
    mixed = told.stacked([told.points([0.1, 0.2], titles=("b", "a")), told.points([0.3, 0.4], titles=("a", "c"))])
    assert [[mixed.titles[label] for label in row] for row in mixed.labels] == [["b", "a"], ["a", "c"]]


def test_least_distance_and_near_duplicates_against_all_pairs() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (300, 5, 5), np.uint8)  # more than one block
    drawn[299] = drawn[4]
    drawn[299, 0, 0] ^= 1
    found = told.of_arrays(drawn)
    flat = drawn.reshape(300, -1) / 255.0
    pairs = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(axis=2))
    pairs[np.tril_indices(300)] = np.inf
    assert told.least_distance(found) == pytest.approx(pairs.min(), abs=1e-7)
    assert told.near_duplicates(found)[0][:3] == (0, 4, 299)
    near = told.near_duplicates(found, 0.3)
    assert [pair[3] for pair in near] == pytest.approx(np.sort(pairs[pairs < 0.3]), abs=1e-7)
    assert told.least_distance(told.points([-0.5, 0.5]), span=2.0) == 0.5
    assert told.least_distance(told.points([0.5])) == np.inf


def test_distinct_indices_are_the_first_that_differ(stream: Stream) -> None:
    least = 0.35
    chosen = told.distinct_indices(stream, 30, start=5, least=least)
    kept: list[int] = []
    pictures = stream.generate(range(5, 400)).images.reshape(395, -1) / 255.0
    for index in range(5, 400):
        if all(np.sqrt(((pictures[index - 5] - pictures[other - 5]) ** 2).mean()) >= least for other in kept):
            kept.append(index)
    assert chosen.tolist() == kept[:30] and kept[29] - 5 > 30, "nothing was left out"
    assert told.least_distance(told.of_stream(stream, chosen)) >= least
    with pytest.raises(InvalidValueError, match="of 3 pictures from index 0 on differ by 0.9"):
        told.distinct_indices(stream, 3, least=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 10 x 14 in three classes, each of one level."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        place = root / ("cat", "dog", "newt")[number % 3]
        place.mkdir(exist_ok=True)
        image.fromarray(np.full((10, 14, 3), 20 * number, np.uint8)).save(place / f"{number}.png")
    return root


def test_pictures_of_a_folder_by_class(folder: Path, tmp_path: Path) -> None:
    found = told.of_pictures(folder, height=5, cache=tmp_path)
    assert found.data.shape == (1, 12, 3, 5, 5) and found.titles == ("cat", "dog", "newt")
    assert sorted(found.data[0, :, 0, 0, 0].tolist()) == [20 * number for number in range(12)]
    for level, label in zip(found.data[0, :, 0, 0, 0].tolist(), found.labels[0], strict=True):
        assert level // 20 % 3 == label
    some = told.of_pictures(folder, height=5, width=7, grey=True, classes=("newt", "cat"), count=7, cache=tmp_path)
    assert some.data.shape == (1, 7, 1, 5, 7) and some.titles == ("newt", "cat")
    assert all(
        (2, 0)[label] == level // 20 % 3 for level, label in zip(some.data[0, :, 0, 0, 0], some.labels[0], strict=True)
    )
    other = told.of_pictures(folder, height=5, seed=1, cache=tmp_path)
    assert (other.data != found.data).any()
    with pytest.raises(UnknownNameError, match="did you mean 'dog'"):
        told.of_pictures(folder, height=5, classes=("dogs",), cache=tmp_path)


def test_mnist_as_torchvision_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw, drawn = tmp_path / "MNIST/raw", np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *drawn.shape) + drawn.tobytes())
        labels = np.arange(40, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 40) + labels.tobytes())
    found = told.of_torchvision("mnist", tmp_path, count=60_000)
    items = found.origin["items"]
    assert sorted(items) == list(range(40)) != items
    np.testing.assert_array_equal(found.data[0, :, 0], drawn[items])
    np.testing.assert_array_equal(found.labels[0], np.array(items) % 10)
    some = told.of_torchvision("mnist", tmp_path, count=5, classes=("7 - seven",), height=14)
    assert some.data.shape == (1, 4, 1, 14, 14) and some.titles == ("7 - seven",)
    assert sorted(some.origin["items"]) == [7, 17, 27, 37]
    mean = drawn[some.origin["items"]].reshape(4, 14, 2, 14, 2).mean(axis=(2, 4))
    assert np.abs(some.data[0, :, 0] - mean).max() <= 0.5


def test_datasets_that_are_not_there_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(AddressError, match=r"cifar10 is not in .*CIFAR10.*download=True"):
        told.of_torchvision("cifar10", tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        told.of_torchvision("mnst", tmp_path)


def test_sources_of_a_bank_that_are_split_are_made_again_as_they_were_split(stream: Stream) -> None:
    spec = stream.describe()["spec"]
    assert spec["kind"] == "stills"
    both = told.stacked([told.of_stream(stream, [4, 1, 6]), told.of_stream(stream, [9, 0, 2])])
    for part, indices in zip(told.split(both, 2), ([[4, 1], [9, 0]], [[6], [2]]), strict=True):
        assert [each["indices"] for each in part.origin["parts"]] == indices
        np.testing.assert_array_equal(told.again(part.origin).data, part.data)


@pytest.mark.parametrize("edges, words", [({"height": 0}, "height must be"), ({"width": -3}, "width must be")])
def test_edges_of_pictures_are_checked(edges: dict[str, int], words: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(InvalidValueError, match=words):
        told.of_torchvision("mnist", tmp_path, height=edges.get("height"), width=edges.get("width"))
