"""What a representation knows of the true latents of a stream: linear probes, and PCA of pixels to compare with.

A probe is a ridge regression from standardised features to a latent, in closed form; its ridge is the best on a
validation part. An angle stands as its sine and cosine. R² is told of samples that no fit has seen.

    known, test = looked_at(validation, 16384), looked_at(test_stream, 8192)
    pca = principal_components(known.pixels(), 64)
    print(probed(pca(known.pixels()), known, pca(test.pixels()), test).r_squared)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fractal_streams.recipes.data import held_out

from fractal_streams import Stream
from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PERIODS = {
    **dict.fromkeys(("alpha", "beta", "rotation", "angle", "anchor_angle", "trap_angle"), math.tau),
    **dict.fromkeys(("red_phase", "green_phase", "blue_phase"), 1.0),
}
"""Latents that come round again, and behind how much: radians, and turns of the palette."""
RIDGES = tuple(10.0**power for power in range(-8, 3))
"""To choose from, in units of a standardised feature's variance."""
VALIDATION = 0.2
"""Share of the samples to fit that choose the ridge."""
FEWEST = 32
"""Samples that a latent must have, in the fit and in the test, to be probed: some have it only of one formula."""
EDGE = 32
"""Pixels: larger pictures are averaged down to this for pixel baselines."""


