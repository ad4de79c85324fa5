"""What an ALAE's codes hold: directions of true parameters and pictures along them; clips made again; speeds in w."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fractal_streams.recipes.alae.board import UInt8, board, columns, decoded, encoded, levels, looking, save
from fractal_streams.recipes.alae.codes import STORED, correlation, speeds as code_speeds, true_speeds
from fractal_streams.recipes.alae.model import ALAE
from fractal_streams.recipes.probe import FEWEST, PERIODS, Ridge, r_squared, target

from fractal_streams.contact_sheet import save_animation, whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

STEPS = (-3, -2, -1, 0, 1, 2, 3)
"""Of a traversal: deviations of what the codes say of the parameter."""
UNSEEN = 0.25
"""Share of the codes that a direction is told of and not fitted to."""
SIDES = ("real", "reconstruction", "codes between\nfirst and last")
"""Of an animated clip."""
FRAMES = 8
"""Moments of a clip's film."""


@dataclass(frozen=True, eq=False)
class Direction:
    """Where a true parameter lies in w.

    vector: (d,) unit vector. deviation: how far codes lie along it, one standard deviation: a step of a traversal.
    r_squared: of the parameter as a linear function of codes, on codes that were not fitted.
    """

    vector: Tensor
    deviation: float
    r_squared: float

    @property
    def step(self) -> Tensor:
        """(d,): the mean move of the codes with one deviation of what they say of the parameter."""
        return self.vector * self.deviation


def directions(codes: Tensor, latents: Mapping[str, Tensor], fewest: int = FEWEST) -> dict[str, Direction]:
    """The direction in which codes move with each parameter that varies, by name, the best known first.

    A ridge regression of the parameter on the codes; its direction is the codes' covariance times its weights, not the
    weights, which also hold what cancels the noise of correlated numbers (Haufe et al. 2014, "On the interpretation of
    weight vectors of linear models in multivariate neuroimaging", NeuroImage 87). A parameter that comes round again
    has two, of its sine and its cosine. Codes that are not finite have no direction.

    Args:
        codes: (N, d). latents: name to (N,), NaN where a sample has none. fewest: samples that must have a parameter.

    Example:
        >>> values = torch.linspace(-1, 1, 400)[torch.arange(400) * 7 % 400]
        >>> found = directions(values[:, None] * torch.tensor([3.0, 4.0]), {"power": values})["power"]
        >>> [round(part, 3) for part in found.vector.tolist()], round(found.r_squared, 3)
        ([0.6, 0.8], 1.0)
    """
    found: dict[str, Direction] = {}
    for name, values in latents.items() if bool(codes.isfinite().all()) else ():
        has = values.isfinite()
        here = values[has]
        if values.ndim != 1 or name in STORED or len(here) < fewest or bool((here == here[0]).all()):
            continue
        rows = codes[has].double()
        cut = len(rows) - max(1, int(UNSEEN * len(rows)))
        ridge = Ridge(rows[:cut])
        parts = target(name, here)
        names = (f"{name}, sine", f"{name}, cosine") if name in PERIODS else (name,)
        for own, part in zip(names, parts.split(1, dim=1), strict=True):
            if bool((part[:cut] == part[0]).all()):
                continue
            predicted = ridge.fitted(part[:cut])(rows)
            said, moved = predicted[:cut] - predicted[:cut].mean(), rows[:cut] - rows[:cut].mean(0)
            step = (moved * said).mean(0) / said.square().mean().sqrt().clamp_min(1e-300)
            size = step.norm()
            found[own] = Direction(
                (step / size.clamp_min(1e-300)).to(codes.dtype), float(size), r_squared(predicted[cut:], part[cut:])
            )
    return dict(sorted(found.items(), key=lambda item: -item[1].r_squared))


