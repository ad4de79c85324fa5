"""Three sines of the share of iterations survived, a third of a turn apart; the inside is black.

S. Ryu, Infinite-Fractal-Stream (2024).
"""

from fractal_streams.colouring.definition import colouring
from fractal_streams.dialect import sin
from fractal_streams.formulas.definition import Parameter

THIRD = 2.0943951023931953
FREQUENCY = Parameter(0.0, 10.0, "colour frequency", "radians")


def three_waves(phase):
    red = 0.5 + 0.5 * sin(phase)
    green = 0.5 + 0.5 * sin(phase + THIRD)
    blue = 0.5 + 0.5 * sin(phase + 2.0 * THIRD)
    return red, green, blue


@colouring(source="S. Ryu, Infinite-Fractal-Stream (2024)", parameters={"frequency": FREQUENCY}, inside_alike=True)
def three_phase_sine(count, inside, iterations, frequency):
    red, green, blue = three_waves(frequency * (count / iterations + 1.0))
    outside = 1.0 - inside
    return outside * red, outside * green, outside * blue
