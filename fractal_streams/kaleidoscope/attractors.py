"""Where the iterates of a network end: chains from noise, and sources that come back after a kick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.batched_points import as_rows, clusters, nearest_rows
from fractal_streams.kaleidoscope.chain import Engine, Schedule
from fractal_streams.kaleidoscope.engines import engine_of
from fractal_streams.kaleidoscope.fitted import Attractors, Kaleidoscope
from fractal_streams.kaleidoscope.network import Float32
from fractal_streams.kaleidoscope.starts import KeyOf, Start, normal_table
from fractal_streams.rng import Int64
from fractal_streams.spec import whole

PROBE = Schedule(most=300, tolerance=1e-4)
"""Of chains whose ends are told apart: finer than what a stream needs, so that slow ones stand where they end."""
UNIFORM = Start()
SAME = 0.01
"""End states within this RMSE over the range are one."""
KICK, BACK, KICK_STEPS = 0.02, 0.02, 100
"""A kick's standard deviation over the range, how near it must come back, and after how many steps."""
MOST_ENDS, MOST_CHAINS = 1000, 8192


@dataclass(frozen=True, eq=False)
class Ends:
    """Where the chains of one network end: K states, by falling count.

    states: (K, D) float32. count: (K,) int64 chains that rest there.
    member: (B,) int64, the state at which each chain ended, -1 of one that never rested.
    steps: (B,) int32, the step behind which each chain rested, or -1.
    """

    states: Float32
    count: Int64
    member: Int64
    steps: npt.NDArray[np.int32]


def find_attractors(
    fitted: Kaleidoscope, *, engine: Engine | None = None, device: str = "auto", chains: int = 2000,
    start: Start | Sequence[Start] = UNIFORM, schedule: Schedule = PROBE, tolerance: float = SAME,
    most: int = MOST_ENDS, seed: int = 0, progress: bool = False,
) -> Kaleidoscope:  # fmt: skip
    """The kaleidoscope with its table of attractors.

    Chains from `start` run until they rest, and their ends are joined greedily: the end with most others within
    `tolerance` takes them, and so on. Sources that return after a kick, and where no chain ended, follow with share 0.
    What is found for a network does not depend on the others of its bank.

    Args:
        engine: what applies the networks; None opens one in float32 on `device`.
        chains: of each network, from each start.
        start: one or several.
        schedule: how long chains run and when they rest.
        tolerance: RMSE over the range, in (0, 1).
        most: attractors of a network at most, those of largest share; a chain that ends elsewhere ends at none.
        seed: of the starts and kicks.
        progress: whether to show a bar of networks.

    Raises:
        InvalidValueError: a value out of its range, or a schedule by which nothing rests.
        MissingExtraError: torch, or tqdm for the bar, is not installed.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> network = Network(shape=(1,), hidden=1, n_linear=2, activation="identity", head="linear", data_scale=1.0)
        >>> halve = {"layers.0.weight": np.full((1, 1, 1), 0.5, np.float32), "layers.1.weight": np.ones((1, 1, 1), "f")}
        >>> halve |= {f"layers.{layer}.bias": np.zeros((1, 1), np.float32) for layer in (0, 1)}
        >>> middle = Sources(data=np.zeros((1, 1, 1), np.float32), labels=np.zeros((1, 1), np.int64), titles=("0",))
        >>> fitted = Kaleidoscope(network=network, tensors=halve, sources=middle)
        >>> find_attractors(fitted, device="cpu", chains=100).attractors.share
        array([1.], dtype=float32)
    """
    starts = tuple(start) if isinstance(start, list | tuple) else (start,)
    chains = whole(chains, "chains", 1, MOST_CHAINS, "chains of each network")
    most = whole(most, "most", 1, MOST_CHAINS, "attractors of a network")
    seed = whole(seed, "seed", 0, 2**64 - 1, "")
    checked_probe(starts, chains, schedule, tolerance)
    runs = engine_of(fitted, engine, device)
    tables = [
        of_model(runs, model, starts, chains, schedule, tolerance, most, seed)
        for model in barred(range(fitted.models), "attractors", progress)
    ]
    return fitted.replace(attractors=joined(tables))


def checked_probe(starts: Sequence[Start], chains: int, schedule: Schedule, tolerance: float) -> None:
    """Refuse what can't tell ends apart."""
    if not starts or not all(isinstance(one, Start) for one in starts):
        raise InvalidValueError(f"start must be a Start or several, got {starts!r}")
    if len(starts) * chains > MOST_CHAINS:
        raise InvalidValueError(f"at most {MOST_CHAINS} chains of a network, got {chains} from {len(starts)} starts")
    if not isinstance(schedule, Schedule) or schedule.tolerance <= 0.0:
        raise InvalidValueError(
            f"chains end where they rest: the schedule's tolerance must be above 0, got {schedule!r}"
        )
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0.0 < tolerance < 1.0:
        raise InvalidValueError(f"tolerance must lie in (0, 1) of the range, got {tolerance!r}")


def key_of(seed: int, start: Start) -> KeyOf:
    """Names the draws of a start: those of two starts are unrelated, those of two networks the same."""
    return lambda *names: rng.key("kaleidoscope-probe", seed, start.kind, str(start.noise), *names)


