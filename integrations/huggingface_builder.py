"""A stream as a builder of `datasets`, and a name for it in `datasets.load_dataset`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fractal_streams.integrations.huggingface_source import NUM_SHARDS, BatchSource, RowSource, Source, row_features
from fractal_streams.integrations.huggingface_stream import streamed

from fractal_streams import __version__
from fractal_streams.errors import InvalidValueError, MissingExtraError, missing_extra
from fractal_streams.presets import PRESETS, find_source, open_stream
from fractal_streams.shard import Shard
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import MAX_INDEX, SPLITS, Stream

try:
    import datasets.inspect
    import datasets.load
    from datasets import ArrowBasedBuilder, BuilderConfig, DatasetInfo, SplitDict, SplitGenerator, SplitInfo, Version
    from datasets.load import DatasetModule
except ImportError as error:
    raise missing_extra(error.name or "datasets", "huggingface") from error

NAME = "fractal"
VERSION = Version("1.0.0")
"""Of the columns; what is drawn is named by the rest of the cache's path."""
FORMATS = ("image", "tensor")
BATCH_SIZE = 256
BLOCKS, BLOCK = 1000, 1024
"""Of a finite dataset, the most blocks that processes share, and the fewest samples of one."""
PATCHED = (datasets.load, datasets.inspect)
"""Modules that look datasets up by `dataset_module_factory`."""
_registered: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Our lookups and what each wraps. One that another library wrapped in turn stays, and hands on once it is not here."""


@dataclass
class FractalConfig(BuilderConfig):  # type: ignore[misc]
    """What to draw and how to hand it out: the arguments of `fractal_streams.load_dataset`.

    source: a preset or formula, a spec, or an opened stream, which has one split.
    length: samples of every split, or of each by name; None is without end.
    splits: those to make; None is all that the source has.
    settings: further arguments of `open_stream`.
    """

    source: Any = None
    seed: int | None = None
    start: int = 0
    length: int | Mapping[str, int] | None = None
    splits: tuple[str, ...] | None = None
    format: str = "image"
    batch_size: int | None = None
    drop_last_batch: bool = False
    latents: bool = False
    device: str | None = None
    shard: Shard | None = None
    num_shards: int = NUM_SHARDS
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def known_splits(self) -> tuple[str, ...]:
        if not isinstance(self.source, Stream):
            for split in self.splits or ():
                one_of(split, "split", SPLITS)
            return self.splits or SPLITS
        own = self.source.split
        if self.splits not in (None, (own,)):
            raise InvalidValueError(f"split={self.splits}: this stream was opened with one split, pass split={own!r}")
        return (own,)

    def stream(self, split: str) -> Stream:
        """The stream of a split, opened now."""
        given = {name: value for name, value in (("seed", self.seed), ("device", self.device)) if value is not None}
        given |= self.settings
        if not isinstance(self.source, Stream):
            stream: Stream = open_stream(self.source, split=split, **given)
        elif given:
            raise InvalidValueError(f"{', '.join(given)}: an opened stream has its own; open another with them")
        else:
            stream = self.source
        if self.format == "image" and stream.pixels.dtype != "uint8":
            raise InvalidValueError(f"images hold uint8, and this stream has dtype={stream.pixels.dtype!r}: open it "
                                    f"with dtype='uint8', or load with format='tensor'")  # fmt: skip
        return stream

    def samples(self, split: str) -> int | None:
        """Length of a split, None without end."""
        if not isinstance(self.length, Mapping):
            return None if self.length is None else whole(self.length, "length", 1, MAX_INDEX, "samples")
        if unknown := set(self.length) - set(SPLITS):
            raise InvalidValueError(f"length names the splits {', '.join(SPLITS)}, got {', '.join(map(str, unknown))}")
        if split not in self.length:
            raise InvalidValueError(f"length={dict(self.length)} does not say how many samples {split!r} has")
        return whole(self.length[split], f"length of {split}", 1, MAX_INDEX, "samples")

    def data_source(self, split: str) -> Source:
        """The examples of a split."""
        one_of(self.format, "format", FORMATS)
        if self.shard is not None and not isinstance(self.shard, Shard):
            raise InvalidValueError(f"shard must be a Shard(rank, world_size) or None, got {self.shard!r}")
        given: dict[str, Any] = {"start": self.start, "length": self.samples(split), "num_shards": self.num_shards}
        given["latents"] = bool(self.latents)
        if self.format == "image":
            if self.batch_size is not None or self.drop_last_batch:
                raise InvalidValueError(
                    "batch_size and drop_last_batch belong to format='tensor': give them to the DataLoader or to "
                    "dataset.batch(...) here"
                )
            source: Source = RowSource(self.stream(split), **given)
        else:
            size = BATCH_SIZE if self.batch_size is None else self.batch_size
            source = BatchSource(self.stream(split), unit=size, drop_last=bool(self.drop_last_batch), **given)
        if self.shard is None:
            return source
        return source.part(source.units[self.shard.rank :: self.shard.world_size])

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Names the cache: by what is drawn and by the version that drew it, whatever way it was asked for."""
        if custom_features is not None:
            raise InvalidValueError("features follow from the stream: load without features= and cast the dataset")
        drawn = [[split, self.stream(split).digest(), self.samples(split)] for split in self.known_splits]
        said = json.dumps([__version__, self.start, self.format, self.batch_size, bool(self.latents), drawn])
        return f"{self.name}-{hashlib.blake2s(said.encode(), digest_size=8).hexdigest()}"


