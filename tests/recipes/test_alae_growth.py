"""The schedule of growing against one that is written out image by image, and what a run does at each level."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

from fractal_streams.recipes.alae.growth import Growth
from small_alae import small_run


def written_out(growth: Growth, images: int) -> list[tuple[int, float]]:
    """Level and blend behind 0, 1, 2 … images."""
    rows = [(growth.first, 1.0)] * growth.stable
    for level in range(growth.first + 1, growth.last + 1):
        rows += [(level, (1.0 - math.cos(math.pi * into / growth.fade)) / 2.0) for into in range(growth.fade)]
        rows += [(level, 1.0)] * growth.stable
    return (rows + [(growth.last, 1.0)] * images)[:images]


@pytest.mark.parametrize(
    "growth",
    [
        Growth(first=1, last=4, fade=7, stable=5),
        Growth(first=1, last=2, fade=1, stable=1),
        Growth(first=2, last=3, fade=2, stable=9),
        Growth(first=3, last=3, fade=4, stable=4),
    ],
)
def test_levels_and_blends_by_images_seen(growth: Growth) -> None:
    for seen, (level, blend) in enumerate(written_out(growth, 60)):
        found = growth.at(seen)
        assert found[0] == level and found[1] == pytest.approx(blend, abs=1e-12), seen
    blends = [growth.at(seen) for seen in range(60)]
    assert blends == sorted(blends, key=lambda each: each[0])  # it never shrinks
    assert all(0.0 <= blend <= 1.0 for _, blend in blends)


def test_a_run_grows_and_forgets_at_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4; 8 images of 8 pixels, 8 faded in and 8 of 16: steps 0, 1 | 2, 3 | 4, 5."""
    growth = Growth(first=1, last=2, fade=8, stable=8)
    loop = small_run(growth=growth, edge=16, batch_size=4, num_steps=6, record_every=1, ema=0.5)
    model, seen = loop.updates.model, []
    forgot: list[int] = []
    monkeypatch.setattr(loop.updates.optimisers, "forget", lambda: forgot.append(loop.step))
    generate = loop.updates.generate

    def noted(held: Any, *rest: Any) -> None:
        seen.append((model.level, round(model.blend.item(), 6), model.blending, tuple(held.images.shape)))
        generate(held, *rest)

    monkeypatch.setattr(loop.updates, "generate", noted)
    for _ in loop:
        assert loop.averaged is not model
        assert (loop.averaged.level, loop.averaged.blending) == (model.level, model.blending)
        assert torch.equal(loop.averaged.blend, model.blend)
    assert seen == [
        (1, 1.0, False, (4, 3, 8, 8)), (1, 1.0, False, (4, 3, 8, 8)), (2, 0.0, True, (4, 3, 16, 16)),
        (2, 0.5, True, (4, 3, 16, 16)), (2, 1.0, False, (4, 3, 16, 16)), (2, 1.0, False, (4, 3, 16, 16)),
    ]  # fmt: skip
    assert forgot == [2]
