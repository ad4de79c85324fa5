"""Distances of pictures: closed forms of waves and shifts, what each sees and what not, gradients at black ones."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.pixels import (
    absolute_distance,
    expanded,
    feature_distance,
    focal_frequency_distance,
    from_pyramid,
    laplacian_distance,
    laplacian_pyramid,
    perceptual_distance,
    radial_spectrum,
    reduced,
    spectral_distance,
)
from torch import Tensor

from fractal_streams.errors import InvalidValueError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wave(cycles_down: int, cycles_across: int, size: int = 16, phase: float = 0.0) -> Tensor:
    place = torch.arange(size, dtype=torch.float64) / size
    turns = cycles_down * place[:, None] + cycles_across * place
    return torch.sin(2.0 * math.pi * turns + phase)[None, None]


def features(one: Tensor, other: Tensor) -> Tensor:
    return perceptual_distance([one], [other])


def strong_features(one: Tensor, other: Tensor) -> Tensor:
    return feature_distance([one], [other])


PAIRED = [absolute_distance, laplacian_distance, focal_frequency_distance, features, strong_features]


def test_l1_is_the_mean_difference() -> None:
    assert absolute_distance(torch.zeros(2, 3), torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.0, 0.0]])).item() == 1.0


@pytest.mark.parametrize("size, levels", [((16, 16), 3), ((8, 8), 1), ((12, 20), 2), ((9, 13), 2)])
def test_a_pyramid_is_undone_by_its_sum(size: tuple[int, int], levels: int) -> None:
    pictures = drawn(2, 3, *size)
    bands = laplacian_pyramid(pictures, levels)
    assert len(bands) == levels + 1 and bands[1].shape[-1] == -(-size[1] // 2)
    torch.testing.assert_close(from_pyramid(bands), pictures, atol=1e-12, rtol=0)


def test_a_constant_lies_in_the_last_band_and_costs_its_own_size() -> None:
    bands = laplacian_pyramid(torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64), 3)
    assert all(band.abs().max() < 1e-15 for band in bands[:-1])
    torch.testing.assert_close(bands[-1], torch.full((1, 3, 2, 2), 0.7, dtype=torch.float64))
    pictures = drawn(2, 3, 16, 16)
    for levels in (1, 2, 3):
        assert laplacian_distance(pictures, pictures + 0.25, levels).item() == pytest.approx(0.25, rel=1e-12)


def test_a_reduction_is_the_binomial_filter_at_every_other_pixel() -> None:
    point = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    point[0, 0, 8, 8] = 256.0
    taps = torch.tensor([1.0, 6.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(reduced(point)[0, 0, 3:6, 3:6], taps[:, None] * taps)
    assert reduced(point).sum() == 64.0  # the mean stays
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    torch.testing.assert_close(reduced(ramp)[0, 0, 4, 1:-1], torch.arange(2.0, 14.0, 2.0, dtype=torch.float64))
    assert reduced(ramp)[0, 0, 4, 0] == (1 * 4 + 2 * 1) / 16  # pixels 0, 1, 2, and 0 twice more beyond the edge


def test_an_expansion_is_the_same_filter_between_the_pixels() -> None:
    point = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    point[0, 0, 4, 4] = 64.0
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64)
    found = expanded(point, 16, 16)
    torch.testing.assert_close(found[0, 0, 6:11, 6:11], taps[:, None] * taps)
    assert found.sum() == 4.0 * point.sum()  # the mean stays


def test_a_pyramid_puts_a_fine_wave_into_the_first_band() -> None:
    fine = torch.ones(64, 64, dtype=torch.float64)
    fine[::2] = -1.0
    bands = laplacian_pyramid(fine[None, None], 2)
    assert bands[0].abs().mean() > 0.99 and bands[1][..., 12:-12, :].abs().max() < 1e-12  # but for the edges
    coarse = laplacian_pyramid(wave(1, 0, 32), 2)
    assert coarse[0].abs().mean() < 0.05 < 0.3 < coarse[2].abs().mean()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_focal_frequency_of_one_wave_is_half_its_squared_height(alpha: float) -> None:
    pictures = drawn(1, 1, 16, 16)
    shifted = pictures + 0.8 * wave(3, 5)
    assert focal_frequency_distance(shifted, pictures, alpha).item() == pytest.approx(0.32, rel=1e-9)


def test_focal_frequency_weighs_the_smaller_of_two_waves_by_their_ratio() -> None:
    apart = wave(0, 2) + 0.25 * wave(5, 0)
    for alpha in (0.0, 1.0, 2.0):
        expected = 0.5 + 0.5 * 0.25**2 * 0.25**alpha
        assert focal_frequency_distance(apart, torch.zeros_like(apart), alpha).item() == pytest.approx(
            expected, rel=1e-9
        )


def test_focal_frequency_without_weights_is_the_mean_square_of_every_picture() -> None:
    one, two = drawn(4, 3, 8, 16), drawn(4, 3, 8, 16, seed=1)
    assert focal_frequency_distance(one, two, 0.0).item() == pytest.approx(
        (one - two).square().mean().item(), rel=1e-12
    )
    each = [focal_frequency_distance(one[b : b + 1], two[b : b + 1]).item() for b in range(4)]
    assert focal_frequency_distance(one, two).item() == pytest.approx(sum(each) / 4, rel=1e-12)


def test_a_radial_spectrum_puts_a_wave_into_its_ring_with_its_energy() -> None:
    for down, across, ring in ((0, 3, 3), (3, 4, 5), (2, 0, 2), (8, 0, 8)):
        pictures = wave(down, across, phase=math.pi / 3)
        found = radial_spectrum(pictures)
        assert found.shape == (8,) and int(found.argmax()) == ring - 1
        rows = torch.fft.fftfreq(16, 1 / 16)
        members = (torch.hypot(rows[:, None], rows).round() == ring).sum().item()
        assert found[ring - 1].item() * members == pytest.approx(pictures.square().sum().item(), rel=1e-9)
        assert found.sum() - found.max() < 1e-20


def test_a_radial_spectrum_of_noise_is_flat_and_of_wide_pictures_counts_the_shorter_side() -> None:
    noise = radial_spectrum(drawn(400, 3, 16, 16))
    torch.testing.assert_close(noise, torch.ones_like(noise), atol=0.05, rtol=0)
    wide = wave(0, 6, 32)[..., :16, :]  # 6 cycles over 32 pixels: 3 over the 16 of the shorter side
    assert radial_spectrum(wide).argmax() == 2


def test_the_spectral_distance_sees_sharpness_and_neither_pairs_nor_place_nor_mean() -> None:
    pictures = drawn(64, 3, 16, 16)
    other = (pictures.roll((3, 5), (2, 3)) + 0.5)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert spectral_distance(pictures, other).item() < 1e-20
    assert spectral_distance(pictures[:32], pictures[32:]).item() < 0.02
    blurred = (pictures + pictures.roll(1, -1) + pictures.roll(1, -2) + pictures.roll((1, 1), (-1, -2))) / 4
    assert spectral_distance(blurred, pictures) > 1.0
    expected = (2.0 * math.log(3.0)) ** 2
    assert spectral_distance(3.0 * pictures, pictures[:10] * 1.0).item() == pytest.approx(expected, rel=0.1)
    assert spectral_distance(3.0 * pictures, pictures).item() == pytest.approx(expected, rel=1e-4)


def test_features_are_compared_by_direction_place_by_place() -> None:
    one = torch.zeros(1, 2, 1, 4)
    one[0, 0] = 1.0
    other = torch.tensor([[3.0, 0.0, -2.0, 0.0], [0.0, 5.0, 0.0, 0.0]])[None, :, None]  # same, across, against, none
    assert perceptual_distance([one], [other]).item() == pytest.approx((0.0 + 2.0 + 4.0 + 1.0) / 4.0, rel=1e-6)
    assert perceptual_distance([one, one], [other, one]).item() == pytest.approx(7.0 / 8.0, rel=1e-6)
    maps = drawn(2, 5, 4, 4)
    assert perceptual_distance([maps], [7.0 * maps]).item() < 1e-20


def test_features_are_as_far_apart_as_they_differ_for_their_strength() -> None:
    one, other = torch.ones(1, 1, 1, 2), torch.tensor([3.0, -1.0]).reshape(1, 1, 1, 2)
    assert feature_distance([one], [other]).item() == pytest.approx(2.0 / 3.0)
    assert feature_distance([7.0 * one], [7.0 * other]).item() == pytest.approx(2.0 / 3.0)  # at any scale of a network
    assert feature_distance([one, other], [other, other]).item() == pytest.approx(1.0 / 3.0)
    fine = torch.ones(1, 3, 1, 2)  # three times as many numbers
    assert feature_distance([one, fine], [other, fine]).item() == pytest.approx(2.0 / 3.0 / 4.0)
    maps = drawn(2, 5, 4, 4)
    assert feature_distance([maps], [7.0 * maps]).item() == pytest.approx(6.0 / 8.0)  # unit vectors are equal here
    assert feature_distance([maps], [-maps]).item() == pytest.approx(1.0)
    held = maps.clone().requires_grad_()
    (slope,) = torch.autograd.grad(feature_distance([held], [2.0 * maps]), held)
    torch.testing.assert_close(slope, -maps.sign() / maps.numel() / (3.0 * maps.abs().mean()))
    with pytest.raises(InvalidValueError, match="at least 1"):
        feature_distance([], [])


@pytest.mark.parametrize("distance", PAIRED)
def test_equal_pictures_are_at_no_distance_and_wrong_pairs_at_a_larger_one(distance) -> None:  # type: ignore[no-untyped-def]
    pictures = drawn(4, 3, 8, 8)
    near = pictures + 0.1 * drawn(4, 3, 8, 8, seed=1)
    assert distance(pictures, pictures).item() == 0.0
    assert distance(pictures, near).item() == pytest.approx(distance(near, pictures).item(), rel=1e-9)
    assert distance(pictures, near.roll(1, 0)) > 3.0 * distance(pictures, near)
    order = torch.tensor([2, 0, 3, 1])
    assert distance(pictures[order], near[order]).item() == pytest.approx(distance(pictures, near).item(), rel=1e-12)


@pytest.mark.parametrize("distance", [*PAIRED, spectral_distance])
def test_gradients_are_finite_at_equal_black_and_dead_pictures(distance) -> None:  # type: ignore[no-untyped-def]
    dead = drawn(2, 3, 8, 8).float()
    dead[:, 1] = 0.0
    for first, second in ((dead, dead.clone()), (torch.zeros_like(dead), dead), (dead, torch.zeros_like(dead)),
                          (torch.zeros_like(dead), torch.zeros_like(dead))):  # fmt: skip
        held = first.clone().requires_grad_()
        (slope,) = torch.autograd.grad(distance(held, second), held)
        assert bool(slope.isfinite().all()) and slope.abs().max() < 1e6


@pytest.mark.parametrize("distance", PAIRED)
def test_descending_its_gradient_brings_pictures_together(distance) -> None:  # type: ignore[no-untyped-def]
    start, target = drawn(2, 3, 8, 8), drawn(2, 3, 8, 8, seed=1)
    held, first = start.clone().requires_grad_(), distance(start, target)
    for _ in range(60):
        (slope,) = torch.autograd.grad(distance(held, target), held)
        held = (held - 0.1 * slope / slope.abs().max()).detach().requires_grad_()
    assert distance(held, target) < 0.5 * first


@pytest.mark.parametrize("distance", [*PAIRED, spectral_distance])
def test_half_precision_is_widened_and_autocast_is_off(distance) -> None:  # type: ignore[no-untyped-def]
    one, two = drawn(4, 3, 8, 8).float(), drawn(4, 3, 8, 8, seed=1).float()
    exact = distance(one, two)
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(one, two).item() == exact.item()
    rounded = distance(one.bfloat16(), two.bfloat16())
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("distance", [*PAIRED, spectral_distance])
def test_pictures_that_do_not_pair_are_refused(distance) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="size|one shape"):
        distance(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 16))


def test_a_pyramid_of_more_levels_than_pixels_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="got 4"):
        laplacian_distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 4)
    with pytest.raises(InvalidValueError, match="at least 1"):
        perceptual_distance([], [])
