"""The command of `fractal-streams` that measures: one stream, or this project beside what a user would pick instead."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fractal_streams.cli import Device, app as app, examples, parsed_numbers, words
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.presets import find_source

try:
    import rich.box
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise missing_extra(error.name or "typer", "cli") from None

STREAM_ONLY = {"dtypes", "renderers"}
COMPARISON_ONLY = {"rounds", "workers", "pictures", "only", "plot"}
COMPARED, BY_ITSELF = "The comparison", "A SOURCE by itself"


@app.command(epilog=examples(
    "bench",
    "bench --size 64 --only torchvision,CIFAR --json rates.json --plot rates.png",
    "bench fractal-10 --sizes 32,64 --dtypes uint8,float16 --json -",
))  # fmt: skip
def bench(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="This preset, formula or spec by itself, by size and format.")
    ] = None,
    sizes: Annotated[
        str, typer.Option("--size", "--sizes", help="Edges of the pictures: 32; of a SOURCE 32,64,256,512.")
    ] = "",
    batch: Annotated[
        int | None, typer.Option(help="Samples in a batch: 512; of a SOURCE what fills the device.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Of each turn: 0.6; of a SOURCE 0.5.")] = None,
    device: Device = "auto",
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the figures; - is standard output.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for a chart: .png, .svg, .pdf.", rich_help_panel=COMPARED)
    ] = None,
    only: Annotated[
        str, typer.Option(help="Words of the names of those to measure beside ours.", rich_help_panel=COMPARED)
    ] = "",
    workers: Annotated[
        str, typer.Option(help="Worker processes to try: 0,2,4,8,16 up to the cores.", rich_help_panel=COMPARED)
    ] = "",
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.", rich_help_panel=COMPARED)] = 3,
    pictures: Annotated[int, typer.Option(help="Of a stored set of 32x32.", rich_help_panel=COMPARED)] = 50_000,
    dtypes: Annotated[
        str, typer.Option(help="Of uint8, float16, bfloat16, float32.", rich_help_panel=BY_ITSELF)
    ] = "uint8",
    renderers: Annotated[
        str,
        typer.Option(help="Of reference, numba, triton: what the device has if not given.", rich_help_panel=BY_ITSELF),
    ] = "",
) -> None:
    """Images per second beside what a user would pick instead, or of one SOURCE; after parity with the reference."""
    given = {name for name in context.params if name_was_given(context, name)}
    for name in sorted(given & (COMPARISON_ONLY if source else STREAM_ONLY)):
        where = "a SOURCE by itself: leave SOURCE out" if source else "the comparison: name a SOURCE, as seed-readme"
        raise InvalidValueError(f"--{name} is no option of {where}")
    edges = parsed_numbers(sizes, "--sizes")
    if source:
        own = {"batch": batch, "device": device, "seconds": 0.5 if seconds is None else seconds}
        measure_stream(source, edges or [32, 64, 256, 512], words(dtypes), words(renderers), own, as_json)
        return
    asked: dict[str, Any] = {
        "batch": 512 if batch is None else batch, "seconds": 0.6 if seconds is None else seconds, "device": device,
        "workers": parsed_numbers(workers, "--workers") or None, "rounds": rounds, "pictures": pictures,
        "only": words(only),
    }  # fmt: skip
    compare_all(edges or [32], asked, as_json, plot)


def name_was_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def measure_stream(
    source: str, sizes: Sequence[int], dtypes: list[str], renderers: list[str], own: dict[str, Any], path: Path | None
) -> None:
    """The rates of one stream by size, renderer and format."""
    from fractal_streams.recipes.benchmarks.throughput import measure

    with Console(stderr=True).status("measuring, parity with the reference first"):
        rows = measure(find_source(source), sizes=sizes, dtypes=dtypes, renderers=renderers or None, **own)
    write_json(path, [asdict(row) for row in rows])
    if path == Path("-"):
        return
    table = plain_table({"renderer": "left", "size": "right", "dtype": "left", "batch": "right", "images/s": "right",
                         "pixels off (allowed)": "right"})  # fmt: skip
    for row in rows:
        table.add_row(
            f"{row.renderer}, {row.device}", str(row.size), row.dtype, f"{row.batch:,}", f"{row.rate:,.0f}",
            f"{row.differing} ({row.allowed}) of {row.checked:,}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print("On a CPU images/s are per core and second of CPU time; on a GPU by CUDA events.", style="dim")


def compare_all(sizes: Sequence[int], asked: dict[str, Any], path: Path | None, plot: Path | None) -> None:
    """The comparison at each size: table, JSON and plot."""
    from fractal_streams.recipes.benchmarks.comparison import compare

    if plot is not None and len(sizes) > 1:
        raise InvalidValueError(f"--plot draws one size, got {', '.join(map(str, sizes))}: call bench for each")
    if plot is not None:
        from fractal_streams.recipes.benchmarks.charts import check_ending

        check_ending(plot)
    found = []
    for size in sizes:
        with Console(stderr=True).status("starting") as status:
            found.append(compare(size=size, progress=telling(status), **asked))
        if path != Path("-"):
            show_comparison(found[-1])
    write_json(path, [each.figures() for each in found])
    if plot is not None:
        from fractal_streams.recipes.benchmarks.charts import comparison_chart, save

        save(comparison_chart(found[0]), plot)


def telling(status: Any) -> Callable[[str], None]:
    """What shows a text on the progress line."""
    return lambda text: status.update(text)


def show_comparison(found: Any) -> None:
    """One table, what was not measured, and how to read it."""
    rows = [row for row in found.rows if row.rate is not None]
    columns: dict[str, list[str]] = {
        "images/s": [f"{row.rate:,.0f}{' *' if row.clock == 'core' else ''}" for row in rows],
        "spread": [f"{row.spread:.0%}" for row in rows],
        "ours is": [row.times for row in rows],
        "roofline": [blank(row.share, "{:.0%}") for row in rows],
        "mJ/image": [blank(row.joules and 1e3 * row.joules, "{:,.3g}") for row in rows],
        "first batch": [blank(row.first, "{:.2f} s") for row in rows],
    }
    console = Console(highlight=False)
    shown = fitting({"contestant": [row.titled for row in rows], **columns}, console.width)
    table = plain_table({heading: "left" if heading == "contestant" else "right" for heading in shown})
    for row, *cells in zip(rows, *shown.values(), strict=True):
        table.add_row(*cells, style="bold" if row.ours else "")
    chip = found.machine.get("gpu", found.machine["cpu"])
    console.print(f"{chip}: {found.size}x{found.size}, batches of {found.batch}, {found.dtype}, normalised")
    console.print(table)
    for row in found.rows:
        if row.rate is None:
            console.print(f"not measured: {row.titled}: {row.reason}", style="dim")
    notes = {
        "* of one core and second of CPU time; the others by the clock on the wall": any(
            row.clock == "core" for row in rows
        ),
        f"joules of {' and '.join(found.energy)}, what they burn when idle included": bool(found.energy),
    }
    for note, told in notes.items():
        if told:
            console.print(note, style="dim")
    for name, each in found.parity.items():
        text = f"{name}: {each['differing']} of {each['checked']:,} pixels off the reference, {each['allowed']} allowed"
        console.print(text, style="dim")


def fitting(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """The columns that hold anything; of those only the needed ones where a terminal is too narrow for all."""
    shown = {heading: column for heading, column in columns.items() if set(column) - {"-", ""}}
    for heading in ("first batch", "spread"):
        if sum(3 + max(map(len, (name, *column))) for name, column in shown.items()) > width:
            shown.pop(heading, None)
    return shown


def blank(value: float | None, form: str) -> str:
    """A value in a form, or a dash."""
    return "-" if value is None else form.format(value)


def plain_table(columns: dict[str, str]) -> Table:
    """An empty table of headings, each left or right."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in columns.items():
        named = heading == "contestant"  # the one that may take two lines
        table.add_column(heading, justify="left" if side == "left" else "right", no_wrap=not named)
    return table


def write_json(path: Path | None, figures: Any) -> None:
    """Write, or print, or neither; nothing half-written remains."""
    if path is None:
        return
    text = json.dumps(figures, indent=2)
    if path == Path("-"):
        typer.echo(text)
        return
    written = path.with_name(f".{path.name}.tmp")
    try:
        written.write_text(text + "\n")
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
