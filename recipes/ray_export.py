"""A million pictures written by Ray: how fast, and are they the same?

Question: what does a cluster add to an export, and does it change a byte of it?
Claim: every worker calls the function that the local export calls, so the folder is the same byte for byte; --compare
writes both and says so.

    python -m fractal_streams.recipes.ray_export --num 1000000 --compare
    python -m fractal_streams.recipes.ray_export fractal-1k /shared/fractal-1k --num 1281167 --num-gpus 1

Without a cluster Ray starts on this machine; with RAY_ADDRESS set, or after `ray start`, it joins that one, and the
folder must lie where all its machines see it. Killed runs are gone on with by the same command.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_streams.integrations.export import FORMATS, ExportReport, export
from fractal_streams.integrations.ray import ray_export


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds of the export by Ray and of the local one (0 if it was not asked for), and files that differ."""

    images: int
    ray_seconds: float
    local_seconds: float
    differing: tuple[str, ...]


def run(source: str, folder: Path, *, compare: bool = False, num_gpus: float = 0, **asked: Any) -> Comparison:
    """Export by Ray, and if `compare` also by this process alone, into a folder beside it."""
    began = time.perf_counter()
    report = ray_export(source, folder, num_gpus=num_gpus, **asked)
    print(f"Ray    {told(report)}, {time.perf_counter() - began:.1f} s with the start of Ray")
    if not compare:
        return Comparison(images=report.images, ray_seconds=report.seconds, local_seconds=0.0, differing=())
    beside = folder.with_name(f"{folder.name}-local")
    local = export(source, beside, **asked)
    print(f"local  {told(local)}")
    differing = tuple(unequal(folder, beside))
    files = sum(path.is_file() for path in beside.rglob("*"))
    print(f"{files} files, {len(differing)} of them differ" + "".join(f"\n  {name}" for name in differing[:10]))
    return Comparison(
        images=report.images, ray_seconds=report.seconds, local_seconds=local.seconds, differing=differing
    )


def told(report: ExportReport) -> str:
    """What an export did, in a line."""
    rate = f", {report.images / report.seconds:,.0f} images/s" if report.images else ""
    shards = f"{report.written} shards written, {report.kept} kept"
    return f"{shards}, {report.bytes / 1e6:,.0f} MB in {report.seconds:.1f} s{rate}"


def unequal(one: Path, other: Path) -> list[str]:
    """Files and folders that are not in both folders, or not the same byte for byte."""
    names = {path.relative_to(place).as_posix() for place in (one, other) for path in place.rglob("*")}
    return sorted(
        name
        for name in names
        if not ((one / name).is_dir() and (other / name).is_dir())
        and not (
            (one / name).is_file() and (other / name).is_file() and filecmp.cmp(one / name, other / name, shallow=False)
        )
    )


def main() -> None:
    """Read the arguments, export, and say whether the two folders are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", nargs="?", default="fractal-10", help="a preset, a formula or a spec's JSON file")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("ray-export"))
    parser.add_argument("--num", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--format", default="webdataset", choices=sorted(FORMATS))
    parser.add_argument("--image", default="png", choices=("png", "bmp", "npy"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-gpus", type=float, default=0, help="of each writer")
    parser.add_argument("--compare", action="store_true", help="also export locally, and compare every byte")
    parser.add_argument("--discard", action="store_true", help="delete the folders afterwards")
    asked = vars(parser.parse_args())
    discard, folder = asked.pop("discard"), asked["folder"]
    result = run(**asked)
    if discard:
        shutil.rmtree(folder)
        shutil.rmtree(folder.with_name(f"{folder.name}-local"), ignore_errors=True)
    raise SystemExit(1 if result.differing else 0)


if __name__ == "__main__":
    main()