def traversal(
    model: ALAE,
    codes: Tensor,
    directions: Mapping[str, Direction],
    names: Sequence[str],
    path: Path,
    title: str = "",
    reals: Tensor | None = None,
) -> None:
    """Codes moved along directions, from -3 to 3 deviations; a row for each name and code, those of a name together.

    Args:
        codes: (K, d). directions: as `directions` finds them. names: which of them, in which order.
        reals: (K, 3, N, N) that the codes are of, to stand beside them; None leaves them out.

    Raises:
        InvalidValueError: no name, or one that is not there.
    """
    missing = [name for name in names if name not in directions]
    if missing or not names:
        raise InvalidValueError(f"names must be some of {', '.join(directions) or 'none'}, got {list(names)}")
    steps = torch.stack([directions[name].step for name in names]).to(codes)
    amounts = torch.tensor(STEPS, device=codes.device, dtype=codes.dtype)
    moved = codes[None, :, None] + amounts[:, None] * steps[:, None, None]
    with looking(model):
        made = levels(decoded(model, moved.flatten(0, 2)).unflatten(0, (len(names) * len(codes), len(STEPS))))
    labels = [
        f"{name.replace('_', ' ')}, R2 {directions[name].r_squared:.2f}" if place == 0 else ""
        for name in names
        for place in range(len(codes))
    ]
    heads = [f"{step:+d} deviation{'s' * (abs(step) > 1)}" if step else "reconstruction" for step in STEPS]
    before = [] if reals is None else [[tile] for tile in levels(reals)] * len(names)
    rows = [[*(before[place] if before else ()), *row] for place, row in enumerate(made)]
    heads = ["real", *heads] if before else heads
    apart = range(len(codes), len(labels), len(codes)) if len(codes) > 1 else ()
    groups = (1,) if before else ()
    save(path, board(rows, heads, names=labels, title=title, groups=groups, row_groups=apart))


@dataclass(frozen=True, eq=False)
class Remade:
    """Clips, (N, T, 3, H, W) each: real, made again frame by frame, and of codes between the first's and the last's."""

    real: Tensor
    again: Tensor
    between: Tensor


def remade(model: ALAE, clips: Tensor) -> Remade:
    """A clip or clips through the model.

    Args:
        clips: (T, 3, H, W) or (N, T, 3, H, W) in [-1, 1], of two frames or more.

    Raises:
        InvalidValueError: no clips, or a single frame.
    """
    real = clips[None] if clips.ndim == 4 else clips
    if real.ndim != 5 or real.shape[1] < 2 or not len(real):
        raise InvalidValueError(f"clips must be (N, T, 3, H, W) with two frames or more, got {tuple(clips.shape)}")
    count, frames = real.shape[:2]
    with looking(model):
        codes = encoded(model, real.flatten(0, 1)).unflatten(0, (count, frames))
        shares = torch.linspace(0.0, 1.0, frames, device=codes.device)[:, None]
        line = torch.lerp(codes[:, :1], codes[:, -1:], shares)
        made = decoded(model, torch.cat([codes, line]).flatten(0, 1)).unflatten(0, (2 * count, frames))
    return Remade(real, made[:count], made[count:])


def moments(clips: Remade, title: str = "") -> list[UInt8]:
    """A board for each moment: a row for each clip, its three ways beside each other."""
    sides = (clips.real, clips.again, clips.between)
    return [
        board(columns(*(side[:, time] for side in sides)), SIDES, title=title) for time in range(clips.real.shape[1])
    ]


def film(clips: Remade, path: Path, title: str = "") -> None:
    """The same as a PNG: three rows for each clip, up to 8 moments from first to last."""
    chosen = torch.linspace(0, clips.real.shape[1] - 1, min(FRAMES, clips.real.shape[1])).round().long().tolist()
    stacked = torch.stack([side.float().clamp(-1, 1) for side in (clips.real, clips.again, clips.between)], 1)
    tiles = levels(stacked[:, :, chosen]).reshape(-1, len(chosen), *clips.real.shape[2:])
    names = [side.replace("\n", " ") for _ in clips.real for side in SIDES]
    heads = [f"frame {time}" for time in chosen]
    groups = range(3, len(tiles), 3)
    save(path, board([list(row) for row in tiles], heads, names=names, title=title, row_groups=groups))


