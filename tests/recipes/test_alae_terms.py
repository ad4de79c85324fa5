"""The table of slots: what each one moves and what it never touches, on a tiny ALAE with the updates that train it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from fractal_streams.recipes.alae.contrast import info_nce, nt_xent
from fractal_streams.recipes.alae.critics import critic_loss, realism_loss
from fractal_streams.recipes.alae.model import ALAE, NETWORKS, Size
from fractal_streams.recipes.alae.penalties import gradient_penalty
from fractal_streams.recipes.alae.pixels import absolute_distance
from fractal_streams.recipes.alae.priors import Gaussian
from fractal_streams.recipes.alae.slots import Pass, Slot
from fractal_streams.recipes.alae.temporal import straightness
from fractal_streams.recipes.alae.terms import TERMS, frozen, networks_of, slots_named
from fractal_streams.recipes.alae.updates import Rules, Updates
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fractal_streams import Batch
from fractal_streams.errors import InvalidValueError, UnknownNameError

TINY = Size(image_size=8, narrow=8, wide=16, code_size=16, projector=2, discriminator=2)
CLIPS, FRAMES = 3, 3
PICTURES = CLIPS * FRAMES
LATE = 10**9
"""Images seen: every start and warm-up is over."""
SILENT = {"hessian": ("noises",)}
"""Weights of a moved network that a term has no part in: the Hessian penalty decodes without noise."""


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(CLIPS, 1, 3, 1, 1, generator=generator)
    images = 2.0 * (0.7 * colours + 0.3 * torch.rand(CLIPS, FRAMES, 3, 8, 8, generator=generator)) - 1.0
    return Batch(torch.arange(CLIPS), images, torch.zeros(CLIPS, dtype=torch.int64), {})


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def model_of(**settings: Any) -> ALAE:
    torch.manual_seed(0)
    return ALAE(TINY, (3, 8, 8), **settings)


def passed(model: ALAE, batch: Batch, others: Mapping[str, Any]) -> Pass:
    torch.manual_seed(1)
    draws = torch.randn(PICTURES, model.prior_size)
    images = batch.images.flatten(0, 1)
    return Pass(model, batch, images, draws, (CLIPS, FRAMES), others.get("head"), others.get("critic"))


def opened(name: str, model: ALAE | None = None) -> tuple[Slot, ALAE, dict[str, Any]]:
    slot, model = TERMS[name](), model or model_of()
    return slot, model, networks_of([slot], model, width=8)


def weights_of(model: ALAE, others: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    networks = {name: getattr(model, name) for name in NETWORKS} | dict(others)
    return {name: dict(network.named_parameters()) for name, network in networks.items()}


def reached(value: Tensor, weights: Mapping[str, Any]) -> Any:
    """Gradients of a network's weights by name, None where there is no way to it."""
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values()), allow_unused=True, retain_graph=True),
                    strict=True))  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_a_step_moves_every_weight_that_a_slot_declares_and_no_other(name: str, batch, accelerator) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    others = {**networks_of([TERMS["latent_infonce"](), TERMS["patch_critic"]()], model, 8), **others}
    updates = Updates(model, Gaussian(16), Rules(), accelerator, [replace(slot, update="own", weight=1.0)], others)
    weights = weights_of(model, others)
    before = {(net, key): weight.detach().clone() for net, held in weights.items() for key, weight in held.items()}
    torch.manual_seed(2)
    held = updates.passed(batch, *updates.pictures(batch))
    with updates.moving((), updates.slots):
        terms = updates.terms(held, updates.begin(0, LATE).slots)
        for net, parameters in weights.items():
            if net not in slot.moves:
                assert all(each.requires_grad is False for each in parameters.values())
        updates.move(terms, ("own",))
    moved = {at for at, old in before.items() if not torch.equal(old, weights[at[0]][at[1]])}
    silent = SILENT.get(name, ())
    declared = {at for at in before if at[0] in slot.moves and not any(part in at[1] for part in silent)}
    assert moved == declared
    assert all(weight.grad is None and weight.requires_grad for part in weights.values() for weight in part.values())


