"""What engines take and refuse: chains, banks in any layout, values that are no numbers, other networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fractal_streams import rng
from fractal_streams.errors import IndexRangeError, InvalidValueError
from fractal_streams.kaleidoscope.attractors import find_attractors
from fractal_streams.kaleidoscope.chain import Schedule
from fractal_streams.kaleidoscope.engines import engine_of, open_engine
from fractal_streams.kaleidoscope.fitted import Kaleidoscope
from fractal_streams.kaleidoscope.measures import losses
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.quality import report
from fractal_streams.kaleidoscope.reference import ReferenceEngine
from fractal_streams.kaleidoscope.sources import points
from fractal_streams.kaleidoscope.spectrum import spectral_radii
from fractal_streams.kaleidoscope.starts import Jitter, Start
from fractal_streams.kaleidoscope.torch_engine import TorchEngine


def key_of(*names: Any) -> tuple[int, int]:
    return rng.key("a test", *names)


def made(models: int = 2, seed: int = 0) -> Kaleidoscope:
    network = Network(shape=(2,), hidden=6, n_linear=3)
    return Kaleidoscope(
        network=network, tensors=network.first_weights(models, seed), sources=points([[0.1, 0.2], [-0.3, 0.5]])
    )


@pytest.mark.parametrize("engine", [ReferenceEngine(made()), TorchEngine(made())], ids=["reference", "torch"])
def test_chains_are_whole_numbers_one_for_each_row(engine: Any) -> None:
    known = engine.starts(Start(), np.array([3, 2**62]), None, key_of)
    for given in ([3, 2**62], torch.tensor([3, 2**62])):
        np.testing.assert_array_equal(engine.starts(Start(), given, None, key_of), known)
    with pytest.raises(IndexRangeError, match=r"\[0, 2\*\*63\)"):
        engine.starts(Start(), np.array([-1]), None, key_of)
    with pytest.raises(InvalidValueError, match="whole numbers"):
        engine.starts(Start(), np.array([0.5]), None, key_of)
    noisy = Schedule(most=2, tolerance=0.0, jitter=Jitter(size=0.1))
    for chains in (np.arange(1), np.arange(3)):
        with pytest.raises(InvalidValueError, match=f"a chain for each of 2 rows, got {len(chains)} chains"):
            engine.run(known, None, noisy, chains=chains, key_of=key_of)
    with pytest.raises(InvalidValueError, match="needs chains and key_of"):
        engine.run(known, None, noisy, key_of=key_of)
    whole = engine.run(known, None, noisy, chains=[3, 2**62], key_of=key_of).states
    alone = engine.run(known[1:], None, noisy, chains=[2**62], key_of=key_of).states
    np.testing.assert_array_equal(alone, whole[1:])


def test_networks_of_rows_are_taken_as_a_list() -> None:
    fitted, states = made(), np.float32([[0.3, -0.4], [0.3, -0.4]])
    for engine in (ReferenceEngine(fitted), TorchEngine(fitted)):
        known = engine.apply(states, np.array([1, 0]))
        assert np.abs(known[0] - known[1]).max() > 1e-3
        np.testing.assert_array_equal(engine.apply(states, [1, 0]), known)


def test_far_is_infinite_where_a_network_has_no_row() -> None:
    fitted, states = made(), np.float32([[0.3, -0.4], [0.3, -0.4]])
    for engine in (ReferenceEngine(fitted), TorchEngine(fitted)):
        _, distance = engine.nearest(states, states[:1], np.array([0, 1]), np.array([0]))
        assert distance.tolist() == [0.0, np.inf]


def test_weights_lie_in_memory_as_they_like() -> None:
    fitted, states = made(), np.float32([[0.3, -0.4], [0.8, 0.1]])
    turned = fitted.replace(tensors={name: array[::-1] for name, array in fitted.tensors.items()})
    known = TorchEngine(fitted).apply(states, np.array([0, 1]))
    np.testing.assert_array_equal(TorchEngine(turned).apply(states, np.array([1, 0])), known)
    np.testing.assert_array_equal(losses(turned), losses(fitted)[::-1])


@pytest.mark.filterwarnings("error")
def test_levels_of_what_leaves_the_range_are_clipped_and_of_no_number_0() -> None:
    network = Network(shape=(1, 1, 5), head="linear")
    values = np.float32([[np.nan, np.inf, -np.inf, 3.4e38, 0.8]])
    np.testing.assert_array_equal(network.levels_of(values).ravel(), [0, 255, 0, 255, 255])


def test_an_engine_of_other_networks_is_refused() -> None:
    fitted = made()
    engine = open_engine(fitted, "cpu")
    assert engine_of(fitted, engine) is engine and engine_of(fitted.replace(training={"noise": 0.3}), engine) is engine
    copied = fitted.replace(tensors={name: array.copy() for name, array in fitted.tensors.items()})
    assert engine_of(copied, engine) is engine and engine_of(fitted, None, "cpu").fitted is fitted
    elsewhere = fitted.replace(sources=points([[0.1, 0.2], [-0.3, 0.4]]))
    for other in (
        made(seed=1),
        made(models=1),
        elsewhere,
        fitted.replace(network=fitted.network.replace(head="linear")),
    ):
        with pytest.raises(InvalidValueError, match="the engine applies other networks"):
            find_attractors(other, engine=engine, chains=5)
        with pytest.raises(InvalidValueError, match="open_engine"):
            report(other, engine=engine, chains=5)


@pytest.mark.parametrize("exact", [True, False])
def test_a_state_that_is_no_number_has_no_radius_and_spoils_no_other(exact: bool) -> None:
    states = np.array([[0.1, 0.1], [np.nan, 0.0], [0.2, 0.2]])
    found = spectral_radii(made(), states, exact=exact)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    np.testing.assert_array_equal(found[[0, 2]], spectral_radii(made(), states[[0, 2]], exact=exact))
