"""The running average of a network's weights."""

from __future__ import annotations

from itertools import chain

from fractal_streams.errors import missing_extra

try:
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


class Average(AveragedModel):
    """A network's weights and buffers, averaged over steps; early steps weigh less.

    Behind the first step it is the weights; behind step n + 1 it is s * average + (1 - s) * weights with
    s = min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage. Whole numbers are the network's.

    Args:
        network: is copied. decay: in (0, 1].
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @property
    def begun(self) -> bool:
        """Whether it holds a step's weights."""
        return int(self.n_averaged) > 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes the weights behind a step into the average; waits for nothing on a device."""
        count = int(self.n_averaged)  # lies on the host
        share = min(self.decay, (1 + count) / (10 + count))
        averages = chain(self.module.parameters(), self.module.buffers())
        pairs = list(zip(averages, chain(model.parameters(), model.buffers()), strict=True))
        mixed = [pair for pair in pairs if count and pair[0].is_floating_point()]
        taken = [pair for pair in pairs if not (count and pair[0].is_floating_point())]
        if mixed:
            torch._foreach_lerp_([own for own, _ in mixed], [new for _, new in mixed], 1.0 - share)
        if taken:
            torch._foreach_copy_([own for own, _ in taken], [new for _, new in taken])
        self.n_averaged += 1
