"""What is done with a trained ALAE, as commands: `fractal-streams alae encode`, `decode`, `interpolate`, `project`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fractal_streams.recipes.alae.code_file import Coded, coded, load_codes, save_codes
from fractal_streams.recipes.alae.given import Run, opened_run, run_prior, run_stream, stored_pictures

from fractal_streams import Stream
from fractal_streams.cli import Commands, LoneCommand, examples, parsed_indices
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.stored import StoredStream

try:
    import numpy as np
    import typer
    from fractal_streams.recipes.alae.model import ALAE, fitted
    from fractal_streams.recipes.alae.pictures import interpolation
    from fractal_streams.recipes.alae.using import STYLES, decode, draws, encode, interpolate, project
    from fractal_streams.recipes.alae.writing import (
        refuse_filled,
        save_between,
        save_film,
        save_pictures,
        save_projections,
    )
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PICTURES, SAMPLES, PLACE = "Pictures", "Samples of a stream, where no pictures are given", "How it is run"
Model = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as `train alae` writes it.")]
Pictures = Annotated[
    list[str] | None,
    typer.Argument(metavar="PICTURES", help="Picture files; or a folder, zip, video, pack or hub:NAME."),
]
Preset = Annotated[
    str, typer.Option(help="A preset, a formula or a spec's JSON file; the run's own.", rich_help_panel=SAMPLES)
]
Split = Annotated[str, typer.Option(help="train, validation or test.", rich_help_panel=SAMPLES)]
DataSeed = Annotated[int | None, typer.Option(help="Names the stream; the run's own.", rich_help_panel=SAMPLES)]
Skip = Annotated[int, typer.Option(help="Frames of a video left out after each.", min=0, rich_help_panel=PICTURES)]
OnError = Annotated[
    str, typer.Option(help="What damaged or small pictures do: raise or skip.", rich_help_panel=PICTURES)
]
Cache = Annotated[Path | None, typer.Option(help="Of decoded pictures; the user's cache.", rich_help_panel=PICTURES)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=PLACE)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.", rich_help_panel=PLACE)]
Seed = Annotated[int, typer.Option(help="Names the draws.")]
Psi = Annotated[float, typer.Option(help="How far draws are from the mean code: 1 as drawn, 0 all alike.")]


def indices_option(default: str) -> Any:
    text = f"As 0:64, 0:64:2 or 3,5,8; all pictures, or samples {default}."
    return Annotated[str, typer.Option(help=text)]


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def trained() -> None:
    """What is done with a trained ALAE."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """Samples of a stream."""

    stream: Stream
    indices: Sequence[int]

    def images(self, model: ALAE) -> Tensor:
        """(N, 3, H, W) float32, as large as the model has grown; of clips each frame."""
        images: Tensor = self.stream.generate(self.indices).torch().images
        return fitted(images.flatten(0, 1) if images.dim() == 5 else images, model)


def chosen(
    run: Run, pictures: Sequence[str] | None, indices: str, usual: str, preset: str, split: str, data_seed: int | None,
    skip: int, on_error: str, cache: Path | None, quiet: bool,
) -> Chosen:  # fmt: skip
    """The pictures that a command's options mean."""
    if not pictures:
        if skip or on_error != "raise":
            raise InvalidValueError("--skip and --on-error are of pictures, and none are given: leave them out")
        stream = run_stream(run, preset=preset, split=split, seed=data_seed, cache=cache)
        return Chosen(stream=stream, indices=parsed_indices(indices or usual))
    if preset or data_seed is not None:
        raise InvalidValueError("--preset and --data-seed are of streams, and pictures are given: leave them out")
    stored: StoredStream = stored_pictures(pictures, run.edge, skip=skip, on_error=on_error, cache=cache, quiet=quiet)
    wanted = parsed_indices(indices) if indices else range(stored.count)
    if max(wanted) >= stored.count:
        raise InvalidValueError(f"--indices {indices!r}: there are pictures 0 to {stored.count - 1}")
    return Chosen(stream=stored, indices=wanted)


