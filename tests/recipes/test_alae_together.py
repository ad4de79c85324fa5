"""Terms whose gradients are found on one way back: few ways, and the gradients of each term by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae import updates as updates_module
from fractal_streams.recipes.alae.model import SIZES
from fractal_streams.recipes.alae.slots import MOVED, Slot
from fractal_streams.recipes.alae.terms import MAKERS, TERMS, slots_named
from fractal_streams.recipes.alae.updates import Term, together
from hypothesis import given, strategies as st
from small_alae import batch_of, model_of, updates_of
from torch import Tensor

from fractal_streams import Batch
from fractal_streams.errors import InvalidValueError

NAMES = ("latent_infonce", "time_contrast", "l1", "feature_matching", "spectrum", "patch_critic", "seed_cycle")


def terms() -> st.SearchStrategy[list[Term]]:
    def term(parts: tuple[int, list[str]]) -> Term:
        value, places = parts  # each network: moved, reached besides, or neither
        of = dict(zip(MOVED, places, strict=True))
        moves, beyond = (tuple(name for name in MOVED if of[name] == kind) for kind in ("moves", "beyond"))
        return Term(torch.tensor(float(value)), moves or MOVED[:1], tuple(set(beyond) - set(moves or MOVED[:1])))

    places = st.lists(st.sampled_from(["moves", "beyond", "no"]), min_size=len(MOVED), max_size=len(MOVED))
    return st.lists(st.tuples(st.integers(0, 99), places).map(term), max_size=8)


@given(terms())
def test_sums_hold_every_term_once_and_none_moves_what_one_of_its_terms_could_reach_besides(each: list[Term]) -> None:
    sums = together(each)
    assert sum(float(held.value) for held in sums) == sum(float(term.value) for term in each)
    for place, held in enumerate(sums):
        assert not set(held.moves) & set(held.beyond)
        for other in sums[:place]:  # no two could be one
            assert {*held.moves, *other.moves} & {*held.beyond, *other.beyond}
    for term in each:
        assert any(set(term.moves) <= set(held.moves) and set(term.beyond) <= set(held.beyond) for held in sums)


def found(batch: Batch, reciprocity: str, names: tuple[str, ...], monkeypatch: Any) -> list[dict[str, Tensor]]:
    """The gradient of each weight in each update of one step, none of which is made."""
    model = model_of(16, size=SIZES["tiny"], dense=True)
    bright = Slot(name="bright", term=lambda held: held.reconstructions.mean(), moves=("encoder",))  # and could reach G
    less = replace(TERMS["laplacian"](), name="less", moves=("generator",))
    updates = updates_of(model, (*slots_named(names), bright, less), reciprocity=reciprocity, r1_every=2)
    told: list[dict[str, Tensor]] = []

    def note(weights: Any) -> None:
        named = {
            f"{net} {key}": weight for net, part in updates.networks.items() for key, weight in part.named_parameters()
        }
        told.append({name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None})
        for weight in weights:
            weight.grad.zero_()

    monkeypatch.setattr(updates, "share", note)
    torch.manual_seed(1)
    updates.step(batch, 0, 10**9)
    return told


@pytest.mark.parametrize("reciprocity", ["code", "paper"])
def test_gradients_are_those_of_each_term_by_itself(reciprocity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three updates, with slots in two of them; one could reach F, one E, and one, that does not say so, G."""
    batch = batch_of(3, 2, 3, 16, 16)
    ways: list[int] = []

    def counted(terms: Any) -> list[Term]:
        ways.append(len(together(terms)))
        return together(terms)

    with monkeypatch.context() as patch:
        patch.setattr(updates_module, "together", counted)
        sums = found(batch, reciprocity, NAMES, patch)
    with monkeypatch.context() as patch:
        patch.setattr(updates_module, "together", list)
        alone = found(batch, reciprocity, NAMES, patch)
    assert ways == ([1, 2, 4] if reciprocity == "code" else [1, 2, 3])
    assert [sorted(each) for each in sums] == [sorted(each) for each in alone] and len(sums) == 3
    for one, other in zip(sums, alone, strict=True):
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=1e-3, atol=1e-5 * (1.0 + float(gradient.abs().max())))


def test_what_a_slot_could_reach_and_does_not_move_follows_from_what_it_is_told_to_move() -> None:
    """A built-in slot that is told to move less has more beyond; of one that does not say, that is all the rest."""
    assert TERMS["latent_infonce"]().beyond == ("projector",) and TERMS["l1"]().beyond == ()
    assert replace(TERMS["l1"](), moves=("generator",)).beyond == ("encoder",)
    assert replace(TERMS["latent_infonce"](), moves=(*MAKERS, "encoder", "head")).beyond == ()
    own = Slot(name="own", term=lambda held: held.z.mean(), moves=("encoder",))
    assert own.beyond == tuple(name for name in MOVED if name != "encoder")
    with pytest.raises(InvalidValueError, match="reaches must be some of"):
        replace(own, reaches=("teacher",))
