"""A stream's pictures counted: means and deviations of the channels, and how many pictures tell nothing of a class.

Levels are summed as whole numbers, so the figures are the same on every device that makes the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fractal_streams import Stream
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.normalisation import Channels
from fractal_streams.spec import whole
from fractal_streams.trainability.refine import wilson

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

GROUP = 16
"""Consecutive samples whose mean is one observation: some streams draw neighbours in pairs."""
FAINT = 5.0
"""Levels: a picture whose channels all deviate less hardly shows anything."""
MOSTLY = 0.95
"""Share of black pixels above which a picture is mostly black."""
DEGENERATE = ("constant", "black", "faint", "mostly_black")


@dataclass(frozen=True, kw_only=True)
class Census:
    """What a number of samples are like.

    mean, std: of each channel, levels in [0, 1]. mean_error, std_error: their standard errors.
    samples: that were drawn. pictures: of them, each frame of a clip for itself.
    constant: pictures of one colour. black: of which each pixel is black.
    faint: with a deviation below 5 of 255 levels in each channel. mostly_black: above 95 % of the pixels are black.
    """

    mean: Channels
    std: Channels
    mean_error: Channels
    std_error: Channels
    samples: int
    pictures: int
    constant: int
    black: int
    faint: int
    mostly_black: int

    def share(self, kind: str) -> float:
        """Of the pictures, those that are degenerate in a way of `DEGENERATE`."""
        return float(getattr(self, kind)) / self.pictures

    def at_most(self, kind: str) -> float:
        """The upper end of the 95 % interval (Wilson's) of that share."""
        return wilson(getattr(self, kind), self.pictures)[1]


def measured(stream: Stream, samples: int, *, first: int = 0, batch_size: int = 1024) -> Census:
    """The census of samples `first` on of a stream of uint8 levels, channels first.

    Errors are those of means of 16 consecutive samples each: pixels of a picture, frames of a clip and neighbours
    may depend on each other, groups do not.

    Args:
        samples: a multiple of 16, at least 32. batch_size: how many are in memory together.

    Raises:
        InvalidValueError: another number of samples, or a stream of floats or of channels last.

    Example:
        >>> from fractal_streams import open_stream
        >>> census = measured(open_stream("fractal-10", device="cpu", height=8, width=8), 64)
        >>> census.pictures, census.black, len(census.mean)
        (64, 0, 3)
    """
    if whole(samples, "samples", 2 * GROUP, 2**40, "") % GROUP:
        raise InvalidValueError(f"samples must be a multiple of {GROUP}, got {samples}")
    if stream.pixels.dtype != "uint8" or stream.pixels.channels_last:
        raise InvalidValueError(
            f"a census is of uint8 levels, channels first; this stream gives {stream.pixels.dtype}"
            f"{', channels last' if stream.pixels.channels_last else ''}: open it without dtype= and channels_last="
        )
    step = max(GROUP, batch_size - batch_size % GROUP)
    sums: Tensor | float = 0.0
    counts: Tensor | int = 0
    pictures = 0
    for start in range(first, first + samples, step):
        images = stream.generate(range(start, min(start + step, first + samples))).torch().images
        sums = sums + moments(images)
        counts = counts + degenerate(images.flatten(0, -4))
        pictures += images.shape[:-3].numel()
    assert isinstance(sums, Tensor) and isinstance(counts, Tensor)
    mean, std, mean_error, std_error = statistics(sums.cpu(), samples // GROUP)
    found = dict(zip(DEGENERATE, counts.tolist(), strict=True))
    return Census(
        mean=mean, std=std, mean_error=mean_error, std_error=std_error, samples=samples, pictures=pictures, **found
    )


def moments(images: Tensor) -> Tensor:
    """(5, 3) float64 sums over groups: of mean levels m, mean squares q, m^2, q^2 and m * q; of (B, ..., 3, H, W)."""
    rows = images.movedim(-3, 1).flatten(2)
    levels = rows.int()
    pixels = rows.shape[2]
    mean = levels.sum(2, dtype=torch.int64).double() / (255.0 * pixels)
    square = (levels * levels).sum(2, dtype=torch.int64).double() / (255.0**2 * pixels)
    m, q = mean.unflatten(0, (-1, GROUP)).mean(1), square.unflatten(0, (-1, GROUP)).mean(1)
    return torch.stack([m, q, m * m, q * q, m * q]).sum(1)


def statistics(sums: Tensor, groups: int) -> tuple[Channels, Channels, Channels, Channels]:
    """Mean, deviation and their standard errors of each channel, of `moments` of so many groups.

    The deviation s = sqrt(q - m^2) has the error of (q - 2 m m_i) / (2 s), to first order (the delta method).
    """
    m, q, mm, qq, mq = sums / groups
    std = (q - m * m).clamp(min=0.0).sqrt()
    of_mean, of_square, both = mm - m * m, qq - q * q, mq - m * q
    of_variance = of_square + 4.0 * m * m * of_mean - 4.0 * m * both
    least = torch.finfo(torch.float64).tiny
    mean_error = (of_mean.clamp(min=0.0) / (groups - 1)).sqrt()
    std_error = (of_variance.clamp(min=0.0) / (groups - 1)).sqrt() / (2.0 * std).clamp(min=math.sqrt(least))
    return channels(m), channels(std), channels(mean_error), channels(std_error)


def channels(values: Tensor) -> Channels:
    red, green, blue = values.tolist()
    return red, green, blue


def degenerate(images: Tensor) -> Tensor:
    """(4,) int64: how many of (B, 3, H, W) are constant, black, faint and mostly black."""
    rows = images.flatten(2)
    levels = rows.int()
    pixels = rows.shape[2]
    constant = (rows == rows[:, :, :1]).all(2).all(1)
    dark = (rows == 0).all(1).double().mean(1)
    total, squares = levels.sum(2, dtype=torch.int64), (levels * levels).sum(2, dtype=torch.int64)
    variance = (squares * pixels - total * total).double() / pixels**2
    faint = (variance < FAINT**2).all(1)
    return torch.stack([constant.sum(), (dark == 1.0).sum(), faint.sum(), (dark > MOSTLY).sum()])
