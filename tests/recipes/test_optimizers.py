"""Optimizers: every weight in one group, rates that follow the width, and what that does to activations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fractal_streams.recipes import checkpoint
from fractal_streams.recipes.models.classifiers import resnet, vision_transformer
from fractal_streams.recipes.optimizers import OPTIMIZERS, Role, build_optimizer, clip_at, initialise, places
from torch import nn
from torch.nn import functional

from fractal_streams.errors import DivergedError, InvalidValueError

WIDTHS = (32, 64, 128, 256)
MUON = WIDTHS[:3]
HEAD = 16


def transformer(width: int = 32, depth: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vision_transformer(
        num_classes=10, image_size=8, patch_size=4, embed_dim=width, depth=depth, num_heads=width // HEAD
    )


def rates(network: nn.Module, name: str = "adamw", **asked: Any) -> dict[str, tuple[float, float]]:
    """Weight to (rate, decay)."""
    asked = {"lr_base": 0.01, "lr_embedding": 0.1, "weight_decay": 0.5, **asked}
    groups = build_optimizer(network, name, **asked).param_groups
    by_weight = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    return {name: by_weight[id(weight)] for name, weight in network.named_parameters() if id(weight) in by_weight}


@pytest.mark.parametrize("parametrization", ["mup", "standard"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_trainable_parameter_is_in_exactly_one_group(name: str, parametrization: str) -> None:
    network = resnet("resnet18", num_classes=10, image_size=8) if name == "sgd" else transformer()
    frozen = next(network.parameters())
    frozen.requires_grad = False
    optimizer = build_optimizer(network, name, lr_base=0.1, lr_embedding=0.1, parametrization=parametrization)
    grouped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    trainable = [id(weight) for weight in network.parameters() if weight.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert id(frozen) not in grouped


def test_roles_of_a_transformer() -> None:
    roles = {name: place.role for name, place in places(transformer()).items()}
    assert [name for name, role in roles.items() if role is Role.INPUT] == ["patch_embed.proj.weight"]
    assert [name for name, role in roles.items() if role is Role.OUTPUT] == ["head.weight"]
    assert [name for name, role in roles.items() if role is Role.BIAS_OF_OUTPUT] == ["head.bias"]
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    hidden = [f"blocks.{block}.{part}.weight" for block in (0, 1) for part in parts]
    assert [name for name, role in roles.items() if role is Role.HIDDEN] == hidden
    vectors = {name for name, role in roles.items() if role is Role.VECTOR}
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias", "patch_embed.proj.bias"} <= vectors


def test_a_weight_that_is_used_twice_and_a_transposed_convolution() -> None:
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert list(places(tied)) == ["0.weight", "2.weight"]
    up = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 5, 2), nn.Conv2d(5, 3, 1))
    assert (places(up)["1.weight"].fan_in, places(up)["1.weight"].fan_out) == (8 * 4, 5)


def test_adamw_follows_table_3() -> None:
    narrow, wide = (rates(transformer(width), base_width=64) for width in (64, 256))
    for name in narrow:
        shrinks = name == "head.weight" or name.endswith(("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight"))
        assert wide[name][0] / narrow[name][0] == pytest.approx(0.25 if shrinks else 1.0), name
    assert narrow["blocks.0.attn.qkv.weight"][0] == 0.01
    assert narrow["patch_embed.proj.weight"][0] == narrow["pos_embed"][0] == narrow["norm.bias"][0] == 0.1


def test_sgd_follows_table_3() -> None:
    narrow, wide = (rates(transformer(width), "sgd", base_width=64) for width in (64, 256))
    grown = {name: wide[name][0] / narrow[name][0] for name in narrow}
    assert grown["blocks.0.attn.qkv.weight"] == grown["blocks.1.mlp.fc2.weight"] == grown["head.bias"] == 1.0
    assert grown["head.weight"] == 0.25
    assert grown["patch_embed.proj.weight"] == grown["pos_embed"] == grown["norm.weight"] == grown["cls_token"] == 4.0


def test_steps_of_a_spectral_norm_follow_the_spectral_condition() -> None:
    network = transformer(256)
    found = rates(network, "shampoo", base_width=64)
    assert found["blocks.0.mlp.fc1.weight"][0] == pytest.approx(0.01 * math.sqrt(1024 / 256))
    assert found["blocks.0.mlp.fc2.weight"][0] == pytest.approx(0.01 * math.sqrt(256 / 1024))
    assert found["pos_embed"][0] == pytest.approx(0.1 * math.sqrt(256 / 64))
    assert found["head.weight"][0] == pytest.approx(0.01 * math.sqrt(64 / 256))


def test_muon_steps_as_far_as_is_said() -> None:
    """At the base width, a step of a square matrix has a root mean square of 0.2 times the rate."""
    for width, parametrization, expected in ((64, "mup", 0.2), (64, "standard", 0.2), (256, "mup", 0.1)):
        network = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(3)))
        optimizer = build_optimizer(
            network, "muon", lr_base=0.01, lr_embedding=0.0, base_width=64, parametrization=parametrization
        )
        torch.manual_seed(0)
        before = network[1].weight.detach().clone()
        network[1].weight.grad = torch.randn(width, width)
        optimizer.step()
        step = (network[1].weight.detach() - before).square().mean().sqrt() / 0.01
        assert float(step) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_for_matrices_and_takes_the_same_share_at_every_width(name: str) -> None:
    for width in (64, 256):
        for weight, (rate, decay) in rates(transformer(width), name, base_width=64).items():
            matrix = weight.endswith("weight") and "norm" not in weight
            own = 0.1 if weight.startswith("patch") else 0.01
            assert rate * decay == pytest.approx(own * 0.5 if matrix else 0.0), weight


def test_first_weights() -> None:
    network, width = transformer(256), 256
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    initialise(network, "standard")
    assert all(torch.equal(before[name], weight) for name, weight in network.named_parameters())
    initialise(network, "mup", base_width=64)
    after = network.state_dict()
    assert float(after["blocks.0.attn.qkv.weight"].std()) == pytest.approx(0.02 * math.sqrt(64 / width), rel=0.02)
    assert float(after["blocks.0.mlp.fc2.weight"].std()) == pytest.approx(0.02 * math.sqrt(64 / 1024), rel=0.02)
    assert float(after["head.weight"].abs().max()) == 0.0
    assert torch.equal(before["patch_embed.proj.weight"], after["patch_embed.proj.weight"])


def moved(
    width: int, name: str, parametrization: str, rate: float, seed: int, steps: int = 4, clip: float = math.inf
) -> tuple[float, float]:
    """How far a few steps move the last block's activations and the answers: root mean squares."""
    network = transformer(width, seed=seed)
    initialise(network, parametrization, base_width=WIDTHS[0])
    optimizer = build_optimizer(
        network, name, lr_base=rate, lr_embedding=rate, base_width=WIDTHS[0], parametrization=parametrization
    )
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 10

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        kept: list[torch.Tensor] = []
        hook = network.blocks[-1].register_forward_hook(lambda *told: kept.append(told[-1].detach()))  # type: ignore
        with torch.no_grad():
            scores = network(images)
        hook.remove()
        return kept[0], scores

    first = seen()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    inner, scores = (float((now - then).square().mean().sqrt()) for now, then in zip(seen(), first, strict=True))
    return inner, scores


