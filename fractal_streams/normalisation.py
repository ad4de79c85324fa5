"""Means and deviations of the presets' channels, measured once: what pictures are normalised by."""

from __future__ import annotations

Channels = tuple[float, float, float]

CHANNEL_STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "fractal-10": ((0.2848, 0.2577, 0.3511), (0.3511, 0.3450, 0.3951)),
    "fractal-100": ((0.2802, 0.2543, 0.3454), (0.3504, 0.3441, 0.3941)),
    "fractal-1k": ((0.2801, 0.2607, 0.3565), (0.3496, 0.3438, 0.3975)),
    "fractal-10k": ((0.2833, 0.2568, 0.3494), (0.3512, 0.3446, 0.3946)),
    "fractal-mnist": ((0.2848, 0.2577, 0.3511), (0.3511, 0.3451, 0.3951)),
    "fractal-families": ((0.4979, 0.4978, 0.4995), (0.2803, 0.2799, 0.2803)),
    "seed-readme": ((0.3034, 0.2404, 0.2749), (0.3762, 0.3331, 0.3677)),
    "seed-code": ((0.3857, 0.3033, 0.3477), (0.3849, 0.3477, 0.3818)),
    "fractal-video": ((0.2942, 0.2993, 0.3024), (0.3609, 0.3673, 0.3717)),
    "trainability-points": ((0.6957, 0.6167, 0.5296), (0.2932, 0.2447, 0.1406)),
    "trainability-tiles": ((0.6595, 0.5520, 0.4998), (0.2730, 0.2513, 0.1775)),
}
"""Preset to (mean, deviation) of its channels red, green, blue; levels in [0, 1], of all pixels of many samples.

Measured by `python -m fractal_streams.recipes.difficulty --count-only`; presets of kaleidoscopes are not among them, as
their pictures follow from weights that each machine fits for itself.
"""
OTHERWISE: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def channel_statistics(preset: str) -> tuple[Channels, Channels]:
    """(mean, deviation) of the channels of a preset's training split, seed 0, levels in [0, 1].

    What `mean=` and `std=` of `open_stream` take, so that each channel has mean 0 and deviation 1; another size of the
    pictures hardly changes them. Anything that was not measured gets mean 0.5 and deviation 0.25.

    Example:
        >>> mean, std = channel_statistics("fractal-10")
        >>> open_stream("fractal-10", dtype="float32", mean=mean, std=std, device="cpu")[0].image.dtype
        dtype('float32')
    """
    return CHANNEL_STATISTICS.get(preset, OTHERWISE)
