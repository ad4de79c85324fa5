"""The updates of a step: D∘E against G∘F, G∘F against D∘E, latent reciprocity; and the slots' terms with them.

The first two are a GAN's with the non-saturating loss and R1 (Mescheder et al. 2018). The third asks that E finds the
code again that G made a picture of: mean (F(z) - E(G(F(z))))^2, the target without a gradient (ALAE, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fractal_streams.recipes.alae.guards import batch_deviation
from fractal_streams.recipes.alae.layers import doubled, halved
from fractal_streams.recipes.alae.model import ALAE, NETWORKS, Judge, fitted
from fractal_streams.recipes.alae.penalties import gradient_penalty
from fractal_streams.recipes.alae.priors import Prior
from fractal_streams.recipes.alae.slots import Measure, Pass, Slot, as_it_is, held_still

from fractal_streams import Batch
from fractal_streams.errors import missing_extra

try:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

BETAS = (0.0, 0.99)
SHARED = ("encoder", "generator")
"""The optimizers of the first two updates."""
OF_THE_DEVICE = ("lr", "fused", "capturable")
"""Of an optimizer's groups: they stay when a run goes on on another device; the rate is set in each step."""
RECIPROCITY = {"paper": ("encoder", "generator"), "code": ("encoder", "generator", "projector")}
"""What the third update moves: as in the paper, or as in its authors' code, where F follows too."""
PARTS = ("discriminator", "generator", "reciprocity")
"""Of the loss that is told."""


class Term(NamedTuple):
    """A weighted scalar, the networks that follow it, and those that its gradient could reach besides."""

    value: Tensor
    moves: tuple[str, ...]
    beyond: tuple[str, ...] = ()


