"""ALAE: a generator cut in two, z to w to picture, and a discriminator cut in two, picture to w to logit.

E stands in both halves: it is the discriminator's eye, and it is the encoder. S. Pidhorskyi, D. Adjeroh, G. Doretto,
"Adversarial Latent Autoencoders", CVPR 2020, arXiv:2004.04467.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fractal_streams.recipes.alae.layers import halved
from fractal_streams.recipes.alae.mlp import FlatEncoder, FlatGenerator
from fractal_streams.recipes.alae.networks import Discriminator, Encoder, Generator, Projector, levels_of

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

NETWORKS = ("projector", "generator", "encoder", "discriminator")
DECAY = 0.995
"""Share of the mean code that stays in a step."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """image_size: pixels of a side, the usual. narrow, wide: channels of the finest maps, and the most.

    projector, discriminator: layers of F and of D.
    """

    image_size: int
    narrow: int
    wide: int
    code_size: int
    projector: int
    discriminator: int = 3


SIZES = {
    "tiny": Size(image_size=32, narrow=16, wide=64, code_size=64, projector=4),
    "32": Size(image_size=32, narrow=32, wide=128, code_size=128, projector=4),
    "s-64": Size(image_size=64, narrow=32, wide=256, code_size=256, projector=8),
    "m-64": Size(image_size=64, narrow=64, wide=256, code_size=256, projector=8),
    "mlp": Size(image_size=28, narrow=1024, wide=1024, code_size=50, projector=6),
}
"""Of 0.45, 1.8, 7.6 and 10.3 million weights; "mlp" is that of permutation-invariant MNIST (section 6.1)."""
MLP_DEPTH = 2


class ALAE(nn.Module):
    """The four networks.

    Args:
        size: of `SIZES`, or one's own. shape: (3, N, N) of pictures; (n,) of points, of the MLP variant alone.
        prior_size: width of z; the size's code size without it. flat: the MLP variant.
        activation: of D, "lrelu" or "none". first_level: see `Generator`; None is the last, and nothing grows.
        rate: of the projector's layers, a share of the others'. dense: see `Encoder` and `Generator`; not of MLPs.

    Attributes:
        level, blend: how far it has grown, see `grow`. mean_code: (code_size,) running mean of F's codes.

    Example:
        >>> model = ALAE(SIZES["tiny"], (3, 32, 32))
        >>> model.decode(model.encode(torch.zeros(2, 3, 32, 32))).shape
        torch.Size([2, 3, 32, 32])
    """

    mean_code: Tensor
    blend: Tensor

    def __init__(
        self,
        size: Size,
        shape: tuple[int, ...],
        *,
        prior_size: int | None = None,
        flat: bool = False,
        activation: str = "lrelu",
        first_level: int | None = None,
        rate: float = 0.1,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.dense = dense
        self.shape, self.code_size = tuple(shape), size.code_size
        self.prior_size = size.code_size if prior_size is None else prior_size
        self.projector = Projector(self.prior_size, size.code_size, size.projector, rate)
        self.discriminator = Discriminator(size.code_size, size.discriminator, activation)
        self.generator: nn.Module
        self.encoder: nn.Module
        if flat and dense:
            raise InvalidValueError("the MLP variant has no maps to read and write place by place: leave out dense")
        if flat:
            self.generator = FlatGenerator(size.code_size, size.wide, MLP_DEPTH, self.shape)
            self.encoder = FlatEncoder(size.code_size, size.wide, MLP_DEPTH, self.shape)
            self.last_level = self.first_level = 0
        else:
            if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
                raise InvalidValueError(f"pictures must be (3, N, N), got {tuple(shape)}: the MLP variant takes others")
            levels = levels_of(shape[1])
            self.last_level = levels - 1
            self.first_level = self.last_level if first_level is None else first_level
            if not 1 <= self.first_level <= self.last_level:
                raise InvalidValueError(f"first_level must lie in [1, {self.last_level}], got {first_level}")
            parts = (size.code_size, levels, size.narrow, size.wide, self.first_level)
            self.generator, self.encoder = Generator(*parts, dense=dense), Encoder(*parts, dense=dense)
        self.flat, self.level, self.blending = flat, self.last_level, False
        self.register_buffer("mean_code", torch.zeros(size.code_size))
        self.register_buffer("blend", torch.ones(()), persistent=False)

    @property
    def num_styles(self) -> int:
        """How many codes a picture is made of: two for each block, each where maps of one size get theirs."""
        return 1 if self.flat else 2 * (self.level + 1)

    @property
    def image_size(self) -> int:
        """Pixels of a side of what is made and read at this level."""
        return int(self.shape[-1]) >> (self.last_level - self.level)

    @property
    def blended(self) -> Tensor | None:
        """Share of the finest level, () on the device, while it is blended in."""
        return self.blend if self.blending else None

    def grow(self, level: int, blend: float = 1.0) -> None:
        """Make and read pictures of 4 * 2^level pixels; below a blend of 1 they are partly those of half the size.

        Raises:
            InvalidValueError: a level that was not made.
        """
        if not self.first_level <= level <= self.last_level:
            raise InvalidValueError(f"level must lie in [{self.first_level}, {self.last_level}], got {level}")
        self.level, self.blending = level, blend < 1.0 and level > self.first_level
        self.blend.fill_(blend)

    def project(self, draws: Tensor) -> Tensor:
        """F: (B, prior_size) draws to (B, code_size) codes."""
        codes: Tensor = self.projector(draws)
        return codes

    def styles(self, codes: Tensor) -> Tensor:
        """(B, num_styles, code_size): the same code at each place."""
        return codes[:, None].expand(-1, self.num_styles, -1)

    def truncated(self, codes: Tensor, psi: float = 0.7, cutoff: int | None = None) -> Tensor:
        """(B, num_styles, code_size): codes nearer to the mean by psi, in the first `cutoff` places or in all."""
        near = torch.lerp(self.mean_code.expand_as(codes), codes, psi)
        places = torch.arange(self.num_styles, device=codes.device)
        here = (places < (self.num_styles if cutoff is None else cutoff))[None, :, None]
        return torch.where(here, self.styles(near), self.styles(codes))

    def decode(self, codes: Tensor, noise: bool = True) -> Tensor:
        """G: (B, code_size) codes, or (B, num_styles, code_size), to (B, *shape) float32, nominally in [-1, 1].

        Args:
            noise: else none is added, and the same codes give the same pictures.
        """
        styles = codes if codes.dim() == 3 else self.styles(codes)
        pictures: Tensor = self.generator(styles, self.level, self.blended, noise, learns=learns(self.generator))
        return pictures

    def encode(self, pictures: Tensor) -> Tensor:
        """E: (B, *shape) pictures to (B, code_size) float32 codes."""
        codes: Tensor = self.encoder(pictures, self.level, self.blended, learns=learns(self.encoder))
        return codes

    def features(self, pictures: Tensor, *, raw: bool = False) -> list[Tensor]:
        """E's maps behind each of its blocks, (B, C, H, W), finest first.

        Args:
            raw: before they are normalised, and one more: see `Encoder.looked`.

        Raises:
            InvalidValueError: the MLP variant has no maps.
        """
        if self.flat:
            raise InvalidValueError("the MLP variant has no feature maps: leave out what compares patches")
        maps: list[Tensor] = self.encoder(
            pictures, self.level, self.blended, learns=learns(self.encoder), give="raw" if raw else "maps"
        )  # fmt: skip
        return maps

    def looked(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of one look: what `encode` gives, and raw `features` without a gradient; none of the MLP variant."""
        if self.flat:
            return self.encode(pictures), []
        both: tuple[Tensor, list[Tensor]] = self.encoder(
            pictures, self.level, self.blended, learns=learns(self.encoder), give="both"
        )  # fmt: skip
        return both

    def score(self, codes: Tensor) -> Tensor:
        """D: (B, code_size) codes to (B,) logits, above 0 of what seems real."""
        logits: Tensor = self.discriminator(codes)
        return logits

    @torch.no_grad()
    def remember(self, codes: Tensor) -> None:
        """Takes (B, code_size) codes of F into the running mean."""
        self.mean_code.lerp_(codes.mean(0), 1.0 - DECAY)


def learns(network: nn.Module) -> bool:
    """Whether gradients go to its weights."""
    return next(network.parameters()).requires_grad


class Judge(nn.Module):
    """D∘E as it was written, whatever became of the two: (B, 3, N, N) pictures to (B,) logits."""

    def __init__(self, model: ALAE) -> None:
        super().__init__()
        self.encoder, self.discriminator = model.encoder, model.discriminator

    def forward(self, images: Tensor, level: int, blend: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator.forward(self.encoder.forward(images, level, blend))  # type: ignore[operator]
        return logits


class Grown(Protocol):
    """What has a size at its level."""

    flat: bool

    @property
    def image_size(self) -> int: ...


def fitted(images: Tensor, model: Grown) -> Tensor:
    """Pictures in float32 and as large as the model has grown, means of 2 by 2 again and again; points as they are."""
    images = images.float()
    while not model.flat and images.shape[-1] > model.image_size:
        images = halved(images)
    return images
