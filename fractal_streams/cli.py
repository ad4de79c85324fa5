"""The commands of `fractal-streams`; each reads its arguments, calls the library, and shows what comes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import fractal_streams
from fractal_streams import colouring, formulas
from fractal_streams.colouring import find_colouring
from fractal_streams.errors import FractalStreamsError, InvalidValueError, missing_extra
from fractal_streams.formulas import find_formula
from fractal_streams.presets import PRESETS, find_source, open_stream
from fractal_streams.stream import Stream

try:
    import rich.box
    import typer
    from rich.console import Console
    from rich.table import Table
    from typer.core import TyperCommand, TyperGroup
except ImportError as error:
    raise missing_extra(error.name or "typer", "cli") from None


class PlainErrors:
    """Of a command: what its user can mend is one line on standard error and exit code 2."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        try:
            code = super().main(*arguments, **{**settings, "standalone_mode": False})  # type: ignore[misc]
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: nothing to flush to
            sys.exit(1)
        except typer.Abort:  # the user pressed Ctrl-C
            sys.exit(130)
        except (FractalStreamsError, ImportError, OSError) as error:
            sys.exit(complain(str(error)))
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            sys.exit(complain(f"{error.format_message()} (--help says what there is)"))
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except EOFError as error:  # typer takes it for Ctrl-C
            raise InvalidValueError(
                f"what was read ended too early ({error}): a file is empty or was cut off, or a process ended"
            ) from error


class Commands(PlainErrors, TyperGroup):
    """The commands of an app."""


class LoneCommand(PlainErrors, TyperCommand):
    """The command of an app that has only one; its options may be written with underscores."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelt = [hyphenated(word) if word.startswith("--") else word for word in args]
        return super().parse_args(ctx, spelt)


def hyphenated(option: str) -> str:
    """An option with hyphens, its value left as it is.

    Example:
        >>> hyphenated("--num_steps=1_000")
        '--num-steps=1_000'
    """
    name, equals, value = option.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}"


def complain(message: str) -> int:
    """Print an error as one line; the exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(("Example:" if len(lines) == 1 else "Examples:", *(f"fractal-streams {line}" for line in lines)))


