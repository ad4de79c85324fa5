"""The draw on a GPU, launched from a range without any upload, or from indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fractal_streams.draw.plan import Plan
from fractal_streams.draw.reference import EXP2_TAYLOR
from fractal_streams.draw.triton_kernel import draw_kernel
from fractal_streams.rng import checked_indices

BLOCK = 256


class DevicePlan:
    """A plan's arrays on a device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.rows = len(plan.names)
        self.num_classes = plan.num_classes
        self.balanced = plan.balanced
        keys = np.concatenate([plan.keys, np.array([plan.label_key], np.uint32)])
        arrays = (plan.operation, plan.level, keys.view(np.int32), plan.numbers, plan.choices, np.array(EXP2_TAYLOR))
        operation, level, key_words, numbers, choices, taylor = (torch.from_numpy(part).to(device) for part in arrays)
        self.arrays = (operation, level, key_words.view(torch.uint32), numbers, choices, taylor)
        self.device = device

    def draw(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B,) int64 index, (B,) int64 labels, (P, B) float32 table; to the bit as the reference's."""
        if isinstance(indices, range) and len(indices) and indices[0] >= 0 and indices[-1] < 2**63:
            given, count, start, step = None, len(indices), indices.start, indices.step
        else:
            given = torch.from_numpy(checked_indices(indices)).to(self.device, non_blocking=True)
            count, start, step = len(given), 0, 1
        index = torch.empty(count, dtype=torch.int64, device=self.device)
        labels = torch.empty(count, dtype=torch.int64, device=self.device)
        table = torch.empty((self.rows, count), dtype=torch.float32, device=self.device)
        if count:
            draw_kernel[(-(-count // BLOCK), self.rows + 1)](
                index if given is None else given, *self.arrays, index, labels, table,
                start, step if count > 1 else 1, count, self.num_classes,
                rows=self.rows, balanced=self.balanced, given=given is not None, block=BLOCK,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        return index, labels, table
