"""The experiments of `recipes.kaleidoscope` on points: one value, two values, and the loss over the cube."""

from __future__ import annotations

from typing import Any

import numpy as np
from fractal_streams.recipes.kaleidoscope_study import Cell, Place, Result, percent, rises, spread

from fractal_streams.kaleidoscope.animation import save_profile_animation, save_surface_animation
from fractal_streams.kaleidoscope.attractors import find_attractors
from fractal_streams.kaleidoscope.batched_points import grid
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.loss_range import loss_range_study
from fractal_streams.kaleidoscope.measures import basin_shares, fixed_points, frac, is_fitted, losses, source_radii
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.profiles import profile, save_profiles, trajectories
from fractal_streams.kaleidoscope.sources import points
from fractal_streams.kaleidoscope.surface import basins, loss_surface, save_basins, save_surface
from fractal_streams.kaleidoscope.training import Training

STEPS = (1, 3, 5, 10, 20, 50)
ONE, FOUR = (0.2, 0.8), ((0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))
NEAR = {1: 0.02, 2: 0.03}
"""How far from a source an iterate may be that came to it, by the number of values."""
CONSTANT_LOSS = 0.05
"""Mean squared error above which a network on .2 and .8 gives their middle, whatever it is given: that is .09."""


def one_value(place: Place) -> Result:
    """X = {.2, .8}: depth, width, first weights, and restarts where the README's width fails."""
    seeds, steps = place.asked.of_scale(4, 32, 64), place.asked.of_scale(400, 2000, 2000)
    depths = place.asked.of_scale((3, 7), (3, 5, 7, 10), (3, 5, 7, 10))
    plans: list[Any] = [(10, depth, "torch", 1) for depth in depths] + [(5, 7, "torch", 1), (5, 7, "torch", 8)]
    plans += place.asked.of_scale([], [(50, 3, "he", 1), (50, 10, "he", 1)], [(50, 3, "he", 1), (50, 10, "he", 1)])
    banks: dict[tuple[int, int, str, int], Kaleidoscope] = {}
    for hidden, depth, init, restarts in plans:
        network = Network(shape=(1,), hidden=hidden, n_linear=depth, head="sigmoid", init=init, data_scale=1.0)
        banks[hidden, depth, init, restarts] = place.bank(
            f"h{hidden}-l{depth}-{init}-k{restarts}", network, points(ONE), training_of(steps), models=seeds,
            restarts=restarts, whole=False,
        )  # fmt: skip
    found = {plan: measured(bank, STEPS) for plan, bank in banks.items()}
    rows = tuple(
        (
            str(hidden), str(depth), init, str(restarts), percent(part["fit"].mean()), percent(part["dead"].mean()),
            *(spread(part["frac"][part["fit"], number]) for number in range(len(STEPS))),
            percent(np.mean(part["two_stable"][part["fit"]])) if part["fit"].any() else "-",
        )
        for (hidden, depth, init, restarts), part in found.items()
    )  # fmt: skip
    heads = ("H", "layers", "init", "restarts", "fit", "constant", *(f"step {step}" for step in STEPS), "2 stable")
    table = Cell(
        title=f"Share of the range within {NEAR[1]} of a point behind so many steps, mean ± sd of the seeds that fit",
        heads=heads, rows=rows,
    )  # fmt: skip
    pictures = pictures_of_one(place, banks[10, 7, "torch", 1], found[10, 7, "torch", 1])
    return Result(
        said=said_of_one(found, depths, seeds), tables=(table,), pictures=pictures,
        figures={" ".join(map(str, plan)): listed(part) for plan, part in found.items()},
    )  # fmt: skip


def said_of_one(found: dict[Any, dict[str, Any]], depths: tuple[int, ...], seeds: int) -> tuple[str, ...]:
    """What the figures of one value say."""
    ten, five, best = (found[plan] for plan in ((10, 7, "torch", 1), (5, 7, "torch", 1), (5, 7, "torch", 8)))
    said = [
        f"With H=10 and 7 linear layers {percent(ten['fit'].mean())} of {seeds} seeds fit; in "
        f"{share_of(ten['two_stable'], ten['fit'])} of those exactly two fixed points attract, one at each point."
    ]
    if ten["fit"].any():
        one, ten_steps, last = (ten["frac"][ten["fit"], STEPS.index(step)] for step in (1, 10, 50))
        said.append(
            f"One application takes {spread(one, percent=True)} of the range to within {NEAR[1]} of a point (the flat "
            f"part), ten take {spread(ten_steps, percent=True)}, fifty {spread(last, percent=True)}."
        )
    said.append(
        f"With the README's H=5, {percent(five['fit'].mean())} of the seeds fit and {percent(five['dead'].mean())} "
        f"give a constant; of the best of 8 restarts each, {percent(best['fit'].mean())} fit."
    )
    third = [float(np.mean(found[10, depth, "torch", 1]["frac"][found[10, depth, "torch", 1]["fit"], 1]))
             if found[10, depth, "torch", 1]["fit"].any() else float("nan") for depth in depths]  # fmt: skip
    order = ", ".join(f"{share:.2f}" if np.isfinite(share) else "none that fits" for share in third)
    holds = "holds" if rises(np.round(third, 2).tolist()) else "does not hold in this run"
    holds = holds if np.isfinite(third).all() else "can't be told"
    said.append(
        f"That deeper is faster {holds}: behind 3 steps {order} of the range is there, with "
        f"{', '.join(map(str, depths))} linear layers."
    )
    if (50, 3, "he", 1) in found:
        shallow, deep = (part["frac"][part["fit"], 0] for part in (found[50, 3, "he", 1], found[50, 10, "he", 1]))
        same = len(shallow) and len(deep) and abs(deep.mean() - shallow.mean()) < 0.06
        said.append(
            f"With He's first weights and H=50 the flat part is {spread(shallow)} of the range with 3 layers and "
            f"{spread(deep)} with 10: {'there depth does not widen it' if same else 'depth widens it there too'}."
        )
    return tuple(said)