@pytest.mark.parametrize("name", TERMS)
def test_a_slot_can_reach_nothing_that_it_does_not_declare(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    value = slot.term(passed(model, batch, others))
    assert value.shape == () and value.dtype == torch.float32 and bool(value.isfinite())
    for net, weights in weights_of(model, others).items():
        slopes = [slope for slope in reached(value, weights).values() if slope is not None]
        assert all(bool(slope.isfinite().all()) for slope in slopes)
        assert bool(slopes) == (net in slot.reaches), net


@pytest.mark.parametrize(
    "name", sorted(set(TERMS) - {"patch_critic", "seed_cycle"})
)  # of a game neither side has to fall
def test_a_slot_makes_its_term_smaller(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    weights = [each for net, part in weights_of(model, others).items() if net in slot.moves for each in part.values()]
    optimizer = torch.optim.Adam(weights, lr=1e-2, betas=(0.0, 0.99))
    values = []
    for _ in range(12):
        value = slot.term(passed(model, batch, others))
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert min(values[-3:]) < 0.93 * values[0], values


class HostReads(TorchDispatchMode):
    """Fails where a tensor's value is asked for on the host, or a shape depends on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0].lstrip("_")
        assert name not in {each.lstrip("_") for each in self.FORBIDDEN}, f"{func} reads a tensor on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TERMS)
def test_a_slot_reads_no_value_on_the_host(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    held = passed(model, batch, others)
    with HostReads():
        slot.term(held).backward()
    with pytest.raises(AssertionError, match="on the host"), HostReads():
        held.images.max().item()


@pytest.mark.parametrize("name", TERMS)
def test_a_slot_works_under_bfloat16(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    exact = slot.term(passed(model, batch, others))
    with torch.autocast("cpu", torch.bfloat16):
        value = slot.term(passed(model, batch, others))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.1, abs=0.02)
    for net, weights in weights_of(model, others).items():
        for key, weight in weights.items():
            if net in slot.moves and not any(part in key for part in SILENT.get(name, ())):
                assert weight.grad is not None and bool(weight.grad.isfinite().all()), (net, key)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TERMS)
def test_a_slot_is_captured_as_a_cuda_graph(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name, model_of().cuda())
    images, draws = batch.images.flatten(0, 1).cuda(), torch.randn(PICTURES, TINY.code_size, device="cuda")
    weights = [each for net, part in weights_of(model, others).items() if net in slot.moves for each in part.values()]

    def once() -> list[Tensor]:
        held = Pass(model, batch, images, draws, (CLIPS, FRAMES), others.get("head"), others.get("critic"))
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            value = slot.term(held)
        slopes = torch.autograd.grad(value, weights, allow_unused=True)
        return [value.detach(), *(slope for slope in slopes if slope is not None)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        once(), once()
        torch.cuda.set_sync_debug_mode("error")
        try:
            once()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = once()
    graph.replay()
    torch.cuda.synchronize()
    assert all(bool(each.isfinite().all()) for each in kept) and any(bool((each != 0).any()) for each in kept[1:])


def test_terms_are_what_they_are_called(batch) -> None:  # type: ignore[no-untyped-def]
    slots = slots_named(list(TERMS))
    model = model_of()
    others = networks_of(slots, model, width=8)
    held = passed(model, batch, others)
    value = {slot.name: slot.term(held).item() for slot in slots}
    head = others["head"]
    assert value["l1"] == absolute_distance(held.reconstructions, held.images).item()
    assert value["latent_infonce"] == info_nce(head(held.fake_codes), head(held.codes), 0.1).item()
    assert value["real_cycle"] == info_nce(head(held.cycle_codes), head(held.real_codes), 0.1).item()
    assert value["straightness"] == straightness(held.real_codes.unflatten(0, (CLIPS, FRAMES))).item()
    judged = critic_loss(others["critic"](held.images), others["critic"](held.fakes))
    slopes = gradient_penalty(lambda images: others["critic"](images).mean(1), held.images, 5.0)
    made = realism_loss(others["critic"](held.fakes))
    assert value["patch_critic"] == pytest.approx((judged + slopes + made).item(), rel=1e-6)


def test_wrong_pairs_cost_more(batch) -> None:  # type: ignore[no-untyped-def]
    model = model_of()
    others = networks_of([TERMS["latent_infonce"]()], model)
    for name, mate, shifted in (
        ("latent_infonce", "fake_codes", "codes"),
        ("real_cycle", "cycle_codes", "real_codes"),
        ("l1", "reconstructions", "images"),
        ("laplacian", "reconstructions", "images"),
        ("focal_frequency", "reconstructions", "images"),
    ):
        held = passed(model, batch, others)
        held.__dict__[mate] = getattr(held, shifted).detach() + 0.0  # every pair found
        right = TERMS[name]().term(held).item()
        held.__dict__[mate] = held.__dict__[mate].roll(1, 0)  # every pair the neighbour's
        assert TERMS[name]().term(held).item() > right + 0.05, name


@pytest.mark.parametrize("term", ["perceptual", "feature_matching"])
def test_terms_of_features_see_colours_and_even_pictures(term: str, batch) -> None:  # type: ignore[no-untyped-def]
    """E's normalised maps tell nothing of either: all channels of an even picture are 0 there but at its edges."""
    model = model_of()
    held = passed(model, batch, {})
    red = torch.tensor([0.8, -0.6, -0.6])[:, None, None].expand_as(held.images)
    held.__dict__["images"], found = red, {}
    for name, colours in (("same", red), ("green", red.roll(1, 1)), ("darker", red - 0.3)):
        held.__dict__["reconstructions"] = colours
        found[name] = TERMS[term]().term(held).item()
    assert found["same"] < 1e-6 < 0.01 < found["darker"] < found["green"]


@pytest.mark.parametrize(
    "name, mate, still",
    [
        ("latent_infonce", "fake_codes", {"head"}),
        ("real_cycle", "cycle_codes", {"head"}),
        ("patches", "reconstructions", {"encoder"}),  # E looks at the reconstruction, and learns from looking
        ("perceptual", "reconstructions", set()),
        ("feature_matching", "reconstructions", set()),
        ("l1", "reconstructions", set()),
    ],
)
def test_targets_have_no_gradient(name: str, mate: str, still: set[str], batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    held = passed(model, batch, others)
    held.__dict__[mate] = getattr(held, mate).detach()  # what follows the term is cut off; its target is left
    value = slot.term(held)
    found = {
        net
        for net, weights in weights_of(model, others).items()
        if value.requires_grad and any(slope is not None for slope in reached(value, weights).values())
    }
    assert found == still


@pytest.mark.parametrize("name", ["perceptual", "feature_matching"])
def test_the_judges_own_weights_get_no_gradient_from_what_they_judge(name: str, batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened(name)
    held = passed(model, batch, others)
    held.__dict__["real_codes"] = held.real_codes.detach()  # E only looks now
    value, weights = slot.term(held), weights_of(model, others)
    assert all(slope is None for slope in reached(value, weights["encoder"]).values())
    assert any(slope is not None for slope in reached(value, weights["generator"]).values())
    assert all(weight.requires_grad for weight in weights["encoder"].values())


def test_both_sides_of_the_patch_game_have_their_own_gradient(batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened("patch_critic")
    held, critic = passed(model, batch, others), others["critic"]
    value, weights = slot.term(held), weights_of(model, others)
    judged = critic_loss(critic(held.images), critic(held.fakes.detach()))
    judged = judged + gradient_penalty(lambda images: critic(images).mean(1), held.images, 5.0)
    for net, own in (("critic", judged), ("generator", realism_loss(critic(held.fakes)))):
        found, expected = reached(value, weights[net]), reached(own, weights[net])
        for key, slope in found.items():
            torch.testing.assert_close(slope, expected[key], atol=1e-6, rtol=1e-4)


def test_the_seeds_cycle_is_a_fake_to_one_side_and_a_real_one_to_the_other(batch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened("seed_cycle")
    held, weights = passed(model, batch, others), weights_of(model, others)
    torch.manual_seed(3)  # of the noise in G
    value = slot.term(held)
    torch.manual_seed(3)
    cycled = model.decode(model.project(model.encode(held.images).detach()))
    score = model.score(model.encode(cycled.detach()))
    for net in ("discriminator", "encoder"):
        found, expected = (
            reached(value, weights[net]),
            reached(torch.nn.functional.softplus(score).mean(), weights[net]),
        )
        for key, slope in found.items():
            torch.testing.assert_close(slope, expected[key], atol=1e-6, rtol=1e-3)
    made = torch.nn.functional.softplus(-model.score(model.encode(cycled))).mean()
    for net in ("generator", "projector"):
        found, expected = reached(value, weights[net]), reached(made, weights[net])
        for key, slope in found.items():
            torch.testing.assert_close(slope, expected[key], atol=1e-6, rtol=1e-3)
    assert value.item() == pytest.approx((torch.nn.functional.softplus(score).mean() + made).item(), rel=1e-6)
    wide = model_of(prior_size=5)
    with pytest.raises(InvalidValueError, match="16 numbers into F, which takes 5"):
        slot.term(passed(wide, batch, {}))


def test_views_are_of_stills_and_of_one_frame_of_a_clip(batch, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    slot, model, others = opened("instance")
    seen: list[Tensor] = []
    encode = model.encode

    def noted(images: Tensor) -> Tensor:
        seen.append(images)
        return encode(images)

    monkeypatch.setattr(model, "encode", noted)
    clips = passed(model, batch, others)
    slot.term(clips)
    value = slot.term(replace(clips, clips=None))
    assert [len(each) for each in seen] == [2 * CLIPS, 2 * PICTURES]
    assert value.item() == nt_xent(*others["head"](encode(seen[1])).chunk(2), 0.2).item()
    assert not torch.equal(*seen[1].chunk(2))  # two views, not one twice


def test_what_a_slot_needs_and_has_not_is_named(batch) -> None:  # type: ignore[no-untyped-def]
    model = model_of()
    others = networks_of([TERMS["latent_infonce"]()], model)
    held = passed(model, batch, others)
    for name in ("time_contrast", "slow_features", "straightness"):
        with pytest.raises(InvalidValueError, match="need clips"):
            TERMS[name]().term(replace(held, clips=None))
    for name in ("latent_infonce", "real_cycle", "instance", "time_contrast"):
        with pytest.raises(InvalidValueError, match="need a head"):
            TERMS[name]().term(replace(held, head=None))
    with pytest.raises(InvalidValueError, match="needs a critic"):
        TERMS["patch_critic"]().term(held)
    points = ALAE(replace(TINY, wide=8), (2,), flat=True)
    with pytest.raises(InvalidValueError, match="leave out slot patch_critic"):
        networks_of([TERMS["patch_critic"]()], points)
    flat = Pass(points, batch, torch.zeros(4, 2), torch.zeros(4, 16))
    for name in ("patches", "perceptual", "feature_matching", "laplacian", "focal_frequency", "spectrum"):
        with pytest.raises(InvalidValueError):
            TERMS[name]().term(flat)
    assert TERMS["l1"]().term(flat).isfinite()


def test_slots_are_named_with_their_weights() -> None:
    slots = slots_named(["l1=0.25", "hessian", "latent_infonce=0"])
    assert [(slot.name, slot.weight) for slot in slots] == [("latent_infonce", 0.0), ("l1", 0.25), ("hessian", 0.001)]
    assert slots_named([]) == ()
    with pytest.raises(UnknownNameError, match="did you mean 'laplacian'"):
        slots_named(["laplacean"])
    with pytest.raises(InvalidValueError, match="twice"):
        slots_named(["l1", "l1=2"])
    for wrong in ("l1=-1", "l1=much", "l1=nan", "l1=inf"):
        with pytest.raises(InvalidValueError, match="weight must be a finite number from 0 on"):
            slots_named([wrong])


def test_the_table_holds_names_that_are_the_slots_own_and_known_weights() -> None:
    slots = {name: make() for name, make in TERMS.items()}
    assert all(slot.name == name and 0.0 < slot.weight <= 10.0 for name, slot in slots.items())
    assert 0.1 <= slots["latent_infonce"].weight <= 0.5 and slots["real_cycle"].start == 50_000
    late = slots["hessian"]
    assert not late.due(0, 999_999) and late.due(4, 1_000_000) and late.share(1_250_000) == 0.5
    assert all(
        slot.moves == ("generator", "projector") for slot in slots.values() if slot.name in ("hessian", "spectrum")
    )


def test_slots_bring_what_they_move_and_nothing_else() -> None:
    model = model_of()
    assert networks_of(slots_named(["l1", "hessian"]), model) == {}
    assert set(networks_of(slots_named(["instance", "l1"]), model)) == {"head"}
    brought = networks_of(slots_named(["instance", "patch_critic"]), model, width=8)
    assert set(brought) == {"head", "critic"} and brought["critic"].layers == 2
    large = replace(TINY, image_size=64), (3, 64, 64)
    assert networks_of(slots_named(["patch_critic"]), ALAE(*large), width=8)["critic"].layers == 3
    growing = ALAE(*large, first_level=1)
    critic = networks_of(slots_named(["patch_critic"]), growing, width=8)["critic"]
    assert critic(torch.zeros(2, 3, 8, 8)).shape == (2, 4)  # pictures as small as the model ever makes


def test_frozen_networks_look_and_learn_nothing_and_are_left_as_they_were() -> None:
    layer, kept = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1).requires_grad_(False)
    inputs = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(ZeroDivisionError), frozen(layer, kept):
        value = (layer(inputs) + kept(inputs)).sum()
        raise ZeroDivisionError
    value.backward()
    assert inputs.grad is not None and layer.weight.grad is None
    assert layer.weight.requires_grad and not kept.weight.requires_grad
    assert math.isfinite(value.item())
