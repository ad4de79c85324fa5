"""What a fitted network is worth: figures beside their controls, and words for them.

The distance of iterates to the nearest source says little alone: the mean of all sources, a grey blob, may lie nearer
to them than real data do. So it stands beside the distances of that mean, of class means, of blends of two sources and
of held-out data; and sources are kicked, to see whether they come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.attractors import (
    BACK,
    KICK,
    KICK_STEPS,
    MOST_CHAINS,
    PROBE,
    SAME,
    UNIFORM,
    Ends,
    barred,
    checked_probe,
    distances,
    find_attractors,
    joined_ends,
    key_of,
    kicked,
    kicked_ends,
)
from fractal_streams.kaleidoscope.batched_points import as_rows, nearest_rows
from fractal_streams.kaleidoscope.chain import Engine, Schedule
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Float32
from fractal_streams.kaleidoscope.quality_summary import figure, flags_of, quality_rows, summary_of, verdict_of
from fractal_streams.kaleidoscope.spectrum import spectral_radii
from fractal_streams.kaleidoscope.starts import Start
from fractal_streams.rng import Int64
from fractal_streams.spec import whole

__all__ = ["completed", "quality_rows", "report", "summary_of"]

NEAREST_STEPS = (0, 1, 3, 5, 10, 30, 100)
CURVE_STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300)
REST_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
RADIUS_QUANTILES = (0.0, 0.5, 0.95, 1.0)
NEAR = 0.02
"""A state within this RMSE over the range of a source is a copy of it."""
MOST_BLENDS, MOST_SOURCES = 500, 1000


def report(
    fitted: Kaleidoscope, *, engine: Engine | None = None, device: str = "auto", chains: int = 500,
    start: Start = UNIFORM, schedule: Schedule = PROBE, held_out: Sources | npt.NDArray[Any] | None = None,
    seed: int = 0, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The quality of each network of a bank, and the mean and standard deviation over them, as values that JSON holds.

    Distances are RMSE over the range. What is said of a network does not depend on the others of its bank. Of a network
    with more than 1,000 sources the kicks and spectral radii are of 1,000, evenly spaced.

    Args:
        engine: what applies the networks; None opens one in float32 on `device`.
        chains: of each network.
        start: where they start.
        schedule: how long they run, and when they rest.
        held_out: data of the same kind that no network was fitted to: `Sources`, or (N, *shape) for all networks.
        seed: of the starts and kicks.
        progress: whether to show a bar of networks.

    Returns:
        "settings"; "networks", a list with for each of them "reconstruction", "controls", "nearest", "kick",
        "spectral_radius", "ends", "steps_to_rest", "convergence", "flags" and "verdict"; "summary", the same tree with
        {"mean", "sd"} at its leaves, and a verdict on the means.

    Raises:
        InvalidValueError: a value out of its range, a schedule by which nothing rests, held-out data of another shape.
        MissingExtraError: torch, or tqdm for the bar, is not installed.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> network = Network(shape=(1,), hidden=1, n_linear=2, activation="identity", head="linear", data_scale=1.0)
        >>> halve = {"layers.0.weight": np.full((1, 1, 1), 0.5, np.float32), "layers.1.weight": np.ones((1, 1, 1), "f")}
        >>> halve |= {f"layers.{layer}.bias": np.zeros((1, 1), np.float32) for layer in (0, 1)}
        >>> middle = Sources(data=np.zeros((1, 1, 1), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
        >>> found = report(Kaleidoscope(network=network, tensors=halve, sources=middle), device="cpu", chains=50)
        >>> found["networks"][0]["kick"]["returned"], found["networks"][0]["spectral_radius"]["values"]
        (1.0, [0.5, 0.5, 0.5, 0.5])
    """
    chains = whole(chains, "chains", 1, MOST_CHAINS, "chains of each network")
    seed = whole(seed, "seed", 0, 2**64 - 1, "")
    checked_probe((start,), chains, schedule, SAME)
    rows = held_out_values(fitted, held_out)
    runs = engine_of(fitted, engine, device)
    networks = [
        network_report(runs, model, chains, start, schedule, rows[model % len(rows)] if rows else None, seed)
        for model in barred(range(fitted.models), "quality", progress)
    ]
    settings = {
        "chains": chains, "start": start.kind, "start_noise": start.noise, "most": schedule.most,
        "tolerance": schedule.tolerance, "same": SAME, "near": NEAR, "kick": KICK, "back": BACK,
        "kick_steps": KICK_STEPS, "seed": seed, "precision": runs.precision, "sources": len(fitted.sources),
    }  # fmt: skip
    return {"settings": settings, "networks": networks, "summary": summary_of(networks)}


