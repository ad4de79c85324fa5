"""The renderers of iterated function systems keep the laws of their methods, and the gate sees one that does not."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from fractal_streams.recipes.benchmarks import ifs_renderer
from fractal_streams.recipes.benchmarks.ifs_renderer import SIERPINSKI, SIZE, Code, WrongOrbitError


@pytest.fixture(scope="module")
def contractive() -> list[Code]:
    random = np.random.default_rng(1)
    return [ifs_renderer.contractive_code(random) for _ in range(200)]


@pytest.fixture(scope="module")
def filling() -> list[Code]:
    random = np.random.default_rng(2)
    return [ifs_renderer.filling_code(random) for _ in range(3)]


def orbit(code: Code, seed: int = 0) -> np.ndarray:
    points = np.empty((ifs_renderer.POINTS, 2))
    ifs_renderer.published_orbit(code.maps, np.cumsum(code.chances), np.random.default_rng(seed), points)
    return points


def fast_orbit(code: Code) -> np.ndarray:
    points, maps = np.empty((ifs_renderer.POINTS, 2), np.float32), code.maps.reshape(-1, 6).astype(np.float32)
    ifs_renderer.tuned_orbit(maps, ifs_renderer.thresholds(code), np.uint64(1), points)
    return points


def test_codes_have_the_published_singular_values(contractive: list[Code]) -> None:
    for code in contractive:
        values = np.linalg.svd(code.maps[:, :, :2], compute_uv=False)
        count = len(code.maps)
        assert 2 <= count <= 7 and values.max() < 1.0 and np.abs(code.maps[:, :, 2]).max() <= 1.0
        total = (values @ [1.0, 2.0]).sum()
        assert (5 + count) / 2 - 1e-9 <= total <= (6 + count) / 2 + 1e-9
    assert {len(code.maps) for code in contractive} == set(range(2, 8))
    determinants = np.concatenate([np.linalg.det(code.maps[:, :, :2]) for code in contractive])
    assert 0.4 < (determinants < 0).mean() < 0.6  # mirrors


@pytest.mark.parametrize("total", [0.0, 0.1, 3.5, 5.9, 6.0])
def test_singular_values_reach_every_sum_that_two_maps_can_have(total: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        values = ifs_renderer.singular_values(2, total, random)
        assert (values @ [1.0, 2.0]).sum() == pytest.approx(total)
        assert (values[:, 1] <= values[:, 0] + 1e-12).all() and values.min() >= -1e-12 and values.max() <= 1 + 1e-12


@pytest.mark.parametrize("run", [orbit, fast_orbit])
def test_maps_are_chosen_with_the_chances_of_their_determinants(run) -> None:  # type: ignore[no-untyped-def]
    # Three maps onto the cells [0, 1/2] x [0, 1], [1/2, 3/4] x [0, 1] and [3/4, 1] x [0, 1], as their areas.
    widths = np.array([0.5, 0.25, 0.25])
    code = Code(maps=np.array([[[w, 0, x], [0, 0.5, 0.25]] for w, x in zip(widths, (0.0, 0.5, 0.75), strict=True)]))
    assert code.chances == pytest.approx(widths)
    share = np.histogram(run(code)[:, 0], [0.0, 0.5, 0.75, 1.0])[0] / ifs_renderer.POINTS
    assert np.abs(share - widths).max() < 5 * np.sqrt(0.25 / ifs_renderer.POINTS)


def test_the_two_orbits_visit_the_same_places_as_often(contractive: list[Code]) -> None:
    for code in [each for each in contractive if each.contraction < 0.95][:5]:
        plain, fast = orbit(code), fast_orbit(code)
        bins = [np.linspace(plain[:, axis].min(), plain[:, axis].max(), 9) for axis in range(2)]
        one, other = (np.histogram2d(*points.T, bins)[0] for points in (plain, fast))
        # An orbit's points are not independent, so that counts vary more than as their roots.
        assert (np.abs(one - other) <= 12 * np.sqrt(np.maximum(one, other)) + 12).all()


def test_a_filling_code_fills_as_numpy_counts_it(filling: list[Code]) -> None:
    for code in filling:
        points = orbit(code, code.seed)
        low, high = points.min(axis=0), points.max(axis=0)
        counts = np.zeros((SIZE, SIZE))
        ifs_renderer.published_counts(points, low, high, np.array([[0, 0]]), counts)
        assert counts.sum() == ifs_renderer.POINTS
        assert (counts > 0).mean() == ifs_renderer.fill(points) >= 0.2


def test_a_patch_is_a_convolution() -> None:
    points, patch = np.random.default_rng(0).random((500, 2)), np.array([[-1, 0], [0, 1], [1, 1]])
    counts, single = np.zeros((12, 12)), np.zeros((12, 12))
    ifs_renderer.published_counts(points, np.zeros(2), np.ones(2), patch, counts)
    ifs_renderer.published_counts(points, np.zeros(2), np.ones(2), np.array([[0, 0]]), single)
    wide = np.pad(single, 1)
    expected = sum(wide[1 - r : 13 - r, 1 - c : 13 - c] for r, c in patch)
    assert np.array_equal(counts, expected)


def test_colours_are_those_of_the_hues() -> None:
    for hue, saturation, value in np.random.default_rng(0).random((200, 3)):
        expected = 255.0 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        assert np.abs(np.array(ifs_renderer.rgb(hue, saturation, value)) - expected).max() <= 0.5 + 1e-9


def test_a_picture_has_one_colour_for_each_count_and_black_where_nothing_is() -> None:
    counts = np.array([[0, 1], [5, 10]])
    table = np.arange(768, dtype=np.uint8).reshape(256, 3)
    out = np.full((3, 2, 2), 7, np.uint8)
    ifs_renderer.colours(counts, 10, table, out)
    assert np.array_equal(out.transpose(1, 2, 0), [[[0, 0, 0], table[25]], [table[127], table[255]]])


@pytest.mark.slow
def test_pictures_of_both_ways_show_the_same_shapes(contractive: list[Code], filling: list[Code]) -> None:
    plain, fast = ifs_renderer.published(contractive, 24), ifs_renderer.tuned(contractive, 24)
    assert plain.shape == fast.shape == (24, 3, SIZE, SIZE) and plain.dtype == fast.dtype == np.uint8
    overlaps = []
    for one, other in zip(plain.any(axis=1), fast.any(axis=1), strict=True):
        overlaps.append((one & other).sum() / max(1, (one | other).sum()))
    assert np.median(overlaps) > 0.6  # patches differ
    grey = ifs_renderer.published(filling, 6, coloured=False)
    assert set(np.unique(grey)) == {0, ifs_renderer.GREY}
    assert np.array_equal(grey[:, 0], grey[:, 1]) and np.array_equal(grey[:, 0], grey[:, 2])


def test_the_gate_lets_right_codes_through(contractive: list[Code], filling: list[Code]) -> None:
    ifs_renderer.check(contractive[:5], filling)


def test_the_gate_stops_other_codes(contractive: list[Code], filling: list[Code]) -> None:
    with pytest.raises(WrongOrbitError, match="singular value"):
        ifs_renderer.check([Code(maps=2.0 * SIERPINSKI.maps)], [])
    with pytest.raises(WrongOrbitError, match=r"fills 0\.1.* 0\.2 are asked for"):
        ifs_renderer.check([], [SIERPINSKI])


@pytest.mark.parametrize("name", ["published_orbit", "tuned_orbit"])
def test_the_gate_stops_an_orbit_that_is_not_of_its_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(ifs_renderer, name)

    def skewed(maps: np.ndarray, *others: object) -> None:
        right(maps + 1e-3, *others)

    monkeypatch.setattr(ifs_renderer, name, skewed)
    with pytest.raises(WrongOrbitError, match=f"{name.partition('_')[0]}: .* Sierpinski"):
        ifs_renderer.check([], [])


def test_the_gate_stops_an_orbit_that_leaves_its_disc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Code, "reach", 0.5)
    with pytest.raises(WrongOrbitError, match="left the disc"):
        ifs_renderer.check([SIERPINSKI], [])
