"""Slots: terms of the loss that can be put in and taken out by name, and the forward pass that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from fractal_streams.recipes.alae.model import ALAE

from fractal_streams import Batch
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

UPDATES = ("discriminator", "generator", "reciprocity", "own")
"""Whose gradient a slot is added to; "own" is a step by itself, with an optimizer of its own."""
MOVED = ("projector", "generator", "encoder", "discriminator", "head", "critic")


Measure = Callable[..., Tensor]
"""Of tensors, a scalar."""


def as_it_is(measure: Measure) -> Measure:
    """The measure."""
    return measure


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass; each part is computed when it is first asked for, and kept.

    batch: what the loader gave, as tensors. images: (B, *shape) in [-1, 1], frames of clips one by one, reduced to
    what the model has grown to. clips: (count, T) of the frames, or None. z: (B, prior_size).
    head: the projection of contrastive terms. critic: the judge of patches, or None. fused: a measure of large maps as
    one that goes through them once, where there is a compiler.
    """

    model: ALAE
    batch: Batch
    images: Tensor
    z: Tensor
    clips: tuple[int, int] | None = None
    head: nn.Module | None = None
    critic: nn.Module | None = None
    fused: Callable[[Measure], Measure] = as_it_is

    @cached_property
    def codes(self) -> Tensor:
        """F(z), (B, code_size)."""
        return self.model.project(self.z)

    @cached_property
    def fakes(self) -> Tensor:
        """G(F(z)), (B, *shape)."""
        return self.model.decode(self.codes)

    @cached_property
    def fake_codes(self) -> Tensor:
        """E(G(F(z))), (B, code_size)."""
        return self.model.encode(self.fakes)

    @cached_property
    def sight(self) -> tuple[Tensor, list[Tensor]]:
        """E(x), and E's raw maps of x without a gradient, of one look."""
        return self.model.looked(self.images)

    @cached_property
    def real_codes(self) -> Tensor:
        """E(x), (B, code_size)."""
        return self.sight[0]

    @cached_property
    def reconstructions(self) -> Tensor:
        """G(E(x)), (B, *shape)."""
        return self.model.decode(self.real_codes)

    @cached_property
    def cycle_codes(self) -> Tensor:
        """E(G(E(x))), (B, code_size)."""
        return self.model.encode(self.reconstructions)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A term of the loss.

    term: of a pass, a scalar. moves: the networks that follow it, and no other. weight: multiplies it.
    reaches: the networks that its gradient could get to, where that is known: then terms that move others may share its
        way back through the networks.
    update: whose gradient it is added to; where it is not "own", its weight is against that update's other terms, and
        under "own" it has none, as Adam's steps are of one length.
    every: steps from one time to the next. start: images seen before it begins; warmup: more of them until it has all
        its weight.
    """

    name: str
    term: Callable[[Pass], Tensor]
    moves: tuple[str, ...]
    reaches: tuple[str, ...] | None = None
    weight: float = 1.0
    update: str = "reciprocity"
    every: int = 1
    start: int = 0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise InvalidValueError(f"slot {self.name}: update must be one of {', '.join(UPDATES)}, got {self.update}")
        if not self.moves or set(self.moves) - set(MOVED):
            raise InvalidValueError(f"slot {self.name}: moves must be some of {', '.join(MOVED)}, got {self.moves}")
        if set(self.reaches or ()) - set(MOVED):
            raise InvalidValueError(
                f"slot {self.name}: reaches must be some of {', '.join(MOVED)}, or None where it is not known, got "
                f"{self.reaches}"
            )
        if self.weight < 0.0 or self.every < 1 or self.start < 0 or self.warmup < 0:
            raise InvalidValueError(
                f"slot {self.name}: weight, start and warmup must be at least 0 and every at least 1, got "
                f"{self.weight}, {self.start}, {self.warmup}, {self.every}"
            )

    @property
    def beyond(self) -> tuple[str, ...]:
        """The networks that its gradient could get to and does not move."""
        reached = MOVED if self.reaches is None else self.reaches
        return tuple(name for name in reached if name not in self.moves)

    def due(self, step: int, seen: int) -> bool:
        """Whether it counts in a step, of which `seen` images were seen before."""
        return seen >= self.start and step % self.every == 0

    def share(self, seen: int) -> float:
        """What its weight is multiplied by: rises from 0 to 1 in the warm-up."""
        return 1.0 if not self.warmup else min(1.0, max(0, seen - self.start) / self.warmup)


class Head(nn.Module):
    """The projection of contrastive terms: (B, code_size) to (B, 128) of length 1."""

    def __init__(self, code_size: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(code_size, code_size), nn.GELU(), nn.Linear(code_size, width))

    def forward(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return nn.functional.normalize(self.layers(codes.float()), dim=1)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Networks that look without learning: gradients go through them, and none to their weights."""
    with held_still([weight for network in networks for weight in network.parameters()]):
        yield


@contextmanager
def held_still(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """`frozen`, of weights that are listed already."""
    moving = [weight for weight in weights if weight.requires_grad]
    for weight in moving:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in moving:
            weight.requires_grad_(True)
