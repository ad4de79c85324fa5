"""Dimensions: counts by hand, shapes of known dimension, the bias of the published estimator, and error bars."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.trainability.boxes import local_slopes, power_sizes, published_sizes
from fractal_streams.trainability.calibration import SHAPES, find_shape
from fractal_streams.trainability.dimension import (
    Dimension,
    box_counts,
    dimensions,
    edges,
    frames_of,
    least_squares_dimension,
    published_dimension,
    save_csv,
    save_plot,
    signs_of,
)  # fmt: skip
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.outcome import Outcome
from fractal_streams.trainability.presets import PUBLISHED
from fractal_streams.trainability.reference import ReferenceTrainer
from fractal_streams.trainability.trainer import open_trainer
from fractal_streams.trainability.uncertainty import trained_uncertainty, uncertainty_exponent
from fractal_streams.trainability.window import Window

CALIBRATED = [shape for shape in SHAPES.values() if shape.published is not None]


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def boxes_by_hand(edge_map: Any, size: int, counting: str) -> int:
    height, width = edge_map.shape
    found = [edge_map[r : r + size, c : c + size] for r in range(0, height, size) for c in range(0, width, size)]
    return sum(bool(box.any()) and not (counting == "some" and box.all()) for box in found)


@pytest.mark.parametrize("counting", ["some", "any"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (23, 40), (40, 23)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_box_counts_are_those_of_a_loop_over_boxes(counting: Any, shape: tuple[int, int], share: float) -> None:
    edge_map = np.random.default_rng(1).random(shape) < share
    sizes = (1, 2, 3, 5, 7, 10, 50)
    assert box_counts(edge_map, sizes, counting=counting).tolist() == [
        boxes_by_hand(edge_map, size, counting) for size in sizes
    ]


def test_edges_are_changes_of_sign_in_two_by_two_blocks() -> None:
    measure = drawn(9, 13)
    measure[4, 5:8] = 0.0
    blocks = np.lib.stride_tricks.sliding_window_view(measure, (2, 2))
    assert (edges(measure) == (blocks.max((2, 3)) * blocks.min((2, 3)) < 0)).all()


def test_edges_survive_infinities_and_numbers_whose_product_is_none() -> None:
    assert edges([[np.inf, -np.inf], [1.0, 1.0]]).all()
    assert edges([[1e300, -1e300], [1e300, 1e300]]).all()
    assert edges([[1e-200, -1e-200], [1e-200, 1e-200]]).all()  # their product is -0.0
    assert not edges([[np.inf, np.inf], [1.0, np.inf]]).any()
    assert not edges([[-np.inf, np.nan], [-1.0, -1.0]]).any()


def test_edges_of_labels_are_those_of_their_measure() -> None:
    measure = drawn(30, 20)
    assert (edges(measure) == edges(measure > 0)).all()
    assert (edges(measure) == edges((measure > 0).astype(np.uint8))).all()


def test_published_sizes_are_ten_powers_rounded_down() -> None:
    """Also where the last power of ten falls a hair short of the side, as at 255."""
    assert published_sizes(4095) == (10, 19, 38, 74, 144, 282, 551, 1075, 2098, 4095)
    assert published_sizes(255) == (10, 14, 20, 29, 42, 60, 86, 124, 177, 254)
    assert published_sizes(2187) == (10, 18, 33, 60, 109, 199, 362, 660, 1201, 2186)
    for side in range(16, 600):
        sizes = published_sizes(side)
        assert sizes[0] == 10 and side - 1 <= sizes[-1] <= side and len(sizes) <= 10
    assert power_sizes(4096) == (2, 4, 8, 16, 32, 64, 128, 256) and power_sizes(64) == (2, 4, 8)


@pytest.mark.slow
def test_the_published_window_of_one_example_has_the_edges_that_another_program_counted() -> None:
    preset = PUBLISHED["single"]
    found = open_trainer("cpu").train(preset.experiment, preset.window.grid(256).points())
    measure = found.measure.reshape(256, 256)
    assert found.converged.mean() == pytest.approx(0.33170, abs=1e-4)
    assert edges(measure).sum() == pytest.approx(5252, abs=3)
    assert published_dimension(measure).value == pytest.approx(1.404, abs=0.005)
    assert uncertainty_exponent(measure).value == pytest.approx(1.45, abs=0.05)


def test_local_slopes_of_a_parabola_are_its_derivative() -> None:
    """ln N = -(ln s)**2: second-order differences are exact between the ends, whatever the spacing."""
    x = np.array([0.0, 0.3, 0.5, 1.1, 1.4])
    slopes = local_slopes(np.exp(x), np.exp(5.0 - x**2))
    assert slopes[1:-1] == pytest.approx(2.0 * x[1:-1], rel=1e-12)
    assert slopes[0] == pytest.approx(0.3) and slopes[-1] == pytest.approx(2.5)
    assert len(local_slopes([1, 2, 4], [4, 0, 0])) == 0


@pytest.mark.parametrize("shape", CALIBRATED, ids=lambda shape: shape.name)
def test_the_published_estimator_has_its_published_bias(shape: Any) -> None:
    found = published_dimension(shape.edge_map(), edge_maps=True, resamples=100)
    assert found.value == pytest.approx(shape.published, abs=0.02)
    assert (found.used, found.empty, len(found.slopes)) == (1, 0, 10)


@pytest.mark.parametrize(
    "name, pixels, tolerance",
    [("line", 512, 0.01), ("circle", 512, 0.02), ("sierpinski_triangle", 512, 1e-12), ("noise", 512, 0.01),
     ("carpet", 2187, 0.04), ("vicsek", 2187, 0.08)],
)  # fmt: skip
def test_least_squares_finds_the_dimension_of_the_ideal_set(name: str, pixels: int, tolerance: float) -> None:
    shape = find_shape(name)
    found = least_squares_dimension(shape.edge_map(pixels), edge_maps=True)
    assert found.value == pytest.approx(shape.dimension, abs=tolerance)
    assert found.frames[0].r_squared > 0.99
    assert found.low <= found.value <= found.high and found.standard_error == found.frames[0].standard_error


def test_calibration_sets_are_what_they_are_called() -> None:
    triangle, carpet, vicsek = (find_shape(name).edge_map for name in ("sierpinski_triangle", "carpet", "vicsek"))
    assert (triangle(256).sum(), carpet(243).sum(), vicsek(243).sum()) == (3**8, 8**5, 5**5)
    labels = find_shape("noise").labels
    assert labels is not None
    assert abs(labels(512).mean() - 0.5) < 5 * 0.5 / 512
    assert find_shape("noise").edge_map(512).mean() == pytest.approx(7 / 8, abs=0.01)
    with pytest.raises(UnknownNameError, match="did you mean 'carpet'"):
        find_shape("carpt")


def frames() -> Iterator[Any]:
    """Two frames without an edge among six with one."""
    labels = find_shape("weierstrass").labels
    assert labels is not None
    for level in range(8):
        yield np.full((129, 129), 2.0) if level in (0, 5) else np.where(np.roll(labels(129), 9 * level, 1), -1.5, 3.0)


def test_the_median_is_over_all_slopes_of_all_frames_and_frames_without_an_edge_are_only_counted() -> None:
    published, fitted = dimensions(frames())
    every, values = [], []
    for frame in frames():
        counts = box_counts(edges(frame), published_sizes(128))
        if counts.any():
            every.append(-np.gradient(np.log(counts), np.log(published_sizes(128))))
            held = box_counts(edges(frame), power_sizes(129), counting="any")
            values.append(-np.polyfit(np.log(power_sizes(129)), np.log(held), 1)[0])
    assert published.value == pytest.approx(np.median(every), abs=1e-14)
    assert fitted.value == pytest.approx(np.mean(values), abs=1e-12)
    for found in (published, fitted):
        assert (found.used, found.empty, len(found.frames)) == (6, 2, 8)
        assert [level for level, frame in enumerate(found.frames) if frame.value is None] == [0, 5]
        assert found.low <= found.value <= found.high and found.standard_error > 0


def test_the_interval_is_that_of_the_mean_and_depends_on_the_seed_alone() -> None:
    fitted = least_squares_dimension(frames(), resamples=4000)
    values = np.array([frame.value for frame in fitted.frames if frame.value is not None])
    assert fitted.standard_error == pytest.approx(values.std() / math.sqrt(len(values)), rel=0.06)
    assert fitted == least_squares_dimension(frames(), resamples=4000)
    assert fitted.standard_error != least_squares_dimension(frames(), resamples=4000, seed=1).standard_error


def test_the_error_of_a_fit_is_that_of_linear_regression() -> None:
    frame = least_squares_dimension(next(each for level, each in enumerate(frames()) if level == 1)).frames[0]
    x, y = np.log(frame.sizes), np.log(frame.counts)
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    assert frame.value == pytest.approx(-coefficients[0], rel=1e-12)
    assert frame.standard_error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)
    assert frame.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-12)


def test_what_cannot_be_measured_says_so() -> None:
    with pytest.raises(InvalidValueError, match="none of 3 frames has an edge"):
        published_dimension(np.ones((3, 64, 64)))
    with pytest.raises(InvalidValueError, match="at least 16 pixels along each side, got 10"):
        published_dimension(drawn(10, 10))
    with pytest.raises(InvalidValueError, match=r"edge_map must be \(H, W\) bool, got float64"):
        box_counts(drawn(8, 8), (1, 2))
    with pytest.raises(InvalidValueError, match="a size must"):
        box_counts(np.ones((8, 8), bool), (0,))
    with pytest.raises(InvalidValueError, match="edges are of an"):
        edges([1.0, -1.0])
    with pytest.raises(InvalidValueError, match="flip at 0 of 7 distances"):
        uncertainty_exponent(np.ones((1024, 1024)))
    with pytest.raises(InvalidValueError, match="resamples must"):
        published_dimension(drawn(64, 64), resamples=3)


@pytest.mark.parametrize("name, tolerance", [("line", 0.03), ("noise", 0.005)])
def test_the_uncertainty_exponent_finds_the_dimension_of_a_picture(name: str, tolerance: float) -> None:
    shape = find_shape(name)
    assert shape.labels is not None
    found = uncertainty_exponent(shape.labels(512))
    assert found.value == pytest.approx(shape.dimension, abs=tolerance)
    assert found.low <= found.value <= found.high


def test_shares_of_flipped_labels_are_those_of_all_pairs_of_pixels() -> None:
    pictures = [drawn(100, 70, seed=seed) for seed in (1, 2)]
    found = uncertainty_exponent(pictures, distances=(1, 3, 8), resamples=100)
    for distance, share in zip((1, 3, 8), found.frames[0].counts, strict=True):
        pairs = [
            pair
            for each in pictures
            for pair in (
                (each[distance:] > 0) != (each[:-distance] > 0),
                (each.T[distance:] > 0) != (each.T[:-distance] > 0),
            )
        ]
        assert share == pytest.approx(sum(pair.sum() for pair in pairs) / sum(pair.size for pair in pairs), rel=1e-14)


class Known:
    """A trainer whose boundary is a straight line, or a point's own parity of digits."""

    device, precision = "cpu", "float64"

    def __init__(self, slope: float) -> None:
        self.slope, self.points = slope, 0

    def train(self, experiment: Experiment, points: Any, readout: Any = None) -> Outcome:
        x, y = np.log10(points).T
        self.points += len(points)
        measure = np.where(y < self.slope * x, -1.0, 1.0)
        return Outcome(measure, np.zeros(len(measure), np.int32), measure)