app = typer.Typer(
    cls=Commands, invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False,
    epilog=examples("show fractal-10", "bench"),
)  # fmt: skip

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A preset, a formula, 'module:formula', or a spec's JSON file.")
]
Seed = Annotated[int, typer.Option(help="Names the stream's randomness.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def show_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        typer.echo(f"fractal-streams {fractal_streams.__version__}")
        raise typer.Exit


@app.callback()
def commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Infinite, labelled, exactly reproducible image streams of fractal origin."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a formula of the user's own lies in the folder they stand in


@app.command("list", epilog=examples("list"))
def list_names() -> None:
    """Presets, formulas and colourings, a line on each."""
    console = Console(highlight=False)
    for title, rows in (
        ("Presets", {name: spec_line(spec) for name, spec in PRESETS.items()}),
        ("Formulas", {name: first_line(find_formula(name)) for name in formulas.CATALOGUE}),
        ("Colourings", {name: first_line(find_colouring(name)) for name in colouring.CATALOGUE}),
    ):
        table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(title, style="bold", no_wrap=True)
        table.add_column("")
        for name, line in rows.items():
            table.add_row(name, line)
        console.print(table)


@app.command(epilog=examples(
    "show fractal-10",
    "show mandelbrot --size 128x192 --indices 0:12 --columns 4 --out mandelbrot.png",
    "show fractal-video --indices 0:9 --out clips.gif",
))  # fmt: skip
def show(
    source: Source,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    indices: Annotated[str, typer.Option(help="Samples, as 0:64, 0:64:2 or 3,5,8; the first 64, of clips 9.")] = "",
    size: Annotated[str, typer.Option(help="Pixels: EDGE or HEIGHTxWIDTH; the source's own if not given.")] = "",
    columns: Annotated[int | None, typer.Option(help="Pictures in a row.")] = None,
    scale: Annotated[int | None, typer.Option(help="Whole factor by which pictures are enlarged.")] = None,
    colouring: Annotated[str, typer.Option(help="A colouring in place of the source's own.")] = "",
    out: Annotated[Path | None, typer.Option(help="File: .png; of clips also .gif and .mp4.")] = None,
    labels: Annotated[bool, typer.Option(help="Class and index under each picture.")] = True,
    device: Device = "auto",
) -> None:
    """Draw samples of any stream as a contact sheet; clips also as GIF or MP4."""
    from fractal_streams import contact_sheet as sheets

    changes = parsed_size(size) | ({"colouring": colouring} if colouring else {})
    stream = open_stream(find_source(source), seed=seed, split=split, device=device, **changes)
    moves = getattr(spec_of(stream), "frames", None) is not None
    ending = (out.suffix.lower() if out else "") or (".gif" if moves else ".png")
    if ending not in ((".png", ".gif", ".mp4") if moves else (".png",)):
        kinds = "clips are drawn as .png, .gif or .mp4" if moves else "still pictures are drawn as .png"
        raise InvalidValueError(f"--out {str(out)!r}: {kinds}")
    path = (out or Path(Path(source).stem.replace(":", "-"))).with_suffix(ending)
    chosen = parsed_indices(indices or ("0:9" if moves else "0:64"))
    sheets.check_sheet(stream.generate(range(0)).images.shape[1:], len(chosen), scale)
    batch = stream.generate(chosen).numpy()
    captions = captions_of(stream, batch) if labels else None
    layout: dict[str, Any] = {"title": f"{source}, {split}, seed {seed}" if labels else "", "scale": scale}
    if not moves:
        sheets.save_png(path, sheets.contact_sheet(batch.images, captions, columns=columns, **layout))
    elif ending == ".png":
        sheets.save_png(path, sheets.film_strips(batch.images, captions, **layout))
    else:
        sheets.save_animation(path, sheets.animated_sheet(batch.images, captions, columns=columns, **layout))
    kind = ("clip" if moves else "picture") + ("" if len(batch) == 1 else "s")
    typer.echo(f"{path}: {len(batch)} {kind} of {source}, {split}, seed {seed}")


@app.command(epilog=examples("spec fractal-10", "spec fractal-10 > mine.json"))
def spec(source: Source) -> None:
    """What a stream draws, as JSON that `show` and `bench` take again."""
    typer.echo(json.dumps(json.loads(find_source(source).to_json()), indent=2))


@app.command(epilog=examples("demo", "demo --seconds 20 --folder /tmp/demo"))
def demo(
    folder: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("fractal-streams-demo"),
    seconds: Annotated[float, typer.Option(help="About how long it trains.")] = 60.0,
    device: Device = "auto",
) -> None:
    """Draw the classes, train a small network on the stream, and say what came of it."""
    # torch's threads would spin between two operations, on the cores that render: 3 times the time when they are few
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fractal_streams.recipes.demo import run

    run(folder, seconds, device)


def spec_of(stream: Stream) -> Any:
    """The stream's spec."""
    return stream.spec  # type: ignore[attr-defined]


def spec_line(spec: Any) -> str:
    """What a preset draws, in a line."""
    if line := getattr(spec, "line", ""):
        return f"{line}; needs: {needs}" if (needs := getattr(spec, "needs", "")) else str(line)
    still = getattr(spec, "still", spec)
    count, names = still.num_classes, ", ".join(still.formulas)
    frames = f", {spec.frames} frames" if getattr(spec, "frames", None) else ""
    what = f"{count:,} classes" if count > 1 else "one class"
    if len(still.formulas) > 3:
        names = f"{len(still.formulas)} formulas"
    return f"{what} of {names}, {still.height} x {still.width}{frames}"


def first_line(entry: Any) -> str:
    """The first line of the page of a formula or colouring."""
    page = sys.modules[entry.module].__doc__ or entry.source
    return page.strip().splitlines()[0].rstrip(".")


def captions_of(stream: Stream, batch: Any) -> list[str]:
    """Class and index of each sample; the index alone where there is one class."""
    if stream.num_classes == 1:
        return [f"#{index}" for index in batch.index]
    return [f"{stream.class_title(int(label))} · #{i}" for i, label in zip(batch.index, batch.labels, strict=True)]


def words(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parsed_numbers(text: str, option: str) -> list[int]:
    """The whole numbers of a list with commas."""
    try:
        return [int(part) for part in words(text)]
    except ValueError:
        raise InvalidValueError(f"{option} is a list of whole numbers such as 32,64, got {text!r}") from None


def parsed_size(text: str) -> dict[str, int]:
    """Height and width of EDGE or HEIGHTxWIDTH; nothing of nothing."""
    if not text:
        return {}
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InvalidValueError(f"--size is EDGE or HEIGHTxWIDTH in pixels, such as 64 or 48x64, got {text!r}")
    return {"height": int(parts[0]), "width": int(parts[-1])}


def parsed_settings(given: Iterable[str] | None) -> dict[str, Any]:
    """Fields of a spec of NAME=VALUE; a value is JSON, or else text."""
    settings: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidValueError(f"--set is NAME=VALUE, such as iterations=60, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def parsed_indices(text: str) -> range | list[int]:
    """The indices of FIRST:END, FIRST:END:STEP, or a list with commas."""
    parts = text.split(":")
    try:
        chosen = range(*(int(part) for part in parts)) if len(parts) in (2, 3) else [int(part) for part in words(text)]
    except ValueError:
        raise InvalidValueError(f"--indices is FIRST:END, FIRST:END:STEP or a list as 3,5,8, got {text!r}") from None
    if not len(chosen):
        raise InvalidValueError(f"--indices {text!r} names no sample")
    return chosen
