"""What codes know and how they lie: classes, true parameters, reciprocity, the length of paths, the speed of clips.

What a code knows means something beside what is known without a trained encoder: by an untrained one of the same
shape, by all pixels, and by shallow features (`SHALLOW`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fractal_streams.recipes.probe import PERIODS, Look, probed

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.alae.features import Features, exact_products, random_features
    from fractal_streams.recipes.alae.spectra import log_spectrum
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

NEIGHBOURS = 5
SHADES = 4
"""Of each channel in a colour histogram, which has SHADES**3 bins."""
STEP = 1e-4
"""Of a path, from 0 to 1, whose perceptual length is told."""
TRIM = 0.01
"""Share of the shortest and of the longest steps that are left out."""
STORED = ("item", "top", "left", "flip")
"""Latents of stored pictures: where a crop lies, and nothing of what it shows."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a representation tells of held-out samples.

    linear, nearest: shares of classes that a linear probe, and the 5 nearest neighbours, get right; None of one class.
    r_squared: latent to R² of a linear probe; empty where no latent varies. features: how many.
    """

    linear: float | None
    nearest: float | None
    r_squared: Mapping[str, float]
    features: int

    @property
    def mean(self) -> float | None:
        """R², mean over the latents; None without any."""
        return sum(self.r_squared.values()) / len(self.r_squared) if self.r_squared else None


def knowledge(encode: Callable[[Tensor], Tensor], known: Look, test: Look) -> Knowledge:
    """What features of pictures tell: probes are fitted to the known samples, told of the test samples.

    Args:
        encode: (B, 3, H, W) pictures to (B, ...) features. known, test: of stills, no sample in both.
    """
    here, there = known.through(encode), test.through(encode)
    told = probed(here, parameters(known), there, parameters(test))
    classes = len(torch.cat([known.labels, test.labels]).unique())
    return Knowledge(
        linear=told.accuracy if classes > 1 else None,
        nearest=nearest_accuracy(here, known.labels, there, test.labels) if classes > 1 else None,
        r_squared=told.r_squared, features=told.features,
    )  # fmt: skip


def parameters(look: Look) -> Look:
    """Without the latents that say where a stored picture was cut."""
    kept = {name: values for name, values in look.latents.items() if name not in STORED}
    return Look(look.images, look.labels, kept)


def stills(look: Look) -> Look:
    """The frames of clips as pictures, (N * T, 3, H, W), each with its clip's label and its own latents."""
    if look.images.dim() != 5:
        return look
    frames = look.images.shape[1]

    def each(values: Tensor) -> Tensor:
        moves = values.dim() > 1 and values.shape[1] == frames
        return values.flatten(0, 1) if moves else values.repeat_interleave(frames, 0)

    latents = {name: each(values) for name, values in look.latents.items()}
    return Look(look.images.flatten(0, 1), look.labels.repeat_interleave(frames), latents)


def nearest_accuracy(
    known: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int = NEIGHBOURS
) -> float:
    """The share of test samples whose class most of their nearest neighbours have, by standardised features.

    Of classes that as many neighbours have, that of the nearer ones.

    Args:
        known, test: (N, D), (M, D). labels, test_labels: (N,), (M,) int64.

    Raises:
        InvalidValueError: fewer samples than neighbours.
    """
    if len(known) < neighbours:
        raise InvalidValueError(f"{neighbours} neighbours need so many known samples, got {len(known)}")
    mean, spread = known.float().mean(0), known.float().std(0, correction=0)
    spread = torch.where(spread > 1e-6 * (1.0 + mean.abs()), spread, torch.inf)
    rows, asked = ((each.float() - mean) / spread for each in (known, test))
    # a vote of 1, and less than 1 / neighbours of it for being near, decides a tie
    votes = 1.0 + 0.5 / neighbours * torch.linspace(1.0, 0.0, neighbours, device=known.device)
    right = torch.zeros((), dtype=torch.int64, device=known.device)
    for part, true in zip(asked.split(1000), test_labels.split(1000), strict=True):
        near = labels[torch.cdist(part, rows).topk(neighbours, largest=False).indices]
        same = near[:, :, None] == near[:, None, :]
        winner = (same * votes).sum(2).argmax(1, keepdim=True)
        right += (near.gather(1, winner)[:, 0] == true).sum()
    return int(right) / len(test)


