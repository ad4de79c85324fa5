"""The commands of `fractal-streams` that hand a stream to others: as files, as a dataset, to a script, and back."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, cast

from fractal_streams.cli import Device, Seed, Source, examples, parsed_settings, parsed_size, words
from fractal_streams.cli_bench import app as app
from fractal_streams.errors import FractalStreamsError, InvalidValueError, missing_extra
from fractal_streams.presets import find_source

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; may be given often.")
]
Rank = Annotated[int | None, typer.Option(help="This process, from 0; else what RANK says.")]
World = Annotated[int | None, typer.Option(help="Processes that share the work; else what WORLD_SIZE says.")]


@app.command(epilog=examples(
    "export fractal-10 data/fractals --num 50000 --num test=10000",
    "export fractal-families shards --format webdataset --num 1000000 --shards 100",
    "export fractal-1k shards --format parquet --num 100000 --rank 0 --world 4",
))  # fmt: skip
def export(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Where to: a new folder, or one that this export began.")],
    form: Annotated[
        str, typer.Option("--format", help="imagefolder, webdataset, parquet, arrow, cifar10, npz or hub.")
    ] = "imagefolder",
    num: Annotated[list[str] | None, typer.Option(help="Samples of --split, or SPLIT=N; often.")] = None,
    shards: Annotated[int | None, typer.Option(help="Files of each split; of a good size if not given.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test, where --num names none.")] = "train",
    seed: Seed = 0,
    size: Annotated[str, typer.Option(help="Pixels: EDGE or HEIGHTxWIDTH; the source's own if not given.")] = "",
    image: Annotated[str, typer.Option(help="Form of the pictures: png, bmp or npy.")] = "png",
    rank: Rank = None,
    world: World = None,
    workers: Annotated[int | None, typer.Option(help="Threads; one for each core, at most 8, if not given.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare the checksum of each file that is there.")] = True,
    repo: Annotated[str | None, typer.Option(help="Dataset repository that a folder of format hub goes to.")] = None,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Write samples to a folder; a second run checks what is there and writes what is missing."""
    from fractal_streams.integrations.export import export as write
    from fractal_streams.shard import Shard

    if (rank is None) != (world is None):
        raise InvalidValueError(f"--rank and --world are given together, got --rank {rank} --world {world}")
    shard = Shard.detect() if rank is None or world is None else Shard(rank, world)
    own = {
        "source": find_source(source), "folder": folder, "format": form, "num": parsed_counts(num or [], split),
        "shards": shards, "image": image, "rank": shard.rank, "world": shard.world_size, "workers": workers,
        "verify": verify, "repo": repo, "seed": seed, "device": device, **parsed_size(size),
    }  # fmt: skip
    report = write(**with_settings(own, settings))
    rate = f", {report.images / report.seconds:,.0f} images/s" if report.written else ""
    repaired = f" ({report.repaired} were damaged)" if report.repaired else ""
    state = "complete" if report.complete else f"{report.missing} shards of other ranks are missing"
    typer.echo(
        f"{report.folder}: {report.written} shards written{repaired}, {report.kept} kept, {report.images:,} images "
        f"of {report.bytes:,} bytes in {report.seconds:.1f} s{rate}; {state}{' at ' * bool(report.url)}{report.url}"
    )


@app.command(epilog=examples(
    "tar fractal-10/train/seed=0/shard-{000000..000009}.tar | tar -t",
    "tar fractal-10/train/seed=0/height=64/endless.tar",
))  # fmt: skip
def tar(
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="PRESET/SPLIT/seed=S/shard-000000.tar")],
) -> None:
    """Write shards to the standard output, for webdataset's `pipe:fractal-streams tar ...`."""
    from fractal_streams.integrations.filesystem import copy_shards

    if sys.stdout.isatty():
        raise InvalidValueError("tar writes an archive, and the standard output is a terminal: redirect or pipe it")
    copy_shards(addresses, sys.stdout.buffer)


