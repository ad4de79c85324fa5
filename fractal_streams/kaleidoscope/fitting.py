"""Fitting: networks that give back their sources, as one batch, with the best weights kept."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.checkpoint import Checkpoint, held_interrupts, sources_digest
from fractal_streams.kaleidoscope.descent import Descent
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.identity import (
    CONSTANT,
    FitError as FitError,
    IdentityMapError as IdentityMapError,
    IdentityMapWarning as IdentityMapWarning,
    OnIdentity,
    reconstruction,
    refuse_dead,
    refuse_identity,
    unseen,
    variance_share,
)
from fractal_streams.kaleidoscope.network import Float32, Network, Tensors
from fractal_streams.kaleidoscope.sources import near_duplicates
from fractal_streams.kaleidoscope.training import Training as Training, number
from fractal_streams.spec import one_of, whole

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

OnDead = Literal["refuse", "allow"]
MAX_RUNS = 4096
COMPARED = 2000
"""Sources of a network that are compared with each other at most, in search of near-duplicates."""
NEAR = 0.05
CURVE = 200
"""Points of the loss curve that are told, at most."""


def fit(
    network: Network, sources: Sources, training: Training | None = None, *, models: int | None = None,
    restarts: int = 1, device: str = "auto", checkpoint: str | Path | None = None, checkpoint_seconds: float = 30.0,
    held_out: Any = None, on_identity: OnIdentity = "refuse", on_dead: OnDead = "refuse", progress: bool = False,
) -> Kaleidoscope:  # fmt: skip
    """Networks fitted to f(x) = x on their sources.

    Args:
        training: None is `Training()` of pictures, and without noise of points.
        models: networks of the bank; None is as many as the sources are of. Network m is the same in any bank, up to
            rounding: first weights depend on (seed, m), batches and noise are shared.
        restarts: K networks with other first weights for each, of which the best is kept.
        device: "auto", "cpu", "cuda" or "cuda:N".
        checkpoint: a .safetensors file, written every `checkpoint_seconds` and on the way out, that the same call goes
            on from; on a CPU to the bit as if it had never been interrupted.
        held_out: (H, *shape) pictures or points that are no sources, to tell identity maps by; None takes mirror images
            and blends of pictures, and does not look at points.
        on_identity: what is done if every network is an identity map, that is, if it gives back what it never saw with
            an error below a third of its distance to the sources: "refuse", "warn" or "allow".
        on_dead: "refuse" or "allow" that every network is a constant map.
        progress: a bar with steps per second, loss and the time left.

    `training` of the result has the settings and lists over the M networks: "loss", "score" (the mean squared error of
    the evaluation that chose the weights, with noise, over the range squared), "best_step", "restart", "dead" and
    "identity" (numbers of such networks), "held_out" (RMSE and distance to the nearest source), and "curve".

    Raises:
        InvalidValueError: settings or sources that don't fit. IdentityMapError, FitError: as said, with the remedy.
        WeightFileError: a damaged checkpoint. DeviceError: no such device.
        MissingExtraError: torch, tqdm for the bar, or what the kind of network needs, is not installed.

    Example:
        >>> from fractal_streams.kaleidoscope.sources import points
        >>> network = Network(shape=(1,), hidden=10, n_linear=5, head="sigmoid", data_scale=1.0)
        >>> fitted = fit(network, points([0.2, 0.8]), Training(steps=500, noise=0.0, decay="constant"), models=4)
        >>> fitted.models, min(fitted.training["loss"]) < 1e-4
        (4, True)
    """
    check_kinds(network, sources, training)
    chosen = training or Training(noise=0.3 if network.is_picture else 0.0)
    one_of(on_identity, "on_identity", ("refuse", "warn", "allow"))
    one_of(on_dead, "on_dead", ("refuse", "allow"))
    seconds = number(checkpoint_seconds, "checkpoint_seconds", 0.0, math.inf)
    count, restarts = checked_models(network, sources, models, restarts)
    values = values_of(network, sources)
    unseen(network, sources, held_out)
    runs, place = count * restarts, resolve_device(device)
    each = np.tile(values, (restarts, 1, 1)) if len(values) > 1 else values
    descent = Descent(network, chosen, each, runs, place)
    keeper = Checkpoint(
        path=None if checkpoint is None else Path(checkpoint), every=seconds,
        facts={
            "network": network.to_dict(), "training": chosen.to_dict(), "models": count, "restarts": restarts,
            "sources": sources_digest(sources),
        },
    )  # fmt: skip
    keeper.restore(descent)
    run(descent, keeper, progress)
    return verdict(descent, sources, count, held_out, on_identity, on_dead)


def check_kinds(network: Any, sources: Any, training: Any) -> None:
    """Refuse what is no network, no sources or no training."""
    for given, kind in ((network, Network), (sources, Sources), (training, Training | None)):
        if not isinstance(given, kind):
            raise InvalidValueError(f"fit takes a Network, Sources and a Training or None, got {type(given).__name__}")


def checked_models(network: Network, sources: Sources, models: int | None, restarts: int) -> tuple[int, int]:
    """M and the restarts, if they fit the sources and the kind of network."""
    parts = len(sources.data)
    count = whole(parts if models is None else models, "models", 1, MAX_RUNS, "networks")
    restarts = whole(restarts, "restarts", 1, MAX_RUNS, "networks each")
    runs = count * restarts
    if network.kind != "mlp" and runs > 1:
        raise InvalidValueError(
            f"kind={network.kind!r} is fitted one at a time, got models={count} and restarts={restarts}: fit others "
            f"with other seeds"
        )
    if runs > MAX_RUNS:
        raise InvalidValueError(f"models * restarts must be at most {MAX_RUNS}, got {count} * {restarts}")
    if parts not in (1, count):
        raise InvalidValueError(f"sources are of {parts} networks, got models={count}")
    return count, restarts


def values_of(network: Network, sources: Sources) -> Float32:
    """(S, N, D) values that the networks are to give back.

    Raises:
        InvalidValueError: another shape than the network's, or points outside its range.
    """
    if sources.data.shape[2:] != network.shape:
        raise InvalidValueError(f"sources have shape {sources.data.shape[2:]}, and the network {network.shape}")
    low, high = network.range
    if sources.data.dtype != np.uint8 and not low <= sources.data.min() <= sources.data.max() <= high:
        raise InvalidValueError(
            f"sources lie in [{sources.data.min():g}, {sources.data.max():g}], and head={network.head!r} has the range "
            f"[{low:g}, {high:g}]: move them into it, or take another head"
        )
    if network.is_picture and len(sources) <= COMPARED and (near := near_duplicates(sources, NEAR, span=network.span)):
        model, one, two, distance = near[0]
        warnings.warn(
            f"{len(near)} pairs of sources are nearer than {NEAR:g} of the range, such as {one} and {two} of network "
            f"{model} at {distance:.3f}: their basins may run into one; sources.distinct_indices leaves such out",
            stacklevel=3,
        )
    return network.values_of(sources.data)


def run(descent: Descent, keeper: Checkpoint, progress: bool) -> None:
    """Take a descent to its last step."""
    steps, every = descent.training.steps, descent.training.every
    if descent.done == steps:
        return
    with held_interrupts() as interrupts, contextlib.closing(Bar(descent, progress)) as bar:
        if not descent.done:
            descent.evaluate()
        while descent.done < steps and not interrupts:
            descent.advance()
            if descent.done % every == 0 or descent.done == steps:
                descent.evaluate()
            bar.show()
            keeper.keep(descent)
        keeper.keep(descent, now=True)
    if interrupts and descent.done < steps:
        raise KeyboardInterrupt


def verdict(
    descent: Descent, sources: Sources, models: int, held_out: Any, on_identity: OnIdentity, on_dead: OnDead
) -> Kaleidoscope:
    """The best networks of a descent, if anything came of them."""
    network, training, span = descent.network, descent.training, descent.network.span
    steps, curve = descent.scores_so_far()
    score = descent.best_score.cpu().numpy().reshape(-1, models)
    restart = score.argmin(axis=0)
    rows = restart * models + np.arange(models)
    tensors = {name: np.ascontiguousarray(array[rows]) for name, array in descent.best_tensors().items()}
    fitted = Kaleidoscope(network=network, tensors=tensors, sources=sources)
    targets = [fitted.source_values(model) for model in range(models)]
    outputs = applied(descent, tensors, targets)
    dead = np.array([variance_share(o[None], t[None])[0] < CONSTANT for o, t in zip(outputs, targets, strict=True)])
    diverged = ~np.isfinite(curve[-1].reshape(-1, models)).any(axis=0)
    if on_dead == "refuse":
        refuse_dead(network, training, dead, diverged)
    strange = unseen(network, sources, held_out)
    strange = strange * models if len(strange) == 1 else strange
    held = reconstruction(network, sources, strange, applied(descent, tensors, strange))
    refuse_identity(network, training, held, on_identity)
    loss = [np.square(o.astype(np.float64) - t).mean() / span**2 for o, t in zip(outputs, targets, strict=True)]
    thin = np.unique(np.linspace(0, len(steps) - 1, min(CURVE, len(steps))).astype(np.int64))
    told = {
        **training.to_dict(), "models": models, "restarts": descent.runs // models, "device": descent.device,
        "torch": str(torch.__version__), "loss": rounded(loss),
        "score": rounded(score[restart, np.arange(models)] / span**2),
        "best_step": descent.best_step.cpu().numpy()[rows].tolist(), "restart": restart.tolist(),
        "dead": np.flatnonzero(dead).tolist(), "identity": np.flatnonzero(held.is_identity).tolist(),
        "held_out": {"rmse": rounded(held.error), "distance": rounded(held.spacing)},
        "curve": {"steps": steps[thin].tolist(), "score": [rounded(row[rows] / span**2) for row in curve[thin]]},
    }  # fmt: skip
    return fitted.replace(training=told)


def applied(descent: Descent, tensors: Tensors, inputs: list[Float32]) -> list[Float32]:
    """Of each of M networks, the (n, D) outputs of (n, D) inputs of its own."""
    found = []
    with torch.no_grad():
        for model, values in enumerate(inputs):
            own = {
                name: torch.from_numpy(array[model : model + 1]).to(descent.device, descent.dtype)
                for name, array in tensors.items()
            }
            given = torch.from_numpy(values).to(descent.device, descent.dtype)
            parts = [descent.forward(own, part[None])[0].float().cpu() for part in given.split(1024)]
            found.append(torch.cat(parts).numpy() if len(given) else values)
    return found


def rounded(numbers: Any) -> list[float | None]:
    """Numbers as JSON holds them, to 6 digits; None for those that are none."""
    return [float(f"{number:.6g}") if np.isfinite(number) else None for number in np.asarray(numbers, np.float64)]


class Bar:
    """Steps per second, loss and the time left; the loss is fetched twice a second."""

    def __init__(self, descent: Descent, progress: bool) -> None:
        self.descent, self.bar = descent, None
        if not progress:
            return
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ImportError:
            raise missing_extra("tqdm", "kaleidoscope") from None
        self.bar = tqdm(
            desc="fitting", total=descent.training.steps, initial=descent.done, unit=" steps", mininterval=0.5,
            dynamic_ncols=True,
        )  # fmt: skip

    def show(self) -> None:
        """One step more."""
        if self.bar is not None and self.bar.update(1):
            self.bar.set_postfix(loss=self._loss(), refresh=False)

    def close(self) -> None:
        """Leave the bar as it is, with the last loss."""
        if self.bar is not None:
            self.bar.set_postfix(loss=self._loss())
            self.bar.close()

    def _loss(self) -> str:
        return f"{float(self.descent.loss.mean()) / self.descent.network.span**2:.2e}"
