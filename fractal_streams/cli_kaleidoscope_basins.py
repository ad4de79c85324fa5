"""The command `kaleidoscope basins`: planes through a network's inputs, by where their points end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from fractal_streams.cli import Device, examples, parsed_size
from fractal_streams.cli_experiment import Command
from fractal_streams.cli_kaleidoscope_fit import FINGERPRINT_DIGITS, Address, group as group
from fractal_streams.cli_kaleidoscope_sample import Seed
from fractal_streams.cli_scan import check_place, need
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.basin_spec import LABELS
from fractal_streams.kaleidoscope.fitted_stream import opened
from fractal_streams.kaleidoscope.planes import PLANE_KINDS
from fractal_streams.kaleidoscope.plots import put
from fractal_streams.spec import whole

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

if TYPE_CHECKING:
    from fractal_streams.kaleidoscope.basin_stream import BasinStream

PLANES = 8
"""At most, on which the dimension of boundaries is measured."""


@group.command(cls=Command, epilog=examples(
    "kaleidoscope basins kaleidoscope-10 --out basins.png",
    "kaleidoscope basins kaleidoscope-bank --count 9 --size 256 --depth 4:10 --supersample 2 --out deep.png",
    "kaleidoscope basins square.safetensors --plane middle --uncertainty --out square.png",
))  # fmt: skip
def basins(
    address: Address,
    out: Annotated[Path | None, typer.Option(help="A sheet .png, arrays .npz, or a folder of pictures.")] = None,
    count: Annotated[int, typer.Option("--count", "--num", help="Maps.")] = 16,
    first: Annotated[int, typer.Option(help="Of the maps; map i is the same in any call.")] = 0,
    size: Annotated[str, typer.Option(help="Pixels of a map: EDGE or HEIGHTxWIDTH.")] = "128",
    plane: Annotated[str, typer.Option(help=f"Through what: {', '.join(PLANE_KINDS)}.")] = "sources",
    depth: Annotated[str, typer.Option(metavar="N|LOW:HIGH", help="Halvings of the plane.")] = "0:6",
    supersample: Annotated[int, typer.Option(help="Samples along each edge of a pixel beside an edge.")] = 1,
    steps: Annotated[int, typer.Option(help="Of a chain at most.")] = 300,
    tolerance: Annotated[float, typer.Option(help="Change at which it rests, over the range.")] = 1e-3,
    ends: Annotated[str, typer.Option(help="What pixels are coloured by: attractors or sources.")] = "attractors",
    unresolved: Annotated[str, typer.Option(help="Pixels that end at none: grey, or as the nearest.")] = "grey",
    label: Annotated[str, typer.Option(help=f"Under each map: {', '.join(LABELS)}.")] = "class",
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also the boundary's dimension, by small shifts.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Maps of where the points of random planes end, by colour, and in how many steps, by lightness."""
    from fractal_streams.contact_sheet import check_sheet
    from fractal_streams.kaleidoscope.basin_stream import BasinSpec, BasinStream

    check_out(out)
    need("PIL", missing_extra("pillow", "cli"))
    whole(count, "count", 1, 2**20, "maps")
    low, high = parsed_depth(depth)
    asked: dict[str, Any] = {
        "plane": plane, "min_depth": low, "max_depth": high, "supersample": supersample, "most": steps, "label": label,
        "tolerance": tolerance, "ends": ends, "unresolved": unresolved,
    }  # fmt: skip
    spec = BasinSpec(**{**parsed_size(size), **asked})
    if out is not None and out.suffix.lower() == ".png":
        check_sheet((3, spec.height, spec.width), count)
    stream = BasinStream(spec, fitted=opened(address), seed=seed, device=device)
    batch = stream.generate(range(first, first + count)).numpy()
    shown = f"{count:,} maps of {spec.height} x {spec.width}, planes through {plane}, seed {seed}"
    typer.echo(f"{address} ({stream.fitted.fingerprint[:FINGERPRINT_DIGITS]}): {shown}")
    for line in summary(batch):
        typer.echo(line)
    if uncertainty:
        typer.echo(boundary(stream, first, min(count, PLANES)))
    if out is not None:
        written(out, stream, batch, f"{Path(address).stem}, planes through {plane}, seed {seed}")


