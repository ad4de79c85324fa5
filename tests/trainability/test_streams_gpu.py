"""Points and tiles of a GPU beside those of the CPU.

Both draw the same places. Runs near the boundary amplify rounding, so a few labels differ between kinds of device, and
with them the pairs and walks that those labels led. How many may differ follows from the CPU alone: from what changes
when its rates are moved by a few roundings.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams import Mixture, PointSpec, PointStream, StreamDataset, TileSpec, TileStream
from fractal_streams.batch import Batch
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.picture import plain
from fractal_streams.trainability.trainer import open_trainer

pytestmark = pytest.mark.gpu
TANH = Experiment(width=8, dataset_mode="single_example", steps=60)
ROWS = TANH.replace(dataset_mode="width", steps=40)
NUDGES = (-60, -20, 20, 60)
"""Roundings by which the CPU's rates are moved: each of up to 60 steps rounds once at least."""
CLOSE = {"float64": 1e-9, "float32": 1e-3}
"""Relative differences of the measure that only runs near the boundary exceed."""
STREAMS: dict[str, tuple[Any, int]] = {
    "points": (PointSpec(experiment=TANH, distance=1e-2, halvings=12, losses=3), 600),
    "points of rows": (PointSpec(experiment=ROWS, distance=1e-2, halvings=4), 300),
    "points in float32": (PointSpec(experiment=TANH, distance=0.1, halvings=3, precision="float32"), 300),
    "points, reduced": (PointSpec(experiment=TANH, distance=1e-2, mode="reduced"), 300),
    "tiles": (TileSpec(experiments=(TANH, ROWS), height=20, width=24, min_depth=0, max_depth=5), 16),
    "tiles in float32": (
        TileSpec(experiments=TANH, height=20, width=24, min_depth=0, max_depth=3, precision="float32"), 16,
    ),
}  # fmt: skip
per_stream = pytest.mark.parametrize("name", STREAMS)


class Nudged:
    """The CPU's trainer at rates moved by some roundings."""

    device = "cpu"

    def __init__(self, spec: Any, nudge: int) -> None:
        self.precision, self.trainer = spec.precision, open_trainer("cpu", spec.precision, spec.mode)
        self.factor = 1.0 + nudge * np.finfo(spec.precision).eps

    def train(self, experiment: Experiment, points: Any, readout: Any = None) -> Any:
        return self.trainer.train(experiment, points * self.factor, readout)


def opened(spec: Any, **settings: Any) -> Any:
    return (PointStream if isinstance(spec, PointSpec) else TileStream)(spec, **settings)


def columns(batch: Batch) -> dict[str, Any]:
    return {"index": batch.index, "images": batch.images, "labels": batch.labels, **batch.latents}


def differences(spec: Any, found: Batch, known: Batch) -> dict[str, int]:
    """How many places differ, and of runs at the same places, how many labels and measures."""
    pairs = isinstance(spec, PointSpec)
    names = ("lr0", "lr1") if pairs else ("centre_x", "centre_y")
    moved = np.any([found.latents[name] != known.latents[name] for name in names], axis=0)
    labels = [(batch.labels if pairs else batch.latents["labels_map"])[~moved] for batch in (found, known)]
    measures = [batch.latents["measure"][~moved] for batch in (found, known)]
    far = np.abs(measures[0] - measures[1]) > CLOSE[spec.precision] * np.abs(measures[1])
    return {"places": int(moved.sum()), "labels": int((labels[0] != labels[1]).sum()), "measures": int(far.sum())}


