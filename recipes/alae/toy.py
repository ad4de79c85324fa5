"""Does ALAE find every mode of a ring of Gaussians, and the code of each point again?

    python -m fractal_streams.recipes.alae.toy

Claim: see recipes/README.md. Eight Gaussians of deviation 0.05 on a circle of radius 1, the MLP variant, 2 CPU cores.
The folder gets points.png and result.json.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.settings import Settings, command, option

from fractal_streams import Batch
from fractal_streams.errors import missing_extra

try:
    import torch
    from accelerate import Accelerator
    from fractal_streams.recipes.alae.model import ALAE, Size
    from fractal_streams.recipes.alae.pictures import point_cloud
    from fractal_streams.recipes.alae.priors import Gaussian
    from fractal_streams.recipes.alae.updates import Rules, Updates
    from fractal_streams.recipes.averages import Average
    from fractal_streams.recipes.loop import seeded
    from rich.console import Console
    from rich.progress import track
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

RING = Size(image_size=1, narrow=128, wide=128, code_size=4, projector=4)
NEAR = 4.0
"""Deviations from a mode's middle within which a point is of that mode."""


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """A ring of Gaussians, and how ALAE is trained on it."""

    modes: int = option(8, "Gaussians on the ring.", low=2)
    deviation: float = option(0.05, "Of each Gaussian; the ring has radius 1.", low=1e-6)
    num_steps: int = option(2400, "Steps.", low=1)
    batch_size: int = option(256, "Points of a step.", low=2)
    lr: float = option(7e-3, "Rate of Adam.", low=0.0)
    gamma: float = option(0.1, "Weight of R1.", low=0.0)
    seed: int = option(0, "Names all that is drawn.")
    folder: Path = option(Path("outputs/alae-toy"), "Where all is written.")  # noqa: RUF009
    quiet: bool = option(False, "No progress bar.")


@dataclass(frozen=True, kw_only=True)
class ToyResult:
    """modes: that at least 2 % of the points drawn are near. near: share of points drawn that are near any.

    relative_reciprocity: E |w - E(G(w))|^2 / Var(w). distance: mean length of x - G(E(x)), of a ring of radius 1.
    """

    modes: int
    near: float
    relative_reciprocity: float
    distance: float


def middles(modes: int) -> Tensor:
    """(modes, 2) middles on the circle of radius 1."""
    angles = torch.arange(modes) * (math.tau / modes)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def ring(settings: ToySettings, count: int) -> tuple[Tensor, Tensor]:
    """(N, 2) points, and (N,) which Gaussian each is of."""
    labels = torch.randint(settings.modes, (count,))
    return middles(settings.modes)[labels] + settings.deviation * torch.randn(count, 2), labels


def train(settings: ToySettings) -> ALAE:
    """The average of the weights behind the last step."""
    seeded("weights", settings.seed)
    model = ALAE(RING, (2,), flat=True)
    rules = Rules(lr=settings.lr, gamma=settings.gamma, mixing=0.0, reciprocity="paper", reciprocity_weight=4.0)
    updates = Updates(model, Gaussian(model.prior_size), rules, Accelerator(cpu=True, mixed_precision="no"))
    average = Average(model, 0.99)
    steps = range(settings.num_steps)
    for step in track(steps, "ring of Gaussians", console=Console(stderr=True), disable=settings.quiet):
        seeded("step", settings.seed, step)
        updates.optimisers.follow(1.0 - step / settings.num_steps)
        points, labels = ring(settings, settings.batch_size)
        updates.step(Batch(torch.arange(len(labels)), points, labels, {}), step, step * settings.batch_size)
        average.update_parameters(model)
    trained: Any = average.module
    return trained.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def measured(model: ALAE, settings: ToySettings, count: int = 4096) -> ToyResult:
    """What a model does with points and draws that it has not seen."""
    seeded("test", settings.seed)
    points, _ = ring(settings, count)
    codes = model.project(torch.randn(count, model.prior_size))
    drawn = model.decode(codes)
    lengths, nearest = torch.cdist(drawn, middles(settings.modes)).min(1)
    close = lengths < NEAR * settings.deviation
    shares = torch.bincount(nearest[close], minlength=settings.modes) / count
    error = (codes - model.encode(drawn)).square().mean()
    return ToyResult(
        modes=int((shares > 0.02).sum()), near=float(close.float().mean()),
        relative_reciprocity=float(error / (codes - codes.mean(0)).square().mean()),
        distance=float((points - model.decode(model.encode(points))).norm(dim=1).mean()),
    )  # fmt: skip


def run(settings: ToySettings) -> ToyResult:
    """Train, measure, and write points.png and result.json."""
    model = train(settings)
    result = measured(model, settings)
    settings.folder.mkdir(parents=True, exist_ok=True)
    seeded("picture", settings.seed)
    points, draws = ring(settings, 1024)[0], torch.randn(1024, model.prior_size)
    point_cloud(model, points, draws, settings.folder / "points.png")
    write_json(settings.folder / "result.json", asdict(result))
    return result


def main(settings: ToySettings) -> None:
    torch.set_num_threads(1)  # products this small take longer in two
    print(json.dumps(asdict(run(settings)), indent=2))


app = command(ToySettings, main, "ALAE on a ring of Gaussians.")

if __name__ == "__main__":
    app()
