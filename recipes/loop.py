"""One training loop for every recipe, on Accelerate: a generator of records.

    loop = Loop(model, loss, optimizer, stream, settings, accelerator)
    for record in loop:                      # step, loss, images/s, time waited for data, memory
        print(record.step, record.loss)
        if record.loss < 0.1:
            break

Logging, evaluation and early stop are the caller's `for`. What a step trains on and what it draws follow from
(settings, step, rank): so evaluating more often changes nothing, and a run that is stopped and resumed gives the same
weights as one that is not, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_streams import Loader, Stream
from fractal_streams.device import resolve_device
from fractal_streams.errors import DeviceError, InvalidValueError, missing_extra
from fractal_streams.fields import Fields, Transform

try:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import TorchDynamoPlugin
    from fractal_streams.recipes import checkpoint
    from fractal_streams.recipes.settings import Settings, option
    from fractal_streams.recipes.timing import Clock, Window, memory
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PRECISIONS = ("auto", "no", "bf16", "fp16")
Loss = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""(model, batch) to scalars by name, "loss" among them: it is what the weights follow, the others are told."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """How a model is trained."""

    num_steps: int = option(3000, "Updates of the weights.", low=1)
    batch_size: int = option(256, "Samples of an update, of all ranks together.", low=1)
    accumulation: int = option(1, "Parts in which a rank goes through its share of a batch.", low=1)
    warmup_steps: int = option(100, "Steps in which the rate rises.", low=0)
    schedule: str = option("cosine", "Of the rate behind the warm-up.", choices=("cosine", "constant"))
    clip: float | None = option(None, "Largest norm of the gradient.", low=0.0)
    ema: float = option(0.0, "Share of the average of weights that stays in a step; 0 keeps none.", low=0.0, high=1.0)
    precision: str = option("auto", "Of products; auto is bf16 on a GPU.", choices=PRECISIONS)
    compile: bool = option(False, "Compile the model.", changes_nothing=True)
    seed: int = option(0, "Names the weights and all that a step draws.")
    device: str = option("auto", "auto, cpu or cuda.", changes_nothing=True)
    workers: int = option(0, "Processes that render; 0 on a GPU.", high=1024, changes_nothing=True)
    record_every: int = option(50, "Steps from one record to the next.", low=1, changes_nothing=True)
    eval_once_every: int = option(500, "Steps from one evaluation to the next.", low=1, changes_nothing=True)
    checkpoint_every: int = option(500, "Steps from one checkpoint to the next.", low=1, changes_nothing=True)

    def at(self, step: int, every: int) -> bool:
        """Whether something that is done every so many steps, and at last, is due."""
        return step % every == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        return self.at(step, self.eval_once_every)

    def saves(self, step: int) -> bool:
        return self.at(step, self.checkpoint_every)

    def rate(self, step: int) -> float:
        """The share of its rate that each weight has in a step: a linear rise, then a cosine to 0.

        Example:
            >>> settings = LoopSettings(num_steps=110, warmup_steps=10)
            >>> [round(settings.rate(step), 3) for step in (0, 9, 10, 60, 109)]
            [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return 0.5 + 0.5 * math.cos(math.pi * done)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the steps since the last record were like.

    step: of the last of them, from 1 on. samples: seen by all ranks since the beginning.
    loss: mean over them. terms: means of what else the loss told.
    rate: share of the learning rates in the last step.
    images_per_second: of all ranks, the caller's own time left out.
    waiting: share of that time in which the model had no batch: of the device's time on a GPU.
    memory: bytes; the most of the GPU so far, or of the process.
    seconds: in the loop since it was made or resumed, the caller's own time left out.
    """

    step: int
    samples: int
    loss: float
    terms: Mapping[str, float]
    rate: float
    images_per_second: float
    waiting: float
    memory: int
    seconds: float


def open_accelerator(settings: LoopSettings) -> Accelerator:
    """The accelerator of a run: its device, its precision, its ranks.

    Raises:
        DeviceError: a GPU was asked for that is not there, or one by number.
    """
    asked = settings.device
    if asked not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda, got {asked!r}: choose a GPU by CUDA_VISIBLE_DEVICES")
    resolve_device(asked)
    cpu = asked == "cpu" or not torch.cuda.is_available()
    precision = {"auto": "no" if cpu else "bf16"}.get(settings.precision, settings.precision)
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # else the first run of a process decides for all
    plugin = TorchDynamoPlugin(backend="inductor") if settings.compile else None
    return Accelerator(cpu=cpu, mixed_precision=precision, dynamo_plugin=plugin)


def image_type(accelerator: Accelerator) -> str:
    """The type in which a stream makes pictures for a model of the accelerator's precision."""
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return names.get(str(accelerator.mixed_precision), "float32")


def seeded(*names: str | int) -> int:
    """Makes all that torch draws from here on follow from these names.

    Example:
        >>> seeded("weights", 0) == seeded("weights", 0) != seeded("weights", 1)
        True
    """
    seed = int.from_bytes(hashlib.blake2s(json.dumps(names).encode(), digest_size=8).digest(), "little") >> 1
    torch.manual_seed(seed)
    return seed


class Loop:
    """Training that can be iterated, saved and resumed.

    Args:
        model: with its first weights; draw them behind `seeded("weights", settings.seed)`.
        loss: see `Loss`. optimizer: of the model's weights, with the highest rates of each group.
        source: the stream to train on, on the accelerator's device.
        accelerator: from `open_accelerator`.
        fields, transform: of the batches, as in `StreamDataset`.

    Raises:
        InvalidValueError: a batch that the ranks and parts can't share evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        source: Stream,
        settings: LoopSettings,
        accelerator: Accelerator,
        *,
        fields: Fields = "pair",
        transform: Transform | None = None,
    ) -> None:
        shares = accelerator.num_processes * settings.accumulation
        if settings.batch_size % shares:
            raise InvalidValueError(
                f"batch_size={settings.batch_size} can't be shared evenly by {accelerator.num_processes} ranks in "
                f"{settings.accumulation} parts: make it a multiple of {shares}"
            )
        self.settings, self.accelerator, self.loss = settings, accelerator, loss
        self.network = model.to(accelerator.device)
        self.average: nn.Module = averaged(self.network, settings.ema)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.loader = Loader(
            source, settings.batch_size // shares, workers=settings.workers, fields=fields, transform=transform
        )
        self.step = 0
        self.seconds = 0.0
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)

    def __iter__(self) -> Iterator[Record]:
        settings, batches = self.settings, iter(self.loader)
        stops = (settings.record_every, settings.eval_once_every, settings.checkpoint_every)
        clock, window = Clock(self.accelerator.device), Window()
        while self.step < settings.num_steps:
            window.add(self._update(batches, clock))
            if any(settings.at(self.step, every) for every in stops):
                record = self._record(window, clock)
                window, idle = Window(), time.perf_counter()
                yield record
                clock.leave_out(time.perf_counter() - idle)

    def _update(self, batches: Iterator[Any], clock: Clock) -> list[Mapping[str, Tensor]]:
        """One step of the weights; what the loss told of each part, still on the device."""
        settings, accelerator = self.settings, self.accelerator
        seeded("step", settings.seed, self.step, accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.rate(self.step)
        self.model.train()
        told: list[Mapping[str, Tensor]] = []
        for part in range(settings.accumulation):
            with clock.waiting():
                batch = next(batches)
            last = part == settings.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                terms = self.loss(self.model, on_device(batch, accelerator.device))
                accelerator.backward(terms["loss"] / settings.accumulation)
            told.append({name: value.detach() for name, value in terms.items()})
        if settings.clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.average, AveragedModel):
            self.average.update_parameters(self.network)
        self.step += 1
        return told

    def _record(self, window: Window, clock: Clock) -> Record:
        terms = window.means(self.accelerator)
        seconds, waiting = clock.read()
        self.seconds += seconds
        if not math.isfinite(terms["loss"]) and self.accelerator.is_main_process:
            sys.stderr.write(f"step {self.step}: the loss is {terms['loss']}\n")
        return Record(
            step=self.step, samples=self.step * self.settings.batch_size, loss=terms.pop("loss"), terms=terms,
            rate=self.settings.rate(self.step - 1), images_per_second=window.steps * self.settings.batch_size / seconds,
            waiting=waiting / seconds, memory=memory(self.accelerator.device), seconds=self.seconds,
        )  # fmt: skip

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model to look at: the average of weights if one is kept, in evaluation mode, without gradients."""
        average = isinstance(self.average, AveragedModel) and int(self.average.n_averaged) > 0
        model: nn.Module = self.average.module if average else self.network  # type: ignore[assignment]
        was = model.training
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield model
        finally:
            model.train(was)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, from which another `Loop` of the same settings goes on; only the main process writes."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            values = {
                "network": self.network.state_dict(),
                "average": self.average.state_dict() if isinstance(self.average, AveragedModel) else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "loop": {
                    "step": self.step, "settings": json.dumps(self.settings.decisive()),
                    "loader": self.loader.state_dict(),
                },
            }  # fmt: skip
            checkpoint.save(folder, self.step, values)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> bool:
        """Go on from the newest checkpoint of a folder; whether there was one.

        Raises:
            InvalidValueError: it is damaged, or of other settings or another stream; names what differs.
        """
        place = checkpoint.latest(folder)
        if place is None:
            return False
        values = checkpoint.load(place)
        told = values["loop"]
        refuse_others(json.loads(told["settings"]), self.settings.decisive(), place)
        self.loader.load_state_dict(told["loader"])
        self.network.load_state_dict(values["network"])
        if isinstance(self.average, AveragedModel):
            self.average.load_state_dict(values["average"])
        self.optimizer.load_state_dict(values["optimizer"])
        laid_out(self.optimizer)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.step = told["step"]
        return True


