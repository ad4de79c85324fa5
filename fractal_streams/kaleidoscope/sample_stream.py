"""Samples of kaleidoscopes: where chains from noise end, what they were on the way, and what they end as."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import Batch, as_array
from fractal_streams.device import refuse_worker
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.fitted_stream import FittedStream, relative_cost
from fractal_streams.kaleidoscope.sample_spec import KaleidoscopeSpec as KaleidoscopeSpec
from fractal_streams.kaleidoscope.starts import KeyOf
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import Int64, checked_indices

PART_VALUES = {"cpu": 2**22, "cuda": 2**28}
"""Values of states that are held at a time."""

Rows = dict[str, Any]
"""Name to (B, ...) arrays or tensors of B chains: "states", "kept", "steps", "change", and of their `Ends`."""


class KaleidoscopeStream(FittedStream):
    """Pictures that fitted networks make of noise. The label is where the chain ends.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N", where networks are applied and samples are handed out. Kinds of
            device differ in rounding, so that a few chains may end elsewhere.
        fitted: a `Kaleidoscope` in place of the file that the spec names.

    Sample i is chain i: its network of the bank, its start and its noise are drawn by name for i. Chains at rest show
    about as many different pictures as the networks have attractors; endless variety is in earlier iterates.

    Stratified, a target is drawn for each index: a class evenly among those with attractors, and one of its attractors
    evenly (an attractor evenly, where that is the label), and with it the network. Chain after chain starts from a mix
    of target and noise in a drawn share, the last from the target itself; the first is taken that ends there.

    Latents: "attractor" int64, row of the table, -1 at none; "source" int64, the nearest one of the network, and
    "nearest_distance" float32 to it, RMSE over the range, both of the end; "steps" int32 behind which the chain rested,
    -1 never; "change" float32, of the last step, see `Outcome`; "iteration" int32, of the picture, (B, T) of clips;
    "chain" and "model" int64. Of pairs also "target" (B, 3, H, W) uint8, the end; of stratified streams "trial" int32.

    Raises:
        InvalidValueError: a kaleidoscope of points, or one without attractors where they are needed.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> network = Network(shape=(1, 8, 8), hidden=16, n_linear=3)
        >>> dots = Sources(data=np.zeros((1, 2, 1, 8, 8), np.uint8), labels=np.int64([[0, 1]]), titles=("a", "b"))
        >>> unfitted = Kaleidoscope(network=network, tensors=network.first_weights(), sources=dots)
        >>> stream = KaleidoscopeStream(KaleidoscopeSpec(mode="early", iterate=2), fitted=unfitted, device="cpu")
        >>> batch = stream.generate(range(5))
        >>> batch.images.shape, batch.latents["iteration"].tolist()
        ((5, 3, 8, 8), [2, 2, 2, 2, 2])
    """

    spec: KaleidoscopeSpec

    def __init__(self, spec: KaleidoscopeSpec, **settings: Any) -> None:
        if not isinstance(spec, KaleidoscopeSpec):
            raise InvalidValueError(
                f"spec must be a KaleidoscopeSpec, got {type(spec).__name__}; presets open by open_stream"
            )
        super().__init__(spec, **settings)
        network, table = self.fitted.network, self.fitted.attractors
        if not network.is_picture:
            raise InvalidValueError(
                f"samples are pictures, and the kaleidoscope {spec.model or 'given'} is of points {network.shape}: "
                f"run its chains with open_engine(fitted).run, or draw its basins with BasinStream"
            )
        needs = "stratified" if spec.stratified else "label='attractor'" if spec.label == "attractor" else ""
        if needs and (table is None or not len(table)):
            raise InvalidValueError(
                f"{needs} needs a table of attractors, and the kaleidoscope {spec.model or 'given'} has none: "
                f"kaleidoscope.attractors.find_attractors(fitted) makes one, as `fractal-streams kaleidoscope fit` does"
            )
        titles = self.fitted.sources.titles
        self.titles = titles
        if spec.label == "attractor" and table is not None:
            of = self._attractor_classes()
            self.titles = (*(f"attractor {row} ({titles[of[row]]})" for row in range(len(table))), "no attractor")
        self.num_classes = len(self.titles)
        each = max(1, spec.frames or 1)
        self.cost = max(1, relative_cost(self.fitted, spec.most) // each)

    def class_title(self, label: int) -> str:
        return self.titles[label]

    def labels(self, indices: Any) -> Int64:
        index = checked_indices(indices)
        return np.concatenate([as_array(self._label(self._chains(part))) for part in self._parts(index)])

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        batches = [self._batch(part) for part in self._parts(checked_indices(indices))]
        return batches[0] if len(batches) == 1 else joined(batches)

    def iterates(self, indices: Any) -> Int64:
        """(B,) int64: the iterate that each index shows, (B, T) of clips; not of "samples", where chains rest."""
        index, shown = checked_indices(indices), np.array(self.spec.iterates, np.int64)
        if not len(shown):
            raise InvalidValueError("mode='samples' shows ends: ask for their latent 'iteration'")
        if self.spec.mode == "clips":
            return np.tile(shown, (len(index), 1))
        return shown[chosen(index, self.key("iterate"), np.array(len(shown)))]

    def model_of(self, indices: Int64) -> Int64:
        """(B,) int64: the network of the bank that each index uses."""
        if self.spec.stratified and self.fitted.attractors is not None:
            return self.fitted.attractors.model[self.targets(indices)].astype(np.int64)
        return super().model_of(indices)

    def targets(self, indices: Any) -> Int64:
        """(B,) int64: the attractor that each index of a stratified stream is to end at."""
        table, index = self.fitted.attractors, checked_indices(indices)
        if table is None or not self.spec.stratified:
            raise InvalidValueError("targets are of a stratified stream: open it with stratified=True")
        if self.spec.label == "attractor":
            return chosen(index, self.key("target"), np.array(len(table)))
        classes, counts = np.unique(self._attractor_classes(), return_counts=True)
        order = np.argsort(self._attractor_classes(), kind="stable")
        drawn = chosen(index, self.key("target class"), np.array(len(classes)))
        first = np.cumsum(counts) - counts
        return order[first[drawn] + chosen(index, self.key("target"), counts[drawn])].astype(np.int64)

    def _attractor_classes(self) -> Int64:
        """(A,) int64: the class of the source nearest to each attractor."""
        table, labels = self.fitted.attractors, self.fitted.sources.labels
        assert table is not None
        return labels[table.model if len(labels) > 1 else 0, table.source].astype(np.int64)

    def _parts(self, index: Int64) -> Iterator[Int64]:
        """The indices, in parts that memory holds; at least one."""
        held = self.fitted.network.size * (1 + len(self.spec.iterates))
        rows = max(1, PART_VALUES[self.device.partition(":")[0]] // held)
        return (index[first : first + rows] for first in range(0, max(len(index), 1), rows))

    def _chains(self, index: Int64) -> Rows:
        """What became of the chains of indices, and of "models" (B,) on the host."""
        models = self.model_of(index)
        if not len(index):
            return {**self._blank(), "models": models}
        if not self.spec.stratified:
            starts = self.engine.starts(self.spec.first, index, models, self.key)
            return {**self._run(index, models, starts, self.key), "models": models}
        return {**self._stratified(index, models), "models": models}

    def _run(self, index: Int64, models: Int64, starts: Any, key_of: KeyOf) -> Rows:
        outcome = self.engine.run(starts, models, self.spec.schedule, chains=index, key_of=key_of)
        rows = {name: getattr(outcome, name) for name in ("states", "kept", "steps", "change")}
        return rows | vars(self.ended(outcome.states, models))

    def _stratified(self, index: Int64, models: Int64) -> Rows:
        """The first chain of each index that ends at its target, else the last one."""
        table = self.fitted.attractors
        assert table is not None
        targets, left = self.targets(index), np.arange(len(index))
        found: Rows = {}
        for trial in range(self.spec.trials):
            chains, own, key_of = index[left], models[left], partial(self.key, "trial", trial)
            starts = self.uploaded(table.states[targets[left]])
            if trial < self.spec.trials - 1:
                share = self.uploaded(shares(chains, key_of("share"))[:, None])
                starts = (1 - share) * starts + share * self.engine.starts(self.spec.first, chains, own, key_of)
            rows = self._run(chains, own, starts, key_of)
            rows["trial"] = self.uploaded(np.full(len(left), trial, np.int32))
            if trial:
                places = self.uploaded(left)
                for name, values in rows.items():
                    found[name][places] = values
            else:
                found = rows
            left = left[as_array(rows["attractor"]) != targets[left]]
            if not len(left):
                break
        return found

    def _blank(self) -> Rows:
        """The chains of no index."""
        size, kept = self.fitted.network.size, len(self.spec.iterates)
        none: Rows = {"states": np.zeros((0, size), np.float32), "kept": np.zeros((0, kept, size), np.float32)}
        none |= {name: np.zeros(0, np.int64) for name in ("attractor", "source", "label")}
        none |= {name: np.zeros(0, np.int32) for name in ("steps", "trial")}
        none |= {name: np.zeros(0, np.float32) for name in ("change", "distance")}
        return {name: self.uploaded(values) for name, values in none.items()}

    def _label(self, rows: Rows) -> Any:
        """(B,) int64 classes of chains."""
        if self.spec.label == "class":
            return rows["label"]
        at = (rows["attractor"] >= 0) * 1
        return rows["attractor"] * at + (self.num_classes - 1) * (1 - at)

    def _batch(self, index: Int64) -> Batch:
        rows, spec, put = self._chains(index), self.spec, self.uploaded
        rested = (rows["steps"] >= 0) * 1
        if spec.mode == "samples":
            values, iteration = rows["states"], rows["steps"] * rested + spec.most * (1 - rested)
        else:
            shown = self.iterates(index)
            iteration, values = put(shown.astype(np.int32)), rows["kept"]
            if spec.mode != "clips":
                values = values[put(np.arange(len(index))), put(shown - spec.iterates[0])]
        latents = {name: rows[name] for name in ("attractor", "source", "steps", "change")}
        latents |= {"nearest_distance": rows["distance"], "iteration": as_int32(iteration)}
        latents |= {"chain": put(index), "model": put(rows["models"])}
        if spec.mode == "pairs":
            latents["target"] = self.formatted(self._levels(rows["states"]), PixelFormat())
        if spec.stratified:
            latents["trial"] = rows["trial"]
        return Batch(put(index), self.formatted(self._levels(values)), self._label(rows), latents)

    def _levels(self, values: Any) -> Any:
        """(..., C, H, W) uint8 of (..., D) values."""
        network = self.fitted.network
        if not len(values):
            return self.uploaded(np.zeros((*values.shape[:-1], *network.shape), np.uint8))
        return self.engine.levels(values.reshape(-1, network.size)).reshape(*values.shape[:-1], *network.shape)


def chosen(indices: Int64, key: tuple[int, int], counts: Any) -> Int64:
    """(B,) int64: for each index a whole number below its count, with equal chances; one count or (B,)."""
    word = rng.words(indices, key)[0].astype(np.uint64)
    return (word * counts.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def shares(indices: Int64, key: tuple[int, int]) -> Any:
    """(B,) float32 draws from (0, 1)."""
    return ((rng.words(indices, key)[0].astype(np.float64) + 0.5) * 2.0**-32).astype(np.float32)


def as_int32(values: Any) -> Any:
    """Whole numbers of an array or a tensor in 32 bits."""
    return values.astype(np.int32) if isinstance(values, np.ndarray) else values.int()


def joined(batches: list[Batch]) -> Batch:
    """Batches one behind the other."""
    if isinstance(batches[0].labels, np.ndarray):
        join: Any = np.concatenate
    else:
        import torch

        join = torch.cat
    index, images, labels = (join([getattr(part, name) for part in batches]) for name in ("index", "images", "labels"))
    return Batch(
        index, images, labels,
        {name: join([part.latents[name] for part in batches]) for name in batches[0].latents},
    )  # fmt: skip
