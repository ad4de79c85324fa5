"""What is done with a trained ALAE: codes of pictures, pictures of codes, the way between codes, the best code.

    model = load_model("outputs/alae")
    codes = encode(model, images)
    frames = interpolate(model, codes[:1], codes[1:2], steps=9)
    found = project(model, images, styles="w+")

Pictures are in [-1, 1], level v of 256 is 2 v / 255 - 1. No noise is added: equal codes give equal pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fractal_streams.recipes.alae.board import looking
from fractal_streams.recipes.alae.showing import as_before

from fractal_streams import Batch, Stream
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.spec import one_of, whole

try:
    import torch
    from fractal_streams.recipes.alae.layers import halved
    from fractal_streams.recipes.alae.model import fitted
    from fractal_streams.recipes.alae.parts import kept, key_of
    from fractal_streams.recipes.alae.priors import Gaussian, Prior
    from fractal_streams.recipes.alae.reconstruction import PEAK, clipped
    from fractal_streams.recipes.alae.slots import frozen
    from fractal_streams.recipes.data import held_out
    from fractal_streams.recipes.loop import seeded
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None
if TYPE_CHECKING:
    from fractal_streams.recipes.alae.model import ALAE

STYLES = ("w", "w+")
LEAST = 4
"""Pixels of a side of the smallest pictures that a projection compares."""
FEATURES = 0.1
"""Weight of E's features in a projection, beside squared errors of pixels."""
SLACK = 1e-6
"""The least length of a code's step: of a code that is the mean code."""


def encode(model: ALAE, images: Tensor, batch_size: int = 256) -> Tensor:
    """E: (N, d) float32 codes of pictures, on the pictures' device.

    Args:
        images: (N, *shape) in [-1, 1], as large as the model was made for, or as it has grown. They may lie on
            another device than the model.
        batch_size: how many go through at once.

    Raises:
        InvalidValueError: pictures of another shape, or none.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> encode(ALAE(SIZES["tiny"], (3, 16, 16)), torch.zeros(5, 3, 16, 16)).shape
        torch.Size([5, 64])
    """
    size = whole(batch_size, "batch_size", 1, 2**31 - 1, "pictures")
    check_images(model, images)
    with looking(model):
        parts = (fitted(part.to(model.mean_code.device), model) for part in images.split(size))
        return torch.cat([model.encode(part).float().to(images.device) for part in parts])


def decode(model: ALAE, codes: Tensor, *, psi: float = 1.0, cutoff: int | None = None, batch_size: int = 256) -> Tensor:
    """G: (N, *shape) float32 pictures of codes, nominally in [-1, 1] and not clipped, on the codes' device.

    Args:
        codes: (N, d), or (N, num_styles, d), a code for each style.
        psi, cutoff: see `nearer`.
        batch_size: how many go through at once.

    Raises:
        InvalidValueError: codes of another shape, or none; psi or cutoff out of its range.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> model = ALAE(SIZES["tiny"], (3, 16, 16))
        >>> images = torch.zeros(2, 3, 16, 16)
        >>> bool((decode(model, encode(model, images)) == model.decode(model.encode(images), noise=False)).all())
        True
    """
    size = whole(batch_size, "batch_size", 1, 2**31 - 1, "codes")
    check_codes(model, codes, "codes")
    with looking(model):
        near = nearer(model, codes, psi, cutoff)
        parts = (part.to(model.mean_code.device) for part in near.split(size))
        return torch.cat([model.decode(part, noise=False).to(codes.device) for part in parts])


