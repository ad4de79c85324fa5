"""Kaleidoscopes that one command makes: robust ones on this package's own streams, and the original experiments.

Those of H. Shrivastava, "Generative Kaleidoscopic Networks" (arXiv:2402.11793), are as its program has them: data that
fill the range, no noise, a constant learning rate. The robust ones are fitted as denoisers, which makes their sources
attractors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fractal_streams.errors import InvalidValueError, unknown_name
from fractal_streams.kaleidoscope.fitted import ENDING, Sources, checked_path
from fractal_streams.kaleidoscope.identity import OnIdentity
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.sources import distinct_indices, of_stream, of_torchvision, points, stacked
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.kaleidoscope.training import Training
from fractal_streams.priors import Uniform
from fractal_streams.render.bind import cache_folder
from fractal_streams.spec import StreamSpec
from fractal_streams.stream import StillStream

UNIFORM, PINK = Start(), Start(kind="pink")
PICTURES = 50
"""Sources of each robust network."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a kaleidoscope is made.

    models, restarts, on_identity: see `fit`.
    start: of the chains that attractors and the report are made with.
    sources: from the folder of `needs`, or None, to what the networks are fitted to.
    needs: a dataset that must lie in a folder, as torchvision keeps it; "" is none.
    """

    title: str
    network: Network
    training: Training
    sources: Callable[[str | Path | None], Sources]
    models: int = 1
    restarts: int = 1
    start: Start = UNIFORM
    needs: str = ""
    on_identity: OnIdentity = "refuse"


def fractals(
    edge: int, models: int = 1, grey: bool = False, least: float = 0.05
) -> Callable[[str | Path | None], Sources]:
    """Pictures of ten classes, `PICTURES` for each network, no two nearer than `least`."""

    def made(root: str | Path | None = None) -> Sources:
        spec = StreamSpec(
            formulas="polynomial_power", num_classes=10, height=edge, width=edge,
            priors={"power": Uniform(1.0, 5.0), "frequency": Uniform(2.0, 10.0)},
        )  # fmt: skip
        stream = StillStream(spec, device="cpu")
        chosen = distinct_indices(stream, models * PICTURES, least=least, grey=grey).reshape(models, PICTURES)
        parts = [of_stream(stream, indices, grey=grey) for indices in chosen]
        return parts[0] if models == 1 else stacked(parts)

    return made


def stored(
    name: str, count: int, classes: tuple[str, ...] | None = None, height: int | None = None, width: int | None = None
) -> Callable[[str | Path | None], Sources]:
    """Pictures of a dataset in torchvision's folder."""

    def made(root: str | Path | None = None) -> Sources:
        if root is None:
            raise InvalidValueError(f"this recipe needs {name}: pass root=, the folder in which torchvision keeps it")
        return of_torchvision(name, root, count=count, classes=classes, height=height, width=width)

    return made


def given(*values: tuple[float, ...]) -> Callable[[str | Path | None], Sources]:
    """Points."""

    def made(root: str | Path | None = None) -> Sources:
        return points(values)

    return made


def original(steps: int, learning_rate: float, batch: int | None = None) -> Training:
    """Without noise, at a constant rate."""
    return Training(steps=steps, batch=batch, learning_rate=learning_rate, decay="constant", noise=0.0)


ROBUST = Training(steps=4000, learning_rate=1e-3, noise=0.5)
LINE = Network(shape=(1,), hidden=10, n_linear=7, head="sigmoid", data_scale=1.0)
SQUARE = ((0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))

