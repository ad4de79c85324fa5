"""The trainer of GPUs: which kernel an experiment gets, its operands in the order of the lanes, and the launch."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError, MissingExtraError, missing_extra
from fractal_streams.trainability.experiment import Experiment, Float64
from fractal_streams.trainability.inputs import Inputs, inputs_of
from fractal_streams.trainability.modes import Mode, Precision, check_reducible
from fractal_streams.trainability.outcome import Outcome, Readout
from fractal_streams.trainability.window import NARROWEST

try:
    import torch
    import triton
except ImportError as error:
    if error.name == "triton":
        raise MissingExtraError("triton is not installed: torch brings it on Linux; else use device='cpu'") from None
    raise missing_extra("torch", "torch") from None

from fractal_streams.trainability.triton_kernel import train_kernel
from fractal_streams.trainability.triton_lanes_kernel import lanes_kernel, reduced_kernel

TILE = 16
LAUNCH = 2**20
"""The most networks of one launch."""
WARPS = {16: 1, 32: 4, 64: 8}
DOUBLE_PRODUCTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
"""Whether Triton multiplies float64 matrices."""
FAST_DOUBLES = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
"""Compute capabilities of GPUs with float64 units in number: P100, V100, A100, H100 and H200, B200."""
LANES, REDUCED = 4, 32
"""Networks of a program, of units on lanes and in the reduced form."""


class TritonTrainer:
    """Trains on one GPU; a network is one program, so nothing about the others can reach its sums.

    Args:
        device: "cuda:N".
        precision: "float64" on tensor cores; "float32" with IEEE products; "tf32x3" and "tf32", previews.
        mode: as in `open_trainer`.
    """

    def __init__(self, device: str, precision: Precision = "float64", mode: Mode = "exact") -> None:
        self.device, self.precision, self.mode = device, precision, mode
        if precision == "float64" and device.startswith("cuda"):
            warn_if_slow(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))

    def train(self, experiment: Experiment, points: Any, readout: Readout | None = None) -> Outcome:
        """Outcomes of (N, 2) values of the horizontal and the vertical axis, see `Trainer`."""
        asked = (readout or Readout()).checked(experiment)
        if self.mode == "reduced":
            check_reducible(experiment, asked)
        table = experiment.table(points)
        starts = range(0, max(table.shape[1], 1), LAUNCH)
        return Outcome.concatenate([self._launch(experiment, table[:, a : a + LAUNCH], asked) for a in starts])

    def _launch(self, experiment: Experiment, table: Float64, asked: Readout) -> Outcome:
        device, count = torch.device(self.device), table.shape[1]
        ends = tuple(sorted({*asked.checkpoints, experiment.steps}))
        checks = 1 << (len(ends) - 1).bit_length()
        ends = (*ends, *[experiment.steps] * (checks - len(ends)))
        measure = torch.empty((count, checks), dtype=torch.float64, device=device)
        diverged_at = torch.empty(count, dtype=torch.int32, device=device)
        final_loss = torch.empty(count, dtype=torch.float64, device=device)
        losses = torch.empty((count, asked.losses), dtype=torch.float64, device=device)
        probed = torch.full((count if asked.probe else 0,), math.nan, dtype=torch.float64, device=device)
        if count:
            told = torch.from_numpy(np.ascontiguousarray(table)).to(device)
            stops = torch.tensor(ends, dtype=torch.int32, device=device)
            outputs = (measure, diverged_at, final_loss, losses)
            with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
                self._run(experiment, asked, told, stops, outputs, probed)
        signed = measure.cpu().numpy()
        at = [ends.index(end) for end in asked.checkpoints]
        return Outcome(
            signed[:, ends.index(experiment.steps)].copy(), diverged_at.cpu().numpy(), final_loss.cpu().numpy(),
            losses.cpu().numpy() if asked.losses else None, signed[:, at].copy() if at else None,
            probed.cpu().numpy() if asked.probe else None,
        )  # fmt: skip

    def _run(
        self, experiment: Experiment, asked: Readout, table: Any, stops: Any, outputs: tuple[Any, ...], probed: Any
    ) -> None:
        count, checks = table.shape[1], len(stops)
        sizes = (count, experiment.steps, asked.losses)
        alpha0, alpha1 = experiment.factors
        batch, rows = experiment.batch_size or 0, experiment.rows
        decays = "weight_decay" in experiment.axes or experiment.hyperparameters.get("weight_decay", 0.0) != 0.0
        drift = experiment.offset_mode == "every_step"
        if self.mode == "reduced":
            held, norm = reduced_operands(experiment, self.precision, self.device)
            reduced_kernel[(-(-count // REDUCED),)](
                table, *held, stops, *outputs, *sizes, REDUCED, padded(experiment.width), experiment.width, alpha1,
                norm, experiment.nonlinearity, checks, num_warps=1, num_stages=1,
                enable_fp_fusion=True,
            )  # fmt: skip
        elif self._on_lanes(experiment):
            held = lane_operands(experiment, self.precision, self.device)
            lanes_kernel[(-(-count // LANES),)](
                table, *held, stops, *outputs, probed, *sizes, LANES, experiment.width, rows, batch, alpha1,
                experiment.nonlinearity, drift, decays, checks, asked.probe, 2, num_warps=1, num_stages=1,
                enable_fp_fusion=True,
            )  # fmt: skip
        else:
            width = padded(experiment.width)
            precision = "ieee" if self.precision == "float32" else self.precision
            train_kernel[(count,)](
                table, *matrix_operands(experiment, precision, self.device), stops, *outputs, probed, *sizes,
                width, experiment.width, experiment.depth, rows, batch, alpha0, alpha1, experiment.nonlinearity,
                experiment.optimiser, drift, decays, checks, asked.probe, precision, num_warps=WARPS[width],
                num_stages=1,
                enable_fp_fusion=True,
            )  # fmt: skip

    def _on_lanes(self, experiment: Experiment) -> bool:
        if self.precision != "float32" and (self.precision != "float64" or DOUBLE_PRODUCTS):
            return False
        small = experiment.width <= 16 and experiment.depth == 2 and experiment.optimiser == "gradient_descent"
        if not small and self.precision == "float64":
            raise InvalidValueError(
                f"Triton {triton.__version__} has no float64 products, which this experiment needs on a GPU (without "
                f"them float64 trains widths 8 and 16, depth 2, by gradient descent): install Triton 3.6 or newer, "
                f"or use precision='float32' or device='cpu'"
            )
        return small


def warn_if_slow(name: str, capability: tuple[int, int]) -> None:
    """Warn of a GPU whose float64 runs at a 32nd or 64th of its float32."""
    if capability not in FAST_DOUBLES:
        warnings.warn(
            f"{name} (compute capability {capability[0]}.{capability[1]}) computes float64 many times slower than "
            f"float32: precision='float32' is as good for windows wider than {NARROWEST['float32']:.2g} decades",
            UserWarning, stacklevel=4,
        )  # fmt: skip


def kind_of(precision: str) -> Any:
    """The type that weights are kept in."""
    return torch.float64 if precision == "float64" else torch.float32


def padded(width: int) -> int:
    """Units as tensor cores take them."""
    return max(width, TILE)


def on_device(array: Any, kind: Any, device: str) -> Any:
    """A tensor of an array."""
    return torch.from_numpy(np.array(array, order="C")).to(device, kind)


@lru_cache(maxsize=16)
def lane_operands(experiment: Experiment, precision: str, device: str) -> tuple[Any, ...]:
    """W0, W1, alpha0 * X, Y, the order of minibatches and alpha0 * probe, of `lanes_kernel`."""
    inputs, alpha0 = inputs_of(experiment), experiment.factors[0]
    arrays = (inputs.weights[0], inputs.weights[1][:, 0], alpha0 * inputs.x, inputs.y)
    kind = kind_of(precision)
    held = (on_device(each, kind, device) for each in arrays)
    return (*held, order_on(inputs, device), on_device(alpha0 * inputs.probe, kind, device))


@lru_cache(maxsize=16)
def reduced_operands(experiment: Experiment, precision: str, device: str) -> tuple[tuple[Any, ...], float]:
    """z at the start, the sum of alpha0 * x, W1 and y, of `reduced_kernel`; and |alpha0 x|**2."""
    inputs, alpha0 = inputs_of(experiment), experiment.factors[0]
    x = alpha0 * inputs.x[0]
    kind = kind_of(precision)
    more = padded(experiment.width) - experiment.width
    arrays = (np.pad(x @ inputs.weights[0], (0, more)), [x.sum()], np.pad(inputs.weights[1][:, 0], (0, more)), inputs.y)
    return tuple(on_device(each, kind, device) for each in arrays), float(x @ x)


@lru_cache(maxsize=16)
def matrix_operands(experiment: Experiment, precision: str, device: str) -> tuple[Any, ...]:
    """The arrays of `train_kernel`, in its order."""
    inputs, alpha0 = inputs_of(experiment), experiment.factors[0]
    kind = kind_of(precision)
    width = padded(experiment.width)
    more = width - experiment.width
    rows = -(-experiment.rows // TILE) * TILE
    x = np.pad(inputs.x, ((0, rows - experiment.rows), (0, more)))
    y = np.pad(inputs.y, (0, rows - experiment.rows))
    hidden = [np.pad(layer.T, ((0, more), (0, more))) for layer in inputs.weights[:-1]]
    tiles = (alpha0 * x).reshape(-1, TILE, width)
    turned = contraction(width)
    first = in_lane_order(np.swapaxes(tiles[:, :, turned], 1, 2), precision)
    second = in_lane_order(tiles[:, contraction(TILE)], precision)
    return (
        on_device(hidden[0], kind, device), on_device(hidden[-1], kind, device),
        on_device(np.pad(inputs.weights[-1][:, 0], (0, more)), kind, device),
        on_device(first, kind, device), on_device(second, kind, device), on_device(x, kind, device),
        on_device(y, kind, device), order_on(inputs, device), on_device(np.pad(inputs.probe, (0, more)), kind, device),
    )  # fmt: skip


def order_on(inputs: Inputs, device: str) -> Any:
    """(T, batch) int32 rows of the minibatches; one 0 in full batch, which nothing reads."""
    return on_device(np.zeros(1) if inputs.order is None else inputs.order, torch.int32, device)


def contraction(across: int) -> Any:
    """The column that stands at each place of a folded operand, see `triton_primitives.contraction`."""
    k = np.arange(across)
    return (k // 8) * 8 + (k % 4) * 2 + (k // 4) % 2


def in_lane_order(operands: Float64, precision: str) -> Any:
    """(tiles, K, n) right operands flat, 16 x 16 ones as `triton_primitives.operand` reads them; of "tf32x3" the
    part that TF32 holds, then the rest.
    """
    if operands.shape[1:] == (TILE, TILE):
        axes = (0, 4, 1, 5, 3, 2) if precision == "float64" else (0, 4, 5, 3, 1, 2)
        operands = operands.reshape(-1, 2, 2, 4, 2, 8).transpose(axes)  # k3, k2, k1 k0, n3, n
    flat = np.ascontiguousarray(operands).reshape(-1)
    if precision != "tf32x3":
        return flat
    single = flat.astype(np.float32)
    held = (single.view(np.int32) & np.int32(-8192)).view(np.float32)
    return np.concatenate([held, single - held])