@per_stream
def test_a_gpus_samples_are_the_cpus_but_for_runs_that_rounding_decides(name: str) -> None:
    spec, count = STREAMS[name]
    known = opened(spec, device="cpu").generate(range(count))
    nudged = [opened(spec, trainer=Nudged(spec, nudge)).generate(range(count)) for nudge in NUDGES]
    changed = [differences(spec, batch, known) for batch in nudged]
    assert all((batch.latents["measure"] != known.latents["measure"]).mean() > 0.1 for batch in nudged)
    batch = opened(spec, device="cuda").generate(range(count))
    for column, values in columns(batch).items():
        here = columns(known.torch())[column]
        assert values.is_cuda and values.dtype == here.dtype and values.shape == here.shape, column
    found = batch.numpy()
    for what, number in differences(spec, found, known).items():
        # Rare, so Poisson: the highest rate that goes with what the nudges changed, and four deviations of it.
        rate = (sum(each[what] for each in changed) + 3.0) / len(NUDGES)
        assert number <= rate + 4.0 * math.sqrt(rate), (what, number, [each[what] for each in changed])
    if isinstance(spec, PointSpec):
        even = np.isnan(known.latents["distance"]) & np.isnan(found.latents["distance"])
        assert even.sum() > count / 4
        for axis in ("lr0", "lr1"):
            np.testing.assert_array_equal(found.latents[axis][even], known.latents[axis][even])
        np.testing.assert_array_equal(found.latents["weight"], known.latents["weight"])
        pairs = found.labels.reshape(-1, 2)[~np.isnan(found.latents["distance"].reshape(-1, 2)[:, 0])]
        assert len(pairs) > count / 8 and (pairs.sum(axis=1) == 1).all()
    else:
        np.testing.assert_array_equal(found.labels, known.labels)
        np.testing.assert_array_equal(found.latents["depth"], known.latents["depth"])
        for row in range(count):
            picture = plain(found.latents["measure"][row])
            np.testing.assert_array_equal(found.images[row].transpose(1, 2, 0), picture)


@per_stream
def test_on_a_gpu_too_a_sample_depends_on_its_index_alone(name: str) -> None:
    spec, _ = STREAMS[name]
    index = [7, 2**63 - 1, 0, 2**40 + 1, 1, 7]
    whole = opened(spec, device="cuda").generate(index).numpy()
    other = opened(spec, device="cuda")
    for row in reversed(range(len(index))):
        for column, values in columns(other.generate([index[row]]).numpy()).items():
            np.testing.assert_array_equal(values[0], columns(whole)[column][row], err_msg=column)


@pytest.mark.parametrize("name", ["points", "tiles"])
def test_a_dataset_gives_a_gpus_samples_in_order(name: str) -> None:
    spec, _ = STREAMS[name]
    stream = opened(spec, device="cuda")
    whole = columns(stream.generate(range(10)))
    read = list(StreamDataset(stream, 4, length=10, fields="dict"))
    assert [len(item["index"]) for item in read] == [4, 4, 2]
    for item in read:
        rows = item["index"]
        for column, values in {"images": item["images"], "labels": item["labels"], **item["latents"]}.items():
            assert values.is_cuda
            assert torch.equal(values.nan_to_num(), whole[column][rows].nan_to_num()), column


@pytest.mark.parametrize("name", ["points", "tiles"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pixels_of_a_gpu_have_the_form_asked_for(name: str, dtype: Any, channels_last: bool) -> None:
    spec, _ = STREAMS[name]
    form: dict[str, Any] = {"dtype": dtype, "channels_last": channels_last, "mean": (0.1, 0.5, 0.9), "std": 0.5}
    levels = opened(spec, device="cuda").generate(range(3)).images.double() / 255.0
    images = opened(spec, device="cuda", **form).generate(range(3)).images
    assert images.is_cuda and images.dtype == getattr(torch, dtype)
    assert images.shape[3 if channels_last else 1] == 3
    expected = (levels - torch.tensor(form["mean"], device=levels.device)[:, None, None]) / 0.5
    shown = images.movedim(-1, 1) if channels_last else images
    places = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert ((shown.double() - expected).abs() <= places * expected.abs() + 1e-6).all()


def test_a_mixture_on_a_gpu_keeps_every_digit_and_type() -> None:
    parts = [
        opened(PointSpec(experiment=TANH.replace(axes=axes), boundary_share=0.0), device="cuda")
        for axes in (("lr0", "lr1"), ("lr", "scale"))
    ]
    mixed, of = Mixture(parts), Mixture(parts).components(range(12))
    whole = mixed.generate(range(12)).latents
    for row in range(12):
        alone = mixed.generate([row]).latents
        own = parts[of[row]].generate([row]).latents
        for name, values in alone.items():
            assert values.is_cuda and values.dtype == whole[name].dtype
            assert torch.equal(values[0].nan_to_num(), whole[name][row].nan_to_num())
            assert torch.equal(values[0], own[name][0]) or name == "distance" if name in own else values.isnan().all()
