"""The four networks of StyleALAE (Pidhorskyi, Adjeroh, Doretto, CVPR 2020, arXiv:2004.04467, section 5).

F, the projector, makes a code w of a draw z; G, the generator, a picture of w; E, the encoder, a code of a picture; D,
the discriminator, a logit of a code. G puts w into the statistics of its channels, and E reads w off the statistics of
its own. Either can begin with small pictures and grow (Karras et al. 2018, section 2).

`learns`, of G and E, tells a compiler whether weights have a gradient. torch 2.11 does not look at weights, and gave
those of a network that was frozen when it was compiled no gradient ever after.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fractal_streams.recipes.alae.layers import (
    Bias,
    EqualisedConv,
    EqualisedLinear,
    Noise,
    Style,
    blurred,
    check_learning,
    doubled,
    halved,
    normalised,
    pixel_norm,
    rectified,
    statistics,
)

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SLOW = 0.1
"""Rate of the layers of F and D."""
RGB_GAIN = 0.03
"""Of the layer that makes colours: pictures begin grey."""
LEAST = 4
"""Pixels of a side of G's first block and of E's last."""
PLACES, TOLD = 16, 8
"""Where networks are dense: places of a side that maps are read or written at, at most, and channels of each."""


class Projector(nn.Module):
    """F: (B, prior_size) draws to (B, code_size) codes, behind a normalisation of each draw to the same length."""

    def __init__(self, prior_size: int, code_size: int, layers: int, rate: float = SLOW) -> None:
        super().__init__()
        self.rate = rate
        sizes = [prior_size, *[code_size] * layers]
        self.layers = nn.ModuleList(EqualisedLinear(first, last, rate=rate) for first, last in pairwise(sizes))

    def forward(self, draws: Tensor) -> Tensor:
        values = pixel_norm(draws)
        for layer in self.layers:
            values = rectified(layer(values))
        return values.float()


class Discriminator(nn.Module):
    """D: (B, code_size) codes to (B,) logits.

    Args:
        activation: "lrelu" between layers; "none" makes D linear, as the authors published it.
    """

    def __init__(self, code_size: int, layers: int, activation: str = "lrelu") -> None:
        super().__init__()
        sizes = [*[code_size] * layers, 1]
        hidden = math.sqrt(2.0) if activation == "lrelu" else 1.0
        gains = [*[hidden] * (layers - 1), 1.0]
        self.layers = nn.ModuleList(
            EqualisedLinear(first, last, gain=gain, rate=SLOW)
            for (first, last), gain in zip(pairwise(sizes), gains, strict=True)
        )
        self.activation = activation

    def forward(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            values = codes.float()
            for number, layer in enumerate(self.layers):
                values = layer(values)
                if self.activation == "lrelu" and number < len(self.layers) - 1:
                    values = rectified(values)
            return values.squeeze(1)


class Written(nn.Module):
    """What a code says of maps place by place: (B, code_size) to (B, C, N, N), linear.

    Args:
        outputs: C, mixed of so many maps or of `TOLD`. edge: N; of more than `PLACES`, as many stand for them.
    """

    def __init__(self, code_size: int, outputs: int, edge: int) -> None:
        super().__init__()
        self.edge, self.places, self.told = edge, min(edge, PLACES), min(outputs, TOLD)
        self.layer = EqualisedLinear(code_size, self.told * self.places**2, gain=1.0)
        self.mix = EqualisedConv(self.told, outputs, 1, gain=1.0)

    def forward(self, code: Tensor) -> Tensor:
        maps: Tensor = self.mix(self.layer(code).unflatten(1, (self.told, self.places, self.places)))
        while maps.shape[-1] < self.edge:
            maps = doubled(maps)
        return maps


class GeneratorBlock(nn.Module):
    """Maps of one size to maps of twice that, or of the same in the first block, with two styles.

    Args:
        edge: side of the larger maps, where the first style is written into them place by place too; else None.
    """

    def __init__(self, inputs: int, outputs: int, code_size: int, *, first: bool, edge: int | None = None) -> None:
        super().__init__()
        self.grow = None if first else EqualisedConv(inputs, outputs, 3)
        self.conv = EqualisedConv(outputs, outputs, 3)
        self.noises = nn.ModuleList(Noise(outputs) for _ in range(2))
        self.biases = nn.ModuleList(Bias(outputs) for _ in range(2))
        self.styles = nn.ModuleList(Style(code_size, outputs) for _ in range(2))
        self.written = Written(code_size, outputs, edge) if edge else None

    def forward(self, maps: Tensor, styles: Tensor, noise: bool) -> Tensor:
        """(B, C, H, W) maps under (B, 2, code_size) styles."""
        if self.grow is not None:
            maps = blurred(self.grow(doubled(maps)))
        if self.written is not None:
            maps = maps + self.written(styles[:, 0]).to(maps.dtype)
        maps = self.styled(0, maps, styles[:, 0], noise)
        return self.styled(1, self.conv(maps), styles[:, 1], noise)

    def styled(self, place: int, maps: Tensor, code: Tensor, noise: bool) -> Tensor:
        if noise:
            maps = self.noises[place](maps)
        maps = rectified(self.biases[place](maps))
        styled: Tensor = self.styles[place](normalised(maps, statistics(maps)), code)
        return styled


class Generator(nn.Module):
    """G: (B, 2 blocks, code_size) styles to (B, 3, N, N) pictures, of no bounds.

    Args:
        levels: blocks; N is 4 * 2^(levels - 1). narrow, wide: channels of the finest maps, and the most.
        first_level: the level of the smallest pictures that are asked for: levels - 1 if G does not grow.
        dense: codes are written into the maps of each block place by place too: styles say how much there is of what,
            and not where. Not in the paper.
    """

    def __init__(
        self, code_size: int, levels: int, narrow: int, wide: int, first_level: int, *, dense: bool = False
    ) -> None:
        super().__init__()
        channels = [min(wide, narrow * 2 ** (levels - 1 - level)) for level in range(levels)]
        # ones, as published, have no deviation: the first normalisation would multiply gradients by 10,000, and
        # bfloat16 can't tell a step from them
        self.begin = nn.Parameter(torch.randn(channels[0], LEAST, LEAST))
        self.blocks = nn.ModuleList(
            GeneratorBlock(
                channels[max(level - 1, 0)], own, code_size, first=level == 0, edge=LEAST << level if dense else None
            )
            for level, own in enumerate(channels)
        )
        self.colours = nn.ModuleDict(
            {str(level): Colours(channels[level]) for level in range(first_level, levels)}
        )  # fmt: skip

    def forward(
        self, styles: Tensor, level: int, blend: Tensor | None, noise: bool = True, *, learns: bool = True
    ) -> Tensor:
        check_learning(learns, self.begin)
        maps = self.begin.expand(len(styles), *self.begin.shape)
        if torch.is_autocast_enabled(styles.device.type):
            maps = maps.to(torch.get_autocast_dtype(styles.device.type))
        before = maps
        for number in range(level + 1):
            before, maps = maps, self.blocks[number](maps, styles[:, 2 * number : 2 * number + 2], noise)
        pictures: Tensor = self.colours[str(level)](maps).float()
        if blend is None:
            return pictures
        return torch.lerp(doubled(self.colours[str(level - 1)](before).float()), pictures, blend)


class Colours(nn.Module):
    """Maps to colours, with a bias to each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bias = EqualisedConv(channels, 3, 1, gain=RGB_GAIN), Bias(3)

    def forward(self, maps: Tensor) -> Tensor:
        colours: Tensor = self.bias(self.conv(maps))
        return colours


