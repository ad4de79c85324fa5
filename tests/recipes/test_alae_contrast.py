"""Contrastive terms and views: closed forms, sums written out, what a wrong pairing costs, and colours that stay."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fractal_streams.recipes.alae.contrast import (
    directions,
    drawn_places,
    features_at,
    info_nce,
    nt_xent,
    patch_nce,
    patches_of,
)
from fractal_streams.recipes.alae.views import drawn_maps, jittered, recoloured, resampled, view
from torch import Tensor

from fractal_streams.errors import InvalidValueError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def cross_entropy(pair: float, others: list[float]) -> float:
    return -math.log(math.exp(pair) / (math.exp(pair) + sum(map(math.exp, others))))


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_orthonormal_codes_cost_what_their_number_and_the_temperature_say(temperature: float) -> None:
    codes = 3.0 * torch.eye(8, dtype=torch.float64)
    expected = math.log(1.0 + 7.0 * math.exp(-1.0 / temperature))
    assert info_nce(codes, codes, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert patch_nce(codes[None], codes[None], temperature).item() == pytest.approx(expected, rel=1e-12)


def test_equal_codes_cost_the_logarithm_of_the_choices() -> None:
    same = torch.ones(8, 5, dtype=torch.float64)
    assert info_nce(same, same).item() == pytest.approx(math.log(8))
    assert nt_xent(same, same).item() == pytest.approx(math.log(15))
    assert patch_nce(same.expand(3, 8, 5), same.expand(3, 8, 5)).item() == pytest.approx(math.log(8))


def test_infonce_is_the_sum_written_out() -> None:
    queries, keys = drawn(5, 4), drawn(5, 4, seed=1)
    terms = [
        cross_entropy(
            cosine(queries[i], keys[i]) / 0.3, [cosine(queries[i], keys[j]) / 0.3 for j in range(5) if j != i]
        )
        for i in range(5)
    ]
    assert info_nce(queries, keys, 0.3).item() == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_ntxent_is_the_sum_written_out() -> None:
    first, second = drawn(4, 6), drawn(4, 6, seed=1)
    codes, terms = [*first, *second], []
    for i in range(8):
        pair = (i + 4) % 8
        others = [cosine(codes[i], codes[j]) / 0.5 for j in range(8) if j not in (i, pair)]
        terms.append(cross_entropy(cosine(codes[i], codes[pair]) / 0.5, others))
    assert nt_xent(first, second, 0.5).item() == pytest.approx(sum(terms) / 8, rel=1e-12)
    assert nt_xent(second, first, 0.5).item() == pytest.approx(sum(terms) / 8, rel=1e-12)


def test_patchnce_is_the_sum_written_out_and_its_negatives_are_of_one_picture() -> None:
    queries, keys = drawn(2, 5, 3), drawn(2, 5, 3, seed=1)
    terms = [
        cross_entropy(
            cosine(queries[b, s], keys[b, s]) / 0.4,
            [cosine(queries[b, s], keys[b, r]) / 0.4 for r in range(5) if r != s],
        )
        for b in range(2)
        for s in range(5)
    ]
    assert patch_nce(queries, keys, 0.4).item() == pytest.approx(sum(terms) / 10, rel=1e-12)
    alone = torch.stack([patch_nce(queries[b : b + 1], keys[b : b + 1], 0.4) for b in range(2)])
    assert patch_nce(queries, keys, 0.4).item() == pytest.approx(alone.mean().item(), rel=1e-12)


@pytest.mark.parametrize("loss", [info_nce, nt_xent, lambda one, two: patch_nce(one[None], two[None])])
def test_a_wrong_pairing_costs_more(loss) -> None:  # type: ignore[no-untyped-def]
    codes = drawn(16, 8)
    near, order = codes + 0.1 * drawn(16, 8, seed=1), torch.arange(16).roll(1)
    right, wrong = loss(codes, near).item(), loss(codes, near[order]).item()
    assert right < 0.6 and wrong > right + 3.0
    assert loss(codes[order], near[order]).item() == pytest.approx(right, rel=1e-9)  # both permuted: the same pairs


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_lengths_and_rotations_change_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    one, two = drawn(6, 5), drawn(6, 5, seed=1)
    turn = torch.linalg.qr(drawn(5, 5, seed=2)).Q
    value = loss(one, two).item()
    assert loss(7.0 * one @ turn, two @ turn).item() == pytest.approx(value, rel=1e-9)
    assert loss(one + 1.0, two).item() != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", ["equal", "zero", "dead"])
@pytest.mark.parametrize("loss", [info_nce, nt_xent, lambda one, two: patch_nce(one[None], two[None])])
def test_gradients_are_finite_where_codes_are_degenerate(loss, name: str) -> None:  # type: ignore[no-untyped-def]
    codes = {"equal": torch.ones(4, 3), "zero": torch.zeros(4, 3), "dead": torch.eye(4, 3)}[name].requires_grad_()
    loss(codes, codes.roll(1, 0)).backward()
    assert codes.grad is not None and bool(codes.grad.isfinite().all())
    assert codes.grad.abs().max() < 1e6


def test_training_on_it_pairs_codes() -> None:
    queries, keys = drawn(8, 4).requires_grad_(), drawn(8, 4, seed=1)
    first = info_nce(queries, keys, 0.1).item()
    for _ in range(60):
        (slope,) = torch.autograd.grad(info_nce(queries, keys, 0.1), queries)
        queries = (queries - 0.3 * slope).detach().requires_grad_()
    assert info_nce(queries, keys, 0.1) < 0.1 * first
    assert torch.equal((directions(queries) @ directions(keys).T).argmax(1), torch.arange(8))


def test_half_precision_only_rounds_the_inputs() -> None:
    one, two = drawn(16, 32), drawn(16, 32, seed=1)
    exact = info_nce(one.float(), two.float(), 0.1).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(one.float(), two.float(), 0.1).item() == exact  # autocast is off inside
    rounded = info_nce(one.bfloat16(), two.bfloat16(), 0.1)
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact, rel=0.02)


def test_places_are_all_different_and_carry_their_own_features() -> None:
    torch.manual_seed(0)
    places = drawn_places(50, 16, 6, torch.device("cpu"))
    assert places.shape == (50, 6) and all(len(set(row)) == 6 for row in places.tolist())
    assert set(places.flatten().tolist()) == set(range(16))
    assert len({tuple(row) for row in places.tolist()}) > 40  # every picture has places of its own
    assert sorted(drawn_places(1, 4, 256, torch.device("cpu"))[0].tolist()) == [0, 1, 2, 3]
    maps = drawn(50, 3, 4, 4)
    found = features_at(maps, places)
    for b, s in ((0, 0), (7, 3), (49, 5)):
        row, column = divmod(int(places[b, s]), 4)
        assert torch.equal(found[b, s], maps[b, :, row, column])


def test_patches_are_aligned_so_that_equal_maps_pair_with_themselves() -> None:
    maps = [drawn(3, 8, 4, 4).float(), drawn(3, 8, 2, 2, seed=1).float()]
    queries, keys = patches_of(maps, [each.clone() for each in maps], places=9)
    assert [query.shape for query in queries] == [(3, 9, 8), (3, 4, 8)]
    assert all(torch.equal(query, key) for query, key in zip(queries, keys, strict=True))
    shifted = patches_of(maps, [each.roll(1, -1) for each in maps], places=9)
    assert patch_nce(shifted[0][0], shifted[1][0]) > patch_nce(queries[0], keys[0]) + 1.0


@pytest.mark.parametrize(
    "loss, first, second",
    [
        (info_nce, (1, 4), (1, 4)),
        (info_nce, (3, 4), (2, 4)),
        (nt_xent, (2, 3, 4), (2, 3, 4)),
        (patch_nce, (4, 1, 3), (4, 1, 3)),
    ],
)
def test_what_has_no_negatives_or_no_pair_is_refused(loss, first, second) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="no negatives"):
        loss(torch.ones(first), torch.ones(second))


IDENTITY = torch.eye(2, 3)


def test_maps_of_views_do_what_they_say() -> None:
    images = drawn(1, 3, 8, 8).float()
    for map_, expected in (
        (IDENTITY, images),
        (torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), images.flip(-1)),
        (torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), images.flip(-2)),
        (torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 0.0]]), torch.cat([images[..., 1:], images[..., -1:]], -1)),
    ):
        torch.testing.assert_close(resampled(images, map_[None]), expected, atol=2e-6, rtol=0)


def test_a_crop_of_a_ramp_is_the_ramp_of_its_map() -> None:
    ramp = torch.linspace(-0.9375, 0.9375, 16)  # the coordinates of pixel centres
    images = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16)])[None]
    torch.manual_seed(0)
    maps = drawn_maps(40, "cpu", area=(0.3, 0.8), padding=0.0)
    seen = resampled(images.expand(40, 2, 16, 16), maps)
    expected = torch.einsum("bij,jhw->bihw", maps[:, :, :2], images[0]) + maps[:, :, 2, None, None]
    inside = expected.abs() < 0.93
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(seen[inside], expected[inside], atol=1e-5, rtol=0)


def test_maps_keep_to_area_aspect_padding_and_flip_half_of_all() -> None:
    torch.manual_seed(0)
    maps = drawn_maps(4000, "cpu", area=(0.25, 0.5), aspect=1.5, padding=0.1)
    across, down = maps[:, 0, 0], maps[:, 1, 1]
    share, ratio = (across * down).abs(), (across / down).abs()
    assert 0.25 - 1e-6 <= share.min() < 0.26 and 0.49 < share.max() <= 0.5 + 1e-6
    assert ratio.max() <= 1.5 + 1e-5 and ratio.min() >= 1 / 1.5 - 1e-5 and ratio.max() > 1.45
    reach = maps[:, :, 2].abs() + torch.stack([across, down], 1).abs()
    assert 1.15 < reach.max() <= 1.2 + 1e-6
    for flipped in (across < 0, down < 0, (across < 0) == (down < 0)):
        assert 0.46 < flipped.float().mean() < 0.54
    assert drawn_maps(100, "cpu", flips=False)[:, 0, 0].min() > 0


def test_each_picture_has_a_view_of_its_own_and_colours_stay_as_they_are() -> None:
    torch.manual_seed(0)
    images = drawn(1, 3, 16, 16).float().clamp(-1, 1).expand(8, 3, 16, 16)
    seen = view(images)
    assert all(not torch.equal(seen[0], each) for each in seen[1:])
    assert seen.min() >= images.min() - 1e-5 and seen.max() <= images.max() + 1e-5
    flat = torch.tensor([0.2, -0.5, 0.9])[None, :, None, None].expand(8, 3, 16, 16)
    torch.testing.assert_close(view(flat), flat, atol=1e-6, rtol=0)
    assert (view(flat, colour=0.3) - flat).abs().max() > 0.05
    assert view(images.bfloat16()).dtype == torch.float32


def test_jitter_keeps_grey_grey_and_pictures_in_range() -> None:
    torch.manual_seed(0)
    images = drawn(64, 3, 4, 4).float().clamp(-1, 1)
    seen = jittered(images, 0.4)
    assert seen.abs().max() <= 1.0 and (seen - images).abs().mean() > 0.02
    grey = jittered(images[:, :1].expand(-1, 3, -1, -1), 0.4)
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(jittered(images, 0.0), images, atol=1e-6, rtol=0)


def test_pictures_are_recoloured_by_each_symmetry_of_the_cube_of_colours_equally_often() -> None:
    torch.manual_seed(0)
    colours = torch.tensor([0.1, 0.4, -0.9])[None, :, None, None].expand(4800, 3, 2, 2)
    seen = recoloured(colours)
    assert torch.equal(seen, seen[:, :, :1, :1].expand_as(seen))
    kinds, counts = seen[:, :, 0, 0].unique(dim=0, return_counts=True)
    assert len(kinds) == 48 and counts.min() > 60 and counts.max() < 145
    torch.testing.assert_close(kinds.abs().sort(1).values, torch.tensor([[0.1, 0.4, 0.9]]).expand(48, 3))
    assert not torch.equal(view(colours, symmetries=True), view(colours))


@pytest.mark.parametrize("wrong", [{"area": (0.0, 1.0)}, {"area": (0.9, 0.5)}, {"aspect": 0.5}, {"padding": 0.7}])
def test_views_out_of_range_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="area"):
        view(torch.zeros(1, 3, 8, 8), **wrong)
    with pytest.raises(InvalidValueError, match="colour"):
        view(torch.zeros(1, 3, 8, 8), colour=1.0)