@dataclass(frozen=True, eq=False)
class Look:
    """N samples with what they were drawn from.

    images: (N, 3, H, W) float32. labels: (N,) int64. latents: name to (N, ...), NaN where a sample has none.
    """

    images: Tensor
    labels: Tensor
    latents: Mapping[str, Tensor]

    def pixels(self) -> Tensor:
        """(N, D) float32: the pictures, averaged down to at most `EDGE` pixels, as rows."""
        height, width = self.images.shape[-2:]
        if max(height, width) <= EDGE:
            return self.images.flatten(1)
        return functional.adaptive_avg_pool2d(self.images, (min(EDGE, height), min(EDGE, width))).flatten(1)

    def through(self, encode: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
        """(N, k): features of the pictures, batch by batch."""
        with torch.no_grad():
            return torch.cat([encode(part).flatten(1).float() for part in self.images.split(batch_size)])


def looked_at(stream: Stream, samples: int, val_seed: int = 0) -> Look:
    """The held-out samples of a stream that a seed names, on its device.

    Args:
        stream: of the validation or test split, with pictures in float32.
    """
    batches = list(held_out(stream, samples, 512, val_seed))
    latents = {name: torch.cat([batch.latents[name] for batch in batches]) for name in batches[0].latents}
    return Look(
        torch.cat([batch.images for batch in batches]).float(), torch.cat([batch.labels for batch in batches]), latents
    )


def target(name: str, values: Tensor) -> Tensor:
    """(N, d) float64: what a probe is to find of a latent; sine and cosine of one that comes round again.

    Example:
        >>> target("alpha", torch.tensor([0.0, math.pi / 2])).round().tolist()
        [[0.0, 1.0], [1.0, -0.0]]
    """
    column = values.double().reshape(len(values), -1)
    if name not in PERIODS:
        return column
    angle = column * (math.tau / PERIODS[name])
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def informative(known: Look, test: Look) -> dict[str, tuple[Tensor, Tensor]]:
    """Latents that vary in both looks, by name, with the samples that have them, (N,) bool each."""
    found = {}
    for name in known.latents:
        has = [look.latents[name].reshape(len(look.labels), -1).isfinite().all(1) for look in (known, test)]
        values = [look.latents[name][rows] for look, rows in zip((known, test), has, strict=True)]
        if all(len(each) >= FEWEST and bool((each != each[0]).any()) for each in values):
            found[name] = (has[0], has[1])
    return found


@dataclass(frozen=True, eq=False)
class Linear:
    """Features to predictions: ((N, k) - shift) / spread times (k, d) weights, and (d,) intercept.

    ridge: that was chosen, in units of a standardised feature's variance.
    """

    shift: Tensor
    spread: Tensor
    weights: Tensor
    intercept: Tensor
    ridge: float

    def __call__(self, features: Tensor) -> Tensor:
        """(N, d) float64."""
        return (features.double() - self.shift) / self.spread @ self.weights + self.intercept


def covariance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues, (m,), and orthonormal eigenvectors, (D, m), of rows' products, (N, D) float64, divided by N.

    By the smaller of both products; all that are not 0 are among them. Rising; a vector of an eigenvalue of 0 may be 0.
    """
    samples, size = rows.shape
    if size <= samples:
        values, vectors = torch.linalg.eigh(rows.T @ rows / samples)
        return values.clamp_min(0.0), vectors
    values, vectors = torch.linalg.eigh(rows @ rows.T / samples)
    found = values > 1e-12 * values[-1]
    return torch.where(found, values, 0.0), torch.where(found, functional.normalize(rows.T @ vectors, dim=0), 0.0)


class Ridge:
    """Ridge regressions from the same features to any targets.

    Args:
        features: (N, k) finite, any scale; one that is constant counts nothing.

    Source: Hoerl and Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems".
    """

    def __init__(self, features: Tensor) -> None:
        self.cut = len(features) - max(1, int(VALIDATION * len(features)))
        rows = features.double()
        first = rows[: self.cut]
        self.shift, spread = first.mean(0), first.std(0, correction=0)
        self.spread = torch.where(spread > 1e-12 * (1.0 + self.shift.abs()), spread, torch.inf)
        self.rows = (rows - self.shift) / self.spread
        first = self.rows[: self.cut]
        self.values, self.vectors = covariance(first)

    def fitted(self, targets: Tensor, ridges: tuple[float, ...] = RIDGES) -> Linear:
        """The one with the least squared error on the last fifth of the samples, which none is fitted to.

        Args:
            targets: (N, d) finite.

        Example:
            >>> x = torch.linspace(-1, 1, 50)[torch.arange(50) * 7 % 50, None]
            >>> round(float(Ridge(x).fitted(3 * x + 1)(torch.tensor([[2.0]]))), 5)
            7.0
        """
        y = targets.double()
        intercept = y[: self.cut].mean(0)
        moments = self.vectors.T @ (self.rows[: self.cut].T @ (y[: self.cut] - intercept) / self.cut)
        least, best = torch.inf, None
        for ridge in ridges:
            weights = self.vectors @ (moments / (self.values + ridge)[:, None])
            error = float((self.rows[self.cut :] @ weights + intercept - y[self.cut :]).square().sum())
            if best is None or error < least:
                least, best = error, Linear(self.shift, self.spread, weights, intercept, ridge)
        assert best is not None
        return best


def r_squared(predicted: Tensor, true: Tensor) -> float:
    """1 - squared error / squared distance from the mean, of (N, d) values, both summed over d.

    1 is perfect, 0 is as good as the mean, and a fit that does harm is below.

    Example:
        >>> r_squared(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
        0.5
    """
    true, predicted = true.double(), predicted.double()
    return 1.0 - float((predicted - true).square().sum() / (true - true.mean(0)).square().sum())


@dataclass(frozen=True, eq=False)
class Principal:
    """(N, D) to (N, k) principal components.

    mean: (D,). components: (D, k), orthonormal. variances: (min(N, D),) float64, of all components, falling.
    rest: variance that the k components leave out.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.components

    @property
    def rest(self) -> float:
        return float(self.variances[self.components.shape[1] :].sum())


def principal_components(rows: Tensor, count: int) -> Principal:
    """The directions of most variance of (N, D) rows, by the eigenvectors of the smaller of both products.

    Args:
        count: of components, at most min(N - 1, D).

    Raises:
        InvalidValueError: more components than the rows have.
    """
    samples, size = rows.shape
    if count > min(samples - 1, size):
        raise InvalidValueError(
            f"{samples} samples of {size} values have at most {min(samples - 1, size)} principal components, "
            f"asked for {count}: take more samples, or a smaller latent"
        )
    mean = rows.double().mean(0)
    values, vectors = covariance(rows.double() - mean)
    values, vectors = values.flip(0), vectors.flip(1)[:, :count]
    return Principal(mean.to(rows.dtype), vectors.to(rows.dtype), values)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a representation tells: R² of each latent, and the share of classes that a linear probe gets right."""

    r_squared: Mapping[str, float]
    accuracy: float
    features: int

    @property
    def mean(self) -> float:
        """R², mean over the latents."""
        return sum(self.r_squared.values()) / max(1, len(self.r_squared))


def probed(known_features: Tensor, known: Look, test_features: Tensor, test: Look) -> Told:
    """Probes that are fitted to the known samples, told of the test samples.

    Args:
        known_features, test_features: (N, k) of the same representation.
    """
    found, whole = {}, Ridge(known_features)
    for name, (here, there) in informative(known, test).items():
        ridge = whole if bool(here.all()) else Ridge(known_features[here])
        model = ridge.fitted(target(name, known.latents[name][here]))
        found[name] = r_squared(model(test_features[there]), target(name, test.latents[name][there]))
    classes = int(max(known.labels.max(), test.labels.max())) + 1
    model = whole.fitted(functional.one_hot(known.labels, classes))
    right = model(test_features).argmax(1) == test.labels
    return Told(r_squared=found, accuracy=float(right.double().mean()), features=known_features.shape[1])


def draw_probes(path: Path, told: Mapping[str, Told], title: str) -> None:
    """R² by latent as bars, one colour for each representation; below them the accuracy of the class."""
    names = [*next(iter(told.values())).r_squared]
    groups = [*names, "class (accuracy)"]
    thick = 0.8 / len(told)
    figure = Figure(figsize=(7.6, 1.4 + 0.24 * len(told) * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, (name, each) in enumerate(told.items()):
        values = [*(each.r_squared[latent] for latent in names), each.accuracy]
        heights = [row + (place - (len(told) - 1) / 2) * thick for row in range(len(groups))]
        axes.barh(heights, values, thick, label=f"{name} ({each.features})")
        for height, value in zip(heights, values, strict=True):
            axes.text(max(value, 0.0) + 0.006, height, f"{value:.2f}", va="center", fontsize=7)
    least = min([0.0, *(value for each in told.values() for value in each.r_squared.values())])
    axes.set(xlim=(max(least, -0.25), 1.06), xlabel="R² of a linear probe, held-out samples", title=title)
    axes.set_yticks(range(len(groups)), groups)
    axes.axhline(len(names) - 0.5, color="0.7", linewidth=0.8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, title="features (number of them)", fontsize=8)
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))