def slope(widths: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Of the logarithms, least squares."""
    x, y = torch.tensor(widths).log().double(), torch.tensor(values).log().double()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("name, rate, widths", [("adamw", 0.01, WIDTHS), ("sgd", 0.1, WIDTHS), ("muon", 0.01, MUON)])
def test_coordinate_check(name: str, rate: float, widths: tuple[int, ...]) -> None:
    """Yang et al., appendix D.1: under muP activations and answers move alike at all widths.

    Under the standard parametrization AdamW's grow with exponent 1.7, SGD's with 1.2 and Muon's with 1.0. SGD moves the
    activations of narrow networks by an accident of their first weights: of it, only the answers are held.
    """

    def slopes(parametrization: str) -> tuple[float, float]:
        found = [moved(width, name, parametrization, rate, seed=1) for width in widths]
        inner, scores = zip(*found, strict=True)
        return slope(widths, inner), slope(widths, scores)

    inner, scores = slopes("mup")
    assert abs(scores) < 0.25 and (name == "sgd" or abs(inner) < 0.25)
    assert max(slopes("standard")) > 0.75


def test_a_clip_shortens_steps_of_sgd_alike_at_every_width() -> None:
    narrow, wide = WIDTHS[0], WIDTHS[-1]
    clip = 0.05
    moves = [
        moved(width, "sgd", "mup", 0.1, seed=1, clip=norm)[1]
        for width, norm in ((narrow, clip), (wide, clip), (wide, clip_at(wide, clip, "sgd", "mup", narrow) or 0.0))
    ]
    assert moves[1] < 0.5 * moves[0] and moves[2] == pytest.approx(moves[0], rel=0.2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_of_its_state_goes_on_bit_for_bit(name: str, tmp_path: Any) -> None:
    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            functional.cross_entropy(network(images), torch.arange(4)).backward()
            optimizer.step()

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = transformer(16, depth=1)
        return network, build_optimizer(network, name, lr_base=0.01, lr_embedding=0.01, weight_decay=0.1)

    (whole, its), (begun, first), (going_on, second) = made(), made(), made()
    steps(whole, its, 0, 24)
    steps(begun, first, 0, 12)
    checkpoint.save(tmp_path, 12, {"network": begun.state_dict(), "optimizer": first.state_dict()})
    values = checkpoint.load(tmp_path / "step-000000012")
    going_on.load_state_dict(values["network"])
    second.load_state_dict(values["optimizer"])
    steps(going_on, second, 12, 24)
    start = dict(made()[0].named_parameters())
    for weight, same in zip(whole.named_parameters(), going_on.parameters(), strict=True):
        assert torch.equal(weight[1], same), weight[0]
        assert not torch.equal(weight[1], start[weight[0]]), weight[0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="optimizer_type"):
        build_optimizer(transformer(), "adam", lr_base=0.1, lr_embedding=0.1)
    with pytest.raises(InvalidValueError, match="parametrization"):
        build_optimizer(transformer(), lr_base=0.1, lr_embedding=0.1, parametrization="ntk")


def test_shampoo_says_that_it_diverged() -> None:
    network = transformer(16, depth=1)
    optimizer = build_optimizer(network, "shampoo", lr_base=0.1, lr_embedding=0.1)
    for weight in network.parameters():
        weight.grad = torch.full_like(weight, math.nan)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        for _ in range(10):
            optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_0_moves_nothing(name: str) -> None:
    """What an optimizer leaves to another one follows the schedule as well."""
    network = transformer(16, depth=1)
    optimizer = build_optimizer(network, name, lr_base=0.1, lr_embedding=0.1, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(11):
        functional.cross_entropy(network(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
