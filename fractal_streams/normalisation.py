"""Means and deviations of the presets' channels, measured once: what pictures are normalised by."""

from __future__ import annotations

Channels = tuple[float, float, float]

CHANNEL_STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "fractal-10": ((0.2807, 0.2569, 0.3517), (0.3500, 0.3442, 0.3957)),
    "fractal-100": ((0.2717, 0.2556, 0.3494), (0.3468, 0.3439, 0.3960)),
    "fractal-1k": ((0.2642, 0.2736, 0.3579), (0.3432, 0.3541, 0.3936)),
    "fractal-mnist": ((0.2806, 0.2569, 0.3516), (0.3499, 0.3442, 0.3957)),
    "fractal-families": ((0.4963, 0.4960, 0.5005), (0.2806, 0.2802, 0.2819)),
}
"""Preset to (mean, deviation) of its channels red, green, blue; levels in [0, 1]."""
OTHERWISE: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def channel_statistics(preset: str) -> tuple[Channels, Channels]:
    """(mean, deviation) of the channels of a preset's training split, seed 0, levels in [0, 1].

    Anything that was not measured gets mean 0.5 and deviation 0.25.

    Example:
        >>> mean, std = channel_statistics("fractal-10")
        >>> open_stream("fractal-10", dtype="float32", mean=mean, std=std, device="cpu")[0].image.dtype
        dtype('float32')
    """
    return CHANNEL_STATISTICS.get(preset, OTHERWISE)