def colour_histogram(images: Tensor) -> Tensor:
    """(B, 64) shares of a picture's pixels in each of 4 x 4 x 4 boxes of colours.

    Example:
        >>> colour_histogram(torch.full((1, 3, 2, 2), -1.0))[0, :2].tolist()
        [1.0, 0.0]
    """
    shades = ((images.float() + 1.0) * (SHADES / 2)).long().clamp(0, SHADES - 1).flatten(2)
    bins = (shades[:, 0] * SHADES + shades[:, 1]) * SHADES + shades[:, 2]
    counts = images.new_zeros(len(images), SHADES**3, dtype=torch.float32)
    return counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32)) / bins.shape[1]


def through_random_convolutions(images: Tensor) -> Tensor:
    """(B, 448): `random_features` of seed 0."""
    return random_features(0, images.device)(images)


SHALLOW: dict[str, Features] = {
    "spectrum": log_spectrum,
    "colours": colour_histogram,
    "random_convolutions": through_random_convolutions,
}
"""Features that nobody trained: 31 of 64 pixels' frequencies, 64 colours, 448 means and deviations of random maps."""


def dimensions(codes: Tensor) -> float:
    """How many directions codes lie in: (sum of l)^2 / (sum of l^2), l the eigenvalues of their covariance; 1 to d.

    The participation ratio: d of codes that spread evenly, 1 of codes on a line, and k where k directions have all
    of it. Relative reciprocity tells nothing of it: codes on a line are found again as well.

    Args:
        codes: (N, d), N at least 2.

    Raises:
        InvalidValueError: fewer codes, or equal ones.

    Example:
        >>> round(dimensions(torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, 5.0], [0.0, 1.0, 5.0], [0.0, -1.0, 5.0]])), 6)
        2.0
    """
    spread = codes.double() - codes.double().mean(0)
    covariance = spread.T @ spread
    if len(codes) < 2 or not float(covariance.trace()) > 0.0:
        raise InvalidValueError("codes need to differ to lie in some direction: give at least 2 that are not equal")
    return float(covariance.trace() ** 2 / covariance.square().sum())


def relative_reciprocity(codes: Tensor, again: Tensor) -> float:
    """mean |w - E(G(w))|^2 / the sum over dimensions of w's variance: 0 is perfect, from 1 on nothing comes back.

    Args:
        codes, again: (N, d), N at least 2: w = F(z), and E(G(w)).

    Raises:
        InvalidValueError: other shapes, or codes that are all the same: F does not heed z.

    Example:
        >>> codes = torch.tensor([[0.0], [2.0]])
        >>> relative_reciprocity(codes, codes), relative_reciprocity(codes, codes * 0 + 1)
        (0.0, 0.5)
    """
    if codes.shape != again.shape or codes.dim() != 2 or len(codes) < 2:
        raise InvalidValueError(
            f"codes must be two (N, d) of one shape, N at least 2, got {tuple(codes.shape)} and {tuple(again.shape)}"
        )
    spread = float(codes.double().var(0).sum())
    if not spread > 0.0:
        raise InvalidValueError("codes of different draws are all the same, so nothing can be told from them")
    return float((codes.double() - again.double()).square().sum(1).mean()) / spread