def test_the_uncertainty_exponent_from_a_trainer_is_that_of_its_boundary() -> None:
    window = Window.of_exponents(x=(-1.0, 1.0), y=(-1.0, 1.0))
    trainer = Known(0.3)
    found = trained_uncertainty(
        Experiment(), window, trainer=trainer, points=50_000, distances=(0.01, 0.02, 0.04, 0.08)
    )
    assert trainer.points == 50_000 * 9
    # a point is uncertain if it lies closer to the line than d |cos|: the length of the line in units of the side
    # is 1.044, the mean of |cos| is 2 / pi, and there are two sides
    expected = [2 * 1.044 * 2 / math.pi * distance for distance in (0.01, 0.02, 0.04, 0.08)]
    assert found.frames[0].counts == pytest.approx(expected, rel=0.1)
    assert found.low < 1.0 < found.high and found.value == pytest.approx(1.0, abs=0.1)
    with pytest.raises(InvalidValueError, match="distances must be two or more numbers"):
        trained_uncertainty(Experiment(), window, trainer=trainer, distances=(0.1, 0.9))


def test_the_uncertainty_exponent_trains_networks() -> None:
    small = Experiment(width=8, dataset_mode="single_example", steps=30)
    window = Window.of_exponents(x=(0.0, 2.0), y=(0.0, 2.0))
    found = trained_uncertainty(small, window, trainer=ReferenceTrainer(), points=400, distances=(0.4, 0.2, 0.1))
    assert 0.5 < found.value < 2.0 and found.method == "uncertainty"


