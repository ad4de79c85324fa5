"""One training loop for every recipe, on Accelerate: a generator of records.

    loop = Loop(model, loss, optimizer, stream, settings, accelerator)
    for record in loop:                      # step, loss, images/s, time waited for data, memory
        print(record.step, record.loss)
        if record.loss < 0.1:
            break

Logging, evaluation and early stop are the caller's `for`. What a step trains on and what it draws follow from
(settings, step, rank): so evaluating more often changes nothing, and a run that is stopped and resumed gives the same
weights as one that is not, bit for bit on a CPU.
A loss that is no longer a number ends the run with a `DivergedError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fractal_streams import Loader, Stream
from fractal_streams.device import resolve_device
from fractal_streams.errors import DeviceError, DivergedError, FractalStreamsError, InvalidValueError, missing_extra
from fractal_streams.fields import Fields, Transform

try:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import TorchDynamoPlugin
    from fractal_streams.recipes import checkpoint
    from fractal_streams.recipes.averages import Average
    from fractal_streams.recipes.data import on_device
    from fractal_streams.recipes.settings import Settings, option, refuse_others
    from fractal_streams.recipes.timing import Clock, Window, memory, refuse_no_scalars
    from fractal_streams.recipes.trackers import TRACKERS
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

PRECISIONS = ("auto", "no", "bf16", "fp16")
Loss = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""(model, batch) to scalars by name, "loss" among them: it is what the weights follow, the others are told."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """How a model is trained."""

    panel: ClassVar[str] = "Training"
    num_steps: int = option(3000, "Updates of the weights.", low=1)
    batch_size: int = option(256, "Samples of an update, of all ranks together.", low=1)
    accumulation: int = option(1, "Parts in which a rank goes through its share of a batch.", low=1)
    warmup_steps: int = option(100, "Steps in which the rate rises; a shorter run never comes to its height.", low=0)
    schedule: str = option("cosine", "Of the rate behind the warm-up.", choices=("cosine", "constant"))
    clip: float | None = option(None, "Largest norm of the gradient.", low=1e-12)
    ema: float = option(0.0, "Share of the average of weights that stays in a step; 0 keeps none.", low=0.0, high=1.0)
    precision: str = option("auto", "Of products; auto is bf16 on a GPU.", choices=PRECISIONS)
    compile: bool = option(False, "Compile the model.", changes_nothing=True)
    seed: int = option(0, "Names the weights and all that a step draws.")
    device: str = option("auto", "auto, cpu or cuda.", changes_nothing=True)
    workers: int = option(0, "Processes that render; 0 on a GPU.", high=1024, changes_nothing=True)
    record_every: int = option(50, "Steps from one record to the next.", low=1, changes_nothing=True)
    eval_once_every: int = option(500, "Steps from one evaluation to the next.", low=1, changes_nothing=True)
    checkpoint_every: int = option(500, "Steps from one checkpoint to the next.", low=1, changes_nothing=True)
    trackers: tuple[str, ...] = option(
        (), "Who is told beside records.csv, with commas between.", choices=TRACKERS, changes_nothing=True
    )

    def at(self, step: int, every: int) -> bool:
        """Whether something that is done every so many steps, and at last, is due."""
        return step % every == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        return self.at(step, self.eval_once_every)

    def saves(self, step: int) -> bool:
        return self.at(step, self.checkpoint_every)

    def records(self, step: int) -> bool:
        return self.at(step, self.record_every) or self.evaluates(step) or self.saves(step)

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
    seconds: in the loop, and in the runs that it was resumed from up to their checkpoints; without the caller's own.
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
        DeviceError: a GPU was asked for that is not there, or one by number; or fp16 without a GPU.
    """
    asked = settings.device
    if asked not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda, got {asked!r}: choose a GPU by CUDA_VISIBLE_DEVICES")
    resolve_device(asked)
    cpu = asked == "cpu" or not torch.cuda.is_available()
    precision = {"auto": "no" if cpu else "bf16"}.get(settings.precision, settings.precision)
    if cpu and precision == "fp16":
        raise DeviceError("precision='fp16' needs a GPU: on a CPU use 'no' or 'bf16'")
    if PartialState._shared_state:  # else the first run of a process decides for all
        AcceleratorState._reset_state(reset_partial_state=PartialState().num_processes == 1)
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
    seed = seed_named(*names)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():  # without one, torch.manual_seed formats a stack for each kind of device
        torch.cuda.manual_seed_all(seed)
    return seed


