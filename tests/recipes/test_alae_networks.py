"""The four networks: how many weights, whom a picture depends on, what is linear, how one size grows into another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.layers import Noise, doubled, halved, normalised, statistics
from fractal_streams.recipes.alae.model import ALAE, NETWORKS, SIZES, Size
from fractal_streams.recipes.alae.networks import Discriminator, Places, Written, levels_of
from small_alae import model_of
from torch import Tensor, nn

from fractal_streams.errors import InvalidValueError

REPORTED = {
    "tiny": (0.23, 0.19, 0.02, 0.01),
    "32": (0.94, 0.77, 0.07, 0.03),
    "s-64": (3.8, 3.1, 0.53, 0.13),
    "m-64": (5.2, 4.5, 0.53, 0.13),
}
"""Millions of weights of E, G, F and D, counted on networks of the authors' form."""


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def counted(size: Size) -> dict[str, int]:
    """How many weights there have to be, of one that does not grow."""
    code, blocks = size.code_size, size.image_size.bit_length() - 2
    widths = [min(size.wide, size.narrow * 2 ** (blocks - 1 - block)) for block in range(blocks)]  # coarsest first
    generator = 16 * widths[0] + 3 * widths[-1] + 3
    encoder = 3 * widths[-1] + widths[-1]
    for block, own in enumerate(widths):
        before = widths[block - 1] if block else 0  # the first block begins with a constant, and has one convolution
        generator += 9 * before * own + 9 * own**2 + 2 * (own + own + linear(code, 2 * own))
        after = widths[block - 1] if block else min(size.wide, 2 * own)
        encoder += 9 * own**2 + 9 * own * after + sum(each + linear(2 * each, code) for each in (own, after))
    return {
        "encoder": encoder, "generator": generator, "projector": size.projector * linear(code, code),
        "discriminator": (size.discriminator - 1) * linear(code, code) + linear(code, 1),
    }  # fmt: skip