@app.command(epilog=examples(
    "stub data/fractals --preset fractal-10",
    "stub data/fractals --preset fractal-100 --num train=100000 --num test=10000 --set iterations=60",
))  # fmt: skip
def stub(
    folder: Annotated[Path, typer.Argument(help="A new folder; lower case, since some scripts lower it.")],
    preset: Annotated[str, typer.Option(help="A preset or formula.")] = "fractal-10",
    num: Annotated[list[str] | None, typer.Option(help="SPLIT=N samples; may be given often.")] = None,
    seed: Seed = 0,
    form: Annotated[str, typer.Option("--format", help="arrow, parquet or tar.")] = "arrow",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a stub.")] = False,
    settings: Settings = None,
) -> None:
    """Write a folder with only a README.md that is a dataset to every script that takes a dataset's path."""
    from fractal_streams.integrations.stub import write_stub

    own = {
        "folder": folder, "source": preset, "splits": parsed_counts(num or [], "train"), "seed": seed,
        "container": form, "force": force,
    }  # fmt: skip
    path = write_stub(**with_settings(own, settings))
    typer.echo(f"{path}: datasets.load_dataset({str(Path(path).parent)!r})")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples("run --seed 3 --length 5000 train_cifar.py", "run main.py --lr 0.1"),
)
def run(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A script that reads torchvision's CIFAR, MNIST or ImageNet.")],
    seed: Seed = 0,
    length: Annotated[int | None, typer.Option(help="Samples that a dataset has at most.")] = None,
    device: Device = "auto",
) -> None:
    """Run a script with torchvision's datasets replaced by fractals; what follows the script is the script's own."""
    from fractal_streams.integrations.script import own_traceback, run_script

    path = script.expanduser()
    whole_path = path.absolute()
    try:
        code = run_script(path, context.args, seed=seed, length=length, device=device)
    except Exception as error:
        place = own_traceback(error, whole_path)
        if place is None and isinstance(error, FractalStreamsError):
            raise  # before the script began
        traceback.print_exception(error.with_traceback(place))  # the script's own, shown as python would
        code = 1
    raise typer.Exit(code)


@app.command(epilog=examples(
    "pack photos packed/photos --height 64",
    "pack photos.zip packed/photos --height 64 --on-error skip",
    "pack film.mp4 packed/film --height 128 --skip 20 --minimum-change 2",
))  # fmt: skip
def pack(
    source: Annotated[str, typer.Argument(help="A folder, zip, tar shards, a video, or hub:PATH.")],
    folder: Annotated[Path, typer.Argument(help="Where to: a new folder, or this same pack.")],
    height: Annotated[int, typer.Option(help="Pixels that every picture must cover, once it is reduced.")],
    width: Annotated[int | None, typer.Option(help="As --height if not given.")] = None,
    on_error: Annotated[
        str, typer.Option(help="At a picture that can't be used: raise, or skip, which lists it.")
    ] = "raise",
    label: Annotated[str, typer.Option(help="auto, or none: all pictures are one class.")] = "auto",
    skip: Annotated[int, typer.Option(help="Of videos: frames left out after each one taken.")] = 0,
    minimum_change: Annotated[float, typer.Option(help="Of videos: least mean change of a frame, in levels.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another pack.")] = False,
) -> None:
    """Decode and reduce stored pictures once, to be read as a stream by fractal_streams.stored."""
    from fractal_streams.stored import pack as store

    made = store(
        source, folder, on_error=cast("Any", on_error), overwrite=overwrite, height=height, width=width, label=label,
        skip=skip, minimum_change=minimum_change,
    )  # fmt: skip
    typer.echo(f"{folder}: {len(made):,} pictures of {len(made.classes)} classes, {made.decoded:,} decoded now")
    for one in made.skipped:
        typer.echo(f"skipped {one.name}: {one.reason}", err=True)


def with_settings(own: dict[str, Any], given: list[str] | None) -> dict[str, Any]:
    """A command's own arguments and the fields of --set, which are none of them.

    Example:
        >>> with_settings({"seed": 3}, ["iterations=60"])
        {'seed': 3, 'iterations': 60}
    """
    settings = parsed_settings(given)
    if both := [name for name in settings if name in own]:
        raise InvalidValueError(f"--set {both[0]}=: this command has an option of its own for {both[0]}, see --help")
    return {**own, **settings}


def parsed_counts(given: list[str], split: str) -> Any:
    """Samples by split of N and SPLIT=N; None of nothing.

    Example:
        >>> parsed_counts(["50000", "test=10000"], "train")
        {'train': 50000, 'test': 10000}
    """
    counts: dict[str, int] = {}
    for text in (part for item in given for part in words(item)):
        name, equals, number = text.rpartition("=")
        if not number.replace("_", "").isdecimal() or (equals and not name) or (name or split) in counts:
            raise InvalidValueError(f"--num is N or SPLIT=N, each split once, such as test=10000; got {text!r}")
        counts[name or split] = int(number)
    return counts or None
