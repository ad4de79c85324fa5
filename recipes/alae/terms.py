"""The table of slots: from a name to what makes the term, with the weight, warm-up and start that it is known to bear.

    slots = slots_named(["latent_infonce", "l1=0.5"])
    updates = Updates(model, prior, rules, accelerator, slots, networks_of(slots, model))

Faithful ALAE has none of them. A term that works with and against a network at once (`patch_critic`, `seed_cycle`) adds
up two parts that no weight follows both of: the judge's, on pictures cut from their graph, and the maker's, under a
judge that is frozen while it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fractal_streams.recipes.alae.contrast import info_nce, nt_xent, patch_nce, patches_of
from fractal_streams.recipes.alae.critics import PatchCritic, critic_loss, realism_loss
from fractal_streams.recipes.alae.model import ALAE
from fractal_streams.recipes.alae.penalties import gradient_penalty, hessian_penalty
from fractal_streams.recipes.alae.pixels import (
    absolute_distance,
    feature_distance,
    focal_frequency_distance,
    laplacian_distance,
    perceptual_distance,
    spectral_distance,
)
from fractal_streams.recipes.alae.slots import Head, Pass, Slot, frozen
from fractal_streams.recipes.alae.temporal import slow_features, straightness, time_contrast
from fractal_streams.recipes.alae.views import view

from fractal_streams.errors import InvalidValueError, missing_extra, unknown_name

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

AUTOENCODER = ("encoder", "generator")
MAKERS = ("generator", "projector")
PIXELS = 10.0
"""Weight of terms of pixels: their gradients are a tenth to a half of reciprocity's. Behind 400 steps of 32 pictures
the tiny model's reconstructions had 12.3 dB at 10, and 9.6 dB at 1."""
MAPS = 3
"""E's finest maps that patches are drawn from."""


def latent_infonce(temperature: float = 0.1) -> Slot:
    """E(G(w_i)) has to be told to be of w_i, among the batch's codes: reciprocity that a shrinking w can't satisfy."""

    def term(held: Pass) -> Tensor:
        head = head_of(held)
        return info_nce(head(held.fake_codes), head(held.codes.detach()), temperature)

    moves = (*AUTOENCODER, "head")
    return Slot(name="latent_infonce", term=term, moves=moves, reaches=(*moves, "projector"), weight=0.2)


def real_cycle(temperature: float = 0.1) -> Slot:
    """E(G(E(x))) has to be told to be of E(x): reciprocity on real pictures, which ALAE's own updates never see."""

    def term(held: Pass) -> Tensor:
        head = head_of(held)
        return info_nce(head(held.cycle_codes), head(held.real_codes).detach(), temperature)

    begins = {"start": 50_000, "warmup": 50_000}
    moves = (*AUTOENCODER, "head")
    return Slot(name="real_cycle", term=term, moves=moves, reaches=moves, weight=0.2, **begins)


