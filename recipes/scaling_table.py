"""A scaling table: test loss against compute for vision transformers of four widths on endless data, and its law.

Question: what does a tenfold of compute buy, and how wide should the model be for it?
Claim: see recipes/README.md for the table and the fit, with the hardware and the time.

    python -m fractal_streams.recipes.scaling_table
    python -m fractal_streams.recipes.scaling_table --widths 64,128 --num-steps 1000 --preset fractal-10

No sample is seen twice, so there is no overfitting to tell apart from size: J. Kaplan et al., arXiv:2001.08361;
J. Hoffmann et al., arXiv:2203.15556. Rates follow the width by muP (recipes/optimizers.py). They are constant behind
the warm-up, and a running average of the weights is tested: so every point of a curve is about what a run of that
length gives (A. Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
arXiv:2405.18392).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from fractal_streams.recipes.classification import classification_loss, tested
    from fractal_streams.recipes.data import opened
    from fractal_streams.recipes.journal import Journal
    from fractal_streams.recipes.loop import Loop, image_type, open_accelerator, seeded
    from fractal_streams.recipes.models.classifiers import vision_transformer
    from fractal_streams.recipes.optimizers import build_optimizer, initialise
    from fractal_streams.recipes.results import write_json
    from fractal_streams.recipes.runs import CurveSettings, Finished, Run, Tell, all_finished
    from fractal_streams.recipes.scaling_fit import Fit, Floats, fit_powers
    from fractal_streams.recipes.scaling_pictures import draw_scaling, show_scaling
    from fractal_streams.recipes.settings import command, option
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import cross_entropy
    from torch.utils.flop_counter import FlopCounterMode
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

TEST_BATCH = 2000
PETA = 1e15
BASE_WIDTH = 128
"""The width at which the rates are what they are called."""


@dataclass(frozen=True, kw_only=True)
class ScalingTableSettings(CurveSettings):
    """One model in several widths, each trained alike."""

    widths: tuple[int, ...] = option((32, 64, 128, 256), "Multiples of head_width.", low=1, changes_nothing=True)
    head_width: int = option(32, "Channels of an attention head.", low=1)
    depth: int = option(6, "Blocks.", low=1)
    patch_size: int = option(4, "Pixels.", low=1)
    lr_base: float = option(1e-3, f"Highest rate of hidden weights at width {BASE_WIDTH}.", low=0.0)
    lr_embedding: float = option(1e-3, "Highest rate of all other weights.", low=0.0)
    weight_decay: float = option(0.01, "Of AdamW.", low=0.0)
    test_samples: int = option(20_000, "Held-out samples to test on.", low=1)
    resamples: int = option(100, "Resampled fits, of which the intervals are.", low=0, changes_nothing=True)
    fit_from: float = option(
        0.1, "Share of a run in front of which nothing is fitted.", low=0.0, high=0.9, changes_nothing=True
    )
    num_steps: int = option(6000, "Updates of the weights.", low=1)
    warmup_steps: int = option(200, "Steps in which the rate rises.", low=0)
    clip: float | None = option(1.0, "Largest norm of the gradient.", low=1e-12)
    folder: Path = option(Path("outputs/scaling_table"), "Where everything goes.", changes_nothing=True)  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples_per_class is not None:
            raise InvalidValueError("num_samples_per_class is not for this table: it is of endless data")
        wrong = [width for width in self.widths if width % self.head_width]
        if wrong:
            raise InvalidValueError(f"widths must be multiples of head_width={self.head_width}, got {wrong}")


@dataclass(frozen=True, kw_only=True)
class Width:
    """A model's curve.

    weights: all of it. sample_flop: of training on one sample. samples: (P,) seen, none twice.
    test_loss: (P,) nats; test_accuracy: (P,) shares. images_per_second: in the second half.
    """

    width: int
    weights: int
    sample_flop: int
    samples: Floats
    test_loss: Floats
    test_accuracy: Floats
    images_per_second: float

    @property
    def compute(self) -> Floats:
        """(P,) FLOP."""
        return self.samples * self.sample_flop


@dataclass(frozen=True, kw_only=True)
class ScalingTable:
    """What came out.

    table: (B, W) test losses at B budgets of compute, NaN where a width has none there. budgets: (B,) FLOP.
    by_compute: law of the lowest loss at each compute. by_size: law of weights and samples, of all points.
    """

    curves: Sequence[Width]
    budgets: Floats
    table: Floats
    by_compute: Fit
    by_size: Fit
    device: str
    seconds: float


def run(settings: ScalingTableSettings) -> ScalingTable:
    """Train every width that is not done, and fit.

    Returns:
        Curves, table and laws; also in folder/result.json and folder/scaling.png.
    """
    accelerator = open_accelerator(settings)
    widths = sorted(set(settings.widths))
    runs = [
        Run(
            name=f"width-{width}", steps=settings.num_steps, decisive={**settings.decisive(), "width": width},
            train=partial(train, settings, width),
        )
        for width in widths
    ]  # fmt: skip
    settings.folder.mkdir(parents=True, exist_ok=True)
    finished = all_finished(settings.folder, runs, accelerator, quiet=settings.quiet)
    curves = [curve_of(width, each) for width, each in zip(widths, finished, strict=True)]
    budgets, table = at_budgets(curves)
    by_compute, by_size = laws(curves, settings.fit_from, settings.resamples)
    result = ScalingTable(
        curves=curves, budgets=budgets, table=table, by_compute=by_compute, by_size=by_size,
        device=finished[0].facts["device"], seconds=sum(each.facts["seconds"] for each in finished),
    )  # fmt: skip
    if accelerator.is_main_process:
        told = {"settings": settings.decisive(), **asdict(result)}
        write_json(settings.folder / "result.json", plain(told))
        title = f"ViT of depth {settings.depth}, {settings.preset}, endless, batches of {settings.batch_size}"
        draw_scaling(settings.folder / "scaling.png", result, settings.fit_from, title)
        if not settings.quiet:
            show_scaling(result)
    return result


def train(settings: ScalingTableSettings, width: int, folder: Path, tell: Tell) -> dict[str, Any]:
    """One width; its size and cost."""
    if settings.compile:
        torch.compiler.reset()  # what was compiled is another model's
    accelerator = open_accelerator(settings)
    device, dtype = accelerator.device, image_type(accelerator)
    stream = opened(settings, "train", device, dtype)
    test = opened(settings, "test", device, dtype)
    size = stream.generate(range(0)).images.shape[-1]
    seeded("weights", settings.seed)
    model = vision_transformer(
        num_classes=stream.num_classes, image_size=size, patch_size=settings.patch_size, embed_dim=width,
        depth=settings.depth, num_heads=width // settings.head_width,
    )  # fmt: skip
    initialise(model, base_width=BASE_WIDTH)
    flop = training_flop(model, size)
    optimizer = build_optimizer(
        model.to(device), "adamw", lr_base=settings.lr_base, lr_embedding=settings.lr_embedding,
        weight_decay=settings.weight_decay, base_width=BASE_WIDTH,
    )  # fmt: skip
    loop = Loop(model, classification_loss, optimizer, stream, settings, accelerator)
    loop.resume(folder / "checkpoint")

    with Journal(folder, loop, title=folder.name, quiet=True) as journal:
        for record in loop:
            figures = {}
            if settings.evaluates(record.step):
                figures = tested(loop, test, settings.test_samples, settings.val_seed, TEST_BATCH)
                tell(record.step, f"test {figures['test_loss']:.3f}, {record.images_per_second:,.0f} images/s")
            journal.write(record, figures)
            if settings.saves(record.step):
                loop.save(folder / "checkpoint")

    weights = sum(each.numel() for each in model.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"weights": weights, "sample_flop": flop, "device": name, "seconds": loop.seconds}


def training_flop(model: nn.Module, image_size: int) -> int:
    """FLOP of products in a forward and a backward pass of one sample: twice the multiplications, attention too."""
    shadow = copy.deepcopy(model).to("meta")
    images, labels = torch.zeros(2, 3, image_size, image_size, device="meta"), torch.zeros(2, device="meta").long()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:  # one that is told product by product
        cross_entropy(shadow(images), labels).backward()
    return int(counted.get_total_flops()) // 2


def curve_of(width: int, finished: Finished) -> Width:
    rows, facts = [row for row in finished.rows if "test_loss" in row], finished.facts
    samples, loss, accuracy = (
        np.array([row[name] for row in rows]) for name in ("samples", "test_loss", "test_accuracy")
    )
    paces = [row["images_per_second"] for row in finished.rows]
    return Width(
        width=width, weights=facts["weights"], sample_flop=facts["sample_flop"], samples=samples.astype(np.float64),
        test_loss=loss, test_accuracy=accuracy, images_per_second=float(np.median(paces[len(paces) // 2 :])),
    )  # fmt: skip


def at_budgets(curves: Sequence[Width], count: int = 7) -> tuple[Floats, Floats]:
    """At most `count` budgets of compute, half a decade apart, up to the most that any width used; losses there."""
    last = max(float(curve.compute[-1]) for curve in curves)
    budgets = last * 10.0 ** (0.5 * np.arange(1 - count, 1))
    columns = [
        np.exp(np.interp(np.log(budgets), np.log(curve.compute), np.log(curve.test_loss), left=np.nan, right=np.nan))
        for curve in curves
    ]
    table = np.stack(columns, 1)
    told = ~np.isnan(table).all(1)
    return budgets[told], table[told]


def laws(curves: Sequence[Width], fit_from: float, resamples: int = 100) -> tuple[Fit, Fit]:
    """The law of the envelope, and that of weights and samples, of the points behind a share of each run."""
    parts = [curve.samples >= fit_from * curve.samples[-1] for curve in curves]
    joined = {
        name: np.concatenate([getattr(curve, name)[part] for curve, part in zip(curves, parts, strict=True)])
        for name in ("compute", "samples", "test_loss")
    }
    weights = np.concatenate(
        [np.full(part.sum(), float(curve.weights)) for curve, part in zip(curves, parts, strict=True)]
    )
    lowest = envelope(joined["compute"], joined["test_loss"])
    of_size = {"weights": weights, "samples": joined["samples"]}
    of_compute = {"compute": joined["compute"][lowest]}
    by_compute = fit_powers(of_compute, joined["test_loss"][lowest], units={"compute": PETA}, resamples=resamples)
    by_size = fit_powers(of_size, joined["test_loss"], units=dict.fromkeys(of_size, 1e6), resamples=resamples)
    return by_compute, by_size


def envelope(compute: Floats, loss: Floats) -> NDArray[np.int64]:
    """Places, by rising compute, of the points below which no point of less compute lies."""
    order = np.lexsort((loss, compute))
    falling = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    lowest: NDArray[np.int64] = order[loss[order] < falling]
    return lowest


def plain(value: Any) -> Any:
    """A value as JSON holds it; what is no number becomes null."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


app = command(ScalingTableSettings, run, "Test loss against compute for several widths on endless data, with its law.")

if __name__ == "__main__":
    app()
