"""Distances of sets of features: closed forms of Gaussians, sums over pairs, and what the estimates promise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.distance import (
    Distance,
    discrepancy,
    distance,
    features_of,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    levels,
)
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError
from fractal_streams.normalisation import channel_statistics


def drawn(count: int, width: int, seed: int, mean: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + spread * torch.randn(count, width, dtype=torch.float64, generator=generator)


def covariance(width: int, seed: int, rank: int | None = None) -> Tensor:
    root = drawn(width, rank or width, seed)
    return root @ root.T


def test_equal_gaussians_are_at_no_distance_even_where_they_are_flat() -> None:
    for rank in (1, 5):
        mean, spread = drawn(1, 5, 0)[0], covariance(5, 1, rank)
        assert gaussian_distance(mean, spread, mean, spread) == pytest.approx(0.0, abs=1e-6)


def test_independent_coordinates_add_up() -> None:
    mean, other, deviation, spread = (drawn(1, 6, seed)[0] for seed in range(4))
    found = gaussian_distance(mean, deviation.square().diag(), other, spread.square().diag())
    asked = (mean - other).square().sum() + (deviation.abs() - spread.abs()).square().sum()
    assert found == pytest.approx(float(asked), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 8), seed=st.integers(0, 2**20))
def test_the_root_is_that_of_the_product(width: int, seed: int) -> None:
    """tr (C D)^1/2 from the eigenvalues of C D itself, which has no symmetry; neither side is favoured."""
    one, other = covariance(width, 2 * seed), covariance(width, 2 * seed + 1)
    mean, away = drawn(1, width, seed)[0], drawn(1, width, seed + 9)[0]
    mixed = torch.linalg.eigvals(one @ other).real.clamp(min=0.0).sqrt().sum()
    asked = float((mean - away).square().sum() + one.trace() + other.trace() - 2 * mixed)
    found = gaussian_distance(mean, one, away, other)
    assert found == pytest.approx(asked, rel=1e-6, abs=1e-6)
    assert found == pytest.approx(gaussian_distance(away, other, mean, one), rel=1e-6, abs=1e-6)
    assert found >= -1e-7


def test_sets_that_lie_apart_by_a_step_are_apart_by_its_square() -> None:
    features, step = drawn(50, 4, 0), torch.tensor([3.0, 0.0, -4.0, 0.0])
    assert frechet_distance(features, features + step) == pytest.approx(25.0, abs=1e-6)
    assert frechet_distance(features, -2 * features + 3 * features.mean(0)) == pytest.approx(
        float(torch.cov(features.T).trace()), rel=1e-6
    )


def test_more_pictures_make_the_frechet_distance_smaller_but_not_the_kernel_distance() -> None:
    """Of two sets from one distribution: about 2 D / n / ... for the one, 0 up to its error for the other."""
    few = [distance(drawn(60, 20, 2 * k), drawn(60, 20, 2 * k + 1)) for k in range(20)]
    many = [distance(drawn(960, 20, 2 * k), drawn(960, 20, 2 * k + 1)) for k in range(20)]
    mean = [sum(each.frechet for each in sets) / 20 for sets in (few, many)]
    assert 10 < mean[0] / mean[1] < 24  # 16 times as many
    for sets in (few, many):
        kernels = torch.tensor([each.kernel for each in sets])
        assert abs(float(kernels.mean())) < 4 * float(kernels.std()) / 20**0.5
        told = torch.tensor([each.kernel_error for each in sets]).square().mean().sqrt()
        assert 0.5 < float(told) / float(kernels.std()) < 2.0


def test_the_kernel_distance_sums_over_pairs() -> None:
    one, other = drawn(4, 3, 0), drawn(5, 3, 1)

    def kernel(first: Tensor, second: Tensor) -> float:
        return float((first @ second / 3 + 1) ** 3)

    def mean(pairs: object) -> float:
        values = [kernel(a, b) for a, b in pairs]  # type: ignore[attr-defined]
        return sum(values) / len(values)

    within = [mean(itertools.permutations(rows, 2)) for rows in (one, other)]
    assert float(discrepancy(one, other)) == pytest.approx(sum(within) - 2 * mean(itertools.product(one, other)))


def test_the_kernel_distance_is_the_mean_of_blocks_with_its_error() -> None:
    one, other = drawn(43, 3, 0), drawn(40, 3, 1, mean=0.5)
    parts = torch.stack([discrepancy(one[4 * k : 4 * k + 4], other[4 * k : 4 * k + 4]) for k in range(10)])
    asked = (float(parts.mean()), float(parts.std()) / 10**0.5)
    assert kernel_distance(one, other) == pytest.approx(asked)


def test_what_differs_is_found() -> None:
    """A mean, a spread, and a third moment, which the Fréchet distance can't see."""
    plain = drawn(4000, 4, 0)
    for other in (drawn(4000, 4, 1, mean=0.2), drawn(4000, 4, 1, spread=1.2)):
        found = distance(plain, other)
        assert found.kernel > 5 * found.kernel_error and found.frechet > 0.05
    skewed = drawn(4000, 4, 1).square().sub(1).div(2**0.5)
    found, same = distance(plain, skewed), distance(plain, drawn(4000, 4, 2))
    assert found.kernel > 5 * found.kernel_error
    assert found.frechet < 4 * same.frechet


def test_levels_and_their_form_are_told_back_exactly() -> None:
    """Every level goes to [-1, 1] and back, in the type that a GPU trains on too."""
    known = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    signed = (known.double() / 255 - 0.5) / 0.5
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(levels(signed.to(dtype)), known)
    assert levels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_network_is_given_pictures_in_the_form_that_it_was_trained_on() -> None:
    mean, std = channel_statistics("fractal-10")
    form: dict[str, Any] = {"device": "cpu", "height": 8, "width": 8}
    asked = open_stream("fractal-10", **form, dtype="float32", mean=mean, std=std)[:30].torch().images
    known = open_stream("fractal-10", **form)[:30].torch().images
    signed = open_stream("fractal-10", **form, dtype="float32", mean=0.5, std=0.5)[:30].torch().images
    for pictures in (known, levels(signed)):
        found = features_of(pictures, lambda images: images.flatten(1), mean, std, batch_size=7)
        assert found.dtype == torch.float64 and found.shape == (30, 192)
        assert torch.allclose(found, asked.flatten(1).double(), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_compared_is_refused() -> None:
    features = drawn(20, 3, 0)
    for one, other in ((features, features[:19]), (features, drawn(20, 4, 0)), (features[:19], features[:19])):
        with pytest.raises(InvalidValueError, match="two sets"):
            distance(one, other)
    with pytest.raises(InvalidValueError, match="finite"):
        distance(features, features / 0)
    with pytest.raises(InvalidValueError, match="10 blocks need 20"):
        kernel_distance(features[:19], features)
    assert isinstance(distance(features, features), Distance)
