"""The experiments of `recipes.kaleidoscope` on pictures: digits, 1,000 pictures, depth, and basin maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fractal_streams.recipes.kaleidoscope_study import Cell, Place, Result, percent, spread

from fractal_streams import open_stream
from fractal_streams.contact_sheet import contact_sheet, save_png
from fractal_streams.kaleidoscope.basin_boundary import uncertainty
from fractal_streams.kaleidoscope.basin_stream import BasinSpec, BasinStream
from fractal_streams.kaleidoscope.chains_picture import save_chains, save_strip
from fractal_streams.kaleidoscope.depth import Study, depth_study
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.quality_page import save_quality
from fractal_streams.kaleidoscope.sources import distinct_indices, of_stream, of_torchvision, split
from fractal_streams.kaleidoscope.training import Training
from fractal_streams.presets import PRESETS

SHOWN = (0, 1, 2, 3, 5, 10, 20, 30, 100)
HEADS = (
    "recipe", "pictures", "networks", "RMSE", "distance at 0", "1", "10", "100", "attract", "copies", "distinct ends",
    "reached", "largest class", "the mean", "class means", "held-out",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One bank of an experiment on pictures: what is told of it, its network, training, and how many sources it has."""

    name: str
    words: str
    network: Network
    training: Training
    count: int


def digits(place: Place) -> Result:
    """MNIST, or grey fractals of 28 x 28: the original's settings, and denoising, also of few pictures."""
    of_scale, mnist = place.asked.of_scale, place.asked.mnist
    count, few = of_scale(24, 500, 60_000 if mnist else 2000), of_scale(8, 50, 50)
    edge, held = of_scale(8, 28, 28), of_scale(4, 100, 500)
    found = of_torchvision("mnist", mnist, count=count + held, height=edge) if mnist else None
    sources, others = split(found or of_fractals("fractal-mnist", count + held, edge, edge, grey=True), count)
    hidden, depth = of_scale(32, 256, 500), of_scale(4, 11, 11)
    network = Network(shape=(1, edge, edge), hidden=hidden, n_linear=depth, data_scale=1.0)
    steps, rate, batch = of_scale(60, 2000, 10_000), of_scale(1e-3, 3e-4, 1e-4), of_scale(None, 250, 1000)
    plain = Training(steps=steps, learning_rate=rate, batch=batch, decay="constant", noise=0.0)
    shallow = Network(shape=(1, edge, edge), hidden=hidden, n_linear=of_scale(3, 5, 5))
    denoising = Training(steps=steps, batch=batch)
    plans = (
        Plan(name="plain", words="the original's", network=network, training=plain, count=count),
        Plan(name="denoising", words="denoising", network=shallow, training=denoising, count=count),
        Plan(name="few", words="denoising, few pictures", network=shallow,
             training=denoising.replace(batch=None, steps=of_scale(60, 3000, 8000)), count=few),
    )  # fmt: skip
    return of_plans(place, plans, sources, others)


def thousand_pictures(place: Place) -> Result:
    """1,000 dogs of CIFAR-10, or 1,000 coloured fractals of 32 x 32."""
    of_scale, root = place.asked.of_scale, place.asked.cifar
    edge = of_scale(8, 16, 32)
    return of_thousand(
        place, (edge, edge), of_scale(32, 256, 2000), "fractal-10",
        None if root is None else lambda count: of_torchvision(
            "cifar10", root, count=count, classes=("dog",), height=edge
        ),
    )  # fmt: skip


def faces(place: Place) -> Result:
    """1,000 faces of CelebA, or 1,000 pictures of all formulas, 39 x 32."""
    of_scale, root = place.asked.of_scale, place.asked.celeba
    size = of_scale((10, 8), (20, 16), (39, 32))
    return of_thousand(
        place, size, of_scale(32, 256, 1000), "fractal-families",
        None if root is None else lambda count: of_torchvision(
            "celeba", root, count=count, height=size[0], width=size[1]
        ),
    )  # fmt: skip


