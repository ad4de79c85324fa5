"""Samples as tables: Arrow record batches, Parquet files and lines of JSON.

The schema's metadata carries the features of Hugging Face `datasets`, so that `Image()`, the names of
the classes and the shapes of clips survive the way through a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fractal_streams.integrations.containers.pictures import bmp_array, checked_form, png_array, png_bytes
from fractal_streams.integrations.containers.samples import (
    block_rows,
    checked_uint8,
    class_names,
    is_clips,
    sample_key,
    sample_rows,
)

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.stream import Stream

try:
    import pyarrow as pa
except ImportError:
    raise missing_extra("pyarrow", "filesystem") from None

FEATURES = b"huggingface"
"""The key of a schema's metadata under which `datasets` looks for its features."""
NAME, CONTENT = "ARROW:extension:name", "ARROW:extension:metadata"
EXTENSIONS = "datasets.features.features"
"""A field of nested lists says of which extension type it is: to `datasets` an array, to others still lists."""
COLUMNS = ("image", "label", "index")
"""The columns of every table; those of latents follow."""
FORM = b"fractal_streams.image"
"""The key of a schema's metadata that says in which form pictures are written."""
FILES = {"bmp": bmp_array, "png": png_array}
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Behind the last record batch of an Arrow stream."""
ROW_GROUP_BYTES, ROW_GROUP = 2**25, 1000
"""Of a Parquet file's row groups, the most bytes of pixels and the most rows."""


def arrow_schema(stream: Stream, *, image: str = "bmp", latents: bool = False) -> pa.Schema:
    """Columns "image", "label" and "index" of a stream, with the features of `datasets` as metadata.

    Args:
        stream: of uint8 pictures or clips.
        image: "bmp" or "png" (not compressed) makes an `Image()` column, struct{bytes, path}; "npy" makes
            nested lists of uint8, `Array3D` to `datasets`. Clips are `Array4D` whatever this says.
        latents: a column for each latent too, behind those three, see `latent_features`.

    Raises:
        InvalidValueError: an unknown form, a stream whose dtype is not uint8, or a latent named as a column.

    Example:
        >>> from fractal_streams import open_stream
        >>> arrow_schema(open_stream("fractal-10", device="cpu")).field("image").type
        StructType(struct<bytes: binary, path: string>)
    """
    checked_uint8(stream)
    shape = stream.generate(range(0)).images.shape[1:]
    form = "npy" if is_clips(stream) else checked_form(image)
    names = class_names(stream)
    label: dict[str, Any] = {"dtype": "int64", "_type": "Value"}
    if names is not None:
        label = {"names": names, "_type": "ClassLabel"}
    if form == "npy":
        kind = f"Array{len(shape)}D"
        column: pa.DataType = pa.uint8()
        for _ in shape:
            column = pa.list_(column)
        feature: dict[str, Any] = {"shape": list(shape), "dtype": "uint8", "_type": kind}
        extension = {NAME: f"{EXTENSIONS}.{kind}ExtensionType", CONTENT: json.dumps([list(shape), "uint8"])}
    else:
        column, feature = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}
        extension = {}
    features = {"image": feature, "label": label, "index": {"dtype": "int64", "_type": "Value"}}
    drawn = latent_features(stream) if latents else {}
    metadata = {FEATURES: json.dumps({"info": {"features": {**features, **drawn}}}).encode(), FORM: form.encode()}
    image_field = pa.field("image", column, metadata=extension or None)
    further = [(name, _arrow_type(feature)) for name, feature in drawn.items()]
    return pa.schema([image_field, ("label", pa.int64()), ("index", pa.int64()), *further], metadata)


def latent_features(stream: Stream) -> dict[str, Any]:
    """The features of `datasets` of each latent of a stream, as its JSON has them: numbers, or nested lists of them.

    Raises:
        InvalidValueError: a latent has the name of another column.

    Example:
        >>> from fractal_streams import open_stream
        >>> latent_features(open_stream("fractal-10", device="cpu"))["alpha"]
        {'dtype': 'float32', '_type': 'Value'}
    """
    found = {}
    for name, values in stream.generate(range(0)).numpy().latents.items():
        if name in COLUMNS:
            raise InvalidValueError(f"latents: {name!r} of this stream has the name of a column: leave latents out")
        feature: dict[str, Any] = {"dtype": values.dtype.name, "_type": "Value"}
        for _ in values.shape[1:]:
            feature = {"feature": feature, "_type": "List"}
        found[name] = feature
    return found


def latent_columns(batch: Any, schema: pa.Schema) -> list[pa.Array]:
    """The latents of a batch that a schema has columns for, in its order; NaN stays NaN."""
    latents, names = batch.numpy().latents, schema.names[len(COLUMNS) :]
    held = [np.ascontiguousarray(latents[name]) for name in names]
    return [_nested(values) if values.ndim > 1 else pa.array(values) for values in held]


