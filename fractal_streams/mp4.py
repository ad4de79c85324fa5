"""MP4 files, H.264 by ffmpeg: whole, or an error."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import missing_extra


def write_mp4(
    path: Path, frames: Iterable[npt.NDArray[np.uint8]], fps: float, *, quality: float | None, options: Sequence[str]
) -> None:
    """Write frames as a video; the last row or column of an odd size is doubled, as H.264 halves the colour planes.

    Args:
        path: of the file.
        frames: (H, W, 3) uint8, all of one size.
        fps: frames a second.
        quality: of imageio, 0 to 10; None leaves it to the options.
        options: further ones of ffmpeg.

    Raises:
        MissingExtraError: imageio or its ffmpeg is not installed.
        OSError: ffmpeg did not write the whole file.
    """
    imageio: Any
    try:
        import imageio.v2 as imageio
    except ImportError:
        raise missing_extra("imageio", "video") from None
    if find_spec("imageio_ffmpeg") is None:
        raise missing_extra("imageio-ffmpeg", "video")
    with imageio.get_writer(
        path, fps=fps, codec="libx264", quality=quality, pixelformat="yuv420p", macro_block_size=2,
        ffmpeg_params=list(options),
    ) as writer:  # fmt: skip
        for frame in frames:
            height, width = frame.shape[:2]
            writer.append_data(np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge"))
    if not whole_mp4(path):  # nobody else asks how ffmpeg ended
        raise OSError(errno.EIO, "ffmpeg could not write the whole video: is there space on the disk?", str(path))


def whole_mp4(path: Path) -> bool:
    """Whether a file is a row of MP4's boxes that ends where the file ends, the index `moov` among them."""
    names, end = [], path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + 8 <= end:
            file.seek(place)
            size, name, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            names.append(name)
            place += max(8, large if size == 1 else size)
    return place == end and b"moov" in names
