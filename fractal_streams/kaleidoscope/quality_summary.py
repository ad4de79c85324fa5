"""A quality report in few figures and in words: over the networks of a bank, and for a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fractal_streams.kaleidoscope.identity import CONSTANT, IDENTITY

FIXED = ("steps", "distance_steps", "quantiles")
"""Lists that say where the figures beside them were taken."""
MOST, HALF = 0.9, 0.5
BLOB_SHARE = 0.8
"""Ends at this part of a mean's distance, and beyond, are no nearer to the sources than a blob."""


def figure(value: Any) -> float | None:
    """A float of six digits; None of one that isn't finite, which JSON can't hold."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def summary_of(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tree of each network's figures with {"mean", "sd"} over the networks for each number; and words on the means.

    "flags" are the share of networks that have each.
    """
    left_out = ("model", "verdict", "flags")
    parts = [{name: value for name, value in part.items() if name not in left_out} for part in networks]
    found: dict[str, Any] = spread(parts)
    names = sorted({name for part in networks for name in part["flags"]})
    means = mean_tree(found)
    found["flags"] = {name: figure(np.mean([name in part["flags"] for part in networks])) for name in names}
    found["networks"] = len(networks)
    found["verdict"] = verdict_of({**means, "flags": [name for name in names if found["flags"][name] > HALF]})
    return found


