"""Where ALAE's z come from: noise, codes of other pictures, or the parameters that fractals themselves are drawn from.

The last two put fractals in the place of noise: F maps the code of one picture, or the parameters of one, to that of a
picture that G makes. Never is it the picture beside which the draw stands, or a frame of its clip, so that no draw says
which picture it will be compared with.

    prior = make_prior("parameters", opened_source(settings, "validation", device), model_code_size=256)
    model = ALAE(size, shape, prior_size=prior.size)
    z = prior.draw(batch, model)                                # (B, prior.size)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fractal_streams.recipes.data import held_out
from fractal_streams.recipes.probe import PERIODS

from fractal_streams import Batch, Stream
from fractal_streams.errors import InvalidValueError, missing_extra, unknown_name

try:
    import torch
    from fractal_streams.recipes.alae.model import Grown, fitted
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

FEW_CLASSES = 32
"""Up to so many a class stands for itself, one column each; of more, their parameters do."""
WIDEST = 32
"""Numbers of a latent for one picture; what has more, such as a map of its pixels, is no parameter."""
KNOTS = 129
"""Of the ranks of a latent whose values lie decades apart."""
HALVES = (torch.bfloat16, torch.float16)
PLACES = frozenset(("item", "top", "left", "flip", "chain"))
"""Latents that say which stored picture was cut where, or which chain was run, and nothing of how it came to be."""


class Coder(Grown, Protocol):
    """What a prior needs of the model."""

    def encode(self, pictures: Tensor, /) -> Tensor:
        """(B, 3, N, N) to (B, code_size)."""


class Prior(nn.Module, ABC):
    """A distribution of z.

    size: width of z.

    Draws follow torch's generators of the batch's device, and look at no value on the host.
    """

    size: int

    @abstractmethod
    def draw(self, batch: Batch, model: Coder) -> Tensor:
        """(B, size) float32, without gradient, on the batch's device, B pictures of it (each frame of a clip is one).

        Raises:
            InvalidValueError: a batch of one sample, where draws are of others.
        """


class Gaussian(Prior):
    """The standard normal distribution.

    Example:
        >>> prior = Gaussian(4)
        >>> batch = Batch(torch.arange(2), torch.zeros(2, 5, 3, 8, 8), torch.arange(2), {})  # clips of 5 frames
        >>> prior.draw(batch, None).shape
        torch.Size([10, 4])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def draw(self, batch: Batch, model: Coder) -> Tensor:
        return torch.randn(pictures(batch), self.size, device=batch.images.device)


class Codes(Prior):
    """E's codes of other pictures of the batch, in the batch's precision: what F is given is a picture that was seen.

    Source: CALAE, where encoded pictures, not noise, go into the projector.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @torch.no_grad()
    def draw(self, batch: Batch, model: Coder) -> Tensor:
        form = batch.images.dtype  # no cache: casts made here had no gradient in E's own update (pytorch issue 112583)
        half = torch.autocast(batch.images.device.type, form, enabled=form in HALVES, cache_enabled=False)
        images = fitted(batch.images.flatten(0, 1) if frames(batch) else batch.images, model)
        with half:
            return model.encode(images).float()[others(batch)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """How latents become numbers about 0, by names; each name is "latent" or, of several numbers, "latent[3]".

    numbers: standardised. ranks: made uniform by their rank, then standardised. angles: sine and cosine.
    partial: those that some samples have not: 0 stands for them, and a column says which samples have them. Latents
        that are always had together share it, under the name of the first.
    classes: columns of the class, 0 where it stands in other latents.
    """

    numbers: tuple[str, ...]
    ranks: tuple[str, ...]
    angles: tuple[str, ...]
    partial: tuple[str, ...]
    classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns, in their order."""
        return (
            *self.numbers, *self.ranks, *(f"sine of {name}" for name in self.angles),
            *(f"cosine of {name}" for name in self.angles), *(f"has {name}" for name in self.partial),
            *(f"class {label}" for label in range(self.classes)),
        )  # fmt: skip


