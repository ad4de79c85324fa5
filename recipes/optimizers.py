"""Optimizers by name, with rates that keep their meaning when the width changes.

The maximal update parametrization, muP: G. Yang et al., "Tensor Programs V", arXiv:2203.03466, table 3. What a step
changes in an activation then does not depend on the width, so that a rate found on a narrow model serves a wide one.
Muon and Shampoo follow the same law in its spectral form: G. Yang, J. Simon, J. Bernstein, arXiv:2310.17813.
Attention needs no change as long as heads keep their width and their number grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fractal_streams.errors import DivergedError, missing_extra
from fractal_streams.spec import one_of

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

OPTIMIZERS = ("adamw", "sgd", "muon", "shampoo")
PARAMETRIZATIONS = ("mup", "standard")
BASE_WIDTH = 256
"""The width at which a rate is what it is called."""
DEVIATION = 0.02
"""Of the first weights of linear maps at the base width: timm's."""
MUON_RMS = 0.2
"""Root mean square of Muon's steps for a rate of 1, as AdamW's are: J. Liu et al., arXiv:2502.16982, section 2.2."""
SHAMPOO_EVERY = 10
"""Steps from one computation of Shampoo's roots to the next; those before the first leave the weights as they are."""


class Role(StrEnum):
    """What a parameter is to a network whose width grows."""

    VECTOR = "vector"
    """Biases, gains of norms, positions, tokens, tables: one side, which grows."""
    INPUT = "input"
    """The map that reads the pictures: only what comes out grows."""
    HIDDEN = "hidden"
    """Maps whose two sides grow."""
    OUTPUT = "output"
    """The map that writes the answer: only what comes in grows."""
    BIAS_OF_OUTPUT = "bias of output"
    """Nothing grows."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A trainable parameter in its network: its role, and how many numbers each of its outputs reads and it writes."""

    weight: nn.Parameter
    role: Role
    fan_in: int
    fan_out: int


def places(network: nn.Module) -> dict[str, Place]:
    """Every trainable parameter by name, each once.

    The first matrix, in the order of modules, reads the input; the last writes the output. A network with a single
    matrix reads with it. The kernel of a convolution is a matrix that reads all its pixels.

    Example:
        >>> found = places(nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 10)))
        >>> [str(place.role) for name, place in found.items() if "weight" in name]
        ['input', 'hidden', 'vector', 'output']
    """
    matrices = [name for name, _, _ in walked(network) if name is not None]
    found = {}
    for matrix, name, (module, weight) in walked(network):
        role, fan_in, fan_out = Role.VECTOR, 1, weight.shape[-1] if weight.ndim else 1
        if matrix is not None:
            turned = isinstance(module, nn.modules.conv._ConvTransposeNd)
            across = weight.transpose(0, 1) if turned else weight
            fan_in, fan_out = across[0].numel(), across.shape[0]
            role = Role.INPUT if name == matrices[0] else Role.OUTPUT if name == matrices[-1] else Role.HIDDEN
        elif len(matrices) > 1 and name == f"{matrices[-1].rpartition('.')[0]}.bias":
            role = Role.BIAS_OF_OUTPUT
        if weight.requires_grad:
            found[name] = Place(weight=weight, role=role, fan_in=fan_in, fan_out=fan_out)
    return found


def walked(network: nn.Module) -> Iterator[tuple[str | None, str, tuple[nn.Module, nn.Parameter]]]:
    """(name if it is a matrix, name, (module, weight)) of each parameter; one that is used twice, where it is first."""
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        for short, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            name = f"{prefix}.{short}" if prefix else short
            maps = weight.ndim > 1 and short.endswith("weight") and not isinstance(module, nn.Embedding | nn.LayerNorm)
            yield name if maps else None, name, (module, weight)


def initialise(network: nn.Module, parametrization: str = "mup", base_width: int = BASE_WIDTH) -> None:
    """First weights that fit the parametrization; "standard" leaves a network as it is.

    Under muP hidden linear maps get variances of 1 / fan_in, timm's where they read as much as the base width, and the
    output is 0, which table 3 allows and appendix D.2 recommends. Convolutions have such variances already.
    """
    one_of(parametrization, "parametrization", PARAMETRIZATIONS)
    if parametrization == "standard":
        return
    linear = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    with torch.no_grad():
        for place in places(network).values():
            if place.role in (Role.OUTPUT, Role.BIAS_OF_OUTPUT):
                place.weight.zero_()
            elif place.role is Role.HIDDEN and id(place.weight) in linear:
                place.weight.normal_(std=DEVIATION * math.sqrt(base_width / place.fan_in))


def factor(place: Place, name: str, base_width: int) -> float:
    """What muP multiplies a parameter's rate by: 1 where it reads and writes as much as the base width.

    AdamW's matrices: 1 / fan_in. SGD: fan_out of what reads the input and of vectors, 1 / fan_in of the output. Steps
    of a given spectral norm (Shampoo, Muon's matrices): the root of fan_out / fan_in.
    """
    wide_in, wide_out = base_width / place.fan_in, place.fan_out / base_width
    if name == "adamw":
        return wide_in if place.role in (Role.HIDDEN, Role.OUTPUT) else 1.0
    growth = {
        Role.VECTOR: wide_out, Role.INPUT: wide_out, Role.HIDDEN: wide_in * wide_out, Role.OUTPUT: wide_in,
        Role.BIAS_OF_OUTPUT: 1.0,
    }[place.role]  # fmt: skip
    if name == "sgd":
        return 1.0 if place.role is Role.HIDDEN else growth
    return math.sqrt(growth)