def completed(
    fitted: Kaleidoscope, *, engine: Engine | None = None, device: str = "auto", chains: int = 2000,
    start: Start = UNIFORM, held_out: Sources | npt.NDArray[Any] | None = None, seed: int = 0, progress: bool = False,
) -> Kaleidoscope:  # fmt: skip
    """The kaleidoscope with its attractors, of `chains` chains, and its quality report, of at most 500 of them."""
    runs = engine_of(fitted, engine, device)
    found = find_attractors(fitted, engine=runs, chains=chains, start=start, seed=seed, progress=progress)
    quality = report(
        fitted, engine=runs, chains=min(chains, 500), start=start, held_out=held_out, seed=seed, progress=progress
    )
    return found.replace(quality=quality)


def held_out_values(fitted: Kaleidoscope, held_out: Sources | npt.NDArray[Any] | None) -> list[Float32]:
    """(N, D) values for each network, or one for all; none without data."""
    if held_out is None:
        return []
    data = held_out.data if isinstance(held_out, Sources) else np.asarray(held_out)[None]
    if data.shape[2:] != fitted.network.shape or len(data) not in (1, fitted.models) or not data.size:
        raise InvalidValueError(
            f"held-out data must be (N, {', '.join(map(str, fitted.network.shape))}) for all networks or for each of "
            f"{fitted.models}, got shape {data.shape[1:]} for {len(data)}"
        )
    return [fitted.network.values_of(rows) for rows in data]


def network_report(
    engine: Engine, model: int, chains: int, start: Start, schedule: Schedule, held_out: Float32 | None, seed: int
) -> dict[str, Any]:
    """What `report` says of one network."""
    fitted, span = engine.fitted, engine.fitted.network.span
    values, labels = fitted.source_values(model), fitted.sources.of_model(model)[1]
    steps = tuple(step for step in NEAREST_STEPS if step <= schedule.most)
    rows = np.full(chains, model)
    first = engine.starts(start, np.arange(chains), rows, key_of(seed, start))
    kept = Schedule(most=schedule.most, least=schedule.least, tolerance=schedule.tolerance, keep=steps)
    outcome = engine.run(first, rows, kept).numpy()
    ends = joined_ends(engine, model, as_rows(outcome.states), outcome.steps, schedule, SAME)
    some = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_SOURCES)).astype(np.int64))
    radii = spectral_radii(fitted, values[some], np.full(len(some), model), device=engine.device)
    again, blends = as_rows(engine.apply(values, np.full(len(values), model))), blends_of(values, seed)
    part: dict[str, Any] = {
        "model": model,
        "reconstruction": {
            "sources": figure(rms(again, values, span)),
            "held_out": None if held_out is None else figure(reconstruction(engine, model, held_out)),
            "blends": None if blends is None else figure(reconstruction(engine, model, blends)),
            "spread_of_outputs": figure(rms(again, again.mean(axis=0, dtype=np.float64), span)),
        },
        "controls": controls_of(values, labels, blends, held_out, span, engine.device),
        "nearest": nearest_of(outcome.kept, steps, values, labels, span, engine.device),
        "kick": kick_of(engine, model, some, seed),
        "spectral_radius": {
            "quantiles": list(RADIUS_QUANTILES),
            "values": [figure(value) for value in np.quantile(radii, RADIUS_QUANTILES)],
            "attracting": figure((radii < 1.0).mean()), "sources": len(some),
        },
        "ends": ends_figures(ends, values, labels, len(fitted.sources.titles), span, engine.device),
        "steps_to_rest": rest_quantiles(ends.steps),
        "convergence": convergence_of(outcome, ends, steps, schedule.most, span),
    }  # fmt: skip
    part["flags"] = flags_of(part)
    part["verdict"] = verdict_of(part)
    return part


def reconstruction(engine: Engine, model: int, values: Float32) -> float:
    """RMSE over the range of f(x) - x."""
    again = as_rows(engine.apply(values, np.full(len(values), model)))
    return rms(again, values, engine.fitted.network.span)


