"""`Loop` with the updates of ALAE in place of one loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fractal_streams.recipes.alae.compiled import CompiledPenalty
from fractal_streams.recipes.alae.graphs import StepGraphs
from fractal_streams.recipes.alae.growth import Growth
from fractal_streams.recipes.alae.updates import Updates

from fractal_streams import Stream
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    from fractal_streams.recipes.data import on_device
    from fractal_streams.recipes.loop import Loop, LoopSettings, Record, Window, seeded
    from fractal_streams.recipes.timing import Clock
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


FORMS = 64
"""Of a network are compiled at most: one for each level, batch and set of weights with a gradient."""
OFTEN = 4
"""Steps from one penalty to the next: where there are more, compiling it takes longer than it saves in a run."""


class Everything(nn.Module):
    """All that is trained and kept of a run: the model, and what its slots and its prior bring."""

    def __init__(self, updates: Updates) -> None:
        super().__init__()
        self.model, self.others = updates.model, nn.ModuleDict(dict(updates.others))
        if isinstance(updates.prior, nn.Module):
            self.prior = updates.prior


class AdversarialLoop(Loop):
    """Training of ALAE: iterated, saved and resumed as `Loop`.

    Args:
        updates: of the step. growth: None trains at full size from the beginning.
        cuda_graphs: see `StepGraphs`; not on a CPU, and not on several ranks, which launch each kernel.
        frames: pictures of a sample, by which growth and slots count, and pictures of a second.

    Raises:
        InvalidValueError: settings that a step of several updates has not.
    """

    remedy = "take a smaller batch, or leave CUDA graphs out"

    def __init__(
        self,
        updates: Updates,
        source: Stream,
        settings: LoopSettings,
        growth: Growth | None = None,
        *,
        cuda_graphs: bool = False,
        frames: int = 1,
    ) -> None:
        if settings.accumulation != 1:
            raise InvalidValueError(
                f"accumulation={settings.accumulation}: a step of several updates goes through its batch at once, take "
                f"a smaller batch_size"
            )
        if str(updates.accelerator.mixed_precision) == "fp16":
            raise InvalidValueError("precision='fp16' underflows in the penalty on gradients: use 'bf16' or 'no'")
        self.updates, self.growth, self.frames = updates, growth, frames
        self.pictures = settings.batch_size * frames
        alone = updates.accelerator.device.type == "cuda" and updates.accelerator.num_processes == 1
        self.graphs = StepGraphs(updates) if cuda_graphs and alone else None
        super().__init__(
            Everything(updates), _no_loss, updates, source, settings, updates.accelerator, fields="batch",  # type: ignore[arg-type]
        )  # fmt: skip

    def _prepared(self, optimizer: Any) -> tuple[nn.Module, Any]:
        """As they are: ranks share gradients in `Updates`, and the networks are compiled one by one."""
        model = self.updates.model
        for buffer_or_weight in (*self.network.parameters(), *self.network.buffers()):
            if self.accelerator.num_processes > 1:
                torch.distributed.broadcast(buffer_or_weight.data, 0)
        if self.settings.compile:
            functorch.donated_buffer = False  # terms may go back through one graph more than once, see `together`
            dynamo.recompile_limit = max(dynamo.recompile_limit, FORMS)
            for network in (model.generator, model.encoder):  # F and D are small
                network.compile(dynamic=False)
            self.updates.fused = functools.cache(functools.partial(torch.compile, dynamic=False))
            if self.updates.rules.r1_every <= OFTEN:
                self.updates.penalty = CompiledPenalty(model, self.updates.rules.gamma)
        return self.network, optimizer

    def _update(self, batches: Iterator[Any], clock: Clock) -> list[Mapping[str, Tensor]]:
        settings, seen = self.settings, self.step * self.pictures
        self.interrupted = True
        seeded("step", settings.seed, self.step, self.accelerator.process_index)
        self.updates.optimisers.follow(settings.rate(self.step))
        self.network.train()
        if self.growth and self.growth.at(seen)[0] != self.growth.at(max(0, seen - self.pictures))[0]:
            self.updates.optimisers.forget()  # what they know is of other networks
            self.forget_graphs()
        self.grow(seen)
        with clock.waiting():
            batch = next(batches)
        step = self.graphs.step if self.graphs else self.updates.step
        told = step(on_device(batch, self.accelerator.device), self.step, seen)
        if self.average is not self.network:
            self.average.update_parameters(self.network)  # type: ignore[operator]
        self.step += 1
        self.interrupted = False
        return [told]

    def _record(self, window: Window, clock: Clock) -> Record:
        record = super()._record(window, clock)
        return replace(record, images_per_second=record.images_per_second * self.frames)

    def forget_graphs(self) -> None:
        """What was recorded reads tensors that an optimizer no longer has."""
        if self.graphs:
            self.graphs.forget()

    def grow(self, seen: int) -> None:
        """Makes the model, and the average, of the size that it has behind so many images."""
        if self.growth is not None:
            for model in (self.updates.model, self.averaged):
                model.grow(*self.growth.at(seen))

    @property
    def averaged(self) -> Any:
        """The ALAE whose weights are the average, or the one that is trained."""
        everything: Any = getattr(self.average, "module", self.average)
        return everything.model

    def resume(self, folder: Path) -> bool:
        found = super().resume(folder)
        self.forget_graphs()
        for weight in self.network.parameters():
            weight.grad = None  # of a step that was interrupted
        self.grow(max(0, self.step - 1) * self.pictures)  # as in the step that was the last
        return found


def _no_loss(model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
    raise AssertionError("the updates have losses of their own")
