"""What does a variational autoencoder learn of pictures that never repeat, and does its code know what they are?

    python -m fractal_streams.recipes.vae                                   # 64 numbers, plain convolutions
    python -m fractal_streams.recipes.vae --architecture kl --width 32 --batch-size 256    # diffusers', the same size
    python -m fractal_streams.recipes.vae --betas 0.1,0.5,2,8 --num-steps 1500

Claims (measured, with hardware, steps and time): see recipes/README.md.

The stream knows which latents each picture was drawn from, so a linear probe says how much of them the code holds:
R² beside PCA of the same size, an untrained encoder, and all pixels. It sees no more than what is linear in them: the
angles alpha and beta of fractal-10's maps are near 0 for each of these, all pixels included; a small CNN gets to 0.2
for beta. Every β is a run in a folder of its own, one after the other, each of which resumes. ELBO terms are nats per
picture, of pictures in [-1, 1] under a normal likelihood whose one deviation is learned, or fixed by --scale.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_streams.recipes.data import DataSettings, held_out, opened, training_stream
from fractal_streams.recipes.settings import command, option

from fractal_streams import Stream
from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from accelerate import Accelerator
    from fractal_streams.recipes import probe
    from fractal_streams.recipes.journal import Journal, read_records
    from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.autoencoders import ARCHITECTURES, Autoencoder, Coded, autoencoder
    from fractal_streams.recipes.vae_pictures import (
        Point,
        draw_rate_distortion,
        psnr,
        save_prior_samples,
        save_rows,
        save_traversals,
    )
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

HALF = (0.5, 0.5, 0.5)
"""Mean and deviation that bring levels in [0, 1] to [-1, 1]."""
ACTIVE = 0.01
"""Nats per picture from which on a latent counts as used."""


@dataclass(frozen=True, kw_only=True)
class VAESettings(LoopSettings, DataSettings):
    """How an autoencoder is trained and looked at."""

    architecture: str = option("plain", "Of the autoencoder.", choices=ARCHITECTURES)
    latent_size: int = option(64, "Numbers of a code.", low=1)
    width: int = option(64, "Channels at full size.", low=1)
    halvings: int = option(3, "Of height and width on the way to the code.", low=0, high=8)
    betas: tuple[float, ...] = option((1.0,), "Weights of the KL term; a run for each.", low=0.0)
    kl_warmup_steps: int = option(500, "Steps in which the weight of the KL term rises to beta.", low=0)
    scale: float | None = option(None, "Deviation of a pixel, of [-1, 1]; without it, it is learned.", low=1e-4)
    learning_rate: float = option(1e-3, "Of all weights, behind the warm-up.", low=0.0)
    scale_rate: float = option(1e-2, "Of the logarithm of the deviation.", low=0.0)
    num_steps: int = option(6000, "Updates of the weights.", low=1)
    batch_size: int = option(512, "Samples of an update, of all ranks together.", low=1)
    eval_samples: int = option(4096, "Held-out samples of an evaluation.", low=1, changes_nothing=True)
    probe_samples: int = option(16384, "Held-out samples that probes are fitted to; or 0.", low=0, changes_nothing=True)
    folder: Path = option(Path("outputs/vae"), "Where all is written.", changes_nothing=True)  # noqa: RUF009
    quiet: bool = option(False, "No progress bar.", changes_nothing=True)

    def weight(self, step: int) -> float:
        """Of the KL term in a step: a linear rise to β.

        Example:
            >>> settings = VAESettings(betas=(4.0,), kl_warmup_steps=8)
            >>> [settings.weight(step) for step in (0, 3, 7, 100)]
            [0.5, 2.0, 4.0, 4.0]
        """
        return self.betas[0] * min(1.0, (step + 1) / max(1, self.kl_warmup_steps))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one β came to, on held-out samples of the test split.

    elbo, kl, log_likelihood: nats per picture, elbo = log_likelihood - kl. kl_of_latents: (latent_size,) of them.
    psnr: dB, of reconstructions from drawn codes. rate: the KL in bits per pixel.
    psnr_of_means: dB, of reconstructions from mean codes; psnr_of_pca: from as many principal components. Of the
        samples that probes are tested on; None without them, and of PCA if pictures were averaged down for it.
    scale: deviation of a pixel from its reconstruction, pictures in [-1, 1].
    active: latents with at least 0.01 nats. probes: representation to R² by latent and accuracy of the class.
    """

    beta: float
    elbo: float
    kl: float
    log_likelihood: float
    psnr: float
    psnr_of_means: float | None
    psnr_of_pca: float | None
    rate: float
    scale: float
    active: int
    kl_of_latents: tuple[float, ...]
    probes: Mapping[str, probe.Told]
    trail: tuple[tuple[float, float], ...]
    steps: int
    images_per_second: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run for each β, and the settings that they share. weights: of the autoencoder, how many."""

    settings: Mapping[str, Any]
    weights: int
    runs: tuple[Run, ...]


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B, k) nats: KL(N(mean, variance) || N(0, 1)) of each latent (Kingma and Welling 2014, appendix B).

    Example:
        >>> kl_to_prior(torch.tensor([2.0]), torch.tensor([0.0])).tolist()
        [2.0]
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def log_likelihood(images: Tensor, reconstruction: Tensor, log_scale: Tensor) -> Tensor:
    """(B,) nats: the logarithm of the density of pictures under N(reconstruction, scale² I).

    Example:
        >>> one = log_likelihood(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), torch.tensor(0.0))
        >>> round(float(one) / 3, 4)
        -0.9189
    """
    errors = (images.float() - reconstruction) * (-log_scale).exp()
    constant = log_scale + 0.5 * math.log(math.tau)
    return -(0.5 * errors.square() + constant).flatten(1).sum(1)


def negative_elbo(model: nn.Module, batch: Any, weight: float) -> dict[str, Tensor]:
    """The terms of a batch (images, labels), nats per picture; the loss is weight kl - log_likelihood."""
    images, _ = batch
    coded = Coded(*model(images))
    kl = kl_to_prior(coded.mean, coded.log_variance).sum(1).mean()
    likelihood = log_likelihood(images, coded.reconstruction, coded.log_scale).mean()
    return {
        "loss": weight * kl - likelihood, "elbo": likelihood - kl, "log_likelihood": likelihood, "kl": kl,
        "scale": coded.log_scale.exp(),
    }  # fmt: skip


def tested(loop: Loop, stream: Stream, samples: int, val_seed: int = 0) -> tuple[dict[str, float], Tensor]:
    """The ELBO and its terms on held-out samples, shared out over the ranks; and (latent_size,) KL of each latent."""
    accelerator, kls, sums = loop.accelerator, None, torch.zeros(3, dtype=torch.float64)
    seeded("evaluation", loop.settings.seed, accelerator.process_index)
    with loop.evaluating() as model:
        kls = torch.zeros(model.latent_size, dtype=torch.float64, device=accelerator.device)  # type: ignore[arg-type]
        sums = sums.to(accelerator.device)
        for place, batch in enumerate(held_out(stream, samples, 512, val_seed)):
            if place % accelerator.num_processes == accelerator.process_index:
                coded = Coded(*model(batch.images))
                kls += kl_to_prior(coded.mean, coded.log_variance).double().sum(0)
                error = (batch.images.float() - coded.reconstruction).square().flatten(1).mean(1).double().sum()
                told = log_likelihood(batch.images, coded.reconstruction, coded.log_scale).double().sum()
                sums += torch.stack([told, error, error.new_tensor(len(batch.images))])
    likelihood, error, count = accelerator.reduce(sums, reduction="sum").tolist()
    latents = accelerator.reduce(kls, reduction="sum") / count
    kl = float(latents.sum())
    terms = {"elbo": likelihood / count - kl, "log_likelihood": likelihood / count, "kl": kl}
    return {**{f"test_{name}": value for name, value in terms.items()}, "test_psnr": psnr(error / count)}, latents


def network_of(settings: VAESettings, shape: tuple[int, int, int], purpose: str = "weights") -> Autoencoder:
    """The autoencoder with its first weights."""
    seeded(purpose, settings.seed)
    return autoencoder(
        settings.architecture, shape, latent_size=settings.latent_size, width=settings.width,
        halvings=settings.halvings, scale=settings.scale,
    )  # fmt: skip


def optimizer_of(network: Autoencoder, settings: VAESettings, device: torch.device) -> torch.optim.Optimizer:
    """Adam; the logarithm of the deviation has a rate of its own, as it has far to go."""
    weights = [weight for name, weight in network.named_parameters() if name != "log_scale"]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": settings.learning_rate}]
    if settings.scale is None:
        groups.append({"params": [network.log_scale], "lr": settings.scale_rate})
    return torch.optim.Adam(groups, fused=True if device.type == "cuda" else None)


def trained(settings: VAESettings, accelerator: Accelerator) -> tuple[Loop, float]:
    """A loop behind its last step, and its images/s; settings with one β and the folder of its run."""
    form = {"dtype": image_type(accelerator), "mean": HALF, "std": HALF}
    stream = training_stream(settings, accelerator.device, **form)
    validation = opened(settings, "validation", accelerator.device, **form)
    shape = tuple(stream.generate([0]).images.shape[1:])
    pixels = math.prod(min(probe.EDGE, edge) for edge in shape[1:]) * shape[0]
    if settings.probe_samples and settings.latent_size > pixels:
        told = f"latent_size={settings.latent_size} is more than the {pixels} values that PCA has of a picture"
        raise InvalidValueError(f"{told}: choose a smaller one, or probe_samples=0")
    network = network_of(settings, shape).to(accelerator.device)
    optimizer = optimizer_of(network, settings, accelerator.device)

    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return negative_elbo(model, batch, settings.weight(loop.step))

    loop: Loop = Loop(network, loss, optimizer, stream, settings, accelerator)
    loop.resume(settings.folder / "checkpoint")
    title = f"{settings.architecture} VAE, beta {settings.betas[0]:g}"
    with Journal(settings.folder, loop, title=title, trackers=settings.trackers, quiet=settings.quiet) as journal:
        for record in loop:
            due = settings.evaluates(record.step)
            figures = tested(loop, validation, settings.eval_samples, settings.val_seed)[0] if due else {}
            journal.write(record, figures)
            if settings.saves(record.step):
                loop.save(settings.folder / "checkpoint")
    paces = sorted(row["images_per_second"] for row in journal.rows)
    return loop, paces[len(paces) // 2] if paces else 0.0


@dataclass(frozen=True, eq=False)
class Held:
    """Held-out samples with what is told of them without the autoencoder.

    known: of the validation split, which probes and PCA are fitted to. test: of the test split.
    pca: of as many components as a code has numbers. told: representation to its probes.
    """

    known: probe.Look
    test: probe.Look
    pca: probe.Principal
    told: Mapping[str, probe.Told]

    @property
    def whole(self) -> bool:
        """Whether the principal components are of whole pictures, and not of pictures averaged down."""
        return math.prod(self.known.images.shape[1:]) == len(self.pca.mean)

    def from_components(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) pictures from their principal components."""
        rows = images.flatten(1).to(self.pca.mean)
        return (self.pca.mean + self.pca(rows) @ self.pca.components.T).view_as(images)