RECIPES: dict[str, Recipe] = {
    "kaleidoscope-10": Recipe(
        title="50 coloured fractals of 10 classes, 16 x 16",
        network=Network(shape=(3, 16, 16), hidden=256, n_linear=7), training=ROBUST, sources=fractals(16),
        start=PINK,
    ),
    "kaleidoscope-bank": Recipe(
        title="16 networks of 50 coloured fractals each, 16 x 16",
        network=Network(shape=(3, 16, 16), hidden=256, n_linear=7), training=ROBUST, sources=fractals(16, 16),
        models=16, start=PINK,
    ),
    "kaleidoscope-mnist": Recipe(
        title="50 grey fractals of 10 classes, 28 x 28",
        network=Network(shape=(1, 28, 28), hidden=256, n_linear=7), training=ROBUST.replace(noise=0.3),
        sources=fractals(28, grey=True, least=0.1), start=PINK,
    ),
    "seed_1d": Recipe(
        title="the points .2 and .8 of a line", network=LINE, training=original(2000, 1e-3),
        sources=given((0.2,), (0.8,)),
    ),
    "seed_1d_readme": Recipe(
        title="the same with 5 units; half of such networks die, so it is the best of 16",
        network=LINE.replace(hidden=5), training=original(2000, 1e-3), sources=given((0.2,), (0.8,)), restarts=16,
    ),
    "seed_2d": Recipe(
        title="four points of a square", network=LINE.replace(shape=(2,), hidden=50), training=original(2000, 1e-3),
        sources=given(*SQUARE),
    ),
    "seed_mnist": Recipe(
        title="60,000 digits of MNIST", network=Network(shape=(1, 28, 28), hidden=500, n_linear=11, data_scale=1.0),
        training=original(10_000, 1e-4, batch=1000), sources=stored("mnist", 60_000), needs="mnist",
        on_identity="warn",
    ),
    "seed_cifar": Recipe(
        title="1,000 dogs of CIFAR-10; its steps are not told, they are those of the digits",
        network=Network(shape=(3, 32, 32), hidden=2000, n_linear=11, data_scale=1.0),
        training=original(10_000, 1e-4, batch=1000), sources=stored("cifar10", 1000, ("dog",)), needs="cifar10",
        on_identity="warn",
    ),
    "seed_celeba": Recipe(
        title="1,000 faces of CelebA, 39 x 32; its steps are not told, they are those of the digits",
        network=Network(shape=(3, 39, 32), hidden=1000, n_linear=11, data_scale=1.0),
        training=original(10_000, 1e-4, batch=1000), sources=stored("celeba", 1000, None, 39, 32), needs="celeba",
        on_identity="warn",
    ),
}  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UnknownNameError: no such recipe; names the nearest known one.

    Example:
        >>> find_recipe("seed_mnist").network.parameters
        3039784
    """
    if name not in RECIPES:
        raise unknown_name("kaleidoscope", name, RECIPES)
    return RECIPES[name]


def model_path(name: str) -> Path:
    """Where a recipe's file lies, or will: in the user's cache folder.

    Raises:
        UnknownNameError: no such recipe.
    """
    find_recipe(name)
    return cache_folder() / "kaleidoscopes" / f"{name}{ENDING}"


def make(
    name: str, out: str | Path | None = None, *, root: str | Path | None = None, device: str = "auto",
    progress: bool = False,
) -> Path:  # fmt: skip
    """Fit a recipe's networks, find their attractors, report on them, and write the file; its path.

    A fit that was interrupted goes on where it was.

    Args:
        out: the file, .safetensors; None is `model_path`.
        root: the folder of the dataset that the recipe needs.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UnknownNameError: no such recipe. InvalidValueError: no root for one that needs it, or another ending.
        Others as `fit`.
    """
    from fractal_streams.kaleidoscope.fitting import fit
    from fractal_streams.kaleidoscope.quality import completed

    recipe, place = find_recipe(name), checked_path(model_path(name) if out is None else out)
    part = place.with_name(f"{place.stem}.part{ENDING}")
    fitted = fit(
        recipe.network, recipe.sources(root), recipe.training, models=recipe.models, restarts=recipe.restarts,
        device=device, checkpoint=part, on_identity=recipe.on_identity, progress=progress,
    )  # fmt: skip
    made = completed(fitted, device=device, start=recipe.start, progress=progress).save(place)
    part.unlink(missing_ok=True)
    return made
