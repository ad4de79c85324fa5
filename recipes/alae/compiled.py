"""R1 for a compiler: what it makes can't be differentiated twice, so it is given the derivatives themselves.

The penalty and its gradient are traced, kernel for kernel, into one graph without a gradient of its own, which is
compiled as any other function.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from fractal_streams.recipes.alae.model import ALAE, Judge
from fractal_streams.recipes.alae.penalties import gradient_penalty

from fractal_streams.errors import missing_extra

try:
    import torch
    from torch import Tensor
    from torch.func import functional_call
    from torch.fx.experimental.proxy_tensor import make_fx
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


class CompiledPenalty:
    """`gradient_penalty` of D∘E, compiled once for each level and shape; its value has a gradient, once.

    Args:
        model: its E and D. gamma: see `gradient_penalty`. backend: of `torch.compile`.
    """

    def __init__(self, model: ALAE, gamma: float, backend: str = "inductor") -> None:
        self.model, self.gamma, self.backend = model, gamma, backend
        self.judge = Judge(model)
        self.compiled: dict[Hashable, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """The penalty of (B, 3, N, N) float32 pictures."""
        model, level, images = self.model, self.model.level, images.detach()
        blend = model.blended
        weights = dict(self.judge.named_parameters())
        key = (level, model.blending, images.shape)
        with torch.autocast(images.device.type, enabled=False):
            if key not in self.compiled:
                self.compiled[key] = self.traced(weights, images, blend, level)
            with torch.no_grad():
                given = {name: weight.detach() for name, weight in weights.items()}
                value, *slopes = self.compiled[key](given, images, blend)
        return Known.apply(value, slopes, *weights.values())  # type: ignore[no-any-return,no-untyped-call]

    def traced(self, weights: dict[str, Tensor], images: Tensor, blend: Tensor | None, level: int) -> Any:
        """(weights, images, blend) to the penalty and its slope to each weight, compiled."""

        def derivatives(weights: dict[str, Tensor], images: Tensor, blend: Tensor | None) -> tuple[Tensor, ...]:
            held = {name: weight.detach().requires_grad_() for name, weight in weights.items()}

            def score(leaves: Tensor) -> Tensor:
                return functional_call(self.judge, held, (leaves, level, blend))  # type: ignore[no-any-return]

            value = gradient_penalty(score, images, self.gamma)
            # 0 of weights that it does not know: without momentum Adam leaves those where they are
            slopes = torch.autograd.grad(value, list(held.values()), allow_unused=True, materialize_grads=True)
            return value.detach(), *slopes

        given = {name: weight.detach() for name, weight in weights.items()}
        return torch.compile(make_fx(derivatives)(given, images, blend), dynamic=False, backend=self.backend)


class Known(torch.autograd.Function):
    """A scalar whose slopes to some weights are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: Sequence[Tensor], *weights: Tensor) -> Tensor:
        """The value."""
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The slopes, times that of the value."""
        return None, None, *torch._foreach_mul(ctx.slopes, slope)
