"""How a model grows: a level for so many images, the first part of them blended in."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Growth:
    """From 4 * 2^first to 4 * 2^last pixels; a level lasts `fade` images while it is blended in, then `stable` more.

    The first level is not blended, and the last one lasts. Blends rise as half a cosine (ALAE's own schedule).

    Example:
        >>> Growth(first=1, last=3, fade=100, stable=100).at(150)
        (2, 0.5)
    """

    first: int
    last: int
    fade: int = 300_000
    stable: int = 300_000

    def at(self, seen: int) -> tuple[int, float]:
        """The level, and the blend in [0, 1], behind so many images."""
        if self.first >= self.last or seen < self.stable:
            return min(self.first, self.last), 1.0
        behind = seen - self.stable
        level = self.first + 1 + behind // (self.fade + self.stable)
        if level > self.last:
            return self.last, 1.0
        into = behind % (self.fade + self.stable)
        return level, 1.0 if into >= self.fade else 0.5 - 0.5 * math.cos(math.pi * into / self.fade)
