"""A critic of patches: is this piece of a picture real? It sees texture, where E and D together see the whole.

Without batch norm, which would tell a batch of fakes from one of reals by its statistics and make a picture's score
depend on its neighbours. Its generator-side loss is a function of its own, to be computed with the critic frozen on
pictures that are not cut from their graph.
"""

from __future__ import annotations

from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SLOPE = 0.2
"""Of the leaky ReLUs below 0."""


class PatchCritic(nn.Module):
    """Convolutions of stride 2, then one logit for each place (after PatchGAN, arXiv:1611.07004, section 3.2.2).

    Args:
        channels: of the pictures. width: of the first convolution, doubled by each next one up to 8 times.
        layers: of stride 2: a logit sees 10, 22 or 46 pixels a side with 1, 2 or 3 of them, less at the edges.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if min(channels, width, layers) < 1:
            raise InvalidValueError(f"channels, width and layers must be 1 or more, got {channels}, {width}, {layers}")
        self.layers = layers
        body: list[nn.Module] = []
        before = channels
        for level in range(layers):
            after = width * 2 ** min(level, 3)
            body += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            before = after
        self.body = nn.Sequential(*body, nn.Conv2d(before, before, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.logits = nn.Conv2d(before, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1.0 if module is self.logits else SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, places) logits of (B, channels, H, W) pictures in [-1, 1], above 0 where a patch looks real."""
        if min(images.shape[-2:]) < 2**self.layers:
            raise InvalidValueError(
                f"{self.layers} layers of stride 2 need pictures of at least {2**self.layers} pixels a side, got "
                f"{tuple(images.shape[-2:])}: give the critic fewer layers"
            )
        return self.logits(self.body(images)).flatten(1)


@full_precision
def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-real) + mean softplus(fake): 2 ln 2 = 1.386 where the critic can't tell.

    Args:
        real, fake: logits, of any shapes.
    """
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


@full_precision
def realism_loss(fake: Tensor) -> Tensor:
    """mean softplus(-fake), the generator's side (non-saturating, arXiv:1406.2661, section 3)."""
    return functional.softplus(-fake).mean()
