"""Tables: what pyarrow, pandas and `datasets` read, their features included."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fractal_streams.integrations.containers import tables
from fractal_streams.integrations.containers.tables import (
    ARROW_END,
    arrow_bytes,
    arrow_schema,
    jsonl_bytes,
    parquet_bytes,
    record_batch,
)
from PIL import Image

from fractal_streams import Mixture, Stream, open_stream
from fractal_streams.errors import InvalidValueError

from .pool import PoolStream, picture

SHAPES = {"stills": (3, 9, 11), "channels last": (9, 11, 3), "clips": (2, 3, 8, 9)}


def table_of(stream: Stream, image: str, indices: range) -> pa.Table:
    schema = arrow_schema(stream, image=image)
    parts = [arrow_bytes(record_batch(stream, stream.generate(indices[k : k + 3]), schema)) for k in (0, 3)]
    return pa.ipc.open_stream(b"".join((arrow_bytes(schema), *parts, ARROW_END))).read_all()


def decoded(column: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(value["bytes"]))) for value in column.to_pylist()]


@pytest.mark.parametrize("image", ["bmp", "png"])
@pytest.mark.parametrize("container", ["arrow", "parquet"])
def test_pictures_labels_and_indices_come_back(container: str, image: str) -> None:
    stream = PoolStream(SHAPES["stills"])
    if container == "arrow":
        table = table_of(stream, image, range(40, 46))
    else:
        table = pq.read_table(io.BytesIO(parquet_bytes(stream, range(40, 46), image=image)))
    table.validate(full=True)
    assert table.column_names == ["image", "label", "index"]
    assert table["index"].to_pylist() == [*range(40, 46)]
    assert table["label"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert [value["path"] for value in table["image"].to_pylist()][:2] == [f"00000040.{image}", f"00000041.{image}"]
    for index, found in zip(range(40, 46), decoded(table["image"]), strict=True):
        np.testing.assert_array_equal(found, picture(index, (3, 9, 11)).transpose(1, 2, 0))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("container", ["arrow", "parquet"])
def test_arrays_come_back(container: str, shape: tuple[int, ...]) -> None:
    stream = PoolStream(shape)
    if container == "arrow":
        table = table_of(stream, "npy", range(5, 11))
    else:
        table = pq.read_table(io.BytesIO(parquet_bytes(stream, range(5, 11), image="npy")))
    table.validate(full=True)
    for index, value in zip(range(5, 11), table["image"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.array(value, np.uint8), picture(index, shape))


def features_of(stream: Stream, image: str) -> dict[str, dict[str, object]]:
    return json.loads(arrow_schema(stream, image=image).metadata[b"huggingface"])["info"]["features"]


def test_the_schema_carries_features() -> None:
    stream = PoolStream((3, 9, 11))
    features = features_of(stream, "bmp")
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": [f"class {k}" for k in range(10)]}
    assert features["index"] == {"_type": "Value", "dtype": "int64"}
    assert features_of(PoolStream((2, 3, 8, 9)), "bmp")["image"] == {
        "_type": "Array4D", "shape": [2, 3, 8, 9], "dtype": "uint8",
    }  # fmt: skip


def test_names_that_are_too_many_or_alike_are_left_out() -> None:
    assert features_of(PoolStream(num_classes=100_001), "bmp")["label"] == {"_type": "Value", "dtype": "int64"}

    class Alike(PoolStream):
        def class_title(self, label: int) -> str:
            return "fern"

    assert features_of(Alike(), "bmp")["label"]["_type"] == "Value"


def test_a_mixture_is_written_as_any_stream() -> None:
    parts = [open_stream(name, device="cpu", height=8, width=8) for name in ("fractal-10", "mandelbrot")]
    mixture = Mixture(parts, labels="offset")
    table = pq.read_table(io.BytesIO(parquet_bytes(mixture, range(12))))
    batch = mixture.generate(range(12))
    assert table["label"].to_pylist() == batch.labels.tolist()
    for found, image in zip(decoded(table["image"]), batch.images, strict=True):
        np.testing.assert_array_equal(found, image.transpose(1, 2, 0))
    assert features_of(mixture, "bmp")["label"]["names"][10] == "class 0 of stream 1"  # type: ignore[index]


def test_parquet_does_not_depend_on_where_its_indices_come_from() -> None:
    stream = PoolStream()
    assert parquet_bytes(stream, range(7)) == parquet_bytes(stream, [*range(7)])
    assert parquet_bytes(stream, range(7)) == parquet_bytes(stream, np.arange(7))
    assert parquet_bytes(stream, range(7)) != parquet_bytes(stream, range(1, 8))


def test_parquet_is_made_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_BYTES", 4 * 3 * 8 * 8)
    stream = PoolStream()
    file = pq.ParquetFile(io.BytesIO(parquet_bytes(stream, range(10))))
    assert [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)] == [4, 4, 2]
    assert stream.asked == [*range(10)]
    assert file.metadata.row_group(1).column(3).statistics.min == 4  # index: a reader can skip groups


def test_no_samples_are_an_empty_table() -> None:
    assert pq.read_table(io.BytesIO(parquet_bytes(PoolStream(), range(0)))).num_rows == 0
    stream = PoolStream()
    assert record_batch(stream, stream.generate(range(0)), arrow_schema(stream)).num_rows == 0


def test_lines_of_json_say_what_is_known_and_where_the_picture_is() -> None:
    stream = PoolStream()
    lines = jsonl_bytes(stream, stream[2:5], images=["a", "b", "c"]).decode().splitlines()
    rows = [json.loads(line, parse_constant=lambda text: pytest.fail(text)) for line in lines]
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert [row["index"] for row in rows] == [2, 3, 4]
    assert rows[1]["latents"] == {"angle": None, "depth": 3.0}
    assert "image" not in json.loads(jsonl_bytes(stream, stream[2:3]))


@pytest.mark.parametrize("make", [arrow_schema, lambda stream: parquet_bytes(stream, range(1))])
def test_a_stream_of_another_dtype_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValueError, match="dtype='uint8'"):
        make(PoolStream(dtype="bfloat16"))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="got 'webp'"):
        arrow_schema(PoolStream(), image="webp")