@app.command("encode", cls=LoneCommand, epilog=examples(
    "alae encode outputs/alae photos --out photos.npz",
    "alae encode outputs/alae --split test --indices 0:10000",
    "alae encode outputs/alae film.mp4 --skip 4",
))  # fmt: skip
def encode_command(
    folder: Model,
    pictures: Pictures = None,
    out: Annotated[Path, typer.Option(help="File of the codes, .npz.")] = Path("codes.npz"),
    indices: indices_option("0:1000") = "",  # type: ignore[valid-type]
    preset: Preset = "",
    split: Split = "test",
    data_seed: DataSeed = None,
    skip: Skip = 0,
    on_error: OnError = "raise",
    cache: Cache = None,
    batch_size: Annotated[int, typer.Option(help="At once.", min=1, rich_help_panel=PLACE)] = 256,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Codes of pictures, or of a stream's samples with their classes and parameters: an .npz."""
    check_target(out, ".npz")
    run = opened_run(folder, device)
    given = chosen(run, pictures, indices, "0:1000", preset, split, data_seed, skip, on_error, cache, quiet)
    found = coded(run.model, given.stream, given.indices, batch_size=batch_size, quiet=quiet)
    save_codes(out, found)
    frames = f", {found.frames} frames a clip" if found.frames else ""
    typer.echo(f"{out}: {len(found):,} codes of {found.codes.shape[-1]} numbers{frames}; {', '.join(found.arrays())}")


@app.command("decode", cls=LoneCommand, epilog=examples(
    "alae decode outputs/alae photos.npz --out again",
    "alae decode outputs/alae --count 64 --seed 1 --psi 0.7 --out draws",
))  # fmt: skip
def decode_command(
    folder: Model,
    codes: Annotated[Path | None, typer.Argument(metavar="CODES", help="An .npz; without it, fresh draws.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures, a new one.")] = Path("decoded"),
    count: Annotated[int | None, typer.Option(help="Fresh draws (64).", min=1)] = None,
    seed: Seed = 0,
    psi: Psi = 1.0,
    batch_size: Annotated[int, typer.Option(help="At once.", min=1, rich_help_panel=PLACE)] = 256,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Pictures of codes, or of fresh draws: PNGs, a sheet, and an .npz with levels and codes."""
    refuse_filled(out)
    if codes is not None and count is not None:
        raise InvalidValueError(f"--count is of draws, and {codes} is given: leave one of them out")
    run = opened_run(folder, device)
    _ = run.edge
    found = drawn(run, 64 if count is None else count, seed, psi) if codes is None else load_codes(codes)
    images = decode(run.model, found.tensor(), psi=1.0 if codes is None else psi, batch_size=batch_size)
    named = f"draws, seed {seed}" if codes is None else codes.name
    title = f"{run.folder.name}: {named}" + (f", psi {psi:g}" if psi != 1.0 else "")
    beside = save_pictures(out, images, found, title=title, quiet=quiet)
    typer.echo(f"{out}: {len(images):,} pictures of {named}; {', '.join(beside)}")


@app.command("interpolate", cls=LoneCommand, epilog=examples(
    "alae interpolate outputs/alae one.png two.png three.png --out between.png",
    "alae interpolate outputs/alae --indices 3,17,40 --film between.mp4",
    "alae interpolate outputs/alae --count 6 --film between.mp4 --loop",
))  # fmt: skip
def interpolate_command(
    folder: Model,
    pictures: Pictures = None,
    out: Annotated[Path, typer.Option(help="Board, .png.")] = Path("between.png"),
    film: Annotated[Path | None, typer.Option(help="Also a film, .mp4 or .gif.")] = None,
    frames: Annotated[int, typer.Option(help="Of the film, from one code to the next.", min=1)] = 48,
    fps: Annotated[float, typer.Option(help="Frames a second.", min=0.1)] = 24.0,
    loop: Annotated[bool, typer.Option("--loop", help="Go back to the first.")] = False,
    count: Annotated[int | None, typer.Option(help="Fresh draws in place of pictures.", min=2)] = None,
    seed: Seed = 0,
    psi: Psi = 1.0,
    indices: indices_option("0:5") = "",  # type: ignore[valid-type]
    preset: Preset = "",
    split: Split = "test",
    data_seed: DataSeed = None,
    skip: Skip = 0,
    on_error: OnError = "raise",
    cache: Cache = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """The straight way between codes, of two or more pictures, samples or draws: a board, and a film."""
    check_target(out, ".png")
    if film is not None:
        check_target(film, ".mp4", ".gif")
    run = opened_run(folder, device)
    title, model = f"{run.folder.name}: between codes", run.model
    images = None
    if count is not None:
        if pictures or indices or preset:
            raise InvalidValueError("--count is of draws, and pictures or samples are given: leave one of them out")
        codes = drawn(run, count, seed, psi).tensor()
    else:
        given = chosen(run, pictures, indices, "0:5", preset, split, data_seed, skip, on_error, cache, quiet)
        images = given.images(model)
        codes = encode(model, images)
    if len(codes) < 2:
        raise InvalidValueError("a way between codes needs two pictures at least, got one")
    places = [*range(len(codes)), *([0] if loop else [])]
    if images is None:
        save_between(out, interpolate(model, codes[places[:-1]], codes[places[1:]]), title=title)
    else:
        images = images.to(run.device)
        interpolation(model, images[places[:-1]], images[places[1:]], out, title)
    typer.echo(f"{out}: {len(places) - 1} ways between {len(codes)} codes")
    if film is not None:
        length = save_film(film, interpolate(model, codes[places[:-1]], codes[places[1:]], frames + 1), fps, loop)
        typer.echo(f"{film}: {length} frames, {length / fps:.1f} s")


@app.command("project", cls=LoneCommand, epilog=examples(
    "alae project outputs/alae photo.jpg --out found",
    "alae project outputs/alae --indices 0:64 --styles w+ --steps 1000",
))  # fmt: skip
def project_command(
    folder: Model,
    pictures: Pictures = None,
    out: Annotated[Path, typer.Option(help="Folder for codes.npz and board.png, a new one.")] = Path("projected"),
    styles: Annotated[str, typer.Option(help=f"A code for all styles or one for each: {', '.join(STYLES)}.")] = "w",
    steps: Annotated[int, typer.Option(help="Of Adam.", min=1)] = 500,
    lr: Annotated[
        float, typer.Option(help="First rate, in sizes of a code about the mean; falls to 0.", min=0.0)
    ] = 0.1,
    features: Annotated[float, typer.Option(help="Weight of E's features beside the pixels.", min=0.0)] = 0.1,
    indices: indices_option("0:16") = "",  # type: ignore[valid-type]
    preset: Preset = "",
    split: Split = "test",
    data_seed: DataSeed = None,
    skip: Skip = 0,
    on_error: OnError = "raise",
    cache: Cache = None,
    batch_size: Annotated[int, typer.Option(help="At once.", min=1, rich_help_panel=PLACE)] = 64,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """The code whose picture is nearest to a given one, by optimisation from the encoder's code on.

    Stopped, it goes on behind the last whole batch when it is asked for the same.
    """
    refuse_filled(out)
    run = opened_run(folder, device)
    given = chosen(run, pictures, indices, "0:16", preset, split, data_seed, skip, on_error, cache, quiet)
    facts, images = coded(run.model, given.stream, given.indices, batch_size=batch_size), given.images(run.model).cpu()
    parts = out.with_name(f".{out.name}.parts")
    found = project(
        run.model, images, steps=steps, lr=lr, styles=styles, features=features, batch_size=batch_size, quiet=quiet,
        parts=parts if len(images) > batch_size else None,
    )  # fmt: skip
    figures = {name: getattr(found, name).numpy() for name in ("psnr", "first_psnr")}
    best = replace(facts, codes=found.codes.numpy(), figures=figures)
    sides = [decode(run.model, codes, batch_size=batch_size) for codes in (found.first_codes, found.codes)]
    save_projections(out, images, *sides, best, title=f"{run.folder.name}: {steps} steps, {styles}")
    shutil.rmtree(parts, ignore_errors=True)
    before, after = (float(values.median()) for values in (found.first_psnr, found.psnr))
    typer.echo(
        f"{out}: {len(images):,} pictures, median PSNR {before:.2f} dB of E's codes, {after:.2f} dB of those found"
    )


def drawn(run: Run, count: int, seed: int, psi: float) -> Coded:
    """Codes of fresh draws."""
    prior, stream = run_prior(run)
    codes = draws(run.model, count, prior=prior, stream=stream, seed=seed, psi=psi)
    return Coded(codes=codes.cpu().numpy(), index=np.arange(count), names=[f"draw {number}" for number in range(count)])


def check_target(path: Path, *endings: str) -> None:
    """Refuse, before anything is computed, a file that could not be written."""
    if path.suffix.lower() not in endings:
        raise InvalidValueError(f"{path} must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise InvalidValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in: make it first")


if __name__ == "__main__":
    app()