def nearer(model: ALAE, codes: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """Codes nearer to the mean code of the model: mean + psi (code - mean); (N, d), or (N, num_styles, d).

    Args:
        codes: (N, d), or (N, num_styles, d).
        psi: 0, the mean code, to 1, the codes as they are, which are given back.
        cutoff: only so many styles, the coarsest, are moved, 1 to num_styles; None moves all.

    Raises:
        InvalidValueError: psi or cutoff out of its range.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> nearer(ALAE(SIZES["tiny"], (3, 8, 8)), torch.ones(1, 64), 0.25)[0, :2].tolist()
        [0.25, 0.25]
    """
    if not 0.0 <= psi <= 1.0:
        raise InvalidValueError(f"psi must lie in [0, 1], from the mean code to the code itself, got {psi!r}")
    if cutoff is not None and not 1 <= cutoff <= model.num_styles:
        raise InvalidValueError(f"cutoff must lie in [1, {model.num_styles}], as many styles as there are: {cutoff!r}")
    if psi == 1.0:
        return codes
    near = torch.lerp(model.mean_code.to(codes).expand_as(codes), codes, psi)
    if cutoff is None:
        return near
    moved = (torch.arange(model.num_styles, device=codes.device) < cutoff)[:, None]
    near, whole_way = (part if part.dim() == 3 else model.styles(part) for part in (near, codes))
    return torch.where(moved, near, whole_way)


def interpolate(model: ALAE, first: Tensor, second: Tensor, steps: int = 7, batch_size: int = 256) -> Tensor:
    """(N, steps, *shape) float32 pictures of codes on the straight line from one code to another, both ends counted.

    Args:
        first, second: (N, d), or (N, num_styles, d), of one shape.
        steps: 2 and up.

    Raises:
        InvalidValueError: codes of other shapes, or fewer than two steps.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> interpolate(ALAE(SIZES["tiny"], (3, 16, 16)), torch.zeros(1, 64), torch.ones(1, 64), 5).shape
        torch.Size([1, 5, 3, 16, 16])
    """
    whole(steps, "steps", 2, 2**20, "pictures")
    check_codes(model, first, "first")
    if first.shape != second.shape:
        raise InvalidValueError(f"first and second must be of one shape: {tuple(first.shape)}, {tuple(second.shape)}")
    shares = torch.linspace(0.0, 1.0, steps, dtype=first.dtype, device=first.device)
    line = torch.lerp(first[:, None], second[:, None], shares.reshape(1, -1, *[1] * (first.dim() - 1)))
    return decode(model, line.flatten(0, 1), batch_size=batch_size).unflatten(0, (len(first), steps))


@torch.no_grad()
def draws(
    model: ALAE, count: int, *, prior: Prior | None = None, stream: Stream | None = None, seed: int = 0,
    psi: float = 1.0, batch_size: int = 256,
) -> Tensor:  # fmt: skip
    """(count, d) float32 codes of fresh draws, F(z), on the model's device; torch's random state is left as it was.

    The same arguments give the same codes; of normal numbers, on whichever device.

    Args:
        prior: what z is drawn from, on the stream's device; without it, normal numbers.
        stream: held-out samples that a prior of codes or of parameters draws from.
        seed: names the draws.
        psi: see `nearer`.

    Raises:
        InvalidValueError: a prior that needs a stream, without one; one of another width than the model's.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> model = ALAE(SIZES["tiny"], (3, 8, 8))
        >>> bool((draws(model, 3, seed=1) == draws(model, 3, seed=1)).all()), draws(model, 3).shape
        (True, torch.Size([3, 64]))
    """
    whole(count, "count", 1, 2**31 - 1, "codes")
    own = Gaussian(model.prior_size) if prior is None else prior
    if own.size != model.prior_size:
        raise InvalidValueError(f"the prior is {own.size} wide, and the model takes z of {model.prior_size}")
    if stream is None and not isinstance(own, Gaussian):
        raise InvalidValueError("this prior draws from samples of a stream: give that of the run, of the test split")
    size = max(2, min(count, batch_size))
    blank = Batch(torch.arange(size), torch.zeros(size, 1), torch.zeros(size, dtype=torch.int64), {})
    found: list[Tensor] = []
    with looking(model), as_before():
        seeded("draws", seed)
        batches = held_out(stream, -(-count // size) * size, size) if stream is not None else None
        while sum(map(len, found)) < count:
            z = own.draw(blank if batches is None else next(batches), model)
            found.append(model.project(z.to(model.mean_code.device)).float())
    return nearer(model, torch.cat(found)[:count], psi)


@dataclass(frozen=True, eq=False, kw_only=True)
class Projection:
    """Codes that were looked for, of N pictures.

    codes: (N, d), or (N, num_styles, d) of "w+". first_codes: (N, d), those of E.
    psnr, first_psnr: (N,) float64, dB, of pictures clipped to [-1, 1]: of what G makes of them; psnr is never below.
    All on the pictures' device.
    """

    codes: Tensor
    first_codes: Tensor
    psnr: Tensor
    first_psnr: Tensor


def project(
    model: ALAE, images: Tensor, *, steps: int = 500, lr: float = 0.1, styles: str = "w", features: float = FEATURES,
    batch_size: int = 64, quiet: bool = True, parts: Path | None = None,
) -> Projection:  # fmt: skip
    """The codes whose pictures are nearest to given ones, by Adam from E's codes on; the weights stay as they are.

    What falls is the mean squared error of pixels, at full size, half, a quarter and so on down to 4 pixels a side,
    and of E's features, each relative to its own mean square. Kept are the codes of the least error at full size, so
    they are never worse than E's. A picture's code does not depend on the pictures beside it, but for rounding.

    Args:
        images: (N, *shape) in [-1, 1].
        steps: of Adam. lr: of the first step, in root mean squares of the picture's code about the mean code; falls as
            half a cosine to 0.
        styles: "w", one code for all styles, or "w+", one for each.
        features: weight of E's features, 0 and up; the MLP variant has none.
        batch_size: pictures at once. quiet: no progress bar.
        parts: a folder that keeps what is found of each batch, for a call that follows one that was stopped.

    Raises:
        InvalidValueError: pictures of another shape, a value out of its range, or a model whose pictures hold NaN.

    Source: R. Abdal, Y. Qin, P. Wonka, "Image2StyleGAN: How to Embed Images Into the StyleGAN Latent Space?", ICCV
    2019, arXiv:1904.03189: a code for each style, found by Adam.

    Example:
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> found = project(ALAE(SIZES["tiny"], (3, 8, 8)), torch.zeros(2, 3, 8, 8), steps=3)
        >>> found.codes.shape, bool((found.psnr >= found.first_psnr).all())
        (torch.Size([2, 64]), True)
    """
    whole(steps, "steps", 1, 2**20, "steps")
    one_of(styles, "styles", STYLES)
    for name, value in (("lr", lr), ("features", features)):
        if not 0.0 <= value < float("inf"):
            raise InvalidValueError(f"{name} must be a finite number, 0 and up, got {value!r}")
    size = whole(batch_size, "batch_size", 1, 2**31 - 1, "pictures")
    check_images(model, images)
    search = Search(model, steps, lr, styles, 0.0 if model.flat else features)
    batches = images.split(size)
    key = key_of(model, steps, lr, styles, search.features, model.image_size, float(model.blend))
    found: list[tuple[Tensor, ...]] = []
    with looking(model), frozen(model), bar("projection", steps * len(batches), quiet) as ahead:
        for batch in batches:
            part = fitted(batch.to(model.mean_code.device), model)
            done, there = kept(parts, key, part, partial(search.over, part, ahead))
            found.append(done)
            ahead(steps if there else 0)
    codes, first_codes, errors, first = (torch.cat(each).to(images.device) for each in zip(*found, strict=True))
    if not bool(first.isfinite().all()):
        raise InvalidValueError("the model makes pictures that hold NaN or infinity: its training diverged")
    return Projection(
        codes=codes, first_codes=first_codes, psnr=decibels_of(errors), first_psnr=decibels_of(first)
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Search:
    """How codes are looked for; see `project`."""

    model: ALAE
    steps: int
    lr: float
    styles: str
    features: float

    def over(self, images: Tensor, ahead: Callable[[int], None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The codes found, E's codes, and the errors (B,) of both; on the model's device."""
        model = self.model
        first = model.encode(images).float()
        start = model.styles(first).contiguous() if self.styles == "w+" else first
        wide = (first - model.mean_code).square().mean(1).sqrt().clamp_min(SLACK)
        unit = wide.reshape(-1, *[1] * (start.dim() - 1))
        wanted = self.looks(images)
        move = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([move], lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        best, least, first_error = start, torch.full_like(wide, torch.inf), wide
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps):
                codes = start + unit * move
                made = model.decode(codes, noise=False)
            error = errors_of(made.detach(), images)
            first_error = error if step == 0 else first_error
            better = error < least
            best = torch.where(better.reshape(unit.shape), codes.detach(), best)
            least = torch.where(better, error, least)
            if step == self.steps:
                break
            with torch.enable_grad():
                self.apart(made, images, wanted).backward(inputs=[move])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            ahead(1)
        return best, first, least, first_error

    def looks(self, images: Tensor) -> list[Tensor]:
        """E's maps of pictures, where they count."""
        return self.model.features(images) if self.features > 0.0 else []

    def apart(self, made: Tensor, images: Tensor, wanted: list[Tensor]) -> Tensor:
        """The sum over pictures of what is to fall.

        Args:
            wanted: what `looks` gives of the images.
        """
        total, small, smaller = means((made - images).square()), made, images
        while smaller.dim() == 4 and smaller.shape[-1] % 2 == 0 and smaller.shape[-1] > LEAST:
            small, smaller = halved(small), halved(smaller)
            total = total + means((small - smaller).square())
        for here, there in zip(self.looks(made), wanted, strict=True):
            share = means((here - there).square()) / means(there.square()).clamp_min(SLACK)
            total = total + share * (self.features / len(wanted))
        return total.sum()


def means(values: Tensor) -> Tensor:
    """(B,): of each picture or map."""
    return values.flatten(1).mean(1)


def errors_of(made: Tensor, images: Tensor) -> Tensor:
    """(B,) mean squared errors of pictures that are clipped to [-1, 1]."""
    return means((clipped(made) - clipped(images)).square())


def decibels_of(errors: Tensor) -> Tensor:
    """(N,) float64, dB; infinite of no error."""
    return 10.0 * torch.log10(PEAK**2 / errors.double())


@contextmanager
def bar(title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; what is given moves it on by so many."""
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def check_images(model: ALAE, images: Tensor) -> None:
    """Refuse what the model does not read."""
    sizes = {model.shape, (*model.shape[:-2], model.image_size, model.image_size)} if not model.flat else {model.shape}
    if tuple(images.shape[1:]) not in sizes or not len(images):
        told = " or ".join(f"(N, {', '.join(map(str, size))})" for size in sorted(sizes))
        raise InvalidValueError(f"images must be {told} with N at least 1, got {tuple(images.shape)}")


def check_codes(model: ALAE, codes: Tensor, name: str) -> None:
    """Refuse what the model does not make pictures of."""
    if tuple(codes.shape[1:]) not in {(model.code_size,), (model.num_styles, model.code_size)} or not len(codes):
        raise InvalidValueError(
            f"{name} must be (N, {model.code_size}), or (N, {model.num_styles}, {model.code_size}) of styles, with N "
            f"at least 1, got {tuple(codes.shape)}"
        )