def seed_named(*names: str | int) -> int:
    """The integer below 2**63 that names stand for, for generators of one's own."""
    return int.from_bytes(hashlib.blake2s(json.dumps(names).encode(), digest_size=8).digest(), "little") >> 1


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

    Iterating raises `DivergedError` at the record of the first step whose loss is infinite or no number, before
    anything of it is saved; and `DeviceError` where the GPU's memory is full.
    """

    remedy = "double accumulation, which trains the same, or take a smaller batch"

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
        self.decisive = {**settings.decisive(), "precision": str(accelerator.mixed_precision)}  # what auto came to
        self.network = model.to(accelerator.device)
        self.average: nn.Module = Average(self.network, settings.ema) if settings.ema else self.network
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.model, self.optimizer = self._prepared(optimizer)
        self.loader = Loader(
            source, settings.batch_size // shares, workers=settings.workers, fields=fields, transform=transform
        )
        self.step = self.saved = 0
        self.seconds = 0.0
        self.interrupted = False
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)

    def _prepared(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model as ranks share it, and compiled if asked for; and its optimizer."""
        return self.accelerator.prepare(self.network, optimizer)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Record]:
        self._refuse_interrupted()
        settings, batches = self.settings, iter(self.loader)
        clock, window = Clock(self.accelerator.device), Window()
        while self.step < settings.num_steps:
            try:
                window.add(self._update(batches, clock))
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"the GPU's memory is full at batch_size={settings.batch_size}, accumulation="
                    f"{settings.accumulation}: {self.remedy}"
                ) from error
            if settings.records(self.step):
                record = self._record(window, clock)
                window, idle = Window(), time.perf_counter()
                yield record
                clock.leave_out(time.perf_counter() - idle)

    def _update(self, batches: Iterator[Any], clock: Clock) -> list[Mapping[str, Tensor]]:
        """One step of the weights; what the loss told of each part, still on the device."""
        settings, accelerator = self.settings, self.accelerator
        self.interrupted = True
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
                refuse_no_scalars(terms)
                accelerator.backward(terms["loss"] / settings.accumulation)
            told.append({name: value.detach() for name, value in terms.items()})
        if settings.clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.average, Average):
            self.average.update_parameters(self.network)
        self.step += 1
        self.interrupted = False
        return told

    def _record(self, window: Window, clock: Clock) -> Record:
        terms = window.means(self.accelerator)
        seconds, waiting = clock.read()
        self.seconds += seconds
        self._refuse_divergence(window, terms["loss"])
        self._share_buffers()
        return Record(
            step=self.step, samples=self.step * self.settings.batch_size, loss=terms.pop("loss"), terms=terms,
            rate=self.settings.rate(self.step - 1), images_per_second=window.steps * self.settings.batch_size / seconds,
            waiting=min(1.0, waiting / seconds), memory=memory(self.accelerator.device), seconds=self.seconds,
        )  # fmt: skip

    def _refuse_divergence(self, window: Window, loss: float) -> None:
        """A `DivergedError` that names the step; of fp16 only once the gradient's scale has nowhere to go."""
        scaler = self.accelerator.scaler
        if math.isfinite(loss) or (scaler is not None and scaler.get_scale() >= 1.0):
            return
        losses = window.losses(self.accelerator)
        place = next(place for place, value in enumerate(losses) if not math.isfinite(value))
        step = self.step - len(losses) + place + 1
        raise DivergedError(
            f"the loss of step {step} is {losses[place]}: lower the learning rate, lengthen the warm-up "
            f"(warmup_steps={self.settings.warmup_steps}) or clip the gradient (clip={self.settings.clip})"
        )

    def _share_buffers(self) -> None:
        """Makes buffers, that each rank fills from its own batches, those of rank 0, whose checkpoint it is."""
        if self.accelerator.num_processes > 1:
            averages = self.average.buffers() if isinstance(self.average, Average) else ()
            for buffer in (*self.network.buffers(), *averages):
                if buffer.device.type == self.accelerator.device.type:
                    torch.distributed.broadcast(buffer, 0)

    def _refuse_interrupted(self) -> None:
        if self.interrupted:
            raise InvalidValueError(
                f"step {self.step + 1} was interrupted and is half done: make a Loop, and resume it from a checkpoint"
            )

    def _refuse_ranks_apart(self, folder: Path, place: Path | None) -> None:
        """Ranks that begin at different steps would wait for each other forever."""
        if self.accelerator.num_processes > 1:
            number = -1 if place is None else int(place.name.split("-")[1])
            steps = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).tolist()
            if len(set(steps)) > 1:
                raise InvalidValueError(f"ranks found steps {steps} in {folder}, -1 is none: let them share a folder")

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model to look at: the average of weights if one is kept, in evaluation mode, without gradients."""
        average = self.average
        model = average.module if isinstance(average, Average) and average.begun else self.network
        was = model.training
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield model
        finally:
            model.train(was)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, from which another `Loop` of the same settings goes on; only the main process writes.

        Raises:
            InvalidValueError: a step was interrupted; or the optimizer keeps what is neither tensor, number nor text.
        """
        self._refuse_interrupted()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            values = {
                "network": self.network.state_dict(),
                "average": self.average.state_dict() if isinstance(self.average, Average) else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "loop": {
                    "step": self.step, "settings": json.dumps(self.decisive),
                    "loader": self.loader.state_dict(), "seconds": self.seconds,
                },
            }  # fmt: skip
            checkpoint.save(folder, self.step, values)
        self.accelerator.wait_for_everyone()
        self.saved = self.step

    def resume(self, folder: Path) -> bool:
        """Go on from the newest checkpoint of a folder; whether there was one.

        Raises:
            InvalidValueError: it is damaged, or of other settings, another stream or another model; names what differs.
            Or the ranks see different checkpoints.
        """
        place = checkpoint.latest(folder)
        self._refuse_ranks_apart(folder, place)
        if place is None:
            return False
        values = checkpoint.load(place)
        try:
            told = values["loop"]
            refuse_others(json.loads(told["settings"]), self.decisive, place)
            self.loader.load_state_dict(told["loader"])
            self.network.load_state_dict(values["network"])
            if isinstance(self.average, Average):
                self.average.load_state_dict(values["average"])
            self.optimizer.load_state_dict(values["optimizer"])
            if self.accelerator.scaler is not None and values["scaler"]:
                self.accelerator.scaler.load_state_dict(values["scaler"])
            self.step, self.seconds, self.interrupted = told["step"], told["seconds"], False
            self.saved = self.step
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, FractalStreamsError):
                raise
            self.interrupted = True
            raise InvalidValueError(
                f"{place} is of another model or optimizer ({' '.join(str(error).split())}): ask for the same, or for "
                f"another folder"
            ) from error
        return True