class Parameters(Prior):
    """What other pictures of the batch were drawn from: the distribution of fractals itself.

    A latent is standardised with the mean and deviation that held-out samples have; one whose values lie decades apart
    goes by its rank among them; an angle stands as sine and cosine (periods: `probe.PERIODS`), a class as one of up to
    32 columns, and what follows from the class then does not stand again. Latents that never vary are left out.

    Attributes:
        columns: what the columns of z are, see `Columns.names`.
        shift, spread: (n,) float64 of numbers and ranks. knots: (ranks, 129) float64, rising. They go with a
            checkpoint.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", split="validation", device="cpu", height=8, width=8)
        >>> prior = make_prior("parameters", stream, 256)
        >>> prior.size, prior.columns.names[:4]
        (16, ('power', 'frequency', 'sine of alpha', 'sine of beta'))
    """

    shift: Tensor
    spread: Tensor
    knots: Tensor
    turns: Tensor

    def __init__(self, columns: Columns, shift: Tensor, spread: Tensor, knots: Tensor) -> None:
        super().__init__()
        self.columns, self.size = columns, len(columns.names)
        for name, values in (("shift", shift), ("spread", spread), ("knots", knots)):
            self.register_buffer(name, values.double())
        turns = [math.tau / PERIODS[name] for name in columns.angles]
        self.register_buffer("turns", torch.tensor(turns, dtype=torch.float64)[:, None], persistent=False)

    def draw(self, batch: Batch, model: Coder) -> Tensor:
        return self.own(batch)[others(batch)]

    def own(self, batch: Batch) -> Tensor:
        """(B, size) float32: what the pictures of the batch themselves were drawn from."""
        found, columns, device = told(batch), self.columns, batch.images.device

        def rows(names: tuple[str, ...]) -> Tensor:
            empty = torch.empty(0, pictures(batch), dtype=torch.float64, device=device)
            return torch.stack([found[name].double() for name in names]) if names else empty

        plain = torch.cat([rows(columns.numbers), ranked(rows(columns.ranks), self.knots)])
        angles = rows(columns.angles) * self.turns
        parts = [
            (plain - self.shift[:, None]) / self.spread[:, None], angles.sin(), angles.cos(),
            (~rows(columns.partial).isnan()).double(),
        ]  # fmt: skip
        values = torch.cat(parts).nan_to_num(nan=0.0).float().T
        if not columns.classes:
            return values
        labels = batch.labels.repeat_interleave(frames(batch) or 1)
        return torch.cat([values, (labels[:, None] == torch.arange(columns.classes, device=device)).float()], dim=1)

    @classmethod
    def of(cls, stream: Stream, samples: int = 4096) -> Parameters:
        """The prior of what a stream draws.

        Args:
            stream: of the validation or test split, so that what is measured is not trained on.
            samples: pictures to measure, of a stream whose pictures are dear (`Stream.cost`) down to 256.

        Raises:
            InvalidValueError: a stream whose pictures were drawn from nothing that varies.
        """
        length = frames(stream.generate(range(1)).torch()) or 1
        count = max(1, min(samples, max(256, samples // stream.cost)) // length)
        found: dict[str, list[Tensor]] = {}
        labels: list[Tensor] = []
        for batch in held_out(stream, count, 512):
            for name, values in told(batch).items():
                found.setdefault(name, []).append(values.double().cpu())
            labels.append(batch.labels.repeat_interleave(frames(batch) or 1).cpu())
        latents = {name: torch.cat(parts) for name, parts in found.items()}
        prior = cls(*measured(latents, torch.cat(labels), stream.num_classes))
        if not {*prior.columns.numbers, *prior.columns.ranks, *prior.columns.angles}:
            raise InvalidValueError(
                f"prior='parameters' needs pictures that were drawn from parameters, and these have none that vary "
                f"({', '.join(latents) or 'no latents'}): choose prior='codes' or 'gaussian', or train on a preset"
            )
        return prior.to(torch.device(stream.device))


PRIORS = {"gaussian": Gaussian, "codes": Codes, "parameters": Parameters}


def make_prior(name: str, stream: Stream | None, model_code_size: int, samples: int = 4096) -> Prior:
    """The prior of a name.

    Args:
        name: of `PRIORS`: "gaussian" and "codes", as wide as the code; "parameters", as wide as they are.
        stream: of the validation split; what "parameters" is measured on, the others need none.
        samples: pictures of it.

    Raises:
        UnknownNameError: no such prior. InvalidValueError: a stream without parameters, or none.

    Example:
        >>> make_prior("codes", None, 64).size
        64
    """
    if name not in PRIORS:
        raise unknown_name("prior", name, PRIORS)
    if name != "parameters":
        return Gaussian(model_code_size) if name == "gaussian" else Codes(model_code_size)
    if stream is None:
        raise InvalidValueError("prior='parameters' is measured on a stream: give one of the validation split")
    return Parameters.of(stream, samples)


def frames(batch: Batch) -> int | None:
    """T of clips, None of stills."""
    return int(batch.images.shape[1]) if batch.images.dim() == 5 else None


def pictures(batch: Batch) -> int:
    """Of a batch, frames of clips counted singly."""
    return len(batch.images) * (frames(batch) or 1)


def others(batch: Batch) -> Tensor:
    """(B,) int64: for each picture one of another sample, all samples moved on by a drawn number of places.

    A frame of a clip gets the frame of the same time.

    Raises:
        InvalidValueError: there is one sample.
    """
    count, length, device = len(batch.images), frames(batch) or 1, batch.images.device
    if count < 2:
        raise InvalidValueError(
            "a batch of one sample holds no other to draw from: take a larger batch_size, or prior='gaussian'"
        )
    places = torch.arange(count, device=device)
    moved = (places + torch.randint(1, count, (1,), device=device)) % count
    return (moved[:, None] * length + torch.arange(length, device=device)).flatten()


def told(batch: Batch) -> dict[str, Tensor]:
    """Every number that pictures were drawn from, (B,) each, NaN where one has none; maps are left out."""
    length = frames(batch)
    found: dict[str, Tensor] = {}
    for name, values in batch.latents.items():
        if name in PLACES:
            continue
        if length is not None:
            moving = values.dim() > 1 and values.shape[1] == length
            values = values.flatten(0, 1) if moving else values.repeat_interleave(length, 0)
        if values.dim() == 1:
            found[name] = values
        elif math.prod(values.shape[1:]) <= WIDEST:
            found.update({f"{name}[{place}]": each for place, each in enumerate(values.flatten(1).unbind(1))})
    return found


def ranked(values: Tensor, knots: Tensor) -> Tensor:
    """(n, B) shares, 0 to 1, of the values that lie below each; NaN of NaN.

    Args:
        values: (n, B). knots: (n, k) rising, at equal shares.

    Example:
        >>> ranked(torch.tensor([[1.0, 5.5, 1e9]]), torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[0.0, 0.25, 1.0]]
    """
    if not len(values):
        return values
    above = torch.searchsorted(knots, values.contiguous()).clamp(1, knots.shape[1] - 1)
    low, high = knots.gather(1, above - 1), knots.gather(1, above)
    inside = ((values - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)
    return (above - 1 + inside) / (knots.shape[1] - 1)


def measured(latents: Mapping[str, Tensor], labels: Tensor, num_classes: int) -> tuple[Columns, Tensor, Tensor, Tensor]:
    """The columns of latents, (n,) shift and spread of numbers and ranks, and (ranks, k) knots.

    Args:
        latents: name to (N,) float64. labels: (N,) int64.
    """
    classes = num_classes if 2 <= num_classes <= FEW_CLASSES else 0
    kinds: dict[str, list[str]] = {"numbers": [], "ranks": [], "angles": []}
    partial: dict[bytes, str] = {}
    for name, values in latents.items():
        has = ~values.isnan()
        if not bool(has.any()):
            continue
        if not bool(has.all()):
            partial.setdefault(has.numpy().tobytes(), name)
        if varies(values[has]) and not (classes and follows(values, labels, classes)):
            kinds["angles" if name in PERIODS else "ranks" if far_apart(values[has]) else "numbers"].append(name)
    columns = Columns(
        **{kind: tuple(names) for kind, names in kinds.items()}, partial=tuple(partial.values()), classes=classes
    )
    shares = torch.linspace(0.0, 1.0, KNOTS, dtype=torch.float64)
    knots = torch.empty(len(columns.ranks), KNOTS, dtype=torch.float64)
    held = [latents[name][~latents[name].isnan()] for name in (*columns.numbers, *columns.ranks)]
    for place, values in enumerate(held[len(columns.numbers) :]):
        knots[place] = torch.quantile(values, shares, interpolation="lower")
        held[len(columns.numbers) + place] = ranked(values[None], knots[place : place + 1])[0]
    shift = torch.tensor([float(values.mean()) for values in held], dtype=torch.float64)
    spread = torch.tensor([float(values.std(correction=0)) or 1.0 for values in held], dtype=torch.float64)
    return columns, shift, spread, knots


def varies(values: Tensor) -> bool:
    return bool((values != values[0]).any())


def follows(values: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether the class says the value, or that there is none."""
    rows = [values[labels == label] for label in range(classes)]
    alike = [bool((row == row[0]).all()) or bool(row.isnan().all()) for row in rows if len(row) > 1]
    return bool(alike) and all(alike)


def far_apart(values: Tensor) -> bool:
    """Whether a few values would be all that deviations show: the middle 90 % of positive ones span more than two
    decades, or the middle 90 % less than a deviation.
    """
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=values.dtype)).tolist()
    if float(values.min()) > 0.0 and high > 100.0 * low:
        return True
    return not float(values.std(correction=0)) <= high - low
