"""What depth does: networks of several depths, plain and denoising, over seeds, each with its quality report.

The original program says that deeper networks map more of the space to the data. Here it is measured: how fast chains
come to the sources, how many sources attract, and how many different ends are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.plots import BLUE, FAINT, INKS, ORANGE, bare, page, save_page
from fractal_streams.kaleidoscope.tables import Row, Table, progress_bar, save_csv
from fractal_streams.spec import whole

DEPTHS, NOISES = (3, 5, 7, 10), (0.0, 0.3)
STEPS = (1, 3, 5, 10, 30, 100)
"""Applications behind which the share of chains at a source is told."""
FIGURES = (
    "error", *(f"frac_{step}" for step in STEPS), "returned", "distinct_ends", "reached_sources", "largest_basin",
    "copies", "at_rest", "radius_median", "radius_most", "steps_to_rest",
)  # fmt: skip
PANELS = (
    ("error", "RMSE at the sources, of the range", (0.0, None)),
    ("frac_10", "chains at a source behind 10 steps", (0.0, 1.04)),
    ("frac_100", "chains at a source behind 100 steps", (0.0, 1.04)),
    ("returned", "sources that attract", (0.0, 1.04)),
    ("distinct_ends", "distinct ends", (0.0, None)),
    ("reached_sources", "sources reached", (0.0, None)),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Study(Table):
    """A row for each network.

    "depth" (linear layers), "noise" (of training, halves of the span), "model" (of the bank of seeds); "constant",
    whether it collapsed to a constant map; "error", RMSE at the sources over the range; "frac_K", the share of chains
    within .02 of a source behind K steps; "returned", the share of sources that come back from a kick;
    "distinct_ends"; "reached_sources", sources where a chain ended; "largest_basin", its share of chains; "copies",
    chains that end within .02 of a source; "at_rest", chains that rest; "radius_median" and "radius_most", spectral
    radii at the sources; "steps_to_rest", their median; "flags", see `quality_summary.flags_of`. sources: their number.
    """

    rows: tuple[Row, ...]
    sources: int

    def summary(self) -> list[Row]:
        """A row for each noise and depth: "networks", "constant", the share of those that collapsed to a constant map,
        and of each figure mean and standard deviation over the others."""
        keys = ("noise", "depth")
        kept = Table(rows=tuple(row for row in self.rows if not row["constant"])).means(keys, FIGURES)
        known = {tuple(row[key] for key in keys): row for row in kept}
        unknown = {name + ending: float("nan") for name in FIGURES for ending in ("", "_sd")}
        found = []
        for row in self.means(keys, ("constant",)):
            first = {key: row[key] for key in (*keys, "networks", "constant")}
            found.append({**first, **known.get(tuple(row[key] for key in keys), unknown), **first})
        return found

    def save_summary(self, path: str | Path) -> Path:
        """Write `summary` as CSV; the file appears whole or not at all."""
        return save_csv(path, self.summary())

    def save_plot(self, path: str | Path, *, title: str = "") -> Path:
        """Write a PNG of six panels against depth: a point for each network, a line through the means; a cross, which
        no mean counts, for each that collapsed to a constant map.

        Raises:
            InvalidValueError: another ending.
            MissingExtraError: matplotlib is not installed.
        """
        figure = page(10.5, 6.0)
        noises = list(dict.fromkeys(row["noise"] for row in self.rows))
        depths = sorted({row["depth"] for row in self.rows})
        for axes, (name, words, (least, most)) in zip(figure.subplots(2, 3).ravel(), PANELS, strict=True):
            for number, noise in enumerate(noises):
                ink = (BLUE, ORANGE, *INKS[2:])[number % 6]
                columns = [self.values(name, noise=noise, depth=depth, constant=False) for depth in depths]
                beside = 0.02 * ((depths[-1] - depths[0]) or 1) * (number - 0.5 * (len(noises) - 1))
                for place, column in zip(depths, columns, strict=True):
                    axes.plot([place + beside] * len(column), column, "o", ms=3.5, color=ink, alpha=0.45, mew=0)
                    lost = self.values(name, noise=noise, depth=place, constant=True)
                    if len(lost):
                        axes.plot([place + beside] * len(lost), lost, "x", ms=4.5, color=ink, mew=1.2, clip_on=False)
                means = [column.mean() if len(column) else float("nan") for column in columns]
                axes.plot(depths, means, "-", color=ink, lw=1.8, label=f"noise {noise:g}" if noise else "plain")
            if name == "reached_sources":
                axes.axhline(self.sources, color=FAINT, lw=0.9, ls="--")
                axes.annotate("all", (1.0, self.sources), (2, 0), xycoords=("axes fraction", "data"),
                              textcoords="offset points", fontsize=8, va="center")  # fmt: skip
            if most is None and name != "error":
                axes.locator_params(axis="y", integer=True)
            axes.set_xticks(depths)
            axes.set_xlabel("linear layers", fontsize=9)
            axes.set_title(words, fontsize=10)
            axes.set_ylim(least, most)
            bare(axes)
        if any(row["constant"] for row in self.rows):
            figure.axes[0].plot([], [], "x", ms=4.5, color=FAINT, mew=1.2, label="constant map")
        figure.axes[0].legend(frameon=False, fontsize=9)
        if title:
            figure.suptitle(title, fontsize=11)
        return save_page(path, figure)


def depth_study(
    sources: Sources, *, depths: Sequence[int] = DEPTHS, seeds: int = 3, noises: Sequence[float] = NOISES,
    hidden: int = 256, network: Network | None = None, training: Any = None, chains: int = 500, device: str = "auto",
    progress: bool = False,
) -> Study:  # fmt: skip
    """Fit a bank of networks for each noise and depth, and report on each network.

    Args:
        sources: that all are fitted to.
        depths: linear layers, 2 to 256 each.
        seeds: networks of each bank, 1 to 256: with first weights of their own, and the same batches and noise.
        noises: of training, halves of the span; 0 is plain reconstruction.
        hidden: units of each hidden layer.
        network: whose head, activation, first weights and data scale are taken; None is `network_of`.
        training: a `Training` whose noise is replaced; None is its defaults.
        chains: of each network, from uniform noise.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: bars.

    Raises:
        InvalidValueError: a value out of its range.
        MissingExtraError: torch, or tqdm for the bars, is not installed.
    """
    from fractal_streams.kaleidoscope.fitting import fit
    from fractal_streams.kaleidoscope.quality import report
    from fractal_streams.kaleidoscope.training import Training

    whole(seeds, "seeds", 1, 256, "networks")
    if not len(depths) or not len(noises):
        raise InvalidValueError("depths and noises must name at least one each")
    first = (network or network_of(sources)).replace(hidden=hidden)
    kinds = [first.replace(n_linear=depth) for depth in depths]
    settings = [(training or Training()).replace(noise=noise) for noise in noises]
    rows: list[Row] = []
    with progress_bar(len(kinds) * len(settings), "depth study", "banks", progress) as bar:
        for chosen, kind in itertools.product(settings, kinds):
            fitted = fit(
                kind, sources, chosen, models=seeds, device=device, on_identity="allow", on_dead="allow",
                progress=progress,
            )  # fmt: skip
            told = report(fitted, device=device, chains=chains, seed=chosen.seed)
            rows += rows_of(fitted, told)
            bar.update(1)
    return Study(rows=tuple(rows), sources=len(sources))


def network_of(sources: Sources) -> Network:
    """The network that a study has if it is not told: of pictures with a tanh and a data scale of .8; of points without
    shrinking, with a sigmoid if none is below 0, else a tanh."""
    shape = tuple(sources.data.shape[2:])
    if len(shape) == 3:
        return Network(shape=shape)
    return Network(shape=shape, head="sigmoid" if sources.data.min() >= 0 else "tanh", data_scale=1.0)


def rows_of(fitted: Kaleidoscope, told: Mapping[str, Any]) -> list[Row]:
    """A row for each network of a bank, from its report."""
    return [
        {
            "depth": fitted.network.n_linear, "noise": fitted.training["noise"],
            "constant": part["model"] in fitted.training["dead"], **row_of(part),
        }
        for part in told["networks"]
    ]  # fmt: skip


def row_of(part: Mapping[str, Any]) -> Row:
    """The figures of one network."""
    near, ends, radius = part["nearest"], part["ends"], part["spectral_radius"]
    within = dict(zip(near["steps"], near["within"], strict=True))
    radii = dict(zip(radius["quantiles"], radius["values"], strict=True))
    rest = dict(zip(part["steps_to_rest"]["quantiles"], part["steps_to_rest"]["values"], strict=True))
    return {
        "model": part["model"], "error": part["reconstruction"]["sources"],
        **{f"frac_{step}": within[step] for step in STEPS}, "returned": part["kick"]["returned"],
        "distinct_ends": ends["distinct"], "reached_sources": ends["reached_sources"],
        "largest_basin": ends["largest_basin"], "copies": ends["copies"], "at_rest": ends["at_rest"],
        "radius_median": radii[0.5], "radius_most": radii[1.0], "steps_to_rest": rest[0.5],
        "flags": " ".join(part["flags"]),
    }  # fmt: skip
