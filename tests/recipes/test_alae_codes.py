"""What codes know and how they lie, by codes whose answers are known."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.codes import (
    SHALLOW,
    colour_histogram,
    correlation,
    dimensions,
    knowledge,
    nearest_accuracy,
    path_length,
    relative_reciprocity,
    speed_correlation,
    speeds,
    stills,
    true_speeds,
)
from fractal_streams.recipes.probe import Look

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError


def normal(*shape: int, name: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


def look(samples: int, name: int) -> Look:
    """Pictures whose red is their latent, and whose class is whether green is light."""
    red = torch.rand(samples, generator=torch.Generator().manual_seed(name)) - 0.5
    labels = torch.arange(samples) * 7 % 5 % 2
    images = 0.02 * normal(samples, 3, 8, 8, name=name)
    images[:, 0] += red[:, None, None]
    images[:, 1] += (labels - 0.5)[:, None, None]
    return Look(images, labels, {"power": red, "top": red, "beta": torch.zeros(samples)})


def test_knowledge_is_there_where_it_was_put() -> None:
    known, test = look(300, 0), look(200, 1)
    whole = knowledge(lambda images: images.mean((2, 3)), known, test)
    assert whole.linear == whole.nearest == 1.0
    assert set(whole.r_squared) == {"power"}  # no latent of a crop's place, none that doesn't vary
    assert whole.r_squared["power"] > 0.98 and whole.mean == whole.r_squared["power"]
    blue = knowledge(lambda images: images[:, 2].mean((1, 2))[:, None], known, test)
    assert abs(blue.r_squared["power"]) < 0.1 and 0.3 < blue.linear < 0.7 and 0.3 < blue.nearest < 0.7  # type: ignore[operator]


def test_what_a_stream_does_not_tell_is_left_out() -> None:
    known, test = (
        Look(each.images, each.labels * 0, {"item": each.latents["power"]}) for each in (look(60, 0), look(40, 1))
    )
    found = knowledge(lambda images: images.mean((2, 3)), known, test)
    assert found.linear is None and found.nearest is None and found.mean is None and not found.r_squared


def test_most_of_the_nearest_decide_and_of_a_tie_the_nearer() -> None:
    known = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]])
    labels = torch.tensor([0, 1, 1, 0, 2, 2])
    here = torch.tensor([[0.4], [-0.2], [10.4]])
    assert nearest_accuracy(known, labels, here, torch.tensor([1, 1, 2]), neighbours=3) == 1.0
    for label, share in ((0, 1.0), (1, 0.0)):  # 0 and 1 of class 0 and 1 tie, and 0 is nearer
        assert nearest_accuracy(known, labels, here[:1], torch.tensor([label]), neighbours=2) == share
    with pytest.raises(InvalidValueError, match="5 neighbours"):
        nearest_accuracy(known[:4], labels[:4], here, torch.tensor([0, 0, 0]))


def test_neighbours_are_found_by_standardised_features() -> None:
    """The class is in a feature that is small beside noise, and a constant one counts nothing."""
    known, test = normal(400, 3), normal(200, 3, name=1)
    labels, true = (known[:, 0] > 0).long(), (test[:, 0] > 0).long()
    plain = nearest_accuracy(known[:, :2], labels, test[:, :2], true)
    scale = torch.tensor([1e-3, 1e3, 0.0])
    assert nearest_accuracy(known * scale, labels, test * scale + torch.tensor([0, 0, 5.0]), true) == plain > 0.85


def test_shallow_features_tell_what_they_are_of() -> None:
    images = torch.tensor([[-1.0, -1.0], [-0.4, 1.0]]).expand(2, 3, 2, 2).clone()
    images[1, 1:] = 1.0
    found = colour_histogram(images)
    assert found.sum(1).tolist() == [1.0, 1.0] and found.shape == (2, 64)
    assert [found[0, place].item() for place in (0, 21, 63)] == [0.5, 0.25, 0.25]
    assert [found[1, place].item() for place in (15, 31, 63)] == [0.5, 0.25, 0.25]
    pictures = open_stream("fractal-10", device="cpu", height=16, width=16, dtype="float32", mean=0.5, std=0.5)
    sizes = {name: features(pictures[:3].torch().images).shape[1] for name, features in SHALLOW.items()}
    assert sizes == {"spectrum": 7, "colours": 64, "random_convolutions": 448}


def test_reciprocity_is_0_of_codes_that_come_back_and_1_of_their_mean() -> None:
    codes = normal(500, 6) * torch.tensor([3.0, 1.0, 1.0, 0.1, 0.0, 1.0])
    assert relative_reciprocity(codes, codes) == 0.0
    assert relative_reciprocity(codes, codes.mean(0).expand_as(codes)) == pytest.approx(499 / 500, rel=1e-5)
    off = codes + torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert relative_reciprocity(codes, off) == pytest.approx(0.25 / float(codes.var(0).sum()), rel=1e-4)
    assert relative_reciprocity(7 * codes, 7 * off) == pytest.approx(relative_reciprocity(codes, off), rel=1e-4)
    with pytest.raises(InvalidValueError, match="all the same"):
        relative_reciprocity(codes[:1].expand(3, 6), codes[:3])
    with pytest.raises(InvalidValueError, match="of one shape"):
        relative_reciprocity(codes, codes[:3])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_codes_lie_in_as_many_directions_as_they_spread_in(count: int) -> None:
    turn = torch.linalg.qr(normal(8, 8).double()).Q
    corners = torch.cat([torch.eye(8)[:count], -torch.eye(8)[:count]]).double()
    assert dimensions(3.0 * corners @ turn + 7.0) == pytest.approx(count, rel=1e-9)
    uneven = corners * torch.tensor([2.0, *[1.0] * 7], dtype=torch.float64)
    assert dimensions(uneven) == pytest.approx((4 + count - 1) ** 2 / (16 + count - 1), rel=1e-9)
    with pytest.raises(InvalidValueError, match="need to differ"):
        dimensions(corners[:1].expand(4, 8))


def test_a_path_of_a_linear_decoder_is_as_long_as_its_step() -> None:
    """|A (w' - w)|² at every place, by the identity's features; without the shortest and longest 1 %."""
    weights, starts, ends = normal(4, 12), normal(300, 4, name=1), normal(300, 4, name=2)
    places = torch.rand(300, generator=torch.Generator().manual_seed(3))
    found = path_length(lambda codes: codes @ weights, lambda each: each, starts, ends, places, batch_size=70)
    lengths = ((ends - starts) @ weights).double().square().sum(1).sort().values
    assert found == pytest.approx(float(lengths[3:-3].mean()), rel=2e-2)
    coarse = path_length(lambda codes: codes @ weights, lambda each: each, starts, ends, places, step=0.01)
    assert coarse == pytest.approx(float(lengths[3:-3].mean()), rel=1e-4)


def test_a_path_is_measured_where_it_is() -> None:
    """Of w², the speed at t of the line from 0 to 1 is 2t."""
    starts, ends, places = torch.zeros(200, 1), torch.ones(200, 1), torch.linspace(0, 1, 200)
    found = path_length(torch.square, lambda each: each, starts, ends, places, step=1e-3)
    middle = (2 * places[2:-2].double()).square().mean()
    assert found == pytest.approx(float(middle), rel=1e-2)


def test_a_path_that_is_none_is_refused() -> None:
    codes = torch.zeros(3, 2)
    with pytest.raises(InvalidValueError, match="NaN or infinity"):
        path_length(lambda each: each / 0, lambda each: each, codes, codes, torch.zeros(3))
    with pytest.raises(InvalidValueError, match="paths need"):
        path_length(lambda each: each, lambda each: each, codes, codes, torch.zeros(2))


def test_codes_that_move_as_the_parameter_follow_its_speed() -> None:
    """Any rotation and scale of it, and another clip at another place."""
    track = normal(20, 9).cumsum(1) * torch.rand(20, 1, generator=torch.Generator().manual_seed(1))
    turn = torch.linalg.qr(normal(5, 5))[0][:1]
    codes = 7 * track[:, :, None] * turn + normal(20, 1, 5, name=2)
    assert speed_correlation(codes, {"power": track}) == pytest.approx(1.0, abs=1e-5)
    assert abs(speed_correlation(normal(20, 9, 5, name=3), {"power": track})) < 5 / math.sqrt(160)


def test_true_speeds_are_in_deviations_and_angles_go_the_shorter_way() -> None:
    one = torch.tensor([[0.0, 1.0, 3.0], [3.0, 3.0, 3.0]])
    spread = float(one.double().std())
    still = torch.full((2, 3), 4.0)
    found = true_speeds({"power": one, "blend": still, "item": one * 9})
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double() / spread)
    angle = torch.tensor([[0.1, math.tau - 0.1, math.tau - 0.4]])
    turned = true_speeds({"rotation": angle}) * math.tau / math.sqrt(12)
    assert turned.tolist()[0] == pytest.approx([0.2, 0.3], abs=1e-5)
    both = true_speeds({"power": one, "centre_x": 2 * one})
    torch.testing.assert_close(both, found * math.sqrt(2))
    part = true_speeds({"power": one, "roots": torch.tensor([[math.nan] * 3, [0.0, 1.0, 2.0]])})
    torch.testing.assert_close(part[0], found[0])
    assert part[1].tolist() == pytest.approx([1.0, 1.0])


def test_a_correlation_of_what_does_not_differ_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="values that differ"):
        correlation(torch.ones(4), torch.arange(4.0))
    with pytest.raises(InvalidValueError, match="no parameter moves"):
        speed_correlation(normal(2, 3, 4), {"power": torch.ones(2, 3), "item": normal(2, 3)})
    assert speeds(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])).tolist() == [[5.0]]


def test_frames_of_clips_are_stills_with_their_own_latents() -> None:
    images = normal(2, 3, 3, 8, 8)
    moving, fixed = torch.arange(6.0).reshape(2, 3), torch.tensor([10.0, 20.0])
    found = stills(Look(images, torch.tensor([4, 5]), {"power": moving, "poly0": fixed}))
    assert torch.equal(found.images[4], images[1, 1])
    assert found.labels.tolist() == [4, 4, 4, 5, 5, 5]
    assert found.latents["power"].tolist() == list(range(6))
    assert found.latents["poly0"].tolist() == [10.0] * 3 + [20.0] * 3
    assert stills(found) is found