def spread(parts: Sequence[Any]) -> Any:
    """Numbers become {"mean", "sd"} of those that aren't None; lists and trees keep their form."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, Mapping):
        return {
            key: first[key] if key in FIXED else spread([part[key] for part in known]) for key in first
        }  # fmt: skip
    if isinstance(first, list):
        return [spread([part[place] for part in known]) for place in range(len(first))]
    return {"mean": figure(np.mean(known)), "sd": figure(np.std(known))}


def mean_tree(tree: Any) -> Any:
    """What `spread` made, with the mean for each number."""
    if isinstance(tree, Mapping):
        return tree["mean"] if set(tree) == {"mean", "sd"} else {key: mean_tree(value) for key, value in tree.items()}
    return [mean_tree(value) for value in tree] if isinstance(tree, list) else tree


def off_sources(part: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """What tells the identity from a projection: data off the sources, their error, their distance to the nearest."""
    for name, words in (("held_out", "held-out data"), ("blends", "blends of two sources")):
        error, distance = part["reconstruction"][name], part["controls"][name]
        if error is not None and distance:
            return words, error, distance
    return None


def flags_of(part: Mapping[str, Any]) -> list[str]:
    """What is remarkable about a network: "constant", "identity", "memorises", "blobs", "collapsed", "restless".

    constant: sources all have one output. identity: data off the sources have an error far below their distance to the
    nearest source, and kicks aren't forgotten. memorises: chains end in copies of sources. blobs: they end no
    nearer to sources than a mean of sources lies. collapsed: half of them end in one state, thrice its fair share.
    restless: a tenth and more never rest.
    """
    ends, controls, beside = part["ends"], part["controls"], off_sources(part)
    found = []
    outputs, own = part["reconstruction"]["spread_of_outputs"], controls["spread"]
    if own and outputs is not None and outputs**2 < CONSTANT * own**2:
        found.append("constant")
    left = part["kick"]["left"]
    if beside and beside[1] < IDENTITY * beside[2] and (left is None or left > HALF):
        found.append("identity")
    if ends["copies"] >= MOST:
        found.append("memorises")
    means = [controls[name] for name in ("mean", "class_means") if controls[name]]
    last = part["nearest"]["mean"][-1]
    if means and last is not None and ends["copies"] < HALF and last >= BLOB_SHARE * min(means):
        found.append("blobs")
    if ends["largest_basin"] > max(HALF, 3.0 / part["kick"]["sources"]):
        found.append("collapsed")
    if ends["unresolved"] >= 1.0 - MOST:
        found.append("restless")
    return found


def verdict_of(part: Mapping[str, Any]) -> str:
    """Sentences that say what the figures mean together, and what to do."""
    flags, ends, beside = part["flags"], part["ends"], off_sources(part)
    last, step = part["nearest"]["mean"][-1], part["nearest"]["steps"][-1]
    said = []
    if "constant" in flags:
        said.append(
            "It gives the same whatever it is given: it isn't fitted. Fit again with restarts, more units or steps."
        )
    if "identity" in flags and beside:
        said.append(
            f"It learnt the identity: {beside[0]} come out with an error of {shown(beside[1])}, though they lie "
            f"{shown(beside[2])} from the nearest source, and kicks are kept ({shown(part['kick']['left'])} of their "
            f"size is left). Iterating it leads nowhere: fit with noise, or with a bottleneck."
        )
    if "memorises" in flags:
        said.append(
            f"It memorises: {percent(ends['copies'])} of chains end in a copy of a source, and "
            f"{percent(part['kick']['returned'])} of kicked sources come back. What it shows at rest are its sources: "
            f"don't share it if they are private."
        )
    elif ends["copies"] > 0.0:
        said.append(f"{percent(ends['copies'])} of chains end in a copy of a source.")
    if "blobs" in flags:
        said.append(
            "Its ends are no nearer to the sources than a mean of sources is, so they are blends, not samples: fit "
            "with noise, for longer, or to fewer sources."
        )
    if "collapsed" in flags:
        said.append(f"{percent(ends['largest_basin'])} of chains end in one state.")
    if "restless" in flags:
        said.append(f"{percent(ends['unresolved'])} of chains never rest.")
    others = [
        f"{words} at {shown(part['controls'][name])}"
        for name, words in (
            ("mean", "the mean of all sources"), ("class_means", "class means"), ("blends", "blends of two"),
            ("held_out", "held-out data"),
        ) if part["controls"][name] is not None
    ]  # fmt: skip
    said.append(
        f"At step {step} iterates lie {shown(last)} of the range from the nearest source; {', '.join(others)}. A grey "
        f"blob can lie nearer than real data do, so distance alone proves nothing."
    )
    return " ".join(said)


def shown(value: float | None) -> str:
    """A figure in three digits."""
    return "unknown" if value is None else f"{value:.3g}"


def percent(value: float) -> str:
    """A share in words."""
    return f"{100.0 * value:.3g} %"


def leaf(value: Any, as_percent: bool = False, alone: bool = False) -> str:
    """Mean and standard deviation of a {"mean", "sd"}; of a network alone its figure."""
    if value is None or value["mean"] is None:
        return "none"
    scale, unit = (100.0, " %") if as_percent else (1.0, "")
    spread = "" if alone else f" ± {scale * (value['sd'] or 0.0):.2g}"
    return f"{scale * value['mean']:.3g}{spread}{unit}"


def quality_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, figure) rows of a report for a table: mean and standard deviation over the networks, if there
    are several, and the verdict.

    Example:
        >>> quality_rows({"summary": {"networks": 0}})
        [('networks', '0')]
    """
    found = report["summary"]
    rows = [("networks", str(found["networks"]))]
    if not found["networks"]:
        return rows
    told = partial(leaf, alone=found["networks"] == 1)
    for name in ("sources", "held_out", "blends"):
        rows.append((f"error on {name.replace('_', '-')}", told(found["reconstruction"][name])))
    near = found["nearest"]
    for step, mean, share in zip(near["steps"], near["mean"], near["within"], strict=True):
        rows.append((f"nearest source at step {step}", f"{told(mean)}, within 0.02: {told(share, True)}"))
    for name, words in (("mean", "the mean"), ("class_means", "class means"), ("blends", "blends"),
                        ("held_out", "held-out data")):  # fmt: skip
        rows.append((f"nearest source of {words}", told(found["controls"][name])))
    rows += [
        ("kicked sources that return", told(found["kick"]["returned"], True)),
        ("sources that stay", told(found["kick"]["stayed"], True)),
        ("what is left of a kick", told(found["kick"]["left"])),
    ]
    radius = found["spectral_radius"]
    for quantile, value in zip(radius["quantiles"], radius["values"], strict=True):
        rows.append((f"spectral radius, quantile {quantile:g}", told(value)))
    ends = found["ends"]
    rows += [
        ("distinct ends", told(ends["distinct"])), ("sources reached", told(ends["reached_sources"])),
        ("largest basin", told(ends["largest_basin"], True)), ("entropy of basins, nats", told(ends["entropy"])),
        ("ends that are copies", told(ends["copies"], True)), ("chains unresolved", told(ends["unresolved"], True)),
    ]  # fmt: skip
    rest = found["steps_to_rest"]
    for quantile, value in zip(rest["quantiles"], rest["values"], strict=True):
        if quantile in (0.5, 0.95, 0.99):
            rows.append((f"steps to rest, quantile {quantile:g}", told(value)))
    flags = ", ".join(f"{name} {percent(share)}" for name, share in found["flags"].items())
    return [*rows, ("flags", flags or "none"), ("verdict", found["verdict"])]
