"""A small ALAE, which tests train in their own process, on several ranks, and in processes that they kill.

python small_alae.py FOLDER '{"num_steps": 12}' trains as told, writes a checkpoint every so many steps, and at last
`rank-R.json` with what rank R came to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fractal_streams.recipes.alae.adversarial_loop import AdversarialLoop
from fractal_streams.recipes.alae.growth import Growth
from fractal_streams.recipes.alae.layers import Noise
from fractal_streams.recipes.alae.model import ALAE, Size
from fractal_streams.recipes.alae.priors import Gaussian, Prior
from fractal_streams.recipes.alae.slots import Slot
from fractal_streams.recipes.alae.terms import networks_of, slots_named
from fractal_streams.recipes.alae.updates import Rules, Updates
from fractal_streams.recipes.loop import LoopSettings, open_accelerator, seeded
from torch import Tensor

from fractal_streams import Batch, Stream, open_stream

SMALL = Size(image_size=8, narrow=4, wide=8, code_size=8, projector=2, discriminator=2)
STEPS: dict[str, Any] = {
    "num_steps": 12, "batch_size": 8, "warmup_steps": 0, "schedule": "constant", "record_every": 4,
    "eval_once_every": 1000, "checkpoint_every": 1000, "device": "cpu",
}  # fmt: skip


class ByIndex(Prior):
    """Draws that follow from the index of each sample, on whichever rank it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def draw(self, batch: Batch, model: Any) -> Tensor:
        index = torch.as_tensor(batch.index)
        return (12.9898 * (1.0 + index[:, None]) * (1.0 + torch.arange(self.size))).sin().float()


def model_of(edge: int = 8, **settings: Any) -> ALAE:
    seeded("weights", 0)
    shape = settings.pop("shape", (3, edge, edge))
    return ALAE(settings.pop("size", SMALL), shape, **settings)


def batch_of(count: int = 8, *shape: int) -> Batch:
    """Pictures in [-1, 1] that are the same each time."""
    generator = torch.Generator().manual_seed(0)
    images = 2.0 * torch.rand(count, *(shape or (3, 8, 8)), generator=generator) - 1.0
    return Batch(torch.arange(count), images, torch.zeros(count, dtype=torch.int64), {})


def updates_of(
    model: ALAE, slots: Sequence[Slot] = (), accelerator: Any = None, prior: Prior | None = None, **rules: Any
) -> Updates:
    own = prior or Gaussian(model.prior_size)
    found = accelerator or Accelerator(cpu=True, mixed_precision="no")
    return Updates(model, own, Rules(**rules), found, slots, networks_of(slots, model, 4))


def weights_of(updates: Updates) -> dict[tuple[str, str], Tensor]:
    """A copy of all weights, by network and name."""
    return {
        (name, key): weight.detach().clone()
        for name, network in updates.networks.items()
        for key, weight in network.named_parameters()
    }


def moved(updates: Updates, before: dict[tuple[str, str], Tensor]) -> set[str]:
    """Networks with a weight that is another one now."""
    now = weights_of(updates)
    return {key[0] for key, old in before.items() if not torch.equal(old, now[key])}


def pictures(edge: int = 8) -> Stream:
    return open_stream("fractal-10", height=edge, width=edge, dtype="float32", device="cpu", mean=0.5, std=0.5)


def small_run(
    names: Sequence[str] = (),
    *,
    growth: Growth | None = None,
    alike: bool = False,
    rules: dict[str, Any] | None = None,
    edge: int = 8,
    cuda_graphs: bool = False,
    late: dict[str, int] | None = None,
    **settings: Any,
) -> AdversarialLoop:
    """A training with slots of these names.

    Args:
        alike: what is drawn follows from samples, and nothing from the rank.
        late: other starts and warm-ups of the slots.
    """
    asked = LoopSettings(**{**STEPS, **settings})
    accelerator = open_accelerator(asked)
    model = model_of(edge, first_level=growth.first if growth else None)
    if alike:
        Noise.forward = lambda _, maps: maps  # type: ignore[method-assign]
    prior = ByIndex(model.prior_size) if alike else None
    slots = [replace(slot, **(late or {})) for slot in slots_named(names)]
    updates = updates_of(model, slots, accelerator, prior, **(rules or {}))
    return AdversarialLoop(updates, pictures(edge), asked, growth, cuda_graphs=cuda_graphs)


def main(folder: Path, settings: dict[str, Any]) -> None:
    loop = small_run(settings.pop("names", ()), **settings)
    loop.resume(folder)
    records = []
    for record in loop:
        records.append([record.step, record.loss])
        if loop.settings.saves(record.step):
            loop.save(folder)
    told = {
        "records": records,
        "weights": {f"{name}.{key}": value.tolist() for (name, key), value in weights_of(loop.updates).items()},
        "mean_code": loop.updates.model.mean_code.tolist(),
    }
    (folder / f"rank-{loop.accelerator.process_index}.json").write_text(json.dumps(told))
    loop.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
