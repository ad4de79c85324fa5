"""A folder with only a README.md that is a dataset to whatever takes the path of one.

`datasets` reads the `configs` in the head of a README.md, and these point at `fractal://` addresses, whose
files are made when they are read. So timm, transformers, diffusers and every other script that calls
`datasets.load_dataset(PATH)` trains on a stream, unmodified; the scripts import nothing of this package.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fractal_streams.integrations.address import KEPT_OUT, MIN_DIGEST, Address
from fractal_streams.integrations.containers.tables import arrow_schema, record_batch

from fractal_streams import __version__
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.presets import PRESETS, STREAMS, open_stream
from fractal_streams.spec import one_of, whole
from fractal_streams.stream import SPLITS, Stream

try:
    import yaml  # type: ignore[import-untyped]
    from datasets import Features
except ImportError as error:
    raise missing_extra(error.name or "datasets", "huggingface") from error

CONTAINERS = ("parquet", "arrow", "tar")
LENGTHS = {"train": 50_000, "validation": 10_000, "test": 10_000}
SHARDS, SHARD = 48, 1000
"""Files of a split, a multiple of which most ranks and workers get equal parts; the most samples of one."""
MAX_LENGTH = 10**9
MARK = "fractal_streams"
"""The key in a README's head that tells a stub from a folder of somebody's own."""
CARD = "README.md"
PLAIN = (bool, int, float, str, type(None))


def write_stub(
    folder: str | os.PathLike[str],
    source: Any,
    *,
    splits: Mapping[str, int] | None = None,
    seed: int = 0,
    container: str = "arrow",
    force: bool = False,
    **settings: Any,
) -> Path:
    """Write a folder that is a dataset to every script that takes a dataset's path.

    Args:
        folder: a new or empty folder. Write it in lower case: timm lowers the names of datasets.
        source: a preset or formula, or a spec that differs from one in plain values only.
        splits: samples of each split, 1 to 10**9; None is 50,000 of "train" and 10,000 of "validation" and
            of "test".
        seed: names the stream's randomness, 0 to 2**64 - 1.
        container: the files that the README points at. "parquet" or "arrow" have the columns "image",
            "label" and "index"; "arrow" and "tar" add a config "endless", for streaming only. The columns of
            "tar" are those of webdataset: "png", "cls" and "json".
        force: overwrite a stub; nothing else is ever overwritten.
        settings: further settings of `open_stream` that have a form in an address (height, width, ...).

    Returns:
        The README.md.

    Raises:
        UnknownNameError: no such preset, formula or setting.
        InvalidValueError: a value out of its range, a spec without an address, or a folder that is in use.

    Example:
        >>> import datasets, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> card = write_stub(folder, "fractal-10", splits={"train": 200}, height=16, width=16)
        >>> dataset = datasets.load_dataset(folder, split="train", streaming=True)
        >>> next(iter(dataset))["image"].size
        (16, 16)
    """
    one_of(container, "container", CONTAINERS)
    lengths = checked(splits)
    name, changed = addressed(source)
    asked = {"seed": seed, "device": "cpu", **changed, **settings}
    stream = open_stream(name, **{**asked, "split": next(iter(lengths))})
    digest = stream.digest()[:MIN_DIGEST]  # of the spec: the README never comes to mean another stream
    addresses = {
        split: Address(
            source=name, split=split, seed=seed, digest=digest, settings=tuple({**changed, **settings}.items())
        )
        for split in lengths
    }
    for split, address in addresses.items():
        check_read_back(address, container, open_stream(name, **{**asked, "split": split}))
    text = card(stream, addresses, lengths, container)
    place = Path(folder).absolute()
    if str(place) != str(place).lower():
        warnings.warn(f"timm lowers the names of datasets and would not find {place}: use lower case", stacklevel=2)
    return put(place, text, force)


def check_read_back(address: Address, container: str, stream: Stream) -> None:
    """Refuse an address whose text is read as another stream than the one that was asked for."""
    read = Address.parse(f"{replace(address, digest=None)}/shard-000000.{container}").open_stream()
    if read.digest() != stream.digest():
        raise InvalidValueError(f"{address} is read as another stream than was asked for: export it instead")


def checked(splits: Mapping[str, int] | None) -> Mapping[str, int]:
    """The lengths asked for, of known splits."""
    if splits is None:
        return LENGTHS
    if not isinstance(splits, Mapping) or not splits:
        raise InvalidValueError(f"splits names how many samples each split has, such as {LENGTHS}; got {splits!r}")
    for split in splits:
        one_of(split, "split", SPLITS)
    return {split: whole(count, f"samples of {split}", 1, MAX_LENGTH, "") for split, count in splits.items()}


def addressed(source: Any) -> tuple[str, dict[str, Any]]:
    """The name and the settings under which an address finds a source."""
    if isinstance(source, str):
        return source, {}
    if isinstance(source, Stream) or type(source) not in STREAMS:
        raise InvalidValueError(
            f"a stub holds addresses, so its source is a preset's or formula's name, or a spec; got "
            f"{type(source).__name__}: give stream.spec and its seed, or export the stream"
        )
    kept: tuple[str, ...] = ()
    for name, preset in PRESETS.items():
        if type(preset) is type(source):
            changed = {item.name: getattr(source, item.name) for item in fields(source)}
            changed = {field: value for field, value in changed.items() if value != getattr(preset, field)}
            unsaid = tuple(field for field, value in changed.items() if field in KEPT_OUT or not is_plain(value))
            if not unsaid:
                return name, changed
            kept = min(kept or unsaid, unsaid, key=len)
    raise InvalidValueError(
        f"an address can't say {', '.join(kept) or 'this'} of the spec, which is no preset's: export the stream instead"
    )


def is_plain(value: Any) -> bool:
    """Whether an address can say a value."""
    return isinstance(value, PLAIN) or (
        isinstance(value, tuple) and len(value) > 1 and all(isinstance(each, str) for each in value)
    )


def shards(address: Address, length: int, container: str) -> list[str]:
    """Patterns of addresses whose files share samples 0 to length - 1, the first of them one more if they must."""
    count = min(length, SHARDS * -(-length // (SHARDS * SHARD)))
    each, longer = divmod(length, count)
    parts = [(0, each + 1, longer), (longer * (each + 1), each, count - longer)]
    return [
        f"{replace(address, start=start, samples=samples, shards=files)}/shard-*.{container}"
        for start, samples, files in parts
        if files
    ]


def card(stream: Stream, addresses: Mapping[str, Address], lengths: Mapping[str, int], container: str) -> str:
    """The README.md: a dataset card."""
    files = [{"split": split, "path": shards(addresses[split], lengths[split], container)} for split in lengths]
    configs = [{"config_name": "default", "data_files": files, "default": True}]
    schema = arrow_schema(stream)
    columns = {} if container == "tar" else {"features": Features.from_arrow_schema(schema)._to_yaml_list()}
    size = record_batch(stream, stream.generate(range(1)), schema).nbytes
    counted = [{"name": split, "num_bytes": count * size, "num_examples": count} for split, count in lengths.items()]
    infos = [{"config_name": "default", **columns, "splits": counted, "dataset_size": size * sum(lengths.values())}]
    if container != "parquet":
        ends = [{"split": split, "path": f"{addresses[split]}/endless.{container}"} for split in lengths]
        configs.append({"config_name": "endless", "data_files": ends})
        infos.append({"config_name": "endless", **deepcopy(columns)})
    head = {
        "pretty_name": f"Fractals: {addresses[next(iter(lengths))].source}",
        "license": "mit",
        "tags": ["synthetic", "fractals", "fractal-streams"],
        "task_categories": ["image-classification", "unconditional-image-generation"],
        "size_categories": [size_category(sum(lengths.values()))],
        "configs": configs,
        "dataset_info": infos,
        MARK: {"version": __version__, "container": container, **stream.describe()},
    }
    said = "\n".join(f"| {split} | {count:,} |" for split, count in lengths.items())
    endless = 'load_dataset(PATH, "endless", split="train", streaming=True)  # without an end\n' * (len(configs) > 1)
    written = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    return f"""---
{written}---

