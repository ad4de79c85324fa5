"""The draw in Triton equals the reference to the bit."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from fractal_streams.draw import make_plan, numba_backend, reference
from fractal_streams.draw.triton_backend import DevicePlan
from fractal_streams.priors import Choice, Integer, LogUniform
from fractal_streams.spec import StreamSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRIORS = {
    "half_width": LogUniform(1e-3, 3.0),
    "centre_x": Choice((1.0, 2.0, 5.0)),
    "rotation": Integer(-3, 700),
    "beta": LogUniform(1e-30, 1e30),
}


def plan_of(labels: str, num_classes: int = 1000) -> object:
    spec = StreamSpec(formulas="polynomial_power", num_classes=num_classes, labels=labels, priors=PRIORS)
    return make_plan(spec, spec.parts()[0], seed=2**64 - 1, split="test")


def equal(drawn: tuple, labels: np.ndarray, table: np.ndarray) -> bool:
    same = drawn[2].cpu().numpy().view(np.uint32) == table.view(np.uint32)
    return bool((drawn[1].cpu().numpy() == labels).all() and same.all())


@pytest.mark.parametrize("labels", ["drawn", "balanced"])
@pytest.mark.parametrize("num_classes", [10, 2**31 - 1])
def test_indices_near_and_far(labels: str, num_classes: int) -> None:
    plan = plan_of(labels, num_classes)
    indices = np.concatenate([np.arange(300), 2**32 + np.arange(-5, 5), [2**62, 2**63 - 1]])
    drawn = DevicePlan(plan, DEVICE).draw(indices)
    assert (drawn[0].cpu().numpy() == indices).all()
    assert equal(drawn, *reference.draw(plan, indices))


@pytest.mark.parametrize(
    "indices", [range(0), range(1), range(7, 600), range(2**63 - 3, 2**63), range(5, 2**40, 2**33)]
)
def test_a_range_is_its_indices(indices: range) -> None:
    plan = plan_of("drawn")
    drawn = DevicePlan(plan, DEVICE).draw(indices)
    listed = np.array(indices, dtype=np.int64)
    assert (drawn[0].cpu().numpy() == listed).all()
    assert equal(drawn, *reference.draw(plan, listed))


@pytest.mark.gpu
def test_ten_million_indices_on_a_gpu() -> None:
    plan = plan_of("drawn")
    device = DevicePlan(plan, DEVICE)
    for first in range(0, 10_000_000, 2_500_000):
        indices = np.arange(first, first + 2_500_000)
        labels, table = numba_backend.draw(plan, indices)
        assert equal(device.draw(range(first, first + 2_500_000)), labels, table)
        true_labels, true_table = reference.draw(plan, indices)
        assert (labels == true_labels).all() and (table.view(np.uint32) == true_table.view(np.uint32)).all()
