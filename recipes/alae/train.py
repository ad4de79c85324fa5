"""Does an encoder that no pixel was compared for find each fractal again? ALAE, with slots for terms of one's own.

    fractal-streams train alae --compile                                      # S-64, 3 million pictures
    fractal-streams train alae --slots latent_infonce,real_cycle,l1 --folder outputs/alae-contrast
    fractal-streams train alae --preset fractal-video --slots time_contrast --prior parameters
    fractal-streams train alae --data film.mp4 --skip 4 --crop-size 512

Claims (reconstruction, distances, what codes know, pace, hardware): see recipes/README.md.

The folder gets records.csv, curves.png, pictures of each evaluation, model.safetensors (the average of the weights),
examination.json and .txt with every figure beside its yardstick, and result.json. A run that was stopped goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fractal_streams.recipes.alae.growth import Growth
from fractal_streams.recipes.alae.guards import Guards, GuardSettings
from fractal_streams.recipes.alae.priors import PRIORS, Prior, make_prior
from fractal_streams.recipes.alae.sources import SourceSettings, opened_source
from fractal_streams.recipes.results import save_text, write_json
from fractal_streams.recipes.settings import command, option

from fractal_streams import Stream
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from accelerate import Accelerator
    from fractal_streams.recipes.alae.adversarial_loop import AdversarialLoop
    from fractal_streams.recipes.alae.codes import stills
    from fractal_streams.recipes.alae.examine import examined
    from fractal_streams.recipes.alae.features import Features, FeatureSettings, opened_features, own_features
    from fractal_streams.recipes.alae.keeping import save_model
    from fractal_streams.recipes.alae.model import ALAE, SIZES, fitted
    from fractal_streams.recipes.alae.reconstruction import matched_ratio, psnr, through
    from fractal_streams.recipes.alae.showing import Showing
    from fractal_streams.recipes.alae.terms import networks_of, slots_named
    from fractal_streams.recipes.alae.updates import PARTS, RECIPROCITY, Rules, Updates
    from fractal_streams.recipes.journal import Journal
    from fractal_streams.recipes.loop import LoopSettings, image_type, open_accelerator, seeded
    from fractal_streams.recipes.probe import Look, looked_at
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


@dataclass(frozen=True, kw_only=True)
class ALAESettings(LoopSettings, SourceSettings, GuardSettings):
    """How an ALAE is made, trained and examined."""

    num_steps: int = option(23_500, "Updates of the weights; of 128, 3 million pictures.", low=1)
    batch_size: int = option(128, "Samples of an update, of all ranks together.", low=2)
    warmup_steps: int = option(0, "Steps in which the rate rises.", low=0)
    schedule: str = option("constant", "Of the rate behind the warm-up.", choices=("cosine", "constant"))
    eval_once_every: int = option(
        2500, "Steps from one test with its pictures to the next.", low=1, changes_nothing=True
    )
    checkpoint_every: int = option(2500, "Steps from one checkpoint to the next.", low=1, changes_nothing=True)
    size: str = option("s-64", "Of the networks; mlp sees no neighbours among pixels.", choices=tuple(SIZES))
    activation: str = option("lrelu", "Of the discriminator; none is the published one.", choices=("lrelu", "none"))
    dense: bool = option(False, "Maps are read and written place by place too, not by statistics alone.")
    prior: str = option("gaussian", "What z is drawn from.", choices=tuple(PRIORS))
    slots: tuple[str, ...] = option((), "Terms beside the three updates, NAME or NAME=WEIGHT, with commas between.")
    lr: float = option(1.5e-3, "Rate of Adam, on equalised layers.", low=0.0)
    projector_rate: float = option(0.1, "Share of it that the projector's layers have.", low=1e-6, high=1.0)
    gamma: float = option(10.0, "Weight of R1.", low=0.0)
    r1_every: int = option(1, "Steps from one R1 to the next, as many times as strong.", low=1)
    mixing: float = option(0.9, "Share of pictures with the styles of two codes.", low=0.0, high=1.0)
    reciprocity: str = option(
        "code", "What follows reciprocity: code is E, G, F; paper is E, G.", choices=tuple(RECIPROCITY)
    )
    reciprocity_weight: float = option(1.0, "Of reciprocity, where it shares its optimizer.", low=0.0)
    separate: bool = option(False, "Reciprocity has an optimizer of its own: its weight means nothing then.")
    grow: bool = option(False, "Begin with 8 pixels a side, and double.")
    fade_images: int = option(300_000, "Images while a level is blended in.", low=1)
    stable_images: int = option(300_000, "Images of a level then.", low=1)
    ema_images: int = option(10_000, "Images in which a weight's share of the average halves; 0 keeps none.", low=0)
    cuda_graphs: bool = option(
        True, "On one GPU, replay a step's kernels at once instead of launching each.", changes_nothing=True
    )
    test_samples: int = option(1000, "Held-out pictures of a test.", low=32, changes_nothing=True)
    final_samples: int = option(10_000, "Pictures of each set of the examination; 0 for none.", changes_nothing=True)
    feature_steps: int = option(2000, "Updates of the classifier it compares by; 0 for none.", changes_nothing=True)
    features: Path | None = option(  # noqa: RUF009
        None, "Folder of a classifier of these pictures; else one is trained.", changes_nothing=True
    )
    folder: Path = option(Path("outputs/alae"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bars.", changes_nothing=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        slots_named(self.slots)
        if 0 < self.final_samples < 32:
            raise InvalidValueError(f"final_samples={self.final_samples} must be 0, or at least 32")

    @property
    def whole(self) -> ALAESettings:
        """With the size's own picture size."""
        own: dict[str, Any] = {"image_size": self.image_size or SIZES[self.size].image_size}
        return replace(self, **own)

    def averaging(self, frames: int) -> ALAESettings:
        """With the share of the average that stays in a step, of samples of so many pictures."""
        share = 0.5 ** (self.batch_size * frames / self.ema_images) if self.ema_images else 0.0
        own: dict[str, Any] = {"ema": share}
        return replace(self, **own)