class FractalBuilder(ArrowBasedBuilder):  # type: ignore[misc]
    """A `datasets.DatasetBuilder` of a stream, for code that takes builders.

    Args:
        source: a preset or formula, a spec, or a stream.
        settings: of `fractal_streams.load_dataset`, and of `datasets.DatasetBuilder` (cache_dir, ...).

    `as_streaming_dataset(split=...)` gives what `load_dataset` gives. `download_and_prepare()` and
    `as_dataset(split=...)` write to the cache and read from it what has a `length`; nothing is downloaded.

    Raises:
        UnknownNameError, InvalidValueError: names the argument, the value and what is allowed.

    Example:
        >>> builder = FractalBuilder("fractal-10", seed=3, device="cpu")
        >>> next(iter(builder.as_streaming_dataset(split="test")))["image"].size
        (32, 32)
    """

    VERSION = VERSION
    BUILDER_CONFIG_CLASS = FractalConfig
    BUILDER_CONFIGS: ClassVar = [FractalConfig(name=preset, source=preset, version=VERSION) for preset in PRESETS]

    def __init__(self, source: Any = None, **settings: Any) -> None:
        own = {item.name for item in fields(FractalConfig)} | set(inspect.signature(ArrowBasedBuilder).parameters)
        further = {name: settings.pop(name) for name in list(settings) if name not in own}
        further = {**(settings.pop("settings", None) or {}), **further}
        name = settings.get("config_name")
        if source is not None and name not in (None, "default", source):
            raise InvalidValueError(f"{source!r} and config_name={name!r} are two sources: give one of them")
        source = source if source is not None else name
        if source is None:
            raise InvalidValueError(f"name a source: FractalBuilder('fractal-10'), or one of {', '.join(PRESETS)}")
        preset = isinstance(source, str) and source in PRESETS
        settings["config_name"] = source if preset else None
        if not preset:
            name = source.rpartition(":")[2] if isinstance(source, str) else ""
            settings["name"] = name if name.isidentifier() else "custom"
        settings.setdefault("dataset_name", NAME)
        super().__init__(**settings, source=source, settings=further)

    def _info(self) -> DatasetInfo:
        lengths = {split: self.config.samples(split) for split in self.config.known_splits}
        stream = self.config.stream(self.config.known_splits[0])
        said = describe(stream)
        if self.config.format != "image":
            return DatasetInfo(description=said, license="mit")
        splits = None
        if None not in lengths.values():
            splits = SplitDict(dataset_name=self.dataset_name)
            for split, length in lengths.items():
                splits.add(SplitInfo(split, num_examples=max(0, (length or 0) - self.config.start)))
        return DatasetInfo(
            description=said, license="mit", features=row_features(stream, self.config.latents), splits=splits
        )

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [
            SplitGenerator(name=split, gen_kwargs={"split": split, "blocks": self._blocks(split)})
            for split in self.config.known_splits
        ]

    def _blocks(self, split: str) -> list[tuple[int, int]]:
        """Intervals that `num_proc` processes share; none of an endless split."""
        length = self.config.samples(split) or 0
        size = max(BLOCK, -(-length // BLOCKS))
        return [(first, min(first + size, length)) for first in range(self.config.start, length, size)]

    def _generate_tables(self, split: str, blocks: list[tuple[int, int]]) -> Iterator[tuple[Any, Any]]:
        stream = self.config.stream(split)
        for first, last in blocks:
            source = RowSource(stream, latents=self.config.latents, start=first, length=last, num_shards=1)
            for done, table in source.iter_arrow():
                yield f"{first}-{done}", table

    def _as_streaming_dataset_single(self, splits_generator: Any, *_: Any, **__: Any) -> Any:
        source = self.config.data_source(splits_generator.name)
        return streamed(source, splits_generator.name, describe(source.stream))

    def download_and_prepare(self, *arguments: Any, **settings: Any) -> None:
        """Renders every split into the cache; `num_proc` processes share the work.

        Raises:
            InvalidValueError: a split without end, batches of tensors, or a shard.
        """
        endless = [split for split in self.config.known_splits if self.config.samples(split) is None]
        if endless:
            raise InvalidValueError(
                f"{', '.join(endless)} would be endless on disk: give length=, or load with streaming=True"
            )
        if self.config.format == "tensor":
            raise InvalidValueError(
                "batches of tensors are made while they are read: load with streaming=True, "
                "or with format='image' and dataset.with_format('torch')"
            )
        if self.config.shard is not None:
            raise InvalidValueError("shard= belongs to streaming=True: use dataset.shard(num_shards, index) here")
        self.config.data_source(self.config.known_splits[0])
        super().download_and_prepare(*arguments, **settings)


def describe(stream: Stream) -> str:
    """What a dataset's info says of a stream."""
    return f"Fractal images, generated by fractal-streams {__version__}: {json.dumps(stream.describe())}"


def register() -> None:
    """Teaches `datasets.load_dataset` the names "fractal/PRESET" and "fractal/FORMULA" in this process.

    `datasets` has no entry point for builders: this wraps its lookup of names, until `unregister`. Calling
    it again changes nothing.

    Raises:
        MissingExtraError: the installed `datasets` looks names up in another way.

    Example:
        >>> import datasets
        >>> register()
        >>> stream = datasets.load_dataset("fractal/fractal-10", split="train", streaming=True, seed=3, device="cpu")
        >>> next(iter(stream))["index"]
        0
        >>> unregister()
    """
    for module in PATCHED:
        found = getattr(module, "dataset_module_factory", None)
        if found is None or "path" not in inspect.signature(found).parameters:
            raise MissingExtraError(
                f"datasets {datasets.__version__} finds datasets in another way: use fractal_streams.load_dataset, or "
                f"pip install 'datasets>=5.1,<6'"
            )
    for module in PATCHED:
        if module.dataset_module_factory not in _registered:
            module.dataset_module_factory = _finding_fractals(module.dataset_module_factory)


def unregister() -> None:
    """Undoes `register`."""
    for module in PATCHED:
        while module.dataset_module_factory in _registered:
            module.dataset_module_factory = _registered[module.dataset_module_factory]
    _registered.clear()


def _finding_fractals(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def dataset_module_factory(path: Any, *arguments: Any, **settings: Any) -> Any:
        room, _, source = str(path).partition("/")
        if room != NAME or dataset_module_factory not in _registered:
            return factory(path, *arguments, **settings)
        for name in ("revision", "data_files", "data_dir"):
            if settings.get(name) is not None:
                raise InvalidValueError(f"{name}={settings[name]!r}: a stream has no files; leave it out")
        if source:
            find_source(source)
        named = {"source": source} if source else {}
        return DatasetModule(__name__, __version__, {"dataset_name": NAME, **named})

    _registered[dataset_module_factory] = factory
    return dataset_module_factory