def of_thousand(place: Place, size: tuple[int, int], hidden: int, stream: str, stored: Any) -> Result:
    """The original's settings with 11 linear layers, and denoising, on as many pictures."""
    of_scale = place.asked.of_scale
    count, held = of_scale(16, 200, 1000), of_scale(4, 50, 200)
    found = stored(count + held) if stored else of_fractals(stream, count + held, *size)
    sources, others = split(found, min(count, len(found) - 1))
    network = Network(shape=(3, *size), hidden=hidden, n_linear=of_scale(4, 11, 11), data_scale=1.0)
    steps = of_scale(60, 2000, 10_000)
    plain = Training(
        steps=steps, learning_rate=of_scale(1e-3, 3e-4, 1e-4), decay="constant", noise=0.0,
        batch=of_scale(None, 100, None),
    )  # fmt: skip
    denoising = Training(steps=steps, learning_rate=of_scale(1e-3, 1e-3, 3e-4), batch=plain.batch)
    shallow = network.replace(n_linear=of_scale(3, 5, 5), data_scale=0.8)
    plans = (
        Plan(name="plain", words="the original's", network=network, training=plain, count=count),
        Plan(name="denoising", words="denoising", network=shallow, training=denoising, count=count),
    )  # fmt: skip
    return of_plans(place, plans, sources, others)


def of_fractals(name: str, count: int, height: int, width: int, grey: bool = False) -> Sources:
    """The first pictures of a stream of which no two are nearly the same."""
    stream = open_stream(PRESETS[name], height=height, width=width, device="cpu")
    return of_stream(stream, distinct_indices(stream, count, grey=grey), grey=grey)


def of_plans(place: Place, plans: tuple[Plan, ...], sources: Sources, others: Sources) -> Result:
    """Fit each plan's bank, one network where it is as large as that for CIFAR; draw it and tell what it does."""
    models = place.asked.of_scale(2, 3, 3 if plans[0].network.hidden < 2000 else 1)
    rows, said, pictures, figures = [], [], [], {}
    for plan in plans:
        own = sources if plan.count >= len(sources) else split(sources, plan.count)[0]
        bank = place.bank(plan.name, plan.network, own, plan.training, models=models, held_out=others)
        told = bank.quality or {}
        rows.append(row_of(plan, bank, told))
        said.append(sentence(plan, told["networks"], len(own)))
        figures[plan.name] = told["summary"]
        pictures += draw(place, plan, bank)
    origin = dict(sources.origin)
    what = origin.get("name") or dict(origin.get("stream", {})).get("spec", {}).get("formulas", ["pictures"])
    from_where = what if isinstance(what, str) else "this package's own streams"
    said.insert(0, f"The pictures are of {from_where}, {' x '.join(map(str, plans[0].network.shape))}.")
    table = Cell(
        title="Distances are RMSE over the range to the nearest source, behind so many steps from uniform noise; "
        "beside them those of the mean picture, of class means and of held-out pictures (mean ± sd of the networks)",
        heads=HEADS, rows=tuple(rows),
    )  # fmt: skip
    return Result(said=tuple(said), tables=(table,), pictures=tuple(pictures), figures=figures)


def column(networks: Any, *path: str | int) -> list[float]:
    """One figure of the report of each network, of those that have it."""
    found = []
    for part in networks:
        for key in path:
            part = None if part is None else part[key]
        if part is not None:
            found.append(float(part))
    return found


def at_step(networks: Any, name: str, step: int) -> list[float]:
    """A figure of chains behind so many steps."""
    place = networks[0]["nearest"]["steps"].index(step)
    return column(networks, "nearest", name, place)