@dataclass(frozen=True, kw_only=True)
class Result:
    """steps: done. weights: how many. images_per_second: median. waiting: mean share. memory: bytes, the most.

    seconds: of training. figures: name to value, of `examined`.
    """

    steps: int
    weights: int
    images_per_second: float
    waiting: float
    memory: int
    seconds: float
    figures: dict[str, float]


def run(settings: ALAESettings) -> Result:
    """Train, show, examine; goes on where it was stopped.

    Raises:
        InvalidValueError: a size that is no power of two, a slot that the source has nothing for, another run's folder.
        DivergedError: a loss that is no number, a collapsed generator, or a discriminator that has won: see `guards`.
        DeviceError: a GPU was asked for that is not there.
    """
    settings = settings.whole
    accelerator = open_accelerator(settings)
    form = (accelerator.device, image_type(accelerator))
    training = opened_source(settings, "train", *form)
    test = opened_source(settings, "test", accelerator.device)
    measured = opened_source(settings, "validation", accelerator.device) if settings.prior == "parameters" else None
    prior = make_prior(settings.prior, measured, SIZES[settings.size].code_size)
    loop = looped(settings, training, prior, accelerator)
    loop.resume(settings.folder / "checkpoint")

    showing = Showing.of(test, prior, val_seed=settings.val_seed, device=accelerator.device)
    look = stills(looked_at(test, settings.test_samples, settings.val_seed))
    guards = Guards(settings=settings)
    trackers, quiet, pictures = settings.trackers, settings.quiet, settings.folder / "pictures"
    with Journal(settings.folder, loop, title=f"ALAE {settings.size}", trackers=trackers, quiet=quiet) as journal:
        for row in journal.rows:
            watch(guards, row["step"], row)
        for record in loop:
            watch(guards, record.step, record.terms)
            figures = {}
            if settings.evaluates(record.step):
                with loop.evaluating():
                    figures = glanced(loop.averaged, look)
            journal.write(record, figures)
            if settings.evaluates(record.step) and accelerator.is_main_process:
                with loop.evaluating():
                    showing.save(loop.averaged, pictures, record.step, journal)
            if settings.saves(record.step):
                loop.save(settings.folder / "checkpoint")
    return finished(settings, loop, journal, test)


def made(settings: ALAESettings, shape: tuple[int, ...], prior_size: int) -> ALAE:
    """The networks with their first weights."""
    seeded("weights", settings.seed)
    return ALAE(
        SIZES[settings.size], shape, prior_size=prior_size, flat=settings.size == "mlp", activation=settings.activation,
        first_level=1 if settings.grow and settings.size != "mlp" else None, rate=settings.projector_rate,
        dense=settings.dense,
    )  # fmt: skip


def looped(settings: ALAESettings, training: Stream, prior: Prior, accelerator: Accelerator) -> AdversarialLoop:
    """The training of settings, at its beginning.

    Raises:
        InvalidValueError: pictures that the networks can't take, or a slot that clips are needed for.
    """
    shape = tuple(training.generate(range(0)).images.shape[1:])
    model = made(settings, shape[-3:], prior.size).to(accelerator.device)
    slots = slots_named(settings.slots)
    names = ("lr", "gamma", "r1_every", "mixing", "reciprocity", "reciprocity_weight", "separate", "clip")
    rules = Rules(**{name: getattr(settings, name) for name in names})
    others = networks_of(slots, model)
    updates = Updates(model, prior.to(accelerator.device), rules, accelerator, slots, others)
    growth = Growth(
        first=model.first_level, last=model.last_level, fade=settings.fade_images, stable=settings.stable_images
    )
    frames = shape[0] if len(shape) == 4 else 1
    return AdversarialLoop(
        updates, training, settings.averaging(frames), growth, cuda_graphs=settings.cuda_graphs, frames=frames
    )


