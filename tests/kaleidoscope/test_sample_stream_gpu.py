"""Samples of kaleidoscopes on a GPU: the first law there, the CPU's ends, and nothing through the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams import Loader
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.fitted_stream import formatted_array
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream

pytestmark = pytest.mark.gpu
SPECS = {
    "samples": KaleidoscopeSpec(start="pink"),
    "early": KaleidoscopeSpec(mode="early", iterate=1, last_iterate=4, label="attractor", start="binary"),
    "pairs": KaleidoscopeSpec(mode="pairs", iterate=2, start="blend", start_noise=0.5),
    "clips": KaleidoscopeSpec(mode="clips", frames=4, stride=2, precision="bfloat16"),
    "jitter": KaleidoscopeSpec(jitter=0.05, tolerance=0.0, most=12, start="coarse"),
    "stratified": KaleidoscopeSpec(stratified=True),
}
per_spec = pytest.mark.parametrize("name", SPECS)


def opened(fitted: Kaleidoscope, name: str, device: str = "cuda", **settings: Any) -> KaleidoscopeStream:
    return KaleidoscopeStream(SPECS[name], fitted=fitted, device=device, **settings)


def rows(batch: Any) -> list[tuple[Any, ...]]:
    """Each sample of a batch as bytes."""
    host = batch.numpy()
    columns = {"index": host.index, "images": host.images, "labels": host.labels, **host.latents}
    return [tuple((name, values[k].tobytes()) for name, values in columns.items()) for k in range(len(host))]


@per_spec
def test_a_sample_is_the_same_alone_in_seven_and_in_4096(name: str, pictures: Kaleidoscope) -> None:
    stream = opened(pictures, name)
    whole = rows(stream.generate(range(4096)))
    seven = [4000, 3, 17, 2048, 17, 4095, 0]
    assert rows(opened(pictures, name).generate(seven)) == [whole[k] for k in seven]
    for k in (0, 17, 4095):
        assert rows(stream.generate([k])) == [whole[k]]


@per_spec
def test_every_part_of_a_batch_is_on_the_device(name: str, pictures: Kaleidoscope) -> None:
    for indices in (range(5), range(0)):
        batch = opened(pictures, name).generate(indices)
        parts = (batch.index, batch.images, batch.labels, *batch.latents.values())
        assert all(part.is_cuda and len(part) == len(indices) for part in parts)
    host = opened(pictures, name, device="cpu").generate(range(5))
    forms = {key: (values.dtype.name, values.shape) for key, values in host.latents.items()}
    found = opened(pictures, name).generate(range(5)).numpy()
    assert {key: (values.dtype.name, values.shape) for key, values in found.latents.items()} == forms
    assert found.images.shape == host.images.shape


@pytest.mark.parametrize("name", ["samples", "early", "pairs", "stratified"])
def test_chains_end_where_those_of_the_cpu_end(name: str, pictures: Kaleidoscope) -> None:
    here, there = (opened(pictures, name, device=device).generate(range(4000)).numpy() for device in ("cuda", "cpu"))
    assert (here.latents["attractor"] == there.latents["attractor"]).mean() >= 0.99
    assert (here.labels == there.labels).mean() >= 0.99
    assert (here.latents["model"] == there.latents["model"]).all()
    apart = np.abs(here.images.astype(int) - there.images).reshape(4000, -1).max(axis=1)
    assert (apart <= 2).mean() >= 0.98


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pixels_are_the_levels_in_the_form_asked_for(dtype: Any, pictures: Kaleidoscope) -> None:
    settings: dict[str, Any] = {"dtype": dtype, "mean": (0.5, 0.4, 0.3), "std": 0.2, "channels_last": True}
    stream = opened(pictures, "clips", **settings)
    levels = opened(pictures, "clips").generate(range(30)).numpy().images
    assert (stream.generate(range(30)).numpy().images == formatted_array(levels, stream.pixels)).all()


def test_a_loader_reads_ahead_and_goes_on(pictures: Kaleidoscope) -> None:
    stream = opened(pictures, "samples")
    truth = stream.generate(range(60)).numpy()
    loader = Loader(stream, batch_size=6, length=60, fields="dict")
    read = [item for _, item in zip(range(4), loader, strict=False)]
    again = Loader(stream, batch_size=12, length=60, fields="dict")
    again.load_state_dict(loader.state_dict())
    images = torch.cat([item["images"] for item in (*read, *again)]).cpu().numpy()
    assert (images == truth.images).all()