def clip_at(
    width: int, clip: float | None, name: str, parametrization: str, base_width: int = BASE_WIDTH
) -> float | None:
    """The largest norm of a gradient that shortens steps alike at every width.

    Under muP the gradient of the output's weights, most of the norm, grows with the root of the width. Steps of
    all optimizers but SGD don't depend on how long the gradient is.

    Example:
        >>> clip_at(1024, 1.0, "sgd", "mup"), clip_at(1024, 1.0, "adamw", "mup"), clip_at(1024, 1.0, "sgd", "standard")
        (2.0, 1.0, 1.0)
    """
    if clip is None or name != "sgd" or parametrization != "mup":
        return clip
    return clip * math.sqrt(width / base_width)


def groups(
    network: nn.Module, name: str, parametrization: str, *, lr_base: float, lr_embedding: float, weight_decay: float,
    base_width: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Groups of parameters with a rate and a decay each; every trainable parameter is in one of them.

    Decay is for matrices alone, and takes the same share of a weight in a step whatever the width.
    """
    found: dict[tuple[Any, ...], list[Tensor]] = {}
    for place in places(network).values():
        inner = place.role in (Role.HIDDEN, Role.OUTPUT)
        rule = {"muon": "muon" if place.role is Role.HIDDEN else "adamw"}.get(name, name)
        scale = factor(place, rule, base_width) if parametrization == "mup" else 1.0
        if rule == "muon" and parametrization == "mup":
            scale = MUON_RMS * math.sqrt(base_width)  # times the root of fan_out / fan_in, which Muon takes itself
        rate = (lr_base if inner else lr_embedding) * scale
        matrix = inner or place.role is Role.INPUT
        decay = weight_decay / scale if matrix and scale else 0.0
        found.setdefault((rate, decay, place.role, rule), []).append(place.weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay, "role": str(role), "rule": rule}
        for (rate, decay, role, rule), weights in found.items()
    ]


def build_optimizer(
    network: nn.Module,
    name: str = "adamw",
    *,
    lr_base: float,
    lr_embedding: float,
    weight_decay: float = 0.0,
    base_width: int = BASE_WIDTH,
    parametrization: str = "mup",
    betas: tuple[float, float] = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """An optimizer of all that can be trained in a network.

    Args:
        network: on the device where it will be trained: AdamW is fused on a GPU.
        name: of `OPTIMIZERS`. "muon" is for hidden matrices, with AdamW for the rest and rates as AdamW's; "sgd" has
            Nesterov's momentum of 0.9.
        lr_base: highest rate of hidden and output matrices, at the base width.
        lr_embedding: of what reads the input, and of biases, norms, positions and tokens.
        weight_decay: of matrices; a step takes a share rate * weight_decay of them, ten times that under the momentum
            of "sgd".
        base_width: where "mup" and "standard" have the same rates (of maps that read as much).
        parametrization: of `PARAMETRIZATIONS`; "mup" wants the weights of `initialise`.
        betas: of Adam.

    Raises:
        InvalidValueError: no such optimizer or parametrization.

    A step of "shampoo" raises `DivergedError` where its statistics are no numbers.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 512), nn.Linear(512, 512), nn.Linear(512, 10))
        >>> optimizer = build_optimizer(network, lr_base=1e-3, lr_embedding=1e-2)
        >>> sorted({group["lr"] for group in optimizer.param_groups})
        [0.0005, 0.01]
    """
    one_of(name, "optimizer_type", OPTIMIZERS)
    one_of(parametrization, "parametrization", PARAMETRIZATIONS)
    parts = groups(
        network, name, parametrization, lr_base=lr_base, lr_embedding=lr_embedding, weight_decay=weight_decay,
        base_width=base_width,
    )  # fmt: skip
    if name == "adamw":
        on_gpu = all(weight.is_cuda for part in parts for weight in part["params"])
        return torch.optim.AdamW(parts, lr=lr_base, betas=betas, fused=on_gpu)
    if name == "sgd":
        return torch.optim.SGD(parts, lr=lr_base, momentum=0.9, nesterov=True)
    if name == "muon":
        from timm.optim.muon import Muon

        for part in parts:
            part["use_fallback"] = part["rule"] != "muon"
        adjusted = "rms_to_rms" if parametrization == "mup" else "match_rms_adamw"
        return Muon(parts, lr=lr_base, betas=betas, adjust_lr_fn=adjusted, weight_decay=0.0)
    return shampoo(parts, lr_base)


def shampoo(parts: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    """Shampoo with decoupled decay; statistics that have no roots are a loss that is no number, told before it is."""
    from pytorch_optimizer import Shampoo

    class Shampooed(Shampoo):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            try:
                return super().step(closure)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise DivergedError(
                    f"Shampoo's statistics are no numbers: lower the learning rate or lengthen the warm-up ({error})"
                ) from error

    return Shampooed(parts, lr=rate, weight_decouple=True, preconditioning_compute_steps=SHAMPOO_EVERY)