def watch(guards: Guards, step: int, terms: Mapping[str, float]) -> None:
    """Tell the guards of a record; terms that are not told yet are no numbers, and are left out."""
    losses = {name: terms[name] for name in PARTS}
    deviations = {"fakes": terms["fake_deviation"], "reals": terms["real_deviation"]}
    guards.watch(step, losses, discriminator=terms["discriminator"], **deviations)


@torch.no_grad()
def glanced(model: ALAE, look: Look) -> dict[str, float]:
    """How near held-out pictures are to what is made of their codes, now."""
    images = fitted(look.images, model)
    _, again = through(images, model.encode, lambda codes: model.decode(codes, noise=False))
    return {"test_psnr": psnr(images, again), "test_ratio": matched_ratio(images, again)}


def finished(settings: ALAESettings, loop: AdversarialLoop, journal: Journal, test: Stream) -> Result:
    """The trained model, its examination, and result.json."""
    accelerator, folder, found = loop.accelerator, settings.folder, None
    loop.forget_graphs()  # their memory is wanted
    own = classifier(settings, test) if settings.final_samples else None
    with loop.evaluating():
        model = loop.averaged
        if accelerator.is_main_process:
            save_model(folder, model, SIZES[settings.size])
        if settings.final_samples:
            untrained = made(settings, model.shape, model.prior_size).to(accelerator.device)
            if not model.flat:
                untrained.grow(model.level)
            found = examined(
                model, test, samples=settings.final_samples, own=own, prior=loop.updates.prior, untrained=untrained,
                seed=settings.seed, val_seed=settings.val_seed,
            )  # fmt: skip
    if accelerator.is_main_process:
        if not journal.rows:
            raise InvalidValueError(f"{folder / 'records.csv'} is missing: remove the folder to train anew")
        warm = journal.rows[1:] or journal.rows
        result = Result(
            steps=loop.step, weights=sum(weight.numel() for weight in model.parameters()),
            images_per_second=statistics.median(row["images_per_second"] for row in warm),
            waiting=statistics.fmean(row["waiting"] for row in warm), memory=max(row["memory"] for row in warm),
            seconds=loop.seconds, figures=dict(found.figures) if found else {},
        )  # fmt: skip
        write_json(folder / "result.json", {**asdict(result), "settings": settings.decisive()})
        if found:
            write_json(folder / "examination.json", asdict(found))
            save_text(folder / "examination.txt", found.table() + "\n")
    else:
        result = Result(
            steps=loop.step, weights=0, images_per_second=0.0, waiting=0.0, memory=0, seconds=0.0, figures={}
        )
    accelerator.wait_for_everyone()
    return result


def classifier(settings: ALAESettings, test: Stream) -> Features | None:
    """Features that pictures are compared by, of a stream that has classes."""
    if settings.features is not None:
        return opened_features(settings.features, test.generate(range(0)).images.shape[-1], test.device)
    if not settings.feature_steps or test.num_classes < 2:
        return None
    asked = FeatureSettings(
        num_steps=settings.feature_steps, device=settings.device, precision=settings.precision,
        batch_size=4 * settings.batch_size, quiet=settings.quiet,
    )  # fmt: skip
    return own_features(opened_source(settings, "train", test.device), settings.folder / "features", asked)


def tell(result: Result, settings: ALAESettings) -> None:
    """Print what a run reached, and where it lies."""
    print(f"{result.steps:,} steps in {result.seconds:,.0f} s, {result.images_per_second:,.0f} images/s, "
          f"{result.waiting:.2%} of the time waited for data, {result.memory / 1e9:.1f} GB")  # fmt: skip
    for name in ("psnr", "psnr_box", "ratio", "reciprocity", "class_linear_codes", "frechet_own", "frechet_own_floor"):
        if name in result.figures:
            print(f"{name.replace('_', ' ')}: {result.figures[name]:.4g}")
    print(f"{settings.folder}: {', '.join(sorted(path.name for path in settings.folder.iterdir()))}")


app: Any = command(
    ALAESettings, lambda settings: tell(run(settings), settings), "Train an adversarial latent autoencoder on fractals."
)

if __name__ == "__main__":
    app()