@torch.no_grad()
def path_length(
    decode: Callable[[Tensor], Tensor],
    features: Features,
    starts: Tensor,
    ends: Tensor,
    places: Tensor,
    *,
    step: float = STEP,
    batch_size: int = 256,
) -> float:
    """Perceptual path length: mean |f(G(w_t)) - f(G(w_{t + step}))|^2 / step^2 along straight lines of codes.

    Karras et al. (2019), "A Style-Based Generator Architecture", section 4.1, in W, with features of one's own. In
    float32 without TensorFloat-32; of the steps, the 1 % shortest and the 1 % longest are left out.

    Args:
        decode: (B, d) codes to pictures, the same each time: without noise. Pictures are not clipped.
        starts, ends: (N, d) codes. places: (N,) in [0, 1], t. step: along the line, which has length 1 here.

    Raises:
        InvalidValueError: other shapes, or lengths that are no finite numbers.
    """
    if starts.shape != ends.shape or starts.dim() != 2 or places.shape != starts.shape[:1] or not len(starts):
        raise InvalidValueError(
            f"paths need (N, d) starts and ends and (N,) places, got {tuple(starts.shape)}, {tuple(ends.shape)} and "
            f"{tuple(places.shape)}"
        )
    found = []
    with exact_products(starts.device):
        for one, other, place in zip(*(each.float().split(batch_size) for each in (starts, ends, places)), strict=True):
            here = torch.lerp(one, other, place[:, None])
            apart = features(decode(here + step * (other - one))) - features(decode(here))
            found.append(apart.double().square().sum(1) / step**2)
    lengths = torch.cat(found).sort().values
    if not bool(lengths.isfinite().all()):
        raise InvalidValueError("a path's length is no finite number: the model makes pictures with NaN or infinity")
    cut = int(TRIM * len(lengths))
    return float(lengths[cut : len(lengths) - cut].mean())


def true_speeds(latents: Mapping[str, Tensor]) -> Tensor:
    """(C, T - 1) float64: how far all parameters of clips move from frame to frame, each in units of its deviation.

    An angle goes the shorter way round; what no clip moves counts nothing.

    Args:
        latents: name to (C, T), of C clips; NaN where a clip has none, which then counts nothing there.

    Raises:
        InvalidValueError: nothing moves.
    """
    total, moving = torch.zeros(()), False
    for name, values in latents.items():
        if values.dim() != 2 or name in STORED:
            continue
        track = values.double()
        steps = track.diff(dim=1)
        if name in PERIODS:
            period = PERIODS[name]
            steps = (steps + period / 2).remainder(period) - period / 2
            spread = period / math.sqrt(12.0)
        else:
            spread = float(track[track.isfinite()].std()) if bool(track.isfinite().sum() > 1) else 0.0
        if spread > 0.0 and bool((steps.nan_to_num().abs() > 1e-6 * spread).any()):
            total, moving = total.to(steps) + (steps / spread).nan_to_num().square(), True
    if not moving:
        raise InvalidValueError(
            f"no parameter moves from frame to frame among {', '.join(latents) or 'no latents'}: open a stream of clips"
        )
    return total.sqrt()


def speeds(codes: Tensor) -> Tensor:
    """(C, T - 1) float64: lengths of the steps of (C, T, d) codes of clips."""
    return codes.double().diff(dim=1).norm(dim=2)


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's, of all values of two tensors of one shape.

    Raises:
        InvalidValueError: one of them is constant, so that none is defined.

    Example:
        >>> round(correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-1.0, -2.0, -4.0])), 6)
        -1.0
    """
    one, other = (each.double().flatten() - each.double().mean() for each in (first, second))
    scale = float(one.norm() * other.norm())
    for each, original in ((one, first), (other, second)):
        if float(each.abs().max()) <= 1e-9 * float(original.double().abs().max()):
            raise InvalidValueError("a correlation needs values that differ: these speeds are all the same")
    return float((one * other).sum()) / scale


def speed_correlation(codes: Tensor, latents: Mapping[str, Tensor]) -> float:
    """How far the speed in w follows the true speed: Pearson's correlation over all steps of all clips.

    Args:
        codes: (C, T, d). latents: name to (C, T).

    Raises:
        InvalidValueError: nothing moves, or all moves at the same speed.
    """
    return correlation(speeds(codes), true_speeds(latents))