class Places(nn.Module):
    """What maps say of the code place by place: (B, C, N, N) to (B, code_size), linear.

    Args:
        inputs: C; of more than `TOLD`, so many mixtures of them. edge: N, which is brought to at most `PLACES`.
    """

    def __init__(self, inputs: int, edge: int, code_size: int) -> None:
        super().__init__()
        self.mix = EqualisedConv(inputs, TOLD, 1, gain=1.0) if inputs > TOLD else None
        self.edge = min(edge, PLACES)
        self.layer = EqualisedLinear(min(inputs, TOLD) * self.edge**2, code_size, gain=1.0)

    def forward(self, maps: Tensor) -> Tensor:
        while maps.shape[-1] > self.edge:
            maps = halved(maps)
        while maps.shape[-1] < self.edge:
            maps = doubled(maps)
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float() if self.mix is None else self.mix(maps.float())
            told: Tensor = self.layer(maps.flatten(1))
        return told


class EncoderBlock(nn.Module):
    """Maps of one size to maps of half that, and what their statistics say of the code.

    Args:
        edge: side of the smaller maps, where they are read place by place too; else None.
    """

    def __init__(self, inputs: int, outputs: int, code_size: int, edge: int | None = None) -> None:
        super().__init__()
        self.conv, self.shrink = EqualisedConv(inputs, inputs, 3), EqualisedConv(inputs, outputs, 3)
        self.biases = nn.ModuleList([Bias(inputs), Bias(outputs)])
        self.readings = nn.ModuleList(
            EqualisedLinear(2 * channels, code_size, gain=1.0) for channels in (inputs, outputs)
        )
        self.places = Places(outputs, edge, code_size) if edge else None

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """(B, C, H, W) maps to those of half the size, (B, code_size) of the code, and both its maps not normalised."""
        large = rectified(self.biases[0](self.conv(maps)))
        maps, first = self.read(0, large)
        raw = rectified(self.biases[1](halved(self.shrink(blurred(maps)))))
        maps, second = self.read(1, raw)
        told = first + second if self.places is None else first + second + self.places(raw)
        return maps, told, (large, raw)

    def read(self, place: int, maps: Tensor) -> tuple[Tensor, Tensor]:
        moments = statistics(maps)
        with torch.autocast(maps.device.type, enabled=False):
            told = self.readings[place](torch.cat(moments, dim=1))
        return normalised(maps, moments), told


