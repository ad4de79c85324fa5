"""Pictures: ranks by sign, matplotlib's Spectral, the lowest row at the bottom, axes that print what differs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from fractal_streams.errors import InvalidValueError, MissingExtraError
from fractal_streams.trainability import picture
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.picture import SPECTRAL, colours, end_labels, restretch, save_picture, save_plain
from fractal_streams.trainability.ranks import RankTable
from fractal_streams.trainability.window import Window

INF = np.inf
OVERVIEW = Window.of_exponents(x=(-3, 6), y=(-3, 6))


def measure_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.choice([-1.0, 1.0], (height, width)) * np.exp(3.0 * np.abs(random.normal(size=(height, width))))


def by_hand(measure: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The paper's map: one table through both signs, the published text of it."""
    points = np.sort(reference.ravel())
    below = int((points < 0).sum())
    levels = np.concatenate([np.linspace(-1, -0.25, below), np.linspace(0.25, 1, len(points) - below)])
    return -np.interp(measure, points, levels)


def test_each_sign_is_ranked_by_itself() -> None:
    assert restretch([-500.0, -3.0, -20.0, 2.0, 90.0]).tolist() == [1.0, 0.25, 0.625, -0.25, -1.0]
    assert restretch([[-4.0, -2.0], [-3.0, -1.0]]).tolist() == [[1.0, 0.5], [0.75, 0.25]]
    assert restretch([7.0, 9.0, 8.0]).tolist() == [-0.25, -1.0, -0.625]
    assert restretch([5.0]).tolist() == [-0.25] and restretch([-5.0]).tolist() == [1.0]


def test_equal_values_take_the_last_rank_and_infinities_the_slowest() -> None:
    assert restretch([2.0, 2.0, 1.0, 3.0, 4.0]).tolist() == [-0.625, -0.625, -0.25, -0.8125, -1.0]
    got = restretch([INF, INF, 4.0, 3.0, -INF, -2.0, np.nan])
    np.testing.assert_array_equal(got, [-1.0, -1.0, -0.5, -0.25, 1.0, 0.25, np.nan])
    assert restretch([5.0, -9.0], [INF, 4.0, -INF, -2.0]).tolist() == [-0.25, 0.25]  # as the last finite one


def test_it_is_the_papers_map_where_the_reference_is_the_picture() -> None:
    measure = measure_of(40, 50)
    np.testing.assert_array_equal(restretch(measure), by_hand(measure, measure))


def test_with_a_reference_it_is_linear_between_its_values_and_keeps_the_sign() -> None:
    reference = np.array([-9.0, -5.0, -2.0, 2.0, 4.0, 10.0])
    assert restretch([-7.0, -3.5, 3.0, 7.0], reference).tolist() == [0.8125, 0.4375, -0.4375, -0.8125]
    assert restretch([-99.0, -1.0, 1.0, 99.0], reference).tolist() == [1.0, 0.25, -0.25, -1.0]
    one_sided = restretch([-3.0, -8.0, 4.0], [2.0, 6.0])  # no converged run there: ranked among themselves
    assert one_sided.tolist() == [0.25, 1.0, -0.625]


@pytest.mark.parametrize("seed", range(3))
def test_signs_and_order_hold_for_any_reference(seed: int) -> None:
    measure, reference = measure_of(30, 30, seed).ravel(), measure_of(20, 20, seed + 10)
    got = restretch(measure, reference)
    assert ((got > 0) == (measure < 0)).all() and (np.abs(got) >= 0.25).all() and (np.abs(got) <= 1).all()
    for side in (measure < 0, measure >= 0):
        assert (np.diff(got[side][np.argsort(measure[side])]) <= 0).all()


def test_a_thinned_table_is_near_the_whole_one() -> None:
    measure = measure_of(200, 200)
    whole, thin = RankTable.of(measure), RankTable.of(measure, points=512)
    assert len(thin.converged[0]) == len(thin.diverged[0]) == 512
    assert np.abs(whole.values(measure) - thin.values(measure)).max() < 0.75 / 512