def together(terms: Sequence[Term]) -> list[Term]:
    """Few sums of terms, each of a gradient that is the sum of its terms' own.

    What a sum moves, each of its terms moves or can't reach: so one way back through the networks does for all of them.
    A term goes to the first sum that it fits.
    """
    sums: list[Term] = []
    for term in terms:
        for place, held in enumerate(sums):
            moves = tuple(dict.fromkeys((*held.moves, *term.moves)))
            beyond = tuple(dict.fromkeys((*held.beyond, *term.beyond)))
            if not set(moves) & set(beyond):
                sums[place] = Term(held.value + term.value, moves, beyond)
                break
        else:
            sums.append(term)
    return sums


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a step is made.

    gamma: of R1. r1_every: steps from one R1 to the next; it is multiplied by as many. mixing: share of pictures with
    the styles of two codes. reciprocity: of `RECIPROCITY`; reciprocity_weight: multiplies it. separate: the third
    update has an optimizer of its own, whose steps are of full length whatever the weight; else it takes those of the
    first two, and the weight counts.
    """

    lr: float = 1.5e-3
    gamma: float = 10.0
    r1_every: int = 1
    mixing: float = 0.9
    reciprocity: str = "code"
    reciprocity_weight: float = 1.0
    separate: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class Kind:
    """What a step does: those of one kind launch the same kernels.

    slots: that are due. penalised: with R1. level, blending: of the model.
    """

    slots: tuple[Slot, ...]
    penalised: bool
    level: int
    blending: bool


class Optimisers:
    """Adams by name."""

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        self.parts = dict(parts)
        for group in self.param_groups:
            group["initial_lr"] = float(group["lr"])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            told, own = state[name], [{key: group[key] for key in OF_THE_DEVICE} for group in part.param_groups]
            groups = [group | kept for group, kept in zip(told["param_groups"], own, strict=True)]
            part.load_state_dict({**told, "param_groups": groups})  # where its numbers go follows from these
            for group, kept in zip(part.param_groups, own, strict=True):
                group |= kept  # the rate itself, and not a copy

    def follow(self, share: float) -> None:
        """Gives each weight so much of its highest rate, in place where a device reads it."""
        for group in self.param_groups:
            rate = group["initial_lr"] * share
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def forget(self) -> None:
        """Begin anew, as behind a change of what the networks are."""
        for part in self.parts.values():
            part.state.clear()


@dataclass(eq=False)
class Updates:
    """The updates of a step.

    Args:
        model: with its first weights, on its device. prior: draws z. slots: terms beside the three.
        others: "head" and "critic", where a slot wants them; they follow E's optimizer.
        penalty: R1 of (B, *shape) pictures, where not by PyTorch's own double differentiation.
        fused: see `Pass`.
    """

    model: ALAE
    prior: Prior
    rules: Rules
    accelerator: Accelerator
    slots: Sequence[Slot] = ()
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    penalty: Callable[[Tensor], Tensor] | None = None
    fused: Callable[[Measure], Measure] = as_it_is
    told: dict[str, Tensor] = field(init=False)
    shares: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        named = {name: getattr(self.model, name) for name in NETWORKS}
        self.networks: dict[str, nn.Module] = {**named, **self.others}
        self.listed = {name: list(network.parameters()) for name, network in self.networks.items()}
        groups = {"encoder": ("encoder", "discriminator", *self.others), "generator": ("generator", "projector")}
        if self.rules.separate:
            groups["reciprocity"] = self.moved_in("reciprocity", RECIPROCITY[self.rules.reciprocity])
        if own := self.moved_in("own"):
            groups["own"] = own
        self.judge = Judge(self.model)
        device = self.accelerator.device
        self.optimisers = Optimisers({
            name: torch.optim.Adam(self.weights(networks), betas=BETAS, eps=1e-8, **adam_of(device, self.rules.lr))
            for name, networks in groups.items()
        })  # fmt: skip
        unknown = torch.full((), torch.nan, device=device)
        self.told = dict.fromkeys(("r1", *(slot.name for slot in self.slots)), unknown)
        self.shares = {slot.name: torch.zeros((), device=device) for slot in self.slots if slot.warmup}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimisers.param_groups

    def state_dict(self) -> dict[str, Any]:
        """All that a step goes on from beside weights: of the optimizers, and what was told last of each term."""
        return {"optimisers": self.optimisers.state_dict(), "told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimisers.load_state_dict(state["optimisers"])
        self.told = {name: value.to(self.accelerator.device) for name, value in state["told"].items()}

    def moved_in(self, update: str, moves: Sequence[str] = ()) -> tuple[str, ...]:
        """Networks that an update moves, with its slots."""
        moved = {*moves, *(name for slot in self.slots if slot.update == update for name in slot.moves)}
        return tuple(name for name in self.networks if name in moved)

    def weights(self, networks: Iterable[str]) -> list[nn.Parameter]:
        return [weight for name in networks for weight in self.listed[name]]

    def step(self, batch: Batch, step: int, seen: int) -> dict[str, Tensor]:
        """One step on a batch; raw values by name, still on the device.

        Args:
            batch: tensors, pictures in [-1, 1]. step: from 0 on. seen: images before it.
        """
        return self.run(batch, self.begin(step, seen))

    def begin(self, step: int, seen: int) -> Kind:
        """What a step will do; and the slots' shares of their weights in it, where a device reads them."""
        for slot in self.slots:
            if slot.warmup:
                self.shares[slot.name].fill_(slot.share(seen))
        due = tuple(slot for slot in self.slots if slot.due(step, seen))
        penalised = self.rules.gamma > 0.0 and step % self.rules.r1_every == 0
        return Kind(due, penalised, self.model.level, self.model.blending)

    def run(self, batch: Batch, kind: Kind) -> dict[str, Tensor]:
        """A step that has begun; nothing in it looks at a value of the device, or at the step's number."""
        images, clips = self.pictures(batch)
        self.discriminate(self.passed(batch, images, clips), kind.slots, kind.penalised)
        self.generate(self.passed(batch, images, clips), kind.slots)
        self.reciprocate(self.passed(batch, images, clips), kind.slots)
        if own := [slot for slot in kind.slots if slot.update == "own"]:
            held = self.passed(batch, images, clips)
            with self.moving((), own):
                self.move(self.terms(held, own), ("own",))
        self.tell(loss=torch.stack([self.told[name] for name in PARTS]).sum())
        return dict(self.told)

    def pictures(self, batch: Batch) -> tuple[Tensor, tuple[int, int] | None]:
        """The batch's pictures one by one, as large as the model has grown, and how clips lie in them."""
        images, clips = batch.images, None
        if images.dim() == 5:
            clips = (images.shape[0], images.shape[1])
            images = images.flatten(0, 1)
        images = fitted(images, self.model)
        if self.model.blending:
            coarse = doubled(halved(images))
            images = torch.lerp(coarse, images, self.model.blend)
        return images, clips

    def passed(self, batch: Batch, images: Tensor, clips: tuple[int, int] | None) -> Pass:
        draws = self.prior.draw(batch, self.model)
        others = (self.others.get("head"), self.others.get("critic"))
        return Pass(self.model, batch, images, draws, clips, *others, self.fused)

    def mixed(self, held: Pass) -> Tensor:
        """Styles of a pass: of some pictures, the finer ones are those of a second draw (StyleGAN, section 3.1)."""
        styles = self.model.styles(held.codes)
        places, rows = self.model.num_styles, len(held.codes)
        if self.rules.mixing == 0.0 or places == 1:
            return styles
        device = styles.device
        second = self.model.styles(self.model.project(self.prior.draw(held.batch, self.model)))
        cut = torch.randint(1, places + 1, (rows, 1), device=device)
        cut = torch.where(torch.rand(rows, 1, device=device) < self.rules.mixing, cut, places)
        first = torch.arange(places, device=device) < cut
        return torch.where(first[..., None], styles, second)

    def discriminate(self, held: Pass, due: Sequence[Slot], penalised: bool) -> None:
        slots = [slot for slot in due if slot.update == "discriminator"]
        moves = ("encoder", "discriminator")
        with self.moving(moves, slots), self.accelerator.autocast():
            codes = held.codes  # kept for the slots, with a gradient where one of them wants it
            with torch.no_grad():
                fakes = self.model.decode(self.mixed(held))
                self.model.remember(codes)
            real, fake = self.model.score(self.model.encode(torch.cat([held.images, fakes]))).chunk(2)
            loss = functional.softplus(fake).mean() + functional.softplus(-real).mean()
            terms = [Term(loss, moves), *self.terms(held, slots)]
        if penalised:
            with self.moving(moves, ()):
                penalty = (self.penalty or self.plain_penalty)(held.images)
            terms.append(Term(penalty * self.rules.r1_every, moves))
            self.tell(r1=penalty)
        self.tell(discriminator=loss, real_score=real.mean(), fake_score=fake.mean())
        self.tell(real_deviation=batch_deviation(held.images), fake_deviation=batch_deviation(fakes))
        self.move(terms, normed=moves)

    def plain_penalty(self, images: Tensor) -> Tensor:
        """R1, of E and D as they were written: what a compiler made can't be differentiated twice."""
        model = self.model
        return gradient_penalty(lambda leaves: self.judge(leaves, model.level, model.blended), images, self.rules.gamma)

    def generate(self, held: Pass, due: Sequence[Slot]) -> None:
        slots = [slot for slot in due if slot.update == "generator"]
        moves = ("generator", "projector")
        with self.moving(moves, slots), self.accelerator.autocast():
            score = self.model.score(self.model.encode(self.model.decode(self.mixed(held))))
            loss = functional.softplus(-score).mean()
            terms = [Term(loss, moves, ("encoder", "discriminator")), *self.terms(held, slots)]
        self.tell(generator=loss)
        self.move(terms, normed=moves)

    def reciprocate(self, held: Pass, due: Sequence[Slot]) -> None:
        slots = [slot for slot in due if slot.update == "reciprocity"]
        moves = RECIPROCITY[self.rules.reciprocity]
        with self.moving(moves, slots), self.accelerator.autocast():
            codes = held.codes.detach()
            loss = functional.mse_loss(held.fake_codes.float(), codes)
            beyond = () if "projector" in moves else ("projector",)
            terms = [Term(loss * self.rules.reciprocity_weight, moves, beyond), *self.terms(held, slots)]
        spread = (codes - codes.mean(0)).square().mean()
        self.tell(reciprocity=loss, relative_reciprocity=loss / (spread + 1e-12), code_deviation=spread.sqrt())
        self.move(terms, ("reciprocity",) if self.rules.separate else SHARED)

    def terms(self, held: Pass, slots: Sequence[Slot]) -> list[Term]:
        found = []
        with self.accelerator.autocast():
            for slot in slots:
                value = slot.term(held)
                self.tell(**{slot.name: value})
                found.append(Term(value * (slot.weight * self.shares.get(slot.name, 1.0)), slot.moves, slot.beyond))
        return found

    @contextmanager
    def moving(self, moves: Sequence[str], slots: Sequence[Slot]) -> Iterator[None]:
        """Gradients for these networks and those that the slots move, and for no other."""
        wanted = {*moves, *(name for slot in slots for name in slot.moves)}
        with held_still(self.weights(name for name in self.networks if name not in wanted)):
            yield

    def move(self, terms: Sequence[Term], optimisers: Sequence[str] = SHARED, normed: Sequence[str] = ()) -> None:
        """Adds up the gradients, each for the networks of its term, and lets the optimizers step."""
        sums = together(terms)
        for number, held in enumerate(sums, 1):
            held.value.backward(inputs=self.weights(held.moves), retain_graph=number < len(sums))
        moved = list(dict.fromkeys(name for held in sums for name in held.moves))
        weights = [weight for weight in self.weights(moved) if weight.grad is not None]
        self.share(weights)
        if self.rules.clip is not None:
            nn.utils.clip_grad_norm_(weights, self.rules.clip)
        for name in normed:
            gradients = [weight.grad for weight in self.listed[name] if weight.grad is not None]
            self.tell(**{f"gradient_{name}": nn.utils.get_total_norm(gradients)})
        for name in optimisers:
            self.optimisers.parts[name].step()
        for weight in weights:
            weight.grad = None

    def share(self, weights: Sequence[nn.Parameter]) -> None:
        """Makes gradients the mean over the ranks."""
        if self.accelerator.num_processes > 1:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            flat = torch.cat([each.flatten() for each in gradients])
            torch.distributed.all_reduce(flat)
            flat /= self.accelerator.num_processes
            for each, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
                each.copy_(part.view_as(each))

    def tell(self, **values: Tensor) -> None:
        self.told |= {name: value.detach().float() for name, value in values.items()}


def adam_of(device: torch.device, rate: float) -> dict[str, Any]:
    """How Adam is run on a device: a CPU and a GPU do it in one go; a GPU reads the rate there, so as to replay it."""
    if device.type != "cuda":
        return {"lr": rate, "fused": True if device.type == "cpu" else None}
    return {"lr": torch.tensor(rate, device=device), "fused": True, "capturable": True}