def test_the_table_has_the_columns_of_the_seed_and_empty_cells_without_an_edge(tmp_path: Path) -> None:
    published, fitted = dimensions(frames())
    save_csv(tmp_path / "new" / "plain.csv", published)
    rows = list(csv.reader((tmp_path / "new" / "plain.csv").read_text().splitlines()))
    assert rows[0] == ["level", "estimated_dimension"]
    assert [row[0] for row in rows[1:]] == [str(level) for level in range(8)]
    assert [level for level, row in enumerate(rows[1:]) if row[1] == ""] == [0, 5]
    assert all(
        float(row[1]) == pytest.approx(frame.value, abs=1e-6)
        for row, frame in zip(rows[1:], published.frames, strict=True)
        if row[1]
    )
    save_csv(tmp_path / "both.csv", published, fitted)
    both = list(csv.DictReader((tmp_path / "both.csv").read_text().splitlines()))
    assert float(both[1]["least_squares_dimension"]) == pytest.approx(fitted.frames[1].value, abs=1e-6)
    assert "nan" not in (tmp_path / "both.csv").read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["both.csv", "new"]
    with pytest.raises(InvalidValueError, match=r"same frames, got \[1, 8\]"):
        save_csv(tmp_path / "both.csv", published, least_squares_dimension(drawn(64, 64)))
    with pytest.raises(InvalidValueError, match=r"same frames, got \[\]"):
        save_csv(tmp_path / "none.csv")


