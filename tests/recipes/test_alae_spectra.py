"""Distances without networks: pyramids that can be undone, transport along a line, spectra of noise and of waves."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae import spectra
from fractal_streams.recipes.alae.layers import blurred
from fractal_streams.recipes.alae.pixels import from_pyramid
from fractal_streams.recipes.alae.spectra import (
    PATCH,
    descriptors,
    log_spectrum,
    pyramid,
    pyramid_distance,
    radial_power,
    sliced_wasserstein,
    spectrum_distance,
)
from torch.nn import functional

from fractal_streams.errors import InvalidValueError


def normal(*shape: int, name: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


def generator(name: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(name)


def test_a_pyramid_is_undone_by_adding_its_levels() -> None:
    pictures = normal(2, 3, 64, 64)
    levels = pyramid(pictures)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    torch.testing.assert_close(from_pyramid(levels), pictures, rtol=1e-5, atol=1e-5)


def test_one_colour_is_in_the_last_level_alone() -> None:
    fine, rest = pyramid(torch.full((1, 3, 32, 32), 0.7))
    assert float(fine.abs().max()) < 1e-6
    torch.testing.assert_close(rest, torch.full((1, 3, 16, 16), 0.7))


def test_small_or_odd_pictures_are_one_level() -> None:
    for edge in (8, 31, 33):
        assert len(pyramid(torch.zeros(1, 3, edge, edge))) == 1


def test_patches_are_cut_from_their_own_picture_and_standardised() -> None:
    """Every picture is a number times a ramp: so is each patch, up to the standardisation of its channel."""
    level = torch.arange(1.0, 5.0)[:, None, None, None] * torch.ones(4, 2, 12, 12)
    level[:, 1] = normal(4, 12, 12)
    found = descriptors(level, 6, generator()).reshape(24, 2, PATCH, PATCH)
    numbers = (torch.arange(1.0, 5.0) - 2.5) / torch.tensor([1.0, 2.0, 3.0, 4.0]).std(correction=0)
    torch.testing.assert_close(found[:, 0], numbers.repeat_interleave(6)[:, None, None].expand(24, PATCH, PATCH))
    assert float(found[:, 1].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(found[:, 1].std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    places = {tuple(patch[:, 0].tolist()) for patch in found[:6, 1]}
    assert len(places) > 1


def test_patches_are_windows_of_the_picture() -> None:
    level = normal(1, 1, 12, 12)
    found = descriptors(level, 20, generator()).reshape(20, PATCH, PATCH)
    windows = level[0, 0].unfold(0, PATCH, 1).unfold(1, PATCH, 1).reshape(-1, PATCH, PATCH)
    for patch in found:
        scaled = (windows - windows.mean((1, 2), keepdim=True)) / windows.std((1, 2), keepdim=True)
        own = (patch - patch.mean()) / patch.std()
        assert float((scaled - own).abs().amax((1, 2)).min()) < 1e-4


def test_patches_are_the_same_however_many_pictures_are_cut_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    level = normal(8, 3, 12, 12)
    whole = descriptors(level, 4, generator())
    monkeypatch.setattr(spectra, "TOGETHER", 3)
    assert torch.equal(descriptors(level, 4, generator()), whole)


def test_in_one_dimension_the_distance_is_that_of_transport() -> None:
    """A shift costs itself; between Gaussians of deviations s and t it is |s - t| E|Z|."""
    points = normal(5000, 1)
    assert sliced_wasserstein(points, points.flip(0), 8, generator()) == 0.0
    assert sliced_wasserstein(points, points - 2.5, 8, generator()) == pytest.approx(2.5, abs=1e-5)
    spread = sliced_wasserstein(points, 3.0 * points, 8, generator())
    assert spread == pytest.approx(2.0 * float(points.abs().mean()), rel=0.02)
    assert float(points.abs().mean()) == pytest.approx(math.sqrt(2 / math.pi), rel=0.03)


def test_in_more_dimensions_a_shift_costs_its_mean_share_along_a_direction() -> None:
    """E|<p, s>| = |s| Γ(D/2) / (√π Γ((D + 1)/2)) of a direction p that is uniform on the sphere."""
    for size in (2, 3, 10):
        points, shift = normal(50, size), normal(size, name=1)
        asked = float(shift.norm()) * math.gamma(size / 2) / (math.sqrt(math.pi) * math.gamma((size + 1) / 2))
        found = sliced_wasserstein(points, points + shift, 4000, generator())
        assert found == pytest.approx(asked, rel=5 / math.sqrt(4000))


def test_a_distance_of_pictures_is_none_of_equal_sets_and_sees_blur_and_noise_where_they_are() -> None:
    fine, coarse = normal(400, 3, 32, 32), normal(400, 3, 32, 32, name=1)
    for _ in range(2):  # 1 2 1 twice is 1 4 6 4 1
        fine, coarse = blurred(fine), blurred(blurred(coarse))
    pictures = fine + coarse
    one, other = pictures[:200], pictures[200:]
    small = {"patches": 40, "projections": 24}
    assert set(pyramid_distance(one[:20], one[:20], **small).values()) == {0.0}
    floor = pyramid_distance(one, other, **small)
    assert set(floor) == {"32", "16", "mean"} and floor["mean"] == (floor["32"] + floor["16"]) / 2
    coarser = functional.avg_pool2d(other, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert pyramid_distance(one, coarser, **small)["32"] > 1.5 * floor["32"]
    noisy = pyramid_distance(one, other + 0.5 * normal(*other.shape, name=5), **small)
    assert noisy["32"] > 2 * floor["32"] and noisy["16"] < 1.3 * floor["16"]


def test_white_noise_has_its_variance_at_each_frequency() -> None:
    power = radial_power(0.3 * normal(400, 3, 32, 32))
    assert power.shape == (400, 15)
    ratio = power.mean(0) / 0.09
    # 1200 pictures with 6 to 90 frequencies a ring, which a window leaves at least a third of independent; and the
    # mean that is taken off touches the first ring
    assert float((ratio[1:] - 1).abs().max()) < 5 / math.sqrt(1200 * 12 / 3)
    assert 0.8 < float(ratio[0]) < 1.05


def test_a_wave_peaks_at_its_frequency_in_any_direction() -> None:
    along = torch.arange(64) / 64 * math.tau
    for cycles in (3, 9, 20):
        for wave in (torch.cos(cycles * along).expand(64, 64), torch.sin(cycles * along)[:, None].expand(64, 64)):
            power = radial_power(wave.expand(1, 3, 64, 64))[0]
            assert int(power.argmax()) + 1 == cycles
            far = torch.cat([power[: max(0, cycles - 3)], power[cycles + 2 :]])
            assert float(far.max()) < 1e-6 * float(power.max())
    tilted = torch.cos(6 * along[:, None] + 8 * along[None, :]).expand(1, 3, 64, 64)
    assert int(radial_power(tilted)[0].argmax()) + 1 == 10


def test_a_gain_is_told_in_decibels() -> None:
    pictures = 0.1 * normal(40, 3, 16, 16)
    assert spectrum_distance(pictures, 2.0 * pictures) == pytest.approx(20 * math.log10(2.0), abs=1e-3)
    assert spectrum_distance(pictures, pictures) == 0.0
    assert float(log_spectrum(torch.zeros(2, 3, 16, 16)).max()) == -70.0


def test_what_cannot_be_compared_is_refused() -> None:
    pictures = torch.zeros(4, 3, 16, 16)
    with pytest.raises(InvalidValueError, match="of one shape"):
        pyramid_distance(pictures, pictures[..., :8])
    with pytest.raises(InvalidValueError, match="N at least 2"):
        spectrum_distance(pictures[:1], pictures[:1])
    with pytest.raises(InvalidValueError, match="broken model"):
        spectrum_distance(pictures, pictures / 0)
    with pytest.raises(InvalidValueError, match="as many of each"):
        sliced_wasserstein(pictures.flatten(1), pictures[:3].flatten(1), 3, generator())
    with pytest.raises(InvalidValueError, match="at least 4 pixels"):
        radial_power(torch.zeros(2, 3, 3, 8))
