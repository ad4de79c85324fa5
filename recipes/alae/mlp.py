"""G and E of fully connected layers: for points of a plane, and for pictures whose pixels know no neighbours."""

from __future__ import annotations

import math
from itertools import pairwise

from fractal_streams.recipes.alae.layers import EqualisedLinear, check_learning, rectified

from fractal_streams.errors import missing_extra

try:
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


class Stack(nn.Module):
    """Equalised linear layers with a rectifier behind each but the last."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        gains = [*[math.sqrt(2.0)] * (len(sizes) - 2), 1.0]
        self.layers = nn.ModuleList(
            EqualisedLinear(first, last, gain=gain) for (first, last), gain in zip(pairwise(sizes), gains, strict=True)
        )

    def forward(self, values: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            values = rectified(layer(values))
        found: Tensor = last(values)
        return found


class FlatGenerator(nn.Module):
    """G: (B, 1, code_size) styles to (B, *shape)."""

    def __init__(self, code_size: int, hidden: int, depth: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stack, self.shape = Stack([code_size, *[hidden] * depth, math.prod(shape)]), shape

    def forward(
        self, styles: Tensor, level: int, blend: Tensor | None, noise: bool = True, *, learns: bool = True
    ) -> Tensor:
        check_learning(learns, self.stack.layers[0].weight)
        flat: Tensor = self.stack(styles[:, 0])
        return flat.float().view(-1, *self.shape)


class FlatEncoder(nn.Module):
    """E: (B, *shape) to (B, code_size)."""

    def __init__(self, code_size: int, hidden: int, depth: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stack = Stack([math.prod(shape), *[hidden] * depth, code_size])

    def forward(self, pictures: Tensor, level: int, blend: Tensor | None, *, learns: bool = True) -> Tensor:
        check_learning(learns, self.stack.layers[0].weight)
        codes: Tensor = self.stack(pictures.flatten(1))
        return codes.float()