def rms(one: Any, other: Any, span: float) -> float:
    """Root of the mean square of all differences, over the range."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.square(np.asarray(one, np.float64) - other).mean()) / span)


def blends_of(values: Float32, seed: int) -> Float32 | None:
    """Means of two sources: of every two, or of 500 drawn pairs if there are more; None of one source."""
    count = len(values)
    if count < 2:
        return None
    if count * (count - 1) // 2 <= MOST_BLENDS:
        one, other = np.triu_indices(count, 1)
    else:
        words = rng.words(np.arange(MOST_BLENDS), rng.key("kaleidoscope-blends", seed))
        one = words[0].astype(np.int64) % count
        other = (one + 1 + words[1].astype(np.int64) % (count - 1)) % count
    return np.asarray(0.5 * (values[one] + values[other]), np.float32)


def controls_of(
    values: Float32, labels: Int64, blends: Float32 | None, held_out: Float32 | None, span: float, device: str
) -> dict[str, Any]:
    """Nearest-source distances of what is no sample of a kaleidoscope: what its own must be read beside.

    Class means are of classes with two sources and more. "spacing" is from a source to the nearest other one.
    """
    wide = values.astype(np.float64)
    groups = [wide[labels == label].mean(axis=0) for label in np.unique(labels) if (labels == label).sum() > 1]

    def mean_distance(rows: Any) -> float | None:
        return None if rows is None or not len(rows) else figure(nearest_rows(rows, values, span, device)[1].mean())

    apart = nearest_rows(values, values, span, device, others=True)[1] if len(values) > 1 else None
    return {
        "mean": mean_distance(wide.mean(axis=0)[None]), "class_means": mean_distance(groups and np.stack(groups)),
        "blends": mean_distance(blends), "held_out": mean_distance(held_out),
        "spacing": None if apart is None else {"least": figure(apart.min()), "median": figure(np.median(apart))},
        "spread": figure(rms(wide, wide.mean(axis=0), span)),
    }  # fmt: skip


def nearest_of(
    kept: Float32, steps: Sequence[int], values: Float32, labels: Int64, span: float, device: str
) -> dict[str, Any]:
    """Distances to the nearest source behind each of some steps, share of them within .02, share of the top class."""
    mean, near, top = [], [], []
    for number in range(len(steps)):
        place, distance = nearest_rows(kept[:, number], values, span, device)
        mean.append(figure(distance.mean()))
        near.append(figure((distance <= NEAR).mean()))
        top.append(figure(np.bincount(labels[place]).max() / len(place)))
    return {"steps": list(steps), "mean": mean, "within": near, "top_class": top}


def kick_of(engine: Engine, model: int, some: Int64, seed: int) -> dict[str, Any]:
    """Share of sources from which a kicked state comes back, near which an unkicked one stays; and what is left.

    "left" is the median distance between the two in the end over the kick's: near 0 kicks are forgotten, at 1 they are
    kept, as by an identity map, of whose kicked states about half count as come back.
    """
    values, span = engine.fitted.source_values(model)[some], engine.fitted.network.span
    ends, plain = (kicked_ends(engine, model, some, seed, size) for size in (KICK, 0.0))
    kicks = distances(kicked(engine.fitted, model, some, seed), values, span)
    return {
        "returned": figure((distances(ends, values, span) <= BACK).mean()),
        "stayed": figure((distances(plain, values, span) <= BACK).mean()),
        "left": figure(np.median(distances(ends, plain, span) / np.maximum(kicks, 1e-12))), "sources": len(some),
    }  # fmt: skip


def ends_figures(
    ends: Ends, values: Float32, labels: Int64, classes: int, span: float, device: str
) -> dict[str, Any]:  # fmt: skip
    """Figures of where chains end; shares are of all chains, entropy (nats) is of those at rest."""
    chains, rest = len(ends.member), int(ends.count.sum())
    share = ends.count / max(rest, 1)
    place, distance = nearest_rows(ends.states, values, span, device) if rest else (np.zeros(0, int), np.zeros(0))
    copies = distance <= NEAR
    held = np.bincount(labels[place], weights=ends.count, minlength=classes) / chains
    return {
        "distinct": len(ends.states), "at_rest": figure(rest / chains), "unresolved": figure(1.0 - rest / chains),
        "largest_basin": figure(ends.count.max(initial=0) / chains),
        "entropy": figure(-(share * np.log(share)).sum()) if rest else None,
        "reached_sources": len(np.unique(place[copies])), "copies": figure(ends.count[copies].sum() / chains),
        "classes": [figure(value) for value in held],
    }  # fmt: skip


def rest_quantiles(steps: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Quantiles of the steps to rest, of the chains that do."""
    rest = steps[steps >= 0]
    found = np.quantile(rest, REST_QUANTILES) if len(rest) else [None] * len(REST_QUANTILES)
    return {"quantiles": list(REST_QUANTILES), "values": [None if value is None else figure(value) for value in found]}


def convergence_of(outcome: Any, ends: Ends, steps: Sequence[int], most: int, span: float) -> dict[str, Any]:
    """The share of chains at rest behind each of some steps, and how far those that will rest lie from their ends."""
    marks = [step for step in CURVE_STEPS if step <= most]
    rest = ends.steps >= 0
    at_rest = [figure((rest & (ends.steps <= step)).mean()) for step in marks]
    there = np.asarray(outcome.states)[rest]
    away = [rms(outcome.kept[rest, number], there, span) if rest.any() else None for number in range(len(steps))]
    return {
        "steps": marks, "at_rest": at_rest, "distance_steps": list(steps),
        "distance_to_end": [None if value is None else figure(value) for value in away],
    }  # fmt: skip
