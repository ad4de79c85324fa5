"""A stream as a `datasets.IterableDataset`: what would be slow or wrong for one is quick or refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fractal_streams.integrations.huggingface_source import WHOLE, BatchSource, Source

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.shard import INDEX_END
from fractal_streams.spec import whole
from fractal_streams.stream import MAX_INDEX

try:
    from datasets import DatasetInfo, NamedSplit
    from datasets.iterable_dataset import IterableDataset
except ImportError as error:
    raise missing_extra(error.name or "datasets", "huggingface") from error

FILE_BYTES = 500 * 10**6
"""Of a Parquet file that `push_to_hub` makes, about; what `datasets` gives a file of a stored dataset."""


class StreamedDataset(IterableDataset):  # type: ignore[misc]
    """A `datasets.IterableDataset` of a stream: what would be slow or wrong for one is quick or refused.

    `skip` and `take` cut the range of samples and render nothing. Batches of tensors stay tensors under
    `with_format("torch")` and are refused other formats. What would never end is refused.
    """

    def skip(self, n: int) -> IterableDataset:
        """All but the first n, at once. Behind `split_dataset_by_node` the ordinary skip reads through them."""
        return self._cut(slice(whole(n, "n", 0, MAX_INDEX, "examples"), None)) or super().skip(n)

    def take(self, n: int) -> IterableDataset:
        """The first n."""
        return self._cut(slice(0, whole(n, "n", 0, MAX_INDEX, "examples"))) or super().take(n)

    def with_format(self, type: str | None = None) -> IterableDataset:
        """As in `datasets`; batches of tensors are torch's already and take no other format.

        Raises:
            InvalidValueError: another format for batches, which would turn their uint8 into int64.
        """
        if not isinstance(self._ex_iterable, BatchSource):
            return self if type is None and self._formatting is None else super().with_format(type)
        if type not in (None, "torch", "pt"):
            raise InvalidValueError(
                f"with_format({type!r}) would turn uint8 batches into int64 of eight times the size: leave it out and "
                f"call batch['images'].numpy(), or load with format='image', whose pixels stay uint8 in every format"
            )
        return self

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next iteration go on where `state_dict()` stood, without rendering what lies before.

        Raises:
            InvalidValueError: not a state of rows or batches as these; when iteration begins, one of
                another stream, start, length, batch size or share.
        """
        leaf, kind = innermost(state_dict), type(self._ex_iterable).__name__
        if leaf.get("type") != kind:
            raise InvalidValueError(
                f"this state has type={leaf.get('type')!r}, here type={kind!r}: load the format it was saved with"
            )
        super().load_state_dict(state_dict)
        self._state_dict = deepcopy(state_dict)  # what `state_dict()` says until iteration begins

    def _cut(self, cut: slice) -> StreamedDataset | None:
        source = self._ex_iterable
        if self._distributed is not None or self._formatting is not None or not isinstance(source, Source):
            return None
        return StreamedDataset(source.part(source.units[cut]), info=self._info.copy(), split=self._split)


def _refusing_endless(name: str) -> Any:
    inherited = getattr(IterableDataset, name)

    def method(self: StreamedDataset, *arguments: Any, **settings: Any) -> Any:
        source = self._ex_iterable
        if isinstance(source, Source) and source.endless and not settings.get("batched"):
            raise InvalidValueError(
                f"{name} of an endless stream would never end: dataset.take(n).{name}(...), or load with length=n"
            )
        if isinstance(source, BatchSource):
            raise InvalidValueError(f"{name} writes rows, and this dataset gives batches: load with format='image'")
        if name == "push_to_hub" and not {"num_shards", "max_shard_size"} & settings.keys():
            settings["num_shards"] = max(-(-source.row_bytes() * len(source.units) // FILE_BYTES), 1)
        return inherited(self, *arguments, **settings)

    method.__name__, method.__qualname__ = name, f"StreamedDataset.{name}"
    method.__doc__ = f"`IterableDataset.{name}` of rows with an end; an `InvalidValueError` says what to do for others."
    return method


for _name in ("push_to_hub", "to_parquet", "to_csv", "to_json", "to_sql", "to_list", "to_dict", "to_pandas"):
    setattr(StreamedDataset, _name, _refusing_endless(_name))


def streamed(source: Source, split: str, description: str = "") -> StreamedDataset:
    """The dataset of a source."""
    info = DatasetInfo(description=description, license="mit", features=source.features, dataset_name="fractal")
    return StreamedDataset(source, info=info, split=NamedSplit(split))


def position(state: Mapping[str, Any] | IterableDataset) -> int:
    """Samples that all ranks together consumed: the `start` to go on from, with any number of ranks.

    Args:
        state: a dataset that this process iterates, or its `state_dict()`; behind `take`, `skip` and
            `split_dataset_by_node`, but neither `map`, `filter` nor `shuffle`, which read ahead, nor `repeat`,
            nor `shard` with connected parts.

    Raises:
        InvalidValueError: no state of a stream's dataset, or one that read ahead or was read by worker
            processes; count the samples that the loop received instead.

    Example:
        >>> from itertools import islice
        >>> from fractal_streams.integrations.huggingface import load_dataset, position
        >>> dataset = load_dataset("fractal-10", split="train", device="cpu", start=500)
        >>> seen = list(islice(dataset, 20))
        >>> position(dataset)
        520
    """
    found = state.state_dict() if isinstance(state, IterableDataset) else state
    inner = innermost(found)
    known = {"done", "units", "unit", "start", "stop", "apart"} <= set(inner) and not inner["apart"]
    if not known or has_read_ahead(found):
        raise InvalidValueError(
            "not a state that says what one stream's dataset gave (map, filter and formats read ahead, repeat begins "
            "anew, shard takes connected parts): count the samples that the loop received, start + count * ranks"
        )
    first, last, step = inner["units"]
    begin = range(first, last, step)[inner["done"] :]
    base = begin.start - first % step if begin else last
    return min(WHOLE.interval(base, inner["unit"], inner["start"], INDEX_END).start, inner["stop"], sys.maxsize)


def innermost(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the source, inside those of what `datasets` wraps around it."""
    while isinstance(state.get("examples_iterable"), Mapping):
        state = state["examples_iterable"]
    return state


def has_read_ahead(state: Mapping[str, Any]) -> bool:
    """Whether what is wrapped around a source may have read more of it than it gave, or all of it before."""
    inner = state.get("examples_iterable")
    here = state.get("previous_state") is not None or "previous_state_example_idx" in state or "repeat_index" in state
    return here or (isinstance(inner, Mapping) and has_read_ahead(inner))