def psnr_of(images: Tensor, remade: Callable[[Tensor], Tensor]) -> float:
    """PSNR, dB, of what is made again of (N, 3, H, W) pictures in [-1, 1], batch by batch."""
    errors = [(remade(part) - part).double().square().mean((1, 2, 3)) for part in images.split(512)]
    return psnr(float(torch.cat(errors).mean()))


def held(settings: VAESettings, device: Any) -> Held:
    """The samples, and what PCA of the same size, an untrained encoder and all pixels tell of them."""
    asked = {"validation": settings.probe_samples, "test": max(1, settings.probe_samples // 2)}
    known, test = (
        probe.looked_at(opened(settings, split, device, mean=HALF, std=HALF), count, settings.val_seed)
        for split, count in asked.items()
    )
    pca = probe.principal_components(known.pixels(), settings.latent_size)
    untrained = network_of(settings, tuple(known.images.shape[1:]), "untrained").to(device).eval()
    features = {
        "PCA": [pca(look.pixels()) for look in (known, test)],
        "untrained encoder": [look.through(lambda images: untrained.encode(images)[0]) for look in (known, test)],
        "all pixels": [look.pixels() for look in (known, test)],
    }
    told = {name: probe.probed(first, known, second, test) for name, (first, second) in features.items()}
    return Held(known, test, pca, told)


def pictures(folder: Path, model: Autoencoder, images: Tensor, information: Tensor, title: str, pca: Any) -> None:
    """Reconstructions, samples and traversals, in the folder.

    Args:
        images: (N, 3, H, W) float32, held out. pca: pictures to what principal components leave of them, or None.
    """
    shown = images[:30]
    sides = {"original": shown, "VAE": model.decode(model.encode(shown)[0])}
    if pca is not None:
        sides[f"PCA of {model.latent_size}"] = pca(shown)
    save_rows(folder / "reconstructions.png", sides, f"{title}: reconstructions of held-out pictures")
    save_prior_samples(folder / "samples.png", model, 60, f"{title}: samples from the prior")
    what = "latents with the most information, from -3 to 3"
    save_traversals(folder / "traversals.png", model, images[0], information, f"{title}: {what}")


def looked_at(loop: Loop, settings: VAESettings, pace: float, others: Held | None) -> Run:
    """The run's figures; on the main process its pictures and probes, too, in its folder."""
    accelerator, folder = loop.accelerator, settings.folder
    stream = opened(settings, "test", accelerator.device, image_type(accelerator), mean=HALF, std=HALF)
    terms, information = tested(loop, stream, settings.eval_samples, settings.val_seed)
    title = f"{settings.architecture} VAE, beta {settings.betas[0]:g}"
    images = next(held_out(stream, 30, 30, settings.val_seed)).images.float()
    told: dict[str, probe.Told] = {}
    means = linear = None
    with loop.evaluating() as model, torch.autocast(accelerator.device.type, enabled=False):
        assert isinstance(model, Autoencoder)
        scale = float(model.log_scale.exp())
        if accelerator.is_main_process:
            seeded("pictures", settings.seed)
            pca = others.from_components if others is not None and others.whole else None
            pictures(folder, model, images, information, title, pca)
        if others is not None:
            first, second = (
                look.through(lambda images: model.encode(images)[0]) for look in (others.known, others.test)
            )
            means = psnr_of(others.test.images, lambda images: model.decode(model.encode(images)[0]))
            linear = psnr_of(others.test.images, others.from_components) if others.whole else None
            told = {"VAE": probe.probed(first, others.known, second, others.test), **others.told}
            probe.draw_probes(folder / "probes.png", told, f"{title}: what the code knows")
    rows, bits = read_records(folder), 1.0 / (math.log(2) * images.shape[-1] * images.shape[-2])
    return Run(
        beta=settings.betas[0], elbo=terms["test_elbo"], kl=terms["test_kl"],
        log_likelihood=terms["test_log_likelihood"],
        psnr=terms["test_psnr"], psnr_of_means=means, psnr_of_pca=linear, rate=bits * terms["test_kl"],
        scale=scale, active=int((information >= ACTIVE).sum()), kl_of_latents=tuple(information.tolist()), probes=told,
        trail=tuple((bits * row["test_kl"], row["test_psnr"]) for row in rows if "test_kl" in row),
        steps=loop.step, images_per_second=pace, memory=max((row["memory"] for row in rows), default=0),
    )  # fmt: skip


def run(settings: VAESettings) -> Result:
    """Train and look at an autoencoder for each β.

    Writes, in the folder: result.json and rate_distortion.png; in beta-<β> of each: checkpoint/, records.csv,
    curves.png, reconstructions.png, samples.png, traversals.png, probes.png.

    Raises:
        InvalidValueError: clips, pictures that can't be halved so often, too few samples for the probes, or a
            checkpoint of other settings; each says what to do.
    """
    fewest = max(settings.latent_size + 1, 2 * probe.FEWEST)
    if 0 < settings.probe_samples < fewest:
        told = f"must be more than latent_size={settings.latent_size} and at least {2 * probe.FEWEST}, or 0"
        raise InvalidValueError(f"probe_samples={settings.probe_samples} {told}")
    runs: list[Run] = []
    others, weights, shape = None, 0, (3, 0, 0)
    for beta in dict.fromkeys(settings.betas):
        own = dataclasses.replace(settings, betas=(beta,), folder=settings.folder / f"beta-{beta:g}")
        accelerator = open_accelerator(own)
        loop, pace = trained(own, accelerator)
        assert isinstance(loop.network, Autoencoder)
        weights = sum(weight.numel() for weight in loop.network.parameters())
        shape = loop.network.image_shape
        if others is None and settings.probe_samples and accelerator.is_main_process:
            others = held(own, accelerator.device)
        runs.append(looked_at(loop, own, pace, others))
        accelerator.wait_for_everyone()
    result = Result(settings=settings.decisive(), weights=weights, runs=tuple(runs))
    if accelerator.is_main_process:
        save_result(settings.folder / "result.json", result)
        draw_rate_distortion(
            settings.folder / "rate_distortion.png",
            [Point(beta=each.beta, rate=each.rate, psnr=each.psnr, trail=each.trail) for each in runs],
            shape, f"{settings.architecture} VAE, {settings.latent_size} numbers, {settings.preset}",
            others.pca.variances.cpu().numpy() if others is not None and others.whole else None, settings.latent_size,
        )  # fmt: skip
        print_figures(result)
    return result


def save_result(path: Path, result: Result) -> None:
    text = json.dumps(dataclasses.asdict(result), indent=1)

    def write(written: Path) -> None:
        written.write_text(text)

    whole_file(path, write)


def print_figures(result: Result) -> None:
    """A line for each β, and one for each representation."""
    for each in result.runs:
        print(
            f"β {each.beta:g}: elbo {each.elbo:,.1f} nats, kl {each.kl:.1f} nats = {each.rate:.3f} bits per pixel, "
            f"{each.psnr:.2f} dB, {each.active} latents active"
        )
        if each.psnr_of_means is not None:
            linear = (
                "" if each.psnr_of_pca is None else f", from as many principal components {each.psnr_of_pca:.2f} dB"
            )
            print(f"  from mean codes {each.psnr_of_means:.2f} dB{linear}")
        for name, told in each.probes.items():
            print(f"  {name} ({told.features}): mean R² {told.mean:.3f}, {told.accuracy:.1%} of classes")


app = command(VAESettings, run, "Train variational autoencoders and see what their codes know.")
if __name__ == "__main__":
    app()
