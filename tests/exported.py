"""Exports of the numbered pictures, which tests read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fractal_streams.integrations.export import ExportReport, export
from numbered_pictures import NumberedPictures

from fractal_streams import open_stream

PROGRAM = Path(__file__).parent / "numbered_pictures.py"
BOTH = {"train": 30, "test": 12}


def numbered(folder: Path, **asked: Any) -> ExportReport:
    """An export of two splits of numbered pictures."""
    streams = {split: NumberedPictures(split=split) for split in asked.get("num", BOTH)}
    return export(streams, folder, **{"format": "webdataset", "num": BOTH, "shards": 3, "progress": False, **asked})


def fractals(**settings: Any) -> Any:
    return open_stream("fractal-10", seed=5, device="cpu", height=16, width=16, **settings)


def hwc(stream: Any, index: int) -> Any:
    """The picture of an index, (H, W, 3)."""
    return stream[index].image.transpose(1, 2, 0)