def record_batch(stream: Stream, batch: Any, schema: pa.Schema, *, compress: bool = False) -> pa.RecordBatch:
    """A `Batch` as a record batch of the schema that `arrow_schema` made; pixels are copied once.

    compress: smaller PNG files, many times slower.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu")
        >>> record_batch(stream, stream[5:7], arrow_schema(stream)).column("image")[0]["path"]
        <pyarrow.StringScalar: '00000005.bmp'>
    """
    host = batch.numpy()
    form = schema.metadata[FORM].decode()
    index = host.index
    if form == "npy":
        image = _nested(np.ascontiguousarray(host.images))
    else:
        small = compress and form == "png"
        files = (
            pa.array(png_bytes(host.images, compress=True), pa.binary()) if small else _binary(FILES[form](host.images))
        )
        paths = pa.array([f"{sample_key(number)}.{form}" for number in index.tolist()], pa.string())
        image = pa.StructArray.from_arrays([files, paths], fields=list(schema.field("image").type))
    columns = [image, pa.array(host.labels, pa.int64()), pa.array(index, pa.int64()), *latent_columns(host, schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def arrow_bytes(part: pa.Schema | pa.RecordBatch) -> bytes:
    """A schema or record batch as a message of an Arrow stream: the schema, record batches, `ARROW_END`.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu")
        >>> schema = arrow_schema(stream)
        >>> parts = [arrow_bytes(schema), arrow_bytes(record_batch(stream, stream[:3], schema)), ARROW_END]
        >>> pa.ipc.open_stream(b"".join(parts)).read_all().num_rows
        3
    """
    return bytes(part.serialize().to_pybytes())


def parquet_bytes(stream: Stream, indices: Sequence[int], *, image: str = "bmp") -> bytes:
    """A Parquet file of the samples of the indices; it does not depend on how they are rendered.

    Args:
        stream: of uint8 pictures or clips.
        indices: a range, list or array.
        image: as in `arrow_schema`.

    Raises:
        InvalidValueError: an unknown form, or a stream whose dtype is not uint8.

    Example:
        >>> import io, pyarrow.parquet
        >>> from fractal_streams import open_stream
        >>> file = parquet_bytes(open_stream("fractal-10", device="cpu"), range(20))
        >>> pyarrow.parquet.read_table(io.BytesIO(file)).num_rows
        20
    """
    import pyarrow.parquet as pq

    schema = arrow_schema(stream, image=image)
    sink = pa.BufferOutputStream()
    rows = block_rows(stream, ROW_GROUP_BYTES, ROW_GROUP)
    settings = {"compression": "snappy", "use_dictionary": False, "write_statistics": ["label", "index"]}
    with pq.ParquetWriter(sink, schema, **settings) as writer:
        for start in range(0, len(indices), rows):
            made = record_batch(stream, stream.generate(indices[start : start + rows]), schema)
            writer.write_batch(made, row_group_size=rows)
    return bytes(sink.getvalue().to_pybytes())


def jsonl_bytes(stream: Stream, batch: Any, *, images: Sequence[str] | None = None) -> bytes:
    """One line of JSON for each sample, as `sample_json` has it.

    Args:
        images: where the picture of each sample is, for a column "image"; None leaves it out.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu")
        >>> jsonl_bytes(stream, stream[5:7]).count(b"\\n")
        2
    """
    rows = sample_rows(batch, stream)
    if images is not None:
        rows = [{"image": place, **row} for place, row in zip(images, rows, strict=True)]
    return b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)


def _arrow_type(feature: dict[str, Any]) -> pa.DataType:
    """The type of a column of a feature of `latent_features`."""
    if "feature" in feature:
        return pa.list_(_arrow_type(feature["feature"]))
    return pa.from_numpy_dtype(np.dtype(feature["dtype"]))


def _binary(files: Any) -> pa.Array:
    """A binary column whose values are the rows of a C-contiguous (B, N) uint8 array, which it holds."""
    count, size = files.shape
    offsets = np.arange(count + 1, dtype=np.int64) * size
    if offsets[-1] >= 2**31:
        return pa.array([row.tobytes() for row in files], pa.binary())
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(files)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _nested(images: Any) -> pa.Array:
    """A column of nested lists, from a C-contiguous array of at least two axes, which it holds."""
    column = pa.array(images.reshape(-1))
    for axis in range(images.ndim - 1, 0, -1):
        count = int(np.prod(images.shape[:axis]))
        offsets = np.arange(count + 1, dtype=np.int64) * images.shape[axis]
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)
    return column
