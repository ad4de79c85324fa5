"""What a model's figures on a stream have to be held to, and what can be told of the stream without a model.

    python -m fractal_streams.recipes.alae.yardsticks --preset fractal-families --image-size 64 --samples 2000

Floors: distances between two sets of real pictures, of the counts that made pictures are compared with. Simpler codes:
mean colour, 8 x 8 boxes, as many principal components. Knowledge without training: of pixels and of shallow features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fractal_streams.recipes.data import DataSettings, opened_of_any_shape
from fractal_streams.recipes.probe import Look, looked_at
from fractal_streams.recipes.results import write_json
from fractal_streams.recipes.settings import command, option

from fractal_streams import Stream
from fractal_streams.device import resolve_device
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.alae import codes as codes_of, reconstruction, spectra
    from fractal_streams.recipes.alae.features import Features, features_of, opened_features, random_features
    from fractal_streams.recipes.distance import FEWEST, distance
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

SAMPLES = 10_000
PCA_SAMPLES = 4096
"""Pictures that principal components are found from, at most."""
NO_CLASSIFIER = "no classifier's features were given: see own_features and opened_features"


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found.

    figures: name to value. left_out: name to the reason why it can't be told of this stream or size.
    latents: representation to R² of each latent. samples: pictures of each set.
    """

    figures: Mapping[str, float]
    left_out: Mapping[str, str]
    latents: Mapping[str, Mapping[str, float]]
    samples: int

    def table(self) -> str:
        """A line for each figure, and for each that was left out."""
        wide = max(map(len, (*self.figures, *self.left_out)), default=0)
        lines = [f"{name:{wide}}  {value:.5g}" for name, value in self.figures.items()]
        return "\n".join([*lines, *(f"{name:{wide}}  left out: {why}" for name, why in self.left_out.items())])


@dataclass(kw_only=True)
class Findings:
    """Figures as they are found, and why some are not."""

    figures: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    latents: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def take(self, name: str, measure: Callable[[], Mapping[str, float | None]]) -> None:
        """Figures of a measure that are not None, or under its name the reason why it has none."""
        try:
            told = measure()
        except InvalidValueError as error:
            self.left_out[name] = str(error)
        else:
            self.figures.update({each: value for each, value in told.items() if value is not None})

    def examination(self, samples: int) -> Examination:
        return Examination(figures=self.figures, left_out=self.left_out, latents=self.latents, samples=samples)


