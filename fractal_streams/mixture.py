"""Mixtures: streams whose samples come from several streams, each as often as its weight says."""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, Literal

import numpy as np

from fractal_streams import rng
from fractal_streams.backend import backend_of
from fractal_streams.batch import Batch, as_array, as_type
from fractal_streams.device import refuse_worker
from fractal_streams.errors import InvalidValueError
from fractal_streams.rng import Int64, checked_indices
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import Stream

MixtureLabels = Literal["own", "offset", "component"]
MIXTURE_VERSION = 1
MAX_WEIGHT = 2**31 - 1
PARTS = 2**30
"""Weights that are not whole numbers are rounded to parts of this."""


class Mixture(Stream):
    """A stream that takes sample i from one of its components, drawn for i by weight.

    Sample i of the mixture is sample i of the component drawn, so each component keeps its own samples
    at its own indices. A mixture is a stream, and may be a component.

    Args:
        streams: the components: the same split, device, form of pixels and shape of images.
        weights: one above 0 for each; None means equal ones. Whole numbers are exact; others are rounded
            to parts of 2**30.
        seed: names the draw of the components; it changes nothing inside them.
        labels: "own", the component's label, where all have as many classes; "offset", that label behind
            the classes of the components before it; "component", which component, 0 and up. None
            means "own" if all have as many classes, else "offset".

    Latents are those of all components, NaN where a sample's component has no such parameter, and so floats there
    if they are whole numbers; their names are found by rendering sample 0 of each component.

    Raises:
        InvalidValueError: names the component or weight, and the rule that it breaks.

    Example:
        >>> from fractal_streams import Mixture, open_stream
        >>> parts = [open_stream("fractal-10", seed=seed, device="cpu") for seed in (0, 1)]
        >>> mixture = Mixture(parts, weights=(9, 1), labels="component")
        >>> mixture.generate(range(1000)).labels.mean().round(1)
        np.float64(0.1)
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        labels: MixtureLabels | None = None,
    ) -> None:
        self.streams = tuple(streams) if isinstance(streams, Iterable) else ()
        if not self.streams:
            raise InvalidValueError(f"streams: a mixture needs a list of at least one, got {streams!r}")
        for place, stream in enumerate(self.streams):
            if not isinstance(stream, Stream):
                raise InvalidValueError(f"streams[{place}] must be a Stream, got {type(stream).__name__}")
        self.weights = whole_weights((1,) * len(self.streams) if weights is None else weights, len(self.streams))
        self.seed = whole(seed, "seed", 0, 2**64 - 1, "")
        self.split = self._shared("split")
        self.device = self._shared("device")
        self.pixels = self._shared("pixels")
        self.label_rule = self._label_rule(labels)
        classes = [stream.num_classes for stream in self.streams]
        offset = self.label_rule == "offset"
        self.offsets = tuple(sum(classes[:place]) if offset else 0 for place in range(len(classes)))
        self.num_classes = {"own": classes[0], "offset": sum(classes), "component": len(classes)}[self.label_rule]
        # A mixture inside a mixture must not draw with the words that chose it.
        self.cost = max(stream.cost for stream in self.streams)
        self.mixture_depth: int = 1 + max(getattr(stream, "mixture_depth", 0) for stream in self.streams)
        self._key = rng.key("component", f"mixture@{MIXTURE_VERSION}", self.split, self.seed, self.mixture_depth)
        self._cumulative = np.cumsum(np.array(self.weights, np.int64))
        self._latents = self._latent_forms()
        self.backend = backend_of(self.device)

    def digest(self) -> str:
        parts = [stream.digest() for stream in self.streams]
        what = json.dumps(["mixture", MIXTURE_VERSION, self.label_rule, self.weights, parts])
        return f"{hashlib.blake2s(what.encode(), digest_size=8).hexdigest()}-{self.seed}-{self.split}"

    def describe(self) -> dict[str, Any]:
        parts = [stream.describe() for stream in self.streams]
        return {**super().describe(), "labels": self.label_rule, "weights": list(self.weights), "streams": parts}

    def class_title(self, label: int) -> str:
        if self.label_rule == "component":
            return f"stream {label}"
        if self.label_rule == "own":
            return self.streams[0].class_title(label)
        place = bisect.bisect_right(self.offsets, label) - 1
        return f"{self.streams[place].class_title(label - self.offsets[place])} of stream {place}"

    def components(self, indices: Any) -> Int64:
        """(B,) int64: which of the streams each index takes its sample from."""
        low, high, _, _ = rng.words(checked_indices(indices), self._key)
        total, shift = np.uint64(self._cumulative[-1]), np.uint64(32)
        # floor(total * word / 2**64) of the 64-bit word, exact in two halves.
        ticket = (high.astype(np.uint64) * total + (low.astype(np.uint64) * total >> shift)) >> shift
        return np.searchsorted(self._cumulative, ticket.astype(np.int64), side="right").astype(np.int64)

    def labels(self, indices: Any) -> Int64:
        index = checked_indices(indices)
        drawn = self.components(index)
        if self.label_rule == "component":
            return drawn
        labels = np.empty(len(index), np.int64)
        for component in np.unique(drawn):
            places = drawn == component
            labels[places] = self.streams[component].labels(index[places]) + self.offsets[component]
        return labels

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        index = checked_indices(indices)
        drawn = self.components(index)
        order, parts = [], []
        for component in np.unique(drawn) if len(index) else [0]:
            places = np.flatnonzero(drawn == component)
            order.append(places)
            parts.append(self._part(int(component), index[places]))
        got, images, labels, *latents = self.backend.gather(np.argsort(np.concatenate(order)), parts)
        return Batch(got, images, labels, dict(zip(self._latents, latents, strict=True)))

    def _part(self, component: int, indices: Int64) -> tuple[Any, ...]:
        """index, images, labels and every latent of the mixture, of samples of one component."""
        batch = self.streams[component].generate(indices)
        labels = batch.labels + self.offsets[component]
        if self.label_rule == "component":
            labels = labels * 0 + component
        count, latents = len(indices), []
        for name, (shape, dtype) in self._latents.items():
            missing = name not in batch.latents
            blank = self.backend.full(count * math.prod(shape), math.nan) if missing else batch.latents[name]
            latents.append(as_type(blank, dtype).reshape(count, *shape))
        return batch.index, batch.images, labels, *latents

    def _shared(self, name: str) -> Any:
        values = [getattr(stream, name) for stream in self.streams]
        for place, value in enumerate(values):
            if value != values[0]:
                raise InvalidValueError(
                    f"the streams of a mixture need the same {name}: streams[0] has {values[0]!r}, "
                    f"streams[{place}] has {value!r}; open them with equal {name}"
                )
        return values[0]

    def _label_rule(self, labels: MixtureLabels | None) -> MixtureLabels:
        classes = [stream.num_classes for stream in self.streams]
        alike = len(set(classes)) == 1
        if labels is None:
            return "own" if alike else "offset"
        one_of(labels, "labels", ("own", "offset", "component"))
        if labels == "own" and not alike:
            raise InvalidValueError(
                f"labels='own' needs streams of as many classes, got {classes}: use labels='offset' or 'component'"
            )
        return labels

    def _latent_forms(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every latent's name, a sample's shape, and the type of number that holds the values of every component, and
        NaN where one has none, whichever samples are asked for together; refuses images or latents of different shapes.
        """
        latents: dict[str, tuple[int, ...]] = {}
        types: dict[str, list[Any]] = {}
        images = None
        for place, stream in enumerate(self.streams):
            batch = stream.generate(range(1))
            shape = tuple(batch.images.shape[1:])
            images = images or shape
            if shape != images:
                raise InvalidValueError(
                    f"the streams of a mixture need images of one shape: streams[0] has {images}, "
                    f"streams[{place}] has {shape}; open them with equal height and width"
                )
            for name, values in batch.latents.items():
                found = tuple(values.shape[1:])
                types.setdefault(name, []).append(as_array(values[:0]).dtype)
                if latents.setdefault(name, found) != found:
                    raise InvalidValueError(
                        f"the streams of a mixture need latents of one shape: {name!r} of streams[{place}] has "
                        f"{found}, before it {latents[name]}"
                    )
        for held in types.values():
            held += [np.float32] * (len(held) < len(self.streams))
        return {name: (shape, np.result_type(*types[name]).name) for name, shape in latents.items()}


