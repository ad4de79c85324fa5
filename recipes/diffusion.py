"""Diffusion: a denoiser learns to draw the pictures of each class of a stream.

Question: how near do drawn pictures come to a stream that never repeats, so that none of them can be learnt by heart?
Claim: see recipes/README.md.

    fractal-streams train diffusion --compile
    fractal-streams train diffusion --sample-only outputs/diffusion --sampler ddim --sampler-steps 50 --guidance 2
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.recipes.data import BLOCK, DataSettings, held_out, opened, training_stream
from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.settings import command, option

from fractal_streams import Batch, Stream
from fractal_streams.contact_sheet import contact_sheet, save_png, whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list
    from fractal_streams.recipes import checkpoint
    from fractal_streams.recipes.distance import FEWEST, Distance, distance, levels
    from fractal_streams.recipes.journal import Journal, read_records
    from fractal_streams.recipes.judge import Judge, judge
    from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, open_accelerator, seed_named, seeded
    from fractal_streams.recipes.models.denoisers import DENOISERS, SIZES, Denoiser
    from fractal_streams.recipes.sampling import (
        BETAS,
        PREDICTIONS,
        SAMPLERS,
        Schedule,
        blocks,
        noise_schedule,
        sample,
        solver_of,
    )
    from rich.console import Console
    from rich.progress import track
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SIGNED = {"mean": 0.5, "std": 0.5}
"""The form of pictures here: levels in [-1, 1]."""
ROWS = 10
"""Classes of a sheet; of more, pictures are shown as they come."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(LoopSettings, DataSettings):
    """What is trained, how pictures are drawn, and what they are measured by."""

    num_steps: int = option(8000, "Updates of the weights.", low=1)
    warmup_steps: int = option(250, "Steps in which the rate rises.", low=0)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    ema: float = option(0.999, "Share of the average of weights that stays in a step; 0 keeps none.", low=0.0, high=1.0)
    eval_once_every: int = option(3000, "Steps from one test and sheet to the next.", low=1, changes_nothing=True)
    checkpoint_every: int = option(1000, "Steps from one checkpoint to the next.", low=1, changes_nothing=True)
    denoiser: str = option("unet", "The network.", choices=tuple(DENOISERS))
    size: str = option("small", "Of the network.", choices=SIZES)
    lr: float = option(4e-4, "Learning rate of AdamW.", low=0.0)
    timesteps: int = option(1000, "Of the noise.", low=2, high=100_000)
    betas: str = option("cosine", "How noise grows with time.", choices=tuple(BETAS))
    prediction: str = option("v", "What the network tells.", choices=tuple(PREDICTIONS))
    zero_terminal_snr: bool = option(False, "Nothing but noise at the last timestep.")
    unlabelled: float = option(0.1, "Share of pictures whose class is not told.", low=0.0, high=1.0)
    sampler: str = option("dpm", "How pictures are drawn.", choices=tuple(SAMPLERS), changes_nothing=True)
    sampler_steps: int = option(25, "Calls of the network for a picture.", low=1, changes_nothing=True)
    guidance: tuple[float, ...] = option(
        (1.0, 1.5), "Weight of the class: 1 as it is, more overstates it; the first for sheets.", low=0.0,
        changes_nothing=True,
    )  # fmt: skip
    sampler_batch_size: int = option(500, "Pictures drawn at once.", low=1, changes_nothing=True)
    test_samples: int = option(2048, "Held-out pictures of the test loss.", low=1, changes_nothing=True)
    columns: int = option(8, "Pictures of a class on a sheet.", low=1, high=64, changes_nothing=True)
    distance_samples: int = option(
        5000, "Pictures drawn, and twice as many real ones, for the distance; 0 for none.", changes_nothing=True
    )
    vit: Path | None = option(None, "Folder of a trained ViT; else one is trained.", changes_nothing=True)  # noqa: RUF009
    vit_steps: int = option(2000, "Updates of that ViT.", low=1, changes_nothing=True)
    sample_only: Path | None = option(None, "Only draw, from the run in this folder.", changes_nothing=True)  # noqa: RUF009
    folder: Path = option(Path("outputs/diffusion"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bars.", changes_nothing=True)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures drawn with a guidance, and their distance from real ones."""

    guidance: float
    distance: Distance


@dataclass(frozen=True, kw_only=True)
class Result:
    """test_loss: mean squared error of the prediction. halves: the distance of two sets of real pictures.

    memory: bytes. images_per_second: median of the records. seconds: of training.
    """

    steps: int
    weights: int
    test_loss: float
    images_per_second: float
    memory: int
    seconds: float
    halves: Distance | None
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """The mean squared error at a random time; of some pictures the class is not told."""

    schedule: Schedule
    none: int
    unlabelled: float

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        images, labels = batch
        times = torch.randint(self.schedule.config.num_train_timesteps, labels.shape, device=labels.device)
        hidden = torch.rand(labels.shape, device=labels.device) < self.unlabelled
        asked = torch.where(hidden, self.none, labels)
        noise = torch.randn(images.shape, device=images.device)
        return {"loss": errors(model, self.schedule, images, asked, noise, times).mean()}


def errors(
    model: nn.Module, schedule: Schedule, images: Tensor, labels: Tensor, noise: Tensor, times: Tensor
) -> Tensor:
    """(B,) mean squared errors of what the model tells of (B, 3, H, W) pictures under noise."""
    clean = images.float()
    noisy = schedule.add_noise(clean, noise, times)
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(clean, noise, times) if velocity else noise
    found = model(noisy, times, labels).float()
    return functional.mse_loss(found, target, reduction="none").mean((1, 2, 3))


def tested(loop: Loop, schedule: Schedule, stream: Stream, samples: int, val_seed: int = 0) -> dict[str, float]:
    """The mean error on held-out pictures, each at a time and under noise of its own that are always the same."""
    accelerator, device = loop.accelerator, loop.accelerator.device
    last = schedule.config.num_train_timesteps
    total = torch.zeros((), dtype=torch.float64, device=device)
    with loop.evaluating() as model:
        for place, batch in enumerate(held_out(stream, samples, 256, val_seed)):
            if place % accelerator.num_processes != accelerator.process_index:
                continue
            fixed = torch.Generator().manual_seed(seed_named("test", int(val_seed), place))
            noise = torch.randn(batch.images.shape, generator=fixed).to(device)
            count = len(batch.labels)
            times = ((torch.arange(count, device=device) + 0.5) * last / count).long()
            total += errors(model, schedule, batch.images, batch.labels, noise, times).double().sum()
    return {"test_loss": float(accelerator.reduce(total, reduction="sum")) / samples}


@dataclass(frozen=True, kw_only=True)
class Studio:
    """Where pictures are drawn. size: pixels of a side."""

    settings: DiffusionSettings
    accelerator: Accelerator
    size: int

    def draw(self, model: Denoiser, labels: Tensor, guidance: float | None = None, title: str = "") -> Tensor:
        """(N, 3, size, size) uint8 pictures of (N,) labels, shared out over the ranks; the same on all of them.

        Args:
            guidance: the settings' first without it. title: of a progress bar.
        """
        settings, accelerator, schedule = self.settings, self.accelerator, schedule_of(self.settings)
        weight = settings.guidance[0] if guidance is None else guidance
        pictures = torch.zeros(len(labels), 3, self.size, self.size, dtype=torch.uint8, device=labels.device)
        own = blocks(len(labels), settings.sampler_batch_size, accelerator.process_index, accelerator.num_processes)
        silent = settings.quiet or not title or not accelerator.is_main_process
        for numbers in track(list(own), title, console=Console(stderr=True), disable=silent):
            here = slice(numbers.start, numbers.stop)
            pictures[here] = levels(sample(
                model, schedule, labels[here], image_size=self.size, sampler=settings.sampler,
                steps=settings.sampler_steps, guidance=weight, seed=settings.seed, numbers=numbers,
            ))  # fmt: skip
        whole: Tensor = accelerator.reduce(pictures, reduction="sum")
        return whole

    def real(self, split: str) -> Stream:
        """The stream's pictures as uint8 levels."""
        return opened(self.settings, split, self.accelerator.device, "uint8", mean=0.0, std=1.0)


def run(settings: DiffusionSettings) -> Result:
    """Train, show what is drawn on the way, measure what is drawn at the end; goes on where it was stopped.

    Raises:
        InvalidValueError: pictures that the network can't take, a sampler's steps, or a folder with another run.
        DeviceError: a GPU was asked for that is not there.
    """
    if 0 < settings.distance_samples < FEWEST:
        raise InvalidValueError(f"distance_samples={settings.distance_samples} must be 0, or at least {FEWEST}")
    schedule = schedule_of(settings)
    solver_of(settings.sampler, schedule, settings.sampler_steps)  # else refused behind the first thousand steps
    plain = opened(settings, "train", open_accelerator(settings).device)
    size, model = picture_size(plain), denoiser(settings, plain)
    knows = judge(settings, size) if settings.distance_samples else None
    accelerator = open_accelerator(settings)  # behind that of the judge's training
    form = {"device": accelerator.device, "dtype": image_type(accelerator), **SIGNED}
    stream, held = training_stream(settings, **form), opened(settings, "validation", **form)
    studio = Studio(settings=settings, accelerator=accelerator, size=size)
    model.to(accelerator.device)
    if accelerator.device.type == "cuda" and not settings.compile:  # the compiler chooses a layout itself
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = {"fused": accelerator.device.type == "cuda"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0, **fast)
    loss = DenoisingLoss(schedule=schedule, none=model.none, unlabelled=settings.unlabelled)
    loop = Loop(model, loss, optimizer, stream, settings, accelerator)
    loop.resume(settings.folder / "checkpoint")

    shown = studio.real("validation").generate(chosen(held, settings)).torch()
    trackers, quiet = settings.trackers, settings.quiet
    with Journal(settings.folder, loop, title="diffusion", trackers=trackers, quiet=quiet) as journal:
        for record in loop:
            figures = {}
            if settings.evaluates(record.step):
                figures = tested(loop, schedule, held, settings.test_samples, settings.val_seed)
                with loop.evaluating() as average:
                    pictures = studio.draw(average, shown.labels)
                if accelerator.is_main_process:
                    sheet = contact_sheet(pictures.cpu(), title=f"step {record.step:,}", columns=settings.columns)
                    save(settings.folder / "samples" / f"step-{record.step:09d}.png", sheet)
            journal.write(record, figures)
            if settings.saves(record.step):
                loop.save(settings.folder / "checkpoint")
    test_loss = tested(loop, schedule, held, settings.test_samples, settings.val_seed)["test_loss"]
    return finished(loop, studio, shown, knows, test_loss)


def finished(loop: Loop, studio: Studio, shown: Batch, knows: Judge | None, test_loss: float) -> Result:
    """Real and drawn pictures side by side, their distances, and result.json."""
    accelerator, folder = loop.accelerator, studio.settings.folder
    with loop.evaluating() as model:
        pictures = studio.draw(model, shown.labels)
        halves, rows = distances(model, studio, knows) if knows else (None, ())
    if accelerator.is_main_process:
        sheets = [
            contact_sheet(each.cpu(), title=title, columns=studio.settings.columns)
            for each, title in ((shown.images, "real"), (pictures, "generated"))
        ]
        save(folder / "real_and_generated.png", np.concatenate(sheets, axis=1))
    (records,) = broadcast_object_list([read_records(folder) if accelerator.is_main_process else []])
    if not records:
        raise InvalidValueError(f"{folder / 'records.csv'} is missing: remove the folder to train anew")
    result = Result(
        steps=loop.step, weights=sum(each.numel() for each in loop.network.parameters()), test_loss=test_loss,
        images_per_second=statistics.median(row["images_per_second"] for row in records),
        memory=max(row["memory"] for row in records), seconds=loop.seconds, halves=halves, drawn=rows,
    )  # fmt: skip
    if accelerator.is_main_process:
        write_json(folder / "result.json", asdict(result))
    accelerator.wait_for_everyone()
    return result


def distances(model: Denoiser, studio: Studio, knows: Judge) -> tuple[Distance, tuple[Drawn, ...]]:
    """The distance of two halves of held-out pictures, and of the first from pictures drawn of the second's classes."""
    settings = studio.settings
    count = settings.distance_samples
    batches = list(held_out(studio.real("test"), 2 * count, 1000, settings.val_seed))
    labels = torch.cat([batch.labels for batch in batches])[count:]
    real = knows(torch.cat([batch.images for batch in batches]))
    halves, rows = distance(real[:count], real[count:]), []
    for guidance in settings.guidance:
        pictures = studio.draw(model, labels, guidance, f"guidance {guidance:g}")
        rows.append(Drawn(guidance=guidance, distance=distance(real[:count], knows(pictures))))
    return halves, tuple(rows)


def denoiser(settings: DiffusionSettings, stream: Stream) -> Denoiser:
    """The network with its first weights."""
    seeded("weights", settings.seed)
    make = DENOISERS[settings.denoiser]
    return make(size=settings.size, num_classes=stream.num_classes, image_size=picture_size(stream))


def schedule_of(settings: DiffusionSettings) -> Schedule:
    return noise_schedule(
        timesteps=settings.timesteps, betas=settings.betas, prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
    )  # fmt: skip


def picture_size(stream: Stream) -> int:
    """Pixels of a side.

    Raises:
        InvalidValueError: pictures that are not square, or clips.
    """
    shape = tuple(stream.generate([0]).images.shape[1:])
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InvalidValueError(f"pictures must be (3, N, N), those of the stream are {shape}: give an image_size")
    return shape[1]


def chosen(stream: Stream, settings: DiffusionSettings) -> list[int]:
    """Held-out indices for a sheet: so many of each class, or the first if there are more classes than rows."""
    first, columns = BLOCK * int(settings.val_seed), settings.columns
    if stream.num_classes > ROWS:
        return list(range(first, first + ROWS * columns))
    labels = stream.labels(range(first, first + 20 * columns * stream.num_classes))
    return [
        first + int(place) for label in range(stream.num_classes) for place in np.flatnonzero(labels == label)[:columns]
    ]


def save(path: Path, sheet: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, sheet)


def trained(folder: Path, device: str | torch.device = "cpu") -> tuple[Denoiser, DiffusionSettings]:
    """The network of a run, the average of its weights if one was kept, and what it was trained with.

    Raises:
        InvalidValueError: no checkpoint is there, or one of another recipe.
    """
    place = checkpoint.latest(folder / "checkpoint")
    if place is None:
        raise InvalidValueError(f"{folder} holds no trained diffusion model: train one there first")
    values = checkpoint.load(place)
    told = json.loads(values["loop"]["settings"])
    if not {"denoiser", "timesteps", "prediction"} <= told.keys():
        raise InvalidValueError(f"{place} is of another recipe: give a folder of recipes/diffusion.py")
    settings = DiffusionSettings(**told)
    model = denoiser(settings, opened(settings, "validation", device))
    average = {name.removeprefix("module."): value for name, value in values["average"].items() if "." in name}
    model.load_state_dict(average or values["network"])
    return model.to(device).eval(), settings


def sampled(settings: DiffusionSettings) -> Tensor:
    """Draw from a trained run: samples.png in `settings.folder`, and samples.npz with the pictures and labels.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        InvalidValueError: no trained run in `settings.sample_only`.
    """
    accelerator = open_accelerator(settings)
    model, known = trained(settings.sample_only or settings.folder, accelerator.device)
    stream = opened(known, "validation", accelerator.device)
    labels = torch.arange(min(ROWS, model.num_classes), device=accelerator.device).repeat_interleave(settings.columns)
    how = ("sampler", "sampler_steps", "guidance", "sampler_batch_size", "seed", "quiet")
    asked = DiffusionSettings(**{**known.decisive(), **{name: getattr(settings, name) for name in how}})
    studio = Studio(settings=asked, accelerator=accelerator, size=picture_size(stream))
    with torch.no_grad(), accelerator.autocast():
        pictures = studio.draw(model, labels, title="samples")
    if accelerator.is_main_process:
        title = f"{asked.sampler}, {asked.sampler_steps} steps, guidance {asked.guidance[0]:g}"
        images, classes = pictures.cpu().numpy(), labels.cpu().numpy()
        save(settings.folder / "samples.png", contact_sheet(images, title=title, columns=settings.columns))
        path = settings.folder / "samples.npz"
        whole_file(path, lambda place: np.savez_compressed(place, images=images, labels=classes))
    return pictures


def main(settings: DiffusionSettings) -> None:
    if settings.sample_only is not None:
        sampled(settings)
    else:
        print(json.dumps(asdict(run(settings)), indent=2))


app = command(DiffusionSettings, main, "Train a diffusion model that draws pictures of each class of a stream.")

if __name__ == "__main__":
    app()