def row_of(plan: Plan, bank: Kaleidoscope, told: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a bank in the table."""
    networks = told["networks"]
    return (
        f"{plan.words}, {plan.network.n_linear} layers of {plan.network.hidden}", f"{len(bank.sources):,}",
        str(bank.models), spread(column(networks, "reconstruction", "sources"), 3),
        *(spread(at_step(networks, "mean", step), 3) for step in (0, 1, 10, 100)),
        spread(column(networks, "kick", "returned"), percent=True),
        spread(column(networks, "ends", "copies"), percent=True),
        spread(column(networks, "ends", "distinct"), 0), spread(column(networks, "ends", "reached_sources"), 0),
        spread(at_step(networks, "top_class", 100), percent=True),
        *(spread(column(networks, "controls", name), 3) for name in ("mean", "class_means", "held_out")),
    )  # fmt: skip


def sentence(plan: Plan, networks: Any, count: int) -> str:
    """What the figures of a bank say."""
    first, last = (np.mean(at_step(networks, "mean", step)) for step in (1, 100))
    back, blob = np.mean(column(networks, "kick", "returned")), np.mean(column(networks, "controls", "mean"))
    course = "falls" if last < 0.95 * first else "rises" if last > 1.05 * first else "stays as it is"
    nearer = "nearer than" if last < 0.9 * blob else "about as far as" if last < 1.1 * blob else "farther than"
    end = np.mean(column(networks, "ends", "copies"))
    return (
        f"{plan.words.capitalize()}, {count:,} pictures, {plan.network.n_linear} linear layers of "
        f"{plan.network.hidden}: the distance to the nearest source {course} over the steps ({spread([first], 3)} "
        f"behind 1, {spread([last], 3)} behind 100), "
        f"{nearer} the mean picture lies ({spread([blob], 3)}). {percent(float(back))} of the sources attract, and "
        f"{percent(float(end))} of the chains end in a copy of one."
    )


def draw(place: Place, plan: Plan, bank: Kaleidoscope) -> list[tuple[str, str]]:
    """Chains as a strip and a film, and the page of the report."""
    of_scale, folder = place.asked.of_scale, place.folder
    title = f"{plan.words}, {plan.network.n_linear} layers"
    save_strip(folder / f"{plan.name}-chains.png", bank, iterates=SHOWN, chains=of_scale(3, 8, 10), **place.common)
    save_quality(
        folder / f"{plan.name}-quality.png", bank, chains=of_scale(50, 300, 500), steps=of_scale(10, 60, 60),
        title=title, **place.common,
    )  # fmt: skip
    made = [(f"{plan.name}-chains.png", f"{title}: chains, and the nearest source of their ends."),
            (f"{plan.name}-quality.png", f"{title}: the report.")]  # fmt: skip
    if place.films:
        save_chains(folder / f"{plan.name}.gif", bank, **place.common)
        made.append((f"{plan.name}.gif", f"{title}: 48 chains, step by step."))
    return made


def depth(place: Place) -> Result:
    """The same pictures at 3, 5, 7 and 10 linear layers, plain and denoising, over seeds."""
    of_scale, edge = place.asked.of_scale, place.asked.of_scale(8, 16, 16)
    sources = of_fractals("fractal-10", of_scale(8, 50, 50), edge, edge, grey=True)
    found = depth_study(
        sources, depths=of_scale((3, 4), (3, 5, 7, 10), (3, 5, 7, 10)), seeds=of_scale(2, 3, 5),
        hidden=of_scale(32, 256, 256), training=Training(steps=of_scale(60, 4000, 8000)),
        chains=of_scale(50, 500, 1000), progress=not place.asked.quiet, **place.common,
    )  # fmt: skip
    found.save_csv(place.folder / "depth.csv")
    found.save_plot(place.folder / "depth.png", title=f"{len(sources)} fractals of {edge} x {edge}")
    names = ("error", "frac_10", "frac_30", "frac_100", "returned", "reached_sources", "distinct_ends", "largest_basin",
             "radius_median", "steps_to_rest")  # fmt: skip
    rows = tuple(
        (f"{noise:g}", str(layers), *(spread(found.values(name, noise=noise, depth=layers)) for name in names))
        for noise, layers in kinds_of(found)
    )
    table = Cell(
        title="Mean ± sd of the seeds; frac: share of chains within .02 of a source behind so many steps",
        heads=("noise", "layers", "RMSE", "frac 10", "frac 30", "frac 100", "attract", "reached", "distinct ends",
               "largest basin", "median radius", "steps to rest"), rows=rows,
    )  # fmt: skip
    return Result(
        said=said_of_depth(found), tables=(table,), figures={"rows": list(found.rows)},
        pictures=(("depth.png", "A point for each network, lines through the means."),),
    )  # fmt: skip


def kinds_of(found: Study) -> list[tuple[float, int]]:
    """(noise, layers) of a study, in its order."""
    return list(dict.fromkeys((row["noise"], row["depth"]) for row in found.rows))


CLAIMS = (
    ("frac_10", 1, "deeper networks come to the sources in fewer steps (share there behind 10)"),
    ("frac_100", 1, "deeper networks' samples are nearer to the data (share at a source behind 100 steps)"),
    ("returned", 1, "more of the sources attract"),
    ("reached_sources", -1, "fewer different sources are reached, the price that the original does not name"),
    ("error", -1, "deeper networks give the sources back better"),
)
"""Figure, the sign that the claim gives its course with depth, and the claim."""


def said_of_depth(found: Study) -> tuple[str, ...]:
    """For each claim, whether it holds: from fewest to most layers, beyond the seeds' spread."""
    said = []
    for noise in dict.fromkeys(row["noise"] for row in found.rows):
        layers = [depth for each, depth in kinds_of(found) if each == noise]
        words = f"With noise {noise:g}" if noise else "Without noise"
        for name, sign, claim in CLAIMS:
            columns = [found.values(name, noise=noise, depth=depth) for depth in layers]
            course = ", ".join(spread(one) for one in columns)
            said.append(f"{words}, {claim}: {judged(columns[0], columns[-1], sign)} "
                        f"({course} at {', '.join(map(str, layers))} layers).")  # fmt: skip
        ends = found.values("returned", noise=noise)
        said.append(f"{words}, {percent(float(ends.mean()))} of the sources attract over all depths and seeds.")
    return tuple(said)


def judged(shallow: Any, deep: Any, sign: int) -> str:
    """Whether a figure changes as a claim has it, by more than both standard deviations together, and as it is printed.

    Example:
        >>> judged(np.array([0.1, 0.2]), np.array([0.8, 0.9]), 1), judged(np.array([0.1, 0.9]), np.array([0.5, 0.6]), 1)
        ('holds', 'no difference beyond the spread over the seeds')
    """
    change, noise = sign * (deep.mean() - shallow.mean()), float(shallow.std() + deep.std())
    same = spread([shallow.mean()]) == spread([deep.mean()])
    if same or not np.isfinite(change) or abs(change) <= max(noise, 1e-12):
        return "no difference beyond the spread over the seeds"
    return "holds" if change > 0 else "does not hold, it is the other way"


def basin_maps(place: Place) -> Result:
    """Planes through the inputs of a network, coloured by where they end: plain and denoising."""
    of_scale, edge = place.asked.of_scale, place.asked.of_scale(8, 16, 16)
    sources = of_fractals("fractal-10", of_scale(8, 50, 200), edge, edge, grey=True)
    network = Network(shape=(1, edge, edge), hidden=of_scale(32, 256, 256), n_linear=of_scale(3, 7, 7))
    count, pixels = of_scale(2, 12, 24), of_scale(16, 128, 256)
    spec = BasinSpec(height=pixels, width=pixels, most=of_scale(20, 300, 300))
    rows, said, pictures, figures = [], [], [], {}
    for name, noise in (("plain", 0.0), ("denoising", 0.3)):
        training = Training(steps=of_scale(60, 4000, 6000), noise=noise)
        bank = place.bank(name, network, sources, training, models=of_scale(1, 2, 4))
        stream = BasinStream(spec, fitted=bank, **place.common)
        batch = stream.generate(range(count)).numpy()
        save_png(place.folder / f"{name}.png", contact_sheet(batch.images, scale=1))
        pictures.append((f"{name}.png", f"{name.capitalize()}: planes through three sources, at their boundaries."))
        whole = BasinStream(spec.replace(max_depth=0), fitted=bank, **place.common)
        found = boundary_dimensions(whole, of_scale(2, 6, 12), of_scale(200, 2000, 20_000))
        ends = 0 if bank.attractors is None else len(bank.attractors)
        latents = batch.latents
        rows.append((
            name, str(bank.models), str(ends), spread(latents["ends_in_view"], 1), spread(found),
            spread(latents["edge_share"], percent=True), spread(latents["unresolved_share"], percent=True),
        ))  # fmt: skip
        figures[name] = {"attractors": ends, "dimensions": found}
        told = f"is {spread(found)} over {len(found)} planes (a smooth line has 1)"
        none = "can't be told: on each plane too few points change their end"
        said.append(f"{name.capitalize()}: the boundary's dimension {told if found else none}.")
    plain, smooth = (np.array(figures[name]["dimensions"]) for name in ("plain", "denoising"))
    if len(plain) and len(smooth):
        verdict = judged(smooth, plain, 1).replace("the seeds", "the planes")
        said.append(f"The plain networks' boundaries are rougher: {verdict}.")
    table = Cell(
        title="Mean ± sd of the maps; the dimension is 2 minus the uncertainty exponent, of whole planes",
        heads=("bank", "networks", "attractors", "ends in a map", "dimension", "edges", "at none"), rows=tuple(rows),
    )  # fmt: skip
    return Result(said=tuple(said), tables=(table,), pictures=tuple(pictures), figures=figures)


def boundary_dimensions(stream: BasinStream, count: int, points: int) -> list[float]:
    """Of the boundary on some planes of a stream, of those on which enough points change their end."""
    index = np.arange(count)
    found = [
        uncertainty(
            stream.fitted, plane, model=int(model), points=points, rule=stream.rule, engine=stream.engine
        ).dimension
        for plane, model in zip(stream.planes(index), stream.model_of(index), strict=True)
    ]  # fmt: skip
    return [value for value in found if np.isfinite(value)]
