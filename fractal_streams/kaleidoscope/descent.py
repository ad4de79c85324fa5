"""Networks on their way down: steps of Adam over a bank as one batch, and the best weights so far.

Step s draws its batch and noise from a generator that (seed, s) names, so a descent that goes on from a checkpoint is
the one that was never interrupted. On a GPU a step of linear layers is one CUDA graph, and nothing waits for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.errors import missing_extra
from fractal_streams.kaleidoscope.bank import first_tensors, forward_of
from fractal_streams.kaleidoscope.network import Float32, Float64, Network, Tensors
from fractal_streams.kaleidoscope.training import Training

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

ROWS = 1024
"""Sources that are evaluated at a time."""
NOISY_ROWS = 256
"""Noisy inputs that an evaluation has at least."""
WARM_UPS = 3
"""Steps before a CUDA graph is captured; what they change is put back."""


class Descent:
    """R networks, their optimiser, and the best that each of them was.

    Args:
        values: (1 or R, N, D) float32 what they are fitted to.
        device: "cpu" or "cuda:N".
        graphed: on a GPU, steps of linear layers as a CUDA graph.
    """

    def __init__(
        self, network: Network, training: Training, values: Float32, runs: int, device: str, graphed: bool = True
    ) -> None:
        self.network, self.training, self.runs, self.device = network, training, runs, device
        self.dtype = torch.float64 if training.dtype == "float64" else torch.float32
        self.data = torch.from_numpy(np.ascontiguousarray(values)).to(device, self.dtype)
        self.batch = min(training.batch or self.data.shape[1], self.data.shape[1])
        self.noise = training.noise * 0.5 * network.span
        self.forward = forward_of(network, training.dtype, device)
        self.tensors = {
            name: torch.from_numpy(array).to(device, self.dtype).requires_grad_()
            for name, array in first_tensors(network, runs, training.seed).items()
        }
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.best_score = torch.full((runs,), float("inf"), dtype=torch.float64, device=device)
        self.best_step = torch.zeros(runs, dtype=torch.int64, device=device)
        self.curve: list[tuple[int, Any]] = []
        self.done, self.loss = 0, torch.full((runs,), float("nan"), device=device)
        self._drawn = torch.Generator(device)
        self._rate = torch.tensor(training.learning_rate, device=device) if device != "cpu" else None
        self.optimiser = torch.optim.Adam(
            list(self.tensors.values()), lr=training.learning_rate if self._rate is None else self._rate,
            betas=training.betas, eps=training.epsilon, fused=True, capturable=self._rate is not None,
        )  # fmt: skip
        for tensor in self.tensors.values():
            self.optimiser.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor),
            }  # fmt: skip
        self._graph: Any = None
        if graphed and device != "cpu" and network.kind == "mlp":
            self._capture()

    def advance(self) -> None:
        """One step for all networks."""
        rate, (noisy, clean) = self.training.rate(self.done), self._rows(self.done)
        if self._rate is None:
            self.optimiser.param_groups[0]["lr"] = rate
        else:
            self._rate.fill_(rate)
        if self._graph is None:
            self.loss = self._step(noisy, clean)
        else:
            self._noisy.copy_(noisy)
            self._clean.copy_(clean)
            self._graph.replay()
        self.done += 1

    def evaluate(self) -> None:
        """Scores on all sources; where a network's is its best, its weights are kept. Nothing is waited for."""
        score = self.scores(self.tensors, self.noise)
        better = score < self.best_score
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                chosen = better.reshape(-1, *(1 for _ in tensor.shape[1:]))
                self.best[name] = torch.where(chosen, tensor, self.best[name])
        self.best_score = torch.where(better, score, self.best_score)
        self.best_step = torch.where(better, self.done, self.best_step)
        self.curve.append((self.done, score))

    def scores(self, tensors: dict[str, Any], noise: float) -> Any:
        """(R,) float64 mean squared difference of f(x + noise) and x over all sources, the noise the same each time.

        Args:
            noise: standard deviation, in values.
        """
        count = self.data.shape[1]
        rows = torch.arange(count, device=self.device)
        rows = rows.repeat(max(1, NOISY_ROWS // count)) if noise else rows
        total = torch.zeros(self.runs, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for number, part in enumerate(rows.split(ROWS)):
                clean = fed = self.data[:, part]
                if noise:
                    fed = clean + noise * self._normal("kaleidoscope-evaluation", number, len(part))
                total += (self.forward(tensors, fed) - clean).double().square().mean(dim=2).sum(dim=1)
        return total / len(rows)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that later steps depend on, by name, as arrays."""
        made: dict[str, Any] = {"score": self.best_score, "best_step": self.best_step}
        for name, tensor in self.tensors.items():
            moments = self.optimiser.state[tensor]
            made |= {
                f"weights.{name}": tensor, f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"],
                f"best.{name}": self.best[name],
            }  # fmt: skip
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in made.items()}
        steps, scores = self.scores_so_far()
        return {**arrays, "curve.steps": steps, "curve.scores": scores}

    def restore(self, arrays: dict[str, npt.NDArray[Any]], done: int) -> None:
        """Go on behind step `done`, from what `state` gave there."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                moments = self.optimiser.state[tensor]
                moments["step"].fill_(done)
                for part, kept in (
                    ("weights", tensor), ("first", moments["exp_avg"]), ("second", moments["exp_avg_sq"]),
                    ("best", self.best[name]),
                ):  # fmt: skip
                    array = arrays[f"{part}.{name}"]
                    if array.shape != kept.shape:  # copy_ would repeat a smaller one
                        raise ValueError(f"{part}.{name} is {array.shape}, expected {tuple(kept.shape)}")
                    kept.copy_(torch.from_numpy(array))
            self.best_score.copy_(torch.from_numpy(arrays["score"]))
            self.best_step.copy_(torch.from_numpy(arrays["best_step"]))
        scores = torch.from_numpy(arrays["curve.scores"]).to(self.device)
        self.curve = list(zip(arrays["curve.steps"].tolist(), scores, strict=True))
        self.done = done

    def scores_so_far(self) -> tuple[rng.Int64, Float64]:
        """(E,) steps that were evaluated, and (E, R) float64 scores."""
        steps = np.array([step for step, _ in self.curve], np.int64)
        scores = torch.stack([score for _, score in self.curve]) if self.curve else self.best_score[:0, None]
        return steps, np.asarray(scores.cpu().numpy().reshape(len(steps), self.runs), np.float64)

    def best_tensors(self) -> Tensors:
        """The best weights of each network, float32."""
        return {name: tensor.float().cpu().numpy() for name, tensor in self.best.items()}

    def _rows(self, step: int) -> tuple[Any, Any]:
        """(1 or R, B, D) inputs and targets of a step."""
        clean, count = self.data, self.data.shape[1]
        if self.batch < count:
            self._drawn.manual_seed(seed_of("kaleidoscope-batch", self.training.seed, step))
            rows = torch.randperm(count, generator=self._drawn, device=self.device)[: self.batch]
            clean = clean[:, rows]
        noisy = clean + self.noise * self._normal("kaleidoscope-noise", step, self.batch) if self.noise else clean
        return noisy, clean

    def _normal(self, name: str, number: int, rows: int) -> Any:
        """(rows, D) normal noise of a name and a number."""
        self._drawn.manual_seed(seed_of(name, self.training.seed, number))
        return torch.randn(rows, self.network.size, generator=self._drawn, device=self.device, dtype=self.dtype)

    def _step(self, noisy: Any, clean: Any) -> Any:
        """(R,) loss before the step, in values squared. Losses are added, so each has its own gradient."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = (self.forward(self.tensors, noisy) - clean).square().mean(dim=(1, 2))
        loss.sum().backward()
        self.optimiser.step()
        return loss.detach()

    def _capture(self) -> None:
        """A step as one graph, on buffers that each step fills."""
        before = self.state()
        with torch.cuda.device(self.device):
            noisy, clean = self._rows(0)
            self._noisy, self._clean = noisy.clone(), clean.clone()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    self._step(self._noisy, self._clean)
            torch.cuda.current_stream().wait_stream(aside)
            self.optimiser.zero_grad(set_to_none=True)  # gradients of the graph lie in its own memory
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.loss = self._step(self._noisy, self._clean)
        self._graph = graph
        self.restore(before, 0)


def seed_of(*names: str | int) -> int:
    """The seed of a generator, 64 bits, from a list of names."""
    low, high = rng.key(*names)
    return low | high << 32
