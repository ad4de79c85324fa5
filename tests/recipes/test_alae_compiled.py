"""What a compiler makes of ALAE has the gradients of what it was made of."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.compiled import CompiledPenalty
from fractal_streams.recipes.alae.features import exact_products
from fractal_streams.recipes.alae.model import ALAE, SIZES, Judge
from fractal_streams.recipes.alae.penalties import squared_slopes
from fractal_streams.recipes.alae.pixels import feature_distance, laplacian_distance, perceptual_distance
from small_alae import model_of
from torch import Tensor

from fractal_streams.errors import InvalidValueError

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.filterwarnings("ignore:TensorFloat32")])


def random_weights(model: ALAE) -> ALAE:
    """Also where they begin with 0."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch 2.8, in its compiler
@pytest.mark.parametrize(
    "device, edge, blends",
    [
        ("cpu", 8, (1.0,)),
        pytest.param("cpu", 16, (0.3, 1.0), marks=pytest.mark.slow),
        pytest.param("cuda", 16, (0.3, 1.0), marks=GPU.marks),
    ],
)
def test_a_compiled_penalty_has_the_value_and_the_slopes_of_the_penalty(
    device: str, edge: int, blends: tuple[float, ...]
) -> None:
    """Also of other pictures and weights than it was traced with, in the middle of a blend, and of a dense network."""
    model = random_weights(model_of(edge, first_level=1, dense=edge == 16)).to(device)
    judge, compiled = Judge(model), CompiledPenalty(model, 3.0, "aot_eager" if device == "cpu" else "inductor")
    weights = list(judge.parameters())
    for blend in (*blends, *blends):
        model.grow(model.last_level, blend)
        images = torch.rand(4, 3, edge, edge, device=device) * 2.0 - 1.0
        with exact_products(images.device):
            value = compiled(images)
            leaves = images.requires_grad_()
            plain = 1.5 * squared_slopes(judge(leaves, model.level, model.blended), leaves).mean()
            own = torch.autograd.grad(2.0 * value, weights)
            slopes = torch.autograd.grad(2.0 * plain, weights, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(value, plain, rtol=1e-3, atol=1e-4)
        assert any(bool((each != 0).any()) for each in own)
        for one, other in zip(own, slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3 * float(other.abs().max()) + 1e-6)
        random_weights(model)
    assert len(compiled.compiled) == len(blends)


def gradients(model: ALAE, network: str, give: str, frozen: bool, into: bool) -> list[Tensor]:
    """Of an output, or of E's maps: to the input, and to the weights where they are not frozen."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, model.code_size) if network == "generator" else (4, *model.shape)
    values = torch.randn(*shape, generator=generator).to(model.blend.device).requires_grad_(into)
    weights = [each.requires_grad_(not frozen) for each in getattr(model, network).parameters()]
    with exact_products(values.device):  # what bfloat16 rounds would hide a fault
        if give == "maps":
            made = torch.cat([each.flatten(1) for each in model.features(values, raw=True)], dim=1)
        elif give == "both":
            codes, maps = model.looked(values)
            assert not any(each.requires_grad for each in maps)
            made = torch.cat([each.flatten(1) for each in (codes, *maps)], dim=1)
        else:
            made = model.decode(values, noise=False) if network == "generator" else model.encode(values)
    across = torch.randn(made.shape, generator=generator).to(made.device)
    wanted = [*([values] if into else []), *([] if frozen else weights)]
    found = torch.autograd.grad((made.float() * across).sum(), wanted, allow_unused=True, materialize_grads=True)
    return [made.detach(), *found]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it, and hides the warning
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
@pytest.mark.parametrize(
    "network, give", [("generator", "codes"), ("encoder", "codes"), ("encoder", "maps"), ("encoder", "both")]
)
def test_a_network_that_was_compiled_frozen_has_gradients_when_it_is_not(network: str, give: str, device: str) -> None:
    """torch 2.11 with Python 3.12 took one for the other, before networks were told which they are."""
    asked: list[tuple[bool, bool]] = [(True, True), (False, True), (False, False), (True, True)]
    plain = random_weights(model_of(16, size=SIZES["tiny"], dense=True)).to(device)
    compiled = model_of(16, size=SIZES["tiny"], dense=True).to(device)
    compiled.load_state_dict(plain.state_dict())
    form: dict[str, Any] = {} if device == "cuda" else {"backend": "aot_eager"}
    getattr(compiled, network).compile(dynamic=False, **form)
    for frozen, into in asked:
        both = (gradients(each, network, give, frozen, into) for each in (plain, compiled))
        for one, other in zip(*both, strict=True):
            assert float((one - other).norm()) <= 0.01 * float(one.norm()) + 1e-6, (frozen, into)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("measure", [feature_distance, perceptual_distance, laplacian_distance])
def test_a_measure_that_was_compiled_has_the_value_and_the_slopes_of_the_measure(measure: Any, device: str) -> None:
    """Of maps in bfloat16, of which it makes float32 inside."""
    generator = torch.Generator().manual_seed(0)
    ones, others = ([torch.randn(2, 4, edge, edge, generator=generator) for edge in (16, 8)] for _ in range(2))
    form: dict[str, Any] = {} if device == "cuda" else {"backend": "aot_eager"}
    found = []
    for way in (measure, torch.compile(measure, dynamic=False, **form)):
        leaves = [each.to(device, torch.bfloat16).requires_grad_() for each in ones]
        targets = [each.to(device, torch.bfloat16) for each in others]
        with torch.autocast(device, torch.bfloat16):
            value = way(leaves[0], targets[0], 2) if measure is laplacian_distance else way(leaves, targets)
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        assert value.dtype == torch.float32 and value.item() > 0.1
        found.append([value.detach(), *(slope for slope in slopes if slope is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=1e-7)
    assert len(found[0]) == (2 if measure is laplacian_distance else 3)


@pytest.mark.parametrize("flat", [False, True])
def test_a_network_that_is_told_wrong_of_its_gradients_refuses(flat: bool) -> None:
    model = model_of(flat=flat)
    for weight in model.parameters():
        weight.requires_grad_(False)
    images = model.decode(torch.zeros(2, model.code_size))
    assert model.encode(images).shape == (2, model.code_size)
    for call in (lambda: model.encoder(images, 1, None), lambda: model.generator(torch.zeros(2, 4, 8), 1, None)):
        with pytest.raises(InvalidValueError, match="learns=True"):
            call()
