"""Figures of reconstructions against closed forms, loops in float64, and pictures whose simpler codes are known."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.reconstruction import (
    box,
    decibels,
    from_components,
    matched_ratio,
    mean_colour,
    median_psnr,
    nearness,
    picture_psnr,
    principal,
    psnr,
    spectrum_error,
    squared_errors,
    ssim,
    through,
)

from fractal_streams.errors import InvalidValueError


def normal(*shape: int, name: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


def test_noise_of_a_known_variance_has_its_decibels() -> None:
    """10 log10(2² / σ²); the mean of n squares has a relative deviation of √(2/n)."""
    pictures = torch.zeros(40, 3, 16, 16)
    for deviation in (0.01, 0.1):
        error = 10 / math.log(10) * 5 * math.sqrt(2 / pictures.numel())
        asked = 20 * math.log10(2 / deviation)
        assert psnr(pictures, pictures + deviation * normal(*pictures.shape)) == pytest.approx(asked, abs=error)
    assert psnr(pictures, pictures) == decibels(0.0) == math.inf


def test_pictures_are_clipped_to_the_range_whose_width_is_the_peak() -> None:
    dark, light = -torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert psnr(dark, light) == 0.0
    assert psnr(dark, 9 * dark) == math.inf
    assert psnr(dark, 9 * light) == 0.0


def test_errors_are_summed_before_the_logarithm_and_the_median_is_of_pictures() -> None:
    pictures, made = torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    made[1], made[2] = 0.1, 0.7
    assert squared_errors(pictures, made).tolist() == pytest.approx([0.0, 0.01, 0.49])
    assert psnr(pictures, made) == pytest.approx(10 * math.log10(4 / (0.5 / 3)), abs=1e-5)
    assert median_psnr(pictures, made) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-5)
    finest = 10 * math.log10(4 / ((2 / 255) ** 2 / 12))  # of steps of 1/255 of the range
    each = finest + 10 * math.log10(4 / 0.01) + 10 * math.log10(4 / 0.49)
    assert picture_psnr(pictures, made) == pytest.approx(each / 3, abs=1e-5)


def slow_ssim(one: torch.Tensor, other: torch.Tensor) -> float:
    """Wang et al. 2004, equations 13 to 16, pixel by pixel, for one channel (H, W)."""
    height, width = one.shape
    weights = [[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)]
    total = sum(map(sum, weights))
    values = []
    for top in range(height - 10):
        for left in range(width - 10):
            sums = [0.0] * 5
            for y in range(11):
                for x in range(11):
                    w = weights[y][x] / total
                    a, b = float(one[top + y, left + x]), float(other[top + y, left + x])
                    for place, value in enumerate((a, b, a * a, b * b, a * b)):
                        sums[place] += w * value
            a, b, aa, bb, ab = sums
            c, d = (0.01 * 2) ** 2, (0.03 * 2) ** 2
            values.append(
                (2 * a * b + c) * (2 * (ab - a * b) + d) / ((a * a + b * b + c) * (aa - a * a + bb - b * b + d))
            )
    return sum(values) / len(values)


def test_structural_similarity_is_that_of_a_loop_in_float64() -> None:
    one = normal(2, 2, 13, 14).mul(0.4).clamp(-1, 1)
    other = (0.7 * one + 0.2 * normal(2, 2, 13, 14, name=1) + 0.1).clamp(-1, 1)
    asked = [sum(slow_ssim(a, b) for a, b in zip(*pair, strict=True)) / 2 for pair in zip(one, other, strict=True)]
    assert ssim(one, other).tolist() == pytest.approx(asked, abs=1e-5)
    assert 0.05 < min(asked) < max(asked) < 0.9


def test_structural_similarity_is_1_of_equal_pictures_and_turns_with_the_sign() -> None:
    pictures = normal(3, 3, 16, 16).mul(0.3)
    assert ssim(pictures, pictures).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    places = torch.arange(16)
    board = ((places[:, None] + places) % 2 - 0.5).expand(1, 3, 16, 16)  # each window's mean is 0, its variance 1/4
    assert float(ssim(board, -board)[0]) == pytest.approx((-0.5 + 0.06**2) / (0.5 + 0.06**2), abs=1e-3)
    assert torch.equal(ssim(pictures, 0.5 * pictures), ssim(0.5 * pictures, pictures))


def test_one_colour_for_another_has_its_likeness_of_luminance() -> None:
    """No spread: (2 a b + c) / (a² + b² + c), c = (0.01 * 2)²."""
    one, other = torch.full((1, 3, 12, 12), 0.5), torch.full((1, 3, 12, 12), -0.2)
    assert float(ssim(one, other)[0]) == pytest.approx((2 * 0.5 * -0.2 + 4e-4) / (0.25 + 0.04 + 4e-4), abs=1e-4)


def test_boxes_of_a_checkerboard_are_grey_and_boxes_of_boxes_are_themselves() -> None:
    places = torch.arange(32)
    board = ((places[:, None] + places) % 2 * 2.0 - 1.0).expand(1, 3, 32, 32)
    assert bool((box(board) == 0).all()) and psnr(board, box(board)) == pytest.approx(10 * math.log10(4))
    pictures = normal(2, 3, 8, 8).clamp(-1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(box(pictures), pictures)
    assert psnr(pictures, box(pictures, 4)) < 40
    wide = normal(1, 3, 16, 24)
    torch.testing.assert_close(
        box(wide)[0, :, 2:4, 3:6], wide[0, :, 2:4, 3:6].mean((1, 2))[:, None, None].expand(3, 2, 3)
    )
    with pytest.raises(InvalidValueError, match="8 boxes a side can't tile 12 x 12"):
        box(torch.zeros(1, 3, 12, 12))


def test_a_mean_colour_leaves_the_variance() -> None:
    pictures = normal(20, 3, 16, 16).mul(0.2).clamp(-1, 1)
    variance = float(pictures.double().var((2, 3), correction=0).mean())
    assert psnr(pictures, mean_colour(pictures)) == pytest.approx(10 * math.log10(4 / variance), abs=1e-5)


def test_components_hold_pictures_that_they_span_and_leave_the_rest() -> None:
    axes = torch.linalg.qr(normal(48, 5))[0].T.reshape(5, 3, 4, 4)
    weights = 0.3 * normal(60, 5) * torch.tensor([1.0, 0.8, 0.6, 0.2, 0.1])
    pictures = 0.1 + torch.einsum("nk,kchw->nchw", weights, axes)
    held = 0.1 + torch.einsum("nk,kchw->nchw", 0.1 * normal(10, 5, name=1), axes)
    torch.testing.assert_close(from_components(principal(pictures, 5), held), held, atol=1e-5, rtol=1e-4)
    found = principal(pictures, 3)
    left = squared_errors(pictures, from_components(found, pictures)).mean() * 48
    assert float(left) == pytest.approx(found.rest, rel=1e-3)
    assert psnr(pictures, from_components(principal(pictures, 4), pictures)) > psnr(
        pictures, from_components(found, pictures)
    )
    with pytest.raises(InvalidValueError, match="at most 48 principal components"):
        principal(pictures, 49)


def test_a_ratio_is_0_of_the_identity_1_of_a_constant_and_between_of_a_mixture() -> None:
    """x + noise of variance v against pictures of variance s: v / (2 s + v) of independent pictures."""
    pictures = 0.2 * normal(400, 3, 4, 4)
    assert matched_ratio(pictures, pictures) == 0.0
    assert matched_ratio(pictures, torch.full_like(pictures, 0.3)) == 1.0
    noisy = pictures + 0.1 * normal(*pictures.shape, name=1)
    assert matched_ratio(pictures, noisy) == pytest.approx(0.01 / (0.08 + 0.01), rel=0.05)
    with pytest.raises(InvalidValueError, match="mismatched ones are perfect too"):
        matched_ratio(pictures[:1].expand(3, -1, -1, -1), pictures[:1].expand(3, -1, -1, -1))
    with pytest.raises(InvalidValueError, match="needs 2 pictures"):
        matched_ratio(pictures[:1], pictures[:1])


def test_a_gain_of_each_picture_is_its_spectrum_error() -> None:
    pictures = 0.1 * normal(30, 3, 16, 16)
    assert spectrum_error(pictures, 0.5 * pictures) == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert spectrum_error(pictures, pictures.flip(3)) == pytest.approx(0.0, abs=1.0)
    assert spectrum_error(pictures, pictures.flip(0)) > 0.5  # each picture against its own, not the sets' means


def test_figures_together_are_those_apart() -> None:
    pictures = 0.2 * normal(7, 3, 12, 12)
    made = pictures + 0.1 * normal(7, 3, 12, 12, name=1)
    found = nearness(pictures, made, batch_size=3)
    assert found.ssim == pytest.approx(float(ssim(pictures, made).mean()))
    assert (found.psnr, found.median_psnr) == (psnr(pictures, made), median_psnr(pictures, made))
    assert found.picture_psnr == picture_psnr(pictures, made) > found.psnr
    assert found.spectrum_error == spectrum_error(pictures, made)
    assert nearness(pictures[..., :8, :8], made[..., :8, :8]).ssim is None


def test_codes_go_through_batch_by_batch() -> None:
    pictures = normal(7, 3, 4, 4)
    codes, made = through(pictures, lambda x: 2 * x.flatten(1), lambda w: w.reshape(-1, 3, 4, 4) / 2, batch_size=3)
    assert torch.equal(codes, 2 * pictures.flatten(1)) and torch.equal(made, pictures)


def test_what_is_no_reconstruction_is_refused() -> None:
    pictures = torch.zeros(2, 3, 12, 12)
    with pytest.raises(InvalidValueError, match="its picture's shape"):
        psnr(pictures, pictures[:1])
    with pytest.raises(InvalidValueError, match="broken model"):
        psnr(pictures, pictures / 0)
    with pytest.raises(InvalidValueError, match="at least 11"):
        ssim(pictures[..., :8], pictures[..., :8])