def test_a_plot_shows_each_dimension_and_is_written_whole(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    both = dimensions(frames())
    save_plot(tmp_path / "new" / "plot.png", both, published=1.41, title="frames")
    save_plot(tmp_path / "flips.png", (uncertainty_exponent(drawn(64, 64), resamples=100),))
    pixels = np.asarray(image.open(tmp_path / "new" / "plot.png").convert("RGB")).astype(int)
    for ink in ((0x32, 0x88, 0xBD), (0xD5, 0x3E, 0x4F), (0x33, 0x33, 0x33)):
        assert (abs(pixels - ink).max(axis=2) < 8).sum() > 200
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(InvalidValueError, match="written as .png"):
        save_plot(tmp_path / "plot.svg", both)
    with pytest.raises(InvalidValueError, match="at least one dimension"):
        save_plot(tmp_path / "none.png", ())


def test_plain_pictures_have_the_edges_of_their_arrays(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from fractal_streams.trainability.picture import save_plain

    kept = list(frames())
    for level, frame in enumerate(kept):
        save_plain(frame, tmp_path / f"zoom_{level:03d}.png")
    read = list(frames_of(tmp_path))
    assert all((a == np.sign(b)).all() for a, b in zip(read, kept, strict=True))
    assert dimensions(read) == dimensions(kept)
    rough = drawn(64, 64) * 10.0 ** drawn(64, 64, seed=3)
    save_plain(rough, tmp_path / "rough.png")
    assert (signs_of(tmp_path / "rough.png") == np.sign(rough)).all()


def test_the_keyframes_of_a_zoom_are_read_from_their_arrays(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from fractal_streams.trainability.zoom import open_zoom, zoom, zoom_windows

    small = Experiment(width=8, dataset_mode="single_example", steps=30)
    windows = zoom_windows(Window.of_exponents(x=(0.5, 3.5), y=(0.5, 3.5)), levels=2)
    made = zoom(small, windows, resolution=24, folder=tmp_path / "zoom", trainer=ReferenceTrainer())
    kept = [made.measure(level) for level in range(len(made))]
    assert all((a == b).all() for a, b in zip(frames_of(tmp_path / "zoom"), kept, strict=True)) and len(kept) == 2
    assert dimensions(open_zoom(tmp_path / "zoom")) == dimensions(kept)
    assert dimensions([made.scan(0), made.scan(1)]) == dimensions(kept)
    assert published_dimension(made.scan(0)) == published_dimension(kept[0])
    for picture in (tmp_path / "zoom").glob("zoom_*.png"):  # what the pictures say is what the arrays say
        picture.rename(tmp_path / picture.name)
    assert dimensions(frames_of(tmp_path)) == dimensions(kept)
    assert uncertainty_exponent(made, distances=(1, 2, 4)) == uncertainty_exponent(kept, distances=(1, 2, 4))


def test_a_folder_without_a_zoom_and_a_picture_of_something_else_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(InvalidValueError, match="holds no keyframes.*give a zoom's folder"):
        frames_of(tmp_path)
    image.new("RGB", (32, 32), (0, 0, 255)).save(tmp_path / "zoom_000.png")
    with pytest.raises(InvalidValueError, match="not of the plain pictures of a zoom"):
        list(frames_of(tmp_path))


def test_a_dimension_tells_itself_in_a_line() -> None:
    found = Dimension(method="published", value=1.41, low=1.3, high=1.5, standard_error=0.05, frames=())
    assert str(found) == "1.410 (1.300 to 1.500, published, 0 frames)"