def averaged(network: nn.Module, decay: float) -> nn.Module:
    """The network itself, or a running average of its weights, which early steps weigh less on.

    The share that stays is at most (1 + n) / (10 + n) behind n steps, as in TensorFlow's ExponentialMovingAverage.
    """
    if decay == 0.0:
        return network

    @torch.no_grad()
    def mean(averages: list[Tensor], weights: list[Tensor], steps: Tensor | int) -> None:
        count = int(steps)
        share = min(decay, (1 + count) / (10 + count))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, weights, 1.0 - share)
        else:
            torch._foreach_copy_(averages, weights)

    return AveragedModel(network, multi_avg_fn=mean, use_buffers=True)  # type: ignore[arg-type]


def laid_out(optimizer: Any) -> None:
    """Give what an optimizer keeps the layout in memory of its weights, which files do not tell."""
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            same = isinstance(value, Tensor) and value.shape == weight.shape
            if same and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def refuse_others(found: Mapping[str, Any], asked: Mapping[str, Any], place: Path) -> None:
    """An `InvalidValueError` if a checkpoint is of other settings."""
    names = [name for name in sorted({*found, *asked}) if found.get(name) != asked.get(name)]
    if names:
        said = ", ".join(f"{name}={found.get(name)!r}, not {asked.get(name)!r}" for name in names)
        raise InvalidValueError(f"{place} was trained with {said}: ask for the same, or for another folder")


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch on the device; one that is there stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: on_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(on_device(value, device) for value in batch)
    return batch
