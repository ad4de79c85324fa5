"""Chains that a command line asks for: run, and told of in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.batch import as_array
from fractal_streams.cli_kaleidoscope_sheets import PICTURES, TABLES
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.engines import open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.starts import Jitter, Start
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream

COPY = 0.02
"""An end within this RMSE over the range of a source is a copy of it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is sampled."""

    address: str
    count: int
    first: int
    start: Start
    steps: int
    tolerance: float
    jitter: Jitter | None
    every: int | None
    stratified: bool
    seed: int
    device: str
    precision: Any

    @property
    def iterates(self) -> tuple[int, ...]:
        """Those that are shown; none where only ends are."""
        return () if self.every is None else tuple(range(0, self.steps + 1, self.every))

    @property
    def line(self) -> str:
        """It in a few words."""
        noise = f" + {self.start.noise:g}" if self.start.noise else ""
        shaken = f", jitter {self.jitter.size:g} {self.jitter.kind}" if self.jitter else ""
        return f"{self.start.kind}{noise} noise, at most {self.steps} steps{shaken}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Drawn:
    """Chains that have run, as NumPy arrays.

    table: name to (B,) values. values: (B, D) ends of points, or (B, T, D) iterates; None of pictures.
    images: (B, 3, H, W) uint8 ends of pictures, or (B, T, 3, H, W) iterates; None of points.
    """

    table: dict[str, npt.NDArray[Any]]
    titles: tuple[str, ...]
    values: npt.NDArray[np.float32] | None = None
    images: npt.NDArray[np.uint8] | None = None


def pictures_of(fitted: Kaleidoscope, asked: Asked, out: Path | None) -> Drawn:
    """Samples of a stream, as pictures."""
    from fractal_streams.contact_sheet import check_sheet

    shown = asked.iterates
    if out is not None and out.suffix.lower() in PICTURES:
        check_sheet((*((len(shown),) if shown else ()), 3, *fitted.network.shape[1:]), asked.count)
    clips: Any = {"mode": "clips", "iterate": 0, "stride": asked.every, "frames": len(shown)} if shown else {}
    noise: Any = {"jitter": asked.jitter.size, "jitter_kind": asked.jitter.kind} if asked.jitter else {}
    spec = KaleidoscopeSpec(
        precision=asked.precision, start=asked.start.kind, start_noise=asked.start.noise, most=asked.steps,
        tolerance=asked.tolerance, stratified=asked.stratified, **clips, **noise,
    )  # fmt: skip
    stream = KaleidoscopeStream(spec, fitted=fitted, seed=asked.seed, device=asked.device)
    batch = stream.generate(range(asked.first, asked.first + asked.count)).numpy()
    names = ("chain", "model", "steps", "change", "attractor", "source", "nearest_distance")
    table = {name: np.asarray(batch.latents[name]) for name in names}
    return Drawn({**table, "label": np.asarray(batch.labels)}, stream.titles, images=np.asarray(batch.images))


def points_of(fitted: Kaleidoscope, asked: Asked, out: Path | None) -> Drawn:
    """Ends or iterates of chains of points."""
    if out is not None and out.suffix.lower() not in TABLES:
        raise InvalidValueError(
            f"--out {str(out)!r}: {asked.address} is of points, which are written as .npz or .csv; "
            f"kaleidoscope gif and analyse draw them"
        )
    if asked.stratified:
        raise InvalidValueError(f"--stratified is of pictures, {asked.address} is of points")
    engine = open_engine(fitted, asked.device, asked.precision)
    chains = np.arange(asked.first, asked.first + asked.count, dtype=np.int64)
    models = chains % fitted.models

    def key_of(*names: Any) -> tuple[int, int]:
        return rng.key("kaleidoscope-points", asked.seed, *names)

    schedule = Schedule(most=asked.steps, tolerance=asked.tolerance, keep=asked.iterates, jitter=asked.jitter)
    first = engine.starts(asked.start, chains, models, key_of)
    outcome = engine.run(first, models, schedule, chains=chains, key_of=key_of).numpy()
    source, distance = np.zeros(len(chains), np.int64), np.zeros(len(chains), np.float32)
    for model in np.unique(models):
        here = models == model
        place, away = engine.nearest(outcome.states[here], fitted.source_values(int(model)))
        source[here], distance[here] = as_array(place), as_array(away)
    labels = fitted.sources.labels[models if len(fitted.sources.labels) > 1 else 0, source]
    values = outcome.kept if asked.iterates else outcome.states
    table = {
        "chain": chains, "model": models, "steps": outcome.steps, "change": outcome.change, "source": source,
        "nearest_distance": distance, "label": labels,
    }  # fmt: skip
    return Drawn(table, fitted.sources.titles, values=np.asarray(fitted.network.data_of(values)))


def summary(drawn: Drawn, fitted: Kaleidoscope, asked: Asked) -> list[str]:
    """What became of the chains, in a few lines."""
    table, count = drawn.table, len(drawn.table["chain"])
    steps, distance = table["steps"], table["nearest_distance"].astype(np.float64)
    rest = steps[steps >= 0]
    lines = [f"at rest    {len(rest) / count:.1%}"]
    if len(rest):
        low, middle, high = np.quantile(rest, (0.0, 0.5, 1.0)).round().astype(int)
        lines[0] += f", behind {low} to {high} steps, half of them within {middle}"
    lines.append(
        f"distance   {np.median(distance):.3g} of the range to the nearest source (median), most {distance.max():.3g}"
    )
    near = table["nearest_distance"] <= COPY
    kinds = {
        (model if len(fitted.sources.data) > 1 else 0, source)
        for model, source in zip(table["model"][near].tolist(), table["source"][near].tolist(), strict=True)
    }
    total = len(fitted.sources) * len(fitted.sources.data)
    lines.append(f"copies     {near.mean():.1%} within {COPY:g} of a source, of {len(kinds)} of {total:,} sources")
    if "attractor" in table and fitted.attractors is not None:
        known = table["attractor"][table["attractor"] >= 0]
        top = np.bincount(known).max() / count if len(known) else 0.0
        lines.append(
            f"ends       at {len(np.unique(known))} of {len(fitted.attractors)} attractors, {top:.1%} at one; "
            f"{1 - len(known) / count:.1%} at none"
        )
    shares = np.bincount(table["label"], minlength=len(drawn.titles)) / count
    ranked = sorted(zip(drawn.titles, shares, strict=True), key=lambda item: -item[1])[:5]
    told = ", ".join(f"{title} {share:.0%}" for title, share in ranked if share)
    return [*lines, f"classes    {told}{', ...' if (shares > 0).sum() > 5 else ''}"]