def halves(stream: Stream, samples: int, val_seed: int, device: str | torch.device) -> tuple[Look, Look]:
    """Two looks at held-out samples, none in both, on a device.

    Args:
        stream: of the validation or test split, with float pictures in [-1, 1].
        samples: pictures of each; of clips so many that their frames are as many, rounded up. Of stored pictures at
            most a half of the split, from its first pass, whatever `val_seed` is: so none comes twice.

    Raises:
        InvalidValueError: fewer than 20 pictures in a half, or pictures that are no floats in [-1, 1].
    """
    shape = stream.generate(range(0)).images.shape
    frames = shape[1] if len(shape) == 5 else 1
    count = -(-samples // frames)
    if (most := getattr(stream, "count", None)) is not None:  # stored pictures come again after so many
        count, val_seed = min(count, most // 2), 0
    if count * frames < FEWEST:
        raise InvalidValueError(
            f"{count * frames} pictures are too few to compare, {FEWEST} are needed in each of two halves: ask for "
            f"more samples, or give the test split a larger share of the stored pictures"
        )
    look = looked_at(stream, 2 * count, val_seed)
    if float(look.images.amin()) < -1.001 or float(look.images.amax()) > 1.001:
        raise InvalidValueError(
            f"pictures must be in [-1, 1], these go from {float(look.images.amin()):.3g} to "
            f"{float(look.images.amax()):.3g}: open the stream with dtype='float32', mean=0.5, std=0.5"
        )

    def part(here: slice) -> Look:
        latents = {name: values[here].to(device) for name, values in look.latents.items()}
        return Look(look.images[here].to(device), look.labels[here].to(device), latents)

    return part(slice(0, count)), part(slice(count, 2 * count))


def take_distances(
    findings: Findings, sets: Mapping[str, Tensor], test: Tensor, networks: Mapping[str, Features | None]
) -> None:
    """Fréchet and kernel distances of sets of pictures, by their suffix, from the test pictures, as many of each."""
    for name, network in networks.items():
        if network is None:
            findings.left_out[f"frechet_{name}"] = NO_CLASSIFIER
            continue
        real = features_of(test, network)
        for suffix, pictures in sets.items():
            found = distance(features_of(pictures, network), real)
            findings.figures[f"frechet_{name}{suffix}"] = found.frechet
            findings.figures[f"kernel_{name}{suffix}"] = found.kernel
            findings.figures[f"kernel_{name}{suffix}_error"] = found.kernel_error


def take_spectra(findings: Findings, sets: Mapping[str, Tensor], test: Tensor, patches: int, projections: int) -> None:
    """The sliced Wasserstein distance, times 1000, and that of spectra, decibels, from the test pictures."""
    for suffix, pictures in sets.items():

        def patchwise(suffix: str = suffix, pictures: Tensor = pictures) -> Mapping[str, float]:
            found = spectra.pyramid_distance(pictures, test, patches=patches, projections=projections)
            mean = found.pop("mean")
            return {f"swd{suffix}": mean, **{f"swd_{edge}{suffix}": value for edge, value in found.items()}}

        def spectral(suffix: str = suffix, pictures: Tensor = pictures) -> Mapping[str, float]:
            return {f"spectrum{suffix}": spectra.spectrum_distance(pictures, test)}

        findings.take(f"swd{suffix}", patchwise)
        findings.take(f"spectrum{suffix}", spectral)


def take_nearness(findings: Findings, ways: Mapping[str, Callable[[], Tensor]], test: Tensor) -> None:
    """How near each way's pictures, by its suffix, are to the test pictures."""
    for suffix, way in ways.items():

        def measured(suffix: str = suffix, way: Callable[[], Tensor] = way) -> Mapping[str, float | None]:
            found = reconstruction.nearness(test, way())
            told = {
                "psnr": found.psnr, "psnr_median": found.median_psnr, "psnr_picture": found.picture_psnr,
                "ssim": found.ssim, "spectrum_error": found.spectrum_error,
            }  # fmt: skip
            perfect = {f"{name}{suffix}" for name, value in told.items() if value == math.inf}
            findings.left_out.update(dict.fromkeys(perfect, "it is infinite: there is no error"))
            return {f"{name}{suffix}": value for name, value in told.items() if f"{name}{suffix}" not in perfect}

        findings.take(f"psnr{suffix}", measured)
    if min(test.shape[-2:]) < reconstruction.WINDOW:
        findings.left_out["ssim"] = f"pictures are smaller than its window of {reconstruction.WINDOW} pixels"


def take_knowledge(findings: Findings, ways: Mapping[str, Callable[[Tensor], Tensor]], known: Look, test: Look) -> None:
    """What each way's features tell of classes and parameters."""
    for name, encode in ways.items():
        found = codes_of.knowledge(encode, known, test)
        told = {"class_linear": found.linear, "class_nearest": found.nearest, "r_squared": found.mean}
        for measure, why in (
            ("class_linear", "these pictures have one class"),
            ("r_squared", "no parameter of these pictures is known, or none varies"),
        ):
            if told[measure] is None:
                findings.left_out[measure] = why
        findings.figures.update({f"{each}_{name}": value for each, value in told.items() if value is not None})
        if found.r_squared:
            findings.latents[name] = found.r_squared


def take_speeds(findings: Findings, ways: Mapping[str, Callable[[Tensor], Tensor]], clips: Look) -> None:
    """How far the speed of each way's features follows that of a clip's parameters."""
    if clips.images.dim() != 5:
        findings.left_out["speed"] = "the stream has no clips"
        return
    frames = codes_of.stills(clips)
    for name, encode in ways.items():

        def followed(name: str = name, encode: Callable[[Tensor], Tensor] = encode) -> Mapping[str, float]:
            track = frames.through(encode).reshape(*clips.images.shape[:2], -1)
            return {f"speed_{name}": codes_of.speed_correlation(track, clips.latents)}

        findings.take(f"speed_{name}", followed)


def pixels(images: Tensor) -> Tensor:
    """(B, D): all values, of pictures averaged down to 32 pixels a side."""
    return Look(images, torch.zeros(0), {}).pixels()


def take_yardsticks(
    findings: Findings, known: Look, clips: Look, networks: Mapping[str, Features | None], code_size: int, patches: int,
    projections: int,
) -> None:  # fmt: skip
    """All that a model is held to.

    Args:
        known: of stills. clips: the test samples, of stills or clips, of as many pictures. code_size: of principal
            components.
    """
    test = codes_of.stills(clips)
    take_distances(findings, {"_floor": known.images}, test.images, networks)
    take_spectra(findings, {"_floor": known.images}, test.images, patches, projections)

    def components() -> Tensor:
        found = reconstruction.principal(known.images[:PCA_SAMPLES], code_size)
        return reconstruction.from_components(found, test.images)

    ways: dict[str, Callable[[], Tensor]] = {
        "_mean_colour": lambda: reconstruction.mean_colour(test.images),
        "_box": lambda: reconstruction.box(test.images),
        "_pca": components,
    }
    take_nearness(findings, ways, test.images)
    counts = torch.bincount(test.labels)
    if int((counts > 0).sum()) > 1:
        findings.figures["class_chance"] = float(counts.max()) / len(test.labels)
    take_knowledge(findings, {"pixels": pixels, **codes_of.SHALLOW}, known, test)
    shallow = {"pixels": pixels, "random_convolutions": codes_of.SHALLOW["random_convolutions"]}
    take_speeds(findings, shallow, clips)


@torch.no_grad()
def yardsticks(
    stream: Stream,
    *,
    samples: int = SAMPLES,
    code_size: int = 256,
    own: Features | None = None,
    patches: int = spectra.PATCHES,
    projections: int = spectra.PROJECTIONS,
    val_seed: int = 0,
    device: str | torch.device | None = None,
) -> Examination:
    """What can be told of a stream without a model.

    Args:
        stream: of the test split, with pictures in [-1, 1] (mean and std 0.5), or clips of them.
        samples: pictures of each of two halves: one is compared and tested, the other is for floors and fits.
        code_size: principal components. own: features of a classifier of this stream, see `own_features`.
        patches, projections: of the sliced Wasserstein distance.

    Raises:
        InvalidValueError: fewer than 20 pictures in a half, or pictures out of [-1, 1].
    """
    place = stream.device if device is None else device
    known, clips = halves(stream, samples, val_seed, place)
    findings, known = Findings(), codes_of.stills(known)
    networks = {"random": random_features(0, known.images.device), "own": own}
    take_yardsticks(findings, known, clips, networks, code_size, patches, projections)
    return findings.examination(len(known.images))


@dataclass(frozen=True, kw_only=True)
class YardstickSettings(DataSettings):
    """Of which stream, and how much of it."""

    preset: str = option("fractal-families", "A preset, a formula, or a spec's JSON file.")
    image_size: int | None = option(64, "Height and width, pixels; the preset's own.", low=1)
    samples: int = option(SAMPLES, "Pictures of each of two halves.", low=FEWEST)
    code_size: int = option(256, "Principal components.", low=1)
    patches: int = option(spectra.PATCHES, "Of each picture and level, for the sliced Wasserstein distance.", low=1)
    projections: int = option(spectra.PROJECTIONS, "Directions of it.", low=1)
    features: Path | None = option(None, "Folder of a classifier of these pictures.")  # noqa: RUF009
    device: str = option("auto", "auto, cpu or cuda.")
    output: Path | None = option(None, "A JSON file for the figures.")  # noqa: RUF009


def run(settings: YardstickSettings) -> Examination:
    """Find and print them."""
    device = resolve_device(settings.device)
    stream = opened_of_any_shape(settings.preset, settings, "test", device, "float32", 0.5, 0.5)
    edge = stream.generate(range(0)).images.shape[-1]
    own = None if settings.features is None else opened_features(settings.features, edge, device)
    found = yardsticks(
        stream, samples=settings.samples, code_size=settings.code_size, own=own, patches=settings.patches,
        projections=settings.projections, val_seed=settings.val_seed,
    )  # fmt: skip
    print(found.table())
    for name, latents in found.latents.items():
        print(f"R² by {name}: " + ", ".join(f"{latent} {value:.2f}" for latent, value in latents.items()))
    if settings.output is not None:
        write_json(settings.output, asdict(found))
    return found


app = command(YardstickSettings, run, "Print what a model's figures on a stream have to be held to.")

if __name__ == "__main__":
    app()
