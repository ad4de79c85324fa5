"""What a trained ALAE is worth, on held-out pictures of a stream: every figure beside what it has to be held to.

    found = examined(model, test_stream, own=own_features(training_stream, folder / "features"))
    print(found.table())

Distances of made pictures stand beside their floor: the same distance between two sets of real pictures, of the same
counts. Reconstructions stand beside those of simpler codes, and what codes know beside what is known without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from fractal_streams.recipes.probe import Look

from fractal_streams import Batch, Stream
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.alae import codes as codes_of, reconstruction, spectra
    from fractal_streams.recipes.alae.board import looking
    from fractal_streams.recipes.alae.features import Features, exact_products, random_features
    from fractal_streams.recipes.alae.guards import batch_deviation
    from fractal_streams.recipes.alae.yardsticks import (
        NO_CLASSIFIER,
        SAMPLES,
        Examination as Examination,
        Findings,
        halves,
        take_distances,
        take_knowledge,
        take_nearness,
        take_spectra,
        take_speeds,
        take_yardsticks,
    )
    from fractal_streams.recipes.loop import seeded
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PATHS = 4096
"""Steps along straight lines of codes, at most."""


class Model(Protocol):
    """What is asked of an ALAE; see `recipes.alae.model`."""

    code_size: int
    prior_size: int
    training: bool

    def project(self, draws: Tensor, /) -> Tensor: ...
    def decode(self, codes: Tensor, /, noise: bool = True) -> Tensor: ...
    def encode(self, pictures: Tensor, /) -> Tensor: ...
    def train(self, mode: bool = True, /) -> Any: ...
    def parameters(self) -> Iterator[Tensor]: ...


class Prior(Protocol):
    """Draws of z for pictures of a batch; see `recipes.alae.priors`."""

    def draw(self, batch: Batch, model: Any, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What a model makes: N of each, float32.

    codes: (N, d), F(z). fakes: with noise. again: (N, d), what E says of the codes' pictures without noise.
    real_codes: (N, d), of the test pictures. reconstructions: of those, without noise.
    """

    codes: Tensor
    fakes: Tensor
    again: Tensor
    real_codes: Tensor
    reconstructions: Tensor


@torch.no_grad()
def examined(
    model: Model,
    stream: Stream,
    *,
    samples: int = SAMPLES,
    own: Features | None = None,
    prior: Prior | None = None,
    untrained: Model | None = None,
    patches: int = spectra.PATCHES,
    projections: int = spectra.PROJECTIONS,
    batch_size: int = 250,
    seed: int = 0,
    val_seed: int = 0,
) -> Examination:
    """All measures of a model; what a stream has no labels, parameters or clips for is left out, with the reason.

    Args:
        model: of the stream's pictures; the average of weights, if one is kept. It is left in the mode it was in. For
            one that makes smaller pictures, as it has not grown up, they are reduced: give it no `own` features then.
        stream: of the test split, with pictures in [-1, 1] (mean and std 0.5), or clips of them.
        samples: pictures of each of two halves: one is reconstructed and compared, the other is for floors and fits.
        own: features of a classifier of this stream, see `own_features`.
        prior: of z; without it, normal numbers.
        untrained: the same networks with their first weights, to hold probes and speeds to.
        patches, projections: of the sliced Wasserstein distance.
        seed: names the draws. val_seed: the held-out pictures.

    Raises:
        InvalidValueError: fewer than 20 pictures in a half, pictures of another size than the model's, or a model that
            makes values that are no numbers.
    """
    device = next(model.parameters()).device
    with looking(model), nullcontext() if untrained is None else looking(untrained), apart(device):
        seeded("examination", seed)
        edge = model.decode(model.project(torch.randn(2, model.prior_size, device=device))).shape[-1]
        known, clips = (reduced(each, edge) for each in halves(stream, samples, val_seed, device))
        known, test = codes_of.stills(known), codes_of.stills(clips)
        findings, networks = Findings(), {"random": random_features(0, device), "own": own}
        made = made_by(model, known, test, prior, batch_size)
        sets = {"": made.fakes, "_reconstructions": made.reconstructions}
        take_distances(findings, sets, test.images, networks)
        take_spectra(findings, sets, test.images, patches, projections)
        take_nearness(findings, {"": lambda: made.reconstructions}, test.images)
        take_codes(findings, model, made, test.images, networks)
        ways: dict[str, Callable[[Tensor], Tensor]] = {"codes": model.encode}
        if untrained is None:
            findings.left_out["class_linear_untrained"] = "no untrained model was given"
        else:
            ways["untrained"] = untrained.encode
        take_knowledge(findings, ways, known, test)
        take_speeds(findings, ways, clips)
        take_yardsticks(findings, known, clips, networks, model.code_size, patches, projections)
    return findings.examination(len(test.images))


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Products in full precision, and draws that change none behind them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), exact_products(device):
        yield