def of_model(
    engine: Engine, model: int, starts: Sequence[Start], chains: int, schedule: Schedule, tolerance: float, most: int,
    seed: int,
) -> Attractors:  # fmt: skip
    """The attractors of one network of the bank."""
    numbers, rows = np.arange(chains), np.full(chains, model)
    first = np.concatenate([as_rows(engine.starts(one, numbers, rows, key_of(seed, one))) for one in starts])
    ends = ends_of(engine, model, first, schedule, tolerance)
    states, share = ends.states[:most], ends.count[:most] / len(first)
    values, span = engine.fitted.source_values(model), engine.fitted.network.span
    if len(states) < most:
        far = np.flatnonzero(nearest_rows(values, states, span, engine.device)[1] > tolerance) if len(states) else None
        further = unreached(engine, model, np.arange(len(values)) if far is None else far, schedule, tolerance, seed)
        if len(states) and len(further):
            further = further[nearest_rows(further, states, span, engine.device)[1] > tolerance]
        states = np.concatenate([states, further[: most - len(states)]])
        share = np.concatenate([share, np.zeros(len(states) - len(share))])
    source, distance = nearest_rows(states, values, span, engine.device)
    return Attractors(
        states=as_rows(states), model=np.full(len(states), model, np.int32), source=source.astype(np.int32),
        distance=distance.astype(np.float32), share=share.astype(np.float32),
    )  # fmt: skip


def ends_of(engine: Engine, model: int, first: Float32, schedule: Schedule, tolerance: float) -> Ends:
    """Run chains of one network and join those at rest.

    The middle of each cluster runs on to a hundredth of the schedule's tolerance, and those that meet are joined too.
    """
    outcome = engine.run(first, np.full(len(first), model), schedule).numpy()
    return joined_ends(engine, model, as_rows(outcome.states), outcome.steps, schedule, tolerance)


def joined_ends(
    engine: Engine, model: int, states: Float32, steps: npt.NDArray[np.int32], schedule: Schedule, tolerance: float
) -> Ends:
    """`ends_of`, of chains that have run."""
    span, member = engine.fitted.network.span, np.full(len(states), -1, np.int64)
    rests = np.flatnonzero((steps >= 0) & np.isfinite(states).all(axis=1))
    middles, first_member = clusters(states[rests], tolerance, span, device=engine.device)
    finer = Schedule(most=schedule.most, tolerance=0.01 * schedule.tolerance)
    settled = states[rests[middles]]
    if len(settled):
        settled = as_rows(engine.run(settled, np.full(len(settled), model), finer).states)
    count = np.bincount(first_member, minlength=len(middles))
    chosen, second_member = clusters(settled, tolerance, span, weights=count, device=engine.device)
    member[rests] = second_member[first_member]
    return Ends(settled[chosen], np.bincount(member[rests], minlength=len(chosen)), member, steps)


def unreached(engine: Engine, model: int, sources: Int64, schedule: Schedule, tolerance: float, seed: int) -> Float32:
    """(K, D) where some sources rest that return after a kick, each state once."""
    values, span = engine.fitted.source_values(model)[sources], engine.fitted.network.span
    if not len(sources):
        return values
    ends = kicked_ends(engine, model, sources, seed)
    back = ends[distances(ends, values, span) <= BACK]
    if not len(back):
        return back
    return ends_of(engine, model, back, schedule, tolerance).states


def kicked_ends(engine: Engine, model: int, sources: Int64, seed: int, size: float = KICK) -> Float32:
    """(B, D): 100 steps behind some sources of a network with normal noise on each."""
    first, never = kicked(engine.fitted, model, sources, seed, size), Schedule(most=KICK_STEPS, tolerance=0.0)
    return as_rows(engine.run(first, np.full(len(first), model), never).states)


def kicked(fitted: Kaleidoscope, model: int, sources: Int64, seed: int, size: float = KICK) -> Float32:
    """(B, D): some sources of a network with normal noise on each, whose standard deviation is a part of the range."""
    values = fitted.source_values(model)[sources]
    drawn = normal_table(sources, values.shape[1], rng.key("kaleidoscope-kick", seed)) if size else 0.0
    return np.asarray(values + size * fitted.network.span * drawn, np.float32)


def distances(one: Any, other: Any, span: float) -> npt.NDArray[np.float64]:
    """(B,) RMSE over the range between rows; infinite where one isn't finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.sqrt(np.square(np.asarray(one, np.float64) - other).mean(axis=1)) / span
    return np.asarray(np.where(np.isnan(found), np.inf, found))


def joined(tables: Sequence[Attractors]) -> Attractors:
    """The tables of networks, one behind another."""
    names = ("states", "model", "source", "distance", "share")
    return Attractors(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def barred(items: Iterable[int], title: str, progress: bool) -> Iterator[int]:
    """The items, behind a progress bar if asked for."""
    if not progress:
        yield from items
        return
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("tqdm", "cli") from None
    yield from tqdm(items, title, unit=" networks", dynamic_ncols=True)