def animated(model: ALAE, clips: Tensor | Remade, path: Path, title: str = "", rate: float = 8.0) -> Path:
    """Clips beside what the model makes of their codes, and of codes between the first frame's and the last's.

    Args:
        clips: as of `remade`, or what it gave. path: of the MP4; where imageio's ffmpeg is not installed the same as
            .gif is written. rate: frames a second.

    Returns:
        The file that was written.
    """
    frames = moments(clips if isinstance(clips, Remade) else remade(model, clips), title)
    able = find_spec("imageio") is not None and find_spec("imageio_ffmpeg") is not None
    written = Path(path) if able else Path(path).with_suffix(".gif")
    save_animation(written, frames, rate)
    return written


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Correlations of the speed in w with the true one; NaN where one of them is constant.

    steps, ranks: of all steps of all clips, Pearson's and Spearman's. clips: of the clips' means. each: of all steps,
    with one parameter's alone, by name.
    """

    steps: float
    ranks: float
    clips: float
    each: Mapping[str, float]


def followed(code: Tensor, latents: Mapping[str, Tensor]) -> Followed:
    """How far speeds in w follow the parameters'.

    Args:
        code: (N, T - 1) lengths of the codes' steps. latents: name to (N, T), NaN where a clip has none.

    Raises:
        InvalidValueError: no parameter moves.

    Example:
        >>> place = torch.tensor([[0.0, 1.0, 3.0], [0.0, 3.0, 9.0]])
        >>> round(followed(place.diff(dim=1), {"power": place}).steps, 6)
        1.0
    """
    true, each = true_speeds(latents), {}
    for name, values in latents.items():
        with suppress(InvalidValueError):  # of one that does not move
            each[name] = known_correlation(true_speeds({name: values}), code)
    return Followed(
        steps=known_correlation(true, code), ranks=known_correlation(ranks(true), ranks(code)),
        clips=known_correlation(true.mean(1), code.mean(1)), each=each,
    )  # fmt: skip


def known_correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's r; NaN where one of them is constant."""
    try:
        return correlation(first, second)
    except InvalidValueError:
        return math.nan


def ranks(values: Tensor) -> Tensor:
    """The place of each of its values, (n,), in rising order."""
    return values.flatten().argsort(stable=True).argsort(stable=True).double()


def speeds(model: ALAE, clips: Tensor, latents: Mapping[str, Tensor], path: Path, title: str = "") -> Followed:
    """The speed in w against the true speed of the parameters, each step of each clip a point; and r by parameter.

    Args:
        clips: (N, T, 3, H, W) in [-1, 1]. latents: name to (N, T).

    Raises:
        InvalidValueError: no parameter moves.
    """
    with looking(model):
        codes = encoded(model, clips.flatten(0, 1)).unflatten(0, tuple(clips.shape[:2])).double()
    found = followed(code_speeds(codes), latents)
    spread = (codes - codes.mean((0, 1))).square().sum(2).mean().sqrt().clamp_min(1e-300)
    code, true = (code_speeds(codes) / spread).cpu(), true_speeds(latents).cpu()
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    if true.shape[1] > 1:  # else a clip's mean is its step
        left.scatter(true.flatten(), code.flatten(), s=8, color="C0", alpha=0.3, linewidths=0, label="a step")
    left.scatter(true.mean(1), code.mean(1), s=22, color="C3", edgecolors="w", linewidths=0.5, label="a clip's mean")
    left.set(
        xlabel="true speed of all parameters, deviations a frame", ylabel="speed in w, deviations a frame",
        xlim=(0, None), ylim=(0, None),
    )  # fmt: skip
    left.set_title(f"r {found.steps:.2f}, rank {found.ranks:.2f}; of clips' means {found.clips:.2f}", fontsize=11)
    left.grid(alpha=0.3)
    left.legend(edgecolor="none", framealpha=0.7, fontsize=8)
    bars = sorted((value, name.replace("_", " ")) for name, value in found.each.items() if math.isfinite(value))
    right.barh([name for _, name in bars], [value for value, _ in bars], 0.6, color="C0")
    for row, (value, _) in enumerate(bars):
        right.text(max(value, 0.0) + 0.02, row, f"{value:.2f}", va="center", fontsize=8)
    right.tick_params(axis="y", labelsize=10 if len(bars) <= 16 else 7)
    right.axvline(0.0, color="0.4", linewidth=0.8)
    right.set(xlabel="r of the speed in w", xlim=(min([-0.02, *(value - 0.04 for value, _ in bars)]), 1.1))
    right.set_title("one parameter at a time", fontsize=11)
    right.grid(axis="x", alpha=0.3)
    if title:
        figure.suptitle(title)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))
    return found
