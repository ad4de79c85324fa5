"""What every container says of a sample, and which streams it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fractal_streams.errors import InvalidValueError
from fractal_streams.stream import Stream

KEY_DIGITS = 8
MAX_CLASS_NAMES = 100_000
"""Streams of more classes are given to tables without names."""


def sample_key(index: int) -> str:
    """The name of a sample in an archive or folder: its index in at least 8 digits, so that names sort.

    Example:
        >>> sample_key(42), sample_key(10**9)
        ('00000042', '1000000000')
    """
    return f"{int(index):0{KEY_DIGITS}d}"


def sample_rows(batch: Any, stream: Stream, *, keep_nan: bool = False) -> list[dict[str, Any]]:
    """`sample_json` of every sample of a batch; keep_nan leaves NaN where that has None."""
    host = batch.numpy()
    labels = host.labels.tolist()
    titles = {label: stream.class_title(label) for label in set(labels)}
    columns = [_column(values, keep_nan) for values in host.latents.values()]
    names = list(host.latents)
    drawn = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [{} for _ in labels]
    return [
        {"index": index, "label": label, "class": titles[label], "latents": latents}
        for index, label, latents in zip(host.index.tolist(), labels, drawn, strict=True)
    ]


def sample_json(batch: Any, k: int, stream: Stream) -> dict[str, Any]:
    """What is known of sample k of a batch, as values that JSON holds.

    Returns:
        {"index", "label", "class", "latents"}: whole numbers, the name of the class, and every parameter
        by name (a list of T for clips); None stands for a parameter that the sample's formula has not.

    Example:
        >>> from fractal_streams import open_stream
        >>> stream = open_stream("fractal-10", device="cpu")
        >>> row = sample_json(stream[40:44], 2, stream)
        >>> row["index"], row["class"] == f"class {row['label']}", sorted(row["latents"])[:2]
        (42, True, ['alpha', 'beta'])
    """
    host = batch.numpy()
    label = int(host.labels[k])
    latents = {name: _column(values[k : k + 1])[0] for name, values in host.latents.items()}
    return {"index": int(host.index[k]), "label": label, "class": stream.class_title(label), "latents": latents}


def checked_uint8(stream: Stream) -> Stream:
    """The stream, if its pictures are bytes.

    Raises:
        InvalidValueError: not a stream, or one of another dtype.
    """
    if not isinstance(stream, Stream):
        raise InvalidValueError(f"stream must be a Stream, got {type(stream).__name__}: open one with open_stream(...)")
    if stream.pixels.dtype != "uint8":
        raise InvalidValueError(
            f"files hold pictures as bytes, and this stream has dtype={stream.pixels.dtype!r}: "
            f"open it with dtype='uint8'"
        )
    return stream


def is_clips(stream: Stream) -> bool:
    """Whether the stream's samples are clips, (T, 3, H, W), and not still pictures."""
    return len(stream.generate(range(0)).images.shape) == 5


def block_rows(stream: Stream, most_bytes: int, most: int) -> int:
    """How many samples of a stream are rendered together: as many as have or cost so many bytes, at least one."""
    pixels = stream.cost * int(np.prod(stream.generate(range(0)).images.shape[1:]))
    return max(1, min(most, most_bytes // pixels))


def class_names(stream: Stream) -> list[str] | None:
    """The names of all classes, or None where there are too many to list, or two have one name."""
    if stream.num_classes > MAX_CLASS_NAMES:
        return None
    names = [stream.class_title(label) for label in range(stream.num_classes)]
    return names if len(set(names)) == len(names) else None


def _column(values: Any, keep_nan: bool = False) -> list[Any]:
    """(B, ...) floats as lists, None for NaN."""
    if keep_nan or not np.isnan(values).any():
        return list(values.tolist())
    known = values.astype(object)
    known[np.isnan(values)] = None
    return list(known.tolist())
