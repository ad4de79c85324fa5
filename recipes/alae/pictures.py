"""Pictures of an ALAE: real, fake and made again; between codes, of two codes, near the mean code; clouds of points.

Every function takes the model by its own methods, adds no noise, draws nothing at random, and writes a PNG that is
there whole or not at all: the same model and pictures give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from fractal_streams.recipes.alae.board import (
    Row,
    board,
    check_pictures,
    columns,
    decoded,
    encoded,
    levels,
    looking,
    save,
)
from fractal_streams.recipes.alae.model import ALAE
from fractal_streams.recipes.vae_pictures import psnr

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

FOLD = 8
"""Rows of the grid of four columns; what is more stands beside them."""
BETWEEN = 7
"""Pictures from one code to another, both ends counted."""
NEARNESS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)
"""ψ, from the mean code to the code itself."""


def four_columns(model: ALAE, images: Tensor, z: Tensor, path: Path, title: str = "") -> None:
    """Real pictures, what the model makes of them again, fakes, and what it makes of those again.

    More than 8 rows stand in two or more blocks beside each other. The title tells the PSNR of the pictures shown,
    clipped to [-1, 1].

    Args:
        images: (R, 3, N, N) in [-1, 1], 8 to 16 of them are readable. z: (R, prior_size).

    Raises:
        InvalidValueError: no pictures, or not as many draws.
    """
    check_pictures(images, "images")
    if len(z) != len(images):
        raise InvalidValueError(f"z must be one for each of {len(images)} images, got {len(z)}")
    with looking(model):
        fakes = decoded(model, model.project(z)).clamp(-1.0, 1.0)
        both = torch.cat([images.to(fakes.dtype), fakes])
        again = decoded(model, encoded(model, both)).clamp(-1.0, 1.0)
    reals, fakes_again = again.split(len(images))
    told = [psnr(float((one - two).square().mean())) for one, two in ((images, reals), (fakes, fakes_again))]
    heads = ("real", "reconstruction", "fake", "reconstruction")
    words = f"reconstruction of real {told[0]:.1f} dB, of fake {told[1]:.1f} dB"
    rows = columns(images, reals, fakes, fakes_again)
    down = min(FOLD, len(rows))
    blocks = -(-len(rows) // down)
    filled: list[Row] = [*rows, *[[None] * 4] * (blocks * down - len(rows))]
    folded = [[tile for row in filled[place::down] for tile in row] for place in range(down)]
    groups = range(2, 4 * blocks, 2)
    save(path, board(folded, heads * blocks, title=f"{title}: {words}" if title else words, groups=groups))


def interpolation(model: ALAE, first: Tensor, second: Tensor, path: Path, title: str = "") -> None:
    """A row for each pair of real pictures: between their codes, and at the ends the pictures themselves.

    Args:
        first, second: (R, 3, N, N) in [-1, 1].

    Raises:
        InvalidValueError: no pictures, or not as many of both.
    """
    check_pictures(first, "first")
    if first.shape != second.shape:
        raise InvalidValueError(f"first and second must be of one shape: {tuple(first.shape)}, {tuple(second.shape)}")
    with looking(model):
        start, end = encoded(model, torch.cat([first, second])).split(len(first))
        steps = torch.linspace(0.0, 1.0, BETWEEN, device=start.device)
        made = decoded(model, torch.lerp(start[:, None], end[:, None], steps[:, None]).flatten(0, 1))
    between = made.unflatten(0, (len(first), BETWEEN)).unbind(1)
    shares = [f"{place}/{BETWEEN - 1}" for place in range(1, BETWEEN - 1)]
    heads = ("real", "reconstruction", *shares, "reconstruction", "real")
    rows = columns(first, *between, second)
    save(path, board(rows, heads, title=title, groups=(1, len(heads) - 1)))


def mixed(first: Tensor, second: Tensor, cutoff: int) -> Tensor:
    """(B, num_styles, d): the first `cutoff` styles of one, the others of the other; those before are of coarser maps.

    Args:
        first, second: (B, num_styles, d).
    """
    return torch.cat([first[:, :cutoff], second[:, cutoff:]], dim=1)


def mixing_matrix(
    model: ALAE, rows: Tensor, columns: Tensor, path: Path, *, cutoff: int | None = None, title: str = ""
) -> None:
    """Each picture has the coarse styles of its row's source and the fine styles of its column's.

    The sources, real pictures, stand at the edges, and beside each is its reconstruction.

    Args:
        rows: (R, 3, N, N). columns: (C, 3, N, N). cutoff: styles that are coarse; half of them without it.

    Raises:
        InvalidValueError: a model of one style; a cutoff that leaves none to the one or the other.
    """
    check_pictures(rows, "rows")
    check_pictures(columns, "columns")
    if model.num_styles < 2:
        raise InvalidValueError(f"a model of {model.num_styles} style has none to mix: take one with convolutions")
    coarse = model.num_styles // 2 if cutoff is None else cutoff
    if not 0 < coarse < model.num_styles:
        raise InvalidValueError(f"cutoff must lie in [1, {model.num_styles - 1}], got {coarse}")
    down, across = len(rows), len(columns)
    with looking(model):
        styles = model.styles(encoded(model, torch.cat([rows, columns])))
        again = decoded(model, styles)
        pairs = styles[:down].repeat_interleave(across, 0), styles[down:].repeat(down, 1, 1)
        made = decoded(model, mixed(*pairs, coarse)).unflatten(0, (down, across))
    sources, remade, tiles = (levels(part) for part in (torch.cat([rows, columns]), again, made))
    board_rows = [
        ["coarse styles\nof the row,\nfine styles\nof the column", "real", *sources[down:]],
        ["real", "reconstruction", *remade[down:]],
        *([sources[row], remade[row], *tiles[row]] for row in range(down)),
    ]
    words = f"{title}: " if title else ""
    told = f"{words}styles 1 to {coarse} of the row, {coarse + 1} to {model.num_styles} of the column"
    save(path, board(board_rows, [""] * (across + 2), title=told, groups=(2,), row_groups=(2,)))


def truncations(model: ALAE, z: Tensor, path: Path, title: str = "") -> None:
    """A row for each draw: its code from the mean code, ψ = 0, to itself, ψ = 1, in every style.

    Args:
        z: (R, prior_size).
    """
    with looking(model):
        codes = model.project(z)
        styles = torch.stack([model.truncated(codes, psi, model.num_styles) for psi in NEARNESS], 1)
        made = decoded(model, styles.flatten(0, 1)).unflatten(0, (len(z), len(NEARNESS)))
    heads = [f"psi = {psi:g}" + {0.0: "\nthe mean code", 1.0: "\nas drawn"}.get(psi, "") for psi in NEARNESS]
    save(path, board(columns(*made.unbind(1)), heads, title=title))


def point_cloud(model: ALAE, reals: Tensor, z: Tensor, path: Path, title: str = "") -> None:
    """Points of a plane: real, fake, and the real ones made again, each joined to what it was made of.

    Args:
        reals: (R, 2). z: (M, prior_size).

    Raises:
        InvalidValueError: points of another space.
    """
    if reals.ndim != 2 or reals.shape[1] != 2:
        raise InvalidValueError(f"reals must be (N, 2), points of a plane, got {tuple(reals.shape)}")
    with looking(model):
        clouds = {"real": reals, "fake": model.decode(model.project(z), noise=False)}
        again = model.decode(model.encode(reals), noise=False)
    points = {name: cloud.float().cpu().numpy() for name, cloud in clouds.items()} | {
        "reconstruction of real": again.float().cpu().numpy()
    }
    real, far = points["real"], 1.25 * float(reals.abs().max())
    figure = Figure(figsize=(11.4, 4.55 if title else 4.2), layout="compressed")
    every = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, (name, cloud), colour in zip(every, points.items(), ("C0", "C3", "C2"), strict=True):
        if name != "real":
            axes.scatter(*real.T, s=5, color="0.82", linewidths=0, label="real")
        if name.startswith("reconstruction"):
            axes.plot(*zip(real.T, cloud.T, strict=True), color="C2", alpha=0.15, linewidth=0.5)
        axes.scatter(*cloud.T, s=5, color=colour, linewidths=0, alpha=0.7, label=name)
        outside = int((abs(cloud) > far).any(1).sum())
        axes.set(
            title=f"{name}, {len(cloud):,} points" + (f", {outside} outside" if outside else ""),
            xlim=(-far, far), ylim=(-far, far), aspect="equal", xlabel="x",
        )  # fmt: skip
        axes.grid(alpha=0.3)
    every[0].set_ylabel("y")
    if title:
        figure.suptitle(title)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))