def pictures_of_one(place: Place, fitted: Kaleidoscope, part: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Profiles with trajectories, of the network of median loss among those that fit, and of all of them."""
    model = of_median_loss(part)
    alone = profile(fitted, models=[model], **place.common)
    travelled = trajectories(fitted, models=[model], steps=20, **place.common)
    save_profiles(place.folder / "profile.png", alone, travelled, title="X = {.2, .8}, H = 10, 7 linear layers")
    chosen = np.flatnonzero(part["fit"])
    made = [("profile.png", f"Loss with starts and iterates, and output, of seed {model}, that of median loss.")]
    if len(chosen) > 1:
        every = profile(fitted, models=chosen.tolist(), **place.common)
        save_profiles(place.folder / "profiles.png", every, title=f"{len(chosen)} seeds")
        made.append(("profiles.png", "Mean and span of all seeds that fit."))
    if place.films:
        save_profile_animation(place.folder / "profile.gif", fitted, model=model, **place.common)
        made.append(("profile.gif", "Ten starts, step by step."))
    return tuple(made)


def of_median_loss(part: dict[str, Any]) -> int:
    """The network whose loss is the median of those that fit, the lower one of two; of all, where none fits.

    Example:
        >>> of_median_loss({"loss": np.array([0.3, 0.1, 0.2, 9.0]), "fit": np.array([True, True, True, False])})
        2
    """
    fit = np.flatnonzero(part["fit"]) if np.any(part["fit"]) else np.arange(len(part["loss"]))
    return int(fit[np.argsort(part["loss"][fit], kind="stable")[(len(fit) - 1) // 2]])


def two_values(place: Place) -> Result:
    """Four points of the square, at two learning rates."""
    seeds, edge = place.asked.of_scale(2, 6, 12), place.asked.of_scale(11, 41, 41)
    plans = place.asked.of_scale(
        ((1e-3, 300),), ((1e-3, 2000), (1e-4, 4000)), ((1e-3, 2000), (1e-4, 4000))
    )  # fmt: skip
    network = Network(shape=(2,), hidden=50, n_linear=7, head="sigmoid", data_scale=1.0)
    found: dict[str, dict[str, Any]] = {}
    for rate, steps in plans:
        bank = place.bank(
            f"rate{rate:g}", network, points(FOUR), training_of(steps, rate), models=seeds, whole=False
        )  # fmt: skip
        found[f"{rate:g}"] = {**measured(bank, STEPS, edge), "bank": bank}
    rows = tuple(
        (
            rate, percent(part["fit"].mean()),
            *(spread(part["frac"][part["fit"], number]) for number in range(len(STEPS))),
            spread(part["radius"][part["fit"]].max(axis=1)) if part["fit"].any() else "-",
            spread(part["basins"][part["fit"]].min(axis=1)) if part["fit"].any() else "-",
        )
        for rate, part in found.items()
    )  # fmt: skip
    table = Cell(
        title=f"Share of a {edge} x {edge} grid within {NEAR[2]} of a point, mean ± sd of the seeds that fit",
        heads=("rate", "fit", *(f"step {step}" for step in STEPS), "largest radius", "smallest basin"), rows=rows,
    )  # fmt: skip
    last = next(iter(reversed(found.values())))
    figures = {rate: listed({key: value for key, value in part.items() if key != "bank"})
               for rate, part in found.items()}  # fmt: skip
    return Result(
        said=said_of_two(found, seeds), tables=(table,), pictures=pictures_of_two(place, last["bank"], last),
        figures=figures,
    )  # fmt: skip


def said_of_two(found: dict[str, dict[str, Any]], seeds: int) -> tuple[str, ...]:
    """What the figures of two values say."""
    said = []
    for rate, part in found.items():
        fit = part["fit"]
        if not fit.any():
            said.append(f"At the learning rate {rate} none of {seeds} seeds fits.")
            continue
        stable = (part["radius"][fit] < 1.0).all(axis=1)
        said.append(
            f"At the learning rate {rate} {percent(fit.mean())} of {seeds} seeds fit; in {percent(stable.mean())} of "
            f"those all four points attract. From a grid of starts {spread(part['frac'][fit, 0], percent=True)} are at "
            f"a point behind 1 step and {spread(part['frac'][fit, -1], percent=True)} behind {STEPS[-1]}; the smallest "
            f"of the four basins holds {spread(part['basins'][fit].min(axis=1), percent=True)} of them (a quarter each "
            f"would be even)."
        )
    return tuple(said)


def pictures_of_two(place: Place, bank: Kaleidoscope, part: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The loss surface with trajectories and the plane by its basins, of the network with the lowest loss."""
    model = int(np.argmin(part["loss"]))
    one = find_attractors(bank.one(model), chains=place.asked.of_scale(100, 1000, 2000), **place.common)
    travelled = trajectories(one, steps=15, **place.common)
    title = "four points, H = 50, 7 linear layers"
    save_surface(place.folder / "surface.png", loss_surface(one, **place.common), travelled, title=title)
    shown = basins(one, points=place.asked.of_scale(60, 300, 600), **place.common)
    save_basins(place.folder / "basins.png", shown, title=title)
    made = [("surface.png", "Loss over the square with starts and iterates."),
            ("basins.png", "The square by where its points end; darker is slower.")]  # fmt: skip
    if place.films:
        save_surface_animation(place.folder / "surface.gif", one, **place.common)
        made.append(("surface.gif", "Ten starts, step by step."))
    return tuple(made)


def loss_range(place: Place) -> Result:
    """The largest loss at a corner of the cube, against the number of points and of values."""
    of_scale = place.asked.of_scale
    counts = of_scale((1, 8), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), tuple(2**power for power in range(12)))
    sizes = of_scale((1, 2), (1, 2, 4, 8), (1, 2, 4, 8))
    found = loss_range_study(
        points=counts, dimensions=sizes, seeds=of_scale(2, 4, 8), steps=of_scale(100, 2000, 10_000),
        progress=not place.asked.quiet, **place.common,
    )  # fmt: skip
    found.save_csv(place.folder / "loss-range.csv")
    found.save_plot(place.folder / "loss-range.png")
    cells = {(count, size): found.values("corner_loss", points=count, dimension=size)
             for count in counts for size in sizes}  # fmt: skip
    rows = tuple((f"{count:,}", *(spread(cells[count, size], 3) for size in sizes)) for count in counts)
    said = ["The more points, the smaller the loss at the corners: the network turns into the identity, and what the "
            "kaleidoscope lives from is gone."]  # fmt: skip
    for size in sizes:
        small = next((count for count in counts if cells[count, size].mean() < 0.1), None)
        first, last = cells[counts[0], size].mean(), cells[counts[-1], size].mean()
        where = f"below 0.1 from {small:,} points on" if small else f"never below 0.1 up to {counts[-1]:,} points"
        said.append(f"Of {size} value{'s' * (size > 1)} it falls from {first:.3f} to {last:.3f}, {where}.")
    return Result(
        said=tuple(said), pictures=(("loss-range.png", "Largest loss at a corner, mean and deviation of the seeds."),),
        tables=(Cell(title="Largest loss at a corner, mean ± sd", heads=("points", *(f"d = {size}" for size in sizes)),
                     rows=rows),),
        figures={"rows": list(found.rows)},
    )  # fmt: skip