def reduced(look: Look, edge: int) -> Look:
    """With pictures of the size that a model which has not grown up makes: means of whole boxes of pixels."""
    factor, rest = divmod(look.images.shape[-1], edge)
    if factor < 2 or rest:
        return look
    flat = functional.avg_pool2d(look.images.reshape(-1, *look.images.shape[-3:]), factor)
    return Look(flat.reshape(*look.images.shape[:-2], *flat.shape[-2:]), look.labels, look.latents)


def made_by(model: Model, known: Look, test: Look, prior: Prior | None, batch_size: int) -> Made:
    """What the model makes of draws for the known pictures, and of the test pictures.

    Raises:
        InvalidValueError: pictures of another shape, or values that are no numbers.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    count = len(known.images)
    for here in torch.arange(count).tensor_split(-(-count // batch_size)):  # of a batch of one some priors can't draw
        latents = {name: values[here] for name, values in known.latents.items()}
        images, labels = known.images[here], known.labels[here]
        batch = Batch(here.to(labels.device), images, labels, latents)
        draws = torch.randn(len(batch), model.prior_size, device=images.device)
        codes = model.project(draws if prior is None else prior.draw(batch, model)).float()
        parts.append((codes, model.decode(codes).float(), model.encode(model.decode(codes, noise=False)).float()))
    codes, fakes, again = (torch.cat(each) for each in zip(*parts, strict=True))
    real_codes, reconstructions = reconstruction.through(
        test.images, model.encode, lambda each: model.decode(each, noise=False), batch_size
    )
    if reconstructions.shape != test.images.shape:
        raise InvalidValueError(
            f"the model makes pictures of {tuple(reconstructions.shape[1:])}, the stream has "
            f"{tuple(test.images.shape[1:])}: open it at the model's size, or let the model grow to that"
        )
    for name, values in (("pictures", fakes), ("reconstructions", reconstructions), ("codes", again)):
        if not bool(values.isfinite().all()):
            raise InvalidValueError(f"the model's {name} hold NaN or infinity: its training diverged")
    return Made(codes=codes, fakes=fakes, again=again, real_codes=real_codes, reconstructions=reconstructions)


def take_codes(
    findings: Findings, model: Model, made: Made, test: Tensor, networks: Mapping[str, Features | None]
) -> None:
    """The ratio, reciprocity, deviations and directions of codes, deviation of made pictures, the length of paths."""
    reals = float(batch_deviation(test))
    findings.take("ratio", lambda: {"ratio": reconstruction.matched_ratio(test, made.reconstructions)})
    findings.take("reciprocity", lambda: {"reciprocity": codes_of.relative_reciprocity(made.codes, made.again)})
    findings.figures["code_deviation"] = float(made.codes.double().var(0).mean().sqrt())
    findings.figures["real_code_deviation"] = float(made.real_codes.double().var(0).mean().sqrt())
    findings.take("code_dimensions", lambda: {"code_dimensions": codes_of.dimensions(made.codes)})
    findings.take("real_code_dimensions", lambda: {"real_code_dimensions": codes_of.dimensions(made.real_codes)})
    findings.figures["fake_deviation"] = float(batch_deviation(made.fakes)) / reals if reals else 1.0
    count = min(PATHS, len(made.codes) // 2)
    starts, ends, places = made.codes[:count], made.codes[count : 2 * count], torch.rand(count, device=test.device)
    for name, network in networks.items():
        if network is None:
            findings.left_out[f"path_{name}"] = NO_CLASSIFIER
            continue

        def length(name: str = name, network: Features = network) -> Mapping[str, float]:
            def decode(codes: Tensor) -> Tensor:
                return model.decode(codes, noise=False)

            return {f"path_{name}": codes_of.path_length(decode, network, starts, ends, places)}

        findings.take(f"path_{name}", length)