def instance(temperature: float = 0.2, colour: float = 0.4, symmetries: bool = True) -> Slot:
    """Two views of a picture, of other geometry and colours, have one code; of a clip, one frame alone counts.

    Args:
        colour, symmetries: see `view`. Without them pairs are told by their palettes, and nothing else is learnt.
    """

    def term(held: Pass) -> Tensor:
        images = held.images if held.clips is None else held.images.unflatten(0, held.clips)[:, held.clips[1] // 2]
        views = [view(images, colour=colour, symmetries=symmetries) for _ in range(2)]
        codes = held.model.encode(torch.cat(views))
        return nt_xent(*head_of(held)(codes).chunk(2), temperature)

    return Slot(name="instance", term=term, moves=("encoder", "head"), reaches=("encoder", "head"), weight=0.1)


def patches(temperature: float = 0.07, places: int = 128) -> Slot:
    """A place of G(E(x)), as E sees it, has to be told to be that place of x, on E's finest maps."""

    def term(held: Pass) -> Tensor:
        with torch.no_grad():
            real = held.model.features(held.images)[:MAPS]
        pairs = zip(*patches_of(held.model.features(held.reconstructions)[:MAPS], real, places), strict=True)
        return torch.stack([patch_nce(query, key, temperature) for query, key in pairs]).mean()

    return Slot(name="patches", term=term, moves=AUTOENCODER, reaches=AUTOENCODER, weight=0.1)


def time_near(temperature: float = 0.1, near: int = 1, far: int | None = 3) -> Slot:
    """Neighbouring frames have near codes, other clips and far frames have others: `temporal.time_contrast`."""

    def term(held: Pass) -> Tensor:
        return time_contrast(of_clips(held, head_of(held)(held.real_codes)), temperature, near, far)

    return Slot(name="time_contrast", term=term, moves=("encoder", "head"), reaches=("encoder", "head"), weight=0.1)


def slow(floor: float = 0.5) -> Slot:
    """Codes of a clip move slowly, with a floor to the spread of each component: `temporal.slow_features`."""

    def term(held: Pass) -> Tensor:
        return slow_features(of_clips(held, held.real_codes), floor)

    return Slot(name="slow_features", term=term, moves=("encoder",), reaches=("encoder",), weight=0.1)


def straight() -> Slot:
    """Codes of a clip move on a straight line at one speed, as its parameter does: `temporal.straightness`."""

    def term(held: Pass) -> Tensor:
        return straightness(of_clips(held, held.real_codes))

    return Slot(name="straightness", term=term, moves=("encoder",), reaches=("encoder",), weight=0.1)


def l1() -> Slot:
    """The mean of |x - G(E(x))|."""

    def term(held: Pass) -> Tensor:
        return absolute_distance(held.reconstructions, held.images)

    return Slot(name="l1", term=term, moves=AUTOENCODER, reaches=AUTOENCODER, weight=PIXELS)


def laplacian(levels: int = 3) -> Slot:
    """L1 of the Laplacian pyramids of x and G(E(x)).

    Args:
        levels: as many, or as leave at least 4 pixels a side.
    """

    def term(held: Pass) -> Tensor:
        fit = max(1, int(math.log2(held.images.shape[-1])) - 2)
        return held.fused(laplacian_distance)(held.reconstructions, held.images, min(levels, fit))

    return Slot(name="laplacian", term=term, moves=AUTOENCODER, reaches=AUTOENCODER, weight=PIXELS / 2)


def focal_frequency(alpha: float = 1.0) -> Slot:
    """Frequencies of x and G(E(x)), those that are far off first."""

    def term(held: Pass) -> Tensor:
        return focal_frequency_distance(held.reconstructions, held.images, alpha)

    return Slot(name="focal_frequency", term=term, moves=AUTOENCODER, reaches=AUTOENCODER, weight=PIXELS)


def spectrum() -> Slot:
    """The spectra of G(F(z)) and x, without pairs: fakes are as sharp as real pictures are."""

    def term(held: Pass) -> Tensor:
        return spectral_distance(held.fakes, held.images)

    return Slot(
        name="spectrum", term=term, moves=MAKERS, reaches=MAKERS, weight=0.01, update="generator",
        warmup=50_000,
    )  # fmt: skip


def perceptual() -> Slot:
    """Directions of E's features of x and G(E(x)), colours too."""
    return seen_alike("perceptual", perceptual_distance, 2.0)


def feature_matching() -> Slot:
    """E's features of x and G(E(x)), their strength too, by which pictures are as bright and contrasty."""
    return seen_alike("feature_matching", feature_distance, PIXELS)


def seen_alike(name: str, distance: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor], weight: float) -> Slot:
    """x and G(E(x)) as E sees them, E's weights held still: it moves as the coder, not as the judge."""

    def term(held: Pass) -> Tensor:
        remade = held.reconstructions
        with frozen(held.model.encoder):
            return held.fused(distance)(held.model.features(remade, raw=True), held.sight[1])

    return Slot(name=name, term=term, moves=AUTOENCODER, reaches=AUTOENCODER, weight=weight)


def hessian(directions: int = 2, step: float = 0.1, reduction: str = "mean") -> Slot:
    """Components of z act on G(F(z)) apart from each other. Late and every 4th step: it makes five pictures of each.

    The weight is far below the usual 0.1: of 256 components, and pictures of deviation 0.4, the kinks of an untrained
    G's rectifiers alone make a mean of 300 and a maximum of 7,000.
    """

    def term(held: Pass) -> Tensor:
        model = held.model
        return hessian_penalty(
            lambda draws: model.decode(model.project(draws), noise=False), held.z.detach(), directions, step, reduction
        )

    return Slot(
        name="hessian", term=term, moves=MAKERS, reaches=MAKERS, weight=0.001, update="generator",
        every=4, start=1_000_000, warmup=500_000,
    )  # fmt: skip


def patch_critic(gamma: float = 5.0) -> Slot:
    """A critic of patches, with R1, and G and F against it; Adam makes the critic's steps as long at any weight."""

    def term(held: Pass) -> Tensor:
        critic = held.critic
        if critic is None:
            raise InvalidValueError("slot patch_critic needs a critic: give the updates networks_of(slots, model)")
        judged = critic_loss(critic(held.images), critic(held.fakes.detach()))
        slopes = gradient_penalty(lambda images: critic(images).mean(1), held.images, gamma)
        with frozen(critic):
            return judged + slopes + realism_loss(critic(held.fakes))

    moves = (*MAKERS, "critic")
    return Slot(name="patch_critic", term=term, moves=moves, reaches=moves, weight=0.1, update="generator")