# Fractals: {addresses[next(iter(lengths))].source}

Labelled fractal images that no file holds: the addresses above are rendered while they are read, by
fractal-streams {__version__}, which has to be installed
(`pip install 'fractal-streams[huggingface]'`) and does not have to be imported.

| split | samples |
| --- | --- |
{said}

```python
from datasets import load_dataset

load_dataset(PATH, split="train")  # rendered once, into the cache
load_dataset(PATH, split="train", streaming=True)  # rendered while read
{endless}```

PATH is the path of this folder. Sample i of a split is the same on every machine and for ever; no sample is in
two splits. `HF_HUB_OFFLINE=1` allows streaming only.
"""


def size_category(count: int) -> str:
    """The Hub's name for a number of samples."""
    steps = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    larger = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
    return next((name for most, name in (*steps, *larger) if count < most), "1B<n<10B")


def is_stub(folder: Path) -> bool:
    """Whether a folder holds a README.md that `write_stub` wrote, and nothing else."""
    if not folder.is_dir() or [path.name for path in folder.iterdir()] != [CARD]:
        return False
    opening, _, rest = (folder / CARD).read_text(errors="replace").partition("---\n")
    return not opening and f"\n{MARK}:\n" in rest.partition("\n---\n")[0]


def put(folder: Path, text: str, force: bool) -> Path:
    """Have the text as the only file of a folder, or leave the folder as it was."""
    if folder.exists() and not folder.is_dir():
        raise InvalidValueError(f"{folder} is a file: name a new folder")
    stub = is_stub(folder)
    if stub and not force:
        raise InvalidValueError(f"{folder} is a stub already: give force=True to overwrite it, or name a new folder")
    if folder.is_dir() and not stub and any(folder.iterdir()):
        raise InvalidValueError(f"{folder} is in use and no stub, so it is left as it is: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stub-", dir=folder.parent) as unfinished:
        ready = Path(unfinished) / "ready"
        ready.mkdir()
        (ready / CARD).write_text(text)
        if stub:
            os.replace(ready / CARD, folder / CARD)
        else:
            os.replace(ready, folder)
    return folder / CARD