def numbers(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", REPORTED)
def test_numbers_of_weights(name: str) -> None:
    size, expected = SIZES[name], counted(SIZES[name])
    with torch.device("meta"):
        model = ALAE(size, (3, size.image_size, size.image_size))
    assert {part: numbers(getattr(model, part)) for part in NETWORKS} == expected
    for part, reported in zip(("encoder", "generator", "projector", "discriminator"), REPORTED[name], strict=True):
        unit = 0.1 if reported > 1.0 else 0.01
        assert abs(expected[part] / 1e6 - reported) < 0.75 * unit, part
    assert numbers(model) == sum(expected.values())


def dense_only(name: str) -> bool:
    return ".places." in name or ".written." in name


def spread_noise(model: ALAE) -> None:
    for module in model.modules():
        if isinstance(module, Noise):
            nn.init.ones_(module.strength)


def shaken(model: ALAE) -> ALAE:
    """With no weight left at a value at which it does nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 2.0 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 1.0


@pytest.fixture(scope="module", params=["styles", "flat", "growing"])
def model(request: pytest.FixtureRequest) -> ALAE:
    if request.param == "growing":
        grown = shaken(model_of(16, first_level=1))
        grown.grow(2, 0.3)
        return grown
    return shaken(model_of(flat=request.param == "flat"))


@torch.no_grad()
def test_a_picture_depends_on_no_other_of_its_batch(model: ALAE) -> None:
    """Of each network, and of all in a row: what is made of a permuted batch is the permuted, not the repeated."""
    edge = model.image_size
    pictures, order = torch.randn(6, 3, edge, edge), torch.tensor([3, 0, 5, 1, 4, 2])
    draws = torch.randn(6, model.prior_size)
    assert not [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    maps: Mapping[str, Any] = {
        "projector": (model.project, draws),
        "encoder": (model.encode, pictures),
        "generator": (lambda codes: model.decode(codes, noise=False), model.project(draws)),
        "discriminator": (model.score, model.project(draws)),
        "all": (lambda given: model.score(model.encode(model.decode(model.encode(given), noise=False))), pictures),
        "reconstruction": (lambda given: model.decode(model.encode(given), noise=False), pictures),
    }
    for name, (function, given) in maps.items():
        whole = function(given)
        torch.testing.assert_close(function(given[order]), whole[order], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(function(given[:1]), whole[:1], atol=2e-4, rtol=1e-3)  # alone
        assert not torch.allclose(whole[0], whole[1], atol=1e-3), name  # and they are not all the same


def test_a_discriminator_without_activation_is_linear() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 20, 8)
    for activation, linear_one in (("none", True), ("lrelu", False)):
        judge = Discriminator(8, 3, activation)
        with torch.no_grad():
            for layer in judge.layers:
                layer.bias.normal_()
            apart = judge(0.3 * first + 0.7 * second) - (0.3 * judge(first) + 0.7 * judge(second))
        assert (float(apart.abs().max()) < 1e-5) == linear_one, activation
        assert judge(first).shape == (20,)


@torch.no_grad()
def test_noise_is_silent_at_first_and_can_be_left_out(images: Tensor) -> None:
    model = model_of()
    codes = torch.randn(4, 8)
    assert torch.equal(model.decode(codes), model.decode(codes, noise=False))  # strengths of 0
    spread_noise(model)
    assert not torch.equal(model.decode(codes), model.decode(codes))
    assert torch.equal(model.decode(codes, noise=False), model.decode(codes, noise=False))


@torch.no_grad()
def test_at_a_blend_of_0_it_is_the_level_below_and_at_1_the_level_itself() -> None:
    model = shaken(model_of(16, first_level=1))
    codes, pictures = torch.randn(3, 8), torch.randn(3, 3, 16, 16)
    model.grow(1)
    small, code = model.decode(codes, noise=False), model.encode(halved(pictures))
    assert small.shape == (3, 3, 8, 8) and model.num_styles == 4 and model.image_size == 8
    model.grow(2, 0.0)
    assert model.num_styles == 6 and model.image_size == 16
    assert torch.equal(model.decode(codes, noise=False), doubled(small))
    torch.testing.assert_close(model.encode(pictures), code, atol=1e-5, rtol=1e-5)
    model.grow(2)
    whole, read = model.decode(codes, noise=False), model.encode(pictures)
    model.grow(2, 0.25)
    torch.testing.assert_close(model.decode(codes, noise=False), 0.75 * doubled(small) + 0.25 * whole)
    for colours in (model.generator.colours["1"], model.encoder.eyes["1"]):
        for weight in colours.parameters():
            weight.add_(1.0)
    model.blend.fill_(1.0)
    model.blending = True  # the branch is gone through, and counts for nothing
    torch.testing.assert_close(model.decode(codes, noise=False), whole)
    torch.testing.assert_close(model.encode(pictures), read, atol=1e-5, rtol=1e-5)
    model.grow(2)
    assert torch.equal(model.decode(codes, noise=False), whole) and torch.equal(model.encode(pictures), read)


@torch.no_grad()
def test_the_finest_block_counts_in_the_code_as_much_as_it_is_blended_in() -> None:
    """The code is the sum of what all blocks say, and the maps that are told are as many as blocks."""
    model = shaken(model_of(16, first_level=1))
    pictures = torch.randn(2, 3, 16, 16)
    model.grow(2, 0.5)
    maps, told, raws = model.encoder.blocks[2](model.encoder.eyes["2"](pictures))
    raws = [*raws]  # of full size too
    maps = 0.5 * maps + 0.5 * model.encoder.eyes["1"](halved(pictures))
    code, sizes = 0.5 * told, [maps.shape[-1]]
    for number in (1, 0):
        maps, told, (_, raw) = model.encoder.blocks[number](maps)
        raws.append(raw)
        code, sizes = code + told, [*sizes, maps.shape[-1]]
    torch.testing.assert_close(model.encode(pictures), code)
    assert sizes == [8, 4, 2] == [each.shape[-1] for each in model.features(pictures)]
    torch.testing.assert_close(model.features(pictures, raw=True), raws)
    for own, maps in zip(raws[1:], model.features(pictures), strict=True):
        if maps.shape[-1] < 8:  # those of the finest block are blended
            torch.testing.assert_close(normalised(own, statistics(own)), maps)


@torch.no_grad()
def test_while_biases_are_zero_the_first_raw_maps_alone_tell_how_far_from_grey_a_picture_is() -> None:
    model, pictures = model_of(16), torch.randn(2, 3, 16, 16)  # biases begin at 0
    whole, weak = (model.features(share * pictures, raw=True) for share in (1.0, 0.5))
    torch.testing.assert_close(weak, [0.5 * whole[0], *whole[1:]], atol=1e-3, rtol=1e-3)
    assert [each.shape[-1] for each in whole] == [16, 8, 4, 2] and float(whole[0].std()) > 0.1


@pytest.mark.parametrize("dense", [False, True])
def test_one_look_gives_codes_with_a_gradient_and_maps_without(dense: bool) -> None:
    model = shaken(model_of(16, dense=dense))
    pictures = torch.randn(3, 3, 16, 16)
    codes, maps = model.looked(pictures)
    torch.testing.assert_close(codes, model.encode(pictures))
    torch.testing.assert_close(maps, [each.detach() for each in model.features(pictures, raw=True)])
    assert codes.requires_grad and not any(each.requires_grad for each in maps)


@torch.no_grad()
def test_a_dense_encoder_also_reads_the_picture_and_its_maps_place_by_place() -> None:
    """The rest of the code is that of the statistics; the weights are as many more as these layers have."""
    model, plain = (model_of(16, first_level=1, dense=dense) for dense in (True, False))
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if not dense_only(name)})
    encoder = model.encoder
    read = [block.places for block in encoder.blocks]  # of 2, 4 and 8 places a side, of 8 channels each
    assert plain.encoder.places is None and [each.edge for each in (*read, encoder.places)] == [2, 4, 8, 16]
    assert numbers(model.encoder) - numbers(plain.encoder) == 8 * (8 * (4 + 16 + 64) + 3 * 256) + 4 * 8
    images = torch.randn(3, 3, 16, 16)
    for level, blend in ((1, 1.0), (2, 0.5), (2, 0.0), (2, 1.0)):
        for each in (model, plain):
            each.grow(level, blend)
        pictures = images if level == 2 else halved(images)
        shares = {2: blend, 1: 1.0, 0: 1.0}
        told = [
            shares[level - number] * read[level - number](maps)
            for number, maps in enumerate(plain.features(pictures, raw=True)[1:])
        ]
        seen = pictures if blend == 1.0 else torch.lerp(doubled(halved(pictures)), pictures, blend)
        own = plain.encode(pictures) + sum(told) + encoder.places(seen)
        torch.testing.assert_close(model.encode(pictures), own)
        assert not torch.allclose(model.encode(pictures), plain.encode(pictures), atol=0.1)


@torch.no_grad()
def test_a_dense_generator_also_writes_its_codes_into_maps_place_by_place() -> None:
    """Behind each block's growth, by its first style: the plain generator with maps that are moved by so much."""
    model, plain = (shaken(model_of(16, dense=dense)).generator for dense in (True, False))
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if not dense_only(name)})
    writers = [block.written for block in model.blocks]  # of 4, 8 and 16 places a side
    assert [(each.edge, each.places, each.told) for each in writers] == [(4, 4, 8), (8, 8, 8), (16, 16, 4)]
    channels = [len(block.conv.weight) for block in plain.blocks]
    layers = sum(linear(8, each.told * each.places**2) for each in writers)
    mixtures = sum(each.told * own for each, own in zip(writers, channels, strict=True))
    assert numbers(model) - numbers(plain) == layers + mixtures
    styles = torch.randn(3, 6, 8)
    assert not torch.allclose(model(styles, 2, None, False), plain(styles, 2, None, False), atol=0.1)
    for number, block in enumerate(plain.blocks):  # biases are added where codes are written
        block.biases[0].forward = lambda maps, own=block.biases[0].bias, number=number: (
            maps + own.view(-1, 1, 1) + writers[number](styles[:, 2 * number])
        )
    torch.testing.assert_close(model(styles, 2, None, False), plain(styles, 2, None, False))


