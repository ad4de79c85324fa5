"""The commands `kaleidoscope sample` and `gif`: chains from noise, as pictures, tables and films."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fractal_streams.cli import Device, examples
from fractal_streams.cli_experiment import Command
from fractal_streams.cli_kaleidoscope_chains import Asked, pictures_of, points_of, summary
from fractal_streams.cli_kaleidoscope_fit import FINGERPRINT_DIGITS, Address, group
from fractal_streams.cli_kaleidoscope_sheets import HELD, PICTURES, TABLES, written
from fractal_streams.cli_scan import check_place, need
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.engines import PRECISIONS
from fractal_streams.kaleidoscope.fitted_stream import opened
from fractal_streams.kaleidoscope.starts import JITTER_KINDS, START_KINDS, Jitter, Start
from fractal_streams.spec import whole

try:
    import typer
except ImportError:
    raise missing_extra("typer", "cli") from None


First = Annotated[int, typer.Option(help="Of the chains; sample i is the same in any call.")]
StartKind = Annotated[str, typer.Option("--start", "--NOISE", help=f"{', '.join(START_KINDS)}.")]
StartNoise = Annotated[float, typer.Option(help="Sd of normal noise on the starts, in halves of the range.")]
JitterSize = Annotated[
    float, typer.Option("--jitter", "--eps", help="Noise behind each step, in halves of the range; nothing rests then.")
]
JitterKind = Annotated[str, typer.Option(help=f"{', '.join(JITTER_KINDS)}; seed_: as the original, of mean not 0.")]
Precision = Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS)}.")]
Seed = Annotated[int, typer.Option(help="Names starts and noise.")]


@group.command(cls=Command, epilog=examples(
    "kaleidoscope sample kaleidoscope-10 --out samples.png",
    "kaleidoscope sample kaleidoscope-10 --start pink --count 1000 --out samples.npz",
    "kaleidoscope sample photos.safetensors --steps 30 --every 5 --out chains.png --count 12",
    "kaleidoscope sample mnist.safetensors --steps 300 --every 10 --eps 0.01 --jitter-kind seed_uniform --out runs",
))  # fmt: skip
def sample(
    address: Address,
    out: Annotated[
        Path | None,
        typer.Option(help="A sheet .png, film .gif or .mp4, table .npz or .csv, or a folder of pictures (none).",
                     show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", "--num", help="Chains.")] = 48,
    first: First = 0,
    start: StartKind = "uniform",
    start_noise: StartNoise = 0.0,
    steps: Annotated[int, typer.Option("--steps", "--runs", help="At most.")] = 100,
    tolerance: Annotated[
        float | None, typer.Option(help="Change of a value, over the range, at which a chain rests (0.001).")
    ] = None,
    jitter: JitterSize = 0.0,
    jitter_kind: JitterKind = "normal",
    every: Annotated[
        int | None,
        typer.Option("--every", "--SHOW-EVERY", help="Show every so-many-th iterate, not the ends alone (films: 1)."),
    ] = None,
    stratified: Annotated[
        bool, typer.Option("--stratified", help="Classes in equal shares, as far as there are attractors of them.")
    ] = False,
    fps: Annotated[float, typer.Option(help="Frames a second of a film.")] = 15.0,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "float32",
) -> None:  # fmt: skip
    """Run chains from noise, say where they end, and write them."""
    check_out(out, fps)
    film = out is not None and out.suffix.lower() in (".gif", ".mp4")
    noise, most = Jitter(kind=jitter_kind, size=jitter), whole(steps, "steps", 1, 100_000, "steps")
    shaken = noise if jitter else None
    asked = Asked(
        address=address, count=whole(count, "count", 1, 2**24, "chains"), first=whole(first, "first", 0, 2**62, ""),
        start=Start(kind=start, noise=start_noise), steps=most,
        tolerance=(0.0 if shaken else 1e-3) if tolerance is None else tolerance, jitter=shaken,
        every=1 if film and every is None else None if every is None else whole(every, "every", 1, most, "steps"),
        stratified=stratified, seed=seed, device=device, precision=precision,
    )  # fmt: skip
    fitted = opened(address)
    drawn = pictures_of(fitted, asked, out) if fitted.network.is_picture else points_of(fitted, asked, out)
    typer.echo(f"{address} ({fitted.fingerprint[:FINGERPRINT_DIGITS]}): {asked.count:,} chains, {asked.line}")
    for line in summary(drawn, fitted, asked):
        typer.echo(line)
    if out is not None:
        written(out, drawn, asked, fps)


@group.command(cls=Command, epilog=examples(
    "kaleidoscope gif kaleidoscope-10 --out kaleidoscope.gif",
    "kaleidoscope gif square.safetensors --out square.gif --chains 10 --steps 15",
    "kaleidoscope gif mnist.safetensors --out mnist.mp4 --chains 48 --steps 30 --fps 15",
))  # fmt: skip
def gif(
    address: Address,
    out: Annotated[Path, typer.Option(help="The film, .gif or .mp4.")],
    chains: Annotated[int | None, typer.Option(help="In the grid (48; of points 10).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", "--runs", help="(30; of two values 15, of one 20).")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second (15; of points 3).")] = None,
    held: Annotated[int, typer.Option(help="Frames that the noise lasts, of pictures.")] = HELD,
    model: Annotated[int | None, typer.Option(help="Network of the bank (all in turn; of points 0).")] = None,
    start: StartKind = "uniform",
    start_noise: StartNoise = 0.0,
    jitter: JitterSize = 0.0,
    jitter_kind: JitterKind = "normal",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Film of chains: the same ones in the same places of each frame; of points on their loss."""
    from fractal_streams.kaleidoscope.animation import save_profile_animation, save_surface_animation
    from fractal_streams.kaleidoscope.chains_picture import save_chains

    check_film(out, 15.0 if fps is None else fps)
    noise, fitted = Jitter(kind=jitter_kind, size=jitter), opened(address)
    size = fitted.network.size
    common: dict[str, Any] = {"seed": seed, "device": device}
    if fitted.network.is_picture:
        save_chains(
            out, fitted, chains=48 if chains is None else chains, steps=30 if steps is None else steps,
            rate=15.0 if fps is None else fps, held=held, model=model, start=Start(kind=start, noise=start_noise),
            jitter=noise if jitter else None, **common,
        )  # fmt: skip
    elif size > 2:
        raise InvalidValueError(f"films are of pictures, and of points of one or two values, got {size} values")
    elif start != "uniform" or start_noise or jitter:
        raise InvalidValueError("--start, --start-noise and --jitter are of pictures; points start uniformly")
    else:
        save = save_profile_animation if size == 1 else save_surface_animation
        frames = (20 if size == 1 else 15) if steps is None else steps
        save(
            out, fitted, frames=frames + 1, starts=10 if chains is None else chains, model=model or 0,
            rate=3.0 if fps is None else fps, **common,
        )  # fmt: skip
    typer.echo(f"film       {out} ({out.stat().st_size / 1e3:.0f} kB)")


def check_film(path: Path, fps: float) -> None:
    """Refuse a film that can't be written, before anything is run."""
    from fractal_streams.kaleidoscope.animation import check_rate

    ending = path.suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise InvalidValueError(f"{str(path)!r}: its ending must be .gif or .mp4")
    check_rate(fps, ending)
    check_place(path)
    need("PIL", missing_extra("pillow", "cli"))
    if ending == ".mp4":
        need("imageio", missing_extra("imageio", "video"))
        need("imageio_ffmpeg", missing_extra("imageio-ffmpeg", "video"))


def check_out(out: Path | None, fps: float) -> None:
    """Refuse a place that can't be written to, before anything is run."""
    if out is None:
        return
    ending = out.suffix.lower()
    if ending and ending not in (*PICTURES, *TABLES):
        raise InvalidValueError(
            f"--out {str(out)!r}: a sheet is .png, a film .gif or .mp4, a table .npz or .csv, a folder has no ending"
        )
    check_place(out if ending else out / "samples.csv")
    if ending in (".gif", ".mp4"):
        check_film(out, fps)
