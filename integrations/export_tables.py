"""Parquet and Arrow files of an export, with the features of Hugging Face `datasets`, and the card of a dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fractal_streams.integrations.containers.tables import arrow_schema, record_batch
from fractal_streams.integrations.export_formats import Format, json_file
from fractal_streams.integrations.manifest import Piece, Record

from fractal_streams.batch import Batch


class Tables(Format):
    """What Parquet and Arrow files share: columns "image", "label" and "index", with the features of `datasets`."""

    images = ("png", "bmp", "npy")

    @cached_property
    def schema(self) -> Any:
        """The columns; the same for every split."""
        return arrow_schema(self.stream, image=self.image)

    @property
    def features(self) -> dict[str, Any]:
        """The columns, as `datasets` says it."""
        features: dict[str, Any] = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
        return features

    def encode(self, piece: Piece, batch: Batch) -> Any:
        return record_batch(self.streams[piece.split], batch, self.schema, compress=True)


class Parquet(Tables):
    """Parquet files, named as `datasets` finds the splits."""

    pattern = "data/{split}-{place:05d}-of-{shards:05d}.parquet"

    def write(self, path: Path, piece: Piece, blocks: Iterator[Any]) -> None:
        settings = {"compression": "snappy", "use_dictionary": False, "write_statistics": ["label", "index"]}
        with pq.ParquetWriter(path, self.schema, **settings) as writer:
            for block in blocks:
                writer.write_batch(block, row_group_size=self.rows)


class Hub(Parquet):
    """The same Parquet files with a dataset card: a folder to upload."""

    def closing(self, records: Mapping[str, Record]) -> dict[str, bytes]:
        return {"README.md": card(self, records).encode()}


class Arrow(Tables):
    """Arrow files as `datasets.load_from_disk` reads them: a `DatasetDict`, without importing `datasets`."""

    pattern = "{split}/data-{place:05d}-of-{shards:05d}.arrow"

    def write(self, path: Path, piece: Piece, blocks: Iterator[Any]) -> None:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, self.schema) as writer:
            for block in blocks:
                writer.write_batch(block)

    def closing(self, records: Mapping[str, Record]) -> dict[str, bytes]:
        files: dict[str, bytes] = {"dataset_dict.json": json_file({"splits": list(self.num)})}
        for split in self.num:
            own = [record for record in records.values() if record.split == split]
            digest = hashlib.sha256("".join(record.sha256 for record in own).encode()).hexdigest()
            info = {"citation": "", "description": "", "features": self.features, "homepage": "", "license": ""}
            state = {
                "_data_files": [{"filename": record.name.rpartition("/")[2]} for record in own],
                "_fingerprint": digest[:16], "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
                "_output_all_columns": False, "_split": split,
            }  # fmt: skip
            files[f"{split}/dataset_info.json"] = json_file(info)
            files[f"{split}/state.json"] = json_file(state)
        return files


def card(made: Tables, records: Mapping[str, Record]) -> str:
    """The dataset card of a folder of Parquet files: what it holds, and how it was made."""
    columns = []
    for name, feature in made.features.items():
        kind = feature["_type"]
        if kind == "ClassLabel":
            dtype: Any = {"class_label": {"names": {str(k): each for k, each in enumerate(feature["names"])}}}
        elif kind.startswith("Array"):
            dtype = {f"array{kind[5]}_d": {"dtype": feature["dtype"], "shape": feature["shape"]}}
        else:
            dtype = "image" if kind == "Image" else feature["dtype"]
        columns.append({"name": name, "dtype": dtype})
    splits = [
        {
            "name": split,
            "num_bytes": sum(each.bytes for each in records.values() if each.split == split),
            "num_examples": num,
        }
        for split, num in made.num.items()
    ]
    files = [{"split": split, "path": f"data/{split}-*"} for split in made.num]
    header = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": columns, "splits": splits},
        "tags": ["synthetic", "fractal"],
        "task_categories": ["image-classification"],
    }
    lines = "\n".join(f"{name}: {yaml_line(value)}" for name, value in header.items())
    told = "\n".join(f"| {split} | {num:,} | `{made.streams[split].digest()}` |" for split, num in made.num.items())
    return (
        f"---\n{lines}\n---\n\n# Fractal pictures\n\nGenerated by fractal-streams; `manifest.json` says what was "
        f"drawn, so that it can be drawn again, and has the SHA-256 of every file.\n\n"
        f"| split | samples | digest of the stream |\n| --- | --- | --- |\n{told}\n"
    )


def yaml_line(value: Any) -> str:
    """A value as JSON, which is YAML but for letters beyond 16 bits: JSON escapes them in two halves, YAML in one."""
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))
