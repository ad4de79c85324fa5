"""Two small banks that are fitted once for all tests of kaleidoscopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams import StreamSpec, open_stream
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.priors import Uniform

LIVELY = {"power": Uniform(1.0, 5.0), "frequency": Uniform(2.0, 10.0)}


def plainly_fitted(network: Network, sources: Sources, models: int, steps: int, rate: float, noise: float) -> Any:
    """A bank by the plainest loop there is: what `fit` is compared with."""
    torch.set_num_threads(1)
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in network.first_weights(models).items()}
    target = torch.from_numpy(network.values_of(sources.data[0])).expand(models, -1, -1)
    optimiser = torch.optim.Adam(tensors.values(), lr=rate)
    drawn = torch.Generator().manual_seed(0)
    head = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[network.head]
    for _ in range(steps):
        values = target + noise * network.span / 2 * torch.randn(target.shape, generator=drawn)
        for layer in range(network.n_linear):
            weight, bias = tensors[f"layers.{layer}.weight"], tensors[f"layers.{layer}.bias"]
            values = torch.baddbmm(bias[:, None], values, weight.mT)
            values = head(values) if layer == network.n_linear - 1 else torch.relu(values)
        loss = ((values - target) ** 2).mean(dim=(1, 2)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    return Kaleidoscope(network=network, tensors=weights, sources=sources, training={"noise": noise, "steps": steps})


def with_attractors(fitted: Kaleidoscope) -> Kaleidoscope:
    """The same with its attractors."""
    attractors = pytest.importorskip("fractal_streams.kaleidoscope.attractors")
    found: Kaleidoscope = attractors.find_attractors(fitted, device="cpu", chains=200)
    return found


@pytest.fixture(scope="session")
def bare_points() -> Kaleidoscope:
    """Four networks on the two points .2 and .8 of [0, 1]: 7 linear layers of 10 units; without attractors."""
    network = Network(shape=(1,), hidden=10, n_linear=7, head="sigmoid", data_scale=1.0)
    sources = Sources(
        data=np.float32([[[0.2], [0.8]]]), labels=np.int64([[0, 1]]), titles=("low", "high"),
        origin={"kind": "points"},
    )  # fmt: skip
    return plainly_fitted(network, sources, models=4, steps=600, rate=1e-3, noise=0.0)


@pytest.fixture(scope="session")
def bare_pictures() -> Kaleidoscope:
    """Two networks on twelve grey fractals of 8 x 8: 5 linear layers of 64 units, denoising; without attractors."""
    stream = open_stream(
        StreamSpec(formulas="polynomial_power", num_classes=10, height=8, width=8, priors=LIVELY), device="cpu"
    )
    batch = stream.generate(range(12))
    grey = np.rint(batch.images.astype(np.float64).mean(axis=1, keepdims=True)).astype(np.uint8)
    sources = Sources(
        data=grey[None], labels=batch.labels[None].astype(np.int64),
        titles=tuple(stream.class_title(label) for label in range(10)), origin={"kind": "stream"},
    )  # fmt: skip
    network = Network(shape=(1, 8, 8), hidden=64, n_linear=5)
    return plainly_fitted(network, sources, models=2, steps=500, rate=3e-3, noise=0.3)


@pytest.fixture(scope="session")
def two_points(bare_points: Kaleidoscope) -> Kaleidoscope:
    """`bare_points` with its attractors."""
    return with_attractors(bare_points)


@pytest.fixture(scope="session")
def pictures(bare_pictures: Kaleidoscope) -> Kaleidoscope:
    """`bare_pictures` with its attractors."""
    return with_attractors(bare_pictures)
