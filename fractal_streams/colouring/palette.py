"""Cosine palettes, drawn for each sample and independently of its class, so that colour is no cue.

channel(t) = brightness + contrast cos(2 pi (frequency t + phase)).

I. Quilez, "Palettes" (1999): three cosines as a colour map.
"""

from fractal_streams.dialect import cos
from fractal_streams.formulas.definition import Parameter

TURN = 6.283185307179586

PALETTE = {
    "brightness": Parameter(0.35, 0.65, "mean of each channel"),
    "contrast": Parameter(0.25, 0.5, "amplitude of each channel"),
    "palette_frequency": Parameter(0.7, 1.8, "cycles over the palette", "turns"),
    "red_phase": Parameter(0.0, 1.0, "phase of red", "turns"),
    "green_phase": Parameter(0.0, 1.0, "phase of green", "turns"),
    "blue_phase": Parameter(0.0, 1.0, "phase of blue", "turns"),
}


def palette(t, brightness, contrast, palette_frequency, red_phase, green_phase, blue_phase):
    turns = palette_frequency * t
    red = brightness + contrast * cos(TURN * (turns + red_phase))
    green = brightness + contrast * cos(TURN * (turns + green_phase))
    blue = brightness + contrast * cos(TURN * (turns + blue_phase))
    return red, green, blue
