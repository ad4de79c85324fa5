"""The updates of a step: what each is worth, what each moves, what it leaves behind, and that it waits for nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.model import ALAE
from fractal_streams.recipes.alae.slots import Pass, Slot
from fractal_streams.recipes.alae.terms import TERMS
from fractal_streams.recipes.alae.updates import Optimisers, Updates
from small_alae import batch_of, model_of, moved, updates_of, weights_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fractal_streams import Batch
from fractal_streams.errors import InvalidValueError


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of()


def planted(images: Tensor) -> tuple[ALAE, Tensor]:
    """A flat model whose D after E is linear, and the slope a of each of its scores."""
    model = model_of(flat=True, activation="none")
    model.encoder.stack.layers = nn.ModuleList(model.encoder.stack.layers[:1])  # no rectifier is left
    layer = model.encoder.stack.layers[0]
    layer.weight = nn.Parameter(torch.randn(8, images[0].numel()))
    product = layer.weight * layer.scale
    for each in model.discriminator.layers:
        product = each.weight * each.scale @ product
    return model, product.detach().flatten()


def test_r1_of_a_linear_judge_is_half_gamma_times_its_squared_slope(batch: Batch) -> None:
    model, slope = planted(batch.images)
    updates = updates_of(model, gamma=3.0)
    scores = updates.judge(batch.images, model.level, None)
    torch.testing.assert_close(scores.diff(), (batch.images.flatten(1) @ slope).diff(), atol=1e-4, rtol=1e-4)
    told = updates.step(batch, 0, 0)
    assert told["r1"].item() == pytest.approx(1.5 * slope.square().sum().item(), rel=1e-4)


def gradients(updates: Updates, batch: Batch, step: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of E and D in the discriminator's update of a step, which is not made."""
    found: list[Tensor] = []

    def note(terms: Any, optimisers: Any = (), normed: Any = ()) -> None:
        wanted = updates.weights(("encoder", "discriminator"))
        value = torch.stack([term.value for term in terms]).sum()
        found.extend(torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True))

    with monkeypatch.context() as patch:
        patch.setattr(updates, "move", note)
        torch.manual_seed(0)
        updates.discriminate(updates.passed(batch, *updates.pictures(batch)), (), updates.begin(step, 0).penalised)
    return found


