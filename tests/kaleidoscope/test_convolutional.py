"""Convolutional networks from diffusers: as modules, as tensors of a file, fitted and refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError, MissingExtraError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources, open_kaleidoscope
from fractal_streams.kaleidoscope.fitting import IdentityMapError, fit
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.sources import distinct_indices, of_stream
from fractal_streams.kaleidoscope.torch_engine import TorchEngine
from fractal_streams.kaleidoscope.training import Training

pytest.importorskip("diffusers")
from fractal_streams.kaleidoscope.convolutional import first_module_weights, module_of

KINDS = ("unet", "bottleneck")


def small(kind: Any, shape: tuple[int, ...] = (1, 8, 8), **changes: Any) -> Network:
    return Network(**{"shape": shape, "kind": kind, "hidden": 8, "n_linear": 2, **changes})


def pictures(count: int) -> Sources:
    stream = open_stream("fractal-10", height=8, width=8, device="cpu")
    return of_stream(stream, distinct_indices(stream, count, grey=True), grey=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_first_weights_follow_from_the_seed_and_nothing_else(kind: str) -> None:
    network = small(kind)
    state = torch.random.get_rng_state()
    one = first_module_weights(network, 5)
    torch.manual_seed(123)
    two, other = first_module_weights(network, 5), first_module_weights(network, 6)
    torch.random.set_rng_state(state)
    module_of(network)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(name.startswith("module.") and array.shape[0] == 1 for name, array in one.items())
    assert all(np.array_equal(array, two[name]) for name, array in one.items())
    for name, array in one.items():
        limit = 1.0 / math.sqrt(math.prod(array.shape[2:])) if array.ndim > 2 else 1.0
        if array.ndim > 2:
            assert not np.array_equal(array, other[name])
            assert (0.9 * limit if array.size > 100 else 0.0) < np.abs(array).max() <= limit
            assert np.abs(array.mean()) < 5 * limit / math.sqrt(3 * array.size)
        elif ".norm" in name or "norm_out" in name:
            assert set(array.ravel().tolist()) == {1.0 if name.endswith("weight") else 0.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape, levels", [((3, 8, 8), 2), ((1, 11, 9), 3), ((1, 28, 28), 4)])
@pytest.mark.parametrize("head", ["tanh", "sigmoid"])
def test_modules_map_values_to_values_of_the_range(kind: str, shape: Any, levels: int, head: Any) -> None:
    network = small(kind, shape, n_linear=levels, head=head)
    values = torch.rand(3, network.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = module_of(network)(values)
    low, high = network.range
    assert found.shape == values.shape and low < float(found.min()) < float(found.max()) < high
    assert len({tuple(row.tolist()) for row in found}) == 3


def test_pictures_are_padded_with_zeros_and_cut() -> None:
    """A picture of 7 x 6 gives what the same in 8 x 6 with a row of zeros below gives there."""
    values = torch.rand(2, 42, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(values.reshape(2, 1, 7, 6), (0, 0, 0, 1)).reshape(2, 48)
    odd, even = small("unet", (1, 7, 6)), small("unet", (1, 8, 6))
    tensors = first_module_weights(even)
    with torch.no_grad():
        found, truth = module_of(odd, tensors)(values), module_of(even, tensors)(padded)
    assert torch.equal(found.reshape(2, 7, 6), truth.reshape(2, 8, 6)[:, :7])


def test_a_bottlenecks_code_is_an_eighth_of_the_picture() -> None:
    network = small("bottleneck", (3, 16, 16), n_linear=3)
    module: Any = module_of(network)
    code = module.inner.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mode()
    assert code.numel() == network.size // 8


@pytest.mark.parametrize(
    "network, words",
    [
        (Network(shape=(1, 8, 8)), "kind 'unet' and 'bottleneck', got 'mlp'"),
        (small("unet", n_linear=5), r"n_linear=5 levels halve.*8 x 8 pixels can be halved 3 times: use n_linear=4"),
    ],
)
def test_networks_that_there_is_no_module_of(network: Network, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        module_of(network)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="weights are not of this network"):
        module_of(small("unet"), first_module_weights(small("unet", hidden=16)))
    with pytest.raises(InvalidValueError, match="weights are not of this network"):
        module_of(small("bottleneck"), first_module_weights(small("unet")))


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"fractal-streams\[kaleidoscope\]"):
        module_of(small("unet"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_lowers_the_loss_and_its_file_gives_the_same_network(kind: str, tmp_path: Path) -> None:
    training = Training(steps=30, learning_rate=4e-3, evaluate_every=10)
    found = fit(small(kind), pictures(6), training, device="cpu", on_dead="allow", on_identity="allow")
    curve = np.array(found.training["curve"]["score"])[:, 0]
    assert curve[-1] < 0.5 * curve[0]
    again = open_kaleidoscope(found.save(tmp_path / "net.safetensors"))
    values = found.source_values(0)
    outputs = TorchEngine(again).apply(values)
    assert np.square(outputs - values).mean() / 4.0 == pytest.approx(found.training["loss"][0], rel=1e-3)
    np.testing.assert_array_equal(TorchEngine(again).apply(values[2:3])[0], outputs[2])


def test_an_interrupted_fit_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fractal_streams.kaleidoscope.descent import Descent

    path, sources, training = tmp_path / "part.safetensors", pictures(4), Training(steps=8, evaluate_every=3)
    options: Any = {"device": "cpu", "on_dead": "allow", "on_identity": "allow"}
    whole = fit(small("unet"), sources, training, **options)
    advance = Descent.advance

    def failing(self: Descent) -> None:
        if self.done == 5:
            raise RuntimeError("the power went")
        advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(Descent, "advance", failing)
        with pytest.raises(RuntimeError):
            fit(small("unet"), sources, training, checkpoint=path, checkpoint_seconds=0.0, **options)
    found = fit(small("unet"), sources, training, checkpoint=path, **options)
    assert all(np.array_equal(array, whole.tensors[name]) for name, array in found.tensors.items())
    assert found.training == whole.training


def test_they_are_fitted_one_at_a_time() -> None:
    for more in ({"models": 2}, {"restarts": 2}):
        with pytest.raises(InvalidValueError, match="kind='unet' is fitted one at a time"):
            fit(small("unet"), pictures(2), Training(steps=1), device="cpu", **more)


@pytest.mark.slow
def test_t5_a_unet_without_noise_learns_the_identity_and_with_it_does_not() -> None:
    network, sources = small("unet"), pictures(200)
    training = Training(steps=800, batch=16, learning_rate=4e-3)
    with pytest.raises(IdentityMapError, match="noise=0.3"):
        fit(network, sources, training.replace(noise=0.0), device="cpu")
    found: Kaleidoscope = fit(network, sources, training, device="cpu")
    assert found.training["identity"] == []
    told = found.training["held_out"]
    assert told["rmse"][0] > 0.4 * told["distance"][0]