def check_out(out: Path | None) -> None:
    """Refuse a place that can't be written to, before anything is drawn."""
    if out is None:
        return
    if out.suffix.lower() not in ("", ".png", ".npz"):
        raise InvalidValueError(f"--out {str(out)!r}: a sheet is .png, arrays are .npz, a folder has no ending")
    check_place(out if out.suffix else out / "000000.png")


def summary(batch: Any) -> list[str]:
    """What maps show, in a few lines."""
    latents = batch.latents
    depth, view = latents["depth"], latents["ends_in_view"]
    steps = latents["steps"][latents["steps"] >= 0]
    rest = f"half of the points within {np.median(steps):.0f}" if len(steps) else "no point rests"
    return [
        f"depth      {depth.min()} to {depth.max()} halvings",
        f"ends       {view.min()} to {view.max()} in a map, {len(np.unique(latents['attractor']))} in all",
        f"edges      beside {latents['edge_share'].mean():.1%} of the pixels",
        f"steps      {rest}; {latents['unresolved_share'].mean():.1%} end at none",
    ]


def boundary(stream: BasinStream, first: int, count: int) -> str:
    """The dimension of the boundary on the whole planes of the first maps, by the uncertainty exponent."""
    from fractal_streams.kaleidoscope.basin_boundary import uncertainty as measured
    from fractal_streams.kaleidoscope.basin_stream import BasinStream

    flat = BasinStream(
        stream.spec.replace(min_depth=0, max_depth=0), fitted=stream.fitted, seed=stream.seed, device=stream.device
    )  # fmt: skip
    index = np.arange(first, first + count)
    dimensions = [
        measured(stream.fitted, plane, model=int(model), rule=stream.rule, engine=stream.engine).dimension
        for plane, model in zip(flat.planes(index), flat.model_of(index), strict=True)
    ]
    known = [value for value in dimensions if np.isfinite(value)]
    if not known:
        return "boundary   too few of the points change their end to tell its dimension"
    return (
        f"boundary   dimension {np.mean(known):.2f} ± {np.std(known):.2f} over {len(known)} "
        f"plane{'s' * (len(known) > 1)}, 2 minus the uncertainty exponent"
    )


def written(out: Path, stream: BasinStream, batch: Any, title: str) -> None:
    """Write maps in the form that the ending says, and say where."""
    from fractal_streams.contact_sheet import contact_sheet, save_png

    if out.suffix.lower() == ".npz":
        arrays: dict[str, Any] = {"images": batch.images, "labels": batch.labels, **batch.latents}
        put(out, lambda path: np.savez_compressed(path, **arrays))
    elif out.suffix:
        out.parent.mkdir(parents=True, exist_ok=True)
        depths, labels = batch.latents["depth"], batch.labels
        captions = [
            f"{stream.class_title(int(label))} · depth {depth}" for label, depth in zip(labels, depths, strict=True)
        ]
        save_png(out, contact_sheet(batch.images, captions, title=title))
    else:
        out.mkdir(parents=True, exist_ok=True)
        for index, image in zip(batch.index, batch.images, strict=True):
            save_png(out / f"{index:06d}.png", np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    typer.echo(f"{'maps':<10} {out}")


def parsed_depth(text: str) -> tuple[int, int]:
    """The least and the most halvings of N or LOW:HIGH.

    Example:
        >>> parsed_depth("3"), parsed_depth("0:6")
        ((3, 3), (0, 6))
    """
    low, colon, high = text.partition(":")
    if low.isdecimal() and (high.isdecimal() if colon else True):
        return int(low), int(high if colon else low)
    raise InvalidValueError(f"--depth is N or LOW:HIGH, halvings such as 4 or 0:6, got {text!r}")
