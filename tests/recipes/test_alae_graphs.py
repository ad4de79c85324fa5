"""Steps that are replayed as CUDA graphs train as those that are launched."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.graphs import WARM, tensors
from fractal_streams.recipes.alae.growth import Growth
from small_alae import batch_of, small_run, weights_of

from fractal_streams import Batch

RATE = 1e-4
"""Low, as Adam's first steps go by the signs of gradients, and sums that are rounded otherwise have others."""
NAMES = ("latent_infonce", "real_cycle", "l1")
WHOLE: dict[str, Any] = {
    "names": NAMES, "rules": {"r1_every": 3, "clip": 50.0, "lr": RATE},
    "edge": 16, "ema": 0.5, "num_steps": 20, "record_every": 1, "warmup_steps": 16, "device": "cuda", "precision": "no",
}  # fmt: skip
"""Rates and averages of another share each step, a lazy penalty, draws, a norm that is looked at."""


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "late": (2, {"late": {"start": 40, "warmup": 64}}),
    "grown": (6, {"growth": Growth(first=1, last=2, fade=96, stable=96), "num_steps": 36, "late": {"start": 0}}),
    "compiled": (2, {
        "names": (*NAMES, "laplacian", "feature_matching"), "late": {"start": 0}, "precision": "bf16", "compile": True,
        "num_steps": 16,
    }),
}  # fmt: skip
"""Kinds of steps that come to be recorded; the kind with a penalty is the last, and others are replayed behind it."""


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:The .grad attribute")  # torch hides the second
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_train_as_launched_ones(case: str) -> None:
    kinds, changes = CASES[case]
    launched, replayed = (small_run(**{**WHOLE, **changes}, cuda_graphs=each) for each in (False, True))
    assert launched.graphs is None and replayed.graphs is not None
    recorded = set()
    for one, other in zip(launched, replayed, strict=True):
        recorded |= set(replayed.graphs.recorded)
        assert one.terms.keys() == other.terms.keys()
        for name, value in one.terms.items():  # norms of gradients part first
            near = pytest.approx(value, rel=0.25 if "gradient" in name else 0.05, abs=5e-3, nan_ok=True)
            assert other.terms[name] == near, (one.step, name)
        rates = [float(group["lr"]) for group in replayed.updates.param_groups]
        assert rates == pytest.approx([RATE * one.rate] * len(rates), rel=1e-5)
    assert replayed.step == launched.step and len(recorded) == kinds
    own = weights_of(replayed.updates)
    apart = [(value - own[key]).abs().mean().item() for key, value in weights_of(launched.updates).items()]
    assert max(apart) < RATE


@pytest.mark.gpu
def test_a_replay_draws_by_its_own_step_and_trains_on_its_own_batch() -> None:
    """With rates of 0 what differs between steps is the draws and the pictures."""
    loop = small_run(
        num_steps=WARM + 6, record_every=1, device="cuda", precision="no", cuda_graphs=True, rules={"lr": 0.0}
    )
    again = small_run(num_steps=WARM + 6, record_every=1, device="cuda", precision="no", rules={"lr": 0.0})
    rows, others = [[(row.terms["real_score"], row.terms["fake_score"]) for row in each] for each in (loop, again)]
    assert len(set(rows)) == len(rows)
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.gpu
def test_graphs_are_recorded_anew_behind_a_resume(tmp_path: Any) -> None:
    asked = {**WHOLE, "rules": {"r1_every": 2}, "num_steps": 2 * WARM + 6}
    loop = small_run(**asked, cuda_graphs=True)
    for record in loop:
        if record.step == 2 * WARM + 2:
            loop.save(tmp_path)
    assert loop.graphs is not None and len(loop.graphs.recorded) == 2
    ended = weights_of(loop.updates)
    assert loop.resume(tmp_path) and loop.graphs.recorded == {}
    list(loop)
    apart = [(value - ended[key]).abs().mean().item() for key, value in weights_of(loop.updates).items()]
    assert max(apart) < 1e-4


def test_a_graph_reads_every_tensor_of_a_batch() -> None:
    batch = batch_of(2)
    whole = Batch(batch.index, batch.images, batch.labels, {"index": torch.ones(2), "name": ["a", "b"]})
    assert list(tensors(whole)) == ["index", "images", "labels", "latents.index"]


def test_a_cpu_launches_each_step() -> None:
    assert small_run(cuda_graphs=True).graphs is None