def whole_weights(weights: Sequence[float], count: int) -> tuple[int, ...]:
    """Weights as whole numbers without a common divisor, so that equal proportions are equal weights."""
    if not isinstance(weights, Iterable):
        raise InvalidValueError(f"weights must be one number for each of the {count} streams, got {weights!r}")
    given = [weight.item() if isinstance(weight, np.generic) else weight for weight in weights]
    if len(given) != count:
        raise InvalidValueError(f"weights: one for each of the {count} streams, got {len(given)}")
    for weight in given:
        if not isinstance(weight, Real) or isinstance(weight, bool) or not math.isfinite(weight) or weight <= 0:
            raise InvalidValueError(f"each weight must be a finite number above 0, got {weight!r}; leave it out")
    exact = [Fraction(weight) for weight in given]
    if any(weight.denominator > 1 for weight in exact):
        exact = [Fraction(round(weight / sum(exact) * PARTS)) for weight in exact]
        if 0 in exact:
            raise InvalidValueError(f"weights {tuple(given)}: the smallest rounds to 0 of 2**30; give whole numbers")
    divisor = math.gcd(*(int(weight) for weight in exact))
    numbers = tuple(int(weight) // divisor for weight in exact)
    if sum(numbers) > MAX_WEIGHT:
        raise InvalidValueError(f"weights must add up to at most 2**31 - 1, got {numbers} with {sum(numbers)}")
    return numbers
