"""Basin maps on a GPU beside the CPU's, and in any batch; and the engine of GPUs in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from hand_made_basins import quadrants, stairs

from fractal_streams import BasinSpec, BasinStream
from fractal_streams.kaleidoscope.basins import basin_map
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.planes import Plane

LEVEL = {"origin": np.zeros(2), "across": np.eye(2)[0], "up": np.eye(2)[1]}


def both(fitted: Kaleidoscope, **spec: Any) -> list[BasinStream]:
    return [BasinStream(BasinSpec(**spec), fitted=fitted, device=device) for device in ("cpu", "cuda")]


def test_the_engine_of_gpus_makes_the_same_map_in_the_interpreter() -> None:
    triton_engine = pytest.importorskip("fractal_streams.kaleidoscope.triton_engine")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    if tuple(map(int, pytest.importorskip("triton").__version__.split(".")[:2])) < (3, 6):
        pytest.skip("this Triton's interpreter can't loop under NumPy 2.4")
    for fitted, models in ((quadrants(), 0), (stairs(), 1)):
        plane = Plane(**LEVEL, half_width=0.8, centre=(0.01, 0.02))  # type: ignore[arg-type]
        slow = basin_map(fitted, plane, 6, 6, models=models, engine=triton_engine.TritonEngine(fitted, "cpu"))
        fast = basin_map(fitted, plane, 6, 6, models=models, device="cpu")
        assert np.array_equal(np.asarray(slow.attractor), fast.attractor)
        assert np.array_equal(np.asarray(slow.steps), fast.steps)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sources", "attractors", "middle"])
def test_a_gpu_draws_what_the_cpu_does(kind: str, pictures: Kaleidoscope) -> None:
    cpu, gpu = both(pictures, height=32, width=32, plane=kind, max_depth=3, supersample=2)
    one, other = cpu.generate(range(24)), gpu.generate(range(24))
    assert other.images.is_cuda and all(values.is_cuda for values in other.latents.values())
    found = other.numpy()
    same = np.isclose(one.latents["centre_x"], found.latents["centre_x"], rtol=0, atol=1e-9)
    assert same.mean() > 0.9  # a label that rounds otherwise takes a walk elsewhere
    assert (one.latents["attractor"][same] == found.latents["attractor"][same]).mean() > 0.99
    assert (one.images[same] == found.images[same]).mean() > 0.97
    assert (one.labels[same] == found.labels[same]).mean() >= 0.9
    for name, values in one.latents.items():
        assert values.dtype == found.latents[name].dtype and values.shape == found.latents[name].shape


@pytest.mark.gpu
def test_a_sample_is_the_same_in_any_batch_on_a_gpu(pictures: Kaleidoscope) -> None:
    stream = both(pictures, height=24, width=40, plane="middle", max_depth=8, supersample=2, label="attractor")[1]
    whole = stream.generate(range(40)).numpy()
    for rows in ([7], [39, 0, 0, 12], list(range(5, 12)), []):
        part = stream.generate(rows).numpy()
        assert np.array_equal(part.images, whole.images[rows]) and np.array_equal(part.labels, whole.labels[rows])
        for name, values in part.latents.items():
            assert np.array_equal(values, whole.latents[name][rows]), name


@pytest.mark.gpu
def test_quadrants_are_exact_on_a_gpu() -> None:
    plane = Plane(**LEVEL, half_width=0.7, centre=(0.1, -0.05))  # type: ignore[arg-type]
    cpu, gpu = (basin_map(quadrants(), plane, 64, 64, device=device).numpy() for device in ("cpu", "cuda"))
    assert np.array_equal(cpu.attractor, gpu.attractor) and (cpu.steps == gpu.steps).mean() > 0.99