@torch.no_grad()
def test_a_code_is_written_where_its_weights_say() -> None:
    """A code's slope to a place is that place's own weights; 16 places a side stand for more of them."""
    written = Written(5, 20, 32)
    assert (written.places, written.told, written(torch.zeros(1, 5)).abs().max()) == (16, 8, 0.0)
    weights = (written.layer.weight[:, 2] * written.layer.scale).view(8, 16, 16)
    mixed = torch.einsum("ct,thw->chw", written.mix.weight[:, :, 0, 0] * written.mix.scale, weights)
    made = written(torch.eye(5)[2:3])[0]
    torch.testing.assert_close(made, mixed.repeat_interleave(2, 1).repeat_interleave(2, 2))


@torch.no_grad()
def test_places_tell_where_something_is_and_statistics_of_the_picture_do_not() -> None:
    """A place's own weights are the code's slope to it; more channels than are told are mixed first."""
    places = Places(3, 32, 5)
    assert places.mix is None and places.edge == 16
    picture = torch.zeros(1, 3, 32, 32)
    picture[0, 1, 6:8, 30:32] = 2.0
    own = 2.0 * places.layer.scale * places.layer.weight[:, 1 * 256 + 3 * 16 + 15]
    torch.testing.assert_close(places(picture)[0] - places(picture * 0)[0], own)
    assert (places(picture) - places(picture.flip(3))).abs().max() > 1e-3
    wide = Places(20, 4, 5)
    maps = torch.randn(2, 20, 4, 4)
    torch.testing.assert_close(wide(maps), wide.layer(wide.mix(maps).flatten(1)))
    torch.testing.assert_close(wide(halved(maps)), wide(doubled(halved(maps))))


@torch.no_grad()
def test_each_style_reaches_its_own_place() -> None:
    """Other codes in the finest places leave the coarse maps as they are."""
    model = shaken(model_of(16))
    styles = torch.randn(1, 6, 8)
    seen: list[Tensor] = []
    for block in model.generator.blocks:
        block.register_forward_hook(lambda _, __, made: seen.append(made))
    for place in range(6):
        other = styles.clone()
        other[:, place] += 1.0
        seen.clear()
        model.decode(styles, noise=False)
        plain = list(seen)
        seen.clear()
        model.decode(other, noise=False)
        assert [torch.equal(one, two) for one, two in zip(plain, seen, strict=True)] == [
            number < place // 2 for number in range(3)
        ]


@pytest.mark.parametrize("edge, blocks", [(8, 2), (16, 3), (64, 5), (1024, 9)])
def test_blocks_follow_from_the_size(edge: int, blocks: int) -> None:
    assert levels_of(edge) == blocks


@pytest.mark.parametrize("edge", [0, 4, 12, 48, 65])
def test_other_sizes_are_refused(edge: int) -> None:
    with pytest.raises(InvalidValueError, match=f"image_size={edge} must be a power of two"):
        levels_of(edge)