def seed_cycle() -> Slot:
    """x to E to F to G to D∘E: a fake to E and D, and to F and G one that should seem real.

    The seed's five steps, with the last of them for both sides. F is given E's code as its draw, so both must be of one
    size; E does not follow as the giver of that code.
    """

    def term(held: Pass) -> Tensor:
        model = held.model
        if model.prior_size != model.code_size:
            raise InvalidValueError(
                f"slot seed_cycle puts codes of {model.code_size} numbers into F, which takes {model.prior_size}: "
                "take a prior of the codes' size, or leave the slot out"
            )
        cycled = model.decode(model.project(held.real_codes.detach()))
        judged = nn.functional.softplus(model.score(model.encode(cycled.detach())).float()).mean()
        with frozen(model.encoder, model.discriminator):
            return judged + realism_loss(model.score(model.encode(cycled)))

    moves = ("encoder", "discriminator", "generator", "projector")
    return Slot(name="seed_cycle", term=term, moves=moves, reaches=moves, weight=0.1, update="generator")


TERMS: Mapping[str, Callable[..., Slot]] = {
    "latent_infonce": latent_infonce,
    "real_cycle": real_cycle,
    "instance": instance,
    "patches": patches,
    "time_contrast": time_near,
    "slow_features": slow,
    "straightness": straight,
    "l1": l1,
    "laplacian": laplacian,
    "focal_frequency": focal_frequency,
    "spectrum": spectrum,
    "perceptual": perceptual,
    "feature_matching": feature_matching,
    "hessian": hessian,
    "patch_critic": patch_critic,
    "seed_cycle": seed_cycle,
}


def slots_named(names: Sequence[str]) -> tuple[Slot, ...]:
    """Slots of the table, in its order.

    Args:
        names: each "name", or "name=weight" for another weight than the table's.

    Raises:
        UnknownNameError: not in the table.
        InvalidValueError: a name twice, or a weight that is no number from 0 on.

    Example:
        >>> [(slot.name, slot.weight) for slot in slots_named(["real_cycle=0.5", "latent_infonce"])]
        [('latent_infonce', 0.2), ('real_cycle', 0.5)]
    """
    weights: dict[str, str] = {}
    for asked in names:
        name, _, weight = asked.partition("=")
        if name not in TERMS:
            raise unknown_name("slot", name, TERMS)
        if name in weights:
            raise InvalidValueError(f"slot {name} is asked for twice: give each name once, as name or name=weight")
        weights[name] = weight
    return tuple(weighed(TERMS[name](), weights[name]) for name in TERMS if name in weights)


def weighed(slot: Slot, weight: str) -> Slot:
    """The slot with a weight as it is written, or as it is for an empty text."""
    if not weight:
        return slot
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not (0.0 <= number < math.inf):
        raise InvalidValueError(f"slot {slot.name}: weight must be a finite number from 0 on, got {weight!r}")
    return replace(slot, weight=number)


def networks_of(slots: Sequence[Slot], model: ALAE, width: int = 64) -> dict[str, nn.Module]:
    """What slots bring beside the model: "head", "critic", or neither, on the model's device, with first weights.

    Args:
        width: channels of the critic's first convolution.
    """
    moved = {name for slot in slots for name in slot.moves}
    device = model.mean_code.device
    brought: dict[str, nn.Module] = {}
    if "head" in moved:
        brought["head"] = Head(model.code_size).to(device)
    if "critic" in moved:
        if model.flat:
            raise InvalidValueError("the MLP variant makes no pictures: leave out slot patch_critic")
        smallest = 4 << model.first_level
        brought["critic"] = PatchCritic(3, width, layers=min(3, int(math.log2(smallest)) - 1)).to(device)
    return brought


def head_of(held: Pass) -> nn.Module:
    """The projection of contrastive terms, or an `InvalidValueError`."""
    if held.head is None:
        raise InvalidValueError("contrastive slots need a head: give the updates networks_of(slots, model)")
    return held.head


def of_clips(held: Pass, codes: Tensor) -> Tensor:
    """(count, T, d) of (count * T, d) codes, or an `InvalidValueError` for pictures that are of no clip."""
    if held.clips is None:
        raise InvalidValueError(
            "terms over time need clips, (B, T, 3, N, N): open a stream of clips, or leave out time_contrast, "
            "slow_features and straightness"
        )
    return codes.unflatten(0, held.clips)
