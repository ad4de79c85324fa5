"""Variational autoencoders behind one interface: a plain convolutional one, and diffusers' `AutoencoderKL`.

Both describe a picture by `latent_size` numbers with a normal distribution of their own each (Kingma and Welling 2014,
"Auto-Encoding Variational Bayes"), and tell how far a pixel lies from its reconstruction: one deviation for all pixels
(Rybkin, Daniilidis and Levine 2021, "Simple and Effective VAE Training with Calibrated Decoders").
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, NamedTuple

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

ARCHITECTURES = ("plain", "kl")
FIRST_DEVIATION = 0.5
"""Of a pixel from its reconstruction before any training, if it is learned; pictures lie in [-1, 1]."""
LOG_VARIANCES = (-30.0, 20.0)
"""Between which a log variance is held, as diffusers does."""


class Coded(NamedTuple):
    """What an autoencoder makes of (B, 3, H, W) pictures; all float32.

    reconstruction: (B, 3, H, W), from a code drawn from the distribution.
    mean, log_variance: (B, latent_size), of the code's distribution.
    log_scale: (), the logarithm of the deviation of a pixel from its reconstruction.
    """

    reconstruction: Tensor
    mean: Tensor
    log_variance: Tensor
    log_scale: Tensor


class Autoencoder(nn.Module, ABC):
    """(B, 3, H, W) pictures in [-1, 1] to `Coded`, all in one forward, so that what wraps `forward` sees it all.

    Codes are flat, (B, latent_size), whatever their form inside is.

    Args:
        image_shape: (3, H, W).
        latent_shape: (latent_size,), or (channels, height, width) of a code that keeps places.
        scale: deviation of a pixel from its reconstruction; None has it learned with the weights.
    """

    log_scale: Tensor

    def __init__(
        self, image_shape: tuple[int, int, int], latent_shape: tuple[int, ...], scale: float | None = None
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_shape, self.latent_size = latent_shape, math.prod(latent_shape)
        first = torch.tensor(math.log(FIRST_DEVIATION if scale is None else scale))
        if scale is None:
            self.log_scale = nn.Parameter(first)
        else:
            self.register_buffer("log_scale", first)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to the (B, latent_size) means and log variances of its codes."""
        mean, log_variance = self.moments(images)
        return mean.flatten(1).float(), log_variance.flatten(1).float().clamp(*LOG_VARIANCES)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, latent_size) to (B, 3, H, W)."""
        return self.pictures(codes.unflatten(1, self.latent_shape)).float()

    def forward(self, images: Tensor) -> Coded:
        mean, log_variance = self.encode(images)
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Coded(self.decode(codes), mean, log_variance, self.log_scale.clone())

    @abstractmethod
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to the means and log variances, (B, *latent_shape)."""

    @abstractmethod
    def pictures(self, codes: Tensor) -> Tensor:
        """(B, *latent_shape) to (B, 3, H, W)."""


class PlainAutoencoder(Autoencoder):
    """Convolutions that halve the picture, a linear layer to a flat code, and the same way back.

    Args:
        image_shape: (3, H, W). latent_size: numbers of a code.
        width: channels at full size; each halving doubles them, up to four times as many.
        halvings: of height and width on the way to the code.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_size: int, width: int, halvings: int, scale: float | None = None
    ) -> None:
        super().__init__(image_shape, (latent_size,), scale)
        channels = widths(width, halvings)
        edge = (channels[-1], *small_shape(image_shape, halvings))
        down: list[nn.Module] = [nn.Conv2d(image_shape[0], width, 3, padding=1)]
        up: list[nn.Module] = [nn.Linear(latent_size, math.prod(edge)), nn.Unflatten(1, edge)]
        for before, behind in pairwise(channels):
            down += [*activated(before), nn.Conv2d(before, behind, 4, stride=2, padding=1)]
        for before, behind in pairwise(channels[::-1]):
            up += [*activated(before), nn.ConvTranspose2d(before, behind, 4, stride=2, padding=1)]
        last = [*activated(width), nn.Conv2d(width, image_shape[0], 3, padding=1)]
        self.encoder = nn.Sequential(
            *down, *activated(channels[-1]), nn.Flatten(), nn.Linear(math.prod(edge), 2 * latent_size)
        )
        self.decoder = nn.Sequential(*up, *last)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def pictures(self, codes: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(codes)
        return pictures


class KLAutoencoder(Autoencoder):
    """diffusers' `AutoencoderKL`, small: residual blocks, attention in the middle, a code that keeps places.

    Args:
        latent_size: numbers of a code; a multiple of the places, (H / 2**halvings) (W / 2**halvings).
        image_shape, width, halvings: as of `PlainAutoencoder`.

    Raises:
        InvalidValueError: a latent size that the places can't share evenly.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_size: int, width: int, halvings: int, scale: float | None = None
    ) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise missing_extra("diffusers", "recipes") from None
        places = small_shape(image_shape, halvings)
        if latent_size % math.prod(places):
            raise InvalidValueError(
                f"latent_size={latent_size} must be a multiple of the code's {places[0]} x {places[1]} places: "
                f"choose one, or more than {halvings} halvings"
            )
        super().__init__(image_shape, (latent_size // math.prod(places), *places), scale)
        channels = widths(width, halvings)
        self.network: Any = AutoencoderKL(
            in_channels=image_shape[0], out_channels=image_shape[0], latent_channels=self.latent_shape[0],
            block_out_channels=channels, norm_num_groups=math.gcd(width, 8), sample_size=image_shape[-1],
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
        )  # fmt: skip

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.encode(images).latent_dist
        return found.mean, found.logvar

    def pictures(self, codes: Tensor) -> Tensor:
        pictures: Tensor = self.network.decode(codes).sample
        return pictures


def autoencoder(architecture: str, image_shape: tuple[int, int, int], **shape: Any) -> Autoencoder:
    """An autoencoder of `ARCHITECTURES`.

    Args:
        image_shape: (3, H, W). shape: latent_size, width, halvings, scale.

    Example:
        >>> autoencoder("plain", (3, 16, 16), latent_size=8, width=8, halvings=2).latent_shape
        (8,)
    """
    kinds: dict[str, Any] = {"plain": PlainAutoencoder, "kl": KLAutoencoder}
    network: Autoencoder = kinds[architecture](image_shape, **shape)
    return network


def widths(width: int, halvings: int) -> tuple[int, ...]:
    """Channels from full size on: (w, 2w, 4w, 4w, ...)."""
    return tuple(width * min(4, 2**step) for step in range(halvings + 1))


def activated(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(channels, 8), channels), nn.SiLU()]


def small_shape(image_shape: tuple[int, int, int], halvings: int) -> tuple[int, int]:
    """(height, width) behind the halvings.

    Raises:
        InvalidValueError: a picture that can't be halved so often.
    """
    _, height, width = image_shape
    if height % 2**halvings or width % 2**halvings:
        raise InvalidValueError(
            f"a picture of {height} x {width} can't be halved {halvings} times: choose halvings or image_size so that "
            f"both edges are multiples of 2**halvings = {2**halvings}"
        )
    return height // 2**halvings, width // 2**halvings
