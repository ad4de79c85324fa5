"""The networks of a bank as one batch of products, for fitting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fractal_streams.errors import missing_extra
from fractal_streams.kaleidoscope.network import Network, Tensors
from fractal_streams.kaleidoscope.torch_engine import ROW_FUNCTIONS

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

Forward = Callable[[dict[str, Any], Any], Any]
"""Tensors and (1 or R, B, D) values to (R, B, D)."""


def first_tensors(network: Network, runs: int, seed: int) -> Tensors:
    """What R networks begin with; network r's weights depend on (network, seed, r) alone."""
    if network.kind == "mlp":
        return network.first_weights(runs, seed)
    from fractal_streams.kaleidoscope.convolutional import first_module_weights

    return first_module_weights(network, seed)


def forward_of(network: Network, dtype: str, device: str) -> Forward:
    """The function that applies R networks of this shape at once; sums of "bfloat16" products are float32."""
    if network.kind != "mlp":
        return convolutions(network, dtype, device)
    products = getattr(torch, dtype)
    result = torch.float32 if dtype == "bfloat16" else products
    hidden, head = ROW_FUNCTIONS[network.activation], ROW_FUNCTIONS[network.head]

    def forward(tensors: dict[str, Any], values: Any) -> Any:
        rows, runs = values.to(products), len(tensors["layers.0.weight"])
        alone = runs == 1
        if alone:
            rows = rows[0]
        elif len(rows) == 1:
            rows = rows.expand(runs, -1, -1)
        for layer in range(network.n_linear):
            weight, bias = (tensors[f"layers.{layer}.{part}"].to(products) for part in ("weight", "bias"))
            if alone:
                rows = torch.addmm(bias[0], rows, weight[0].mT)
            else:
                rows = torch.baddbmm(bias[:, None], rows, weight.mT)
            rows = hidden(rows) if layer < network.n_linear - 1 else head(rows.to(result))
        return rows[None] if alone else rows

    return forward


def convolutions(network: Network, dtype: str, device: str) -> Forward:
    """Of one convolutional network."""
    from fractal_streams.kaleidoscope.convolutional import PREFIX, module_of

    module = module_of(network).to(device)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if dtype == "float64":
        module = module.double()

    def forward(tensors: dict[str, Any], values: Any) -> Any:
        inner = {f"inner.{name.removeprefix(PREFIX)}": tensor[0] for name, tensor in tensors.items()}
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            found = torch.func.functional_call(module, inner, (values[0],))
        return found.to(values.dtype)[None]

    return forward