def test_lazy_r1_is_as_many_times_as_strong_once_in_so_many_steps(batch: Batch, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    without = gradients(updates_of(model_of(), gamma=0.0), batch, 0, monkeypatch)
    each = gradients(updates_of(model_of(), gamma=2.0), batch, 0, monkeypatch)
    lazy = updates_of(model_of(), gamma=2.0, r1_every=4)
    for step in range(9):
        found = gradients(lazy, batch, step, monkeypatch)
        for plain, exact, own in zip(without, each, found, strict=True):
            times = 4.0 if step % 4 == 0 else 0.0
            torch.testing.assert_close(own, plain + times * (exact - plain), atol=1e-5, rtol=1e-4)
    assert lazy.told["r1"].item() == pytest.approx(
        updates_of(model_of(), gamma=2.0).step(batch, 0, 0)["r1"].item(), rel=1e-5
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("reciprocity", ["paper", "code"])
def test_each_update_moves_its_own_networks_and_no_other(reciprocity: str, separate: bool, batch: Batch) -> None:
    follows = {"encoder", "generator", *(["projector"] if reciprocity == "code" else [])}
    updates = updates_of(model_of(), reciprocity=reciprocity, separate=separate)
    images, clips = updates.pictures(batch)
    parts = {
        "discriminate": ((True,), {"encoder", "discriminator"}),
        "generate": ((), {"generator", "projector"}),
        "reciprocate": ((), follows),
    }
    for name, (rest, expected) in parts.items():
        before = weights_of(updates)
        getattr(updates, name)(updates.passed(batch, images, clips), (), *rest)
        assert moved(updates, before) == expected, name
        for weight in updates.model.parameters():
            assert weight.requires_grad and weight.grad is None
    assert set(updates.optimisers.parts) == {"encoder", "generator", *(["reciprocity"] if separate else [])}
    groups = updates.optimisers.parts
    own = [id(weight) for name in ("encoder", "generator") for weight in groups[name].param_groups[0]["params"]]
    assert Counter(own) == Counter(id(weight) for weight in updates.model.parameters())  # each weight once


def test_a_separate_optimizer_makes_the_weight_mean_nothing_and_a_shared_one_does_not(batch: Batch) -> None:
    def ended(separate: bool, weight: float) -> dict[Any, Tensor]:
        updates = updates_of(model_of(), separate=separate, reciprocity_weight=weight)
        for step in range(2):
            torch.manual_seed(step)
            updates.step(batch, step, 0)
        return weights_of(updates)

    def apart(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> float:
        return max(float((value - other[key]).abs().max()) for key, value in one.items() if key[0] == "projector")

    assert apart(ended(True, 1.0), ended(True, 100.0)) < 1e-5 < 1e-4 < apart(ended(False, 1.0), ended(False, 100.0))


def slot_of(name: str, **changes: Any) -> Slot:
    return replace(TERMS[name](), **{"start": 0, "warmup": 0, **changes})


@pytest.mark.parametrize("update", ["discriminator", "generator", "reciprocity", "own"])
def test_a_slot_moves_what_it_declares_beside_the_updates_own(update: str, batch: Batch) -> None:
    """A head only moves where its slot is due and weighs something; else nothing of it does."""
    slot = slot_of("latent_infonce", update=update, every=2, start=10)
    updates = updates_of(model_of(), [slot], separate=True)
    for step, seen, counts in ((0, 0, False), (1, 16, False), (2, 16, True), (3, 24, False), (4, 24, True)):
        before = weights_of(updates)
        updates.step(batch, step, seen)
        assert ("head" in moved(updates, before)) == counts
        assert all(each.requires_grad and each.grad is None for each in updates.networks["head"].parameters())
    silent = updates_of(model_of(), [replace(slot, weight=0.0, every=1)])
    warming = updates_of(model_of(), [replace(slot, every=1, warmup=10)])
    for held in (silent, warming):
        before = weights_of(held)
        assert held.step(batch, 0, 10)["latent_infonce"].isfinite()  # told all the same
        assert "head" not in moved(held, before)
    before = weights_of(warming)
    warming.step(batch, 1, 15)
    assert "head" in moved(warming, before)
    assert [replace(slot, warmup=20).share(seen) for seen in (0, 10, 15, 30, 99)] == [0.0, 0.0, 0.25, 1.0, 1.0]


def test_a_slot_of_the_discriminators_update_can_move_what_made_the_fakes(batch: Batch) -> None:
    """Fakes of that update are made without a gradient; a slot's own are not."""
    slot = Slot(name="own", term=lambda held: held.fakes.square().mean(), moves=("projector",), update="discriminator")
    updates = updates_of(model_of(), [slot])
    before = weights_of(updates)
    updates.discriminate(updates.passed(batch, batch.images, None), [slot], True)
    assert moved(updates, before) == {"projector", "encoder", "discriminator"}


def test_all_is_as_before_where_a_term_raises(batch: Batch) -> None:
    def broken(held: Pass) -> Tensor:
        raise InvalidValueError("no")

    for update in ("discriminator", "generator", "reciprocity", "own"):
        slot = Slot(name="broken", term=broken, moves=("encoder",), update=update)
        updates = updates_of(model_of(), [slot])
        with pytest.raises(InvalidValueError, match="no"):
            updates.step(batch, 0, 0)
        assert all(weight.requires_grad and weight.grad is None for weight in updates.model.parameters())


def test_what_is_told_keeps_no_graph_and_has_the_same_names_each_step(batch: Batch) -> None:
    updates = updates_of(model_of(), [slot_of("l1", every=2), slot_of("hessian", every=3, start=8)], r1_every=2)
    names = None
    for step in range(4):
        told = updates.step(batch, step, 8 * step)
        names = names or set(told)
        assert set(told) == names
        assert all(each.grad_fn is None and not each.requires_grad and each.shape == () for each in told.values())
        assert told["hessian"].isnan().item() == (step < 3)
    assert told["loss"] == told["discriminator"] + told["generator"] + told["reciprocity"]
    assert not [name for name in updates.told if updates.told[name].dtype != torch.float32]


def test_reciprocity_is_told_as_it_is(batch: Batch) -> None:
    """Its target has no gradient, and relative to the codes' variance it is 1 of an E that says their mean."""
    updates = updates_of(model_of(), mixing=0.0)
    held = updates.passed(batch, batch.images, None)
    mean = held.codes.detach().mean(0)
    held.__dict__["fake_codes"] = mean.expand(8, 8) + 0.0 * held.codes
    seen: list[Any] = []
    updates.move = lambda terms, *_, **__: seen.extend(terms)  # type: ignore[method-assign]
    updates.reciprocate(held, ())
    assert updates.told["relative_reciprocity"].item() == pytest.approx(1.0, rel=1e-4)
    expected = (held.codes.detach() - mean).square().mean()
    assert updates.told["reciprocity"].item() == pytest.approx(expected.item(), rel=1e-5)
    slope = torch.autograd.grad(seen[0][0], updates.weights(("projector",)), allow_unused=True)
    assert all(each is None or bool((each == 0).all()) for each in slope)  # by way of the target there is none


class Numbered(nn.Module):
    """F that gives 0 to the first draw, and 1 to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, draws: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((len(draws), 8), float(self.calls - 1))


def mixes(mixing: float, count: int = 20_000, edge: int = 16) -> Tensor:
    """(count, places) which of two codes stands at each place."""
    model = model_of(edge)
    model.projector = Numbered()
    updates = updates_of(model, mixing=mixing)
    torch.manual_seed(0)
    held = Pass(model, batch_of(1), torch.zeros(count, 3, edge, edge), torch.zeros(count, 8))
    held.model.prior_size = 8
    updates.prior.draw = lambda *_: torch.zeros(count, 8)  # type: ignore[method-assign]
    styles = updates.mixed(held)
    assert bool((styles == styles[..., :1]).all())
    return styles[..., 0]


def test_styles_are_coarse_of_one_code_and_fine_of_another_with_even_cuts() -> None:
    """Chi-square of 6 places, 5 degrees of freedom: above 20.5 in one of a thousand."""
    found = mixes(1.0)
    assert bool((found.diff(dim=1) >= 0).all()) and bool((found[:, 0] == 0).all())  # never fine before coarse
    counts = torch.bincount((found == 0).sum(1), minlength=7)
    assert int(counts[0]) == 0
    even = len(found) / 6
    assert float(((counts[1:] - even).square() / even).sum()) < 20.5
    partly = (mixes(0.6) == 1).any(1).float().mean().item()
    assert partly == pytest.approx(0.6 * 5 / 6, abs=0.015)  # a cut behind all places mixes nothing
    assert bool((mixes(0.0) == 0).all())


def test_a_step_begins_with_what_is_due_and_its_share(batch: Batch) -> None:
    """Those of one kind are equal and hash alike, so that what is recorded of one does for the others."""
    l1, late = slot_of("l1", every=2), slot_of("laplacian", start=16, warmup=32)
    updates = updates_of(model_of(16, first_level=1), [l1, late], r1_every=3)
    kinds = [updates.begin(step, 8 * step) for step in range(6)]
    assert [kind.slots for kind in kinds] == [(l1,), (), (l1, late), (late,), (l1, late), (late,)]
    assert [kind.penalised for kind in kinds] == [True, False, False, True, False, False]
    assert len(set(kinds)) == 6 - 1 and kinds[2] == kinds[4]
    assert {name: each.item() for name, each in updates.shares.items()} == {"laplacian": 0.75}
    updates.model.grow(2, 0.5)
    assert (updates.begin(4, 32).level, updates.begin(4, 32).blending) == (2, True)
    assert not updates_of(model_of(), gamma=0.0).begin(0, 0).penalised


def test_rates_stay_where_the_device_reads_them_behind_another_device(batch: Batch) -> None:
    """A run of a GPU, whose Adams read a tensor, goes on on a CPU, and back."""
    here, there = updates_of(model_of()), updates_of(model_of())
    for group in there.param_groups:
        group |= {"lr": torch.tensor(1.5e-3), "fused": True, "capturable": True}
    for updates in (here, there):
        updates.step(batch, 0, 0)
    there.optimisers.follow(0.5)
    assert [group["lr"].item() for group in there.param_groups] == pytest.approx([7.5e-4] * 2)
    kept, saved = [group["lr"] for group in there.param_groups], there.optimisers.state_dict()
    there.optimisers.load_state_dict(here.optimisers.state_dict())
    assert all(group["lr"] is rate for group, rate in zip(there.param_groups, kept, strict=True))
    plain = [{**group, "fused": None} for group in saved["encoder"]["param_groups"]]  # as it was on a CPU once
    for told in (saved, {**saved, "encoder": {**saved["encoder"], "param_groups": plain}}):
        here.optimisers.load_state_dict(told)
        here.optimisers.follow(0.25)
        for group in here.param_groups:
            assert (group["lr"], group["fused"], group["capturable"]) == (1.5e-3 / 4, True, False)
        here.step(batch, 1, 8)


def test_what_an_optimizer_counts_lies_where_it_runs() -> None:
    """Of a run on a CPU, Adam's number of steps too: one kernel of a GPU reads it."""
    weight = nn.Parameter(torch.zeros(3, device="meta"))
    made = [torch.optim.Adam([weight], fused=False, capturable=here) for here in (False, True)]
    told = made[0].state_dict()
    told["state"] = {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    for part, device in zip(made, ("cpu", "meta"), strict=True):
        Optimisers({"own": part}).load_state_dict({"own": told})
        assert part.state[weight]["step"].device.type == device


def test_what_a_step_tells_stays_as_it_was(batch: Batch) -> None:
    updates = updates_of(model_of())
    first = updates.step(batch, 0, 0)
    kept = {name: value.item() for name, value in first.items()}
    updates.step(batch, 1, 8)
    assert {name: value.item() for name, value in first.items()} == kept


def test_optimizers_forget(batch: Batch) -> None:
    updates = updates_of(model_of())
    updates.step(batch, 0, 0)
    assert all(part.state for part in updates.optimisers.parts.values())
    rates = [group["lr"] for group in updates.param_groups]
    updates.optimisers.forget()
    assert not any(part.state for part in updates.optimisers.parts.values())
    assert [group["lr"] for group in updates.param_groups] == rates == [1.5e-3] * 2
    updates.step(batch, 1, 8)


def test_the_gradient_is_clipped_to_a_norm_and_told_as_it_was_used(batch: Batch) -> None:
    told = updates_of(model_of(), clip=1e-3).step(batch, 0, 0)
    both = torch.stack([told["gradient_encoder"], told["gradient_discriminator"]])
    assert both.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_pictures_are_frames_reduced_to_what_has_grown() -> None:
    updates = updates_of(model_of(16, first_level=1))
    clips = batch_of(2, 3, 3, 16, 16)
    images, held = updates.pictures(clips)
    assert held == (2, 3) and torch.equal(images, clips.images.flatten(0, 1))
    updates.model.grow(1)
    small, _ = updates.pictures(clips)
    torch.testing.assert_close(small, images.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)))
    updates.model.grow(2, 0.25)
    wide = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(updates.pictures(clips)[0], 0.25 * images + 0.75 * wide)
    assert updates.pictures(replace_images(clips, clips.images.bfloat16()))[0].dtype == torch.float32


def replace_images(batch: Batch, images: Tensor) -> Batch:
    return Batch(batch.index, images, batch.labels, batch.latents)


class Watched(TorchDispatchMode):
    """Notes what a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = [each for part in args if isinstance(part, list | tuple) for each in part if isinstance(each, Tensor)]
        masks = name == "index" and any(each.dtype == torch.bool for each in chosen)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal") or masks:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_looks_at_no_value_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with pictures in it, as on a GPU; the optimizers are fused there, and left out here."""
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    slots = [slot_of(name) for name in ("latent_infonce", "real_cycle", "l1", "patch_critic")]
    updates = updates_of(model_of(16, first_level=1), slots, accelerator, clip=1.0)
    updates.model.grow(2, 0.5)
    for part in updates.optimisers.parts.values():
        monkeypatch.setattr(part, "step", lambda: None)
    form: list[Any] = []
    updates.model.generator.blocks[0].register_forward_hook(lambda _, __, maps: form.append(maps.dtype))
    batch = replace_images(batch_of(4, 3, 16, 16), batch_of(4, 3, 16, 16).images.bfloat16())
    with Watched() as watched:
        told = updates.step(batch, 0, 10**8)
        assert watched.waits == []
        bool(told["loss"] > 0)
    assert watched.waits == ["_local_scalar_dense"]  # it does see one
    assert all(bool(value.isfinite()) and value.dtype == torch.float32 for value in told.values())
    assert set(form) == {torch.bfloat16}
    assert {weight.dtype for weight in updates.model.parameters()} == {torch.float32}