class Encoder(nn.Module):
    """E: (B, 3, N, N) pictures to (B, code_size) codes, the sum of what the statistics of all its maps say.

    Args:
        dense: the picture, and the maps that each block hands on, are read place by place too: statistics forget where
            things are. Not in the paper.
    """

    def __init__(
        self, code_size: int, levels: int, narrow: int, wide: int, first_level: int, *, dense: bool = False
    ) -> None:
        super().__init__()
        channels = [min(wide, narrow * 2 ** (levels - 1 - level)) for level in range(levels)]  # into a level's block
        after = [min(wide, narrow * 2**levels), *channels]
        self.blocks = nn.ModuleList(
            EncoderBlock(channels[level], after[level], code_size, LEAST * 2**level // 2 if dense else None)
            for level in range(levels)
        )
        self.places = Places(3, PLACES, code_size) if dense else None
        self.eyes = nn.ModuleDict({str(level): Eye(channels[level]) for level in range(first_level, levels)})

    def forward(
        self, pictures: Tensor, level: int, blend: Tensor | None, *, learns: bool = True, give: str = "codes"
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The codes.

        Args:
            give: "maps" for these instead, as they are when each channel is normalised; "raw" for those before; "both"
                for codes and raw maps, these without a gradient. See `looked`.
        """
        check_learning(learns, self.eyes[str(level)].conv.weight)  # type: ignore[union-attr,arg-type]
        codes, seen = self.looked(pictures, level, blend, raw=give in ("raw", "both"))
        if give == "both":
            return codes, [maps.detach() for maps in seen]
        return codes if give == "codes" else seen

    def looked(
        self, pictures: Tensor, level: int, blend: Tensor | None = None, *, raw: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The codes, and the maps of each size, finest first.

        Args:
            raw: maps as they are before each channel of each picture is normalised, which takes its colours out; and
                one more before them, of the first convolution, of full size: all others are made of what is
                normalised, and so are nearly the same of a picture and of one at half its distance from mid-grey.
        """
        maps, code, (large, whole) = self.blocks[level](self.eyes[str(level)](pictures))
        if blend is not None:
            small = halved(pictures)
            code = code * blend
            maps = torch.lerp(self.eyes[str(level - 1)](small), maps, blend.to(maps.dtype))
            pictures = torch.lerp(doubled(small), pictures, blend)
        seen = [large, whole] if raw else [maps]
        for number in range(level - 1, -1, -1):
            maps, told, (_, whole) = self.blocks[number](maps)
            code = code + told
            seen.append(whole if raw else maps)
        return code if self.places is None else code + self.places(pictures), seen


class Eye(nn.Module):
    """Colours to maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bias = EqualisedConv(3, channels, 1), Bias(channels)

    def forward(self, pictures: Tensor) -> Tensor:
        return rectified(self.bias(self.conv(pictures)))


def levels_of(image_size: int) -> int:
    """Blocks of G and of E for pictures of so many pixels a side.

    Raises:
        InvalidValueError: no power of two from 8 on.

    Example:
        >>> levels_of(64)
        5
    """
    if image_size < 2 * LEAST or image_size & (image_size - 1):
        raise InvalidValueError(f"image_size={image_size} must be a power of two from {2 * LEAST} on: 8, 16, 32, 64 …")
    return int(math.log2(image_size)) - 1
