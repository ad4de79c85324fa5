"""A plan: every parameter of one formula and colouring as a row of keys and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_streams import rng
from fractal_streams.formulas import Parameter
from fractal_streams.priors import MAX_CHOICES, Constant, Integer, LogUniform, Prior, Uniform
from fractal_streams.spec import Part, StreamSpec

SAMPLE, CLASS = 0, 1


@dataclass(frozen=True, eq=False)
class Plan:
    """What to draw for one formula and colouring, as arrays that any backend reads.

    names: P parameter names, the rows of the table.
    operation: (P,) int32, a prior's code; level: (P,) int32, SAMPLE or CLASS.
    keys: (P, 2) uint32; numbers: (P, 4) float64, the prior's a, b, low, high.
    choices: (P, 16) float32.
    label_key: two key words; balanced: labels are index modulo num_classes.
    """

    names: tuple[str, ...]
    operation: npt.NDArray[np.int32]
    level: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint32]
    numbers: npt.NDArray[np.float64]
    choices: npt.NDArray[np.float32]
    label_key: tuple[int, int]
    num_classes: int
    balanced: bool


def default_prior(parameter: Parameter) -> Prior:
    """The prior that a parameter's range and scale imply."""
    if parameter.low == parameter.high:
        return Constant(parameter.low)
    if parameter.scale == "log":
        return LogUniform(parameter.low, parameter.high)
    if parameter.scale == "integer":
        return Integer(int(parameter.low), int(parameter.high))
    return Uniform(parameter.low, parameter.high)


def make_plan(spec: StreamSpec, part: Part, *, seed: int, split: str) -> Plan:
    """The plan for one part of a spec.

    Sample rows have keys of (stream, split, seed, name), class rows of (stream, seed, name): the
    classes are the same in every split, the samples in none.
    """
    formula = part.formula
    class_names = spec.class_names(formula)
    names = tuple(part.parameters)
    priors: list[Prior] = []
    keys = []
    for name, parameter in part.parameters.items():
        given = spec.priors.get(f"{formula.name}.{name}", spec.priors.get(name))
        priors.append(given or default_prior(parameter))
        keys.append(
            rng.key("class", spec.stream_id, seed, name)
            if name in class_names
            else rng.key("sample", spec.stream_id, split, seed, name)
        )
    encoded = [prior.encode() for prior in priors]
    choices = np.zeros((len(names), MAX_CHOICES), np.float32)
    for row, line in enumerate(encoded):
        choices[row, : len(line[5])] = line[5]
    return Plan(
        names=names,
        operation=np.array([line[0] for line in encoded], np.int32),
        level=np.array([CLASS if name in class_names else SAMPLE for name in names], np.int32),
        keys=np.array(keys, np.uint32),
        numbers=np.array([line[1:5] for line in encoded], np.float64),
        choices=choices,
        label_key=rng.key("label", spec.stream_id, split, seed),
        num_classes=spec.num_classes,
        balanced=spec.labels == "balanced",
    )
