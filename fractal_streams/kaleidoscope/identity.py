"""Fits that lead nowhere: networks that give one output for all inputs, and networks that give back every input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import FractalStreamsError, InvalidValueError
from fractal_streams.kaleidoscope.fitted import Sources
from fractal_streams.kaleidoscope.network import Float32, Float64, Network
from fractal_streams.kaleidoscope.training import Training

OnIdentity = Literal["refuse", "warn", "allow"]
CONSTANT = 0.02
"""A network whose outputs' variance over the sources is below this part of the sources' own is a constant map."""
IDENTITY = 1.0 / 3.0
"""A network that gives back pictures that it never saw with an error below this part of their distance to the nearest
source is an identity map: iterating it leads nowhere."""
SEEN = 0.02
"""A picture nearer to a source than this part of the range counts as seen."""
ASKED = 64
"""Sources of each network that unseen pictures are made of."""


class FitError(FractalStreamsError, RuntimeError):
    """A fit that no kaleidoscope comes of."""


class IdentityMapError(FitError):
    """A network that gives back every input."""


class IdentityMapWarning(UserWarning):
    """A network that gives back every input, which the caller allows."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Reconstruction of pictures that were never seen, of each of M networks; NaN if there are none.

    error: (M,) RMSE over the range between them and the outputs.
    spacing: (M,) RMSE over the range between them and their nearest sources.
    """

    error: Float64
    spacing: Float64

    @property
    def is_identity(self) -> npt.NDArray[np.bool_]:
        """(M,) whether the error is far below the spacing."""
        return np.asarray(self.error < IDENTITY * self.spacing)


def variance_share(outputs: Float32, targets: Float32) -> Float64:
    """(M,) variance of (M, N, D) outputs over the sources, as a share of the targets'; infinite of equal targets."""
    own = targets.astype(np.float64).var(axis=1).mean(axis=1)
    found = outputs.astype(np.float64).var(axis=1).mean(axis=1)
    return np.asarray(np.where(own > 0.0, found / np.where(own > 0.0, own, 1.0), np.inf))


def unseen(network: Network, sources: Sources, held_out: Any) -> list[Float32]:
    """For each part of the sources, (H, D) values that its networks never saw.

    Args:
        held_out: (H, *shape) data, or None: of pictures their mirror images and the means of neighbours; of points
            nothing.
    """
    parts = []
    for data in sources.data:
        if held_out is not None:
            given = np.asarray(held_out)
            known = given.dtype == np.uint8 or given.dtype.kind == "f"
            if given.shape[1:] != network.shape or not len(given) or not known:
                raise InvalidValueError(
                    f"held_out must be (H, {', '.join(map(str, network.shape))}) uint8 or floats, got {given.dtype} of "
                    f"shape {given.shape}"
                )
            values = network.values_of(given)
        elif network.is_picture:
            some = data[np.unique(np.linspace(0, len(data) - 1, min(ASKED, len(data))).astype(np.int64))]
            plain = network.values_of(some)
            mirrored = network.values_of(some[..., ::-1])
            values = np.concatenate([mirrored, 0.5 * (plain + np.roll(plain, 1, axis=0))])
        else:
            values = np.empty((0, network.size), np.float32)
        far = nearest_distance(values, network.values_of(data)) >= SEEN * network.span
        parts.append(np.asarray(values[far], np.float32))
    return parts


def nearest_distance(values: Float32, table: Float32) -> Float64:
    """(H,) RMSE between (H, D) values and the nearest of (N, D), in values."""
    rows, known = values.astype(np.float64), table.astype(np.float64)
    squares = (rows**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2.0 * rows @ known.T
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1, initial=np.inf), 0.0) / table.shape[1]))


def reconstruction(network: Network, sources: Sources, inputs: list[Float32], outputs: list[Float32]) -> HeldOut:
    """How well M networks give back (H, D) inputs of their own, from (H, D) outputs."""
    error, spacing = np.full(len(inputs), np.nan), np.full(len(inputs), np.nan)
    for model, (given, found) in enumerate(zip(inputs, outputs, strict=True)):
        if len(given):
            table = network.values_of(sources.of_model(model)[0])
            error[model] = np.sqrt(np.square(found.astype(np.float64) - given).mean()) / network.span
            spacing[model] = np.sqrt(np.square(nearest_distance(given, table)).mean()) / network.span
    return HeldOut(error, spacing)


def refuse_dead(
    network: Network, training: Training, dead: npt.NDArray[np.bool_], diverged: npt.NDArray[np.bool_]
) -> None:
    """A `FitError` if not one network came to anything."""
    if not (dead | diverged).all():
        return
    count = len(dead)
    if diverged.any():
        raise FitError(
            f"the loss of {diverged.sum()} of {count} networks is no number any more: use a learning_rate below "
            f"{training.learning_rate:g}"
        )
    raise FitError(
        f"{'the network' if count == 1 else f'each of {count} networks'} became a constant map (its outputs' variance "
        f"over the sources is below {CONSTANT:.0%} of theirs): pass restarts=8, which keeps the best of 8, more than "
        f"{network.hidden} hidden units, init='he', or more than {training.steps} steps; on_dead='allow' keeps it"
    )


def refuse_identity(network: Network, training: Training, held: HeldOut, on_identity: OnIdentity) -> None:
    """An `IdentityMapError`, or a warning, if each network is an identity map."""
    found = held.is_identity
    if on_identity == "allow" or not found.all():
        return
    error, spacing = float(held.error.max()), float(held.spacing[held.error.argmax()])
    remedy = "pass Training(noise=0.3)" if training.noise < 0.3 else "pass more noise, or fewer hidden units"
    other = "" if network.kind == "bottleneck" else ", or use kind='bottleneck'"
    said = (
        f"{'this network' if len(found) == 1 else f'each of {len(found)} networks'} is an identity map: it gives back "
        f"pictures that it never saw with an RMSE of {error:.3f} of the range, where their nearest sources are "
        f"{spacing:.3f} away, so iterating it leads nowhere; {remedy}{other}; on_identity='allow' keeps it"
    )
    if on_identity == "refuse":
        raise IdentityMapError(said)
    warnings.warn(said, IdentityMapWarning, stacklevel=3)
