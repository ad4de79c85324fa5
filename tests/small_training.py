"""A small training, which tests run in their own process, on several ranks, and in processes that they kill.

python small_training.py FOLDER '{"num_steps": 12}' trains as told, writes a checkpoint every so many steps, and at
last `rank-R.json` with what rank R saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fractal_streams.recipes.loop import Loop, LoopSettings, open_accelerator, seeded
from torch import Tensor, nn
from torch.nn import functional

from fractal_streams import Stream, open_stream

EDGE, CLASSES = 8, 10
SMALL: dict[str, Any] = {
    "num_steps": 12, "batch_size": 8, "warmup_steps": 3, "record_every": 4, "eval_once_every": 1000,
    "checkpoint_every": 1000, "device": "cpu",
}  # fmt: skip
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-2)


def plain() -> nn.Module:
    """A network that computes each sample by itself."""
    size = 3 * EDGE * EDGE
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES))


def noisy() -> nn.Module:
    """A network that draws, has buffers, and weights that lie otherwise in memory."""
    front = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    body = nn.Sequential(*front, nn.Dropout(0.2), nn.Linear(72, CLASSES))
    return body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pictures(seed: int = 0) -> Stream:
    return open_stream("fractal-10", seed=seed, height=EDGE, width=EDGE, dtype="float32", device="cpu")


class Seen:
    """A loss that notes which samples it was given."""

    def __init__(self) -> None:
        self.indices: list[list[int]] = []

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        self.indices.append(batch.index.tolist())
        scores = model(batch.images)
        right = (scores.argmax(1) == batch.labels).float().mean()
        return {"loss": functional.cross_entropy(scores, batch.labels), "accuracy": right}


def small_loop(
    model: Callable[[], nn.Module] = plain,
    optimizer: Optimizer = adam,
    loss: Any = None,
    stream: Stream | None = None,
    **settings: Any,
) -> Loop:
    asked = LoopSettings(**{**SMALL, **settings})
    accelerator = open_accelerator(asked)
    seeded("weights", asked.seed)
    network = model()
    source = pictures() if stream is None else stream
    return Loop(network, loss or Seen(), optimizer(network), source, asked, accelerator, fields="batch")


def weights(loop: Loop) -> dict[str, Tensor]:
    """A copy of the weights and buffers."""
    return {name: value.detach().clone() for name, value in loop.network.state_dict().items()}


def sums(loop: Loop) -> list[float]:
    """The sum of each of the weights and buffers."""
    return [value.double().sum().item() for value in weights(loop).values()]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether they are equal to the last bit."""
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def main(folder: Path, settings: dict[str, Any]) -> None:
    kind = {"plain": plain, "noisy": noisy}[settings.pop("model", "plain")]
    loop = small_loop(kind, **settings)
    loop.resume(folder)
    records = []
    for record in loop:
        records.append([record.step, record.loss])
        if loop.settings.saves(record.step):
            loop.save(folder)
    seen: Any = loop.loss
    told = {"indices": seen.indices, "records": records, "sums": sums(loop)}
    (folder / f"rank-{loop.accelerator.process_index}.json").write_text(json.dumps(told))
    loop.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
