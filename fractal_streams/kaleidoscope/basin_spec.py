"""What a stream of basin maps draws: planes through a network's inputs, at random depths of their boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.kaleidoscope.planes import PLANE_KINDS, checked_extent, checked_within
from fractal_streams.spec import MAX_SIZE, MIN_SIZE, one_of, whole

MOST_DEPTH = 40
"""Halvings; rounding to float32 shows after about 14."""
MOST_SAMPLES = 8
LABELS = ("class", "model", "attractor")


@dataclass(frozen=True, kw_only=True)
class BasinSpec(FittedSpec):
    """What a stream of basin maps draws; see `FittedSpec` for the rest, of which `start` has no part here.

    Each pixel of a plane through the space of a network's inputs is the start of a chain. Its hue says to which end the
    chain goes, its lightness in how many steps, as in pictures of Newton's method.

    height, width: pixels, 8 to 4096.
    plane: "sources", through three of the network's sources; "attractors", through two of its attractors and a random
        direction; "middle", through the middle of the range in random directions. See `planes.drawn_plane`.
    extent: half the first width, in distances of the farthest of these points from their mean; of "middle", of the
        range's ends. (0, 100].
    min_depth, max_depth: a picture is the plane halved so often, a whole number drawn with equal chances, 0 to 40; less
        often where rounding to float32 would show (`Plane.deepest`, about 14): the latent says how often.
        Pictures of depth 1 and more lie at a boundary; where no plane with one is found, depth is 0.
    supersample: 1 to 8; a pixel beside an edge is the mean of so many samples along each edge.
    label: "class", of the source that the end with the largest part of the picture is, or is next to; "attractor", that
        end's row in the table of ends; "model", the network of the bank.
    ends: "attractors" of the kaleidoscope's table, or its "sources", see `basins.EndRule`. within: how near a state at
        rest is to its end, RMSE over the range.
    unresolved: where a chain ends at none of them, "grey", or the colour of the "nearest".
    most, tolerance: as in `EndRule`. precision: "float32" alone.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> spec = BasinSpec(model="kaleidoscope-bank", plane="middle", label="model", max_depth=12)
        >>> BasinSpec.from_json(spec.to_json()) == spec, spec.line
        (True, 'basins of kaleidoscope-bank, planes through its middle, halved 0 to 12 times, 64 x 64')
    """

    most: int = 300
    height: int = 64
    width: int = 64
    plane: Literal["sources", "attractors", "middle"] = "sources"
    extent: float = 1.5
    min_depth: int = 0
    max_depth: int = 6
    supersample: int = 1
    label: Literal["class", "model", "attractor"] = "class"
    ends: Literal["attractors", "sources"] = "attractors"
    within: float = 0.02
    unresolved: Literal["grey", "nearest"] = "grey"

    kind: ClassVar[str] = "basins"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.start, self.start_noise) != ("uniform", 0.0):
            raise InvalidValueError(
                f"chains of basins start at the pixels of a plane: leave start={self.start!r} and "
                f"start_noise={self.start_noise!r} out, and choose a plane"
            )
        if self.precision != "float32":
            raise InvalidValueError(f"basins need precision='float32' to tell pixels apart, got {self.precision!r}")
        one_of(self.plane, "plane", PLANE_KINDS)
        one_of(self.label, "label", LABELS)
        one_of(self.ends, "ends", ("attractors", "sources"))
        one_of(self.unresolved, "unresolved", ("grey", "nearest"))
        low = whole(self.min_depth, "min_depth", 0, MOST_DEPTH, "halvings")
        made = {
            "height": whole(self.height, "height", MIN_SIZE, MAX_SIZE, "pixels"),
            "width": whole(self.width, "width", MIN_SIZE, MAX_SIZE, "pixels"),
            "extent": checked_extent(self.extent),
            "min_depth": low,
            "max_depth": whole(self.max_depth, "max_depth", low, MOST_DEPTH, "halvings"),
            "supersample": whole(
                self.supersample, "supersample", 1, MOST_SAMPLES, "samples along each edge of a pixel"
            ),
            "within": checked_within(self.within),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def line(self) -> str:
        """What is drawn, in a line."""
        through = {"sources": "three sources", "attractors": "two attractors", "middle": "its middle"}[self.plane]
        halved = f"{self.min_depth} to {self.max_depth}" if self.max_depth > self.min_depth else f"{self.min_depth}"
        depths = f", halved {halved} times" if self.max_depth else ""
        size = f"{self.height} x {self.width}"
        return f"basins of {self.model or 'a kaleidoscope'}, planes through {through}{depths}, {size}"