def test_spectral_is_matplotlibs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    spectral = matplotlib.colormaps["Spectral"]
    assert np.array_equal(SPECTRAL, spectral(np.arange(256), bytes=True)[:, :3])
    values = np.linspace(-1.0, 1.0, 5001)
    assert np.array_equal(colours(values), spectral((values + 1) / 2, bytes=True)[:, :3])
    assert colours([np.nan, -7.0, 7.0]).tolist() == [[128, 128, 128], SPECTRAL[0].tolist(), SPECTRAL[255].tolist()]


def test_a_plain_picture_has_a_pixel_to_a_point_and_row_0_at_the_bottom(tmp_path) -> None:
    measure = measure_of(5, 9)
    save_plain(measure, tmp_path / "a.png")
    save_plain(measure, tmp_path / "b.png")
    seen = np.asarray(Image.open(tmp_path / "a.png"))
    assert seen.shape == (5, 9, 3) and np.array_equal(seen[::-1], colours(restretch(measure)))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    save_plain(measure, tmp_path / "b.png", reference=-measure)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png"))[::-1], colours(restretch(measure, -measure)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_is_no_picture_is_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(InvalidValueError, match=r"written as \.png, got .*a\.jpg"):
        save_plain(np.ones((2, 2)), tmp_path / "a.jpg")
    for wrong in (np.ones(4), np.ones((0, 3))):
        with pytest.raises(InvalidValueError, match="measure must be"):
            save_plain(wrong, tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fractal-streams\[recipes\]"):
        save_picture(scan_of(4, 4), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def scan_of(
    height: int, width: int, window: Window = OVERVIEW, experiment: Experiment | None = None
) -> SimpleNamespace:
    return SimpleNamespace(experiment=experiment or Experiment(), window=window, measure=measure_of(height, width))


def drawn(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def blocks_of(page: np.ndarray, pixels: np.ndarray, factor: int) -> int:
    """How many points are drawn as squares of their colour, wherever the picture lies on the page."""
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    left, top = round(picture.LEFT * page_dpi(pixels, factor)), 0
    best = 0
    for row in range(top, page.shape[0] - large.shape[0] + 1):
        part = page[row : row + large.shape[0], left : left + large.shape[1]]
        if (part[large.shape[0] // 2, 10:-10] == large[large.shape[0] // 2, 10:-10]).mean() > 0.9:
            best = max(best, int((part == large).all(axis=2)[factor // 2 :: factor, factor // 2 :: factor].sum()))
    return best


def page_dpi(pixels: np.ndarray, factor: int) -> float:
    return pixels.shape[1] * factor / picture.SIDE


def test_a_picture_with_axes_draws_every_point_as_a_square(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    scan = scan_of(15, 30)
    save_picture(scan, tmp_path / "a.png", title="a title")
    page = drawn(tmp_path / "a.png")
    assert blocks_of(page, picture.plain(scan.measure), 25) == 15 * 30
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("height", "width"), [(1024, 2), (2, 1024)])
def test_the_thinnest_pictures_stay_small_enough_to_draw(height: int, width: int, tmp_path) -> None:
    """Five inches across and no end to their height, they would need gigabytes."""
    pytest.importorskip("matplotlib")
    scan = scan_of(height, width)
    save_picture(scan, tmp_path / "a.png", title="a title")
    page = drawn(tmp_path / "a.png")
    assert page.shape[0] * page.shape[1] < 2**24 and page.shape[0] > height
    shown = {tuple(colour) for colour in page.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in picture.plain(scan.measure)[1:-1].reshape(-1, 3).tolist()} <= shown


def test_a_mark_is_drawn_where_the_window_lies(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    scan = scan_of(30, 30)
    save_picture(scan, tmp_path / "a.png")
    plain = drawn(tmp_path / "a.png").astype(int)
    left, top = picture.LEFT * 150, picture.ABOVE * 150
    marks = ("ring", OVERVIEW.scaled(1e-6, (0.25, 0.75)), 20), ("box", OVERVIEW.scaled(0.2, (0.25, 0.75)), 90)
    for name, mark, reach in marks:
        save_picture(scan, tmp_path / f"{name}.png", mark=mark)
        changed = np.argwhere((drawn(tmp_path / f"{name}.png") != plain).any(axis=2))
        middle = (changed.min(axis=0) + changed.max(axis=0)) / 2
        assert np.abs(middle - (top + 750 * (0.5 + 29 * 0.25) / 30, left + 750 * (0.5 + 29 * 0.25) / 30)).max() < 3
        assert 0.5 * reach < (np.ptp(changed, axis=0) / 2).max() < 1.2 * reach
    with pytest.raises(InvalidValueError, match="outside the picture: its middle is at"):
        save_picture(scan, tmp_path / "out.png", mark=OVERVIEW.scaled(0.1, (3.0, 0.5)))


def test_an_overview_stands_beside_the_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    scan = scan_of(30, 30, OVERVIEW.scaled(0.25))
    save_picture(scan, tmp_path / "a.png")
    save_picture(scan, tmp_path / "b.png", overview=scan_of(20, 20))
    alone, beside = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png")
    assert beside.shape[1] - alone.shape[1] - round((picture.INSET + 0.75) * 150) in (0, 1)
    assert np.array_equal(alone[:, : round(150 * (picture.LEFT + 5))], beside[:, : round(150 * (picture.LEFT + 5))])


@pytest.mark.parametrize(
    "low, high, said",
    [
        (13.29976231, 13.29978604, ("13.29976231", "13.29978604")),  # as the paper's figure prints them
        (48.298735, 48.299146, ("48.298735", "48.299146")),
        (0.577622737, 0.577625590, ("0.577622737", "0.577625590")),
        (190.010080, 190.011840, ("190.010080", "190.011840")),
        (0.267398835471957, 0.267398835475071, ("0.267398835471957", "0.267398835475071")),
        (0.9, 12.0, ("0.90", "12.00")),
        (1.2e-7, 3.4e-7, ("1.200e-07", "3.400e-07")),
        (0.0, 0.999, ("0.0000", "0.9990")),
    ],
)
def test_end_labels_show_four_digits_that_differ(low: float, high: float, said: tuple[str, str]) -> None:
    assert end_labels(low, high) == said


def test_ticks_are_powers_of_ten_or_the_ends() -> None:
    places, names = picture.ticks(OVERVIEW, 0)
    assert names == [f"$10^{{{k}}}$" for k in range(-3, 7)] and np.allclose(places, np.arange(10) / 9)
    assert picture.ticks(OVERVIEW.scaled(0.01), 1)[0] == [0.0, 1.0]
    assert picture.ticks(Window(centre=(0.5, 1.0), size=(0.8, 3.0), linear=(True, False)), 0)[1] == ["0.1000", "0.9000"]


def test_axes_are_named_by_what_they_are() -> None:
    def names(**settings: object) -> list[str]:
        return [picture.axis_name(Experiment(**settings), axis) for axis in (0, 1)]  # type: ignore[arg-type]

    assert names() == ["input layer learning rate", "output layer learning rate"]
    assert names(depth=3) == ["input and output layer learning rate", "hidden layer learning rate"]
    assert names(depth=3, axes=("lr0", "lr2")) == ["input layer learning rate", "output layer learning rate"]
    assert names(axes=("offset", "lr"), offset_mode="every_step") == [
        "input layer weight offset, added at every step", "learning rate",
    ]  # fmt: skip
    assert names(axes=("momentum", "scale"), optimiser="momentum") == ["momentum", "scale of initial weights"]
