"""Views of a batch for contrastive terms: other geometry, and other colours, drawn and resampled on the device.

Flips and random resized crops in one affine map for each picture, by `affine_grid` and `grid_sample`; nothing is read
back to the host. Two views of one picture are to be found together among others, and what views have in common is what
they are found by: of fractals that keep their colours, the palette, so that nothing else is learnt.
"""

from __future__ import annotations

from fractal_streams.recipes.alae.precision import full_precision

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@full_precision
def view(
    images: Tensor,
    area: tuple[float, float] = (0.3, 1.0),
    aspect: float = 4.0 / 3.0,
    padding: float = 0.125,
    flips: bool = True,
    colour: float = 0.0,
    symmetries: bool = False,
) -> Tensor:
    """(B, C, H, W) float32 random views, each picture's drawn on its own with torch's global generator.

    Args:
        images: (B, C, H, W) in [-1, 1]. area, aspect, padding, flips: see `drawn_maps`.
        colour: strength of `jittered`. symmetries: with one of `recoloured`.

    Example:
        >>> view(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if images.dim() != 4 or not 0.0 <= colour < 1.0:
        raise InvalidValueError(
            f"views take (B, C, H, W) pictures and colour in [0, 1), got {tuple(images.shape)} and {colour}"
        )
    seen = resampled(images, drawn_maps(len(images), images.device, area, aspect, padding, flips))
    seen = recoloured(seen) if symmetries else seen
    return jittered(seen, colour) if colour else seen


def drawn_maps(
    count: int,
    device: torch.device | str,
    area: tuple[float, float] = (0.3, 1.0),
    aspect: float = 4.0 / 3.0,
    padding: float = 0.125,
    flips: bool = True,
) -> Tensor:
    """(B, 2, 3) float32 affine maps from a view's coordinates to its picture's, both in [-1, 1].

    Args:
        area: least and largest share of the picture that a crop shows, uniform between.
        aspect: at most this or its inverse, uniform in the logarithm; a side is never longer than the picture.
        padding: how far a crop may reach beyond the picture, as a share of its side; what is beyond is its mirror
            image. flips: of both axes, each with probability 1/2.
    """
    if not 0.0 < area[0] <= area[1] <= 1.0 or aspect < 1.0 or not 0.0 <= padding <= 0.5:
        raise InvalidValueError(
            "area must be two shares in (0, 1] that do not fall, aspect 1 or more, padding in [0, 0.5], got "
            f"{area}, {aspect} and {padding}"
        )
    drawn = torch.rand(6, count, device=device)
    share = (area[0] + (area[1] - area[0]) * drawn[0]).sqrt()
    stretch = (aspect ** (2.0 * drawn[1] - 1.0)).sqrt()
    sizes = torch.stack([share * stretch, share / stretch]).clamp(max=1.0)
    centres = (2.0 * drawn[2:4] - 1.0) * (1.0 - sizes + 2.0 * padding)
    signs = torch.where(drawn[4:6] < 0.5, -1.0, 1.0) if flips else torch.ones_like(sizes)
    across, down = signs * sizes
    flat = torch.zeros_like(across)
    return torch.stack([across, flat, centres[0], flat, down, centres[1]], dim=1).unflatten(1, (2, 3))


@full_precision
def resampled(images: Tensor, maps: Tensor) -> Tensor:
    """(B, C, H, W) pictures seen through (B, 2, 3) maps, bilinear, with mirror images beyond the edge.

    Crops are enlarged, never shrunk, so that nothing is aliased.
    """
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


@full_precision
def recoloured(images: Tensor) -> Tensor:
    """Each picture under one of the 48 symmetries of the cube of colours: channels change places, and are negated.

    Args:
        images: (B, 3, H, W) in [-1, 1]; so is what comes out.
    """
    count, device = len(images), images.device
    places = torch.rand(count, 3, device=device).argsort(1)
    signs = torch.where(torch.rand(count, 3, device=device) < 0.5, -1.0, 1.0)
    return images.gather(1, places[:, :, None, None].expand_as(images)) * signs[:, :, None, None]


@full_precision
def jittered(images: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation of each picture, each changed by a factor of up to 1 +- strength.

    Args:
        images: (B, 3, H, W) in [-1, 1]; so is what comes out.
    """
    light, contrast, saturation = (1.0 + strength * (2.0 * torch.rand(3, len(images), device=images.device) - 1.0))[
        :, :, None, None, None
    ]
    levels = (images + 1.0) * light
    middle = levels.mean((1, 2, 3), keepdim=True)
    levels = middle + contrast * (levels - middle)
    grey = levels.mean(1, keepdim=True)
    return (grey + saturation * (levels - grey) - 1.0).clamp(-1.0, 1.0)