def training_of(steps: int, rate: float = 1e-3) -> Training:
    """The original program's, on all points at once."""
    return Training(steps=steps, learning_rate=rate, decay="constant", noise=0.0)


def measured(bank: Kaleidoscope, steps: tuple[int, ...], edge: int = 201) -> dict[str, Any]:
    """Figures of each network of a bank of points: arrays whose first axis is the network."""
    size = bank.network.size
    starts = grid(bank.network, edge)
    loss, radius = losses(bank), source_radii(bank)
    found = {
        "loss": loss, "fit": np.asarray(is_fitted(bank)), "dead": loss > CONSTANT_LOSS, "radius": radius,
        "frac": frac(bank, starts, steps, NEAR[size]),
        "basins": basin_shares(bank, starts, steps[-1], NEAR[size])[:, :-1],
    }  # fmt: skip
    if size == 1:
        table, stable = bank.source_values(0)[:, 0], []
        for each in fixed_points(bank):
            places = each.places[each.stable, 0]
            near = np.abs(places[:, None] - table).min(axis=1) <= NEAR[1] if len(places) else np.zeros(0, bool)
            stable.append(len(places) == len(table) and bool(near.all()))
        found["two_stable"] = np.array(stable)
    return found


def share_of(values: Any, chosen: Any) -> str:
    """The share of the chosen ones that have it."""
    return percent(values[chosen].mean()) if chosen.any() else "none"


def listed(part: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists that JSON holds."""
    return {name: np.asarray(values).tolist() for name, values in part.items()}
